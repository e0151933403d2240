// Correlations of a lattice's spins along x.
#pragma once

#include "lattice.cuh"

namespace variate::cuda {

namespace {

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

}  // namespace

}  // namespace variate::cuda
