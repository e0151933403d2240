#include <variate/lattice.h>
#include <variate/math/lattice.hpp>

#include <algorithm>

#include "kernels.h"
#include "launch.cuh"
#include "noise.cuh"

namespace variate::cuda {

namespace {

// A chain whose words fit in shared memory stays there for all sweeps of a call: a block holds one such chain or
// several small ones. Larger lattices, and those of too few chains to fill the device, are one launch for each colour.

constexpr int resident_threads = 512;      // at most, of a block that holds chains
constexpr int resident_chains = 64;        // at most, of a block
constexpr uint32_t resident_items = 256;   // that a block of several chains aims at
constexpr uint32_t lone_words = 2048;      // of a colour: one multiprocessor updates these as fast as a launch begins
constexpr uint32_t most_items = 1u << 16;  // of a block
constexpr unsigned whole_warp = 0xffffffffu;

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
  moments[VARIATE_ISING_M] += m;
  moments[VARIATE_ISING_ABS_M] += m < 0.0 ? -m : m;
  moments[VARIATE_ISING_M2] += m * m;
  moments[VARIATE_ISING_M4] += (m * m) * (m * m);
  moments[VARIATE_ISING_B] += b;
  moments[VARIATE_ISING_B2] += b * b;
  moments[VARIATE_ISING_MB] += m * b;
}

// What a block that holds chains keeps in shared memory; each part begins at a multiple of 16 bytes.
struct ResidentLayout {
  uint32_t noise;
  uint32_t sums;
  uint32_t queues;
  uint32_t words;
  uint64_t bytes;

  __host__ __device__ ResidentLayout(int chains, int tables, int threads, int64_t chain_words) {
    noise = static_cast<uint32_t>(chains * tables * sizeof(math::HeatBath));
    sums = noise + aligned(chains * sizeof(ChainNoise));
    queues = sums + static_cast<uint32_t>(chains * sizeof(Sums));
    words = queues + static_cast<uint32_t>(threads / 32 * sizeof(Queue));
    bytes = words + static_cast<uint64_t>(chains) * static_cast<uint64_t>(chain_words) * sizeof(uint32_t);
  }

  static __host__ __device__ uint32_t aligned(uint64_t bytes) { return static_cast<uint32_t>((bytes + 15) / 16 * 16); }
};

__device__ __forceinline__ void copy_words(uint32_t* to, const uint32_t* from, uint32_t count, bool aligned) {
  if (aligned) {
    for (uint32_t i = threadIdx.x; i < count / 4; i += blockDim.x) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
  } else {
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
  }
}

struct Sweeps {
  int64_t count;
  uint32_t first_step;
  int64_t measure_every;
  double* moments;
};

template <class R>
__global__ void __launch_bounds__(resident_threads, 1)
    resident_kernel(Frame frame, Parameters parameters, Sweeps sweeps, math::Divider items_per_chain,
                    int chains_per_block, bool aligned, uint32_t* words) {
  char* const memory = reinterpret_cast<char*>(dynamic_shared);
  const ResidentLayout layout(chains_per_block, R::each, blockDim.x, frame.chain_words());
  math::HeatBath* const baths = reinterpret_cast<math::HeatBath*>(memory);
  ChainNoise* const noise = reinterpret_cast<ChainNoise*>(memory + layout.noise);
  Sums* const sums = reinterpret_cast<Sums*>(memory + layout.sums);
  Queue& queue = reinterpret_cast<Queue*>(memory + layout.queues)[threadIdx.x / 32];
  uint32_t* const state = reinterpret_cast<uint32_t*>(memory + layout.words);

  const int64_t first_chain = static_cast<int64_t>(blockIdx.x) * chains_per_block;
  const int64_t left = frame.chains - first_chain;
  const int chains = left < chains_per_block ? static_cast<int>(left) : chains_per_block;
  const Share share{baths, noise, items_per_chain, 0, chains * items_per_chain.divisor};
  uint32_t* const home = words + first_chain * frame.chain_words();
  const uint32_t held = static_cast<uint32_t>(chains * frame.chain_words());
  copy_words(state, home, held, aligned);
  for (int c = threadIdx.x; c < chains; c += blockDim.x) sums[c] = {0, 0};
  if (threadIdx.x % 32 == 0) queue.count = 0;
  prepare<R::dimensions, R::general>(parameters, first_chain, chains, baths, noise);

  int64_t until_measured = sweeps.measure_every;
  for (int64_t sweep = 0; sweep < sweeps.count; ++sweep) {
    const uint32_t step = sweeps.first_step + static_cast<uint32_t>(sweep);
#pragma unroll 1
    for (int colour = 0; colour < 2; ++colour) {
      update<R>(frame, share, state, colour, step, queue);
      __syncthreads();
    }
    if (!sweeps.moments || --until_measured > 0) continue;
    until_measured = sweeps.measure_every;
    add_satisfied<R>(frame, share, state, sums);
    __syncthreads();
    for (int c = threadIdx.x; c < chains; c += blockDim.x) {
      add_moments(frame, sums[c], sweeps.moments + (first_chain + c) * VARIATE_ISING_MOMENTS);
      sums[c] = {0, 0};  // nobody adds before the next barrier
    }
  }
  copy_words(home, state, held, aligned);
}

// The other regime. What its launches share lies in the workspace.
template <int dimensions, bool general>
__global__ void __launch_bounds__(block_threads)
    prepare_kernel(Parameters parameters, math::HeatBath* baths, ChainNoise* noise, Sums* sums) {
  const int64_t chain = blockIdx.x;
  prepare<dimensions, general>(parameters, chain, 1, baths + chain * tables<dimensions, general>(), noise + chain);
  if (threadIdx.x == 0) sums[chain] = {0, 0};
}

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

// Of a multiprocessor: as many as have registers enough.
template <class R>
constexpr int colour_blocks = R::dimensions == 3 ? (R::u == 1 ? 3 : 2) : (R::u == 1 ? 4 : 3);

template <class R>
__global__ void __launch_bounds__(block_threads, colour_blocks<R>)
    colour_kernel(Frame frame, BlockPlan plan, const math::HeatBath* baths, const ChainNoise* noise, int colour,
                  uint32_t step, uint32_t* words) {
  constexpr int bath_words = static_cast<int>(R::each * sizeof(math::HeatBath) / sizeof(uint4));
  __shared__ uint4 bath[bath_words];
  __shared__ ChainNoise own_noise;
  __shared__ Queue queues[block_threads / 32];
  const int64_t chain = blockIdx.x / plan.blocks;
  const uint4* from = reinterpret_cast<const uint4*>(baths + chain * R::each);
  for (int i = threadIdx.x; i < bath_words; i += blockDim.x) bath[i] = __ldg(from + i);
  if (threadIdx.x == 0) own_noise = noise[chain];
  if (threadIdx.x % 32 == 0) queues[threadIdx.x / 32].count = 0;
  __syncthreads();
  const Share share = plan.share(reinterpret_cast<const math::HeatBath*>(bath), &own_noise,
                                 static_cast<uint32_t>(blockIdx.x % plan.blocks));
  update<R>(frame, share, words + chain * frame.chain_words(), colour, step, queues[threadIdx.x / 32]);
}

template <class R>
__global__ void __launch_bounds__(block_threads)
    sums_kernel(Frame frame, BlockPlan plan, const uint32_t* words, Sums* sums) {
  __shared__ Sums own;
  if (threadIdx.x == 0) own = {0, 0};
  __syncthreads();
  const int64_t chain = blockIdx.x / plan.blocks;
  const Share share = plan.share(nullptr, nullptr, static_cast<uint32_t>(blockIdx.x % plan.blocks));
  add_satisfied<R>(frame, share, words + chain * frame.chain_words(), &own);
  __syncthreads();
  if (threadIdx.x != 0) return;
  atomicAdd(&sums[chain].up, own.up);
  atomicAdd(&sums[chain].bonds, own.bonds);
}

__global__ void __launch_bounds__(block_threads) moments_kernel(Frame frame, Sums* sums, double* moments) {
  const int64_t chain = thread_index();
  if (chain >= frame.chains) return;
  add_moments(frame, sums[chain], moments + chain * VARIATE_ISING_MOMENTS);
  sums[chain] = {0, 0};
}

// counts[chain] = sums.
__global__ void __launch_bounds__(block_threads) finish_sums_kernel(Frame frame, Sums* counts) {
  const int64_t chain = thread_index();
  if (chain >= frame.chains) return;
  const Sums sums = counts[chain];
  counts[chain] = {static_cast<unsigned long long>(spin_sum(frame, sums)),
                   static_cast<unsigned long long>(bond_sum(frame, sums))};
}

// Correlations along x, `some` distances at a time: how many pairs agree, and then their sums.
constexpr int some_distances = 32;

struct PairWord {
  uint32_t partner;  // of each site of a word, the spin `distance` behind it
  uint32_t there;    // where there is one
};

__device__ __forceinline__ PairWord pair_word(const math::WordGrid& grid, const math::WordPlace& at, int colour,
                                              uint32_t distance, const uint32_t* chain) {
  const uint32_t flip = distance & 1;
  const uint32_t parity = at.parity ^ flip;
  const uint32_t* row = chain + ((colour ^ flip) != 0 ? grid.size : 0) + (at.index - at.word);
  const uint32_t valid = math::valid_sites(grid, at.parity, at.word);
  uint32_t start = 32 * at.word + (at.parity + distance - parity) / 2;
  if (!grid.open) {
    const uint32_t sites = grid.width / 2;
    while (start >= sites) start -= sites;
    return {math::ring_word(row, sites, start), valid};
  }
  const uint32_t sites = (grid.width + 1 - parity) / 2;
  if (start >= sites) return {0, 0};
  const uint32_t word = start / 32;
  const uint32_t next = word + 1 < grid.words ? row[word + 1] : 0;
  const uint32_t left = sites - start;
  return {__funnelshift_r(row[word], next, start % 32), valid & (left >= 32 ? ~0u : (1u << left) - 1)};
}

__global__ void __launch_bounds__(block_threads) correlation_kernel(Frame frame, BlockPlan plan, const uint32_t* words,
                                                                    uint32_t distance, unsigned long long* agreements) {
  __shared__ unsigned long long own[some_distances];
  if (threadIdx.x < some_distances) own[threadIdx.x] = 0;
  __syncthreads();
  const uint32_t chunks = (distance + some_distances - 1) / some_distances;
  const uint32_t first_distance = blockIdx.x % chunks * some_distances;
  const uint32_t block = blockIdx.x / chunks;
  const int64_t chain = block / plan.blocks;
  const Share share = plan.share(nullptr, nullptr, block % plan.blocks);
  const uint32_t* from = words + chain * frame.chain_words();
  const uint32_t distances = min(distance - first_distance, static_cast<uint32_t>(some_distances));
  for (uint32_t r = 0; r < distances; ++r) {
    uint32_t agree = 0;
    for (uint32_t item = threadIdx.x; item < share.items; item += blockDim.x) {
#pragma unroll
      for (int colour = 0; colour < 2; ++colour) {
        const math::WordPlace at = math::word_place<1>(frame.grid, share.first_group + item, colour);
        const PairWord pair = pair_word(frame.grid, at, colour, first_distance + r + 1, from);
        agree += __popc(~(from[(colour ? frame.grid.size : 0) + at.index] ^ pair.partner) & pair.there);
      }
    }
    agree = __reduce_add_sync(whole_warp, agree);
    if (threadIdx.x % 32 == 0) atomicAdd(&own[r], agree);
  }
  __syncthreads();
  if (threadIdx.x < distances) {
    atomicAdd(agreements + chain * distance + first_distance + threadIdx.x, own[threadIdx.x]);
  }
}

__global__ void __launch_bounds__(block_threads)
    finish_correlation_kernel(Frame frame, int64_t distance, unsigned long long* agreements) {
  const int64_t at = thread_index();
  if (at >= frame.chains * distance) return;
  const int64_t r = at % distance + 1;
  const int64_t pairs = frame.grid.open ? frame.sites / frame.grid.width * (frame.grid.width - r) : frame.sites;
  agreements[at] = 2 * agreements[at] - static_cast<unsigned long long>(pairs);
}

// Host side.

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

int64_t sites_of(const variate_lattice& l) { return l.depth * l.height * l.width; }

int64_t bonds_of(const variate_lattice& l) {
  const bool open = l.boundary == VARIATE_OPEN;
  int64_t bonds = 0;
  for (int d = 3 - l.dimensions; d < 3; ++d) {
    const int64_t side = d == 0 ? l.depth : d == 1 ? l.height : l.width;
    bonds += open ? sites_of(l) / side * (side - 1) : sites_of(l);
  }
  return bonds;
}

int64_t colour_words(const variate_lattice& l) { return l.depth * l.height * math::words_in_row(l.width); }

Frame frame_of(const variate_lattice& l, const uint32_t* bonds, int64_t chains, int group) {
  return {math::word_grid(l.depth, l.height, l.width, l.boundary == VARIATE_OPEN, group), bonds, chains, sites_of(l),
          bonds_of(l)};
}

bool is_general(const variate_lattice& l, const uint32_t* bonds) { return l.boundary == VARIATE_OPEN || bonds; }

// Words of an item: four where rows divide into them and lie on 16 bytes.
int group_of(const variate_lattice& l, const uint32_t* bonds, const uint32_t* words) {
  const bool fours = math::words_in_row(l.width) % 4 == 0 && reinterpret_cast<uintptr_t>(words) % 16 == 0;
  return fours && !is_general(l, bonds) ? 4 : 1;
}

bool too_large(const variate_lattice& l) {
  if (colour_words(l) < (int64_t{1} << 31) && l.width < (int64_t{1} << 31)) return false;
  set_error("CUDA: a lattice must have less than 2^31 words of each colour");
  return true;
}

// How many chains a block holds, or 0 where each colour is a launch of its own.
int chains_per_block(const variate_ising_gibbs_args& a, int tables, int group) {
  const int64_t words = colour_words(a.lattice);
  const int64_t items = words / group;
  const int64_t multiprocessors = std::max(1, device_attribute(cudaDevAttrMultiProcessorCount));
  const uint64_t shared = static_cast<uint64_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  const auto fits = [&](int64_t chains) {
    return ResidentLayout(static_cast<int>(chains), tables, resident_threads, 2 * words).bytes <= shared &&
           chains * items <= most_items;
  };
  if (!fits(1) || (words > lone_words && 2 * a.chains < multiprocessors)) return 0;
  int64_t chains = std::min<int64_t>({std::max<int64_t>(1, resident_items / items),
                                      std::max<int64_t>(1, a.chains / multiprocessors), resident_chains});
  while (!fits(chains)) chains /= 2;
  return static_cast<int>(chains);
}

template <class... Values, class... Arguments>
variate_status launch_resident(const variate_execution& execution, void (*kernel)(Values...), int64_t blocks,
                               int threads, uint64_t shared, const Arguments&... arguments) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  return launch_config(execution, kernel, blocks, threads, shared, arguments...);
}

template <class R>
variate_status resident(const variate_ising_gibbs_args& a, const Frame& frame, const Parameters& parameters,
                        int chains) {
  const uint32_t items = frame.grid.size / R::u;
  const int64_t blocks = (a.chains + chains - 1) / chains;
  // A multiprocessor has enough to do with 16 warps: few of each block where it has several.
  const int64_t multiprocessors = std::max(1, device_attribute(cudaDevAttrMultiProcessorCount));
  const int64_t beside = (blocks + multiprocessors - 1) / multiprocessors;
  const int64_t most = std::max<int64_t>(resident_threads / beside / 32 * 32, 128);
  const int threads = static_cast<int>(std::min((static_cast<int64_t>(items) * chains + 31) / 32 * 32, most));
  const ResidentLayout layout(chains, R::each, threads, frame.chain_words());
  const bool aligned = frame.chain_words() % 4 == 0 && reinterpret_cast<uintptr_t>(a.words) % 16 == 0;
  const Sweeps sweeps{a.sweeps, static_cast<uint32_t>(a.first_step), a.measure_every, a.moments};
  return launch_resident(a.execution, resident_kernel<R>, blocks, threads, layout.bytes, frame, parameters, sweeps,
                         math::divider(items), chains, aligned, a.words);
}

int64_t thread_blocks(int64_t threads) { return (threads + block_threads - 1) / block_threads; }

// Blocks of 256 items or more, and some for each multiprocessor.
BlockPlan plan_of(const Frame& frame, int group) {
  constexpr int64_t blocks_per_multiprocessor = 16;
  const int64_t groups = frame.grid.size / group;
  const int64_t slots = blocks_per_multiprocessor * std::max(1, device_attribute(cudaDevAttrMultiProcessorCount));
  const int64_t rounds = std::clamp<int64_t>(groups * frame.chains / (slots * block_threads), 1, 8);
  const int64_t items = rounds * block_threads;
  return {static_cast<uint32_t>(groups), static_cast<uint32_t>(items),
          static_cast<uint32_t>((groups + items - 1) / items)};
}

// Per chain: tables, keys and sums, which the launches of a call leave to one another.
struct Workspace {
  math::HeatBath* baths;
  ChainNoise* noise;
  Sums* sums;
  uint64_t bytes;

  Workspace(void* memory, int64_t chains, int tables) {
    const uint64_t count = static_cast<uint64_t>(chains);
    const uint64_t bath_bytes = count * static_cast<uint64_t>(tables) * sizeof(math::HeatBath);
    char* const at = static_cast<char*>(memory);
    baths = reinterpret_cast<math::HeatBath*>(at);
    noise = reinterpret_cast<ChainNoise*>(at + bath_bytes);
    sums = reinterpret_cast<Sums*>(at + bath_bytes + count * sizeof(ChainNoise));
    bytes = bath_bytes + count * (sizeof(ChainNoise) + sizeof(Sums));
  }
};

template <class R>
variate_status by_colours(const variate_ising_gibbs_args& a, const Frame& frame, const Parameters& parameters) {
  const Workspace workspace(a.execution.workspace, a.chains, R::each);
  const BlockPlan plan = plan_of(frame, R::u);
  const int64_t blocks = a.chains * plan.blocks;
  variate_status status = launch(a.execution, prepare_kernel<R::dimensions, R::general>, a.chains, parameters,
                                 workspace.baths, workspace.noise, workspace.sums);
  int64_t until_measured = a.measure_every;
  for (int64_t sweep = 0; sweep < a.sweeps && status == VARIATE_OK; ++sweep) {
    const uint32_t step = static_cast<uint32_t>(a.first_step) + static_cast<uint32_t>(sweep);
    for (int colour = 0; colour < 2 && status == VARIATE_OK; ++colour) {
      status = launch(a.execution, colour_kernel<R>, blocks, frame, plan, workspace.baths, workspace.noise, colour,
                      step, a.words);
    }
    if (!a.moments || --until_measured > 0 || status != VARIATE_OK) continue;
    until_measured = a.measure_every;
    status = launch(a.execution, sums_kernel<R>, blocks, frame, plan, a.words, workspace.sums);
    if (status != VARIATE_OK) break;
    status = launch(a.execution, moments_kernel, thread_blocks(a.chains), frame, workspace.sums, a.moments);
  }
  return status;
}

template <class R>
variate_status gibbs(const variate_ising_gibbs_args& a) {
  const Frame frame = frame_of(a.lattice, a.bonds, a.chains, R::u);
  const Parameters parameters{a.noise, a.beta, a.coupling, a.field};
  const int chains = chains_per_block(a, R::each, R::u);
  return chains > 0 ? resident<R>(a, frame, parameters, chains) : by_colours<R>(a, frame, parameters);
}

variate_status clear(const variate_execution& execution, void* memory, int64_t bytes) {
  const cudaStream_t stream = static_cast<cudaStream_t>(execution.stream);
  const cudaError_t error = cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream);
  if (error == cudaSuccess) return VARIATE_OK;
  cudaGetLastError();
  set_error("CUDA: memory could not be cleared: %s", cudaGetErrorString(error));
  return VARIATE_DEVICE_ERROR;
}

template <class R>
variate_status measure_sums(const variate_ising_measure_args& a) {
  const Frame frame = frame_of(a.lattice, a.bonds, a.chains, R::u);
  const BlockPlan plan = plan_of(frame, R::u);
  Sums* const sums = reinterpret_cast<Sums*>(a.sums);
  variate_status status = clear(a.execution, a.sums, a.chains * static_cast<int64_t>(sizeof(Sums)));
  if (status != VARIATE_OK) return status;
  status = launch(a.execution, sums_kernel<R>, a.chains * plan.blocks, frame, plan, a.words, sums);
  if (status != VARIATE_OK) return status;
  return launch(a.execution, finish_sums_kernel, thread_blocks(a.chains), frame, sums);
}

variate_status measure_correlation(const variate_ising_measure_args& a) {
  const Frame frame = frame_of(a.lattice, nullptr, a.chains, 1);
  const BlockPlan plan = plan_of(frame, 1);
  const int64_t chunks = (a.distance + some_distances - 1) / some_distances;
  auto* const agreements = reinterpret_cast<unsigned long long*>(a.correlation);
  variate_status status = clear(a.execution, a.correlation, a.chains * a.distance * 8);
  if (status != VARIATE_OK) return status;
  status = launch(a.execution, correlation_kernel, a.chains * plan.blocks * chunks, frame, plan, a.words,
                  static_cast<uint32_t>(a.distance), agreements);
  if (status != VARIATE_OK) return status;
  return launch(a.execution, finish_correlation_kernel, thread_blocks(a.chains * a.distance), frame, a.distance,
                agreements);
}

// Calls function with the rule of a lattice.
template <class Function>
variate_status with_rule(const variate_lattice& l, const uint32_t* bonds, const uint32_t* words, Function function) {
  const bool two = l.dimensions == 2;
  if (is_general(l, bonds)) return two ? function(Rule<2, true, 1>()) : function(Rule<3, true, 1>());
  if (group_of(l, bonds, words) == 4) return two ? function(Rule<2, false, 4>()) : function(Rule<3, false, 4>());
  return two ? function(Rule<2, false, 1>()) : function(Rule<3, false, 1>());
}

// Packing: a thread has the 64 sites of a row that are a word of either colour.

struct PackPlan {
  math::WordGrid grid;
  int64_t rows;  // of all chains
  bool aligned;  // 16 bytes of spins
};

struct PackShare {
  int64_t first_site;  // of all chains
  int64_t even_word;   // and of the words: those of even x, and of odd
  int64_t odd_word;
  uint32_t sites;  // of 64
};

__device__ __forceinline__ PackShare pack_share(const PackPlan& plan, int64_t index) {
  const math::WordGrid& grid = plan.grid;
  const int64_t chain = index / grid.size;
  const uint32_t at = static_cast<uint32_t>(index - chain * grid.size);
  const math::WordPlace place = math::word_place<1>(grid, at, 0);
  const int64_t row = static_cast<int64_t>(place.z) * grid.height + place.y;
  const int64_t chain_sites = static_cast<int64_t>(grid.depth) * grid.height * grid.width;
  const int64_t base = 2 * chain * grid.size + at;
  const uint32_t left = grid.width - min(grid.width, 64 * place.word);
  return {chain * chain_sites + row * grid.width + 64 * place.word, base + (place.parity ? grid.size : 0),
          base + (place.parity ? 0 : grid.size), min(left, 64u)};
}

// 0x80 in each byte that is above 0.
__device__ __forceinline__ uint32_t positive_bytes(uint32_t x) {
  return ((x & 0x7f7f7f7fu) + 0x7f7f7f7fu) & ~x & 0x80808080u;
}

__global__ void __launch_bounds__(block_threads) pack_kernel(PackPlan plan, const int8_t* spins, uint32_t* words) {
  const int64_t index = thread_index();
  if (index >= plan.rows * plan.grid.words) return;
  const PackShare share = pack_share(plan, index);
  const int8_t* from = spins + share.first_site;
  uint32_t even = 0;
  uint32_t odd = 0;
  if (plan.aligned && share.sites == 64) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 sixteen = __ldg(reinterpret_cast<const uint4*>(from) + i);
      const uint32_t four[4] = {sixteen.x, sixteen.y, sixteen.z, sixteen.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t up = positive_bytes(four[k]);
        const int to = 8 * i + 2 * k;
        even |= ((up >> 7 & 1) | (up >> 22 & 2)) << to;
        odd |= ((up >> 15 & 1) | (up >> 30 & 2)) << to;
      }
    }
  } else {
    for (uint32_t x = 0; x < share.sites; ++x) {
      const uint32_t up = (from[x] > 0 ? 1u : 0u) << x / 2;
      if (x % 2) {
        odd |= up;
      } else {
        even |= up;
      }
    }
  }
  words[share.even_word] = even;
  words[share.odd_word] = odd;
}

__global__ void __launch_bounds__(block_threads) unpack_kernel(PackPlan plan, const uint32_t* words, int8_t* spins) {
  const int64_t index = thread_index();
  if (index >= plan.rows * plan.grid.words) return;
  const PackShare share = pack_share(plan, index);
  int8_t* to = spins + share.first_site;
  const uint32_t even = words[share.even_word];
  const uint32_t odd = words[share.odd_word];
  if (plan.aligned && share.sites == 64) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t four[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int at = 8 * i + 2 * k;
        const uint32_t up =
            (even >> at & 1) | (odd >> at & 1) << 8 | (even >> (at + 1) & 1) << 16 | (odd >> (at + 1) & 1) << 24;
        four[k] = ~(up * 0xfe);  // 0x01 where a byte of `up` is 1, else 0xff
      }
      reinterpret_cast<uint4*>(to)[i] = make_uint4(four[0], four[1], four[2], four[3]);
    }
  } else {
    for (uint32_t x = 0; x < share.sites; ++x) to[x] = (x % 2 ? odd : even) >> x / 2 & 1 ? 1 : -1;
  }
}

PackPlan pack_plan(const variate_ising_pack_args& a) {
  const variate_lattice& l = a.lattice;
  return {math::word_grid(l.depth, l.height, l.width, false, 1), a.chains * l.depth * l.height,
          l.width % 16 == 0 && reinterpret_cast<uintptr_t>(a.spins) % 16 == 0};
}

int64_t pack_blocks(const PackPlan& plan) { return thread_blocks(plan.rows * plan.grid.words); }

}  // namespace

variate_status ising_pack(const variate_ising_pack_args& a) {
  if (too_large(a.lattice)) return VARIATE_UNSUPPORTED;
  const PackPlan plan = pack_plan(a);
  return launch(a.execution, pack_kernel, pack_blocks(plan), plan, static_cast<const int8_t*>(a.spins), a.words);
}

variate_status ising_unpack(const variate_ising_pack_args& a) {
  if (too_large(a.lattice)) return VARIATE_UNSUPPORTED;
  const PackPlan plan = pack_plan(a);
  return launch(a.execution, unpack_kernel, pack_blocks(plan), plan, static_cast<const uint32_t*>(a.words), a.spins);
}

uint64_t ising_gibbs_workspace(const variate_ising_gibbs_args& a) {
  const int tables = is_general(a.lattice, a.bonds) ? 2 * a.lattice.dimensions + 1 : 1;
  return Workspace(nullptr, a.chains, tables).bytes;
}

variate_status ising_gibbs(const variate_ising_gibbs_args& a) {
  if (too_large(a.lattice)) return VARIATE_UNSUPPORTED;
  return with_rule(a.lattice, a.bonds, a.words, [&](auto rule) { return gibbs<decltype(rule)>(a); });
}

variate_status ising_measure(const variate_ising_measure_args& a) {
  if (too_large(a.lattice)) return VARIATE_UNSUPPORTED;
  const variate_status status =
      with_rule(a.lattice, a.bonds, a.words, [&](auto rule) { return measure_sums<decltype(rule)>(a); });
  return status == VARIATE_OK && a.distance > 0 ? measure_correlation(a) : status;
}

}  // namespace variate::cuda
