"""Philox4x32-10, the counter-based generator behind all noise, in blocks of four draws.

The twin of variate/math/philox.hpp, bit for bit.
Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """The four words of one 128-bit counter under a 64-bit seed."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def noise_words(seed, offset, block, sample, step):
    """The words of elements 4 * block ... 4 * block + 3 of one sample at one step: noise version 1."""
    counter = offset + block.to(tl.uint64)
    return philox(seed, counter.to(tl.uint32), (counter >> 32).to(tl.uint32), sample.to(tl.uint32), step)


@triton.jit
def fold_in_key(seed, offset, data):
    """The seed and offset of a key of its own for each `data`."""
    counter = offset + data.to(tl.uint64)
    zero = counter.to(tl.uint32) * 0
    w0, w1, w2, w3 = philox(seed, counter.to(tl.uint32), (counter >> 32).to(tl.uint32), zero, zero)
    return w0.to(tl.uint64) | (w1.to(tl.uint64) << 32), w2.to(tl.uint64) | (w3.to(tl.uint64) << 32)


@triton.jit
def load_key(key, row, rows, first_sample, BATCHED: tl.constexpr):
    """Seed, offset and sample number of each row, as columns; one seed and offset if all rows share a key."""
    if BATCHED:
        seed = tl.load(key + 2 * row, row < rows, other=0)[:, None]
        offset = tl.load(key + 2 * row + 1, row < rows, other=0)[:, None]
        sample = (row * 0)[:, None]
    else:
        seed = tl.load(key)
        offset = tl.load(key + 1)
        sample = (first_sample + row)[:, None]
    return seed.to(tl.uint64), offset.to(tl.uint64), sample


@triton.jit
def interleave4(a, b, c, d):
    """[R, N] four times -> [R, 4N]: a[0], b[0], c[0], d[0], a[1], ... Each thread keeps what it has."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
