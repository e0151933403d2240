#include <variate/math/diffusion.hpp>

#include "kernels.h"
#include "noise.h"
#include "operands.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

// `function(row, part, at, count)` for each stretch of a tile's row that lies in one of `parts` equal parts of the
// row: `count` lanes from lane `at`. The last stretch of a row covers its idle lanes too.
template <class Function>
void for_parts(const Tile& t, int64_t cols, int64_t parts, Function function) {
  const int64_t width = cols / parts;
  for (int64_t r = 0; r < t.rows; ++r) {
    for (int64_t c = 0; c < t.cols;) {
      const int64_t part = (t.col + c) / width, left = (part + 1) * width - t.col;
      const int64_t end = left < t.cols ? left : t.pitch;
      function(t.row + r, part, r * t.pitch + c, end - c);
      c = end;
    }
  }
}

// The standard normal of one element.
float normal_at(math::Key key, int64_t element, uint32_t sample) {
  const math::Words words = math::noise_words(key, static_cast<uint64_t>(element / 4), sample);
  const int64_t pair = element % 4 / 2 * 2;
  const math::NormalPair normals = math::normal_pair(words.w[pair], words.w[pair + 1]);
  return element % 2 ? normals.sin_part : normals.cos_part;
}

template <class T>
void add(T x, T* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += x;
}

// eps of a tile.
template <class T>
const T* noise_of(const variate_noise_and_target_args& a, const Tile& t, Buffer<T>& noise) {
  const T* data = noise.data;
  if (a.drawn.data) {
    data = load(a.drawn, t, noise);
    if (a.offset_noise == 0) return data;
    if (data != noise.data) std::memcpy(noise.data, data, t.count * sizeof(T));
  } else {
    WordBuffer words;
    tile_words(a.noise, t, words);
    if constexpr (sizeof(T) == sizeof(float)) {
      normals_of(words.data, noise.data, t.count);
    } else {
      Buffer<float> normals;
      normals_of(words.data, normals.data, t.count);
      for (int64_t i = 0; i < t.count; ++i) noise.data[i] = normals.data[i];
    }
  }
  if (a.offset_noise == 0) return noise.data;
  for_parts(t, a.cols, a.channels, [&](int64_t row, int64_t channel, int64_t at, int64_t count) {
    const bool own = a.noise.key_stride != 0;
    const uint32_t sample = own ? 0 : static_cast<uint32_t>(a.noise.first_sample + row);
    const float offset = normal_at(math::fold_in(key_of(a.noise, row), 1), channel, sample);
    add(static_cast<T>(a.offset_noise) * static_cast<T>(offset), noise.data + at, count);
  });
  return noise.data;
}

template <class T>
void noise_part(math::Noising<T> n, const T* __restrict x0, const T* __restrict noise, T* __restrict x_t,
                T* __restrict target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    x_t[i] = math::combine(n.alpha, x0[i], n.sigma, noise[i]);
    target[i] = math::combine(n.from_x0, x0[i], n.from_noise, noise[i]);
  }
}

template <class T>
void keep_masked(const T* __restrict mask, const T* __restrict x0, T* __restrict x_t, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x_t[i] = mask[i] != T(0) ? x0[i] : x_t[i];
}

template <class T>
void noise_tiles(const variate_noise_and_target_args& a) {
  for_tiles(Grid(a.rows, a.cols), a.execution.threads, [&](const Tile& t) {
    Buffer<T> noise_buffer;
    const T* noise = noise_of(a, t, noise_buffer);
    const Input<T> x0(a.x0, t);
    const Output<T> x_t(a.x_t, t), target(a.target, t);
    for_parts(t, a.cols, a.tokens, [&](int64_t row, int64_t token, int64_t at, int64_t count) {
      const int64_t level = a.timestep.data ? element<int64_t>(a.timestep, row, token) : row * a.tokens + token;
      const math::Noising<T> n = math::noising<T>(a.prediction, element<double>(a.levels, level, 0),
                                                  element<double>(a.levels, level, 1), a.sigma_data);
      noise_part(n, x0.data + at, noise + at, x_t.data + at, target.data + at, count);
    });
    if (a.mask.data) {
      const Input<T> mask(a.mask, t);
      keep_masked(mask.data, x0.data, x_t.data, t.count);
    }
    x_t.store();
    target.store();
  });
}

template <variate_penalty kind>
struct Kind {
  static constexpr variate_penalty value = kind;
};

template <class Function>
void with_penalty(variate_penalty kind, Function function) {
  kind == VARIATE_SQUARE ? function(Kind<VARIATE_SQUARE>()) : function(Kind<VARIATE_HUBER>());
}

template <variate_penalty kind, class T>
void penalties(const T* __restrict prediction, const T* __restrict target, T delta, T* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = math::penalty<kind>(prediction[i] - target[i], delta);
}

template <variate_penalty kind, class T>
void gradients(const T* __restrict prediction, const T* __restrict target, T delta, T scale, T* __restrict grad,
               int64_t count) {
  for (int64_t i = 0; i < count; ++i) grad[i] = scale * math::penalty_slope<kind>(prediction[i] - target[i], delta);
}

template <variate_penalty kind, class T>
void penalties_and_gradients(const T* __restrict prediction, const T* __restrict target, T delta, T scale,
                             T* __restrict out, T* __restrict grad, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T difference = prediction[i] - target[i];
    out[i] = math::penalty<kind>(difference, delta);
    grad[i] = scale * math::penalty_slope<kind>(difference, delta);
  }
}

template <class T>
void zero_masked(const T* __restrict mask, T* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = mask[i] != T(0) ? T(0) : x[i];
}

template <class T, class Args>
T weight_of(const Args& a, int64_t row) {
  return a.weight.data ? element<T>(a.weight, row, 0) : T(1);
}

// What multiplies penalty_slope of a row whose loss has this gradient.
template <class T, class Args>
T slope_scale(const Args& a, int64_t row, T grad_loss) {
  const double slope = a.penalty == VARIATE_SQUARE ? 2.0 : 1.0;
  return static_cast<T>(static_cast<double>(grad_loss) * weight_of<T>(a, row) * slope / static_cast<double>(a.cols));
}

template <class T>
T mean_gradient(int64_t rows) {
  return T(1) / static_cast<T>(rows);
}

template <class T>
void loss_of_row(const variate_denoising_loss_args& a, int64_t row, double sum) {
  const double mean = a.cols > 0 ? sum / static_cast<double>(a.cols) : 0.0;
  set_element(a.loss, row, mean * weight_of<T>(a, row));
}

// Rows without columns are not read, not even their weights.
void no_losses(const variate_denoising_loss_args& a) {
  for (int64_t r = 0; r < a.rows; ++r) set_element(a.loss, r, 0.0);
}

template <class T>
void loss_tiles(const variate_denoising_loss_args& a) {
  const Grid grid(a.rows, a.cols);
  const T delta = static_cast<T>(a.delta);
  double* parts = static_cast<double*>(a.execution.workspace);
  with_penalty(a.penalty, [&](auto kind) {
    for_tiles(grid, a.execution.threads, [&](const Tile& t) {
      const Input<T> prediction(a.prediction, t), target(a.target, t);
      Buffer<T> terms;
      if (a.grad_prediction.data) {
        const Output<T> grad(a.grad_prediction, t);
        for_parts(t, a.cols, 1, [&](int64_t row, int64_t, int64_t at, int64_t count) {
          penalties_and_gradients<kind.value>(prediction.data + at, target.data + at, delta,
                                              slope_scale(a, row, mean_gradient<T>(a.rows)), terms.data + at,
                                              grad.data + at, count);
        });
        if (a.mask.data) {
          const Input<T> mask(a.mask, t);
          zero_masked(mask.data, terms.data, t.count);
          zero_masked(mask.data, grad.data, t.count);
        }
        grad.store();
      } else {
        penalties<kind.value>(prediction.data, target.data, delta, terms.data, t.count);
        if (a.mask.data) {
          const Input<T> mask(a.mask, t);
          zero_masked(mask.data, terms.data, t.count);
        }
      }
      for (int64_t r = 0; r < t.rows; ++r) {
        const T sum = row_sum(terms.data + r * t.pitch, t.cols);
        if (grid.col_tiles == 1) {
          loss_of_row<T>(a, t.row + r, sum);
        } else {
          parts[t.row * grid.col_tiles + t.col / tile_elements] = sum;
        }
      }
    });
  });
  for (int64_t r = 0; grid.col_tiles > 1 && r < a.rows; ++r) {
    double sum = 0.0;
    for (int64_t i = 0; i < grid.col_tiles; ++i) sum += parts[r * grid.col_tiles + i];
    loss_of_row<T>(a, r, sum);
  }
}

template <class T>
void loss_backward(const variate_denoising_loss_backward_args& a) {
  const T delta = static_cast<T>(a.delta), mean = mean_gradient<T>(a.rows);
  // A tile of rows that are ready is left alone; one row that is not brings its whole tile, to the same bits.
  const auto ready = [&](const Tile& t) {
    bool all = a.ready && !a.grad_target.data;
    for (int64_t r = 0; all && r < t.rows; ++r) all = element<T>(a.grad_loss, t.row + r, 0) == mean;
    return all;
  };
  with_penalty(a.penalty, [&](auto kind) {
    for_tiles(Grid(a.rows, a.cols), a.execution.threads, [&](const Tile& t) {
      if (ready(t)) return;
      const Input<T> prediction(a.prediction, t), target(a.target, t);
      const Output<T> grad(a.grad_prediction, t);
      for_parts(t, a.cols, 1, [&](int64_t row, int64_t, int64_t at, int64_t count) {
        gradients<kind.value>(prediction.data + at, target.data + at, delta,
                              slope_scale(a, row, element<T>(a.grad_loss, row, 0)), grad.data + at, count);
      });
      if (a.mask.data) {
        const Input<T> mask(a.mask, t);
        zero_masked(mask.data, grad.data, t.count);
      }
      grad.store();
      if (!a.grad_target.data) return;
      const Output<T> grad_target(a.grad_target, t);
      for (int64_t i = 0; i < t.count; ++i) grad_target.data[i] = -grad.data[i];
      grad_target.store();
    });
  });
}

template <class... Tensor>
bool any_double(const Tensor&... tensors) {
  return ((tensors.data && tensors.dtype == VARIATE_FLOAT64) || ...);
}

}  // namespace

void noise_and_target(const variate_noise_and_target_args& a) {
  any_double(a.x0) ? noise_tiles<double>(a) : noise_tiles<float>(a);
}

void denoising_loss(const variate_denoising_loss_args& a) {
  if (a.cols == 0) return no_losses(a);
  any_double(a.prediction, a.target) ? loss_tiles<double>(a) : loss_tiles<float>(a);
}

void denoising_loss_backward(const variate_denoising_loss_backward_args& a) {
  any_double(a.prediction, a.target) ? loss_backward<double>(a) : loss_backward<float>(a);
}

}  // namespace variate::cpu::VARIATE_ISA
