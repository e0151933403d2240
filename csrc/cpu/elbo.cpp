#include <variate/math/elbo.hpp>

#include "categorical.h"
#include "kernels.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

// `terms(tile, out)` computes the terms of a tile; they are summed by row, or are the result.
template <class T, class Args, class Terms>
void reduce(const Args& a, const variate_tensor& result, Terms terms) {
  const Grid grid(a.rows, a.cols);
  for_tiles(grid, a.execution.threads, [&](const Tile& t) {
    Buffer<T> buffer;
    T* out = a.elementwise ? target(result, t, buffer) : buffer.data;
    terms(t, out);
    if (a.elementwise) {
      store(result, t, static_cast<const T*>(out));
    } else {
      store_row_sums(result, a.execution.workspace, grid, t, static_cast<const T*>(out));
    }
  });
  if (!a.elementwise) finish_row_sums(result, a.execution.workspace, grid);
}

template <variate_constraint c, class T>
bool all_satisfy(const T* x, int64_t count) {
  int32_t failures = 0;
  for (int64_t i = 0; i < count; ++i) failures |= !math::satisfies<c>(x[i]);
  return failures == 0;
}

template <variate_constraint c, class T>
void satisfies(const variate_satisfies_args& a) {
  *a.satisfied = 1;
  for_tiles(Grid(a.rows, a.cols), a.execution.threads, [&](const Tile& t) {
    const Input<T> value(a.value, t);
    const bool dense = t.pitch == t.cols;  // else lanes between the rows have no say
    const int64_t runs = dense ? 1 : t.rows, run = dense ? t.rows * t.cols : t.cols;
    for (int64_t r = 0; r < runs; ++r) {
      if (!all_satisfy<c>(value.data + r * t.pitch, run)) __atomic_store_n(a.satisfied, 0, __ATOMIC_RELAXED);
    }
  });
}

template <class T>
void satisfies(const variate_satisfies_args& a) {
  switch (a.constraint) {
    case VARIATE_REAL: return satisfies<VARIATE_REAL, T>(a);
    case VARIATE_POSITIVE: return satisfies<VARIATE_POSITIVE, T>(a);
    case VARIATE_NONNEGATIVE: return satisfies<VARIATE_NONNEGATIVE, T>(a);
    case VARIATE_UNIT_INTERVAL: return satisfies<VARIATE_UNIT_INTERVAL, T>(a);
    case VARIATE_BOOLEAN: return satisfies<VARIATE_BOOLEAN, T>(a);
  }
}

template <variate_parametrization p>
using Parametrization = std::integral_constant<variate_parametrization, p>;

// `function(p)` with the parametrisation as a type.
template <class Function>
void with_parametrization(variate_parametrization p, Function function) {
  switch (p) {
    case VARIATE_LOG_VAR: return function(Parametrization<VARIATE_LOG_VAR>());
    case VARIATE_LOG_SCALE: return function(Parametrization<VARIATE_LOG_SCALE>());
    case VARIATE_SCALE: return function(Parametrization<VARIATE_SCALE>());
  }
}

template <class... Tensor>
bool any_double(const Tensor&... tensors) {
  return ((tensors.data && tensors.dtype == VARIATE_FLOAT64) || ...);
}

template <class T, class Args>
T least_kl_of(const Args& a) {
  return math::least_kl(a.free_bits.data ? element<T>(a.free_bits, 0, 0) : static_cast<T>(a.free_bits_value));
}

// `function(flag)` with the flag as a type.
template <class Function>
void with_flag(bool flag, Function function) {
  flag ? function(std::true_type()) : function(std::false_type());
}

// The gradient that an element passes. Without free bits its KL is not looked at, and so never computed.
template <bool free_bits, class T>
T passed(T grad, T kl, T least) {
  return free_bits && kl < least ? T(0) : grad;
}

template <variate_parametrization p, class T>
void standard_kl_terms(const T* __restrict mean, const T* __restrict spread, T least, T* __restrict kl, int64_t count) {
  for (int64_t i = 0; i < count; ++i) kl[i] = math::apply_free_bits(math::normal_kl<p>(mean[i], spread[i]).kl, least);
}

template <variate_parametrization p, class T>
void kl_terms(const T* __restrict mean, const T* __restrict spread, const T* __restrict prior_mean,
              const T* __restrict prior_spread, T least, T* __restrict kl, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    kl[i] = math::apply_free_bits(math::normal_kl<p>(mean[i], spread[i], prior_mean[i], prior_spread[i]).kl, least);
  }
}

template <class T>
void kl_forward(const variate_normal_kl_args& a) {
  const T least = least_kl_of<T>(a);
  with_parametrization(a.parametrization, [&](auto p) {
    reduce<T>(a, a.kl, [&](const Tile& t, T* out) {
      const Input<T> mean(a.mean, t), spread(a.spread, t);
      if (!a.prior_mean.data && !a.prior_spread.data) {
        return standard_kl_terms<p.value>(mean.data, spread.data, least, out, t.count);
      }
      const Input<T> prior_mean(a.prior_mean, t), prior_spread(a.prior_spread, t, math::unit_spread<p.value, T>);
      kl_terms<p.value>(mean.data, spread.data, prior_mean.data, prior_spread.data, least, out, t.count);
    });
  });
}

template <variate_parametrization p, bool free_bits, class T>
void standard_kl_gradients(const T* __restrict grad, const T* __restrict mean, const T* __restrict spread, T least,
                           T* __restrict grad_mean, T* __restrict grad_spread, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const math::NormalKl<T> k = math::normal_kl<p>(mean[i], spread[i]);
    const T g = passed<free_bits>(grad[i], k.kl, least);
    grad_mean[i] = g * k.scaled_difference;
    grad_spread[i] = T(0.5) * g * k.ratio_minus_1 * math::log_variance_slope<p>(spread[i]);
  }
}

template <variate_parametrization p, bool free_bits, bool of_prior, class T>
void kl_gradients(const T* __restrict grad, const T* __restrict mean, const T* __restrict spread,
                  const T* __restrict prior_mean, const T* __restrict prior_spread, T least, T* __restrict grad_mean,
                  T* __restrict grad_spread, T* __restrict grad_prior_mean, T* __restrict grad_prior_spread,
                  int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const math::NormalKl<T> k = math::normal_kl<p>(mean[i], spread[i], prior_mean[i], prior_spread[i]);
    const T g = passed<free_bits>(grad[i], k.kl, least);
    grad_mean[i] = g * k.scaled_difference;
    grad_spread[i] = T(0.5) * g * k.ratio_minus_1 * math::log_variance_slope<p>(spread[i]);
    if constexpr (!of_prior) continue;
    grad_prior_mean[i] = -g * k.scaled_difference;
    grad_prior_spread[i] =
        T(-0.5) * g * (k.ratio_minus_1 + k.squared_distance) * math::log_variance_slope<p>(prior_spread[i]);
  }
}

template <class T, variate_parametrization p, bool free_bits>
void kl_backward(const variate_normal_kl_backward_args& a, T least) {
  for_tiles(Grid(a.rows, a.cols), a.execution.threads, [&](const Tile& t) {
    const ResultGradient<T> grad(a.grad_kl, t, a.elementwise);
    const Input<T> mean(a.mean, t), spread(a.spread, t);
    const Output<T> grad_mean(a.grad_mean, t), grad_spread(a.grad_spread, t);
    if (!a.prior_mean.data && !a.prior_spread.data) {
      standard_kl_gradients<p, free_bits>(grad.data, mean.data, spread.data, least, grad_mean.data, grad_spread.data,
                                          t.count);
    } else {
      const Input<T> prior_mean(a.prior_mean, t), prior_spread(a.prior_spread, t, math::unit_spread<p, T>);
      const Output<T> grad_prior_mean(a.grad_prior_mean, t), grad_prior_spread(a.grad_prior_spread, t);
      with_flag(a.grad_prior_mean.data || a.grad_prior_spread.data, [&](auto of_prior) {
        kl_gradients<p, free_bits, of_prior.value>(grad.data, mean.data, spread.data, prior_mean.data,
                                                   prior_spread.data, least, grad_mean.data, grad_spread.data,
                                                   grad_prior_mean.data, grad_prior_spread.data, t.count);
      });
      grad_prior_mean.store();
      grad_prior_spread.store();
    }
    grad_mean.store();
    grad_spread.store();
  });
}

template <class T>
void kl_backward(const variate_normal_kl_backward_args& a) {
  const T least = least_kl_of<T>(a);
  with_parametrization(a.parametrization, [&](auto p) {
    with_flag(least > T(0), [&](auto free_bits) { kl_backward<T, p.value, free_bits.value>(a, least); });
  });
}

template <variate_parametrization p, class T>
void normal_nll_terms(const T* __restrict mean, const T* __restrict spread, const T* __restrict target,
                      T* __restrict nll, int64_t count) {
  for (int64_t i = 0; i < count; ++i) nll[i] = math::normal_nll<p>(mean[i], spread[i], target[i]).nll;
}

template <class T>
void normal_nll_forward(const variate_normal_nll_args& a) {
  with_parametrization(a.parametrization, [&](auto p) {
    reduce<T>(a, a.nll, [&](const Tile& t, T* out) {
      const Input<T> mean(a.mean, t), spread(a.spread, t), target(a.target, t);
      normal_nll_terms<p.value>(mean.data, spread.data, target.data, out, t.count);
    });
  });
}

template <variate_parametrization p, class T>
void normal_nll_gradients(const T* __restrict grad, const T* __restrict mean, const T* __restrict spread,
                          const T* __restrict target, T* __restrict grad_mean, T* __restrict grad_spread,
                          T* __restrict grad_target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const math::NormalNll<T> n = math::normal_nll<p>(mean[i], spread[i], target[i]);
    grad_mean[i] = -grad[i] * n.scaled_difference;
    grad_target[i] = grad[i] * n.scaled_difference;
    grad_spread[i] = grad[i] * n.slope * math::log_variance_slope<p>(spread[i]);
  }
}

template <class T>
void normal_nll_backward(const variate_normal_nll_backward_args& a) {
  with_parametrization(a.parametrization, [&](auto p) {
    for_tiles(Grid(a.rows, a.cols), a.execution.threads, [&](const Tile& t) {
      const ResultGradient<T> grad(a.grad_nll, t, a.elementwise);
      const Input<T> mean(a.mean, t), spread(a.spread, t), target(a.target, t);
      const Output<T> grad_mean(a.grad_mean, t), grad_spread(a.grad_spread, t), grad_target(a.grad_target, t);
      normal_nll_gradients<p.value>(grad.data, mean.data, spread.data, target.data, grad_mean.data, grad_spread.data,
                                    grad_target.data, t.count);
      grad_mean.store();
      grad_spread.store();
      grad_target.store();
    });
  });
}

template <class T>
void bernoulli_kl_terms(const T* __restrict logits, const T* __restrict prior, T* __restrict kl, int64_t count) {
  for (int64_t i = 0; i < count; ++i) kl[i] = math::bernoulli_kl(logits[i], prior[i]).kl;
}

template <class T>
void bernoulli_kl_forward(const variate_bernoulli_kl_args& a) {
  reduce<T>(a, a.kl, [&](const Tile& t, T* out) {
    const Input<T> logits(a.logits, t), prior(a.prior_logits, t);
    bernoulli_kl_terms(logits.data, prior.data, out, t.count);
  });
}

template <class T>
void bernoulli_kl_gradients(const T* __restrict grad, const T* __restrict logits, const T* __restrict prior,
                            T* __restrict grad_logits, T* __restrict grad_prior, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const math::BernoulliKl<T> k = math::bernoulli_kl(logits[i], prior[i]);
    grad_logits[i] = grad[i] * k.grad_logit;
    grad_prior[i] = grad[i] * k.grad_prior_logit;
  }
}

template <class T>
void bernoulli_kl_backward(const variate_bernoulli_kl_backward_args& a) {
  for_tiles(Grid(a.rows, a.cols), a.execution.threads, [&](const Tile& t) {
    const ResultGradient<T> grad(a.grad_kl, t, a.elementwise);
    const Input<T> logits(a.logits, t), prior(a.prior_logits, t);
    const Output<T> grad_logits(a.grad_logits, t), grad_prior(a.grad_prior_logits, t);
    bernoulli_kl_gradients(grad.data, logits.data, prior.data, grad_logits.data, grad_prior.data, t.count);
    grad_logits.store();
    grad_prior.store();
  });
}

template <class T>
void bernoulli_nll_terms(const T* __restrict logits, const T* __restrict target, T* __restrict nll, int64_t count) {
  for (int64_t i = 0; i < count; ++i) nll[i] = math::bernoulli_nll(logits[i], target[i]);
}

template <class T>
void bernoulli_nll_forward(const variate_bernoulli_nll_args& a) {
  reduce<T>(a, a.nll, [&](const Tile& t, T* out) {
    const Input<T> logits(a.logits, t), target(a.target, t);
    bernoulli_nll_terms(logits.data, target.data, out, t.count);
  });
}

template <class T>
void bernoulli_nll_gradients(const T* __restrict grad, const T* __restrict logits, const T* __restrict target,
                             T* __restrict grad_logits, int64_t count) {
  for (int64_t i = 0; i < count; ++i) grad_logits[i] = grad[i] * math::bernoulli_nll_gradient(logits[i], target[i]);
}

template <class T>
void bernoulli_target_gradients(const T* __restrict grad, const T* __restrict logits, T* __restrict grad_target,
                                int64_t count) {
  for (int64_t i = 0; i < count; ++i) grad_target[i] = -grad[i] * logits[i];
}

template <class T>
void bernoulli_nll_backward(const variate_bernoulli_nll_backward_args& a) {
  for_tiles(Grid(a.rows, a.cols), a.execution.threads, [&](const Tile& t) {
    const ResultGradient<T> grad(a.grad_nll, t, a.elementwise);
    const Input<T> logits(a.logits, t);
    if (a.grad_logits.data) {
      const Input<T> target(a.target, t);
      const Output<T> grad_logits(a.grad_logits, t);
      bernoulli_nll_gradients(grad.data, logits.data, target.data, grad_logits.data, t.count);
      grad_logits.store();
    }
    if (a.grad_target.data) {
      const Output<T> grad_target(a.grad_target, t);
      bernoulli_target_gradients(grad.data, logits.data, grad_target.data, t.count);
      grad_target.store();
    }
  });
}

}  // namespace

void satisfies(const variate_satisfies_args& a) { any_double(a.value) ? satisfies<double>(a) : satisfies<float>(a); }

void normal_kl(const variate_normal_kl_args& a) {
  any_double(a.mean, a.spread, a.prior_mean, a.prior_spread) ? kl_forward<double>(a) : kl_forward<float>(a);
}

void normal_kl_backward(const variate_normal_kl_backward_args& a) {
  any_double(a.mean, a.spread, a.prior_mean, a.prior_spread) ? kl_backward<double>(a) : kl_backward<float>(a);
}

void bernoulli_kl(const variate_bernoulli_kl_args& a) {
  any_double(a.logits, a.prior_logits) ? bernoulli_kl_forward<double>(a) : bernoulli_kl_forward<float>(a);
}

void bernoulli_kl_backward(const variate_bernoulli_kl_backward_args& a) {
  any_double(a.logits, a.prior_logits) ? bernoulli_kl_backward<double>(a) : bernoulli_kl_backward<float>(a);
}

void normal_nll(const variate_normal_nll_args& a) {
  any_double(a.mean, a.spread, a.target) ? normal_nll_forward<double>(a) : normal_nll_forward<float>(a);
}

void normal_nll_backward(const variate_normal_nll_backward_args& a) {
  any_double(a.mean, a.spread, a.target) ? normal_nll_backward<double>(a) : normal_nll_backward<float>(a);
}

void bernoulli_nll(const variate_bernoulli_nll_args& a) {
  any_double(a.logits, a.target) ? bernoulli_nll_forward<double>(a) : bernoulli_nll_forward<float>(a);
}

void bernoulli_nll_backward(const variate_bernoulli_nll_backward_args& a) {
  any_double(a.logits, a.target) ? bernoulli_nll_backward<double>(a) : bernoulli_nll_backward<float>(a);
}

void categorical_nll(const variate_categorical_nll_args& a) {
  any_double(a.logits) ? categorical_nll_forward<double>(a) : categorical_nll_forward<float>(a);
}

void categorical_nll_backward(const variate_categorical_nll_backward_args& a) {
  any_double(a.logits) ? categorical_nll_gradients<double>(a) : categorical_nll_gradients<float>(a);
}

void categorical_kl(const variate_categorical_kl_args& a) {
  any_double(a.logits, a.prior_logits) ? categorical_kl_forward<double>(a) : categorical_kl_forward<float>(a);
}

void categorical_kl_backward(const variate_categorical_kl_backward_args& a) {
  any_double(a.logits, a.prior_logits) ? categorical_kl_gradients<double>(a) : categorical_kl_gradients<float>(a);
}

}  // namespace variate::cpu::VARIATE_ISA
