#include "lattice.h"

#include <initializer_list>

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
  static constexpr int counts = 8;
  uint32_t rest[lanes][counts];  // the digits below those of the planes, by the count
  Polynomial digit[math::plane_count];
  Polynomial certain;
  bool any_certain = false;

  void set(int lane, double beta, double coupling, double field, int neighbours) {
    uint64_t threshold[most_neighbours + 1];
    for (int n = 0; n <= most_neighbours; ++n) {
      const double sum = coupling * static_cast<double>(2 * n - neighbours) + field;
      threshold[n] = n <= neighbours ? math::heat_bath_threshold(2.0 * (beta * sum)) : 0;
      rest[lane][n] = static_cast<uint32_t>(threshold[n]);
    }
    rest[lane][counts - 1] = 0;
    for (int p = 0; p < math::plane_count; ++p) set_digit(lane, digit[p], threshold, math::threshold_bits - 1 - p);
    any_certain |= set_digit(lane, certain, threshold, math::threshold_bits);
  }

 private:
  bool set_digit(int lane, Polynomial& polynomial, const uint64_t* threshold, int place) {
    bool value[most_neighbours + 1], any = false;
    for (int n = 0; n <= most_neighbours; ++n) any |= value[n] = threshold[n] >> place & 1;
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

  // Whether every bit of every vector is a site with all its neighbours in the row.
  bool whole_rows() const {
    const int64_t vector_sites = 2 * 32 * (layout.chains_in_lanes() ? 1 : lanes);
    return a.lattice.boundary == VARIATE_PERIODIC && a.lattice.width % vector_sites == 0;
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
      for (int64_t row = 0; row < layout.rows; ++row) clear_guard(row_of(k, row));
    }
    for_words([](uint32_t& inside, uint32_t& outside) { outside = inside; });
  }

  // Copies each row's last site before it and its first one behind it.
  void wrap(int k, int64_t first_row, int64_t end_row) const {
    if (a.lattice.boundary == VARIATE_OPEN) return;
    for (int64_t row = first_row; row < end_row; ++row) {
      const int64_t sites = a.lattice.width / 2;
      layout.chains_in_lanes() ? wrap_row<Word>(row_of(k, row), sites) : wrap_row<uint32_t>(row_of(k, row), sites);
    }
  }

 private:
  template <class T>
  void wrap_row(uint32_t* words, int64_t sites) const {
    const auto at = [&](int64_t word) { return reinterpret_cast<T*>(words + word * layout.step); };
    const int64_t last = sites - 1;
    *at(-1) = *at(last / 32) >> static_cast<uint32_t>(last % 32) << 31;
    T* behind = at(sites / 32);
    const uint32_t bit = uint32_t{1} << sites % 32;
    *behind = (*behind & ~bit) | (*at(0) & 1) * bit;
  }

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

  void clear_guard(uint32_t* words) const {
    const int64_t sites = a.lattice.width / 2;
    if (a.lattice.boundary == VARIATE_OPEN || sites % 32 == 0) return;
    for (int64_t lane = 0; lane < layout.step; ++lane) {
      words[lane + sites / 32 * layout.step] &= (uint32_t{1} << sites % 32) - 1;
    }
  }
};

// Bits of a vector of words of a row: which are sites, which of them have no neighbour on one side, and of those which
// have none behind them.
struct RowMask {
  Word sites, lonely, last;
  bool any_lonely;
};

// One row of one colour: where its neighbours are and what is missing.
struct Row {
  static constexpr int most_sources = most_neighbours;
  const Group& group;
  int colour;
  RowAt at;
  uint32_t* own;
  const uint32_t* source[most_sources];  // rows of the other colour: this one twice, then those around
  int direction[most_sources];           // whose bonds
  int sources = 0;
  int missing = 0;  // beyond the rows' ends
  int parity;
  int64_t sites;

  Row(const Group& group_, int colour_, RowAt at_)
      : group(group_),
        colour(colour_),
        at(at_),
        own(group_.row_of(colour_, at_.index)),
        parity(group_.layout.parity(at_, colour_)),
        sites(group_.layout.sites(at_, colour_)) {
    const variate_lattice& lattice = group.a.lattice;
    const int along_x = 2 * (lattice.dimensions - 1);
    // Index n of the other colour is to the right of an even site, and to the left of an odd one.
    add(at.index, along_x + (parity ? 0 : 1));
    add(at.index, along_x + (parity ? 1 : 0));
    around(at.y, lattice.height, along_x - 2, [&](int64_t y) { return at.z * lattice.height + y; });
    if (lattice.dimensions == 3) {
      around(at.z, lattice.depth, 0, [&](int64_t z) { return z * lattice.height + at.y; });
    }
  }

  const uint32_t* bonds(int direction) const {
    const LatticeLayout& layout = group.layout;
    if (!layout.chains_in_lanes()) {
      return group.bonds + (2 * direction + colour) * layout.colour_words() + layout.step + at.index * layout.pitch;
    }
    return group.bonds + ((2 * direction + colour) * layout.rows + at.index) * layout.words;
  }

  // Of the vector that begins with word w.
  RowMask mask(int64_t w) const {
    const bool chains = group.layout.chains_in_lanes();
    const int64_t end = 32 * (w + (chains ? 1 : lanes));
    const bool open = group.a.lattice.boundary == VARIATE_OPEN;
    const bool first = open && w == 0 && parity == 0;
    const bool last = open && 2 * (sites - 1) + parity == group.a.lattice.width - 1 && end >= sites;
    RowMask m = {splat(~uint32_t{0}), {}, {}, first || last};
    if (end <= sites && !m.any_lonely) return m;
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t left = sites - 32 * (w + (chains ? 0 : lane));
      m.sites[lane] = left >= 32 ? ~uint32_t{0} : left > 0 ? (uint32_t{1} << left) - 1 : 0;
      if (first && (chains || lane == 0)) m.lonely[lane] |= 1;
      if (last && left > 0 && left <= 32) m.last[lane] = uint32_t{1} << (left - 1);
      m.lonely[lane] |= m.last[lane];
    }
    return m;
  }

 private:
  void add(int64_t other, int direction_) {
    source[sources] = group.row_of(1 - colour, other);
    direction[sources++] = direction_;
  }

  template <class RowOf>
  void around(int64_t place, int64_t size, int direction_, RowOf row_of) {
    const bool open = group.a.lattice.boundary == VARIATE_OPEN;
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

Word majority(Word a, Word b, Word c) { return (a & b) | (c & (a | b)); }

// How many neighbours pull each site of a vector up.
template <int neighbours, bool with_bonds>
inline __attribute__((always_inline)) Count count_neighbours(const Row& row, const RowMask& mask, int64_t i,
                                                             int64_t w) {
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
    x[1] &= ~(mask.lonely & ~mask.last);
    x[row.parity] &= ~mask.last;
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

// The sites that eight digits leave undecided: of a few vectors as words, then one by one until there are sixteen. The
// loops run over whole vectors, whatever is in their last lanes.
class Undecided {
 public:
  Undecided(const Group& group, int colour, uint32_t step) : group_(group), words_(group.colour[colour]), step_(step) {}

  // Those of the vector that is `i` words into the row, from word w on.
  void add(const Row& row, int64_t i, int64_t w, const Count& n, const RowMask& mask, const Word& sites) {
    const int v = vectors_ * lanes;
    for (const int term : {ones, twos, fours}) store_word(count_[term] + v, n.term[term]);
    store_word(lonely_ + v, mask.lonely);
    origin_[vectors_] = {row.own - words_ + i, row.at.index * group_.a.lattice.width + row.parity + 64 * w,
                         group_.thresholds[row.missing].rest[0]};
    some_ += keep_nonzero(sites, v, undecided_ + some_, place_ + some_);
    if (++vectors_ == most_vectors) settle();
  }

  void finish() {
    settle();
    decide(sites_);
  }

 private:
  static constexpr int most_vectors = 8, size = most_vectors * lanes, capacity = size + 2 * lanes;

  // Where a vector lies, the number of its first site, and its thresholds.
  struct Origin {
    int64_t word, site;
    const uint32_t* rest;
  };

  struct Site {
    int64_t word, number;
    uint32_t bit, rest, lane;
  };

  void settle() {
    while (some_ > 0) {
      for (int e = 0; e < some_; ++e) site_[sites_ + e] = lowest_of(undecided_[e], place_[e]);
      sites_ += some_;
      for (; sites_ >= lanes; sites_ -= lanes) {
        decide(lanes);
        std::memmove(site_, site_ + lanes, (sites_ - lanes) * sizeof(Site));
      }
      some_ = more();
    }
    vectors_ = 0;
  }

  // The lowest site of a word.
  Site lowest_of(uint32_t word, int place) const {
    const int bit = __builtin_ctz(word), lane = place % lanes;
    const Origin& origin = origin_[place / lanes];
    const auto digit = [&](const uint32_t* of) { return of[place] >> bit & 1; };
    const uint32_t n = digit(count_[ones]) + 2 * digit(count_[twos]) + 4 * digit(count_[fours]);
    constexpr uint32_t one_more_missing = sizeof(Thresholds) / sizeof(uint32_t);
    return {origin.word + lane, origin.site + (group_.layout.chains_in_lanes() ? 0 : 64 * lane) + 2 * bit,
            uint32_t{1} << bit, origin.rest[digit(lonely_) * one_more_missing + lane * Thresholds::counts + n],
            static_cast<uint32_t>(lane)};
  }

  // Words with a second undecided site, which are rare.
  int more() {
    uint32_t any = 0;
    for (int e = 0; e < some_; ++e) any |= undecided_[e] & (undecided_[e] - 1);
    if (any == 0) return 0;
    int count = 0;
    for (int e = 0; e < some_; ++e) {
      const uint32_t left = undecided_[e] & (undecided_[e] - 1);
      undecided_[count] = left;
      place_[count] = place_[e];
      count += left != 0;
    }
    return count;
  }

  // The first `count` of at most sixteen: +1 where a word of their own is below the rest of the threshold.
  void decide(int count) {
    uint64_t seed[lanes], counter[lanes], sample[lanes];
    for (int i = 0; i < lanes; ++i) {
      const uint32_t lane = site_[i].lane;
      counter[i] = group_.rest.offset[lane] + static_cast<uint64_t>(site_[i].number) / 4;
      sample[i] = group_.rest.sample[lane];
      seed[i] = group_.rest.seed[lane];
    }
    Word words[4];
    if (group_.a.noise.key_stride == 0) {
      lane_words<1>(group_.rest_keys, Wide::of(counter), Wide::of(sample), step_, words);
    } else {
      lane_words<1>(LaneKeys(seed), Wide::of(counter), Wide::of(sample), step_, words);
    }
    const uint32_t* word = reinterpret_cast<const uint32_t*>(words);
    for (int i = 0; i < count; ++i) {
      const Site& site = site_[i];
      words_[site.word] |= word[site.number % 4 * lanes + i] < site.rest ? site.bit : 0;
    }
  }

  const Group& group_;
  uint32_t* words_;
  uint32_t step_;
  int vectors_ = 0, some_ = 0, sites_ = 0;
  Origin origin_[most_vectors];
  uint32_t count_[3][size], lonely_[size];
  uint32_t undecided_[size + lanes];  // words that have such sites,
  int32_t place_[size + lanes];       // and which each is
  Site site_[capacity] = {};
};

// The new spins of a vector, and which sites eight digits leave undecided.
struct Decision {
  Word up, undecided;
};

// The uniform is below the threshold if it has the lower digit where they first differ.
template <int neighbours>
inline __attribute__((always_inline)) Decision decide(const Group& group, const Row& row, const RowMask& mask,
                                                      const Count& n, const Word* plane) {
  const Thresholds& usual = group.thresholds[row.missing];
  const Thresholds& lonely = group.thresholds[mask.any_lonely ? row.missing + 1 : row.missing];
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
  return {up, equal};
}

template <int neighbours, bool with_bonds, bool whole>
void update_row(const Group& group, int colour, RowAt at, uint32_t step, Undecided& list) {
  const LatticeLayout& layout = group.layout;
  const Row row(group, colour, at);
  const int64_t words_a_vector = layout.chains_in_lanes() ? 1 : lanes;
  const int64_t vectors = (layout.words + words_a_vector - 1) / words_a_vector;
  const uint64_t block = 2 * static_cast<uint64_t>((colour * layout.rows + at.index) * layout.words);
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t w = v * words_a_vector, i = v * lanes;
    Word plane[math::plane_count];
    lane_words<2>(group.plane_keys, group.plane_counters + (block + 2 * w), group.plane_samples, step, plane);
    const RowMask mask = whole ? RowMask{splat(~uint32_t{0}), {}, {}, false} : row.mask(w);
    const Count n = count_neighbours<neighbours, with_bonds>(row, mask, i, w);
    const Decision decision = decide<neighbours>(group, row, mask, n, plane);
    store_word(row.own + i, decision.up);
    list.add(row, i, w, n, mask, decision.undecided);
  }
}

using UpdateRow = void (*)(const Group&, int, RowAt, uint32_t, Undecided&);

template <int neighbours, bool with_bonds>
UpdateRow update_of(const Group& group) {
  return group.whole_rows() ? update_row<neighbours, with_bonds, true> : update_row<neighbours, with_bonds, false>;
}

UpdateRow update_of(const Group& group) {
  if (group.a.lattice.dimensions == 2) return group.a.bonds ? update_of<4, true>(group) : update_of<4, false>(group);
  return group.a.bonds ? update_of<6, true>(group) : update_of<6, false>(group);
}

void update_rows(const Group& group, UpdateRow update, int colour, int64_t first, int64_t end, uint32_t step) {
  Undecided list(group, colour, step);
  for (RowAt at = RowAt::of(group.a.lattice, first); at.index < end; at.advance(group.a.lattice)) {
    update(group, colour, at, step, list);
  }
  list.finish();
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
void add_row(const Group& group, RowAt at, Sums& sums) {
  const LatticeLayout& layout = group.layout;
  const int64_t words_a_vector = layout.chains_in_lanes() ? 1 : lanes;
  for (int colour = 0; colour < 2; ++colour) {
    const Row row(group, colour, at);
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

// The sums of each chain, in the first lanes.
Sums sums_of(const Group& group) {
  const variate_ising_gibbs_args& a = group.a;
  const auto add = a.lattice.dimensions == 2 ? (a.bonds ? add_row<4, true> : add_row<4, false>)
                                             : (a.bonds ? add_row<6, true> : add_row<6, false>);
  Sums sums;
  for (RowAt at = {}; at.index < group.layout.rows; at.advance(a.lattice)) add(group, at, sums);
  for (int lane = 1; lane < lanes && !group.layout.chains_in_lanes(); ++lane) {
    sums.spins[0] += sums.spins[lane];
    sums.bonds[0] += sums.bonds[lane];
  }
  return sums;
}

void add_moments(const Group& group) {
  const variate_lattice& lattice = group.a.lattice;
  const double sites = static_cast<double>(lattice.depth * lattice.height * lattice.width);
  const Sums sums = sums_of(group);
  for (int64_t chain = 0; chain < group.chains; ++chain) {
    const double m = static_cast<double>(sums.spins[chain]) / sites, b = static_cast<double>(sums.bonds[chain]) / sites;
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

// body(first chain, how many, thread) for each group of chains, or for each chain where the lanes are one.
template <class Body>
void for_groups(int64_t chains, const LatticeLayout& layout, int threads, Body body) {
  const int64_t each = layout.chains_in_lanes() ? lanes : 1, groups = (chains + each - 1) / each;
  const auto run = [&](int64_t g, int thread) {
    const int64_t first = g * each;
    body(first, chains - first < each ? chains - first : each, thread);
  };
#if defined(_OPENMP)
  if (threads > 1 && groups > 1 && layout.chains_in_lanes()) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t g = 0; g < groups; ++g) run(g, omp_get_thread_num());
    return;
  }
#endif
  for (int64_t g = 0; g < groups; ++g) run(g, 0);
}

// One colour of one chain, its rows cut among the threads.
void update_colour(const Group& group, UpdateRow update, int colour, uint32_t step) {
  const int64_t rows = group.layout.rows, strip = 16, strips = (rows + strip - 1) / strip;
#if defined(_OPENMP)
  if (group.a.execution.threads > 1 && !group.layout.chains_in_lanes()) {
#pragma omp parallel for schedule(static) num_threads(group.a.execution.threads)
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t end = (s + 1) * strip;
      update_rows(group, update, colour, s * strip, end < rows ? end : rows, step);
    }
    return;
  }
#else
  (void)strips;
#endif
  update_rows(group, update, colour, 0, rows, step);
}

// The bonds in the layout of the words.
const uint32_t* lay_out_bonds(const variate_ising_gibbs_args& a, const LatticeLayout& layout, uint32_t* to) {
  if (!a.bonds || layout.chains_in_lanes()) return a.bonds;
  for (int64_t d = 0; d < 4 * a.lattice.dimensions; ++d) {
    for (int64_t row = 0; row < layout.rows; ++row) {
      const uint32_t* from = a.bonds + (d * layout.rows + row) * layout.words;
      std::memcpy(to + d * layout.colour_words() + layout.step + row * layout.pitch, from,
                  layout.words * sizeof(uint32_t));
    }
  }
  return to;
}

// The workspace of a call: cleared, as the lanes beyond the chains and the words beyond a row are read.
struct Buffers {
  LatticeLayout layout;
  LatticeWorkspace sizes;
  uint32_t* groups;
  const uint32_t* bonds;

  explicit Buffers(const variate_ising_gibbs_args& a) : layout(layout_of(a)), sizes(a, layout) {
    constexpr uintptr_t unit = LatticeWorkspace::alignment;
    groups = reinterpret_cast<uint32_t*>((reinterpret_cast<uintptr_t>(a.execution.workspace) + unit - 1) & ~(unit - 1));
    std::memset(groups, 0, sizes.size(layout, a.execution.threads) - unit);
    const int count = layout.chains_in_lanes() && a.execution.threads > 1 ? a.execution.threads : 1;
    bonds = lay_out_bonds(a, layout, groups + count * sizes.group_words);
  }

  Group group(const variate_ising_gibbs_args& a, int64_t first, int64_t count, int thread) const {
    return Group(a, layout, bonds, first, count, groups + thread * sizes.group_words);
  }
};

// A row's sites in the order of x, one bit each, twice over where the boundary is periodic.
void spread_row(const uint32_t* even, const uint32_t* odd, int64_t width, bool periodic, uint64_t* to) {
  const int64_t length = periodic ? 2 * width : width;
  for (int64_t i = 0; i <= length / 64 + 1; ++i) to[i] = 0;
  for (int64_t i = 0; i < length; ++i) {
    const int64_t x = i < width ? i : i - width;
    const uint64_t spin = (x % 2 ? odd : even)[x / 2 / 32] >> (x / 2 % 32) & 1;
    to[i / 64] |= spin << i % 64;
  }
}

// The sum over a row of spin(x) spin(x + distance).
int64_t correlate(const uint64_t* row, int64_t pairs, int64_t distance) {
  int64_t differ = 0;
  const int64_t word = distance / 64, bit = distance % 64;
  for (int64_t i = 0; 64 * i < pairs; ++i) {
    const uint64_t far = bit ? row[i + word] >> bit | row[i + word + 1] << (64 - bit) : row[i + word];
    const int64_t left = pairs - 64 * i;
    differ += __builtin_popcountll((row[i] ^ far) & (left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1));
  }
  return pairs - 2 * differ;
}

void correlate_chain(const variate_ising_measure_args& a, int64_t chain, uint64_t* bits) {
  const LatticeLayout layout(a.lattice, false);
  const bool periodic = a.lattice.boundary == VARIATE_PERIODIC;
  int64_t* to = a.correlation + chain * a.distance;
  for (int64_t r = 0; r < a.distance; ++r) to[r] = 0;
  for (RowAt at = {}; at.index < layout.rows; at.advance(a.lattice)) {
    const uint32_t* colours[2];
    for (int k = 0; k < 2; ++k) {
      const uint32_t* words = a.words + chain * layout.chain_words();
      colours[layout.parity(at, k)] = words + (k * layout.rows + at.index) * layout.words;
    }
    spread_row(colours[0], colours[1], a.lattice.width, periodic, bits);
    for (int64_t r = 1; r <= a.distance; ++r) to[r - 1] += correlate(bits, a.lattice.width - (periodic ? 0 : r), r);
  }
}

// Spins of two words, in the order of x: one of the even sites and one of the odd ones.
constexpr int64_t pair_sites = 64;

// Times eight bytes of 0 and 1: the even ones go to bits 56 ... 59, the odd ones to those above. No two partial
// products meet.
constexpr uint64_t gather =
    1ull << 56 | 1ull << 52 | 1ull << 41 | 1ull << 37 | 1ull << 26 | 1ull << 22 | 1ull << 11 | 1ull << 7;

void pack_pair(const int8_t* __restrict spins, uint32_t& even, uint32_t& odd) {
  uint8_t up[pair_sites];
  for (int64_t i = 0; i < pair_sites; ++i) up[i] = spins[i] > 0;
  even = odd = 0;
  for (int i = 0; i < pair_sites / 8; ++i) {
    uint64_t eight;
    std::memcpy(&eight, up + 8 * i, sizeof eight);
    const uint32_t bits = static_cast<uint32_t>(eight * gather >> 56);
    even |= (bits & 15) << 4 * i;
    odd |= bits >> 4 << 4 * i;
  }
}

// The eight spins of a nibble of the even sites and, above it, one of the odd.
struct Spread {
  uint64_t spins[256];

  constexpr Spread() : spins() {
    for (int n = 0; n < 256; ++n) {
      for (int i = 0; i < 8; ++i) {
        const bool up = n >> (i % 2 * 4 + i / 2) & 1;
        spins[n] |= static_cast<uint64_t>(up ? 0x01 : 0xff) << 8 * i;
      }
    }
  }
};

void unpack_pair(uint32_t even, uint32_t odd, int8_t* spins) {
  static constexpr Spread spread;
  for (int i = 0; i < pair_sites / 8; ++i) {
    const uint64_t eight = spread.spins[(even >> 4 * i & 15) | (odd >> 4 * i & 15) << 4];
    std::memcpy(spins + 8 * i, &eight, sizeof eight);
  }
}

// function(spins, words of the even sites, those of the odd ones) of each row.
template <class Function>
void for_rows(const variate_ising_pack_args& a, Function function) {
  const LatticeLayout layout(a.lattice, false);
  const int64_t rows = a.chains * layout.rows;
  const auto run = [&](int64_t r) {
    const RowAt at = RowAt::of(a.lattice, r % layout.rows);
    uint32_t* words = a.words + r / layout.rows * layout.chain_words() + at.index * layout.words;
    uint32_t* colour[2] = {words, words + layout.rows * layout.words};
    const int even = layout.parity(at, 0);  // the colour of site 0
    function(a.spins + r * a.lattice.width, colour[even], colour[1 - even]);
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
  const int64_t width = a.lattice.width;
  for_rows(a, [width](const int8_t* spins, uint32_t* even, uint32_t* odd) {
    int64_t w = 0;
    for (; pair_sites * (w + 1) <= width; ++w) pack_pair(spins + pair_sites * w, even[w], odd[w]);
    if (pair_sites * w == width) return;
    int8_t last[pair_sites] = {};
    std::memcpy(last, spins + pair_sites * w, static_cast<std::size_t>(width - pair_sites * w));
    pack_pair(last, even[w], odd[w]);
  });
}

void ising_unpack(const variate_ising_pack_args& a) {
  const int64_t width = a.lattice.width;
  for_rows(a, [width](int8_t* spins, const uint32_t* even, const uint32_t* odd) {
    int64_t w = 0;
    for (; pair_sites * (w + 1) <= width; ++w) unpack_pair(even[w], odd[w], spins + pair_sites * w);
    if (pair_sites * w == width) return;
    int8_t last[pair_sites];
    unpack_pair(even[w], odd[w], last);
    std::memcpy(spins + pair_sites * w, last, static_cast<std::size_t>(width - pair_sites * w));
  });
}

void ising_gibbs(const variate_ising_gibbs_args& a) {
  const Buffers buffers(a);
  for_groups(a.chains, buffers.layout, a.execution.threads, [&](int64_t first, int64_t count, int thread) {
    const Group group = buffers.group(a, first, count, thread);
    group.load();
    const UpdateRow update = update_of(group);
    for (int64_t sweep = 0; sweep < a.sweeps; ++sweep) {
      for (int colour = 0; colour < 2; ++colour) update_colour(group, update, colour, step_of(a, sweep));
      if (a.moments && (sweep + 1) % a.measure_every == 0) add_moments(group);
    }
    group.store();
  });
}

void ising_measure(const variate_ising_measure_args& a) {
  // A call of no sweeps, of which nothing but the words and bonds is looked at.
  const int64_t key[2] = {};
  const double zero = 0.0;
  const variate_tensor number = {const_cast<double*>(&zero), VARIATE_FLOAT64, 0, 0};
  variate_ising_gibbs_args none = {};
  none.execution = a.execution;
  none.execution.threads = 1;
  none.noise.key = key;
  none.lattice = a.lattice;
  none.chains = a.chains;
  none.beta = none.coupling = none.field = number;
  none.bonds = a.bonds;
  none.words = const_cast<uint32_t*>(a.words);
  const Buffers buffers(none);
  for_groups(a.chains, buffers.layout, 1, [&](int64_t first, int64_t count, int thread) {
    const Group group = buffers.group(none, first, count, thread);
    group.load();
    const Sums sums = sums_of(group);
    for (int64_t chain = 0; chain < count; ++chain) {
      a.sums[2 * (first + chain)] = sums.spins[chain];
      a.sums[2 * (first + chain) + 1] = sums.bonds[chain];
    }
  });
  if (a.distance == 0) return;
  uint64_t* bits = reinterpret_cast<uint64_t*>(buffers.groups);
  for (int64_t chain = 0; chain < a.chains; ++chain) correlate_chain(a, chain, bits);
}

}  // namespace variate::cpu::VARIATE_ISA
