"""Gibbs steps of Boltzmann machines in fixed point: the twin of variate/math/rbm.hpp and csrc/cpu/rbm.cpp, bit for bit.

States are int8 0 and 1 in scratch whose sides are padded with 0. A weight in fixed point is four signed bytes, limbs
[units, 4, inputs], so a unit is four columns of an int8 product, put together modulo 2^32; the whole is within 2^31.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import divide, exp, power_of_two, sigmoid
from .philox import fold_in_key, interleave4, load_key, noise_words
from .random import gumbel_draw, normal_pair
from .relaxed import below_best
from .tiles import int32, launch, per_chain, tile_shape, tree_sum

CHAINS = 128  # of a tile
UNITS = 32  # of a tile
DEPTH = 64  # inputs at a time; layers are padded to a multiple
MOST_UNITS = 2**24  # with more, sums of bytes could leave 32 bits, at which some GPUs saturate
SMALL, SMALL_WORK = 2**16, 2**28  # up to so many weights, and weights times chains, all steps are one launch
SMALL_CHAINS = 16  # of a program of it, which reads all weights at each step
BERNOULLI, GAUSSIAN, CATEGORICAL = 0, 1, 2  # variate_visible_kind


@triton.jit
def finite_or_zero(w):
    return tl.where(tl.abs(w) < float("inf"), w, 0.0)


@triton.jit
def rounded(w, scale):
    """The integer next to |w scale|, ties to even, as a float."""
    a = tl.abs(w * scale)
    return tl.where(a < 8388608.0, (a + 8388608.0) - 8388608.0, a)  # from 2^23 on float32 has no fractions


@triton.jit
def quantise(w, scale):
    q = rounded(w, scale).to(tl.int32)
    return tl.where(w < 0.0, -q, q)


@triton.jit
def load_weights(weight, unit, i, units, inputs):
    """[units, inputs] of a layer; what is not finite is 0."""
    mask = (unit < units)[:, None] & (i < inputs)[None, :]
    at = weight[0] + i.to(tl.int64)[None, :] * weight[1] + unit.to(tl.int64)[:, None] * weight[2]
    return finite_or_zero(tl.load(at, mask, other=0.0))


@triton.jit
def _prepare_kernel(weight, bias, limbs, fixed_bias, inverse, offset, inputs, units, depth, ROWS: tl.constexpr,
                    DEPTH: tl.constexpr):  # fmt: skip
    """Each unit's weights and bias as multiples of 2^-e, e the largest with a sum of magnitudes below 2^31 of them."""
    unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    given = tl.load(bias[0] + unit.to(tl.int64) * bias[1], unit < units, other=0.0)
    known = finite_or_zero(given)
    total = tl.abs(known.to(tl.float64))
    for start in range(0, depth, DEPTH):
        w = load_weights(weight, unit, start + tl.arange(0, DEPTH), units, inputs)
        total += tl.sum(tl.abs(w).to(tl.float64), axis=1)
    # The total just above 2^31: roundings may still bring it below. One step less fails by roundings alone, two never.
    exponent = 32 + 1022 - (total.to(tl.int64, bitcast=True) >> 52).to(tl.int32)
    exponent = tl.where(total > 0.0, tl.minimum(tl.maximum(exponent, -120), 120), 0)
    first = power_of_two(exponent)
    second = power_of_two(exponent - 1)
    first_sum = rounded(known, first).to(tl.float64)
    second_sum = rounded(known, second).to(tl.float64)
    for start in range(0, depth, DEPTH):
        w = load_weights(weight, unit, start + tl.arange(0, DEPTH), units, inputs)
        first_sum += tl.sum(rounded(w, first[:, None]).to(tl.float64), axis=1)
        second_sum += tl.sum(rounded(w, second[:, None]).to(tl.float64), axis=1)
    exponent -= tl.where(first_sum < 2147483648.0, 0, tl.where(second_sum < 2147483648.0, 1, 2))
    scale = power_of_two(exponent)
    tl.store(inverse + unit, power_of_two(-exponent))
    tl.store(fixed_bias + unit, quantise(known, scale))
    tl.store(offset + unit, tl.where(tl.abs(given) < float("inf"), 0.0, given))
    for start in range(0, depth, DEPTH):
        i = start + tl.arange(0, DEPTH)
        q = quantise(load_weights(weight, unit, i, units, inputs), scale[:, None])
        # Signed bytes from the lowest on: the sum carries, and taking 128 from a byte is flipping its highest bit.
        digits = (q.to(tl.uint32, bitcast=True) + 0x00808080) ^ 0x00808080
        at = limbs + 4 * unit.to(tl.int64)[:, None] * depth + i[None, :]
        for limb in tl.static_range(4):
            tl.store(at + limb * depth, (digits >> (8 * limb)).to(tl.uint8).to(tl.int8, bitcast=True))


@triton.jit
def fixed_field(states, layer, row, unit, first_unit, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr):
    """Logits [ROWS, UNITS] of a layer given states [rows, depth] of the other, rounded once each."""
    limbs, fixed_bias, inverse, offset, depth = layer
    k = tl.arange(0, DEPTH)
    limb = (4 * first_unit + tl.arange(0, 4 * UNITS)).to(tl.int64)
    x_at = states + row[:, None] * depth + k[None, :]
    w_at = limbs + limb[None, :] * depth + k[:, None]
    sums = tl.zeros([ROWS, 4 * UNITS], tl.int32)
    for start in range(0, depth, DEPTH):
        sums = tl.dot(tl.load(x_at + start), tl.load(w_at + start), sums)
    parts = tl.reshape(sums, [ROWS, UNITS, 4]) << (8 * tl.arange(0, 4))[None, None, :]
    whole = tl.sum(parts, axis=2) + tl.load(fixed_bias + unit)[None, :]
    return whole.to(tl.float32) * tl.load(inverse + unit)[None, :] + tl.load(offset + unit)[None, :]


@triton.jit
def real_field(states, layer, row, unit, rows, units, ROWS: tl.constexpr):
    """The same of real states [rows, inputs]: sums in float32, from the bias on over the inputs in order."""
    weight, bias, inputs = layer
    AT_ONCE: tl.constexpr = 16
    start_at = tl.load(bias[0] + unit.to(tl.int64) * bias[1], unit < units, other=0.0)
    total = tl.broadcast_to(start_at[None, :], ROWS, unit.shape[0])
    for start in range(0, inputs, AT_ONCE):
        i = start + tl.arange(0, AT_ONCE)
        mask = (row < rows)[:, None] & (i < inputs)[None, :]
        x = tl.load(states + row[:, None] * inputs + i[None, :], mask, other=0.0)
        w = load_weights(weight, unit, i, units, inputs)
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    return total


@triton.jit
def below(word, p):
    """Whether word < ceil(p 2^32) or p >= 1, for p in [0, 1], without float64."""
    scaled = tl.where(p < 1.0, p, 0.0) * 65536.0
    high = scaled.to(tl.int32)
    rest = (scaled - high.to(tl.float32)) * 65536.0  # exact
    low = rest.to(tl.int32)
    up = tl.where(low.to(tl.float32) < rest, 1, 0)
    threshold = (high.to(tl.uint32) << 16) + low.to(tl.uint32) + up.to(tl.uint32)
    return (word < threshold) | (p >= 1.0)


@triton.jit
def half_step(states, layer, out, clamp, beta, probs, key, first_sample, step, first_row, first_unit, rows, units,
              DRAW: tl.constexpr, REAL: tl.constexpr, FOLDED: tl.constexpr, BATCHED: tl.constexpr,
              ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """A tile of one layer given the states of the other: binary states, normals around the field, or scores of
    categories, of which the highest wins. `out` is what to fill and the length of its rows."""
    row = first_row.to(tl.int64) + tl.arange(0, ROWS)
    unit = first_unit + tl.arange(0, UNITS)
    if REAL:
        field = real_field(states, layer, row, unit, rows, units, ROWS)
    else:
        field = fixed_field(states, layer, row, unit, first_unit, ROWS, UNITS, DEPTH)
    inverse = tl.load(beta[0] + row * beta[1], row < rows, other=1.0)[:, None]
    seed, offset, sample = load_key(key, row, rows, first_sample, BATCHED)
    if FOLDED:
        seed, offset = fold_in_key(seed, offset, seed * 0 + 1)
    block = first_unit // 4 + tl.arange(0, UNITS // 4)[None, :]
    w0, w1, w2, w3 = noise_words(seed, offset, block, sample, step)
    if DRAW == "normals":
        x0, x1 = normal_pair(w0, w1)
        x2, x3 = normal_pair(w2, w3)
        spread = divide(tl.full(inverse.shape, 1.0, tl.float32), tl.sqrt_rn(inverse))
        drawn = tl.fma(spread, interleave4(x0, x1, x2, x3), field)
        told = field
    elif DRAW == "scores":
        drawn = field * inverse + gumbel_draw(interleave4(w0, w1, w2, w3))
        told = field
    else:
        told = sigmoid(field * inverse)
        drawn = below(interleave4(w0, w1, w2, w3), told).to(tl.int8)
    mask = (row < rows)[:, None] & (unit < units)[None, :]
    if probs is not None:
        tl.store(probs + row[:, None] * units + unit[None, :], told, mask)
    if clamp is not None:
        kept = tl.load(clamp[0] + row[:, None] * clamp[1] + unit.to(tl.int64)[None, :] * clamp[2], mask, other=1)
        mask = mask & (kept == 0)
    tl.store(out[0] + row[:, None] * out[1] + unit[None, :], drawn, mask)


@triton.jit(do_not_specialize=["first_sample", "step"])
def _half_step_kernel(states, layer, out, clamp, beta, probs, key, first_sample, step, rows, units,
                      DRAW: tl.constexpr, REAL: tl.constexpr, FOLDED: tl.constexpr, BATCHED: tl.constexpr,
                      ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    tiles = (units - 1) // UNITS + 1
    half_step(
        states, layer, out, clamp, beta, probs, key, first_sample, step.to(tl.uint32),
        tl.program_id(0) // tiles * ROWS, tl.program_id(0) % tiles * UNITS, rows, units,
        DRAW, REAL, FOLDED, BATCHED, ROWS, UNITS, DEPTH,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first_sample", "first_step", "steps"])
def _steps_kernel(visible, hidden, to_hidden, to_visible, clamp, beta, visible_probs, hidden_probs, key, first_sample,
                  first_step, steps, rows, units, hidden_units, BATCHED: tl.constexpr, ROWS: tl.constexpr,
                  UNITS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """All steps of ROWS chains of binary units, which no other program reads. The last probabilities stay."""
    first_row = tl.program_id(0) * ROWS
    step = first_step.to(tl.uint32)
    for _ in range(steps):
        for first_unit in range(0, hidden_units, UNITS):
            half_step(
                visible[0], to_hidden, hidden, None, beta, hidden_probs, key, first_sample, step, first_row,
                first_unit, rows, hidden_units, "states", False, False, BATCHED, ROWS, UNITS, DEPTH,
            )  # fmt: skip
        tl.debug_barrier()  # what was stored is read by other threads
        for first_unit in range(0, units, UNITS):
            half_step(
                hidden[0], to_visible, visible, clamp, beta, visible_probs, key, first_sample, step, first_row,
                first_unit, rows, units, "states", False, True, BATCHED, ROWS, UNITS, DEPTH,
            )  # fmt: skip
        tl.debug_barrier()
        step += 1


@triton.jit
def _choose_kernel(scores, states, visible, clamp, beta, probs, lines, groups, ways, depth, ROWS: tl.constexpr,
                   COLS: tl.constexpr):  # fmt: skip
    """Each group's category is the first of the highest scores. `probs` holds fields and becomes their softmax."""
    line = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = line // groups
    group = line % groups
    k = tl.arange(0, COLS)[None, :]
    mask = (line < lines)[:, None] & (k < ways)
    score = tl.load(scores + line[:, None] * ways + k, mask, other=float("-inf"))
    score = tl.where(score == score, score, float("-inf"))
    winner = tl.min(tl.where(score == tl.max(score, axis=1)[:, None], k, COLS), axis=1)
    if probs is not None:
        at = probs + line[:, None] * ways + k
        x = tl.load(at, mask, other=float("-inf"))
        x *= tl.load(beta[0] + row * beta[1], line < lines, other=1.0)[:, None]
        highest = tl.max(tl.where(mask & (x == x), x, float("-inf")), axis=1)[:, None]
        weight = tl.where(mask, exp(below_best(x, highest)), 0.0)
        tl.store(at, divide(weight, tree_sum(weight, ROWS, COLS)[:, None]), mask)
    free = line < lines
    if clamp is not None:
        free = tl.load(clamp[0] + row * clamp[1] + group * clamp[2], free, other=1) == 0
    one_hot = (k == winner[:, None]).to(tl.int8)
    tl.store(states + (row * depth + group * ways)[:, None] + k, one_hot, mask & free[:, None])
    tl.store(visible + line, winner.to(tl.uint8), free)


def _padded(count: int, to: int) -> int:
    return triton.cdiv(count, to) * to


def _layer(weight: Tensor, bias: Tensor) -> tuple:
    """A layer whose weight is [inputs, units], as fixed_field takes it."""
    inputs, units = weight.shape
    depth, width = _padded(inputs, DEPTH), _padded(units, DEPTH)
    limbs = torch.empty((width, 4, depth), dtype=torch.int8, device=weight.device)
    fixed_bias = torch.empty(width, dtype=torch.int32, device=weight.device)
    inverse, offset = torch.empty((2, width), dtype=torch.float32, device=weight.device)
    if units:
        launch(
            _prepare_kernel, width // 16, (weight, *weight.stride()), (bias, bias.stride(0)), limbs, fixed_bias,
            inverse, offset, inputs, units, depth, device=weight.device, ROWS=16, DEPTH=DEPTH,
        )  # fmt: skip
    return limbs, fixed_bias, inverse, offset, depth


def _encoded(visible: Tensor, units: int, categories: int) -> Tensor:
    """Binary states, or the indicators of categories, in scratch of whole tiles."""
    scratch = visible.new_zeros((_padded(len(visible), CHAINS), _padded(units, DEPTH)), dtype=torch.int8)
    if categories:
        on = visible[..., None] == torch.arange(categories, device=visible.device)
    elif visible.shape[1] != units:
        on = (visible[..., None] >> torch.arange(8, dtype=torch.uint8, device=visible.device)) & 1
    else:
        on = visible != 0
    scratch[: len(visible), :units] = on.view(len(visible), -1)[:, :units]
    return scratch


def _decode(states: Tensor, units: int, out: Tensor) -> None:
    """Of scratch, as bytes or bits: what `out` has room for."""
    if out.shape[1] != units:
        bytes_ = states[: len(out), : 8 * out.shape[1]].to(torch.uint8).unflatten(1, (-1, 8))  # padded with 0
        states = (bytes_ << torch.arange(8, dtype=torch.uint8, device=out.device)).sum(-1, dtype=torch.uint8)
    out.copy_(states[: len(out), : out.shape[1]])


def rbm_gibbs(
    visible: Tensor,
    hidden: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    beta: Tensor,
    clamp: Tensor | None,
    steps: int,
    first_step: int,
    visible_kind: int,
    categories: int,
    visible_probs: Tensor | None,
    hidden_probs: Tensor | None,
    key: Tensor,
    first_sample: int,
) -> None:
    """variate::rbm_gibbs"""
    chains, (units, hidden_units) = len(visible), weight.shape
    if max(units, hidden_units) >= MOST_UNITS:
        raise ValueError(f"weight: expected layers of less than {MOST_UNITS} units on a GPU, got {tuple(weight.shape)}")
    if chains == 0:
        return
    real, categorical = visible_kind == GAUSSIAN, visible_kind == CATEGORICAL
    key, betas = key.contiguous(), per_chain(beta)
    mask = None if clamp is None else (clamp, clamp.stride(0) if clamp.dim() > 1 else 0, clamp.stride(-1))
    to_visible = _layer(weight.t(), visible_bias)
    h = hidden.new_zeros((_padded(chains, CHAINS), _padded(hidden_units, DEPTH)), dtype=torch.int8)
    if real:
        v = visible
        to_hidden = (weight, *weight.stride()), (hidden_bias, hidden_bias.stride(0)), units
    else:
        v = _encoded(visible, units, categories if categorical else 0)
        to_hidden = _layer(weight, hidden_bias)
    scores = torch.empty((chains, units if categorical else 0), dtype=torch.float32, device=visible.device)

    def half(step: int, count: int, states: Tensor, layer: tuple, out: Tensor, kept: tuple | None,
             probs: Tensor | None, draw: str, hidden: bool) -> None:  # fmt: skip
        rows = CHAINS // 2 if hidden and real else CHAINS  # float32 products need more registers
        if count:
            launch(
                _half_step_kernel, triton.cdiv(chains, rows) * triton.cdiv(count, UNITS), states, layer,
                (out, out.stride(0)), kept, betas, probs, key, first_sample, int32(step), chains, count,
                device=out.device, warps=8, DRAW=draw, REAL=hidden and real, FOLDED=not hidden,
                BATCHED=key.dim() > 1, ROWS=rows, UNITS=UNITS, DEPTH=DEPTH,
            )  # fmt: skip

    def draw_hidden(step: int, probs: Tensor | None) -> None:
        half(step, hidden_units, v, to_hidden, h, None, probs, "states", True)

    def draw_visible(step: int, probs: Tensor | None) -> None:
        if not categorical:
            half(step, units, h, to_visible, v, mask, probs, "normals" if real else "states", False)
        elif units:
            half(step, units, h, to_visible, scores, None, probs, "scores", False)
            tile, lines = tile_shape(categories), visible.numel()
            launch(
                _choose_kernel, triton.cdiv(lines, tile["ROWS"]), scores, v, visible, mask, betas, probs, lines,
                visible.shape[1], categories, v.stride(0), device=v.device, **tile,
            )  # fmt: skip

    weights = units * hidden_units
    if visible_kind == BERNOULLI and steps > 1 and weights <= SMALL and chains * weights <= SMALL_WORK:
        launch(
            _steps_kernel, triton.cdiv(chains, SMALL_CHAINS), (v, v.stride(0)), (h, h.stride(0)), to_hidden, to_visible,
            mask, betas, visible_probs, hidden_probs, key, first_sample, int32(first_step), steps, chains, units,
            hidden_units, device=v.device, warps=8, BATCHED=key.dim() > 1, ROWS=SMALL_CHAINS, UNITS=UNITS, DEPTH=DEPTH,
        )  # fmt: skip
    else:
        for step in range(first_step, first_step + steps):
            last = step == first_step + steps - 1
            draw_hidden(step, hidden_probs if last else None)
            draw_visible(step, visible_probs if last else None)
    if steps == 0:
        draw_hidden(first_step, hidden_probs)
    elif visible_kind == BERNOULLI:
        _decode(v, units, visible)
    _decode(h, hidden_units, hidden)
