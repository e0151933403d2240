/* Reparameterised sampling. Math: variate/math/reparam.hpp. */
#ifndef VARIATE_REPARAM_H
#define VARIATE_REPARAM_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* z[r, c] = mean + exp(log_var / 2) eps, eps the standard normal of element c of sample first_sample + r, and
   kl[r] = sum over c of max(KL(N(mean, e^log_var) || N(prior_mean, e^prior_log_var)), free_bits), in nats.
   All inputs are floating [rows, cols]; kl is [rows, 1], float32 or float64. Without priors the prior is standard;
   one of the two may be left out and is then 0. Without kl only z is drawn. float64 anywhere means float64 math. */
typedef struct variate_normal_rsample_kl_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  variate_tensor mean;
  variate_tensor log_var;
  variate_tensor prior_mean;
  variate_tensor prior_log_var;
  variate_tensor free_bits; /* one float32 or float64 on the device of the call, >= 0 */
  double free_bits_value;   /* the same as a plain number, where the tensor is left out */
  variate_tensor z;
  variate_tensor kl;
} variate_normal_rsample_kl_args;

VARIATE_API variate_status variate_normal_rsample_kl(const variate_normal_rsample_kl_args* args);
VARIATE_API uint64_t variate_normal_rsample_kl_workspace(const variate_normal_rsample_kl_args* args);

/* The gradients of the call above, its noise drawn again from the key. grad_z [rows, cols] or grad_kl [rows, 1] may be
   left out, and is then 0; so may each output that is not wanted. */
typedef struct variate_normal_rsample_kl_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  variate_tensor grad_z;
  variate_tensor grad_kl;
  variate_tensor mean;
  variate_tensor log_var;
  variate_tensor prior_mean;
  variate_tensor prior_log_var;
  variate_tensor free_bits;
  double free_bits_value;
  variate_tensor grad_mean;
  variate_tensor grad_log_var;
  variate_tensor grad_prior_mean;
  variate_tensor grad_prior_log_var;
} variate_normal_rsample_kl_backward_args;

VARIATE_API variate_status variate_normal_rsample_kl_backward(const variate_normal_rsample_kl_backward_args* args);

#ifdef __cplusplus
}
#endif

#endif
