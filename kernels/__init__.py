"""The Triton kernels: one function per op, with the schema of `variate::<op>`. They import triton."""

from .bound import importance_weighted_bound
from .categorical import categorical_kl, categorical_kl_backward, categorical_nll, categorical_nll_backward
from .denoise import denoise_step, denoise_step_full
from .diffusion import denoising_loss, denoising_loss_backward, noise_and_target
from .elbo import (
    bernoulli_kl,
    bernoulli_kl_backward,
    bernoulli_nll,
    bernoulli_nll_backward,
    normal_kl,
    normal_kl_backward,
    normal_nll,
    normal_nll_backward,
)
from .ema import ema_update_
from .lattice import ising_gibbs, ising_measure, ising_pack, ising_unpack
from .linear import (
    linear_bernoulli_nll,
    linear_bernoulli_nll_backward,
    linear_categorical_nll,
    linear_categorical_nll_backward,
)
from .logistic import (
    discretized_logistic_mixture_nll,
    discretized_logistic_mixture_nll_backward,
    discretized_logistic_mixture_sample,
    discretized_logistic_nll,
    discretized_logistic_nll_backward,
)
from .potts import potts_gibbs
from .random import bernoulli, bits, categorical, exponential, fold_in, gumbel, normal, randint, uniform
from .rbm import rbm_gibbs
from .relaxed import (
    bernoulli_straight_through,
    gumbel_softmax,
    gumbel_softmax_backward,
    relaxed_bernoulli_rsample,
    relaxed_bernoulli_rsample_backward,
)
from .reparam import (
    location_scale_rsample,
    location_scale_rsample_backward,
    normal_rsample,
    normal_rsample_kl,
    normal_rsample_kl_backward,
)

__all__ = [
    "bernoulli",
    "bernoulli_kl",
    "bernoulli_kl_backward",
    "bernoulli_nll",
    "bernoulli_nll_backward",
    "bernoulli_straight_through",
    "bits",
    "categorical",
    "categorical_kl",
    "categorical_kl_backward",
    "categorical_nll",
    "categorical_nll_backward",
    "denoise_step",
    "denoise_step_full",
    "denoising_loss",
    "denoising_loss_backward",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_mixture_nll_backward",
    "discretized_logistic_mixture_sample",
    "discretized_logistic_nll",
    "discretized_logistic_nll_backward",
    "ema_update_",
    "exponential",
    "fold_in",
    "gumbel",
    "gumbel_softmax",
    "gumbel_softmax_backward",
    "importance_weighted_bound",
    "ising_gibbs",
    "ising_measure",
    "ising_pack",
    "ising_unpack",
    "linear_bernoulli_nll",
    "linear_bernoulli_nll_backward",
    "linear_categorical_nll",
    "linear_categorical_nll_backward",
    "location_scale_rsample",
    "location_scale_rsample_backward",
    "noise_and_target",
    "normal",
    "normal_kl",
    "normal_kl_backward",
    "normal_nll",
    "normal_nll_backward",
    "normal_rsample",
    "normal_rsample_kl",
    "normal_rsample_kl_backward",
    "potts_gibbs",
    "randint",
    "rbm_gibbs",
    "relaxed_bernoulli_rsample",
    "relaxed_bernoulli_rsample_backward",
    "uniform",
]
