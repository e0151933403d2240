// Heat-bath thresholds of spins on a lattice, and where its sites lie.
#pragma once

#include <variate/lattice.h>

#include "philox.hpp"

namespace variate::math {

inline constexpr int plane_count = 8;      // digits of a site's uniform that come as planes
inline constexpr int threshold_bits = 40;  // and 32 more, where they are needed

// exp(x) of -708 <= x <= 0 in float64, the same bits on every CPU and GPU; relative error below 2^-51.
VARIATE_INLINE double exp_exact(double x) {
  constexpr double magic = 0x1.8p52;
  const double shifted = fma(x, 0x1.71547652b82fep+0, magic);
  const double n = shifted - magic;
  const double r = fma(n, -0x1.abc9e3b39803fp-56, fma(n, -0x1.62e42fefa39efp-1, x));
  double p = 0x1.6124613a86d09p-33;  // 1 / 13!, ..., 1 / 2!
  p = fma(p, r, 0x1.1eed8eff8d898p-29);
  p = fma(p, r, 0x1.ae64567f544e4p-26);
  p = fma(p, r, 0x1.27e4fb7789f5cp-22);
  p = fma(p, r, 0x1.71de3a556c734p-19);
  p = fma(p, r, 0x1.a01a01a01a01ap-16);
  p = fma(p, r, 0x1.a01a01a01a01ap-13);
  p = fma(p, r, 0x1.6c16c16c16c17p-10);
  p = fma(p, r, 0x1.1111111111111p-7);
  p = fma(p, r, 0x1.5555555555555p-5);
  p = fma(p, r, 0x1.5555555555555p-3);
  p = fma(p, r, 0.5);
  p = fma(p * r, r, r) + 1.0;
  return p * double_of(static_cast<std::uint64_t>(static_cast<std::int64_t>(n) + 1023) << 52);
}

// ceil(2^40 sigmoid(x)): a 40-bit draw below it is a spin +1. Fields beyond all that 40 bits tell apart, infinite ones
// too, decide for certain.
VARIATE_INLINE std::uint64_t heat_bath_threshold(double x) {
  constexpr double certain = 40.0;  // e^-40 < 2^-57
  const double magnitude = x < 0.0 ? -x : x;
  const double e = exp_exact(magnitude < certain ? -magnitude : -certain);
  const double p = (x < 0.0 ? e : 1.0) / (1.0 + e);
  const double scaled = p * 0x1p40;
  const std::uint64_t whole = static_cast<std::uint64_t>(scaled);
  const std::uint64_t threshold = whole + (static_cast<double>(whole) < scaled ? 1 : 0);
  if (!(magnitude < certain)) return x < 0.0 ? 0 : std::uint64_t{1} << threshold_bits;
  return threshold;
}

// Sites of a colour in a row whose first site of that colour is x = parity.
VARIATE_INLINE std::int64_t sites_in_row(std::int64_t width, int parity) { return (width + 1 - parity) / 2; }

VARIATE_INLINE std::int64_t words_in_row(std::int64_t width) { return ((width + 1) / 2 + 31) / 32; }

// What follows updates 32 sites at a time, a word of one colour, as the CUDA kernels do.

// n / divisor of n < 2^31, without a division.
struct Divider {
  std::uint32_t divisor;
  std::uint32_t multiplier;
  std::uint32_t shift;
};

VARIATE_INLINE Divider divider(std::uint32_t divisor) {
  std::uint32_t shift = 0;
  while ((std::uint64_t{1} << shift) < divisor) ++shift;
  const std::uint64_t excess = (std::uint64_t{1} << shift) - divisor;
  return {divisor, static_cast<std::uint32_t>((excess << 32) / divisor + 1), shift};
}

VARIATE_INLINE std::uint32_t divide(std::uint32_t n, const Divider& by) {
  return (multiply(n, by.multiplier).high + n) >> by.shift;
}

// u consecutive words of a row, in one access.
template <int u>
struct alignas(4 * u) WordGroup {
  std::uint32_t w[u];
};

template <int u>
VARIATE_INLINE WordGroup<u> load_words(const std::uint32_t* words, std::uint32_t index) {
  return *reinterpret_cast<const WordGroup<u>*>(words + index);
}

template <int u>
VARIATE_INLINE void store_words(std::uint32_t* words, std::uint32_t index, const WordGroup<u>& group) {
#if defined(__CUDA_ARCH__)
  if constexpr (u == 4) {  // nvcc stores an aggregate element by element
    *reinterpret_cast<uint4*>(words + index) = make_uint4(group.w[0], group.w[1], group.w[2], group.w[3]);
    return;
  }
#endif
  *reinterpret_cast<WordGroup<u>*>(words + index) = group;
}

// One colour of a lattice.
struct WordGrid {
  std::uint32_t width;
  std::uint32_t height;
  std::uint32_t depth;
  std::uint32_t words;  // of a row
  std::uint32_t size;   // of the colour, in words
  bool open;
  Divider groups;  // of a row
  Divider rows;    // of a layer
};

VARIATE_INLINE WordGrid word_grid(std::int64_t depth, std::int64_t height, std::int64_t width, bool open, int group) {
  const std::int64_t words = words_in_row(width);
  const auto narrow = [](std::int64_t x) { return static_cast<std::uint32_t>(x); };
  return {narrow(width),
          narrow(height),
          narrow(depth),
          narrow(words),
          narrow(depth * height * words),
          open,
          divider(narrow(words / group)),
          divider(narrow(height))};
}

// Where a group of words lies in its colour.
struct WordPlace {
  std::uint32_t index;  // of its first word
  std::uint32_t word;   // the same in its row
  std::uint32_t y;
  std::uint32_t z;
  std::uint32_t parity;  // x of the row's first site
};

template <int u>
VARIATE_INLINE WordPlace word_place(const WordGrid& grid, std::uint32_t group, int colour) {
  const std::uint32_t row = divide(group, grid.groups);
  const std::uint32_t z = divide(row, grid.rows);
  const std::uint32_t y = row - z * grid.height;
  return {group * u, (group - row * grid.groups.divisor) * u, y, z, (y + z + colour) & 1};
}

// The bits of a row's word that are sites.
VARIATE_INLINE std::uint32_t valid_sites(const WordGrid& grid, std::uint32_t parity, std::uint32_t word) {
  if (grid.width % 64 == 0) return ~0u;
  const std::uint32_t sites = (grid.width + 1 - parity) / 2;
  const std::uint32_t before = 32 * word;
  if (sites >= before + 32) return ~0u;
  return sites > before ? (1u << (sites - before)) - 1 : 0;
}

// The words of neighbours, bit by bit: before and behind along z (of three dimensions), y and x. What lies beyond an
// open boundary is 0. `ordered` tells before and behind along x apart, which a sum need not.
template <int dimensions, int u>
struct Neighbours {
  WordGroup<u> of[2 * dimensions];
};

template <int dimensions, bool ordered, int u>
VARIATE_INLINE Neighbours<dimensions, u> neighbours(const WordGrid& grid, const WordPlace& at,
                                                    const std::uint32_t* other) {
  Neighbours<dimensions, u> n;
  const std::uint32_t layer = grid.height * grid.words;
  const auto beside = [&](std::uint32_t place, std::uint32_t side, std::uint32_t step, int direction) {
    const std::uint32_t around = (side - 1) * step;
    if (place > 0) {
      n.of[direction] = load_words<u>(other, at.index - step);
    } else {
      n.of[direction] = grid.open ? WordGroup<u>{} : load_words<u>(other, at.index + around);
    }
    if (place + 1 < side) {
      n.of[direction + 1] = load_words<u>(other, at.index + step);
    } else {
      n.of[direction + 1] = grid.open ? WordGroup<u>{} : load_words<u>(other, at.index - around);
    }
  };
  if (dimensions == 3) beside(at.z, grid.depth, layer, 0);
  beside(at.y, grid.height, grid.words, 2 * dimensions - 4);

  // Along x a site of an odd row (parity 1) has the same bit of the other colour before it and the next bit behind it,
  // one of an even row the bit before and the same.
  const bool odd = at.parity == 1;
  const WordGroup<u> same = load_words<u>(other, at.index);
  const bool edge = odd ? at.word + u == grid.words : at.word == 0;
  std::uint32_t wrapped = 0;
  if (!edge) {
    wrapped = other[odd ? at.index + u : at.index - 1];
  } else if (!grid.open) {
    wrapped = other[odd ? at.index + u - grid.words : at.index + grid.words - 1];
  }
  const std::uint32_t last = (grid.width / 2 - 1) & 31;  // the last site of a periodic row, in its word
  std::uint32_t line[u + 1];
  line[0] = odd ? same.w[0] : wrapped << (edge && !grid.open ? 31 - last : 0);
  line[u] = odd ? wrapped : same.w[u - 1];
  for (int i = 1; i < u; ++i) line[i] = odd ? same.w[i] : same.w[i - 1];
  if (odd && edge && !grid.open && last < 31) line[u - 1] |= wrapped << (last + 1);
  const int shift = odd ? 1 : 31;
  WordGroup<u> shifted;
  for (int i = 0; i < u; ++i) {
#if defined(__CUDA_ARCH__)
    shifted.w[i] = __funnelshift_r(line[i], line[i + 1], shift);
#else
    shifted.w[i] = line[i] >> shift | line[i + 1] << (32 - shift);
#endif
  }
  n.of[2 * dimensions - 2] = ordered && !odd ? shifted : same;
  n.of[2 * dimensions - 1] = ordered && !odd ? same : shifted;
  return n;
}

// What an open boundary takes away from a word: this many neighbours of every site, and one more of those in `edge`.
struct Missing {
  std::uint32_t count;
  std::uint32_t edge;
};

// Where `present` of dimensions z, y and x, before and behind, is what is not beyond the boundary.
template <int dimensions>
VARIATE_INLINE Missing missing_neighbours(const WordGrid& grid, const WordPlace& at, int offset,
                                          std::uint32_t (&present)[2 * dimensions]) {
  for (int d = 0; d < 2 * dimensions; ++d) present[d] = ~0u;
  if (!grid.open) return {0, 0};
  std::uint32_t count = 0;
  const auto beside = [&](std::uint32_t place, std::uint32_t side, int direction) {
    if (place == 0) present[direction] = 0;
    if (place + 1 == side) present[direction + 1] = 0;
    count += (place == 0) + (place + 1 == side);
  };
  if (dimensions == 3) beside(at.z, grid.depth, 0);
  beside(at.y, grid.height, 2 * dimensions - 4);
  const std::uint32_t word = at.word + offset;
  const std::uint32_t right = grid.width - 1;
  const std::uint32_t first = at.parity == 0 && word == 0 ? 1 : 0;
  const std::uint32_t last = (right & 1) == at.parity && right / 64 == word ? 1u << (right / 2 % 32) : 0;
  present[2 * dimensions - 2] = ~first;
  present[2 * dimensions - 1] = ~last;
  if (first & last) return {count + 2, 0};  // the row is one site
  return {count, first | last};
}

// Arithmetic on bits: of the 32 sites of a word, or of as many as a vector of words has, which `Word` may be too.

template <class Word>
VARIATE_INLINE Word majority(Word a, Word b, Word c) {
  return (a & b) | (c & (a | b));
}

// Counts in binary, one for each bit, and the products of their digits.
template <class Word>
struct BitCount {
  Word ones, twos, fours;
  Word ones_twos, ones_fours, twos_fours;
};

template <class Word>
VARIATE_INLINE BitCount<Word> count_bits(const Word (&x)[4]) {
  const Word sum = x[0] ^ x[1] ^ x[2];
  const Word carry = majority(x[0], x[1], x[2]);
  const Word ones = sum ^ x[3];
  const Word twos = carry ^ (sum & x[3]);
  return {ones, twos, carry & sum & x[3], ones & twos, Word{}, Word{}};
}

template <class Word>
VARIATE_INLINE BitCount<Word> count_bits(const Word (&x)[6]) {
  const Word sum_0 = x[0] ^ x[1] ^ x[2], carry_0 = majority(x[0], x[1], x[2]);
  const Word sum_1 = x[3] ^ x[4] ^ x[5], carry_1 = majority(x[3], x[4], x[5]);
  const Word carry = sum_0 & sum_1;
  const Word ones = sum_0 ^ sum_1, twos = carry_0 ^ carry_1 ^ carry, fours = majority(carry_0, carry_1, carry);
  return {ones, twos, fours, ones & twos, ones & fours, twos & fours};
}

VARIATE_INLINE std::uint32_t count_at(const BitCount<std::uint32_t>& n, int bit) {
  return (n.ones >> bit & 1) | (n.twos >> bit & 1) << 1 | (n.fours >> bit & 1) << 2;
}

// A digit of the thresholds as a polynomial over the digits of the count, modulo 2: coefficients are all ones or 0.
template <class Word>
struct alignas(16) alignas(Word) DigitPolynomial {
  Word constant, ones, twos, fours;
  Word ones_twos, ones_fours, twos_fours;
  Word unused;
};

// Its coefficients from the digit of each count, all ones or 0: the sum of the values of all counts whose digits its
// own contains.
template <class Word>
VARIATE_INLINE DigitPolynomial<Word> digit_polynomial(const Word (&at)[7]) {
  return {at[0],
          at[0] ^ at[1],
          at[0] ^ at[2],
          at[0] ^ at[4],
          at[0] ^ at[1] ^ at[2] ^ at[3],
          at[0] ^ at[1] ^ at[4] ^ at[5],
          at[0] ^ at[2] ^ at[4] ^ at[6],
          Word{}};
}

template <class Word>
VARIATE_INLINE Word add_product(Word sum, Word a, Word b) {
  return sum ^ (a & b);
}

template <int neighbours, class Word>
VARIATE_INLINE Word evaluate(const DigitPolynomial<Word>& p, const BitCount<Word>& n) {
  Word x = add_product(p.constant, p.ones, n.ones);
  x = add_product(x, p.twos, n.twos);
  x = add_product(x, p.fours, n.fours);
  x = add_product(x, p.ones_twos, n.ones_twos);
  if (neighbours == 4) return x;
  x = add_product(x, p.ones_fours, n.ones_fours);
  return add_product(x, p.twos_fours, n.twos_fours);
}

VARIATE_INLINE std::uint64_t threshold_of(double beta, double coupling, double field, int up, int neighbours) {
  if (up > neighbours) return 0;
  const double sum = coupling * static_cast<double>(2 * up - neighbours) + field;
  return heat_bath_threshold(2.0 * (beta * sum));
}

// Digit p of a threshold, from the highest below 1; the last is that of 1, which decides for certain.
VARIATE_INLINE std::uint32_t threshold_digit(std::uint64_t threshold, int p) {
  const int place = p == plane_count ? threshold_bits : threshold_bits - 1 - p;
  return threshold >> place & 1 ? ~0u : 0;
}

// What the neighbours of a site make of it, where `neighbours` of them are there.
struct HeatBath {
  DigitPolynomial<std::uint32_t> digit[plane_count + 1];
  std::uint64_t threshold[7];  // by how many pull up
  std::uint64_t any_certain;
};

VARIATE_INLINE void set_digit(HeatBath& bath, int p) {
  std::uint32_t at[7], any = 0;
  for (int n = 0; n < 7; ++n) any |= at[n] = threshold_digit(bath.threshold[n], p);
  bath.digit[p] = digit_polynomial(at);
  if (p == plane_count) bath.any_certain = any;
}

// Whether the uniforms are below their thresholds, from the lowest digit to the highest; equal so far: undecided.
template <class Word>
struct Draw {
  Word up = {};
  Word undecided = ~Word{};
};

// A digit decides where it differs.
template <class Word>
VARIATE_INLINE Word decide_digit(Word up, Word uniform, Word threshold) {
  const Word differ = uniform ^ threshold;
  return (up & ~differ) | (threshold & differ);
}

template <class Word>
VARIATE_INLINE void compare_digit(Draw<Word>& draw, Word uniform, Word threshold) {
  draw.up = decide_digit(draw.up, uniform, threshold);
  draw.undecided &= ~(uniform ^ threshold);
}

// 32 bits of a ring of `count` bits from `start` < count on: where a row of a colour goes on beyond its end.
VARIATE_INLINE std::uint32_t ring_word(const std::uint32_t* row, std::uint32_t count, std::uint32_t start) {
  std::uint32_t word = 0;
  for (std::uint32_t filled = 0; filled < 32;) {
    const std::uint32_t bit = start % 32;
    word |= row[start / 32] >> bit << filled;
    const std::uint32_t to_word = 32 - bit, to_end = count - start;
    const std::uint32_t taken = to_word < to_end ? to_word : to_end;
    filled += taken;
    start = to_end == taken ? 0 : start + taken;
  }
  return word;
}

// Adds a measurement: the magnetisation and the satisfied bonds of a lattice, each per site.
VARIATE_INLINE void add_moments(double m, double b, double* moments) {
  moments[VARIATE_ISING_M] += m;
  moments[VARIATE_ISING_ABS_M] += m < 0.0 ? -m : m;
  moments[VARIATE_ISING_M2] += m * m;
  moments[VARIATE_ISING_M4] += (m * m) * (m * m);
  moments[VARIATE_ISING_B] += b;
  moments[VARIATE_ISING_B2] += b * b;
  moments[VARIATE_ISING_MB] += m * b;
}

}  // namespace variate::math
