"""The terms of the evidence lower bound as an expert writes them in PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    rows = logits.shape[0] if logits.dim() > 1 else 1
    if not target.is_floating_point():
        target = target.to(logits.dtype)
    nll = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return nll.reshape(rows, -1).sum(-1) if nll.numel() else nll.new_zeros(rows)
