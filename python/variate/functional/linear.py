"""A decoder's last layer and its likelihood in one op, whose logits exist a chunk at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate

__all__ = ["linear_bernoulli_nll", "linear_categorical_nll"]

_TARGETS = {
    "bernoulli": (_checks.TARGETS, "a floating dtype, uint8 or bool"),
    "categorical": (_checks.INTEGERS, "an integer dtype"),
}


def linear_bernoulli_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """nll_b = sum_d softplus(l_bd) - l_bd target_bd with l = hidden weight^T + bias: ``bernoulli_nll(F.linear(...))``.

    Args:
        hidden: [B, H], or [K, B, H] for K samples of each datum, in float32, float64, bfloat16 or float16. A 1-D tensor
            is one sample.
        weight: [D, H], as nn.Linear has it, in the dtype of hidden.
        bias: [D] in that dtype, or None.
        target: [B, ...] with D elements to a row, shared by the K samples; floating in [0, 1], or uint8 or bool with
            values 0 and 1. Values outside are taken as they are, and reported under ``variate.set_debug(True)``.

    Returns:
        [B], or [K, B], in nats: float64 where an input is, else float32.

    Raises:
        TypeError: a dtype that is not named above.
        ValueError: shapes that do not fit, devices that differ, or a target that requires a gradient, which has none.

    The products are torch's, on chunks of rows; the logits of a chunk become, in place, their gradient, so no tensor of
    all logits exists. Where a gradient is needed, the forward pass makes those of ``nll.sum()``, and the backward pass
    scales them. An incoming gradient that is not the same for all rows, as of an importance-weighted bound, scales the
    rows of hidden's, and the products of weight's are made again. Under autocast the layer's inputs are cast, as
    F.linear's are; the likelihood is computed in float32.

    Source: Kingma and Welling 2014, appendix C.1.
    """
    return nll("bernoulli", hidden, weight, bias, target)


def linear_categorical_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """nll_b = sum_d logsumexp_c l_bdc - l_bd[target_bd] with l = hidden weight^T + bias, seen as [B, D, C].

    Args:
        hidden: [B, H], or [K, B, H] for K samples of each datum, in float32, float64, bfloat16 or float16. A 1-D tensor
            is one sample.
        weight: [D C, H]: a row for each category of each variable, in the dtype of hidden.
        bias: [D C] in that dtype, or None.
        target: [B, ...] with D integers to a row, shared by the K samples, of any integer dtype, in [0, C). On a GPU
            and under torch.compile, where values are not looked at, one outside makes the likelihood of its row, and
            all gradients that the row has a part in, NaN.

    Returns:
        [B], or [K, B], in nats: float64 for float64 inputs, else float32.

    Raises:
        TypeError: a dtype that is not named above.
        ValueError: shapes that do not fit, devices that differ, or a target outside [0, C).

    For the rest see :func:`linear_bernoulli_nll`.

    Source: van den Oord et al. 2016 (pixels as 256 categories).
    """
    return nll("categorical", hidden, weight, bias, target)


def nll(
    likelihood: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, weighted: bool = False
) -> Tensor:
    """The functions of this module by the name of their likelihood. `weighted` says beforehand that the incoming
    gradient will differ from row to row: then the gradient to all logits is kept for the backward pass, where the
    products that are made of it are but scaled, in the place of a forward pass whose gradients are in vain."""
    name = f"linear_{likelihood}_nll"
    if torch.is_autocast_enabled(hidden.device.type if isinstance(hidden, Tensor) else "cpu"):
        hidden, weight, bias = (_autocast(tensor) for tensor in (hidden, weight, bias))
    target = _check(likelihood, hidden, weight, bias, target)
    op = _backend.select(name, hidden)
    if op is None or _gate.transformed():
        return getattr(reference.linear, name)(hidden, weight, bias, target)
    if not _gate.needs_grad(hidden, weight, bias, target):
        return op(hidden, weight, bias, target, False, False, False)[0]
    if target.requires_grad:
        raise ValueError("target: expected a tensor that requires no gradient; bernoulli_nll(F.linear(...)) gives one")
    if weighted and _backend.select(f"{name}_residual", hidden) is not None:
        return _gate.apply(_WeightedLinearNll, name, hidden, weight, bias, target)
    unit = [not weighted and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    return _gate.apply(_LinearNll, name, hidden, weight, bias, target, *unit)


def _autocast(tensor: Any) -> Any:
    """As autocast gives it to F.linear."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in _checks.FLOATING or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _check(likelihood: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Every argument, and the target in a dtype of the ops."""
    _checks.floating("hidden", hidden)
    if not 1 <= hidden.dim() <= 3:
        raise ValueError(f"hidden: expected [B, H] or [K, B, H], got shape {tuple(hidden.shape)}")
    for name, value in (("weight", weight), *([] if bias is None else [("bias", bias)])):
        _checks.floating(name, value)
        if value.dtype != hidden.dtype:
            expected, got = _checks.dtype_name(hidden.dtype), _checks.dtype_name(value.dtype)
            raise TypeError(f"{name}: expected the dtype of hidden, {expected}, got {got}")
        _checks.same_device(name, value, "hidden", hidden)
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"weight: expected [outputs, {hidden.shape[-1]}], got shape {tuple(weight.shape)}")
    outputs = weight.shape[0]
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias: expected [{outputs}], got shape {tuple(bias.shape)}")
    dtypes, kinds = _TARGETS[likelihood]
    if not isinstance(target, Tensor) or target.dtype not in dtypes:
        got = _checks.dtype_name(target.dtype) if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"target: expected {kinds}, got {got}")
    _checks.same_device("target", target, "hidden", hidden)
    rows = hidden.shape[-2] if hidden.dim() > 1 else 1
    shape = tuple(target.shape)
    if (target.dim() != 1) if hidden.dim() == 1 else (target.dim() < 2 or target.shape[0] != rows):
        raise ValueError(f"target: expected {f'[{rows}, ...]' if hidden.dim() > 1 else 'one dimension'}, got {shape}")
    variables = math.prod(shape[1:]) if hidden.dim() > 1 else shape[0]
    if likelihood == "bernoulli":
        if variables != outputs:
            raise ValueError(f"target: expected {outputs} elements to a row, one for each output, got {shape}")
        _checks.unit_interval("target", target)
        return target
    if (outputs % variables if variables else outputs) != 0 or outputs < variables:
        raise ValueError(f"target: expected a number of elements to a row that divides {outputs}, got {shape}")
    _checks.categories("target", target, outputs // variables if variables else 1)
    return target if target.dtype == torch.uint8 else target.long()


class _LinearNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *unit: bool
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.name = name
        total, *made = _backend.select(name, hidden)(hidden, weight, bias, target, *unit)
        ctx.unit = made if any(unit) else None
        return total

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target = ctx.saved_tensors
        # Those of nll.sum() become those of this call in place, so a second backward makes its own.
        made, ctx.unit = ctx.unit, None
        layer = (hidden, weight, bias)
        wanted = ctx.needs_input_grad[1:4]
        grads = made or [x.new_empty(x.shape) if want else None for x, want in zip(layer, wanted, strict=True)]
        grads = [grad if want else None for grad, want in zip(grads, wanted, strict=True)]
        op = _backend.select(f"{ctx.name}_backward", hidden)
        op(grad_nll, *layer, target, *grads, made is not None)
        return None, *grads, None, None, None, None


class _WeightedLinearNll(torch.autograd.Function):
    """With R the gradient of nll.sum() to the logits and g that of each row: diag(g) R weight, R^T diag(g) hidden, R^T
    g."""

    @staticmethod
    def forward(ctx: Any, name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        op = _backend.select(f"{name}_residual", hidden)
        total, residual, grad_hidden = op(hidden, weight, bias, target)
        # weight and target are there to notice a change in place.
        ctx.save_for_backward(hidden, residual, grad_hidden, weight, target)
        return total

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        hidden, residual, grad_hidden, _, _ = ctx.saved_tensors
        _, hidden_needs, weight_needs, bias_needs, _ = ctx.needs_input_grad
        g = grad_nll.reshape(-1, 1).to(residual.dtype)
        rows = hidden.reshape(len(residual), -1)
        return (
            None,
            (grad_hidden.view(rows.shape) * g).view(hidden.shape) if hidden_needs else None,
            residual.t() @ (rows * g) if weight_needs else None,
            torch.mv(residual.t(), g[:, 0]) if bias_needs else None,
            None,
        )


def _fake_nll(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    hidden_grad: bool,
    weight_grad: bool,
    bias_grad: bool,
) -> tuple[Tensor, ...]:
    wide = torch.float64 in (hidden.dtype, target.dtype)
    rows = hidden.shape[:-1] if hidden.dim() > 1 else (1,)
    wanted = ((hidden, hidden_grad), (weight, weight_grad), (bias, bias_grad))
    return (
        hidden.new_empty(rows, dtype=torch.float64 if wide else torch.float32),
        *(weight.new_empty((0,) if x is None or not want else x.shape) for x, want in wanted),
    )


def _fake_backward(
    grad_nll: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    unit: bool,
) -> None:
    return None


def _fake_residual(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    nll = _fake_nll(hidden, weight, bias, target, False, False, False)[0]
    return nll, hidden.new_empty((nll.numel(), weight.shape[0])), hidden.new_empty(hidden.shape)


for _likelihood in ("bernoulli", "categorical"):
    _backend.register(f"linear_{_likelihood}_nll", cuda=False)(_fake_nll)
    _backend.register(f"linear_{_likelihood}_nll_residual", cuda=False)(_fake_residual)
    _backend.register(f"linear_{_likelihood}_nll_backward", cuda=False)(_fake_backward)
