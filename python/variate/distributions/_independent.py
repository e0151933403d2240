"""Dimensions of a batch as dimensions of an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributions as D
from torch import Tensor

from . import _methods
from ._base import NO_SHAPE, Checked, fused, fused_kl

__all__ = ["Independent"]


class Independent(D.Independent, Checked):
    """The last dimensions of the base's batch as one event: :class:`torch.distributions.Independent`.

    Over :class:`Normal` and :class:`Bernoulli`, `log_prob` and `kl_divergence` sum an event in the kernel.
    """

    def rsample(self, sample_shape: Sequence[int] = NO_SHAPE, **noise: Any) -> Tensor:
        """The base's, with its arguments."""
        return self.base_dist.rsample(sample_shape, **noise)

    def sample(self, sample_shape: Sequence[int] = NO_SHAPE, **noise: Any) -> Tensor:
        """The base's, with its arguments."""
        return self.base_dist.sample(sample_shape, **noise)

    log_prob = fused(_methods.independent_log_prob, D.Independent, "log_prob")


fused_kl(Independent, D.Independent, _methods.independent_kl)
