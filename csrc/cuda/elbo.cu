#include <variate/math/elbo.hpp>

#include "access.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "rows.cuh"

namespace variate::cuda {

namespace {

// What an op reads and computes of a quad: `Terms` has the type Math, the struct Raw of loads that are not yet waited
// for, `fetch` for them, and `terms` for what they give. Dense reads keep `unroll` quads in flight.

// Blocks of a multiprocessor that the registers of float64 math leave room for, without spilling.
template <class Math>
constexpr int least_blocks = sizeof(Math) == 8 ? 2 : 1;

template <class Terms>
__global__ void __launch_bounds__(block_threads, least_blocks<typename Terms::Math>)
    forward_kernel(RowPlan plan, int64_t cols, Terms op, variate_tensor result, double* partial) {
  using M = typename Terms::Math;
  constexpr int u = Terms::unroll;
  const RowShare share = row_share(plan);
  const int threads = plan.threads();
  M sum = 0;
  for (int64_t first = share.first; first < share.end; first += u * threads) {
    typename Terms::Raw raw[u];
#pragma unroll
    for (int k = 0; k < u; ++k) {
      const int64_t quad = first + k * threads;
      if (quad < share.end) raw[k] = op.fetch(share.row, quad, quad_count(cols, quad));
    }
#pragma unroll
    for (int k = 0; k < u; ++k) {
      const int64_t quad = first + k * threads;
      if (quad >= share.end) break;
      const int count = quad_count(cols, quad);
      const Quad<M> terms = op.terms(raw[k]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i < count) sum += terms.x[i];
      }
    }
  }
  store_sum(plan, share, result, partial, sum_threads(plan, sum));
}

// Every term a result.
template <class Terms>
__global__ void __launch_bounds__(block_threads, least_blocks<typename Terms::Math>)
    terms_kernel(Plane plane, Terms op, Strided<typename Terms::Math> result) {
  for (Position at = plane.start(thread_index()); plane.contains(at); at = plane.next(at)) {
    const int count = plane.count(at);
    result.store(at.row, at.quad, count, op.terms(op.fetch(at.row, at.quad, count)));
  }
}

template <class Args>
RowPlan plan_of(const Args& a) {
  return RowPlan(a.rows, (a.cols + 3) / 4);
}

template <class Args>
uint64_t workspace(const Args& a) {
  return a.elementwise ? 0 : partial_bytes(plan_of(a));
}

template <class Terms, class Args>
variate_status sums(const Args& a, const variate_tensor& result) {
  const RowPlan plan = plan_of(a);
  const variate_status status = launch(a.execution, forward_kernel<Terms>, plan.blocks(), plan, a.cols, Terms(a),
                                       result, static_cast<double*>(a.execution.workspace));
  return status == VARIATE_OK ? launch_add_chunks(a.execution, plan, result) : status;
}

template <class Terms, class Args>
variate_status elements(const Args& a, const variate_tensor& result) {
  return launch_plane(a.execution, terms_kernel<Terms>, 1, Plane(a.rows, a.cols), Terms(a),
                      Strided<typename Terms::Math>(result));
}

template <class Terms, class Args>
variate_status sums_or_elements(const Args& a, const variate_tensor& result) {
  return a.elementwise ? elements<Terms>(a, result) : sums<Terms>(a, result);
}

template <class... Tensors>
bool any_double(const Tensors&... tensors) {
  return ((tensors.data && tensors.dtype == VARIATE_FLOAT64) || ...);
}

template <class Logits, class Target>
struct BernoulliTerms {
  using Math = typename Logits::Math;
  static constexpr int unroll = Logits::dense ? 2 : 1;

  struct Raw {
    typename Logits::Raw logits;
    typename Target::Raw target;
  };

  Logits logits;
  Target target;

  template <class Args>
  explicit BernoulliTerms(const Args& a) : logits(a.logits), target(a.target) {}

  __device__ __forceinline__ Raw fetch(int64_t row, int64_t quad, int count) const {
    return {logits.fetch(row, quad, count), target.fetch(row, quad, count)};
  }

  __device__ __forceinline__ Quad<Math> terms(const Raw& raw) const {
    const Quad<Math> x = Logits::unpack(raw.logits);
    const Quad<Math> y = Target::unpack(raw.target);
    Quad<Math> result;
#pragma unroll
    for (int i = 0; i < 4; ++i) result.x[i] = math::bernoulli_nll(x.x[i], y.x[i]);
    return result;
  }
};

template <class Logits, class Target>
__global__ void __launch_bounds__(block_threads)
    backward_kernel(Plane plane, ResultGradient grad_nll, BernoulliTerms<Logits, Target> op, Logits grad_logits,
                    Target grad_target) {
  using M = typename Logits::Math;
  constexpr int u = op.unroll;
  for (Position next = plane.start(thread_index()); plane.contains(next);) {
    Position at[u];
    Quad<M> grad[u];
    typename BernoulliTerms<Logits, Target>::Raw raw[u];
#pragma unroll
    for (int k = 0; k < u; ++k, next = plane.next(next)) {
      at[k] = next;
      if (!plane.contains(next)) continue;
      raw[k] = op.fetch(next.row, next.quad, plane.count(next));
      grad[k] = grad_nll.load<M>(next.row, next.quad, plane.count(next));
    }
#pragma unroll
    for (int k = 0; k < u; ++k) {
      if (!plane.contains(at[k])) break;
      const int count = plane.count(at[k]);
      const Quad<M> x = Logits::unpack(raw[k].logits);
      const Quad<M> y = Target::unpack(raw[k].target);
      Quad<M> result;
      if (grad_logits.present()) {
#pragma unroll
        for (int i = 0; i < 4; ++i) result.x[i] = grad[k].x[i] * math::bernoulli_nll_gradient(x.x[i], y.x[i]);
        grad_logits.store(at[k].row, at[k].quad, count, result);
      }
      if (grad_target.present()) {
#pragma unroll
        for (int i = 0; i < 4; ++i) result.x[i] = -grad[k].x[i] * x.x[i];
        grad_target.store(at[k].row, at[k].quad, count, result);
      }
    }
  }
}

template <class Logits, class Target>
variate_status backward(const variate_bernoulli_nll_backward_args& a) {
  using Terms = BernoulliTerms<Logits, Target>;
  return launch_plane(a.execution, backward_kernel<Logits, Target>, Terms::unroll, Plane(a.rows, a.cols),
                      ResultGradient{a.grad_nll, a.elementwise != 0}, Terms(a), Logits(a.grad_logits),
                      Target(a.grad_target));
}

template <class Logits, class Target>
bool forward_fits(const variate_bernoulli_nll_args& a) {
  return !a.elementwise && fits<Logits>(a.rows, a.logits) && fits<Target>(a.rows, a.target);
}

template <class Logits, class Target>
bool backward_fits(const variate_bernoulli_nll_backward_args& a) {
  return fits<Logits>(a.rows, a.logits, a.grad_logits) && fits<Target>(a.rows, a.target, a.grad_target);
}

template <class Logits, class Target>
variate_status forward(const variate_bernoulli_nll_args& a) {
  return sums<BernoulliTerms<Logits, Target>>(a, a.nll);
}

// The divergence of two normals. Dense reads are of log_var, and know whether there is a prior; strided ones take any
// parametrisation, and a prior that is left out as the standard normal.
template <class Tensor, bool has_prior>
struct NormalKlTerms {
  using Math = typename Tensor::Math;
  static constexpr int unroll = Tensor::dense && !has_prior ? 2 : 1;

  struct Raw {
    typename Tensor::Raw mean;
    typename Tensor::Raw spread;
    typename Tensor::Raw prior_mean;
    typename Tensor::Raw prior_spread;
  };

  Tensor mean;
  Tensor spread;
  Tensor prior_mean;
  Tensor prior_spread;
  FreeBits threshold;
  variate_parametrization parametrization;

  template <class Args>
  explicit NormalKlTerms(const Args& a)
      : mean(a.mean),
        spread(a.spread),
        prior_mean(a.prior_mean),
        prior_spread(a.prior_spread),
        threshold{a.free_bits, a.free_bits_value},
        parametrization(a.parametrization) {}

  __device__ __forceinline__ Math least() const { return math::least_kl(threshold.load<Math>()); }

  __device__ __forceinline__ Raw fetch(int64_t row, int64_t quad, int count) const {
    Raw raw{};
    raw.mean = mean.fetch(row, quad, count);
    raw.spread = spread.fetch(row, quad, count);
    if constexpr (has_prior) {
      raw.prior_mean = fetch_or_zero(prior_mean, row, quad, count);
      raw.prior_spread = fetch_or_zero(prior_spread, row, quad, count);
    }
    return raw;
  }

  __device__ __forceinline__ Quad<Math> priors(const Raw& raw) const {
    Quad<Math> x = Tensor::unpack(raw.prior_spread);
    if constexpr (!Tensor::dense) {
      if (!prior_spread.present() && parametrization == VARIATE_SCALE) x = {{Math(1), Math(1), Math(1), Math(1)}};
    }
    return x;
  }

  __device__ __forceinline__ math::NormalKl<Math> parts(Math m, Math s, Math pm, Math ps) const {
    if constexpr (!has_prior) {
      return math::normal_kl(m, s);
    } else if constexpr (Tensor::dense) {
      return math::normal_kl(m, s, pm, ps);
    } else {
      switch (parametrization) {
        case VARIATE_SCALE: return math::normal_kl<VARIATE_SCALE>(m, s, pm, ps);
        case VARIATE_LOG_SCALE: return math::normal_kl<VARIATE_LOG_SCALE>(m, s, pm, ps);
        default: return math::normal_kl(m, s, pm, ps);
      }
    }
  }

  __device__ __forceinline__ Math slope(Math s) const {
    if constexpr (Tensor::dense) return Math(1);
    if (parametrization == VARIATE_SCALE) return math::log_variance_slope<VARIATE_SCALE>(s);
    return parametrization == VARIATE_LOG_SCALE ? Math(2) : Math(1);
  }

  __device__ __forceinline__ Quad<Math> terms(const Raw& raw) const {
    const Quad<Math> m = Tensor::unpack(raw.mean), s = Tensor::unpack(raw.spread);
    const Quad<Math> pm = Tensor::unpack(raw.prior_mean), ps = priors(raw);
    const Math bound = least();
    Quad<Math> result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      result.x[i] = math::apply_free_bits(parts(m.x[i], s.x[i], pm.x[i], ps.x[i]).kl, bound);
    }
    return result;
  }
};

template <class Tensor>
__device__ __forceinline__ void store_if_present(const Tensor& tensor, Position at, int count,
                                                 const Quad<typename Tensor::Math>& values) {
  if (tensor.present()) tensor.store(at.row, at.quad, count, values);
}

template <class Tensor, bool has_prior>
__global__ void __launch_bounds__(block_threads, least_blocks<typename Tensor::Math>)
    kl_backward_kernel(Plane plane, ResultGradient grad_kl, NormalKlTerms<Tensor, has_prior> op, Tensor grad_mean,
                       Tensor grad_spread, Tensor grad_prior_mean, Tensor grad_prior_spread) {
  using M = typename Tensor::Math;
  const M bound = op.least();
  for (Position at = plane.start(thread_index()); plane.contains(at); at = plane.next(at)) {
    const int count = plane.count(at);
    const auto raw = op.fetch(at.row, at.quad, count);
    const Quad<M> grad = grad_kl.load<M>(at.row, at.quad, count);
    const Quad<M> m = Tensor::unpack(raw.mean), s = Tensor::unpack(raw.spread);
    const Quad<M> pm = Tensor::unpack(raw.prior_mean), ps = op.priors(raw);
    Quad<M> by_mean, by_spread, by_prior_mean, by_prior_spread;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const math::NormalKl<M> k = op.parts(m.x[i], s.x[i], pm.x[i], ps.x[i]);
      const M g = k.kl < bound ? M(0) : grad.x[i];
      by_mean.x[i] = g * k.scaled_difference;
      by_prior_mean.x[i] = -g * k.scaled_difference;
      by_spread.x[i] = M(0.5) * g * k.ratio_minus_1 * op.slope(s.x[i]);
      by_prior_spread.x[i] = M(-0.5) * g * (k.ratio_minus_1 + k.squared_distance) * op.slope(ps.x[i]);
    }
    store_if_present(grad_mean, at, count, by_mean);
    store_if_present(grad_spread, at, count, by_spread);
    if constexpr (has_prior) {
      store_if_present(grad_prior_mean, at, count, by_prior_mean);
      store_if_present(grad_prior_spread, at, count, by_prior_spread);
    }
  }
}

template <class Tensor, bool has_prior>
variate_status kl_backward(const variate_normal_kl_backward_args& a) {
  return launch_plane(a.execution, kl_backward_kernel<Tensor, has_prior>, 1, Plane(a.rows, a.cols),
                      ResultGradient{a.grad_kl, a.elementwise != 0}, NormalKlTerms<Tensor, has_prior>(a),
                      Tensor(a.grad_mean), Tensor(a.grad_spread), Tensor(a.grad_prior_mean),
                      Tensor(a.grad_prior_spread));
}

template <class Args>
bool has_prior(const Args& a) {
  return a.prior_mean.data || a.prior_spread.data;
}

template <class Tensor>
bool kl_fits(const variate_normal_kl_args& a) {
  return !a.elementwise && a.parametrization == VARIATE_LOG_VAR &&
         fits<Tensor>(a.rows, a.mean, a.spread, a.prior_mean, a.prior_spread);
}

template <class Tensor>
bool kl_backward_fits(const variate_normal_kl_backward_args& a) {
  return a.parametrization == VARIATE_LOG_VAR &&
         fits<Tensor>(a.rows, a.mean, a.spread, a.prior_mean, a.prior_spread, a.grad_mean, a.grad_spread,
                      a.grad_prior_mean, a.grad_prior_spread);
}

template <class Tensor>
variate_status dense_kl(const variate_normal_kl_args& a) {
  return has_prior(a) ? sums<NormalKlTerms<Tensor, true>>(a, a.kl) : sums<NormalKlTerms<Tensor, false>>(a, a.kl);
}

template <class Tensor>
variate_status dense_kl_backward(const variate_normal_kl_backward_args& a) {
  return has_prior(a) ? kl_backward<Tensor, true>(a) : kl_backward<Tensor, false>(a);
}

using Float = Dense<float>;
using Bfloat16 = Dense<__nv_bfloat16>;
using Half = Dense<__half>;
using Byte = Dense<uint8_t>;

}  // namespace

uint64_t normal_kl_workspace(const variate_normal_kl_args& a) { return workspace(a); }

variate_status normal_kl(const variate_normal_kl_args& a) {
  if (kl_fits<Float>(a)) return dense_kl<Float>(a);
  if (kl_fits<Bfloat16>(a)) return dense_kl<Bfloat16>(a);
  if (kl_fits<Half>(a)) return dense_kl<Half>(a);
  return any_double(a.mean, a.spread, a.prior_mean, a.prior_spread)
             ? sums_or_elements<NormalKlTerms<Strided<double>, true>>(a, a.kl)
             : sums_or_elements<NormalKlTerms<Strided<float>, true>>(a, a.kl);
}

variate_status normal_kl_backward(const variate_normal_kl_backward_args& a) {
  if (kl_backward_fits<Float>(a)) return dense_kl_backward<Float>(a);
  if (kl_backward_fits<Bfloat16>(a)) return dense_kl_backward<Bfloat16>(a);
  if (kl_backward_fits<Half>(a)) return dense_kl_backward<Half>(a);
  return any_double(a.mean, a.spread, a.prior_mean, a.prior_spread) ? kl_backward<Strided<double>, true>(a)
                                                                    : kl_backward<Strided<float>, true>(a);
}

uint64_t bernoulli_nll_workspace(const variate_bernoulli_nll_args& a) { return workspace(a); }

// Dense pairs that training meets: one dtype for both, byte targets, and float32 data under autocast.
variate_status bernoulli_nll(const variate_bernoulli_nll_args& a) {
  if (forward_fits<Float, Float>(a)) return forward<Float, Float>(a);
  if (forward_fits<Float, Byte>(a)) return forward<Float, Byte>(a);
  if (forward_fits<Bfloat16, Bfloat16>(a)) return forward<Bfloat16, Bfloat16>(a);
  if (forward_fits<Bfloat16, Float>(a)) return forward<Bfloat16, Float>(a);
  if (forward_fits<Half, Half>(a)) return forward<Half, Half>(a);
  if (forward_fits<Half, Float>(a)) return forward<Half, Float>(a);
  return any_double(a.logits, a.target) ? sums_or_elements<BernoulliTerms<Strided<double>, Strided<double>>>(a, a.nll)
                                        : sums_or_elements<BernoulliTerms<Strided<float>, Strided<float>>>(a, a.nll);
}

variate_status bernoulli_nll_backward(const variate_bernoulli_nll_backward_args& a) {
  if (backward_fits<Float, Float>(a)) return backward<Float, Float>(a);
  if (backward_fits<Float, Byte>(a)) return backward<Float, Byte>(a);
  if (backward_fits<Bfloat16, Bfloat16>(a)) return backward<Bfloat16, Bfloat16>(a);
  if (backward_fits<Bfloat16, Float>(a)) return backward<Bfloat16, Float>(a);
  if (backward_fits<Half, Half>(a)) return backward<Half, Half>(a);
  if (backward_fits<Half, Float>(a)) return backward<Half, Float>(a);
  if (any_double(a.logits, a.target)) return backward<Strided<double>, Strided<double>>(a);
  return backward<Strided<float>, Strided<float>>(a);
}

}  // namespace variate::cuda
