"""Exponential moving averages of many tensors in one launch; the twin of variate/math/ema.hpp.

A program takes a chunk of one tensor, and its averages in every profile: a table in the device's memory says where they
are. Tensors of other dtypes have a launch of their own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import launch

CHUNK = 4096
ALIGNMENT = 16  # bytes, for vector loads
MOST_TABLES = 16

TYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}

# Where the tensors are, by their addresses and sizes: a model's stay where they are from step to step, so a step copies
# nothing to the device and may be captured.
_tables: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()


@triton.jit
def address(x, ALIGNED: tl.constexpr, TYPE: tl.constexpr):
    """The pointer that a table holds as an integer."""
    pointer = tl.load(x).to(tl.pointer_type(TYPE))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def update_chunk(entry, decay, inside, CHUNK: tl.constexpr, PROFILES: tl.constexpr, ALIGNED: tl.constexpr,
                 AVERAGE: tl.constexpr, PARAMETER: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """a <- fma(1 - decay, p - a, a), or fma(-decay, p - a, p) where that is nearer, for one chunk of each profile."""
    at = tl.arange(0, CHUNK)
    p = tl.load(address(entry + 1, ALIGNED, PARAMETER) + at, inside).to(DTYPE)
    for k in tl.static_range(PROFILES):
        average = address(entry + 2 + k, ALIGNED, AVERAGE) + at
        a = tl.load(average, inside).to(DTYPE)
        keep = tl.load(decay + k).to(tl.float64)
        weight = 1.0 - keep
        difference = p - a
        near = tl.fma(tl.zeros([CHUNK], DTYPE) + weight.to(DTYPE), difference, a)
        far = tl.fma(tl.zeros([CHUNK], DTYPE) - keep.to(DTYPE), difference, p)
        value = tl.where(keep > 0.5, near, far)
        if DTYPE == tl.float64 and AVERAGE.primitive_bitwidth == 16:
            value = value.to(tl.float32)
        tl.store(average, value.to(AVERAGE), inside)


@triton.jit
def _ema_update_kernel(table, decay, CHUNK: tl.constexpr, PROFILES: tl.constexpr, ALIGNED: tl.constexpr,
                       AVERAGE: tl.constexpr, PARAMETER: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """The chunk of a program; a whole one without a mask, which would make each access one by one."""
    entry = table + tl.program_id(0).to(tl.int64) * (2 + PROFILES)
    count = tl.load(entry)
    if count == CHUNK:
        update_chunk(entry, decay, None, CHUNK, PROFILES, ALIGNED, AVERAGE, PARAMETER, DTYPE)
    else:
        update_chunk(entry, decay, tl.arange(0, CHUNK) < count, CHUNK, PROFILES, ALIGNED, AVERAGE, PARAMETER, DTYPE)


def ema_update_(averages: Sequence[Tensor], parameters: Sequence[Tensor], decay: Tensor) -> None:
    """variate::ema_update_"""
    tensors, profiles = len(parameters), decay.numel()
    groups: dict[tuple[torch.dtype, torch.dtype, int], list[tuple[Tensor, ...]]] = {}
    copies: list[tuple[Tensor, Tensor]] = []
    for i, parameter in enumerate(parameters):
        if parameter.numel() == 0:
            continue
        own = [averages[k * tensors + i] for k in range(profiles)]
        parameter, own = _flat(parameter, own, copies)
        if len({average.dtype for average in own}) == 1:
            groups.setdefault((own[0].dtype, parameter.dtype, -1), []).append((parameter, *own))
        else:
            for k, average in enumerate(own):
                groups.setdefault((average.dtype, parameter.dtype, k), []).append((parameter, average))
    for (average_dtype, parameter_dtype, profile), rows in groups.items():
        device = rows[0][0].device
        table, aligned = _table(rows, device)
        double = average_dtype == torch.float64
        launch(
            _ema_update_kernel, len(table), table, decay if profile < 0 else decay[profile:], device=device,
            CHUNK=CHUNK, PROFILES=len(rows[0]) - 1, ALIGNED=aligned, AVERAGE=TYPES[average_dtype],
            PARAMETER=TYPES[parameter_dtype], DTYPE=tl.float64 if double else tl.float32,
        )  # fmt: skip
    for average, copy in copies:
        average.copy_(copy)


def _flat(
    parameter: Tensor, averages: list[Tensor], copies: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """The same elements one after the other, in one order: the tensors themselves where they lie so."""
    same = all(average.stride() == parameter.stride() for average in averages)
    if same and torch._prims_common.is_non_overlapping_and_dense_or_false(parameter):
        return parameter, averages
    found = []
    for average in averages:
        if average.is_contiguous():
            found.append(average)
        else:
            found.append(average.contiguous())
            copies.append((average, found[-1]))
    return parameter.contiguous(), found


def _table(rows: list[tuple[Tensor, ...]], device: torch.device) -> tuple[Tensor, bool]:
    """int64 [chunks, 2 + profiles]: the elements of each chunk, and the addresses of its parameter and averages."""
    places = tuple(tuple(tensor.data_ptr() for tensor in row) for row in rows)
    sizes = tuple(row[0].numel() for row in rows)
    steps = tuple(tensor.element_size() * CHUNK for tensor in rows[0])
    aligned = all(place % ALIGNMENT == 0 for row in places for place in row)
    key = (device, places, sizes, steps)
    if key not in _tables:
        chunks = [
            [min(CHUNK, size - first), *(p + step * (first // CHUNK) for p, step in zip(row, steps, strict=True))]
            for row, size in zip(places, sizes, strict=True)
            for first in range(0, size, CHUNK)
        ]
        _tables[key] = torch.tensor(chunks, dtype=torch.int64).to(device)
        if len(_tables) > MOST_TABLES:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    return _tables[key], aligned
