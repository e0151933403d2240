// The terms of the evidence lower bound, one element at a time: divergences and negative log-likelihoods, in nats.
// Source: Kingma and Welling, "Auto-encoding variational Bayes", 2014, appendices B and C.
#pragma once

#include "../core.h"
#include "elementary.hpp"

namespace variate::math {

inline constexpr double log_2_pi = 0x1.d67f1c864beb5p+0;

// log(x) of x >= 0 that need not be normal: -infinity of 0, infinity of infinity, NaN of what is negative.
VARIATE_INLINE float log_nonnegative(float x) {
  const bool small = x < 0x1p-126f;
  const float normal = log(small ? x * 0x1p24f : x) - (small ? 0x1.0a2b24p+4f : 0.0f);  // 24 ln 2
  const float positive = x <= 0x1.fffffep+127f ? normal : x;                            // infinity and NaN stay
  return x > 0.0f ? positive : (x == 0.0f ? -__builtin_huge_valf() : float_of(0x7fc00000u));
}
VARIATE_INLINE double log_nonnegative(double x) { return ::log(x); }

// Whether a value satisfies a constraint; NaN satisfies none.
template <variate_constraint c, class T>
VARIATE_INLINE bool satisfies(T x) {
  if constexpr (c == VARIATE_REAL) return x == x;
  if constexpr (c == VARIATE_POSITIVE) return x > T(0);
  if constexpr (c == VARIATE_NONNEGATIVE) return x >= T(0);
  if constexpr (c == VARIATE_UNIT_INTERVAL) return (x >= T(0)) & (x <= T(1));
  return (x == T(0)) | (x == T(1));
}

// What a spread says, by parametrisation p: log sigma^2, 1 / sigma, and d log sigma^2 / d spread.
template <variate_parametrization p, class T>
VARIATE_INLINE T log_variance(T spread) {
  if constexpr (p == VARIATE_SCALE) return T(2) * log_nonnegative(spread);
  return p == VARIATE_LOG_SCALE ? T(2) * spread : spread;
}

template <variate_parametrization p, class T>
VARIATE_INLINE T inverse_sigma(T spread) {
  if constexpr (p == VARIATE_SCALE) return T(1) / spread;
  return exp(p == VARIATE_LOG_SCALE ? -spread : T(-0.5) * spread);
}

template <variate_parametrization p, class T>
VARIATE_INLINE T log_variance_slope(T spread) {
  if constexpr (p == VARIATE_SCALE) return T(2) / spread;
  return p == VARIATE_LOG_SCALE ? T(2) : T(1);
}

// The spread of the standard normal.
template <variate_parametrization p, class T>
inline constexpr T unit_spread = p == VARIATE_SCALE ? T(1) : T(0);

// Of r = sigma^2 / prior sigma^2: r - 1 without cancellation near r = 1, and log r.
template <class T>
struct VarianceRatio {
  T minus_1;
  T log;
};

template <variate_parametrization p, class T>
VARIATE_INLINE VarianceRatio<T> variance_ratio(T spread, T prior_spread) {
  if constexpr (p == VARIATE_SCALE) {
    const T root = spread / prior_spread;
    return {(root - T(1)) * (root + T(1)), T(2) * log_nonnegative(root)};
  } else {
    const T log_root = p == VARIATE_LOG_SCALE ? spread - prior_spread : T(0.5) * (spread - prior_spread);
    const Exponential<T> e = exponential(log_root);
    return {e.expm1 * (e.exp + T(1)), T(2) * log_root};
  }
}

// x factor, and 0 where x is, whatever the factor: an infinite precision does not charge a difference of 0.
template <class T>
VARIATE_INLINE T scaled(T x, T factor) {
  return x == T(0) ? T(0) : x * factor;
}

// KL(N(mean, e^log_var) || N(0, 1)) = (mean^2 + (sigma^2 - 1) - log_var) / 2.
template <class T>
VARIATE_INLINE T standard_normal_kl(T mean, T log_var, T variance_minus_1) {
  return T(0.5) * fma(mean, mean, variance_minus_1 - log_var);
}

// What KL(N(mean, sigma^2) || N(prior_mean, prior sigma^2)) is made of:
// kl = ((ratio - 1) - log ratio + (mean - prior_mean)^2 precision) / 2, ratio = sigma^2 / prior sigma^2, precision =
// 1 / prior sigma^2, whose root scales the difference twice: it is finite where the precision is not.
template <class T>
struct NormalKl {
  T kl;
  T scaled_difference;  // (mean - prior_mean) precision: d kl / d mean = -d kl / d prior_mean
  T ratio_minus_1;      // d kl / d log sigma^2 = half of it
  T squared_distance;   // (mean - prior_mean)^2 precision: d kl / d log prior sigma^2 = -(ratio_minus_1 + this) / 2
};

template <variate_parametrization p = VARIATE_LOG_VAR, class T>
VARIATE_INLINE NormalKl<T> normal_kl(T mean, T spread, T prior_mean, T prior_spread) {
  const T root_precision = inverse_sigma<p>(prior_spread);
  const T distance = scaled(mean - prior_mean, root_precision);
  const VarianceRatio<T> ratio = variance_ratio<p>(spread, prior_spread);
  return {T(0.5) * fma(distance, distance, ratio.minus_1 - ratio.log), scaled(distance, root_precision), ratio.minus_1,
          distance * distance};
}

// The same with the standard normal for a prior.
template <variate_parametrization p = VARIATE_LOG_VAR, class T>
VARIATE_INLINE NormalKl<T> normal_kl(T mean, T spread) {
  const VarianceRatio<T> ratio = variance_ratio<p>(spread, unit_spread<p, T>);
  return {standard_normal_kl(mean, ratio.log, ratio.minus_1), mean, ratio.minus_1, mean * mean};
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

// -log N(target | mean, sigma^2) = (log 2 pi + log sigma^2 + (target - mean)^2 / sigma^2) / 2, and what its gradients
// are made of.
template <class T>
struct NormalNll {
  T nll;
  T scaled_difference;  // (target - mean) / sigma^2: d nll / d target = -d nll / d mean
  T slope;              // d nll / d log sigma^2 = (1 - (target - mean)^2 / sigma^2) / 2
};

template <variate_parametrization p = VARIATE_LOG_VAR, class T>
VARIATE_INLINE NormalNll<T> normal_nll(T mean, T spread, T target) {
  const T root_precision = inverse_sigma<p>(spread);
  const T distance = scaled(target - mean, root_precision);
  const T constant = log_variance<p>(spread) + static_cast<T>(log_2_pi);
  return {T(0.5) * fma(distance, distance, constant), scaled(distance, root_precision),
          T(0.5) * fma(-distance, distance, T(1))};
}

// -log Bernoulli(target | sigmoid(logit)) = softplus(logit) - logit target, for any target in [0, 1].
// Written |logit| y + log(1 + exp(-|logit|)) with y = 1 - target or target by the sign, so that an infinite logit that
// is right costs 0 and not NaN.
template <class T>
VARIATE_INLINE T bernoulli_nll(T logit, T target) {
  const T miss = logit > T(0) ? T(1) - target : target;
  const T linear = miss == T(0) ? T(0) : abs(logit) * miss;
  return linear + softplus_tail(logit);
}

// d nll / d logit = sigmoid(logit) - target.
template <class T>
VARIATE_INLINE T bernoulli_nll_gradient(T logit, T target) {
  return sigmoid(logit) - target;
}

// KL(Bernoulli(sigmoid(logit)) || Bernoulli(sigmoid(prior_logit))), and its gradients.
//
// Both logits are turned by the sign of the first, which changes nothing, so that a = |logit| >= 0 and the rarer
// outcome has probability q = 1 / (1 + e^a) <= 1/2. With softplus(x) = max(x, 0) + tail(x) the divergence (1 - q)
// (softplus(-b) - softplus(-a)) + q (softplus(b) - softplus(a)) is tail(b) - tail(a) + (1 - q) max(-b, 0) + q (max(b,
// 0) - a): no two large terms cancel, and logits that are infinite alike cost 0. The error is a few ulp of tail(b) and
// of the other terms.
template <class T>
struct BernoulliKl {
  T kl;
  T grad_logit;        // p (1 - p) (logit - prior_logit)
  T grad_prior_logit;  // sigmoid(prior_logit) - sigmoid(logit)
};

template <class T>
VARIATE_INLINE BernoulliKl<T> bernoulli_kl(T logit, T prior_logit) {
  const bool turn = logit < T(0);
  const T a = abs(logit), b = turn ? -prior_logit : prior_logit;
  const T odds = exp_nonpositive(-a);
  const T p = T(1) / (T(1) + odds), q = odds * p;
  const T positive = b > T(0) ? b : T(0), negative = b < T(0) ? -b : T(0);
  const T common = p * negative;
  const T rare = scaled(q, positive - a);
  const T grad_b = q - sigmoid(-b), grad_a = scaled(p * q, a - b);
  const T kl = (softplus_tail(b) - softplus_tail(a)) + (common + rare);
  return {kl, turn ? -grad_a : grad_a, turn ? -grad_b : grad_b};
}

}  // namespace variate::math
