// From words to draws: noise version 1, element by element.
//
// Error against float64, over all words, in ulp of the float32 result (tests/cpp/test_elementary.cpp):
//   uniform            0.8   against (word + 1/2) 2^-32, as are the next two
//   exponential_draw   1.7
//   gumbel             1.8   between -1 and 1 in ulp of 1: there the error is absolute
//   logistic           2.2   likewise
//   laplace            1.7
//   normal_pair        3.5   of 10^9 pairs, against Box-Muller on the same uniforms; the radius alone 1.0, so that no
//                            pair is beyond 2 (1.0 + 1.7) + 1/2 = 5.9
#pragma once

#include "elementary.hpp"
#include "philox.hpp"

namespace variate::math {

// (word + 1/2) 2^-32 in float32, the word rounded first: in (0, 1], 1 itself with probability 2^-25.
VARIATE_INLINE float uniform(std::uint32_t word) { return fma(static_cast<float>(word), 0x1p-32f, 0x1p-33f); }

struct NormalPair {
  float cos_part;
  float sin_part;
};

// Two independent standard normals from two words.
// Source: Box and Muller, "A note on the generation of random normal deviates", 1958.
VARIATE_INLINE NormalPair normal_pair(std::uint32_t word_0, std::uint32_t word_1) {
  const float radius = sqrt(-2.0f * log(uniform(word_0)));
  const SinCos angle = sincos_2pi(uniform(word_1));
  return {radius * angle.cos, radius * angle.sin};
}

// The normals of elements 4 * block ... 4 * block + 3.
struct Normals {
  float x[4];
};

VARIATE_INLINE Normals normals(Words words) {
  const NormalPair a = normal_pair(words.w[0], words.w[1]);
  const NormalPair b = normal_pair(words.w[2], words.w[3]);
  return {{a.cos_part, a.sin_part, b.cos_part, b.sin_part}};
}

// -log(u) of u in (0, 1], always positive: where `upper`, u > 1/2, it is -log1p(-v) with v = 1 - u given to its own
// precision, which keeps that of the small values.
VARIATE_INLINE float minus_log(float u, float v, bool upper) {
  const LogArgument low = log_argument(u);
  const LogArgument high = log_argument_of_complement(v);
  return -log_reduced(upper ? high.exponent : low.exponent, upper ? high.f : low.f);
}

// -log(u) with u = uniform(word).
VARIATE_INLINE float exponential_draw(std::uint32_t word) {
  const float v = uniform(~word & 0x7fffffffu);  // 1 - u where upper (a plain NOT has a false dependency on AVX-512)
  return minus_log(uniform(word), v, word >= 0x80000000u);
}

// -log(-log(u)): the standard Gumbel distribution.
VARIATE_INLINE float gumbel(std::uint32_t word) { return -log(exponential_draw(word)); }

// The smaller of word and ~word, below 2^31: what the draws that are symmetric in u and 1 - u are made of.
VARIATE_INLINE std::int32_t half_word(std::uint32_t word) {
  const std::int32_t signed_word = static_cast<std::int32_t>(word);
  return signed_word ^ (signed_word >> 31);
}

// x where u > 1/2, else -x.
VARIATE_INLINE float signed_by(std::uint32_t word, float x) { return float_of(bits_of(x) ^ (~word & 0x80000000u)); }

// log(u) - log(1 - u), the standard logistic distribution; logistic(~word) = -logistic(word).
VARIATE_INLINE float logistic(std::uint32_t word) {
  const float u = fma(static_cast<float>(half_word(word)), 0x1p-32f, 0x1p-33f);  // the smaller of the two
  const LogArgument other = log_argument_of_complement(u);
  return signed_by(word, log_reduced(other.exponent, other.f) - log(u));
}

// log(2 u), and -log(2 - 2 u) for u > 1/2: the standard Laplace distribution; laplace(~word) = -laplace(word).
VARIATE_INLINE float laplace(std::uint32_t word) {
  const std::int32_t half = half_word(word);
  const float u = fma(static_cast<float>(half), 0x1p-31f, 0x1p-32f);
  const float v = fma(static_cast<float>(~half & 0x3fffffff), 0x1p-31f, 0x1p-32f);  // 1 - u where u > 1/2
  return signed_by(word, minus_log(u, v, half >= 0x40000000));
}

// 1 with probability p, as exactly as 32 bits allow: word < ceil(p 2^32), never at p <= 0, always at p >= 1.
// A NaN gives a NaN.
template <class T>
VARIATE_INLINE T bernoulli(std::uint32_t word, T p) {
  const T draw = static_cast<double>(word) < static_cast<double>(p) * 0x1p32 ? T(1) : T(0);
  return p != p ? p : draw;
}

// An integer of [0, range), 0 < range <= 2^32, from a 64-bit fraction (word, low): each has probability 1 / range to a
// relative 2^-32. `low` matters only where `undecided`, with probability range 2^-32.
struct Scaled {
  std::uint64_t value;
  std::uint32_t fraction;
};

VARIATE_INLINE Scaled scale_word(std::uint32_t word, std::uint64_t range) {
  const std::uint64_t product = word * range;
  return {product >> 32, static_cast<std::uint32_t>(product)};
}

VARIATE_INLINE bool undecided(std::uint32_t fraction, std::uint64_t range) {
  return fraction > static_cast<std::uint32_t>(0u - static_cast<std::uint32_t>(range));
}

VARIATE_INLINE std::uint64_t scale_carry(Scaled scaled, std::uint32_t low, std::uint64_t range) {
  return scaled.value + ((scaled.fraction + ((low * range) >> 32)) >> 32);
}

}  // namespace variate::math
