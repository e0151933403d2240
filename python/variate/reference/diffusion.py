"""Noising, the target of a diffusion model and its loss, as an expert writes them in PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import random


def noise_and_target(
    x0: Tensor,
    timestep: Tensor | None,
    table: Tensor,
    *,
    prediction: str = "epsilon",
    noise: Tensor | None = None,
    offset_noise: float = 0.0,
    sigma_data: float = 0.5,
    mask: Tensor | None = None,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x0.dtype == torch.float64 else torch.float32
    x = x0.to(dtype)
    alpha, sigma = levels_of(table, timestep, x0)
    a, b, c, d = (t.to(dtype) for t in coefficients(prediction, alpha, sigma, sigma_data))
    eps = noise
    if eps is None:
        eps = random.normal(
            x0.shape,
            key=key,
            generator=generator,
            first_sample=first_sample,
            dtype=torch.float32,
            device=x0.device,
        )
    eps = eps.to(dtype)
    if offset_noise != 0:
        eps = eps + offset_noise * _offsets(x0, key, generator, first_sample).to(dtype)
    x_t = a * x + b * eps
    if mask is not None:
        x_t = torch.where(mask != 0, x, x_t)
    return x_t.to(x0.dtype), (c * x + d * eps).to(x0.dtype)


def denoising_loss(
    prediction: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    kind: str = "mse",
    delta: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    dtype = torch.float64 if torch.float64 in (prediction.dtype, target.dtype) else torch.float32
    p, t = prediction.to(dtype), target.to(dtype)
    if kind == "mse":
        terms = torch.nn.functional.mse_loss(p, t, reduction="none")
    else:
        terms = torch.nn.functional.huber_loss(p, t, reduction="none", delta=delta)
    if mask is not None:
        terms = torch.where(mask != 0, 0.0, terms)
    rows = terms.flatten(1) if terms.dim() > 1 else terms.reshape(1, -1)
    loss = rows.sum(1) / max(rows.shape[1], 1)
    if weight is None or rows.shape[1] == 0:
        return loss
    return loss * weight.to(dtype)


def levels_of(table: Tensor, timestep: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma in float64, in shapes that broadcast with `like`; NaN for a timestep outside the table."""
    levels = table.to(torch.float64)
    if timestep is not None:
        inside = (timestep >= 0) & (timestep < len(table))
        levels = levels[timestep.clamp(0, len(table) - 1)]
        levels = torch.where(inside[..., None], levels, torch.nan)
    if levels.dim() == 2:
        shape = (-1, *[1] * (like.dim() - 1)) if like.dim() > 0 else ()
        return levels[:, 0].reshape(shape), levels[:, 1].reshape(shape)
    rows, tokens, _ = levels.shape
    count = like.numel() // max(rows, 1)
    each = levels.repeat_interleave(count // tokens, 1)
    return each[..., 0].reshape(like.shape), each[..., 1].reshape(like.shape)


def coefficients(
    prediction: str, alpha: Tensor, sigma: Tensor, sigma_data: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a, b, c, d) of x_t = a x0 + b eps and target = c x0 + d eps."""
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction == "epsilon":
        return alpha, sigma, zero, one
    if prediction == "x0":
        return alpha, sigma, one, zero
    if prediction == "v":
        return alpha, sigma, -sigma, alpha
    if prediction == "flow":
        return alpha, sigma, -one, one
    norm = (sigma**2 + sigma_data**2).rsqrt()
    return alpha, sigma, sigma / sigma_data * norm, -sigma_data * norm


def _offsets(x0: Tensor, key: Tensor | None, generator: torch.Generator | None, first_sample: int) -> Tensor:
    """A normal for each sample and channel, in a shape that broadcasts with x0."""
    rows, channels = (x0.shape[0], x0.shape[1]) if x0.dim() > 1 else (1, math.prod(x0.shape))
    drawn = random.normal(
        (rows, channels),
        key=None if key is None else random.fold_in(key, 1),
        generator=generator,
        first_sample=first_sample,
        dtype=torch.float32,
        device=x0.device,
    )
    return drawn.reshape(rows, channels, *[1] * (x0.dim() - 2)) if x0.dim() > 1 else drawn.reshape(x0.shape)
