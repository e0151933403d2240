#include <variate/lattice.h>
#include <variate/math/lattice.hpp>

#include <algorithm>

#include "kernels.h"
#include "lattice.cuh"
#include "lattice_pack.cuh"
#include "lattice_pairs.cuh"

namespace variate::cuda {

namespace {

// A chain whose words fit in shared memory stays there for all sweeps of a call: a block holds one such chain or
// several small ones. Larger lattices, and those of too few chains to fill the device, are one launch for each colour.

constexpr int resident_threads = 512;     // at most, of a block that holds chains
constexpr int resident_chains = 64;       // at most, of a block
constexpr uint32_t resident_items = 256;  // that a block of several chains aims at
constexpr uint32_t lone_words = 2048;     // of a colour: one multiprocessor updates these as fast as a launch begins

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
