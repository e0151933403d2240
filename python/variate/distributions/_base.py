"""What the classes of variate.distributions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributions import Distribution, kl

from ..functional import _checks
from . import _methods
from ._validation import Checked

__all__ = ["NO_SHAPE", "Checked", "fused", "fused_kl"]

NO_SHAPE = torch.Size()


def fused(method: Callable[..., Any], cls: type[Distribution], name: str) -> Callable[..., Any]:
    """The fused method, for every floating dtype, and that of torch's class for what it does not answer."""

    def stock(self: Distribution, *args: Any) -> Any:
        return getattr(cls, name)(self, *args)

    stock.__name__, stock.__qualname__, stock.__doc__ = name, f"{cls.__name__}.{name}", getattr(cls, name).__doc__
    return _methods.or_torch(method, stock, dtypes=_checks.FLOATING)


def fused_kl(cls: type[Distribution], torch_cls: type[Distribution], divergence: Callable[..., Any]) -> None:
    """Registers the divergence of two of `cls`, and torch's for what it does not answer."""

    def stock(p: Distribution, q: Distribution) -> Any:
        return kl._KL_REGISTRY[torch_cls, torch_cls](p, q)

    kl.register_kl(cls, cls)(_methods.or_torch(divergence, stock, dtypes=_checks.FLOATING))
