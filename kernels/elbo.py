"""The terms of the evidence lower bound, summed over each sample; the terms themselves are in terms.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import sigmoid
from .terms import (
    bernoulli_kl_term,
    bernoulli_nll_term,
    least_kl,
    load_spread,
    log_variance_slope,
    normal_kl_term,
    normal_nll_term,
    standard_normal_kl_term,
    variance_ratio,
)
from .tiles import (
    add_terms,
    compute_dtype,
    gradient_view,
    launch_terms,
    launch_tiles,
    load_gradient,
    load_tile,
    rows_and_cols,
    scalar,
    store_terms,
    store_tile,
    tile_mask,
    tile_start,
    view,
)


def new_result(elementwise: bool, *tensors: Tensor | None) -> Tensor:
    """A new tensor for the terms of a call, or for their sums by row: 0 where there are no terms."""
    like = tensors[0]
    assert like is not None
    dtype = compute_dtype(*tensors)[0]
    if not elementwise:
        new = torch.zeros if like.numel() == 0 else torch.empty
        return new(rows_and_cols(like.shape)[0], dtype=dtype, device=like.device)
    floating = {tensor.dtype for tensor in tensors if tensor is not None and tensor.dtype.is_floating_point}
    return torch.empty(like.shape, dtype=floating.pop() if len(floating) == 1 else dtype, device=like.device)


def new_gradients(wanted: int, *tensors: Tensor | None) -> list[Tensor | None]:
    """A new tensor for the gradient of each of `tensors` whose bit is set."""
    return [
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        if tensor is not None and wanted >> index & 1
        else None
        for index, tensor in enumerate(tensors)
    ]


def given(gradients: list[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """Gradients as an op returns them: empty where they are not wanted."""
    return tuple(like.new_empty(0) if gradient is None else gradient for gradient in gradients)


@triton.jit
def _normal_kl_kernel(mean, spread, prior_mean, prior_spread, free_bits, kl, rows, cols, ROWS: tl.constexpr,
                      COLS: tl.constexpr, STEPS: tl.constexpr, ELEMENTWISE: tl.constexpr,
                      PARAMETRIZATION: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """kl = max(KL(N(mean, sigma^2) || N(prior_mean, prior sigma^2)), free_bits)."""
    first_row, first_col = tile_start(cols, ROWS, COLS * STEPS)
    total = tl.zeros([ROWS, COLS], DTYPE)
    for step in range(STEPS):
        col = first_col + step * COLS
        mask = tile_mask(first_row, col, rows, cols, ROWS, COLS)
        m = load_tile(mean, first_row, col, mask, DTYPE)
        s = load_spread(spread, first_row, col, mask, DTYPE, PARAMETRIZATION)
        if prior_mean is None and prior_spread is None:
            unit = load_spread(None, first_row, col, mask, DTYPE, PARAMETRIZATION)
            ratio_minus_1, log_ratio = variance_ratio(s, unit, PARAMETRIZATION)
            term = standard_normal_kl_term(m, log_ratio, ratio_minus_1)
        else:
            pm = load_tile(prior_mean, first_row, col, mask, DTYPE)
            ps = load_spread(prior_spread, first_row, col, mask, DTYPE, PARAMETRIZATION)
            term = normal_kl_term(m, s, pm, ps, PARAMETRIZATION)[0]
        if free_bits is not None:
            least = least_kl(free_bits, DTYPE)
            term = tl.where(term < least, least, term)
        total = add_terms(kl, total, term, cols, first_row, col, mask, ELEMENTWISE)
    store_terms(kl, total, first_row, first_col, rows, cols, STEPS, ELEMENTWISE)


def normal_kl(
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_spread: Tensor | None,
    free_bits: Tensor | float | None,
    elementwise: bool = False,
    parametrization: int = 0,
) -> Tensor:
    """variate::normal_kl"""
    rows, cols = rows_and_cols(mean.shape)
    dtype, compute = compute_dtype(mean, spread, prior_mean, prior_spread)
    kl = new_result(elementwise, mean, spread, prior_mean, prior_spread)
    if mean.numel() > 0:
        launch_terms(
            _normal_kl_kernel, rows, cols, view(mean, rows), view(spread, rows), view(prior_mean, rows),
            view(prior_spread, rows), scalar(free_bits, dtype, mean.device), out=kl, elementwise=elementwise,
            PARAMETRIZATION=parametrization, DTYPE=compute,
        )  # fmt: skip
    return kl


@triton.jit
def _normal_kl_backward_kernel(grad_kl, mean, spread, prior_mean, prior_spread, free_bits, grad_mean, grad_spread,
                               grad_prior_mean, grad_prior_spread, rows, cols, ROWS: tl.constexpr,
                               COLS: tl.constexpr, PARAMETRIZATION: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """grad_mean = g scaled difference = -grad_prior_mean; by log sigma^2 the others are g ratio_minus_1 / 2 and
    -g (ratio_minus_1 + distance) / 2. g = grad_kl, and 0 where free bits hold kl up."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    g = load_gradient(grad_kl, first_row, first_col, rows, mask, DTYPE)
    m = load_tile(mean, first_row, first_col, mask, DTYPE)
    s = load_spread(spread, first_row, first_col, mask, DTYPE, PARAMETRIZATION)
    ps = load_spread(prior_spread, first_row, first_col, mask, DTYPE, PARAMETRIZATION)
    if prior_mean is None and prior_spread is None:
        ratio_minus_1, log_ratio = variance_ratio(s, ps, PARAMETRIZATION)
        kl = standard_normal_kl_term(m, log_ratio, ratio_minus_1)
        difference = m
        distance = m * m
    else:
        pm = load_tile(prior_mean, first_row, first_col, mask, DTYPE)
        kl, difference, ratio_minus_1, distance = normal_kl_term(m, s, pm, ps, PARAMETRIZATION)
    if free_bits is not None:
        g = tl.where(kl < least_kl(free_bits, DTYPE), 0.0, g)
    if grad_mean is not None:
        store_tile(grad_mean, cols, first_row, first_col, mask, g * difference)
    if grad_prior_mean is not None:
        store_tile(grad_prior_mean, cols, first_row, first_col, mask, -g * difference)
    if grad_spread is not None:
        d_spread = 0.5 * g * ratio_minus_1 * log_variance_slope(s, PARAMETRIZATION)
        store_tile(grad_spread, cols, first_row, first_col, mask, d_spread)
    if grad_prior_spread is not None:
        d_prior = -0.5 * g * (ratio_minus_1 + distance) * log_variance_slope(ps, PARAMETRIZATION)
        store_tile(grad_prior_spread, cols, first_row, first_col, mask, d_prior)


def normal_kl_backward(
    grad_kl: Tensor,
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_spread: Tensor | None,
    free_bits: Tensor | float | None,
    wanted: int,
    parametrization: int = 0,
) -> tuple[Tensor, ...]:
    """variate::normal_kl_backward"""
    rows, cols = rows_and_cols(mean.shape)
    dtype, compute = compute_dtype(mean, spread, prior_mean, prior_spread)
    gradients = new_gradients(wanted, mean, spread, prior_mean, prior_spread)
    if mean.numel() > 0:
        launch_tiles(
            _normal_kl_backward_kernel, rows, cols, gradient_view(grad_kl, mean.shape), view(mean, rows),
            view(spread, rows), view(prior_mean, rows), view(prior_spread, rows),
            scalar(free_bits, dtype, mean.device), *gradients, device=mean.device,
            PARAMETRIZATION=parametrization, DTYPE=compute,
        )  # fmt: skip
    return given(gradients, mean)


@triton.jit
def _normal_nll_kernel(mean, spread, target, nll, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr,
                       STEPS: tl.constexpr, ELEMENTWISE: tl.constexpr, PARAMETRIZATION: tl.constexpr,
                       DTYPE: tl.constexpr):  # fmt: skip
    """nll = -log N(target | mean, sigma^2)."""
    first_row, first_col = tile_start(cols, ROWS, COLS * STEPS)
    total = tl.zeros([ROWS, COLS], DTYPE)
    for step in range(STEPS):
        col = first_col + step * COLS
        mask = tile_mask(first_row, col, rows, cols, ROWS, COLS)
        m = load_tile(mean, first_row, col, mask, DTYPE)
        s = load_tile(spread, first_row, col, mask, DTYPE)
        x = load_tile(target, first_row, col, mask, DTYPE)
        term = normal_nll_term(m, s, x, PARAMETRIZATION)[0]
        total = add_terms(nll, total, term, cols, first_row, col, mask, ELEMENTWISE)
    store_terms(nll, total, first_row, first_col, rows, cols, STEPS, ELEMENTWISE)


def normal_nll(
    mean: Tensor, spread: Tensor, target: Tensor, elementwise: bool = False, parametrization: int = 0
) -> Tensor:
    """variate::normal_nll"""
    rows, cols = rows_and_cols(mean.shape)
    nll = new_result(elementwise, mean, spread, target)
    if mean.numel() > 0:
        launch_terms(
            _normal_nll_kernel, rows, cols, view(mean, rows), view(spread, rows), view(target, rows), out=nll,
            elementwise=elementwise, PARAMETRIZATION=parametrization,
            DTYPE=compute_dtype(mean, spread, target)[1],
        )  # fmt: skip
    return nll


@triton.jit
def _normal_nll_backward_kernel(grad_nll, mean, spread, target, grad_mean, grad_spread, grad_target, rows, cols,
                                ROWS: tl.constexpr, COLS: tl.constexpr, PARAMETRIZATION: tl.constexpr,
                                DTYPE: tl.constexpr):  # fmt: skip
    """grad_target = grad_nll scaled difference = -grad_mean, grad_spread = grad_nll slope d log sigma^2 / d spread."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    g = load_gradient(grad_nll, first_row, first_col, rows, mask, DTYPE)
    m = load_tile(mean, first_row, first_col, mask, DTYPE)
    s = load_tile(spread, first_row, first_col, mask, DTYPE)
    x = load_tile(target, first_row, first_col, mask, DTYPE)
    difference, slope = normal_nll_term(m, s, x, PARAMETRIZATION)[1:]
    if grad_mean is not None:
        store_tile(grad_mean, cols, first_row, first_col, mask, -g * difference)
    if grad_target is not None:
        store_tile(grad_target, cols, first_row, first_col, mask, g * difference)
    if grad_spread is not None:
        d_spread = g * slope * log_variance_slope(s, PARAMETRIZATION)
        store_tile(grad_spread, cols, first_row, first_col, mask, d_spread)


def normal_nll_backward(
    grad_nll: Tensor, mean: Tensor, spread: Tensor, target: Tensor, wanted: int, parametrization: int = 0
) -> tuple[Tensor, ...]:
    """variate::normal_nll_backward"""
    rows, cols = rows_and_cols(mean.shape)
    gradients = new_gradients(wanted, mean, spread, target)
    if mean.numel() > 0:
        launch_tiles(
            _normal_nll_backward_kernel, rows, cols, gradient_view(grad_nll, mean.shape), view(mean, rows),
            view(spread, rows), view(target, rows), *gradients, device=mean.device,
            PARAMETRIZATION=parametrization, DTYPE=compute_dtype(mean, spread, target)[1],
        )  # fmt: skip
    return given(gradients, mean)


@triton.jit
def _bernoulli_kl_kernel(logits, prior_logits, kl, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr,
                         STEPS: tl.constexpr, ELEMENTWISE: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """kl = KL(Bernoulli(sigmoid(logits)) || Bernoulli(sigmoid(prior_logits)))."""
    first_row, first_col = tile_start(cols, ROWS, COLS * STEPS)
    total = tl.zeros([ROWS, COLS], DTYPE)
    for step in range(STEPS):
        col = first_col + step * COLS
        mask = tile_mask(first_row, col, rows, cols, ROWS, COLS)
        logit = load_tile(logits, first_row, col, mask, DTYPE)
        prior = load_tile(prior_logits, first_row, col, mask, DTYPE)
        total = add_terms(kl, total, bernoulli_kl_term(logit, prior)[0], cols, first_row, col, mask, ELEMENTWISE)
    store_terms(kl, total, first_row, first_col, rows, cols, STEPS, ELEMENTWISE)


def bernoulli_kl(logits: Tensor, prior_logits: Tensor, elementwise: bool = False) -> Tensor:
    """variate::bernoulli_kl"""
    rows, cols = rows_and_cols(logits.shape)
    kl = new_result(elementwise, logits, prior_logits)
    if logits.numel() > 0:
        launch_terms(
            _bernoulli_kl_kernel, rows, cols, view(logits, rows), view(prior_logits, rows), out=kl,
            elementwise=elementwise, DTYPE=compute_dtype(logits, prior_logits)[1],
        )  # fmt: skip
    return kl


@triton.jit
def _bernoulli_kl_backward_kernel(grad_kl, logits, prior_logits, grad_logits, grad_prior_logits, rows, cols,
                                  ROWS: tl.constexpr, COLS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """grad_logits = grad_kl p (1 - p) (logits - prior_logits), grad_prior_logits = grad_kl (prior p - p)."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    g = load_gradient(grad_kl, first_row, first_col, rows, mask, DTYPE)
    logit = load_tile(logits, first_row, first_col, mask, DTYPE)
    prior = load_tile(prior_logits, first_row, first_col, mask, DTYPE)
    d_logit, d_prior = bernoulli_kl_term(logit, prior)[1:]
    if grad_logits is not None:
        store_tile(grad_logits, cols, first_row, first_col, mask, g * d_logit)
    if grad_prior_logits is not None:
        store_tile(grad_prior_logits, cols, first_row, first_col, mask, g * d_prior)


def bernoulli_kl_backward(grad_kl: Tensor, logits: Tensor, prior_logits: Tensor, wanted: int) -> tuple[Tensor, ...]:
    """variate::bernoulli_kl_backward"""
    rows, cols = rows_and_cols(logits.shape)
    gradients = new_gradients(wanted, logits, prior_logits)
    if logits.numel() > 0:
        launch_tiles(
            _bernoulli_kl_backward_kernel, rows, cols, gradient_view(grad_kl, logits.shape), view(logits, rows),
            view(prior_logits, rows), *gradients, device=logits.device,
            DTYPE=compute_dtype(logits, prior_logits)[1],
        )  # fmt: skip
    return given(gradients, logits)


@triton.jit
def _bernoulli_nll_kernel(logits, target, nll, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr,
                          STEPS: tl.constexpr, ELEMENTWISE: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """nll = -log Bernoulli(target | sigmoid(logits))."""
    first_row, first_col = tile_start(cols, ROWS, COLS * STEPS)
    total = tl.zeros([ROWS, COLS], DTYPE)
    for step in range(STEPS):
        col = first_col + step * COLS
        mask = tile_mask(first_row, col, rows, cols, ROWS, COLS)
        logit = load_tile(logits, first_row, col, mask, DTYPE)
        x = load_tile(target, first_row, col, mask, DTYPE)
        total = add_terms(nll, total, bernoulli_nll_term(logit, x), cols, first_row, col, mask, ELEMENTWISE)
    store_terms(nll, total, first_row, first_col, rows, cols, STEPS, ELEMENTWISE)


def bernoulli_nll(logits: Tensor, target: Tensor, elementwise: bool = False) -> Tensor:
    """variate::bernoulli_nll"""
    rows, cols = rows_and_cols(logits.shape)
    nll = new_result(elementwise, logits, target)
    if logits.numel() > 0:
        launch_terms(
            _bernoulli_nll_kernel, rows, cols, view(logits, rows), view(target, rows), out=nll,
            elementwise=elementwise, DTYPE=compute_dtype(logits, target)[1],
        )  # fmt: skip
    return nll


@triton.jit
def _bernoulli_nll_backward_kernel(grad_nll, logits, target, grad_logits, grad_target, rows, cols,
                                   ROWS: tl.constexpr, COLS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """grad_logits = grad_nll (sigmoid(logits) - target), grad_target = -grad_nll logits."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    g = load_gradient(grad_nll, first_row, first_col, rows, mask, DTYPE)
    logit = load_tile(logits, first_row, first_col, mask, DTYPE)
    if grad_logits is not None:
        x = load_tile(target, first_row, first_col, mask, DTYPE)
        store_tile(grad_logits, cols, first_row, first_col, mask, g * (sigmoid(logit) - x))
    if grad_target is not None:
        store_tile(grad_target, cols, first_row, first_col, mask, -g * logit)


def bernoulli_nll_backward(grad_nll: Tensor, logits: Tensor, target: Tensor, wanted: int) -> tuple[Tensor, ...]:
    """variate::bernoulli_nll_backward"""
    rows, cols = rows_and_cols(logits.shape)
    gradients = new_gradients(wanted, logits, target)
    if logits.numel() > 0:
        launch_tiles(
            _bernoulli_nll_backward_kernel, rows, cols, gradient_view(grad_nll, logits.shape), view(logits, rows),
            view(target, rows), *gradients, device=logits.device, DTYPE=compute_dtype(logits, target)[1],
        )  # fmt: skip
    return given(gradients, logits)
