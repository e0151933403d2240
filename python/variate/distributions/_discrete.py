"""Distributions of bits and categories."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributions as D
from torch import Tensor

from ..functional import _key, random
from . import _methods
from ._base import NO_SHAPE, Checked, fused, fused_kl

__all__ = ["Bernoulli", "Categorical", "OneHotCategorical", "OneHotCategoricalStraightThrough"]


def draws(
    draw: Callable[..., Tensor],
    params: Tensor,
    sample_shape: Sequence[int],
    key: Tensor | None,
    generator: torch.Generator | None,
    first_sample: int,
) -> Tensor:
    """draw(params, key=...) `sample_shape` times: draw k takes fold_in(key, k), draw 0 the key itself."""
    if len(sample_shape) == 0:
        return draw(params, key=key, generator=generator, first_sample=first_sample)
    if key is None or 0 in sample_shape:  # any key will do: one call
        expanded = params.expand((*sample_shape, *params.shape))
        return draw(expanded, key=None, generator=generator)
    key = _key.as_int64(key)
    each = [
        draw(params, key=random.fold_in(key, k) if k else key, generator=generator, first_sample=first_sample)
        for k in range(math.prod(sample_shape))
    ]
    return torch.stack(each).reshape((*sample_shape, *each[0].shape))


class Bernoulli(D.Bernoulli, Checked):
    """p(1) = probs = sigmoid(logits): :class:`torch.distributions.Bernoulli`, whose draws take keys."""

    def sample(
        self,
        sample_shape: Sequence[int] = NO_SHAPE,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """0 or 1. Draw k of `sample_shape` takes fold_in(key, k), draw 0 the key itself."""
        return draws(random.bernoulli, self.probs.detach(), sample_shape, key, generator, first_sample)

    log_prob = fused(_methods.bernoulli_log_prob, D.Bernoulli, "log_prob")
    entropy = fused(_methods.bernoulli_entropy, D.Bernoulli, "entropy")


fused_kl(Bernoulli, D.Bernoulli, _methods.bernoulli_kl)


class Categorical(D.Categorical, Checked):
    """p(k) = probs_k = softmax(logits)_k: :class:`torch.distributions.Categorical`, whose draws take keys."""

    def sample(
        self,
        sample_shape: Sequence[int] = NO_SHAPE,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """Indices, int64. Draw k of `sample_shape` takes fold_in(key, k), draw 0 the key itself."""
        logits = _methods.exact_logits(self)
        return draws(random.categorical, logits, sample_shape, key, generator, first_sample)


class OneHotCategorical(D.OneHotCategorical, Checked):
    """:class:`Categorical` in one-hot vectors: :class:`torch.distributions.OneHotCategorical`, with keys for draws."""

    def sample(
        self,
        sample_shape: Sequence[int] = NO_SHAPE,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """One-hot vectors in the dtype of the parameters, of the indices that :meth:`Categorical.sample` draws."""
        logits = _methods.exact_logits(self._categorical)
        indices = draws(random.categorical, logits, sample_shape, key, generator, first_sample)
        return _methods.one_hot(indices, self._param)


class OneHotCategoricalStraightThrough(OneHotCategorical, D.OneHotCategoricalStraightThrough):
    """:class:`OneHotCategorical` whose `rsample` passes the gradient on to the probabilities.

    Source: Bengio, Leonard and Courville 2013.
    """

    def rsample(self, sample_shape: Sequence[int] = NO_SHAPE, **noise: Any) -> Tensor:
        """:meth:`sample`, whose gradient is that of `probs`."""
        probs = self.probs
        return self.sample(sample_shape, **noise) + (probs - probs.detach())
