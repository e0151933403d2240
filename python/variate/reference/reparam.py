"""Reparameterised sampling as an expert writes it in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from . import elbo, random


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
    return z, elbo.normal_kl(mean, log_var, prior_mean, prior_log_var, free_bits=free_bits)


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
