"""Argument checks shared by all functions. They read metadata only: no device is waited for.

Each raises ValueError or TypeError with the argument's name, what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
TARGETS = FLOATING | {torch.uint8, torch.bool}
INTEGERS = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
_debug = False


def set_debug(enabled: bool) -> None:
    """Turns value checks on or off: that targets and probabilities lie in [0, 1], and that levels on a GPU are among
    the 2^bits there are. Off by default, as each check reads the tensor and makes the host wait for a GPU. Under
    torch.compile and torch.func, which have no values to read, they pass."""
    global _debug
    _debug = bool(enabled)


def rows_of(size: Sequence[int]) -> int:
    """The number of samples of a tensor of this size: dimension 0 of two or more, else one."""
    return size[0] if len(size) > 1 else 1


def floating(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {dtype_name(value.dtype)}")


def alike(name: str, value: Tensor, like_name: str, like: Tensor, dtypes: frozenset[torch.dtype] = FLOATING) -> None:
    """`like` is floating, `value` has one of the dtypes, and the two share shape and device."""
    if (
        isinstance(like, Tensor)
        and isinstance(value, Tensor)
        and like.dtype in FLOATING
        and value.dtype in dtypes
        and like.shape == value.shape
        and like.device == value.device
    ):
        return
    floating(like_name, like)
    if not isinstance(value, Tensor) or value.dtype not in dtypes:
        floating(name, value)
    same_shape(name, value, like_name, like)
    same_device(name, value, like_name, like)


def floating_dtype(dtype: torch.dtype) -> None:
    if dtype not in FLOATING:
        raise TypeError(f"dtype: expected float32, float64, bfloat16 or float16, got {dtype_name(dtype)}")


def same_device(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{name}: expected the device of {like_name}, {like.device}, got {value.device}")


def same_shape(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.shape != like.shape:
        raise ValueError(f"{name}: expected the shape of {like_name}, {tuple(like.shape)}, got {tuple(value.shape)}")


def expanded(name: str, value: Tensor, like_name: str, like: Tensor) -> Tensor:
    """`value` broadcast to the shape of `like`."""
    same_device(name, value, like_name, like)
    if value.shape == like.shape:
        return value
    try:
        return value.expand(like.shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to that of {like_name}, {tuple(like.shape)}, "
            f"got {tuple(value.shape)}"
        ) from None


def broadcast(name: str, value: Tensor, like_name: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """`like` and `value`, both floating and on one device, in the shape that torch broadcasts the two to."""
    if (
        isinstance(like, Tensor)
        and isinstance(value, Tensor)
        and like.dtype in FLOATING
        and value.dtype in FLOATING
        and like.shape == value.shape
        and like.device == value.device
    ):
        return like, value
    floating(like_name, like)
    floating(name, value)
    same_device(name, value, like_name, like)
    try:
        like, value = torch.broadcast_tensors(like, value)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts with that of {like_name}, {tuple(like.shape)}, "
            f"got {tuple(value.shape)}"
        ) from None
    return like, value


def count(name: str, value: int, least: int = 1) -> None:
    """`value` is a number of things, at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def scalar(name: str, value: float | Tensor, like: Tensor) -> Tensor | None:
    """A setting that people anneal, as a 0-d tensor; None for a plain 0, which switches it off."""
    if isinstance(value, Tensor):
        return scalar_tensor(name, value, like)
    _plain_number(name, value)
    if not value >= 0:
        raise ValueError(f"{name}: expected at least 0, got {value}")
    return None if value == 0 else _full(value, torch.float64, torch.device("cpu"))


def positive(name: str, value: float | Tensor, like: Tensor) -> Tensor | None:
    """A setting above 0 that people anneal, as a 0-d tensor; None for 1 in eager code."""
    if isinstance(value, Tensor):
        return scalar_tensor(name, value, like)
    _plain_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")
    if value == 1 and not torch.compiler.is_compiling():
        return None
    return _full(value, torch.float64, torch.device("cpu"))


def scalar_tensor(name: str, value: Tensor, like: Tensor) -> Tensor:
    if value.numel() != 1 or value.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name}: expected a number or a 0-d float32 or float64 tensor, "
            f"got shape {tuple(value.shape)}, {dtype_name(value.dtype)}"
        )
    if value.device.type != "cpu":
        same_device(name, value, "the inputs", like)
    return value.detach() if value.requires_grad else value


def _plain_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number or a 0-d tensor, got {type(value).__name__}")


def number(name: str, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A setting that people anneal, as a 0-d tensor."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")
    return _full(value, dtype, device)


def _full(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():  # a sum takes a symbol, where full would make a graph for each value
        return torch.zeros((), dtype=dtype, device=device) + value
    return torch.full((), value, dtype=dtype, device=device)


def readable(value: Tensor) -> bool:
    """Whether a check may look at values: on the CPU always, elsewhere under set_debug(True)."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return (_debug or value.is_cpu) and value.numel() > 0


def unit_interval(name: str, value: Tensor) -> None:
    """Under set_debug(True): all of `value` lies in [0, 1]; NaN passes, as everywhere."""
    if not _debug or not readable(value):
        return
    if bool(((value < 0) | (value > 1)).any()):
        raise ValueError(f"{name}: expected values in [0, 1], got {value.min().item()} to {value.max().item()}")


def levels(name: str, value: Tensor, bits: int) -> None:
    """All of `value` is one of the 2^bits levels, or their values in [-1, 1]; NaN passes. A tensor that could hold
    others is looked at: on the CPU always, elsewhere under set_debug(True)."""
    if (value.dtype == torch.uint8 and bits == 8) or not readable(value):
        return
    top = 2**bits - 1
    if value.dtype == torch.uint8:
        largest = int(value.max())
        if largest > top:
            raise ValueError(f"{name}: expected levels 0 to {top} of {bits} bits, got {largest}")
        return
    level = (value.detach().to(torch.promote_types(value.dtype, torch.float32)) + 1) * (top / 2)
    error = float((level - level.round().clamp_(0, top)).abs_().max())
    if error > 0.02 + top * torch.finfo(value.dtype).eps:  # room for x in its dtype, made by a few operations
        raise ValueError(
            f"{name}: expected the values 2 level / {top} - 1 of {bits} bits, in [-1, 1], got one that is {error:.3g} "
            "levels from the nearest; uint8 levels need no such scaling"
        )


def categories(name: str, value: Tensor, ways: int) -> None:
    """All of `value` lies in [0, ways). Looked at on the CPU always, elsewhere under set_debug(True)."""
    if (value.dtype == torch.uint8 and ways >= 256) or not readable(value):
        return
    low, high = (int(x) for x in torch.aminmax(value))
    if low < 0 or high >= ways:
        raise ValueError(f"{name}: expected categories 0 to {ways - 1}, got {low} to {high}")


def first_sample(value: int, rows: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"first_sample: expected an int, got {type(value).__name__}")
    if value < 0 or value + rows > 2**32:
        raise ValueError(f"first_sample: expected 0 <= first_sample <= 2^32 - {rows}, got {value}")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
