"""What the schedulers share whose steps read what others left: the short way through the common case."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._table import Table
from ..diffusion.levels import Levels
from ..functional import _backend, _gate
from ..functional.denoise import OUTPUTS
from . import _base

DENOISED, SAVED, STATE = OUTPUTS["denoised"], OUTPUTS["saved"], OUTPUTS["state"]


class Made(NamedTuple):
    """A table, and its copies on other devices."""

    table: Table
    elsewhere: dict[Table, Table]


class ChainPlan(_base.Plan):
    """A plan of a scheduler that counts its steps and has one table.

    Attributes:
        simple: whether nothing is thresholded.
        steps: how many there are.
        at: what a scheduler looks up for each step.
    """

    __slots__ = ("at", "clip", "coefficients", "simple", "steps", "stochastic")

    def __init__(self, scheduler: Any, made: Made, at: Any = None) -> None:
        table, elsewhere = made
        super().__init__(scheduler, scheduler.sigmas, table)
        self.elsewhere = elsewhere
        self.stochastic = table.stochastic
        self.simple = table.quantile is None
        self.coefficients, self.clip = table.coefficients, table.clip or 0.0
        self.steps, self.at = len(scheduler.sigmas) - 1, at


def table_of(build: Callable[..., Table], make: Callable[[Any], Levels], sigmas: Tensor, **options: Any) -> Made:
    """The table of these levels: the one that was made before, where a schedule is set again."""
    return _made(build, make, _base.host(sigmas).tobytes(), tuple(options.items()))


@functools.lru_cache(maxsize=16)
def _made(build: Callable[..., Table], make: Callable[[Any], Levels], sigmas: bytes, options: tuple[Any, ...]) -> Made:
    levels = make(np.frombuffer(sigmas))
    return Made(build(levels, np.full(len(levels), np.nan), **dict(options)), {})


def chained(
    scheduler: Any,
    plan: ChainPlan,
    row: int,
    sample: Tensor,
    model_output: Tensor,
    wanted: int,
    h0: Tensor | None = None,
    h1: Tensor | None = None,
    h2: Tensor | None = None,
    state: Tensor | None = None,
    generator: Any = None,
    noise: Tensor | None = None,
) -> Sequence[Any]:
    """prev and the wanted outputs of :func:`_base.run`."""
    key, step = plan.key, plan.used
    if (
        plan.simple
        and sample.is_cpu
        and (not plan.stochastic or (key is not None and noise is None and _goes_on(scheduler, plan, key, generator)))
        and not (torch.is_grad_enabled() and _gate.needs_grad(sample, model_output, h0, h1, h2, state))
        and not _gate.transformed()
    ):
        op = _backend.select("denoise_step", sample)
        if op is not None:
            try:
                results: Sequence[Any] = op(
                    sample, model_output, plan.coefficients, row, plan.clip, wanted, key, step, h0, h1, h2, state
                )
            except RuntimeError:
                _base.check(sample, model_output)
                raise
            if key is not None:
                plan.used = step + 1
            return results
    names = tuple(name for name, bit in OUTPUTS.items() if wanted & bit)
    done = _base.run(
        scheduler,
        plan,
        plan.table,
        row,
        sample,
        model_output,
        generator=generator,
        noise=noise,
        stochastic=plan.stochastic,
        history=[h for h in (h0, h1, h2) if h is not None],
        state=state,
        outputs=names,
    )
    return (done.prev, *(getattr(done, name) for name in names))


def _goes_on(scheduler: Any, plan: ChainPlan, key: Tensor, generator: Any) -> bool:
    """Whether a step takes the next part of the key's stream."""
    same = generator is plan.generator and key.dim() == 1 and key.is_cpu
    return same and (scheduler.noise or _base._mode) == "kernel"
