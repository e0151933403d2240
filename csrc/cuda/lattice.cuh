// A colour of a lattice, and what is counted on it: what the threads of a block do.
#pragma once

#include <variate/lattice.h>
#include <variate/math/lattice.hpp>

#include "launch.cuh"
#include "noise.cuh"

namespace variate::cuda {

namespace {

constexpr uint32_t most_items = 1u << 16;  // of a block
constexpr unsigned whole_warp = 0xffffffffu;

int64_t thread_blocks(int64_t threads) { return (threads + block_threads - 1) / block_threads; }

// What a launch knows of its lattice.
struct Frame {
  math::WordGrid grid;
  const uint32_t* bonds;
  int64_t chains;
  int64_t sites;
  int64_t bond_count;

  __host__ __device__ int64_t chain_words() const { return 2 * static_cast<int64_t>(grid.size); }
};

struct Parameters {
  variate_noise noise;
  variate_tensor beta;
  variate_tensor coupling;
  variate_tensor field;
};

// Of one chain: the stream of its planes, that of the words for undecided sites, and its sample.
struct ChainNoise {
  math::Key planes;
  math::Key rest;
  uint32_t sample;
};

// Tables of a chain, by how many neighbours an open boundary takes away.
template <int dimensions, bool general>
__host__ __device__ constexpr int tables() {
  return general ? 2 * dimensions + 1 : 1;
}

__device__ __forceinline__ double number_of(const variate_tensor& tensor, int64_t chain) {
  return static_cast<const double*>(tensor.data)[chain * tensor.row_stride];
}

// Fills the tables of `chains` chains; every thread of the block calls it, and waits for it.
template <int dimensions, bool general>
__device__ void prepare(const Parameters& parameters, int64_t first_chain, int chains, math::HeatBath* baths,
                        ChainNoise* noise) {
  constexpr int each = tables<dimensions, general>();
  constexpr int counts = 7;
  constexpr int digits = math::plane_count + 1;
  for (int t = threadIdx.x; t < chains * each * counts; t += blockDim.x) {
    const int bath = t / counts;
    const int64_t chain = first_chain + bath / each;
    baths[bath].threshold[t % counts] =
        math::threshold_of(number_of(parameters.beta, chain), number_of(parameters.coupling, chain),
                           number_of(parameters.field, chain), t % counts, 2 * dimensions - bath % each);
  }
  for (int t = threadIdx.x; t < chains; t += blockDim.x) {
    const int64_t chain = first_chain + t;
    const variate_noise& n = parameters.noise;
    const math::Key key = load_key(n, chain);
    noise[t] = {key, math::fold_in(key, 1), n.key_stride == 0 ? static_cast<uint32_t>(n.first_sample + chain) : 0};
  }
  __syncthreads();
  for (int t = threadIdx.x; t < chains * each * digits; t += blockDim.x) {
    math::set_digit(baths[t / digits], t % digits);
  }
  __syncthreads();
}

// Undecided sites of a warp, by their places among the bits of the block's items: fewer than 32, and those of one item
// a lane, of which all are hardly ever undecided.
struct Queue {
  static constexpr uint32_t capacity = 188;
  uint32_t count;
  uint32_t site[capacity + 3];
};

// The items of a block, groups of u words, and where they lie: `chains` chains from `first` on of which it has
// items_per_chain each, beginning at group first_group of their colours.
struct Share {
  const math::HeatBath* baths;
  const ChainNoise* noise;
  math::Divider items_per_chain;
  uint32_t first_group;
  uint32_t items;
};

template <int dimensions_, bool general_, int u_>
struct Rule {
  static constexpr int dimensions = dimensions_;
  static constexpr bool general = general_;  // open boundaries or bonds
  static constexpr int u = u_;               // words of an item
  static constexpr int neighbours = 2 * dimensions;
  static constexpr int each = tables<dimensions, general>();
};

struct Item {
  uint32_t chain;  // of the block
  math::WordPlace place;
};

template <class R>
__device__ __forceinline__ Item item_at(const Frame& frame, const Share& share, uint32_t item, int colour) {
  const uint32_t chain = math::divide(item, share.items_per_chain);
  const uint32_t group = share.first_group + item - chain * share.items_per_chain.divisor;
  return {chain, math::word_place<R::u>(frame.grid, group, colour)};
}

// 1 where a neighbour pulls up, for each direction; `present` is 1 where there is one.
template <class R>
__device__ __forceinline__ math::Neighbours<R::dimensions, R::u> pulls(const Frame& frame, const math::WordPlace& place,
                                                                       int colour, const uint32_t* other,
                                                                       uint32_t (&present)[R::neighbours],
                                                                       math::Missing& missing) {
  math::Neighbours<R::dimensions, R::u> n = math::neighbours<R::dimensions, R::general, R::u>(frame.grid, place, other);
  missing = {0, 0};
  if constexpr (R::general) {
    static_assert(R::u == 1);
    missing = math::missing_neighbours<R::dimensions>(frame.grid, place, 0, present);
    if (frame.bonds) {
      const uint32_t* bonds = frame.bonds + colour * static_cast<int64_t>(frame.grid.size) + place.index;
#pragma unroll
      for (int d = 0; d < R::neighbours; ++d) {
        const uint32_t sign = __ldg(bonds + d * frame.chain_words());
        n.of[d].w[0] = ~(n.of[d].w[0] ^ sign) & present[d];
      }
    }
  }
  return n;
}

// Decides a site that its planes have not, and which is -1 so far.
template <class R>
__device__ __forceinline__ void decide(const Frame& frame, const Share& share, uint32_t* words, int colour,
                                       uint32_t step, uint32_t undecided) {
  using One = Rule<R::dimensions, R::general, 1>;
  const Item item = item_at<R>(frame, share, undecided / (32 * R::u), colour);
  const uint32_t bit = undecided % 32;
  math::WordPlace at = item.place;
  at.index += undecided / 32 % R::u;
  at.word += undecided / 32 % R::u;
  const ChainNoise& noise = share.noise[item.chain];
  const int64_t row = static_cast<int64_t>(at.z) * frame.grid.height + at.y;
  const uint64_t site = static_cast<uint64_t>(row * frame.grid.width + 2 * (32 * at.word + bit) + at.parity);
  const math::Words draw = math::noise_words(noise.rest, site / 4, noise.sample, step);
  const uint32_t low = site & 1 ? draw.w[1] : draw.w[0];
  const uint32_t high = site & 1 ? draw.w[3] : draw.w[2];

  uint32_t* own = words + item.chain * frame.chain_words() + colour * static_cast<int64_t>(frame.grid.size);
  const uint32_t* other =
      words + item.chain * frame.chain_words() + (1 - colour) * static_cast<int64_t>(frame.grid.size);
  uint32_t present[R::neighbours];
  math::Missing missing;
  const auto n = pulls<One>(frame, at, colour, other, present, missing);
  uint32_t up = 0;
#pragma unroll
  for (int d = 0; d < R::neighbours; ++d) up += n.of[d].w[0] >> bit & 1;
  const uint32_t gone = missing.count + (missing.edge >> bit & 1);
  const uint32_t rest = static_cast<uint32_t>(share.baths[item.chain * R::each + gone].threshold[up]);
  if ((site & 2 ? high : low) < rest) atomicOr(own + at.index, 1u << bit);
}

// Queues the undecided sites of each lane's item, and decides 32 at a time, or all of them at the end. All lanes of a
// warp call it.
template <class R>
__device__ __forceinline__ void decide_undecided(const Frame& frame, const Share& share, uint32_t* words, int colour,
                                                 uint32_t step, Queue& queue, uint32_t item,
                                                 const math::Draw<uint32_t> (&draw)[R::u], bool end) {
  const uint32_t lane = threadIdx.x % 32;
  uint32_t left = 0;
#pragma unroll
  for (int i = 0; i < R::u; ++i) left += __popc(draw[i].undecided);
  for (bool more = true; more;) {
    uint32_t to = Queue::capacity;
    if (left > 0) to = atomicAdd(&queue.count, left);
    const uint32_t first = to;
    const bool full = left > 0 && to + left > Queue::capacity;
    if (left > 0 && !full) {
#pragma unroll
      for (int i = 0; i < R::u; ++i) {
        for (uint32_t sites = draw[i].undecided; sites; sites &= sites - 1) {
          queue.site[to++] = 32 * (R::u * item + i) + static_cast<uint32_t>(__ffs(static_cast<int>(sites)) - 1);
        }
      }
      left = 0;
    }
    __syncwarp();
    uint32_t queued = queue.count;
    more = queued > Queue::capacity;
    if (more) queued = __reduce_min_sync(whole_warp, full ? first : Queue::capacity);
    for (const uint32_t least = end && !more ? 1 : 32; queued >= least;) {
      const uint32_t decided = min(queued, 32u);
      queued -= decided;
      if (lane < decided) decide<R>(frame, share, words, colour, step, queue.site[queued + lane]);
    }
    __syncwarp();
    if (lane == 0) queue.count = queued;
    __syncwarp();
  }
}

// One colour of a block's items, from `words`, those of the block's first chain. Every thread of the block calls it.
template <class R>
__device__ __forceinline__ void update(const Frame& frame, const Share& share, uint32_t* words, int colour,
                                       uint32_t step, Queue& queue) {
  constexpr int u = R::u;
  const int64_t own_words = colour * static_cast<int64_t>(frame.grid.size);
  const int64_t other_words = frame.grid.size - own_words;
  for (uint32_t first = 0; first < share.items; first += blockDim.x) {  // the same for all lanes of a warp
    const bool active = first + threadIdx.x < share.items;
    const uint32_t number = active ? first + threadIdx.x : 0;
    const Item item = item_at<R>(frame, share, number, colour);
    const math::WordPlace& at = item.place;
    uint32_t* chain = words + item.chain * frame.chain_words();

    uint32_t present[R::neighbours];
    math::Missing missing;
    math::BitCount<uint32_t> count[u];
    {
      const auto n = pulls<R>(frame, at, colour, chain + other_words, present, missing);
#pragma unroll
      for (int i = 0; i < u; ++i) {
        uint32_t x[R::neighbours];
#pragma unroll
        for (int d = 0; d < R::neighbours; ++d) x[d] = n.of[d].w[i];
        count[i] = math::count_bits(x);
      }
    }

    const ChainNoise& noise = share.noise[item.chain];
    const uint64_t block = 2 * static_cast<uint64_t>(own_words + at.index);
    const math::HeatBath* bath = share.baths + item.chain * R::each + (R::general ? missing.count : 0);
    const bool edge = R::general && missing.edge != 0;
    const auto threshold = [&](int digit, int i) {
      uint32_t x = math::evaluate<R::neighbours>(bath->digit[digit], count[i]);
      if (edge) x ^= (x ^ math::evaluate<R::neighbours>(bath[1].digit[digit], count[i])) & missing.edge;
      return x;
    };
    math::Draw<uint32_t> draw[u];
#pragma unroll
    for (int half = 1; half >= 0; --half) {
      math::Words planes[u];
#pragma unroll
      for (int i = 0; i < u; ++i) {
        planes[i] = math::noise_words(noise.planes, block + (2 * i + half), noise.sample, step);
      }
#pragma unroll
      for (int p = 3; p >= 0; --p) {
#pragma unroll
        for (int i = 0; i < u; ++i) math::compare_digit(draw[i], planes[i].w[p], threshold(4 * half + p, i));
      }
    }
    if (bath->any_certain || (edge && bath[1].any_certain)) {
#pragma unroll
      for (int i = 0; i < u; ++i) {
        const uint32_t certain = threshold(math::plane_count, i);
        draw[i].up |= certain;
        draw[i].undecided &= ~certain;
      }
    }

    math::WordGroup<u> up;
#pragma unroll
    for (int i = 0; i < u; ++i) {
      const uint32_t valid = math::valid_sites(frame.grid, at.parity, at.word + i);
      up.w[i] = draw[i].up & valid;
      draw[i].undecided = active ? draw[i].undecided & valid : 0;
    }
    if (active) math::store_words(chain + own_words, at.index, up);
    decide_undecided<R>(frame, share, words, colour, step, queue, number, draw, first + blockDim.x >= share.items);
  }
}

// Of an item of colour 0 and the same words of colour 1: spins that are up, and bonds that are satisfied, all of which
// end in colour 0.
struct Satisfied {
  uint32_t up;
  uint32_t bonds;
};

template <class R>
__device__ __forceinline__ Satisfied satisfied(const Frame& frame, const math::WordPlace& at, const uint32_t* chain) {
  uint32_t present[R::neighbours];
  math::Missing missing;
  const uint32_t* other = chain + frame.grid.size;
  const auto n = pulls<R>(frame, at, 0, other, present, missing);
  const auto own = math::load_words<R::u>(chain, at.index);
  const auto beside = math::load_words<R::u>(other, at.index);
  Satisfied sum{0, 0};
#pragma unroll
  for (int i = 0; i < R::u; ++i) {
    const uint32_t valid = math::valid_sites(frame.grid, at.parity, at.word + i);
    sum.up += __popc(own.w[i]) + __popc(beside.w[i]);
#pragma unroll
    for (int d = 0; d < R::neighbours; ++d) {
      uint32_t agree = ~(own.w[i] ^ n.of[d].w[i]) & valid;
      if constexpr (R::general) agree &= present[d];
      sum.bonds += __popc(agree);
    }
  }
  return sum;
}

struct Sums {
  unsigned long long up;
  unsigned long long bonds;
};

__device__ __forceinline__ int64_t spin_sum(const Frame& frame, const Sums& sums) {
  return 2 * static_cast<int64_t>(sums.up) - frame.sites;
}

__device__ __forceinline__ int64_t bond_sum(const Frame& frame, const Sums& sums) {
  return 2 * static_cast<int64_t>(sums.bonds) - frame.bond_count;
}

// Integers: any order gives the same. Every thread of the block calls it.
template <class R>
__device__ __forceinline__ void add_satisfied(const Frame& frame, const Share& share, const uint32_t* words,
                                              Sums* sums) {
  for (uint32_t first = 0; first < share.items; first += blockDim.x) {
    const bool active = first + threadIdx.x < share.items;
    const Item item = item_at<R>(frame, share, active ? first + threadIdx.x : 0, 0);
    Satisfied sum = satisfied<R>(frame, item.place, words + item.chain * frame.chain_words());
    if (!active) sum = {0, 0};
    const bool one_chain = __all_sync(whole_warp, item.chain == __shfl_sync(whole_warp, item.chain, 0));
    if (one_chain) sum = {__reduce_add_sync(whole_warp, sum.up), __reduce_add_sync(whole_warp, sum.bonds)};
    if (one_chain ? threadIdx.x % 32 == 0 : active) {
      atomicAdd(&sums[item.chain].up, sum.up);
      atomicAdd(&sums[item.chain].bonds, sum.bonds);
    }
  }
}

__device__ __forceinline__ void add_moments(const Frame& frame, const Sums& sums, double* moments) {
  const double sites = static_cast<double>(frame.sites);
  const double m = static_cast<double>(spin_sum(frame, sums)) / sites;
  const double b = static_cast<double>(bond_sum(frame, sums)) / sites;
  math::add_moments(m, b, moments);
}

// A chain cut into blocks.
struct BlockPlan {
  uint32_t groups;  // of a colour
  uint32_t items;   // of a block
  uint32_t blocks;  // of a chain

  __device__ __forceinline__ Share share(const math::HeatBath* baths, const ChainNoise* noise, uint32_t block) const {
    const uint32_t first = block * items;
    const uint32_t left = groups - first;
    const math::Divider never{most_items, 1, 16};  // one chain: no item reaches another
    return {baths, noise, never, first, left < items ? left : items};
  }
};

}  // namespace

}  // namespace variate::cuda
