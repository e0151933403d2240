"""How kernels cut [rows, cols] into tiles, launch, and sum rows in an order that depends on `cols` alone.

A program handles a tile of TILE elements: several short rows, or a piece of a long one. A reducing program
adds up to STEPS tiles of its rows, one to the next, and then neighbours pairwise, so the sum of a row is one
fixed tree whatever the layout, the alignment, the dtype or the number of rows. Longer rows leave one partial
sum per program, which are summed in the same way.

A kernel takes a tensor as a view (pointer, row stride, column stride) or None. Outputs are contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 1024
STEPS = 4


def rows_and_cols(size: Sequence[int]) -> tuple[int, int]:
    """Samples and elements per sample; a tensor of one dimension or none is one sample."""
    return (size[0], math.prod(size[1:])) if len(size) > 1 else (1, math.prod(size))


def view(tensor: Tensor | None, rows: int) -> tuple[Tensor, int, int] | None:
    """A tensor as [rows, cols]; copied only where its inner dimensions have no common stride."""
    if tensor is None:
        return None
    tensor = tensor.reshape(rows, -1)
    return (tensor, *tensor.stride())


def compute_dtype(*tensors: Tensor | None) -> tuple[torch.dtype, tl.dtype]:
    """What a kernel computes in, for torch and for Triton: float64 if any tensor is, else float32."""
    double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return (torch.float64, tl.float64) if double else (torch.float32, tl.float32)


def scalar(value: Tensor | float | None, dtype: torch.dtype, device: torch.device):
    """A number as kernels take it: None, a float that travels with the launch, or a tensor on their device."""
    if isinstance(value, Tensor) and value.device == device:
        return value
    if value is None:
        return None
    value = float(value)  # of the host
    # A kernel's float argument is a float32.
    return torch.full((), value, dtype=dtype, device=device) if dtype == torch.float64 else value


def int32(x: int) -> int:
    """The low 32 bits, as what Triton takes for an int32."""
    return (x + 2**31) % 2**32 - 2**31


def per_chain(x: Tensor) -> tuple[Tensor, int]:
    """A number for all chains, or one for each, and its stride."""
    return x, x.stride(0) if x.numel() > 1 else 0


def launch(kernel, programs: int, *args, device: torch.device, layers: int = 1, warps: int = 4, **constants) -> None:
    """Run a grid of `layers` times `programs`. Nothing is contracted, tuned or waited for."""
    if constants.get("DTYPE") == tl.float64:  # needs twice the registers an element
        warps *= 2
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs, layers)](*args, **constants, num_warps=warps, enable_fp_fusion=False)


def tile_shape(cols: int) -> dict[str, int]:
    """The constants ROWS and COLS; COLS is a multiple of 4, so that no Philox counter straddles two tiles."""
    tile_cols = min(TILE, max(4, triton.next_power_of_2(cols)))
    return {"ROWS": TILE // tile_cols, "COLS": tile_cols}


def launch_tiles(kernel, rows: int, cols: int, *args, device: torch.device, **constants) -> None:
    """One program per tile. The kernel's last arguments are rows, cols, ROWS, COLS and its own constants."""
    tile = tile_shape(cols)
    programs = triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(cols, tile["COLS"])
    launch(kernel, programs, *args, rows, cols, device=device, **tile, **constants)


def launch_row_sums(kernel, rows: int, cols: int, *args, out: Tensor, **constants) -> None:
    """One program per STEPS tiles. The kernel writes [rows, chunks] partial sums; their sums are `out`."""
    tile = tile_shape(cols)
    tiles = triton.cdiv(cols, tile["COLS"])
    steps = triton.cdiv(tiles, triton.cdiv(tiles, STEPS))  # evenly: an empty tile costs as much as a full one
    chunks = triton.cdiv(tiles, steps)
    partial = out if chunks == 1 else out.new_empty(rows, chunks)
    programs = triton.cdiv(rows, tile["ROWS"]) * chunks
    launch(kernel, programs, *args, partial, rows, cols, device=out.device, **tile, STEPS=steps, **constants)
    if chunks > 1:
        launch_row_sums(_row_sums_kernel, rows, chunks, view(partial, rows), out=out)


def launch_terms(kernel, rows: int, cols: int, *args, out: Tensor, elementwise: bool, **constants) -> None:
    """launch_row_sums; or launch_tiles, where each term is a result."""
    if elementwise:
        launch_tiles(kernel, rows, cols, *args, out, device=out.device, STEPS=1, ELEMENTWISE=True, **constants)
    else:
        launch_row_sums(kernel, rows, cols, *args, out=out, ELEMENTWISE=False, **constants)


def gradient_view(grad: Tensor, size: Sequence[int]) -> tuple[Tensor, int, int] | tuple[Tensor, int]:
    """The gradient of a result of launch_terms: one number per element of `size`, else per row."""
    rows, _ = rows_and_cols(size)
    return view(grad, rows) if grad.shape == torch.Size(size) else (grad, grad.stride(0))


@triton.jit
def tile_start(cols, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """First row and first column, in 64 bits, of a program whose share is ROWS rows by WIDTH columns."""
    shares = (cols - 1) // WIDTH + 1
    program = tl.program_id(0)
    return (program // shares).to(tl.int64) * ROWS, (program % shares).to(tl.int64) * WIDTH


@triton.jit
def tile_mask(first_row, first_col, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS]: what of a tile is inside the tensor."""
    row = first_row + tl.arange(0, ROWS)
    col = first_col + tl.arange(0, COLS)
    return (row < rows)[:, None] & (col < cols)[None, :]


@triton.jit
def tile_pointers(x, first_row, first_col, mask):
    """The addresses of a tile of a view."""
    row = tl.arange(0, mask.shape[0]).to(tl.int64)[:, None]
    col = tl.arange(0, mask.shape[1]).to(tl.int64)[None, :]
    return x[0] + (first_row * x[1] + first_col * x[2]) + row * x[1] + col * x[2]


@triton.jit
def load_tile(x, first_row, first_col, mask, DTYPE: tl.constexpr):
    """A tile of a view as DTYPE, 0 outside the mask. No view is a tensor of zeros."""
    if x is None:
        return tl.zeros(mask.shape, DTYPE)
    else:
        return tl.load(tile_pointers(x, first_row, first_col, mask), mask, other=0).to(DTYPE)


@triton.jit
def load_column(x, first_row, rows, ROWS: tl.constexpr, DTYPE: tl.constexpr):
    """One value a row, [ROWS, 1], of x = (pointer, stride)."""
    row = first_row + tl.arange(0, ROWS)
    return tl.load(x[0] + row * x[1], row < rows, other=0).to(DTYPE)[:, None]


@triton.jit
def load_gradient(x, first_row, first_col, rows, mask, DTYPE: tl.constexpr):
    """What gradient_view made: a tile, or a column."""
    if len(x) == 2:
        return load_column(x, first_row, rows, mask.shape[0], DTYPE)
    else:
        return load_tile(x, first_row, first_col, mask, DTYPE)


@triton.jit
def store_tile(out, cols, first_row, first_col, mask, value):
    """Store to a contiguous [rows, cols], rounded to its dtype, to 16 bits by way of float32."""
    if value.dtype == tl.float64 and out.dtype.element_ty.primitive_bitwidth == 16:
        value = value.to(tl.float32)
    tl.store(tile_pointers((out, cols, 1), first_row, first_col, mask), value, mask)


@triton.constexpr_function
def _log2(n):
    return n.bit_length() - 1


@triton.jit
def tree_sum(x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """[ROWS, COLS] -> [ROWS]: neighbours pairwise, again and again. Sums of two know only one order."""
    for level in tl.static_range(_log2(COLS)):
        x = tl.sum(tl.reshape(x, [ROWS, COLS >> (level + 1), 2]), axis=2)
    return tl.reshape(x, [ROWS])


@triton.jit
def store_row_sums(out, x, first_row, first_col, rows, cols, STEPS: tl.constexpr):
    """The end of a reducing kernel: the sums of the rows of its tile x go to out [rows, chunks]."""
    ROWS: tl.constexpr = x.shape[0]
    COLS: tl.constexpr = x.shape[1]
    WIDTH: tl.constexpr = COLS * STEPS
    row = first_row + tl.arange(0, ROWS)
    pointers = out + row * ((cols - 1) // WIDTH + 1) + first_col // WIDTH
    tl.store(pointers, tree_sum(x, ROWS, COLS), row < rows)


@triton.jit
def add_terms(out, total, terms, cols, first_row, first_col, mask, ELEMENTWISE: tl.constexpr):
    """One step of a kernel of launch_terms: the terms of a tile are stored, or added to `total`."""
    if ELEMENTWISE:
        store_tile(out, cols, first_row, first_col, mask, terms)
        return total
    else:
        return total + tl.where(mask, terms, 0.0)


@triton.jit
def store_terms(out, total, first_row, first_col, rows, cols, STEPS: tl.constexpr, ELEMENTWISE: tl.constexpr):
    """The end of a kernel of launch_terms."""
    if not ELEMENTWISE:
        store_row_sums(out, total, first_row, first_col, rows, cols, STEPS)


@triton.jit
def _row_sums_kernel(x, out, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr, STEPS: tl.constexpr):
    """out[r, chunk] = a sum of x[r, :]."""
    DTYPE: tl.constexpr = out.dtype.element_ty
    first_row, first_col = tile_start(cols, ROWS, COLS * STEPS)
    total = tl.zeros([ROWS, COLS], DTYPE)
    for step in range(STEPS):
        col = first_col + step * COLS
        total += load_tile(x, first_row, col, tile_mask(first_row, col, rows, cols, ROWS, COLS), DTYPE)
    store_row_sums(out, total, first_row, first_col, rows, cols, STEPS)
