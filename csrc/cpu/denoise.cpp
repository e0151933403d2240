#include <variate/math/elementary.hpp>

#include "kernels.h"
#include "noise.h"
#include "quantile.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

// A sum of products: the terms whose coefficients are not 0, in order.
template <class T>
class Sum {
 public:
  Sum& add(double coefficient, const T* x, int64_t begin) {
    if (coefficient != 0.0) terms_[count_++] = {static_cast<T>(coefficient), x + begin};
    return *this;
  }

  void write(T* out, int64_t count) const {
    static constexpr void (Sum::* writes[])(T*, int64_t) const = {
        &Sum::write_terms<0>, &Sum::write_terms<1>, &Sum::write_terms<2>, &Sum::write_terms<3>, &Sum::write_terms<4>,
        &Sum::write_terms<5>, &Sum::write_terms<6>, &Sum::write_terms<7>, &Sum::write_terms<8>};
    (this->*writes[count_])(out, count);
  }

 private:
  struct Term {
    T c;
    const T* x;
  };
  static constexpr int most = 8;

  template <int terms>
  void write_terms(T* __restrict out, int64_t count) const {
    T c[terms + 1];
    const T* x[terms + 1];
    for (int k = 0; k < terms; ++k) {
      c[k] = terms_[k].c;
      x[k] = terms_[k].x;
    }
    for (int64_t i = 0; i < count; ++i) {
      T sum = T(0);
      if constexpr (terms > 0) sum = c[0] * x[0][i];
#pragma GCC unroll 8
      for (int k = 1; k < terms; ++k) sum = math::fma(c[k], x[k][i], sum);
      out[i] = sum;
    }
  }

  Term terms_[most];
  int count_ = 0;
};

template <class T>
void guide(const T* __restrict u, const T* __restrict c, T guidance, T* __restrict m, int64_t count) {
  for (int64_t i = 0; i < count; ++i) m[i] = math::fma(guidance, c[i] - u[i], u[i]);
}

template <class T>
void multiply(T* __restrict x, T factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

// NaN passes through.
template <class T>
void clamp(T* __restrict x, T bound, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T above = x[i] < -bound ? -bound : x[i];
    x[i] = above > bound ? bound : above;
  }
}

template <class T>
void divide(T* __restrict x, T divisor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] /= divisor;
}

template <class T>
void scale_by_variance(T* __restrict noise, const T* __restrict variance, int64_t count) {
  for (int64_t i = 0; i < count; ++i) noise[i] *= math::sqrt(variance[i]);
}

template <class T>
void scale_by_range(T* __restrict noise, const T* __restrict v, T least, T most, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T share = math::fma(T(0.5), v[i], T(0.5));
    noise[i] *= math::exp(T(0.5) * math::fma(share, most - least, least));
  }
}

template <class T>
void square_deviations(const T* __restrict x, T mean, T* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = (x[i] - mean) * (x[i] - mean);
}

// Lanes of a tile's buffers that share a row of the table.
struct Segment {
  int64_t begin, count;
  const double* c;
};

template <class T>
struct Buffers {
  Buffer<T> sample, output, unconditional, guided, noise, variance, state, history[VARIATE_DENOISE_HISTORY], x0, result,
      prev;
};

// The dense inputs of a tile. Those that no coefficient of the first so many columns reads are not loaded.
template <class T>
struct Inputs {
  const T *sample, *output, *noise, *state, *history[VARIATE_DENOISE_HISTORY];
  uint32_t columns;  // bit c: a coefficient of column c is not 0

  bool uses(int column) const { return columns >> column & 1u; }
};

template <class T>
class Step {
 public:
  explicit Step(const variate_denoise_step_args& args)
      : a(args),
        grid(args.rows, args.cols),
        rescales(args.rescale > 0.0 && args.unconditional.data),
        guidance(args.guidance.data ? element<T>(args.guidance, 0, 0) : static_cast<T>(args.guidance_value)),
        factors(static_cast<double*>(args.execution.workspace)),
        thresholds(factors ? factors + args.rows : nullptr),
        magnitudes(factors ? reinterpret_cast<T*>(thresholds + args.rows) : nullptr) {}

  void run() {
    if (rescales || a.quantile > 0.0) measure();
    for_tiles(grid, a.execution.threads, [this](const Tile& t) { step(t); }, 2);
    if (!a.counter) return;
    for (int64_t row = 0; row < (a.counter_stride ? a.rows : 1); ++row) ++a.counter[row * a.counter_stride];
  }

 private:
  template <class Function>
  void for_segments(const Tile& t, Function function) const {
    if (!a.table_rows.data) {
      return function(Segment{0, t.count, a.coefficients + a.row * VARIATE_DENOISE_COLUMNS});
    }
    const int64_t width = a.cols / a.table_row_tokens;
    for (int64_t r = 0; r < t.rows; ++r) {
      for (int64_t col = t.col; col < t.col + t.cols;) {
        const int64_t part = col / width, last = t.col + t.cols;
        const int64_t end = (part + 1) * width < last ? (part + 1) * width : last;
        const int64_t row = element<int64_t>(a.table_rows, t.row + r, part);
        function(Segment{r * t.pitch + col - t.col, end - col, a.coefficients + row * VARIATE_DENOISE_COLUMNS});
        col = end;
      }
    }
  }

  // What the guidance rescale and the threshold need to know of whole rows.
  void measure() const {
    const int64_t threads = a.execution.threads > 1 ? a.execution.threads : 1;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (threads > 1)
    for (int64_t thread = 0; thread < threads; ++thread) {
      for (int64_t row = a.rows * thread / threads; row < a.rows * (thread + 1) / threads; ++row) {
        Buffers<T> b;
        if (rescales) factors[row] = rescaling(row, b);
        if (a.quantile > 0.0) thresholds[row] = threshold(row, b, magnitudes + thread * a.cols);
      }
    }
  }

  template <class Body>
  void for_tiles_of(int64_t row, Body body) const {
    for (int64_t col = 0; col < a.cols; col += tile_elements) {
      Tile t = {row, 1, col, a.cols - col < tile_elements ? a.cols - col : tile_elements, 0, 0};
      t.pitch = (t.cols + 3) / 4 * 4;
      t.count = (t.pitch + lane_multiple - 1) / lane_multiple * lane_multiple;
      body(t);
    }
  }

  // rescale std(conditional) / std(guided) + 1 - rescale.
  double rescaling(int64_t row, Buffers<T>& b) const {
    double mean[2] = {0.0, 0.0}, squares[2] = {0.0, 0.0};
    const auto for_both = [&](auto body) {
      for_tiles_of(row, [&](const Tile& t) {
        const T* conditional = load(a.output, t, b.output);
        guide(load(a.unconditional, t, b.unconditional), conditional, guidance, b.guided.data, t.count);
        body(t, 0, conditional);
        body(t, 1, b.guided.data);
      });
    };
    for_both([&](const Tile& t, int which, const T* x) { mean[which] += row_sum(x, t.cols); });
    for (double& m : mean) m /= static_cast<double>(a.cols);
    for_both([&](const Tile& t, int which, const T* x) {
      square_deviations(x, static_cast<T>(mean[which]), b.result.data, t.count);
      squares[which] += row_sum(b.result.data, t.cols);
    });
    return a.rescale * __builtin_sqrt(squares[0] / squares[1]) + (1.0 - a.rescale);
  }

  double threshold(int64_t row, Buffers<T>& b, T* magnitude) const {
    for_tiles_of(row, [&](const Tile& t) {
      compute_x0(t, load_inputs(t, b, VARIATE_DENOISE_PREV_SAMPLE), b.x0.data);
      for (int64_t c = 0; c < t.cols; ++c) magnitude[t.col + c] = math::abs(b.x0.data[c]);
    });
    const double q = Quantile<T>(magnitude, a.cols)(a.quantile);
    const double raised = q < 1.0 ? 1.0 : q;
    return a.clip > 0.0 && raised > a.clip ? a.clip : raised;
  }

  Inputs<T> load_inputs(const Tile& t, Buffers<T>& b, int columns) const {
    Inputs<T> in = {};
    for_segments(t, [&](const Segment& s) {
      for (int c = 0; c < columns; ++c) in.columns |= static_cast<uint32_t>(s.c[c] != 0.0) << c;
    });
    in.sample = load(a.sample, t, b.sample);
    in.output = load(a.output, t, b.output);
    if (a.unconditional.data) {
      guide(load(a.unconditional, t, b.unconditional), in.output, guidance, b.guided.data, t.count);
      for (int64_t r = 0; r < t.rows && rescales; ++r) {
        multiply(b.guided.data + r * t.pitch, static_cast<T>(factors[t.row + r]), t.pitch);
      }
      in.output = b.guided.data;
    }
    if (in.uses(VARIATE_DENOISE_X0_NOISE) || in.uses(VARIATE_DENOISE_PREV_NOISE)) in.noise = noise(t, b);
    if (in.uses(VARIATE_DENOISE_PREV_STATE) || (a.state_out.data && in.uses(VARIATE_DENOISE_STATE_STATE))) {
      in.state = load(a.state, t, b.state);
    }
    for (int i = 0; i < VARIATE_DENOISE_HISTORY; ++i) {
      if (in.uses(VARIATE_DENOISE_PREV_HISTORY_0 + i) ||
          (a.state_out.data && in.uses(VARIATE_DENOISE_STATE_HISTORY_0 + i))) {
        in.history[i] = load(a.history[i], t, b.history[i]);
      }
    }
    return in;
  }

  const T* noise(const Tile& t, Buffers<T>& b) const {
    const bool scaled = a.variance_kind != VARIATE_VARIANCE_FIXED;
    const T* noise = a.drawn.data ? load(a.drawn, t, b.noise) : draw(t, b.noise.data);
    if (!scaled) return noise;
    if (noise != b.noise.data) std::memcpy(b.noise.data, noise, t.count * sizeof(T));
    const T* variance = load(a.variance, t, b.variance);
    for_segments(t, [&](const Segment& s) {
      if (a.variance_kind == VARIATE_VARIANCE_LEARNED) {
        scale_by_variance(b.noise.data + s.begin, variance + s.begin, s.count);
      } else {
        scale_by_range(b.noise.data + s.begin, variance + s.begin,
                       static_cast<T>(s.c[VARIATE_DENOISE_MIN_LOG_VARIANCE]),
                       static_cast<T>(s.c[VARIATE_DENOISE_MAX_LOG_VARIANCE]), s.count);
      }
    });
    return b.noise.data;
  }

  // The normals of the tile's elements at the step of the call, or at each sample's own.
  const T* draw(const Tile& t, T* out) const {
    WordBuffer words;
    Buffer<float> narrow;
    float* normals = narrow.data;
    if constexpr (sizeof(T) == sizeof(float)) normals = out;
    const auto step_of = [this](int64_t row) {
      return static_cast<uint32_t>(a.counter ? a.counter[row * a.counter_stride] : a.step);
    };
    if (!a.counter || a.counter_stride == 0) {
      normals_of(tile_words(a.noise, t, words, 0, step_of(0)), normals, t.count);
    } else {
      WordBuffer row_words;
      for (int64_t r = 0; r < t.rows; ++r) {
        const Tile row = {t.row + r, 1, t.col, t.cols, t.pitch, t.pitch};
        std::memcpy(words.data + r * t.pitch, tile_words(a.noise, row, row_words, 0, step_of(t.row + r)),
                    t.pitch * sizeof(uint32_t));
      }
      for (int64_t i = t.rows * t.pitch; i < t.count; ++i) words.data[i] = 0;
      normals_of(words.data, normals, t.count);
    }
    if constexpr (sizeof(T) != sizeof(float)) {
      for (int64_t i = 0; i < t.count; ++i) out[i] = static_cast<T>(normals[i]);
    }
    return out;
  }

  // What the model says of x0, not clipped.
  void compute_x0(const Tile& t, const Inputs<T>& in, T* x0) const {
    for_segments(t, [&](const Segment& s) {
      Sum<T>()
          .add(s.c[VARIATE_DENOISE_X0_SAMPLE], in.sample, s.begin)
          .add(s.c[VARIATE_DENOISE_X0_OUTPUT], in.output, s.begin)
          .add(s.c[VARIATE_DENOISE_X0_NOISE], in.noise, s.begin)
          .write(x0 + s.begin, s.count);
    });
  }

  void clip_x0(const Tile& t, T* x0) const {
    if (a.quantile > 0.0) {
      for (int64_t r = 0; r < t.rows; ++r) {
        const T bound = static_cast<T>(thresholds[t.row + r]);
        clamp(x0 + r * t.pitch, bound, t.pitch);
        if (bound != T(1)) divide(x0 + r * t.pitch, bound, t.pitch);
      }
    } else if (a.clip > 0.0) {
      clamp(x0, static_cast<T>(a.clip), t.count);
    }
  }

  // The output, if there is one, that is x0 itself: x0 is then computed in its place.
  const variate_tensor* output_of_x0(const Tile& t, const Inputs<T>& in) const {
    const auto is_one = [&](int column) {
      bool all = true;
      for_segments(t, [&](const Segment& s) { all = all && s.c[column] == 1.0; });
      return all;
    };
    if (a.denoised.data && !in.uses(VARIATE_DENOISE_DENOISED_SAMPLE) && is_one(VARIATE_DENOISE_DENOISED_X0)) {
      return &a.denoised;
    }
    const bool others = in.uses(VARIATE_DENOISE_SAVED_SAMPLE) || in.uses(VARIATE_DENOISE_SAVED_OUTPUT);
    return a.saved.data && !others && is_one(VARIATE_DENOISE_SAVED_X0) ? &a.saved : nullptr;
  }

  void step(const Tile& t) const {
    Buffers<T> b;
    const Inputs<T> in = load_inputs(t, b, VARIATE_DENOISE_COLUMNS);
    const variate_tensor* own = output_of_x0(t, in);
    T* x0 = own ? target(*own, t, b.x0) : b.x0.data;
    if (in.uses(VARIATE_DENOISE_PREV_X0) || in.uses(VARIATE_DENOISE_SAVED_X0) || in.uses(VARIATE_DENOISE_STATE_X0) ||
        in.uses(VARIATE_DENOISE_DENOISED_X0)) {
      compute_x0(t, in, x0);
      clip_x0(t, x0);
    }
    if (own) store(*own, t, x0);
    const auto past = [&in](Sum<T>& sum, const Segment& s, int state, int history) {
      sum.add(s.c[state], in.state, s.begin);
      for (int i = 0; i < VARIATE_DENOISE_HISTORY; ++i) sum.add(s.c[history + i], in.history[i], s.begin);
    };
    if (own != &a.denoised) {
      write_output(a.denoised, t, b.result, [&](const Segment& s) {
        return Sum<T>()
            .add(s.c[VARIATE_DENOISE_DENOISED_SAMPLE], in.sample, s.begin)
            .add(s.c[VARIATE_DENOISE_DENOISED_X0], x0, s.begin);
      });
    }
    if (own != &a.saved) {
      write_output(a.saved, t, b.result, [&](const Segment& s) {
        return Sum<T>()
            .add(s.c[VARIATE_DENOISE_SAVED_SAMPLE], in.sample, s.begin)
            .add(s.c[VARIATE_DENOISE_SAVED_OUTPUT], in.output, s.begin)
            .add(s.c[VARIATE_DENOISE_SAVED_X0], x0, s.begin);
      });
    }
    write_output(a.state_out, t, b.result, [&](const Segment& s) {
      Sum<T> sum;
      sum.add(s.c[VARIATE_DENOISE_STATE_SAMPLE], in.sample, s.begin)
          .add(s.c[VARIATE_DENOISE_STATE_OUTPUT], in.output, s.begin)
          .add(s.c[VARIATE_DENOISE_STATE_X0], x0, s.begin);
      past(sum, s, VARIATE_DENOISE_STATE_STATE, VARIATE_DENOISE_STATE_HISTORY_0);
      return sum;
    });
    const T* prev = write_output(a.prev, t, b.prev, [&](const Segment& s) {
      Sum<T> sum;
      sum.add(s.c[VARIATE_DENOISE_PREV_SAMPLE], in.sample, s.begin)
          .add(s.c[VARIATE_DENOISE_PREV_OUTPUT], in.output, s.begin)
          .add(s.c[VARIATE_DENOISE_PREV_X0], x0, s.begin);
      past(sum, s, VARIATE_DENOISE_PREV_STATE, VARIATE_DENOISE_PREV_HISTORY_0);
      return sum.add(s.c[VARIATE_DENOISE_PREV_NOISE], in.noise, s.begin);
    });
    const auto scaled = [&](const Segment& s) { return Sum<T>().add(s.c[VARIATE_DENOISE_NEXT_SCALE], prev, s.begin); };
    const T* next = write_output(a.next, t, b.result, scaled);
    if (a.next.data && a.copies == 2) write(part(a.next, a.rows * a.next.row_stride), t, next);
  }

  // Writes the sums that `sum_of` makes of segments; returns where they are dense.
  template <class SumOf>
  const T* write_output(const variate_tensor& tensor, const Tile& t, Buffer<T>& buffer, SumOf sum_of) const {
    if (!tensor.data) return nullptr;
    T* out = target(tensor, t, buffer);
    for_segments(t, [&](const Segment& s) { sum_of(s).write(out + s.begin, s.count); });
    store(tensor, t, out);
    return out;
  }

  const variate_denoise_step_args& a;
  const Grid grid;
  const bool rescales;
  const T guidance;
  double* const factors;     // of the guided output, per row
  double* const thresholds;  // per row
  T* const magnitudes;       // of x0: a row per thread
};

}  // namespace

void denoise_step(const variate_denoise_step_args& a) {
  a.sample.dtype == VARIATE_FLOAT64 ? Step<double>(a).run() : Step<float>(a).run();
}

}  // namespace variate::cpu::VARIATE_ISA
