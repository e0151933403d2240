"""variate.schedulers.EulerDiscreteScheduler and EulerAncestralDiscreteScheduler."""

from __future__ import annotations

from typing import Any

from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_euler_discrete
from torch import Tensor

from .._table import Table
from ..diffusion.euler import euler, euler_ancestral
from ..diffusion.levels import Levels
from . import _base, _noising

_INF = float("inf")
_CALM = (0.0, 0.0, _INF, 1.0)


class EulerDiscreteScheduler(_base.Fused, scheduling_euler_discrete.EulerDiscreteScheduler):  # type: ignore[misc]
    """diffusers' ``EulerDiscreteScheduler``, each step in one kernel.

    The returned samples have the model's dtype; the prediction of x0 too, where diffusers' is float32 if the sample is
    less. ``get_velocity`` takes alpha and sigma at the timestep; there they are those of another one.
    """

    _variate_levels = "sigmas"

    def _variate_make_plan(self: Any) -> _base.Plan:
        return _base.Plan(self, self.sigmas, self._variate_table(*_CALM))

    def _variate_table(self: Any, churn: float, churn_min: float, churn_max: float, noise_scale: float) -> Table:
        return euler(
            Levels.from_sigmas(_base.host(self.sigmas)),
            _base.place_holders(self),
            self.config.prediction_type,
            churn=churn,
            churn_min=churn_min,
            churn_max=churn_max,
            noise_scale=noise_scale,
        )

    def step(
        self: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = _INF,
        s_noise: float = 1.0,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        _base.refuse_integers(self, timestep)
        plan = _base.plan_of(self)
        table = plan.table
        row = _base.row_of_index(self, timestep, len(table))
        churned = False
        if s_churn > 0:
            chosen = (s_churn, s_tmin, s_tmax, s_noise)
            made = plan.made.get(chosen)
            table = plan.made[chosen] = self._variate_table(*chosen) if made is None else made
            churned = s_tmin <= float(self.sigmas[row]) <= s_tmax
        if sample.dtype != model_output.dtype:
            sample = _base.cast(sample, model_output)
        prev, x0 = _base.single(self, plan, table, row, sample, model_output, generator, churned)
        self._step_index = row + 1
        if prev.dtype != model_output.dtype:
            prev = prev.to(model_output.dtype)
        return _output(prev, x0) if return_dict else (prev, x0)

    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _noising.add_noise_by_sigmas(self, original_samples, noise, timesteps)

    def get_velocity(self: Any, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _noising.velocity_by_sigmas(self, sample, noise, timesteps)


class EulerAncestralDiscreteScheduler(  # type: ignore[misc]
    _base.Fused,
    scheduling_euler_ancestral_discrete.EulerAncestralDiscreteScheduler,
):
    """diffusers' ``EulerAncestralDiscreteScheduler``, each step in one kernel.

    The returned samples have the model's dtype; the prediction of x0 too, where diffusers' is float32 if the sample is
    less.
    """

    _variate_levels = "sigmas"

    def _variate_make_plan(self: Any) -> _base.Plan:
        prediction = self.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f'prediction_type: expected "epsilon" or "v_prediction", got {prediction!r}')
        levels = Levels.from_sigmas(_base.host(self.sigmas))
        return _base.Plan(self, self.sigmas, euler_ancestral(levels, _base.place_holders(self), prediction))

    def step(
        self: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        _base.refuse_integers(self, timestep)
        plan = _base.plan_of(self)
        table = plan.table
        row = _base.row_of_index(self, timestep, len(table))
        if sample.dtype != model_output.dtype:
            sample = _base.cast(sample, model_output)
        prev, x0 = _base.single(self, plan, table, row, sample, model_output, generator, True)
        self._step_index = row + 1
        if prev.dtype != model_output.dtype:
            prev = prev.to(model_output.dtype)
        return _output_ancestral(prev, x0) if return_dict else (prev, x0)

    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _noising.add_noise_by_sigmas(self, original_samples, noise, timesteps)


_output = _base.output_maker(
    scheduling_euler_discrete.EulerDiscreteSchedulerOutput, "prev_sample", "pred_original_sample"
)
_output_ancestral = _base.output_maker(
    scheduling_euler_ancestral_discrete.EulerAncestralDiscreteSchedulerOutput, "prev_sample", "pred_original_sample"
)
