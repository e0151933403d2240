"""The gate before every op: which calls autograd sees, and which the transforms of torch.func see.

An op is called through an autograd Function only where a gradient is needed, as a Function is not
free. torch.func's transforms and forward-mode AD cannot see through an op, and would silently give zero
tangents or repeat noise, so calls under them go to the reference, or raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

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
        return function.apply(*_distinct(arguments))
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


def _distinct(arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments, with a view for each tensor that came before: torch.compile takes a tensor only once."""
    distinct: list[Any] = []
    for argument in arguments:
        repeated = isinstance(argument, Tensor) and any(argument is earlier for earlier in distinct)
        distinct.append(argument.view_as(argument) if repeated else argument)
    return distinct


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward whose own derivative raises, also where torch's once_differentiable, whose gradients forget what they
    came from, would let allow_unused=True and torch.autograd.functional read it as 0."""

    def call(ctx: Any, *grads: Tensor | None) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        given = (*grads, *ctx.saved_tensors)
        sources = [t for t in given if t is not None and t.requires_grad]
        return _Once.apply(len(results), *results, *sources) if sources else results

    return call


def differentiable_by(formula: Callable[..., Tensor]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A backward whose own derivatives are those of `formula`, the function in plain PyTorch: it runs in place of the
    backward under create_graph=True, on the saved tensors, which are the function's first arguments, and ctx.how."""

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        def call(ctx: Any, grad: Tensor) -> Any:
            if not torch.is_grad_enabled():
                return backward(ctx, grad)
            # Views, as one tensor may come as several arguments.
            tensors: list[Any] = [None if t is None else t.view_as(t) for t in ctx.saved_tensors]
            needed = ctx.needs_input_grad
            wanted = [t for t, need in zip(tensors, needed, strict=False) if need]
            found = iter(torch.autograd.grad(formula(*tensors, *ctx.how), wanted, grad, create_graph=True))
            return tuple(next(found) if need else None for need in needed)

        return call

    return decorate


class _Once(torch.autograd.Function):
    """The first `count` tensors, as functions of all that follow: functions whose derivative raises."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if t is None else t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(
            "trying to differentiate twice a function of variate whose gradient is once_differentiable; "
            'with variate.use_backend("reference"), or under torch.func, it has all derivatives'
        )


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def transformed_noise(name: str, key: Tensor | None) -> bool:
    """The same for a function that draws: True sends it to the reference, which needs a key to be a function.

    Raises:
        RuntimeError: without a key, or under a vmap that does not map the key: every row of the batch would repeat the
            same noise.
    """
    if not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0:
        return False
    levels = _functorch.get_interpreter_stack() or []
    maps = {level.level() for level in levels if level.key() == _functorch.TransformType.Vmap}
    if key is None or maps - _maps_of(key):
        raise RuntimeError(
            f"{name} draws noise, which torch.func and forward-mode AD would repeat or lose: pass key=, and under "
            "vmap a key for each row, batched like the inputs: keys = variate.random.split(key, B) with in_dims=0"
        )
    return True


def _maps_of(key: Tensor) -> set[int]:
    """The levels of vmap that map the key, which other transforms may wrap in between."""
    levels = set()
    while _functorch.is_functorch_wrapped_tensor(key):
        if _functorch.is_batchedtensor(key):
            levels.add(_functorch.maybe_get_level(key))
        key = _functorch.get_unwrapped(key)
    return levels
