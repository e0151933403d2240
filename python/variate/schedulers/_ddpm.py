"""variate.schedulers.DDPMScheduler."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

from .._table import Table
from ..diffusion.ancestral import VARIANCE_TYPES, ddpm
from ..diffusion.levels import Levels
from . import _base, _noising


class DDPMScheduler(_base.Fused, scheduling_ddpm.DDPMScheduler):  # type: ignore[misc]
    """diffusers' ``DDPMScheduler``, each step in one kernel.

    ``variance_type="fixed_large_log"`` is what its paper says, the standard deviation sqrt(beta); there it is NaN. A
    learned variance is for any number of channels.
    """

    def _variate_make_plan(self: Any) -> _base.Plan:
        timesteps = self.timesteps.tolist()
        rows = {t: row for row, t in reversed(list(enumerate(timesteps)))}
        return _base.Plan(self, self.alphas_cumprod, None, rows, [t > 0 for t in timesteps])

    def _variate_table(self: Any, variance_type: str) -> Table:
        timesteps = _base.host(self.timesteps)
        bar = _base.bars_at(self, timesteps)
        return ddpm(
            Levels.from_alphas_cumprod(np.append(bar, 1.0)),
            timesteps,
            self.config.prediction_type,
            # Any other name is fixed_small to diffusers.
            variance_type=variance_type if variance_type in VARIANCE_TYPES else "fixed_small",
            beta=_base.beta_of(bar, np.append(bar[1:], 1.0)),
            final_noise=bool(timesteps[-1] > 0),
            **_base.clip_of(self.config),
        )

    def step(
        self: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        plan = _base.plan_of(self)
        kind = self.variance_type
        table = plan.made.get(kind)
        if table is None:
            table = plan.made[kind] = self._variate_table(kind)
        variance = None
        if table.variance is not None:
            model_output, variance = _split(model_output, sample)
        row = _base.row_of_timestep(plan, timestep)
        if sample.dtype != model_output.dtype:
            sample = _base.cast(sample, model_output)
        draws = not isinstance(row, int) or plan.draws[row]
        if variance is None:
            prev, x0 = _base.single(self, plan, table, row, sample, model_output, generator, True, draws)
        else:
            prev, x0, *_ = _base.run(
                self,
                plan,
                table,
                row,
                sample,
                model_output,
                generator=generator,
                stochastic=True,
                draws=draws,
                variance=variance,
            )
        return _output(prev, x0) if return_dict else (prev, x0)

    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _noising.add_noise_by_alphas(self, original_samples, noise, timesteps)

    def get_velocity(self: Any, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _noising.velocity_by_alphas(self, sample, noise, timesteps)


def _split(model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    channels = sample.shape[1] if sample.dim() > 1 else 0
    if model_output.dim() < 2 or model_output.shape[1] != 2 * channels:
        raise ValueError(
            f"model_output: expected {2 * channels} channels, the prediction's and the variance's of a scheduler with "
            f"a learned variance, got shape {tuple(model_output.shape)}"
        )
    prediction, variance = model_output.split(channels, dim=1)
    return prediction, variance


_output = _base.output_maker(scheduling_ddpm.DDPMSchedulerOutput, "prev_sample", "pred_original_sample")
