"""Distributions of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ..functional import _key, logistic
from ._base import NO_SHAPE, Checked
from ._discrete import draws

__all__ = ["DiscretizedLogisticMixture"]


class DiscretizedLogisticMixture(Checked):
    """Images of 2^bits levels, each pixel a mixture of discretised logistics, as PixelCNN++, VDVAE and NVAE have them.

    Args:
        params, mixtures, bits, layout, edges: as in :func:`variate.functional.discretized_logistic_mixture_nll`. The
            batch shape is [B], the event shape that of an image.

    `log_prob` takes uint8 levels, or floating values in [-1, 1]; `sample` draws levels, and takes `key`, `generator`
    and `first_sample` as variate.functional's draws do. Mean, variance and entropy have no closed form.

    Raises:
        TypeError, ValueError: as the function.

    Source: Salimans et al. 2017, section 2.
    """

    arg_constraints = {"params": constraints.independent(constraints.real, 3)}  # noqa: RUF012

    def __init__(
        self,
        params: Tensor,
        mixtures: int = 10,
        bits: int = 8,
        layout: str = "nchw",
        edges: str = "exact",
        validate_args: bool | None = None,
    ) -> None:
        self.params = params
        self.mixtures, self.bits, self.layout, self.edges = mixtures, bits, layout, edges
        logistic._check_options(bits, edges)
        channels_last = logistic._check_params(params, mixtures, layout)
        channels = logistic._channels(params, mixtures, channels_last)
        images = torch.Size(logistic._with_channels(params.shape, channels, channels_last))
        super().__init__(images[:1], images[1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, 2**self.bits - 1), 3)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiscretizedLogisticMixture:
        if len(batch_shape) != 1:
            raise ValueError(f"batch_shape: expected one dimension, got {tuple(batch_shape)}")
        new = self._get_checked_instance(DiscretizedLogisticMixture, _instance)
        new.params = self.params.expand((*batch_shape, *self.params.shape[1:]))
        new.mixtures, new.bits, new.layout, new.edges = self.mixtures, self.bits, self.layout, self.edges
        Checked.__init__(new, torch.Size(batch_shape), self._event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """[..., B] in nats, for images [..., B, C, H, W]."""
        if value.dim() > 4:
            each = [self.log_prob(images) for images in value.flatten(0, -5)]
            return torch.stack(each).reshape((*value.shape[:-4], -1))
        return -logistic.discretized_logistic_mixture_nll(
            self.params, value, mixtures=self.mixtures, bits=self.bits, layout=self.layout, edges=self.edges
        )

    def sample(
        self,
        sample_shape: Sequence[int] = NO_SHAPE,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """uint8 levels. Draw k of `sample_shape` takes fold_in(key, k), draw 0 the key itself."""

        def draw(params: Tensor, **noise: Any) -> Tensor:
            return logistic.discretized_logistic_mixture_sample(
                params, mixtures=self.mixtures, bits=self.bits, layout=self.layout, **noise
            )

        if 0 in sample_shape:
            return self.params.new_empty(self._extended_shape(torch.Size(sample_shape)), dtype=torch.uint8)
        if key is None:
            key, generator = _key.draw(generator, self.params.device), None
        return draws(draw, self.params, sample_shape, key, generator, first_sample)
