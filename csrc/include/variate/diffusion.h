/* Training a diffusion model: noising and what the model must say of it, and the loss. Math:
 * variate/math/diffusion.hpp.
 */
#ifndef VARIATE_DIFFUSION_H
#define VARIATE_DIFFUSION_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the model predicts of x_t = alpha x0 + sigma eps. */
typedef enum variate_prediction VARIATE_INT {
  VARIATE_PREDICT_EPSILON = 0, /* eps */
  VARIATE_PREDICT_X0 = 1,      /* x0 */
  VARIATE_PREDICT_V = 2,       /* alpha eps - sigma x0 */
  VARIATE_PREDICT_FLOW = 3,    /* eps - x0 */
  VARIATE_PREDICT_EDM = 4      /* (x0 - c_skip x_t) / c_out, for alpha = 1:
                                  (sigma x0 / sigma_data - sigma_data eps) / sqrt(sigma^2 + sigma_data^2) */
} variate_prediction;

/* x_t = alpha x0 + sigma eps, and its target. x0, x_t, target: floating [rows, cols]; math is float32, or float64 where
   x0 is.

   alpha and sigma are columns 0 and 1 of `levels`, float32 or float64: of its row `timestep`, an int64 for each of
   `tokens` equal parts of a row's columns (row_stride between samples, col_stride between parts); without `timestep`
   of row r * tokens + part, and table_size is rows * tokens. A CPU refuses a timestep outside [0, table_size); on a GPU
   its results are NaN.

   eps is `drawn` (floating [rows, cols]), or the standard normal of element e of sample b. With offset_noise s it is
   eps + s n, n the standard normal of element c of sample b under fold_in(key, 1), c the channel: one of `channels`
   equal parts of a row. noise.key may be NULL where nothing is drawn.

   Where `mask`, uint8 [rows, cols], is not 0, x_t is x0. The target knows no mask. */
typedef struct variate_noise_and_target_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  variate_prediction prediction;
  double sigma_data; /* > 0; of VARIATE_PREDICT_EDM */
  variate_tensor levels;
  int64_t table_size;
  variate_tensor timestep;
  int64_t tokens; /* >= 1, divides cols */
  double offset_noise;
  int64_t channels; /* >= 1, divides cols */
  variate_tensor x0;
  variate_tensor drawn;
  variate_tensor mask;
  variate_tensor x_t;
  variate_tensor target;
} variate_noise_and_target_args;

VARIATE_API variate_status variate_noise_and_target(const variate_noise_and_target_args* args);

typedef enum variate_penalty VARIATE_INT {
  VARIATE_SQUARE = 0, /* d^2 */
  VARIATE_HUBER = 1   /* d^2 / 2 for |d| < delta, else delta (|d| - delta / 2) */
} variate_penalty;

/* loss[r] = weight[r] / cols * sum over c of penalty(prediction - target), without the elements whose mask is not 0.
   prediction and target: floating [rows, cols]; mask: uint8 [rows, cols]; weight: floating [rows, 1], 1 where it is
   left out; loss: [rows, 1], float32 or float64. float64 anywhere means float64 math.
   grad_prediction, which may be left out, is the gradient of the mean of the loss over the rows. */
typedef struct variate_denoising_loss_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  variate_penalty penalty;
  double delta; /* > 0; of VARIATE_HUBER */
  variate_tensor prediction;
  variate_tensor target;
  variate_tensor weight;
  variate_tensor mask;
  variate_tensor loss;
  variate_tensor grad_prediction;
} variate_denoising_loss_args;

VARIATE_API variate_status variate_denoising_loss(const variate_denoising_loss_args* args);
VARIATE_API uint64_t variate_denoising_loss_workspace(const variate_denoising_loss_args* args);

/* grad_prediction = grad_loss weight / cols penalty'(prediction - target) = -grad_target. Each may be left out. With
   `ready` the rows of grad_prediction whose grad_loss is 1 / rows hold their gradient already, from the call above. */
typedef struct variate_denoising_loss_backward_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  int64_t cols;
  variate_penalty penalty;
  double delta;
  int32_t ready; /* 0 or 1 */
  variate_tensor grad_loss;
  variate_tensor prediction;
  variate_tensor target;
  variate_tensor weight;
  variate_tensor mask;
  variate_tensor grad_prediction;
  variate_tensor grad_target;
} variate_denoising_loss_backward_args;

VARIATE_API variate_status variate_denoising_loss_backward(const variate_denoising_loss_backward_args* args);

#ifdef __cplusplus
}
#endif

#endif
