// Noising and the denoising loss, one element at a time.
// Sources: Ho, Jain and Abbeel 2020; v: Salimans and Ho 2022, appendix D; flow: Lipman et al. 2023; EDM: Karras et al.
// 2022, table 1.
#pragma once

#include "../diffusion.h"
#include "base.hpp"

namespace variate::math {

// x_t = alpha x0 + sigma eps, target = from_x0 x0 + from_noise eps.
template <class T>
struct Noising {
  T alpha, sigma, from_x0, from_noise;
};

template <class T>
VARIATE_INLINE Noising<T> noising(variate_prediction prediction, double alpha, double sigma, double sigma_data) {
  double from_x0 = 0.0, from_noise = 1.0;
  switch (prediction) {
    case VARIATE_PREDICT_EPSILON: break;
    case VARIATE_PREDICT_X0:
      from_x0 = 1.0;
      from_noise = 0.0;
      break;
    case VARIATE_PREDICT_V:
      from_x0 = -sigma;
      from_noise = alpha;
      break;
    case VARIATE_PREDICT_FLOW: from_x0 = -1.0; break;
    case VARIATE_PREDICT_EDM: {
      const double norm = 1.0 / __builtin_sqrt(fma(sigma, sigma, sigma_data * sigma_data));
      from_x0 = sigma / sigma_data * norm;
      from_noise = -sigma_data * norm;
      break;
    }
  }
  return {static_cast<T>(alpha), static_cast<T>(sigma), static_cast<T>(from_x0), static_cast<T>(from_noise)};
}

// A weighted sum of the two, rounded once beyond the product. Where a weight is 0 the other's value is exact.
template <class T>
VARIATE_INLINE T combine(T a, T x0, T b, T noise) {
  return fma(a, x0, b * noise);
}

// The penalty of a difference, and half its slope (square) or its slope (Huber). A NaN stays one.
template <variate_penalty kind, class T>
VARIATE_INLINE T penalty(T difference, T delta) {
  if constexpr (kind == VARIATE_SQUARE) return difference * difference;
  const T size = abs(difference);
  const T bounded = size < delta ? size : delta;
  return bounded * (size - T(0.5) * bounded);
}

template <variate_penalty kind, class T>
VARIATE_INLINE T penalty_slope(T difference, T delta) {
  if constexpr (kind == VARIATE_SQUARE) return difference;
  const T low = difference < -delta ? -delta : difference;
  return low > delta ? delta : low;
}

}  // namespace variate::math
