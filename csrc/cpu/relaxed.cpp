#include <variate/math/relaxed.hpp>

#include "kernels.h"
#include "noise.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

template <class T, class Args>
T inverse_temperature_of(const Args& a) {
  return math::inverse_temperature<T>(a.temperature.data ? element<double>(a.temperature, 0, 0) : a.temperature_value);
}

// A line is the categories of one group of one row. Where lines are short, a tile holds whole ones: all groups of some
// rows, or some groups of one row that begin at a block of four. A longer line is a series of tiles by itself.
class Lines {
 public:
  template <class Args>
  explicit Lines(const Args& a)
      : groups(a.groups),
        categories(a.categories),
        grid_(a.rows, a.groups * a.categories),
        parallel_(a.execution.threads > 1 && a.rows * a.groups * a.categories >= parallel_grain),
        threads_(a.execution.threads) {
    if (grid_.col_tiles == 1) {
      tile_groups_ = groups;
    } else {
      const int64_t align = categories % 4 == 0 ? 1 : categories % 2 == 0 ? 2 : 4;
      tile_groups_ = tile_elements / categories / align * align;
    }
  }

  bool fit() const { return tile_groups_ > 0; }

  // body(tile) for tiles of whole lines.
  template <class Body>
  void for_tiles(Body body) const {
    if (grid_.col_tiles == 1) return each(grid_.row_tiles, [&](int64_t i) { body(grid_.tile(i)); });
    const int64_t per_row = (groups + tile_groups_ - 1) / tile_groups_;
    each(grid_.rows * per_row, [&](int64_t i) {
      const int64_t begin = i % per_row * tile_groups_;
      const int64_t count = groups - begin < tile_groups_ ? groups - begin : tile_groups_;
      body(row_tile(i / per_row, begin * categories, count * categories));
    });
  }

  // body(row, first column) for each line.
  template <class Body>
  void for_each(Body body) const {
    each(grid_.rows * groups, [&](int64_t i) { body(i / groups, i % groups * categories); });
  }

  // body(offset in the buffer) for each line of a tile of whole ones.
  template <class Body>
  void of_tile(const Tile& t, Body body) const {
    for (int64_t r = 0; r < t.rows; ++r) {
      for (int64_t c = 0; c < t.cols; c += categories) body(r * t.pitch + c);
    }
  }

  static Tile row_tile(int64_t row, int64_t col, int64_t cols) {
    Tile t;
    t.row = row;
    t.rows = 1;
    t.col = col;
    t.cols = cols;
    t.pitch = (cols + 3) / 4 * 4;
    t.count = (t.pitch + lane_multiple - 1) / lane_multiple * lane_multiple;
    return t;
  }

  const int64_t groups, categories;

 private:
  template <class Body>
  void each(int64_t count, Body body) const {
    if (!parallel_) {
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (int64_t i = 0; i < count; ++i) body(i);
  }

  Grid grid_;
  bool parallel_;
  int threads_;
  int64_t tile_groups_;
};

// The largest of a line; a NaN is passed over. Written over the compiler's vectors, as it makes no vector of a maximum.
template <class T>
T line_max(const T* x, int64_t count) {
  typedef T Vector __attribute__((vector_size(16 * sizeof(T)), aligned(sizeof(T)), may_alias));
  T best = -static_cast<T>(__builtin_inff());
  int64_t i = 0;
  if (count >= lane_multiple) {
    Vector lanes = best - Vector{};
    for (; i + lane_multiple <= count; i += lane_multiple) {
      const Vector next = *reinterpret_cast<const Vector*>(x + i);
      lanes = next > lanes ? next : lanes;
    }
    for (int64_t j = 0; j < lane_multiple; ++j) best = lanes[j] > best ? lanes[j] : best;
  }
  for (; i < count; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// The scores of a tile, logits + gumbel; without a key the logits themselves.
template <class T>
const T* load_scores(const variate_noise& noise, const variate_tensor& logits, const Tile& t, Buffer<T>& given_buffer,
                     Buffer<T>& score_buffer) {
  const T* __restrict given = load(logits, t, given_buffer);
  if (!noise.key) return given;
  WordBuffer word_buffer;
  const uint32_t* __restrict words = tile_words(noise, t, word_buffer);
  T* __restrict scores = score_buffer.data;
  for (int64_t i = 0; i < t.count; ++i) scores[i] = given[i] + static_cast<T>(math::gumbel(words[i]));
  return scores;
}

// exp((score - best) / temperature), in place.
template <class T>
void exponentials(T* __restrict x, T inverse, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = math::exp_nonpositive(x[i] * inverse);
}

// The softmax of each line of a tile.
template <class T>
void soft_tile(const Lines& lines, const Tile& t, const T* scores, T inverse, Buffer<T>& buffer) {
  T* weights = buffer.data;
  for (int64_t i = 0; i < t.count; ++i) weights[i] = T(0);
  lines.of_tile(t, [&](int64_t at) {
    const T best = line_max(scores + at, lines.categories);
    for (int64_t c = 0; c < lines.categories; ++c) weights[at + c] = math::below_best(scores[at + c], best);
  });
  exponentials(weights, inverse, t.count);
  lines.of_tile(t, [&](int64_t at) {
    const T scale = T(1) / row_sum(weights + at, lines.categories);
    for (int64_t c = 0; c < lines.categories; ++c) weights[at + c] *= scale;
  });
}

// 1 at the first of the largest scores of a line, else 0; NaN throughout where a score is.
template <class T>
void hard_line(const T* scores, int64_t categories, T* one_hot) {
  const T best = line_max(scores, categories);
  for (int64_t c = 0; c < categories; ++c) {
    const T one = scores[c] == best ? T(1) : T(0);
    one_hot[c] = scores[c] != scores[c] ? scores[c] : one;
  }
  const T count = row_sum(one_hot, categories);
  if (count == T(1)) return;
  bool found = false;
  for (int64_t c = 0; c < categories; ++c) {
    const bool first = one_hot[c] == T(1) && !found;
    found = found || first;
    one_hot[c] = count != count ? count : first ? T(1) : T(0);
  }
}

// What a softmax divides by, and the mean that its gradient subtracts, as sums of weights exp((score - best) /
// temperature).
template <class T>
struct LineSums {
  T best = -static_cast<T>(__builtin_inff());
  T total = T(0);
  T dot = T(0);  // of the weights with a gradient

  // Makes `score` the best, if it is.
  void raise(T score, T inverse) {
    if (!(score > best)) return;
    const T scale = math::exp_nonpositive((best - score) * inverse);
    total *= scale;
    dot *= scale;
    best = score;
  }
};

// One line of more than a tile, or that does not begin at a block of four: tile by tile, each from the block on that
// its first element is in. Scores are made again in each pass.
template <class T>
class LongLine {
 public:
  template <class Args>
  LongLine(const Args& a, int64_t row, int64_t first_col)
      : noise_(a.noise),
        logits_(a.logits),
        inverse_(inverse_temperature_of<T>(a)),
        row_(row),
        first_(first_col),
        end_(first_col + a.categories) {}

  // body(tile, lead): lanes before `lead` belong to the line before.
  template <class Body>
  void for_tiles(Body body) const {
    for (int64_t col = first_ / 4 * 4; col < end_; col += tile_elements) {
      const int64_t cols = end_ - col < tile_elements ? end_ - col : tile_elements;
      body(Lines::row_tile(row_, col, cols), first_ > col ? first_ - col : 0);
    }
  }

  // body(tile, lead, scores).
  template <class Body>
  void for_scores(Body body) const {
    for_tiles([&](const Tile& t, int64_t lead) {
      Buffer<T> given, scores;
      body(t, lead, load_scores(noise_, logits_, t, given, scores));
    });
  }

  void weigh(const Tile& t, const T* scores, T best, T* weights) const {
    for (int64_t i = 0; i < t.count; ++i) weights[i] = math::below_best(scores[i], best);
    exponentials(weights, inverse_, t.count);
  }

  // `grad` may be left out.
  LineSums<T> sums(const variate_tensor& grad) const {
    LineSums<T> sums;
    for_scores([&](const Tile& t, int64_t lead, const T* scores) {
      Buffer<T> weights, grad_buffer;
      sums.raise(line_max(scores + lead, t.cols - lead), inverse_);
      weigh(t, scores, sums.best, weights.data);
      sums.total += row_sum(weights.data + lead, t.cols - lead);
      if (!grad.data) return;
      const T* g = load(grad, t, grad_buffer);
      for (int64_t i = 0; i < t.count; ++i) weights.data[i] *= g[i];
      sums.dot += row_sum(weights.data + lead, t.cols - lead);
    });
    return sums;
  }

  // Writes the lanes from `lead` on.
  static void store_from(const variate_tensor& out, const Tile& t, int64_t lead, const T* values) {
    write(out, Lines::row_tile(t.row, t.col + lead, t.cols - lead), values + lead);
  }

 private:
  const variate_noise& noise_;
  const variate_tensor& logits_;
  T inverse_;
  int64_t row_, first_, end_;
};

template <class T>
void soft_line(const variate_gumbel_softmax_args& a, const LongLine<T>& line) {
  const LineSums<T> sums = line.sums({});
  const T scale = T(1) / sums.total;
  line.for_scores([&](const Tile& t, int64_t lead, const T* scores) {
    Buffer<T> y;
    line.weigh(t, scores, sums.best, y.data);
    for (int64_t i = 0; i < t.count; ++i) y.data[i] *= scale;
    LongLine<T>::store_from(a.y, t, lead, y.data);
  });
}

template <class T>
void hard_line(const variate_gumbel_softmax_args& a, const LongLine<T>& line, int64_t first_col) {
  T best = -static_cast<T>(__builtin_inff());
  int64_t winner = first_col;
  line.for_scores([&](const Tile& t, int64_t lead, const T* scores) {
    for (int64_t i = lead; i < t.cols; ++i) {
      // A NaN wins for good.
      if (!(scores[i] > best) && (scores[i] == scores[i] || best != best)) continue;
      best = scores[i];
      winner = t.col + i;
    }
  });
  line.for_tiles([&](const Tile& t, int64_t lead) {
    Buffer<T> y;
    for (int64_t i = 0; i < t.count; ++i) y.data[i] = best != best ? best : t.col + i == winner ? T(1) : T(0);
    LongLine<T>::store_from(a.y, t, lead, y.data);
  });
}

template <class T>
void forward(const variate_gumbel_softmax_args& a) {
  const Lines lines(a);
  const T inverse = inverse_temperature_of<T>(a);
  if (!lines.fit()) {
    return lines.for_each([&](int64_t row, int64_t col) {
      const LongLine<T> line(a, row, col);
      a.hard ? hard_line(a, line, col) : soft_line(a, line);
    });
  }
  lines.for_tiles([&](const Tile& t) {
    Buffer<T> given, score_buffer, y_buffer;
    const T* scores = load_scores(a.noise, a.logits, t, given, score_buffer);
    if (a.hard) {
      lines.of_tile(t, [&](int64_t at) { hard_line(scores + at, lines.categories, y_buffer.data + at); });
    } else {
      soft_tile(lines, t, scores, inverse, y_buffer);
    }
    write(a.y, t, y_buffer.data);
  });
}

// grad = y (grad_y - dot) / temperature.
template <class T>
void softmax_gradient(const T* __restrict y, const T* __restrict grad_y, T dot, T inverse, T* __restrict grad,
                      int64_t count) {
  for (int64_t i = 0; i < count; ++i) grad[i] = y[i] * inverse * (grad_y[i] - dot);
}

template <class T>
void line_backward(const variate_gumbel_softmax_backward_args& a, const LongLine<T>& line, T inverse) {
  LineSums<T> sums;
  if (!a.y.data) {
    sums = line.sums(a.grad_y);
  } else {
    sums.total = T(1);
    line.for_tiles([&](const Tile& t, int64_t lead) {
      Buffer<T> y_buffer, grad_buffer, product;
      const T* y = load(a.y, t, y_buffer);
      const T* grad_y = load(a.grad_y, t, grad_buffer);
      for (int64_t i = 0; i < t.count; ++i) product.data[i] = y[i] * grad_y[i];
      sums.dot += row_sum(product.data + lead, t.cols - lead);
    });
  }
  const T dot = sums.dot / sums.total, scale = inverse / sums.total;
  const auto finish = [&](const Tile& t, int64_t lead, const T* y) {
    Buffer<T> grad_buffer, out;
    softmax_gradient(y, load(a.grad_y, t, grad_buffer), dot, scale, out.data, t.count);
    LongLine<T>::store_from(a.grad_logits, t, lead, out.data);
  };
  if (a.y.data) {
    line.for_tiles([&](const Tile& t, int64_t lead) {
      Buffer<T> y_buffer;
      finish(t, lead, load(a.y, t, y_buffer));
    });
  } else {
    line.for_scores([&](const Tile& t, int64_t lead, const T* scores) {
      Buffer<T> weights;
      line.weigh(t, scores, sums.best, weights.data);
      finish(t, lead, weights.data);
    });
  }
}

template <class T>
void backward(const variate_gumbel_softmax_backward_args& a) {
  const Lines lines(a);
  const T inverse = inverse_temperature_of<T>(a);
  if (!lines.fit()) {
    return lines.for_each([&](int64_t row, int64_t col) { line_backward(a, LongLine<T>(a, row, col), inverse); });
  }
  lines.for_tiles([&](const Tile& t) {
    Buffer<T> y_buffer, grad_y_buffer, product, grad_buffer;
    const T* y = y_buffer.data;
    if (a.y.data) {
      y = load(a.y, t, y_buffer);
    } else {
      Buffer<T> given, scores;
      soft_tile(lines, t, load_scores(a.noise, a.logits, t, given, scores), inverse, y_buffer);
    }
    const T* grad_y = load(a.grad_y, t, grad_y_buffer);
    for (int64_t i = 0; i < t.count; ++i) product.data[i] = y[i] * grad_y[i];
    T* grad = target(a.grad_logits, t, grad_buffer);
    lines.of_tile(t, [&](int64_t at) {
      const T dot = row_sum(product.data + at, lines.categories);
      softmax_gradient(y + at, grad_y + at, dot, inverse, grad + at, lines.categories);
    });
    store(a.grad_logits, t, grad);
  });
}

template <class T>
void forward(const variate_relaxed_bernoulli_rsample_args& a) {
  const T inverse = inverse_temperature_of<T>(a);
  for_tiles(Grid(a.rows, a.cols), a.execution.threads, [&](const Tile& t) {
    WordBuffer word_buffer;
    Buffer<T> logits_buffer, z_buffer;
    const uint32_t* __restrict words = tile_words(a.noise, t, word_buffer);
    const T* __restrict logits = load(a.logits, t, logits_buffer);
    T* __restrict z = target(a.z, t, z_buffer);
    const auto relaxed = [&](int64_t i) { return (logits[i] + static_cast<T>(math::logistic(words[i]))) * inverse; };
    if (a.hard) {
      for (int64_t i = 0; i < t.count; ++i) z[i] = math::one_if_positive(relaxed(i));
    } else {
      for (int64_t i = 0; i < t.count; ++i) z[i] = math::sigmoid(relaxed(i));
    }
    store(a.z, t, z);
  });
}

template <class T>
void backward(const variate_relaxed_bernoulli_rsample_backward_args& a) {
  const T inverse = inverse_temperature_of<T>(a);
  for_tiles(Grid(a.rows, a.cols), a.execution.threads, [&](const Tile& t) {
    Buffer<T> given_buffer, grad_z_buffer, grad_buffer;
    const T* __restrict grad_z = load(a.grad_z, t, grad_z_buffer);
    T* __restrict grad = target(a.grad_logits, t, grad_buffer);
    if (a.z.data) {
      const T* __restrict z = load(a.z, t, given_buffer);
      for (int64_t i = 0; i < t.count; ++i) grad[i] = grad_z[i] * inverse * z[i] * (T(1) - z[i]);
    } else {
      const T* __restrict logits = load(a.logits, t, given_buffer);
      if (a.noise.key) {
        WordBuffer word_buffer;
        const uint32_t* __restrict words = tile_words(a.noise, t, word_buffer);
        for (int64_t i = 0; i < t.count; ++i) {
          const T relaxed = (logits[i] + static_cast<T>(math::logistic(words[i]))) * inverse;
          grad[i] = grad_z[i] * inverse * math::sigmoid_slope(relaxed);
        }
      } else {
        for (int64_t i = 0; i < t.count; ++i) {
          grad[i] = grad_z[i] * inverse * math::sigmoid_slope(logits[i] * inverse);
        }
      }
    }
    store(a.grad_logits, t, grad);
  });
}

template <class T>
void forward(const variate_bernoulli_straight_through_args& a) {
  for_tiles(Grid(a.rows, a.cols), a.execution.threads, [&](const Tile& t) {
    WordBuffer word_buffer;
    Buffer<T> logits_buffer, out_buffer;
    const uint32_t* __restrict words = tile_words(a.noise, t, word_buffer);
    const T* __restrict logits = load(a.logits, t, logits_buffer);
    T* __restrict out = target(a.out, t, out_buffer);
    for (int64_t i = 0; i < t.count; ++i) out[i] = math::bernoulli(words[i], math::sigmoid(logits[i]));
    store(a.out, t, out);
  });
}

bool is_double(const variate_tensor& tensor) { return tensor.data && tensor.dtype == VARIATE_FLOAT64; }

}  // namespace

void gumbel_softmax(const variate_gumbel_softmax_args& a) {
  is_double(a.logits) ? forward<double>(a) : forward<float>(a);
}

void gumbel_softmax_backward(const variate_gumbel_softmax_backward_args& a) {
  is_double(a.y) || is_double(a.logits) ? backward<double>(a) : backward<float>(a);
}

void relaxed_bernoulli_rsample(const variate_relaxed_bernoulli_rsample_args& a) {
  is_double(a.logits) ? forward<double>(a) : forward<float>(a);
}

void relaxed_bernoulli_rsample_backward(const variate_relaxed_bernoulli_rsample_backward_args& a) {
  is_double(a.z) || is_double(a.logits) ? backward<double>(a) : backward<float>(a);
}

void bernoulli_straight_through(const variate_bernoulli_straight_through_args& a) {
  is_double(a.logits) ? forward<double>(a) : forward<float>(a);
}

}  // namespace variate::cpu::VARIATE_ISA
