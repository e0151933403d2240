"""torch.distributions on fused kernels: the same names and arguments, with keys and generators for the draws.

Each class is a subclass of torch's, where torch has it: ``isinstance``, ``expand``, ``kl_divergence``, ``Independent``
and ``TransformedDistribution`` go on as before. Code that cannot change its imports has
:func:`variate.patch.torch_distributions`.
"""

from __future__ import annotations

from torch.distributions import kl_divergence, register_kl

from ._discrete import Bernoulli, Categorical, OneHotCategorical, OneHotCategoricalStraightThrough
from ._image import DiscretizedLogisticMixture
from ._independent import Independent
from ._location_scale import Gumbel, Laplace, Logistic, LogNormal, Normal
from ._relaxed import RelaxedBernoulli, RelaxedOneHotCategorical

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiscretizedLogisticMixture",
    "Gumbel",
    "Independent",
    "Laplace",
    "LogNormal",
    "Logistic",
    "Normal",
    "OneHotCategorical",
    "OneHotCategoricalStraightThrough",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "kl_divergence",
    "register_kl",
]
