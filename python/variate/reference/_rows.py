"""What the reductions over samples share."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_rows(terms: Tensor) -> Tensor:
    """[B]: the sum of each sample, in float32 at least."""
    rows = terms.flatten(1) if terms.dim() > 1 else terms.reshape(1, terms.numel())
    return rows.sum(-1, dtype=torch.promote_types(terms.dtype, torch.float32))
