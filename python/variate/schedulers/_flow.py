"""variate.schedulers.FlowMatchEulerDiscreteScheduler and FlowMatchHeunDiscreteScheduler."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from diffusers.schedulers import scheduling_flow_match_euler_discrete, scheduling_flow_match_heun_discrete
from torch import Tensor

from .._table import COLUMN, Table
from ..diffusion.heun import flow_euler, two_stages
from ..diffusion.levels import Levels
from . import _base, _chain, _noising

# taken now: patch.diffusers puts ours into the class, where super() would not find it
_their_heun_step = scheduling_flow_match_heun_discrete.FlowMatchHeunDiscreteScheduler.step
_INF = float("inf")


class FlowMatchEulerDiscreteScheduler(  # type: ignore[misc]
    _base.Fused, scheduling_flow_match_euler_discrete.FlowMatchEulerDiscreteScheduler
):
    """diffusers' ``FlowMatchEulerDiscreteScheduler``, each step in one kernel.

    ``s_churn``, ``s_tmin``, ``s_tmax`` and ``s_noise`` do nothing, as there. With ``per_token_timesteps`` the model's
    output is the negative of the velocity, as there.
    """

    _variate_levels = "sigmas"
    _variate_noise_dtype = torch.float32

    def _variate_make_plan(self: Any) -> _chain.ChainPlan:
        made = _euler(self.sigmas, self.config.stochastic_sampling)
        return _chain.ChainPlan(self, made, self.sigmas.diff().unbind())

    def step(
        self: Any,
        model_output: Any,
        timestep: Any,
        sample: Any,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = _INF,
        s_noise: float = 1.0,
        generator: Any = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        _refuse_integers(timestep)
        plan: Any = _base.plan_of(self)
        rows = plan.steps
        row = self._step_index
        if row is None or not 0 <= row < rows:
            row = _base.row_of_index(self, timestep, rows)
        dtype = model_output.dtype
        if per_token_timesteps is None:
            if sample.dtype != dtype:
                sample = _base.cast(sample, model_output)
            (prev,) = _chain.chained(self, plan, row, sample, model_output, 0, generator=generator)
        else:
            sample, dtype = sample.float(), torch.promote_types(dtype, torch.float32)
            table, at = self._variate_tokens(per_token_timesteps.to(sample.device))
            stochastic = table.stochastic
            prev = _base.run(
                self,
                plan,
                table,
                at,
                sample,
                model_output,
                generator=generator,
                stochastic=stochastic,
                outputs=(),
            ).prev
        self._step_index = row + 1
        if prev.dtype != dtype:
            prev = prev.to(dtype)
        return _output(prev) if return_dict else (prev,)

    def _variate_tokens(self: Any, timesteps: Tensor) -> tuple[Table, Tensor]:
        """A row for each token: from its sigma to the greatest below it that the scheduler has, or 0."""
        sigma = timesteps.double() / self.config.num_train_timesteps
        levels = self.sigmas.to(timesteps.device).double()[:, None, None]
        then = torch.where(levels < sigma - 1e-6, levels, 0.0).amax(0)
        sign = 1.0 if self.config.stochastic_sampling else -1.0
        table = _on_device(sigma.flatten(), then.flatten(), self.config.stochastic_sampling, sign)
        return table, torch.arange(sigma.numel(), device=timesteps.device).reshape(sigma.shape)

    def scale_noise(self: Any, sample: Any, timestep: Any, noise: Any = None) -> Any:
        sigma = _noising.sigmas_at(self, timestep).double()
        return _noising.scaled(1 - sigma, sample, sigma, noise)


class FlowMatchHeunDiscreteScheduler(  # type: ignore[misc]
    _base.Fused, scheduling_flow_match_heun_discrete.FlowMatchHeunDiscreteScheduler
):
    """diffusers' ``FlowMatchHeunDiscreteScheduler``, each step in one kernel; with ``s_churn`` it takes diffusers' own
    path.

    ``prev_derivative``, ``dt`` and ``sample`` are as there.
    """

    _variate_levels = "sigmas"

    def _variate_make_plan(self: Any) -> _chain.ChainPlan:
        how = {"prediction": "flow", "straight": True, "rows_by_order": True}
        made = _chain.table_of(two_stages, Levels.flow, self.sigmas, **how)
        return _chain.ChainPlan(self, made, self.sigmas.diff().unbind())

    def step(
        self: Any,
        model_output: Any,
        timestep: Any,
        sample: Any,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = _INF,
        s_noise: float = 1.0,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        if s_churn > 0:
            return _their_heun_step(
                self, model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict
            )
        _refuse_integers(timestep)
        plan: Any = _base.plan_of(self)
        rows = plan.steps
        k = _base.row_of_index(self, timestep, rows)
        dtype = model_output.dtype
        if dtype != sample.dtype:
            sample = _base.cast(sample, model_output)
        if self.dt is None:
            prev, derivative = _chain.chained(self, plan, k, sample, model_output, _chain.SAVED)
            self.prev_derivative, self.dt, self.sample = derivative, plan.at[k], sample
        else:
            (prev,) = _chain.chained(
                self, plan, rows + k, sample, model_output, 0, self.prev_derivative, state=self.sample
            )
            self.prev_derivative = self.dt = self.sample = None
        self._step_index = k + 1
        if prev.dtype != dtype:
            prev = prev.to(dtype)
        return _output_heun(prev) if return_dict else (prev,)


def _euler(sigmas: Tensor, stochastic: bool) -> _chain.Made:
    if not sigmas.is_cpu:
        return _chain.Made(_on_device(sigmas[:-1].double(), sigmas[1:].double(), stochastic), {})
    return _chain.table_of(flow_euler, Levels.flow, sigmas, stochastic=stochastic)


def _on_device(sigma: Tensor, then: Tensor, stochastic: bool, sign: float = 1.0) -> Table:
    """The table of :func:`flow_euler` from sigmas that the host does not wait for."""
    rows = torch.zeros(len(sigma), len(COLUMN), dtype=torch.float64, device=sigma.device)
    ones = torch.ones_like(sigma)
    columns = {"x0_sample": ones, "x0_output": -sigma, "denoised_x0": ones, "next_scale": ones}
    if stochastic:
        columns |= {"prev_x0": 1 - then, "prev_noise": then}
    else:
        columns |= {"prev_sample": ones, "prev_output": sign * (then - sigma)}
    for name, values in columns.items():
        rows[:, COLUMN[name]] = values
    table = copy.copy(_any(len(sigma), stochastic))
    object.__setattr__(table, "coefficients", rows)
    return table


def _any(rows: int, stochastic: bool) -> Table:
    """A table that reads what any of these does."""
    return flow_euler(Levels.flow(np.linspace(0.9, 0.1, rows + 1)), np.full(rows, np.nan), stochastic=stochastic)


def _refuse_integers(timestep: Any) -> None:
    if isinstance(timestep, int) or (
        isinstance(timestep, Tensor) and timestep.is_cpu and timestep.dtype in (torch.int32, torch.int64)
    ):
        raise ValueError(f"timestep: expected one of scheduler.timesteps, got the integer {timestep}")


_output = _base.output_maker(scheduling_flow_match_euler_discrete.FlowMatchEulerDiscreteSchedulerOutput, "prev_sample")
_output_heun = _base.output_maker(
    scheduling_flow_match_heun_discrete.FlowMatchHeunDiscreteSchedulerOutput, "prev_sample"
)
