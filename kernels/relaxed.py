"""Relaxed and straight-through discrete samples; the twin of variate/math/relaxed.hpp.

A line is the categories of one group of one row. A program handles ROWS lines, COLS elements at a time; what lies
outside a line counts as a score of minus infinity. Lines of one tile stay in registers; longer ones are read, and their
noise is drawn, once for the sums and once for the result.

Source: Jang, Gu and Poole, "Categorical reparameterization with Gumbel-softmax", 2017; Maddison, Mnih and Teh, "The
concrete distribution", 2017.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import divide, exp, exp_nonpositive, sigmoid
from .philox import interleave4, load_key, noise_words
from .random import bernoulli_draw, gumbel_draw, logistic_draw, tile_words
from .tiles import (
    launch,
    launch_tiles,
    load_tile,
    rows_and_cols,
    scalar,
    store_tile,
    tile_mask,
    tile_shape,
    tile_start,
    tree_sum,
    view,
)


@triton.jit
def inverse_temperature(temperature, DTYPE: tl.constexpr):
    """1 / temperature, a number, a pointer to one, or None for 1; finite, so that 0 times it stays 0."""
    if temperature is None:
        return tl.full([], 1.0, DTYPE)
    else:
        value = tl.core.to_tensor(temperature)  # the interpreter leaves numbers as they are
        if value.dtype.is_ptr():
            value = tl.load(value)
        inverse = 1.0 / value.to(DTYPE).to(tl.float64)
        largest = 1.7976931348623157e308 if DTYPE == tl.float64 else 3.4028234663852886e38
        return tl.where(inverse > largest, largest, inverse).to(DTYPE)


@triton.jit
def below_best(score, best):
    """score - best, and 0 where they are equal: so too where both are infinite."""
    return tl.where(score == best, 0.0, score - best)


@triton.jit
def line_max(score):
    """[ROWS, 1]: the largest; a NaN is passed over."""
    return tl.max(tl.where(score != score, float("-inf"), score), axis=1)[:, None]


@triton.jit
def line_sum(x):
    """[ROWS, 1]"""
    return tree_sum(x, x.shape[0], x.shape[1])[:, None]


@triton.jit
def line_tile(groups, lines, categories, start, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Row [ROWS], block [ROWS, COLS / 4], element and category [ROWS, COLS], and mask of a tile of ROWS lines.

    A line begins anywhere in a Philox block, so its tiles begin up to three elements early.
    """
    line = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    begin = (line % groups * categories)[:, None]
    block = begin // 4 + (start // 4 + tl.arange(0, COLS // 4))[None, :]
    element = begin // 4 * 4 + (start + tl.arange(0, COLS))[None, :]
    category = element - begin
    mask = (line < lines)[:, None] & (category >= 0) & (category < categories)
    return line // groups, block, element, category, mask


@triton.jit
def load_elements(x, row, element, mask, DTYPE: tl.constexpr):
    return tl.load(x[0] + row[:, None] * x[1] + element * x[2], mask, other=0).to(DTYPE)


@triton.jit
def load_scores(logits, key, first_sample, rows, row, block, element, mask, BATCHED: tl.constexpr, DTYPE: tl.constexpr):
    """logits + gumbel, without a key the logits; minus infinity outside the mask."""
    score = load_elements(logits, row, element, mask, DTYPE)
    if key is not None:
        seed, offset, sample = load_key(key, row, rows, first_sample, BATCHED)
        w0, w1, w2, w3 = noise_words(seed, offset, block, sample, 0)
        score += gumbel_draw(interleave4(w0, w1, w2, w3)).to(DTYPE)
    return tl.where(mask, score, float("-inf"))


@triton.jit
def store_elements(out, width, row, element, mask, value):
    """To a contiguous [rows, width], to 16 bits by way of float32."""
    if value.dtype == tl.float64 and out.dtype.element_ty.primitive_bitwidth == 16:
        value = value.to(tl.float32)
    tl.store(out + row[:, None] * width + element, value, mask)


@triton.jit
def weights_of(score, best, inverse, mask):
    """exp((score - best) / temperature), 0 outside the mask."""
    return tl.where(mask, exp(below_best(score, best) * inverse), 0.0)


@triton.jit(do_not_specialize=["first_sample"])
def _gumbel_softmax_kernel(key, first_sample, temperature, logits, y, rows, width, groups, lines, reach, categories,
                           ROWS: tl.constexpr, COLS: tl.constexpr, ONE_TILE: tl.constexpr, HARD: tl.constexpr,
                           BATCHED: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """y = softmax((logits + gumbel) / temperature), or with HARD one-hot at the first of the largest scores."""
    NONE: tl.constexpr = 0x7FFFFFFFFFFFFFFF
    inverse = inverse_temperature(temperature, DTYPE)
    best = tl.full([ROWS, 1], float("-inf"), DTYPE)
    total = tl.zeros([ROWS, 1], DTYPE)  # of the weights; with HARD 0, or NaN where a score is
    choice = tl.full([ROWS, 1], 0, tl.int64)
    start = tl.full([], 0, tl.int64)
    while start < reach:
        row, block, element, category, mask = line_tile(groups, lines, categories, start, ROWS, COLS)
        score = load_scores(logits, key, first_sample, rows, row, block, element, mask, BATCHED, DTYPE)
        here = line_max(score)
        higher = here > best
        if HARD:
            first = tl.min(tl.where(mask & (score == here), category, NONE), axis=1)[:, None]
            choice = tl.where(higher | (start == 0), first, choice)
            total += line_sum(tl.where(score != score, score, 0.0))
        else:
            new = tl.where(higher, here, best)
            weight = weights_of(score, new, inverse, mask)
            total = total * exp(below_best(best, new) * inverse) + line_sum(weight)
        best = tl.where(higher, here, best)
        if ONE_TILE:
            value = weight * divide(1.0 + total * 0.0, total) if not HARD else _one_hot(category, choice, total, DTYPE)
            store_elements(y, width, row, element, mask, value)
        start += COLS
    if not ONE_TILE:
        start = tl.full([], 0, tl.int64)
        while start < reach:
            row, block, element, category, mask = line_tile(groups, lines, categories, start, ROWS, COLS)
            if HARD:
                value = _one_hot(category, choice, total, DTYPE)
            else:
                score = load_scores(logits, key, first_sample, rows, row, block, element, mask, BATCHED, DTYPE)
                value = weights_of(score, best, inverse, mask) * divide(1.0 + total * 0.0, total)
            store_elements(y, width, row, element, mask, value)
            start += COLS


@triton.jit
def _one_hot(category, choice, nan, DTYPE: tl.constexpr):
    return tl.where(category == choice, 1.0, 0.0).to(DTYPE) + nan


def _launch_lines(kernel, tensor: Tensor, key: Tensor | None, *args, **constants) -> None:
    """`args` up to the shape; the categories are the last dimension of `tensor`."""
    rows, cols = rows_and_cols(tensor.shape)
    categories = tensor.shape[-1]
    groups = cols // categories
    reach = categories if groups == 1 or categories % 4 == 0 else categories + 3
    tile = tile_shape(reach)
    launch(
        kernel, triton.cdiv(rows * groups, tile["ROWS"]), *args, rows, cols, groups, rows * groups, reach, categories,
        device=tensor.device, **tile, ONE_TILE=reach <= tile["COLS"], BATCHED=key is not None and key.dim() > 1,
        DTYPE=_compute(tensor), **constants,
    )  # fmt: skip


def _compute(tensor: Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def _temperature(temperature: Tensor | float | None, like: Tensor):
    return scalar(temperature, torch.promote_types(like.dtype, torch.float32), like.device)


def _key(key: Tensor | None) -> Tensor | None:
    return None if key is None else key.contiguous()


def gumbel_softmax(logits: Tensor, temperature: Tensor | None, key: Tensor, first_sample: int, hard: bool) -> Tensor:
    """variate::gumbel_softmax"""
    y = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if y.numel() > 0:
        _launch_lines(
            _gumbel_softmax_kernel, logits, key, _key(key), first_sample, _temperature(temperature, logits),
            view(logits, rows_and_cols(logits.shape)[0]), y, HARD=hard,
        )  # fmt: skip
    return y


@triton.jit
def load_soft(y, logits, key, first_sample, rows, row, block, element, mask, best, inverse,
              BATCHED: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """y, or the weights that it is in proportion to, and the best score so far that they are relative to."""
    if y is not None:
        return load_elements(y, row, element, mask, DTYPE), best
    else:
        score = load_scores(logits, key, first_sample, rows, row, block, element, mask, BATCHED, DTYPE)
        here = line_max(score)
        best = tl.where(here > best, here, best)
        return weights_of(score, best, inverse, mask), best


@triton.jit(do_not_specialize=["first_sample"])
def _gumbel_softmax_backward_kernel(key, first_sample, temperature, grad_y, y, logits, grad_logits, rows, width,
                                    groups, lines, reach, categories, ROWS: tl.constexpr, COLS: tl.constexpr,
                                    ONE_TILE: tl.constexpr, BATCHED: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """grad_logits = y (grad_y - sum grad_y y) / temperature."""
    inverse = inverse_temperature(temperature, DTYPE)
    best = tl.full([ROWS, 1], float("-inf"), DTYPE)
    total = tl.zeros([ROWS, 1], DTYPE)
    dot = tl.zeros([ROWS, 1], DTYPE)
    start = tl.full([], 0, tl.int64)
    while start < reach:
        row, block, element, _, mask = line_tile(groups, lines, categories, start, ROWS, COLS)
        g = load_elements(grad_y, row, element, mask, DTYPE)
        soft, new = load_soft(y, logits, key, first_sample, rows, row, block, element, mask, best, inverse, BATCHED,
                              DTYPE)  # fmt: skip
        if y is not None:
            total = tl.full([ROWS, 1], 1.0, DTYPE)
            dot += line_sum(soft * g)
        else:
            scale = exp(below_best(best, new) * inverse)
            total = total * scale + line_sum(soft)
            dot = dot * scale + line_sum(soft * g)
        best = new
        if ONE_TILE:
            value = soft * divide(inverse + total * 0.0, total) * (g - divide(dot, total))
            store_elements(grad_logits, width, row, element, mask, value)
        start += COLS
    if not ONE_TILE:
        start = tl.full([], 0, tl.int64)
        while start < reach:
            row, block, element, _, mask = line_tile(groups, lines, categories, start, ROWS, COLS)
            g = load_elements(grad_y, row, element, mask, DTYPE)
            soft = load_soft(y, logits, key, first_sample, rows, row, block, element, mask, best, inverse, BATCHED,
                             DTYPE)[0]  # fmt: skip
            value = soft * divide(inverse + total * 0.0, total) * (g - divide(dot, total))
            store_elements(grad_logits, width, row, element, mask, value)
            start += COLS


def gumbel_softmax_backward(
    grad_y: Tensor,
    y: Tensor | None,
    logits: Tensor | None,
    temperature: Tensor | None,
    key: Tensor | None,
    first_sample: int,
) -> Tensor:
    """variate::gumbel_softmax_backward"""
    source = y if y is not None else logits
    assert source is not None
    grad_logits = torch.empty(source.shape, dtype=source.dtype, device=source.device)
    if source.numel() > 0:
        rows = rows_and_cols(source.shape)[0]
        _launch_lines(
            _gumbel_softmax_backward_kernel, source, key, _key(key), first_sample, _temperature(temperature, source),
            view(grad_y, rows), view(y, rows), view(logits, rows), grad_logits,
        )  # fmt: skip
    return grad_logits


@triton.jit
def tile_word(key, first_sample, rows, first_row, first_col, ROWS: tl.constexpr, COLS: tl.constexpr,
              BATCHED: tl.constexpr):  # fmt: skip
    seed, offset, sample = load_key(key, first_row + tl.arange(0, ROWS), rows, first_sample, BATCHED)
    w0, w1, w2, w3 = tile_words(seed, offset, sample, first_col, COLS)
    return interleave4(w0, w1, w2, w3)


@triton.jit(do_not_specialize=["first_sample"])
def _relaxed_bernoulli_kernel(key, first_sample, temperature, logits, z, rows, cols, ROWS: tl.constexpr,
                              COLS: tl.constexpr, HARD: tl.constexpr, BATCHED: tl.constexpr,
                              DTYPE: tl.constexpr):  # fmt: skip
    """z = sigmoid((logits + logistic) / temperature); with HARD 1 above 1/2, else 0."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    logit = load_tile(logits, first_row, first_col, mask, DTYPE)
    word = tile_word(key, first_sample, rows, first_row, first_col, ROWS, COLS, BATCHED)
    relaxed = (logit + logistic_draw(word).to(DTYPE)) * inverse_temperature(temperature, DTYPE)
    if HARD:
        value = tl.where(relaxed != relaxed, relaxed, tl.where(relaxed > 0.0, 1.0, 0.0).to(DTYPE))
    else:
        value = sigmoid(relaxed)
    store_tile(z, cols, first_row, first_col, mask, value)


def relaxed_bernoulli_rsample(
    logits: Tensor, temperature: Tensor | None, key: Tensor, first_sample: int, hard: bool
) -> Tensor:
    """variate::relaxed_bernoulli_rsample"""
    z = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if z.numel() > 0:
        rows, cols = rows_and_cols(logits.shape)
        launch_tiles(
            _relaxed_bernoulli_kernel, rows, cols, key.contiguous(), first_sample, _temperature(temperature, logits),
            view(logits, rows), z, device=z.device, HARD=hard, BATCHED=key.dim() > 1, DTYPE=_compute(logits),
        )  # fmt: skip
    return z


@triton.jit(do_not_specialize=["first_sample"])
def _relaxed_bernoulli_backward_kernel(key, first_sample, temperature, grad_z, z, logits, grad_logits, rows, cols,
                                       ROWS: tl.constexpr, COLS: tl.constexpr, BATCHED: tl.constexpr,
                                       DTYPE: tl.constexpr):  # fmt: skip
    """grad_logits = grad_z z (1 - z) / temperature."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    inverse = inverse_temperature(temperature, DTYPE)
    g = load_tile(grad_z, first_row, first_col, mask, DTYPE) * inverse
    if z is not None:
        soft = load_tile(z, first_row, first_col, mask, DTYPE)
        value = g * soft * (1.0 - soft)
    else:
        relaxed = load_tile(logits, first_row, first_col, mask, DTYPE)
        if key is not None:
            word = tile_word(key, first_sample, rows, first_row, first_col, ROWS, COLS, BATCHED)
            relaxed += logistic_draw(word).to(DTYPE)
        e = exp_nonpositive(-tl.abs(relaxed * inverse))
        half = divide(e * 0.0 + 1.0, 1.0 + e)
        value = g * (e * half * half)
    store_tile(grad_logits, cols, first_row, first_col, mask, value)


def relaxed_bernoulli_rsample_backward(
    grad_z: Tensor,
    z: Tensor | None,
    logits: Tensor | None,
    temperature: Tensor | None,
    key: Tensor | None,
    first_sample: int,
) -> Tensor:
    """variate::relaxed_bernoulli_rsample_backward"""
    source = z if z is not None else logits
    assert source is not None
    grad_logits = torch.empty(source.shape, dtype=source.dtype, device=source.device)
    if source.numel() > 0:
        rows, cols = rows_and_cols(source.shape)
        launch_tiles(
            _relaxed_bernoulli_backward_kernel, rows, cols, _key(key), first_sample,
            _temperature(temperature, source), view(grad_z, rows), view(z, rows), view(logits, rows), grad_logits,
            device=source.device, BATCHED=key is not None and key.dim() > 1, DTYPE=_compute(source),
        )  # fmt: skip
    return grad_logits


@triton.jit(do_not_specialize=["first_sample"])
def _bernoulli_straight_through_kernel(key, first_sample, logits, out, rows, cols, ROWS: tl.constexpr,
                                       COLS: tl.constexpr, BATCHED: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """out = 1 with probability sigmoid(logits), else 0."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    logit = load_tile(logits, first_row, first_col, mask, DTYPE)
    word = tile_word(key, first_sample, rows, first_row, first_col, ROWS, COLS, BATCHED)
    store_tile(out, cols, first_row, first_col, mask, bernoulli_draw(word, sigmoid(logit)))


def bernoulli_straight_through(logits: Tensor, key: Tensor, first_sample: int) -> Tensor:
    """variate::bernoulli_straight_through"""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if out.numel() > 0:
        rows, cols = rows_and_cols(logits.shape)
        launch_tiles(
            _bernoulli_straight_through_kernel, rows, cols, key.contiguous(), first_sample, view(logits, rows), out,
            device=out.device, BATCHED=key.dim() > 1, DTYPE=_compute(logits),
        )  # fmt: skip
    return out
