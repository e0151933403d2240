"""Noise version 1 in torch's integer ops, and torch's own draws where there is no key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(seed: Tensor, counter: Tensor, sample: Tensor | int, step: Tensor | int = 0) -> Tensor:
    """Four words in int64 [..., 4] of Philox4x32-10: `seed` and `counter` are 64-bit, in int64."""
    c = [
        counter & _MASK,
        (counter >> 32) & _MASK,
        sample + torch.zeros_like(counter),
        step + torch.zeros_like(counter),
    ]
    k = [seed & _MASK, (seed >> 32) & _MASK]
    for _ in range(10):
        # int64 products wrap, and their bits are those of the unsigned product.
        p0, p1 = c[0] * _MULTIPLIERS[0], c[2] * _MULTIPLIERS[1]
        c = [
            ((p1 >> 32) & _MASK) ^ c[1] ^ k[0],
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c[3] ^ k[1],
            p0 & _MASK,
        ]
        k = [(k[0] + _WEYL[0]) & _MASK, (k[1] + _WEYL[1]) & _MASK]
    return torch.stack(c, -1)


def words(size: Sequence[int], key: Tensor, first_sample: int = 0, step: int | Tensor = 0) -> Tensor:
    """The word of each element of a tensor of this size; `step` may be one for each row."""
    size = tuple(size)
    rows = size[0] if len(size) > 1 else 1
    count = math.prod(size[1:] if len(size) > 1 else size)
    blocks = torch.arange((count + 3) // 4, device=key.device)
    if key.dim() == 1:
        seed, offset = key[0], key[1]
        sample = torch.arange(rows, device=key.device)[:, None] + first_sample
    else:
        seed, offset = key[:, :1], key[:, 1:]
        sample = torch.zeros((rows, 1), dtype=torch.int64, device=key.device)
    counter = (offset + blocks).expand(rows, -1)
    steps = step.reshape(-1, 1) if isinstance(step, Tensor) else step
    block_words = philox(seed, counter, sample & _MASK, steps & _MASK)
    return block_words.flatten(-2)[:, :count].reshape(size)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    w = philox(key[..., 0], key[..., 1] + data, 0)
    return torch.stack([w[..., 0] | w[..., 1] << 32, w[..., 2] | w[..., 3] << 32], -1)


def split(key: Tensor, n: int = 2) -> Tensor:
    return fold_in(key, torch.arange(n, device=key.device).view(-1, *[1] * (key.dim() - 1)))


def uniform_of(word: Tensor) -> Tensor:
    """(word + 1/2) 2^-32: the product is exact, so two float32 operations round as one fma does."""
    return word.to(torch.float32) * 2.0**-32 + 2.0**-33


def exponential_of(word: Tensor) -> Tensor:
    """-log u in float64, from the float32 uniform that is the smaller of u and 1 - u."""
    lower = -torch.log(uniform_of(word).double())
    upper = -torch.log1p(-uniform_of(word ^ _MASK).double())
    return torch.where(word >= 2**31, upper, lower)


def gumbel_of(word: Tensor) -> Tensor:
    """-log(-log u)."""
    return -torch.log(exponential_of(word))


def logistic_of(word: Tensor) -> Tensor:
    """log u - log(1 - u)."""
    return exponential_of(word ^ _MASK) - exponential_of(word)


def laplace_of(word: Tensor) -> Tensor:
    """log 2 u, and -log(2 - 2 u) for u > 1/2, from the 31 bits of the smaller of u and 1 - u."""
    half = torch.where(word < 2**31, word, word ^ _MASK)
    lower = (half.to(torch.float32) * 2.0**-31 + 2.0**-32).double()
    upper = ((2**31 - 1 - half).to(torch.float32) * 2.0**-31 + 2.0**-32).double()
    magnitude = torch.where(half < 2**30, -torch.log(lower), -torch.log1p(-upper))
    return torch.where(word < 2**31, -magnitude, magnitude)


def normals_of(word: Tensor) -> Tensor:
    """Box-Muller in float64 on the float32 uniforms: [rows, 4 n] words to [rows, 4 n] normals."""
    u = uniform_of(word).double().unflatten(-1, (-1, 2))
    radius, angle = torch.sqrt(-2 * torch.log(u[..., 0])), 2 * torch.pi * u[..., 1]
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1).flatten(-2)


def bits(
    *size: int | Sequence[int],
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    shape = _size(size)
    if key is None:
        return torch.randint(0, 2**32, shape, generator=generator, device=device)
    return words(shape, key, first_sample)


def uniform(
    *size: int | Sequence[int],
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    shape = _size(size)
    if key is None:
        return torch.rand(shape, generator=generator, dtype=dtype, device=device)
    return uniform_of(words(shape, key, first_sample)).to(dtype or torch.get_default_dtype())


def normal(
    *size: int | Sequence[int],
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    shape = _size(size)
    if key is None:
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)
    return normal_at(shape, key, first_sample, 0).to(dtype or torch.get_default_dtype())


def normal_at(size: Sequence[int], key: Tensor, first_sample: int, step: int | Tensor) -> Tensor:
    """float32 normals of a step, or of each row's own."""
    shape = tuple(size)
    rows = shape[0] if len(shape) > 1 else 1
    count = math.prod(shape[1:] if len(shape) > 1 else shape)
    whole = words((rows, (count + 3) // 4 * 4), key, first_sample, step)
    return normals_of(whole)[:, :count].reshape(shape).float()


def exponential(
    *size: int | Sequence[int],
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    shape = _size(size)
    if key is None:
        return torch.empty(shape, dtype=dtype, device=device).exponential_(generator=generator)
    return exponential_of(words(shape, key, first_sample)).float().to(dtype or torch.get_default_dtype())


def gumbel(
    *size: int | Sequence[int],
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    shape = _size(size)
    if key is None:
        return -torch.empty(shape, dtype=dtype, device=device).exponential_(generator=generator).log()
    return gumbel_of(words(shape, key, first_sample)).float().to(dtype or torch.get_default_dtype())


def bernoulli(
    probs: Tensor,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    dtype = dtype or probs.dtype
    if key is None:
        return torch.bernoulli(probs, generator=generator).to(dtype)
    threshold = torch.ceil(probs.double() * 2.0**32)
    draw = (words(probs.shape, key, first_sample) < threshold).to(dtype)
    return torch.where(probs.isnan(), probs.to(dtype), draw) if dtype.is_floating_point else draw


def randint(
    low: int,
    high: int,
    size: Sequence[int],
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    if key is None:
        return torch.randint(low, high, size, generator=generator, device=device)
    span = high - low
    word, extension = words(size, key, first_sample), words(size, fold_in(key, 1), first_sample)
    # (word 2^32 + extension) span 2^-64, in pieces that fit 64 bits; for span = 2^32 the product would not.
    if span == 2**32:
        return low + word
    product = _unsigned_product(word, span)
    carry = (product[1] + _unsigned_product(extension, span)[0]) >> 32
    return low + product[0] + carry


def categorical(
    logits: Tensor,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    if key is None:
        rows = torch.softmax(logits, -1).flatten(0, -2) if logits.dim() > 1 else torch.softmax(logits, -1)
        return torch.multinomial(rows, 1, generator=generator).reshape(logits.shape[:-1])
    noise = gumbel(logits.shape, key=key, first_sample=first_sample, dtype=torch.float32)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.argmax(logits.to(wide) + noise.to(wide), -1)


def _unsigned_product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """(high, low) 32-bit halves of word * factor, both below 2^32."""
    product = word * factor  # wraps; its bits are those of the unsigned product
    return (product >> 32) & _MASK, product & _MASK


def _size(size: Sequence[Any]) -> tuple[int, ...]:
    return tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)
