// How the words of a lattice lie in the workspace of a sweep.
#pragma once

#include <variate/lattice.h>
#include <variate/math/lattice.hpp>

namespace variate::cpu {

// A row of a lattice, index = z height + y. Rows are walked, as a division for each would cost as much as its update.
struct RowAt {
  int64_t index, z, y;

  static RowAt of(const variate_lattice& lattice, int64_t index) {
    return {index, index / lattice.height, index % lattice.height};
  }
  void advance(const variate_lattice& lattice) {
    ++index;
    if (++y == lattice.height) {
      y = 0;
      ++z;
    }
  }
};

// A sweep works on vectors of sixteen words: the same word of sixteen chains, or, where chains are few, sixteen words
// of one row. The words of a row are `step` apart then. Before the first word of a row, and behind its last site, there
// is room for what periodic boundaries wrap around to.
struct LatticeLayout {
  static constexpr int64_t vector = 16;
  variate_lattice lattice;
  int64_t rows, words;
  int64_t step;
  int64_t pitch;  // between rows

  LatticeLayout(const variate_lattice& lattice_, bool chains_in_lanes)
      : lattice(lattice_),
        rows(lattice_.depth * lattice_.height),
        words(math::words_in_row(lattice_.width)),
        step(chains_in_lanes ? vector : 1),
        pitch(chains_in_lanes ? (words + 2) * vector : (words + vector - 1) / vector * vector + 2) {}

  bool chains_in_lanes() const { return step == vector; }
  int64_t colour_words() const { return rows * pitch + vector; }
  // Of a row's first site of a colour.
  int parity(const RowAt& row, int colour) const { return static_cast<int>((row.z + row.y + colour) & 1); }
  int64_t sites(const RowAt& row, int colour) const { return math::sites_in_row(lattice.width, parity(row, colour)); }
  int64_t chain_words() const { return 2 * rows * words; }
};

// Long rows of few chains fill the lanes with the words of a row.
template <class Args>
LatticeLayout layout_of(const Args& a) {
  const int64_t words = math::words_in_row(a.lattice.width);
  const bool space = a.chains < LatticeLayout::vector && words * a.chains >= LatticeLayout::vector / 2 && words >= 4;
  return LatticeLayout(a.lattice, !space);
}

// What a call's workspace holds: both colours of a group of chains for each thread, or of one chain, and the bonds.
struct LatticeWorkspace {
  static constexpr uint64_t alignment = 64;
  int64_t group_words, bond_words;

  template <class Args>
  LatticeWorkspace(const Args& a, const LatticeLayout& layout)
      : group_words((2 * layout.colour_words() + 15) / 16 * 16),
        bond_words(!a.bonds || layout.chains_in_lanes() ? 0 : 4 * a.lattice.dimensions * layout.colour_words()) {}

  uint64_t size(const LatticeLayout& layout, int threads) const {
    const int groups = layout.chains_in_lanes() && threads > 1 ? threads : 1;
    return alignment + sizeof(uint32_t) * (groups * group_words + bond_words);
  }
};

}  // namespace variate::cpu
