"""variate.patch.torch_distributions."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch.distributions as D
from torch.distributions import kl
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from ..distributions import _methods, _validation
from ._patch import Patch, Patched

__all__ = ["torch_distributions"]

_FUSED: dict[tuple[type, str], Callable[..., Any]] = {
    (D.Normal, "rsample"): _methods.normal_rsample,
    (D.Normal, "sample"): _methods.normal_sample,
    (D.Normal, "log_prob"): _methods.normal_log_prob,
    (D.LogNormal, "log_prob"): _methods.log_normal_log_prob,
    (D.Laplace, "rsample"): _methods.laplace_rsample,
    (D.Gumbel, "rsample"): _methods.gumbel_rsample,
    (D.Gumbel, "sample"): _methods.gumbel_sample,
    (D.Bernoulli, "sample"): _methods.bernoulli_sample,
    (D.Bernoulli, "log_prob"): _methods.bernoulli_log_prob,
    (D.Bernoulli, "entropy"): _methods.bernoulli_entropy,
    (D.Categorical, "sample"): _methods.categorical_sample,
    (D.OneHotCategorical, "sample"): _methods.one_hot_sample,
    (LogitRelaxedBernoulli, "rsample"): _methods.concrete_bernoulli_rsample,
    (ExpRelaxedCategorical, "rsample"): _methods.concrete_categorical_rsample,
    (D.RelaxedOneHotCategorical, "rsample"): _methods.relaxed_one_hot_rsample,
    (D.RelaxedOneHotCategorical, "sample"): _methods.relaxed_one_hot_sample,
    (D.Independent, "log_prob"): _methods.independent_log_prob,
}

_FUSED_KL: dict[tuple[type, type], Callable[..., Any]] = {
    (D.Normal, D.Normal): _methods.normal_kl,
    (D.Bernoulli, D.Bernoulli): _methods.bernoulli_kl,
    (D.Independent, D.Independent): _methods.independent_kl,
}

_BROADCASTING = [
    module for module in vars(D).values() if isinstance(module, ModuleType) and hasattr(module, "broadcast_all")
]


def _forget() -> None:
    """Clears what kl_divergence remembers. The pairs of the registry itself go back in: looking one up is what
    torch.compile cannot do."""
    kl._KL_MEMOIZE.clear()
    kl._KL_MEMOIZE.update({pair: kl._KL_REGISTRY[pair] for pair in _FUSED_KL})


_patch = Patch(
    {
        **{(cls, name): _methods.or_torch(fused, getattr(cls, name)) for (cls, name), fused in _FUSED.items()},
        **{(module, "broadcast_all"): _validation.broadcast_all for module in _BROADCASTING},
        (D.Distribution, "__init__"): _validation.init,
        (D.Distribution, "_validate_sample"): _validation.validate_sample,
    },
    {pair: _methods.or_torch(fused, kl._KL_REGISTRY[pair]) for pair, fused in _FUSED_KL.items()},
    kl._KL_REGISTRY,
    _forget,
)


def torch_distributions() -> Patched:
    """Puts torch.distributions on fused kernels: one op forward and one backward, in place of many.

    Methods of torch's own classes, entries of ``kl_divergence``'s registry and the modules' ``broadcast_all`` are
    replaced, so code that is already imported, instances, and subclasses that inherit the methods are served too. As a
    plain call it stays until ``.undo()``; as a context manager, for the block. Twice is once.

    ========================================  =====================================================================
    Normal                                    rsample, sample, log_prob
    LogNormal                                 log_prob; its draws are Normal's
    Laplace, Gumbel                           rsample, sample
    Bernoulli                                 sample, log_prob, entropy
    Categorical, OneHotCategorical and        sample, of one draw for each distribution
    OneHotCategoricalStraightThrough
    RelaxedBernoulli,                         rsample, sample
    RelaxedOneHotCategorical
    Independent                               log_prob over Normal and Bernoulli
    kl_divergence                             of two Normal, Bernoulli, Independent (and what is made of them)
    every distribution                        the checks of its arguments, in fewer passes and with the same errors
    ========================================  =====================================================================

    The rest stays, as nothing was gained: entropies and log-probabilities of a few operations, and many draws of one
    ``Categorical``.

    torch's own method answers wherever the kernels do not: float64, integers, other devices than CPU and CUDA, tensor
    subclasses, probabilities in ``kl_divergence``, torch.func, forward-mode AD, torch.jit,
    ``variate.use_backend("reference")``. Gradients can be differentiated again, by torch's formula.

    ``torch.manual_seed`` reproduces draws; they are others than torch's. With ``validate_args=False`` draws do not look
    at their parameters: where torch raises on a negative scale or a probability that is NaN, the draw is NaN.

    Returns:
        The patch, whose ``undo()`` restores the very functions that were there before.
    """
    return Patched(_patch)
