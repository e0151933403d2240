// exp, log, sin, cos, sigmoid and softplus in float32: the same bits on every CPU and GPU.
//
// Error against float64, over the whole stated range, in ulp of the float32 result (tests/cpp/test_elementary.cpp
// measures them and fails above these bounds):
//   exp             [-86.6, 88.7]     1.1   below: absolute 2^-124, soon 0; above: infinity
//   exp_nonpositive [-87.3, 0]        1.1   below: absolute 2^-126, soon 0
//   expm1           all up to 88.7    1.6
//   log             positive normal   0.9
//   log1p_unit      [0, 1]            1.5
//   sin(2 pi u)     [0, 1]            1.7   and so near its zeros, which are exact
//   cos(2 pi u)     [0, 1]            1.7   likewise
//   softplus        from -87.3 on     2.1   below: absolute 2^-126, soon 0
//   sigmoid         from -87.3 on     2.5   below: absolute 2^-126, soon 0
// The float64 overloads are the C library's. Coefficients: tools/minimax.py.
#pragma once

#include "base.hpp"

namespace variate::math {

inline constexpr float ln2_high = 0x1.62e4p-1f;  // 15 bits: n * ln2_high is exact for |n| < 512
inline constexpr float ln2_low = 0x1.7f7d1cp-20f;
inline constexpr float log2_e = 0x1.715476p+0f;

// 2^n for -126 <= n <= 127, 0 for smaller n.
VARIATE_INLINE float power_of_two(std::int32_t n) {
  const std::int32_t biased = n + 127;
  return float_of(static_cast<std::uint32_t>(biased > 0 ? biased : 0) << 23);
}

// exp(x) and exp(x) - 1, the latter without cancellation.
template <class T>
struct Exponential {
  T exp;
  T expm1;
};

// x = exponent ln 2 + r with |r| <= ln 2 / 2, and fraction = exp(r) - 1.
struct ReducedExponential {
  std::int32_t exponent;
  float fraction;
};

VARIATE_INLINE ReducedExponential reduce_exponential(float x) {
  const Rounded n = round(x * log2_e);
  const float r = fma(n.value, -ln2_low, fma(n.value, -ln2_high, x));
  float q = 0x1.6d722cp-10f;
  q = fma(q, r, 0x1.122680p-7f);
  q = fma(q, r, 0x1.5554c8p-5f);
  q = fma(q, r, 0x1.5554b2p-3f);
  q = fma(q, r, 0.5f);
  return {static_cast<std::int32_t>(n.integer), fma(r * r, q, r)};
}

VARIATE_INLINE Exponential<float> exponential(float x) {
  const ReducedExponential e = reduce_exponential(clamp(x, -104.0f, 89.0f));  // exp is 0 below and infinite above
  // Half of 2^n, so that n = 128 stays in range; results below 2^-125 are 0.
  const float half = power_of_two(e.exponent - 1);
  const float exp = fma(e.fraction, half, half);
  const float expm1 = fma(e.fraction, half, half - 0.5f);
  return {exp + exp, expm1 + expm1};
}

VARIATE_INLINE Exponential<double> exponential(double x) { return {::exp(x), ::expm1(x)}; }

// The same of -87 <= x <= 88, without a case.
VARIATE_INLINE Exponential<float> bounded_exponential(float x) {
  const ReducedExponential e = reduce_exponential(x);
  const float scale = float_of(static_cast<std::uint32_t>(e.exponent + 127) << 23);
  return {fma(e.fraction, scale, scale), fma(e.fraction, scale, scale - 1.0f)};
}

VARIATE_INLINE Exponential<double> bounded_exponential(double x) { return {::exp(x), ::expm1(x)}; }

VARIATE_INLINE float exp(float x) { return exponential(x).exp; }
VARIATE_INLINE double exp(double x) { return ::exp(x); }

// exp(x) of x <= 0, for sums with 1: results below 2^-126 are 0.
VARIATE_INLINE float exp_nonpositive(float x) {
  const ReducedExponential e = reduce_exponential(x < -88.0f ? -88.0f : x);  // exponent >= -127, whose scale is 0
  const float scale = float_of(static_cast<std::uint32_t>(e.exponent + 127) << 23);
  return fma(e.fraction, scale, scale);
}
VARIATE_INLINE double exp_nonpositive(double x) { return ::exp(x); }

// exponent * ln 2 + log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1].
VARIATE_INLINE float log_reduced(float exponent, float f) {
  float p = -0x1.41fe3ap-4f;
  p = fma(p, f, 0x1.07d6a8p-3f);
  p = fma(p, f, -0x1.0cdf74p-3f);
  p = fma(p, f, 0x1.226d1ap-3f);
  p = fma(p, f, -0x1.54788ep-3f);
  p = fma(p, f, 0x1.99a5aap-3f);
  p = fma(p, f, -0x1.000222p-2f);
  p = fma(p, f, 0x1.55554ap-2f);
  const float square = f * f;
  float tail = fma(exponent, ln2_low, square * f * p);
  tail = fma(-0.5f, square, tail);
  return fma(exponent, ln2_high, f + tail);
}

// A positive number as 2^exponent (1 + f), as log_reduced takes it.
struct LogArgument {
  float exponent;
  float f;
};

// x, positive and normal.
VARIATE_INLINE LogArgument log_argument(float x) {
  constexpr std::uint32_t root_half = 0x3f3504f3u;  // sqrt(1/2)
  const std::uint32_t bits = bits_of(x);
  const std::int32_t exponent = static_cast<std::int32_t>(bits - root_half) >> 23;
  const float mantissa = float_of(bits - (static_cast<std::uint32_t>(exponent) << 23));
  return {static_cast<float>(exponent), mantissa - 1.0f};
}

// 1 - x of x in [0, 1/2], without rounding it.
VARIATE_INLINE LogArgument log_argument_of_complement(float x) {
  const bool reduce = x > 0x1.2bec34p-2f;  // 1 - x < sqrt(1/2): double it
  return {reduce ? -1.0f : 0.0f, reduce ? fma(-2.0f, x, 1.0f) : -x};
}

// log(x) of a positive normal x.
VARIATE_INLINE float log(float x) {
  const LogArgument a = log_argument(x);
  return log_reduced(a.exponent, a.f);
}

VARIATE_INLINE double log(double x) { return ::log(x); }

// log(1 + x) of x in [0, 1], by one polynomial without a case: x (log(1 + x) / x).
VARIATE_INLINE float log1p_unit(float x) {
  float p = -0x1.b1650ep-9f;
  p = fma(p, x, 0x1.4a24a0p-6f);
  p = fma(p, x, -0x1.d78b46p-5f);
  p = fma(p, x, 0x1.b50b32p-4f);
  p = fma(p, x, -0x1.3a597ap-3f);
  p = fma(p, x, 0x1.93510cp-3f);
  p = fma(p, x, -0x1.ff249ep-3f);
  p = fma(p, x, 0x1.554dd4p-2f);
  p = fma(p, x, -0x1.ffffd2p-2f);
  p = fma(p, x, 1.0f);
  return p * x;
}

struct SinCos {
  float sin;
  float cos;
};

// sin(2 pi u) and cos(2 pi u) of u in [0, 1].
VARIATE_INLINE SinCos sincos_2pi(float u) {
  const Rounded quarter = round(4.0f * u);
  const float r = fma(quarter.value, -0.25f, u);  // exact, in [-1/8, 1/8]
  const float s = r * r;
  float a = -0x1.32e77cp+6f;
  a = fma(a, s, 0x1.467faap+6f);
  a = fma(a, s, -0x1.4abc22p+5f);
  a = fma(a, s, 0x1.921fb6p+2f);
  a = a * r;
  float b = 0x1.d47088p+5f;
  b = fma(b, s, -0x1.55b138p+6f);
  b = fma(b, s, 0x1.03c1aep+6f);
  b = fma(b, s, -0x1.3bd3ccp+4f);
  b = fma(b, s, 1.0f);
  const bool odd = quarter.integer & 1u;
  const std::uint32_t sin_sign = (quarter.integer & 2u) << 30;
  const std::uint32_t cos_sign = ((quarter.integer + 1u) & 2u) << 30;
  return {float_of(bits_of(odd ? b : a) ^ sin_sign), float_of(bits_of(odd ? a : b) ^ cos_sign)};
}

// log(1 + exp(-|x|)): what softplus(x) = max(x, 0) + this adds to its asymptote.
VARIATE_INLINE float softplus_tail(float x) { return log1p_unit(exp_nonpositive(-abs(x))); }

VARIATE_INLINE double softplus_tail(double x) { return ::log1p(::exp(-abs(x))); }

// log(1 + exp(x)).
template <class T>
VARIATE_INLINE T softplus(T x) {
  return (x > T(0) ? x : T(0)) + softplus_tail(x);
}

// 1 / (1 + exp(-x)).
template <class T>
VARIATE_INLINE T sigmoid(T x) {
  const T e = exp_nonpositive(-abs(x));
  return (x < T(0) ? e : T(1)) / (T(1) + e);
}

}  // namespace variate::math
