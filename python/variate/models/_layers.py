"""Small networks, and how their outputs are taken apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..functional._checks import count as check_count
from .likelihoods import Likelihood

__all__ = ["flat_sizes", "halves", "relu_layers"]


def relu_layers(*sizes: int) -> list[nn.Module]:
    """Linear layers with a ReLU between each two."""
    linear: list[nn.Module] = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return [module for layer in linear for module in (nn.ReLU(), layer)][1:]


def flat_sizes(data: int | Sequence[int], likelihood: Likelihood) -> tuple[int, int, list[nn.Module]]:
    """For x with `data` elements, or of that shape: how many there are, how wide a decoder's last layer must be, and
    what has to follow it."""
    shape = (data,) if isinstance(data, int) else tuple(data)
    for size in shape:
        check_count("data_dim", size, least=1)
    if likelihood.needs_images and len(shape) != 3:
        raise ValueError(f"data_dim: expected (channels, height, width) for {likelihood.name!r}, got {data!r}")
    outputs = likelihood.outputs(shape[0])
    shaped: list[nn.Module] = [nn.Unflatten(1, (outputs, *shape[1:]))] if likelihood.needs_images else []
    return math.prod(shape), outputs * math.prod(shape[1:]), shaped


def halves(name: str, out: Any) -> tuple[Tensor, Tensor]:
    """(mean, log_var) of a module's output, which may be one tensor to chunk."""
    if isinstance(out, Tensor):
        if out.dim() < 2 or out.shape[1] % 2:
            raise ValueError(
                f"{name}: one output tensor is chunked in two along dimension 1, which must be even, "
                f"got shape {tuple(out.shape)}; or return (mean, log_var)"
            )
        mean, log_var = out.chunk(2, dim=1)
    elif isinstance(out, (tuple, list)) and len(out) == 2:
        mean, log_var = out
    else:
        raise TypeError(f"{name}: expected (mean, log_var) or one tensor, got {type(out).__name__}")
    return mean, log_var
