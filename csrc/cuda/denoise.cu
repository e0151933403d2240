#include "denoise.cuh"

#include "denoise_moments.cuh"
#include "denoise_select.cuh"
#include "kernels.h"
#include "noise.cuh"

namespace variate::cuda {

namespace {

using Args = variate_denoise_step_args;

// S reads and writes what is like the sample, O what is like the model's output.
template <class S, class O>
struct Step {
  using M = typename S::Math;
  using Buffer = std::conditional_t<sizeof(M) == 4, Dense<float>, Strided<double>>;

  Table table;
  variate_noise noise;
  int64_t step;
  int64_t* counter;
  int64_t counter_stride;
  variate_tensor guidance;
  double guidance_value;
  variate_denoise_variance variance_kind;
  M clip;
  const double* factors;     // of the guided output, per row
  const double* thresholds;  // of x0, which lies in `x0`, per row
  S sample;
  O output;
  O unconditional;
  O variance;
  S drawn;
  S state;
  S history[VARIATE_DENOISE_HISTORY];
  Buffer x0;
  S prev;
  S denoised;
  S saved;
  S state_out;
  O next;
  int64_t copy;  // rows between the copies of next, 0 without one

  Step(const Args& a, const double* factors, const double* thresholds, const variate_tensor& x0)
      : table(a),
        noise(a.noise),
        step(a.step),
        counter(a.counter),
        counter_stride(a.counter_stride),
        guidance(a.guidance),
        guidance_value(a.guidance_value),
        variance_kind(a.variance_kind),
        clip(static_cast<M>(a.clip)),
        factors(factors),
        thresholds(thresholds),
        sample(a.sample),
        output(a.output),
        unconditional(a.unconditional),
        variance(a.variance),
        drawn(a.drawn),
        state(a.state),
        history{S(a.history[0]), S(a.history[1]), S(a.history[2])},
        x0(x0),
        prev(a.prev),
        denoised(a.denoised),
        saved(a.saved),
        state_out(a.state_out),
        next(a.next),
        copy(a.copies == 2 ? a.rows : 0) {}
};

// With `first` only x0, not clipped, which goes to its buffer; and `zeros` words of memory are cleared.
template <class S, class O, Rows kind, bool first>
__global__ void __launch_bounds__(block_threads, sizeof(typename S::Math) == 8 ? 1
                                                 : S::dense                    ? 4
                                                                               : 3)
    step_kernel(Plane plane, Step<S, O> a, uint32_t* cleared, int64_t zeros) {
  using M = typename S::Math;
  __shared__ M shared[VARIATE_DENOISE_COLUMNS];
  if constexpr (kind == Rows::one) {
    if (threadIdx.x < VARIATE_DENOISE_COLUMNS) shared[threadIdx.x] = Table::load<M>(a.table.find(0, 0), threadIdx.x);
  }
  const bool one_counter = a.counter && a.counter_stride == 0;
  const int64_t step = one_counter ? a.counter[0] : a.step;
  __syncthreads();
  const Ticket ticket{a.counter, plane.rows, step};
  if (!first && one_counter) ticket.advance_one();
  if constexpr (first) {
    for (int64_t i = thread_index(); i < zeros; i += static_cast<int64_t>(gridDim.x) * blockDim.x) cleared[i] = 0;
  }

  const bool draws = a.noise.key && !a.drawn.present();
  const Stream<S::dense && kind == Rows::one> stream(a.noise, draws ? load_key(a.noise, 0) : math::Key{});
  const M guidance = load_guidance<M>(a.guidance, a.guidance_value);
  for (Position at = plane.start(thread_index()); plane.contains(at); at = plane.next(at)) {
    const int count = plane.count(at);
    const Coefficients<M, kind> c(a.table, shared, at.row, at.quad, count);
    const bool has_state = !first && a.state_out.present();
    const auto also = [&](int column, int state_column) {
      return reads(c[column]) || (has_state && reads(c[state_column]));
    };
    bool want_sample = reads(c[VARIATE_DENOISE_X0_SAMPLE]), want_output = reads(c[VARIATE_DENOISE_X0_OUTPUT]);
    bool want_noise = reads(c[VARIATE_DENOISE_X0_NOISE]);
    typename S::Raw raw_state{}, raw_history[VARIATE_DENOISE_HISTORY]{};
    if constexpr (!first) {
      want_sample = want_sample || also(VARIATE_DENOISE_PREV_SAMPLE, VARIATE_DENOISE_STATE_SAMPLE) ||
                    (a.saved.present() && reads(c[VARIATE_DENOISE_SAVED_SAMPLE])) ||
                    (a.denoised.present() && reads(c[VARIATE_DENOISE_DENOISED_SAMPLE]));
      want_output = want_output || also(VARIATE_DENOISE_PREV_OUTPUT, VARIATE_DENOISE_STATE_OUTPUT) ||
                    (a.saved.present() && reads(c[VARIATE_DENOISE_SAVED_OUTPUT]));
      want_noise = want_noise || reads(c[VARIATE_DENOISE_PREV_NOISE]);
      if (also(VARIATE_DENOISE_PREV_STATE, VARIATE_DENOISE_STATE_STATE)) {
        raw_state = fetch_or_zero(a.state, at.row, at.quad, count);
      }
#pragma unroll
      for (int i = 0; i < VARIATE_DENOISE_HISTORY; ++i) {
        if (also(VARIATE_DENOISE_PREV_HISTORY_0 + i, VARIATE_DENOISE_STATE_HISTORY_0 + i)) {
          raw_history[i] = fetch_or_zero(a.history[i], at.row, at.quad, count);
        }
      }
    }
    typename S::Raw raw_sample{}, raw_drawn{};
    typename O::Raw raw_output{}, raw_unconditional{}, raw_variance{};
    typename Step<S, O>::Buffer::Raw raw_x0{};
    if (want_sample) raw_sample = a.sample.fetch(at.row, at.quad, count);
    if (want_output) {
      raw_output = a.output.fetch(at.row, at.quad, count);
      raw_unconditional = fetch_or_zero(a.unconditional, at.row, at.quad, count);
    }
    if (want_noise) {
      raw_drawn = fetch_or_zero(a.drawn, at.row, at.quad, count);
      if (a.variance_kind != VARIATE_VARIANCE_FIXED) raw_variance = a.variance.fetch(at.row, at.quad, count);
    }
    if (!first && a.thresholds) raw_x0 = a.x0.fetch(at.row, at.quad, count);

    Quad<M> n = S::unpack(raw_drawn);
    if (want_noise) {
      if (draws) {
        const int64_t own = a.counter && !one_counter ? a.counter[at.row * a.counter_stride] : step;
        const Quad<float> normals = normal_quad(stream.words(at.row, at.quad, static_cast<uint32_t>(own)));
#pragma unroll
        for (int i = 0; i < 4; ++i) n.x[i] = static_cast<M>(normals.x[i]);
      }
      if (a.variance_kind != VARIATE_VARIANCE_FIXED) scale_noise(n, O::unpack(raw_variance), a.variance_kind, c);
    }
    const auto convert_quad = [](const auto& quad) {
      Quad<M> wide;
#pragma unroll
      for (int i = 0; i < 4; ++i) wide.x[i] = static_cast<M>(quad.x[i]);
      return wide;
    };
    const Quad<M> x = S::unpack(raw_sample);
    Quad<M> m = convert_quad(O::unpack(raw_output));
    if (a.unconditional.present()) {
      m = guide(m, convert_quad(O::unpack(raw_unconditional)), guidance);
      if (a.factors) {
        const M factor = static_cast<M>(__ldg(a.factors + at.row));
#pragma unroll
        for (int i = 0; i < 4; ++i) m.x[i] *= factor;
      }
    }

    Quad<M> x0{};
    if (first || !a.thresholds) {
      add(x0, c[VARIATE_DENOISE_X0_SAMPLE], x);
      add(x0, c[VARIATE_DENOISE_X0_OUTPUT], m);
      add(x0, c[VARIATE_DENOISE_X0_NOISE], n);
      if constexpr (first) {
        a.x0.store(at.row, at.quad, 4, x0);  // its rows end with whole quads
        continue;
      }
      if (a.clip > M(0)) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x0.x[i] = clamp_to(x0.x[i], a.clip);
      }
    } else {
      x0 = Step<S, O>::Buffer::unpack(raw_x0);
      const M bound = static_cast<M>(__ldg(a.thresholds + at.row));
#pragma unroll
      for (int i = 0; i < 4; ++i) x0.x[i] = clamp_to(x0.x[i], bound) / bound;
    }

    const Quad<M> s = S::unpack(raw_state);
    if (a.denoised.present()) {
      Quad<M> sum{};
      add(sum, c[VARIATE_DENOISE_DENOISED_SAMPLE], x);
      add(sum, c[VARIATE_DENOISE_DENOISED_X0], x0);
      a.denoised.store(at.row, at.quad, count, sum);
    }
    if (a.saved.present()) {
      Quad<M> sum{};
      add(sum, c[VARIATE_DENOISE_SAVED_SAMPLE], x);
      add(sum, c[VARIATE_DENOISE_SAVED_OUTPUT], m);
      add(sum, c[VARIATE_DENOISE_SAVED_X0], x0);
      a.saved.store(at.row, at.quad, count, sum);
    }
    if (has_state) {
      Quad<M> sum{};
      add(sum, c[VARIATE_DENOISE_STATE_SAMPLE], x);
      add(sum, c[VARIATE_DENOISE_STATE_OUTPUT], m);
      add(sum, c[VARIATE_DENOISE_STATE_X0], x0);
      if (a.state.present()) add(sum, c[VARIATE_DENOISE_STATE_STATE], s);
#pragma unroll
      for (int i = 0; i < VARIATE_DENOISE_HISTORY; ++i) {
        if (a.history[i].present()) add(sum, c[VARIATE_DENOISE_STATE_HISTORY_0 + i], S::unpack(raw_history[i]));
      }
      a.state_out.store(at.row, at.quad, count, sum);
    }
    Quad<M> sum{};
    add(sum, c[VARIATE_DENOISE_PREV_SAMPLE], x);
    add(sum, c[VARIATE_DENOISE_PREV_OUTPUT], m);
    add(sum, c[VARIATE_DENOISE_PREV_X0], x0);
    if (a.state.present()) add(sum, c[VARIATE_DENOISE_PREV_STATE], s);
#pragma unroll
    for (int i = 0; i < VARIATE_DENOISE_HISTORY; ++i) {
      if (a.history[i].present()) add(sum, c[VARIATE_DENOISE_PREV_HISTORY_0 + i], S::unpack(raw_history[i]));
    }
    add(sum, c[VARIATE_DENOISE_PREV_NOISE], n);
    a.prev.store(at.row, at.quad, count, sum);
    if (!a.next.present()) continue;
    Quad<M> scaled{};
    add(scaled, c[VARIATE_DENOISE_NEXT_SCALE], sum);
    a.next.store(at.row, at.quad, count, scaled);
    if (a.copy) a.next.store(at.row + a.copy, at.quad, count, scaled);
  }
  if (!first && a.counter && !one_counter) ticket.advance_all();
}

bool rescales(const Args& a) { return a.rescale > 0.0 && a.unconditional.data; }

RowPlan moments_plan(const Args& a) { return RowPlan(a.rows, (a.cols + 3) / 4); }

// What of the workspace is whose; each part begins at a multiple of 16 bytes.
struct Workspace {
  uint64_t partial = 0, factors = 0, thresholds = 0, counts = 0, x0 = 0, bytes = 0;

  explicit Workspace(const Args& a) {
    const uint64_t rows = static_cast<uint64_t>(a.rows);
    if (rescales(a)) {
      const RowPlan plan = moments_plan(a);
      factors = take(rows * sizeof(double));
      partial = take(plan.chunks == 1 ? 0 : rows * static_cast<uint64_t>(plan.chunks) * sizeof(Moments));
    }
    if (a.quantile > 0.0) {
      const Quantiles q(a.rows, a.cols, a.quantile, a.clip);
      thresholds = take(rows * sizeof(double));
      counts = take(count_bytes(q));
      x0 = take(rows * static_cast<uint64_t>(q.pitch) * (a.sample.dtype == VARIATE_FLOAT64 ? 8 : 4));
    }
  }

  uint64_t take(uint64_t size) {
    const uint64_t at = bytes;
    bytes += (size + 15) / 16 * 16;
    return at;
  }

  template <class T>
  static T* at(const Args& a, uint64_t offset) {
    return reinterpret_cast<T*>(static_cast<char*>(a.execution.workspace) + offset);
  }
};

template <class M, class O>
variate_status find_factors(const Args& a, const Workspace& workspace) {
  const RowPlan plan = moments_plan(a);
  Moments* const partial = Workspace::at<Moments>(a, workspace.partial);
  double* const factors = Workspace::at<double>(a, workspace.factors);
  const variate_status status = launch(a.execution, moments_kernel<M, O>, plan.blocks(), plan, a.cols, O(a.output),
                                       O(a.unconditional), a.guidance, a.guidance_value, a.rescale, partial, factors);
  if (status != VARIATE_OK || plan.chunks == 1) return status;
  const RowPlan sums = RowPlan::whole(a.rows, plan.chunks);
  return launch(a.execution, factor_kernel, sums.blocks(), sums, a.cols, a.rescale,
                static_cast<const Moments*>(partial), factors);
}

template <class S, class O, Rows kind>
variate_status run(const Args& a) {
  using M = typename S::Math;
  const Workspace workspace(a);
  const double* factors = nullptr;
  if (rescales(a)) {
    const variate_status status = find_factors<M, O>(a, workspace);
    if (status != VARIATE_OK) return status;
    factors = Workspace::at<double>(a, workspace.factors);
  }
  const Plane plane(a.rows, a.cols);
  if (!(a.quantile > 0.0)) {
    const Step<S, O> step(a, factors, nullptr, {});
    return launch_plane(a.execution, step_kernel<S, O, kind, false>, 1, plane, step, static_cast<uint32_t*>(nullptr),
                        int64_t{0});
  }
  Quantiles q(a.rows, a.cols, a.quantile, a.clip);
  q.thresholds = Workspace::at<double>(a, workspace.thresholds);
  M* const x0 = Workspace::at<M>(a, workspace.x0);
  const variate_dtype dtype = sizeof(M) == 8 ? VARIATE_FLOAT64 : VARIATE_FLOAT32;
  const Step<S, O> step(a, factors, q.thresholds, {x0, dtype, q.pitch, 1});
  uint32_t* const counts = Workspace::at<uint32_t>(a, workspace.counts);
  variate_status status = launch_plane(a.execution, step_kernel<S, O, kind, true>, 1, plane, step, counts,
                                       static_cast<int64_t>(count_bytes(q) / sizeof(uint32_t)));
  if (status == VARIATE_OK) status = launch_select<M>(a.execution, q, x0, counts);
  if (status != VARIATE_OK) return status;
  return launch_plane(a.execution, step_kernel<S, O, kind, false>, 1, plane, step, static_cast<uint32_t*>(nullptr),
                      int64_t{0});
}

bool one_row(const Args& a) {
  return !a.table_rows.data || (a.table_row_tokens == 1 && (a.rows == 1 || a.table_rows.row_stride == 0));
}

template <class S, class O>
variate_status run_dense(const Args& a) {
  return one_row(a) ? run<S, O, Rows::one>(a) : run<S, O, Rows::quads>(a);
}

template <class S, class O>
bool fits_all(const Args& a) {
  if (a.table_rows.data && a.table_row_tokens > 1 && a.cols / a.table_row_tokens % 4 != 0) return false;
  if (one_row(a) && a.noise.key && a.noise.key_stride != 0) return false;
  return fits<S>(a.rows, a.sample, a.drawn, a.state, a.history[0], a.history[1], a.history[2], a.prev, a.denoised,
                 a.saved, a.state_out) &&
         fits<O>(a.rows, a.output, a.unconditional, a.variance, a.next);
}

using Float = Dense<float>;
using Bfloat16 = Dense<__nv_bfloat16>;
using Half = Dense<__half>;

}  // namespace

uint64_t denoise_step_workspace(const Args& a) { return Workspace(a).bytes; }

// Dense pairs that samplers meet: one dtype for all, and a float32 sample of a model in 16 bits.
variate_status denoise_step(const Args& a) {
  if (fits_all<Float, Float>(a)) return run_dense<Float, Float>(a);
  if (fits_all<Float, Bfloat16>(a)) return run_dense<Float, Bfloat16>(a);
  if (fits_all<Float, Half>(a)) return run_dense<Float, Half>(a);
  if (fits_all<Bfloat16, Bfloat16>(a)) return run_dense<Bfloat16, Bfloat16>(a);
  if (fits_all<Half, Half>(a)) return run_dense<Half, Half>(a);
  if (a.sample.dtype == VARIATE_FLOAT64) return run<Strided<double>, Strided<double>, Rows::any>(a);
  return run<Strided<float>, Strided<float>, Rows::any>(a);
}

}  // namespace variate::cuda
