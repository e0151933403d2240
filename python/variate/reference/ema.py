"""Exponential moving averages as an expert writes them in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def ema_update_(averages: Sequence[Any], parameters: Sequence[Tensor], decay: Any) -> None:
    if averages and not isinstance(averages[0], Tensor):
        decays = decay.unbind() if isinstance(decay, Tensor) else decay
        for profile, one in zip(averages, decays, strict=True):
            ema_update_(profile, parameters, one)
        return
    with torch.no_grad():
        for average, parameter in zip(averages, parameters, strict=True):
            dtype = torch.float64 if average.dtype == torch.float64 else torch.float32
            keep = torch.as_tensor(decay, dtype=torch.float64, device=average.device)
            average.copy_(torch.lerp(average.to(dtype), parameter.detach().to(dtype), (1 - keep).to(dtype)))
