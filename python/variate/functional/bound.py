"""Bounds of several importance samples, and the gradient estimators that go with them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate

__all__ = ["ESTIMATORS", "ImportanceBound", "importance_weighted_bound"]

ESTIMATORS = ("iwae", "dreg", "stl", "rws", "vimco")
_WITH_LOG_Q = ("rws", "vimco")


class ImportanceBound(NamedTuple):
    """bound [B]; weight [K, B], detached, each datum's sum is 1; effective_sample_size [B] = 1 / sum_k weight^2."""

    bound: Tensor
    weight: Tensor
    effective_sample_size: Tensor


def importance_weighted_bound(
    log_weight: Tensor, estimator: str = "iwae", *, log_q: Tensor | None = None, latent: Tensor | None = None
) -> ImportanceBound:
    """bound_b = log (1/K) sum_k exp(log_weight_kb),  log_weight_kb = log p(x_b, z_kb) - log q(z_kb | x_b).

    With w_kb = softmax over k of log_weight_kb, the gradient of the bound to log_weight is w, whatever the estimator.
    What else reaches the parameters of q is the estimator's:

    - "iwae": nothing; z is reparameterised, and log q in log_weight has gradients to z and to q's parameters.
    - "stl", sticking the landing: nothing; evaluate log q in log_weight at the attached z, with q's parameters
      detached. Less noise than "iwae", and biased for K > 1.
    - "dreg", doubly reparameterised: log_weight as for "stl". The gradient that arrives at ``latent`` = z is
      multiplied by w once more, so that q's parameters get w^2 d log_weight / dz, and those of p get w. Unbiased.
    - "rws", reweighted wake-sleep in its wake phase: draw z without a gradient, and pass ``log_q``, the very tensor
      that log_weight subtracts. It gets w (2 w here, since -w comes through log_weight): q's parameters ascend
      sum_k w_k log q(z_k | x), those of p the bound.
    - "vimco", for discrete z drawn without a gradient: ``log_q``, as for "rws", gets (bound - bound_-k) - w_k, where
      bound_-k has log_weight_k replaced by the mean of the other log weights. Unbiased.

    Args:
        log_weight: [K, B], float32, float64, bfloat16 or float16.
        estimator: one of the five.
        log_q: [K, B], what "rws" and "vimco" need, and only they take.
        latent: [K, B, ...], what "dreg" needs, and only it takes: the z that log_weight was computed from. It is
            marked by ``latent.register_hook``: another loss of z, if it is in the same backward pass, gets the factor
            too.

    Returns:
        ImportanceBound(bound [B], weight [K, B], effective_sample_size [B]), float64 where log_weight is, else float32.
        Where all weights of a datum are 0, its bound is -inf and the other two are 0, as are the gradients.

    Raises:
        TypeError: an argument that is not a tensor, or not of a dtype named above.
        ValueError: an unknown estimator; log_q or latent missing, or given to an estimator that has no use for it;
            shapes or devices that do not fit; K = 0, or 1 for "vimco".

    Source: Burda et al. 2016 (iwae); Roeder et al. 2017 (stl); Tucker et al. 2019 (dreg); Bornschein and Bengio 2015
    (rws); Mnih and Rezende 2016 (vimco).
    """
    _check(log_weight, estimator, log_q, latent)
    op = _backend.select("importance_weighted_bound", log_weight)
    if op is None or _gate.transformed():
        return ImportanceBound(
            *reference.bound.importance_weighted_bound(log_weight, estimator, log_q=log_q, latent=latent)
        )
    leave_one_out = estimator == "vimco"
    if _gate.needs_grad(log_weight, log_q):
        result = _gate.apply(_ImportanceWeightedBound, log_weight, log_q, leave_one_out)
        if latent is not None and latent.requires_grad:
            weight = result[1]
            latent.register_hook(lambda grad: grad * weight.to(grad.dtype).reshape(_as_factor(weight, grad)))
        return ImportanceBound(*result)
    return ImportanceBound(*op(log_weight, leave_one_out)[:3])


class _ImportanceWeightedBound(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_weight: Tensor, log_q: Tensor | None, leave_one_out: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        op = _backend.select("importance_weighted_bound", log_weight)
        bound, weight, size, signal = op(log_weight, leave_one_out)
        ctx.mark_non_differentiable(weight, size)
        ctx.save_for_backward(weight, signal if leave_one_out else None)
        ctx.dtypes = log_weight.dtype, None if log_q is None else log_q.dtype
        return bound, weight, size

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_bound: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, signal = ctx.saved_tensors
        grad = grad_bound * weight
        grad_log_q = None
        if ctx.needs_input_grad[1]:
            grad_log_q = (2 * grad if signal is None else grad_bound * signal).to(ctx.dtypes[1])
        return grad.to(ctx.dtypes[0]), grad_log_q, None


def _as_factor(weight: Tensor, latent: Tensor) -> tuple[int, ...]:
    """[K, B, 1, ...], which broadcasts to latent."""
    return (*weight.shape, *(1,) * (latent.dim() - 2))


def _check(log_weight: Tensor, estimator: str, log_q: Tensor | None, latent: Tensor | None) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: expected one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    _checks.floating("log_weight", log_weight)
    if log_weight.dim() != 2:
        raise ValueError(f"log_weight: expected [K, B], got shape {tuple(log_weight.shape)}")
    least = 2 if estimator == "vimco" else 1
    if log_weight.shape[0] < least:
        raise ValueError(f"log_weight: expected K >= {least} samples for {estimator!r}, got {log_weight.shape[0]}")
    for name, value, users in (("log_q", log_q, _WITH_LOG_Q), ("latent", latent, ("dreg",))):
        if (value is None) == (estimator in users):
            expected = "a tensor" if value is None else f"None, since only {' and '.join(users)} use it,"
            raise ValueError(f"{name}: expected {expected} for estimator {estimator!r}, got {_kind(value)}")
    if log_q is not None:
        _checks.alike("log_q", log_q, "log_weight", log_weight)
    if latent is not None:
        _checks.floating("latent", latent)
        _checks.same_device("latent", latent, "log_weight", log_weight)
        if latent.shape[:2] != log_weight.shape:
            raise ValueError(
                f"latent: expected [K, B, ...] with K, B = {tuple(log_weight.shape)}, got shape {tuple(latent.shape)}"
            )


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


@_backend.register("importance_weighted_bound", cuda=False)
def _(log_weight: Tensor, leave_one_out: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if log_weight.dtype == torch.float64 else torch.float32
    per_datum = log_weight.shape[1:]
    return (
        log_weight.new_empty(per_datum, dtype=dtype),
        log_weight.new_empty(log_weight.shape, dtype=dtype),
        log_weight.new_empty(per_datum, dtype=dtype),
        log_weight.new_empty(log_weight.shape if leave_one_out else (0,), dtype=dtype),
    )
