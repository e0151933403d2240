"""Where a call's noise comes from: the key it is given, or one drawn from torch's generator."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks

_ONE_KEY = (2,)
_LOW, _HIGH = -(2**63), 2**63 - 1


def resolve(key: Tensor | None, generator: torch.Generator | None, first_sample: int, like: Tensor) -> Tensor:
    """The key of a call over the samples of `like`: an int64 tensor [2] or [rows, 2] on its device."""
    key = check(key, generator, first_sample, like)
    if key is not None:
        return key
    return fresh() if generator is None and like.is_cpu else draw(generator, like.device)


def fresh() -> Tensor:
    """A key from torch's CPU generator."""
    return torch.randint(_LOW, _HIGH, _ONE_KEY)


def check(key: Tensor | None, generator: torch.Generator | None, first_sample: int, like: Tensor) -> Tensor | None:
    """The key where one is given, as int64. The checks of `resolve`, for calls that the reference takes."""
    if first_sample != 0:
        _checks.first_sample(first_sample, _checks.rows_of(like.shape))
    if key is None:
        return None
    if generator is not None:
        raise ValueError("generator: expected None where a key is given; a key leaves nothing to draw")
    key = as_int64(key)
    if key.device != like.device:
        raise ValueError(f"key: expected it on {like.device}, got {key.device}; key.to({str(like.device)!r}) moves it")
    if key.shape == _ONE_KEY:
        return key
    rows = _checks.rows_of(like.shape)
    if key.shape != (rows, 2):
        raise ValueError(
            f"key: expected shape (2,), or ({rows}, 2) for a key per sample, got {tuple(key.shape)}; "
            "variate.random.key(seed) makes one"
        )
    if first_sample != 0:
        raise ValueError(
            f"first_sample: expected 0 with a key per sample, each of which is sample 0 of its own stream, "
            f"got {first_sample}"
        )
    return key


def as_int64(key: Tensor) -> Tensor:
    """The key with its bits as int64; torch.func._random's uint64 keys are taken too."""
    if not isinstance(key, Tensor):
        raise TypeError(f"key: expected an int64 tensor, got {type(key).__name__}; variate.random.key(seed) makes one")
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
