"""A step of a diffusion model's sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from .._table import COLUMN, MOST_HISTORY, NOISE, Table
from ..reference.denoise import Denoised
from . import _backend, _checks, _gate, _key

__all__ = ["Denoised", "denoise_step"]

# Bits of the op's `wanted`, in the order of its results.
OUTPUTS = {"denoised": 1, "saved": 2, "state": 4, "next": 8}
TWICE = 16
VARIANCES = {None: 0, "learned": 1, "learned_range": 2}


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
    """prev = a x + b m + c x0 + d s + sum_i e_i h_i + f n  with the coefficients of a row of the table, where

    m = u + guidance (output - u), times rescale std(output) / std(m) + 1 - rescale,
    x0 = what the model says of the clean sample, an affine function of x and m, clipped as the table says,

    x the sample, u the unconditional output, s the state, h_i the history, newest first, n standard normal noise. Every
    sampler of diffusion and flow models is such a table (:mod:`variate.diffusion` has them). One launch, float32 math.

    Args:
        sample: [B, ...] float32, float64 (float64 math), bfloat16 or float16. A 1-D tensor is one sample.
        model_output: like sample, any floating dtype; or [2 B, ...] with `guidance`: the unconditional half first.
        table: the coefficients, on the device of sample (``table.to(device)``).
        row: the row of the table: an integer, or on the device an int64 tensor: 0-d, [B] for a row per sample, or
            [B, T] for a row per token of a sample [B, T, ...].
        unconditional: like sample, where it is not the first half of model_output.
        guidance: the scale of classifier-free guidance: a number, or a 0-d tensor that may change under torch.compile
            and in a captured graph.
        rescale: in [0, 1], how far the guided output is scaled to the conditional one's standard deviation.
        variance: like sample, what the model says of the noise's variance; for tables with ``variance``.
        history: at most 3 tensors like sample, what the last steps ``saved``, newest first.
        state: like sample.
        noise: like sample; drawn in the kernel where it is left out.
        outputs: what else to return: any of "denoised", "saved", "state", "next".
        copies: 2 returns ``next`` as [2 B, ...], twice the batch: the next input of a model that is guided.
        key: int64 [2], or [B, 2] for a stream per sample; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of row 0 in the whole batch.
        first_step: word 3 of the noise's counter, modulo 2^32: an integer, or a counter on the device, int64 [2] =
            (step, 0), or [B, 2] for a step per sample, which the call advances by one.

    Returns:
        ``Denoised(prev, denoised, saved, state, next)``, None for what was not asked for: prev, denoised, saved and
        state like sample, next in the dtype of model_output.

    Raises:
        TypeError: an argument that is not a tensor, or not of a dtype named above.
        ValueError: shapes or devices that do not fit, a row outside the table (on a GPU, where nobody sees it in time,
            its results are NaN), an output of another name, history, state or variance that the row reads and that was
            left out.
        RuntimeError: under torch.func without a key.

    A sample's step depends on that sample alone: not on the batch, its other samples or the device. Gradients, where
    they are asked for, are those of the same expression in plain PyTorch.

    Source: the update rules are in :mod:`variate.diffusion`; guidance: Ho and Salimans 2022; rescale: Lin et al. 2024,
    section 3.4; dynamic thresholding: Saharia et al. 2022, section 2.3.
    """
    if guidance is not None and unconditional is None:
        unconditional, model_output = _halves(sample, model_output)
    given = (model_output, unconditional, variance, state, noise, *history)
    _check(sample, given, table, history, rescale, copies)
    wanted = TWICE if copies == 2 else 0
    for name in outputs:
        if name not in OUTPUTS:
            raise ValueError(f"outputs: expected any of {', '.join(OUTPUTS)}, got {name!r}")
        wanted |= OUTPUTS[name]
    mask = _mask(table, row, sample)
    _check_reads(table, mask, wanted, variance, len(history), state)
    draws = mask & NOISE != 0 and noise is None
    op = _backend.select("denoise_step", sample)
    transformed = _gate.transformed_noise("denoise_step", key) if draws else _gate.transformed()
    if draws:
        key = _key.resolve(key, generator, first_sample, sample)
    if op is None or transformed or _gate.needs_grad(sample, *given):
        return reference.denoise.denoise_step(
            sample,
            model_output,
            table,
            row,
            unconditional=unconditional,
            guidance=guidance,
            rescale=rescale,
            variance=variance,
            history=history,
            state=state,
            noise=noise,
            outputs=outputs,
            copies=copies,
            key=key,
            first_sample=first_sample,
            first_step=first_step,
        )
    step, counter = _number_or_tensor(first_step)
    index, rows = _number_or_tensor(row)
    results = op(
        sample,
        model_output,
        table.coefficients,
        index,
        table.clip or 0.0,
        wanted,
        key if draws else None,
        step,
        *history,
        *(None,) * (MOST_HISTORY - len(history)),
        state,
        first_sample,
        rows,
        counter,
        unconditional,
        None if unconditional is None else _scale(guidance, sample),
        rescale,
        table.quantile or 0.0,
        variance,
        VARIANCES[table.variance],
        noise,
    )
    found = iter(results)
    return Denoised(next(found), *(next(found) if wanted & bit else None for bit in OUTPUTS.values()))


def _halves(sample: Tensor, model_output: Tensor) -> tuple[Tensor, Tensor]:
    if model_output.dim() < 2 or model_output.shape[0] != 2 * sample.shape[0]:
        raise ValueError(
            f"model_output: expected {2 * sample.shape[0]} rows, the unconditional half first, as guidance is given "
            f"and unconditional is not; got shape {tuple(model_output.shape)}"
        )
    unconditional, conditional = model_output.chunk(2)
    return unconditional, conditional


_NAMES = ("model_output", "unconditional", "variance", "state", "noise", "history", "history", "history")


def _check(
    sample: Tensor,
    given: tuple[Tensor | None, ...],
    table: Table,
    history: Sequence[Tensor],
    rescale: float,
    copies: int,
) -> None:
    for name, value in zip(_NAMES, given, strict=False):
        if value is not None or name == "model_output":
            _checks.alike(name, value, "sample", sample)  # type: ignore[arg-type]
    if not isinstance(table, Table):
        raise TypeError(f"table: expected a variate.diffusion.Table, got {type(table).__name__}")
    if table.coefficients.device != sample.device:
        raise ValueError(
            f"table: expected it on the device of sample, {sample.device}, got {table.coefficients.device}; "
            f"table.to({str(sample.device)!r}) moves it"
        )
    if len(history) > MOST_HISTORY:
        raise ValueError(f"history: expected at most {MOST_HISTORY} tensors, got {len(history)}")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale: expected a number in [0, 1], got {rescale}")
    if copies not in (1, 2) or (copies == 2 and sample.dim() < 2):
        raise ValueError(f"copies: expected 1, or 2 for a sample of two or more dimensions, got {copies}")


def _mask(table: Table, row: int | Tensor, sample: Tensor) -> int:
    """Which columns the step reads, as far as the host knows the row."""
    size = len(table)
    if isinstance(row, Tensor):
        leading = sample.shape if sample.dim() > 1 else (1,)
        if row.dtype != torch.int64 or row.shape != leading[: row.dim()] or row.dim() > 2:
            shapes = ", ".join(str(tuple(leading[:d])) for d in range(min(len(leading), 2) + 1))
            raise ValueError(
                f"row: expected an int, or an int64 tensor of shape {shapes}, "
                f"got {_checks.dtype_name(row.dtype)} {tuple(row.shape)}"
            )
        _checks.same_device("row", row, "sample", sample)
        if _checks.readable(row):
            low, high = (int(x) for x in torch.aminmax(row))
            if low < 0 or high >= size:
                raise ValueError(f"row: expected rows 0 to {size - 1} of the table, got {low} to {high}")
        return table.mask
    if isinstance(row, bool) or not isinstance(row, (int, torch.SymInt)):
        raise TypeError(f"row: expected an int or an int64 tensor, got {type(row).__name__}")
    if not 0 <= row < size:
        raise ValueError(f"row: expected a row of the table, 0 to {size - 1}, got {row}")
    return table.mask if torch.compiler.is_compiling() else table.masks[row]


_STATE = 1 << COLUMN["prev_state"], 1 << COLUMN["prev_state"] | 1 << COLUMN["state_state"]
_HISTORY = tuple(
    (1 << COLUMN[f"prev_history_{i}"], 1 << COLUMN[f"prev_history_{i}"] | 1 << COLUMN[f"state_history_{i}"])
    for i in range(MOST_HISTORY)
)


def _check_reads(
    table: Table, mask: int, wanted: int, variance: Tensor | None, history: int, state: Tensor | None
) -> None:
    with_state = bool(wanted & OUTPUTS["state"])
    if state is None and mask & _STATE[with_state]:
        raise ValueError("state: expected a tensor, as this row of the table reads it, got None")
    for i in range(history, MOST_HISTORY):
        if mask & _HISTORY[i][with_state]:
            raise ValueError(
                f"history: expected at least {i + 1} tensors, as this row of the table reads them, got {history}"
            )
    if variance is None and table.variance is not None:
        raise ValueError(f"variance: expected the tensor of a table whose variance is {table.variance!r}, got None")


def _number_or_tensor(value: int | Tensor) -> tuple[int, Tensor | None]:
    return (0, value) if isinstance(value, Tensor) else (value, None)


def _scale(guidance: float | Tensor | None, sample: Tensor) -> Tensor:
    if isinstance(guidance, Tensor):
        return _checks.scalar_tensor("guidance", guidance, sample)
    return _checks.number("guidance", 1.0 if guidance is None else guidance, torch.float64, torch.device("cpu"))


@_backend.register("denoise_step", cuda=False)
def _(
    sample: Tensor,
    output: Tensor,
    coefficients: Tensor,
    row: int,
    clip: float = 0.0,
    wanted: int = 0,
    *rest: object,
) -> list[Tensor]:
    count = 1 + bin(wanted & 7).count("1")
    results = [torch.empty(sample.shape, dtype=sample.dtype, device=sample.device) for _ in range(count)]
    if wanted & OUTPUTS["next"]:
        size = list(sample.shape)
        size[0] *= 2 if wanted & TWICE else 1
        results.append(sample.new_empty(size, dtype=output.dtype))
    return results
