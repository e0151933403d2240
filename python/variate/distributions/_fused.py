"""Log-probabilities, divergences and draws of distributions: one op forward, one backward, derivatives of any order.

The tensors of a call share shape and device. `summed` gives one number per row, [rows], in place of one per element.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import _backend, _gate
from ..reference._rows import sum_rows

LOG_VAR, LOG_SCALE, SCALE = range(3)  # what a spread holds: variate_parametrization
NORMAL, LOGISTIC, LAPLACE, GUMBEL = range(4)  # variate_base


def normal_log_prob(loc: Tensor, spread: Tensor, value: Tensor, parametrization: int, summed: bool = False) -> Tensor:
    """-((value - loc) / scale)^2 / 2 - log(scale) - log(2 pi) / 2."""
    if _gate.needs_grad(loc, spread, value):
        return _gate.apply(_NormalLogProb, loc, spread, value, parametrization, not summed)
    return _backend.select("normal_nll", loc)(loc, spread, value, not summed, parametrization).neg_()


def normal_kl(
    loc: Tensor,
    spread: Tensor,
    other_loc: Tensor | None,
    other_spread: Tensor | None,
    parametrization: int,
    summed: bool = False,
) -> Tensor:
    """((scale / other_scale)^2 + ((loc - other_loc) / other_scale)^2 - 1) / 2 - log(scale / other_scale); the other is
    the standard normal where it is left out."""
    if _gate.needs_grad(loc, spread, other_loc, other_spread):
        return _gate.apply(_NormalKl, loc, spread, other_loc, other_spread, parametrization, not summed)
    op = _backend.select("normal_kl", loc)
    return op(loc, spread, other_loc, other_spread, None, not summed, parametrization)


def bernoulli_log_prob(logits: Tensor, value: Tensor, summed: bool = False) -> Tensor:
    """value logits - softplus(logits)."""
    if _gate.needs_grad(logits, value):
        return _gate.apply(_BernoulliLogProb, logits, value, not summed)
    return _backend.select("bernoulli_nll", logits)(logits, value, not summed).neg_()


def bernoulli_kl(logits: Tensor, other_logits: Tensor, summed: bool = False) -> Tensor:
    """sigmoid(logits) (logits - other_logits) + softplus(other_logits) - softplus(logits)."""
    if _gate.needs_grad(logits, other_logits):
        return _gate.apply(_BernoulliKl, logits, other_logits, not summed)
    return _backend.select("bernoulli_kl", logits)(logits, other_logits, not summed)


def location_scale(
    base: int, loc: Tensor, spread: Tensor, key: Tensor, samples: int = 0, parametrization: int = SCALE
) -> Tensor:
    """loc + scale eps, with `samples` draws [samples, ...]; one without that dimension where it is 0."""
    if _gate.needs_grad(loc, spread):
        return _gate.apply(_LocationScale, loc, spread, key, samples, base, parametrization)
    op = _backend.select("location_scale_rsample", loc)
    return op(loc, spread, key, 0, samples, False, base, parametrization)


class _NormalLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loc: Tensor, spread: Tensor, value: Tensor, parametrization: int, elementwise: bool
    ) -> Tensor:
        ctx.save_for_backward(loc, spread, value)
        ctx.how = (parametrization, elementwise)
        return _backend.select("normal_nll", loc)(loc, spread, value, elementwise, parametrization).neg_()

    @staticmethod
    @_gate.differentiable_by(lambda *arguments: _normal_log_prob_again(*arguments))
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        loc, spread, value = ctx.saved_tensors
        op = _backend.select("normal_nll_backward", loc)
        grads = op(-grad, loc, spread, value, _wanted(ctx), ctx.how[0])
        return _needed(ctx, grads)


class _NormalKl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loc: Tensor,
        spread: Tensor,
        other_loc: Tensor | None,
        other_spread: Tensor | None,
        parametrization: int,
        elementwise: bool,
    ) -> Tensor:
        ctx.save_for_backward(loc, spread, other_loc, other_spread)
        ctx.how = (parametrization, elementwise)
        op = _backend.select("normal_kl", loc)
        return op(loc, spread, other_loc, other_spread, None, elementwise, parametrization)

    @staticmethod
    @_gate.differentiable_by(lambda *arguments: _normal_kl_again(*arguments))
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        loc, spread, other_loc, other_spread = ctx.saved_tensors
        op = _backend.select("normal_kl_backward", loc)
        return _needed(ctx, op(grad, loc, spread, other_loc, other_spread, None, _wanted(ctx), ctx.how[0]))


class _BernoulliLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, elementwise: bool) -> Tensor:
        ctx.save_for_backward(logits, value)
        ctx.how = (elementwise,)
        return _backend.select("bernoulli_nll", logits)(logits, value, elementwise).neg_()

    @staticmethod
    @_gate.differentiable_by(
        lambda logits, value, elementwise: _sum_unless(elementwise, value * logits - F.softplus(logits))
    )
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, value = ctx.saved_tensors
        op = _backend.select("bernoulli_nll_backward", logits)
        return _needed(ctx, op(-grad, logits, value, _wanted(ctx)))


class _BernoulliKl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, other_logits: Tensor, elementwise: bool) -> Tensor:
        ctx.save_for_backward(logits, other_logits)
        ctx.how = (elementwise,)
        return _backend.select("bernoulli_kl", logits)(logits, other_logits, elementwise)

    @staticmethod
    @_gate.differentiable_by(
        lambda logits, other_logits, elementwise: _sum_unless(
            elementwise,
            logits.sigmoid() * (logits - other_logits) + F.softplus(other_logits) - F.softplus(logits),
        )
    )
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, other_logits = ctx.saved_tensors
        op = _backend.select("bernoulli_kl_backward", logits)
        return _needed(ctx, op(grad, logits, other_logits, _wanted(ctx)))


class _LocationScale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loc: Tensor, spread: Tensor, key: Tensor, samples: int, base: int, parametrization: int
    ) -> Tensor:
        ctx.save_for_backward(loc, spread, key)
        ctx.how = (samples, base, parametrization)
        op = _backend.select("location_scale_rsample", loc)
        return op(loc, spread, key, 0, samples, False, base, parametrization)

    @staticmethod
    @_gate.differentiable_by(lambda *arguments: _location_scale_again(*arguments))
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        loc, spread, key = ctx.saved_tensors
        samples, base, parametrization = ctx.how
        op = _backend.select("location_scale_rsample_backward", loc)
        return _needed(ctx, op(grad, loc, spread, key, 0, samples, False, base, parametrization))


# The functions again, in differentiable ops.


def _normal_log_prob_again(
    loc: Tensor, spread: Tensor, value: Tensor, parametrization: int, elementwise: bool
) -> Tensor:
    square = ((value - loc) / _scale(spread, parametrization)).square()
    terms = -0.5 * square - _log_scale(spread, parametrization) - 0.5 * math.log(2 * math.pi)
    return _sum_unless(elementwise, terms)


def _normal_kl_again(
    loc: Tensor,
    spread: Tensor,
    other_loc: Tensor | None,
    other_spread: Tensor | None,
    parametrization: int,
    elementwise: bool,
) -> Tensor:
    difference = loc if other_loc is None else loc - other_loc
    scale, log_ratio = _scale(spread, parametrization), _log_scale(spread, parametrization)
    if other_spread is not None:
        other_scale = _scale(other_spread, parametrization)
        difference, scale = difference / other_scale, scale / other_scale
        log_ratio = log_ratio - _log_scale(other_spread, parametrization)
    return _sum_unless(elementwise, 0.5 * (scale.square() + difference.square() - 1) - log_ratio)


def _location_scale_again(
    loc: Tensor, spread: Tensor, key: Tensor, samples: int, base: int, parametrization: int
) -> Tensor:
    with torch.no_grad():
        op = _backend.select("location_scale_rsample", loc)
        noise = op(torch.zeros_like(loc), torch.ones_like(spread), key, 0, samples, False, base, SCALE)
    return loc + _scale(spread, parametrization) * noise


def _scale(spread: Tensor, parametrization: int) -> Tensor:
    return spread if parametrization == SCALE else _log_scale(spread, parametrization).exp()


def _log_scale(spread: Tensor, parametrization: int) -> Tensor:
    return spread.log() if parametrization == SCALE else 0.5 * spread if parametrization == LOG_VAR else spread


def _sum_unless(elementwise: bool, terms: Tensor) -> Tensor:
    return terms if elementwise else sum_rows(terms)


def _wanted(ctx: Any) -> int:
    """The inputs that need a gradient, a bit for each."""
    bits, bit = 0, 1
    for need in ctx.needs_input_grad:
        if need:
            bits |= bit
        bit <<= 1
    return bits


def _needed(ctx: Any, grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs that need one."""
    needed = ctx.needs_input_grad
    found: list[Tensor | None] = [None] * len(needed)
    for index, grad in enumerate(grads):
        if needed[index]:
            found[index] = grad
    return tuple(found)
