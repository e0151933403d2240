#include <variate/math/elbo.hpp>

#include "kernels.h"
#include "tile.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

template <class T>
void forward(const variate_bernoulli_nll_args& a) {
  const Grid grid(a.rows, a.cols);
  for_tiles(grid, a.execution.threads, [&](const Tile& t) {
    Buffer<T> logits_buffer, target_buffer, nll_buffer;
    const T* __restrict logits = load(a.logits, t, logits_buffer);
    const T* __restrict target = load(a.target, t, target_buffer);
    T* __restrict nll = nll_buffer.data;
    for (int64_t i = 0; i < t.count; ++i) nll[i] = math::bernoulli_nll(logits[i], target[i]);
    store_row_sums(a.nll, a.execution.workspace, grid, t, nll);
  });
  finish_row_sums(a.nll, a.execution.workspace, grid);
}

template <class T>
void backward(const variate_bernoulli_nll_backward_args& a) {
  const Grid grid(a.rows, a.cols);
  for_tiles(grid, a.execution.threads, [&](const Tile& t) {
    Buffer<T> logits_buffer, labels_buffer, grad_nll_buffer, grad_buffer;
    const T* __restrict logits = load(a.logits, t, logits_buffer);
    const T* __restrict grad_nll = load_rows(a.grad_nll, t, grad_nll_buffer);
    if (a.grad_logits.data) {
      const T* __restrict labels = load(a.target, t, labels_buffer);
      T* __restrict grad = target(a.grad_logits, t, grad_buffer);
      for (int64_t i = 0; i < t.count; ++i) {
        grad[i] = grad_nll[i] * math::bernoulli_nll_gradient(logits[i], labels[i]);
      }
      store(a.grad_logits, t, grad);
    }
    if (a.grad_target.data) {
      T* __restrict grad = target(a.grad_target, t, grad_buffer);
      for (int64_t i = 0; i < t.count; ++i) grad[i] = -grad_nll[i] * logits[i];
      store(a.grad_target, t, grad);
    }
  });
}

bool is_double(const variate_tensor& logits, const variate_tensor& target) {
  return logits.dtype == VARIATE_FLOAT64 || target.dtype == VARIATE_FLOAT64;
}

}  // namespace

void bernoulli_nll(const variate_bernoulli_nll_args& a) {
  is_double(a.logits, a.target) ? forward<double>(a) : forward<float>(a);
}

void bernoulli_nll_backward(const variate_bernoulli_nll_backward_args& a) {
  is_double(a.logits, a.target) ? backward<double>(a) : backward<float>(a);
}

}  // namespace variate::cpu::VARIATE_ISA
