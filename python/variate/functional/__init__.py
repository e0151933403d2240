"""The public functions, one module per family."""

from __future__ import annotations

from . import boltzmann, bound, denoise, diffusion, elbo, ema, lattice, linear, logistic, random, rbm, relaxed, reparam
from ._backend import backends, register_triton, use_backend
from ._checks import set_debug
from .annealing import LogPartition, ais_log_partition
from .boltzmann import (
    RBMGradient,
    dbm_gibbs,
    dbm_join,
    dbm_mean_field,
    rbm_cd_gradient,
    rbm_energy,
    rbm_free_energy,
    rbm_log_partition,
)
from .bound import ImportanceBound, importance_weighted_bound
from .denoise import Denoised, denoise_step
from .diffusion import denoising_loss, noise_and_target
from .elbo import bernoulli_kl, bernoulli_nll, categorical_kl, categorical_nll, normal_kl, normal_nll
from .ema import ema_update_
from .lattice import (
    IsingMeasurement,
    IsingObservables,
    ising_gibbs,
    ising_measure,
    ising_observables,
    ising_pack,
    ising_unpack,
    potts_gibbs,
)
from .linear import linear_bernoulli_nll, linear_categorical_nll
from .logistic import (
    discretized_logistic_mixture_nll,
    discretized_logistic_mixture_sample,
    discretized_logistic_nll,
)
from .rbm import rbm_gibbs
from .relaxed import (
    bernoulli_straight_through,
    categorical_straight_through,
    gumbel_softmax,
    relaxed_bernoulli_rsample,
)
from .reparam import gumbel_rsample, laplace_rsample, logistic_rsample, normal_rsample, normal_rsample_kl
from .tempering import Tempering, parallel_tempering

register_triton()

__all__ = [
    "Denoised",
    "ImportanceBound",
    "IsingMeasurement",
    "IsingObservables",
    "LogPartition",
    "RBMGradient",
    "Tempering",
    "ais_log_partition",
    "backends",
    "bernoulli_kl",
    "bernoulli_nll",
    "bernoulli_straight_through",
    "boltzmann",
    "bound",
    "categorical_kl",
    "categorical_nll",
    "categorical_straight_through",
    "dbm_gibbs",
    "dbm_join",
    "dbm_mean_field",
    "denoise",
    "denoise_step",
    "denoising_loss",
    "diffusion",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_mixture_sample",
    "discretized_logistic_nll",
    "elbo",
    "ema",
    "ema_update_",
    "gumbel_rsample",
    "gumbel_softmax",
    "importance_weighted_bound",
    "ising_gibbs",
    "ising_measure",
    "ising_observables",
    "ising_pack",
    "ising_unpack",
    "laplace_rsample",
    "lattice",
    "linear",
    "linear_bernoulli_nll",
    "linear_categorical_nll",
    "logistic",
    "logistic_rsample",
    "noise_and_target",
    "normal_kl",
    "normal_nll",
    "normal_rsample",
    "normal_rsample_kl",
    "parallel_tempering",
    "potts_gibbs",
    "random",
    "rbm",
    "rbm_cd_gradient",
    "rbm_energy",
    "rbm_free_energy",
    "rbm_gibbs",
    "rbm_log_partition",
    "relaxed",
    "relaxed_bernoulli_rsample",
    "reparam",
    "set_debug",
    "use_backend",
]
