// The categorical terms of the evidence lower bound. A group is the categories of one position, next to each other in a
// row; its logits are read in chunks of a tile, so that the second pass over a chunk finds it in the first-level cache.
#pragma once

#include <variate/math/elbo.hpp>

#include "operands.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

inline constexpr int64_t group_tile_elements = 65536;  // logits of a tile of groups, so that few rows have many tiles

template <class T>
inline constexpr T infinity = static_cast<T>(__builtin_huge_valf());

// The groups of a call, as the elements of a grid.
template <class Args>
Grid grid_of_groups(const Args& a) {
  Grid grid(a.rows, a.groups);
  const int64_t elements = grid.cols * a.categories;
  const int64_t most = elements < group_tile_elements ? group_tile_elements / (elements > 0 ? elements : 1) : 1;
  if (grid.tile_rows > most) grid.tile_rows = most;
  grid.row_tiles = (grid.rows + grid.tile_rows - 1) / grid.tile_rows;
  return grid;
}

// `function(chunk)` for each chunk of a group.
template <class Args, class Function>
void for_chunks(const Args& a, int64_t row, int64_t group, Function function) {
  for (int64_t k = 0; k < a.categories; k += tile_elements) {
    Tile t;
    t.row = row;
    t.rows = 1;
    t.col = group * a.categories + k;
    t.cols = a.categories - k < tile_elements ? a.categories - k : tile_elements;
    t.pitch = (t.cols + 3) / 4 * 4;
    t.count = (t.pitch + lane_multiple - 1) / lane_multiple * lane_multiple;
    function(t);
  }
}

// A chunk of logits; lanes beyond the last category are -infinity, which adds nothing to a sum of exponentials.
template <class T>
struct Logits {
  Buffer<T> buffer;
  const T* data;

  Logits(const variate_tensor& tensor, const Tile& t) : data(load(tensor, t, buffer)) {
    for (int64_t i = t.cols; i < t.count; ++i) buffer.data[i] = -infinity<T>;
  }
};

// most[j] = max(most[j], x[j]), NaNs of x aside.
template <int64_t count, class T>
void raise(T* __restrict most, const T* __restrict x) {
  for (int64_t j = 0; j < count; ++j) most[j] = x[j] > most[j] ? x[j] : most[j];
}

// The largest of x, which is overwritten.
template <int64_t count, class T>
T fold_largest(T* x) {
  if constexpr (count > 1) {
    raise<count / 2>(x, x + count / 2);
    return fold_largest<count / 2>(x);
  }
  return x[0];
}

// Over arrays, as gcc 12 takes the maximum of vectors wider than a register one number at a time.
template <int64_t lanes, class T>
T largest_by(const T* x, int64_t count) {
  T most[lanes];
  for (int64_t j = 0; j < lanes; ++j) most[j] = -infinity<T>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) raise<lanes>(most, x + i);
  for (; i < count; i += lane_multiple) raise<lane_multiple>(most, x + i);
  return fold_largest<lanes>(most);
}

// The largest of a multiple of 16 numbers, NaNs aside. Many are taken 64 at a time, as each maximum waits for the one
// before it.
template <class T>
T largest(const T* x, int64_t count) {
  constexpr int64_t many = 4 * lane_multiple;
  return count < many ? largest_by<lane_multiple>(x, count) : largest_by<many>(x, count);
}

// The sum of exp(x - shift), in the order of row_sum.
template <class T>
T sum_of_exponentials(const T* __restrict x, T shift, int64_t count) {
  T lanes[lane_multiple] = {};
  for (int64_t i = 0; i < count; i += lane_multiple) {
    prefetch<Access::read>(x + i);
    for (int64_t j = 0; j < lane_multiple; ++j) lanes[j] += math::exp_nonpositive(x[i + j] - shift);
  }
  return row_sum(lanes, lane_multiple);
}

// log sum_k exp(x_k) = shift + log(sum): shift is the largest x, or 0 where all are -infinity.
template <class T>
struct LogSum {
  T shift = T(0);
  T sum = T(0);

  template <class Args>
  LogSum(const Args& a, const variate_tensor& tensor, int64_t row, int64_t group) {
    T most = -infinity<T>;
    for_chunks(a, row, group, [&](const Tile& t) {
      const Logits<T> x(tensor, t);
      const T next = largest(x.data, t.count);
      if (next > most) {
        sum *= math::exp_nonpositive(most - next);
        most = shift = next;
      }
      sum += sum_of_exponentials(x.data, shift, t.count);
    });
  }

  T log_of_sum() const { return math::log_nonnegative(sum); }
};

// The logit of a group's target, NaN where there is none.
template <class T, class Args>
T target_logit(const Args& a, int64_t row, int64_t group, int64_t target) {
  const bool valid = static_cast<uint64_t>(target) < static_cast<uint64_t>(a.categories);
  return valid ? element<T>(a.logits, row, group * a.categories + target) : static_cast<T>(__builtin_nanf(""));
}

// `function(row, group, i)` for every group of a tile, i its place in the tile's buffers.
template <class Function>
void for_groups(const Tile& t, Function function) {
  for (int64_t r = 0; r < t.rows; ++r) {
    for (int64_t c = 0; c < t.cols; ++c) function(t.row + r, t.col + c, r * t.pitch + c);
  }
}

template <class T>
void nll_terms(const T* __restrict shift, const T* __restrict sum, const T* __restrict picked, T* __restrict nll,
               T* __restrict log_sum_exp, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T log_of_sum = math::log_nonnegative(sum[i]);
    nll[i] = (shift[i] - picked[i]) + log_of_sum;
    log_sum_exp[i] = shift[i] + log_of_sum;
  }
}

template <class T>
void categorical_nll_forward(const variate_categorical_nll_args& a) {
  const Grid grid = grid_of_groups(a);
  const auto body = [&](const Tile& t) {
    Buffer<T> shift{}, sum{}, picked{}, nll;  // lanes between and beyond the rows cost 0
    for_groups(t, [&](int64_t row, int64_t group, int64_t i) {
      const LogSum<T> x(a, a.logits, row, group);
      shift.data[i] = x.shift;
      sum.data[i] = x.sum;
      picked.data[i] = target_logit<T>(a, row, group, element<int64_t>(a.target, row, group));
    });
    const Output<T> log_sum_exp(a.log_sum_exp, t);
    nll_terms(shift.data, sum.data, picked.data, nll.data, log_sum_exp.data, t.count);
    log_sum_exp.store();
    store_row_sums(a.nll, a.execution.workspace, grid, t, static_cast<const T*>(nll.data));
  };
  for_tiles(grid, a.execution.threads, body, a.categories);
  finish_row_sums(a.nll, a.execution.workspace, grid);
}

template <class T>
void softmax_gradient(const T* __restrict x, T log_sum_exp, T grad, T* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; i += lane_multiple) {
    prefetch<Access::read>(x + i);
    prefetch<Access::write>(out + i);
    for (int64_t j = 0; j < lane_multiple; ++j) out[i + j] = grad * math::exp_nonpositive(x[i + j] - log_sum_exp);
  }
}

template <class T>
void categorical_nll_gradients(const variate_categorical_nll_backward_args& a) {
  const auto body = [&](const Tile& groups) {
    for_groups(groups, [&](int64_t row, int64_t group, int64_t) {
      const int64_t target = element<int64_t>(a.target, row, group);
      const bool valid = static_cast<uint64_t>(target) < static_cast<uint64_t>(a.categories);
      const T grad = valid ? element<T>(a.grad_nll, row, 0) : static_cast<T>(__builtin_nanf(""));
      const T log_sum_exp = element<T>(a.log_sum_exp, row, group);
      for_chunks(a, row, group, [&](const Tile& t) {
        const Logits<T> x(a.logits, t);
        const Output<T> out(a.grad_logits, t);
        softmax_gradient(x.data, log_sum_exp, grad, out.data, t.count);
        const int64_t at = group * a.categories + target - t.col;
        if (valid && at >= 0 && at < t.cols) out.data[at] -= grad;
        out.store();
      });
    });
  };
  for_tiles(grid_of_groups(a), a.execution.threads, body, a.categories);
}

// p log(p / r) + p log(sum_p / sum_r), p not yet divided by its sum.
template <class T>
void kl_terms(const T* __restrict x, T shift, const T* __restrict y, T prior_shift, T* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T p = math::exp_nonpositive(x[i] - shift);
    out[i] = math::scaled(p, (x[i] - shift) - (y[i] - prior_shift));
  }
}

// What the divergence of a group is made of.
template <class T>
struct GroupKl {
  LogSum<T> posterior, prior;
  T log_of_sums;  // log(sum_p / sum_r)
  T kl;

  template <class Args>
  GroupKl(const Args& a, int64_t row, int64_t group)
      : posterior(a, a.logits, row, group), prior(a, a.prior_logits, row, group) {
    log_of_sums = posterior.log_of_sum() - prior.log_of_sum();
    T sum = T(0);
    for_chunks(a, row, group, [&](const Tile& t) {
      const Logits<T> x(a.logits, t), y(a.prior_logits, t);
      Buffer<T> terms;
      kl_terms(x.data, posterior.shift, y.data, prior.shift, terms.data, t.count);
      sum += row_sum(terms.data, t.count);
    });
    kl = sum / posterior.sum - log_of_sums;
  }
};

template <class T>
void categorical_kl_forward(const variate_categorical_kl_args& a) {
  const Grid grid = grid_of_groups(a);
  const auto body = [&](const Tile& t) {
    Buffer<T> kl{};
    for_groups(t, [&](int64_t row, int64_t group, int64_t i) { kl.data[i] = GroupKl<T>(a, row, group).kl; });
    store_row_sums(a.kl, a.execution.workspace, grid, t, static_cast<const T*>(kl.data));
  };
  for_tiles(grid, a.execution.threads, body, a.categories);
  finish_row_sums(a.kl, a.execution.workspace, grid);
}

template <class T>
void kl_group_gradients(const T* __restrict x, const T* __restrict y, const GroupKl<T>& group, T grad,
                        T* __restrict grad_x, T* __restrict grad_y, int64_t count) {
  const T shift = group.posterior.shift, prior_shift = group.prior.shift, constant = group.log_of_sums + group.kl;
  const T scale = T(1) / group.posterior.sum, prior_scale = T(1) / group.prior.sum;
  for (int64_t i = 0; i < count; ++i) {
    const T p = math::exp_nonpositive(x[i] - shift) * scale;
    const T r = math::exp_nonpositive(y[i] - prior_shift) * prior_scale;
    grad_x[i] = grad * math::scaled(p, (x[i] - shift) - (y[i] - prior_shift) - constant);
    grad_y[i] = grad * (r - p);
  }
}

template <class T>
void categorical_kl_gradients(const variate_categorical_kl_backward_args& a) {
  const auto body = [&](const Tile& groups) {
    for_groups(groups, [&](int64_t row, int64_t group, int64_t) {
      const GroupKl<T> kl(a, row, group);
      const T grad = element<T>(a.grad_kl, row, 0);
      for_chunks(a, row, group, [&](const Tile& t) {
        const Logits<T> x(a.logits, t), y(a.prior_logits, t);
        const Output<T> grad_x(a.grad_logits, t), grad_y(a.grad_prior_logits, t);
        kl_group_gradients(x.data, y.data, kl, grad, grad_x.data, grad_y.data, t.count);
        grad_x.store();
        grad_y.store();
      });
    });
  };
  for_tiles(grid_of_groups(a), a.execution.threads, body, a.categories);
}

}  // namespace

}  // namespace variate::cpu::VARIATE_ISA
