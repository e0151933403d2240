#include "lattice.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels.h"
#include "lanes.h"
#include "tile.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

constexpr int most_neighbours = 6;
constexpr int most_missing = 3;  // beyond the corner of an open lattice

// The bits of a count of neighbours, n = ones + 2 twos + 4 fours, and the products that polynomials over them have.
enum Term { ones, twos, fours, ones_twos, ones_fours, twos_fours, terms };

struct Count {
  Word term[terms];

  int of(int lane, int bit) const {
    return (term[ones][lane] >> bit & 1) + 2 * (term[twos][lane] >> bit & 1) + 4 * (term[fours][lane] >> bit & 1);
  }
};

// A function of the count, as a polynomial modulo 2: so one digit of a threshold is had for all sites of a word.
struct Polynomial {
  Word constant;
  Word c[terms];

  // From the values at counts 0 ... 6: each coefficient is the sum of the values at all counts within its term.
  void set(int lane, const bool* value) {
    const auto sum = [&](bool bit) { return bit ? ~uint32_t{0} : uint32_t{0}; };
    constant[lane] = sum(value[0]);
    c[ones][lane] = sum(value[0] ^ value[1]);
    c[twos][lane] = sum(value[0] ^ value[2]);
    c[fours][lane] = sum(value[0] ^ value[4]);
    c[ones_twos][lane] = sum(value[0] ^ value[1] ^ value[2] ^ value[3]);
    c[ones_fours][lane] = sum(value[0] ^ value[1] ^ value[4] ^ value[5]);
    c[twos_fours][lane] = sum(value[0] ^ value[2] ^ value[4] ^ value[6]);
  }

  template <int neighbours>
  Word at(const Count& n) const {
    Word x = constant ^ (c[ones] & n.term[ones]);
    x ^= c[twos] & n.term[twos];
    x ^= c[fours] & n.term[fours];
    x ^= c[ones_twos] & n.term[ones_twos];
    if (neighbours > 4) {
      x ^= c[ones_fours] & n.term[ones_fours];
      x ^= c[twos_fours] & n.term[twos_fours];
    }
    return x;
  }
};

// What the neighbours of a spin make of it, in each lane.
struct Thresholds {
  uint64_t of[lanes][most_neighbours + 1];
  Polynomial digit[math::plane_count];
  Polynomial certain;
  bool any_certain = false;

  void set(int lane, double beta, double coupling, double field, int neighbours) {
    for (int n = 0; n <= most_neighbours; ++n) {
      const double sum = coupling * static_cast<double>(2 * n - neighbours) + field;
      of[lane][n] = n <= neighbours ? math::heat_bath_threshold(2.0 * (beta * sum)) : 0;
    }
    for (int p = 0; p < math::plane_count; ++p) set_digit(lane, digit[p], math::threshold_bits - 1 - p);
    any_certain |= set_digit(lane, certain, math::threshold_bits);
  }

 private:
  bool set_digit(int lane, Polynomial& polynomial, int place) {
    bool value[most_neighbours + 1], any = false;
    for (int n = 0; n <= most_neighbours; ++n) any |= value[n] = of[lane][n] >> place & 1;
    polynomial.set(lane, value);
    return any;
  }
};

// Sixteen chains, or one.
struct Group {
  const variate_ising_gibbs_args& a;
  const LatticeLayout& layout;
  const uint32_t* bonds;  // in the layout of the words where the lanes are one chain
  int64_t first_chain, chains;
  uint32_t* colour[2];  // the first word of row 0
  LaneStreams planes, rest;
  LaneKeys plane_keys, rest_keys;
  Wide plane_counters, plane_samples;
  Thresholds thresholds[most_missing + 1];  // by the number of missing neighbours

  Group(const variate_ising_gibbs_args& a_, const LatticeLayout& layout_, const uint32_t* bonds_, int64_t first,
        int64_t count, uint32_t* buffer)
      : a(a_),
        layout(layout_),
        bonds(bonds_),
        first_chain(first),
        chains(count),
        planes(a_.noise, first, count, !layout_.chains_in_lanes(), 0),
        rest(a_.noise, first, count, !layout_.chains_in_lanes(), 1),
        plane_keys(planes.seed),
        rest_keys(rest.seed) {
    uint64_t counters[lanes];
    for (int i = 0; i < lanes; ++i) counters[i] = planes.offset[i] + (layout.chains_in_lanes() ? 0 : 2 * i);
    plane_counters = Wide::of(counters);
    plane_samples = Wide::of(planes.sample);
    for (int k = 0; k < 2; ++k) colour[k] = buffer + k * layout.colour_words() + layout.step;
    const int missing = a.lattice.boundary == VARIATE_OPEN ? a.lattice.dimensions : 0;
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t chain = first_chain + (layout.chains_in_lanes() && lane < chains ? lane : 0);
      const auto number = [&](const variate_tensor& x) { return element<double>(x, chain, 0); };
      for (int m = 0; m <= missing; ++m) {
        thresholds[m].set(lane, number(a.beta), number(a.coupling), number(a.field), 2 * a.lattice.dimensions - m);
      }
    }
  }

  uint32_t* row_of(int k, int64_t row) const { return colour[k] + row * layout.pitch; }

  // Where word w of a row of the caller's words begins.
  uint32_t* words_of(int64_t chain, int k, int64_t row) const {
    return a.words + (first_chain + chain) * layout.chain_words() + (k * layout.rows + row) * layout.words;
  }

  void load() const {
    for_words([](uint32_t& inside, uint32_t& outside) { inside = outside; });
    for (int k = 0; k < 2; ++k) wrap(k, 0, layout.rows);
  }

  void store() const {
    for (int k = 0; k < 2; ++k) {
      for (int64_t row = 0; row < layout.rows; ++row) clear_guard(k, row);
    }
    for_words([](uint32_t& inside, uint32_t& outside) { outside = inside; });
  }

  // Copies each row's last site before it and its first one behind it.
  void wrap(int k, int64_t first_row, int64_t end_row) const {
    if (a.lattice.boundary == VARIATE_OPEN) return;
    for (int64_t row = first_row; row < end_row; ++row) {
      uint32_t* words = row_of(k, row);
      const int64_t sites = layout.sites(row, k), last = sites - 1;
      for (int64_t lane = 0; lane < layout.step; ++lane) {
        uint32_t* word = words + lane;
        word[-layout.step] = word[last / 32 * layout.step] >> last % 32 << 31;
        uint32_t& behind = word[sites / 32 * layout.step];
        behind = (behind & ~(uint32_t{1} << sites % 32)) | (word[0] & 1) << sites % 32;
      }
    }
  }

 private:
  template <class Function>
  void for_words(Function function) const {
    for (int64_t chain = 0; chain < chains; ++chain) {
      for (int k = 0; k < 2; ++k) {
        for (int64_t row = 0; row < layout.rows; ++row) {
          uint32_t *inside = row_of(k, row) + chain, *outside = words_of(chain, k, row);
          for (int64_t w = 0; w < layout.words; ++w) function(inside[w * layout.step], outside[w]);
        }
      }
    }
  }

  void clear_guard(int k, int64_t row) const {
    const int64_t sites = layout.sites(row, k);
    for (int64_t lane = 0; lane < layout.step; ++lane) {
      uint32_t& behind = row_of(k, row)[lane + sites / 32 * layout.step];
      if (sites % 32) behind &= (uint32_t{1} << sites % 32) - 1;
    }
  }
};

// Sites that eight digits leave undecided, until there is a vector of them.
class Undecided {
 public:
  Undecided(const Group& group, uint32_t step) : group_(group), step_(step) {}

  // A site is +1 if its word is below `threshold`.
  void add(uint32_t* word, int bit, uint32_t threshold, int lane, uint64_t site) {
    word_[count_] = word;
    bit_[count_] = uint32_t{1} << bit;
    threshold_[count_] = threshold;
    seed_[count_] = group_.rest.seed[lane];
    counter_[count_] = group_.rest.offset[lane] + site / 4;
    sample_[count_] = group_.rest.sample[lane];
    place_[count_] = static_cast<int>(site % 4);
    if (++count_ == lanes) flush();
  }

  void flush() {
    if (count_ == 0) return;
    for (int i = count_; i < lanes; ++i) seed_[i] = counter_[i] = sample_[i] = 0;
    Word words[4];
    const Wide counters = Wide::of(counter_), samples = Wide::of(sample_);
    if (group_.a.noise.key_stride == 0) {
      lane_words<1>(group_.rest_keys, counters, samples, step_, words);
    } else {
      lane_words<1>(LaneKeys(seed_), counters, samples, step_, words);
    }
    for (int i = 0; i < count_; ++i) {
      if (words[place_[i]][i] < threshold_[i]) *word_[i] |= bit_[i];
    }
    count_ = 0;
  }

 private:
  const Group& group_;
  uint32_t step_;
  int count_ = 0;
  uint32_t* word_[lanes];
  uint32_t bit_[lanes], threshold_[lanes];
  uint64_t seed_[lanes], counter_[lanes], sample_[lanes];
  int place_[lanes];
};

// Bits of a vector of words of a row: which are sites, and which of them have no neighbour on their side.
struct RowMask {
  Word sites, lonely;
  bool any_lonely;
};

// One row of one colour: where its neighbours are and what is missing.
struct Row {
  static constexpr int most_sources = most_neighbours;
  const Group& group;
  int colour;
  int64_t row;
  uint32_t* own;
  const uint32_t* source[most_sources];  // rows of the other colour: this one twice, then those around
  int direction[most_sources];           // whose bonds
  int sources = 0;
  int missing = 0;  // beyond the rows' ends
  int parity;
  int64_t sites;

  Row(const Group& group_, int colour_, int64_t row_)
      : group(group_),
        colour(colour_),
        row(row_),
        own(group_.row_of(colour_, row_)),
        parity(group_.layout.parity(row_, colour_)),
        sites(group_.layout.sites(row_, colour_)) {
    const variate_lattice& lattice = group.a.lattice;
    const int64_t y = row % lattice.height, z = row / lattice.height;
    const int along_x = 2 * (lattice.dimensions - 1);
    // Index n of the other colour is to the right of an even site, and to the left of an odd one.
    add(row, along_x + (parity ? 0 : 1));
    add(row, along_x + (parity ? 1 : 0));
    around(y, lattice.height, along_x - 2, [&](int64_t other) { return z * lattice.height + other; });
    if (lattice.dimensions == 3) {
      around(z, lattice.depth, 0, [&](int64_t other) { return other * lattice.height + y; });
    }
  }

  const uint32_t* bonds(int direction) const {
    const LatticeLayout& layout = group.layout;
    if (!layout.chains_in_lanes()) {
      return group.bonds + (2 * direction + colour) * layout.colour_words() + layout.step + row * layout.pitch;
    }
    return group.bonds + ((2 * direction + colour) * layout.rows + row) * layout.words;
  }

  // Of the vector that begins with word w.
  RowMask mask(int64_t w) const {
    const bool chains = group.layout.chains_in_lanes();
    const int64_t end = 32 * (w + (chains ? 1 : lanes));
    const bool open = group.a.lattice.boundary == VARIATE_OPEN;
    const bool first = open && w == 0 && parity == 0;
    const bool last = open && 2 * (sites - 1) + parity == group.a.lattice.width - 1 && end >= sites;
    RowMask m = {splat(~uint32_t{0}), {}, first || last};
    if (end <= sites && !m.any_lonely) return m;
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t left = sites - 32 * (w + (chains ? 0 : lane));
      m.sites[lane] = left >= 32 ? ~uint32_t{0} : left > 0 ? (uint32_t{1} << left) - 1 : 0;
      if (first && (chains || lane == 0)) m.lonely[lane] |= 1;
      if (last && left > 0 && left <= 32) m.lonely[lane] |= uint32_t{1} << (left - 1);
    }
    return m;
  }

 private:
  void add(int64_t other, int direction_) {
    source[sources] = group.row_of(1 - colour, other);
    direction[sources++] = direction_;
  }

  template <class RowOf>
  void around(int64_t at, int64_t size, int direction_, RowOf row_of) {
    const bool open = group.a.lattice.boundary == VARIATE_OPEN;
    for (const int side : {-1, 1}) {
      const int64_t other = at + side;
      if (open && (other < 0 || other >= size)) {
        ++missing;
      } else {
        add(row_of(other < 0 ? size - 1 : other == size ? 0 : other), direction_ + (side + 1) / 2);
      }
    }
  }
};

Word majority(Word a, Word b, Word c) { return (a & b) | (c & (a | b)); }

// How many neighbours pull each site of a vector up.
template <int neighbours, bool with_bonds>
Count count_neighbours(const Row& row, const RowMask& mask, int64_t i, int64_t w) {
  const LatticeLayout& layout = row.group.layout;
  const uint32_t* same = row.source[0];
  Word x[most_neighbours] = {};
  x[0] = load_word(same + i);
  x[1] = row.parity ? x[0] >> 1 | load_word(same + i + layout.step) << 31
                    : x[0] << 1 | load_word(same + i - layout.step) >> 31;
  for (int s = 2; s < row.sources; ++s) x[s] = load_word(row.source[s] + i);
  if constexpr (with_bonds) {
    for (int s = 0; s < row.sources; ++s) {
      const uint32_t* bonds = row.bonds(row.direction[s]);
      x[s] = ~(x[s] ^ (layout.chains_in_lanes() ? splat(bonds[w]) : load_word(bonds + w)));
    }
    x[row.parity ? 1 : row.direction[0] & 1 ? 1 : 0] &= ~mask.lonely;
  }
  Count n;
  const Word low = x[0] ^ x[1] ^ x[2], carry = majority(x[0], x[1], x[2]);
  if constexpr (neighbours == 4) {
    const Word other = low & x[3];
    n.term[ones] = low ^ x[3];
    n.term[twos] = carry ^ other;
    n.term[fours] = carry & other;
  } else {
    const Word high = x[3] ^ x[4] ^ x[5], high_carry = majority(x[3], x[4], x[5]), other = low & high;
    n.term[ones] = low ^ high;
    n.term[twos] = carry ^ high_carry ^ other;
    n.term[fours] = majority(carry, high_carry, other);
  }
  n.term[ones_twos] = n.term[ones] & n.term[twos];
  n.term[ones_fours] = n.term[ones] & n.term[fours];
  n.term[twos_fours] = n.term[twos] & n.term[fours];
  return n;
}

// The undecided sites of one word.
void collect(const Row& row, const Count& n, const RowMask& mask, Word undecided, int64_t i, int64_t w,
             Undecided& list) {
  const bool chains = row.group.layout.chains_in_lanes();
  for (int lane = 0; lane < lanes; ++lane) {
    for (uint32_t left = undecided[lane]; left; left &= left - 1) {
      const int bit = __builtin_ctz(left);
      const Thresholds& t = row.group.thresholds[row.missing + (mask.lonely[lane] >> bit & 1)];
      const uint32_t rest = static_cast<uint32_t>(t.of[lane][n.of(lane, bit)]);
      const int64_t x = 2 * (32 * (w + (chains ? 0 : lane)) + bit) + row.parity;
      list.add(row.own + i + lane, bit, rest, lane, static_cast<uint64_t>(row.row * row.group.a.lattice.width + x));
    }
  }
}

template <int neighbours, bool with_bonds>
void update_row(const Group& group, int colour, int64_t index, uint32_t step, Undecided& list) {
  const LatticeLayout& layout = group.layout;
  const Row row(group, colour, index);
  const Thresholds& usual = group.thresholds[row.missing];
  const Thresholds& lonely = group.thresholds[row.missing + 1 <= most_missing ? row.missing + 1 : most_missing];
  const int64_t words_a_vector = layout.chains_in_lanes() ? 1 : lanes;
  const uint64_t first = 2 * static_cast<uint64_t>((colour * layout.rows + index) * layout.words);
  for (int64_t w = 0, i = 0; w < layout.words; w += words_a_vector, i += lanes) {
    const RowMask mask = row.mask(w);
    Word plane[math::plane_count];
    lane_words<2>(group.plane_keys, group.plane_counters + (first + 2 * w), group.plane_samples, step, plane);
    const Count n = count_neighbours<neighbours, with_bonds>(row, mask, i, w);
    // The uniform is below the threshold if it has the lower digit where they first differ.
    Word up = {}, equal = mask.sites;
#pragma GCC unroll 8
    for (int p = 0; p < math::plane_count; ++p) {
      Word digit = usual.digit[p].at<neighbours>(n);
      if (mask.any_lonely) digit ^= (digit ^ lonely.digit[p].at<neighbours>(n)) & mask.lonely;
      const Word differ = digit ^ plane[p];
      up |= equal & differ & digit;
      equal &= ~differ;
    }
    if (usual.any_certain || lonely.any_certain) {
      Word certain = usual.certain.at<neighbours>(n);
      certain ^= (certain ^ lonely.certain.at<neighbours>(n)) & mask.lonely;
      up |= certain & mask.sites;
      equal &= ~certain;
    }
    store_word(row.own + i, up);
    collect(row, n, mask, equal, i, w, list);
  }
}

using UpdateRow = void (*)(const Group&, int, int64_t, uint32_t, Undecided&);

UpdateRow update_of(const variate_ising_gibbs_args& a) {
  if (a.lattice.dimensions == 2) return a.bonds ? update_row<4, true> : update_row<4, false>;
  return a.bonds ? update_row<6, true> : update_row<6, false>;
}

void update_rows(const Group& group, UpdateRow update, int colour, int64_t first, int64_t end, uint32_t step) {
  Undecided list(group, step);
  for (int64_t row = first; row < end; ++row) update(group, colour, row, step, list);
  list.flush();
  group.wrap(colour, first, end);
}

uint32_t step_of(const variate_ising_gibbs_args& a, int64_t sweep) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a.first_step) + static_cast<uint64_t>(sweep));
}

// Sums of spins and of bonds over a row of colour 0, whose bonds are all, and of spins over that of colour 1.
struct Sums {
  int64_t spins[lanes] = {}, bonds[lanes] = {};
};

template <int neighbours, bool with_bonds>
void add_row(const Group& group, int64_t index, Sums& sums) {
  const LatticeLayout& layout = group.layout;
  const int64_t words_a_vector = layout.chains_in_lanes() ? 1 : lanes;
  for (int colour = 0; colour < 2; ++colour) {
    const Row row(group, colour, index);
    for (int64_t w = 0, i = 0; w < layout.words; w += words_a_vector, i += lanes) {
      const RowMask mask = row.mask(w);
      const Word own = load_word(row.own + i);
      const auto bits = [](uint32_t x) { return static_cast<int64_t>(__builtin_popcount(x)); };
      for (int lane = 0; lane < lanes; ++lane) {
        sums.spins[lane] += 2 * bits(own[lane] & mask.sites[lane]) - bits(mask.sites[lane]);
      }
      if (colour == 1) continue;
      // A spin times the sum over its n neighbours, c of which pull up, is n - 2 c, or 2 c - n if it is up.
      const Count n = count_neighbours<neighbours, with_bonds>(row, mask, i, w);
      for (int lane = 0; lane < lanes; ++lane) {
        const auto weighted = [&](uint32_t among) {
          const int64_t ups = bits(n.term[ones][lane] & among) + 2 * bits(n.term[twos][lane] & among) +
                              4 * bits(n.term[fours][lane] & among);
          return 2 * ups - (row.sources * bits(among) - bits(mask.lonely[lane] & among));
        };
        const uint32_t sites = mask.sites[lane];
        sums.bonds[lane] += weighted(own[lane] & sites) - weighted(~own[lane] & sites);
      }
    }
  }
}

void add_moments(const Group& group, const Sums& sums) {
  const variate_lattice& lattice = group.a.lattice;
  const double sites = static_cast<double>(lattice.depth * lattice.height * lattice.width);
  for (int64_t chain = 0; chain < group.chains; ++chain) {
    int64_t spins = 0, bonds = 0;
    const bool one = group.layout.chains_in_lanes();
    for (int lane = one ? static_cast<int>(chain) : 0; lane < (one ? static_cast<int>(chain) + 1 : lanes); ++lane) {
      spins += sums.spins[lane];
      bonds += sums.bonds[lane];
    }
    const double m = static_cast<double>(spins) / sites, b = static_cast<double>(bonds) / sites;
    double* moments = group.a.moments + (group.first_chain + chain) * VARIATE_ISING_MOMENTS;
    moments[VARIATE_ISING_M] += m;
    moments[VARIATE_ISING_ABS_M] += m < 0.0 ? -m : m;
    moments[VARIATE_ISING_M2] += m * m;
    moments[VARIATE_ISING_M4] += (m * m) * (m * m);
    moments[VARIATE_ISING_B] += b;
    moments[VARIATE_ISING_B2] += b * b;
    moments[VARIATE_ISING_MB] += m * b;
  }
}

void measure(const Group& group) {
  const variate_ising_gibbs_args& a = group.a;
  const auto add = a.lattice.dimensions == 2 ? (a.bonds ? add_row<4, true> : add_row<4, false>)
                                             : (a.bonds ? add_row<6, true> : add_row<6, false>);
  Sums sums;
  for (int64_t row = 0; row < group.layout.rows; ++row) add(group, row, sums);
  add_moments(group, sums);
}

bool measures_after(const variate_ising_gibbs_args& a, int64_t sweep) {
  return a.moments && (sweep + 1) % a.measure_every == 0;
}

// Chains in lanes: the groups are independent.
void sweep_groups(const variate_ising_gibbs_args& a, const LatticeLayout& layout, uint32_t* buffer,
                  int64_t group_words) {
  const UpdateRow update = update_of(a);
  const int64_t groups = (a.chains + lanes - 1) / lanes;
  const auto run = [&](int64_t g, int thread) {
    const int64_t first = g * lanes, count = a.chains - first < lanes ? a.chains - first : lanes;
    const Group group(a, layout, a.bonds, first, count, buffer + thread * group_words);
    group.load();
    for (int64_t sweep = 0; sweep < a.sweeps; ++sweep) {
      for (int k = 0; k < 2; ++k) update_rows(group, update, k, 0, layout.rows, step_of(a, sweep));
      if (measures_after(a, sweep)) measure(group);
    }
    group.store();
  };
#if defined(_OPENMP)
  if (a.execution.threads > 1 && groups > 1) {
#pragma omp parallel for schedule(static) num_threads(a.execution.threads)
    for (int64_t g = 0; g < groups; ++g) run(g, omp_get_thread_num());
    return;
  }
#endif
  for (int64_t g = 0; g < groups; ++g) run(g, 0);
}

// One chain after another, its rows cut among the threads.
void sweep_rows(const variate_ising_gibbs_args& a, const LatticeLayout& layout, const uint32_t* bonds,
                uint32_t* buffer) {
  const UpdateRow update = update_of(a);
  for (int64_t chain = 0; chain < a.chains; ++chain) {
    const Group group(a, layout, bonds, chain, 1, buffer);
    group.load();
    for (int64_t sweep = 0; sweep < a.sweeps; ++sweep) {
      for (int k = 0; k < 2; ++k) {
        const int64_t strip = 16, strips = (layout.rows + strip - 1) / strip;
        const auto run = [&](int64_t s) {
          const int64_t end = (s + 1) * strip;
          update_rows(group, update, k, s * strip, end < layout.rows ? end : layout.rows, step_of(a, sweep));
        };
#if defined(_OPENMP)
        if (a.execution.threads > 1) {
#pragma omp parallel for schedule(static) num_threads(a.execution.threads)
          for (int64_t s = 0; s < strips; ++s) run(s);
          continue;
        }
#endif
        for (int64_t s = 0; s < strips; ++s) run(s);
      }
      if (measures_after(a, sweep)) measure(group);
    }
    group.store();
  }
}

// The bonds in the layout of the words.
void lay_out_bonds(const variate_ising_gibbs_args& a, const LatticeLayout& layout, uint32_t* to) {
  for (int64_t d = 0; d < 4 * a.lattice.dimensions; ++d) {
    for (int64_t row = 0; row < layout.rows; ++row) {
      const uint32_t* from = a.bonds + (d * layout.rows + row) * layout.words;
      std::memcpy(to + d * layout.colour_words() + layout.step + row * layout.pitch, from,
                  layout.words * sizeof(uint32_t));
    }
  }
}

// Sites of a row: function(spin, bit within a word, word), in the order of x.
template <class Function>
void for_sites(const variate_ising_pack_args& a, Function function) {
  const LatticeLayout layout(a.lattice, false);
  const int64_t rows = a.chains * layout.rows;
  const auto run = [&](int64_t r) {
    const int64_t chain = r / layout.rows, row = r % layout.rows;
    int8_t* spins = a.spins + r * a.lattice.width;
    for (int k = 0; k < 2; ++k) {
      uint32_t* words = a.words + chain * layout.chain_words() + (k * layout.rows + row) * layout.words;
      function(spins + layout.parity(row, k), words, layout.sites(row, k), layout.words);
    }
  };
#if defined(_OPENMP)
  if (a.execution.threads > 1 && rows * a.lattice.width >= parallel_grain) {
#pragma omp parallel for schedule(static) num_threads(a.execution.threads)
    for (int64_t r = 0; r < rows; ++r) run(r);
    return;
  }
#endif
  for (int64_t r = 0; r < rows; ++r) run(r);
}

}  // namespace

void ising_pack(const variate_ising_pack_args& a) {
  for_sites(a, [](const int8_t* spins, uint32_t* words, int64_t sites, int64_t count) {
    for (int64_t w = 0; w < count; ++w) {
      uint32_t word = 0;
      const int64_t bits = sites - 32 * w < 32 ? sites - 32 * w : 32;
      for (int64_t b = 0; b < bits; ++b) word |= static_cast<uint32_t>(spins[2 * (32 * w + b)] > 0) << b;
      words[w] = word;
    }
  });
}

void ising_unpack(const variate_ising_pack_args& a) {
  for_sites(a, [](int8_t* spins, const uint32_t* words, int64_t sites, int64_t) {
    for (int64_t n = 0; n < sites; ++n) spins[2 * n] = words[n / 32] >> n % 32 & 1 ? 1 : -1;
  });
}

void ising_gibbs(const variate_ising_gibbs_args& a) {
  const LatticeLayout layout = layout_of(a);
  const LatticeWorkspace workspace(a, layout);
  const uintptr_t start = reinterpret_cast<uintptr_t>(a.execution.workspace);
  constexpr uintptr_t unit = LatticeWorkspace::alignment;
  uint32_t* buffer = reinterpret_cast<uint32_t*>((start + unit - 1) & ~(unit - 1));
  const int groups = layout.chains_in_lanes() && a.execution.threads > 1 ? a.execution.threads : 1;
  std::memset(buffer, 0, sizeof(uint32_t) * (groups * workspace.group_words + workspace.bond_words));
  if (layout.chains_in_lanes()) return sweep_groups(a, layout, buffer, workspace.group_words);
  uint32_t* bonds = buffer + workspace.group_words;
  if (a.bonds) lay_out_bonds(a, layout, bonds);
  sweep_rows(a, layout, bonds, buffer);
}

}  // namespace variate::cpu::VARIATE_ISA
