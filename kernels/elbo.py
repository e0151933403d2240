"""The likelihood terms of the evidence lower bound, the twin of variate/math/elbo.hpp."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import sigmoid, softplus_tail
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


@triton.jit
def bernoulli_nll_term(logit, target):
    """softplus(logit) - logit target = |logit| y + log(1 + exp(-|logit|)), y = 1 - target or target by sign.

    Written so, an infinite logit that is right costs 0 and not NaN.
    """
    miss = tl.where(logit > 0.0, 1.0 - target, target)
    return tl.where(miss == 0.0, 0.0, tl.abs(logit) * miss) + softplus_tail(logit)


@triton.jit
def _bernoulli_nll_kernel(logits, target, nll, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr,
                          STEPS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """nll[r, chunk] = a sum of -log Bernoulli(target | sigmoid(logits))."""
    first_row, first_col = tile_start(cols, ROWS, COLS * STEPS)
    total = tl.zeros([ROWS, COLS], DTYPE)
    for step in range(STEPS):
        col = first_col + step * COLS
        mask = tile_mask(first_row, col, rows, cols, ROWS, COLS)
        logit = load_tile(logits, first_row, col, mask, DTYPE)
        x = load_tile(target, first_row, col, mask, DTYPE)
        total += tl.where(mask, bernoulli_nll_term(logit, x), 0.0)
    store_row_sums(nll, total, first_row, first_col, rows, cols, STEPS)


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """variate::bernoulli_nll"""
    rows, cols = rows_and_cols(logits.shape)
    dtype, compute = compute_dtype(logits, target)
    if logits.numel() == 0:
        return torch.zeros(rows, dtype=dtype, device=logits.device)
    nll = torch.empty(rows, dtype=dtype, device=logits.device)
    launch_row_sums(_bernoulli_nll_kernel, rows, cols, view(logits, rows), view(target, rows), out=nll, DTYPE=compute)
    return nll


@triton.jit
def _bernoulli_nll_backward_kernel(grad_nll, logits, target, grad_logits, grad_target, rows, cols,
                                   ROWS: tl.constexpr, COLS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """grad_logits = grad_nll (sigmoid(logits) - target), grad_target = -grad_nll logits."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    g = load_column(grad_nll, first_row, rows, ROWS, DTYPE)
    logit = load_tile(logits, first_row, first_col, mask, DTYPE)
    x = load_tile(target, first_row, first_col, mask, DTYPE)
    store_tile(grad_logits, cols, first_row, first_col, mask, g * (sigmoid(logit) - x))
    if grad_target is not None:
        store_tile(grad_target, cols, first_row, first_col, mask, -g * logit)


def bernoulli_nll_backward(
    grad_nll: Tensor, logits: Tensor, target: Tensor, target_needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """variate::bernoulli_nll_backward"""
    rows, cols = rows_and_cols(logits.shape)
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    grad_target = None
    if target_needs_grad:
        grad_target = torch.empty(target.shape, dtype=target.dtype, device=target.device)
    if logits.numel() > 0:
        launch_tiles(
            _bernoulli_nll_backward_kernel, rows, cols, (grad_nll, grad_nll.stride(0)), view(logits, rows),
            view(target, rows), grad_logits, grad_target, device=logits.device,
            DTYPE=compute_dtype(logits, target)[1],
        )  # fmt: skip
    return grad_logits, logits.new_empty(0) if grad_target is None else grad_target
