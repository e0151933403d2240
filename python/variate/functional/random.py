"""Keys, and what is drawn from them: noise version 1.

A key is an int64 tensor (seed, offset). Element e of sample s of a draw is a function of the key, s and e alone: word
e % 4 of Philox4x32-10 at the counter (offset + e // 4, s, 0) under the seed. Dimension 0 of a tensor with two or more
is the sample; the others together are its elements, in row-major order; any other tensor is one sample. So a draw does
not depend on the device, the number of threads, the dtype, or how a batch is split: `first_sample` says where a part
starts.

A key of shape [B, 2] gives each of B samples a stream of its own, as if it were drawn by itself.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate, _key

__all__ = [
    "advance_",
    "bernoulli",
    "bits",
    "categorical",
    "exponential",
    "fold_in",
    "gumbel",
    "key",
    "normal",
    "randint",
    "split",
    "uniform",
]


def key(seed: int, offset: int = 0, device: torch.device | str | None = None) -> Tensor:
    """(seed, offset) as an int64 tensor [2]; both are taken modulo 2^64.

    Raises:
        TypeError: seed or offset is not an int.
    """
    for name, value in (("seed", seed), ("offset", offset)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    return torch.tensor([_as_signed(seed), _as_signed(offset)], dtype=torch.int64, device=device)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """The key (w0 + 2^32 w1, w2 + 2^32 w3), w being the words of `key` at the counter offset + data.

    Args:
        key: int64 [..., 2].
        data: an int, or an int64 tensor that broadcasts with the leading dimensions of key: each distinct number gives
            an independent key.

    Returns:
        int64 [..., 2].

    Equal to ``torch.func._random.fold_in``.
    """
    key = _key.as_int64(key)
    if key.dim() == 0 or key.shape[-1] != 2:
        raise ValueError(f"key: expected shape (..., 2), got {tuple(key.shape)}")
    if isinstance(data, Tensor):
        if data.dtype != torch.int64:
            raise TypeError(f"data: expected int64, got {str(data.dtype).removeprefix('torch.')}")
        _checks.same_device("data", data, "key", key)
    elif isinstance(data, (int, torch.SymInt)) and not isinstance(data, bool):
        data = torch.full((), _as_signed(data) if isinstance(data, int) else data, device=key.device)
    else:
        raise TypeError(f"data: expected an int or an int64 tensor, got {type(data).__name__}")
    try:  # torch.broadcast_shapes would import the compiler's symbols
        shape = torch.broadcast_tensors(key.select(-1, 0), data)[0].shape
    except RuntimeError:
        raise ValueError(
            f"data: expected a shape that broadcasts with {tuple(key.shape[:-1])}, got {tuple(data.shape)}"
        ) from None
    op = _backend.select("fold_in", key)
    if op is None or _gate.transformed():
        return reference.random.fold_in(key, data)
    return op(key.expand(*shape, 2), data.expand(shape))


def split(key: Tensor, n: int = 2) -> Tensor:
    """n independent keys: fold_in(key, i) for i < n, int64 [n, ..., 2]. Equal to ``torch.func._random.split``."""
    if isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) or n < 0:
        raise ValueError(f"n: expected an int of at least 0, got {n!r}")
    key = _key.as_int64(key)
    index = torch.arange(n, device=key.device)
    return fold_in(key, index.view(-1, *[1] * (key.dim() - 1)))


def advance_(key: Tensor, blocks: int | Tensor) -> Tensor:
    """offset += blocks, in place: where the next draw of a captured graph starts. A draw of n elements a sample takes
    ceil(n / 4) blocks. Returns key."""
    if _key.as_int64(key) is not key:
        raise TypeError("key: expected int64, as it is changed in place")
    key.select(-1, 1).add_(blocks)
    return key


def bits(
    *size: int | Sequence[int],
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """The 32-bit words themselves, as int64 in [0, 2^32).

    Args:
        size: ints, or one sequence of them, as torch.rand takes.
        key: int64 [2], or [B, 2] for a stream per sample; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of row 0 in the whole batch.
        device: that of the key where one is given, else torch's default.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device, by name.
        RuntimeError: under torch.func without a key.
    """
    out = _new(size, torch.int64, device, key)
    op = _backend.select("bits", out)
    if op is None or _gate.transformed_noise("bits", key):
        key = _key.check(key, generator, first_sample, out)
        return reference.random.bits(*size, key=key, generator=generator, first_sample=first_sample, device=out.device)
    op(out, _key.resolve(key, generator, first_sample, out), first_sample)
    return out


def uniform(
    *size: int | Sequence[int],
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """u = (word + 1/2) 2^-32 rounded to float32: uniform over (0, 1], 1 itself with probability 2^-25.

    `dtype` is torch's default where it is left out; the draw is float32, widened or rounded to it. The other arguments
    and the errors are those of :func:`bits`.
    """
    return _draw("uniform", size, key, generator, first_sample, dtype, device)


def normal(
    *size: int | Sequence[int],
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """sqrt(-2 log u_0) (cos 2 pi u_1, sin 2 pi u_1): standard normals. Words 0 and 1 give elements 0 and 1 of a block,
    words 2 and 3 the others; |x| < 6.77.

    Arguments and errors: :func:`uniform` and :func:`bits`. Source: Box and Muller 1958.
    """
    return _draw("normal", size, key, generator, first_sample, dtype, device)


def exponential(
    *size: int | Sequence[int],
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """-log u: the exponential distribution of rate 1, always positive. For u > 1/2 it is -log1p(-u(~word)), which keeps
    the precision of small values. Arguments and errors: :func:`uniform` and :func:`bits`."""
    return _draw("exponential", size, key, generator, first_sample, dtype, device)


def gumbel(
    *size: int | Sequence[int],
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """-log(-log u): the standard Gumbel distribution. Arguments and errors: :func:`uniform` and :func:`bits`."""
    return _draw("gumbel", size, key, generator, first_sample, dtype, device)


def bernoulli(
    probs: Tensor,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """1 where word < ceil(probs 2^32), else 0: never at 0, always at 1, exact to 2^-32.

    Args:
        probs: [B, ...] floating, in [0, 1]; below is taken as 0 and above as 1, and reported under
            ``variate.set_debug(True)``. A NaN gives a NaN.
        dtype: that of the result: a floating one, uint8, bool or int64; that of probs where it is left out.

    The other arguments and the errors are those of :func:`bits`.
    """
    _checks.floating("probs", probs)
    _checks.unit_interval("probs", probs)
    if dtype is not None and dtype not in (torch.uint8, torch.bool, torch.int64):
        _checks.floating_dtype(dtype)
    op = _backend.select("bernoulli", probs)
    if op is None or _gate.transformed_noise("bernoulli", key):
        key = _key.check(key, generator, first_sample, probs)
        return reference.random.bernoulli(probs, key=key, generator=generator, first_sample=first_sample, dtype=dtype)
    key = _key.resolve(key, generator, first_sample, probs)
    out = torch.empty(probs.shape, dtype=dtype or probs.dtype, device=probs.device)
    op(out, probs.detach() if probs.requires_grad else probs, key, first_sample)
    return out


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
    """Integers uniform over low ... high - 1, int64: low + floor(word (high - low) 2^-32), where a word of
    fold_in(key, 1) extends the fraction to 64 bits. Each has its probability to a relative 2^-32.

    Args:
        low, high: ints with 1 <= high - low <= 2^32.
        size: a sequence of ints.

    The other arguments and the errors are those of :func:`bits`.
    """
    if type(low) is not int or type(high) is not int:
        for name, value in (("low", low), ("high", high)):
            if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not 1 <= high - low <= 2**32 or low < -(2**63) or high > 2**63 - 1:
        raise ValueError(f"high: expected low < high <= low + 2^32, as int64, got low = {low}, high = {high}")
    out = _new((size,), torch.int64, device, key)
    op = _backend.select("randint", out)
    if op is None or _gate.transformed_noise("randint", key):
        key = _key.check(key, generator, first_sample, out)
        return reference.random.randint(
            low, high, size, key=key, generator=generator, first_sample=first_sample, device=out.device
        )
    op(out, low, high, _key.resolve(key, generator, first_sample, out), first_sample)
    return out


def categorical(
    logits: Tensor,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    """argmax_k (logits_k + gumbel_k): index k with probability softmax(logits)_k.

    Args:
        logits: [..., K] floating; -inf excludes a category. Element k of the noise belongs to logit k.

    Returns:
        int64 [...]: the first of equal maxima; a row with a NaN gives the index of the first NaN.

    The other arguments and the errors are those of :func:`bits`. Source: Gumbel 1954; Maddison, Tarlow, Minka 2014.
    """
    _checks.floating("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., K) with K of at least 1, got {tuple(logits.shape)}")
    op = _backend.select("categorical", logits)
    if op is None or _gate.transformed_noise("categorical", key):
        key = _key.check(key, generator, first_sample, logits)
        return reference.random.categorical(logits, key=key, generator=generator, first_sample=first_sample)
    key = _key.resolve(key, generator, first_sample, logits)
    return op(logits.detach(), key, first_sample)


def _as_signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def _new(
    size: Sequence[Any], dtype: torch.dtype | None, device: torch.device | str | None, key: Tensor | None
) -> Tensor:
    """An empty tensor, on the device of the key unless another is named."""
    try:
        if dtype is None and device is None and key is None:
            return torch.empty(*size)
        if device is None and isinstance(key, Tensor):
            device = key.device
        return torch.empty(*size, dtype=dtype, device=device)
    except TypeError:
        raise TypeError(f"size: expected ints, or one sequence of ints, got {size!r}") from None
    except RuntimeError as error:
        if any(isinstance(n, int) and n < 0 for n in torch.utils._pytree.tree_leaves(size)):
            raise ValueError(f"size: expected ints of at least 0, got {size!r}") from None
        raise error


def _draw(
    name: str,
    size: Sequence[Any],
    key: Tensor | None,
    generator: torch.Generator | None,
    first_sample: int,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    out = _new(size, dtype, device, key)
    if out.dtype not in _checks.FLOATING:
        _checks.floating_dtype(out.dtype)
    op = _backend.select(name, out)
    if op is None or _gate.transformed_noise(name, key):
        key = _key.check(key, generator, first_sample, out)
        function = getattr(reference.random, name)
        options = {
            "generator": generator,
            "first_sample": first_sample,
            "dtype": out.dtype,
            "device": out.device,
        }
        return function(*size, key=key, **options)
    if key is None and generator is None and first_sample == 0 and out.is_cpu:
        key = _key.fresh()  # what resolve comes to, in fewer calls: torch's own small draws are quick
    else:
        key = _key.resolve(key, generator, first_sample, out)
    op(out, key, first_sample)
    return out


def _fake_fill(out: Tensor, *arguments: Any) -> None:
    return None


for _name in ("bits", "uniform", "normal", "exponential", "gumbel", "bernoulli", "randint"):
    _backend.register(_name)(_fake_fill)


@_backend.register("categorical")
def _(logits: Tensor, key: Tensor, first_sample: int) -> Tensor:
    return logits.new_empty(logits.shape[:-1], dtype=torch.int64)


@_backend.register("fold_in")
def _(keys: Tensor, data: Tensor) -> Tensor:
    return keys.new_empty(keys.shape)
