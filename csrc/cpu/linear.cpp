#include <variate/math/elbo.hpp>

#include <algorithm>
#include <limits>

#include "kernels.h"
#include "tile.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

using Args = variate_linear_nll_args;

// One thread's share: at most column_sum_rows rows, whose residuals it sums by column.
template <class T>
struct Block {
  int64_t row, rows;
  T* sums;  // [cols], or nullptr
  double nll[column_sum_rows];
};

// Columns [col, col + cols) of a row.
Tile piece(int64_t row, int64_t col, int64_t cols) {
  const int64_t count = (cols + lane_multiple - 1) / lane_multiple * lane_multiple;
  return {row, 1, col, cols, (cols + 3) / 4 * 4, count};
}

// `body(first, cols)` for the pieces of columns [col, col + cols).
template <class Body>
void for_pieces(int64_t col, int64_t cols, Body body) {
  for (int64_t i = 0; i < cols; i += tile_elements) body(col + i, std::min(tile_elements, cols - i));
}

int64_t target_row(const Args& a, int64_t row) { return (a.first_row + row) % a.target_rows; }

template <class T>
T grad_of_row(const Args& a, int64_t row) {
  return a.grad_nll.data ? element<T>(a.grad_nll, row, 0) : T(1);
}

// The bias of a piece, or zeros.
template <class T>
const T* load_bias(const Args& a, int64_t col, int64_t cols, Buffer<T>& buffer) {
  const Tile t = piece(0, col, cols);
  if (a.bias.data) return load(a.bias, t, buffer);
  std::fill_n(buffer.data, t.count, T(0));
  return buffer.data;
}

// The logits of a piece: a copy, as the residual may take the place of the products.
template <class T>
void load_logits(const Args& a, const Tile& t, const T* __restrict bias, T* __restrict logits) {
  with_type(a.products.dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(a.products.data) + t.row * a.products.row_stride;
    load_row(logits, from + t.col * a.products.col_stride, a.products.col_stride, t.cols);
  });
  for (int64_t i = t.cols; i < t.count; ++i) logits[i] = T(0);
  for (int64_t i = 0; i < t.count; ++i) logits[i] += bias[i];
}

template <class T>
void add_to_sums(T* __restrict sums, const T* __restrict terms, T factor, int64_t cols) {
  for (int64_t i = 0; i < cols; ++i) sums[i] += factor * terms[i];
}

// `body(block)` for each block of rows, then the blocks' sums by column, in their order, into grad_bias.
template <class T, class Body>
void for_blocks(const Args& a, Body body) {
  const int64_t blocks = (a.rows + column_sum_rows - 1) / column_sum_rows;
  T* sums = a.grad_bias.data ? static_cast<T*>(a.execution.workspace) : nullptr;
  const auto run = [&](int64_t i) {
    Block<T> block = {};
    block.row = i * column_sum_rows;
    block.rows = std::min(column_sum_rows, a.rows - block.row);
    if (sums) block.sums = std::fill_n(sums + i * a.cols, a.cols, T(0)) - a.cols;
    body(block);
    for (int64_t r = 0; a.nll.data && r < block.rows; ++r) set_element(a.nll, block.row + r, block.nll[r]);
  };
  const int threads = a.execution.threads;
  if (threads > 1 && a.rows * a.cols >= parallel_grain) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < blocks; ++i) run(i);
  } else {
    for (int64_t i = 0; i < blocks; ++i) run(i);
  }
  if (!sums) return;
  for (int64_t i = 1; i < blocks; ++i) add_to_sums(sums, sums + i * a.cols, T(1), a.cols);
  with_type(a.grad_bias.dtype, [&](auto* type) {
    auto* to = static_cast<decltype(type)>(a.grad_bias.data);
    using Element = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_floating_point_v<Element>) {
      for (int64_t c = 0; c < a.cols; ++c) to[c * a.grad_bias.col_stride] += static_cast<Element>(sums[c]);
    }
  });
}

template <class T>
void bernoulli_terms(const T* __restrict logits, const T* __restrict target, T* __restrict nll, int64_t count) {
  for (int64_t i = 0; i < count; ++i) nll[i] = math::bernoulli_nll(logits[i], target[i]);
}

template <class T>
void bernoulli_gradients(const T* __restrict logits, const T* __restrict target, T* __restrict residual,
                         int64_t count) {
  for (int64_t i = 0; i < count; ++i) residual[i] = math::bernoulli_nll_gradient(logits[i], target[i]);
}

// Both from one exponential.
template <class T>
void bernoulli_both(const T* __restrict logits, const T* __restrict target, T* __restrict nll, T* __restrict residual,
                    int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    nll[i] = math::bernoulli_nll(logits[i], target[i]);
    residual[i] = math::bernoulli_nll_gradient(logits[i], target[i]);
  }
}

template <class T>
void bernoulli(const Args& a) {
  const bool gradient = a.residual.data || a.grad_bias.data;
  for_blocks<T>(a, [&](Block<T>& block) {
    for_pieces(0, a.cols, [&](int64_t col, int64_t cols) {
      Buffer<T> bias_buffer, logits, target_buffer, nll, residual_buffer;
      const T* bias = load_bias(a, col, cols, bias_buffer);
      for (int64_t r = 0; r < block.rows; ++r) {
        const Tile t = piece(block.row + r, col, cols);
        load_logits(a, t, bias, logits.data);
        const T* labels = load(a.target, piece(target_row(a, t.row), col, cols), target_buffer);
        T* residual = optional_target(a.residual, t, residual_buffer);
        if (!gradient) {
          bernoulli_terms(logits.data, labels, nll.data, t.count);
        } else if (a.nll.data) {
          bernoulli_both(logits.data, labels, nll.data, residual, t.count);
        } else {
          bernoulli_gradients(logits.data, labels, residual, t.count);
        }
        if (a.nll.data) block.nll[r] += row_sum(nll.data, cols);
        if (block.sums) add_to_sums(block.sums + col, residual, grad_of_row<T>(a, t.row), cols);
        store(a.residual, t, residual);
      }
    });
  });
}

template <class T>
T maximum(const T* x, int64_t count) {
  T lanes[lane_multiple];
  std::fill_n(lanes, lane_multiple, -std::numeric_limits<T>::infinity());
  int64_t i = 0;
  for (; i + lane_multiple <= count; i += lane_multiple) {
    for (int64_t j = 0; j < lane_multiple; ++j) lanes[j] = lanes[j] < x[i + j] ? x[i + j] : lanes[j];
  }
  for (; i < count; ++i) lanes[0] = lanes[0] < x[i] ? x[i] : lanes[0];
  return *std::max_element(lanes, lanes + lane_multiple);
}

template <class T>
void exponentials(const T* __restrict logits, T highest, T* __restrict exp, int64_t count) {
  for (int64_t i = 0; i < count; ++i) exp[i] = math::exp_nonpositive(logits[i] - highest);
}

template <class T>
void scaled(const T* __restrict x, T factor, T* __restrict result, int64_t count) {
  for (int64_t i = 0; i < count; ++i) result[i] = x[i] * factor;
}

float log_of_sum(float sum) { return sum == sum ? math::log(sum) : sum; }
double log_of_sum(double sum) { return ::log(sum); }

// One variable of one row, columns [first, first + ways), in three passes: the largest logit, the sum of exponentials
// below it, the gradient.
template <class T>
void categorical_variable(const Args& a, Block<T>& block, int64_t r, int64_t first, bool gradient) {
  Buffer<T> bias_buffer, logits, exp, residual_buffer;
  const int64_t row = block.row + r;
  const auto load_piece = [&](int64_t col, int64_t cols) {
    load_logits(a, piece(row, col, cols), load_bias(a, col, cols, bias_buffer), logits.data);
  };
  const bool whole = a.ways <= tile_elements;  // the variable stays in its buffer from pass to pass
  T highest = -std::numeric_limits<T>::infinity(), sum = T(0), chosen = std::numeric_limits<T>::quiet_NaN();
  const int64_t label = first + element<int64_t>(a.target, target_row(a, row), first / a.ways);
  for_pieces(first, a.ways, [&](int64_t col, int64_t cols) {
    load_piece(col, cols);
    const T largest = maximum(logits.data, cols);
    highest = highest < largest ? largest : highest;
    if (col <= label && label < col + cols) chosen = logits.data[label - col];
  });
  const auto exponentiate = [&](int64_t col, int64_t cols) {
    if (!whole) load_piece(col, cols);
    exponentials(logits.data, highest, exp.data, piece(row, col, cols).count);
  };
  for_pieces(first, a.ways, [&](int64_t col, int64_t cols) {
    exponentiate(col, cols);
    sum += row_sum(exp.data, cols);
  });
  block.nll[r] += (highest - chosen) + log_of_sum(sum);
  if (!gradient) return;
  const T factor = chosen == chosen ? T(1) / sum : chosen;
  for_pieces(first, a.ways, [&](int64_t col, int64_t cols) {
    if (!whole) exponentiate(col, cols);
    const Tile t = piece(row, col, cols);
    T* residual = optional_target(a.residual, t, residual_buffer);
    scaled(exp.data, factor, residual, t.count);
    if (col <= label && label < col + cols) residual[label - col] -= T(1);
    if (block.sums) add_to_sums(block.sums + col, residual, grad_of_row<T>(a, row), cols);
    store(a.residual, t, residual);
  });
}

template <class T>
void categorical(const Args& a) {
  const bool gradient = a.residual.data || a.grad_bias.data;
  for_blocks<T>(a, [&](Block<T>& block) {
    for (int64_t first = 0; first < a.cols; first += a.ways) {
      for (int64_t r = 0; r < block.rows; ++r) categorical_variable(a, block, r, first, gradient);
    }
  });
}

bool is_double(const Args& a) {
  for (const variate_tensor& tensor : {a.products, a.bias, a.target}) {
    if (tensor.data && tensor.dtype == VARIATE_FLOAT64) return true;
  }
  return false;
}

}  // namespace

void linear_bernoulli_nll(const Args& a) { is_double(a) ? bernoulli<double>(a) : bernoulli<float>(a); }

void linear_categorical_nll(const Args& a) { is_double(a) ? categorical<double>(a) : categorical<float>(a); }

}  // namespace variate::cpu::VARIATE_ISA
