/* A step of a diffusion model's sampling: any solver that is linear in what the model said, as a row of coefficients.
 */
#ifndef VARIATE_DENOISE_H
#define VARIATE_DENOISE_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VARIATE_DENOISE_HISTORY 3

/* The columns of a table of coefficients. With x the sample, m the (guided) model output, n the noise, s the state and
   h_i the history, newest first, a row computes
     x0       = X0_SAMPLE x + X0_OUTPUT m + X0_NOISE n, then clipped
     prev     = PREV_SAMPLE x + PREV_OUTPUT m + PREV_X0 x0 + PREV_STATE s + sum_i PREV_HISTORY_i h_i + PREV_NOISE n
     saved    = SAVED_SAMPLE x + SAVED_OUTPUT m + SAVED_X0 x0
     state    = STATE_SAMPLE x + STATE_OUTPUT m + STATE_X0 x0 + STATE_STATE s + sum_i STATE_HISTORY_i h_i
     denoised = DENOISED_SAMPLE x + DENOISED_X0 x0
     next     = NEXT_SCALE prev
   each as a chain of fma in this order, the first product rounded. A term whose coefficient is 0 is left out, and its
   tensor is not read. */
typedef enum variate_denoise_column VARIATE_INT {
  VARIATE_DENOISE_X0_SAMPLE = 0,
  VARIATE_DENOISE_X0_OUTPUT,
  VARIATE_DENOISE_X0_NOISE,
  VARIATE_DENOISE_PREV_SAMPLE,
  VARIATE_DENOISE_PREV_OUTPUT,
  VARIATE_DENOISE_PREV_X0,
  VARIATE_DENOISE_PREV_STATE,
  VARIATE_DENOISE_PREV_HISTORY_0,
  VARIATE_DENOISE_PREV_HISTORY_1,
  VARIATE_DENOISE_PREV_HISTORY_2,
  VARIATE_DENOISE_PREV_NOISE,
  VARIATE_DENOISE_SAVED_SAMPLE,
  VARIATE_DENOISE_SAVED_OUTPUT,
  VARIATE_DENOISE_SAVED_X0,
  VARIATE_DENOISE_STATE_SAMPLE,
  VARIATE_DENOISE_STATE_OUTPUT,
  VARIATE_DENOISE_STATE_X0,
  VARIATE_DENOISE_STATE_STATE,
  VARIATE_DENOISE_STATE_HISTORY_0,
  VARIATE_DENOISE_STATE_HISTORY_1,
  VARIATE_DENOISE_STATE_HISTORY_2,
  VARIATE_DENOISE_DENOISED_SAMPLE,
  VARIATE_DENOISE_DENOISED_X0,
  VARIATE_DENOISE_NEXT_SCALE,
  VARIATE_DENOISE_MIN_LOG_VARIANCE,
  VARIATE_DENOISE_MAX_LOG_VARIANCE,
  VARIATE_DENOISE_COLUMNS
} variate_denoise_column;

/* What a model that says something of the noise's variance, v, multiplies the noise by. */
typedef enum variate_denoise_variance VARIATE_INT {
  VARIATE_VARIANCE_FIXED = 0,
  VARIATE_VARIANCE_LEARNED = 1, /* sqrt(v) */
  VARIATE_VARIANCE_RANGE = 2    /* exp((MIN_LOG_VARIANCE + (v + 1) / 2 (MAX_ - MIN_LOG_VARIANCE)) / 2) */
} variate_denoise_variance;

/* One step. sample, output and the other tensors are floating [rows, cols], in any of their dtypes; math is float32, or
   float64 where the sample is. No output overlaps an input.

   Guidance: with `unconditional` u the model output is m = u + guidance (output - u); with rescale > 0, m is then
   multiplied by rescale std(output) / std(m) + 1 - rescale, std the sample standard deviation of a row.

   Which row of the table: `row` for all; or where `table_rows` is given an int64 for each of table_row_tokens equal
   parts of a sample's columns (row_stride between samples, col_stride between parts). A CPU refuses a row outside the
   table; on a GPU, where nobody sees it in time, its results are NaN.

   Clipping of x0: clip > 0 clamps it to [-clip, clip]. With quantile > 0, to [-q, q] and divided by q, q the quantile
   of |x0| over the row, between order statistics by linear interpolation, and clamped to [1, clip], or to at least 1.

   The noise of element e of sample b is its standard normal at step `step`, modulo 2^32. With `counter`, int64 [2], or
   [rows, 2] at counter_stride 2, the step is counter[0], which the call then adds 1 to; counter[1] is its own and must
   be 0 before the first call. Where `drawn` is given it is the noise, and noise.key may be NULL, as it may where no row
   has any.

   prev is required; denoised, saved, state_out and next are written where they are given. With copies = 2 next is
   [2 rows, cols], row b written at b and rows + b: the next input of a model that is guided. */
typedef struct variate_denoise_step_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  variate_tensor sample;
  variate_tensor output;
  variate_tensor unconditional;
  variate_tensor guidance; /* one float32 or float64 on the device of the call */
  double guidance_value;   /* the same as a plain number, where the tensor is left out */
  double rescale;          /* 0 <= rescale <= 1 */
  const double* coefficients;
  int64_t table_size; /* rows of the table */
  int64_t row;
  variate_tensor table_rows;
  int64_t table_row_tokens;
  double clip;
  double quantile; /* 0 <= quantile <= 1 */
  variate_denoise_variance variance_kind;
  variate_tensor variance;
  variate_tensor drawn;
  int64_t step;
  int64_t* counter;
  int64_t counter_stride;
  variate_tensor history[VARIATE_DENOISE_HISTORY];
  variate_tensor state;
  variate_tensor prev;
  variate_tensor denoised;
  variate_tensor saved;
  variate_tensor state_out;
  variate_tensor next;
  int32_t copies; /* of next: 1 or 2 */
} variate_denoise_step_args;

VARIATE_API variate_status variate_denoise_step(const variate_denoise_step_args* args);
VARIATE_API uint64_t variate_denoise_step_workspace(const variate_denoise_step_args* args);

#ifdef __cplusplus
}
#endif

#endif
