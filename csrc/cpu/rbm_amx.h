// Sums of weights over binary inputs by a matrix unit of bytes (AMX), and draws from the upper half of their bits.
#pragma once

#include <immintrin.h>

#include "noise.h"
#include "rbm_weights.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

// A weight is 2^shift (256 high + low) + 256 middle + rest: a signed byte, and three unsigned ones.
constexpr int64_t tile_bytes = 1024;

inline int8_t* limbs_of(const RbmDirection& d, bool upper, int64_t group) {
  return d.limbs + (upper ? 0 : 2 * d.in_padded * d.out_padded) + group * 2 * 16 * d.in_padded;
}

// Byte j of x[i] becomes byte i of x[j], in each 32 bits.
inline void transpose_bytes(__m512i (&x)[4]) {
  constexpr int choose = 0xca;  // the first operand's bits of the second, else of the third
  const __m512i low_bytes = _mm512_set1_epi16(0xff), low_half = _mm512_set1_epi32(0xffff);
  for (int i = 0; i < 4; i += 2) {
    const __m512i even = _mm512_ternarylogic_epi32(low_bytes, x[i], _mm512_slli_epi32(x[i + 1], 8), choose);
    x[i + 1] = _mm512_ternarylogic_epi32(low_bytes, _mm512_srli_epi32(x[i], 8), x[i + 1], choose);
    x[i] = even;
  }
  for (int i = 0; i < 2; ++i) {
    const __m512i low = _mm512_ternarylogic_epi32(low_half, x[i], _mm512_slli_epi32(x[i + 2], 16), choose);
    x[i + 2] = _mm512_ternarylogic_epi32(low_half, _mm512_srli_epi32(x[i], 16), x[i + 2], choose);
    x[i] = low;
  }
}

// The limbs of 64 outputs, and how far the upper two may be from all: `radius` holds the largest sum there is.
// The lower limbs are for exact sums.
void cut(const RbmDirection& d, int64_t panel, bool exact) {
  const float* w = d.panels + panel * d.in_padded * units;
  for (int64_t group = 0; group < 4; ++group) {
    const int64_t first = panel * units + group * 16;
    const __m512 scale = _mm512_load_ps(d.scale + first);
    const __m512i shift = _mm512_load_si512(d.shift + first);
    __m512i left_out = _mm512_setzero_si512();
    int8_t *upper_limbs = limbs_of(d, true, first / 16), *lower_limbs = limbs_of(d, false, first / 16);
    for (int64_t k = 0; k < d.in_padded; k += 4) {
      __m512i limbs[4];
      for (int64_t i = 0; i < 4; ++i) {
        const __m512 x = _mm512_mul_ps(_mm512_load_ps(w + (k + i) * units + group * 16), scale);
        const __m512i q = _mm512_cvtps_epi32(x);
        const __m512i upper = _mm512_srav_epi32(q, shift);
        const __m512i rest = _mm512_sub_epi32(q, _mm512_sllv_epi32(upper, shift));
        left_out = _mm512_add_epi32(left_out, rest);
        limbs[i] = _mm512_or_si512(_mm512_slli_epi32(upper, 16), rest);
      }
      transpose_bytes(limbs);
      const int64_t at = k / units * 2 * tile_bytes + k % units / 4 * 64;
      _mm512_store_si512(upper_limbs + at, limbs[3]);
      _mm512_store_si512(upper_limbs + at + tile_bytes, limbs[2]);
      if (!exact) continue;
      _mm512_store_si512(lower_limbs + at, limbs[1]);
      _mm512_store_si512(lower_limbs + at + tile_bytes, limbs[0]);
    }
    alignas(64) uint32_t most[16];  // 65535 inputs of 16 bits fit
    _mm512_store_si512(most, left_out);
    for (int64_t c = 0; c < 16; ++c) {
      const double inverse = d.inverse[first + c], half_way = 0.5 * most[c];
      const double rounding = d.radius[first + c] * 0x1p-21;  // of sums and products in float32, several times over
      const float offset = d.offset[first + c];
      d.middle[first + c] = static_cast<float>((d.fixed_bias[first + c] + half_way) * inverse) + offset;
      d.radius[first + c] = static_cast<float>((half_way + rounding) * inverse * 1.0001);
    }
  }
}

bool has_limbs(const RbmDirection& d) { return d.in <= rbm_limb_inputs; }

// A draw that the upper limbs leave open, from the exact sum.
__attribute__((noinline)) bool resolve(const RbmDirection& d, int64_t output, const uint8_t* states, float beta,
                                       uint32_t word) {
  const __m512 scale = _mm512_set1_ps(d.scale[output]);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t block = 0; block < d.in_padded / units; ++block) {
    const float* w = d.columns + (block * d.out_padded + output) * units;
    const __mmask64 on = _mm512_test_epi8_mask(_mm512_loadu_si512(states + block * units), _mm512_set1_epi8(1));
    for (int64_t i = 0; i < 4; ++i) {
      const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(w + 16 * i), scale));
      sum = _mm512_mask_add_epi32(sum, static_cast<__mmask16>(on >> 16 * i), sum, q);
    }
  }
  const int32_t whole = d.fixed_bias[output] + _mm512_reduce_add_epi32(sum);
  return math::below(word, math::sigmoid(math::logit(whole, d.inverse[output], d.offset[output]) * beta));
}

// One row of binary states from the sums of the upper two limbs. With e = exp(-|x|), p (1 + e) is 1 or e, so a draw is
// compared without a division; one that is closer to p than x may be off is made from the exact sum. The slope of p is
// at most e / (1 + e)^2 exp(r) within r of x, and exp(r) < 1 + 2 r up to 5/4.
inline void decide_row(const RbmDirection& d, int64_t first, const uint8_t* from, float beta, const int32_t* sums,
                       const uint32_t* words, uint8_t* states) {
  const __m512 one = _mm512_set1_ps(1.0f), betas = _mm512_set1_ps(beta);
  __mmask16 open[4];
  for (int64_t k = 0; k < 4; ++k) {
    const int64_t at = first + 16 * k;
    const __m512 total = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 16 * k));
    const __m512 x =
        _mm512_mul_ps(_mm512_fmadd_ps(total, _mm512_load_ps(d.unit + at), _mm512_load_ps(d.middle + at)), betas);
    const __m512 minus = _mm512_or_ps(x, _mm512_set1_ps(-0.0f));
    const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-104.0f), minus);  // a NaN passes
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(bounded, _mm512_set1_ps(math::log2_e)), 0);
    const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e430p-1f), bounded);
    __m512 q = _mm512_set1_ps(0x1.6d722cp-10f);
    for (float c : {0x1.122680p-7f, 0x1.5554c8p-5f, 0x1.5554b2p-3f, 0.5f, 1.0f, 1.0f}) {
      q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(c));
    }
    const __m512 e = _mm512_scalef_ps(q, n);
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 share = _mm512_mask_mov_ps(one, negative, e);
    const __m512 u = _mm512_mul_ps(_mm512_cvtepu32_ps(_mm512_load_si512(words + 16 * k)), _mm512_set1_ps(0x1p-32f));
    const __m512 distance = _mm512_fmsub_ps(u, _mm512_add_ps(one, e), share);
    const __m512 radius = _mm512_abs_ps(_mm512_mul_ps(_mm512_load_ps(d.radius + at), betas));
    const __m512 slope = _mm512_fmadd_ps(_mm512_add_ps(radius, radius), radius, radius);
    const __m512 margin = _mm512_fmadd_ps(e, slope, _mm512_set1_ps(2e-6f));  // the latter for all that is rounded
    open[k] = _mm512_cmp_ps_mask(_mm512_abs_ps(distance), margin, _CMP_NGT_UQ) |
              _mm512_cmp_ps_mask(radius, _mm512_set1_ps(1.25f), _CMP_NLE_UQ);
    const __mmask16 on = _mm512_cmp_ps_mask(distance, _mm512_setzero_ps(), _CMP_LT_OQ);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(states + 16 * k), _mm_maskz_set1_epi8(on, 1));
  }
  for (int64_t k = 0; k < 4; ++k) {
    for (uint32_t left = open[k]; left; left &= left - 1) {
      const int64_t c = 16 * k + __builtin_ctz(left);
      states[c] = resolve(d, first + c, from, beta, words[c]);
    }
  }
}

// What the compiler has to have written before a tile instruction reads it: gcc's intrinsics do not say that they do.
inline void in_memory(const void* data) { __asm__ volatile("" : : "r"(data) : "memory"); }

// The words of 64 units of one chain.
class RowWords {
 public:
  RowWords(const variate_noise& noise, uint32_t step)
      : noise_(noise), keys_(static_cast<uint64_t>(noise.key[0])), step_(step) {}

  const uint32_t* at(int64_t row, int64_t first) {
    BlockRange range;
    range.key = key_of(noise_, row);
    range.first_block = static_cast<uint64_t>(first / 4);
    range.first_sample = noise_.key_stride ? 0 : static_cast<uint32_t>(noise_.first_sample + row);
    range.blocks_per_row = range.blocks = units / 4;
    range.step = step_;
    const uint64_t begin = range.key.offset + range.first_block;
    const bool carries = (begin ^ (begin + units / 4)) >> 32;
    if (carries || noise_.key_stride) {
      fill_words(range, words_);
    } else {
      fill_blocks<true>(range, keys_, words_);
    }
    return words_;
  }

 private:
  const variate_noise& noise_;
  const RoundKeys keys_;  // of the one key that there is without a stride
  const uint32_t step_;
  alignas(64) uint32_t words_[units + noise_slack];
};

struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The sums of two limbs, the upper or the lower ones, of 32 chains and 16 outputs; `meanwhile` is called between the
// products, whose unit leaves the others idle.
template <bool upper, class Function>
void limb_sums(const RbmDirection& d, const uint8_t* states, int64_t group, int32_t* sums, Function meanwhile) {
  const int64_t blocks = d.in_padded / units, pitch = d.in_padded;
  const int8_t* w = limbs_of(d, upper, group);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < blocks; ++k) {
    _tile_loadd(4, states + k * units, pitch);
    // Weights pass by; states stay in the first-level cache.
    _tile_stream_loadd(6, w + 2 * k * tile_bytes, 64);
    _tile_stream_loadd(7, w + (2 * k + 1) * tile_bytes, 64);
    _tile_loadd(5, states + 16 * pitch + k * units, pitch);
    if constexpr (upper) {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbuud(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbuud(3, 5, 7);
    } else {
      _tile_dpbuud(0, 4, 6);
      _tile_dpbuud(1, 4, 7);
      _tile_dpbuud(2, 5, 6);
      _tile_dpbuud(3, 5, 7);
    }
    meanwhile();
  }
  alignas(64) int32_t high[rbm_group * 16], low[rbm_group * 16];
  _tile_stored(0, high, 64);
  _tile_stored(2, high + 16 * 16, 64);
  _tile_stored(1, low, 64);
  _tile_stored(3, low + 16 * 16, 64);
  for (int64_t i = 0; i < rbm_group; ++i) {
    const __m512i whole =
        _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(high + i * 16), 8), _mm512_load_si512(low + i * 16));
    _mm512_store_si512(sums + i * units + group % 4 * 16, whole);
  }
}

}  // namespace

}  // namespace variate::cpu::VARIATE_ISA
