"""A denoising step of any linear solver: a row of a table of coefficients. See variate/denoise.h for the formulas.

One launch, but for two things that know a whole sample first, where a sample is longer than WHOLE elements: rescaled
guidance (two launches more), and dynamic thresholding (an order statistic by digits: x0, then one launch a digit).

A call with a counter reads its step on the device and advances it there: every program takes a ticket once it has read
the counter, and the one that takes the last of them adds 1.

Sources: Ho and Salimans, "Classifier-free diffusion guidance", 2022; Lin, Liu, Li, Yang, "Common diffusion noise
schedules and sample steps are flawed", 2024, section 3.4 (rescaling); Saharia et al., "Photorealistic text-to-image
diffusion models with deep language understanding", 2022, section 2.3 (dynamic thresholding).
"""

from __future__ import annotations

import struct
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import clamp, divide, exp
from .philox import interleave4, load_key
from .random import tile_normals
from .tiles import (
    TILE,
    compute_dtype,
    int32,
    launch,
    load_column,
    load_tile,
    rows_and_cols,
    store_tile,
    tile_mask,
    tile_pointers,
    tile_start,
    view,
)

COLUMNS = 26  # variate_denoise_column
(
    X0_SAMPLE,
    X0_OUTPUT,
    X0_NOISE,
    PREV_SAMPLE,
    PREV_OUTPUT,
    PREV_X0,
    PREV_STATE,
    PREV_HISTORY_0,
    PREV_HISTORY_1,
    PREV_HISTORY_2,
    PREV_NOISE,
    SAVED_SAMPLE,
    SAVED_OUTPUT,
    SAVED_X0,
    STATE_SAMPLE,
    STATE_OUTPUT,
    STATE_X0,
    STATE_STATE,
    STATE_HISTORY_0,
    STATE_HISTORY_1,
    STATE_HISTORY_2,
    DENOISED_SAMPLE,
    DENOISED_X0,
    NEXT_SCALE,
    MIN_LOG_VARIANCE,
    MAX_LOG_VARIANCE,
) = (tl.constexpr(column) for column in range(COLUMNS))
TABLE_WIDTH = tl.constexpr(COLUMNS)
LEARNED, RANGE = tl.constexpr(1), tl.constexpr(2)  # variate_denoise_variance
DENOISED, SAVED, STATE, NEXT, TWICE = (1 << bit for bit in range(5))  # `wanted`

WHOLE = 16384  # elements of a sample that one program may have in its registers, a quarter of it in float64
MOMENT_STEPS = 16  # tiles that a program of the moments adds up
DIGIT = 11  # bits that a launch finds of an order statistic
BINS = tl.constexpr(1 << DIGIT)
COUNT_TILE = 4096
COUNT_PROGRAMS = 512  # that a launch aims at

_UNSPECIALIZED = [
    "first_sample",
    "step",
    "row",
    "table_size",
    "guidance",
    "rescale",
    "clip",
    "below",
    "above",
    "weight",
]


@triton.jit
def number(x, DTYPE: tl.constexpr):
    """A number on the device, or the bits of a float64 of the host: a float argument would be a float32."""
    if x.dtype.is_ptr():
        return tl.load(x).to(DTYPE)
    else:
        return x.to(tl.int64).to(tl.float64, bitcast=True).to(DTYPE)


def _bits(x: float) -> int:
    return struct.unpack("<q", struct.pack("<d", x))[0]


@triton.jit
def table_row(table, row, first_row, first_col, mask):
    """Which row of table = (pointer, rows, which): one for all; for each sample, [ROWS, 1]; for each element of the
    tile; or for each four, [ROWS, COLS / 4]. `which` is None, or what _which() made of a tensor."""
    which = table[2]
    if which is None:
        return row.to(tl.int64)
    elif len(which) == 1:
        return tl.load(which[0])
    else:
        sample = (first_row + tl.arange(0, mask.shape[0]))[:, None]
        at = which[0] + sample * which[1]
        inside = tl.max(mask.to(tl.int32), axis=1, keep_dims=True) > 0
        if len(which) == 2:
            return tl.load(at, inside, other=0)
        elif len(which) == 4:
            part = (first_col + tl.arange(0, mask.shape[1]))[None, :] // which[3]
            return tl.load(at + part * which[2], mask, other=0)
        else:
            part = (first_col // 4 + tl.arange(0, mask.shape[1] // 4))[None, :] // which[3]
            return tl.load(at + part * which[2], inside & (part < which[4]), other=0)


@triton.jit
def coefficient(table, at, COLUMN: tl.constexpr, DTYPE: tl.constexpr):
    """One column of the row `at`, in a shape that broadcasts with the tile; NaN outside the table."""
    inside = (at >= 0) & (at < table[1])
    c = tl.load(table[0] + at * TABLE_WIDTH + COLUMN, inside, other=float("nan")).to(DTYPE)
    if table[2] is None:
        return c
    elif len(table[2]) == 5:
        return interleave4(c, c, c, c)
    else:
        return c


@triton.jit
def reads(table, at, COLUMN: tl.constexpr, DTYPE: tl.constexpr):
    """1 where a coefficient is not 0, and its tensor is read; else 0."""
    return tl.where(coefficient(table, at, COLUMN, DTYPE) != 0.0, 1, 0)


@triton.jit
def add_term(total, c, x):
    """total + c x, rounded once; where c is 0, x may be anything."""
    return tl.where(c == 0.0, total, tl.fma(tl.zeros_like(total) + c, x, total))


@triton.jit
def load_wanted(x, first_row, first_col, mask, wanted, DTYPE: tl.constexpr):
    """A tile, which is not read where it is not `wanted`, a number or one for each row. Of one for each element all is
    read: four at a time."""
    if x is None:
        return tl.zeros(mask.shape, DTYPE)
    else:
        if wanted.type.is_block():
            if wanted.shape[1] == 1:
                mask = mask & (wanted > 0)
        else:
            mask = mask & ((tl.zeros(mask.shape, tl.int32) + wanted) > 0)
        return tl.load(tile_pointers(x, first_row, first_col, mask), mask, other=0).to(DTYPE)


@triton.jit
def guided(output, unconditional, guidance, first_row, first_col, mask, wanted, DTYPE: tl.constexpr):
    """The model's output, and what guidance makes of it: u + guidance (output - u)."""
    conditional = load_wanted(output, first_row, first_col, mask, wanted, DTYPE)
    m = conditional
    if unconditional is not None:
        u = load_wanted(unconditional, first_row, first_col, mask, wanted, DTYPE)
        m = tl.fma(tl.zeros_like(u) + number(guidance, DTYPE), conditional - u, u)
    return conditional, m


@triton.jit
def load_stream(key, counter, first_row, rows, first_sample, step, ROWS: tl.constexpr, BATCHED: tl.constexpr):
    """Seed, offset, sample number and step of a program's rows."""
    row = first_row + tl.arange(0, ROWS)
    seed = 0
    offset = 0
    sample = 0
    if key is not None:
        seed, offset, sample = load_key(key, row, rows, first_sample, BATCHED)
    if counter is not None:
        if len(counter) == 1:
            step = tl.load(counter[0])
        else:
            step = tl.load(counter[0] + row * counter[1], row < rows, other=0)[:, None]
    return seed, offset, sample, step.to(tl.uint32)


@triton.jit
def noise_tile(drawn, key, stream, first_row, first_col, mask, wanted, DTYPE: tl.constexpr):
    """The noise given, or the standard normals of stream = (seed, offset, sample, step)."""
    if drawn is not None or key is None:
        return load_wanted(drawn, first_row, first_col, mask, wanted, DTYPE)
    else:
        n = tl.zeros(mask.shape, DTYPE)
        if wanted.type.is_block() or wanted > 0:
            n = tile_normals(stream[0], stream[1], stream[2], first_col, mask.shape[1], stream[3]).to(DTYPE)
        return n


@triton.jit
def variance_scale(v, table, at, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """What the noise is multiplied by: sqrt(v), or exp of a share (v + 1) / 2 of the way between two logarithms."""
    if KIND == LEARNED:
        return tl.sqrt_rn(v)
    else:
        least = coefficient(table, at, MIN_LOG_VARIANCE, DTYPE)
        range = coefficient(table, at, MAX_LOG_VARIANCE, DTYPE) - least
        half = tl.zeros_like(v) + 0.5
        return exp(0.5 * tl.fma(tl.fma(half, v, half), tl.zeros_like(v) + range, tl.zeros_like(v) + least))


@triton.jit
def load_inputs(inputs, table, at, guidance, factor, stream, wanted, first_row, first_col, mask, VARIANCE: tl.constexpr,
                DTYPE: tl.constexpr):  # fmt: skip
    """x, m and n where `wanted` of inputs = (sample, output, unconditional, variance, drawn, key)."""
    x = load_wanted(inputs[0], first_row, first_col, mask, wanted[0], DTYPE)
    _, m = guided(inputs[1], inputs[2], guidance, first_row, first_col, mask, wanted[1], DTYPE)
    n = noise_tile(inputs[4], inputs[5], stream, first_row, first_col, mask, wanted[2], DTYPE)
    if VARIANCE != 0 and (inputs[4] is not None or inputs[5] is not None):
        v = load_wanted(inputs[3], first_row, first_col, mask, wanted[2], DTYPE)
        n = n * variance_scale(v, table, at, VARIANCE, DTYPE)
    return x, m * factor, n


@triton.jit
def convert(table, at, x, m, n, DTYPE: tl.constexpr):
    """x0 before it is clipped."""
    x0 = add_term(tl.zeros_like(x), coefficient(table, at, X0_SAMPLE, DTYPE), x)
    x0 = add_term(x0, coefficient(table, at, X0_OUTPUT, DTYPE), m)
    return add_term(x0, coefficient(table, at, X0_NOISE, DTYPE), n)


@triton.jit
def x0_tile(inputs, table, at, guidance, factor, stream, first_row, first_col, mask, VARIANCE: tl.constexpr,
            DTYPE: tl.constexpr):  # fmt: skip
    """x0 before it is clipped, where nothing else is wanted yet."""
    wanted = (
        reads(table, at, X0_SAMPLE, DTYPE),
        reads(table, at, X0_OUTPUT, DTYPE),
        reads(table, at, X0_NOISE, DTYPE),
    )
    x, m, n = load_inputs(
        inputs, table, at, guidance, factor, stream, wanted, first_row, first_col, mask, VARIANCE, DTYPE
    )
    return convert(table, at, x, m, n, DTYPE)


@triton.jit
def advance(counter, first_row, rows, cols, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Takes a ticket; the last of a counter's readers adds 1, and puts the tickets back."""
    if counter is not None:
        tl.debug_barrier()  # until every thread has read the counter
        if len(counter) == 1:
            if tl.atomic_add(counter[0] + 1, 1) == tl.num_programs(0) - 1:
                tl.store(counter[0], tl.load(counter[0]) + 1)
                tl.store(counter[0] + 1, 0)
        else:
            row = first_row + tl.arange(0, ROWS)
            own = counter[0] + row * counter[1]
            ticket = tl.atomic_add(own + 1, 1, row < rows)
            last = (row < rows) & (ticket == (cols - 1) // WIDTH)
            tl.store(own, tl.load(own, last, other=0) + 1, last)
            tl.store(own + 1, 0, last)


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


def _factors(output: Tensor, unconditional: Tensor, guidance, rescale: int, rows: int, cols: int, DTYPE) -> Tensor:
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
    q = tl.where((most > 0.0) & (q > most), most, q)
    return tl.where(nan, float("nan"), tl.where(q < 1.0, 1.0, q))


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _x0_kernel(inputs, table, row, guidance, factors, counter, first_sample, step, x0, rows, cols,
               COLS: tl.constexpr, BATCHED: tl.constexpr, VARIANCE: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """x0 before it is clipped, of samples longer than WHOLE."""
    first_row, first_col = tile_start(cols, 1, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, 1, COLS)
    stream = load_stream(inputs[5], counter, first_row, rows, first_sample, step, 1, BATCHED)
    at = table_row(table, row, first_row, first_col, mask)
    factor = 1.0
    if factors is not None:
        factor = load_column((factors, 1), first_row, rows, 1, DTYPE)
    value = x0_tile(inputs, table, at, guidance, factor, stream, first_row, first_col, mask, VARIANCE, DTYPE)
    store_tile(x0, cols, first_row, first_col, mask, value)


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


def _order_statistics(x0: Tensor, below: int, above: int, rows: int, cols: int) -> Tensor:
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


# The step.


@triton.jit
def add_past(total, table, at, FIRST: tl.constexpr, s, h_0, h_1, h_2, past, DTYPE: tl.constexpr):
    """Adds the terms of the state and the history, four columns from FIRST on; no tensor has none."""
    if past[0] is not None:
        total = add_term(total, coefficient(table, at, FIRST, DTYPE), s)
    if past[1] is not None:
        total = add_term(total, coefficient(table, at, FIRST + 1, DTYPE), h_0)
    if past[2] is not None:
        total = add_term(total, coefficient(table, at, FIRST + 2, DTYPE), h_1)
    if past[3] is not None:
        total = add_term(total, coefficient(table, at, FIRST + 3, DTYPE), h_2)
    return total


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _step_kernel(inputs, past, table, row, guidance, rescale, factors, clip, below, above, weight, places,
                 x0_buffer, counter, first_sample, step, prev, denoised, saved, state, next, next_copy, rows, cols,
                 ROWS: tl.constexpr, COLS: tl.constexpr, STEPS: tl.constexpr, BATCHED: tl.constexpr,
                 VARIANCE: tl.constexpr, RESCALE: tl.constexpr, QUANTILE: tl.constexpr, CLIP: tl.constexpr,
                 WIDTH: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """inputs = (sample, output, unconditional, variance, drawn, key), past = (state, history...), table = (pointer,
    rows). With RESCALE the factors, and with QUANTILE the thresholds, are of this very program's rows, which are whole.
    """
    first_row, first_col = tile_start(cols, ROWS, COLS * STEPS)
    stream = load_stream(inputs[5], counter, first_row, rows, first_sample, step, ROWS, BATCHED)
    factor = 1.0
    if RESCALE:
        moments = no_moments(ROWS, COLS)
        for i in range(STEPS):
            piece = tile_mask(first_row, i * COLS, rows, cols, ROWS, COLS)
            moments = add_moments(moments, inputs[1], inputs[2], guidance, first_row, i * COLS, piece, DTYPE)
        factor = rescale_factor(sum_moments(moments), rescale, cols + first_row * 0).to(DTYPE)
    elif factors is not None:
        factor = load_column((factors, 1), first_row, rows, ROWS, DTYPE)

    if QUANTILE:
        for i in range(STEPS):
            piece = tile_mask(first_row, i * COLS, rows, cols, ROWS, COLS)
            place = table_row(table, row, first_row, i * COLS, piece)
            part = x0_tile(inputs, table, place, guidance, factor, stream, first_row, i * COLS, piece, VARIANCE, DTYPE)
            store_tile(x0_buffer, cols, first_row, i * COLS, piece, part)
        tl.debug_barrier()
        whole = tile_mask(first_row, 0, rows, cols, ROWS, WIDTH)
        all = load_tile((x0_buffer, cols, 1), first_row, 0, whole, DTYPE)
        nan = tl.max((all != all).to(tl.int32), axis=1, keep_dims=True) > 0
        bits = magnitude(tl.where(whole, all, float("nan")))
        low, high = order_statistics(bits, below, above)
        bound = bound_of(number_of(low), number_of(high), nan, weight, clip, DTYPE)
    elif places is not None:
        place = places + first_row * PLACES + tl.arange(0, ROWS)[:, None]
        BITS: tl.constexpr = tl.int64 if DTYPE == tl.float64 else tl.int32
        low = number_of(tl.load(place + LOW).to(BITS))
        high = number_of(tl.load(place + HIGH).to(BITS))
        bound = bound_of(low, high, tl.load(place + NANS) > 0, weight, clip, DTYPE)

    for i in range(STEPS):
        col = first_col + i * COLS
        mask = tile_mask(first_row, col, rows, cols, ROWS, COLS)
        at = table_row(table, row, first_row, col, mask)
        c_x = coefficient(table, at, PREV_SAMPLE, DTYPE)
        c_m = coefficient(table, at, PREV_OUTPUT, DTYPE)
        c_x0 = coefficient(table, at, PREV_X0, DTYPE)
        c_n = coefficient(table, at, PREV_NOISE, DTYPE)
        want_x = reads(table, at, PREV_SAMPLE, DTYPE) | reads(table, at, X0_SAMPLE, DTYPE)
        want_m = reads(table, at, PREV_OUTPUT, DTYPE) | reads(table, at, X0_OUTPUT, DTYPE)
        want_n = reads(table, at, PREV_NOISE, DTYPE) | reads(table, at, X0_NOISE, DTYPE)
        want_state = reads(table, at, PREV_STATE, DTYPE)
        want_0 = reads(table, at, PREV_HISTORY_0, DTYPE)
        want_1 = reads(table, at, PREV_HISTORY_1, DTYPE)
        want_2 = reads(table, at, PREV_HISTORY_2, DTYPE)
        if denoised is not None:
            want_x = want_x | reads(table, at, DENOISED_SAMPLE, DTYPE)
        if saved is not None:
            want_x = want_x | reads(table, at, SAVED_SAMPLE, DTYPE)
            want_m = want_m | reads(table, at, SAVED_OUTPUT, DTYPE)
        if state is not None:
            want_x = want_x | reads(table, at, STATE_SAMPLE, DTYPE)
            want_m = want_m | reads(table, at, STATE_OUTPUT, DTYPE)
            want_state = want_state | reads(table, at, STATE_STATE, DTYPE)
            want_0 = want_0 | reads(table, at, STATE_HISTORY_0, DTYPE)
            want_1 = want_1 | reads(table, at, STATE_HISTORY_1, DTYPE)
            want_2 = want_2 | reads(table, at, STATE_HISTORY_2, DTYPE)
        wanted = (want_x, want_m, want_n)
        s = load_wanted(past[0], first_row, col, mask, want_state, DTYPE)
        h_0 = load_wanted(past[1], first_row, col, mask, want_0, DTYPE)
        h_1 = load_wanted(past[2], first_row, col, mask, want_1, DTYPE)
        h_2 = load_wanted(past[3], first_row, col, mask, want_2, DTYPE)
        x, m, n = load_inputs(
            inputs, table, at, guidance, factor, stream, wanted, first_row, col, mask, VARIANCE, DTYPE
        )
        if x0_buffer is None:
            x0 = convert(table, at, x, m, n, DTYPE)
            if CLIP:
                most = number(clip, DTYPE)
                x0 = clamp(x0, -most, most)
        else:
            x0 = load_tile((x0_buffer, cols, 1), first_row, col, mask, DTYPE)
            x0 = divide(clamp(x0, -bound, bound), tl.zeros_like(x0) + bound)

        if denoised is not None:
            total = add_term(tl.zeros_like(x), coefficient(table, at, DENOISED_SAMPLE, DTYPE), x)
            total = add_term(total, coefficient(table, at, DENOISED_X0, DTYPE), x0)
            store_tile(denoised, cols, first_row, col, mask, total)
        if saved is not None:
            total = add_term(tl.zeros_like(x), coefficient(table, at, SAVED_SAMPLE, DTYPE), x)
            total = add_term(total, coefficient(table, at, SAVED_OUTPUT, DTYPE), m)
            total = add_term(total, coefficient(table, at, SAVED_X0, DTYPE), x0)
            store_tile(saved, cols, first_row, col, mask, total)
        if state is not None:
            total = add_term(tl.zeros_like(x), coefficient(table, at, STATE_SAMPLE, DTYPE), x)
            total = add_term(total, coefficient(table, at, STATE_OUTPUT, DTYPE), m)
            total = add_term(total, coefficient(table, at, STATE_X0, DTYPE), x0)
            total = add_past(total, table, at, STATE_STATE, s, h_0, h_1, h_2, past, DTYPE)
            store_tile(state, cols, first_row, col, mask, total)
        total = add_term(add_term(add_term(tl.zeros_like(x), c_x, x), c_m, m), c_x0, x0)
        total = add_past(total, table, at, PREV_STATE, s, h_0, h_1, h_2, past, DTYPE)
        total = add_term(total, c_n, n)
        store_tile(prev, cols, first_row, col, mask, total)
        if next is not None:
            scaled = add_term(tl.zeros_like(x), coefficient(table, at, NEXT_SCALE, DTYPE), total)
            store_tile(next, cols, first_row, col, mask, scaled)
            if next_copy is not None:
                store_tile(next_copy, cols, first_row, col, mask, scaled)
    advance(counter, first_row, rows, cols, COLS * STEPS, ROWS)


def _which(rows: Tensor | None, cols: int) -> tuple | None:
    """How table_row() finds the row of an element."""
    if rows is None:
        return None
    if rows.numel() == 1:
        return (rows,)
    if rows.dim() == 1 or rows.shape[1] == 1:
        return rows, rows.stride(0)
    length = cols // rows.shape[1]
    if length % 4 == 0:
        return rows, rows.stride(0), rows.stride(1), length // 4, rows.shape[1]
    return rows, rows.stride(0), rows.stride(1), length


def _run(
    counter: Tensor | None,
    sample: Tensor,
    output: Tensor,
    coefficients: Tensor,
    row: int,
    clip: float,
    wanted: int,
    key: Tensor | None,
    step: int,
    history_0: Tensor | None,
    history_1: Tensor | None,
    history_2: Tensor | None,
    state: Tensor | None,
    first_sample: int,
    rows: Tensor | None,
    unconditional: Tensor | None,
    guidance: Tensor | None,
    rescale: float,
    quantile: float,
    variance: Tensor | None,
    variance_kind: int,
    drawn: Tensor | None,
) -> list[Tensor | None]:
    """prev, denoised, saved, state and next, None for what is not wanted."""
    count, cols = rows_and_cols(sample.shape)
    device = sample.device
    outputs: list[Tensor | None] = [torch.empty(sample.shape, dtype=sample.dtype, device=device)]
    for bit in (DENOISED, SAVED, STATE):
        outputs.append(torch.empty(sample.shape, dtype=sample.dtype, device=device) if wanted & bit else None)
    next = copy = None
    if wanted & NEXT:
        size = (2 * sample.shape[0], *sample.shape[1:]) if wanted & TWICE else sample.shape
        next = torch.empty(size, dtype=output.dtype, device=device)
        copy = next.view(-1)[sample.numel() :] if wanted & TWICE else None
    outputs.append(next)
    if sample.numel() == 0:
        if counter is not None:
            counter[..., 0] += 1
        return outputs

    DTYPE = compute_dtype(sample)[1]
    of_host = guidance is None or guidance.device != device
    guide = _bits(1.0 if guidance is None else float(guidance)) if of_host else guidance
    rescaled = rescale > 0 and unconditional is not None
    whole = cols <= (WHOLE // 4 if DTYPE == tl.float64 else WHOLE)
    factors = None
    if rescaled and unconditional is not None and not whole:
        factors = _factors(output, unconditional, guide, _bits(rescale), count, cols, DTYPE)

    inputs = (
        view(sample, count),
        view(output, count),
        view(unconditional, count),
        view(variance, count) if variance_kind else None,
        view(drawn, count),
        None if key is None else key.contiguous(),
    )
    past = tuple(view(tensor, count) for tensor in (state, history_0, history_1, history_2))
    table = (coefficients.contiguous(), coefficients.shape[0], _which(rows, cols))
    counters = None if counter is None else (counter,) if counter.dim() == 1 else (counter, 2)
    common = {"device": device, "BATCHED": key is not None and key.dim() > 1, "VARIANCE": variance_kind, "DTYPE": DTYPE}

    tile_cols = min(TILE, max(4, triton.next_power_of_2(cols)))
    tile_rows, steps, warps, width = TILE // tile_cols, 1, 4, tile_cols
    if whole and cols > TILE and (rescaled or quantile > 0):
        width = triton.next_power_of_2(cols)
        warps = min(max(width // 1024, 4), 16)
        tile_cols = min(width, 256 * warps)
        steps = triton.cdiv(cols, tile_cols)

    at = quantile * (cols - 1)
    below = int(at)
    above = min(below + 1, cols - 1)
    x0 = places = None
    if quantile > 0:
        x0 = torch.empty(count, cols, dtype=torch.float64 if DTYPE == tl.float64 else torch.float32, device=device)
        if not whole:
            launch(
                _x0_kernel, count * triton.cdiv(cols, TILE), inputs, table, row, guide, factors, counters,
                first_sample, int32(step), x0, count, cols, COLS=TILE, **common,
            )  # fmt: skip
            places = _order_statistics(x0, below, above, count, cols)
    launch(
        _step_kernel, triton.cdiv(count, tile_rows) * triton.cdiv(cols, tile_cols * steps), inputs, past, table,
        row, guide, _bits(rescale), factors, _bits(clip), below, above, _bits(at - below), places, x0, counters,
        first_sample, int32(step), *outputs, copy, count, cols, warps=warps, ROWS=tile_rows, COLS=tile_cols,
        STEPS=steps, WIDTH=width, RESCALE=rescaled and whole, QUANTILE=quantile > 0 and whole, CLIP=clip > 0, **common,
    )  # fmt: skip
    return outputs


def denoise_step(
    sample: Tensor,
    output: Tensor,
    coefficients: Tensor,
    row: int,
    clip: float = 0.0,
    wanted: int = 0,
    key: Tensor | None = None,
    step: int = 0,
    history_0: Tensor | None = None,
    history_1: Tensor | None = None,
    history_2: Tensor | None = None,
    state: Tensor | None = None,
    first_sample: int = 0,
    rows: Tensor | None = None,
    unconditional: Tensor | None = None,
    guidance: Tensor | None = None,
    rescale: float = 0.0,
    quantile: float = 0.0,
    variance: Tensor | None = None,
    variance_kind: int = 0,
    drawn: Tensor | None = None,
) -> list[Tensor]:
    """variate::denoise_step"""
    results = _run(
        None, sample, output, coefficients, row, clip, wanted, key, step, history_0, history_1, history_2, state,
        first_sample, rows, unconditional, guidance, rescale, quantile, variance, variance_kind, drawn,
    )  # fmt: skip
    return [result for result in results if result is not None]


def denoise_step_counted(
    counter: Tensor,
    sample: Tensor,
    output: Tensor,
    coefficients: Tensor,
    row: int,
    clip: float,
    wanted: int,
    key: Tensor | None,
    *others: Any,
) -> tuple[Tensor, ...]:
    """variate::denoise_step_counted"""
    results = _run(counter, sample, output, coefficients, row, clip, wanted, key, 0, *others)
    return tuple(sample.new_empty(0) if result is None else result for result in results)
