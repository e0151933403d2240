"""Bounds of several importance samples, the twin of variate/math/bound.hpp.

A program handles some data, each a row of its tile, and goes through their samples a tile at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import divide, exp, log
from .tiles import compute_dtype, launch, load_tile, tile_mask, tile_pointers, tile_shape, tree_sum


@triton.jit
def relative_weight(x, highest):
    """exp(x - highest): 1 at the highest, also where it is infinite, and 0 for a weight of 0, also where all are."""
    empty = highest == float("-inf")
    return tl.where((x == highest) & ~empty, 1.0, exp(x - tl.where(empty, 0.0, highest)))


@triton.jit
def safe_log(x):
    """log(x) where x is positive, else 0."""
    x = tl.where(x > 0.0, x, 1.0)
    return tl.log(x) if x.dtype == tl.float64 else log(x)


@triton.jit
def _load(x, datum, sample, data, samples, ROWS: tl.constexpr, COLS: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of log weights, -inf beyond the samples, and its mask."""
    mask = tile_mask(datum, sample, data, samples, ROWS, COLS)
    return tl.where(mask, load_tile(x, datum, sample, mask, DTYPE), float("-inf")), mask


@triton.jit
def _learning_signal(x, highest, second, total, rest, log_sum, zeros, others):
    """bound - bound with x replaced by the mean of the others; see the header."""
    zero = x == float("-inf")
    top = x == highest
    mean = divide(log_sum - tl.where(zero, 0.0, x), others)
    baseline = tl.where(zeros > tl.where(zero, 1.0, 0.0), float("-inf"), mean)
    scale = tl.where(top, second, highest)
    own = relative_weight(x, highest)
    total_and_sum = tl.where(top, rest, total - own) + relative_weight(baseline, scale)
    signal = (highest - scale) + (safe_log(total) - safe_log(total_and_sum))
    certain = tl.where(total == 0.0, 0.0, tl.where(total_and_sum == 0.0, float("inf"), signal))
    nan = (total != total) | (total_and_sum != total_and_sum)
    return tl.where(nan, total + total_and_sum, certain)


@triton.jit
def _importance_weighted_bound_kernel(log_weight, bound, weight, size, signal, data, samples, ROWS: tl.constexpr,
                                      COLS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """Each datum's bound, normalised weights, effective sample size, and learning signals."""
    datum = tl.program_id(0).to(tl.int64) * ROWS
    highest = tl.full([ROWS], float("-inf"), DTYPE)
    for sample in range(0, samples, COLS):
        x, mask = _load(log_weight, datum, sample, data, samples, ROWS, COLS, DTYPE)
        highest = tl.maximum(highest, tl.max(x, axis=1))
    highest = highest[:, None]

    total = tl.zeros([ROWS], DTYPE)
    squares = tl.zeros([ROWS], DTYPE)
    for sample in range(0, samples, COLS):
        x, mask = _load(log_weight, datum, sample, data, samples, ROWS, COLS, DTYPE)
        e = relative_weight(x, highest)
        total += tree_sum(tl.where(mask, e, 0.0), ROWS, COLS)
        squares += tree_sum(tl.where(mask, e * e, 0.0), ROWS, COLS)
    row = datum + tl.arange(0, ROWS)
    count = tl.zeros([ROWS], DTYPE) + samples
    log_total = tl.where(total > 0.0, tl.reshape(highest, [ROWS]) + safe_log(total), total)
    log_total = tl.where(total == 0.0, float("-inf"), log_total)
    some = tl.where(total == 0.0, 1.0, total)
    tl.store(bound + row, log_total - safe_log(count), row < data)
    tl.store(size + row, divide(total * total, tl.where(total == 0.0, 1.0, squares)), row < data)
    for sample in range(0, samples, COLS):
        x, mask = _load(log_weight, datum, sample, data, samples, ROWS, COLS, DTYPE)
        w = divide(relative_weight(x, highest), some[:, None])
        tl.store(tile_pointers((weight, 1, data), datum, sample, mask), w, mask)

    if signal is not None:
        ties = tl.zeros([ROWS], DTYPE)
        zeros = tl.zeros([ROWS], DTYPE)
        log_sum = tl.zeros([ROWS], DTYPE)
        second = tl.full([ROWS], float("-inf"), DTYPE)
        for sample in range(0, samples, COLS):
            x, mask = _load(log_weight, datum, sample, data, samples, ROWS, COLS, DTYPE)
            zero = x == float("-inf")
            ties += tree_sum(tl.where(mask & (x == highest), 1.0, 0.0).to(DTYPE), ROWS, COLS)
            zeros += tree_sum(tl.where(mask & zero, 1.0, 0.0).to(DTYPE), ROWS, COLS)
            log_sum += tree_sum(tl.where(zero, 0.0, x), ROWS, COLS)
            second = tl.maximum(second, tl.max(tl.where(x == highest, float("-inf"), x), axis=1))
        second = tl.where(ties > 1.0, tl.reshape(highest, [ROWS]), second)[:, None]
        rest = tl.where(ties > 1.0, ties - 1.0, 0.0)
        for sample in range(0, samples, COLS):
            x, mask = _load(log_weight, datum, sample, data, samples, ROWS, COLS, DTYPE)
            e = relative_weight(x, second)
            rest += tree_sum(tl.where(mask & ~(x == highest), e, 0.0), ROWS, COLS)
        for sample in range(0, samples, COLS):
            x, mask = _load(log_weight, datum, sample, data, samples, ROWS, COLS, DTYPE)
            value = _learning_signal(x, highest, second, total[:, None], rest[:, None], log_sum[:, None],
                                     zeros[:, None], count[:, None] - 1.0)  # fmt: skip
            tl.store(tile_pointers((signal, 1, data), datum, sample, mask), value, mask)


def importance_weighted_bound(log_weight: Tensor, leave_one_out: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """variate::importance_weighted_bound"""
    samples, data = log_weight.shape
    dtype, compute = compute_dtype(log_weight)
    bound, size = (torch.empty(data, dtype=dtype, device=log_weight.device) for _ in range(2))
    weight = torch.empty(samples, data, dtype=dtype, device=log_weight.device)
    signal = torch.empty_like(weight) if leave_one_out else None
    if data > 0:
        tile = tile_shape(samples)
        by_datum = (log_weight, log_weight.stride(1), log_weight.stride(0))
        launch(
            _importance_weighted_bound_kernel, triton.cdiv(data, tile["ROWS"]), by_datum, bound, weight, size, signal,
            data, samples, device=log_weight.device, **tile, DTYPE=compute,
        )  # fmt: skip
    return bound, weight, size, weight.new_empty(0) if signal is None else signal
