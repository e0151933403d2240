"""What the ops that sum terms over each sample share: variate::op(*tensors, elementwise, *constants), whose gradients
are variate::op_backward(grad, *tensors, wanted, *constants), with a bit of `wanted` for the gradient of each tensor.

With `elementwise` the result has the shape of the tensors: one number per element, not [B]; None is for an op without
that choice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _backend, _checks, _gate


def call(
    name: str, like: Tensor, *others: Tensor | None, elementwise: bool | None = False, constants: tuple[int, ...] = ()
) -> Tensor:
    """The op `name`, seen by autograd where a gradient is needed."""
    settings = constants if elementwise is None else (elementwise, *constants)
    if _gate.needs_grad(like, *others):
        return _gate.apply(_Terms, name, settings, constants, like, *others)
    return _backend.select(name, like)(like, *others, *settings)


def wanted(needs_grad: tuple[bool, ...]) -> int:
    """The bits of the gradients that are needed."""
    return sum(1 << index for index, needs in enumerate(needs_grad) if needs)


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str, settings: tuple[int, ...], constants: tuple[int, ...], like: Tensor, *others: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(like, *others)
        ctx.name, ctx.constants = name, constants
        return _backend.select(name, like)(like, *others, *settings)

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        op = _backend.select(f"{ctx.name}_backward", tensors[0])
        gradients = op(grad, *tensors, wanted(needs), *ctx.constants)
        # The last tensors may be settings, which have no gradient.
        found = tuple(gradient if need else None for gradient, need in zip(gradients, needs, strict=False))
        return None, None, None, *found, *(None,) * (len(tensors) - len(found))


def new_result(elementwise: bool, *tensors: Tensor | None) -> Tensor:
    """A fake of the result: terms have the dtype that torch promotes to, sums are float32 at least."""
    given = [tensor for tensor in tensors if tensor is not None]
    dtypes = [tensor.dtype for tensor in given if tensor.dtype.is_floating_point]
    if elementwise:
        dtype = dtypes[0]
        for other in dtypes[1:]:
            dtype = torch.promote_types(dtype, other)
        return given[0].new_empty(given[0].shape, dtype=dtype)
    wide = torch.float64 in dtypes
    return given[0].new_empty((_checks.rows_of(given[0].shape),), dtype=torch.float64 if wide else torch.float32)


def new_gradients(bits: int, like: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Fakes of the gradients of `like` and `tensors`: empty where they are not wanted."""
    return tuple(
        tensor.new_empty(tensor.shape) if tensor is not None and bits >> index & 1 else like.new_empty((0,))
        for index, tensor in enumerate((like, *tensors))
    )
