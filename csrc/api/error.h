// How a call fails: a status, and a message for variate_last_error().
#pragma once

#include <variate/core.h>

namespace variate {

void set_error(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace variate
