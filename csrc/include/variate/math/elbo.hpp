// The likelihood terms of the evidence lower bound, one element at a time.
#pragma once

#include "elementary.hpp"

namespace variate::math {

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

}  // namespace variate::math
