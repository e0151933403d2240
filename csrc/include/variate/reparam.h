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

/* The distribution of the noise: each the standard one of its family. */
typedef enum variate_base VARIATE_INT {
  VARIATE_BASE_NORMAL = 0,
  VARIATE_BASE_LOGISTIC = 1,
  VARIATE_BASE_LAPLACE = 2,
  VARIATE_BASE_GUMBEL = 3
} variate_base;

/* z[k, r, c] = loc + sigma noise_k, sigma as `parametrization` reads it from spread, for k = 0 ... samples - 1.
   Sample k takes draw k: the key itself for draw 0, fold_in(key, d) for draw d. With `antithetic` samples 2 j and
   2 j + 1 share draw j, the second as its mirror image: the noise of the uniform 1 - u.
   loc, spread: floating [rows, cols]. z: floating; sample k of it begins k * z_sample_stride elements in. */
typedef struct variate_location_scale_rsample_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  int64_t samples;
  int32_t antithetic; /* 0 or 1 */
  variate_base base;
  variate_parametrization parametrization;
  variate_tensor loc;
  variate_tensor spread;
  variate_tensor z;
  int64_t z_sample_stride;
} variate_location_scale_rsample_args;

VARIATE_API variate_status variate_location_scale_rsample(const variate_location_scale_rsample_args* args);

/* grad_loc = sum over k of grad_z_k, grad_spread = (d sigma / d spread) sum over k of grad_z_k noise_k, the noise drawn
   again from the key. Each output may be left out. */
typedef struct variate_location_scale_rsample_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  int64_t samples;
  int32_t antithetic;
  variate_base base;
  variate_parametrization parametrization;
  variate_tensor grad_z;
  int64_t grad_z_sample_stride;
  variate_tensor spread;
  variate_tensor grad_loc;
  variate_tensor grad_spread;
} variate_location_scale_rsample_backward_args;

VARIATE_API variate_status
variate_location_scale_rsample_backward(const variate_location_scale_rsample_backward_args* args);

#ifdef __cplusplus
}
#endif

#endif
