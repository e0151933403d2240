// The reparameterised normal, one element at a time; its divergence: elbo.hpp.
// Source: Kingma and Welling, "Auto-encoding variational Bayes", 2014, section 2.4 and appendix B.
#pragma once

#include "elbo.hpp"

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

}  // namespace variate::math
