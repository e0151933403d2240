#include <variate/math/reparam.hpp>

#include "access.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "noise.cuh"
#include "rows.cuh"

namespace variate::cuda {

namespace {

// Quads in flight in a thread of the forward kernel, and the blocks of a multiprocessor that its registers leave room
// for: as many as fit without spilling.
template <class Tensor, bool has_prior>
constexpr int unroll = Tensor::dense && !has_prior ? 2 : 1;
template <class Tensor>
constexpr int forward_blocks = sizeof(typename Tensor::Math) == 8 ? 2
                               : Tensor::dense                    ? 4
                                                                  : 3;

template <class Tensor>
struct Inputs {
  Tensor mean;
  Tensor log_var;
  Tensor prior_mean;
  Tensor prior_log_var;
};

// One quad of every input, not yet waited for.
template <class Tensor, bool has_prior>
struct Fetched {
  typename Tensor::Raw mean;
  typename Tensor::Raw log_var;
  typename Tensor::Raw prior_mean;
  typename Tensor::Raw prior_log_var;

  __device__ __forceinline__ void fetch(const Inputs<Tensor>& in, int64_t row, int64_t quad, int count) {
    mean = in.mean.fetch(row, quad, count);
    log_var = in.log_var.fetch(row, quad, count);
    if constexpr (has_prior) {
      prior_mean = fetch_or_zero(in.prior_mean, row, quad, count);
      prior_log_var = fetch_or_zero(in.prior_log_var, row, quad, count);
    }
  }
};

template <class Tensor, bool has_prior>
__global__ void __launch_bounds__(block_threads, forward_blocks<Tensor>)
    forward_kernel(RowPlan plan, int64_t cols, variate_noise noise, Inputs<Tensor> in, FreeBits threshold, Tensor z,
                   variate_tensor kl, double* partial) {
  using M = typename Tensor::Math;
  constexpr int u = unroll<Tensor, has_prior>;
  const RowShare share = row_share(plan);
  const int threads = plan.threads();
  M sum = 0;
  if (share.first < share.end) {
    const Stream<Tensor::dense> stream(noise);
    const M least = math::least_kl(threshold.load<M>());
    for (int64_t first = share.first; first < share.end; first += u * threads) {
      Fetched<Tensor, has_prior> fetched[u];
#pragma unroll
      for (int k = 0; k < u; ++k) {
        const int64_t quad = first + k * threads;
        if (quad < share.end) fetched[k].fetch(in, share.row, quad, quad_count(cols, quad));
      }
#pragma unroll
      for (int k = 0; k < u; ++k) {
        const int64_t quad = first + k * threads;
        if (quad >= share.end) break;
        const int count = quad_count(cols, quad);
        const Quad<float> noise_quad = normal_quad(stream.words(share.row, quad));
        const Quad<M> mean = Tensor::unpack(fetched[k].mean);
        const Quad<M> log_var = Tensor::unpack(fetched[k].log_var);
        const Quad<M> prior_mean = Tensor::unpack(fetched[k].prior_mean);
        const Quad<M> prior_log_var = Tensor::unpack(fetched[k].prior_log_var);
        Quad<M> sample;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const math::Spread<M> spread = math::spread(log_var.x[i]);
          sample.x[i] = math::fma(spread.sigma, static_cast<M>(noise_quad.x[i]), mean.x[i]);
          M term;
          if constexpr (has_prior) {
            term = math::normal_kl(mean.x[i], log_var.x[i], prior_mean.x[i], prior_log_var.x[i]).kl;
          } else {
            term = math::standard_normal_kl(mean.x[i], log_var.x[i], spread.variance_minus_1);
          }
          if (i < count) sum += math::apply_free_bits(term, least);
        }
        z.store(share.row, quad, count, sample);
      }
    }
  }
  if (!kl.data) return;
  store_sum(plan, share, kl, partial, sum_threads(plan, sum));
}

// With neither prior given the prior is standard; without kl it does not matter.
bool needs_prior(const variate_normal_rsample_kl_args& a) {
  return a.kl.data && (a.prior_mean.data || a.prior_log_var.data);
}

RowPlan plan_of(const variate_normal_rsample_kl_args& a) { return RowPlan(a.rows, (a.cols + 3) / 4); }

template <class Tensor, bool has_prior>
variate_status forward_as(const variate_normal_rsample_kl_args& a) {
  const RowPlan plan = plan_of(a);
  const Inputs<Tensor> in{Tensor(a.mean), Tensor(a.log_var), Tensor(a.prior_mean), Tensor(a.prior_log_var)};
  const variate_status status =
      launch(a.execution, forward_kernel<Tensor, has_prior>, plan.blocks(), plan, a.cols, a.noise, in,
             FreeBits{a.free_bits, a.free_bits_value}, Tensor(a.z), a.kl, static_cast<double*>(a.execution.workspace));
  if (status != VARIATE_OK || !a.kl.data) return status;
  return launch_add_chunks(a.execution, plan, a.kl);
}

template <class Tensor>
variate_status forward(const variate_normal_rsample_kl_args& a) {
  return needs_prior(a) ? forward_as<Tensor, true>(a) : forward_as<Tensor, false>(a);
}

template <class Tensor>
struct Outputs {
  Tensor mean;
  Tensor log_var;
  Tensor prior_mean;
  Tensor prior_log_var;
};

template <class Tensor>
__device__ __forceinline__ void store_if_present(const Tensor& tensor, Position at, int count,
                                                 const Quad<typename Tensor::Math>& values) {
  if (tensor.present()) tensor.store(at.row, at.quad, count, values);
}

template <class Tensor, bool has_prior>
__global__ void __launch_bounds__(block_threads)
    backward_kernel(Plane plane, variate_noise noise, Tensor grad_z_tensor, variate_tensor grad_kl_tensor,
                    Inputs<Tensor> in, FreeBits threshold, Outputs<Tensor> out) {
  using M = typename Tensor::Math;
  const Stream<Tensor::dense> stream(noise);
  const M least = math::least_kl(threshold.load<M>());
  const bool has_kl = grad_kl_tensor.data != nullptr;
  const bool has_z = grad_z_tensor.present();
  for (Position at = plane.start(thread_index()); plane.contains(at); at = plane.next(at)) {
    const int count = plane.count(at);
    const typename Tensor::Raw raw_grad_z = fetch_or_zero(grad_z_tensor, at.row, at.quad, count);
    Fetched<Tensor, has_prior> fetched;
    fetched.fetch(in, at.row, at.quad, count);
    const M grad_kl = load_row<M>(grad_kl_tensor, at.row);
    Quad<float> noise_quad{};
    if (has_z) noise_quad = normal_quad(stream.words(at.row, at.quad));
    const Quad<M> grad_z = Tensor::unpack(raw_grad_z);
    const Quad<M> mean = Tensor::unpack(fetched.mean);
    const Quad<M> log_var = Tensor::unpack(fetched.log_var);
    const Quad<M> prior_mean = Tensor::unpack(fetched.prior_mean);
    const Quad<M> prior_log_var = Tensor::unpack(fetched.prior_log_var);
    Quad<M> grad_mean{};
    Quad<M> grad_log_var{};
    Quad<M> grad_prior_mean{};
    Quad<M> grad_prior_log_var{};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const math::Spread<M> spread = math::spread(log_var.x[i]);
      if (has_kl) {
        if constexpr (has_prior) {
          const math::NormalKl<M> k = math::normal_kl(mean.x[i], log_var.x[i], prior_mean.x[i], prior_log_var.x[i]);
          const M g = k.kl < least ? M(0) : grad_kl;
          grad_mean.x[i] = g * k.scaled_difference;
          grad_log_var.x[i] = M(0.5) * g * k.ratio_minus_1;
          grad_prior_mean.x[i] = -g * k.scaled_difference;
          grad_prior_log_var.x[i] = M(-0.5) * g * (k.ratio_minus_1 + k.squared_distance);
        } else {
          const M kl = math::standard_normal_kl(mean.x[i], log_var.x[i], spread.variance_minus_1);
          const M g = kl < least ? M(0) : grad_kl;
          grad_mean.x[i] = g * mean.x[i];
          grad_log_var.x[i] = M(0.5) * g * spread.variance_minus_1;
        }
      }
      if (has_z) {
        const M half = M(0.5) * grad_z.x[i] * static_cast<M>(noise_quad.x[i]);
        grad_mean.x[i] += grad_z.x[i];
        grad_log_var.x[i] = math::fma(half, spread.sigma, grad_log_var.x[i]);
      }
    }
    store_if_present(out.mean, at, count, grad_mean);
    store_if_present(out.log_var, at, count, grad_log_var);
    if constexpr (has_prior) {
      store_if_present(out.prior_mean, at, count, grad_prior_mean);
      store_if_present(out.prior_log_var, at, count, grad_prior_log_var);
    }
  }
}

template <class Tensor, bool has_prior>
variate_status backward_as(const variate_normal_rsample_kl_backward_args& a) {
  const Inputs<Tensor> in{Tensor(a.mean), Tensor(a.log_var), Tensor(a.prior_mean), Tensor(a.prior_log_var)};
  const Outputs<Tensor> out{Tensor(a.grad_mean), Tensor(a.grad_log_var), Tensor(a.grad_prior_mean),
                            Tensor(a.grad_prior_log_var)};
  return launch_plane(a.execution, backward_kernel<Tensor, has_prior>, 1, Plane(a.rows, a.cols), a.noise,
                      Tensor(a.grad_z), a.grad_kl, in, FreeBits{a.free_bits, a.free_bits_value}, out);
}

template <class Tensor>
variate_status backward(const variate_normal_rsample_kl_backward_args& a) {
  const bool has_prior = a.prior_mean.data || a.prior_log_var.data;
  return has_prior ? backward_as<Tensor, true>(a) : backward_as<Tensor, false>(a);
}

template <class Args>
bool is_double(const Args& a) {
  const auto is = [](const variate_tensor& t) { return t.data && t.dtype == VARIATE_FLOAT64; };
  return is(a.mean) || is(a.log_var) || is(a.prior_mean) || is(a.prior_log_var);
}

template <class Tensor>
bool forward_fits(const variate_normal_rsample_kl_args& a) {
  return fits<Tensor>(a.rows, a.mean, a.log_var, a.prior_mean, a.prior_log_var, a.z);
}

template <class Tensor>
bool backward_fits(const variate_normal_rsample_kl_backward_args& a) {
  return fits<Tensor>(a.rows, a.grad_z, a.mean, a.log_var, a.prior_mean, a.prior_log_var, a.grad_mean, a.grad_log_var,
                      a.grad_prior_mean, a.grad_prior_log_var);
}

}  // namespace

uint64_t normal_rsample_kl_workspace(const variate_normal_rsample_kl_args& a) {
  return a.kl.data ? partial_bytes(plan_of(a)) : 0;
}

variate_status normal_rsample_kl(const variate_normal_rsample_kl_args& a) {
  if (a.noise.key_stride == 0) {
    if (forward_fits<Dense<float>>(a)) return forward<Dense<float>>(a);
    if (forward_fits<Dense<__nv_bfloat16>>(a)) return forward<Dense<__nv_bfloat16>>(a);
    if (forward_fits<Dense<__half>>(a)) return forward<Dense<__half>>(a);
  }
  return is_double(a) ? forward<Strided<double>>(a) : forward<Strided<float>>(a);
}

variate_status normal_rsample_kl_backward(const variate_normal_rsample_kl_backward_args& a) {
  if (a.noise.key_stride == 0) {
    if (backward_fits<Dense<float>>(a)) return backward<Dense<float>>(a);
    if (backward_fits<Dense<__nv_bfloat16>>(a)) return backward<Dense<__nv_bfloat16>>(a);
    if (backward_fits<Dense<__half>>(a)) return backward<Dense<__half>>(a);
  }
  return is_double(a) ? backward<Strided<double>>(a) : backward<Strided<float>>(a);
}

}  // namespace variate::cuda
