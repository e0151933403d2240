#include <variate/core.h>

#include <cstdarg>
#include <cstdio>

#include "error.h"

namespace variate {

namespace {
thread_local char last_error[512] = "";
}

void set_error(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
}

}  // namespace variate

#define VARIATE_TEXT(x) #x
#define VARIATE_VERSION_TEXT(major, minor, patch) VARIATE_TEXT(major) "." VARIATE_TEXT(minor) "." VARIATE_TEXT(patch)

extern "C" {

VARIATE_API const char* variate_last_error(void) { return variate::last_error; }

VARIATE_API const char* variate_version(void) {
  return VARIATE_VERSION_TEXT(VARIATE_VERSION_MAJOR, VARIATE_VERSION_MINOR, VARIATE_VERSION_PATCH);
}

VARIATE_API const char* variate_cuda_architectures(void) { return VARIATE_CUDA_ARCHITECTURES; }
}
