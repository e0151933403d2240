// Relaxed and straight-through discrete samples, one element at a time.
// Source: Jang, Gu and Poole, "Categorical reparameterization with Gumbel-softmax", 2017; Maddison, Mnih and Teh, "The
// concrete distribution", 2017.
#pragma once

#include "elementary.hpp"

namespace variate::math {

// 1 / temperature, rounded to T first; finite also where it is too small for that, so that 0 times it stays 0.
template <class T>
VARIATE_INLINE T inverse_temperature(double temperature) {
  constexpr double largest = sizeof(T) == 4 ? 0x1.fffffep+127 : 0x1.fffffffffffffp+1023;
  const double inverse = 1.0 / static_cast<double>(static_cast<T>(temperature));
  return static_cast<T>(inverse > largest ? largest : inverse);
}

// score - best, and 0 where they are equal: so too where both are infinite.
template <class T>
VARIATE_INLINE T below_best(T score, T best) {
  return score == best ? T(0) : score - best;
}

// 1 where x > 0, else 0; a NaN passes through.
template <class T>
VARIATE_INLINE T one_if_positive(T x) {
  return x != x ? x : x > T(0) ? T(1) : T(0);
}

// sigmoid(x) (1 - sigmoid(x)) = e / (1 + e)^2, e = exp(-|x|): within 4.6 ulp for |x| <= 86.
template <class T>
VARIATE_INLINE T sigmoid_slope(T x) {
  const T e = exp_nonpositive(-abs(x));
  const T half = T(1) / (T(1) + e);
  return e * half * half;
}

}  // namespace variate::math
