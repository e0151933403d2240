// Kernels that make one result of each row: who reads what, and how threads combine.
//
// The columns of a row are shared out as a function of their number alone, so that a row's sum depends neither on the
// batch it is in nor on the device: short rows take a part of a warp, longer ones up to a block, very long ones several
// chunks of a block each, whose partial sums a second kernel adds.
#pragma once

#include "access.cuh"
#include "launch.cuh"

namespace variate::cuda {

struct RowPlan {
  static constexpr int64_t one_chunk = 2048;  // quads: up to here a second launch would cost more than it spreads
  static constexpr int64_t chunk_quads = 1024;

  int64_t rows;
  int64_t quads;   // of a row
  int64_t chunks;  // of a row
  int64_t length;  // of a chunk, in quads
  int shift;       // log2 of the threads of a chunk

  RowPlan(int64_t rows, int64_t quads) : rows(rows), quads(quads), chunks(1), length(quads), shift(0) {
    if (quads > one_chunk) {
      chunks = (quads + chunk_quads - 1) / chunk_quads;
      length = chunk_quads;
    }
    while (threads() < block_threads && 2 * threads() < length) ++shift;
  }

  // Rows of one chunk each, however long.
  static RowPlan whole(int64_t rows, int64_t quads) {
    RowPlan plan(rows, quads < one_chunk ? quads : one_chunk);
    plan.quads = plan.length = quads;
    return plan;
  }

  __host__ __device__ int threads() const { return 1 << shift; }
  int64_t blocks() const {
    const int64_t per_block = block_threads >> shift;
    return (rows * chunks + per_block - 1) / per_block;
  }
};

// What one thread reads: quads first, first + threads, ... below end. Nothing where the row does not exist.
struct RowShare {
  int64_t row;
  int64_t chunk;
  int64_t first;
  int64_t end;
  bool leader;  // writes the result
};

__host__ __device__ inline RowShare row_share(const RowPlan& plan, int64_t block, int thread) {
  const int lane = thread & (plan.threads() - 1);
  const int64_t item = block * (block_threads >> plan.shift) + (thread >> plan.shift);
  const int64_t row = plan.chunks == 1 ? item : item / plan.chunks;
  const int64_t chunk = plan.chunks == 1 ? 0 : item % plan.chunks;
  if (row >= plan.rows) return {row, chunk, 0, 0, false};
  const int64_t begin = chunk * plan.length;
  const int64_t end = begin + plan.length < plan.quads ? begin + plan.length : plan.quads;
  return {row, chunk, begin + lane, end, lane == 0};
}

__device__ inline RowShare row_share(const RowPlan& plan) {
  return row_share(plan, blockIdx.x, static_cast<int>(threadIdx.x));
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// combine() over the threads of each chunk, in a fixed order; the leader has the result. Every thread of the block
// calls it, and a kernel calls it once.
template <class T, class Combine>
__device__ __forceinline__ T combine_threads(const RowPlan& plan, T value, Combine combine) {
  const int threads = plan.threads();
  for (int mask = (threads < 32 ? threads : 32) / 2; mask > 0; mask /= 2) {
    value = combine(value, shuffle_xor(value, mask));
  }
  if (threads <= 32) return value;
  __shared__ T warps[block_threads / 32];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x % 32 == 0) warps[warp] = value;
  __syncthreads();
  if ((threadIdx.x & (threads - 1)) == 0) {
    for (int other = 1; other < threads / 32; ++other) value = combine(value, warps[warp + other]);
  }
  return value;
}

template <class T>
__device__ __forceinline__ T sum_threads(const RowPlan& plan, T value) {
  return combine_threads(plan, value, [](T a, T b) { return a + b; });
}

// Where a chunk's sum goes: to the result, or to the workspace if its row has others.
template <class M>
__device__ __forceinline__ void store_sum(const RowPlan& plan, const RowShare& share, const variate_tensor& out,
                                          double* partial, M sum) {
  if (!share.leader) return;
  if (plan.chunks == 1) {
    store_row(out, share.row, sum);
  } else {
    partial[share.row * plan.chunks + share.chunk] = sum;
  }
}

inline uint64_t partial_bytes(const RowPlan& plan) {
  return plan.chunks == 1 ? 0 : static_cast<uint64_t>(plan.rows) * static_cast<uint64_t>(plan.chunks) * sizeof(double);
}

// The second kernel of rows with several chunks: the chunks take the place of the quads.
static __global__ void __launch_bounds__(block_threads)
    add_chunks(RowPlan plan, const double* __restrict__ partial, variate_tensor out) {
  const RowShare share = row_share(plan);
  double sum = 0;
  for (int64_t chunk = share.first; chunk < share.end; chunk += plan.threads()) {
    sum += partial[share.row * plan.quads + chunk];
  }
  sum = sum_threads(plan, sum);
  if (share.leader) store_row(out, share.row, sum);
}

inline variate_status launch_add_chunks(const variate_execution& execution, const RowPlan& plan,
                                        const variate_tensor& out) {
  if (plan.chunks == 1) return VARIATE_OK;
  const RowPlan sums = RowPlan::whole(plan.rows, plan.chunks);
  return launch(execution, add_chunks, sums.blocks(), sums, static_cast<const double*>(execution.workspace), out);
}

}  // namespace variate::cuda
