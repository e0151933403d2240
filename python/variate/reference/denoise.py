"""A denoising step as an expert writes it in PyTorch: a table of coefficients, and one expression for every solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._table import COLUMN, Table
from . import random


class Denoised(NamedTuple):
    """What a denoising step returns: ``prev``, the sample of the next step, and what else was asked for, None else."""

    prev: Tensor
    denoised: Tensor | None = None
    saved: Tensor | None = None
    state: Tensor | None = None
    next: Tensor | None = None


def denoise_step(
    sample: Tensor,
    model_output: Tensor,
    table: Table,
    row: int | Tensor,
    *,
    unconditional: Tensor | None = None,
    guidance: float | Tensor | None = None,
    rescale: float = 0.0,
    variance: Tensor | None = None,
    history: Sequence[Tensor] = (),
    state: Tensor | None = None,
    noise: Tensor | None = None,
    outputs: Sequence[str] = (),
    copies: int = 1,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    first_step: int | Tensor = 0,
) -> Denoised:
    if guidance is not None and unconditional is None:
        unconditional, model_output = model_output.chunk(2)
    dtype = sample.dtype if sample.dtype == torch.float64 else torch.float32
    x, output = sample.to(dtype), model_output.to(dtype)
    u = None if unconditional is None else unconditional.to(dtype)
    m = output if u is None else u + (1.0 if guidance is None else guidance) * (output - u)
    if rescale > 0 and u is not None:
        inner = tuple(range(1, m.dim())) if m.dim() > 1 else (0,)
        ratio = output.std(inner, keepdim=True) / m.std(inner, keepdim=True)
        m = m * (rescale * ratio + (1 - rescale))

    coefficients = _coefficients(table, row, x)
    drawn = noise
    if drawn is None and _reads(table, "x0_noise", "prev_noise"):
        drawn = _normal(sample, key, generator, first_sample, first_step)
    _advance(first_step)
    n = None if drawn is None else drawn.to(dtype)
    past = {f"history_{i}": h.to(dtype) for i, h in enumerate(history)}
    if state is not None:
        past["state"] = state.to(dtype)
    inputs = {"sample": x, "output": m, "noise": n, **past}

    def combine(name: str, *terms: str) -> Tensor:
        total = torch.zeros_like(x)
        for term in terms:
            column, value = f"{name}_{term}", inputs.get(term)
            if value is None or column not in COLUMN or not _reads(table, column):
                continue
            c = coefficients[COLUMN[column]]
            total = torch.where(c == 0, total, total + c * value)
        return total

    if variance is not None and n is not None:
        inputs["noise"] = n * _scale(table, coefficients, variance.to(dtype))
    x0 = _clip(combine("x0", "sample", "output", "noise"), table)
    inputs["x0"] = x0
    everything = ("sample", "output", "x0", "state", "history_0", "history_1", "history_2", "noise")
    prev = combine("prev", *everything)
    wanted = set(outputs)
    scaled = None
    if "next" in wanted:
        scaled = (prev * coefficients[COLUMN["next_scale"]]).to(model_output.dtype)
        scaled = torch.cat([scaled] * copies) if copies > 1 else scaled
    return Denoised(
        prev.to(sample.dtype),
        combine("denoised", "sample", "x0").to(sample.dtype) if "denoised" in wanted else None,
        combine("saved", "sample", "output", "x0").to(sample.dtype) if "saved" in wanted else None,
        combine("state", *everything[:-1]).to(sample.dtype) if "state" in wanted else None,
        scaled,
    )


def _reads(table: Table, *columns: str) -> bool:
    return any(table.mask >> COLUMN[column] & 1 for column in columns)


def _coefficients(table: Table, row: int | Tensor, x: Tensor) -> list[Tensor]:
    """Each coefficient, in a shape that broadcasts with x; NaN where the row is outside the table."""
    rows = row if isinstance(row, Tensor) else torch.zeros((), dtype=torch.int64, device=x.device) + row
    valid = (rows >= 0) & (rows < len(table))
    values = table.coefficients.to(x.device)[rows.clamp(0, len(table) - 1)]
    values = torch.where(valid[..., None], values, torch.nan).to(x.dtype)
    per_element = values.movedim(-1, 0)
    shape = (*rows.shape, *[1] * (x.dim() - rows.dim()))
    return [c.reshape(shape) for c in per_element]


def _scale(table: Table, coefficients: list[Tensor], v: Tensor) -> Tensor:
    if table.variance == "learned":
        return v.sqrt()
    least, most = coefficients[COLUMN["min_log_variance"]], coefficients[COLUMN["max_log_variance"]]
    return ((least + (v + 1) / 2 * (most - least)) / 2).exp()


def _clip(x0: Tensor, table: Table) -> Tensor:
    if table.quantile is not None:
        rows = x0.flatten(1) if x0.dim() > 1 else x0.reshape(1, -1)
        q = _quantile(rows.abs(), table.quantile).clamp(min=1)
        q = (q if table.clip is None else q.clamp(max=table.clip)).reshape(-1, *[1] * (max(x0.dim(), 2) - 1))
        return (torch.minimum(torch.maximum(x0, -q), q) / q).reshape(x0.shape)
    return x0 if table.clip is None else x0.clamp(-table.clip, table.clip)


def _quantile(rows: Tensor, q: float) -> Tensor:
    """torch.quantile along dimension 1, which refuses rows of more than 2^24 elements."""
    at = q * (rows.shape[1] - 1)
    below = int(at)
    ordered = rows.sort(dim=1).values  # NaN last
    low, high = ordered[:, below], ordered[:, min(below + 1, rows.shape[1] - 1)]
    return torch.where(ordered[:, -1].isnan(), torch.nan, torch.lerp(low, high, at - below))


def _normal(
    sample: Tensor, key: Tensor | None, generator: torch.Generator | None, first_sample: int, first_step: int | Tensor
) -> Tensor:
    if key is None:
        return torch.randn(sample.shape, generator=generator, dtype=torch.float32, device=sample.device)
    steps = first_step
    if isinstance(steps, Tensor):
        steps = steps[..., 0]
    return random.normal_at(sample.shape, key, first_sample, steps)


def _advance(first_step: int | Tensor) -> None:
    if isinstance(first_step, Tensor):
        first_step[..., 0] += 1
