"""The terms of the evidence lower bound as an expert writes them in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._rows import sum_rows


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    # The loss has the dtype of the target, whatever that of the logits.
    dtype = torch.promote_types(logits.dtype, target.dtype) if target.is_floating_point() else logits.dtype
    nll = F.binary_cross_entropy_with_logits(logits.to(dtype), target.to(dtype), reduction="none")
    return sum_rows(nll)
