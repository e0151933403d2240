// What the neighbours of a site make of its states: weights, from tables where they are functions of whole numbers.
#pragma once

#include <variate/math/potts.hpp>

#include "noise.h"

namespace variate::cpu::VARIATE_ISA {

inline constexpr int most_neighbours = 6;
inline constexpr int most_states = 255;

#if defined(__AVX512F__)
inline constexpr int native = 64;  // bytes of a vector
#elif defined(__AVX2__)
inline constexpr int native = 32;
#else
inline constexpr int native = 16;
#endif
inline constexpr int group = native / static_cast<int>(sizeof(uint32_t));  // words of a vector

template <int n>
using Bytes __attribute__((vector_size(n), aligned(1), may_alias)) = uint8_t;
typedef uint32_t Group __attribute__((vector_size(native), aligned(sizeof(uint32_t)), may_alias));

template <int n>
static inline Bytes<n> load_bytes(const uint8_t* from) {
  return *reinterpret_cast<const Bytes<n>*>(from);
}

static inline Group load_group(const uint32_t* from) { return *reinterpret_cast<const Group*>(from); }

#if defined(__AVX512F__)

// The forms with a mask: where the plain ones are used gcc 12 warns of its own header.
inline constexpr __mmask16 all = 0xffff;
inline constexpr __mmask8 all_wide = 0xff;

static inline Group widen_bytes(const uint8_t* from) {
  return reinterpret_cast<Group>(
      _mm512_maskz_cvtepu8_epi32(all, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

static inline void store_bytes(uint8_t* to, Group x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_maskz_cvtepi32_epi8(all, reinterpret_cast<__m512i>(x)));
}

// table[index] of indices below 8.
static inline Group look_up(const uint32_t* table, Group index) {
  const __m512i both = _mm512_loadu_si512(table);
  return reinterpret_cast<Group>(_mm512_maskz_permutexvar_epi32(all, reinterpret_cast<__m512i>(index), both));
}

// table[index]
static inline Group gather(const uint32_t* table, Group index) {
  return reinterpret_cast<Group>(
      _mm512_mask_i32gather_epi32(__m512i{}, all, reinterpret_cast<__m512i>(index), table, sizeof(uint32_t)));
}

// (a b) >> 32
static inline Group multiply_high(Group a, Group b) {
  const __m512i x = reinterpret_cast<__m512i>(a), y = reinterpret_cast<__m512i>(b);
  const auto high = [](__m512i v) { return _mm512_maskz_srli_epi64(all_wide, v, 32); };
  const __m512i even = high(_mm512_maskz_mul_epu32(all_wide, x, y));
  const __m512i odd = _mm512_maskz_mul_epu32(all_wide, high(x), high(y));
  return reinterpret_cast<Group>(_mm512_mask_blend_epi32(0xaaaa, even, odd));
}

#elif defined(__AVX2__)

static inline Group widen_bytes(const uint8_t* from) {
  return reinterpret_cast<Group>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

static inline void store_bytes(uint8_t* to, Group x) {
  const __m256i v = reinterpret_cast<__m256i>(x);
  const __m128i pairs = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(pairs, pairs));
}

static inline Group look_up(const uint32_t* table, Group index) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
  return reinterpret_cast<Group>(_mm256_permutevar8x32_epi32(low, reinterpret_cast<__m256i>(index)));
}

static inline Group gather(const uint32_t* table, Group index) {
  return reinterpret_cast<Group>(
      _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), reinterpret_cast<__m256i>(index), sizeof(uint32_t)));
}

static inline Group multiply_high(Group a, Group b) {
  const __m256i x = reinterpret_cast<__m256i>(a), y = reinterpret_cast<__m256i>(b);
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, y), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(y, 32));
  return reinterpret_cast<Group>(_mm256_blend_epi32(even, odd, 0xaa));
}

#else

static inline Group widen_bytes(const uint8_t* from) {
  Group out;
  for (int i = 0; i < group; ++i) out[i] = from[i];
  return out;
}

static inline void store_bytes(uint8_t* to, Group x) {
  for (int i = 0; i < group; ++i) to[i] = static_cast<uint8_t>(x[i]);
}

static inline Group look_up(const uint32_t* table, Group index) {
  Group out;
  for (int i = 0; i < group; ++i) out[i] = table[index[i]];
  return out;
}

static inline Group gather(const uint32_t* table, Group index) { return look_up(table, index); }

static inline Group multiply_high(Group a, Group b) {
  Group out;
  for (int i = 0; i < group; ++i) out[i] = static_cast<uint32_t>(static_cast<uint64_t>(a[i]) * b[i] >> 32);
  return out;
}

#endif

// What a chain's neighbours make of it.
struct Weights {
  double coupling;  // times beta
  double scale;
  uint32_t table[16];  // by the number of neighbours that the likeliest state is ahead, twice; without a field
  bool any_field;
  double field[most_states];  // times beta

  Weights(const variate_potts_gibbs_args& a, int64_t chain)
      : coupling(element<double>(a.beta, chain, 0) * element<double>(a.coupling, chain, 0)),
        scale(math::potts_scale(a.categories)),
        any_field(a.field.data != nullptr) {
    const double magnitude = coupling < 0.0 ? -coupling : coupling;
    for (int i = 0; i < 16; ++i) {
      table[i] = math::potts_weight(i % 8 ? -magnitude * static_cast<double>(i % 8) : 0.0, scale);
    }
    if (!any_field) return;
    for (int64_t s = 0; s < a.categories; ++s) {
      field[s] = element<double>(a.beta, chain, 0) * element<double>(a.field, chain, s);
    }
  }
};

// The weights of few states in a field, which are functions of four whole numbers: a state and its count of neighbours,
// and those of the likeliest state.
class FieldTables {
 public:
  // Whether there are such tables, and the chain is worth them.
  bool make(const Weights& weights, int64_t states, int64_t draws) {
    if (states > most || most_neighbours * 2 * states > draws) return false;
    const int q = static_cast<int>(states);
    double x[most * counts];
    for (int s = 0; s < q; ++s) {
      for (int count = 0; count < counts; ++count) {
        x[s * counts + count] = weights.coupling * static_cast<double>(count) + weights.field[s];
        if (x[s * counts + count] != x[s * counts + count]) return false;  // no order
      }
    }
    for (int s = 0; s < q; ++s) {
      for (int count = 0; count < counts; ++count) {
        uint32_t lower = 0;
        for (int i = 0; i < q * counts; ++i) lower += x[i] < x[s * counts + count];
        order_[s][count] = lower << 16 | (last - begin_of(s, count));
      }
    }
    for (int best = 0; best < q; ++best) {
      for (int s = 0; s < q; ++s) {
        const double apart = math::potts_apart(weights.field[s], weights.field[best]);
        for (int more = -most_neighbours; more <= most_neighbours; ++more) {
          weight_[begin_of(best, 0) + s * row + more] =
              math::potts_weight(weights.coupling * static_cast<double>(more) + apart, weights.scale);
        }
      }
    }
    return true;
  }

  // Numbers in the order of what a state of so many neighbours weighs, the first of equal states before the others.
  Group order(int state, Group count) const { return look_up(order_[state], count); }
  // The weight of a state of so many neighbours, where `likeliest` is the highest number.
  Group weight(int state, Group count, Group likeliest) const {
    return gather(weight_, last - (likeliest & 0xffff) + static_cast<uint32_t>(state * row) + count);
  }

 private:
  static constexpr int most = 16, row = 16, counts = most_neighbours + 1;
  static constexpr uint32_t last = 0xffff;

  // Where the weights of the first state begin, less its count.
  static uint32_t begin_of(int best, int count) {
    return static_cast<uint32_t>(best * most * row + most_neighbours - count);
  }

  alignas(64) uint32_t order_[most][row] = {};
  uint32_t weight_[most * most * row];
};

}  // namespace variate::cpu::VARIATE_ISA
