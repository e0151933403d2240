// A sweep of a lattice: rows of one colour and then of the other, a vector of words at a time.
#pragma once

#include <initializer_list>

#include "undecided.h"

namespace variate::cpu::VARIATE_ISA {

// One row of one colour: where its neighbours are and what is missing.
struct Row {
  static constexpr int most_sources = 6;
  const Chains& chains;
  int colour;
  const RowAt& at;
  uint32_t* own;
  const uint32_t* source[most_sources];  // rows of the other colour: this one twice, then those around
  int direction[most_sources];           // whose bonds
  int sources = 0;
  int missing = 0;  // beyond the rows' ends
  int parity;
  const uint32_t* beyond;  // the words behind the last vector or before the first, on the side of `beside`
  uint32_t beyond_shift = 31;

  Row(const Chains& chains_, int colour_, const RowAt& at_)
      : chains(chains_),
        colour(colour_),
        at(at_),
        own(chains_.row_of(colour_, at_.index)),
        parity(chains_.layout.parity(at_, colour_)) {
    const variate_lattice& lattice = chains.a.lattice;
    const int along_x = 2 * (lattice.dimensions - 1);
    const uint32_t* const other = chains.row_of(1 - colour, at.index);
    const int64_t last = (chains.vectors - 1) * lanes;
    if (chains.layout.chains_in_lanes() && lattice.boundary == VARIATE_PERIODIC) {
      beyond = parity ? other : other + last;
      beyond_shift = static_cast<uint32_t>(lattice.width / 2 - 1) % 32;
    } else {
      beyond = parity ? other + last + chains.layout.step : other - chains.layout.step;
    }
    // Index n of the other colour is to the right of an even site, and to the left of an odd one.
    add(at.index, along_x + (parity ? 0 : 1));
    add(at.index, along_x + (parity ? 1 : 0));
    around(at.y, lattice.height, along_x - 2, [&](int64_t y) { return at.z * lattice.height + y; });
    if (lattice.dimensions == 3) {
      around(at.z, lattice.depth, 0, [&](int64_t z) { return z * lattice.height + at.y; });
    }
  }

  // The neighbours along x of a vector that are not `same`, its own words: behind it or before.
  Word beside(int64_t vector, const Word& same) const {
    const bool end = vector == (parity ? chains.vectors - 1 : 0);
    const uint32_t* from = source[0] + vector * lanes + (parity ? chains.layout.step : -chains.layout.step);
    const Word other = load_word(end ? beyond : from);
    const uint32_t shift = end ? beyond_shift : 31;
    return parity ? same >> 1 | other << shift : same << 1 | other >> shift;
  }

  // Those of a vector.
  Word bonds(int source, int64_t vector) const {
    const LatticeLayout& layout = chains.layout;
    const int64_t first = 2 * direction[source] + colour;
    if (layout.chains_in_lanes()) return splat(chains.bonds[(first * layout.rows + at.index) * layout.words + vector]);
    return load_word(chains.bonds + first * layout.colour_words() + layout.step + at.index * layout.pitch +
                     vector * lanes);
  }

 private:
  void add(int64_t other, int direction_) {
    source[sources] = chains.row_of(1 - colour, other);
    direction[sources++] = direction_;
  }

  template <class RowOf>
  void around(int64_t place, int64_t size, int direction_, RowOf row_of) {
    const bool open = chains.a.lattice.boundary == VARIATE_OPEN;
    for (const int side : {-1, 1}) {
      const int64_t other = place + side;
      if (open && (other < 0 || other >= size)) {
        ++missing;
      } else {
        add(row_of(other < 0 ? size - 1 : other == size ? 0 : other), direction_ + (side + 1) / 2);
      }
    }
  }
};

// How many neighbours pull each site of a vector up.
template <int neighbours, bool with_bonds, bool whole>
inline __attribute__((always_inline)) math::BitCount<Word> count_neighbours(const Row& row, const RowMask& mask,
                                                                            int64_t vector) {
  const int64_t i = vector * lanes;
  const int sources = whole ? neighbours : row.sources;
  Word x[neighbours] = {};
  x[0] = load_word(row.source[0] + i);
  x[1] = row.beside(vector, x[0]);
  for (int s = 2; s < sources; ++s) x[s] = load_word(row.source[s] + i);
  if constexpr (with_bonds) {
    for (int s = 0; s < sources; ++s) x[s] = ~(x[s] ^ row.bonds(s, vector));
    if constexpr (!whole) {
      x[1] &= ~(mask.lonely & ~mask.last);
      x[row.parity] &= ~mask.last;
    }
  }
  return math::count_bits(x);
}

// The digits of the uniforms against those of the thresholds, the last digit first.
template <int neighbours, bool whole>
inline __attribute__((always_inline)) math::Draw<Word> compare_digits(const Row& row, const RowMask& mask,
                                                                      const math::BitCount<Word>& n,
                                                                      const Word* planes) {
  const Thresholds& usual = row.chains.thresholds[row.missing];
  const bool any_lonely = !whole && mask.any_lonely;
  const Thresholds& lonely = row.chains.thresholds[any_lonely ? row.missing + 1 : row.missing];
  const auto digit = [&](int p) __attribute__((always_inline)) {
    Word x = math::evaluate<neighbours>(usual.digit[p], n);
    if (any_lonely) x ^= (x ^ math::evaluate<neighbours>(lonely.digit[p], n)) & mask.lonely;
    return x;
  };
  math::Draw<Word> draw = {Word{}, ~Word{}};
#pragma GCC unroll 8
  for (int p = math::plane_count - 1; p >= 0; --p) math::compare_digit(draw, planes[p], digit(p));
  if (usual.any_certain || lonely.any_certain) {
    const Word certain = digit(math::plane_count);
    draw.up |= certain;
    draw.undecided &= ~certain;
  }
  if constexpr (!whole) {
    draw.up &= mask.sites;
    draw.undecided &= mask.sites;
  }
  return draw;
}

template <int neighbours, bool with_bonds, bool whole>
void update_row(const Chains& chains, int colour, const RowAt& at, uint32_t step, Undecided& undecided) {
  const LatticeLayout& layout = chains.layout;
  const Row row(chains, colour, at);
  const uint64_t block = 2 * static_cast<uint64_t>((colour * layout.rows + at.index) * layout.words);
  const int64_t first_site = at.index * chains.a.lattice.width + row.parity;
  for (int64_t vector = 0; vector < chains.vectors; ++vector) {
    const int64_t w = vector * chains.words_a_vector;
    Word planes[math::plane_count];
    chains.planes.draw(block + 2 * static_cast<uint64_t>(w), step, planes);
    const RowMask& mask = chains.mask(row.parity, vector);
    const math::BitCount<Word> n = count_neighbours<neighbours, with_bonds, whole>(row, mask, vector);
    const math::Draw<Word> draw = compare_digits<neighbours, whole>(row, mask, n, planes);
    store_word(row.own + vector * lanes, draw.up);
    undecided.add<whole>(row.own + vector * lanes, first_site + 64 * w, row.missing, mask.lonely, n, draw.undecided);
  }
}

using UpdateRow = void (*)(const Chains&, int, const RowAt&, uint32_t, Undecided&);

template <int neighbours, bool with_bonds>
UpdateRow update_of(const Chains& chains) {
  return chains.whole_rows() ? update_row<neighbours, with_bonds, true> : update_row<neighbours, with_bonds, false>;
}

static inline UpdateRow update_of(const Chains& chains) {
  if (chains.a.lattice.dimensions == 2)
    return chains.a.bonds ? update_of<4, true>(chains) : update_of<4, false>(chains);
  return chains.a.bonds ? update_of<6, true>(chains) : update_of<6, false>(chains);
}

// Rows [first, end) of a colour.
static inline void update_rows(const Chains& chains, UpdateRow update, int colour, int64_t first, int64_t end,
                               uint32_t step) {
  Undecided undecided(chains, colour, step);
  for (RowAt at = RowAt::of(chains.a.lattice, first); at.index < end; at.advance(chains.a.lattice)) {
    update(chains, colour, at, step, undecided);
  }
  undecided.finish();
  chains.wrap(colour, first, end);
}

// One colour, the rows of one chain cut among the threads.
static inline void update_colour(const Chains& chains, UpdateRow update, int colour, uint32_t step) {
  const int64_t rows = chains.layout.rows;
#if defined(_OPENMP)
  if (chains.a.execution.threads > 1 && !chains.layout.chains_in_lanes()) {
    constexpr int64_t strip = 16;
    const int64_t strips = (rows + strip - 1) / strip;
#pragma omp parallel for schedule(static) num_threads(chains.a.execution.threads)
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t end = (s + 1) * strip;
      update_rows(chains, update, colour, s * strip, end < rows ? end : rows, step);
    }
    return;
  }
#endif
  update_rows(chains, update, colour, 0, rows, step);
}

}  // namespace variate::cpu::VARIATE_ISA
