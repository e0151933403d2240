"""Denoisers to begin with: a network for vectors and a small U-Net for images. Any module with their call will do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional._checks import count as check_count
from ._settings import like

__all__ = ["MLPDenoiser", "TimeEmbedding", "UNetDenoiser"]


class TimeEmbedding(nn.Module):
    """What a denoiser knows of the noise, [B, width]: sinusoids of the timestep with periods from 2 pi to 2 pi 10^4,
    two layers, and where there are classes, an embedding of the label on top, whose last row stands for no label.

    Args:
        width: of the result, an even number.
        classes: how many, or None.

    Raises:
        TypeError, ValueError: a width that is not an even number of at least 2.

    Source: Vaswani et al. 2017, section 3.5 (sinusoids); Ho et al. 2020 (of the timestep).
    """

    def __init__(self, width: int, classes: int | None = None) -> None:
        super().__init__()
        check_count("width", width, least=2)
        if width % 2:
            raise ValueError(f"width: expected an even number, got {width}")
        self.width = width
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = None if classes is None else nn.Embedding(classes + 1, width)

    def forward(self, timestep: Tensor, labels: Tensor | None = None) -> Tensor:
        half = self.width // 2
        rates = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(1e4) / max(half - 1, 1)))
        angles = timestep.reshape(-1, 1).float() * rates
        waves = torch.cat([angles.sin(), angles.cos()], -1)
        embedded: Tensor = self.layers(waves.to(like(self).dtype))
        if self.classes is not None:
            none = self.classes.num_embeddings - 1
            embedded = embedded + self.classes(torch.full_like(timestep, none).long() if labels is None else labels)
        return embedded


class MLPDenoiser(nn.Module):
    """For vectors, or anything flattened: ``forward(x, timestep, labels=None)``, shaped as x.

    Args:
        features: the values of one x, together.
        hidden: units of each layer, an even number.
        layers: residual ones.
        classes: how many labels there are, or None.

    Raises:
        TypeError, ValueError: a number out of range.

    Source: He et al. 2016 (residual layers); Ho et al. 2020 (the embedding, added).
    """

    def __init__(self, features: int, hidden: int = 256, layers: int = 3, classes: int | None = None) -> None:
        super().__init__()
        for name, value in (("features", features), ("layers", layers)):
            check_count(name, value, least=1)
        self.embedding = TimeEmbedding(hidden, classes)
        self.first = nn.Linear(features, hidden)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, hidden)) for _ in range(layers)
        )
        self.last = nn.Linear(hidden, features)

    def forward(self, x: Tensor, timestep: Tensor, labels: Tensor | None = None) -> Tensor:
        embedded = self.embedding(timestep, labels)
        h = self.first(x.flatten(1))
        for layer in self.layers:
            h = h + layer(h + embedded)
        return self.last(F.silu(h)).view_as(x)


class UNetDenoiser(nn.Module):
    """For images [B, C, H, W]: ``forward(x, timestep, labels=None)``, shaped as x. At each resolution a residual block
    on the way down and one on the way up, and attention between the pixels of the coarsest.

    Args:
        channels: C.
        width: channels inside, at full resolution; a multiple of 8.
        multipliers: of the width at each resolution, of which each is half the last: H and W are divisible by
            2^(len(multipliers) - 1).
        classes: how many labels there are, or None.

    Raises:
        TypeError, ValueError: a number out of range, or sides that the resolutions do not divide.

    Source: Ronneberger et al. 2015; Ho et al. 2020.
    """

    def __init__(
        self, channels: int = 1, width: int = 32, multipliers: Sequence[int] = (1, 2, 2), classes: int | None = None
    ) -> None:
        super().__init__()
        check_count("channels", channels, least=1)
        check_count("width", width, least=8)
        if width % 8 or not multipliers:
            raise ValueError(f"width: expected a multiple of 8, and one multiplier or more, got {width}, {multipliers}")
        widths = [width * m for m in multipliers]
        depth = 4 * width
        self.halvings = len(widths) - 1
        self.embedding = TimeEmbedding(depth, classes)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        before = [width, *widths[:-1]]
        self.down = nn.ModuleList(_Block(a, b, depth) for a, b in zip(before, widths, strict=True))
        self.middle = nn.ModuleList([_Block(widths[-1], widths[-1], depth), _Attention(widths[-1])])
        after = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(_Block(a + b, b, depth) for a, b in zip(after, widths, strict=True))
        self.last = nn.Sequential(nn.GroupNorm(8, widths[0]), nn.SiLU(), _silent(nn.Conv2d(widths[0], channels, 1)))

    def forward(self, x: Tensor, timestep: Tensor, labels: Tensor | None = None) -> Tensor:
        least = 2**self.halvings
        if x.dim() != 4 or x.shape[2] % least or x.shape[3] % least:
            raise ValueError(f"x: expected [B, C, H, W] with H and W divisible by {least}, got {tuple(x.shape)}")
        embedded = self.embedding(timestep, labels)
        h, kept = self.first(x), []
        for level, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if level else h, embedded)
            kept.append(h)
        block, attention = self.middle
        h = attention(block(h, embedded))
        for level in reversed(range(len(self.up))):
            h = self.up[level](torch.cat([h, kept[level]], 1), embedded)
            h = F.interpolate(h, scale_factor=2.0, mode="nearest") if level else h
        return self.last(h)


class _Block(nn.Module):
    """x + f(x), f two convolutions with the embedding as scale and shift between them, and 0 at first."""

    def __init__(self, before: int, after: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.GroupNorm(8, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.tell = nn.Linear(depth, 2 * after)
        self.norm = nn.GroupNorm(8, after)
        self.leave = _silent(nn.Conv2d(after, after, 3, padding=1))
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        scale, shift = self.tell(F.silu(embedded))[:, :, None, None].chunk(2, 1)
        h = self.norm(self.enter(x)) * (1 + scale) + shift
        return self.skip(x) + self.leave(F.silu(h))


class _Attention(nn.Module):
    """x + attention of each pixel to all, with heads of 16 channels or so, and 0 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = math.gcd(width // 8, 4)
        self.norm = nn.GroupNorm(8, width)
        self.enter = nn.Conv2d(width, 3 * width, 1)
        self.leave = _silent(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.enter(self.norm(x)).flatten(2).unflatten(1, (3 * self.heads, -1)).transpose(2, 3)
        q, k, v = parts.chunk(3, 1)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return x + self.leave(seen.reshape(x.shape))


def _silent(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
