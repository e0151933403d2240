// Short spellings for calls of the C API.
#pragma once

#include <variate/variate.h>

#include <cstdint>
#include <vector>

#include "check.hpp"

// bfloat16 and float16 by bits.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

template <class T>
inline constexpr variate_dtype dtype_of = VARIATE_FLOAT32;
template <>
inline constexpr variate_dtype dtype_of<double> = VARIATE_FLOAT64;
template <>
inline constexpr variate_dtype dtype_of<BFloat16> = VARIATE_BFLOAT16;
template <>
inline constexpr variate_dtype dtype_of<Float16> = VARIATE_FLOAT16;
template <>
inline constexpr variate_dtype dtype_of<std::uint8_t> = VARIATE_UINT8;
template <>
inline constexpr variate_dtype dtype_of<std::int64_t> = VARIATE_INT64;

template <class T>
variate_tensor view(const std::vector<T>& data, std::int64_t row_stride, std::int64_t col_stride = 1) {
  return {const_cast<T*>(data.data()), dtype_of<T>, row_stride, col_stride};
}

template <class Args>
Args make(std::int64_t rows, std::int64_t cols, int threads = 1) {
  Args args{};
  args.struct_size = sizeof args;
  args.execution.threads = threads;
  args.rows = rows;
  if constexpr (requires { args.cols; }) args.cols = cols;
  return args;
}

#define CHECK_OK(call) CHECK((call) == VARIATE_OK, "%s", variate_last_error())
