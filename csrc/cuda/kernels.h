// The CUDA kernels' host side: each function enqueues its op on the stream of the call and returns at once.
#pragma once

#include <variate/variate.h>

namespace variate::cuda {

// The API layer has checked every field before a kernel sees it.
variate_status bits(const variate_random_args&);
variate_status uniform(const variate_random_args&);
variate_status normal(const variate_random_args&);
variate_status exponential(const variate_random_args&);
variate_status gumbel(const variate_random_args&);
variate_status bernoulli(const variate_bernoulli_args&);
variate_status randint(const variate_randint_args&);
variate_status categorical(const variate_categorical_args&);
variate_status fold_in(const variate_fold_in_args&);

variate_status normal_rsample_kl(const variate_normal_rsample_kl_args&);
uint64_t normal_rsample_kl_workspace(const variate_normal_rsample_kl_args&);
variate_status normal_rsample_kl_backward(const variate_normal_rsample_kl_backward_args&);

variate_status normal_kl(const variate_normal_kl_args&);
uint64_t normal_kl_workspace(const variate_normal_kl_args&);
variate_status normal_kl_backward(const variate_normal_kl_backward_args&);

variate_status bernoulli_nll(const variate_bernoulli_nll_args&);
uint64_t bernoulli_nll_workspace(const variate_bernoulli_nll_args&);
variate_status bernoulli_nll_backward(const variate_bernoulli_nll_backward_args&);

variate_status discretized_logistic_mixture_nll(const variate_discretized_logistic_mixture_nll_args&);
uint64_t discretized_logistic_mixture_nll_workspace(const variate_discretized_logistic_mixture_nll_args&);
variate_status discretized_logistic_mixture_nll_backward(const variate_discretized_logistic_mixture_nll_backward_args&);

variate_status ising_pack(const variate_ising_pack_args&);
variate_status ising_unpack(const variate_ising_pack_args&);
variate_status ising_gibbs(const variate_ising_gibbs_args&);
uint64_t ising_gibbs_workspace(const variate_ising_gibbs_args&);
variate_status ising_measure(const variate_ising_measure_args&);

variate_status denoise_step(const variate_denoise_step_args&);
uint64_t denoise_step_workspace(const variate_denoise_step_args&);

}  // namespace variate::cuda
