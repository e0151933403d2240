"""Exponential moving averages of a model's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate

__all__ = ["ema_update_"]


def ema_update_(
    averages: Sequence[Tensor] | Sequence[Sequence[Tensor]],
    parameters: Sequence[Tensor],
    decay: float | Tensor | Sequence[float | Tensor],
) -> None:
    """a <- decay a + (1 - decay) p  for every tensor, and for every profile, in one pass over the parameters.

    Args:
        averages: the averages, changed in place: a list of tensors, one of the shape and device of each parameter, or
            for several profiles a list of such lists. float32, float64, bfloat16 or float16.
        parameters: the tensors p, of any of these dtypes each. They are read as they are; no gradient goes through.
        decay: in [0, 1], a number or a 0-d float32 or float64 tensor, which may change in a captured graph; for
            several profiles one for each, or a tensor [profiles].

    Raises:
        TypeError: something that is not a tensor, or not of a dtype named above.
        ValueError: lists of other lengths, shapes or devices that do not fit, a decay outside [0, 1].

    The math is float32, or float64 where a is, and rounds once to the dtype of a. With w = 1 - decay it is
    fma(w, p - a, a) for w < 1/2 and fma(-decay, p - a, p) else, torch.lerp's rule: a decay of 1 keeps a, one of 0 gives
    p, and an a that equals p stays. An element's bits depend on nothing else.

    On a GPU, where the tensors are goes to the device at the first call with them: capture a later one in a graph.

    Source: Polyak and Juditsky 1992; of several profiles: Karras et al. 2024, "Analyzing and improving the training
    dynamics of diffusion models", section 3.
    """
    parameters = list(parameters)
    several = len(averages) > 0 and not isinstance(averages[0], Tensor)
    profiles: list[list[Any]] = [list(profile) for profile in averages] if several else [list(averages)]
    decays: list[Any] = _decays(decay, len(profiles)) if several else [decay]
    for k, profile in enumerate(profiles):
        if len(profile) != len(parameters):
            name = f"averages[{k}]" if several else "averages"
            raise ValueError(f"{name}: expected {len(parameters)} tensors, one for each parameter, got {len(profile)}")
    flat = [average for profile in profiles for average in profile]
    if not parameters:
        return
    like = parameters[0]
    if not isinstance(like, Tensor):
        _check(flat, parameters)
    op = _backend.select("ema_update_", like)
    if op is None or torch.compiler.is_compiling() or _gate.transformed() or not like.is_cpu:
        _check(flat, parameters)
    if op is None or _gate.transformed():
        for profile, one in zip(profiles, decays, strict=True):
            reference.ema.ema_update_(profile, parameters, _number(one, like))
        return
    numbers = [_number(one, like) for one in decays]
    decay = numbers[0].reshape(1) if len(numbers) == 1 else torch.stack(numbers)
    if torch.compiler.is_compiling():
        op(flat, parameters, decay)
        return
    try:
        with torch.no_grad():
            if any([not tensor.is_cpu for tensor in flat]) and like.is_cpu:
                raise RuntimeError("tensors of several devices")
            op(flat, parameters, decay)
    except (RuntimeError, AttributeError):
        _check(flat, parameters)  # names what the kernel, which looks before it writes, refused
        raise


def _decays(decay: Any, profiles: int) -> list[Any]:
    decays = list(decay.unbind()) if isinstance(decay, Tensor) and decay.dim() == 1 else decay
    if not isinstance(decays, (list, tuple)) or len(decays) != profiles:
        raise ValueError(f"decay: expected {profiles} numbers, one for each profile, got {decay}")
    return list(decays)


def _number(decay: Any, like: Tensor) -> Tensor:
    if isinstance(decay, Tensor):
        if decay.numel() != 1 or decay.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"decay: expected a number or a 0-d float32 or float64 tensor, got shape {tuple(decay.shape)}, "
                f"{_checks.dtype_name(decay.dtype)}"
            )
        return decay.detach().reshape(()).to(like.device, torch.float64, non_blocking=True)
    number = _checks.number("decay", decay, torch.float64, like.device)
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: expected 0 <= decay <= 1, got {decay}")
    return number


def _check(averages: list[Any], parameters: list[Any]) -> None:
    count = len(parameters)
    for i, parameter in enumerate(parameters):
        if not isinstance(parameter, Tensor) or parameter.dtype not in _checks.FLOATING:
            _checks.floating(f"parameters[{i}]", parameter)
        for at in range(i, len(averages), count):
            average = averages[at]
            if (
                isinstance(average, Tensor)
                and average.dtype in _checks.FLOATING
                and average.shape == parameter.shape
                and average.device == parameter.device
            ):
                continue
            name = f"averages[{i}]" if len(averages) == count else f"averages[{at // count}][{i}]"
            _checks.floating(name, average)
            _checks.same_shape(name, average, f"parameters[{i}]", parameter)
            _checks.same_device(name, average, f"parameters[{i}]", parameter)
        if parameter.device != parameters[0].device:
            _checks.same_device(f"parameters[{i}]", parameter, "parameters[0]", parameters[0])


@_backend.register("ema_update_", cuda=False)
def _(averages: list[Tensor], parameters: list[Tensor], decay: Tensor) -> None:
    return None
