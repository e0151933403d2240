// The noise of a tile, in the order of its buffers.
#pragma once

#include <variate/math/random.hpp>

#include "tile.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace variate::cpu::VARIATE_ISA {

// Consecutive blocks of consecutive rows: block b of row r is (first_block + b) of sample first_sample + r.
struct BlockRange {
  math::Key key;
  uint64_t first_block;
  uint32_t first_sample;
  int64_t blocks_per_row;
  int64_t blocks;
  uint32_t step = 0;
};

inline constexpr int64_t noise_slack = 64;  // a fill may write this many words beyond its range

struct alignas(64) WordBuffer {
  uint32_t data[tile_elements + noise_slack];
};

#if defined(__AVX512F__) || defined(__AVX2__)

// One 64-bit lane per counter: a product of 32-bit words needs no unpacking. The lanes are ordered so that the final
// interleave of the four words of each counter leaves the counters in order.
#if defined(__AVX512F__)
struct Lanes {
  using Vector = __m512i;
  static constexpr int64_t width = 8;
  static Vector set1(uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
  static Vector load(const uint64_t* x) { return _mm512_load_si512(x); }
  static Vector add(Vector a, Vector b) { return _mm512_add_epi64(a, b); }
  // The forms with a mask of all: gcc 12 takes the plain ones, in its own header, for uninitialised.
  static Vector mul(Vector a, Vector b) { return _mm512_maskz_mul_epu32(0xff, a, b); }
  // The upper word of each lane, moved down; the upper word that stays is not read. A shuffle, not a shift: the one
  // runs beside the products, the other on their port.
  static Vector high(Vector a) { return _mm512_maskz_shuffle_epi32(0xffff, a, _MM_PERM_DDBB); }
  static Vector bit_xor(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
  static Vector xor3(Vector a, Vector b, Vector c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  static void wrap(Vector& block, Vector& row, Vector per_row, Vector one) {
    const __mmask8 over = _mm512_cmpge_epi64_mask(block, per_row);
    block = _mm512_mask_sub_epi64(block, over, block, per_row);
    row = _mm512_mask_add_epi64(row, over, row, one);
  }
  // The lower words of `even` and of `odd` in turn, and the upper ones.
  static Vector join_low(Vector even, Vector odd) {
    return _mm512_mask_shuffle_epi32(even, 0xaaaa, odd, _MM_PERM_CCAA);
  }
  static Vector join_high(Vector even, Vector odd) {
    return _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
  }
  // `out` is where a row of a tile starts: aligned to a block, no more.
  static void store(uint32_t* out, Vector w0, Vector w1, Vector w2, Vector w3) {
    const Vector low = join_low(w0, w1);
    const Vector upper = join_low(w2, w3);
    _mm512_storeu_si512(out, _mm512_unpacklo_epi64(low, upper));
    _mm512_storeu_si512(out + 16, _mm512_unpackhi_epi64(low, upper));
  }
};
#else
struct Lanes {
  using Vector = __m256i;
  static constexpr int64_t width = 4;
  static Vector set1(uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
  static Vector load(const uint64_t* x) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(x)); }
  static Vector add(Vector a, Vector b) { return _mm256_add_epi64(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm256_mul_epu32(a, b); }
  static Vector high(Vector a) { return _mm256_shuffle_epi32(a, 0xf5); }
  static Vector bit_xor(Vector a, Vector b) { return _mm256_xor_si256(a, b); }
  static Vector xor3(Vector a, Vector b, Vector c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
  static void wrap(Vector& block, Vector& row, Vector per_row, Vector one) {
    const Vector under = _mm256_cmpgt_epi64(per_row, block);
    block = _mm256_sub_epi64(block, _mm256_andnot_si256(under, per_row));
    row = _mm256_add_epi64(row, _mm256_andnot_si256(under, one));
  }
  static Vector join_low(Vector even, Vector odd) { return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa); }
  static Vector join_high(Vector even, Vector odd) { return _mm256_blend_epi32(high(even), odd, 0xaa); }
  static void store(uint32_t* out, Vector w0, Vector w1, Vector w2, Vector w3) {
    const Vector low = join_low(w0, w1);
    const Vector upper = join_low(w2, w3);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_unpacklo_epi64(low, upper));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 8), _mm256_unpackhi_epi64(low, upper));
  }
};
#endif

// Round keys in memory, as the operands of the round's xor: kept in registers they would be rebuilt in every step.
struct RoundKeys {
  Lanes::Vector key_0[math::philox_rounds], key_1[math::philox_rounds];

  explicit RoundKeys(uint64_t seed) {
    uint32_t k0 = static_cast<uint32_t>(seed);
    uint32_t k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < math::philox_rounds; ++round) {
      key_0[round] = Lanes::set1(k0);
      key_1[round] = Lanes::set1(k1);
      k0 += math::philox_weyl_0;
      k1 += math::philox_weyl_1;
    }
    __asm__("" : "+m"(*this));
  }
};

// `range.blocks` blocks; up to 2 * Lanes::width - 1 more are written. With `one_row` the sample and the counter's high
// word are constants, and the compiler takes what depends on them alone out of the loop.
template <bool one_row>
static inline void fill_blocks(const BlockRange& range, const RoundKeys& keys, uint32_t* out) {
  using V = Lanes::Vector;
  constexpr int groups = 2;  // independent chains in flight
  constexpr int64_t stride = groups * Lanes::width;
  const int64_t per_row = one_row ? INT64_MAX : range.blocks_per_row;
  V block[groups], row[groups];
  for (int g = 0; g < groups; ++g) {
    alignas(64) uint64_t first_block[Lanes::width], first_row[Lanes::width];
    for (int64_t lane = 0; lane < Lanes::width; ++lane) {
      const int64_t k = g * Lanes::width + lane / 2 + lane % 2 * (Lanes::width / 2);
      first_block[lane] = static_cast<uint64_t>(k % per_row);
      first_row[lane] = static_cast<uint64_t>(k / per_row);
    }
    block[g] = Lanes::load(first_block);
    row[g] = Lanes::load(first_row);
  }
  const V step_block = Lanes::set1(static_cast<uint64_t>(stride % per_row));
  const V step_row = Lanes::set1(static_cast<uint64_t>(stride / per_row));
  const V wrap_at = Lanes::set1(static_cast<uint64_t>(per_row));
  const V one = Lanes::set1(1);
  const V origin = Lanes::set1(range.key.offset + range.first_block);
  const V sample = Lanes::set1(range.first_sample);
  const V step = Lanes::set1(range.step);
  const V multiplier_0 = Lanes::set1(math::philox_multiplier_0);
  const V multiplier_1 = Lanes::set1(math::philox_multiplier_1);
  for (int64_t k = 0; k < range.blocks; k += stride) {
    V c0[groups], c1[groups], c2[groups], c3[groups];
    for (int g = 0; g < groups; ++g) {
      c0[g] = Lanes::add(origin, block[g]);
      c1[g] = Lanes::high(one_row ? origin : c0[g]);
      c2[g] = one_row ? sample : Lanes::add(sample, row[g]);
      c3[g] = step;
      block[g] = Lanes::add(block[g], step_block);
      if constexpr (!one_row) {
        row[g] = Lanes::add(row[g], step_row);
        Lanes::wrap(block[g], row[g], wrap_at, one);
      }
    }
#pragma GCC unroll 10
    for (int round = 0; round < math::philox_rounds; ++round) {
#pragma GCC unroll 2
      for (int g = 0; g < groups; ++g) {
        const V p0 = Lanes::mul(c0[g], multiplier_0);
        const V p1 = Lanes::mul(c2[g], multiplier_1);
        c0[g] = Lanes::xor3(Lanes::high(p1), c1[g], keys.key_0[round]);
        c2[g] = Lanes::xor3(Lanes::high(p0), c3[g], keys.key_1[round]);
        c1[g] = p1;  // the upper halves hold what no later product reads
        c3[g] = p0;
      }
    }
    for (int g = 0; g < groups; ++g) {
      Lanes::store(out + 4 * (k + g * Lanes::width), c0[g], c1[g], c2[g], c3[g]);
    }
  }
}

static inline void fill_words(BlockRange range, uint32_t* out) {
  if (range.blocks == 0) return;       // rows without columns
  constexpr int64_t worth_a_row = 64;  // blocks; shorter rows would leave too many lanes of their last step idle
  const RoundKeys keys(range.key.seed);
  const int64_t rows = range.blocks / range.blocks_per_row;
  const uint64_t first = range.key.offset + range.first_block;
  const bool carries = (first ^ (first + static_cast<uint64_t>(range.blocks_per_row))) >> 32;
  const bool whole_steps = range.blocks_per_row >= worth_a_row || range.blocks_per_row % (2 * Lanes::width) == 0;
  if (carries || !(rows == 1 || whole_steps)) return fill_blocks<false>(range, keys, out);
  range.blocks = range.blocks_per_row;
  for (int64_t r = 0; r < rows; ++r) {  // a row's overrun is overwritten by the next row
    fill_blocks<true>(range, keys, out + 4 * r * range.blocks_per_row);
    ++range.first_sample;
  }
}

#else

static inline void fill_words(const BlockRange& range, uint32_t* out) {
  int64_t block = 0;
  uint32_t row = 0;
  for (int64_t k = 0; k < range.blocks; ++k) {
    const math::Words words =
        math::noise_words(range.key, range.first_block + block, range.first_sample + row, range.step);
    for (int i = 0; i < 4; ++i) out[4 * k + i] = words.w[i];
    if (++block == range.blocks_per_row) {
      block = 0;
      ++row;
    }
  }
}

#endif

static inline math::Key key_of(const variate_noise& noise, int64_t row) {
  const int64_t* key = noise.key + row * noise.key_stride;
  return {static_cast<uint64_t>(key[0]), static_cast<uint64_t>(key[1])};
}

// The words of a tile; draw d > 0 takes those of fold_in(key, d).
static inline const uint32_t* tile_words(const variate_noise& noise, const Tile& t, WordBuffer& buffer,
                                         uint64_t draw = 0, uint32_t step = 0) {
  BlockRange range;
  range.step = step;
  range.first_block = static_cast<uint64_t>(t.col / 4);
  range.blocks_per_row = t.pitch / 4;
  const auto key_at = [&](int64_t row) {
    const math::Key key = key_of(noise, row);
    return draw ? math::fold_in(key, draw) : key;
  };
  if (noise.key_stride == 0) {
    range.key = key_at(0);
    range.first_sample = static_cast<uint32_t>(noise.first_sample + t.row);
    range.blocks = t.rows * range.blocks_per_row;
    fill_words(range, buffer.data);
  } else {
    range.first_sample = 0;
    range.blocks = range.blocks_per_row;
    WordBuffer row;
    for (int64_t r = 0; r < t.rows; ++r) {
      range.key = key_at(t.row + r);
      fill_words(range, row.data);
      std::memcpy(buffer.data + r * t.pitch, row.data, t.pitch * sizeof(uint32_t));
    }
  }
  for (int64_t i = t.rows * t.pitch; i < t.count; ++i) buffer.data[i] = 0;
  return buffer.data;
}

static inline void normals_of(const uint32_t* __restrict words, float* __restrict out, int64_t count) {
  for (int64_t k = 0; k < count / 2; ++k) {
    const math::NormalPair pair = math::normal_pair(words[2 * k], words[2 * k + 1]);
    out[2 * k] = pair.cos_part;
    out[2 * k + 1] = pair.sin_part;
  }
}

}  // namespace variate::cpu::VARIATE_ISA
