// Sixteen lanes of 32-bit words, and the noise of sixteen counters at a time.
#pragma once

#include <variate/math/lattice.hpp>

#include "noise.h"

namespace variate::cpu::VARIATE_ISA {

inline constexpr int lanes = 16;

typedef uint32_t Word __attribute__((vector_size(lanes * sizeof(uint32_t))));
typedef uint32_t StoredWord
    __attribute__((vector_size(lanes * sizeof(uint32_t)), aligned(sizeof(uint32_t)), may_alias));

static inline Word load_word(const uint32_t* from) { return *reinterpret_cast<const StoredWord*>(from); }
static inline void store_word(uint32_t* to, Word word) { *reinterpret_cast<StoredWord*>(to) = word; }
static inline Word splat(uint32_t x) { return Word{} + x; }

// Of the first `count` lanes; the others are 0, or stay as they are in memory.
static inline Word load_some(const uint32_t* from, int64_t count) {
  if (count == lanes) return load_word(from);
  Word word = {};
  std::memcpy(&word, from, static_cast<std::size_t>(count) * sizeof(uint32_t));
  return word;
}
static inline void store_some(uint32_t* to, Word word, int64_t count) {
  if (count == lanes) return store_word(to, word);
  std::memcpy(to, &word, static_cast<std::size_t>(count) * sizeof(uint32_t));
}

// The number of each lane.
static inline Word lane_numbers() { return Word{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

// The place of each lane's one bit, whose exponent it is as a float; of 0 nothing in particular.
static inline Word place_of_bit(const Word& bit) {
  typedef int32_t Signed __attribute__((vector_size(sizeof(Word))));
  typedef float Floats __attribute__((vector_size(sizeof(Word))));
  const Word bits = reinterpret_cast<Word>(__builtin_convertvector(reinterpret_cast<Signed>(bit), Floats));
  return (bits >> 23 & 0xff) - 127;
}

#if defined(__AVX512F__)

// A bit for each lane that is not 0.
static inline uint32_t nonzero_lanes(const Word& x) {
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(x));
}

// Those lanes next to each other. Up to sixteen words are written.
static inline void store_lanes(uint32_t* to, const Word& x, uint32_t which) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(which), reinterpret_cast<__m512i>(x)));
}

// table[index]
static inline Word look_up(const uint32_t* table, const Word& index) {
  return reinterpret_cast<Word>(
      _mm512_mask_i32gather_epi32(__m512i{}, 0xffff, reinterpret_cast<__m512i>(index), table, sizeof(uint32_t)));
}

// Rows become columns: first of blocks of two by two, then of four by four, and so on.
static inline void transpose(Word (&x)[lanes]) {
#pragma GCC unroll 4
  for (int side = 1; side < lanes; side *= 2) {
    const Word right = reinterpret_cast<Word>((lane_numbers() & side) != 0);
    const Word upper = lane_numbers() + (right & (lanes - side)), lower = upper + side;
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      if (i & side) continue;
      const Word a = x[i], b = x[i + side];
      x[i] = __builtin_shuffle(a, b, upper);
      x[i + side] = __builtin_shuffle(a, b, lower);
    }
  }
}

#else

static inline uint32_t nonzero_lanes(const Word& x) {
  uint32_t which = 0;
  for (int i = 0; i < lanes; ++i) which |= static_cast<uint32_t>(x[i] != 0) << i;
  return which;
}

static inline void store_lanes(uint32_t* to, const Word& x, uint32_t which) {
  for (; which; which &= which - 1) *to++ = x[__builtin_ctz(which)];
}

static inline Word look_up(const uint32_t* table, const Word& index) {
  Word x;
  for (int i = 0; i < lanes; ++i) x[i] = table[index[i]];
  return x;
}

static inline void transpose(Word (&x)[lanes]) {
  uint32_t* const words = reinterpret_cast<uint32_t*>(x);
  for (int i = 0; i < lanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const uint32_t word = words[lanes * i + j];
      words[lanes * i + j] = words[lanes * j + i];
      words[lanes * j + i] = word;
    }
  }
}

#endif

}  // namespace variate::cpu::VARIATE_ISA

#if defined(__AVX512F__)
namespace variate::math {

// One instruction each, which gcc 12 does not find.
#define VARIATE_OF_BITS(function, table)                                                                   \
  template <>                                                                                              \
  inline __attribute__((always_inline)) cpu::VARIATE_ISA::Word function(                                   \
      cpu::VARIATE_ISA::Word a, cpu::VARIATE_ISA::Word b, cpu::VARIATE_ISA::Word c) {                      \
    return reinterpret_cast<cpu::VARIATE_ISA::Word>(_mm512_ternarylogic_epi32(                             \
        reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b), reinterpret_cast<__m512i>(c), table)); \
  }
VARIATE_OF_BITS(majority, 0xe8)
VARIATE_OF_BITS(add_product, 0x78)
VARIATE_OF_BITS(decide_digit, 0xb2)
#undef VARIATE_OF_BITS

}  // namespace variate::math
#endif

namespace variate::cpu::VARIATE_ISA {

// The streams of sixteen rows from `first` on, or of one row in every lane; the last of `count` rows fills what lanes
// are left. Draw d > 0 is that of fold_in(key, d).
struct LaneStreams {
  uint64_t seed[lanes], offset[lanes];
  Word sample;
  bool one_key;

  LaneStreams(const variate_noise& noise, int64_t first, int64_t count, bool one_row, uint64_t draw)
      : one_key(one_row || noise.key_stride == 0) {
    for (int i = 0; i < lanes; ++i) {
      const int64_t row = first + (one_row ? 0 : i < count ? i : count - 1);
      const math::Key key = draw ? math::fold_in(key_of(noise, row), draw) : key_of(noise, row);
      seed[i] = key.seed;
      offset[i] = key.offset;
      sample[i] = noise.key_stride ? 0 : static_cast<uint32_t>(noise.first_sample + row);
    }
  }
};

#if defined(__AVX512F__) || defined(__AVX2__)

// A word of each lane in the lower half of 64 bits: of even and of odd lanes in turn. What the upper halves hold is
// not read.
struct Wide {
  static constexpr int parts = lanes / Lanes::width, pairs = parts / 2;
  Lanes::Vector part[parts];

  Wide() = default;
  explicit Wide(const Word& x) {
    for (int p = 0; p < pairs; ++p) {
      part[2 * p] = reinterpret_cast<const Lanes::Vector*>(&x)[p];
      part[2 * p + 1] = Lanes::high(part[2 * p]);
    }
  }
};

// Sixteen lanes of the lower or of the upper halves.
static inline Word lower_halves(const Wide& x) {
  Word out;
  for (int p = 0; p < Wide::pairs; ++p) {
    reinterpret_cast<Lanes::Vector*>(&out)[p] = Lanes::join_low(x.part[2 * p], x.part[2 * p + 1]);
  }
  return out;
}
static inline Word upper_halves(const Wide& x) {
  Word out;
  for (int p = 0; p < Wide::pairs; ++p) {
    reinterpret_cast<Lanes::Vector*>(&out)[p] = Lanes::join_high(x.part[2 * p], x.part[2 * p + 1]);
  }
  return out;
}

struct LaneKeys {
  Wide key_0[math::philox_rounds], key_1[math::philox_rounds];
  Word last_0, last_1;

  explicit LaneKeys(const uint64_t* seeds) {
    Word k0, k1;
    for (int i = 0; i < lanes; ++i) {
      k0[i] = static_cast<uint32_t>(seeds[i]);
      k1[i] = static_cast<uint32_t>(seeds[i] >> 32);
    }
    for (int round = 0; round < math::philox_rounds; ++round) {
      key_0[round] = Wide(k0);
      key_1[round] = Wide(k1);
      last_0 = k0;
      last_1 = k1;
      k0 += math::philox_weyl_0;
      k1 += math::philox_weyl_1;
    }
  }
};

// The words of counters after `first_round` rounds, those of the first of `calls` before those of the second.
template <int calls, int first_round>
static inline __attribute__((always_inline)) void finish_rounds(const LaneKeys& keys, Wide (&c0)[calls],
                                                                Wide (&c1)[calls], Wide (&c2)[calls], Wide (&c3)[calls],
                                                                Word* out) {
  const Lanes::Vector multiplier_0 = Lanes::set1(math::philox_multiplier_0);
  const Lanes::Vector multiplier_1 = Lanes::set1(math::philox_multiplier_1);
#pragma GCC unroll 10
  for (int round = first_round; round + 1 < math::philox_rounds; ++round) {
#pragma GCC unroll 2
    for (int call = 0; call < calls; ++call) {
#pragma GCC unroll 4
      for (int p = 0; p < Wide::parts; ++p) {
        const Lanes::Vector p0 = Lanes::mul(c0[call].part[p], multiplier_0);
        const Lanes::Vector p1 = Lanes::mul(c2[call].part[p], multiplier_1);
        c0[call].part[p] = Lanes::xor3(Lanes::high(p1), c1[call].part[p], keys.key_0[round].part[p]);
        c2[call].part[p] = Lanes::xor3(Lanes::high(p0), c3[call].part[p], keys.key_1[round].part[p]);
        c1[call].part[p] = p1;
        c3[call].part[p] = p0;
      }
    }
  }
#pragma GCC unroll 2
  for (int call = 0; call < calls; ++call) {  // the last round puts the lanes back side by side
    Wide p0, p1;
#pragma GCC unroll 4
    for (int p = 0; p < Wide::parts; ++p) {
      p0.part[p] = Lanes::mul(c0[call].part[p], multiplier_0);
      p1.part[p] = Lanes::mul(c2[call].part[p], multiplier_1);
    }
    out[4 * call] = upper_halves(p1) ^ lower_halves(c1[call]) ^ keys.last_0;
    out[4 * call + 1] = lower_halves(p1);
    out[4 * call + 2] = upper_halves(p0) ^ lower_halves(c3[call]) ^ keys.last_1;
    out[4 * call + 3] = lower_halves(p0);
  }
}

// The words of each lane's counter, a 64-bit number in two halves, of its sample at a step; of `calls` counters a lane.
template <int calls>
static inline void lane_words(const LaneKeys& keys, const Word (&low)[calls], const Word (&high)[calls],
                              const Word (&sample)[calls], uint32_t step, Word* out) {
  Wide c0[calls], c1[calls], c2[calls], c3[calls];
  for (int call = 0; call < calls; ++call) {
    c0[call] = Wide(low[call]);
    c1[call] = Wide(high[call]);
    c2[call] = Wide(sample[call]);
    c3[call] = Wide(splat(step));
  }
  finish_rounds<calls, 0>(keys, c0, c1, c2, c3, out);
}

#else

struct LaneKeys {
  uint64_t seed[lanes];

  explicit LaneKeys(const uint64_t* seeds) {
    for (int i = 0; i < lanes; ++i) seed[i] = seeds[i];
  }
};

template <int calls>
static inline void lane_words(const LaneKeys& keys, const Word (&low)[calls], const Word (&high)[calls],
                              const Word (&sample)[calls], uint32_t step, Word* out) {
  for (int call = 0; call < calls; ++call) {
    for (int i = 0; i < lanes; ++i) {
      const math::Words words = math::philox(keys.seed[i], low[call][i], high[call][i], sample[call][i], step);
      for (int j = 0; j < 4; ++j) out[4 * call + j][i] = words.w[j];
    }
  }
}

#endif

// Eight words a lane at a time: those of its counters `block` and block + 1, a lane's first counter `apart` behind the
// one before, `blocks` of them at most.
class LanePlanes {
 public:
  LanePlanes(const LaneStreams& streams, uint64_t apart, uint64_t blocks)
      : keys_(streams.seed), sample_(streams.sample) {
    uint64_t carries = 0;
    for (int i = 0; i < lanes; ++i) {
      first_[i] = streams.offset[i] + apart * static_cast<uint64_t>(i);
      low_[i] = static_cast<uint32_t>(first_[i]);
      high_[i] = static_cast<uint32_t>(first_[i] >> 32);
      carries |= (first_[i] ^ (first_[i] + blocks)) >> 32;
      one_counter_ &= first_[i] == first_[0];
    }
    carries_ = carries != 0;
    one_counter_ &= streams.one_key;
    seed_high_ = static_cast<uint32_t>(streams.seed[0] >> 32);
    prepare();
  }

  void draw(uint64_t block, uint32_t step, Word* out) const {
#if defined(__AVX512F__) || defined(__AVX2__)
    if (!carries_) return draw_ahead(block, step, out);
#endif
    Word low[2], high[2];
    for (int call = 0; call < 2; ++call) {
      for (int i = 0; i < lanes; ++i) {
        const uint64_t counter = first_[i] + block + static_cast<uint64_t>(call);
        low[call][i] = static_cast<uint32_t>(counter);
        high[call][i] = static_cast<uint32_t>(counter >> 32);
      }
    }
    lane_words<2>(keys_, low, high, {sample_, sample_}, step, out);
  }

 private:
#if defined(__AVX512F__) || defined(__AVX2__)
  // Of the words of a counter the first two rounds mix no more than two: what depends on the upper half of the counter
  // and on the sample alone is the same in all calls.
  void prepare() {
    const Wide high(high_), sample(sample_);
    for (int p = 0; p < Wide::parts; ++p) {
      const Lanes::Vector p1 = Lanes::mul(sample.part[p], Lanes::set1(math::philox_multiplier_1));
      const Lanes::Vector c0 = Lanes::xor3(Lanes::high(p1), high.part[p], keys_.key_0[0].part[p]);
      ahead_3_.part[p] = Lanes::mul(c0, Lanes::set1(math::philox_multiplier_0));
      ahead_0_.part[p] = Lanes::bit_xor(p1, keys_.key_0[1].part[p]);
      ahead_2_.part[p] = Lanes::bit_xor(Lanes::high(ahead_3_.part[p]), keys_.key_1[1].part[p]);
    }
  }

  void draw_ahead(uint64_t block, uint32_t step, Word* out) const {
    Wide c0[2], c1[2], c2[2], c3[2];
#pragma GCC unroll 2
    for (int call = 0; call < 2; ++call) {
      const uint32_t from = static_cast<uint32_t>(block) + static_cast<uint32_t>(call);
      c3[call] = ahead_3_;
      if (one_counter_) {
        const math::WideProduct p0 = math::multiply(math::philox_multiplier_0, low_[0] + from);
        const math::WideProduct p1 = math::multiply(math::philox_multiplier_1, p0.high ^ step ^ seed_high_);
        const Lanes::Vector p0_low = Lanes::set1(p0.low), p1_low = Lanes::set1(p1.low), p1_high = Lanes::set1(p1.high);
#pragma GCC unroll 4
        for (int p = 0; p < Wide::parts; ++p) {
          c0[call].part[p] = Lanes::bit_xor(p1_high, ahead_0_.part[p]);
          c1[call].part[p] = p1_low;
          c2[call].part[p] = Lanes::bit_xor(p0_low, ahead_2_.part[p]);
        }
      } else {
        const Lanes::Vector steps = Lanes::set1(step), multiplier_0 = Lanes::set1(math::philox_multiplier_0),
                            multiplier_1 = Lanes::set1(math::philox_multiplier_1);
        const Wide counter(low_ + from);
#pragma GCC unroll 4
        for (int p = 0; p < Wide::parts; ++p) {
          const Lanes::Vector p0 = Lanes::mul(counter.part[p], multiplier_0);
          const Lanes::Vector mixed = Lanes::xor3(Lanes::high(p0), steps, keys_.key_1[0].part[p]);
          const Lanes::Vector p1 = Lanes::mul(mixed, multiplier_1);
          c0[call].part[p] = Lanes::bit_xor(Lanes::high(p1), ahead_0_.part[p]);
          c1[call].part[p] = p1;
          c2[call].part[p] = Lanes::bit_xor(p0, ahead_2_.part[p]);
        }
      }
    }
    finish_rounds<2, 2>(keys_, c0, c1, c2, c3, out);
  }

  Wide ahead_0_, ahead_2_, ahead_3_;
#else
  void prepare() {}
#endif

  LaneKeys keys_;
  Word sample_, low_, high_;
  uint64_t first_[lanes];
  uint32_t seed_high_;
  bool carries_, one_counter_ = true;
};

}  // namespace variate::cpu::VARIATE_ISA
