#include <variate/math/random.hpp>

#include "access.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "noise.cuh"
#include "rows.cuh"

namespace variate::cuda {

namespace {

// How many counters a thread has in flight: dense kernels share a key schedule among them.
template <class Tensor>
constexpr int unroll = Tensor::dense ? 4 : 1;

// What each function makes of the four words of a counter.
struct Bits {
  static __device__ __forceinline__ Quad<int64_t> draw(const math::Words& words) {
    return {{words.w[0], words.w[1], words.w[2], words.w[3]}};
  }
};

struct Uniform {
  static __device__ __forceinline__ Quad<float> draw(const math::Words& words) {
    return {
        {math::uniform(words.w[0]), math::uniform(words.w[1]), math::uniform(words.w[2]), math::uniform(words.w[3])}};
  }
};

struct Normal {
  static __device__ __forceinline__ Quad<float> draw(const math::Words& words) { return normal_quad(words); }
};

struct Exponential {
  static __device__ __forceinline__ Quad<float> draw(const math::Words& words) {
    return {{math::exponential_draw(words.w[0]), math::exponential_draw(words.w[1]), math::exponential_draw(words.w[2]),
             math::exponential_draw(words.w[3])}};
  }
};

struct Gumbel {
  static __device__ __forceinline__ Quad<float> draw(const math::Words& words) {
    return {{math::gumbel(words.w[0]), math::gumbel(words.w[1]), math::gumbel(words.w[2]), math::gumbel(words.w[3])}};
  }
};

template <class Draw, class Out>
__global__ void __launch_bounds__(block_threads) fill_kernel(Plane plane, variate_noise noise, Out out) {
  constexpr int u = unroll<Out>;
  const Stream<Out::dense> stream(noise);
  for (Position next = plane.start(thread_index()); plane.contains(next);) {
    Position at[u];
    math::Words words[u];
#pragma unroll
    for (int k = 0; k < u; ++k, next = plane.next(next)) {
      at[k] = next;
      words[k] = stream.words(at[k].row, at[k].quad);
    }
#pragma unroll
    for (int k = 0; k < u; ++k) {
      if (plane.contains(at[k])) out.store(at[k].row, at[k].quad, plane.count(at[k]), Draw::draw(words[k]));
    }
  }
}

template <class Draw, class Out>
variate_status fill_as(const variate_random_args& a) {
  return launch_plane(a.execution, fill_kernel<Draw, Out>, unroll<Out>, Plane(a.rows, a.cols), a.noise, Out(a.out));
}

template <class Draw>
variate_status fill(const variate_random_args& a) {
  if (a.noise.key_stride == 0) {
    if (fits<Dense<float>>(a.rows, a.out)) return fill_as<Draw, Dense<float>>(a);
    if (fits<Dense<__nv_bfloat16>>(a.rows, a.out)) return fill_as<Draw, Dense<__nv_bfloat16>>(a);
    if (fits<Dense<__half>>(a.rows, a.out)) return fill_as<Draw, Dense<__half>>(a);
  }
  return fill_as<Draw, Strided<float>>(a);
}

template <class Tensor>
__global__ void __launch_bounds__(block_threads)
    bernoulli_kernel(Plane plane, variate_noise noise, Tensor probs, Tensor out) {
  using M = typename Tensor::Math;
  constexpr int u = unroll<Tensor>;
  const Stream<Tensor::dense> stream(noise);
  for (Position next = plane.start(thread_index()); plane.contains(next);) {
    Position at[u];
    typename Tensor::Raw raw[u];
#pragma unroll
    for (int k = 0; k < u; ++k, next = plane.next(next)) {
      at[k] = next;
      if (plane.contains(next)) raw[k] = probs.fetch(next.row, next.quad, plane.count(next));
    }
#pragma unroll
    for (int k = 0; k < u; ++k) {
      if (!plane.contains(at[k])) continue;
      const math::Words words = stream.words(at[k].row, at[k].quad);
      const Quad<M> p = Tensor::unpack(raw[k]);
      Quad<M> draw;
#pragma unroll
      for (int i = 0; i < 4; ++i) draw.x[i] = math::bernoulli(words.w[i], p.x[i]);
      out.store(at[k].row, at[k].quad, plane.count(at[k]), draw);
    }
  }
}

template <class Tensor>
variate_status bernoulli_as(const variate_bernoulli_args& a) {
  return launch_plane(a.execution, bernoulli_kernel<Tensor>, unroll<Tensor>, Plane(a.rows, a.cols), a.noise,
                      Tensor(a.probs), Tensor(a.out));
}

template <class Out>
__global__ void __launch_bounds__(block_threads)
    randint_kernel(Plane plane, variate_noise noise, uint64_t low, uint64_t range, Out out) {
  const Stream<Out::dense> stream(noise);
  for (Position at = plane.start(thread_index()); plane.contains(at); at = plane.next(at)) {
    const math::Words words = stream.words(at.row, at.quad);
    math::Scaled scaled[4];
    bool undecided = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scaled[i] = math::scale_word(words.w[i], range);
      undecided |= math::undecided(scaled[i].fraction, range);
    }
    if (undecided) {
      const math::Key spare_key = math::fold_in(stream.key_of(at.row), 1);
      const math::Words spare = math::noise_words(spare_key, static_cast<uint64_t>(at.quad), stream.sample_of(at.row));
#pragma unroll
      for (int i = 0; i < 4; ++i) scaled[i].value = math::scale_carry(scaled[i], spare.w[i], range);
    }
    Quad<int64_t> draw;
#pragma unroll
    for (int i = 0; i < 4; ++i) draw.x[i] = static_cast<int64_t>(low + scaled[i].value);
    out.store(at.row, at.quad, plane.count(at), draw);
  }
}

template <class Out>
variate_status randint_as(const variate_randint_args& a) {
  const uint64_t low = static_cast<uint64_t>(a.low);
  return launch_plane(a.execution, randint_kernel<Out>, 1, Plane(a.rows, a.cols), a.noise, low,
                      static_cast<uint64_t>(a.high) - low, Out(a.out));
}

// A category and its perturbed logit. The first of equals wins; so does the first NaN, over everything.
template <class M>
struct Choice {
  M score;
  int64_t category;

  __device__ __forceinline__ bool beats(const Choice& other) const {
    const bool nan = score != score;
    const bool other_nan = other.score != other.score;
    if (nan != other_nan) return nan;
    if (nan || score == other.score) return category < other.category;
    return score > other.score;
  }
};

template <class M>
__device__ __forceinline__ Choice<M> shuffle_xor(const Choice<M>& choice, int mask) {
  return {cuda::shuffle_xor(choice.score, mask), cuda::shuffle_xor(choice.category, mask)};
}

// A row of the plan is one draw: group item % groups of row item / groups.
template <class Logits>
__global__ void __launch_bounds__(block_threads, 3)
    categorical_kernel(RowPlan plan, int64_t groups, int64_t categories, variate_noise noise, Logits logits,
                       variate_tensor out) {
  using M = typename Logits::Math;
  const RowShare share = row_share(plan);
  const int64_t row = groups == 1 ? share.row : share.row / groups;
  const int64_t group = groups == 1 ? 0 : share.row % groups;
  const int64_t begin = group * categories;
  const int64_t end = begin + categories;
  const int64_t cols = groups * categories;
  const int64_t first_quad = begin / 4;
  Choice<M> best{-static_cast<M>(__builtin_inff()), categories};
  if (share.first < share.end) {
    const Stream<Logits::dense> stream(noise);
    for (int64_t k = share.first; 4 * (first_quad + k) < end; k += plan.threads()) {
      const int64_t quad = first_quad + k;
      const typename Logits::Raw raw = logits.fetch(row, quad, quad_count(cols, quad));
      const Quad<float> gumbel = Gumbel::draw(stream.words(row, quad));
      const Quad<M> logit = Logits::unpack(raw);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t element = 4 * quad + i;
        const Choice<M> choice{logit.x[i] + static_cast<M>(gumbel.x[i]), element - begin};
        if (element >= begin && element < end && choice.beats(best)) best = choice;
      }
    }
  }
  best = combine_threads(plan, best, [](const Choice<M>& a, const Choice<M>& b) { return b.beats(a) ? b : a; });
  if (share.leader) static_cast<int64_t*>(out.data)[row * out.row_stride + group * out.col_stride] = best.category;
}

template <class Logits>
variate_status categorical_as(const variate_categorical_args& a) {
  const int64_t most_quads = (a.categories + 6) / 4;  // a group may start and end within a quad
  const RowPlan plan = RowPlan::whole(a.rows * a.groups, most_quads);
  return launch(a.execution, categorical_kernel<Logits>, plan.blocks(), plan, a.groups, a.categories, a.noise,
                Logits(a.logits), a.out);
}

__global__ void __launch_bounds__(block_threads)
    fold_in_kernel(int64_t rows, variate_tensor keys, variate_tensor data, variate_tensor out) {
  const int64_t row = thread_index();
  if (row >= rows) return;
  const int64_t* key = static_cast<const int64_t*>(keys.data) + row * keys.row_stride;
  const int64_t datum = static_cast<const int64_t*>(data.data)[row * data.row_stride];
  const math::Key folded = math::fold_in({static_cast<uint64_t>(key[0]), static_cast<uint64_t>(key[keys.col_stride])},
                                         static_cast<uint64_t>(datum));
  int64_t* to = static_cast<int64_t*>(out.data) + row * out.row_stride;
  to[0] = static_cast<int64_t>(folded.seed);
  to[out.col_stride] = static_cast<int64_t>(folded.offset);
}

}  // namespace

variate_status bits(const variate_random_args& a) {
  if (a.noise.key_stride == 0 && fits<Dense<int64_t>>(a.rows, a.out)) return fill_as<Bits, Dense<int64_t>>(a);
  return fill_as<Bits, Strided<int64_t>>(a);
}

variate_status uniform(const variate_random_args& a) { return fill<Uniform>(a); }
variate_status normal(const variate_random_args& a) { return fill<Normal>(a); }
variate_status exponential(const variate_random_args& a) { return fill<Exponential>(a); }
variate_status gumbel(const variate_random_args& a) { return fill<Gumbel>(a); }

variate_status bernoulli(const variate_bernoulli_args& a) {
  if (a.noise.key_stride == 0) {
    if (fits<Dense<float>>(a.rows, a.probs, a.out)) return bernoulli_as<Dense<float>>(a);
    if (fits<Dense<__nv_bfloat16>>(a.rows, a.probs, a.out)) return bernoulli_as<Dense<__nv_bfloat16>>(a);
    if (fits<Dense<__half>>(a.rows, a.probs, a.out)) return bernoulli_as<Dense<__half>>(a);
  }
  return a.probs.dtype == VARIATE_FLOAT64 ? bernoulli_as<Strided<double>>(a) : bernoulli_as<Strided<float>>(a);
}

variate_status randint(const variate_randint_args& a) {
  if (a.noise.key_stride == 0 && fits<Dense<int64_t>>(a.rows, a.out)) return randint_as<Dense<int64_t>>(a);
  return randint_as<Strided<int64_t>>(a);
}

variate_status categorical(const variate_categorical_args& a) {
  if (a.noise.key_stride == 0 && fits<Dense<float>>(a.rows, a.logits)) return categorical_as<Dense<float>>(a);
  return a.logits.dtype == VARIATE_FLOAT64 ? categorical_as<Strided<double>>(a) : categorical_as<Strided<float>>(a);
}

variate_status fold_in(const variate_fold_in_args& a) {
  const int64_t blocks = (a.rows + block_threads - 1) / block_threads;
  return launch(a.execution, fold_in_kernel, blocks, a.rows, a.keys, a.data, a.out);
}

}  // namespace variate::cuda
