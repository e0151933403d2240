"""The public functions, one module per family."""

from __future__ import annotations

from . import elbo, random, reparam
from ._backend import backends, register_triton, use_backend
from ._checks import set_debug
from .elbo import bernoulli_nll
from .reparam import normal_rsample, normal_rsample_kl

register_triton()

__all__ = [
    "backends",
    "bernoulli_nll",
    "elbo",
    "normal_rsample",
    "normal_rsample_kl",
    "random",
    "reparam",
    "set_debug",
    "use_backend",
]
