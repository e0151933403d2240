"""A step of a diffusion model's sampling."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

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
    wanted = _wanted(outputs, copies)
    mask = _mask(table, row)
    if mask & _READS or table.variance is not None:
        _check_reads(table, mask, wanted, variance, len(history), state)
    draws = noise is None and mask & NOISE != 0
    transformed = _gate.transformed_noise("denoise_step", key) if draws else _gate.transformed()
    key = _key.resolve(key, generator, first_sample, sample) if draws else None
    name, arguments = _call(
        sample, model_output, table, row, unconditional, guidance, rescale, variance, history, state, noise,
        wanted, key, first_sample, first_step,
    )  # fmt: skip
    op = _backend.select(name, sample)
    compiling, needs_grad = torch.compiler.is_compiling(), _gate.needs_grad(sample, *given)
    if op is not None and not (transformed or compiling or needs_grad):
        try:
            results = op(*arguments)
        except RuntimeError:  # the op checks what safety needs; these say what the caller got wrong
            _check(sample, given, table, row, rescale, first_step)
            raise
        return Denoised(results[0]) if not wanted else _denoised(results, wanted)

    _check(sample, given, table, row, rescale, first_step)
    how: dict[str, Any] = {"guidance": guidance, "rescale": rescale, "outputs": outputs, "copies": copies}
    formula: Callable[..., Denoised] = functools.partial(
        _in_pytorch, table=table, row=row, key=key, first_sample=first_sample, **how
    )
    if op is None or transformed or (needs_grad and compiling):
        return formula(first_step, sample, *given)
    if not needs_grad:
        return _denoised(op(*arguments), wanted)
    at = first_step.clone() if isinstance(first_step, Tensor) else first_step
    kernel, again = functools.partial(op, *arguments), functools.partial(formula, at)
    return _denoised(_gate.apply(_DenoiseStep, kernel, again, sample, *given), wanted)


def _call(
    sample: Tensor,
    model_output: Tensor,
    table: Table,
    row: int | Tensor,
    unconditional: Tensor | None,
    guidance: float | Tensor | None,
    rescale: float,
    variance: Tensor | None,
    history: Sequence[Tensor],
    state: Tensor | None,
    noise: Tensor | None,
    wanted: int,
    key: Tensor | None,
    first_sample: int,
    first_step: int | Tensor,
) -> tuple[str, list[Any]]:
    """The name of the op, and its arguments. Those at the end of the short one that are not passed cost nothing."""
    arguments: list[Any] = [sample, model_output, table.coefficients]
    if (
        isinstance(row, Tensor)
        or isinstance(first_step, Tensor)
        or table.quantile is not None
        or unconditional is not None
        or variance is not None
        or noise is not None
    ):
        index, rows = (0, row) if isinstance(row, Tensor) else (row, None)
        step, counter = (0, first_step) if isinstance(first_step, Tensor) else (first_step, None)
        scale = None if unconditional is None else _scale(guidance, sample)
        arguments += (index, table.clip or 0.0, wanted, key, step)
        arguments += (*history, None, None, None)[: max(MOST_HISTORY, len(history))]
        arguments += (state, first_sample, rows, unconditional, scale, rescale, table.quantile or 0.0)
        arguments += (variance, VARIANCES[table.variance], noise)
        return "denoise_step_full", [counter, *arguments]
    arguments += (row, table.clip or 0.0, wanted, key, first_step)
    if history or state is not None or first_sample:
        arguments += (*history, None, None, None)[: max(MOST_HISTORY, len(history))]
        arguments += (state, first_sample)
    return "denoise_step", arguments


def _denoised(results: Sequence[Tensor], wanted: int) -> Denoised:
    """The results of an op: those that are wanted, or, of the full one, all."""
    if len(results) == 1 + len(OUTPUTS):
        return Denoised(
            results[0], *[x if wanted & b else None for x, b in zip(results[1:], OUTPUTS.values(), strict=True)]
        )
    found = iter(results)
    return Denoised(next(found), *[next(found) if wanted & bit else None for bit in OUTPUTS.values()])


def _wanted(outputs: Sequence[str], copies: int) -> int:
    wanted = 0
    if isinstance(outputs, str):
        raise TypeError(f"outputs: expected a sequence of names, as ({outputs!r},), got a string")
    for name in outputs:
        if name not in OUTPUTS:
            raise ValueError(f"outputs: expected any of {', '.join(OUTPUTS)}, got {name!r}")
        wanted |= OUTPUTS[name]
    if copies not in (1, 2):
        raise ValueError(f"copies: expected 1 or 2, got {copies}")
    return wanted | TWICE if copies == 2 else wanted


def _mask(table: Table, row: int | Tensor) -> int:
    """Which columns the step reads, as far as the host knows its row."""
    if not isinstance(table, Table):
        raise TypeError(f"table: expected a variate.diffusion.Table, got {type(table).__name__}")
    if isinstance(row, Tensor):
        return table.mask
    if isinstance(row, bool) or not isinstance(row, (int, torch.SymInt)):
        raise TypeError(f"row: expected an int or an int64 tensor, got {type(row).__name__}")
    if not 0 <= row < len(table.masks):
        raise ValueError(f"row: expected a row of the table, 0 to {len(table.masks) - 1}, got {row}")
    return table.mask if torch.compiler.is_compiling() else table.masks[row]


def _in_pytorch(
    first_step: int | Tensor,
    sample: Tensor,
    model_output: Tensor,
    unconditional: Tensor | None,
    variance: Tensor | None,
    state: Tensor | None,
    noise: Tensor | None,
    *history: Tensor,
    **others: Any,
) -> Denoised:
    others.update(unconditional=unconditional, variance=variance, state=state, noise=noise, history=history)
    return reference.denoise.denoise_step(sample, model_output, first_step=first_step, **others)


class _DenoiseStep(torch.autograd.Function):
    """The step by the kernel; its gradients are those of the same expression in PyTorch, computed when asked for."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Callable[[], list[Tensor]], formula: Callable[..., Denoised], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.formula = formula
        ctx.save_for_backward(*tensors)
        return tuple(kernel())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        tensors: list[Any] = [None if t is None else t.view_as(t) for t in ctx.saved_tensors]
        wanted = ctx.needs_input_grad[2:]
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            if not create_graph:
                tensors = [t.detach().requires_grad_(w) if w else t for t, w in zip(tensors, wanted, strict=True)]
            results = ctx.formula(*tensors)
        outputs = results if len(grads) == len(results) else [x for x in results if x is not None]
        inputs = [t for t, w in zip(tensors, wanted, strict=True) if w]
        pairs = zip(outputs, grads, strict=True)
        sources = [(x, grad) for x, grad in pairs if x is not None and x.requires_grad]
        found = iter(
            torch.autograd.grad(
                [x for x, _ in sources], inputs, [g for _, g in sources], create_graph=create_graph, allow_unused=True
            )
        )
        return None, None, *(next(found) if w else None for w in wanted)


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
    given: Sequence[Tensor | None],
    table: Table,
    row: int | Tensor,
    rescale: float,
    first_step: int | Tensor,
) -> None:
    most = len(_NAMES)
    if len(given) > most:
        raise ValueError(f"history: expected at most {MOST_HISTORY} tensors, got {len(given) - most + MOST_HISTORY}")
    for name, value in zip(_NAMES, given, strict=False):
        if value is not None or name == "model_output":
            _checks.alike(name, value, "sample", sample)  # type: ignore[arg-type]
    if table.coefficients.device != sample.device:
        raise ValueError(
            f"table: expected it on the device of sample, {sample.device}, got {table.coefficients.device}; "
            f"table.to({str(sample.device)!r}) moves it"
        )
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale: expected a number in [0, 1], got {rescale}")
    if isinstance(first_step, Tensor):
        _check_counter(first_step, sample)
    else:
        _checks.count("first_step", first_step, 0)
    if isinstance(row, Tensor):
        _check_rows(row, len(table), sample)


def _check_counter(counter: Tensor, sample: Tensor) -> None:
    shapes = ((2,), (_checks.rows_of(sample.shape), 2))
    if counter.dtype != torch.int64 or counter.shape not in shapes or not counter.is_contiguous():
        raise ValueError(
            f"first_step: expected an int, or a contiguous int64 tensor of shape {shapes[0]} or {shapes[1]}, "
            f"got {_checks.dtype_name(counter.dtype)} {tuple(counter.shape)}"
        )
    _checks.same_device("first_step", counter, "sample", sample)


def _check_rows(row: Tensor, size: int, sample: Tensor) -> None:
    leading = sample.shape if sample.dim() > 1 else (1,)
    if row.dtype != torch.int64 or row.dim() > 2 or row.shape != leading[: row.dim()]:
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


_STATE = 1 << COLUMN["prev_state"], 1 << COLUMN["prev_state"] | 1 << COLUMN["state_state"]
_HISTORY = tuple(
    (1 << COLUMN[f"prev_history_{i}"], 1 << COLUMN[f"prev_history_{i}"] | 1 << COLUMN[f"state_history_{i}"])
    for i in range(MOST_HISTORY)
)


_READS = _STATE[1] | _HISTORY[0][1] | _HISTORY[1][1] | _HISTORY[2][1]


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


def _scale(guidance: float | Tensor | None, sample: Tensor) -> Tensor:
    if isinstance(guidance, Tensor):
        return _checks.scalar_tensor("guidance", guidance, sample)
    return _checks.number("guidance", 1.0 if guidance is None else guidance, torch.float64, torch.device("cpu"))


@_backend.register("denoise_step")
def _fake(
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


@_backend.register("denoise_step_full")
def _(counter: Tensor | None, sample: Tensor, *others: Any) -> tuple[Tensor, ...]:
    wanted = others[4]
    found = iter(_fake(sample, *others))
    first = next(found)
    return first, *(next(found) if wanted & bit else sample.new_empty(0) for bit in OUTPUTS.values())
