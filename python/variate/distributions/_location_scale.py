"""Distributions of loc + scale eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.distributions as D
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import ExpTransform
from torch.distributions.utils import broadcast_all, lazy_property
from torch.types import _Number

from ..functional import reparam
from . import _methods
from ._base import NO_SHAPE, Checked, fused, fused_kl

__all__ = ["Gumbel", "Laplace", "LogNormal", "Logistic", "Normal"]


def draws(
    draw: Callable[..., Tensor],
    loc: Tensor,
    spread: dict[str, Tensor],
    sample_shape: Sequence[int],
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    """`sample_shape` draws of variate.functional."""
    if 0 in sample_shape:
        return loc.new_empty((*sample_shape, *loc.shape))
    samples = math.prod(sample_shape) if len(sample_shape) else None
    drawn = draw(loc, **spread, samples=samples, key=key, generator=generator, first_sample=first_sample)
    return drawn.reshape((*sample_shape, *loc.shape)) if len(sample_shape) > 1 else drawn


class _LocationScale:
    _draw: Callable[..., Tensor]  # of variate.functional

    def rsample(self: Any, sample_shape: Sequence[int] = NO_SHAPE, **noise: Any) -> Tensor:
        """loc + scale eps. Draw k of `sample_shape` takes fold_in(key, k), draw 0 the key itself.

        Args:
            key, generator, first_sample: where the noise comes from, as in variate.functional.
        """
        spread = {"log_scale": self.log_scale} if getattr(self, "_by_log_scale", False) else {"scale": self.scale}
        return draws(type(self)._draw, self.loc, spread, sample_shape, **noise)

    def sample(self: Any, sample_shape: Sequence[int] = NO_SHAPE, **noise: Any) -> Tensor:
        """:meth:`rsample` without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape, **noise)


class Normal(_LocationScale, D.Normal, Checked):
    """p(x) = exp(-(x - loc)^2 / (2 scale^2)) / sqrt(2 pi scale^2).

    Args:
        loc: a number or a floating tensor.
        scale, log_scale: exactly one of them, broadcast with loc. The kernels read what is given.

    Otherwise it is :class:`torch.distributions.Normal`, of which it is a subclass. `rsample` and `sample` take `key`,
    `generator` and `first_sample` as variate.functional's draws do.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real,
        "scale": constraints.positive,
        "log_scale": constraints.real,
    }
    _draw = staticmethod(reparam.normal_rsample)
    _by_log_scale = False

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float | None = None,
        validate_args: bool | None = None,
        *,
        log_scale: Tensor | float | None = None,
    ) -> None:
        if (scale is None) == (log_scale is None):
            raise ValueError(
                f"scale, log_scale: expected exactly one of them, got {'none' if scale is None else 'both'}"
            )
        if log_scale is None:
            super().__init__(loc, cast(Tensor, scale), validate_args=validate_args)
            return
        self._by_log_scale = True
        self.loc, self.log_scale = broadcast_all(loc, log_scale)
        numbers = isinstance(loc, _Number) and isinstance(log_scale, _Number)
        Checked.__init__(self, torch.Size() if numbers else self.loc.size(), validate_args=validate_args)

    @lazy_property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    @lazy_property
    def log_scale(self) -> Tensor:
        return self.scale.log()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Normal:
        new = self._get_checked_instance(Normal, _instance)
        given = "log_scale" if self._by_log_scale else "scale"
        new._by_log_scale = self._by_log_scale
        new.loc = self.loc.expand(batch_shape)
        setattr(new, given, getattr(self, given).expand(batch_shape))
        Checked.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def entropy(self) -> Tensor:
        log_scale = self.log_scale if self._by_log_scale else self.scale.log()
        return log_scale + 0.5 * (1 + math.log(2 * math.pi))

    log_prob = fused(_methods.normal_log_prob, D.Normal, "log_prob")


fused_kl(Normal, D.Normal, _methods.normal_kl)


class LogNormal(D.LogNormal, Checked):
    """The distribution of exp(x), x ~ :class:`Normal` (loc, scale)."""

    def __init__(self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None) -> None:
        base = Normal(loc, scale, validate_args=validate_args)
        super(D.LogNormal, self).__init__(base, ExpTransform(), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> LogNormal:
        new = self._get_checked_instance(LogNormal, _instance)
        return super(D.LogNormal, self).expand(batch_shape, _instance=new)

    def rsample(self, sample_shape: Sequence[int] = NO_SHAPE, **noise: Any) -> Tensor:
        """exp(loc + scale eps), with the arguments of :meth:`Normal.rsample`."""
        return self.base_dist.rsample(torch.Size(sample_shape), **noise).exp()

    def sample(self, sample_shape: Sequence[int] = NO_SHAPE, **noise: Any) -> Tensor:
        """:meth:`rsample` without a gradient."""
        return self.base_dist.sample(sample_shape, **noise).exp()

    log_prob = fused(_methods.log_normal_log_prob, D.LogNormal, "log_prob")


class Laplace(_LocationScale, D.Laplace, Checked):
    """p(x) = exp(-|x - loc| / scale) / (2 scale): :class:`torch.distributions.Laplace`, whose draws take keys."""

    _draw = staticmethod(reparam.laplace_rsample)


class Gumbel(_LocationScale, D.Gumbel, Checked):
    """p(x) = exp(-y - exp(-y)) / scale, y = (x - loc) / scale: :class:`torch.distributions.Gumbel`, whose draws take
    keys."""

    _draw = staticmethod(reparam.gumbel_rsample)


class Logistic(_LocationScale, Checked):
    """p(x) = exp(-y) / (scale (1 + exp(-y))^2), y = (x - loc) / scale.

    Args:
        loc: a number or a floating tensor.
        scale: above 0, broadcast with loc.

    `rsample` and `sample` take `key`, `generator` and `first_sample` as variate.functional's draws do. Two of them have
    no KL divergence in closed form.

    Source: Balakrishnan, "Handbook of the logistic distribution", 1991.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.real
    has_rsample = True
    _draw = staticmethod(reparam.logistic_rsample)

    def __init__(self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        numbers = isinstance(loc, _Number) and isinstance(scale, _Number)
        super().__init__(torch.Size() if numbers else self.loc.size(), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Logistic:
        new = self._get_checked_instance(Logistic, _instance)
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        Checked.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return self.scale * (math.pi / math.sqrt(3))

    @property
    def variance(self) -> Tensor:
        return self.stddev.square()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        y = (value - self.loc) / self.scale
        return -y - 2 * F.softplus(-y) - self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return torch.sigmoid((value - self.loc) / self.scale)

    def icdf(self, value: Tensor) -> Tensor:
        return self.loc + self.scale * torch.logit(value)

    def entropy(self) -> Tensor:
        return self.scale.log() + 2
