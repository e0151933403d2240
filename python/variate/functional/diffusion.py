"""Training a diffusion or flow-matching model: noising with its target, and the loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate, _key

__all__ = ["denoising_loss", "noise_and_target"]

_PREDICTIONS = {"epsilon": 0, "x0": 1, "v": 2, "flow": 3, "edm": 4}
_PENALTIES = {"mse": 0, "huber": 1}
_MASKS = frozenset((torch.bool, torch.uint8))


def noise_and_target(
    x0: Tensor,
    timestep: Tensor | None,
    table: Tensor,
    *,
    prediction: str = "epsilon",
    noise: Tensor | None = None,
    offset_noise: float = 0.0,
    sigma_data: float = 0.5,
    mask: Tensor | None = None,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> tuple[Tensor, Tensor]:
    """x_t = alpha x0 + sigma eps,  eps ~ N(0, 1),  and what a model is to predict from it:

        "epsilon"  eps                    "v"    alpha eps - sigma x0
        "x0"       x0                     "flow" eps - x0
        "edm"      (x0 - c_skip x_t) / c_out, the target of the network inside EDM's preconditioning, for alpha = 1.

    Args:
        x0: the data, [B, ...] float32, float64, bfloat16 or float16. A 1-D tensor is one sample.
        timestep: int64 [B], rows of the table; a 0-d one is all samples'. With [B, P] each of P equal parts of a
            sample's elements (tokens) has its own. None where the levels are given one by one.
        table: (alpha, sigma), float64 or float32, on the device of x0: [T, 2]; without timestep [B, 2], or [B, P, 2].
        prediction: one of the five above.
        noise: eps, drawn here where it is left out: [B, ...] of any of the dtypes. For flow matching between two data
            sets it is the other one's sample: an independent or an optimally coupled pair.
        offset_noise: s: eps + s n takes the place of eps, with one n ~ N(0, 1) for each sample and channel (dimension
            1), drawn under fold_in(key, 1).
        sigma_data: the data's standard deviation, of "edm".
        mask: bool or uint8, broadcast to x0: where it is true x_t is x0, as in inpainting and conditioning.
        key: int64 [2], or [B, 2] for a stream per sample; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of row 0 in the whole batch.

    Returns:
        x_t and the target, in the shape and dtype of x0. Both have gradients with respect to x0 and noise.

    Raises:
        TypeError: an argument that is not a tensor, or not of a dtype named above.
        ValueError: shapes or devices that do not fit, an unknown prediction, a timestep outside the table (on a GPU,
            where nobody looks, its sample is NaN), a key of another shape.
        RuntimeError: under torch.func without a key.

    One pass: x0 is read once, x_t and the target are written once. Math, and the coefficients, are float32 (float64 for
    float64 data) whatever the dtype: low-precision data keep their noise at the smallest levels.

    Source: Ho, Jain and Abbeel 2020; v: Salimans and Ho 2022, appendix D; flow: Lipman et al. 2023, Liu et al. 2023;
    EDM: Karras et al. 2022, section 5; offset noise: Guttenberg 2023.
    """
    _checks.floating("x0", x0)
    if prediction not in _PREDICTIONS:
        raise ValueError(f"prediction: expected one of {', '.join(_PREDICTIONS)}, got {prediction!r}")
    timestep, table = _levels(x0, timestep, table)
    if noise is not None:
        _checks.floating("noise", noise)
        _checks.same_shape("noise", noise, "x0", x0)
        _checks.same_device("noise", noise, "x0", x0)
    mask = _mask(mask, "x0", x0)
    if not isinstance(offset_noise, (int, float)):
        raise TypeError(f"offset_noise: expected a number, got {type(offset_noise).__name__}")
    if not isinstance(sigma_data, (int, float)) or not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data: expected a finite number above 0, got {sigma_data}")
    op = _backend.select("noise_and_target", x0)
    draws = noise is None or offset_noise != 0
    if not x0.is_cpu:
        _inside(timestep, table)  # the CPU's kernel looks for itself
    if op is None or (_gate.transformed_noise("noise_and_target", key) if draws else _gate.transformed()):
        _inside(timestep, table)
        key = _key.check(key, generator, first_sample, x0)
        return reference.diffusion.noise_and_target(
            x0,
            timestep,
            table,
            prediction=prediction,
            noise=noise,
            offset_noise=offset_noise,
            sigma_data=sigma_data,
            mask=mask,
            key=key,
            generator=generator,
            first_sample=first_sample,
        )
    key = _key.resolve(key, generator, first_sample, x0) if draws else None
    how = (_PREDICTIONS[prediction], float(sigma_data), float(offset_noise))
    if _gate.needs_grad(x0, noise):
        return _gate.apply(_NoiseAndTarget, x0, noise, timestep, table, mask, key, first_sample, prediction, *how)
    return _run(op, x0, noise, timestep, table, mask, key, first_sample, *how)


def denoising_loss(
    prediction: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    kind: str = "mse",
    delta: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """loss_b = weight_b mean_e penalty(prediction_be - target_be),  penalty(d) = d^2, or of Huber:

    d^2 / 2 for |d| < delta, else delta (|d| - delta / 2).

    Args:
        prediction, target: [B, ...] of one shape; float32, float64, bfloat16 or float16, mixed as you like. A 1-D
            tensor is one sample.
        weight: [B], floating; 1 where it is left out. ``variate.diffusion.training`` has the usual ones.
        kind: "mse" or "huber".
        delta: Huber's, above 0.
        mask: bool or uint8, broadcast to prediction: true elements cost nothing and get no gradient, as those that
            :func:`noise_and_target` keeps. The mean is over all elements, masked or not.

    Returns:
        [B], float64 where prediction or target is, else float32. 0 for a sample without elements.

    Raises:
        TypeError: an argument that is not a tensor, or not of a dtype named above.
        ValueError: shapes or devices that do not fit, an unknown kind, a delta that is not above 0.

    The forward pass that needs the gradient of the prediction writes it as well, for the mean over the batch:
    ``denoising_loss(...).mean().backward()`` reads prediction and target once and writes one tensor. Of any other
    reduction the backward pass computes it again. The bits are the same.

    Source: Ho, Jain and Abbeel 2020, equation 14; Huber 1964.
    """
    _checks.alike("target", target, "prediction", prediction)
    if kind not in _PENALTIES:
        raise ValueError(f"kind: expected one of {', '.join(_PENALTIES)}, got {kind!r}")
    if not isinstance(delta, (int, float)) or not 0 < delta < math.inf:
        raise ValueError(f"delta: expected a finite number above 0, got {delta}")
    mask = _mask(mask, "prediction", prediction)
    if weight is not None:
        _checks.floating("weight", weight)
        _checks.same_device("weight", weight, "prediction", prediction)
        rows = _checks.rows_of(prediction.shape)
        if weight.shape != (rows,):
            raise ValueError(f"weight: expected one number for each sample, ({rows},), got {tuple(weight.shape)}")
    op = _backend.select("denoising_loss", prediction)
    if op is None or _gate.transformed():
        return reference.diffusion.denoising_loss(prediction, target, weight, kind=kind, delta=delta, mask=mask)
    how = (_PENALTIES[kind], float(delta))
    if not _gate.needs_grad(prediction, target, weight):
        return op(prediction, target, weight, mask, *how, False)[0]
    if weight is not None and weight.requires_grad:
        loss = denoising_loss(prediction, target, kind=kind, delta=delta, mask=mask)
        return loss * weight.to(loss.dtype)
    unit = prediction.requires_grad and not target.requires_grad
    return _gate.apply(_DenoisingLoss, prediction, target, weight, mask, *how, unit)


def _levels(x0: Tensor, timestep: Tensor | None, table: Tensor) -> tuple[Tensor | None, Tensor]:
    """The timesteps as int64 [rows] or [rows, parts], and the table, checked."""
    if not isinstance(table, Tensor) or table.dtype not in (torch.float32, torch.float64):
        got = _checks.dtype_name(table.dtype) if isinstance(table, Tensor) else type(table).__name__
        raise TypeError(f"table: expected a float64 or float32 tensor, got {got}")
    _checks.same_device("table", table, "x0", x0)
    rows = _checks.rows_of(x0.shape)
    if timestep is None:
        if table.dim() not in (2, 3) or table.shape[0] != rows or table.shape[-1] != 2:
            raise ValueError(
                f"table: expected shape ({rows}, 2), (alpha, sigma) of each sample, without timestep, "
                f"got {tuple(table.shape)}"
            )
        _parts("table", table.shape[1] if table.dim() == 3 else 1, x0)
        return None, table
    if table.dim() != 2 or table.shape[1] != 2 or table.shape[0] == 0:
        raise ValueError(f"table: expected shape (T, 2), (alpha, sigma) of each timestep, got {tuple(table.shape)}")
    if not isinstance(timestep, Tensor) or timestep.dtype not in _checks.INTEGERS:
        got = _checks.dtype_name(timestep.dtype) if isinstance(timestep, Tensor) else type(timestep).__name__
        raise TypeError(f"timestep: expected an int64 tensor, got {got}; levels [B, 2] take a continuous time's place")
    _checks.same_device("timestep", timestep, "x0", x0)
    timestep = timestep.long()
    if timestep.dim() == 0:
        timestep = timestep.expand(rows)
    if timestep.dim() > 2 or timestep.shape[0] != rows:
        raise ValueError(f"timestep: expected shape ({rows},), or ({rows}, parts), got {tuple(timestep.shape)}")
    _parts("timestep", timestep.shape[1] if timestep.dim() == 2 else 1, x0)
    return timestep, table


def _inside(timestep: Tensor | None, table: Tensor) -> None:
    """All timesteps are rows of the table. Looked at on the CPU always, elsewhere under set_debug(True)."""
    if timestep is None or not _checks.readable(timestep):
        return
    low, high = (int(t) for t in torch.aminmax(timestep))
    if low < 0 or high >= table.shape[0]:
        raise ValueError(f"timestep: expected 0 to {table.shape[0] - 1}, got {low} to {high}")


def _parts(name: str, parts: int, x0: Tensor) -> None:
    elements = math.prod(x0.shape[1:] if x0.dim() > 1 else x0.shape)
    if parts != 1 and (parts < 1 or elements % parts != 0):
        raise ValueError(f"{name}: expected a number of parts that divides the {elements} of a sample, got {parts}")


def _mask(mask: Tensor | None, like_name: str, like: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype not in _MASKS:
        got = _checks.dtype_name(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask: expected a bool or uint8 tensor, got {got}")
    return _checks.expanded("mask", mask, like_name, like)


def _run(
    op: Any,
    x0: Tensor,
    noise: Tensor | None,
    timestep: Tensor | None,
    table: Tensor,
    mask: Tensor | None,
    key: Tensor | None,
    first_sample: int,
    *how: Any,
) -> tuple[Tensor, Tensor]:
    levels = table if table.dim() == 2 else table.flatten(0, 1)
    if torch.compiler.is_compiling():
        return op(x0, timestep, levels, *how, noise, mask, key, first_sample)
    try:
        return op(x0, timestep, levels, *how, noise, mask, key, first_sample)
    except RuntimeError:
        _inside(timestep, table)  # names what the kernel refused
        raise


class _NoiseAndTarget(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x0: Tensor,
        noise: Tensor | None,
        timestep: Tensor | None,
        table: Tensor,
        mask: Tensor | None,
        key: Tensor | None,
        first_sample: int,
        prediction: str,
        *how: Any,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(timestep, table, mask)
        ctx.prediction, ctx.sigma_data = prediction, how[1]
        ctx.noise_dtype = None if noise is None else noise.dtype
        op = _backend.select("noise_and_target", x0)
        return _run(op, x0, noise, timestep, table, mask, key, first_sample, *how)

    @staticmethod
    def backward(ctx: Any, grad_x_t: Tensor, grad_target: Tensor) -> tuple[Tensor | None, ...]:
        """Linear, in plain PyTorch, whose own derivatives are PyTorch's."""
        timestep, table, mask = ctx.saved_tensors
        alpha, sigma = reference.diffusion.levels_of(table, timestep, grad_x_t)
        dtype = torch.float64 if grad_x_t.dtype == torch.float64 else torch.float32
        weights = reference.diffusion.coefficients(ctx.prediction, alpha, sigma, ctx.sigma_data)
        a, b, c, d = (t.to(dtype) for t in weights)
        of_x_t, of_target = grad_x_t.to(dtype), grad_target.to(dtype)
        grad_x0 = grad_noise = None
        if ctx.needs_input_grad[0]:
            through = a * of_x_t if mask is None else torch.where(mask != 0, of_x_t, a * of_x_t)
            grad_x0 = (through + c * of_target).to(grad_x_t.dtype)
        if ctx.needs_input_grad[1]:
            through = b * of_x_t if mask is None else torch.where(mask != 0, 0.0, b * of_x_t)
            grad_noise = (through + d * of_target).to(ctx.noise_dtype)
        return grad_x0, grad_noise, *(None,) * 9


class _DenoisingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        penalty: int,
        delta: float,
        unit: bool,
    ) -> Tensor:
        op = _backend.select("denoising_loss", prediction)
        loss, gradient = op(prediction, target, weight, mask, penalty, delta, unit)
        ctx.save_for_backward(prediction, target, weight, mask)
        ctx.how = penalty, delta
        ctx.made = gradient if unit else None
        return loss

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        prediction, target, weight, mask = ctx.saved_tensors
        made, ctx.made = ctx.made, None  # handed out once: a second backward makes its own
        of_prediction, of_target = ctx.needs_input_grad[:2]
        grad_prediction = made
        if of_prediction and made is None:
            grad_prediction = prediction.new_empty(prediction.shape)
        grad_target = prediction.new_empty(prediction.shape, dtype=target.dtype) if of_target else None
        op = _backend.select("denoising_loss_backward", prediction)
        op(grad_loss, prediction, target, weight, mask, grad_prediction, grad_target, made is not None, *ctx.how)
        return grad_prediction, grad_target, None, None, None, None, None


@_backend.register("noise_and_target", cuda=False)
def _(
    x0: Tensor,
    timestep: Tensor | None,
    levels: Tensor,
    prediction: int,
    sigma_data: float,
    offset_noise: float,
    noise: Tensor | None,
    mask: Tensor | None,
    key: Tensor | None,
    first_sample: int,
) -> tuple[Tensor, Tensor]:
    return x0.new_empty(x0.shape), x0.new_empty(x0.shape)


@_backend.register("denoising_loss", cuda=False)
def _(
    prediction: Tensor,
    target: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    penalty: int,
    delta: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if torch.float64 in (prediction.dtype, target.dtype) else torch.float32
    loss = prediction.new_empty((_checks.rows_of(prediction.shape),), dtype=dtype)
    return loss, prediction.new_empty(prediction.shape if with_gradient else (0,))


@_backend.register("denoising_loss_backward", cuda=False)
def _(
    grad_loss: Tensor,
    prediction: Tensor,
    target: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    grad_prediction: Tensor | None,
    grad_target: Tensor | None,
    ready: bool,
    penalty: int,
    delta: float,
) -> None:
    return None
