"""The functions of :mod:`variate.functional` in plain PyTorch, with the same signatures: the ground truth of the tests
and the baseline of the benchmarks.

Without a key they draw from torch's own generator, as a PyTorch user would. With a key they draw the library's noise,
by a Philox of their own, in float64 where that matters.
"""

from . import bound, denoise, diffusion, elbo, ema, lattice, linear, logistic, random, rbm, relaxed, reparam

__all__ = [
    "bound",
    "denoise",
    "diffusion",
    "elbo",
    "ema",
    "lattice",
    "linear",
    "logistic",
    "random",
    "rbm",
    "relaxed",
    "reparam",
]
