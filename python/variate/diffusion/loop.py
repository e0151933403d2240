"""The whole of a diffusion model's sampling: a loop over the rows of a table, with the host ahead of the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional, random
from .._progress import progress_bar
from .._table import Table
from ..functional import _key
from ..functional._checks import FLOATING
from ..functional._checks import count as check_count
from ..reference.denoise import Denoised
from .solvers import Schedule, solver

__all__ = ["sample"]

Condition = Tensor | Mapping[str, Any] | None


@torch.no_grad()
def sample(
    denoiser: Callable[..., Any],
    shape: Sequence[int],
    scheduler: Table | str | Any = "ddpm",
    steps: int | None = None,
    *,
    schedule: Schedule | None = None,
    prediction: str | None = None,
    condition: Condition = None,
    unconditional: Condition = None,
    guidance: float | Tensor | None = None,
    rescale: float = 0.0,
    start: Tensor | None = None,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    compile: bool = False,
    progress: bool = False,
    callback: Callable[[int, Denoised], None] | None = None,
    **options: Any,
) -> Tensor:
    """Samples from noise: x = first_scale n, then for each row k of the table

        m = denoiser(input, timestep_k),   x = denoise_step(x, m, table, k),   input = next_scale_k x .

    From the first step to the last the host waits for nothing, so that the loop may be captured as one CUDA graph.

    Args:
        denoiser: called with the input and the timesteps [B] (int64 where they are whole, else float32), and with
            ``condition``: a tensor as a third argument, a mapping as keyword arguments. It returns a tensor shaped as
            the input, or with twice the channels where the table has a learned variance; or an object with that as
            ``.sample``. It must leave its input as it is, which may be the sample itself.
        shape: [B, ...] of the result.
        scheduler: a table, a scheduler of ``variate.schedulers``, or the name of a solver, whose table
            ``solver(scheduler, schedule, steps, prediction=prediction, **options)`` makes.
        steps, schedule, prediction, options: for a name; a scheduler takes steps too. Left out, steps are all that the
            schedule has, which are 1000.
        condition: what the denoiser is told of each sample, tensors [B, ...].
        unconditional: the same for no condition, where there is guidance.
        guidance: g, a float or a 0-d tensor, one for all samples. The denoiser gets 2 B rows, the unconditional ones
            first, and says u and c: m = u + g (c - u). None: the conditional ones alone.
        rescale: of the guided output, toward the standard deviation of c, from 0 to 1 (Lin et al. 2024).
        start: [B, ...], the first sample in place of noise.
        key, generator, first_sample: as everywhere. The first sample is the normal of the key at step 0, row k's noise
            at step k + 1. So a part of a batch draws what the whole would.
        device: of the result; the denoiser's where it is left out.
        dtype: of the model's input; that of the denoiser's parameters, or float32, where it is left out. The sample is
            float32 between the steps, float64 if this is.
        compile: compile a step, the denoiser with what follows it, once for all steps.
        progress: show a bar, where rich is installed and the output is a terminal.
        callback: called with k and what ``denoise_step`` returned, its ``denoised`` too, after each row.

    Returns:
        [B, ...], float32 or float64.

    Raises:
        TypeError, ValueError: an argument out of range, an unknown solver or prediction, steps = 0 or more than the
            schedule has, or conditions and guidance that do not fit together.

    Source: Ho et al. 2020; Ho and Salimans 2022 (guidance).
    """
    size = _size(shape)
    steps_itself = not isinstance(scheduler, (str, Table)) and hasattr(scheduler, "set_timesteps")
    table = None if steps_itself else _table(scheduler, steps, schedule, prediction, options)
    parameter = next(denoiser.parameters(), None) if isinstance(denoiser, nn.Module) else None
    if device is None:
        device = start.device if start is not None else torch.device("cpu") if parameter is None else parameter.device
    device = torch.device(device)
    if dtype is None:
        dtype = torch.float32 if parameter is None else parameter.dtype
    if dtype not in FLOATING:
        raise TypeError(f"dtype: expected float32, float64, bfloat16 or float16, got {dtype}")
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    model = _Model(denoiser, condition, unconditional, guidance, size[0])
    x = _first(size, start, state_dtype, device)
    if steps_itself:
        if compile:
            raise ValueError("compile: expected False with a scheduler, which counts its steps; a name or a table can")
        _only_for_names(schedule, prediction, options)
        run = _Steps(scheduler, steps, model, guidance, rescale, dtype)
        return run(x, start is None, key, generator, first_sample, progress, callback)
    assert table is not None
    plan = _plan(table, device)
    key = _key.resolve(key, generator, first_sample, x)
    if start is None:
        x = random.normal(*size, key=key, first_sample=first_sample, dtype=state_dtype, device=device)
        if table.first_scale != 1:
            x = x * table.first_scale
    inputs: Tensor | None = None  # x itself
    if model.copies == 2 or plan.scaled or dtype != state_dtype:
        inputs = (x * table.first_input_scale).to(dtype)
        inputs = torch.cat([inputs] * model.copies) if model.copies > 1 else inputs

    outputs = ["saved"] if table.history else []
    outputs += ["state"] if table.state and table.keeps is None else []
    outputs += ["next"] if inputs is not None else []
    outputs += ["denoised"] if callback is not None else []

    def step(
        x: Tensor,
        inputs: Tensor | None,
        timestep: Tensor,
        row: int | Tensor,
        first_step: int | Tensor,
        history: tuple[Tensor, ...],
        state: Tensor | None,
    ) -> Denoised:
        said, variance = model(x if inputs is None else inputs, timestep), None
        if table.variance is not None:
            said, variance = said.chunk(2, dim=1)
            variance = variance[-len(x) :]
        return functional.denoise_step(
            x,
            said,
            plan.table,
            row,
            guidance=guidance,
            rescale=rescale,
            variance=variance,
            history=history,
            state=state,
            outputs=outputs,
            copies=model.copies,
            key=key,
            first_sample=first_sample,
            first_step=first_step,
        )

    rows: Sequence[int | Tensor] = range(len(table))
    first_step: int | Tensor = 1
    if compile:
        step = torch.compile(step, fullgraph=True, dynamic=False)
        rows = plan.rows
        first_step = torch.tensor([1, 0], device=device)
    timesteps = plan.timesteps(size[0] * model.copies)
    # What no row reads may be anything; but under compile no tensor may come twice.
    history = tuple(torch.zeros_like(x) if compile else x for _ in range(table.history))
    state = (torch.zeros_like(x) if compile else x) if table.state else None
    keeps = table.keeps if table.state else None
    with progress_bar(len(table), "sampling", progress) as advance:
        for k, row in enumerate(rows):
            done = step(x, inputs, timesteps[k], row, first_step if compile else k + 1, history, state)
            if keeps is None:
                state = done.state
            elif keeps[k]:
                state = x
            if table.history:
                history = (_given(done.saved), *history[:-1])
            x, inputs = done.prev, done.next
            if callback is not None:
                callback(k, done)
            advance(1)
    return x


class _Model:
    """The denoiser with its conditions, of both halves where there is guidance."""

    def __init__(
        self,
        denoiser: Callable[..., Any],
        condition: Condition,
        unconditional: Condition,
        guidance: float | Tensor | None,
        count: int,
    ) -> None:
        self.denoiser = denoiser
        self.copies = 1 if guidance is None else 2
        self.arguments, self.named = _conditions(condition, unconditional, guidance is not None, count)

    def __call__(self, inputs: Tensor, timestep: Tensor) -> Tensor:
        said = self.denoiser(inputs, timestep, *self.arguments, **self.named)
        if isinstance(said, Tensor):
            return said
        found = said[0] if isinstance(said, (tuple, list)) and said else getattr(said, "sample", None)
        if not isinstance(found, Tensor):
            raise TypeError(
                "denoiser: expected it to return a tensor, an object with one as .sample, or a tuple that begins with "
                f"one, got {type(said).__name__}"
            )
        return found


class _Steps:
    """The loop of a scheduler that makes its steps itself: one of ``variate.schedulers``, or of diffusers."""

    def __init__(
        self,
        scheduler: Any,
        steps: int | None,
        model: _Model,
        guidance: float | Tensor | None,
        rescale: float,
        dtype: torch.dtype,
    ) -> None:
        self.scheduler, self.steps, self.model = scheduler, steps, model
        self.guidance, self.rescale, self.dtype = guidance, rescale, dtype

    def __call__(
        self,
        x: Tensor,
        noise: bool,
        key: Tensor | None,
        generator: torch.Generator | None,
        first_sample: int,
        progress: bool,
        callback: Callable[[int, Denoised], None] | None,
    ) -> Tensor:
        scheduler = self.scheduler
        if self.steps is not None:
            check_count("steps", self.steps, least=1)
            scheduler.set_timesteps(self.steps, device=x.device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else the first step of diffusers' own looks its timestep up
        if first_sample != 0:
            raise ValueError("first_sample: expected 0 with a scheduler; a name or a table takes it")
        own = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        given = key is not None
        key = _key.resolve(key, generator, 0, x)
        if given:
            _give_key(scheduler, key)
        if noise:
            x = random.normal(*x.shape, key=key, dtype=x.dtype, device=x.device)
            x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
        scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
        with progress_bar(len(scheduler.timesteps), "sampling", progress) as advance:
            for k, t in enumerate(scheduler.timesteps):
                inputs = scale(x, t).to(self.dtype)
                inputs = torch.cat([inputs] * self.model.copies) if self.model.copies > 1 else inputs
                m = self.model(inputs, t.to(x.device).expand(len(inputs)))
                m = m if self.guidance is None else self._guided(m.to(x.dtype), x.shape[1])
                done = scheduler.step(m, t, x, **own)
                x = done.prev_sample.to(x.dtype)
                if callback is not None:
                    callback(k, Denoised(x, getattr(done, "pred_original_sample", None)))
                advance(1)
        return x

    def _guided(self, both: Tensor, channels: int) -> Tensor:
        u, c = (half[:, :channels] for half in both.chunk(2))
        variance = both.chunk(2)[1][:, channels:]  # where it is learnt
        m = u + self.guidance * (c - u)  # type: ignore[operator]
        if self.rescale:
            inner = tuple(range(1, m.dim()))
            m = m * (self.rescale * c.std(inner, keepdim=True) / m.std(inner, keepdim=True) + 1 - self.rescale)
        return torch.cat([m, variance], 1) if variance.shape[1] else m


def _give_key(scheduler: Any, key: Tensor) -> None:
    """Have a scheduler of variate.schedulers draw from this key, from step 1 on."""
    from ..schedulers import _base

    if not isinstance(scheduler, _base.Fused):
        raise ValueError("key: expected none with a scheduler of diffusers' own; a generator seeds it")
    plan = _base.plan_of(scheduler)
    plan.key, plan.generator = key, None
    plan.used = 1 if key.is_cpu else torch.tensor([1, 0], device=key.device)


class _Plan:
    """A table on a device, and what the loop reads of it."""

    def __init__(self, table: Table, device: torch.device) -> None:
        host = table.to("cpu")
        self.scaled = table.first_input_scale != 1 or bool((host.column("next_scale") != 1).any())
        whole = bool((host.timesteps == host.timesteps.round()).all())
        self.table = table if table.coefficients.device == device else table.to(device)
        self.times = host.timesteps.to(torch.int64 if whole else torch.float32).to(device)
        self.rows = list(torch.arange(len(table), device=device).unbind())

    def timesteps(self, rows: int) -> Sequence[Tensor]:
        """[rows] for each row of the table."""
        return self.times[:, None].expand(-1, rows).unbind()


def _plan(table: Table, device: torch.device) -> _Plan:
    """Kept by the table: making one waits for the device if the table is there."""
    plans: dict[torch.device, _Plan] = table.__dict__.setdefault("_plans", {})
    if device not in plans:
        plans[device] = _Plan(table, device)
    return plans[device]


def _size(shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(shape, int):
        raise TypeError(f"shape: expected [B, ...], a size for each dimension, got {shape}")
    size = tuple(shape)
    for count in size:
        check_count("shape", count, least=0)
    if len(size) < 2:
        raise ValueError(f"shape: expected [B, ...] with two or more dimensions, got {size}")
    return size


def _table(
    scheduler: Any, steps: int | None, schedule: Schedule | None, prediction: str | None, options: Mapping[str, Any]
) -> Table:
    if isinstance(scheduler, str):
        return solver(scheduler, schedule, steps, prediction=prediction, **options)
    _only_for_names(schedule, prediction, options)
    if not isinstance(scheduler, Table):
        raise TypeError(
            f"scheduler: expected a Table, a scheduler of variate.schedulers or a name, got {type(scheduler).__name__}"
        )
    if steps is not None and steps != len(scheduler):
        raise ValueError(f"steps: expected {len(scheduler)}, the rows of the table, or none, got {steps}")
    if len(scheduler) == 0:
        raise ValueError("scheduler: expected a table of one row or more")
    return scheduler


def _only_for_names(schedule: Schedule | None, prediction: str | None, options: Mapping[str, Any]) -> None:
    for name, value in (("schedule", schedule), ("prediction", prediction), *options.items()):
        if value is not None:
            raise TypeError(f"{name}: expected it to be left out, as the scheduler has its own, got {value!r}")


def _first(size: tuple[int, ...], start: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    if start is None:
        return torch.empty(size, dtype=dtype, device=device)
    if tuple(start.shape) != size:
        raise ValueError(f"start: expected the shape {size}, got {tuple(start.shape)}")
    if start.device != device:
        raise ValueError(f"start: expected it on {device}, got {start.device}")
    return start.to(dtype)


def _conditions(
    condition: Condition, unconditional: Condition, guided: bool, count: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the denoiser gets beside input and timesteps: (arguments, keyword arguments)."""
    if not guided:
        if unconditional is not None:
            raise ValueError("unconditional: expected it with guidance alone; pass guidance= too")
    else:
        if condition is None or unconditional is None:
            raise ValueError("guidance: expected both condition and unconditional with it")
        if isinstance(condition, Mapping) != isinstance(unconditional, Mapping) or (
            isinstance(condition, Mapping)
            and isinstance(unconditional, Mapping)
            and condition.keys() != unconditional.keys()
        ):
            raise ValueError("unconditional: expected the same names as in condition")

    def both(name: str, with_: Any, without: Any) -> Any:
        for which, value in (("condition", with_), ("unconditional", without)):
            if isinstance(value, Tensor) and value.dim() and len(value) != count:
                raise ValueError(f"{which}{name}: expected {count} rows, one for each sample, got {len(value)}")
        if not guided or with_ is without:
            return with_
        if isinstance(with_, Tensor) and isinstance(without, Tensor) and with_.dim() and without.dim():
            return torch.cat([without, with_])
        raise ValueError(
            f"condition{name}: expected tensors with a row for each sample, here and in unconditional, where the two "
            f"differ and there is guidance; got {type(with_).__name__} and {type(without).__name__}"
        )

    if condition is None:
        return (), {}
    if isinstance(condition, Mapping):
        others = unconditional if isinstance(unconditional, Mapping) else condition
        return (), {name: both(f"[{name!r}]", value, others[name]) for name, value in condition.items()}
    return (both("", condition, unconditional),), {}


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
