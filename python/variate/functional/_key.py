"""Where a call's noise comes from: the key it is given, or one drawn from torch's generator."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks

_LOW, _HIGH = -(2**63), 2**63 - 1


def resolve(
    key: Tensor | None,
    generator: torch.Generator | None,
    first_sample: int,
    rows: int,
    device: torch.device,
) -> Tensor:
    """The key of a call over `rows` samples, an int64 tensor [2] or [rows, 2] on `device`."""
    _checks.first_sample(first_sample, rows)
    if key is None:
        return draw(generator, device)
    if generator is not None:
        raise ValueError("generator: expected None where a key is given; a key leaves nothing to draw")
    key = as_int64(key)
    if key.dim() not in (1, 2) or key.shape[-1] != 2 or (key.dim() == 2 and key.shape[0] != rows):
        raise ValueError(
            f"key: expected shape (2,), or ({rows}, 2) for a key per sample, got {tuple(key.shape)}; "
            "variate.random.key(seed) makes one"
        )
    if key.device != device:
        raise ValueError(f"key: expected it on {device}, got {key.device}; key.to({str(device)!r}) moves it")
    if key.dim() == 2 and first_sample != 0:
        raise ValueError(
            f"first_sample: expected 0 with a key per sample, each of which is sample 0 of its own stream, "
            f"got {first_sample}"
        )
    return key


def as_int64(key: Tensor) -> Tensor:
    """The key with its bits as int64; torch.func._random's uint64 keys are taken too."""
    if not isinstance(key, Tensor):
        raise TypeError(
            f"key: expected an int64 tensor, got {type(key).__name__}; variate.random.key(seed) makes one"
        )
    if key.dtype == torch.uint64:
        return key.view(torch.int64)
    if key.dtype != torch.int64:
        raise TypeError(f"key: expected int64, got {str(key.dtype).removeprefix('torch.')}")
    return key


def draw(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A fresh key by one torch.randint: torch.manual_seed and torch.compile know what to do with it."""
    if generator is None:
        return torch.randint(_LOW, _HIGH, (2,), device=device)
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "generator: torch.compile does not take a torch.Generator; pass key=variate.random.key(seed) instead"
        )
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
    key = torch.randint(_LOW, _HIGH, (2,), device=generator.device, generator=generator)
    return key.to(device, non_blocking=True)
