"""Models that call :mod:`variate.functional` in place of stock operations."""

from __future__ import annotations

from . import likelihoods
from .denoisers import MLPDenoiser, UNetDenoiser
from .diffusion import Diffusion
from .hierarchical import HierarchicalVAE, TopDownLayer
from .lattice import Ising, Potts
from .rbm import DBM, RBM
from .vae import VAE

__all__ = [
    "DBM",
    "RBM",
    "VAE",
    "Diffusion",
    "HierarchicalVAE",
    "Ising",
    "MLPDenoiser",
    "Potts",
    "TopDownLayer",
    "UNetDenoiser",
    "likelihoods",
]
