#include <variate/lattice.h>
#include <variate/math/lattice.hpp>

#include "kernels.h"
#include "lanes.h"
#include "lattice.h"
#include "tile.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

// A sweep works on vectors of words. Their lanes are the same word of sixteen chains, or, where chains are few, sixteen
// words of one row; the words of a row are `step` apart then. Before the first word of a row and behind its last site
// stand copies of what periodic boundaries wrap around to.

// One colour of a group of chains, as the sweep sees it.
struct Layout {
  variate_lattice lattice;
  int64_t rows, words;
  int64_t step;   // between words of a row: 16, or 1
  int64_t pitch;  // between rows

  Layout(const variate_lattice& lattice_, bool chains_in_lanes)
      : lattice(lattice_),
        rows(lattice_.depth * lattice_.height),
        words(math::words_in_row(lattice_.width)),
        step(chains_in_lanes ? lanes : 1),
        pitch(chains_in_lanes ? (words + 2) * lanes : (words + lanes - 1) / lanes * lanes + 2) {}

  int64_t colour_size() const { return rows * pitch + lanes; }
  int64_t parity(int64_t row, int colour) const { return (row / lattice.height + row % lattice.height + colour) & 1; }
  int64_t sites(int64_t row, int colour) const { return math::sites_in_row(lattice.width, parity(row, colour)); }
};

// digits of the thresholds as polynomials over bits: digit = c_0 + c_1 ones + c_2 twos + ... (mod 2) of the count of
// neighbours that pull up, which is ones + 2 twos + 4 fours.
enum Term { constant, ones, twos, fours, ones_twos, ones_fours, twos_fours, terms };

struct Count {
  Word term[terms];  // but the constant
};

struct Polynomial {
  Word c[terms];

  template <int neighbours>
  Word operator()(const Count& n) const {
    Word x = c[constant] ^ (c[ones] & n.term[ones]) ^ (c[twos] & n.term[twos]) ^ (c[fours] & n.term[fours]) ^
             (c[ones_twos] & n.term[ones_twos]);
    if (neighbours > 4) x ^= (c[ones_fours] & n.term[ones_fours]) ^ (c[twos_fours] & n.term[twos_fours]);
    return x;
  }
};

constexpr int most_neighbours = 6;
constexpr int most_missing = 3;  // of a corner in three dimensions

// What a spin's neighbours make of it, for each lane, where `missing` of them are beyond an open boundary.
struct Thresholds {
  uint64_t of[lanes][most_neighbours + 1];  // by the count
  Polynomial digit[math::plane_count];
  Polynomial certain;
  bool any_certain = false;

  static bool bit(uint64_t threshold, int place) { return threshold >> place & 1; }

  void set(int lane, double beta, double coupling, double field, int neighbours) {
    for (int n = 0; n <= neighbours; ++n) {
      const double sum = coupling * static_cast<double>(2 * n - neighbours) + field;
      of[lane][n] = math::heat_bath_threshold(2.0 * (beta * sum));
    }
    for (int n = neighbours + 1; n <= most_neighbours; ++n) of[lane][n] = 0;
    for (int p = 0; p < math::plane_count; ++p) set_bits(lane, digit[p], math::threshold_bits - 1 - p);
    set_bits(lane, certain, math::threshold_bits);
    for (int n = 0; n <= neighbours; ++n) any_certain |= bit(of[lane][n], math::threshold_bits);
  }

 private:
  // The coefficients from the values: each the sum of the values of all counts whose bits its own contains.
  void set_bits(int lane, Polynomial& p, int place) {
    const auto at = [&](int n) { return n <= most_neighbours ? (bit(of[lane][n], place) ? ~0u : 0u) : 0u; };
    p.c[constant][lane] = at(0);
    p.c[ones][lane] = at(0) ^ at(1);
    p.c[twos][lane] = at(0) ^ at(2);
    p.c[fours][lane] = at(0) ^ at(4);
    p.c[ones_twos][lane] = at(0) ^ at(1) ^ at(2) ^ at(3);
    p.c[ones_fours][lane] = at(0) ^ at(1) ^ at(4) ^ at(5);
    p.c[twos_fours][lane] = at(0) ^ at(2) ^ at(4) ^ at(6);
  }
};

// A group of chains, or one.
struct Group {
  const variate_ising_gibbs_args& a;
  Layout layout;
  int64_t first_chain;
  int64_t chains;       // 16 or fewer
  uint32_t* colour[2];  // the first word of row 0
  LaneNoise noise, rest;
  Thresholds thresholds[most_missing + 1];  // by the number of missing neighbours

  bool chains_in_lanes() const { return layout.step == lanes; }
  int neighbours() const { return 2 * a.lattice.dimensions; }

  Group(const variate_ising_gibbs_args& a_, const Layout& layout_, int64_t first, int64_t count, uint32_t* buffer)
      : a(a_),
        layout(layout_),
        first_chain(first),
        chains(count),
        noise(a_.noise, first, count, chains_in_lanes(), 0),
        rest(a_.noise, first, count, chains_in_lanes(), 1) {
    for (int k = 0; k < 2; ++k) colour[k] = buffer + k * layout.colour_size() + layout.step;
    const int missing = a.lattice.boundary == VARIATE_OPEN ? a.lattice.dimensions : 0;
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t chain = first_chain + (chains_in_lanes() && lane < chains ? lane : 0);
      const auto number = [&](const variate_tensor& x) { return element<double>(x, chain, 0); };
      for (int m = 0; m <= missing; ++m) {
        thresholds[m].set(lane, number(a.beta), number(a.coupling), number(a.field), neighbours() - m);
      }
    }
  }
};

}  // namespace

}  // namespace variate::cpu::VARIATE_ISA
