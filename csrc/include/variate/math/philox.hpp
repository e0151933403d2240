// Philox4x32-10: the counter-based generator behind all noise.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include "base.hpp"

namespace variate::math {

inline constexpr std::uint32_t philox_multiplier_0 = 0xD2511F53u;
inline constexpr std::uint32_t philox_multiplier_1 = 0xCD9E8D57u;
inline constexpr std::uint32_t philox_weyl_0 = 0x9E3779B9u;
inline constexpr std::uint32_t philox_weyl_1 = 0xBB67AE85u;
inline constexpr int philox_rounds = 10;

struct Words {
  std::uint32_t w[4];
};

// The four words of one 128-bit counter under a 64-bit seed.
VARIATE_INLINE Words philox(std::uint64_t seed, std::uint32_t c0, std::uint32_t c1, std::uint32_t c2,
                            std::uint32_t c3) {
  std::uint32_t k0 = static_cast<std::uint32_t>(seed);
  std::uint32_t k1 = static_cast<std::uint32_t>(seed >> 32);
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < philox_rounds; ++round) {
    const WideProduct p0 = multiply(philox_multiplier_0, c0);
    const WideProduct p1 = multiply(philox_multiplier_1, c2);
    c0 = p1.high ^ c1 ^ k0;
    c2 = p0.high ^ c3 ^ k1;
    c1 = p1.low;
    c3 = p0.low;
    k0 += philox_weyl_0;
    k1 += philox_weyl_1;
  }
  return {{c0, c1, c2, c3}};
}

// A key: where a stream starts. `seed` is Philox's key, `offset` its first counter.
struct Key {
  std::uint64_t seed;
  std::uint64_t offset;
};

// The words of elements 4 * block ... 4 * block + 3 of one sample at one step: noise version 1.
VARIATE_INLINE Words noise_words(Key key, std::uint64_t block, std::uint32_t sample, std::uint32_t step = 0) {
  const std::uint64_t counter = key.offset + block;
  return philox(key.seed, static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), sample, step);
}

// A key of its own for each `data`: independent of every other and of this key's own stream beyond its first words.
VARIATE_INLINE Key fold_in(Key key, std::uint64_t data) {
  const Words r = noise_words(key, data, 0);
  return {r.w[0] | static_cast<std::uint64_t>(r.w[1]) << 32, r.w[2] | static_cast<std::uint64_t>(r.w[3]) << 32};
}

}  // namespace variate::math
