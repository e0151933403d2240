#include <variate/math/elbo.hpp>

#include "access.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "rows.cuh"

namespace variate::cuda {

namespace {

template <class Tensor>
constexpr int unroll = Tensor::dense ? 2 : 1;

template <class Logits, class Target>
__global__ void __launch_bounds__(block_threads)
    forward_kernel(RowPlan plan, int64_t cols, Logits logits, Target target, variate_tensor nll, double* partial) {
  using M = typename Logits::Math;
  constexpr int u = unroll<Logits>;
  const RowShare share = row_share(plan);
  const int threads = plan.threads();
  M sum = 0;
  for (int64_t first = share.first; first < share.end; first += u * threads) {
    typename Logits::Raw raw_logits[u];
    typename Target::Raw raw_target[u];
#pragma unroll
    for (int k = 0; k < u; ++k) {
      const int64_t quad = first + k * threads;
      if (quad >= share.end) break;
      raw_logits[k] = logits.fetch(share.row, quad, quad_count(cols, quad));
      raw_target[k] = target.fetch(share.row, quad, quad_count(cols, quad));
    }
#pragma unroll
    for (int k = 0; k < u; ++k) {
      const int64_t quad = first + k * threads;
      if (quad >= share.end) break;
      const int count = quad_count(cols, quad);
      const Quad<M> x = Logits::unpack(raw_logits[k]);
      const Quad<M> y = Target::unpack(raw_target[k]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const M term = math::bernoulli_nll(x.x[i], y.x[i]);
        if (i < count) sum += term;
      }
    }
  }
  store_sum(plan, share, nll, partial, sum_threads(plan, sum));
}

RowPlan plan_of(const variate_bernoulli_nll_args& a) { return RowPlan(a.rows, (a.cols + 3) / 4); }

template <class Logits, class Target>
variate_status forward(const variate_bernoulli_nll_args& a) {
  const RowPlan plan = plan_of(a);
  const variate_status status =
      launch(a.execution, forward_kernel<Logits, Target>, plan.blocks(), plan, a.cols, Logits(a.logits),
             Target(a.target), a.nll, static_cast<double*>(a.execution.workspace));
  return status == VARIATE_OK ? launch_add_chunks(a.execution, plan, a.nll) : status;
}

template <class Logits, class Target>
__global__ void __launch_bounds__(block_threads)
    backward_kernel(Plane plane, variate_tensor grad_nll, Logits logits, Target target, Logits grad_logits,
                    Target grad_target) {
  using M = typename Logits::Math;
  constexpr int u = unroll<Logits>;
  for (Position next = plane.start(thread_index()); plane.contains(next);) {
    Position at[u];
    M grad[u];
    typename Logits::Raw raw_logits[u];
    typename Target::Raw raw_target[u];
#pragma unroll
    for (int k = 0; k < u; ++k, next = plane.next(next)) {
      at[k] = next;
      if (!plane.contains(next)) continue;
      raw_logits[k] = logits.fetch(next.row, next.quad, plane.count(next));
      raw_target[k] = target.fetch(next.row, next.quad, plane.count(next));
      grad[k] = load_row<M>(grad_nll, next.row);
    }
#pragma unroll
    for (int k = 0; k < u; ++k) {
      if (!plane.contains(at[k])) break;
      const int count = plane.count(at[k]);
      const Quad<M> x = Logits::unpack(raw_logits[k]);
      const Quad<M> y = Target::unpack(raw_target[k]);
      Quad<M> result;
      if (grad_logits.present()) {
#pragma unroll
        for (int i = 0; i < 4; ++i) result.x[i] = grad[k] * math::bernoulli_nll_gradient(x.x[i], y.x[i]);
        grad_logits.store(at[k].row, at[k].quad, count, result);
      }
      if (grad_target.present()) {
#pragma unroll
        for (int i = 0; i < 4; ++i) result.x[i] = -grad[k] * x.x[i];
        grad_target.store(at[k].row, at[k].quad, count, result);
      }
    }
  }
}

template <class Logits, class Target>
variate_status backward(const variate_bernoulli_nll_backward_args& a) {
  return launch_plane(a.execution, backward_kernel<Logits, Target>, unroll<Logits>, Plane(a.rows, a.cols), a.grad_nll,
                      Logits(a.logits), Target(a.target), Logits(a.grad_logits), Target(a.grad_target));
}

template <class Args>
bool is_double(const Args& a) {
  return a.logits.dtype == VARIATE_FLOAT64 || a.target.dtype == VARIATE_FLOAT64;
}

template <class Logits, class Target>
bool forward_fits(const variate_bernoulli_nll_args& a) {
  return fits<Logits>(a.rows, a.logits) && fits<Target>(a.rows, a.target);
}

template <class Logits, class Target>
bool backward_fits(const variate_bernoulli_nll_backward_args& a) {
  return fits<Logits>(a.rows, a.logits, a.grad_logits) && fits<Target>(a.rows, a.target, a.grad_target);
}

}  // namespace

uint64_t bernoulli_nll_workspace(const variate_bernoulli_nll_args& a) { return partial_bytes(plan_of(a)); }

// Dense pairs that training meets: one dtype for both, byte targets, and float32 data under autocast.
variate_status bernoulli_nll(const variate_bernoulli_nll_args& a) {
  using Float = Dense<float>;
  using Bfloat16 = Dense<__nv_bfloat16>;
  using Half = Dense<__half>;
  using Byte = Dense<uint8_t>;
  if (a.elementwise) {
    set_error("variate_bernoulli_nll: elementwise has no CUDA kernel yet");
    return VARIATE_UNSUPPORTED;
  }
  if (forward_fits<Float, Float>(a)) return forward<Float, Float>(a);
  if (forward_fits<Float, Byte>(a)) return forward<Float, Byte>(a);
  if (forward_fits<Bfloat16, Bfloat16>(a)) return forward<Bfloat16, Bfloat16>(a);
  if (forward_fits<Bfloat16, Float>(a)) return forward<Bfloat16, Float>(a);
  if (forward_fits<Half, Half>(a)) return forward<Half, Half>(a);
  if (forward_fits<Half, Float>(a)) return forward<Half, Float>(a);
  if (is_double(a)) return forward<Strided<double>, Strided<double>>(a);
  return forward<Strided<float>, Strided<float>>(a);
}

variate_status bernoulli_nll_backward(const variate_bernoulli_nll_backward_args& a) {
  using Float = Dense<float>;
  using Bfloat16 = Dense<__nv_bfloat16>;
  using Half = Dense<__half>;
  using Byte = Dense<uint8_t>;
  if (a.elementwise) {
    set_error("variate_bernoulli_nll_backward: elementwise has no CUDA kernel yet");
    return VARIATE_UNSUPPORTED;
  }
  if (backward_fits<Float, Float>(a)) return backward<Float, Float>(a);
  if (backward_fits<Float, Byte>(a)) return backward<Float, Byte>(a);
  if (backward_fits<Bfloat16, Bfloat16>(a)) return backward<Bfloat16, Bfloat16>(a);
  if (backward_fits<Bfloat16, Float>(a)) return backward<Bfloat16, Float>(a);
  if (backward_fits<Half, Half>(a)) return backward<Half, Half>(a);
  if (backward_fits<Half, Float>(a)) return backward<Half, Float>(a);
  if (is_double(a)) return backward<Strided<double>, Strided<double>>(a);
  return backward<Strided<float>, Strided<float>>(a);
}

}  // namespace variate::cuda
