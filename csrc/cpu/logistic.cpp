#include <variate/math/logistic.hpp>

#include "image.h"
#include "kernels.h"
#include "noise.h"
#include "tile.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

constexpr int colours = 3;

template <class T>
struct Target {
  math::Bins<T> bins;
  bool levels;
  int bits;

  Target(variate_dtype dtype, int bits_) : bins(math::bins<T>(bits_)), levels(dtype == VARIATE_UINT8), bits(bits_) {}

  // The target in [-1, 1], in `x` or in place.
  const T* middles(const T* __restrict target, T* __restrict x, int64_t count) const {
    if (!levels) return target;
    for (int64_t i = 0; i < count; ++i) x[i] = math::bin_middle(target[i], bits);
    return x;
  }
};

// One logistic an element.

template <bool compat, class T>
void negative_logs(const T* __restrict x, const T* __restrict mean, const T* __restrict log_scale, math::Bins<T> bins,
                   T* __restrict nll, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const math::BinProbability<T> p = math::bin_probability<compat>(x[i], mean[i], log_scale[i], bins);
    nll[i] = -p.linear - math::log(p.numerator / p.denominator);
  }
}

template <bool compat, class T>
void nll(const variate_discretized_logistic_nll_args& a) {
  const Grid grid(a.rows, a.cols);
  const Target<T> target(a.target.dtype, a.bits);
  for_tiles(grid, a.execution.threads, [&](const Tile& t) {
    Buffer<T> mean_buffer, log_scale_buffer, target_buffer, x_buffer, nll;
    const T* mean = load(a.mean, t, mean_buffer);
    const T* log_scale = load(a.log_scale, t, log_scale_buffer);
    const T* x = target.middles(load(a.target, t, target_buffer), x_buffer.data, t.count);
    negative_logs<compat>(x, mean, log_scale, target.bins, nll.data, t.count);
    store_row_sums(a.nll, a.execution.workspace, grid, t, nll.data);
  });
  finish_row_sums(a.nll, a.execution.workspace, grid);
}

template <bool compat, class T>
void gradients(const T* __restrict x, const T* __restrict mean, const T* __restrict log_scale,
               const T* __restrict grad_nll, math::Bins<T> bins, T* __restrict grad_mean, T* __restrict grad_log_scale,
               int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const auto p = math::bin_probability_and_gradient<compat>(x[i], mean[i], log_scale[i], bins);
    grad_mean[i] = -grad_nll[i] * p.gradient.mean;
    grad_log_scale[i] = -grad_nll[i] * p.gradient.log_scale;
  }
}

template <bool compat, class T>
void nll_backward(const variate_discretized_logistic_nll_backward_args& a) {
  const Grid grid(a.rows, a.cols);
  const Target<T> target(a.target.dtype, a.bits);
  for_tiles(grid, a.execution.threads, [&](const Tile& t) {
    Buffer<T> mean_buffer, log_scale_buffer, target_buffer, x_buffer, grad_nll_buffer;
    Buffer<T> grad_mean_buffer, grad_log_scale_buffer;
    const T* mean = load(a.mean, t, mean_buffer);
    const T* log_scale = load(a.log_scale, t, log_scale_buffer);
    const T* x = target.middles(load(a.target, t, target_buffer), x_buffer.data, t.count);
    T* grad_mean = optional_target(a.grad_mean, t, grad_mean_buffer);
    T* grad_log_scale = optional_target(a.grad_log_scale, t, grad_log_scale_buffer);
    gradients<compat>(x, mean, log_scale, load_rows(a.grad_nll, t, grad_nll_buffer), target.bins, grad_mean,
                      grad_log_scale, t.count);
    store(a.grad_mean, t, grad_mean);
    store(a.grad_log_scale, t, grad_log_scale);
  });
}

// The mixture. Its loops run over the pixels of a block, one parameter of one component at a time.

template <class T>
struct alignas(64) Row {
  T data[block_pixels];
};

// Rows in a thread's share of the workspace.
template <class T>
class Scratch {
 public:
  explicit Scratch(void* rows) : next_(static_cast<Row<T>*>(rows)) {}

  Row<T>* rows(int64_t count) {
    next_ += count;
    return next_ - count;
  }

  // The buffer that the channels of an image need, if any.
  T* image_rows(const variate_image& image, int64_t pixels, int64_t channels) {
    return rows_in_place(image, pixels, sizeof(T) == sizeof(double)) ? nullptr : rows(channels)->data;
  }

 private:
  Row<T>* next_;
};

template <class T>
void coefficients(const T* __restrict raw, T* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = math::tanh(raw[i]);
}

// The mean of a colour, moved by the colours before it.
template <class T>
void second_mean(const T* __restrict mean, const T* __restrict k0, const T* __restrict x0, T* __restrict out,
                 int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = math::fma(k0[i], x0[i], mean[i]);
}

template <class T>
void third_mean(const T* __restrict mean, const T* __restrict k1, const T* __restrict x0, const T* __restrict k2,
                const T* __restrict x1, T* __restrict out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = math::fma(k2[i], x1[i], math::fma(k1[i], x0[i], mean[i]));
}

// The product of the colours' probabilities, as math::BinProbability has it.
template <class T>
struct Product {
  Row<T> linear, numerator, denominator;
};

template <bool first, class T>
void multiply(const math::BinProbability<T>& p, T& linear, T& numerator, T& denominator) {
  linear = first ? p.linear : linear + p.linear;
  numerator = first ? p.numerator : numerator * p.numerator;
  denominator = first ? p.denominator : denominator * p.denominator;
}

template <bool compat, bool first, class T>
void add_colour(const T* __restrict x, const T* __restrict mean, const T* __restrict log_scale, math::Bins<T> bins,
                Product<T>& product, int64_t count) {
  T* __restrict linear = product.linear.data;
  T* __restrict numerator = product.numerator.data;
  T* __restrict denominator = product.denominator.data;
  for (int64_t i = 0; i < count; ++i) {
    const auto p = math::bin_probability<compat>(x[i], mean[i], log_scale[i], bins);
    multiply<first>(p, linear[i], numerator[i], denominator[i]);
  }
}

template <bool compat, bool first, class T>
void add_colour_with_gradient(const T* __restrict x, const T* __restrict mean, const T* __restrict log_scale,
                              math::Bins<T> bins, Product<T>& product, T* __restrict grad_mean,
                              T* __restrict grad_log_scale, int64_t count) {
  T* __restrict linear = product.linear.data;
  T* __restrict numerator = product.numerator.data;
  T* __restrict denominator = product.denominator.data;
  for (int64_t i = 0; i < count; ++i) {
    const auto p = math::bin_probability_and_gradient<compat>(x[i], mean[i], log_scale[i], bins);
    multiply<first>(p.probability, linear[i], numerator[i], denominator[i]);
    grad_mean[i] = p.gradient.mean;
    grad_log_scale[i] = p.gradient.log_scale;
  }
}

// What a block of pixels needs of a call: the parameters as rows, the target in [-1, 1].
template <class T>
struct Inputs {
  math::MixtureParameters at;
  ImageRows<T> params;
  const T* x[colours];
  Row<T> target_rows[colours], x_rows[colours];

  template <class Args>
  Inputs(const Args& a, const Target<T>& target, const Block& block, Scratch<T>& scratch)
      : at{a.channels, a.mixtures},
        params(a.params, block, math::count_of(at), scratch.image_rows(a.params, a.pixels, math::count_of(at))) {
    const ImageRows<T> levels(a.target, block, a.channels, target_rows[0].data);
    for (int c = 0; c < a.channels; ++c) x[c] = target.middles(levels[c], x_rows[c].data, block.count);
  }
};

// Sums of exp over the components, relative to the largest.
template <class T>
struct LogSum {
  Row<T> most, sum;

  LogSum() {
    for (int64_t i = 0; i < block_pixels; ++i) {
      most.data[i] = -static_cast<T>(__builtin_huge_valf());
      sum.data[i] = T(0);
    }
  }
};

// The means of component m's colours; `k` says where the coefficients go.
template <class T>
struct Means {
  Row<T> moved[colours - 1];
  const T* of[colours];

  Means(const Inputs<T>& in, int m, T* const* k, int64_t count) {
    of[0] = in.params[math::mean_of(in.at, 0, m)];
    if (in.at.colours == 1) return;
    for (int c = 0; c < colours; ++c) coefficients(in.params[math::coefficient_of(in.at, c, m)], k[c], count);
    second_mean(in.params[math::mean_of(in.at, 1, m)], k[0], in.x[0], moved[0].data, count);
    third_mean(in.params[math::mean_of(in.at, 2, m)], k[1], in.x[0], k[2], in.x[1], moved[1].data, count);
    of[1] = moved[0].data;
    of[2] = moved[1].data;
  }
};

// joint = logit + log of the product. The largest joint and the largest logit are kept.
template <class T>
void finish_component(const T* __restrict logit, const Product<T>& product, T* __restrict joint, LogSum<T>& posterior,
                      LogSum<T>& prior, int64_t count) {
  const T* __restrict linear = product.linear.data;
  const T* __restrict numerator = product.numerator.data;
  const T* __restrict denominator = product.denominator.data;
  T* __restrict most = posterior.most.data;
  T* __restrict most_logit = prior.most.data;
  for (int64_t i = 0; i < count; ++i) {
    joint[i] = logit[i] + (linear[i] + math::log(numerator[i] / denominator[i]));
    most[i] = joint[i] > most[i] ? joint[i] : most[i];
    most_logit[i] = logit[i] > most_logit[i] ? logit[i] : most_logit[i];
  }
}

template <class T>
void add_exp(const T* __restrict x, LogSum<T>& log_sum, int64_t count) {
  const T* __restrict most = log_sum.most.data;
  T* __restrict sum = log_sum.sum.data;
  for (int64_t i = 0; i < count; ++i) sum[i] += math::component_weight(x[i] - most[i]);
}

// The same, which keeps the exponentials in `weight`; that may be x.
template <class T>
void add_weight(const T* x, LogSum<T>& log_sum, T* weight, int64_t count) {
  const T* __restrict most = log_sum.most.data;
  T* __restrict sum = log_sum.sum.data;
  for (int64_t i = 0; i < count; ++i) {
    const T w = math::component_weight(x[i] - most[i]);
    weight[i] = w;
    sum[i] += w;
  }
}

using MixtureArgs = variate_discretized_logistic_mixture_nll_args;
using MixtureBackwardArgs = variate_discretized_logistic_mixture_nll_backward_args;

template <bool compat, class T>
void mixture_block(const MixtureArgs& a, const Target<T>& target, const Block& block, Scratch<T> scratch,
                   T* __restrict nll) {
  const int64_t count = block.count;
  const Inputs<T> in(a, target, block, scratch);
  Row<T>* joint = scratch.rows(a.mixtures);
  LogSum<T> posterior, prior;
  Row<T> k_rows[colours];
  T* const k[colours] = {k_rows[0].data, k_rows[1].data, k_rows[2].data};
  for (int m = 0; m < a.mixtures; ++m) {
    const Means<T> mean(in, m, k, count);
    Product<T> product;
    for (int c = 0; c < a.channels; ++c) {
      const auto multiply = c == 0 ? add_colour<compat, true, T> : add_colour<compat, false, T>;
      multiply(in.x[c], mean.of[c], in.params[math::log_scale_of(in.at, c, m)], target.bins, product, count);
    }
    finish_component(in.params[m], product, joint[m].data, posterior, prior, count);
  }
  for (int m = 0; m < a.mixtures; ++m) {
    add_exp(joint[m].data, posterior, count);
    add_exp(in.params[m], prior, count);
  }
  for (int64_t i = 0; i < count; ++i) {
    const T ratio = prior.sum.data[i] / posterior.sum.data[i];
    const T log_ratio = ratio == ratio ? math::log(ratio) : ratio;
    nll[i] = (prior.most.data[i] - posterior.most.data[i]) + log_ratio;
  }
}

template <class T>
void scale_row(T* __restrict x, const T* __restrict factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor[i];
}

// k becomes d / d raw of k x, which moves a mean; k = tanh(raw).
template <class T>
void coefficient_gradient(T* __restrict k, const T* __restrict grad_mean, const T* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) k[i] = grad_mean[i] * x[i] * math::fma(-k[i], k[i], T(1));
}

// grad_logit = g (prior - responsibility); minus = -g responsibility. The reciprocal sums hold g.
template <class T>
void logit_gradient(const T* __restrict weight, const T* __restrict prior_weight, const T* __restrict reciprocal,
                    const T* __restrict prior_reciprocal, T* __restrict minus, T* __restrict grad_logit,
                    int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T part = -weight[i] * reciprocal[i];
    minus[i] = part;
    grad_logit[i] = math::fma(prior_weight[i], prior_reciprocal[i], part);
  }
}

// Where the gradients of a component go. Before they are weighted by its responsibility they lie there too: so memory
// is fetched for them while there is much to compute.
template <class T>
struct ComponentGradient {
  T *mean[colours], *log_scale[colours], *k[colours];

  ComponentGradient(const ImageTarget<T>& grad, math::MixtureParameters at, int m) {
    for (int c = 0; c < at.colours; ++c) {
      mean[c] = grad[math::mean_of(at, c, m)];
      log_scale[c] = grad[math::log_scale_of(at, c, m)];
      k[c] = grad[math::coefficient_of(at, c, m)];
    }
  }
};

template <bool compat, class T>
void mixture_backward_block(const MixtureBackwardArgs& a, const Target<T>& target, const Block& block,
                            Scratch<T> scratch) {
  const int64_t count = block.count;
  const Inputs<T> in(a, target, block, scratch);
  const int count_of_params = math::count_of(in.at);
  const ImageTarget<T> grad(a.grad_params, block, count_of_params,
                            scratch.image_rows(a.grad_params, a.pixels, count_of_params));
  Row<T>* weight = scratch.rows(a.mixtures);
  Row<T>* prior_weight = scratch.rows(a.mixtures);
  LogSum<T> posterior, prior;
  for (int m = 0; m < a.mixtures; ++m) {
    const ComponentGradient<T> d(grad, in.at, m);
    const Means<T> mean(in, m, d.k, count);
    Product<T> product;
    for (int c = 0; c < a.channels; ++c) {
      const auto multiply =
          c == 0 ? add_colour_with_gradient<compat, true, T> : add_colour_with_gradient<compat, false, T>;
      multiply(in.x[c], mean.of[c], in.params[math::log_scale_of(in.at, c, m)], target.bins, product, d.mean[c],
               d.log_scale[c], count);
    }
    finish_component(in.params[m], product, weight[m].data, posterior, prior, count);
  }
  for (int m = 0; m < a.mixtures; ++m) {
    add_weight(weight[m].data, posterior, weight[m].data, count);
    add_weight(in.params[m], prior, prior_weight[m].data, count);
  }
  const T g = element<T>(a.grad_nll, block.batch, 0);
  for (int64_t i = 0; i < count; ++i) {
    posterior.sum.data[i] = g / posterior.sum.data[i];
    prior.sum.data[i] = g / prior.sum.data[i];
  }
  for (int m = 0; m < a.mixtures; ++m) {
    const ComponentGradient<T> d(grad, in.at, m);
    Row<T> minus;
    logit_gradient(weight[m].data, prior_weight[m].data, posterior.sum.data, prior.sum.data, minus.data, grad[m],
                   count);
    for (int c = 0; c < a.channels; ++c) {
      scale_row(d.mean[c], minus.data, count);
      scale_row(d.log_scale[c], minus.data, count);
    }
    if (a.channels == 1) continue;
    coefficient_gradient(d.k[0], d.mean[1], in.x[0], count);
    coefficient_gradient(d.k[1], d.mean[2], in.x[0], count);
    coefficient_gradient(d.k[2], d.mean[2], in.x[1], count);
  }
  grad.store();
}

template <bool compat, class T>
void mixture_nll(const MixtureArgs& a) {
  const Blocks blocks(a.batch, a.pixels);
  const Target<T> target(a.target.dtype, a.bits);
  const ImageWorkspace workspace(a.execution.workspace, blocks, mixture_rows(a), sizeof(T) == sizeof(double));
  for_blocks(blocks, a.execution.threads, [&](const Block& block, int thread) {
    Row<T> nll;
    mixture_block<compat>(a, target, block, Scratch<T>(workspace.rows(thread)), nll.data);
    workspace.partial_sums[block.index] = row_sum(nll.data, block.pixels);
  });
  for (int64_t b = 0; b < a.batch; ++b) {
    double sum = 0.0;
    for (int64_t i = 0; i < blocks.per_image; ++i) sum += workspace.partial_sums[b * blocks.per_image + i];
    set_element(a.nll, b, sum);
  }
}

template <bool compat, class T>
void mixture_nll_backward(const MixtureBackwardArgs& a) {
  const Blocks blocks(a.batch, a.pixels);
  const Target<T> target(a.target.dtype, a.bits);
  const ImageWorkspace workspace(a.execution.workspace, blocks, mixture_backward_rows(a), sizeof(T) == sizeof(double));
  for_blocks(blocks, a.execution.threads, [&](const Block& block, int thread) {
    mixture_backward_block<compat>(a, target, block, Scratch<T>(workspace.rows(thread)));
  });
}

// Sampling.

using SampleArgs = variate_discretized_logistic_mixture_sample_args;

// Elements [first, first + count) of one sample's noise; first is a multiple of 4.
Tile strip(int64_t row, int64_t first, int64_t count) {
  const int64_t pitch = (count + 3) / 4 * 4;
  return {row, 1, first, count, pitch, (pitch + lane_multiple - 1) / lane_multiple * lane_multiple};
}

// The component of each pixel. `logits` is that of the block's first pixel; the first of equals wins, and the first NaN
// over everything.
template <class T, class Element>
void choose_components(const SampleArgs& a, const Block& block, const Element* logits, int* chosen) {
  T best[block_pixels];
  const int64_t elements = block.pixels * a.mixtures;
  int64_t pixel = 0;
  int m = 0;
  for (int64_t first = 0; first < elements; first += tile_elements) {
    const int64_t length = elements - first < tile_elements ? elements - first : tile_elements;
    const Tile t = strip(block.batch, block.pixel * a.mixtures + first, length);
    WordBuffer word_buffer;
    Buffer<float> noise;
    const uint32_t* __restrict words = tile_words(a.noise, t, word_buffer);
    for (int64_t i = 0; i < t.count; ++i) noise.data[i] = math::gumbel(words[i]);
    for (int64_t i = 0; i < length; ++i) {
      const T logit = widen(logits[pixel * a.params.pixel_stride + m * a.params.channel_stride]);
      const T score = logit + static_cast<T>(noise.data[i]);
      if (m == 0 || score > best[pixel] || (score != score && best[pixel] == best[pixel])) {
        best[pixel] = score;
        chosen[pixel] = m;
      }
      if (++m == a.mixtures) {
        m = 0;
        ++pixel;
      }
    }
  }
}

template <class T, class Element>
void sample_block(const SampleArgs& a, const Block& block, const Element* params) {
  const math::MixtureParameters at{a.channels, a.mixtures};
  int chosen[block_pixels];
  choose_components<T>(a, block, params, chosen);
  WordBuffer word_buffer;
  Buffer<float> noise;
  const Tile t = strip(block.batch, block.pixel * a.channels, block.pixels * a.channels);
  const uint32_t* __restrict words = tile_words(a.noise, t, word_buffer, 1);
  for (int64_t i = 0; i < t.count; ++i) noise.data[i] = math::logistic(words[i]);
  const T steps = T((1 << a.bits) - 1);
  auto* sample = static_cast<uint8_t*>(a.sample.data) + block_start(a.sample, block);
  for (int64_t p = 0; p < block.pixels; ++p) {
    const int m = chosen[p];
    const auto parameter = [&](int channel) -> T {
      return widen(params[p * a.params.pixel_stride + channel * a.params.channel_stride]);
    };
    const auto coefficient = [&](int colour) { return math::tanh(parameter(math::coefficient_of(at, colour, m))); };
    T x[colours] = {};
    for (int c = 0; c < a.channels; ++c) {
      T mean = parameter(math::mean_of(at, c, m));
      if (c == 1) mean = math::fma(coefficient(0), x[0], mean);
      if (c == 2) mean = math::fma(coefficient(2), x[1], math::fma(coefficient(1), x[0], mean));
      const T draw = static_cast<T>(noise.data[p * a.channels + c]);
      const T level = math::logistic_level(draw, mean, parameter(math::log_scale_of(at, c, m)), steps);
      x[c] = math::bin_middle(level, a.bits);
      sample[p * a.sample.pixel_stride + c * a.sample.channel_stride] = narrow<uint8_t>(level);
    }
  }
}

template <class T>
void sample_mixture(const SampleArgs& a) {
  for_blocks(Blocks(a.batch, a.pixels), a.execution.threads, [&](const Block& block, int) {
    with_type(a.params.dtype, [&](auto* type) {
      sample_block<T>(a, block, static_cast<decltype(type)>(a.params.data) + block_start(a.params, block));
    });
  });
}

bool is_double(const variate_tensor& mean, const variate_tensor& log_scale, const variate_tensor& target) {
  return mean.dtype == VARIATE_FLOAT64 || log_scale.dtype == VARIATE_FLOAT64 || target.dtype == VARIATE_FLOAT64;
}

}  // namespace

void discretized_logistic_nll(const variate_discretized_logistic_nll_args& a) {
  const bool wide = is_double(a.mean, a.log_scale, a.target);
  if (a.edges == VARIATE_COMPAT_EDGES) return wide ? nll<true, double>(a) : nll<true, float>(a);
  wide ? nll<false, double>(a) : nll<false, float>(a);
}

void discretized_logistic_nll_backward(const variate_discretized_logistic_nll_backward_args& a) {
  const bool wide = is_double(a.mean, a.log_scale, a.target);
  if (a.edges == VARIATE_COMPAT_EDGES) return wide ? nll_backward<true, double>(a) : nll_backward<true, float>(a);
  wide ? nll_backward<false, double>(a) : nll_backward<false, float>(a);
}

void discretized_logistic_mixture_nll(const MixtureArgs& a) {
  const bool wide = is_wide(a.params, a.target);
  if (a.edges == VARIATE_COMPAT_EDGES) return wide ? mixture_nll<true, double>(a) : mixture_nll<true, float>(a);
  wide ? mixture_nll<false, double>(a) : mixture_nll<false, float>(a);
}

void discretized_logistic_mixture_nll_backward(const MixtureBackwardArgs& a) {
  const bool wide = is_wide(a.params, a.target);
  if (a.edges == VARIATE_COMPAT_EDGES) {
    return wide ? mixture_nll_backward<true, double>(a) : mixture_nll_backward<true, float>(a);
  }
  wide ? mixture_nll_backward<false, double>(a) : mixture_nll_backward<false, float>(a);
}

void discretized_logistic_mixture_sample(const SampleArgs& a) {
  a.params.dtype == VARIATE_FLOAT64 ? sample_mixture<double>(a) : sample_mixture<float>(a);
}

}  // namespace variate::cpu::VARIATE_ISA
