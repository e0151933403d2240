/* Relaxed and straight-through discrete samples. Math: variate/math/relaxed.hpp. */
#ifndef VARIATE_RELAXED_H
#define VARIATE_RELAXED_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y[r, g C + c] = softmax over c of (logits + gumbel) / temperature, C = categories; with `hard` 1 at the largest
   score, the first of equals, and 0 elsewhere. logits, y: floating [rows, groups * categories]. An infinite logit is
   certain, and shares with others that are; a NaN makes its group NaN. */
typedef struct variate_gumbel_softmax_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t groups;
  int64_t categories;
  int32_t hard;               /* 0 or 1 */
  variate_tensor temperature; /* one float32 or float64 on the device of the call, > 0 */
  double temperature_value;   /* the same as a plain number, where the tensor is left out */
  variate_tensor logits;
  variate_tensor y;
} variate_gumbel_softmax_args;

VARIATE_API variate_status variate_gumbel_softmax(const variate_gumbel_softmax_args* args);

/* grad_logits = y (grad_y - sum over c of grad_y y) / temperature of the soft y: given, or else made again from logits
   and the key, and without a key (noise.key NULL) from logits alone. */
typedef struct variate_gumbel_softmax_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t groups;
  int64_t categories;
  variate_tensor temperature;
  double temperature_value;
  variate_tensor grad_y;
  variate_tensor y;
  variate_tensor logits;
  variate_tensor grad_logits;
} variate_gumbel_softmax_backward_args;

VARIATE_API variate_status variate_gumbel_softmax_backward(const variate_gumbel_softmax_backward_args* args);

/* z[r, c] = sigmoid((logits + logistic) / temperature); with `hard` 1 above 1/2, else 0. */
typedef struct variate_relaxed_bernoulli_rsample_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  int32_t hard; /* 0 or 1 */
  variate_tensor temperature;
  double temperature_value;
  variate_tensor logits;
  variate_tensor z;
} variate_relaxed_bernoulli_rsample_args;

VARIATE_API variate_status variate_relaxed_bernoulli_rsample(const variate_relaxed_bernoulli_rsample_args* args);

/* grad_logits = grad_z z (1 - z) / temperature of the soft z: given, or else made again from logits and the key, and
   without a key (noise.key NULL) from logits alone. */
typedef struct variate_relaxed_bernoulli_rsample_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  variate_tensor temperature;
  double temperature_value;
  variate_tensor grad_z;
  variate_tensor z;
  variate_tensor logits;
  variate_tensor grad_logits;
} variate_relaxed_bernoulli_rsample_backward_args;

VARIATE_API variate_status
variate_relaxed_bernoulli_rsample_backward(const variate_relaxed_bernoulli_rsample_backward_args* args);

/* out[r, c] = 1 with probability sigmoid(logits[r, c]), else 0: the draw of variate_bernoulli. A NaN gives a NaN. */
typedef struct variate_bernoulli_straight_through_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  variate_tensor logits;
  variate_tensor out;
} variate_bernoulli_straight_through_args;

VARIATE_API variate_status variate_bernoulli_straight_through(const variate_bernoulli_straight_through_args* args);

#ifdef __cplusplus
}
#endif

#endif
