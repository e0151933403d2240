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

// log P = linear + log(numerator / denominator): so a product over colours takes one logarithm and one division. With a
// scale below e^20 or bins of one or more bits, products of three stay in range.
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

// What both are made of. With a = (x + half - mean) / scale, b = (x - half - mean) / scale and width = a - b
//   P = sigmoid(a) - sigmoid(b)
//     = exp(min(a, 0) - max(b, 0)) (1 - exp(-width)) / ((1 + exp(-|a|)) (1 + exp(-|b|))).
// The outermost bins have an infinite a or b: 200 is as good. 1 - exp(-width) is taken over the width, and the log of
// the width as log_width - log_scale, so that no large scale underflows.
template <class T>
struct LogisticBin {
  bool edge, floor;
  T log_scale, precision, middle, upper, lower, width, complement, exp_upper, exp_lower;
};

template <class T>
VARIATE_INLINE LogisticBin<T> logistic_bin(T x, T mean, T log_scale, Bins<T> bins) {
  constexpr T infinite = T(200);
  constexpr T least_width = T(0x1p-36);  // below it (1 - exp(-width)) / width is 1
  LogisticBin<T> v;
  const bool low = x<T(-outermost), high = x> T(outermost);
  v.edge = low | high;
  v.floor = log_scale < T(least_log_scale);
  v.log_scale = v.floor ? T(least_log_scale) : log_scale;
  v.precision = exp(-v.log_scale);
  v.middle = (x - mean) * v.precision;
  const T half = bins.half * v.precision;
  v.upper = high ? infinite : v.middle + half;
  v.lower = low ? -infinite : v.middle - half;
  v.width = half + half < least_width ? least_width : half + half;
  v.complement = -exponential(-v.width).expm1;
  v.exp_upper = exp_nonpositive(-abs(v.upper));
  v.exp_lower = exp_nonpositive(-abs(v.lower));
  return v;
}

// Compat: where the bin has less than 1e-5, the density in its middle times its width,
//   exp(-|middle|) width / (1 + exp(-|middle|))^2.
// `outside` is sigmoid(-a) + sigmoid(b), what the bin leaves.
template <class T>
VARIATE_INLINE bool is_thin(const LogisticBin<T>& v, T outside) {
  return (T(1) - outside <= T(1e-5f)) & !v.edge;
}

// sigmoid(-a) and sigmoid(b), given 1 / ((1 + exp(-|a|)) (1 + exp(-|b|))).
template <class T>
struct BinTails {
  T above;
  T below;
};

template <class T>
VARIATE_INLINE BinTails<T> bin_tails(const LogisticBin<T>& v, T reciprocal) {
  const T upper = reciprocal * (T(1) + v.exp_lower);
  const T lower = reciprocal * (T(1) + v.exp_upper);
  return {v.upper > T(0) ? v.exp_upper * upper : upper, v.lower > T(0) ? lower : v.exp_lower * lower};
}

template <bool compat, class T>
VARIATE_INLINE BinProbability<T> bin_probability(const LogisticBin<T>& v, Bins<T> bins, BinTails<T> tails) {
  const T both = (T(1) + v.exp_upper) * (T(1) + v.exp_lower);
  const T overlap = (v.upper > T(0) ? T(0) : v.upper) - (v.lower < T(0) ? T(0) : v.lower);  // a NaN passes through
  const T log_width = bins.log_width - v.log_scale;
  BinProbability<T> p = {v.edge ? overlap : overlap + log_width, v.edge ? T(1) : v.complement,
                         v.edge ? both : both * v.width};
  if constexpr (compat) {
    const bool thin = is_thin(v, tails.above + tails.below);
    const T root = T(1) + exp_nonpositive(-abs(v.middle));
    p.linear = thin ? log_width - abs(v.middle) : p.linear;
    p.numerator = thin ? T(1) : p.numerator;
    p.denominator = thin ? root * root : p.denominator;
  }
  return p;
}

template <bool compat, class T>
VARIATE_INLINE BinProbability<T> bin_probability(T x, T mean, T log_scale, Bins<T> bins) {
  const LogisticBin<T> v = logistic_bin(x, mean, log_scale, bins);
  BinTails<T> tails = {};
  if constexpr (compat) tails = bin_tails(v, T(1) / ((T(1) + v.exp_upper) * (T(1) + v.exp_lower)));
  return bin_probability<compat>(v, bins, tails);
}

template <class T>
struct BinProbabilityAndGradient {
  BinProbability<T> probability;
  BinGradient<T> gradient;
};

// d log P / d mean = -(sigmoid(-a) - sigmoid(b)) / scale;
// d log P / d log_scale = b sigmoid(b) - a sigmoid(-a) - width / (exp(width) - 1), 0 below the least scale.
template <bool compat, class T>
VARIATE_INLINE BinProbabilityAndGradient<T> bin_probability_and_gradient(T x, T mean, T log_scale, Bins<T> bins) {
  const LogisticBin<T> v = logistic_bin(x, mean, log_scale, bins);
  const T both = (T(1) + v.exp_upper) * (T(1) + v.exp_lower);
  const T all = T(1) / (both * v.complement);
  const BinTails<T> tails = bin_tails(v, all * v.complement);
  const T width_term = v.width * (T(1) - v.complement) * (all * both);
  BinGradient<T> g = {-v.precision * (tails.above - tails.below),
                      fma(v.lower, tails.below, -v.upper * tails.above) - (v.edge ? T(0) : width_term)};
  if constexpr (compat) {
    const bool thin = is_thin(v, tails.above + tails.below);
    const T e = exp_nonpositive(-abs(v.middle));
    const T slope = (T(1) - e) / (T(1) + e);  // |1 - 2 sigmoid(middle)|
    const T signed_slope = v.middle > T(0) ? -slope : slope;
    g.mean = thin ? -v.precision * signed_slope : g.mean;
    g.log_scale = thin ? fma(abs(v.middle), slope, T(-1)) : g.log_scale;
  }
  g.log_scale = v.floor ? T(0) : g.log_scale;
  return {bin_probability<compat>(v, bins, tails), g};
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

// tanh(x), without cancellation near 0.
template <class T>
VARIATE_INLINE T tanh(T x) {
  const T e = exponential(T(-2) * abs(x)).expm1;
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
