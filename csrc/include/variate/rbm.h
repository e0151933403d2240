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
   may be left out; visible_probs takes a step. With packed, both states are uint8 [rows, (units + 7) / 8], unit u the
   bit u % 8 of byte u / 8, from the lowest on; bits beyond the units are not read, and written as 0. */
typedef struct variate_rbm_gibbs_args {
  uint32_t struct_size; /* sizeof(variate_rbm_gibbs_args) */
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t visible_units;
  int64_t hidden_units;
  variate_visible_kind visible_kind;
  int64_t categories; /* of categorical visibles: 1 to 256, a divisor of visible_units; else 0 */
  int32_t packed;     /* 1: Bernoulli states are bits, eight to a byte; else 0 */
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

/* Annealed importance sampling. With E_b = -(b a + (1 - b) base).v - b (h.b + v.W h) (Gaussian visibles:
   |v - a|^2 / 2 - b (h.b + v.W h)) and p_b(v) the sum over h of exp(-E_b), in turn for k = 0, 1, ..., steps - 1
     log_weights[r] += log p_{betas[k + 1]}(v_r) - log p_{betas[k]}(v_r), from 0 on, and then
     a Gibbs step of E_{betas[k + 1]} by the words of step first_step + k.
   From betas[0] = 0 to 1, with `visible` drawn from independent units of biases base, exp(log weight) is an unbiased
   estimate of Z / Z_0, log Z_0 being hidden_units log 2 + the sum of log(1 + exp(base)) (Gaussian: + visible_units / 2
   log 2 pi; categorical: + log sum exp(base) of each group).
   The fields of the Gibbs step are those of variate_rbm_gibbs; log weights are float64 sums of what float32 fields
   give. base_bias: float32 [visible_units, 1]; not read for Gaussian visibles. betas: at least 0. */
typedef struct variate_rbm_anneal_args {
  uint32_t struct_size; /* sizeof(variate_rbm_anneal_args) */
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t visible_units;
  int64_t hidden_units;
  variate_visible_kind visible_kind;
  int64_t categories;
  int64_t steps;
  int64_t first_step;
  variate_tensor visible;
  variate_tensor weight;
  variate_tensor visible_bias;
  variate_tensor hidden_bias;
  variate_tensor base_bias;
  const double* betas; /* [steps + 1] */
  double* log_weights; /* [rows] */
} variate_rbm_anneal_args;

VARIATE_API uint64_t variate_rbm_anneal_workspace(const variate_rbm_anneal_args* args);
VARIATE_API variate_status variate_rbm_anneal(const variate_rbm_anneal_args* args);

/* Parallel tempering: `rounds` times `steps` Gibbs steps of every chain at every temperature, and then swaps of the
   states at betas[t] and betas[t + 1], for even t in rounds of even number and odd t else, with probability
     min(1, exp((betas[t + 1] - betas[t]) (E(v_{t + 1}, h_{t + 1}) - E(v_t, h_t))))   to 2^-32.
   Row r = chain temperatures + t of both states is the chain at betas[t], and sample first_sample temperatures + r of
   the Gibbs steps, whose step in round n = first_round, ... is n steps + 0, 1, .... A swap takes element t of sample
   first_sample + chain at step n of fold_in(noise.key, 2^16). noise has one key. */
typedef struct variate_rbm_temper_args {
  uint32_t struct_size; /* sizeof(variate_rbm_temper_args) */
  variate_execution execution;
  variate_noise noise;
  int64_t chains;
  int64_t temperatures; /* at least 1 */
  int64_t visible_units;
  int64_t hidden_units;
  variate_visible_kind visible_kind;
  int64_t categories;
  int64_t rounds;
  int64_t steps; /* at least 1 */
  int64_t first_round;
  variate_tensor visible;
  variate_tensor hidden;
  variate_tensor weight;
  variate_tensor visible_bias;
  variate_tensor hidden_bias;
  const double* betas; /* [temperatures] */
  int64_t* accepted;   /* [temperatures - 1]: swaps, which are added to it */
} variate_rbm_temper_args;

VARIATE_API uint64_t variate_rbm_temper_workspace(const variate_rbm_temper_args* args);
VARIATE_API variate_status variate_rbm_temper(const variate_rbm_temper_args* args);

#ifdef __cplusplus
}
#endif

#endif
