"""The gate before every op: which calls autograd sees, and which the transforms of torch.func see.

An op is called through an autograd Function only where a gradient is needed, as a Function costs several
microseconds. torch.func's transforms and forward-mode AD cannot see through an op, and would silently give zero
tangents or repeat noise, so calls under them go to the reference, or raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.function import once_differentiable

_functorch = torch._C._functorch


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd must see this call."""
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:
        if tensor is not None and tensor.requires_grad:
            return True
    return False


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """function.apply(*arguments). In eager mode without the part of it, in Python, that looks for torch.func's
    transforms: the gate has."""
    if torch.compiler.is_compiling():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's once_differentiable, which costs microseconds, only where a graph of the gradient is asked for."""
    strict = once_differentiable(backward)

    def call(ctx: Any, *grads: Tensor | None) -> Any:
        return strict(ctx, *grads) if torch.is_grad_enabled() else backward(ctx, *grads)

    return call


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is active."""
    if torch.compiler.is_compiling():
        return False
    return _functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def transformed_noise(name: str, key: Tensor | None) -> bool:
    """The same for a function that draws: True sends it to the reference, which needs a key to be a function.

    Raises:
        RuntimeError: without a key, or under vmap with a key that is not batched: every row of the batch would
            repeat the same noise.
    """
    if not transformed():
        return False
    levels = _functorch.get_interpreter_stack() or []
    vmapped = any(level.key() == _functorch.TransformType.Vmap for level in levels)
    if key is None or (vmapped and not _functorch.is_batchedtensor(key)):
        raise RuntimeError(
            f"{name} draws noise, which torch.func and forward-mode AD would repeat or lose: pass key=, and under "
            "vmap a key for each row, batched like the inputs: keys = variate.random.split(key, B) with in_dims=0"
        )
    return True
