"""A decoder's last layer and its likelihood as an expert writes them in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_bernoulli_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    # The loss has the dtype of the target, whatever that of the logits.
    dtype = torch.promote_types(logits.dtype, target.dtype) if target.is_floating_point() else logits.dtype
    target = target.flatten(1) if target.dim() > 1 else target
    target = target.to(dtype).expand(logits.shape)  # the samples of a datum share it
    return _sum(F.binary_cross_entropy_with_logits(logits.to(dtype), target, reduction="none"))


def linear_categorical_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    target = target.flatten(1) if target.dim() > 1 else target
    variables = target.shape[-1]
    ways = logits.shape[-1] // variables if variables else 1
    target = target.long().expand(*logits.shape[:-1], variables)
    terms = F.cross_entropy(logits.reshape(target.numel(), ways), target.reshape(-1), reduction="none")
    return _sum(terms.reshape(target.shape))


def _sum(terms: Tensor) -> Tensor:
    """[B] or [K, B]: the sum of each sample, in float32 at least."""
    total = terms.sum(-1, dtype=torch.promote_types(terms.dtype, torch.float32))
    return total if total.dim() else total.reshape(1)
