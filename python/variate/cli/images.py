"""Pictures of digits, as PNG."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from .._optional import require
from ..models.likelihoods import Likelihood
from .digits import KINDS

__all__ = ["grid", "in_unit_interval", "png", "side_by_side"]


def in_unit_interval(x: Tensor, likelihood: Likelihood) -> Tensor:
    """Digits [N, 28, 28] in [0, 1], from data, means or samples of a model with this likelihood."""
    x = x.reshape(-1, 28, 28)
    if x.dtype == torch.uint8:
        return x / 255
    return (x + 1) / 2 if likelihood.name not in KINDS else x


def grid(images: Tensor, columns: int = 16, gap: int = 2) -> np.ndarray:
    """Images [N, H, W] in [0, 1], row after row, as one uint8 picture; the gaps are mid grey."""
    n, height, width = images.shape
    rows = -(-n // columns)
    canvas = torch.full((rows, columns, height + gap, width + gap), 0.5)
    canvas.view(-1, height + gap, width + gap)[:n, :height, :width] = images.detach().float().cpu().clamp(0, 1)
    picture = canvas.transpose(1, 2).reshape(rows * (height + gap), columns * (width + gap))
    return (picture[:-gap, :-gap] * 255).round().to(torch.uint8).numpy()


def side_by_side(above: Tensor, below: Tensor, columns: int = 16) -> Tensor:
    """Interleave rows of two sets of images, so that each stands above its twin."""
    pairs = zip(above.split(columns), below.split(columns), strict=True)
    return torch.cat([part for pair in pairs for part in pair])


def png(picture: np.ndarray, scale: int = 2) -> bytes:
    """A uint8 picture [H, W] as a grey PNG, each pixel a square of ``scale``."""
    buffer = io.BytesIO()
    large = np.kron(picture, np.ones((scale, scale), dtype=np.uint8))
    require("matplotlib.image").imsave(buffer, large, cmap="gray", vmin=0, vmax=255, format="png")
    return buffer.getvalue()
