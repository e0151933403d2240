// What every element function is built from: one spelling for host and device, explicit rounding, no libm.
//
// Everything under variate/math is `static` and force-inlined, so a translation unit compiled for one instruction set
// never lends its code to another. All functions are branch-free, so that a loop over them vectorises.
#pragma once

#include <math.h>

#include <cstdint>

#if defined(__CUDACC__)
#define VARIATE_INLINE static __host__ __device__ __forceinline__
#else
#define VARIATE_INLINE static inline __attribute__((always_inline))
#endif

namespace variate::math {

VARIATE_INLINE std::uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(std::uint32_t, x);
#endif
}

VARIATE_INLINE float float_of(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

VARIATE_INLINE double double_of(std::uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(static_cast<long long>(bits));
#else
  return __builtin_bit_cast(double, bits);
#endif
}

// a * b + c, rounded once. Without FMA hardware the host calls the C library, which is slow and right.
VARIATE_INLINE float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

VARIATE_INLINE double fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

// The correctly rounded square root.
VARIATE_INLINE float sqrt(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

VARIATE_INLINE double sqrt(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// a * b in full.
struct WideProduct {
  std::uint32_t low;
  std::uint32_t high;
};

VARIATE_INLINE WideProduct multiply(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__)
  return {a * b, __umulhi(a, b)};  // one instruction; through 64-bit integers ptxas adds a zero to each high word
#else
  const std::uint64_t product = static_cast<std::uint64_t>(a) * b;
  return {static_cast<std::uint32_t>(product), static_cast<std::uint32_t>(product >> 32)};
#endif
}

VARIATE_INLINE float abs(float x) { return float_of(bits_of(x) & 0x7fffffffu); }
VARIATE_INLINE double abs(double x) { return ::fabs(x); }

// `low` and `high` bound x; a NaN passes through, as it does not through fmin and fmax.
VARIATE_INLINE float clamp(float x, float low, float high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// The nearest integer of |x| < 2^22, ties to even: as a float, and its low bits as an integer.
struct Rounded {
  float value;
  std::uint32_t integer;
};

VARIATE_INLINE Rounded round(float x) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer part in the low mantissa bits
  const float shifted = x + magic;
  return {shifted - magic, bits_of(shifted) - bits_of(magic)};
}

}  // namespace variate::math
