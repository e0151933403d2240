// The CPU kernels: every file of this folder but dispatch.cpp is compiled once per instruction set, each time with
// VARIATE_ISA set to the name of that set, which is also the namespace of all it defines.
#pragma once

#include <variate/variate.h>

namespace variate::cpu {

// The API layer has checked every field before a kernel sees it.
struct Kernels {
  void (*bits)(const variate_random_args&);
  void (*uniform)(const variate_random_args&);
  void (*normal)(const variate_random_args&);
  void (*exponential)(const variate_random_args&);
  void (*gumbel)(const variate_random_args&);
  void (*bernoulli)(const variate_bernoulli_args&);
  void (*randint)(const variate_randint_args&);
  void (*categorical)(const variate_categorical_args&);
  void (*fold_in)(const variate_fold_in_args&);
  void (*normal_rsample_kl)(const variate_normal_rsample_kl_args&);
  void (*normal_rsample_kl_backward)(const variate_normal_rsample_kl_backward_args&);
  void (*satisfies)(const variate_satisfies_args&);
  void (*normal_kl)(const variate_normal_kl_args&);
  void (*normal_kl_backward)(const variate_normal_kl_backward_args&);
  void (*bernoulli_kl)(const variate_bernoulli_kl_args&);
  void (*bernoulli_kl_backward)(const variate_bernoulli_kl_backward_args&);
  void (*normal_nll)(const variate_normal_nll_args&);
  void (*normal_nll_backward)(const variate_normal_nll_backward_args&);
  void (*location_scale_rsample)(const variate_location_scale_rsample_args&);
  void (*location_scale_rsample_backward)(const variate_location_scale_rsample_backward_args&);
  void (*gumbel_softmax)(const variate_gumbel_softmax_args&);
  void (*gumbel_softmax_backward)(const variate_gumbel_softmax_backward_args&);
  void (*relaxed_bernoulli_rsample)(const variate_relaxed_bernoulli_rsample_args&);
  void (*relaxed_bernoulli_rsample_backward)(const variate_relaxed_bernoulli_rsample_backward_args&);
  void (*bernoulli_straight_through)(const variate_bernoulli_straight_through_args&);
  void (*bernoulli_nll)(const variate_bernoulli_nll_args&);
  void (*bernoulli_nll_backward)(const variate_bernoulli_nll_backward_args&);
  void (*categorical_nll)(const variate_categorical_nll_args&);
  void (*categorical_nll_backward)(const variate_categorical_nll_backward_args&);
  void (*categorical_kl)(const variate_categorical_kl_args&);
  void (*categorical_kl_backward)(const variate_categorical_kl_backward_args&);
  void (*discretized_logistic_nll)(const variate_discretized_logistic_nll_args&);
  void (*discretized_logistic_nll_backward)(const variate_discretized_logistic_nll_backward_args&);
  void (*discretized_logistic_mixture_nll)(const variate_discretized_logistic_mixture_nll_args&);
  void (*discretized_logistic_mixture_nll_backward)(const variate_discretized_logistic_mixture_nll_backward_args&);
  void (*discretized_logistic_mixture_sample)(const variate_discretized_logistic_mixture_sample_args&);
  void (*importance_weighted_bound)(const variate_importance_weighted_bound_args&);
  void (*linear_bernoulli_nll)(const variate_linear_nll_args&);
  void (*linear_categorical_nll)(const variate_linear_nll_args&);
  void (*ising_pack)(const variate_ising_pack_args&);
  void (*ising_unpack)(const variate_ising_pack_args&);
  void (*ising_gibbs)(const variate_ising_gibbs_args&);
  void (*ising_measure)(const variate_ising_measure_args&);
  void (*potts_gibbs)(const variate_potts_gibbs_args&);
  void (*rbm_gibbs)(const variate_rbm_gibbs_args&);
  void (*rbm_anneal)(const variate_rbm_anneal_args&);
  void (*rbm_temper)(const variate_rbm_temper_args&);
  void (*denoise_step)(const variate_denoise_step_args&);
  void (*noise_and_target)(const variate_noise_and_target_args&);
  void (*denoising_loss)(const variate_denoising_loss_args&);
  void (*denoising_loss_backward)(const variate_denoising_loss_backward_args&);
  void (*ema_update)(const variate_ema_update_args&);
};

// The kernels of the instruction set in use.
const Kernels& kernels();

// Bytes of workspace that the reductions over rows of `cols` elements need.
uint64_t row_sum_workspace(int64_t rows, int64_t cols);

// Bytes of workspace of the mixture of discretised logistics.
uint64_t mixture_workspace(const variate_discretized_logistic_mixture_nll_args&);
uint64_t mixture_backward_workspace(const variate_discretized_logistic_mixture_nll_backward_args&);

// Rows of a block of pixels that a thread of either keeps.
int64_t mixture_rows(const variate_discretized_logistic_mixture_nll_args&);
int64_t mixture_backward_rows(const variate_discretized_logistic_mixture_nll_backward_args&);

// Bytes of workspace of the sweeps over lattices and of measuring them.
uint64_t ising_workspace(const variate_ising_gibbs_args&);
uint64_t ising_workspace(const variate_ising_measure_args&);

// Bytes of workspace of the Boltzmann machine.
uint64_t rbm_workspace(const variate_rbm_gibbs_args&);
uint64_t rbm_workspace(const variate_rbm_anneal_args&);
uint64_t rbm_workspace(const variate_rbm_temper_args&);

// Bytes of workspace of a denoising step.
uint64_t denoise_workspace(const variate_denoise_step_args&);

// Bytes of workspace of the sums over columns, of blocks of this many rows.
inline constexpr int64_t column_sum_rows = 16;
uint64_t column_sum_workspace(int64_t rows, int64_t cols);

#ifdef VARIATE_ISA
namespace VARIATE_ISA {

void bits(const variate_random_args&);
void uniform(const variate_random_args&);
void normal(const variate_random_args&);
void exponential(const variate_random_args&);
void gumbel(const variate_random_args&);
void bernoulli(const variate_bernoulli_args&);
void randint(const variate_randint_args&);
void categorical(const variate_categorical_args&);
void fold_in(const variate_fold_in_args&);
void normal_rsample_kl(const variate_normal_rsample_kl_args&);
void normal_rsample_kl_backward(const variate_normal_rsample_kl_backward_args&);
void satisfies(const variate_satisfies_args&);
void normal_kl(const variate_normal_kl_args&);
void normal_kl_backward(const variate_normal_kl_backward_args&);
void bernoulli_kl(const variate_bernoulli_kl_args&);
void bernoulli_kl_backward(const variate_bernoulli_kl_backward_args&);
void normal_nll(const variate_normal_nll_args&);
void normal_nll_backward(const variate_normal_nll_backward_args&);
void location_scale_rsample(const variate_location_scale_rsample_args&);
void location_scale_rsample_backward(const variate_location_scale_rsample_backward_args&);
void gumbel_softmax(const variate_gumbel_softmax_args&);
void gumbel_softmax_backward(const variate_gumbel_softmax_backward_args&);
void relaxed_bernoulli_rsample(const variate_relaxed_bernoulli_rsample_args&);
void relaxed_bernoulli_rsample_backward(const variate_relaxed_bernoulli_rsample_backward_args&);
void bernoulli_straight_through(const variate_bernoulli_straight_through_args&);
void bernoulli_nll(const variate_bernoulli_nll_args&);
void bernoulli_nll_backward(const variate_bernoulli_nll_backward_args&);
void categorical_nll(const variate_categorical_nll_args&);
void categorical_nll_backward(const variate_categorical_nll_backward_args&);
void categorical_kl(const variate_categorical_kl_args&);
void categorical_kl_backward(const variate_categorical_kl_backward_args&);
void discretized_logistic_nll(const variate_discretized_logistic_nll_args&);
void discretized_logistic_nll_backward(const variate_discretized_logistic_nll_backward_args&);
void discretized_logistic_mixture_nll(const variate_discretized_logistic_mixture_nll_args&);
void discretized_logistic_mixture_nll_backward(const variate_discretized_logistic_mixture_nll_backward_args&);
void discretized_logistic_mixture_sample(const variate_discretized_logistic_mixture_sample_args&);
void importance_weighted_bound(const variate_importance_weighted_bound_args&);
void linear_bernoulli_nll(const variate_linear_nll_args&);
void linear_categorical_nll(const variate_linear_nll_args&);
void ising_pack(const variate_ising_pack_args&);
void ising_unpack(const variate_ising_pack_args&);
void ising_gibbs(const variate_ising_gibbs_args&);
void ising_measure(const variate_ising_measure_args&);
void potts_gibbs(const variate_potts_gibbs_args&);
void rbm_gibbs(const variate_rbm_gibbs_args&);
void rbm_anneal(const variate_rbm_anneal_args&);
void rbm_temper(const variate_rbm_temper_args&);
void denoise_step(const variate_denoise_step_args&);
void noise_and_target(const variate_noise_and_target_args&);
void denoising_loss(const variate_denoising_loss_args&);
void denoising_loss_backward(const variate_denoising_loss_backward_args&);
void ema_update(const variate_ema_update_args&);

}  // namespace VARIATE_ISA
#endif

}  // namespace variate::cpu
