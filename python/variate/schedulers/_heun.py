"""variate.schedulers.HeunDiscreteScheduler."""

from __future__ import annotations

from typing import Any

from diffusers.schedulers import scheduling_heun_discrete
from torch import Tensor

from ..diffusion.heun import two_stages
from ..diffusion.levels import Levels
from . import _base, _chain, _noising

_BOTH = _chain.DENOISED | _chain.SAVED


class HeunDiscreteScheduler(_base.Fused, scheduling_heun_discrete.HeunDiscreteScheduler):  # type: ignore[misc]
    """diffusers' ``HeunDiscreteScheduler``, each step in one kernel.

    ``prev_derivative``, ``dt`` and ``sample`` are as there.
    """

    _variate_levels = "sigmas"

    def _variate_make_plan(self: Any) -> _chain.ChainPlan:
        made = _chain.table_of(
            two_stages,
            Levels.from_sigmas,
            self.sigmas,
            prediction=self.config.prediction_type,
            rows_by_order=True,
            **_base.clip_of(self.config),
        )
        return _chain.ChainPlan(self, made, self.sigmas.diff().unbind())

    def step(self: Any, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        plan: Any = _base.plan_of(self)
        rows = plan.steps
        k = self._step_index
        if k is None or not 0 <= k < rows:
            k = _base.row_of_index(self, timestep, rows)
        if model_output.dtype != sample.dtype:
            sample = _base.cast(sample, model_output)
        if self.dt is None:
            prev, x0, derivative = _chain.chained(self, plan, k, sample, model_output, _BOTH)
            self.prev_derivative, self.dt, self.sample = derivative, plan.at[k], sample
        else:
            prev, x0 = _chain.chained(
                self,
                plan,
                rows + k,
                sample,
                model_output,
                _chain.DENOISED,
                self.prev_derivative,
                None,
                None,
                self.sample,
            )
            self.prev_derivative = self.dt = self.sample = None
        self._step_index = k + 1
        return _output(prev, x0) if return_dict else (prev, x0)

    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _noising.add_noise_by_sigmas(self, original_samples, noise, timesteps)


_output = _base.output_maker(
    scheduling_heun_discrete.HeunDiscreteSchedulerOutput, "prev_sample", "pred_original_sample"
)
