/* Discretised logistic likelihoods and their mixtures. Math: variate/math/logistic.hpp. */
#ifndef VARIATE_LOGISTIC_H
#define VARIATE_LOGISTIC_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A [batch, pixels, channels] view; strides count elements and may be 0. `data` is NULL for one that is left out. */
typedef struct variate_image {
  void* data;
  variate_dtype dtype;
  int64_t batch_stride;
  int64_t pixel_stride;
  int64_t channel_stride;
} variate_image;

/* How a bin's probability is taken. Exact: the outermost bins reach to infinity and all sum to 1. Compat: the same but
   where a bin has less than 1e-5, whose log becomes that of the density at its middle, as published models train. */
typedef enum variate_edges VARIATE_INT { VARIATE_EXACT_EDGES = 0, VARIATE_COMPAT_EDGES = 1 } variate_edges;

/* nll[r] = -sum over c of log P(target), in nats, P the logistic distribution of `mean` and exp(max(log_scale, -7))
   over the 2^bits bins around x = -1, ..., 1. mean, log_scale: floating [rows, cols]; target: uint8 levels
   0, ..., 2^bits - 1, or floating values x; bits in [1, 8]; nll: [rows, 1], float32 or float64. */
typedef struct variate_discretized_logistic_nll_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  int32_t bits;
  variate_edges edges;
  variate_tensor mean;
  variate_tensor log_scale;
  variate_tensor target;
  variate_tensor nll;
} variate_discretized_logistic_nll_args;

VARIATE_API variate_status variate_discretized_logistic_nll(const variate_discretized_logistic_nll_args* args);
VARIATE_API uint64_t variate_discretized_logistic_nll_workspace(const variate_discretized_logistic_nll_args* args);

/* The gradients of the call above. Each output may be left out. */
typedef struct variate_discretized_logistic_nll_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  int32_t bits;
  variate_edges edges;
  variate_tensor grad_nll;
  variate_tensor mean;
  variate_tensor log_scale;
  variate_tensor target;
  variate_tensor grad_mean;
  variate_tensor grad_log_scale;
} variate_discretized_logistic_nll_backward_args;

VARIATE_API variate_status
variate_discretized_logistic_nll_backward(const variate_discretized_logistic_nll_backward_args* args);

/* nll[b] = -sum over pixels of log sum over m of softmax(logits)_m prod over colours of P_m(target), in nats.
   params: floating [batch, pixels, mixtures * (1 + 2 or 9)]: the logits, then for each colour the means, the log scales
   and, with 3 channels, the raw coefficients of all mixtures. Their tanh k_0, k_1, k_2 move the means of the second
   colour by k_0 x_0 and of the third by k_1 x_0 + k_2 x_1. channels: 1 or 3; target as above, [batch, pixels,
   channels]; nll: [batch, 1], float32 or float64. */
typedef struct variate_discretized_logistic_mixture_nll_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t batch;
  int64_t pixels;
  int32_t channels;
  int32_t mixtures;
  int32_t bits;
  variate_edges edges;
  variate_image params;
  variate_image target;
  variate_tensor nll;
} variate_discretized_logistic_mixture_nll_args;

VARIATE_API variate_status
variate_discretized_logistic_mixture_nll(const variate_discretized_logistic_mixture_nll_args* args);
VARIATE_API uint64_t
variate_discretized_logistic_mixture_nll_workspace(const variate_discretized_logistic_mixture_nll_args* args);

/* The gradient of the call above: grad_params[b] = grad_nll[b] d nll[b] / d params[b]. */
typedef struct variate_discretized_logistic_mixture_nll_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t batch;
  int64_t pixels;
  int32_t channels;
  int32_t mixtures;
  int32_t bits;
  variate_edges edges;
  variate_tensor grad_nll;
  variate_image params;
  variate_image target;
  variate_image grad_params;
} variate_discretized_logistic_mixture_nll_backward_args;

VARIATE_API variate_status
variate_discretized_logistic_mixture_nll_backward(const variate_discretized_logistic_mixture_nll_backward_args* args);
VARIATE_API uint64_t variate_discretized_logistic_mixture_nll_backward_workspace(
    const variate_discretized_logistic_mixture_nll_backward_args* args);

/* sample[b, p, c]: uint8 levels drawn from the exact bins: the mixture by the largest logits + Gumbel noise, element
   p * mixtures + m of sample first_sample + b; each colour in turn, given the levels of those before it, by logistic
   noise, element p * channels + c of fold_in(key, 1). */
typedef struct variate_discretized_logistic_mixture_sample_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t batch;
  int64_t pixels;
  int32_t channels;
  int32_t mixtures;
  int32_t bits;
  variate_image params;
  variate_image sample;
} variate_discretized_logistic_mixture_sample_args;

VARIATE_API variate_status
variate_discretized_logistic_mixture_sample(const variate_discretized_logistic_mixture_sample_args* args);

#ifdef __cplusplus
}
#endif

#endif
