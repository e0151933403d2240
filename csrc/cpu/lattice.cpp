#include "lattice.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "checkerboard.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

uint32_t step_of(const variate_ising_gibbs_args& a, int64_t sweep) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a.first_step) + static_cast<uint64_t>(sweep));
}

// Sums of spins and of bonds over a row of colour 0, whose bonds are all, and of spins over that of colour 1.
struct Sums {
  int64_t spins[lanes] = {}, bonds[lanes] = {};
};

template <int neighbours, bool with_bonds>
void add_row(const Chains& chains, const RowAt& at, Sums& sums) {
  for (int colour = 0; colour < 2; ++colour) {
    const Row row(chains, colour, at);
    for (int64_t vector = 0; vector < chains.vectors; ++vector) {
      const RowMask& mask = chains.mask(row.parity, vector);
      const Word own = load_word(row.own + vector * lanes);
      const auto bits = [](uint32_t x) { return static_cast<int64_t>(__builtin_popcount(x)); };
      for (int lane = 0; lane < lanes; ++lane) {
        sums.spins[lane] += 2 * bits(own[lane] & mask.sites[lane]) - bits(mask.sites[lane]);
      }
      if (colour == 1) continue;
      // A spin times the sum over its n neighbours, c of which pull up, is n - 2 c, or 2 c - n if it is up.
      const math::BitCount<Word> n = count_neighbours<neighbours, with_bonds, false>(row, mask, vector);
      for (int lane = 0; lane < lanes; ++lane) {
        const auto weighted = [&](uint32_t among) {
          const int64_t ups =
              bits(n.ones[lane] & among) + 2 * bits(n.twos[lane] & among) + 4 * bits(n.fours[lane] & among);
          return 2 * ups - (row.sources * bits(among) - bits(mask.lonely[lane] & among));
        };
        const uint32_t sites = mask.sites[lane];
        sums.bonds[lane] += weighted(own[lane] & sites) - weighted(~own[lane] & sites);
      }
    }
  }
}

// The sums of each chain, in the first lanes.
Sums sums_of(const Chains& chains) {
  const variate_ising_gibbs_args& a = chains.a;
  const auto add = a.lattice.dimensions == 2 ? (a.bonds ? add_row<4, true> : add_row<4, false>)
                                             : (a.bonds ? add_row<6, true> : add_row<6, false>);
  Sums sums;
  for (RowAt at = {}; at.index < chains.layout.rows; at.advance(a.lattice)) add(chains, at, sums);
  for (int lane = 1; lane < lanes && !chains.layout.chains_in_lanes(); ++lane) {
    sums.spins[0] += sums.spins[lane];
    sums.bonds[0] += sums.bonds[lane];
  }
  return sums;
}

void add_moments(const Chains& chains) {
  const variate_lattice& lattice = chains.a.lattice;
  const double sites = static_cast<double>(lattice.depth * lattice.height * lattice.width);
  const Sums sums = sums_of(chains);
  for (int64_t chain = 0; chain < chains.count; ++chain) {
    const double m = static_cast<double>(sums.spins[chain]) / sites, b = static_cast<double>(sums.bonds[chain]) / sites;
    math::add_moments(m, b, chains.a.moments + (chains.first_chain + chain) * VARIATE_ISING_MOMENTS);
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

  Chains chains(const variate_ising_gibbs_args& a, int64_t first, int64_t count, int thread) const {
    return Chains(a, layout, bonds, first, count, groups + thread * sizes.group_words);
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

#if defined(__AVX512F__)

void pack_pair(const int8_t* spins, uint32_t& even, uint32_t& odd) {
  // The even bytes of each sixteen before the odd ones, and then those of all.
  const __m512i parted = _mm512_maskz_shuffle_epi8(~0ull, _mm512_loadu_si512(spins),
                                                   _mm512_set4_epi32(0x0f0d0b09, 0x07050301, 0x0e0c0a08, 0x06040200));
  const __m512i sorted = _mm512_maskz_permutexvar_epi64(0xff, _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), parted);
  const uint64_t up = _mm512_cmpgt_epi8_mask(sorted, _mm512_setzero_si512());
  even = static_cast<uint32_t>(up);
  odd = static_cast<uint32_t>(up >> 32);
}

#else

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

#endif

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
    const Chains chains = buffers.chains(a, first, count, thread);
    chains.load();
    const UpdateRow update = update_of(chains);
    for (int64_t sweep = 0; sweep < a.sweeps; ++sweep) {
      for (int colour = 0; colour < 2; ++colour) update_colour(chains, update, colour, step_of(a, sweep));
      if (a.moments && (sweep + 1) % a.measure_every == 0) add_moments(chains);
    }
    chains.store();
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
    const Chains chains = buffers.chains(none, first, count, thread);
    chains.load();
    const Sums sums = sums_of(chains);
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
