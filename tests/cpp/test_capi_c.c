/* The headers are C11, and a C program gets the numbers that the C++ tests get. */
#include <variate/variate.h>

#include <stdio.h>
#include <string.h>

static int failures = 0;

static void check(int condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "%s (last error: %s)\n", what, variate_last_error());
  ++failures;
}

_Static_assert(sizeof(variate_dtype) == 4 && sizeof(variate_device) == 4 && sizeof(variate_status) == 4,
               "enumerations are 32 bits, so that structs are the same in every language");
_Static_assert(sizeof(variate_tensor) == 32, "a tensor is four 64-bit fields");

int main(void) {
  const int64_t key[2] = {0, 0};
  const int64_t expected[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  int64_t words[4] = {0, 0, 0, 0};
  variate_random_args args;
  memset(&args, 0, sizeof args);
  args.struct_size = sizeof args;
  args.noise.key = key;
  args.rows = 1;
  args.cols = 4;
  args.out.data = words;
  args.out.dtype = VARIATE_INT64;
  args.out.row_stride = 4;
  args.out.col_stride = 1;
  check(variate_bits(&args) == VARIATE_OK, "variate_bits");
  check(memcmp(words, expected, sizeof words) == 0, "the known answer of counter 0 under key 0");
  args.struct_size = 1;
  check(variate_bits(&args) == VARIATE_INVALID_ARGUMENT, "a wrong struct_size");
  check(strstr(variate_last_error(), "struct_size") != NULL, "its message");

  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", VARIATE_VERSION_MAJOR, VARIATE_VERSION_MINOR, VARIATE_VERSION_PATCH);
  check(strcmp(variate_version(), version) == 0, "the library's version is the header's");
  check(strstr(variate_cpu_capabilities(), variate_cpu_capability()) != NULL, "the set in use is one of those there");
  check(strncmp(variate_cpu_capabilities(), "portable", 8) == 0, "portable code runs everywhere");
  check(variate_has_openmp() == 0 || variate_has_openmp() == 1, "variate_has_openmp");
  return failures > 0;
}
