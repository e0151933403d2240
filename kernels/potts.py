"""Potts states on lattices, a byte a site: the twin of variate/math/potts.hpp and csrc/cpu/potts.cpp, bit for bit.

A program draws SIZE sites of one colour of one chain. They are counted along rows of ceil(width / 2), as their words
are: site i of row r = z height + y has x = 2 i + (y + z + colour) % 2.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .lattice import exp_exact, index_type
from .philox import interleave4, noise_words
from .tiles import int32, launch, per_chain

BLOCK = 512
DIFFERENCES = 8  # of counts of neighbours, of which six are the most


@triton.jit
def potts_weight(x, scale):
    """round(scale e^x) of x <= 0, up to rounding; e^-40 < 2^-57."""
    below = tl.where(x < 0.0, x, 0.0)
    return (exp_exact(tl.where(below > -40.0, below, -40.0)) * scale.to(tl.float64) + 0.5).to(tl.int32)


@triton.jit(do_not_specialize=["scale"])
def _table_kernel(beta, coupling, scale, out, chains, ROWS: tl.constexpr):
    """out[chain, d] = the weight of a state that is d neighbours behind the likeliest."""
    chain = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = chain < chains
    b = tl.load(beta[0] + chain * beta[1], mask, other=0.0)
    magnitude = tl.abs(b * tl.load(coupling[0] + chain * coupling[1], mask, other=0.0))
    for d in tl.static_range(8):
        tl.store(out + 8 * chain + d, potts_weight(-magnitude * d, scale), mask)


@triton.jit
def _beside(states, site, place, side, step, mask, OPEN: tl.constexpr):
    """The states before and behind along a dimension, 255 beyond an open boundary."""
    if OPEN:
        before = tl.load(states + (site - step), mask & (place > 0), other=255)
        behind = tl.load(states + (site + step), mask & (place < side - 1), other=255)
    else:
        before = tl.load(states + (site + tl.where(place == 0, (side - 1) * step, -step)), mask, other=255)
        behind = tl.load(states + (site - tl.where(place == side - 1, (side - 1) * step, -step)), mask, other=255)
    return before.to(tl.int32), behind.to(tl.int32)


@triton.jit
def _count(around, state):
    """The neighbours in a state."""
    count = tl.zeros(around[0].shape, tl.int32)
    for i in tl.static_range(len(around)):
        count += tl.where(around[i] == state, 1, 0)
    return count


@triton.jit
def _field_of(field, inverse, chain, state):
    return inverse * tl.load(field[0] + chain * field[1] + state * field[2])


@triton.jit
def _likeliest(around, coupling, field, inverse, chain, q):
    """The count and the field of the state that the weights of all are relative to."""
    best_count = tl.zeros(around[0].shape, tl.int32)
    if field is None:
        least = best_count + 6
        for state in range(q):
            count = _count(around, state)
            best_count = tl.maximum(count, best_count)
            least = tl.minimum(count, least)
        return tl.where(coupling >= 0.0, best_count, least), 0.0
    else:
        best_count = _count(around, 0)
        best_field = tl.zeros(around[0].shape, tl.float64) + _field_of(field, inverse, chain, 0)
        best = coupling * best_count.to(tl.float64) + best_field
        for state in range(1, q):
            count = _count(around, state)
            own = _field_of(field, inverse, chain, state)
            x = coupling * count.to(tl.float64) + own
            better = x > best
            best = tl.where(better, x, best)
            best_count = tl.where(better, count, best_count)
            best_field = tl.where(better, own, best_field)
        return best_count, best_field


@triton.jit
def _weight(around, state, best_count, best_field, coupling, table, field, inverse, chain, scale):
    behind = _count(around, state) - best_count
    if field is None:
        weight = tl.load(table + tl.where(coupling >= 0.0, -behind, behind))
    else:
        own = _field_of(field, inverse, chain, state)
        apart = tl.where(own == best_field, 0.0, own - best_field)
        weight = potts_weight(coupling * behind.to(tl.float64) + apart, scale)
    return weight.to(tl.uint32)


@triton.jit(do_not_specialize=["q", "scale", "first_sample", "step", "colour"])
def _update_kernel(states, q, scale, beta, coupling, table, field, key, first_sample, step, colour, depth, height,
                   width, half, blocks, DIMENSIONS: tl.constexpr, OPEN: tl.constexpr, BATCHED: tl.constexpr,
                   INDEX: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """One colour of a sweep."""
    chain = (tl.program_id(0) // blocks).to(tl.int64)
    size = (depth * height).to(INDEX) * half
    begin = colour.to(tl.int64) * size  # the colour's first word may stand anywhere in a Philox block
    first = begin // 4 * 4 + (tl.program_id(0) % blocks).to(tl.int64) * SIZE
    at = (first - begin).to(INDEX) + tl.arange(0, SIZE)
    row = at // half
    y = row % height
    z = row // height
    x = 2 * (at % half) + ((y + z + colour) & 1)
    mask = (at >= 0) & (at < size) & (x < width)
    site = row * width + x
    states += chain * depth * height * width
    x_before, x_behind = _beside(states, site, x, width, 1, mask, OPEN)
    y_before, y_behind = _beside(states, site, y, height, width, mask, OPEN)
    if DIMENSIONS == 3:
        z_before, z_behind = _beside(states, site, z, depth, height * width, mask, OPEN)
        around = (x_before, x_behind, y_before, y_behind, z_before, z_behind)
    else:
        around = (x_before, x_behind, y_before, y_behind)

    key += 2 * chain if BATCHED else 0
    sample = chain * 0 if BATCHED else first_sample + chain
    block = first // 4 + tl.arange(0, SIZE // 4)
    seed = tl.load(key).to(tl.uint64)
    offset = tl.load(key + 1).to(tl.uint64)
    w0, w1, w2, w3 = noise_words(seed, offset, block, sample, step.to(tl.uint32))
    word = interleave4(w0, w1, w2, w3)

    inverse = tl.load(beta[0] + chain * beta[1])
    pull = inverse * tl.load(coupling[0] + chain * coupling[1])
    table += 8 * chain
    best_count, best_field = _likeliest(around, pull, field, inverse, chain, q)
    total = tl.zeros([SIZE], tl.uint32)
    for state in range(q):
        total += _weight(around, state, best_count, best_field, pull, table, field, inverse, chain, scale)
    draw = tl.umulhi(word, total)
    below = tl.zeros([SIZE], tl.uint32)
    drawn = tl.zeros([SIZE], tl.int32)
    for state in range(q - 1):
        below += _weight(around, state, best_count, best_field, pull, table, field, inverse, chain, scale)
        drawn += tl.where(draw >= below, 1, 0)
    tl.store(states + site, drawn.to(tl.uint8), mask)


def potts_gibbs(
    states: Tensor,
    q: int,
    open: bool,
    beta: Tensor,
    coupling: Tensor,
    field: Tensor | None,
    sweeps: int,
    first_step: int,
    key: Tensor,
    first_sample: int,
) -> None:
    """variate::potts_gibbs"""
    chains, dimensions = len(states), states.dim() - 1
    if chains == 0:
        return
    depth, height, width = (1, *states.shape[1:])[-3:]
    half = (width + 1) // 2
    blocks = triton.cdiv(depth * height * half + 3, BLOCK)
    scale = 2 ** (32 - q.bit_length())
    numbers = per_chain(beta), per_chain(coupling)
    fields = None if field is None else (field, field.stride(0) if field.dim() > 1 else 0, field.stride(-1))
    table = torch.empty((chains, DIFFERENCES), dtype=torch.int32, device=states.device)
    launch(_table_kernel, triton.cdiv(chains, 128), *numbers, scale, table, chains, device=states.device, ROWS=128)
    key = key.contiguous()
    for sweep in range(sweeps):
        for colour in range(2):
            launch(
                _update_kernel, chains * blocks, states, q, scale, *numbers, table, fields, key, first_sample,
                int32(first_step + sweep), colour, depth, height, width, half, blocks, device=states.device,
                DIMENSIONS=dimensions, OPEN=open, BATCHED=key.dim() > 1,
                INDEX=index_type(math.prod(states.shape[1:])), SIZE=BLOCK,
            )  # fmt: skip
