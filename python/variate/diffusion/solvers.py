"""Solvers by name: the noise levels that each wants, and who builds its table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._table import Table
from .adams import deis, lms
from .ancestral import ddim, ddpm, lcm
from .euler import euler, euler_ancestral
from .heun import edm, flow_euler, flow_heun, heun
from .levels import Levels
from .multistep import dpm_solver_pp, dpm_solver_pp_singlestep, unipc
from .schedules import FlowSchedule, NoiseSchedule

__all__ = ["SOLVERS", "Schedule", "Solver", "solver"]

Schedule = NoiseSchedule | FlowSchedule


@dataclass(frozen=True)
class Solver:
    """How a name becomes a table.

    Attributes:
        builder: called with (levels, timesteps, prediction, **options).
        levels: "steps": variance preserving at whole timesteps, the next level being the next one's; "sigmas": variance
            exploding; "denoised": the same for a model D(x, sigma), which is told log(sigma) / 4; "scaled": variance
            preserving, from sigmas, also those of a flow; "flow".
        spacing: the timesteps' where none is asked for.
        sigmas: how sigmas are spaced where that is left out.
        options: what the builder is called with, unless the caller says otherwise.
    """

    builder: Callable[..., Table]
    levels: str
    spacing: str = "linspace"
    sigmas: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


SOLVERS: dict[str, Solver] = {
    "ddpm": Solver(ddpm, "steps", "leading"),
    "ddim": Solver(ddim, "steps", "leading"),
    "lcm": Solver(lcm, "steps", "trailing"),
    "euler": Solver(euler, "sigmas"),
    "euler_ancestral": Solver(euler_ancestral, "sigmas"),
    "heun": Solver(heun, "sigmas"),
    "edm": Solver(edm, "denoised", sigmas="karras"),
    "dpmpp_1": Solver(dpm_solver_pp, "scaled", options={"order": 1}),
    "dpmpp_2m": Solver(dpm_solver_pp, "scaled", options={"order": 2}),
    "dpmpp_3m": Solver(dpm_solver_pp, "scaled", options={"order": 3}),
    "dpmpp_2m_sde": Solver(dpm_solver_pp, "scaled", options={"order": 2, "stochastic": True}),
    "dpmpp_2s": Solver(dpm_solver_pp_singlestep, "scaled", options={"order": 2}),
    "dpmpp_3s": Solver(dpm_solver_pp_singlestep, "scaled", options={"order": 3}),
    "unipc": Solver(unipc, "scaled", options={"order": 2}),
    "deis": Solver(deis, "scaled"),
    "lms": Solver(lms, "sigmas"),
    "flow_euler": Solver(flow_euler, "flow"),
    "flow_heun": Solver(flow_heun, "flow"),
}


def solver(
    name: str,
    schedule: Schedule | None = None,
    steps: int | None = None,
    *,
    prediction: str | None = None,
    spacing: str | None = None,
    sigmas: Any = None,
    offset: int = 0,
    final: str = "zero",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    **options: Any,
) -> Table:
    """The table of a solver by its name: one of ``SOLVERS``.

    Args:
        name: of "ddpm", "ddim", "lcm", "euler", "euler_ancestral", "heun", "edm", "dpmpp_1", "dpmpp_2m", "dpmpp_3m",
            "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_3s", "unipc", "deis", "lms", "flow_euler", "flow_heun".
        schedule: a ``NoiseSchedule``; or a ``FlowSchedule``, for "flow_*", "dpmpp_*", "unipc" and "deis". The default
            one where it is left out.
        steps: of the process; a solver that asks the model twice in a step has two rows for it. All of the schedule's
            where it is left out.
        prediction: what the model says: "epsilon", "x0", "v" or "flow"; left out "epsilon", or "flow" with a
            ``FlowSchedule``, or "x0" for "edm".
        spacing, offset: of timesteps, see ``NoiseSchedule.timesteps``.
        sigmas: "karras", "exponential", "beta" or "lambda", see ``NoiseSchedule.spaced``; with a ``FlowSchedule`` also
            numbers.
        final: "zero", or "sigma_min": where the process ends.
        sigma_min, sigma_max: the ends of ``sigmas`` that are spaced anew, the schedule's where left out.
        options: the builder's, as ``eta`` of "ddim", ``clip``, ``quantile``, ``order``.

    Raises:
        TypeError: an option that the solver does not have.
        ValueError: an unknown solver or prediction, steps = 0 or more than the schedule has, a schedule that does not
            fit.

    Source: that of each builder, as :func:`ddim`.
    """
    if name not in SOLVERS:
        raise ValueError(f"scheduler: expected one of {', '.join(SOLVERS)}, got {name!r}")
    chosen = SOLVERS[name]
    if schedule is None:
        schedule = FlowSchedule() if chosen.levels == "flow" else NoiseSchedule()
    flows = isinstance(schedule, FlowSchedule)
    if not flows and not isinstance(schedule, NoiseSchedule):
        raise TypeError(f"schedule: expected a NoiseSchedule or a FlowSchedule, got {type(schedule).__name__}")
    if flows != (chosen.levels == "flow") and not (flows and chosen.levels == "scaled"):
        wanted = "FlowSchedule" if chosen.levels == "flow" else "NoiseSchedule"
        raise ValueError(f"schedule: expected a {wanted} for {name!r}, got a {type(schedule).__name__}")
    if final not in ("zero", "sigma_min"):
        raise ValueError(f"final: expected 'zero' or 'sigma_min', got {final!r}")
    steps = schedule.train_steps if steps is None else steps
    ends = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    levels, timesteps = _levels(chosen, schedule, steps, spacing, sigmas, offset, final, ends)
    if prediction is None:
        prediction = "flow" if flows else "x0" if timesteps is None else "epsilon"
    known = inspect.signature(chosen.builder).parameters
    for option in options:
        if option not in known:
            own = ", ".join(n for n, p in known.items() if p.kind is p.KEYWORD_ONLY)
            raise TypeError(f"{option}: {name!r} does not take it; it takes {own}")
    return chosen.builder(levels, timesteps, prediction, **{**chosen.options, **options})


def _levels(
    chosen: Solver,
    schedule: Schedule,
    steps: int,
    spacing: str | None,
    sigmas: Any,
    offset: int,
    final: str,
    ends: Mapping[str, float | None],
) -> tuple[Levels, np.ndarray | None]:
    for name, value in ends.items():
        if value is not None and ((sigmas is None and chosen.sigmas is None) or isinstance(schedule, FlowSchedule)):
            raise ValueError(f"{name}: expected it with sigmas= that are spaced anew, got {value}")
    if isinstance(schedule, FlowSchedule):
        bounds = {}
        if chosen.levels == "scaled":  # whose alpha may not be 0
            bounds = {"first": 1 - 1 / schedule.train_steps, "last": (1 - 1 / schedule.train_steps) / steps}
        timesteps, levels = schedule.spaced(steps, sigmas, **bounds)
        return Levels.flow(levels), timesteps
    spacing = chosen.spacing if spacing is None else spacing
    if chosen.levels == "steps":
        if sigmas is not None:
            raise ValueError("sigmas: expected it to be left out, as this solver goes by timesteps")
        timesteps = schedule.timesteps(steps, spacing, offset=offset)
        kept = schedule.alphas_cumprod[timesteps.astype(np.int64)]
        last = 1.0 if final == "zero" else schedule.alphas_cumprod[0]
        return Levels.from_alphas_cumprod(np.append(kept, last)), timesteps
    sigmas = chosen.sigmas if sigmas is None else sigmas
    endpoint = chosen.levels != "scaled"
    timesteps, levels = schedule.spaced(steps, spacing, sigmas, offset=offset, endpoint=endpoint, final=final, **ends)
    if chosen.levels == "denoised":
        return Levels.from_sigmas(levels), None
    make = Levels.vp_from_sigmas if chosen.levels == "scaled" else Levels.from_sigmas
    return make(levels), timesteps
