// Boltzmann machines in fixed point, one element at a time.
#pragma once

#include "random.hpp"

namespace variate::math {

// A unit's weights and bias are multiples of 2^-e with sums below 2^31 of them. Beyond these bounds on e a scale would
// not be a normal float32; a logit that small is 0 to float32's sigmoid all the same.
inline constexpr int sum_bits = 31;
inline constexpr int largest_exponent = 120;
inline constexpr int smallest_exponent = -120;

// fold_in(key, this) decides the swaps of tempering.
inline constexpr std::uint64_t swap_draw = 1u << 16;

// round-to-nearest-even(w 2^e) of |w 2^e| < 2^31, 2^e being `scale`.
VARIATE_INLINE std::int32_t quantise(float w, float scale) {
  constexpr float magic = 8388608.0f;  // 2^23: from there on float32 has no fractions
  const float x = w * scale;
  const float a = abs(x);
  const float rounded = a < magic ? (a + magic) - magic : a;
  const std::int32_t q = static_cast<std::int32_t>(rounded);
  return x < 0.0f ? -q : q;
}

// A unit's field as its logit: one rounding to float32. `offset` is 0, or infinite for an infinite bias.
VARIATE_INLINE float logit(std::int32_t sum, float inverse_scale, float offset) {
  return static_cast<float>(sum) * inverse_scale + offset;
}

// Whether word < ceil(p 2^32) or p >= 1, for p in [0, 1]: bernoulli(word, p) without float64.
VARIATE_INLINE bool below(std::uint32_t word, float p) {
  const float q = p < 1.0f ? p : 0.0f;
  const float scaled = q * 0x1p16f;
  const std::int32_t high = static_cast<std::int32_t>(scaled);
  const float rest = (scaled - static_cast<float>(high)) * 0x1p16f;  // exact
  const std::int32_t low = static_cast<std::int32_t>(rest);
  const std::uint32_t up = static_cast<float>(low) < rest ? 1u : 0u;
  const std::uint32_t threshold = (static_cast<std::uint32_t>(high) << 16) + static_cast<std::uint32_t>(low) + up;
  return (word < threshold) | (p >= 1.0f);
}

}  // namespace variate::math
