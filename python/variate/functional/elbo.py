"""The terms of the evidence lower bound: divergences and negative log-likelihoods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate, _terms

__all__ = ["bernoulli_kl", "bernoulli_nll", "categorical_kl", "categorical_nll", "normal_kl", "normal_nll"]


def normal_kl(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_var: Tensor | None = None,
    *,
    free_bits: float | Tensor = 0.0,
) -> Tensor:
    """kl_b = sum_d max(KL_bd, free_bits), where

    KL_bd = KL(N(mean, e^log_var) || N(prior_mean, e^prior_log_var))
          = (e^(log_var - prior_log_var) - 1 - (log_var - prior_log_var) + (mean - prior_mean)^2 e^-prior_log_var) / 2.

    Args:
        mean, log_var: [B, ...] of one shape; float32, float64, bfloat16 or float16, mixed as you like. A 1-D tensor
            is one sample.
        prior_mean, prior_log_var: broadcast to the shape of mean and get gradients; one that is left out is 0, both
            are the standard normal.
        free_bits: the least KL in nats that each element is charged, at least 0: a number, or a 0-d tensor that may
            change under torch.compile and in a captured graph. An element below it passes no gradient.

    Returns:
        [B] in nats, summed over all other dimensions: float64 where an input is, else float32. It is finite wherever
        the exact value is.

    Raises:
        TypeError: an argument that is not a tensor, or not of a dtype named above.
        ValueError: shapes or devices that do not fit, a negative free_bits.

    Autocast leaves the inputs as they are. :func:`normal_rsample_kl` draws the sample in the same pass.

    Source: Kingma and Welling 2014, appendix B; free bits: Kingma et al. 2016, appendix C.8.
    """
    _checks.alike("log_var", log_var, "mean", mean)
    if prior_mean is not None:
        _checks.floating("prior_mean", prior_mean)
        prior_mean = _checks.expanded("prior_mean", prior_mean, "mean", mean)
    if prior_log_var is not None:
        _checks.floating("prior_log_var", prior_log_var)
        prior_log_var = _checks.expanded("prior_log_var", prior_log_var, "mean", mean)
    bits = _checks.scalar("free_bits", free_bits, mean)
    if _backend.select("normal_kl", mean) is None or _gate.transformed():
        return reference.elbo.normal_kl(mean, log_var, prior_mean, prior_log_var, free_bits=free_bits)
    return _terms.call("normal_kl", mean, log_var, prior_mean, prior_log_var, bits)


def bernoulli_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """kl_b = sum_d KL(Bernoulli(p_bd) || Bernoulli(r_bd)) = sum_d p log(p / r) + (1 - p) log((1 - p) / (1 - r)),
    p = sigmoid(logits), r = sigmoid(prior_logits).

    Args:
        logits: [B, ...] float32, float64, bfloat16 or float16. A 1-D tensor is one sample.
        prior_logits: broadcast to the shape of logits; a floating dtype of its own if you like.

    Returns:
        [B] in nats: float64 where an input is, else float32. Logits that are infinite alike cost 0.

    Raises:
        TypeError: an argument that is not a tensor, or not of a dtype named above.
        ValueError: shapes or devices that do not fit.

    The gradients are p (1 - p) (logits - prior_logits) and r - p. Autocast leaves the inputs as they are.
    """
    _checks.floating("logits", logits)
    _checks.floating("prior_logits", prior_logits)
    prior_logits = _checks.expanded("prior_logits", prior_logits, "logits", logits)
    if _backend.select("bernoulli_kl", logits) is None or _gate.transformed():
        return reference.elbo.bernoulli_kl(logits, prior_logits)
    return _terms.call("bernoulli_kl", logits, prior_logits)


def normal_nll(mean: Tensor, log_var: Tensor | float, target: Tensor) -> Tensor:
    """nll_b = sum_d (log 2 pi + log_var_bd + (target_bd - mean_bd)^2 e^-log_var_bd) / 2
          = -log N(target_b | mean_b, e^log_var_b).

    Args:
        mean: [B, ...] float32, float64, bfloat16 or float16. A 1-D tensor is one sample.
        log_var: a tensor that broadcasts to the shape of mean (a learned variance, of each element or shared), or a
            number (a fixed one), which may change under torch.compile.
        target: the shape of mean.

    Returns:
        [B] in nats: float64 where an input is, else float32. It is finite wherever the exact value is.

    Raises:
        TypeError: an argument of another type, or a tensor not of a dtype named above.
        ValueError: shapes or devices that do not fit.

    With d = (target - mean) e^-log_var the gradients are -d, (1 - d (target - mean)) / 2 and d. Autocast leaves the
    inputs as they are.

    Source: Kingma and Welling 2014, appendix C.2.
    """
    _checks.alike("target", target, "mean", mean)
    if not isinstance(log_var, Tensor):
        wide = torch.float64 in (mean.dtype, target.dtype)
        log_var = _checks.number("log_var", log_var, torch.float64 if wide else torch.float32, mean.device)
    _checks.floating("log_var", log_var)
    log_var = _checks.expanded("log_var", log_var, "mean", mean)
    if _backend.select("normal_nll", mean) is None or _gate.transformed():
        return reference.elbo.normal_nll(mean, log_var, target)
    return _terms.call("normal_nll", mean, log_var, target)


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
    if _backend.select("bernoulli_nll", logits) is None or _gate.transformed():
        return reference.elbo.bernoulli_nll(logits, target)
    return _terms.call("bernoulli_nll", logits, target)


def categorical_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """kl_b = sum_d sum_k p_bdk log(p_bdk / r_bdk), p = softmax(logits), r = softmax(prior_logits), over the last
    dimension.

    Args:
        logits: [B, ..., K] float32, float64, bfloat16 or float16, unnormalised, K categories. [K] is one sample.
        prior_logits: broadcast to the shape of logits; a floating dtype of its own if you like.

    Returns:
        [B] in nats, summed over all dimensions between: float64 where an input is, else float32. A category of
        probability 0, whose logit is -inf, costs 0.

    Raises:
        TypeError: an argument that is not a tensor, or not of a dtype named above.
        ValueError: shapes or devices that do not fit, no categories.

    The gradients are p (log(p / r) - kl), kl that of the same p, and r - p. Autocast leaves the inputs as they are.
    """
    _checks.floating("prior_logits", prior_logits)
    _categories(logits)
    prior_logits = _checks.expanded("prior_logits", prior_logits, "logits", logits)
    if _backend.select("categorical_kl", logits) is None or _gate.transformed():
        return reference.elbo.categorical_kl(logits, prior_logits)
    return _terms.call("categorical_kl", logits, prior_logits, elementwise=None)


def categorical_nll(logits: Tensor, target: Tensor) -> Tensor:
    """nll_b = sum_d log(sum_k exp(logits_bdk)) - logits_bd[target_bd] = -log Categorical(target_b | softmax(logits_b)).

    Args:
        logits: [B, ..., K] float32, float64, bfloat16 or float16, unnormalised, K categories. [K] is one sample. -inf
            masks a category.
        target: [B, ...], the shape of logits without its last dimension; integers of [0, K) in any integer dtype.

    Returns:
        [B] in nats: float64 where logits are, else float32. A masked target costs infinity.

    Raises:
        TypeError: a dtype that is not named above.
        ValueError: shapes or devices that do not fit, no categories; on the CPU a target outside [0, K). A GPU is not
            waited for: there such a sample is NaN, and a ValueError under ``variate.set_debug(True)``. So is it under
            torch.compile.

    The gradient is softmax(logits) - 1 at the target. The forward pass reads the logits once, and keeps one number for
    each K of them; the backward pass reads them once more. Autocast leaves the inputs as they are.
    """
    _categories(logits)
    target = _categories_of(target, logits)
    if _backend.select("categorical_nll", logits) is None or _gate.transformed():
        return reference.elbo.categorical_nll(logits, target)
    if _gate.needs_grad(logits):
        return _gate.apply(_CategoricalNll, logits, target)
    nll, _ = _backend.select("categorical_nll", logits)(logits, target, False)
    return nll


def _categories(logits: Tensor) -> None:
    _checks.floating("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected at least one category in the last dimension, got {tuple(logits.shape)}")


def _categories_of(target: Tensor, logits: Tensor) -> Tensor:
    """The target as uint8 or int64."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target: expected a tensor, got {type(target).__name__}")
    if target.dtype not in _checks.INTEGERS:
        raise TypeError(f"target: expected an integer dtype, got {str(target.dtype).removeprefix('torch.')}")
    _checks.same_device("target", target, "logits", logits)
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"target: expected the shape of logits without its last dimension, {tuple(logits.shape[:-1])}, "
            f"got {tuple(target.shape)}"
        )
    target = target if target.dtype == torch.uint8 else target.long()
    _checks.categories("target", target, logits.shape[-1])
    return target


class _CategoricalNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        nll, log_sum_exp = _backend.select("categorical_nll", logits)(logits, target, True)
        ctx.save_for_backward(logits, target, log_sum_exp)
        return nll

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor, None]:
        logits, target, log_sum_exp = ctx.saved_tensors
        return _backend.select("categorical_nll_backward", logits)(grad_nll, logits, target, log_sum_exp), None


@_backend.register("satisfies", cuda=False)
def _(value: Tensor, constraint: int) -> bool:
    raise NotImplementedError("variate::satisfies reads values, which a fake tensor does not have")


@_backend.register("normal_kl")
def _(
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_spread: Tensor | None,
    free_bits: Tensor | None,
    elementwise: bool = False,
    parametrization: int = 0,
) -> Tensor:
    return _terms.new_result(elementwise, mean, spread, prior_mean, prior_spread)


@_backend.register("normal_kl_backward")
def _(
    grad_kl: Tensor,
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_spread: Tensor | None,
    free_bits: Tensor | None,
    wanted: int,
    parametrization: int = 0,
) -> tuple[Tensor, ...]:
    return _terms.new_gradients(wanted, mean, spread, prior_mean, prior_spread)


@_backend.register("bernoulli_kl", cuda=False)
def _(logits: Tensor, prior_logits: Tensor, elementwise: bool = False) -> Tensor:
    return _terms.new_result(elementwise, logits, prior_logits)


@_backend.register("bernoulli_kl_backward", cuda=False)
def _(grad_kl: Tensor, logits: Tensor, prior_logits: Tensor, wanted: int) -> tuple[Tensor, ...]:
    return _terms.new_gradients(wanted, logits, prior_logits)


@_backend.register("normal_nll", cuda=False)
def _(mean: Tensor, spread: Tensor, target: Tensor, elementwise: bool = False, parametrization: int = 0) -> Tensor:
    return _terms.new_result(elementwise, mean, spread, target)


@_backend.register("normal_nll_backward", cuda=False)
def _(
    grad_nll: Tensor, mean: Tensor, spread: Tensor, target: Tensor, wanted: int, parametrization: int = 0
) -> tuple[Tensor, ...]:
    return _terms.new_gradients(wanted, mean, spread, target)


@_backend.register("bernoulli_nll")
def _(logits: Tensor, target: Tensor, elementwise: bool = False) -> Tensor:
    return _terms.new_result(elementwise, logits, target)


@_backend.register("bernoulli_nll_backward")
def _(grad_nll: Tensor, logits: Tensor, target: Tensor, wanted: int) -> tuple[Tensor, ...]:
    return _terms.new_gradients(wanted, logits, target)


@_backend.register("categorical_kl", cuda=False)
def _(logits: Tensor, prior_logits: Tensor) -> Tensor:
    return _terms.new_result(False, logits, prior_logits)


@_backend.register("categorical_kl_backward", cuda=False)
def _(grad_kl: Tensor, logits: Tensor, prior_logits: Tensor, wanted: int) -> tuple[Tensor, ...]:
    return _terms.new_gradients(wanted, logits, prior_logits)


@_backend.register("categorical_nll", cuda=False)
def _(logits: Tensor, target: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor]:
    nll = _terms.new_result(False, logits)
    return nll, nll.new_empty(target.shape if needs_grad else (0,))


@_backend.register("categorical_nll_backward", cuda=False)
def _(grad_nll: Tensor, logits: Tensor, target: Tensor, log_sum_exp: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)
