// The table of one instruction set.
#include "kernels.h"

namespace variate::cpu::VARIATE_ISA {

extern const Kernels table;
const Kernels table = {bits,
                       uniform,
                       normal,
                       exponential,
                       gumbel,
                       bernoulli,
                       randint,
                       categorical,
                       fold_in,
                       normal_rsample_kl,
                       normal_rsample_kl_backward,
                       satisfies,
                       normal_kl,
                       normal_kl_backward,
                       bernoulli_kl,
                       bernoulli_kl_backward,
                       normal_nll,
                       normal_nll_backward,
                       location_scale_rsample,
                       location_scale_rsample_backward,
                       gumbel_softmax,
                       gumbel_softmax_backward,
                       relaxed_bernoulli_rsample,
                       relaxed_bernoulli_rsample_backward,
                       bernoulli_straight_through,
                       bernoulli_nll,
                       bernoulli_nll_backward,
                       categorical_nll,
                       categorical_nll_backward,
                       categorical_kl,
                       categorical_kl_backward,
                       discretized_logistic_nll,
                       discretized_logistic_nll_backward,
                       discretized_logistic_mixture_nll,
                       discretized_logistic_mixture_nll_backward,
                       discretized_logistic_mixture_sample,
                       importance_weighted_bound,
                       linear_bernoulli_nll,
                       linear_categorical_nll};

}  // namespace variate::cpu::VARIATE_ISA
