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

template <float (*draw)(uint32_t)>
void map_words(const uint32_t* __restrict words, float* __restrict noise, int64_t count) {
  for (int64_t i = 0; i < count; ++i) noise[i] = draw(words[i]);
}

float mirrored_gumbel(uint32_t word) { return math::gumbel(~word); }

void noise_of(variate_base base, const uint32_t* words, float* noise, int64_t count) {
  switch (base) {
    case VARIATE_BASE_NORMAL: return normals_of(words, noise, count);
    case VARIATE_BASE_LOGISTIC: return map_words<math::logistic>(words, noise, count);
    case VARIATE_BASE_LAPLACE: return map_words<math::laplace>(words, noise, count);
    case VARIATE_BASE_GUMBEL: return map_words<math::gumbel>(words, noise, count);
  }
}

// The noise of a tile, sample after sample.
template <class Args>
class SampleNoise {
 public:
  SampleNoise(const Args& args, const Tile& tile) : args_(args), tile_(tile) {}

  const float* next() {
    const int64_t sample = next_++;
    if (args_.antithetic && sample % 2) {
      mirror();
    } else {
      tile_words(args_.noise, tile_, words_, args_.antithetic ? sample / 2 : sample);
      noise_of(args_.base, words_.data, noise_.data, tile_.count);
    }
    return noise_.data;
  }

 private:
  // From the noise of the uniforms u to that of 1 - u.
  void mirror() {
    if (args_.base == VARIATE_BASE_GUMBEL) return map_words<mirrored_gumbel>(words_.data, noise_.data, tile_.count);
    for (int64_t i = 0; i < tile_.count; ++i) noise_.data[i] = -noise_.data[i];
  }

  const Args& args_;
  const Tile& tile_;
  WordBuffer words_;
  Buffer<float> noise_;
  int64_t next_ = 0;
};

// sigma of a tile: the spread itself, or in `buffer`.
template <class T>
const T* load_sigma(const variate_tensor& spread, variate_parametrization parametrization, const Tile& t,
                    Buffer<T>& buffer) {
  Buffer<T> spread_buffer;
  if (parametrization == VARIATE_SCALE) return load(spread, t, buffer);
  const T* __restrict given = load(spread, t, spread_buffer);
  const T half = parametrization == VARIATE_LOG_VAR ? T(0.5) : T(1);
  T* __restrict sigma = buffer.data;
  for (int64_t i = 0; i < t.count; ++i) sigma[i] = math::exp(half * given[i]);
  return sigma;
}

template <class T>
void shift_and_scale(const T* __restrict loc, const T* __restrict sigma, const float* __restrict noise, T* __restrict z,
                     int64_t count) {
  for (int64_t i = 0; i < count; ++i) z[i] = math::fma(sigma[i], static_cast<T>(noise[i]), loc[i]);
}

template <class T>
void samples(const variate_location_scale_rsample_args& a) {
  const auto body = [&](const Tile& t) {
    SampleNoise noise(a, t);
    Buffer<T> loc_buffer, sigma_buffer, z_buffer;
    const T* loc = load(a.loc, t, loc_buffer);
    const T* sigma = load_sigma(a.spread, a.parametrization, t, sigma_buffer);
    for (int64_t k = 0; k < a.samples; ++k) {
      const variate_tensor z_k = part(a.z, k * a.z_sample_stride);
      T* z = target(z_k, t, z_buffer);
      shift_and_scale(loc, sigma, noise.next(), z, t.count);
      store(z_k, t, z);
    }
  };
  for_tiles(Grid(a.rows, a.cols), a.execution.threads, body, a.samples);
}

// Sums over the samples: of the gradient, and of the gradient times the noise.
template <class T>
void add_sample(const T* __restrict grad_z, const float* __restrict noise, T* __restrict sum, T* __restrict noise_sum,
                int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    sum[i] += grad_z[i];
    noise_sum[i] = math::fma(grad_z[i], static_cast<T>(noise[i]), noise_sum[i]);
  }
}

template <class T>
void samples_backward(const variate_location_scale_rsample_backward_args& a) {
  const auto body = [&](const Tile& t) {
    SampleNoise noise(a, t);
    Buffer<T> grad_z_buffer, grad_loc_buffer, grad_spread_buffer, sigma_buffer;
    T* grad_loc = optional_target(a.grad_loc, t, grad_loc_buffer);
    T* grad_spread = optional_target(a.grad_spread, t, grad_spread_buffer);
    for (int64_t i = 0; i < t.count; ++i) grad_loc[i] = grad_spread[i] = T(0);
    for (int64_t k = 0; k < a.samples; ++k) {
      const T* grad_z = load(part(a.grad_z, k * a.grad_z_sample_stride), t, grad_z_buffer);
      add_sample(grad_z, noise.next(), grad_loc, grad_spread, t.count);
    }
    if (a.parametrization != VARIATE_SCALE) {  // d sigma / d log sigma = sigma, d sigma / d log sigma^2 = sigma / 2
      const T chain = a.parametrization == VARIATE_LOG_VAR ? T(0.5) : T(1);
      const T* __restrict sigma = load_sigma(a.spread, a.parametrization, t, sigma_buffer);
      for (int64_t i = 0; i < t.count; ++i) grad_spread[i] *= chain * sigma[i];
    }
    store(a.grad_loc, t, grad_loc);
    store(a.grad_spread, t, grad_spread);
  };
  for_tiles(Grid(a.rows, a.cols), a.execution.threads, body, a.samples);
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

void location_scale_rsample(const variate_location_scale_rsample_args& a) {
  any_double(a.loc, a.spread) ? samples<double>(a) : samples<float>(a);
}

void location_scale_rsample_backward(const variate_location_scale_rsample_backward_args& a) {
  any_double(a.grad_z, a.spread) ? samples_backward<double>(a) : samples_backward<float>(a);
}

}  // namespace variate::cpu::VARIATE_ISA
