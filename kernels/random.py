"""Words and draws: noise version 1, the twin of variate/math/random.hpp.

One Philox call gives the draws of four neighbouring elements of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import (
    bits_of,
    float_of,
    hex_float,
    log,
    log_reduced,
    log_split,
    log_split_complement,
    sincos_2pi,
)
from .philox import fold_in_key, interleave4, load_key, noise_words
from .tiles import (
    launch,
    launch_tiles,
    load_tile,
    rows_and_cols,
    store_tile,
    tile_mask,
    tile_shape,
    tile_start,
    view,
)


@triton.jit
def uniform_draw(word):
    """(word + 1/2) 2^-32, rounded once: in (0, 1]."""
    return tl.fma(word.to(tl.float32), hex_float("0x1p-32"), hex_float("0x1p-33"))


@triton.jit
def normal_pair(word_0, word_1):
    """Two standard normals by Box and Muller, "A note on the generation of random normal deviates", 1958."""
    radius = tl.sqrt_rn(-2.0 * log(uniform_draw(word_0)))
    sin, cos = sincos_2pi(uniform_draw(word_1))
    return radius * cos, radius * sin


@triton.jit
def minus_log(u, v, upper):
    """-log(u), always positive; where `upper`, u > 1/2, it is -log1p(-v), v = 1 - u, precise for small values."""
    exponent, f = log_split(u)
    upper_exponent, upper_f = log_split_complement(v)
    return -log_reduced(tl.where(upper, upper_exponent, exponent), tl.where(upper, upper_f, f))


@triton.jit
def exponential_draw(word):
    """-log(u)."""
    return minus_log(uniform_draw(word), uniform_draw(word ^ 0xFFFFFFFF), word >= 0x80000000)


@triton.jit
def gumbel_draw(word):
    """-log(-log(u))."""
    return -log(exponential_draw(word))


@triton.jit
def half_word(word):
    """The smaller of word and ~word, below 2^31: the draws symmetric in u and 1 - u are made of it."""
    return tl.where(word >= 0x80000000, word ^ 0xFFFFFFFF, word)


@triton.jit
def signed_by(word, x):
    """x where u > 1/2, else -x, also of 0."""
    return float_of(bits_of(x) ^ ((word ^ 0x80000000) & 0x80000000))


@triton.jit
def logistic_draw(word):
    """log(u) - log(1 - u)."""
    u = uniform_draw(half_word(word))
    exponent, f = log_split_complement(u)
    return signed_by(word, log_reduced(exponent, f) - log(u))


@triton.jit
def laplace_draw(word):
    """log(2 u), and -log(2 - 2 u) for u > 1/2."""
    half = half_word(word)
    u = tl.fma(half.to(tl.float32), hex_float("0x1p-31"), hex_float("0x1p-32"))
    v = tl.fma((half ^ 0x7FFFFFFF).to(tl.float32), hex_float("0x1p-31"), hex_float("0x1p-32"))
    return signed_by(word, minus_log(u, v, half >= 0x40000000))


@triton.jit
def bernoulli_draw(word, p):
    """1 where word < p 2^32, else 0, as p's dtype; NaN where p is."""
    draw = tl.where(word.to(tl.float64) < p.to(tl.float64) * 4294967296.0, 1.0, 0.0).to(p.dtype)
    return tl.where(p != p, p, draw)


@triton.jit
def tile_words(seed, offset, sample, first_col, COLS: tl.constexpr, step=0):
    """The words of a tile as four [ROWS, COLS / 4] tensors: element 4 i + j takes word j of block i."""
    block = first_col // 4 + tl.arange(0, COLS // 4)[None, :]
    return noise_words(seed, offset, block, sample, step)


@triton.jit
def tile_normals(seed, offset, sample, first_col, COLS: tl.constexpr, step=0):
    """The standard normals of a tile [ROWS, COLS]."""
    w0, w1, w2, w3 = tile_words(seed, offset, sample, first_col, COLS, step)
    x0, x1 = normal_pair(w0, w1)
    x2, x3 = normal_pair(w2, w3)
    return interleave4(x0, x1, x2, x3)


@triton.jit(do_not_specialize=["first_sample"])
def _draw_kernel(key, first_sample, out, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr,
                 BATCHED: tl.constexpr, KIND: tl.constexpr):  # fmt: skip
    """out[r, c] = a draw of KIND."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    seed, offset, sample = load_key(key, first_row + tl.arange(0, ROWS), rows, first_sample, BATCHED)
    if KIND == "normal":
        draw = tile_normals(seed, offset, sample, first_col, COLS)
    else:
        w0, w1, w2, w3 = tile_words(seed, offset, sample, first_col, COLS)
        word = interleave4(w0, w1, w2, w3)
        if KIND == "bits":
            draw = word.to(tl.int64)
        elif KIND == "uniform":
            draw = uniform_draw(word)
        elif KIND == "exponential":
            draw = exponential_draw(word)
        else:
            draw = gumbel_draw(word)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    store_tile(out, cols, first_row, first_col, mask, draw)


def _fill(kernel, out: Tensor, key: Tensor, first_sample: int, *args, **constants) -> None:
    """Launch a kernel that fills `out`, of any strides, from a key."""
    if out.numel() == 0:
        return
    rows, cols = rows_and_cols(out.shape)
    filled = out.contiguous()
    launch_tiles(
        kernel, rows, cols, key.contiguous(), first_sample, *args, filled, device=out.device,
        BATCHED=key.dim() > 1, **constants,
    )  # fmt: skip
    if filled is not out:
        out.copy_(filled)


def bits(out: Tensor, key: Tensor, first_sample: int) -> None:
    """variate::bits"""
    _fill(_draw_kernel, out, key, first_sample, KIND="bits")


def uniform(out: Tensor, key: Tensor, first_sample: int) -> None:
    """variate::uniform"""
    _fill(_draw_kernel, out, key, first_sample, KIND="uniform")


def normal(out: Tensor, key: Tensor, first_sample: int) -> None:
    """variate::normal"""
    _fill(_draw_kernel, out, key, first_sample, KIND="normal")


def exponential(out: Tensor, key: Tensor, first_sample: int) -> None:
    """variate::exponential"""
    _fill(_draw_kernel, out, key, first_sample, KIND="exponential")


def gumbel(out: Tensor, key: Tensor, first_sample: int) -> None:
    """variate::gumbel"""
    _fill(_draw_kernel, out, key, first_sample, KIND="gumbel")


@triton.jit(do_not_specialize=["first_sample"])
def _bernoulli_kernel(key, first_sample, probs, out, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr,
                      BATCHED: tl.constexpr):  # fmt: skip
    """out[r, c] = 1 with probability probs[r, c], else 0."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    DTYPE: tl.constexpr = tl.float64 if probs[0].dtype.element_ty == tl.float64 else tl.float32
    p = load_tile(probs, first_row, first_col, mask, DTYPE)
    seed, offset, sample = load_key(key, first_row + tl.arange(0, ROWS), rows, first_sample, BATCHED)
    w0, w1, w2, w3 = tile_words(seed, offset, sample, first_col, COLS)
    draw = bernoulli_draw(interleave4(w0, w1, w2, w3), p)
    if not out.dtype.element_ty.is_floating():
        draw = tl.where(draw == 1.0, 1, 0)  # a NaN is 0 in integers
    store_tile(out, cols, first_row, first_col, mask, draw)


def bernoulli(out: Tensor, probs: Tensor, key: Tensor, first_sample: int) -> None:
    """variate::bernoulli"""
    if out.numel() > 0:
        _fill(_bernoulli_kernel, out, key, first_sample, view(probs, rows_and_cols(out.shape)[0]))


@triton.jit(do_not_specialize=["first_sample", "low", "span"])
def _randint_kernel(key, first_sample, low, span, out, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr,
                    BATCHED: tl.constexpr):  # fmt: skip
    """out[r, c] = low + floor(span x), x a 64-bit fraction: the element's word, then one of fold_in(key, 1).

    The second word decides with probability span 2^-32 and is drawn only in programs where it does.
    """
    first_row, first_col = tile_start(cols, ROWS, COLS)
    seed, offset, sample = load_key(key, first_row + tl.arange(0, ROWS), rows, first_sample, BATCHED)
    span = span.to(tl.uint64)
    w0, w1, w2, w3 = tile_words(seed, offset, sample, first_col, COLS)
    product = interleave4(w0, w1, w2, w3).to(tl.uint64) * span
    fraction = product & 0xFFFFFFFF
    value = product >> 32
    undecided = fraction > ((0 - span) & 0xFFFFFFFF)
    if tl.max(tl.max(undecided.to(tl.int32), axis=1), axis=0) > 0:
        spare_seed, spare_offset = fold_in_key(seed, offset, seed * 0 + 1)
        v0, v1, v2, v3 = tile_words(spare_seed, spare_offset, sample, first_col, COLS)
        below = interleave4(v0, v1, v2, v3).to(tl.uint64) * span
        value += (fraction + (below >> 32)) >> 32
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    store_tile(out, cols, first_row, first_col, mask, value.to(tl.int64) + low)


def randint(out: Tensor, low: int, high: int, key: Tensor, first_sample: int) -> None:
    """variate::randint"""
    _fill(_randint_kernel, out, key, first_sample, low, high - low)


@triton.jit
def _ordered(x):
    """An integer that orders floats: a NaN above all, -0 equal to 0, and the least integer below all."""
    if x.dtype == tl.float64:
        i = (x + 0.0).to(tl.int64, bitcast=True)
        return tl.where(x != x, 0x7FFFFFFFFFFFFFFF, tl.where(i < 0, i ^ 0x7FFFFFFFFFFFFFFF, i))
    else:
        i = (x + 0.0).to(tl.int32, bitcast=True)
        return tl.where(x != x, 0x7FFFFFFF, tl.where(i < 0, i ^ 0x7FFFFFFF, i)).to(tl.int64)


@triton.jit(do_not_specialize=["first_sample"])
def _categorical_kernel(key, first_sample, logits, out, groups, lines, reach, categories,
                        ROWS: tl.constexpr, COLS: tl.constexpr, BATCHED: tl.constexpr):  # fmt: skip
    """out[line] = argmax over k of logits[row, group * categories + k] + gumbel, line = row * groups + group.

    A line begins anywhere in a Philox block, so its tiles begin up to three elements early and cover `reach`.
    """
    LEAST: tl.constexpr = -0x8000000000000000
    DTYPE: tl.constexpr = tl.float64 if logits[0].dtype.element_ty == tl.float64 else tl.float32
    line = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = line // groups
    seed, offset, sample = load_key(key, row, lines // groups, first_sample, BATCHED)
    begin = (line % groups * categories)[:, None]
    begin_block = begin // 4
    best = tl.full([ROWS], LEAST, tl.int64)
    choice = tl.zeros([ROWS], tl.int64)
    start = tl.full([], 0, tl.int64)
    while start < reach:
        block = begin_block + (start // 4 + tl.arange(0, COLS // 4))[None, :]
        w0, w1, w2, w3 = noise_words(seed, offset, block, sample, 0)
        element = begin_block * 4 + (start + tl.arange(0, COLS))[None, :]
        k = element - begin
        mask = (line < lines)[:, None] & (k >= 0) & (k < categories)
        pointer = logits[0] + row[:, None] * logits[1] + element * logits[2]
        logit = tl.load(pointer, mask, other=0).to(DTYPE)
        score = tl.where(mask, _ordered(logit + gumbel_draw(interleave4(w0, w1, w2, w3)).to(DTYPE)), LEAST)
        tile_best = tl.max(score, axis=1)
        tile_choice = tl.min(tl.where(score == tile_best[:, None], k, 0x7FFFFFFFFFFFFFFF), axis=1)
        choice = tl.where(tile_best > best, tile_choice, choice)
        best = tl.maximum(tile_best, best)
        start += COLS
    tl.store(out + line, choice, line < lines)


def categorical(logits: Tensor, key: Tensor, first_sample: int) -> Tensor:
    """variate::categorical"""
    out = torch.empty(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    if out.numel() > 0:
        categories = logits.shape[-1]
        rows = logits.shape[0] if logits.dim() > 1 else 1
        groups = out.numel() // rows
        reach = categories if groups == 1 or categories % 4 == 0 else categories + 3
        tile = tile_shape(reach)
        launch(
            _categorical_kernel, triton.cdiv(out.numel(), tile["ROWS"]), key.contiguous(), first_sample,
            view(logits, rows), out, groups, out.numel(), reach, categories, device=out.device, **tile,
            BATCHED=key.dim() > 1,
        )  # fmt: skip
    return out


@triton.jit
def _fold_in_kernel(keys, data, out, rows, ROWS: tl.constexpr):
    """out[r] = the key derived from keys[r] and data[r]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = row < rows
    seed = tl.load(keys[0] + row * keys[1], mask, other=0).to(tl.uint64)
    offset = tl.load(keys[0] + row * keys[1] + keys[2], mask, other=0).to(tl.uint64)
    seed, offset = fold_in_key(seed, offset, tl.load(data + row, mask, other=0))
    tl.store(out + 2 * row, seed.to(tl.int64), mask)
    tl.store(out + 2 * row + 1, offset.to(tl.int64), mask)


def fold_in(keys: Tensor, data: Tensor) -> Tensor:
    """variate::fold_in"""
    out = torch.empty(keys.shape, dtype=keys.dtype, device=keys.device)
    rows = data.numel()
    if rows > 0:
        launch(
            _fold_in_kernel, triton.cdiv(rows, 128), view(keys, rows), data.contiguous(), out, rows,
            device=out.device, ROWS=128,
        )  # fmt: skip
    return out
