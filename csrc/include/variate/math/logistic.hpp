// The logistic distribution over the 2^bits bins around x = -1, ..., 1, one element at a time.
// Source: Salimans et al., "PixelCNN++", 2017, section 2.1.
#pragma once

#include "elementary.hpp"

namespace variate::math {

// The bins: half the width of one, and the log of the whole.
template <class T>
struct Bins {
  T half;
  T log_width;
};

template <class T>
VARIATE_INLINE Bins<T> bins(int bits) {
  const int top = (1 << bits) - 1;
  return {T(1) / T(top), static_cast<T>(::log(2.0 / top))};
}

// The middle of a bin. The outermost ones are exactly -1 and 1.
template <class T>
VARIATE_INLINE T bin_middle(T level, int bits) {
  return (level + level) / T((1 << bits) - 1) - T(1);
}

inline constexpr float least_log_scale = -7.0f;
inline constexpr float outermost = 0.999f;  // beyond it lie the outermost bins, whatever their number

// Where an exponential makes no difference any more, its argument stops: so no product leaves the range of normal
// numbers, which would be slow.
template <class T>
struct Stop;
template <>
struct Stop<float> {
  static constexpr float low = -38.0f, high = 21.0f;
};
template <>
struct Stop<double> {
  static constexpr double low = -690.0, high = 200.0;
};

template <class T>
VARIATE_INLINE T at_least(T x, T low) {
  return x < low ? low : x;
}

// log P = linear + log(numerator / denominator): so a product over three colours takes one logarithm and one division.
template <class T>
struct BinProbability {
  T linear;
  T numerator;
  T denominator;
};

// d log P / d mean and d log P / d log_scale.
template <class T>
struct BinGradient {
  T mean;
  T log_scale;
};

// What both are made of. With m = |x - mean| / scale the bin reaches from m - w / 2, its inner edge, to m + w / 2, its
// outer one, and with g = exp(w / 2 - m) what lies beyond them is
//   inner = 1 / (1 + g),  outer = g e^-w / (1 + g e^-w),  P = 1 - inner - outer = g (1 - e^-w) / ((1 + g) (1 + g
//   e^-w)).
// An outermost bin keeps one edge: the outer one if the mean is on the bin's way out, else the inner one. 1 - e^-w is
// taken over w, and the log of w as log_width - log_scale, so that no large scale underflows.
template <class T>
struct LogisticBin {
  bool held;  // the log scale is held at its least
  bool outermost, only_inner, only_outer;
  bool left;  // of the mean
  T log_scale, precision, distance, half, width, log_g, g, half_shrink, shrink, complement;
};

template <class T>
VARIATE_INLINE LogisticBin<T> logistic_bin(T x, T mean, T log_scale, Bins<T> bins) {
  constexpr T least_half = T(0x1p-37);  // below it (1 - e^-w) / w is 1
  LogisticBin<T> v;
  v.held = log_scale < T(least_log_scale);
  v.log_scale = v.held ? T(least_log_scale) : log_scale;
  v.precision = bounded_exponential(at_least(-v.log_scale, T(2) * Stop<T>::low)).exp;
  const T middle = (x - mean) * v.precision;
  v.distance = abs(middle);
  v.left = middle < T(0);
  v.half = at_least(bins.half * v.precision, least_half);
  v.width = v.half + v.half;
  const Exponential<T> e = bounded_exponential(at_least(-v.half, T(0.5) * Stop<T>::low));
  v.half_shrink = e.exp;
  v.shrink = e.exp * e.exp;
  v.complement = -e.expm1 * (T(1) + e.exp);
  const T log_g = v.half - v.distance;
  v.log_g = log_g > Stop<T>::high ? Stop<T>::high : log_g;
  v.g = bounded_exponential(at_least(v.log_g, Stop<T>::low)).exp;
  const bool across = x * middle < T(0);
  v.outermost = abs(x) > T(outermost);
  v.only_outer = v.outermost & across;
  v.only_inner = v.outermost & !across;
  return v;
}

// Compat: a bin of less than 1e-5 is charged the density in its middle times its width,
//   e^-m w / (1 + e^-m)^2.
template <class T>
VARIATE_INLINE bool is_thin(const LogisticBin<T>& v) {
  return (v.g * v.complement <= T(1e-5f) * ((T(1) + v.g) * fma(v.g, v.shrink, T(1)))) & !v.outermost;
}

// e^-m of a thin bin.
template <class T>
VARIATE_INLINE T thin_exponential(const LogisticBin<T>& v) {
  return v.g * v.half_shrink;
}

template <bool compat, class T>
VARIATE_INLINE BinProbability<T> bin_probability(const LogisticBin<T>& v, Bins<T> bins) {
  const T inner = T(1) + v.g;
  const T outer = fma(v.g, v.shrink, T(1));
  const T log_width = bins.log_width - v.log_scale;
  BinProbability<T> p;
  p.linear = v.outermost ? (v.only_inner ? v.log_g : T(0)) : v.log_g + log_width;
  p.numerator = v.outermost ? T(1) : v.complement;
  p.denominator = v.outermost ? (v.only_inner ? inner : outer) : inner * outer * v.width;
  if constexpr (compat) {
    const bool thin = is_thin(v);
    const T root = T(1) + thin_exponential(v);
    p.linear = thin ? log_width - v.distance : p.linear;
    p.numerator = thin ? T(1) : p.numerator;
    p.denominator = thin ? root * root : p.denominator;
  }
  return p;
}

template <bool compat, class T>
VARIATE_INLINE BinProbability<T> bin_probability(T x, T mean, T log_scale, Bins<T> bins) {
  return bin_probability<compat>(logistic_bin(x, mean, log_scale, bins), bins);
}

template <class T>
struct BinProbabilityAndGradient {
  BinProbability<T> probability;
  BinGradient<T> gradient;
};

// d log P / d mean = +-(inner - outer) / scale, towards x;
// d log P / d log_scale = (m - w / 2) inner - (m + w / 2) outer - w / (e^w - 1), 0 where the scale is held.
template <bool compat, class T>
VARIATE_INLINE BinProbabilityAndGradient<T> bin_probability_and_gradient(T x, T mean, T log_scale, Bins<T> bins) {
  const LogisticBin<T> v = logistic_bin(x, mean, log_scale, bins);
  const T g_outer = v.g * v.shrink;
  const T both = (T(1) + v.g) * (T(1) + g_outer);
  const T all = T(1) / (both * v.complement);
  const T one = all * v.complement;  // 1 / both
  const T inner = v.only_outer ? T(0) : one * (T(1) + g_outer);
  const T outer = v.only_inner ? T(0) : one * (T(1) + v.g) * g_outer;
  const T width_term = v.outermost ? T(0) : v.width * v.shrink * (all * both);
  T slope = inner - outer;
  T scale_term = -fma(v.log_g, inner, fma(v.distance + v.half, outer, width_term));
  if constexpr (compat) {
    const bool thin = is_thin(v);
    const T e = thin_exponential(v);
    const T density_slope = (T(1) - e) / (T(1) + e);
    slope = thin ? density_slope : slope;
    scale_term = thin ? fma(v.distance, density_slope, T(-1)) : scale_term;
  }
  const T towards = v.precision * slope;
  return {bin_probability<compat>(v, bins), {v.left ? -towards : towards, v.held ? T(0) : scale_term}};
}

// Where a mixture's parameters lie among its channels: the logits, then for each colour the means, the log scales and,
// with 3 colours, the coefficients of all components.
struct MixtureParameters {
  int colours;
  int components;
};

VARIATE_INLINE int count_of(MixtureParameters p) { return p.components * (p.colours == 1 ? 3 : 10); }
VARIATE_INLINE int mean_of(MixtureParameters p, int colour, int m) { return p.components * (1 + 3 * colour) + m; }
VARIATE_INLINE int log_scale_of(MixtureParameters p, int colour, int m) { return p.components * (2 + 3 * colour) + m; }
VARIATE_INLINE int coefficient_of(MixtureParameters p, int colour, int m) {
  return p.components * (3 + 3 * colour) + m;
}

// exp(x) of a component that is x below the likeliest: none at all where that makes no difference.
template <class T>
VARIATE_INLINE T component_weight(T x) {
  const T weight = bounded_exponential(at_least(x, Stop<T>::low)).exp;
  return x < Stop<T>::low ? T(0) : weight;
}

// tanh(x), without cancellation near 0.
template <class T>
VARIATE_INLINE T tanh(T x) {
  const T e = bounded_exponential(at_least(T(-2) * abs(x), Stop<T>::low)).expm1;
  const T magnitude = -e / (e + T(2));
  return x < T(0) ? -magnitude : magnitude;
}

// The level, of 0 ... steps, that is nearest to mean + exp(max(log_scale, -7)) draw; a NaN stays one.
template <class T>
VARIATE_INLINE T logistic_level(T draw, T mean, T log_scale, T steps) {
  const T scale = exp(log_scale < T(least_log_scale) ? T(least_log_scale) : log_scale);
  const T half = T(0.5) * steps;
  T level = fma(fma(scale, draw, mean), half, half);
  level = level < T(0) ? T(0) : level;
  level = level > steps ? steps : level;
  constexpr T magic = T(sizeof(T) == 8 ? 0x1.8p52 : 0x1.8p23);  // adding it leaves no bits below the integer part
  return (level + magic) - magic;
}

}  // namespace variate::math
