// Sixteen chains, or one, while they are swept: their spins, what the neighbours of a spin make of it, and their noise.
#pragma once

#include "kernels.h"
#include "lanes.h"
#include "lattice.h"
#include "tile.h"

namespace variate::cpu::VARIATE_ISA {

inline constexpr int most_missing = 3;  // neighbours of a site, beyond the corner of an open lattice
inline constexpr int counts = 8;        // of neighbours that pull up: those of three digits

// The digits of the thresholds that planes are compared with, in each lane.
struct Thresholds {
  math::DigitPolynomial<Word> digit[math::plane_count + 1];
  bool any_certain = false;
};

// Bits of a vector of words of a row: which are sites, which of them have no neighbour on one side, and of those which
// have none behind them.
struct RowMask {
  Word sites, lonely, last;
  bool any_lonely;
};

struct Chains {
  const variate_ising_gibbs_args& a;
  const LatticeLayout& layout;
  const uint32_t* bonds;  // in the layout of the words where the lanes are one chain
  int64_t first_chain, count;
  int64_t words_a_vector, vectors;  // of a row
  uint32_t* colour[2];              // the first word of row 0
  LaneStreams rest;                 // of undecided sites
  LaneKeys rest_keys;
  LanePlanes planes;
  Thresholds thresholds[most_missing + 1];            // by the number of missing neighbours
  uint32_t rest_of[most_missing + 1][counts][lanes];  // their digits below those of the planes

  Chains(const variate_ising_gibbs_args& a_, const LatticeLayout& layout_, const uint32_t* bonds_, int64_t first,
         int64_t count_, uint32_t* buffer)
      : a(a_),
        layout(layout_),
        bonds(bonds_),
        first_chain(first),
        count(count_),
        words_a_vector(layout_.chains_in_lanes() ? 1 : lanes),
        vectors((layout_.words + words_a_vector - 1) / words_a_vector),
        rest(a_.noise, first, count_, !layout_.chains_in_lanes(), 1),
        rest_keys(rest.seed),
        planes(LaneStreams(a_.noise, first, count_, !layout_.chains_in_lanes(), 0), layout_.chains_in_lanes() ? 0 : 2,
               2 * static_cast<uint64_t>(layout_.chain_words())) {
    for (int k = 0; k < 2; ++k) colour[k] = buffer + k * layout.colour_words() + layout.step;
    for (int parity = 0; parity < 2; ++parity) {
      for (int64_t kind = 0; kind < kinds; ++kind) masks_[parity][kind] = mask_of(parity, kind);
    }
    const int missing = a.lattice.boundary == VARIATE_OPEN ? a.lattice.dimensions : 0;
    for (int m = 0; m <= missing; ++m) set_thresholds(m);
  }

  // Whether every bit of every vector is a site with all its neighbours in the row.
  bool whole_rows() const {
    return a.lattice.boundary == VARIATE_PERIODIC && a.lattice.width % (64 * words_a_vector) == 0;
  }

  uint32_t* row_of(int k, int64_t row) const { return colour[k] + row * layout.pitch; }

  const RowMask& mask(int parity, int64_t vector) const {
    const int64_t left = vectors - 1 - vector;
    return masks_[parity][vector == 0 ? 0 : left < 2 ? 3 - left : 1];
  }

  void load() const {
    for (int k = 0; k < 2; ++k) {
      if (layout.chains_in_lanes()) {
        for_blocks(k, [&](uint32_t* const* inside, const uint32_t* const* outside, int64_t words) {
          Word block[lanes] = {};
          for (int64_t c = 0; c < count; ++c) block[c] = load_some(outside[c], words);
          transpose(block);
          for (int64_t w = 0; w < words; ++w) store_word(inside[w], block[w]);
        });
      } else {
        for_rows(k, [&](uint32_t* inside, uint32_t* outside, uint64_t bytes) { std::memcpy(inside, outside, bytes); });
      }
      wrap(k, 0, layout.rows);
    }
  }

  void store() const {
    for (int k = 0; k < 2; ++k) {
      if (layout.chains_in_lanes()) {
        for_blocks(k, [&](uint32_t* const* inside, uint32_t* const* outside, int64_t words) {
          Word block[lanes] = {};
          for (int64_t w = 0; w < words; ++w) block[w] = load_word(inside[w]);
          transpose(block);
          for (int64_t c = 0; c < count; ++c) store_some(outside[c], block[c], words);
        });
      } else {
        for_rows(k, [&](uint32_t* inside, uint32_t* outside, uint64_t bytes) {
          unwrap(inside);
          std::memcpy(outside, inside, bytes);
        });
      }
    }
  }

  // Copies each row's last site before it and its first one behind it, where the lanes are one chain.
  void wrap(int k, int64_t first_row, int64_t end_row) const {
    if (layout.chains_in_lanes() || a.lattice.boundary == VARIATE_OPEN) return;
    const int64_t sites = a.lattice.width / 2, last = sites - 1;
    const uint32_t bit = uint32_t{1} << sites % 32;
    for (int64_t row = first_row; row < end_row; ++row) {
      uint32_t* words = row_of(k, row);
      words[-1] = words[last / 32] >> last % 32 << 31;
      words[sites / 32] = (words[sites / 32] & ~bit) | (words[0] & 1) * bit;
    }
  }

 private:
  static constexpr int64_t kinds = 4;  // of vectors of a row: the first, those between, the last but one, the last
  RowMask masks_[2][kinds];

  RowMask mask_of(int parity, int64_t kind) const {
    const int64_t vector = kind == 0 ? 0 : kind == 1 ? 1 : vectors + kind - kinds, w = vector * words_a_vector;
    const bool in_space = !layout.chains_in_lanes();
    const bool open = a.lattice.boundary == VARIATE_OPEN;
    const int64_t sites = math::sites_in_row(a.lattice.width, parity);
    const bool first = open && vector == 0 && parity == 0;
    const bool last = open && 2 * (sites - 1) + parity == a.lattice.width - 1;
    RowMask m = {};
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t left = sites - 32 * (w + (in_space ? lane : 0));
      m.sites[lane] = left >= 32 ? ~uint32_t{0} : left > 0 ? (uint32_t{1} << left) - 1 : 0;
      if (first && (!in_space || lane == 0)) m.lonely[lane] |= 1;
      if (last && left > 0 && left <= 32) m.last[lane] = uint32_t{1} << (left - 1);
      m.lonely[lane] |= m.last[lane];
      m.any_lonely |= m.lonely[lane] != 0;
    }
    return m;
  }

  void set_thresholds(int missing) {
    const int neighbours = 2 * a.lattice.dimensions - missing;
    Word at[math::plane_count + 1][counts - 1];
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t chain = first_chain + (layout.chains_in_lanes() && lane < count ? lane : 0);
      const auto number = [&](const variate_tensor& x) { return element<double>(x, chain, 0); };
      rest_of[missing][counts - 1][lane] = 0;
      for (int n = 0; n < counts - 1; ++n) {
        const uint64_t threshold =
            math::threshold_of(number(a.beta), number(a.coupling), number(a.field), n, neighbours);
        rest_of[missing][n][lane] = static_cast<uint32_t>(threshold);
        for (int p = 0; p <= math::plane_count; ++p) at[p][n][lane] = math::threshold_digit(threshold, p);
        thresholds[missing].any_certain |= at[math::plane_count][n][lane] != 0;
      }
    }
    for (int p = 0; p <= math::plane_count; ++p) thresholds[missing].digit[p] = math::digit_polynomial(at[p]);
  }

  // Where row r of a colour of the caller's words begins.
  uint32_t* words_of(int64_t chain, int k, int64_t row) const {
    return a.words + (first_chain + chain) * layout.chain_words() + (k * layout.rows + row) * layout.words;
  }

  // function(where each of up to sixteen words of a colour lies, where those of each chain begin, how many words).
  template <class Function>
  void for_blocks(int k, Function function) const {
    const int64_t words = layout.rows * layout.words;
    int64_t row = 0, word = 0;
    for (int64_t first = 0; first < words; first += lanes) {
      const int64_t some = words - first < lanes ? words - first : lanes;
      uint32_t *inside[lanes], *outside[lanes];
      for (int64_t w = 0; w < some; ++w) {
        inside[w] = row_of(k, row) + word * layout.step;
        if (++word < layout.words) continue;
        word = 0;
        ++row;
      }
      for (int64_t c = 0; c < count; ++c) outside[c] = words_of(c, k, 0) + first;
      function(inside, outside, some);
    }
  }

  template <class Function>
  void for_rows(int k, Function function) const {
    for (int64_t row = 0; row < layout.rows; ++row) {
      function(row_of(k, row), words_of(0, k, row), layout.words * sizeof(uint32_t));
    }
  }

  // What `wrap` has put behind a row's last site.
  void unwrap(uint32_t* words) const {
    const int64_t sites = a.lattice.width / 2;
    if (a.lattice.boundary == VARIATE_PERIODIC && sites % 32) words[sites / 32] &= (uint32_t{1} << sites % 32) - 1;
  }
};

}  // namespace variate::cpu::VARIATE_ISA
