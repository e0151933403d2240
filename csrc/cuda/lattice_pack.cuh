// Spins of a byte each as words of either colour, and back.
#pragma once

#include "lattice.cuh"

namespace variate::cuda {

namespace {

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

}  // namespace variate::cuda
