// A test is a program: CHECK what must hold, and return finish() from main.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace check {

inline int failures = 0;

// Counts a failure and prints it; the first twenty are enough to see what is wrong.
__attribute__((format(printf, 4, 5))) inline void that(bool condition, const char* file, int line, const char* format,
                                                       ...) {
  if (condition || ++failures > 20) return;
  std::fprintf(stderr, "%s:%d: ", file, line);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
}

inline int finish() {
  if (failures > 0) std::fprintf(stderr, "%d checks failed\n", failures);
  return failures > 0;
}

}  // namespace check

// CHECK(condition) or CHECK(condition, format, values...).
#define CHECK(condition, ...) check::that((condition), __FILE__, __LINE__, #condition __VA_OPT__(": " __VA_ARGS__))
