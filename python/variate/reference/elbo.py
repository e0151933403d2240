"""The terms of the evidence lower bound as an expert writes them in PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._rows import sum_rows


def normal_kl(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_var: Tensor | None = None,
    *,
    free_bits: float | Tensor = 0.0,
) -> Tensor:
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
    return sum_rows(kl)


def bernoulli_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    common = torch.sigmoid(logits) * (F.logsigmoid(logits) - F.logsigmoid(prior_logits))
    rare = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - F.logsigmoid(-prior_logits))
    return sum_rows(common + rare)


def normal_nll(mean: Tensor, log_var: Tensor | float, target: Tensor) -> Tensor:
    precision = torch.exp(-log_var) if isinstance(log_var, Tensor) else math.exp(-log_var)
    return sum_rows(0.5 * ((target - mean).square() * precision + log_var + math.log(2 * math.pi)))


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    # The loss has the dtype of the target, whatever that of the logits.
    dtype = torch.promote_types(logits.dtype, target.dtype) if target.is_floating_point() else logits.dtype
    nll = F.binary_cross_entropy_with_logits(logits.to(dtype), target.to(dtype), reduction="none")
    return sum_rows(nll)


def categorical_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    log_p, log_r = F.log_softmax(logits, -1), F.log_softmax(prior_logits, -1)
    p = log_p.exp()
    return sum_rows(torch.where(p == 0, 0, p * (log_p - log_r)))


def categorical_nll(logits: Tensor, target: Tensor) -> Tensor:
    # The last dimension stays, so that [B, K] are B samples.
    nll = torch.logsumexp(logits, -1, keepdim=True) - logits.gather(-1, target.long().unsqueeze(-1))
    return sum_rows(nll)
