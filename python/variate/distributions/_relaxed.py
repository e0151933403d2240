"""Continuous relaxations of discrete distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributions as D
from torch import Tensor

from ..functional import reparam
from . import _methods
from ._base import NO_SHAPE, Checked
from ._location_scale import draws

__all__ = ["RelaxedBernoulli", "RelaxedOneHotCategorical"]


class RelaxedBernoulli(D.RelaxedBernoulli, Checked):
    """sigmoid((logits + logistic noise) / temperature): :class:`torch.distributions.RelaxedBernoulli`, whose draws take
    keys.

    Source: Maddison, Mnih and Teh 2017; Jang, Gu and Poole 2017.
    """

    def rsample(self, sample_shape: Sequence[int] = NO_SHAPE, **noise: Any) -> Tensor:
        """In (0, 1). Draw k of `sample_shape` takes fold_in(key, k), draw 0 the key itself."""
        logits = self.logits
        scale = {"scale": _methods.ones_like(logits)}
        return torch.sigmoid(draws(reparam.logistic_rsample, logits, scale, sample_shape, **noise) / self.temperature)

    def sample(self, sample_shape: Sequence[int] = NO_SHAPE, **noise: Any) -> Tensor:
        """:meth:`rsample` without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, **noise)


class RelaxedOneHotCategorical(D.RelaxedOneHotCategorical, Checked):
    """softmax((logits + Gumbel noise) / temperature): :class:`torch.distributions.RelaxedOneHotCategorical`, whose
    draws take keys.

    Source: Maddison, Mnih and Teh 2017; Jang, Gu and Poole 2017.
    """

    def rsample(self, sample_shape: Sequence[int] = NO_SHAPE, **noise: Any) -> Tensor:
        """On the simplex. Draw k of `sample_shape` takes fold_in(key, k), draw 0 the key itself."""
        logits = self.logits
        scale = {"scale": _methods.ones_like(logits)}
        return torch.softmax(draws(reparam.gumbel_rsample, logits, scale, sample_shape, **noise) / self.temperature, -1)

    def sample(self, sample_shape: Sequence[int] = NO_SHAPE, **noise: Any) -> Tensor:
        """:meth:`rsample` without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, **noise)
