/* Bounds of several importance samples. Math: variate/math/bound.hpp. */
#ifndef VARIATE_BOUND_H
#define VARIATE_BOUND_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* For each of `cols` data, over its `rows` samples:
     bound[c] = log(sum over r of exp(log_weight[r, c])) - log(rows)
     weight[r, c] = exp(log_weight[r, c]) / their sum
     effective_sample_size[c] = 1 / (sum over r of weight[r, c]^2)
     learning_signal[r, c] = bound[c] - the same bound with log_weight[r, c] replaced by the mean of the others'.
   Where all weights of a datum are 0, bound is -infinity and the rest are 0.
   log_weight: floating [rows, cols], at least one row; bound, effective_sample_size: [cols, 1], weight,
   learning_signal: [rows, cols], all float32 or float64. learning_signal may be left out; it takes two rows or more. */
typedef struct variate_importance_weighted_bound_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  variate_tensor log_weight;
  variate_tensor bound;
  variate_tensor weight;
  variate_tensor effective_sample_size;
  variate_tensor learning_signal;
} variate_importance_weighted_bound_args;

VARIATE_API variate_status variate_importance_weighted_bound(const variate_importance_weighted_bound_args* args);

#ifdef __cplusplus
}
#endif

#endif
