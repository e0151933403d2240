// From words to draws: noise version 1, element by element.
//
// Error against float64, over all words, in ulp of the float32 result (tests/cpp/test_elementary.cpp):
//   uniform            0.8   against (word + 1/2) 2^-32, as are the next two
//   exponential_draw   1.7
//   gumbel             1.8   between -1 and 1 in ulp of 1: there the error is absolute
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

// -log(u) with u = uniform(word), always positive: for u > 1/2 it is -log1p(-uniform(~word)), which keeps the small
// values' precision.
VARIATE_INLINE float exponential_draw(std::uint32_t word) {
  const bool upper = word >= 0x80000000u;
  const float u = uniform(word);
  const float v = uniform(~word & 0x7fffffffu);  // 1 - u where upper (a plain NOT has a false dependency on AVX-512)
  constexpr std::uint32_t root_half = 0x3f3504f3u;
  const std::uint32_t bits = bits_of(u);
  const std::int32_t exponent = static_cast<std::int32_t>(bits - root_half) >> 23;
  const float mantissa = float_of(bits - (static_cast<std::uint32_t>(exponent) << 23));
  const bool reduce = v > 0x1.2bec34p-2f;  // 1 - v < sqrt(1/2): double it
  const float upper_f = reduce ? fma(-2.0f, v, 1.0f) : -v;
  const float upper_e = reduce ? -1.0f : 0.0f;
  return -log_reduced(upper ? upper_e : static_cast<float>(exponent), upper ? upper_f : mantissa - 1.0f);
}

// -log(-log(u)): the standard Gumbel distribution.
VARIATE_INLINE float gumbel(std::uint32_t word) { return -log(exponential_draw(word)); }

// log(u) - log(1 - u): the standard logistic distribution, precise in both tails.
VARIATE_INLINE float logistic(std::uint32_t word) { return exponential_draw(~word) - exponential_draw(word); }

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
