"""What the kernels of a denoising step are made of: coefficients, guided outputs, noise, x0, and the counter."""

from __future__ import annotations

import struct

import triton
import triton.language as tl

from .elementary import exp
from .philox import interleave4, load_key
from .random import tile_normals
from .tiles import tile_pointers

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


@triton.jit
def number(x, DTYPE: tl.constexpr):
    """A number on the device, or the bits of a float64 of the host: a float argument would be a float32."""
    if x.dtype.is_ptr():
        return tl.load(x).to(DTYPE)
    else:
        return x.to(tl.int64).to(tl.float64, bitcast=True).to(DTYPE)


def host_bits(x: float) -> int:
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
