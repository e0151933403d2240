// An exponential moving average, one element at a time.
#pragma once

#include "base.hpp"

namespace variate::math {

// average + weight (parameter - average), from the nearer end: see variate/ema.h. `keep` is 1 - weight.
template <bool far, class T>
VARIATE_INLINE T average(T old, T parameter, T weight, T keep) {
  const T difference = parameter - old;
  if constexpr (far) return fma(-keep, difference, parameter);
  return fma(weight, difference, old);
}

}  // namespace variate::math
