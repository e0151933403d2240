// Sixteen lanes of 32-bit words, and the noise of sixteen counters at a time.
#pragma once

#include "noise.h"

namespace variate::cpu::VARIATE_ISA {

inline constexpr int lanes = 16;

typedef uint32_t Word __attribute__((vector_size(lanes * sizeof(uint32_t)), aligned(sizeof(uint32_t)), may_alias));

static inline Word load_word(const uint32_t* from) { return *reinterpret_cast<const Word*>(from); }
static inline void store_word(uint32_t* to, Word word) { *reinterpret_cast<Word*>(to) = word; }
static inline Word splat(uint32_t x) { return Word{} + x; }

// The lanes that are not 0, next to each other, and where they were, from `first` on; returns how many. Up to sixteen
// are written. Without a branch, as nothing would predict it.
static inline int keep_nonzero(const Word& x, int32_t first, uint32_t* values, int32_t* places) {
#if defined(__AVX512F__)
  const __m512i v = reinterpret_cast<__m512i>(x);
  const __mmask16 some = _mm512_test_epi32_mask(v, v);
  const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_storeu_si512(values, _mm512_maskz_compress_epi32(some, v));
  _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(some, _mm512_add_epi32(order, _mm512_set1_epi32(first))));
  return __builtin_popcount(some);
#else
  int count = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    values[count] = x[lane];
    places[count] = first + lane;
    count += x[lane] != 0;
  }
  return count;
#endif
}

#if defined(__AVX512F__) || defined(__AVX2__)

// One 64-bit number a lane, in the order in which `lane_words` has them: the even lanes of each part, then the odd
// ones.
struct Wide {
  static constexpr int groups = lanes / Lanes::width;
  Lanes::Vector group[groups];

  static Wide of(const uint64_t* x) {
    Wide w;
    for (int g = 0; g < groups; ++g) {
      alignas(64) uint64_t part[Lanes::width];
      for (int l = 0; l < Lanes::width; ++l) part[l] = x[g / 2 * 2 * Lanes::width + 2 * l + g % 2];
      w.group[g] = Lanes::load(part);
    }
    return w;
  }

  Wide operator+(uint64_t x) const {
    Wide sum;
    for (int g = 0; g < groups; ++g) sum.group[g] = Lanes::add(group[g], Lanes::set1(x));
    return sum;
  }
};

struct LaneKeys {
  Wide key_0[math::philox_rounds], key_1[math::philox_rounds];

  explicit LaneKeys(const uint64_t* seeds) {
    uint64_t k0[lanes], k1[lanes];
    for (int i = 0; i < lanes; ++i) {
      k0[i] = static_cast<uint32_t>(seeds[i]);
      k1[i] = seeds[i] >> 32;
    }
    key_0[0] = Wide::of(k0);
    key_1[0] = Wide::of(k1);
    for (int round = 1; round < math::philox_rounds; ++round) {
      key_0[round] = key_0[round - 1] + math::philox_weyl_0;  // no product reads what spills into the upper half
      key_1[round] = key_1[round - 1] + math::philox_weyl_1;
    }
  }
};

// The 32-bit numbers in the lower halves.
static inline Word narrow_lanes(const Wide& x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Word>(_mm512_mask_shuffle_epi32(x.group[0], 0xaaaa, x.group[1], _MM_PERM_CCAA));
#else
  Word out;
  for (int half = 0; half < 2; ++half) {
    const __m256i odd = _mm256_slli_epi64(x.group[2 * half + 1], 32);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(&out) + half, _mm256_blend_epi32(x.group[2 * half], odd, 0xaa));
  }
  return out;
#endif
}

// Word i of `calls` counters in a row, each lane's from `counter` on.
template <int calls>
static inline void lane_words(const LaneKeys& keys, const Wide& counter, const Wide& sample, uint32_t step, Word* out) {
  using V = Lanes::Vector;
  constexpr int n = Wide::groups;
  const V multiplier_0 = Lanes::set1(math::philox_multiplier_0);
  const V multiplier_1 = Lanes::set1(math::philox_multiplier_1);
  Wide c0[calls], c1[calls], c2[calls], c3[calls];
#pragma GCC unroll 2
  for (int call = 0; call < calls; ++call) {
    c0[call] = counter + static_cast<uint64_t>(call);
#pragma GCC unroll 4
    for (int g = 0; g < n; ++g) {
      c1[call].group[g] = Lanes::high(c0[call].group[g]);
      c2[call].group[g] = sample.group[g];
      c3[call].group[g] = Lanes::set1(step);
    }
  }
#pragma GCC unroll 10
  for (int round = 0; round < math::philox_rounds; ++round) {
#pragma GCC unroll 2
    for (int call = 0; call < calls; ++call) {
#pragma GCC unroll 4
      for (int g = 0; g < n; ++g) {
        const V p0 = Lanes::mul(c0[call].group[g], multiplier_0);
        const V p1 = Lanes::mul(c2[call].group[g], multiplier_1);
        c0[call].group[g] = Lanes::xor3(Lanes::high(p1), c1[call].group[g], keys.key_0[round].group[g]);
        c2[call].group[g] = Lanes::xor3(Lanes::high(p0), c3[call].group[g], keys.key_1[round].group[g]);
        c1[call].group[g] = p1;
        c3[call].group[g] = p0;
      }
    }
  }
  for (int call = 0; call < calls; ++call) {
    out[4 * call] = narrow_lanes(c0[call]);
    out[4 * call + 1] = narrow_lanes(c1[call]);
    out[4 * call + 2] = narrow_lanes(c2[call]);
    out[4 * call + 3] = narrow_lanes(c3[call]);
  }
}

#else

struct Wide {
  uint64_t lane[lanes];

  static Wide of(const uint64_t* x) {
    Wide w;
    for (int i = 0; i < lanes; ++i) w.lane[i] = x[i];
    return w;
  }

  Wide operator+(uint64_t x) const {
    Wide sum;
    for (int i = 0; i < lanes; ++i) sum.lane[i] = lane[i] + x;
    return sum;
  }
};

struct LaneKeys {
  uint64_t seed[lanes];

  explicit LaneKeys(const uint64_t* seeds) {
    for (int i = 0; i < lanes; ++i) seed[i] = seeds[i];
  }
};

template <int calls>
static inline void lane_words(const LaneKeys& keys, const Wide& counter, const Wide& sample, uint32_t step, Word* out) {
  for (int i = 0; i < lanes; ++i) {
    const uint32_t s = static_cast<uint32_t>(sample.lane[i]);
    for (int call = 0; call < calls; ++call) {
      const math::Words words = math::noise_words({keys.seed[i], counter.lane[i]}, call, s, step);
      for (int j = 0; j < 4; ++j) out[4 * call + j][i] = words.w[j];
    }
  }
}

#endif

// The streams of sixteen rows from `first` on, or of one row in every lane; the last of `count` rows fills what lanes
// are left. Draw d > 0 is that of fold_in(key, d).
struct LaneStreams {
  uint64_t seed[lanes], offset[lanes], sample[lanes];

  LaneStreams(const variate_noise& noise, int64_t first, int64_t count, bool one_row, uint64_t draw) {
    for (int i = 0; i < lanes; ++i) {
      const int64_t row = first + (one_row ? 0 : i < count ? i : count - 1);
      const math::Key key = draw ? math::fold_in(key_of(noise, row), draw) : key_of(noise, row);
      seed[i] = key.seed;
      offset[i] = key.offset;
      sample[i] = noise.key_stride ? 0 : static_cast<uint64_t>(noise.first_sample + row);
    }
  }
};

}  // namespace variate::cpu::VARIATE_ISA
