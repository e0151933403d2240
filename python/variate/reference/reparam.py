"""Reparameterised sampling as an expert writes it in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from . import random
from ._rows import sum_rows


def normal_rsample(
    mean: Tensor,
    log_var: Tensor,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    return mean + torch.exp(0.5 * log_var) * _noise(mean, log_var, key, generator, first_sample)


def normal_rsample_kl(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_var: Tensor | None = None,
    *,
    free_bits: float | Tensor = 0.0,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> tuple[Tensor, Tensor]:
    z = normal_rsample(mean, log_var, key=key, generator=generator, first_sample=first_sample)
    if prior_mean is None and prior_log_var is None:
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var)
    else:
        difference = mean if prior_mean is None else mean - prior_mean
        log_ratio = log_var if prior_log_var is None else log_var - prior_log_var
        square = difference.square() if prior_log_var is None else difference.square() * torch.exp(-prior_log_var)
        kl = 0.5 * (torch.exp(log_ratio) - 1 - log_ratio + square)
    if isinstance(free_bits, Tensor):
        # A free_bits of 0 switches it off: rounding below 0 still passes its gradient.
        floor = free_bits.to(kl)
        kl = torch.where((floor <= 0) | ~(kl < floor), kl, floor)
    elif free_bits > 0:
        kl = kl.clamp(min=free_bits)
    return z, sum_rows(kl)


def _noise(
    mean: Tensor, log_var: Tensor, key: Tensor | None, generator: torch.Generator | None, first_sample: int
) -> Tensor:
    dtype = torch.promote_types(mean.dtype, log_var.dtype)
    if key is None and generator is None:
        return torch.randn_like(mean, dtype=dtype)
    return random.normal(
        mean.shape,
        key=key,
        generator=generator,
        first_sample=first_sample,
        dtype=dtype,
        device=mean.device,
    )
