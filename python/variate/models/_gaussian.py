"""log densities of reparameterised Gaussian latents, summed over all but the leading dimensions."""

from __future__ import annotations

from torch import Tensor

from .. import functional

__all__ = ["log_normal", "log_standard_normal"]


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, e^log_var): [K, B] for z [K, B, ...] and mean [B, ...], [B] for z [B, ...]."""
    if z.dim() == mean.dim():
        return -functional.normal_nll(mean, log_var, z)
    mean, log_var = (p.expand(z.shape).flatten(0, 1) for p in (mean, log_var))
    return -functional.normal_nll(mean, log_var, z.flatten(0, 1)).view(z.shape[:2])


def log_standard_normal(z: Tensor, leading: int) -> Tensor:
    """log N(z; 0, 1), summed over all but the `leading` first dimensions."""
    rows = z.flatten(0, leading - 1)
    return -functional.normal_nll(rows.new_zeros(()).expand(rows.shape), 0.0, rows).view(z.shape[:leading])
