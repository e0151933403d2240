/* Boltzmann machines with one visible and one hidden layer. Math: variate/math/rbm.hpp. */
#ifndef VARIATE_RBM_H
#define VARIATE_RBM_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum variate_visible_kind VARIATE_INT {
  VARIATE_VISIBLE_BERNOULLI = 0,  /* uint8, 0 or 1 */
  VARIATE_VISIBLE_GAUSSIAN = 1,   /* float32, of unit variance at beta = 1 */
  VARIATE_VISIBLE_CATEGORICAL = 2 /* uint8 [rows, visible_units / categories]: which of `categories` units is 1 */
} variate_visible_kind;

/* `steps` Gibbs steps of `rows` chains of the machine with the energy -v.a - h.b - v.W h (Gaussian visibles:
   |v - a|^2 / 2 - h.b - v.W h). Step s = first_step + 0, 1, ... draws
     hidden[r, j]  = 1 with probability sigmoid(beta (b[j] + sum over i of visible[r, i] W[i, j])), then
     visible[r, i] = 1 with probability sigmoid(beta (a[i] + sum over j of W[i, j] hidden[r, j]))
       Gaussian: that sum + eps / sqrt(beta); categorical: the largest of beta (that sum) + Gumbel in each group;
   unit e of sample r by the words of noise.key at step s, for visibles those of fold_in(noise.key, 1). No steps: one
   draw of the hidden units, by step first_step.
   The sums over binary inputs are exact integers: weights and bias are rounded to multiples of 2^-e, e per unit, the
   largest with a sum of their magnitudes below 2^31 multiples. So chains are the same bits whatever computes them. An
   infinite bias makes its unit certain. Weights must be finite: a NaN or an infinity counts as 0.
   weight: float32 [visible_units, hidden_units], any strides; biases: float32 [units, 1]; beta: float32 [rows, 1] or,
   with stride 0, one number; clamp: uint8 [rows, visible columns] (row stride 0: one for all), where 1 the visible
   keeps its value. Both states and both probabilities have dense rows. visible is read and written, hidden written.
   visible_probs, hidden_probs: float32 [rows, units], what the last draws of each were made with (Gaussian: the mean);
   may be left out; visible_probs takes a step. */
typedef struct variate_rbm_gibbs_args {
  uint32_t struct_size; /* sizeof(variate_rbm_gibbs_args) */
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t visible_units;
  int64_t hidden_units;
  variate_visible_kind visible_kind;
  int64_t categories; /* of categorical visibles: 1 to 256, a divisor of visible_units; else 0 */
  int64_t steps;
  int64_t first_step; /* 0 <= first_step, first_step + steps <= 2^32 */
  variate_tensor visible;
  variate_tensor hidden;
  variate_tensor weight;
  variate_tensor visible_bias;
  variate_tensor hidden_bias;
  variate_tensor beta;
  variate_tensor clamp;
  variate_tensor visible_probs;
  variate_tensor hidden_probs;
} variate_rbm_gibbs_args;

VARIATE_API uint64_t variate_rbm_gibbs_workspace(const variate_rbm_gibbs_args* args);
VARIATE_API variate_status variate_rbm_gibbs(const variate_rbm_gibbs_args* args);

#ifdef __cplusplus
}
#endif

#endif
