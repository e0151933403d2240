#include <variate/math/reparam.hpp>

#include "kernels.h"
#include "noise.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

// The prior of a call: standard where neither tensor is given; one that is left out reads as 0.
template <class T>
struct Prior {
  bool given;
  Buffer<T> mean_buffer, log_var_buffer;
  const T* mean;
  const T* log_var;

  Prior(const variate_tensor& prior_mean, const variate_tensor& prior_log_var, const Tile& t)
      : given(prior_mean.data || prior_log_var.data) {
    if (!given) return;
    mean = load_or_zero(prior_mean, t, mean_buffer);
    log_var = load_or_zero(prior_log_var, t, log_var_buffer);
  }

  static const T* load_or_zero(const variate_tensor& tensor, const Tile& t, Buffer<T>& buffer) {
    if (tensor.data) return load(tensor, t, buffer);
    for (int64_t i = 0; i < t.count; ++i) buffer.data[i] = T(0);
    return buffer.data;
  }
};

template <class T, class Args>
T least_kl_of(const Args& a) {
  return math::least_kl(a.free_bits.data ? element<T>(a.free_bits, 0, 0) : static_cast<T>(a.free_bits_value));
}

template <class T>
void sample(const T* __restrict mean, const T* __restrict log_var, const float* __restrict noise, T* __restrict z,
            int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    z[i] = math::fma(math::exp(T(0.5) * log_var[i]), static_cast<T>(noise[i]), mean[i]);
  }
}

// Without free bits (`bounded` false) the divergence is charged as it is.
template <bool bounded, class T>
void sample_kl(const T* __restrict mean, const T* __restrict log_var, const float* __restrict noise, T least,
               T* __restrict z, T* __restrict kl, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const math::Spread<T> s = math::spread(log_var[i]);
    z[i] = math::fma(s.sigma, static_cast<T>(noise[i]), mean[i]);
    kl[i] = math::standard_normal_kl(mean[i], log_var[i], s.variance_minus_1);
    if constexpr (bounded) kl[i] = math::apply_free_bits(kl[i], least);
  }
}

template <class T>
void sample_kl_prior(const T* __restrict mean, const T* __restrict log_var, const T* __restrict prior_mean,
                     const T* __restrict prior_log_var, const float* __restrict noise, T least, T* __restrict z,
                     T* __restrict kl, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    z[i] = math::fma(math::exp(T(0.5) * log_var[i]), static_cast<T>(noise[i]), mean[i]);
    kl[i] = math::apply_free_bits(math::normal_kl(mean[i], log_var[i], prior_mean[i], prior_log_var[i]).kl, least);
  }
}

template <class T>
void forward(const variate_normal_rsample_kl_args& a) {
  const Grid grid(a.rows, a.cols);
  const T least = least_kl_of<T>(a);
  for_tiles(grid, a.execution.threads, [&](const Tile& t) {
    WordBuffer words;
    Buffer<float> noise;
    Buffer<T> mean_buffer, log_var_buffer, z_buffer, kl;
    normals_of(tile_words(a.noise, t, words), noise.data, t.count);
    const T* mean = load(a.mean, t, mean_buffer);
    const T* log_var = load(a.log_var, t, log_var_buffer);
    T* z = target(a.z, t, z_buffer);
    if (!a.kl.data) {
      sample(mean, log_var, noise.data, z, t.count);
    } else {
      const Prior<T> prior(a.prior_mean, a.prior_log_var, t);
      if (prior.given) {
        sample_kl_prior(mean, log_var, prior.mean, prior.log_var, noise.data, least, z, kl.data, t.count);
      } else {
        const auto kernel = least > T(0) ? sample_kl<true, T> : sample_kl<false, T>;
        kernel(mean, log_var, noise.data, least, z, kl.data, t.count);
      }
      store_row_sums(a.kl, a.execution.workspace, grid, t, kl.data);
    }
    store(a.z, t, z);
  });
  if (a.kl.data) finish_row_sums(a.kl, a.execution.workspace, grid);
}

// Through z = mean + sigma noise alone.
template <class T>
void sample_gradient(const T* __restrict grad_z, const T* __restrict log_var, const float* __restrict noise,
                     T* __restrict grad_mean, T* __restrict grad_log_var, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    grad_mean[i] = grad_z[i];
    grad_log_var[i] = T(0.5) * grad_z[i] * static_cast<T>(noise[i]) * math::exp(T(0.5) * log_var[i]);
  }
}

// The same, added to what the divergence left in the outputs.
template <class T>
void add_sample_gradient(const T* __restrict grad_z, const T* __restrict log_var, const float* __restrict noise,
                         T* __restrict grad_mean, T* __restrict grad_log_var, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    grad_mean[i] += grad_z[i];
    const T half = T(0.5) * grad_z[i] * static_cast<T>(noise[i]);
    grad_log_var[i] = math::fma(half, math::exp(T(0.5) * log_var[i]), grad_log_var[i]);
  }
}

template <class T>
void kl_gradient(const T* __restrict grad_kl, const T* __restrict mean, const T* __restrict log_var, T least,
                 T* __restrict grad_mean, T* __restrict grad_log_var, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T variance_minus_1 = math::spread(log_var[i]).variance_minus_1;
    const T kl = math::standard_normal_kl(mean[i], log_var[i], variance_minus_1);
    const T g = kl < least ? T(0) : grad_kl[i];
    grad_mean[i] = g * mean[i];
    grad_log_var[i] = T(0.5) * g * variance_minus_1;
  }
}

// Both paths at once, the usual case: one exponential. Without free bits the divergence itself is not needed.
template <bool bounded, class T>
void standard_gradient(const T* __restrict grad_z, const T* __restrict grad_kl, const T* __restrict mean,
                       const T* __restrict log_var, const float* __restrict noise, T least, T* __restrict grad_mean,
                       T* __restrict grad_log_var, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const math::Spread<T> s = math::spread(log_var[i]);
    T g = grad_kl[i];
    if constexpr (bounded) {
      g = math::standard_normal_kl(mean[i], log_var[i], s.variance_minus_1) < least ? T(0) : g;
    }
    grad_mean[i] = math::fma(g, mean[i], grad_z[i]);
    grad_log_var[i] = T(0.5) * math::fma(g, s.variance_minus_1, grad_z[i] * static_cast<T>(noise[i]) * s.sigma);
  }
}

template <class T>
void kl_gradient_prior(const T* __restrict grad_kl, const T* __restrict mean, const T* __restrict log_var,
                       const T* __restrict prior_mean, const T* __restrict prior_log_var, T least,
                       T* __restrict grad_mean, T* __restrict grad_log_var, T* __restrict grad_prior_mean,
                       T* __restrict grad_prior_log_var, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const math::NormalKl<T> k = math::normal_kl(mean[i], log_var[i], prior_mean[i], prior_log_var[i]);
    const T g = k.kl < least ? T(0) : grad_kl[i];
    grad_mean[i] = g * k.scaled_difference;
    grad_log_var[i] = T(0.5) * g * k.ratio_minus_1;
    grad_prior_mean[i] = -g * k.scaled_difference;
    grad_prior_log_var[i] = T(-0.5) * g * (k.ratio_minus_1 + k.squared_distance);
  }
}

template <class T>
void backward(const variate_normal_rsample_kl_backward_args& a) {
  const Grid grid(a.rows, a.cols);
  const T least = least_kl_of<T>(a);
  for_tiles(grid, a.execution.threads, [&](const Tile& t) {
    Buffer<T> mean_buffer, log_var_buffer, grad_z_buffer, grad_kl_buffer;
    Buffer<T> grad_mean_buffer, grad_log_var_buffer, grad_prior_mean_buffer, grad_prior_log_var_buffer;
    WordBuffer words;
    Buffer<float> noise;
    if (a.grad_z.data) normals_of(tile_words(a.noise, t, words), noise.data, t.count);
    const T* mean = load(a.mean, t, mean_buffer);
    const T* log_var = load(a.log_var, t, log_var_buffer);
    const T* grad_kl = load_rows(a.grad_kl, t, grad_kl_buffer);
    const T* grad_z = a.grad_z.data ? load(a.grad_z, t, grad_z_buffer) : nullptr;
    T* grad_mean = optional_target(a.grad_mean, t, grad_mean_buffer);
    T* grad_log_var = optional_target(a.grad_log_var, t, grad_log_var_buffer);
    const Prior<T> prior(a.prior_mean, a.prior_log_var, t);
    if (prior.given) {
      T* grad_prior_mean = optional_target(a.grad_prior_mean, t, grad_prior_mean_buffer);
      T* grad_prior_log_var = optional_target(a.grad_prior_log_var, t, grad_prior_log_var_buffer);
      kl_gradient_prior(grad_kl, mean, log_var, prior.mean, prior.log_var, least, grad_mean, grad_log_var,
                        grad_prior_mean, grad_prior_log_var, t.count);
      store(a.grad_prior_mean, t, grad_prior_mean);
      store(a.grad_prior_log_var, t, grad_prior_log_var);
      if (grad_z) add_sample_gradient(grad_z, log_var, noise.data, grad_mean, grad_log_var, t.count);
    } else if (grad_z && a.grad_kl.data) {
      const auto kernel = least > T(0) ? standard_gradient<true, T> : standard_gradient<false, T>;
      kernel(grad_z, grad_kl, mean, log_var, noise.data, least, grad_mean, grad_log_var, t.count);
    } else if (grad_z) {
      sample_gradient(grad_z, log_var, noise.data, grad_mean, grad_log_var, t.count);
    } else {
      kl_gradient(grad_kl, mean, log_var, least, grad_mean, grad_log_var, t.count);
    }
    store(a.grad_mean, t, grad_mean);
    store(a.grad_log_var, t, grad_log_var);
  });
}

template <class... Tensor>
bool any_double(const Tensor&... tensors) {
  return ((tensors.data && tensors.dtype == VARIATE_FLOAT64) || ...);
}

}  // namespace

void normal_rsample_kl(const variate_normal_rsample_kl_args& a) {
  any_double(a.mean, a.log_var, a.prior_mean, a.prior_log_var) ? forward<double>(a) : forward<float>(a);
}

void normal_rsample_kl_backward(const variate_normal_rsample_kl_backward_args& a) {
  any_double(a.mean, a.log_var, a.prior_mean, a.prior_log_var) ? backward<double>(a) : backward<float>(a);
}

}  // namespace variate::cpu::VARIATE_ISA
