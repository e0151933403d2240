// Dynamic thresholding: the quantile of |x0| over each sample, from its exact order statistics.
//
// As integers, magnitudes have the order of the numbers. A pass counts how often each value of the next 11 bits occurs
// among those that agree in the bits before, and so finds these bits of an order statistic; two of them are found
// together. A sample is one block's, for all passes in one launch, or, if it is long, several blocks' and a launch a
// pass, where the last block of a sample to be done finds the bits.
#pragma once

#include <variate/math/base.hpp>

#include "access.cuh"
#include "launch.cuh"

namespace variate::cuda {

inline constexpr int select_threads = 1024;
inline constexpr int digit_bits = 11;
inline constexpr int digits = 1 << digit_bits;
inline constexpr int64_t lone_block = 1 << 16;   // elements that one block goes through as soon as launches begin
inline constexpr int64_t block_share = 1 << 14;  // else

template <class M>
using Magnitude = std::conditional_t<sizeof(M) == 4, uint32_t, uint64_t>;
template <class M>
inline constexpr int magnitude_bits = sizeof(M) * 8 - 1;

// |x|; any NaN is the greatest of all.
__device__ __forceinline__ uint32_t magnitude(float x) {
  return x != x ? 0x7fffffffu : __float_as_uint(x) & 0x7fffffffu;
}
__device__ __forceinline__ uint64_t magnitude(double x) {
  constexpr uint64_t mask = 0x7fffffffffffffffu;
  return x != x ? mask : static_cast<uint64_t>(__double_as_longlong(x)) & mask;
}
__device__ __forceinline__ float number_of(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ double number_of(uint64_t bits) { return __longlong_as_double(static_cast<int64_t>(bits)); }

// What is asked of each row, and where it goes.
struct Quantiles {
  int64_t rows;
  int64_t cols;
  int64_t pitch;  // of x0
  int64_t below;  // the two ranks, and how far the quantile lies between them
  int64_t above;
  double weight;
  double clip;
  double* thresholds;  // [rows]

  Quantiles(int64_t rows, int64_t cols, double quantile, double clip)
      : rows(rows), cols(cols), pitch((cols + 3) / 4 * 4), clip(clip), thresholds(nullptr) {
    const double at = quantile * static_cast<double>(cols - 1);
    below = static_cast<int64_t>(at);
    above = below + 1 < cols ? below + 1 : cols - 1;
    weight = at - static_cast<double>(below);
  }
};

// What passes leave for each other, of each row: 0 before the first.
struct Found {
  uint64_t bits[2];
  int64_t rank[2];  // among those that agree in these bits
  uint32_t nans;
  uint32_t tickets;
};

template <class M>
__device__ void store_threshold(const Quantiles& q, int64_t row, const Found& found) {
  const M low = number_of(static_cast<Magnitude<M>>(found.bits[0]));
  const M high = number_of(static_cast<Magnitude<M>>(found.bits[1]));
  const M weight = static_cast<M>(q.weight);
  double value = weight == M(0) || low == high ? low : low + weight * (high - low);
  if (value < 1.0) value = 1.0;
  if (q.clip > 0.0 && value > q.clip) value = q.clip;
  q.thresholds[row] = found.nans ? __longlong_as_double(0x7ff8000000000000) : value;
}

// What a block counts, in its shared memory.
struct Counts {
  uint32_t of[2][digits];
  uint32_t warps[32];
  Found found;

  __device__ void clear() {
    for (int i = threadIdx.x; i < 2 * digits; i += blockDim.x) of[0][i] = 0;
  }

  // Counts the digits of `width` bits from `shift` on of elements [begin, end).
  template <class M>
  __device__ bool add(const M* x, int64_t begin, int64_t end, int shift, int width) {
    const uint64_t low = found.bits[0], high = found.bits[1];
    bool nan = false;
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
      const M value = x[i];
      nan |= value != value;
      const Magnitude<M> bits = magnitude(value);
      const uint64_t before = static_cast<uint64_t>(bits) >> shift >> width;
      const uint32_t digit = static_cast<uint32_t>(bits >> shift) & ((1u << width) - 1);
      if (before == low) atomicAdd(&of[0][digit], 1u);
      if (low != high && before == high) atomicAdd(&of[1][digit], 1u);
    }
    return nan;
  }

  // Finds the digits in which the ranks fall. Every thread of the block calls it, after a barrier.
  __device__ void find(int width) {
    constexpr int each = digits / select_threads;
    const bool same = found.bits[0] == found.bits[1];
    const int64_t ranks[2] = {found.rank[0], found.rank[1]};
    for (int which = 0; which < 2; ++which) {
      const uint32_t* own = &of[same ? 0 : which][each * threadIdx.x];
      uint32_t total = 0;
#pragma unroll
      for (int i = 0; i < each; ++i) total += own[i];
      uint32_t sum = total;  // with the threads before
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const uint32_t other = __shfl_up_sync(0xffffffffu, sum, distance);
        if (threadIdx.x % 32 >= distance) sum += other;
      }
      if (threadIdx.x % 32 == 31) warps[threadIdx.x / 32] = sum;
      __syncthreads();
      for (int warp = 0; warp < static_cast<int>(threadIdx.x) / 32; ++warp) sum += warps[warp];
      int64_t smaller = static_cast<int64_t>(sum) - total;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const int64_t rank = ranks[which] - smaller;
        if (rank >= 0 && rank < own[i]) {
          found.bits[which] = found.bits[which] << width | (each * threadIdx.x + i);
          found.rank[which] = rank;
        }
        smaller += own[i];
      }
      __syncthreads();
    }
  }
};

// All passes, a row a block.
template <class M>
__global__ void __launch_bounds__(select_threads) select_kernel(Quantiles q, const M* __restrict__ x0) {
  __shared__ Counts counts;
  const int64_t row = blockIdx.x;
  if (threadIdx.x == 0) counts.found = {{0, 0}, {q.below, q.above}, 0, 0};
  bool nan = false;
  for (int left = magnitude_bits<M>; left > 0;) {
    const int width = left < digit_bits ? left : digit_bits;
    left -= width;
    counts.clear();
    __syncthreads();
    nan |= counts.add(x0 + row * q.pitch, 0, q.cols, left, width);
    __syncthreads();
    counts.find(width);
  }
  const bool any_nan = __syncthreads_or(nan);
  if (threadIdx.x == 0) {
    counts.found.nans = any_nan;
    store_threshold<M>(q, row, counts.found);
  }
}

// One pass, `blocks` blocks a row. `totals` [rows, 2, digits] is 0 before and after.
template <class M>
__global__ void __launch_bounds__(select_threads) count_kernel(Quantiles q, const M* __restrict__ x0, int blocks,
                                                               int shift, int width, Found* found, uint32_t* totals) {
  __shared__ Counts counts;
  __shared__ bool last;
  const int64_t row = blockIdx.x / blocks;
  const int64_t begin = blockIdx.x % blocks * block_share;
  const int64_t end = begin + block_share < q.cols ? begin + block_share : q.cols;
  const bool first = shift + width == magnitude_bits<M>;
  uint32_t* const own = totals + row * 2 * digits;
  if (threadIdx.x == 0) {
    counts.found = found[row];
    if (first) counts.found = {{0, 0}, {q.below, q.above}, 0, 0};
  }
  counts.clear();
  __syncthreads();
  const bool nan = __syncthreads_or(counts.add(x0 + row * q.pitch, begin, end, shift, width));
  for (int i = threadIdx.x; i < 2 * digits; i += blockDim.x) {
    if (counts.of[0][i]) atomicAdd(&own[i], counts.of[0][i]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (nan) atomicOr(&found[row].nans, 1u);
    __threadfence();
    last = atomicAdd(&found[row].tickets, 1u) == static_cast<uint32_t>(blocks) - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int i = threadIdx.x; i < 2 * digits; i += blockDim.x) {
    counts.of[0][i] = __ldcg(&own[i]);
    own[i] = 0;
  }
  __syncthreads();
  counts.find(width);
  if (threadIdx.x != 0) return;
  counts.found.nans = __ldcg(&found[row].nans);
  counts.found.tickets = 0;
  found[row] = counts.found;
  if (shift == 0) store_threshold<M>(q, row, counts.found);
}

inline bool needs_counts(int64_t cols) { return cols > lone_block; }

inline uint64_t count_bytes(const Quantiles& q) {
  if (!needs_counts(q.cols)) return 0;
  return static_cast<uint64_t>(q.rows) * (sizeof(Found) + 2 * digits * sizeof(uint32_t));
}

// `memory` is count_bytes() of zeros.
template <class M>
variate_status launch_select(const variate_execution& execution, const Quantiles& q, const M* x0, void* memory) {
  if (!needs_counts(q.cols)) {
    return launch_config(execution, select_kernel<M>, q.rows, select_threads, 0, q, x0);
  }
  Found* const found = static_cast<Found*>(memory);
  uint32_t* const totals = reinterpret_cast<uint32_t*>(found + q.rows);
  const int blocks = static_cast<int>((q.cols + block_share - 1) / block_share);
  for (int left = magnitude_bits<M>; left > 0;) {
    const int width = left < digit_bits ? left : digit_bits;
    left -= width;
    const variate_status status = launch_config(execution, count_kernel<M>, q.rows * blocks, select_threads, 0, q, x0,
                                                blocks, left, width, found, totals);
    if (status != VARIATE_OK) return status;
  }
  return VARIATE_OK;
}

}  // namespace variate::cuda
