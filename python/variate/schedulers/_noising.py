"""What diffusers' schedulers offer to training: noising, and the velocity that a model is to predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._table import Table
from ..diffusion.levels import Array
from ..diffusion.levels import table as table_of
from ..functional.denoise import denoise_step
from ._base import host


def scaled(alpha: Tensor, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    """alpha x + sigma y with coefficients of each sample, or of all, in float32 or better; in the dtype of x and y."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    ends = (1,) * (x.dim() - 1)
    a, s = (c.to(x.device, wide).reshape(-1, *ends) for c in (alpha, sigma))
    return (a * x.to(wide) + s * y.to(wide)).to(dtype)


def add_noise_by_alphas(scheduler: Any, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """sqrt(abar) x0 + sqrt(1 - abar) noise."""
    return _forward(scheduler, original, noise, timesteps, velocity=False)


def velocity_by_alphas(scheduler: Any, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """sqrt(abar) noise - sqrt(1 - abar) x0."""
    return _forward(scheduler, sample, noise, timesteps, velocity=True)


def _forward(scheduler: Any, x0: Tensor, noise: Tensor, timesteps: Tensor, velocity: bool) -> Tensor:
    """A row of a table for each sample. Timesteps on a GPU are not waited for: out of the table, the result is NaN."""
    bar: Tensor = scheduler.alphas_cumprod
    kept = scheduler._variate_forward
    if kept is None or kept[0] is not bar or kept[1].coefficients.device != x0.device:
        alpha, sigma = np.sqrt(host(bar)), np.sqrt(1 - host(bar))
        kept = scheduler._variate_forward = (
            bar,
            *(_pairs(*c).to(x0.device) for c in ((alpha, sigma), (-sigma, alpha))),
        )
    if noise.device != x0.device:
        raise ValueError(f"noise: expected it on the device of the samples, {x0.device}, got {noise.device}")
    rows = torch.as_tensor(timesteps).to(x0.device, torch.int64)
    rows = rows.reshape(()) if rows.numel() == 1 or x0.dim() < 2 else rows.reshape(-1)
    if noise.shape != x0.shape or noise.dtype != x0.dtype:
        shape = torch.broadcast_shapes(noise.shape, x0.shape)
        dtype = torch.promote_types(noise.dtype, x0.dtype)
        x0, noise = x0.to(dtype).expand(shape), noise.to(dtype).expand(shape)
    try:
        return denoise_step(x0, noise, kept[2 if velocity else 1], rows).prev
    except ValueError:
        if rows.is_cpu and bool(((rows < 0) | (rows >= len(bar))).any()):
            raise ValueError(f"timesteps: expected integers from 0 to {len(bar) - 1}, got {rows.tolist()}") from None
        if rows.dim() > 0 and len(rows) != len(x0):
            raise ValueError(
                f"timesteps: expected one, or one for each of {len(x0)} samples, got {len(rows)}"
            ) from None
        raise


def _pairs(of_x0: Array, of_noise: Array) -> Table:
    columns: dict[str, Any] = {"prev_sample": of_x0, "prev_output": of_noise}
    return table_of(np.arange(len(of_x0)), columns)


def add_noise_by_sigmas(scheduler: Any, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x0 + sigma noise."""
    sigma = sigmas_at(scheduler, timesteps)
    return scaled(torch.ones_like(sigma), original, sigma, noise)


def velocity_by_sigmas(scheduler: Any, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """(noise - sigma x0) / sqrt(sigma^2 + 1)."""
    if isinstance(timesteps, int) or (timesteps.is_cpu and timesteps.dtype in (torch.int32, torch.int64)):
        raise ValueError(f"timesteps: expected some of scheduler.timesteps, got integers, {timesteps}")
    sigma = _sigmas(scheduler, timesteps).double()
    alpha = (sigma**2 + 1).rsqrt()
    return scaled(alpha, noise, -alpha * sigma, sample)


def sigmas_at(scheduler: Any, timesteps: Tensor) -> Tensor:
    """sigma of each sample, where noise is added: at its timestep, or where the scheduler stands if it knows."""
    if scheduler._begin_index is None:
        return _sigmas(scheduler, timesteps)
    at = scheduler._begin_index if scheduler._step_index is None else scheduler._step_index
    sigma: Tensor = scheduler.sigmas[at].expand(len(timesteps))
    return sigma


def _sigmas(scheduler: Any, timesteps: Tensor) -> Tensor:
    """sigma at each timestep, of equal ones at the second, as diffusers does."""
    given = timesteps.reshape(-1, 1)
    hits = scheduler.timesteps.to(given.device) == given
    if given.is_cpu and not bool(hits.any(1).all()):
        raise ValueError(f"timesteps: expected some of scheduler.timesteps, got {timesteps.tolist()}")
    count = hits.cumsum(1)
    which = (hits & (count == count[:, -1:].clamp(max=2))).byte().argmax(1)
    sigmas: Tensor = scheduler.sigmas.to(given.device)[which]
    return sigmas
