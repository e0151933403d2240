"""variate.patch.diffusers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import schedulers
from .._optional import require
from ..distributions import _fused
from ..distributions._methods import NARROW, or_torch, serves
from ..functional import _key
from ..schedulers._base import Fused
from ._patch import Patch, Patched

__all__ = ["diffusers"]

_REPLACED = ("step", "add_noise", "get_velocity", "scale_noise")
_IMAGE = [1, 2, 3]  # the dimensions that diffusers sums over, whatever there are


def diffusers() -> Patched:
    """Puts diffusers' schedulers and ``DiagonalGaussianDistribution`` on fused kernels.

    The methods of the classes themselves are replaced, so every pipeline and autoencoder of diffusers that uses them is
    served, also one that exists already. As a plain call it stays until ``.undo()``; as a context manager, for the
    block.

    Schedulers: ``step``, ``add_noise``, ``get_velocity`` and ``scale_noise`` of each class that
    :mod:`variate.schedulers` has, by that class's; :func:`variate.schedulers.noise` says where the noise comes from.
    Subclasses by others stay as they are.

    ``DiagonalGaussianDistribution``: ``sample``, ``kl`` and ``nll``. What stays diffusers' own: the constructor, whose
    clamp of the log-variance to [-30, 20] stops gradients outside; ``mode``; deterministic distributions, whose ``kl``
    and ``nll`` are ``tensor([0.])`` on the CPU; sums over dimensions 1, 2 and 3 only, of anything but 4-D latents;
    float64; torch.func and forward-mode AD.

    ``generator=`` means what it means there: a CPU generator decides the noise on any device, and a list has one
    for each sample. The noise of a seed is another one than diffusers', and the same on every device.

    Raises:
        ImportError: diffusers is not installed; the message names the extra.
    """
    return Patched(_patch())


@functools.cache
def _patch() -> Patch:
    require("diffusers", "diffusers")
    vae: Any = require("diffusers.models.autoencoders.vae", "diffusers")
    cls = vae.DiagonalGaussianDistribution
    methods: dict[str, Callable[..., Any]] = {"sample": _sample, "kl": _kl, "nll": _nll}
    latents = {(cls, name): or_torch(fused, vars(cls)[name]) for name, fused in methods.items()}
    return Patch({**latents, **_schedulers()})


def _schedulers() -> dict[tuple[Any, str], Any]:
    attributes: dict[tuple[Any, str], Any] = {}
    for name in schedulers.CLASSES:
        ours = getattr(schedulers, name)
        theirs = next(cls for cls in ours.__mro__[1:] if cls.__name__ == name)
        for attribute, value in {**vars(Fused), **vars(ours)}.items():
            if attribute in _REPLACED:
                attributes[theirs, attribute] = _of_this_class(theirs, value, getattr(theirs, attribute))
            elif attribute == "noise" or attribute.startswith("_variate"):
                attributes[theirs, attribute] = value
    return attributes


def _of_this_class(cls: type, ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    """A subclass may have changed what their method calls and ours does not."""

    @functools.wraps(theirs)  # pipelines read the signature
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (ours if type(self) is cls else theirs)(self, *args, **kwargs)

    return method


def _sample(self: Any, generator: Any = None) -> Any:
    mean, std = self.mean, self.std
    if not serves("location_scale_rsample", NARROW, mean, std) or mean.shape != std.shape:
        return NotImplemented
    key = _key_of(generator, mean)
    return NotImplemented if key is None else _fused.location_scale(_fused.NORMAL, mean, std, key)


def _key_of(generator: Any, mean: Tensor) -> Tensor | None:
    """A key, or one for each sample; None where diffusers raises."""
    if isinstance(generator, list) and len(generator) == 1:
        generator = generator[0]
    given = generator if isinstance(generator, list) else [generator]
    if any(g is not None and g.device.type not in ("cpu", mean.device.type) for g in given):
        return None
    if not isinstance(generator, list):
        return _key.draw(generator, mean.device)
    if len(generator) < len(mean):
        return None
    return torch.stack([_key.draw(g, mean.device) for g in generator[: len(mean)]])


def _kl(self: Any, other: Any = None) -> Any:
    if self.deterministic or (other is not None and other.deterministic) or self.mean.dim() != 4:
        return NotImplemented
    mean, log_var = (None, None) if other is None else (other.mean, other.logvar)
    given = (self.mean, self.logvar, *(() if other is None else (mean, log_var)))
    if not serves("normal_kl", NARROW, *given) or any(t.shape != self.mean.shape for t in given):
        return NotImplemented
    kl = _fused.normal_kl(self.mean, self.logvar, mean, log_var, _fused.LOG_VAR, summed=True)
    return kl.to(self.mean.dtype)


def _nll(self: Any, sample: Tensor, dims: Sequence[int] = _IMAGE) -> Any:
    given = (self.mean, self.logvar, sample)
    if self.deterministic or self.mean.dim() != 4 or list(dims) != _IMAGE:
        return NotImplemented
    if not serves("normal_nll", NARROW, *given) or any(t.shape != self.mean.shape for t in given):
        return NotImplemented
    return -_fused.normal_log_prob(*given, _fused.LOG_VAR, summed=True).to(self.mean.dtype)
