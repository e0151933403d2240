"""variate.schedulers.LCMScheduler."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers.schedulers import scheduling_lcm
from torch import Tensor

from ..diffusion.ancestral import lcm
from ..diffusion.levels import Levels
from . import _base, _noising


class LCMScheduler(_base.Fused, scheduling_lcm.LCMScheduler):  # type: ignore[misc]
    """diffusers' ``LCMScheduler``, each step in one kernel.

    The last of its timesteps adds no noise, also where ``strength`` has left some of them out.
    """

    _variate_wide_noise = True

    def _variate_make_plan(self: Any) -> _base.Plan:
        if self.num_inference_steps is None:
            raise ValueError("timesteps: expected set_timesteps(n) before the first step")
        timesteps = _base.host(self.timesteps)
        table = lcm(
            Levels.from_alphas_cumprod(np.append(_base.bars_at(self, timesteps), 1.0)),
            timesteps,
            self.config.prediction_type,
            timestep_scaling=self.config.timestep_scaling,
            **_base.clip_of(self.config),
        )
        return _base.Plan(self, self.alphas_cumprod, table)

    def step(
        self: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        plan = _base.plan_of(self)
        rows = len(plan.table)
        row = _base.row_of_index(self, timestep, rows)
        if sample.dtype != model_output.dtype:
            sample = _base.cast(sample, model_output)
        prev, denoised = _base.single(
            self, plan, plan.table, row, sample, model_output, generator, True, row < rows - 1
        )
        self._step_index = row + 1
        return _output(prev, denoised) if return_dict else (prev, denoised)

    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _noising.add_noise_by_alphas(self, original_samples, noise, timesteps)

    def get_velocity(self: Any, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _noising.velocity_by_alphas(self, sample, noise, timesteps)


_output = _base.output_maker(scheduling_lcm.LCMSchedulerOutput, "prev_sample", "denoised")
