#include <variate/math/logistic.hpp>

#include "access.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "rows.cuh"

namespace variate::cuda {

namespace {

constexpr int colours = 3;

// The blocks of a multiprocessor that the registers leave room for without spilling.
template <class M>
constexpr int resident_blocks = sizeof(M) == 8 ? 2 : 3;

// An image of one dtype, or of any at run time, with math in M. A pixel is given by the address of its first channel.
template <class T, class M_ = float>
struct Image {
  using M = M_;
  variate_image image;

  __device__ __forceinline__ int64_t pixel(int64_t batch, int64_t index) const {
    return batch * image.batch_stride + index * image.pixel_stride;
  }
  __device__ __forceinline__ M load(int64_t pixel, int64_t channel) const {
    return convert<M>(__ldg(static_cast<const T*>(image.data) + pixel + channel * image.channel_stride));
  }
  __device__ __forceinline__ void store(int64_t pixel, int64_t channel, M value) const {
    static_cast<T*>(image.data)[pixel + channel * image.channel_stride] = convert<T>(value);
  }
};

struct Any;

template <class M_>
struct Image<Any, M_> {
  using M = M_;
  variate_image image;

  __device__ __forceinline__ int64_t pixel(int64_t batch, int64_t index) const {
    return batch * image.batch_stride + index * image.pixel_stride;
  }
  __device__ __forceinline__ M load(int64_t pixel, int64_t channel) const {
    switch (image.dtype) {
      case VARIATE_FLOAT64: return Image<double, M>{image}.load(pixel, channel);
      case VARIATE_BFLOAT16: return Image<__nv_bfloat16, M>{image}.load(pixel, channel);
      case VARIATE_FLOAT16: return Image<__half, M>{image}.load(pixel, channel);
      case VARIATE_UINT8: return Image<uint8_t, M>{image}.load(pixel, channel);
      default: return Image<float, M>{image}.load(pixel, channel);
    }
  }
  __device__ __forceinline__ void store(int64_t pixel, int64_t channel, M value) const {
    switch (image.dtype) {
      case VARIATE_FLOAT64: return Image<double, M>{image}.store(pixel, channel, value);
      case VARIATE_BFLOAT16: return Image<__nv_bfloat16, M>{image}.store(pixel, channel, value);
      case VARIATE_FLOAT16: return Image<__half, M>{image}.store(pixel, channel, value);
      default: return Image<float, M>{image}.store(pixel, channel, value);
    }
  }
};

// What a kernel knows of a mixture beside its parameters.
template <class M>
struct Mixture {
  math::MixtureParameters at;
  math::Bins<M> bins;
  int bits;
  Image<Any, M> target;

  template <class Args>
  explicit Mixture(const Args& a)
      : at{a.channels, a.mixtures}, bins(math::bins<M>(a.bits)), bits(a.bits), target{a.target} {}

  // The colours of a pixel in [-1, 1].
  __device__ __forceinline__ void load_target(int64_t batch, int64_t index, M (&x)[colours]) const {
    const int64_t pixel = target.pixel(batch, index);
    const bool levels = target.image.dtype == VARIATE_UINT8;
#pragma unroll
    for (int c = 0; c < colours; ++c) {
      x[c] = M(0);
      if (c >= at.colours) continue;
      x[c] = target.load(pixel, c);
      if (levels) x[c] = math::bin_middle(x[c], bits);
    }
  }
};

// One component of a pixel: its means, moved by the colours before, and its coefficients.
template <class M>
struct Component {
  M mean[colours];
  M log_scale[colours];
  M k[colours];

  template <class Parameters>
  __device__ __forceinline__ Component(const Parameters& params, int64_t pixel, const math::MixtureParameters& at,
                                       int m, const M (&x)[colours]) {
#pragma unroll
    for (int c = 0; c < colours; ++c) {
      if (c >= at.colours) continue;
      mean[c] = params.load(pixel, math::mean_of(at, c, m));
      log_scale[c] = params.load(pixel, math::log_scale_of(at, c, m));
      if (at.colours > 1) k[c] = math::tanh(params.load(pixel, math::coefficient_of(at, c, m)));
    }
    if (at.colours == 1) return;
    mean[1] = math::fma(k[0], x[0], mean[1]);
    mean[2] = math::fma(k[2], x[1], math::fma(k[1], x[0], mean[2]));
  }
};

// The product of the colours' probabilities, as math::BinProbability has it.
template <class M>
struct Product {
  M linear = M(0);
  M numerator = M(1);
  M denominator = M(1);

  __device__ __forceinline__ void multiply(const math::BinProbability<M>& p) {
    linear += p.linear;
    numerator *= p.numerator;
    denominator *= p.denominator;
  }
  __device__ __forceinline__ M log() const { return linear + math::log(numerator / denominator); }
};

// A sum of exp over the components, relative to the largest.
template <class M>
struct LogSum {
  M most = -static_cast<M>(__builtin_huge_valf());
  M sum = M(0);

  __device__ __forceinline__ void add(M x) {
    const M larger = x > most ? x : most;
    const M base = larger < M(-1e38) ? M(0) : larger;  // nothing yet: -infinity
    sum = math::fma(sum, math::component_weight(most - base), math::component_weight(x - base));
    most = larger;
  }
};

template <class M>
struct LogSums {
  LogSum<M> posterior;
  LogSum<M> prior;
};

template <bool compat, class Parameters, class M>
__device__ __forceinline__ LogSums<M> log_sums(const Mixture<M>& mixture, const Parameters& params, int64_t pixel,
                                               const M (&x)[colours]) {
  LogSums<M> sums;
#pragma unroll 1
  for (int m = 0; m < mixture.at.components; ++m) {
    const M logit = params.load(pixel, m);
    const Component<M> component(params, pixel, mixture.at, m, x);
    Product<M> product;
#pragma unroll
    for (int c = 0; c < colours; ++c) {
      if (c >= mixture.at.colours) continue;
      product.multiply(math::bin_probability<compat>(x[c], component.mean[c], component.log_scale[c], mixture.bins));
    }
    sums.posterior.add(logit + product.log());
    sums.prior.add(logit);
  }
  return sums;
}

// A pixel to a thread, blocks of one image; short images share a block.
template <class Args>
RowPlan plan_of(const Args& a) {
  RowPlan plan(a.batch, 1);
  plan.quads = a.pixels;
  plan.length = std::min<int64_t>(a.pixels, block_threads);
  plan.chunks = a.pixels > block_threads ? (a.pixels + block_threads - 1) / block_threads : 1;
  while (plan.threads() < plan.length) ++plan.shift;
  return plan;
}

template <bool compat, class Parameters>
__global__ void __launch_bounds__(block_threads, resident_blocks<typename Parameters::M>)
    forward_kernel(RowPlan plan, Mixture<typename Parameters::M> mixture, Parameters params, variate_tensor nll,
                   double* partial) {
  using M = typename Parameters::M;
  const RowShare share = row_share(plan);
  M term = M(0);
  if (share.first < share.end) {
    M x[colours];
    mixture.load_target(share.row, share.first, x);
    const LogSums<M> sums = log_sums<compat>(mixture, params, params.pixel(share.row, share.first), x);
    const M ratio = sums.prior.sum / sums.posterior.sum;
    term = (sums.prior.most - sums.posterior.most) + (ratio == ratio ? math::log(ratio) : ratio);
  }
  store_sum(plan, share, nll, partial, sum_threads(plan, term));
}

template <bool compat, class Parameters>
__global__ void __launch_bounds__(block_threads, resident_blocks<typename Parameters::M>)
    backward_kernel(RowPlan plan, Mixture<typename Parameters::M> mixture, variate_tensor grad_nll, Parameters params,
                    Parameters grad_params) {
  using M = typename Parameters::M;
  const RowShare share = row_share(plan);
  if (share.first >= share.end) return;
  const math::MixtureParameters at = mixture.at;
  M x[colours];
  mixture.load_target(share.row, share.first, x);
  const int64_t pixel = params.pixel(share.row, share.first);
  const int64_t out = grad_params.pixel(share.row, share.first);
  const LogSums<M> sums = log_sums<compat>(mixture, params, pixel, x);
  const M g = load_row<M>(grad_nll, share.row);
  const M posterior = g / sums.posterior.sum;
  const M prior = g / sums.prior.sum;
#pragma unroll 1
  for (int m = 0; m < at.components; ++m) {
    const M logit = params.load(pixel, m);
    const Component<M> component(params, pixel, at, m, x);
    Product<M> product;
    math::BinGradient<M> d[colours];
#pragma unroll
    for (int c = 0; c < colours; ++c) {
      if (c >= at.colours) continue;
      const auto p =
          math::bin_probability_and_gradient<compat>(x[c], component.mean[c], component.log_scale[c], mixture.bins);
      product.multiply(p.probability);
      d[c] = p.gradient;
    }
    const M minus = -math::component_weight(logit + product.log() - sums.posterior.most) * posterior;
    grad_params.store(out, m, math::fma(math::component_weight(logit - sums.prior.most), prior, minus));
#pragma unroll
    for (int c = 0; c < colours; ++c) {
      if (c >= at.colours) continue;
      d[c].mean *= minus;
      grad_params.store(out, math::mean_of(at, c, m), d[c].mean);
      grad_params.store(out, math::log_scale_of(at, c, m), d[c].log_scale * minus);
    }
    if (at.colours == 1) continue;
    const auto store_coefficient = [&](int c, M grad_mean, M before) {
      const M k = component.k[c];
      grad_params.store(out, math::coefficient_of(at, c, m), grad_mean * before * math::fma(-k, k, M(1)));
    };
    store_coefficient(0, d[1].mean, x[0]);
    store_coefficient(1, d[2].mean, x[0]);
    store_coefficient(2, d[2].mean, x[1]);
  }
}

using Args = variate_discretized_logistic_mixture_nll_args;
using BackwardArgs = variate_discretized_logistic_mixture_nll_backward_args;

template <class Parameters>
variate_status forward(const Args& a) {
  const RowPlan plan = plan_of(a);
  const auto kernel =
      a.edges == VARIATE_COMPAT_EDGES ? forward_kernel<true, Parameters> : forward_kernel<false, Parameters>;
  const variate_status status = launch(a.execution, kernel, plan.blocks(), plan, Mixture<typename Parameters::M>(a),
                                       Parameters{a.params}, a.nll, static_cast<double*>(a.execution.workspace));
  return status == VARIATE_OK ? launch_add_chunks(a.execution, plan, a.nll) : status;
}

template <class Parameters>
variate_status backward(const BackwardArgs& a) {
  const RowPlan plan = plan_of(a);
  const auto kernel =
      a.edges == VARIATE_COMPAT_EDGES ? backward_kernel<true, Parameters> : backward_kernel<false, Parameters>;
  return launch(a.execution, kernel, plan.blocks(), plan, Mixture<typename Parameters::M>(a), a.grad_nll,
                Parameters{a.params}, Parameters{a.grad_params});
}

template <class Arguments>
bool is_double(const Arguments& a) {
  return a.params.dtype == VARIATE_FLOAT64 || a.target.dtype == VARIATE_FLOAT64;
}

}  // namespace

uint64_t discretized_logistic_mixture_nll_workspace(const Args& a) { return partial_bytes(plan_of(a)); }

variate_status discretized_logistic_mixture_nll(const Args& a) {
  if (is_double(a)) return forward<Image<Any, double>>(a);
  if (a.params.dtype == VARIATE_FLOAT32) return forward<Image<float>>(a);
  if (a.params.dtype == VARIATE_BFLOAT16) return forward<Image<__nv_bfloat16>>(a);
  return forward<Image<Any, float>>(a);
}

variate_status discretized_logistic_mixture_nll_backward(const BackwardArgs& a) {
  const variate_dtype out = a.grad_params.dtype;
  if (is_double(a)) return backward<Image<Any, double>>(a);
  if (a.params.dtype == VARIATE_FLOAT32 && out == VARIATE_FLOAT32) return backward<Image<float>>(a);
  if (a.params.dtype == VARIATE_BFLOAT16 && out == VARIATE_BFLOAT16) return backward<Image<__nv_bfloat16>>(a);
  return backward<Image<Any, float>>(a);
}

}  // namespace variate::cuda
