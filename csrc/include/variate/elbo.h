/* The terms of the evidence lower bound. Math: variate/math/elbo.hpp. */
#ifndef VARIATE_ELBO_H
#define VARIATE_ELBO_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* nll[r] = sum over c of softplus(logits) - logits target = -log Bernoulli(target | sigmoid(logits)), in nats.
   logits: floating [rows, cols]; target: floating or uint8 [rows, cols], meant to lie in [0, 1];
   nll: [rows, 1], float32 or float64. */
typedef struct variate_bernoulli_nll_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  variate_tensor logits;
  variate_tensor target;
  variate_tensor nll;
} variate_bernoulli_nll_args;

VARIATE_API variate_status variate_bernoulli_nll(const variate_bernoulli_nll_args* args);
VARIATE_API uint64_t variate_bernoulli_nll_workspace(const variate_bernoulli_nll_args* args);

/* grad_logits[r, c] = grad_nll[r] (sigmoid(logits) - target); grad_target[r, c] = -grad_nll[r] logits.
   Each output may be left out. */
typedef struct variate_bernoulli_nll_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  variate_tensor grad_nll;
  variate_tensor logits;
  variate_tensor target;
  variate_tensor grad_logits;
  variate_tensor grad_target;
} variate_bernoulli_nll_backward_args;

VARIATE_API variate_status variate_bernoulli_nll_backward(const variate_bernoulli_nll_backward_args* args);

#ifdef __cplusplus
}
#endif

#endif
