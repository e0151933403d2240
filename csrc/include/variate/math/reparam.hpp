// The reparameterised normal and its Kullback-Leibler divergence, one element at a time.
// Source: Kingma and Welling, "Auto-encoding variational Bayes", 2014, section 2.4 and appendix B.
#pragma once

#include "elementary.hpp"

namespace variate::math {

// sigma = exp(log_var / 2) and sigma^2 - 1, the latter without cancellation near log_var = 0.
template <class T>
struct Spread {
  T sigma;
  T variance_minus_1;
};

template <class T>
VARIATE_INLINE Spread<T> spread(T log_var) {
  const Exponential<T> e = exponential(T(0.5) * log_var);
  return {e.exp, e.expm1 * (e.exp + T(1))};
}

// KL(N(mean, e^log_var) || N(0, 1)) = (mean^2 + (sigma^2 - 1) - log_var) / 2.
template <class T>
VARIATE_INLINE T standard_normal_kl(T mean, T log_var, T variance_minus_1) {
  return T(0.5) * fma(mean, mean, variance_minus_1 - log_var);
}

// What KL(N(mean, e^log_var) || N(prior_mean, e^prior_log_var)) is made of:
// kl = ((ratio - 1) - (log_var - prior_log_var) + (mean - prior_mean)^2 precision) / 2, ratio = sigma^2 / prior
// sigma^2.
template <class T>
struct NormalKl {
  T kl;
  T scaled_difference;  // (mean - prior_mean) precision: d kl / d mean = -d kl / d prior_mean
  T ratio_minus_1;      // d kl / d log_var = half of it
  T squared_distance;   // (mean - prior_mean)^2 precision: d kl / d prior_log_var = -(ratio_minus_1 + this) / 2
};

template <class T>
VARIATE_INLINE NormalKl<T> normal_kl(T mean, T log_var, T prior_mean, T prior_log_var) {
  const T difference = mean - prior_mean;
  const T scaled = difference * exp(-prior_log_var);
  const T log_ratio = log_var - prior_log_var;
  const T ratio_minus_1 = spread(log_ratio).variance_minus_1;
  const T distance = difference * scaled;
  return {T(0.5) * (distance + (ratio_minus_1 - log_ratio)), scaled, ratio_minus_1, distance};
}

// Free bits charge max(kl, least), and pass no gradient below: the least KL, and no least at all for free_bits = 0, as
// a KL that rounds to just below 0 still has its gradient.
template <class T>
VARIATE_INLINE T least_kl(T free_bits) {
  return free_bits > T(0) ? free_bits : -static_cast<T>(__builtin_huge_valf());
}

template <class T>
VARIATE_INLINE T apply_free_bits(T kl, T least) {
  return kl < least ? least : kl;
}

}  // namespace variate::math
