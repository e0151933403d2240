"""Ising spins on lattices, 32 sites of a colour to a word: the twin of variate/math/lattice.hpp, bit for bit.

Words are [chains, 2, rows..., words]; bit b of word w of row r = z height + y of colour k is the site
x = 2 (32 w + b) + (y + z + k) % 2. A program updates BLOCK words of one colour of one chain.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import hex_float
from .philox import fold_in_key, noise_words
from .tiles import int32, launch, per_chain

BLOCK = 256
COUNTS = 8  # of neighbours that pull up, of which six are the most
MOMENTS = 7


@triton.jit
def exp_exact(x):
    """exp(x) of -708 <= x <= 0 in float64, in explicit fma."""
    shifted = tl.fma(x, hex_float("0x1.71547652b82fep+0"), hex_float("0x1.8p52"))
    n = shifted - hex_float("0x1.8p52")
    r = tl.fma(n, hex_float("-0x1.abc9e3b39803fp-56"), tl.fma(n, hex_float("-0x1.62e42fefa39efp-1"), x))
    p = tl.fma(r, hex_float("0x1.6124613a86d09p-33"), hex_float("0x1.1eed8eff8d898p-29"))  # 1 / 13!, ..., 1 / 2!
    p = tl.fma(p, r, hex_float("0x1.ae64567f544e4p-26"))
    p = tl.fma(p, r, hex_float("0x1.27e4fb7789f5cp-22"))
    p = tl.fma(p, r, hex_float("0x1.71de3a556c734p-19"))
    p = tl.fma(p, r, hex_float("0x1.a01a01a01a01ap-16"))
    p = tl.fma(p, r, hex_float("0x1.a01a01a01a01ap-13"))
    p = tl.fma(p, r, hex_float("0x1.6c16c16c16c17p-10"))
    p = tl.fma(p, r, hex_float("0x1.1111111111111p-7"))
    p = tl.fma(p, r, hex_float("0x1.5555555555555p-5"))
    p = tl.fma(p, r, hex_float("0x1.5555555555555p-3"))
    p = tl.fma(p, r, 0.5)
    p = tl.fma(p * r, r, r) + 1.0
    return p * ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def heat_bath_threshold(x):
    """ceil(2^40 sigmoid(x)); fields beyond all that 40 bits tell apart decide for certain."""
    magnitude = tl.where(x < 0.0, -x, x)
    inside = magnitude < 40.0
    e = exp_exact(tl.where(inside, -magnitude, -40.0))
    scaled = tl.where(x < 0.0, e, 1.0) / (1.0 + e) * 1099511627776.0
    whole = scaled.to(tl.int64)
    threshold = whole + tl.where(whole.to(tl.float64) < scaled, 1, 0)
    return tl.where(inside, threshold, tl.where(x < 0.0, 0, 1099511627776))


@triton.jit
def _thresholds_kernel(beta, coupling, field, out, chains, NEIGHBOURS: tl.constexpr, TABLES: tl.constexpr,
                       ROWS: tl.constexpr):  # fmt: skip
    """out[chain, missing, up] = the threshold of a site of which `up` neighbours pull up and `missing` are missing."""
    chain = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = chain < chains
    b = tl.load(beta[0] + chain * beta[1], mask, other=0.0)
    j = tl.load(coupling[0] + chain * coupling[1], mask, other=0.0)
    h = tl.load(field[0] + chain * field[1], mask, other=0.0)
    for missing in tl.static_range(TABLES):
        for up in tl.static_range(8):
            threshold = tl.zeros([ROWS], tl.int64)
            if up <= NEIGHBOURS - missing:
                total = j * (2.0 * up - (NEIGHBOURS - missing)) + h
                threshold = heat_bath_threshold(2.0 * (b * total))
            tl.store(out + (chain * TABLES + missing) * 8 + up, threshold, mask)


@triton.jit
def load_word(words, index, mask):
    return tl.load(words + index, mask, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def word_place(index, row_words, height, colour):
    """Row, word in the row, y, z, and x of the row's first site of this colour."""
    row = index // row_words
    z = row // height
    y = row % height
    return row, index % row_words, y, z, (y + z + colour) & 1


@triton.jit
def ones_below(count):
    """A word whose lowest `count` bits are 1: none below 0, all from 32 on."""
    count = tl.minimum(tl.maximum(count, 0), 32)
    return (((count * 0 + 1).to(tl.uint64) << count.to(tl.uint64)) - 1).to(tl.uint32)


@triton.jit
def valid_sites(width, parity, word):
    """The bits of a row's word that are sites."""
    return ones_below((width + 1 - parity) // 2 - 32 * word)


@triton.jit
def _beside(other, index, mask, place, side, step, OPEN: tl.constexpr):
    """The words before and behind along y or z, and whether they are there."""
    first = place == 0
    last = place == side - 1
    if OPEN:
        before = load_word(other, index - step, mask & (place > 0))
        behind = load_word(other, index + step, mask & (place < side - 1))
    else:
        before = load_word(other, index + tl.where(first, (side - 1) * step, -step), mask)
        behind = load_word(other, index - tl.where(last, (side - 1) * step, -step), mask)
    return before, behind, first, last


@triton.jit
def _along_x(other, index, mask, word, parity, row_words, width, OPEN: tl.constexpr):
    """The words before and behind along x."""
    odd = parity == 1
    edge = tl.where(odd, word == row_words - 1, word == 0)
    same = load_word(other, index, mask)
    if OPEN:
        wrapped = load_word(other, tl.where(odd, index + 1, index - 1), mask & (edge == 0))
        shift = tl.where(edge, 0, 31).to(tl.uint32)
    else:
        around = tl.where(edge, row_words, 0)
        wrapped = load_word(other, tl.where(odd, index + 1 - around, index - 1 + around), mask)
        shift = tl.where(edge, (width // 2 - 1) & 31, 31).to(tl.uint32)
    shifted = tl.where(odd, (same >> 1) | (wrapped << shift), (same << 1) | (wrapped >> shift))
    return tl.where(odd, same, shifted), tl.where(odd, shifted, same)


@triton.jit
def _pull(word, bonds, index, mask, size, DIRECTION: tl.constexpr, BONDS: tl.constexpr):
    """1 where a neighbour and the bond to it pull up."""
    if BONDS:
        return word ^ load_word(bonds, 2 * DIRECTION * size + index, mask) ^ 0xFFFFFFFF
    else:
        return word


@triton.jit
def _if_there(word, missing):
    return tl.where(missing, 0, word)


@triton.jit
def pulls(other, bonds, index, mask, word, y, z, parity, depth, height, width, row_words, size,
          DIMENSIONS: tl.constexpr, OPEN: tl.constexpr, BONDS: tl.constexpr):  # fmt: skip
    """What pulls each site up: six words, of which two dimensions leave the first two 0.

    Also how many neighbours an open boundary takes from all sites of a word, and from which bits it takes one more
    before and behind along x.
    """
    X: tl.constexpr = 2 * DIMENSIONS - 2
    nothing = (index * 0).to(tl.uint32)
    gone = index * 0
    first = nothing
    last = nothing
    z_before = nothing
    z_behind = nothing
    if DIMENSIONS == 3:
        z_before, z_behind, none_before, none_behind = _beside(other, index, mask, z, depth, height * row_words, OPEN)
        z_before = _pull(z_before, bonds, index, mask, size, 0, BONDS)
        z_behind = _pull(z_behind, bonds, index, mask, size, 1, BONDS)
        if OPEN:
            z_before = _if_there(z_before, none_before)
            z_behind = _if_there(z_behind, none_behind)
            gone += none_before.to(gone.dtype) + none_behind.to(gone.dtype)
    y_before, y_behind, none_before, none_behind = _beside(other, index, mask, y, height, row_words, OPEN)
    y_before = _pull(y_before, bonds, index, mask, size, X - 2, BONDS)
    y_behind = _pull(y_behind, bonds, index, mask, size, X - 1, BONDS)
    x_before, x_behind = _along_x(other, index, mask, word, parity, row_words, width, OPEN)
    x_before = _pull(x_before, bonds, index, mask, size, X, BONDS)
    x_behind = _pull(x_behind, bonds, index, mask, size, X + 1, BONDS)
    if OPEN:
        y_before = _if_there(y_before, none_before)
        y_behind = _if_there(y_behind, none_behind)
        gone += none_before.to(gone.dtype) + none_behind.to(gone.dtype)
        right = width - 1
        first = tl.where((parity == 0) & (word == 0), nothing + 1, nothing)
        ends = ((right & 1) == parity) & (right // 64 == word)
        last = tl.where(ends, (nothing + 1) << (right // 2 % 32).to(tl.uint32), nothing)
        x_before &= first ^ 0xFFFFFFFF
        x_behind &= last ^ 0xFFFFFFFF
    return z_before, z_behind, y_before, y_behind, x_before, x_behind, gone, first, last


@triton.jit
def _majority(a, b, c):
    return (a & b) | (c & (a | b))


@triton.jit
def count_bits(a, b, c, d, e, f):
    """The sums of six bits, in binary."""
    low = c ^ d ^ e
    low_carry = _majority(c, d, e)
    high = a ^ b ^ f
    high_carry = _majority(a, b, f)
    carry = low & high
    return low ^ high, low_carry ^ high_carry ^ carry, _majority(low_carry, high_carry, carry)


@triton.jit
def _digit(thresholds, place):
    """All ones where the digit at `place` is 1."""
    return (0 - ((thresholds >> place) & 1)).to(tl.uint32)


@triton.jit
def threshold_digit(t, place, ones, twos, fours, NEIGHBOURS: tl.constexpr):
    """A digit of the thresholds of all sites of a word: a polynomial over the digits of their counts, modulo 2."""
    d0 = _digit(t[0], place)
    d1 = _digit(t[1], place)
    d2 = _digit(t[2], place)
    d4 = _digit(t[4], place)
    x = d0 ^ ((d0 ^ d1) & ones) ^ ((d0 ^ d2) & twos) ^ ((d0 ^ d4) & fours)
    x ^= (d0 ^ d1 ^ d2 ^ _digit(t[3], place)) & (ones & twos)
    if NEIGHBOURS == 6:
        x ^= (d0 ^ d1 ^ d4 ^ _digit(t[5], place)) & (ones & fours)
        x ^= (d0 ^ d2 ^ d4 ^ _digit(t[6], place)) & (twos & fours)
    return x


@triton.jit
def _load_thresholds(table):
    return (
        tl.load(table), tl.load(table + 1), tl.load(table + 2), tl.load(table + 3), tl.load(table + 4),
        tl.load(table + 5), tl.load(table + 6),
    )  # fmt: skip


@triton.jit(do_not_specialize=["first_sample", "step", "colour"])
def _update_kernel(words, bonds, table, key, first_sample, step, colour, depth, height, width, row_words, blocks,
                   DIMENSIONS: tl.constexpr, OPEN: tl.constexpr, BONDS: tl.constexpr, BATCHED: tl.constexpr,
                   TABLES: tl.constexpr, INDEX: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """One colour of a sweep."""
    NEIGHBOURS: tl.constexpr = 2 * DIMENSIONS
    chain = (tl.program_id(0) // blocks).to(tl.int64)
    size = (depth * height * row_words).to(INDEX)
    index = (tl.program_id(0) % blocks).to(INDEX) * SIZE + tl.arange(0, SIZE)
    mask = index < size
    row, word, y, z, parity = word_place(index, row_words, height, colour)
    own = words + (2 * chain + colour) * size
    other = words + (2 * chain + 1 - colour) * size
    a, b, c, d, e, f, gone, first, last = pulls(
        other, bonds + colour * size, index, mask, word, y, z, parity, depth, height, width, row_words, size,
        DIMENSIONS, OPEN, BONDS,
    )  # fmt: skip
    ones, twos, fours = count_bits(a, b, c, d, e, f)

    key += 2 * chain if BATCHED else 0
    seed = tl.load(key).to(tl.uint64)
    offset = tl.load(key + 1).to(tl.uint64)
    sample = chain * 0 if BATCHED else first_sample + chain
    step = step.to(tl.uint32)

    edge = first | last
    table += chain * TABLES * 8
    if OPEN:  # a row of one site lacks both neighbours along x
        gone += ((first & last) != 0).to(gone.dtype)
        usual = _load_thresholds(table + gone * 8)
        beyond = _load_thresholds(table + tl.minimum(gone + 1, TABLES - 1) * 8)
    else:
        usual = _load_thresholds(table)
        beyond = usual
    valid = tl.where(mask, valid_sites(width, parity, word), 0)
    up = valid * 0
    undecided = valid
    block = 2 * (colour * size.to(tl.int64) + index)
    for half in tl.static_range(2):  # from the lowest digits to the highest
        w0, w1, w2, w3 = noise_words(seed, offset, block + (1 - half), sample, step)
        planes = (w3, w2, w1, w0)
        for p in tl.static_range(4):
            digit = threshold_digit(usual, 32 + 4 * half + p, ones, twos, fours, NEIGHBOURS)
            if OPEN:
                digit ^= (digit ^ threshold_digit(beyond, 32 + 4 * half + p, ones, twos, fours, NEIGHBOURS)) & edge
            differ = digit ^ planes[p]
            up = (up & (differ ^ 0xFFFFFFFF)) | (digit & differ)
            undecided &= differ ^ 0xFFFFFFFF
    certain = threshold_digit(usual, 40, ones, twos, fours, NEIGHBOURS)
    if OPEN:
        certain ^= (certain ^ threshold_digit(beyond, 40, ones, twos, fours, NEIGHBOURS)) & edge
    up = (up | certain) & valid
    undecided &= certain ^ 0xFFFFFFFF

    seed, offset = fold_in_key(seed, offset, seed * 0 + 1)
    while tl.max(tl.where(undecided != 0, 1, 0), axis=0) > 0:  # the lowest such site of each word
        lowest = undecided & (0 - undecided)
        bit = (lowest.to(tl.float32).to(tl.uint32, bitcast=True) >> 23).to(tl.int32) - 127
        bit = tl.where(undecided != 0, bit, 0)
        site = row.to(tl.int64) * width + 2 * (32 * word + bit) + parity
        w0, w1, w2, w3 = noise_words(seed, offset, site // 4, sample, step)
        draw = tl.where(site % 4 < 2, tl.where(site % 2 == 0, w0, w1), tl.where(site % 2 == 0, w2, w3))
        count = tl.where((ones & lowest) != 0, 1, 0) + tl.where((twos & lowest) != 0, 2, 0)
        count += tl.where((fours & lowest) != 0, 4, 0)
        at = gone + tl.where((edge & lowest) != 0, 1, 0) if OPEN else index * 0
        at = tl.minimum(at, TABLES - 1)
        rest = tl.load(table + at * 8 + count).to(tl.uint32)
        up |= tl.where(draw < rest, lowest, 0)
        undecided &= undecided - 1
    tl.store(own + index, up.to(tl.int32, bitcast=True), mask)


@triton.jit
def _popcount(x):
    x -= (x >> 1) & 0x55555555
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _agreement(own, pull, among):
    return _popcount((own ^ pull ^ 0xFFFFFFFF) & among)


@triton.jit
def _sums_kernel(words, bonds, sums, depth, height, width, row_words, blocks, DIMENSIONS: tl.constexpr,
                 OPEN: tl.constexpr, BONDS: tl.constexpr, INDEX: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """sums[chain] += the sums of spins, and of bonds, all of which end in colour 0. Integers add up in any order."""
    chain = (tl.program_id(0) // blocks).to(tl.int64)
    size = (depth * height * row_words).to(INDEX)
    index = (tl.program_id(0) % blocks).to(INDEX) * SIZE + tl.arange(0, SIZE)
    mask = index < size
    _, word, y, z, parity = word_place(index, row_words, height, 0)
    words += 2 * chain * size
    a, b, c, d, e, f, _, first, last = pulls(
        words + size, bonds, index, mask, word, y, z, parity, depth, height, width, row_words, size,
        DIMENSIONS, OPEN, BONDS,
    )  # fmt: skip
    valid = tl.where(mask, valid_sites(width, parity, word), 0)
    others = tl.where(mask, valid_sites(width, 1 - parity, word), 0)
    own = load_word(words, index, mask)
    spins = 2 * (_popcount(own) + _popcount(load_word(words + size, index, mask)))
    spins -= _popcount(valid) + _popcount(others)

    before = valid & (first ^ 0xFFFFFFFF)
    behind = valid & (last ^ 0xFFFFFFFF)
    agree = _agreement(own, e, before) + _agreement(own, f, behind)
    count = _popcount(before) + _popcount(behind)
    y_before = valid
    y_behind = valid
    if OPEN:
        y_before = _if_there(valid, y == 0)
        y_behind = _if_there(valid, y == height - 1)
    agree += _agreement(own, c, y_before) + _agreement(own, d, y_behind)
    count += _popcount(y_before) + _popcount(y_behind)
    if DIMENSIONS == 3:
        z_before = valid
        z_behind = valid
        if OPEN:
            z_before = _if_there(valid, z == 0)
            z_behind = _if_there(valid, z == depth - 1)
        agree += _agreement(own, a, z_before) + _agreement(own, b, z_behind)
        count += _popcount(z_before) + _popcount(z_behind)
    tl.atomic_add(sums + 2 * chain, tl.sum(spins, axis=0).to(tl.int64))
    tl.atomic_add(sums + 2 * chain + 1, tl.sum(2 * agree - count, axis=0).to(tl.int64))


@triton.jit
def _moments_kernel(sums, moments, chains, sites, ROWS: tl.constexpr):
    """Adds a measurement to the moments."""
    chain = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = chain < chains
    n = sites.to(tl.float64)
    m = tl.load(sums + 2 * chain, mask, other=0).to(tl.float64) / n
    b = tl.load(sums + 2 * chain + 1, mask, other=0).to(tl.float64) / n
    terms = (m, tl.where(m < 0.0, -m, m), m * m, (m * m) * (m * m), b, b * b, m * b)
    for i in tl.static_range(7):
        at = moments + 7 * chain + i
        tl.store(at, tl.load(at, mask, other=0.0) + terms[i], mask)


@triton.jit
def _spin_bit(words, row, x, y, z, size, row_words, mask):
    """The bit of site x of a row, of words of one chain."""
    colour = (x + y + z) & 1
    word = load_word(words, colour * size + row * row_words + x // 64, mask)
    return (word >> (x // 2 % 32).to(tl.uint32)) & 1


@triton.jit
def _correlation_kernel(words, out, depth, height, width, row_words, distance, blocks, OPEN: tl.constexpr,
                        INDEX: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    """out[chain, r - 1] += the sum over sites of s(x) s(x + r)."""
    r = tl.program_id(0) % distance + 1
    program = tl.program_id(0) // distance
    chain = (program // blocks).to(tl.int64)
    site = (program % blocks).to(INDEX) * SIZE + tl.arange(0, SIZE)
    row = site // width
    x = site % width
    size = (depth * height * row_words).to(INDEX)
    words += 2 * chain * size
    beyond = x + r >= width
    mask = row < depth * height
    if OPEN:
        mask = mask & (beyond == 0)
    partner = tl.where(beyond, x + r - width, x + r)
    y = row % height
    z = row // height
    differ = _spin_bit(words, row, x, y, z, size, row_words, mask)
    differ ^= _spin_bit(words, row, partner, y, z, size, row_words, mask)
    total = tl.sum(tl.where(mask, 1 - 2 * differ.to(tl.int32), 0), axis=0)
    tl.atomic_add(out + chain * distance + (r - 1), total.to(tl.int64))


@triton.jit
def _pack_kernel(spins, out, depth, height, width, row_words, total, INDEX: tl.constexpr, SIZE: tl.constexpr):
    """out[chain, colour, z, y, word] from spins[chain, z, y, x]."""
    index = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = index < total
    size = (depth * height * row_words).to(INDEX)
    chain = index // (2 * size)
    at = (index % (2 * size)).to(INDEX)
    colour = at // size
    row, word, _, _, parity = word_place(at % size, row_words, height, colour)
    line = spins + (chain * depth * height + row) * width
    packed = tl.zeros([SIZE], tl.uint32)
    for bit in range(32):
        x = 2 * (32 * word + bit) + parity
        spin = tl.load(line + x, mask & (x < width), other=-1)
        packed |= tl.where(spin > 0, 1, 0).to(tl.uint32) << bit
    tl.store(out + index, packed.to(tl.int32, bitcast=True), mask)


@triton.jit
def _unpack_kernel(words, out, depth, height, width, row_words, total, INDEX: tl.constexpr, SIZE: tl.constexpr):
    """out[chain, z, y, x] from words[chain, colour, z, y, word]."""
    index = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = index < total
    rows = depth * height
    line = index // width
    chain = line // rows
    row = (line % rows).to(INDEX)
    x = (index % width).to(INDEX)
    size = (rows * row_words).to(INDEX)
    up = _spin_bit(words + 2 * chain * size, row, x, row % height, row // height, size, row_words, mask)
    tl.store(out + index, (2 * up.to(tl.int32) - 1).to(tl.int8), mask)


def _sides(rows: torch.Size | list[int], width: int) -> tuple[int, int, int, int]:
    """Depth, height, width and words of a row, of [height] or [depth, height]."""
    return (rows[0] if len(rows) > 1 else 1, rows[-1], width, ((width + 1) // 2 + 31) // 32)


def index_type(sites: int) -> tl.dtype:
    return tl.int32 if sites < 2**31 - 2**16 else tl.int64


def ising_pack(spins: Tensor, dimensions: int, open: bool) -> Tensor:
    """variate::ising_pack"""
    *rows, width = spins.shape[1:]
    sides = _sides(rows, width)
    out = torch.empty((len(spins), 2, *rows, sides[3]), dtype=torch.int32, device=spins.device)
    if out.numel() > 0:
        launch(
            _pack_kernel, triton.cdiv(out.numel(), BLOCK), spins.contiguous(), out, *sides, out.numel(),
            device=out.device, INDEX=index_type(math.prod(sides[:3])), SIZE=BLOCK,
        )  # fmt: skip
    return out


def ising_unpack(words: Tensor, width: int) -> Tensor:
    """variate::ising_unpack"""
    rows = words.shape[2:-1]
    sides = _sides(rows, width)
    out = torch.empty((len(words), *rows, width), dtype=torch.int8, device=words.device)
    if out.numel() > 0:
        launch(
            _unpack_kernel, triton.cdiv(out.numel(), BLOCK), words, out, *sides, out.numel(),
            device=out.device, INDEX=index_type(math.prod(sides[:3])), SIZE=BLOCK,
        )  # fmt: skip
    return out


def _launch_words(kernel, words: Tensor, bonds: Tensor | None, open: bool, sides: tuple[int, ...], *args, **constants):
    """A program per BLOCK words of colour of each chain. The kernel's arguments begin with words and bonds and end
    with the sides and the number of blocks of a chain."""
    blocks = triton.cdiv(math.prod(sides[:2]) * sides[3], BLOCK)
    launch(
        kernel, len(words) * blocks, words, words if bonds is None else bonds, *args, *sides, blocks,
        device=words.device, DIMENSIONS=words.dim() - 2, OPEN=open, BONDS=bonds is not None,
        INDEX=index_type(math.prod(sides[:3])), SIZE=BLOCK, **constants,
    )  # fmt: skip


def ising_gibbs(
    words: Tensor,
    width: int,
    open: bool,
    beta: Tensor,
    coupling: Tensor,
    field: Tensor,
    bonds: Tensor | None,
    sweeps: int,
    first_step: int,
    moments: Tensor | None,
    measure_every: int,
    key: Tensor,
    first_sample: int,
) -> None:
    """variate::ising_gibbs"""
    chains, dimensions = len(words), words.dim() - 2
    if chains == 0:
        return
    sides = _sides(words.shape[2:-1], width)
    tables = 2 * dimensions + 1 if open else 1
    table = torch.empty((chains, tables, COUNTS), dtype=torch.int64, device=words.device)
    launch(
        _thresholds_kernel, triton.cdiv(chains, 128), *map(per_chain, (beta, coupling, field)), table, chains,
        device=words.device, NEIGHBOURS=2 * dimensions, TABLES=tables, ROWS=128,
    )  # fmt: skip
    key = key.contiguous()
    for sweep in range(sweeps):
        for colour in range(2):
            _launch_words(
                _update_kernel, words, bonds, open, sides, table, key, first_sample, int32(first_step + sweep), colour,
                BATCHED=key.dim() > 1, TABLES=tables,
            )  # fmt: skip
        if moments is not None and (sweep + 1) % measure_every == 0:
            sums = _sums(words, open, bonds, sides)
            launch(
                _moments_kernel, triton.cdiv(chains, 128), sums, moments, chains, math.prod(sides[:3]),
                device=words.device, ROWS=128,
            )  # fmt: skip


def _sums(words: Tensor, open: bool, bonds: Tensor | None, sides: tuple[int, ...]) -> Tensor:
    sums = torch.zeros((len(words), 2), dtype=torch.int64, device=words.device)
    if len(words) > 0:
        _launch_words(_sums_kernel, words, bonds, open, sides, sums)
    return sums


def ising_measure(words: Tensor, width: int, open: bool, bonds: Tensor | None, distance: int) -> tuple[Tensor, Tensor]:
    """variate::ising_measure"""
    sides = _sides(words.shape[2:-1], width)
    correlation = torch.zeros((len(words), distance), dtype=torch.int64, device=words.device)
    if correlation.numel() > 0:
        blocks = triton.cdiv(math.prod(sides[:3]), 4 * BLOCK)
        launch(
            _correlation_kernel, len(words) * blocks * distance, words, correlation, *sides, distance, blocks,
            device=words.device, OPEN=open, INDEX=index_type(math.prod(sides[:3])), SIZE=4 * BLOCK,
        )  # fmt: skip
    return _sums(words, open, bonds, sides), correlation
