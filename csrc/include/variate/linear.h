/* A decoder's last layer and its likelihood: the epilogue that turns the products of the layer into a likelihood and,
   in place, into its gradient. The products are the caller's, of any chunk of rows and columns: the likelihood's terms
   are independent, so those of a row are summed over the chunks. */
#ifndef VARIATE_LINEAR_H
#define VARIATE_LINEAR_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* logits = products + bias; row r has the target of row t = (first_row + r) mod target_rows.
     bernoulli:   nll[r] = sum over c of softplus(logits[r, c]) - logits[r, c] target[t, c]
     categorical: nll[r] = sum over v of logsumexp(logits[r, v, :]) - logits[r, v, target[t, v]]
     residual[r, c] = d nll[r] / d logits[r, c]
     grad_bias[c] += sum over r of grad_nll[r] residual[r, c]
   products: floating [rows, cols], for the categorical one [rows, cols / ways, ways] row by row; bias: floating [1,
   cols] or left out; target: floating or uint8 [target_rows, cols], for the categorical one uint8 or int64
   [target_rows, cols / ways], where a value outside [0, ways) makes its terms NaN; grad_nll: floating [rows, 1], 1
   where it is left out. Outputs, each of which may be left out: nll [rows, 1], float32 or float64; residual: floating
   [rows, cols], `products` itself or other memory; grad_bias [1, cols], float32 or float64, which is added to. */
typedef struct variate_linear_nll_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  int64_t ways; /* categories of each variable; 1 for variate_linear_bernoulli_nll */
  int64_t target_rows;
  int64_t first_row;
  variate_tensor products;
  variate_tensor bias;
  variate_tensor target;
  variate_tensor grad_nll;
  variate_tensor nll;
  variate_tensor residual;
  variate_tensor grad_bias;
} variate_linear_nll_args;

VARIATE_API variate_status variate_linear_bernoulli_nll(const variate_linear_nll_args* args);
VARIATE_API variate_status variate_linear_categorical_nll(const variate_linear_nll_args* args);
VARIATE_API uint64_t variate_linear_nll_workspace(const variate_linear_nll_args* args);

#ifdef __cplusplus
}
#endif

#endif
