"""What the drop-in schedulers share: the plan of a sampling, the row of a timestep, the noise, the output."""

from __future__ import annotations

import importlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._table import Table
from ..diffusion.levels import Array
from ..functional import _backend, _gate, _key, denoise
from ..functional.denoise import Denoised, denoise_step

_logger = logging.getLogger("variate.schedulers")

_MODES = ("kernel", "torch")
_mode = "kernel"


class noise:
    """Where the noise of stochastic schedulers comes from: "kernel" or "torch".

    "kernel", the default: from the fused kernel, which draws it as it goes. Its key is drawn from the step's generator,
    or from torch's default one, at the first step after ``set_timesteps``; each further step takes the next part of the
    key's stream. A list of generators gives each sample a key of its own. "torch": from ``torch.randn`` in diffusers'
    order, which reproduces its samples.

    As a plain call it stays; as a context manager, for the block. ``scheduler.noise = "torch"`` is for one scheduler.

    Raises:
        ValueError: another mode.
    """

    def __init__(self, mode: str) -> None:
        global _mode
        _check_mode(mode)
        self._before, _mode = _mode, mode

    def __enter__(self) -> noise:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _mode
        _mode = self._before


def _check_mode(mode: str) -> None:
    if mode not in _MODES:
        raise ValueError(f'noise: expected "kernel" or "torch", got {mode!r}')


class Plan:
    """What the steps after one set_timesteps share. It is made at the first of them, and again when the scheduler's
    timesteps, levels or configuration are other objects than those that it was made from.

    Attributes:
        table: the rows of a step with default arguments.
        made: {what a step is given: table} of the others.
        rows: {timestep: row} where a timestep chooses the row; empty where the scheduler counts its steps.
        by_value: whether row t is timestep t's, and not that of the timestep at position t.
        draws: whether diffusers draws noise at each row: those of its stream that "torch" must take.
    """

    __slots__ = (
        "by_value",
        "config",
        "draws",
        "elsewhere",
        "generator",
        "key",
        "levels",
        "lookup",
        "made",
        "rows",
        "table",
        "timesteps",
        "used",
    )

    def __init__(
        self,
        scheduler: Any,
        levels: Tensor,
        table: Table | None,
        rows: dict[Any, int] | None = None,
        draws: Sequence[bool] = (),
        by_value: bool = False,
    ) -> None:
        self.timesteps, self.levels, self.config = scheduler.timesteps, levels, scheduler._internal_dict
        self.table: Any = table
        self.rows: dict[Any, int] = {} if rows is None else rows
        self.by_value = by_value
        self.draws = draws
        self.made: dict[Any, Table] = {}
        self.elsewhere: dict[Table, Table] = {}
        self.lookup: Tensor | None = None
        self.key: Tensor | None = None
        self.generator: Any = None
        self.used: int | Tensor = 0  # steps of the key's stream

    def placed(self, table: Table, device: torch.device) -> Table:
        """The table on the device."""
        found = self.elsewhere.get(table)
        if found is None or found.coefficients.device != device:
            found = self.elsewhere[table] = table.to(device)
        return found

    def __reduce__(self) -> Any:
        return _nothing, ()  # a copied or unpickled scheduler makes a plan of its own: two would share their noise

    def draw(self, generator: Any, sample: Tensor) -> Tensor:
        """The key of the steps with this generator: drawn at the first of them."""
        if isinstance(generator, (list, tuple)):
            generator = generator[0] if len(generator) == 1 else tuple(generator)
        if self.key is not None and self.key.device == sample.device and generator == self.generator:
            if self.key.dim() == 1 or len(self.key) == len(sample):
                return self.key
        if isinstance(generator, tuple):
            if len(generator) < len(sample):
                raise ValueError(f"generator: expected one for each of {len(sample)} samples, got {len(generator)}")
            key = torch.stack([_draw(g, sample.device) for g in generator[: len(sample)]])
        else:
            key = _draw(generator, sample.device)
        self.key, self.generator = key, generator
        self.used = 0 if sample.is_cpu else torch.zeros(2, dtype=torch.int64, device=sample.device)
        return key


def _nothing() -> None:
    return None


def _draw(generator: torch.Generator | None, device: torch.device) -> Tensor:
    if generator is not None and generator.device.type not in ("cpu", device.type):
        raise ValueError(f"generator: expected one on {device} or on the CPU, got one on {generator.device}")
    return _key.draw(generator, device)


class Fused:
    """A scheduler of diffusers on the fused kernel: a subclass says what its table is, and which row a step takes.

    Attributes:
        noise: where noise comes from: "kernel", "torch", or None for what :func:`noise` says.
    """

    noise: str | None = None
    _variate_plan: Plan | None = None
    _variate_forward: tuple[Tensor, Table, Table] | None = None  # alphas_cumprod; noise's table, and velocity's
    _variate_levels = "alphas_cumprod"  # the attribute that the levels are read from
    _variate_wide_noise = False  # whether diffusers draws it in the sample's dtype, where that is the wider one
    _variate_noise_dtype: torch.dtype | None = None  # the dtype that diffusers draws it in, whatever the sample's

    def _variate_make_plan(self) -> Plan:
        raise NotImplementedError

    def __init_subclass__(cls, **arguments: Any) -> None:
        # A pipeline saves the module of its scheduler's class: what it saves loads where variate is not installed.
        if cls.__module__.startswith(__package__ + "."):
            cls.__module__ = "diffusers"
        super().__init_subclass__(**arguments)

    def __reduce_ex__(self, protocol: Any) -> Any:
        cls = type(self)
        if cls.__module__ == "diffusers":  # where pickle would find another class
            kept = {name: value for name, value in self.__dict__.items() if not name.startswith("_variate")}
            return _blank, (cls.__name__,), kept
        return super().__reduce_ex__(protocol)


def _blank(name: str) -> Any:
    cls = getattr(importlib.import_module(__package__), name)
    return cls.__new__(cls)


def plan_of(scheduler: Any) -> Plan:
    plan: Plan | None = scheduler._variate_plan
    if (
        plan is not None
        and plan.timesteps is scheduler.timesteps
        and plan.config is scheduler._internal_dict
        and plan.levels is getattr(scheduler, scheduler._variate_levels)
    ):
        return plan
    if len(scheduler.timesteps) == 0:
        raise ValueError("timesteps: expected one or more, got none; set_timesteps(n) makes n of them")
    plan = scheduler._variate_make_plan()
    scheduler._variate_plan = plan
    return plan


def row_of_timestep(plan: Plan, timestep: Any) -> int | Tensor:
    """The row that a timestep chooses. A tensor on a GPU is not waited for: its row is a tensor too, and where it is
    outside the table the result is NaN."""
    if isinstance(timestep, Tensor):
        if not timestep.is_cpu or timestep.numel() != 1:
            return _row_of_tensor(plan, timestep)
        timestep = timestep.item()
    row: int | None = plan.rows.get(timestep)
    if row is None:
        raise ValueError(_outside(plan, timestep))
    return row


def _row_of_tensor(plan: Plan, timestep: Tensor) -> int | Tensor:
    given = timestep.reshape(()) if timestep.numel() == 1 else timestep.reshape(-1)
    if given.is_cpu:
        rows = [plan.rows.get(t) for t in given.tolist()]
        if None in rows:
            raise ValueError(_outside(plan, given[rows.index(None)].item()))
        return torch.tensor(rows)
    if plan.by_value:
        return given.to(torch.int64)
    at = _position(plan.timesteps, given)
    if at is not None:
        return at
    if plan.lookup is None or plan.lookup.device != given.device:
        found = np.full(int(max(plan.rows)) + 2, -1)
        found[[int(t) for t in plan.rows]] = list(plan.rows.values())
        plan.lookup = torch.from_numpy(found).to(given.device)
    return plan.lookup[given.to(torch.int64).clamp(-1, len(plan.lookup) - 1)]


def _outside(plan: Plan, timestep: Any) -> str:
    if plan.by_value:
        return f"timestep: expected an integer from 0 to {len(plan.rows) - 1}, got {timestep}"
    return f"timestep: expected one of the scheduler's {len(plan.timesteps)} timesteps, got {timestep}"


def _position(timesteps: Tensor, timestep: Tensor) -> int | None:
    """Where a 0-d view of the timesteps lies in them: what ``for t in scheduler.timesteps`` gives. Nothing is waited
    for."""
    if timestep.device != timesteps.device or timestep.dtype != timesteps.dtype or not timesteps.is_contiguous():
        return None
    offset, rest = divmod(timestep.data_ptr() - timesteps.data_ptr(), timesteps.element_size())
    return offset if rest == 0 and 0 <= offset < len(timesteps) else None


def row_of_index(scheduler: Any, timestep: Any, rows: int) -> int:
    """The row of a scheduler that counts its steps."""
    row = scheduler._step_index
    if row is None:
        if scheduler._begin_index is not None:
            row = scheduler._begin_index
        else:
            row = _first_index(scheduler, timestep)
        scheduler._step_index = row
    if not 0 <= row < rows:
        raise ValueError(f"step: expected at most {rows} after set_timesteps, got one more")
    return int(row)


def _first_index(scheduler: Any, timestep: Any) -> int:
    steps = scheduler.timesteps
    if isinstance(timestep, Tensor) and not timestep.is_cpu:
        at = _position(steps, timestep)
        if at is not None:
            return at
    value = timestep.item() if isinstance(timestep, Tensor) and timestep.numel() == 1 else timestep
    matches = (steps == value).nonzero().flatten().tolist()
    if not matches:
        raise ValueError(f"timestep: expected one of the scheduler's {len(steps)} timesteps, got {timestep}")
    return int(matches[1 if len(matches) > 1 else 0])  # of equal ones the second, as diffusers does


def check(sample: Any, model_output: Any) -> None:
    """Raises what is wrong with the arguments of a step, where something is."""
    for name, tensor in (("sample", sample), ("model_output", model_output)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if model_output.shape != sample.shape:
        raise ValueError(
            f"model_output: expected the sample's shape {tuple(sample.shape)}, got {tuple(model_output.shape)}"
        )
    if model_output.device != sample.device:
        raise ValueError(f"model_output: expected it on the sample's device {sample.device}, got {model_output.device}")


def run(
    scheduler: Any,
    plan: Plan,
    table: Table,
    row: int | Tensor,
    sample: Tensor,
    model_output: Tensor,
    *,
    generator: Any = None,
    noise: Tensor | None = None,
    stochastic: bool = False,
    draws: bool = True,
    variance: Tensor | None = None,
    history: Sequence[Tensor] = (),
    state: Tensor | None = None,
    outputs: tuple[str, ...] = ("denoised",),
) -> Denoised:
    """One step: the noise is drawn in the kernel, or here where it is torch's."""
    device = sample.device
    if model_output.shape != sample.shape or model_output.device != device:
        check(sample, model_output)
    if table.coefficients.device != device:
        table = plan.placed(table, device)
    key: Tensor | None = None
    step: int | Tensor = 0
    if stochastic and noise is None:
        mode = scheduler.noise or _mode
        _check_mode(mode)
        if mode == "torch":
            like = sample if scheduler._variate_wide_noise else model_output
            noise = randn(like, generator, scheduler._variate_noise_dtype) if draws else torch.zeros_like(model_output)
        else:
            key = plan.key
            if key is None or generator is not plan.generator or key.device != device or key.dim() > 1:
                key = plan.draw(generator, sample)
            step = plan.used
            if not isinstance(step, Tensor):
                plan.used = step + 1
    wanted = _WANTED[outputs]
    name, arguments = denoise._call(
        sample, model_output, table, row, None, None, 0.0, variance, history, state, noise, wanted, key, 0, step
    )
    op = _backend.select(name, sample)
    if (
        op is None
        or isinstance(row, Tensor)
        or _gate.needs_grad(sample, model_output, variance, noise, state, *history)
        or _gate.transformed()
    ):
        return denoise_step(
            sample,
            model_output,
            table,
            row,
            variance=variance,
            history=history,
            state=state,
            noise=noise,
            outputs=outputs,
            key=key,
            first_step=step,
        )
    return denoise._denoised(op(*arguments), wanted)


class _Wanted(dict[tuple[str, ...], int]):
    def __missing__(self, outputs: tuple[str, ...]) -> int:
        self[outputs] = wanted = sum(denoise.OUTPUTS[name] for name in outputs)
        return wanted


_WANTED = _Wanted()


def single(
    scheduler: Any,
    plan: Plan,
    table: Table,
    row: int | Tensor,
    sample: Tensor,
    model_output: Tensor,
    generator: Any,
    stochastic: bool,
    draws: bool = True,
) -> Sequence[Any]:
    """(prev, denoised) of :func:`run`, by a short way through the common case."""
    if (
        sample.is_cpu
        and model_output.is_cpu  # of a CPU tensor and a meta tensor the dispatcher makes nothing, without an error
        and type(row) is int
        and table.quantile is None
        and not (torch.is_grad_enabled() and (sample.requires_grad or model_output.requires_grad))
        and not _gate.transformed()
    ):
        op, key = _backend.select("denoise_step", sample), plan.key
        arguments: tuple[Any, ...] | None = None
        if not stochastic:
            arguments = ()
        elif key is not None and generator is plan.generator and key.is_cpu and key.dim() == 1:
            if (scheduler.noise or _mode) == "kernel":
                arguments = key, plan.used
        if op is not None and arguments is not None:
            try:
                results: Sequence[Any] = op(
                    sample, model_output, table.coefficients, row, table.clip or 0.0, 1, *arguments
                )
            except RuntimeError:  # the op checks what safety needs; this says what the caller got wrong
                check(sample, model_output)
                raise
            if stochastic:
                plan.used += 1
            return results
    done = run(
        scheduler,
        plan,
        table,
        row,
        sample,
        model_output,
        generator=generator,
        stochastic=stochastic,
        draws=draws,
    )
    return done.prev, done.denoised


def randn(like: Tensor, generator: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The noise that diffusers draws, from the same place of torch's stream."""
    from diffusers.utils.torch_utils import randn_tensor

    noise: Tensor = randn_tensor(like.shape, generator=generator, device=like.device, dtype=dtype or like.dtype)
    return noise


def output_maker(cls: Any, first: str, second: str | None = None) -> Callable[..., Any]:
    """What builds an output object of diffusers, of one tensor or two, without the checks of its constructor."""
    new, put = cls.__new__, OrderedDict.__setitem__

    def one(value: Any) -> Any:
        made = new(cls)
        put(made, first, value)
        made.__dict__[first] = value
        return made

    def two(value: Any, other: Any) -> Any:
        made = new(cls)
        put(made, first, value)
        put(made, second, other)
        fields = made.__dict__
        fields[first] = value
        fields[second] = other
        return made

    return one if second is None else two


def cast(sample: Tensor, model_output: Tensor) -> Tensor:
    """The sample in the dtype that torch promotes both to."""
    if sample.dtype == model_output.dtype:
        return sample
    return sample.to(torch.promote_types(sample.dtype, model_output.dtype))


def clip_of(config: Any) -> dict[str, Any]:
    """clip and quantile of a table, from a configuration that may clip or threshold."""
    if config.get("thresholding", False):
        return {
            "clip": float(config["sample_max_value"]),
            "quantile": max(float(config["dynamic_thresholding_ratio"]), 1e-12),  # 0 would be no threshold
        }
    if config.get("clip_sample", False):
        return {"clip": float(config["clip_sample_range"]), "quantile": None}
    return {"clip": None, "quantile": None}


def host(values: Tensor) -> Array:
    return values.detach().to("cpu", torch.float64).numpy()


def bars_at(scheduler: Any, timesteps: Array) -> Array:
    """alphas_cumprod at each timestep."""
    bar = host(scheduler.alphas_cumprod)
    if timesteps.min() < 0 or timesteps.max() >= len(bar):
        raise ValueError(f"timesteps: expected integers from 0 to {len(bar) - 1}, got {timesteps.tolist()}")
    return bar[timesteps.astype(np.int64)]


def beta_of(bar: Array, bar_next: Array) -> Array:
    """1 - abar / abar' in float32: diffusers' golden values keep what it loses."""
    beta = 1 - bar.astype(np.float32) / bar_next.astype(np.float32)
    return beta.astype(np.float64)


def place_holders(scheduler: Any) -> Array:
    """The timesteps of a table of sigmas. Nobody asks it for them: those on a GPU are not waited for."""
    timesteps = np.full(len(scheduler.sigmas) - 1, np.nan)
    if scheduler.timesteps.is_cpu:
        given = host(scheduler.timesteps)[: len(timesteps)]
        timesteps[: len(given)] = given
    return timesteps


def refuse_integers(scheduler: Any, timestep: Any) -> None:
    if isinstance(timestep, int) or (
        isinstance(timestep, Tensor) and timestep.is_cpu and timestep.dtype in (torch.int32, torch.int64)
    ):
        raise ValueError(f"timestep: expected one of scheduler.timesteps, got the integer {timestep}")
    if not scheduler.is_scale_input_called:
        _logger.warning("scale_model_input has not been called before step: the model's input must be scaled")
