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

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .denoise_rows import (
    HIGH,
    LOW,
    NANS,
    PLACES,
    add_moments,
    bound_of,
    find_factors,
    find_order_statistics,
    magnitude,
    no_moments,
    number_of,
    order_statistics,
    rescale_factor,
    sum_moments,
)
from .denoise_terms import (
    DENOISED_SAMPLE,
    DENOISED_X0,
    NEXT_SCALE,
    PREV_HISTORY_0,
    PREV_HISTORY_1,
    PREV_HISTORY_2,
    PREV_NOISE,
    PREV_OUTPUT,
    PREV_SAMPLE,
    PREV_STATE,
    PREV_X0,
    SAVED_OUTPUT,
    SAVED_SAMPLE,
    SAVED_X0,
    STATE_HISTORY_0,
    STATE_HISTORY_1,
    STATE_HISTORY_2,
    STATE_OUTPUT,
    STATE_SAMPLE,
    STATE_STATE,
    STATE_X0,
    X0_NOISE,
    X0_OUTPUT,
    X0_SAMPLE,
    add_term,
    advance,
    coefficient,
    convert,
    host_bits,
    load_inputs,
    load_stream,
    load_wanted,
    number,
    reads,
    table_row,
    x0_tile,
)
from .elementary import clamp, divide
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
    tile_start,
    view,
)

DENOISED, SAVED, STATE, NEXT, TWICE = (1 << bit for bit in range(5))  # `wanted`
WHOLE = 16384  # elements of a sample that one program may have in its registers, a quarter of it in float64

_UNSPECIALIZED = ["first_sample", "step", "row", "guidance", "rescale", "clip", "below", "above", "weight"]


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
    guide = host_bits(1.0 if guidance is None else float(guidance)) if of_host else guidance
    rescaled = rescale > 0 and unconditional is not None
    whole = cols <= (WHOLE // 4 if DTYPE == tl.float64 else WHOLE)
    factors = None
    if rescaled and unconditional is not None and not whole:
        factors = find_factors(output, unconditional, guide, host_bits(rescale), count, cols, DTYPE)

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
            places = find_order_statistics(x0, below, above, count, cols)
    launch(
        _step_kernel, triton.cdiv(count, tile_rows) * triton.cdiv(cols, tile_cols * steps), inputs, past, table,
        row, guide, host_bits(rescale), factors, host_bits(clip), below, above, host_bits(at - below), places, x0,
        counters, first_sample, int32(step), *outputs, copy, count, cols, warps=warps, ROWS=tile_rows, COLS=tile_cols,
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
) -> list[Tensor]:
    """variate::denoise_step"""
    results = _run(
        None, sample, output, coefficients, row, clip, wanted, key, step, history_0, history_1, history_2, state,
        first_sample, None, None, None, 0.0, 0.0, None, 0, None,
    )  # fmt: skip
    return [result for result in results if result is not None]


def denoise_step_full(counter: Tensor | None, sample: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """variate::denoise_step_full"""
    results = _run(counter, sample, *others)
    return tuple(sample.new_empty(0) if result is None else result for result in results)
