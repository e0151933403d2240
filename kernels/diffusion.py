"""Noising with its target, and the denoising loss; the twin of variate/math/diffusion.hpp.

Sources: Ho, Jain and Abbeel 2020; v: Salimans and Ho 2022, appendix D; flow: Lipman et al. 2023; EDM: Karras et al.
2022, table 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .philox import load_key
from .random import fold_in, normal, tile_normals
from .tiles import (
    compute_dtype,
    launch_row_sums,
    launch_tiles,
    load_column,
    load_tile,
    rows_and_cols,
    store_row_sums,
    store_tile,
    tile_mask,
    tile_start,
    view,
)

EPSILON, X0, V, FLOW, EDM = (tl.constexpr(prediction) for prediction in range(5))  # variate_prediction
SQUARE = tl.constexpr(0)  # variate_penalty


@triton.jit
def noising(alpha, sigma, PREDICTION: tl.constexpr, SIGMA_DATA: tl.constexpr):
    """What x0 and eps are multiplied by in the target, in float64."""
    if PREDICTION == EPSILON:
        return alpha * 0.0, alpha * 0.0 + 1.0
    elif PREDICTION == X0:
        return alpha * 0.0 + 1.0, alpha * 0.0
    elif PREDICTION == V:
        return -sigma, alpha
    elif PREDICTION == FLOW:
        return alpha * 0.0 - 1.0, alpha * 0.0 + 1.0
    else:
        norm = 1.0 / tl.sqrt(tl.fma(sigma, sigma, sigma * 0.0 + SIGMA_DATA * SIGMA_DATA))
        return sigma / SIGMA_DATA * norm, norm * -SIGMA_DATA


@triton.jit(do_not_specialize=["first_sample", "table_size"])
def _noise_and_target_kernel(key, first_sample, x0, noise, mask, offsets, levels, timestep, table_size, token_cols,
                             channel_cols, x_t, target, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr,
                             BATCHED: tl.constexpr, TOKENS: tl.constexpr, PREDICTION: tl.constexpr,
                             SIGMA_DATA: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """x_t = alpha x0 + sigma eps and its target. NaN for a timestep outside the table."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    inside = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    row = (first_row + tl.arange(0, ROWS))[:, None]
    col = (first_col + tl.arange(0, COLS))[None, :]
    if TOKENS:
        token = row * 0 + col // token_cols
        there = inside
    else:  # one level a row
        token = row * 0
        there = row < rows
    if timestep is None:
        level = row * ((cols - 1) // token_cols + 1) + token
        there &= level < table_size
    else:
        level = tl.load(timestep[0] + row * timestep[1] + token * timestep[2], there, other=-1)
        there &= (level >= 0) & (level < table_size)
    alpha = tl.load(levels[0] + level * levels[1], there, other=float("nan")).to(tl.float64)
    sigma = tl.load(levels[0] + level * levels[1] + levels[2], there, other=float("nan")).to(tl.float64)
    from_x0, from_noise = noising(alpha, sigma, PREDICTION, SIGMA_DATA)

    if noise is None:
        seed, offset, sample = load_key(key, first_row + tl.arange(0, ROWS), rows, first_sample, BATCHED)
        eps = tile_normals(seed, offset, sample, first_col, COLS).to(DTYPE)
    else:
        eps = load_tile(noise, first_row, first_col, inside, DTYPE)
    if offsets is not None:
        channels = (cols - 1) // channel_cols + 1
        eps += tl.load(offsets + row * channels + col // channel_cols, inside, other=0.0)

    x = load_tile(x0, first_row, first_col, inside, DTYPE)
    noised = tl.fma(tl.broadcast_to(alpha.to(DTYPE), x.shape), x, sigma.to(DTYPE) * eps)
    if mask is not None:
        noised = tl.where(load_tile(mask, first_row, first_col, inside, tl.int32) != 0, x, noised)
    store_tile(x_t, cols, first_row, first_col, inside, noised)
    wanted = tl.fma(tl.broadcast_to(from_x0.to(DTYPE), x.shape), x, from_noise.to(DTYPE) * eps)
    store_tile(target, cols, first_row, first_col, inside, wanted)


def noise_and_target(
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
    """variate::noise_and_target"""
    x_t, target = (torch.empty(x0.shape, dtype=x0.dtype, device=x0.device) for _ in range(2))
    if x0.numel() == 0:
        return x_t, target
    rows, cols = rows_and_cols(x0.shape)
    dtype, compute = compute_dtype(x0)
    tokens = levels.shape[0] // rows if timestep is None else timestep.shape[1] if timestep.dim() == 2 else 1
    channels = x0.shape[1] if x0.dim() > 1 else cols
    offsets = None
    if offset_noise != 0:
        one = torch.ones((), dtype=torch.int64, device=x0.device)
        offsets = torch.empty(rows, channels, device=x0.device)
        normal(offsets, fold_in(key, one.expand(key.shape[:-1])), first_sample)
        offsets = offsets.to(dtype) * offset_noise
    where = None
    if timestep is not None:
        where = (timestep, timestep.stride(0), timestep.stride(1) if timestep.dim() == 2 else 0)
    launch_tiles(
        _noise_and_target_kernel, rows, cols, None if noise is not None else key.contiguous(), first_sample,
        view(x0, rows), view(noise, rows), view(None if mask is None else mask.view(torch.uint8), rows), offsets,
        (levels, *levels.stride()), where, levels.shape[0], cols // tokens, cols // channels, x_t, target,
        device=x0.device, BATCHED=key is not None and key.dim() > 1, TOKENS=tokens > 1, PREDICTION=prediction,
        SIGMA_DATA=sigma_data, DTYPE=compute,
    )  # fmt: skip
    return x_t, target


@triton.jit
def penalty_and_slope(difference, PENALTY: tl.constexpr, DELTA: tl.constexpr):
    """The penalty of a difference, and half its slope (square) or its slope (Huber)."""
    if PENALTY == SQUARE:
        return difference * difference, difference
    else:
        size = tl.abs(difference)
        bounded = tl.where(size < DELTA, size, DELTA)
        low = tl.where(difference < -DELTA, -DELTA, difference)
        return bounded * (size - 0.5 * bounded), tl.where(low > DELTA, DELTA, low)


@triton.jit
def row_weight(weight, first_row, rows, cols, ROWS: tl.constexpr):
    """weight / cols of each row, in float64."""
    if weight is None:
        share = tl.full([ROWS, 1], 1.0, tl.float64)
    else:
        share = load_column(weight, first_row, rows, ROWS, tl.float64)
    return share, cols.to(tl.float64)


@triton.jit
def mean_gradient(rows, DTYPE: tl.constexpr):
    """The gradient of a mean over the rows, rounded as a division is."""
    return (1.0 / rows.to(tl.float64)).to(DTYPE)


@triton.jit
def _denoising_loss_kernel(prediction, target, weight, mask, grad, loss, rows, cols, ROWS: tl.constexpr,
                           COLS: tl.constexpr, STEPS: tl.constexpr, PENALTY: tl.constexpr, DELTA: tl.constexpr,
                           SLOPE: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """loss[r, chunk] = weight / cols times a sum of penalties, and the gradient of the mean of the losses."""
    first_row, first_col = tile_start(cols, ROWS, COLS * STEPS)
    count, height = tl.core.to_tensor(cols), tl.core.to_tensor(rows)
    share, width = row_weight(weight, first_row, rows, count, ROWS)
    scale = (mean_gradient(height, DTYPE).to(tl.float64) * share * SLOPE / width).to(DTYPE)
    total = tl.zeros([ROWS, COLS], DTYPE)
    for step in range(STEPS):
        col = first_col + step * COLS
        inside = tile_mask(first_row, col, rows, cols, ROWS, COLS)
        x = load_tile(prediction, first_row, col, inside, DTYPE)
        penalty, slope = penalty_and_slope(x - load_tile(target, first_row, col, inside, DTYPE), PENALTY, DELTA)
        slope = scale * slope
        if mask is not None:
            masked = load_tile(mask, first_row, col, inside, tl.int32) != 0
            penalty = tl.where(masked, 0.0, penalty)
            slope = tl.where(masked, 0.0, slope)
        total += tl.where(inside, penalty, 0.0)
        if grad is not None:
            store_tile(grad, cols, first_row, col, inside, slope)
    total *= (share / width).to(DTYPE)
    store_row_sums(loss, total, first_row, first_col, rows, cols, STEPS)


def denoising_loss(
    prediction: Tensor,
    target: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    penalty: int,
    delta: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """variate::denoising_loss"""
    rows, cols = rows_and_cols(prediction.shape)
    dtype, compute = compute_dtype(prediction, target)
    shape = prediction.shape if with_gradient else (0,)
    gradient = torch.empty(shape, dtype=prediction.dtype, device=prediction.device)
    if prediction.numel() == 0:
        return torch.zeros(rows, dtype=dtype, device=prediction.device), gradient
    loss = torch.empty(rows, dtype=dtype, device=prediction.device)
    launch_row_sums(
        _denoising_loss_kernel, rows, cols, view(prediction, rows), view(target, rows), column(weight),
        view(None if mask is None else mask.view(torch.uint8), rows), gradient if with_gradient else None, out=loss,
        PENALTY=penalty, DELTA=delta, SLOPE=1.0 if penalty else 2.0, DTYPE=compute,
    )  # fmt: skip
    return loss, gradient


def column(rows: Tensor | None) -> tuple[Tensor, int] | None:
    return None if rows is None else (rows, rows.stride(0))


@triton.jit
def _denoising_loss_backward_kernel(grad_loss, prediction, target, weight, mask, grad_prediction, grad_target, rows,
                                    cols, ROWS: tl.constexpr, COLS: tl.constexpr, READY: tl.constexpr,
                                    PENALTY: tl.constexpr, DELTA: tl.constexpr, SLOPE: tl.constexpr,
                                    DTYPE: tl.constexpr):  # fmt: skip
    """The gradients of the loss; with READY the rows of a mean's are there, and are left alone."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    inside = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    count, height = tl.core.to_tensor(cols), tl.core.to_tensor(rows)
    g = load_column(grad_loss, first_row, rows, ROWS, DTYPE)
    if READY:
        inside &= g != mean_gradient(height, DTYPE)
    share, width = row_weight(weight, first_row, rows, count, ROWS)
    scale = (g.to(tl.float64) * share * SLOPE / width).to(DTYPE)
    x = load_tile(prediction, first_row, first_col, inside, DTYPE)
    y = load_tile(target, first_row, first_col, inside, DTYPE)
    slope = scale * penalty_and_slope(x - y, PENALTY, DELTA)[1]
    if mask is not None:
        slope = tl.where(load_tile(mask, first_row, first_col, inside, tl.int32) != 0, 0.0, slope)
    if grad_prediction is not None:
        store_tile(grad_prediction, cols, first_row, first_col, inside, slope)
    if grad_target is not None:
        store_tile(grad_target, cols, first_row, first_col, inside, -slope)


def denoising_loss_backward(
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
    """variate::denoising_loss_backward"""
    if prediction.numel() == 0:
        return
    rows, cols = rows_and_cols(prediction.shape)
    launch_tiles(
        _denoising_loss_backward_kernel, rows, cols, column(grad_loss), view(prediction, rows), view(target, rows),
        column(weight), view(None if mask is None else mask.view(torch.uint8), rows), grad_prediction, grad_target,
        device=prediction.device, READY=ready and grad_target is None, PENALTY=penalty, DELTA=delta,
        SLOPE=1.0 if penalty else 2.0, DTYPE=compute_dtype(prediction, target)[1],
    )  # fmt: skip
