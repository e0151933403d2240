"""Bounds of several importance samples as an expert writes them in PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def importance_weighted_bound(
    log_weight: Tensor, estimator: str = "iwae", *, log_q: Tensor | None = None, latent: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    log_weight = log_weight.to(torch.promote_types(log_weight.dtype, torch.float32))
    samples = log_weight.shape[0]
    total = torch.logsumexp(log_weight, 0)
    bound = total - math.log(samples)
    constant = log_weight.detach()
    # Where all weights are 0 they stay 0, and none is NaN.
    weight = torch.exp(constant - total.detach().masked_fill(total == -math.inf, 0.0))
    square = weight.square().sum(0)
    size = torch.where(square == 0, square, 1 / square)
    if estimator == "rws" and log_q is not None:
        bound = bound + _with_gradient(2 * weight, log_q)
    if estimator == "vimco" and log_q is not None:
        bound = bound + _with_gradient(bound.detach() - _leave_one_out(constant), log_q)
    if estimator == "dreg" and latent is not None and latent.requires_grad:
        latent.register_hook(lambda grad: grad * weight.to(grad.dtype).view(*weight.shape, *(1,) * (grad.dim() - 2)))
    return bound, weight, size


def _with_gradient(gradient: Tensor, log_q: Tensor) -> Tensor:
    """0 [B], whose gradient to log_q is `gradient`."""
    return (gradient * (log_q - log_q.detach())).sum(0)


def _leave_one_out(log_weight: Tensor) -> Tensor:
    """[K, B]: the bound, with the mean of the others in the place of each log weight in turn."""
    samples = log_weight.shape[0]
    mean = (log_weight.sum(0) - log_weight) / (samples - 1)
    own = torch.eye(samples, dtype=torch.bool, device=log_weight.device)[..., None]
    return torch.logsumexp(torch.where(own, mean[:, None], log_weight), 1) - math.log(samples)
