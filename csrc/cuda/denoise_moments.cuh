// Rescaled guidance: rescale std(output) / std(m) + 1 - rescale of each row, m the guided output; math in float64.
#pragma once

#include "denoise.cuh"
#include "rows.cuh"

namespace variate::cuda {

// Of the conditional and of the guided output.
struct Moments {
  double sum[2];
  double squares[2];

  __device__ __forceinline__ Moments operator+(const Moments& o) const {
    return {{sum[0] + o.sum[0], sum[1] + o.sum[1]}, {squares[0] + o.squares[0], squares[1] + o.squares[1]}};
  }
};

__device__ __forceinline__ Moments shuffle_xor(const Moments& value, int mask) {
  using cuda::shuffle_xor;
  return {{shuffle_xor(value.sum[0], mask), shuffle_xor(value.sum[1], mask)},
          {shuffle_xor(value.squares[0], mask), shuffle_xor(value.squares[1], mask)}};
}

__device__ __forceinline__ Moments sum_of(const RowPlan& plan, const Moments& value) {
  return combine_threads(plan, value, [](const Moments& a, const Moments& b) { return a + b; });
}

__device__ __forceinline__ double rescale_factor(const Moments& moments, int64_t cols, double rescale) {
  double about_mean[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const double sum = moments.sum[i];
    about_mean[i] = moments.squares[i] - sum * sum / static_cast<double>(cols);
    if (about_mean[i] < 0.0) about_mean[i] = 0.0;
  }
  return rescale * math::sqrt(about_mean[0] / about_mean[1]) + (1.0 - rescale);
}

template <class M, class O>
__global__ void __launch_bounds__(block_threads)
    moments_kernel(RowPlan plan, int64_t cols, O output, O unconditional, variate_tensor guidance_tensor,
                   double guidance_value, double rescale, Moments* partial, double* factors) {
  const RowShare share = row_share(plan);
  const M guidance = load_guidance<M>(guidance_tensor, guidance_value);
  Moments moments{};
  for (int64_t quad = share.first; quad < share.end; quad += plan.threads()) {
    const int count = quad_count(cols, quad);
    const typename O::Raw raw_output = output.fetch(share.row, quad, count);
    const typename O::Raw raw_unconditional = unconditional.fetch(share.row, quad, count);
    const Quad<M> conditional = O::unpack(raw_output);
    const Quad<M> guided = guide(conditional, O::unpack(raw_unconditional), guidance);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= count) continue;
      const double c = conditional.x[i], m = guided.x[i];
      moments = moments + Moments{{c, m}, {c * c, m * m}};
    }
  }
  moments = sum_of(plan, moments);
  if (!share.leader) return;
  if (plan.chunks == 1) {
    factors[share.row] = rescale_factor(moments, cols, rescale);
  } else {
    partial[share.row * plan.chunks + share.chunk] = moments;
  }
}

static __global__ void __launch_bounds__(block_threads)
    factor_kernel(RowPlan plan, int64_t cols, double rescale, const Moments* __restrict__ partial, double* factors) {
  const RowShare share = row_share(plan);
  Moments moments{};
  for (int64_t chunk = share.first; chunk < share.end; chunk += plan.threads()) {
    moments = moments + partial[share.row * plan.quads + chunk];
  }
  moments = sum_of(plan, moments);
  if (share.leader) factors[share.row] = rescale_factor(moments, cols, rescale);
}

}  // namespace variate::cuda
