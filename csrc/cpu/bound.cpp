#include <variate/math/bound.hpp>

#include "kernels.h"
#include "tile.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

// A column is one datum, and a strip of columns is worked on at once. It is read a few times, from the cache.
constexpr int64_t strip_cols = 64;
constexpr int64_t block_rows = tile_elements / strip_cols;

struct Strip {
  int64_t col, cols, rows;

  // `body(tile, values)` for each block of rows, whose row r starts at r * strip_cols.
  template <class T, class Body>
  void for_blocks(const variate_tensor& tensor, Body body) const {
    for (int64_t row = 0; row < rows; row += block_rows) {
      Buffer<T> buffer;
      const int64_t count = rows - row < block_rows ? rows - row : block_rows;
      const Tile t = {row, count, col, cols, strip_cols, count * strip_cols};
      body(t, load(tensor, t, buffer));
    }
  }

  // to[r, c] = value(from[r, c], c)
  template <class T, class Value>
  void store_each(const variate_tensor& from, const variate_tensor& to, Value value) const {
    for_blocks<T>(from, [&](const Tile& t, const T* __restrict x) {
      Buffer<T> buffer;
      T* __restrict y = target(to, t, buffer);
      for (int64_t r = 0; r < t.rows; ++r) {
        for (int64_t c = 0; c < strip_cols; ++c) y[r * strip_cols + c] = value(x[r * strip_cols + c], c);
      }
      store(to, t, y);
    });
  }
};

template <class T>
struct alignas(64) Columns {
  T highest[strip_cols], second[strip_cols], zeros[strip_cols], inverse[strip_cols];
  double total[strip_cols], squares[strip_cols], rest[strip_cols], ties[strip_cols], sum[strip_cols];

  Columns() {
    for (int64_t c = 0; c < strip_cols; ++c) {
      highest[c] = second[c] = -math::infinity<T>();
      zeros[c] = T(0);
      total[c] = squares[c] = rest[c] = ties[c] = sum[c] = 0.0;
    }
  }

  math::Column<T> column(int64_t c) const { return {highest[c], second[c], total[c], rest[c], sum[c], zeros[c]}; }
};

template <class T>
void find_highest(Columns<T>& s, const T* __restrict x) {
  for (int64_t c = 0; c < strip_cols; ++c) {
    const T below = x[c] > s.highest[c] ? s.highest[c] : x[c];
    s.second[c] = below > s.second[c] ? below : s.second[c];
    s.highest[c] = x[c] > s.highest[c] ? x[c] : s.highest[c];
  }
}

template <class T>
void add_weights(Columns<T>& s, const T* __restrict x) {
  for (int64_t c = 0; c < strip_cols; ++c) {
    const double e = static_cast<double>(math::relative_weight(x[c], s.highest[c]));
    s.total[c] += e;
    s.squares[c] = math::fma(e, e, s.squares[c]);
  }
}

template <class T>
void add_others(Columns<T>& s, const T* __restrict x) {
  for (int64_t c = 0; c < strip_cols; ++c) {
    const bool top = x[c] == s.highest[c];
    const bool zero = x[c] == -math::infinity<T>();
    s.rest[c] += top ? 0.0 : static_cast<double>(math::relative_weight(x[c], s.second[c]));
    s.ties[c] += top ? 1.0 : 0.0;
    s.sum[c] += zero ? 0.0 : static_cast<double>(x[c]);
    s.zeros[c] += zero ? T(1) : T(0);
  }
}

template <class T>
void strip(const variate_importance_weighted_bound_args& a, const Strip& columns) {
  Columns<T> s;
  const auto each_row = [&](auto body) {
    columns.for_blocks<T>(a.log_weight, [&](const Tile& t, const T* x) {
      for (int64_t r = 0; r < t.rows; ++r) body(s, x + r * strip_cols);
    });
  };
  each_row(find_highest<T>);
  each_row(add_weights<T>);
  const T log_rows = static_cast<T>(::log(static_cast<double>(a.rows)));
  for (int64_t c = 0; c < strip_cols; ++c) {
    s.inverse[c] = static_cast<T>(s.total[c] == 0.0 ? 0.0 : 1.0 / s.total[c]);
  }
  for (int64_t c = 0; c < columns.cols; ++c) {
    const T bound = math::shifted_log(static_cast<T>(s.total[c]), s.highest[c]) - log_rows;
    const double size = s.total[c] == 0.0 ? 0.0 : s.total[c] * s.total[c] / s.squares[c];
    set_element(a.bound, columns.col + c, bound);
    set_element(a.effective_sample_size, columns.col + c, size);
  }
  columns.store_each<T>(a.log_weight, a.weight,
                        [&](T x, int64_t c) { return math::relative_weight(x, s.highest[c]) * s.inverse[c]; });
  if (!a.learning_signal.data) return;
  each_row(add_others<T>);
  for (int64_t c = 0; c < strip_cols; ++c) s.rest[c] += s.second[c] == s.highest[c] ? s.ties[c] - 1.0 : 0.0;
  const T others = static_cast<T>(a.rows - 1);
  columns.store_each<T>(a.log_weight, a.learning_signal,
                        [&](T x, int64_t c) { return math::learning_signal(x, s.column(c), others); });
}

template <class T>
void strips(const variate_importance_weighted_bound_args& a) {
  const int64_t count = (a.cols + strip_cols - 1) / strip_cols;
  const auto at = [&](int64_t i) {
    const int64_t col = i * strip_cols;
    return Strip{col, a.cols - col < strip_cols ? a.cols - col : strip_cols, a.rows};
  };
  if (a.execution.threads <= 1 || a.rows * a.cols < parallel_grain) {
    for (int64_t i = 0; i < count; ++i) strip<T>(a, at(i));
    return;
  }
#pragma omp parallel for schedule(static) num_threads(a.execution.threads)
  for (int64_t i = 0; i < count; ++i) strip<T>(a, at(i));
}

}  // namespace

void importance_weighted_bound(const variate_importance_weighted_bound_args& a) {
  a.log_weight.dtype == VARIATE_FLOAT64 ? strips<double>(a) : strips<float>(a);
}

}  // namespace variate::cpu::VARIATE_ISA
