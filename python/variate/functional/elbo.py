"""The terms of the evidence lower bound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate

__all__ = ["bernoulli_nll"]


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """nll_b = sum_d softplus(logits_bd) - logits_bd target_bd = -log Bernoulli(target_b | sigmoid(logits_b)).

    Args:
        logits: [B, ...] float32, float64, bfloat16 or float16. A 1-D tensor is one sample.
        target: the shape of logits; floating in [0, 1], or uint8 or bool with values 0 and 1. Values outside are
            taken as they are, and reported under ``variate.set_debug(True)``.

    Returns:
        [B] in nats: float64 where an input is, else float32. An infinite logit that is right costs 0.

    Raises:
        TypeError: a dtype that is not named above.
        ValueError: logits and target differ in shape or device.

    The gradients are sigmoid(logits) - target and -logits. Autocast leaves the inputs as they are.

    Source: Kingma and Welling 2014, appendix C.1.
    """
    _checks.alike("target", target, "logits", logits, _checks.TARGETS)
    _checks.unit_interval("target", target)
    op = _backend.select("bernoulli_nll", logits)
    if op is None or _gate.transformed():
        return reference.elbo.bernoulli_nll(logits, target)
    if _gate.needs_grad(logits, target):
        return _gate.apply(_BernoulliNll, logits, target)
    return op(logits, target)


class _BernoulliNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        return _backend.select("bernoulli_nll", logits)(logits, target)

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, target = ctx.saved_tensors
        op = _backend.select("bernoulli_nll_backward", logits)
        target_needs_grad = ctx.needs_input_grad[1]
        grad_logits, grad_target = op(grad_nll, logits, target, target_needs_grad)
        return grad_logits, grad_target if target_needs_grad else None


@_backend.register("bernoulli_nll")
def _(logits: Tensor, target: Tensor) -> Tensor:
    wide = torch.float64 in (logits.dtype, target.dtype)
    return logits.new_empty((_checks.rows_of(logits.shape),), dtype=torch.float64 if wide else torch.float32)


@_backend.register("bernoulli_nll_backward")
def _(grad_nll: Tensor, logits: Tensor, target: Tensor, target_needs_grad: bool) -> tuple[Tensor, Tensor]:
    grad_target = target.new_empty(target.shape) if target_needs_grad else logits.new_empty((0,))
    return logits.new_empty(logits.shape), grad_target
