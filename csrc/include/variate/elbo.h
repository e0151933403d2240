/* The terms of the evidence lower bound, in nats. Math: variate/math/elbo.hpp. */
#ifndef VARIATE_ELBO_H
#define VARIATE_ELBO_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* *satisfied = 1 where all of `value`, floating [rows, cols], satisfies the constraint, else 0. The CPU only. */
typedef struct variate_satisfies_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  variate_constraint constraint;
  variate_tensor value;
  int32_t* satisfied;
} variate_satisfies_args;

VARIATE_API variate_status variate_satisfies(const variate_satisfies_args* args);

/* Each call below sums its terms over the columns: its result is [rows, 1], float32 or float64. With `elementwise` the
   result is every term, [rows, cols] of any floating dtype. The incoming gradient of a backward call has the shape of
   that result: a column stride of 0 is one number per row. Outputs of a backward call may be left out. float64 anywhere
   among the inputs means float64 math. */

/* kl = max(KL(N(mean, sigma^2) || N(prior_mean, prior_sigma^2)), free_bits)
      = max((ratio - 1 - log ratio + (mean - prior_mean)^2 / prior_sigma^2) / 2, free_bits), ratio = sigma^2 /
   prior_sigma^2. `spread` and `prior_spread` hold sigma as `parametrization` says. All are floating [rows, cols].
   Without priors the prior is standard; one of the two may be left out and is then that of the standard normal. */
typedef struct variate_normal_kl_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  variate_parametrization parametrization;
  int32_t elementwise;
  variate_tensor mean;
  variate_tensor spread;
  variate_tensor prior_mean;
  variate_tensor prior_spread;
  variate_tensor free_bits; /* one float32 or float64 on the device of the call, >= 0 */
  double free_bits_value;   /* the same as a plain number, where the tensor is left out */
  variate_tensor kl;
} variate_normal_kl_args;

VARIATE_API variate_status variate_normal_kl(const variate_normal_kl_args* args);
VARIATE_API uint64_t variate_normal_kl_workspace(const variate_normal_kl_args* args);

/* grad_mean = grad_kl (mean - prior_mean) / prior_sigma^2 = -grad_prior_mean; by log sigma the other two are
   grad_kl (ratio - 1) and grad_kl (1 - ratio - (mean - prior_mean)^2 / prior_sigma^2). 0 where kl < free_bits. */
typedef struct variate_normal_kl_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  variate_parametrization parametrization;
  int32_t elementwise;
  variate_tensor grad_kl;
  variate_tensor mean;
  variate_tensor spread;
  variate_tensor prior_mean;
  variate_tensor prior_spread;
  variate_tensor free_bits;
  double free_bits_value;
  variate_tensor grad_mean;
  variate_tensor grad_spread;
  variate_tensor grad_prior_mean;
  variate_tensor grad_prior_spread;
} variate_normal_kl_backward_args;

VARIATE_API variate_status variate_normal_kl_backward(const variate_normal_kl_backward_args* args);

/* kl = KL(Bernoulli(sigmoid(logits)) || Bernoulli(sigmoid(prior_logits))). Both are floating [rows, cols]. */
typedef struct variate_bernoulli_kl_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  int32_t elementwise;
  variate_tensor logits;
  variate_tensor prior_logits;
  variate_tensor kl;
} variate_bernoulli_kl_args;

VARIATE_API variate_status variate_bernoulli_kl(const variate_bernoulli_kl_args* args);
VARIATE_API uint64_t variate_bernoulli_kl_workspace(const variate_bernoulli_kl_args* args);

/* grad_logits = grad_kl p (1 - p) (logits - prior_logits), p = sigmoid(logits);
   grad_prior_logits = grad_kl (sigmoid(prior_logits) - p). */
typedef struct variate_bernoulli_kl_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  int32_t elementwise;
  variate_tensor grad_kl;
  variate_tensor logits;
  variate_tensor prior_logits;
  variate_tensor grad_logits;
  variate_tensor grad_prior_logits;
} variate_bernoulli_kl_backward_args;

VARIATE_API variate_status variate_bernoulli_kl_backward(const variate_bernoulli_kl_backward_args* args);

/* nll = (log 2 pi + log sigma^2 + (target - mean)^2 / sigma^2) / 2 = -log N(target | mean, sigma^2). `spread` holds
   sigma as `parametrization` says. All are floating [rows, cols]; a fixed variance is one number with strides 0. */
typedef struct variate_normal_nll_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  variate_parametrization parametrization;
  int32_t elementwise;
  variate_tensor mean;
  variate_tensor spread;
  variate_tensor target;
  variate_tensor nll;
} variate_normal_nll_args;

VARIATE_API variate_status variate_normal_nll(const variate_normal_nll_args* args);
VARIATE_API uint64_t variate_normal_nll_workspace(const variate_normal_nll_args* args);

/* grad_target = grad_nll (target - mean) / sigma^2 = -grad_mean; by log sigma the gradient is
   grad_nll (1 - (target - mean)^2 / sigma^2). */
typedef struct variate_normal_nll_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  variate_parametrization parametrization;
  int32_t elementwise;
  variate_tensor grad_nll;
  variate_tensor mean;
  variate_tensor spread;
  variate_tensor target;
  variate_tensor grad_mean;
  variate_tensor grad_spread;
  variate_tensor grad_target;
} variate_normal_nll_backward_args;

VARIATE_API variate_status variate_normal_nll_backward(const variate_normal_nll_backward_args* args);

/* nll = softplus(logits) - logits target = -log Bernoulli(target | sigmoid(logits)).
   logits: floating [rows, cols]; target: floating or uint8 [rows, cols], meant to lie in [0, 1]. */
typedef struct variate_bernoulli_nll_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  int32_t elementwise;
  variate_tensor logits;
  variate_tensor target;
  variate_tensor nll;
} variate_bernoulli_nll_args;

VARIATE_API variate_status variate_bernoulli_nll(const variate_bernoulli_nll_args* args);
VARIATE_API uint64_t variate_bernoulli_nll_workspace(const variate_bernoulli_nll_args* args);

/* grad_logits = grad_nll (sigmoid(logits) - target); grad_target = -grad_nll logits. */
typedef struct variate_bernoulli_nll_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  int32_t elementwise;
  variate_tensor grad_nll;
  variate_tensor logits;
  variate_tensor target;
  variate_tensor grad_logits;
  variate_tensor grad_target;
} variate_bernoulli_nll_backward_args;

VARIATE_API variate_status variate_bernoulli_nll_backward(const variate_bernoulli_nll_backward_args* args);

/* nll[r] = sum over groups of log(sum over k of exp(logits)) - logits[target], k running over the `categories` that
   follow each other in a row: -log Categorical(target | softmax(logits)). logits: floating [rows, groups * categories];
   target: uint8 or int64 [rows, groups]; nll: [rows, 1], float32 or float64. A target outside [0, categories) gives
   NaN. log_sum_exp [rows, groups], of any floating dtype, is for the backward call, and may be left out. */
typedef struct variate_categorical_nll_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t groups;
  int64_t categories;
  variate_tensor logits;
  variate_tensor target;
  variate_tensor nll;
  variate_tensor log_sum_exp;
} variate_categorical_nll_args;

VARIATE_API variate_status variate_categorical_nll(const variate_categorical_nll_args* args);
VARIATE_API uint64_t variate_categorical_nll_workspace(const variate_categorical_nll_args* args);

/* grad_logits = grad_nll (exp(logits - log_sum_exp) - 1 at the target), NaN for a target outside [0, categories). */
typedef struct variate_categorical_nll_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t groups;
  int64_t categories;
  variate_tensor grad_nll;
  variate_tensor logits;
  variate_tensor target;
  variate_tensor log_sum_exp;
  variate_tensor grad_logits;
} variate_categorical_nll_backward_args;

VARIATE_API variate_status variate_categorical_nll_backward(const variate_categorical_nll_backward_args* args);

/* kl[r] = sum over groups and k of p log(p / r), p = softmax(logits), r = softmax(prior_logits) over the `categories`
   of a group; p = 0 costs 0. Both are floating [rows, groups * categories]; kl: [rows, 1], float32 or float64. */
typedef struct variate_categorical_kl_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t groups;
  int64_t categories;
  variate_tensor logits;
  variate_tensor prior_logits;
  variate_tensor kl;
} variate_categorical_kl_args;

VARIATE_API variate_status variate_categorical_kl(const variate_categorical_kl_args* args);
VARIATE_API uint64_t variate_categorical_kl_workspace(const variate_categorical_kl_args* args);

/* grad_logits = grad_kl p (log(p / r) - the group's divergence); grad_prior_logits = grad_kl (r - p). */
typedef struct variate_categorical_kl_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t groups;
  int64_t categories;
  variate_tensor grad_kl;
  variate_tensor logits;
  variate_tensor prior_logits;
  variate_tensor grad_logits;
  variate_tensor grad_prior_logits;
} variate_categorical_kl_backward_args;

VARIATE_API variate_status variate_categorical_kl_backward(const variate_categorical_kl_backward_args* args);

#ifdef __cplusplus
}
#endif

#endif
