"""What a denoising step knows of whole samples: the factors of rescaled guidance, and the order statistics of dynamic
thresholding."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .denoise_terms import guided, number
from .tiles import TILE, launch, tile_mask, tile_start, view

MOMENT_STEPS = 16  # tiles that a program of the moments adds up
DIGIT = 11  # bits that a launch finds of an order statistic
BINS = tl.constexpr(1 << DIGIT)
COUNT_TILE = 4096
COUNT_PROGRAMS = 512  # that a launch aims at


# Rescaled guidance: the moments of a sample, in float64.


@triton.jit
def no_moments(ROWS: tl.constexpr, COLS: tl.constexpr):
    """The sums of c, c^2, m and m^2, in as many parts as a tile has elements."""
    zero = tl.zeros([ROWS, COLS], tl.float64)
    return zero, zero, zero, zero


@triton.jit
def add_moments(total, output, unconditional, guidance, first_row, first_col, mask, DTYPE: tl.constexpr):
    one = tl.full([], 1, tl.int32)
    c, m = guided(output, unconditional, guidance, first_row, first_col, mask, one, DTYPE)
    c = c.to(tl.float64)
    m = m.to(tl.float64)
    return total[0] + c, tl.fma(c, c, total[1]), total[2] + m, tl.fma(m, m, total[3])


@triton.jit
def sum_moments(total):
    """The sums themselves, [ROWS, 1]."""
    return (
        tl.sum(total[0], axis=1, keep_dims=True),
        tl.sum(total[1], axis=1, keep_dims=True),
        tl.sum(total[2], axis=1, keep_dims=True),
        tl.sum(total[3], axis=1, keep_dims=True),
    )


@triton.jit
def squares_about_mean(total, squares, cols):
    """The sum of (x - mean(x))^2, not negative."""
    s = squares - total * total / cols
    return tl.where(s < 0.0, 0.0, s)


@triton.jit
def rescale_factor(moments, rescale, cols):
    """rescale std(c) / std(m) + 1 - rescale."""
    n = cols.to(tl.float64)
    ratio = squares_about_mean(moments[0], moments[1], n) / squares_about_mean(moments[2], moments[3], n)
    amount = number(rescale, tl.float64)
    return amount * tl.sqrt(ratio) + (1.0 - amount)


@triton.jit
def _moments_kernel(output, unconditional, guidance, out, rows, cols, COLS: tl.constexpr, STEPS: tl.constexpr,
                    DTYPE: tl.constexpr):  # fmt: skip
    """out[4, row, chunk] = sums over a piece of a row."""
    first_row, first_col = tile_start(cols, 1, COLS * STEPS)
    total = no_moments(1, COLS)
    for step in range(STEPS):
        col = first_col + step * COLS
        mask = tile_mask(first_row, col, rows, cols, 1, COLS)
        total = add_moments(total, output, unconditional, guidance, first_row, col, mask, DTYPE)
    total = sum_moments(total)
    for i in tl.static_range(4):
        tl.store(out + i * tl.num_programs(0) + tl.program_id(0) + tl.arange(0, 1)[:, None], total[i])


@triton.jit(do_not_specialize=["rescale"])
def _factor_kernel(moments, out, chunks, rescale, cols, CHUNKS: tl.constexpr):
    """out[row] = the factor of a row, from its pieces."""
    row = tl.program_id(0)
    rows = tl.num_programs(0)
    total = no_moments(1, CHUNKS)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)[None, :]
        at = moments + row.to(tl.int64) * chunks + chunk
        step = rows.to(tl.int64) * chunks
        total = (
            total[0] + tl.load(at, chunk < chunks, other=0),
            total[1] + tl.load(at + step, chunk < chunks, other=0),
            total[2] + tl.load(at + 2 * step, chunk < chunks, other=0),
            total[3] + tl.load(at + 3 * step, chunk < chunks, other=0),
        )
    total = sum_moments(total)
    tl.store(out + row + tl.arange(0, 1)[:, None], rescale_factor(total, rescale, cols + row * 0))


def find_factors(output: Tensor, unconditional: Tensor, guidance, rescale: int, rows: int, cols: int, DTYPE) -> Tensor:
    """float64 [rows]: what each guided output is multiplied by, of samples longer than WHOLE."""
    chunks = triton.cdiv(cols, TILE * MOMENT_STEPS)
    moments = torch.empty(4, rows, chunks, dtype=torch.float64, device=output.device)
    factors = torch.empty(rows, dtype=torch.float64, device=output.device)
    launch(
        _moments_kernel, rows * chunks, view(output, rows), view(unconditional, rows), guidance, moments, rows, cols,
        device=output.device, COLS=TILE, STEPS=MOMENT_STEPS, DTYPE=DTYPE,
    )  # fmt: skip
    launch(_factor_kernel, rows, moments, factors, chunks, rescale, cols, device=output.device, CHUNKS=128)
    return factors


# Dynamic thresholding: order statistics of |x0|, compared as integers, whose order is that of the numbers.


@triton.jit
def magnitude(x):
    """|x| as an integer; any NaN is the greatest of all."""
    if x.dtype == tl.float64:
        return tl.where(x != x, 0x7FFFFFFFFFFFFFFF, x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF)
    else:
        return tl.where(x != x, 0x7FFFFFFF, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)


@triton.jit
def number_of(bits):
    """The number that magnitude() made `bits` of."""
    return bits.to(tl.float64 if bits.dtype == tl.int64 else tl.float32, bitcast=True)


@triton.jit
def order_statistics(bits, below, above):
    """The values of ranks `below` and `above`, the same or the next, in each row [ROWS, 1] of integers that are not
    negative: bit after bit, from the most significant, by counting."""
    LENGTH: tl.constexpr = bits.dtype.primitive_bitwidth - 1
    GREATEST: tl.constexpr = (1 << LENGTH) - 1
    low = tl.zeros([bits.shape[0], 1], bits.dtype)
    one = low + 1
    for i in range(LENGTH):
        candidate = low | (one << (LENGTH - 1 - i))
        smaller = tl.sum((bits < candidate).to(tl.int32), axis=1, keep_dims=True)
        low = tl.where(smaller <= below, candidate, low)
    not_above = tl.sum((bits <= low).to(tl.int32), axis=1, keep_dims=True)
    next = tl.min(tl.where(bits > low, bits, GREATEST), axis=1, keep_dims=True)
    return low, tl.where(above < not_above, low, next)


@triton.jit
def bound_of(low, high, nan, weight, clip, DTYPE: tl.constexpr):
    """The threshold between two order statistics; NaN where an x0 is."""
    w = tl.zeros_like(low) + number(weight, DTYPE)
    q = tl.where((w == 0.0) | (low == high), low, low + w * (high - low))
    most = tl.zeros_like(low) + number(clip, DTYPE)
    q = tl.where(q < 1.0, 1.0, q)
    return tl.where(nan, float("nan"), tl.where((most > 0.0) & (q > most), most, q))


# What a launch leaves for the next, int64 for each row: the digits and the rank in what they leave, of two order
# statistics; whether there is a NaN; tickets.
LOW, LOW_RANK, HIGH, HIGH_RANK, NANS, TICKETS = (tl.constexpr(i) for i in range(6))
PLACES = tl.constexpr(8)


@triton.jit
def next_digit(counts, place, WHICH: tl.constexpr, WIDTH: tl.constexpr):
    """Finds the next digit of an order statistic from how often each digit occurs."""
    rank = tl.load(place + WHICH + 1)
    up_to = tl.cumsum(counts, axis=0)
    digit = tl.sum((up_to <= rank).to(tl.int64), axis=0)
    smaller = tl.sum(tl.where(up_to <= rank, counts, 0).to(tl.int64), axis=0)
    tl.store(place + WHICH, (tl.load(place + WHICH) << WIDTH) | digit)
    tl.store(place + WHICH + 1, rank - smaller)


@triton.jit(do_not_specialize=["below", "above"])
def _count_kernel(x0, places, counts, below, above, rows, cols, steps, COLS: tl.constexpr, SHIFT: tl.constexpr,
                  WIDTH: tl.constexpr, FIRST: tl.constexpr):  # fmt: skip
    """One digit, the WIDTH bits from SHIFT on, of two order statistics of each row.

    Programs count the digits of the elements that agree in the digits before, and the last one of a row to be done
    finds the digit. counts [rows, 2, 2^DIGIT] and the tickets are 0 before and after.
    """
    shares = (cols - 1) // (COLS * steps) + 1
    program = tl.program_id(0)
    row = (program // shares).to(tl.int64)
    first_col = (program % shares).to(tl.int64) * COLS * steps
    place = places + row * PLACES
    own = counts + row * 2 * BINS
    bin = tl.arange(0, BINS)
    low = tl.load(place + LOW)
    high = tl.load(place + HIGH)
    low_counts = tl.zeros([BINS], tl.int32)
    high_counts = tl.zeros([BINS], tl.int32)
    nans = tl.full([], 0, tl.int32)
    for step in range(steps):
        col = first_col + step * COLS + tl.arange(0, COLS)
        x = tl.load(x0 + row * cols + col, col < cols, other=0)
        if FIRST:
            nans += tl.sum((x != x).to(tl.int32), axis=0)
        bits = magnitude(x)
        digit = ((bits >> SHIFT) & ((1 << WIDTH) - 1)).to(tl.int32)
        before = (bits.to(tl.int64) >> SHIFT) >> WIDTH
        low_counts += tl.histogram(digit, BINS, mask=(col < cols) & (before == low))
        if low != high:
            high_counts += tl.histogram(digit, BINS, mask=(col < cols) & (before == high))
    tl.atomic_add(own + bin, low_counts, low_counts > 0, sem="relaxed")
    if low != high:
        tl.atomic_add(own + BINS + bin, high_counts, high_counts > 0, sem="relaxed")
    if nans > 0:
        tl.atomic_add(place + NANS, 1, sem="relaxed")
    tl.debug_barrier()
    if tl.atomic_add(place + TICKETS, 1) == shares - 1:
        tl.debug_barrier()
        if FIRST:
            tl.store(place + LOW_RANK, below.to(tl.int64))
            tl.store(place + HIGH_RANK, above.to(tl.int64))
            tl.debug_barrier()
        low_counts = tl.load(own + bin, cache_modifier=".cg")
        high_counts = tl.load(own + BINS + bin, cache_modifier=".cg")
        next_digit(low_counts, place, LOW, WIDTH)
        next_digit(tl.where(low == high, low_counts, high_counts), place, HIGH, WIDTH)
        tl.debug_barrier()
        tl.store(own + bin, tl.zeros([BINS], tl.int32))
        tl.store(own + BINS + bin, tl.zeros([BINS], tl.int32))
        tl.store(place + TICKETS, 0)


def find_order_statistics(x0: Tensor, below: int, above: int, rows: int, cols: int) -> Tensor:
    """int64 [rows, 8]: the ranks `below` and `above` of the magnitudes of each row, of samples longer than WHOLE."""
    work = torch.zeros(rows * (PLACES.value + BINS.value), dtype=torch.int64, device=x0.device)
    places, counts = work[: rows * PLACES.value], work[rows * PLACES.value :].view(torch.int32)
    tiles = triton.cdiv(cols, COUNT_TILE)
    steps = max(1, min(tiles, rows * tiles // COUNT_PROGRAMS, 16))
    left = x0.element_size() * 8 - 1
    first = True
    while left > 0:
        width = min(left, DIGIT)
        left -= width
        launch(
            _count_kernel, rows * triton.cdiv(tiles, steps), x0, places, counts, below, above, rows, cols, steps,
            device=x0.device, warps=8, COLS=COUNT_TILE, SHIFT=left, WIDTH=width, FIRST=first,
        )  # fmt: skip
        first = False
    return places
