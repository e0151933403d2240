"""The categorical terms of the evidence lower bound. A group is the K categories of one position.

A program handles several short groups, or one long one in steps; a group's numbers are summed in an order that depends
on K alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elbo import given, new_gradients, new_result
from .elementary import divide, exp
from .terms import log_nonnegative, scaled
from .tiles import _row_sums_kernel as sum_groups
from .tiles import compute_dtype, launch, launch_row_sums, rows_and_cols, tile_shape, tree_sum, view


def groups_of(logits: Tensor) -> tuple[int, int, int]:
    """Samples, groups of a sample, categories of a group."""
    rows, cols = rows_and_cols(logits.shape)
    categories = logits.shape[-1]
    return rows, cols // categories, categories


def launch_groups(kernel, logits: Tensor, *args, **constants) -> None:
    """One program per ROWS groups. The kernel's last arguments are groups, lines = rows * groups, and categories."""
    rows, groups, categories = groups_of(logits)
    tile = tile_shape(categories)
    programs = triton.cdiv(rows * groups, tile["ROWS"])
    launch(kernel, programs, *args, groups, rows * groups, categories, device=logits.device, **tile, **constants)


def sum_over_groups(terms: Tensor, out: Tensor) -> None:
    """out[r] = the sum of terms[r, :]"""
    rows = out.numel()
    launch_row_sums(sum_groups, rows, terms.numel() // rows, view(terms, rows), out=out)


@triton.jit
def load_chunk(x, line, start, groups, lines, categories, ROWS: tl.constexpr, COLS: tl.constexpr,
               DTYPE: tl.constexpr):  # fmt: skip
    """[ROWS, COLS] logits of categories start, start + 1, ...; -inf beyond the last."""
    k = (start + tl.arange(0, COLS))[None, :]
    mask = (line < lines)[:, None] & (k < categories)
    column = (line % groups * categories)[:, None] + k
    pointers = x[0] + (line // groups * x[1])[:, None] + column * x[2]
    return tl.load(pointers, mask, other=float("-inf")).to(DTYPE)


@triton.jit
def store_chunk(out, value, line, start, lines, categories, COLS: tl.constexpr):
    """To a contiguous [lines, categories]; 16 bits are rounded by way of float32."""
    if value.dtype == tl.float64 and out.dtype.element_ty.primitive_bitwidth == 16:
        value = value.to(tl.float32)
    k = (start + tl.arange(0, COLS))[None, :]
    mask = (line < lines)[:, None] & (k < categories)
    tl.store(out + (line * categories)[:, None] + k, value, mask)


@triton.jit
def first_line(ROWS: tl.constexpr):
    return tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)


@triton.jit
def log_sum(x, line, groups, lines, categories, ROWS: tl.constexpr, COLS: tl.constexpr, DTYPE: tl.constexpr):
    """shift and sum of each line: log sum_k exp(x_k) = shift + log(sum), shift the largest x, or 0 if all are -inf."""
    most = tl.full([ROWS], float("-inf"), DTYPE)
    shift = tl.zeros([ROWS], DTYPE)
    total = tl.zeros([ROWS], DTYPE)
    start = tl.full([], 0, tl.int64)
    while start < categories:
        chunk = load_chunk(x, line, start, groups, lines, categories, ROWS, COLS, DTYPE)
        here = tl.max(chunk, axis=1)
        larger = here > most
        total = tl.where(larger, total * exp(tl.where(larger, most - here, 0.0)), total)
        most = tl.where(larger, here, most)
        shift = tl.where(larger, here, shift)
        total += tree_sum(exp(chunk - shift[:, None]), ROWS, COLS)
        start += COLS
    return shift, total


@triton.jit
def _categorical_nll_kernel(logits, target, nll, log_sum_exp, groups, lines, categories, ROWS: tl.constexpr,
                            COLS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """nll[line] = log sum_k exp(logits) - logits[target], NaN for a target that is no category."""
    line = first_line(ROWS)
    there = line < lines
    shift, total = log_sum(logits, line, groups, lines, categories, ROWS, COLS, DTYPE)
    log_total = log_nonnegative(total)
    k = tl.load(target + line, there, other=0).to(tl.int64)
    valid = there & (k >= 0) & (k < categories)
    pointers = logits[0] + line // groups * logits[1] + (line % groups * categories + k) * logits[2]
    picked = tl.load(pointers, valid, other=float("nan")).to(DTYPE)
    tl.store(nll + line, (shift - picked) + log_total, there)
    if log_sum_exp is not None:
        tl.store(log_sum_exp + line, shift + log_total, there)


def categorical_nll(logits: Tensor, target: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor]:
    """variate::categorical_nll"""
    nll = new_result(False, logits)
    log_sum_exp = nll.new_empty(target.shape if needs_grad else (0,))
    if logits.numel() > 0:
        terms = nll.new_empty(target.shape)
        launch_groups(
            _categorical_nll_kernel, logits, view(logits, groups_of(logits)[0]), target.contiguous(), terms,
            log_sum_exp if needs_grad else None, DTYPE=compute_dtype(logits)[1],
        )  # fmt: skip
        sum_over_groups(terms, nll)
    return nll, log_sum_exp


@triton.jit
def _categorical_nll_backward_kernel(grad_nll, logits, target, log_sum_exp, grad_logits, groups, lines, categories,
                                     ROWS: tl.constexpr, COLS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """grad_logits = grad_nll (exp(logits - log_sum_exp) - 1 at the target), NaN for a target that is no category."""
    line = first_line(ROWS)
    there = line < lines
    g = tl.load(grad_nll[0] + line // groups * grad_nll[1], there, other=0).to(DTYPE)
    k = tl.load(target + line, there, other=0).to(tl.int64)
    g = tl.where((k >= 0) & (k < categories), g, float("nan"))[:, None]
    log_total = tl.load(log_sum_exp + line, there, other=0).to(DTYPE)[:, None]
    start = tl.full([], 0, tl.int64)
    while start < categories:
        chunk = load_chunk(logits, line, start, groups, lines, categories, ROWS, COLS, DTYPE)
        hit = (start + tl.arange(0, COLS))[None, :] == k[:, None]
        value = g * (exp(chunk - log_total) - tl.where(hit, 1.0, 0.0))
        store_chunk(grad_logits, value, line, start, lines, categories, COLS)
        start += COLS


def categorical_nll_backward(grad_nll: Tensor, logits: Tensor, target: Tensor, log_sum_exp: Tensor) -> Tensor:
    """variate::categorical_nll_backward"""
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if logits.numel() > 0:
        launch_groups(
            _categorical_nll_backward_kernel, logits, (grad_nll, grad_nll.stride(0)),
            view(logits, groups_of(logits)[0]), target.contiguous(), log_sum_exp.contiguous(), grad_logits,
            DTYPE=compute_dtype(logits)[1],
        )  # fmt: skip
    return grad_logits


@triton.jit
def group_kl(logits, prior_logits, line, groups, lines, categories, ROWS: tl.constexpr, COLS: tl.constexpr,
             DTYPE: tl.constexpr):  # fmt: skip
    """Each line's divergence, and the shifts and sums of its two distributions."""
    shift, total = log_sum(logits, line, groups, lines, categories, ROWS, COLS, DTYPE)
    prior_shift, prior_total = log_sum(prior_logits, line, groups, lines, categories, ROWS, COLS, DTYPE)
    weighted = tl.zeros([ROWS], DTYPE)
    start = tl.full([], 0, tl.int64)
    while start < categories:
        x = load_chunk(logits, line, start, groups, lines, categories, ROWS, COLS, DTYPE) - shift[:, None]
        y = load_chunk(prior_logits, line, start, groups, lines, categories, ROWS, COLS, DTYPE) - prior_shift[:, None]
        weighted += tree_sum(scaled(exp(x), x - y), ROWS, COLS)
        start += COLS
    log_of_sums = log_nonnegative(total) - log_nonnegative(prior_total)
    return divide(weighted, total) - log_of_sums, shift, total, prior_shift, prior_total, log_of_sums


@triton.jit
def _categorical_kl_kernel(logits, prior_logits, kl, groups, lines, categories, ROWS: tl.constexpr,
                           COLS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """kl[line] = sum_k p log(p / r)."""
    line = first_line(ROWS)
    value = group_kl(logits, prior_logits, line, groups, lines, categories, ROWS, COLS, DTYPE)[0]
    tl.store(kl + line, value, line < lines)


def categorical_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """variate::categorical_kl"""
    kl = new_result(False, logits, prior_logits)
    if logits.numel() > 0:
        rows = groups_of(logits)[0]
        terms = kl.new_empty(logits.shape[:-1])
        launch_groups(
            _categorical_kl_kernel, logits, view(logits, rows), view(prior_logits, rows), terms,
            DTYPE=compute_dtype(logits, prior_logits)[1],
        )  # fmt: skip
        sum_over_groups(terms, kl)
    return kl


@triton.jit
def _categorical_kl_backward_kernel(grad_kl, logits, prior_logits, grad_logits, grad_prior_logits, groups, lines,
                                    categories, ROWS: tl.constexpr, COLS: tl.constexpr,
                                    DTYPE: tl.constexpr):  # fmt: skip
    """grad_logits = grad_kl p (log(p / r) - kl), grad_prior_logits = grad_kl (r - p)."""
    line = first_line(ROWS)
    g = tl.load(grad_kl[0] + line // groups * grad_kl[1], line < lines, other=0).to(DTYPE)[:, None]
    kl, shift, total, prior_shift, prior_total, log_of_sums = group_kl(
        logits, prior_logits, line, groups, lines, categories, ROWS, COLS, DTYPE
    )
    constant = (log_of_sums + kl)[:, None]
    start = tl.full([], 0, tl.int64)
    while start < categories:
        x = load_chunk(logits, line, start, groups, lines, categories, ROWS, COLS, DTYPE) - shift[:, None]
        y = load_chunk(prior_logits, line, start, groups, lines, categories, ROWS, COLS, DTYPE) - prior_shift[:, None]
        p = divide(exp(x), total[:, None])
        if grad_logits is not None:
            store_chunk(grad_logits, g * scaled(p, x - y - constant), line, start, lines, categories, COLS)
        if grad_prior_logits is not None:
            r = divide(exp(y), prior_total[:, None])
            store_chunk(grad_prior_logits, g * (r - p), line, start, lines, categories, COLS)
        start += COLS


def categorical_kl_backward(grad_kl: Tensor, logits: Tensor, prior_logits: Tensor, wanted: int) -> tuple[Tensor, ...]:
    """variate::categorical_kl_backward"""
    gradients = new_gradients(wanted, logits, prior_logits)
    if logits.numel() > 0:
        rows = groups_of(logits)[0]
        launch_groups(
            _categorical_kl_backward_kernel, logits, (grad_kl, grad_kl.stride(0)), view(logits, rows),
            view(prior_logits, rows), *gradients, DTYPE=compute_dtype(logits, prior_logits)[1],
        )  # fmt: skip
    return given(gradients, logits)
