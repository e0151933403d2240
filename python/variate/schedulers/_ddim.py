"""variate.schedulers.DDIMScheduler."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers.schedulers import scheduling_ddim
from torch import Tensor

from .._table import Table
from ..diffusion.ancestral import ddim_between
from ..diffusion.levels import Levels
from . import _base, _noising


class DDIMScheduler(_base.Fused, scheduling_ddim.DDIMScheduler):  # type: ignore[misc]
    """diffusers' ``DDIMScheduler``, each step in one kernel."""

    def _variate_make_plan(self: Any) -> _base.Plan:
        if self.num_inference_steps is None:
            raise ValueError("timesteps: expected set_timesteps(n) before the first step")
        table = self._variate_table(0.0, False)
        # The timestep before t is t - T // n, whatever the next one is: each t has a row.
        return _base.Plan(self, self.alphas_cumprod, table, {t: t for t in range(len(table))}, by_value=True)

    def _variate_table(self: Any, eta: float, use_clipped: bool) -> Table:
        config = self.config
        bar = _base.host(self.alphas_cumprod)
        back = config.num_train_timesteps // self.num_inference_steps
        bar_next = np.full_like(bar, float(self.final_alpha_cumprod))
        bar_next[back:] = bar[: len(bar) - back]
        levels = [Levels.from_alphas_cumprod(values) for values in (bar, bar_next)]
        (now, then), timesteps = [(each.alpha, each.sigma) for each in levels], np.arange(len(bar))
        clip = _base.clip_of(config)
        return ddim_between(
            now,
            then,
            timesteps,
            config.prediction_type,
            eta=eta,
            use_clipped=use_clipped,
            beta=_base.beta_of(bar, bar_next),
            **clip,
        )

    def step(
        self: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        plan = _base.plan_of(self)
        table = plan.table
        if eta != 0 or use_clipped_model_output:
            chosen = (eta, bool(use_clipped_model_output))
            made = plan.made.get(chosen)
            table = plan.made[chosen] = self._variate_table(*chosen) if made is None else made
            if eta > 0 and generator is not None and variance_noise is not None:
                raise ValueError("variance_noise: expected None where a generator is given")
        row = _base.row_of_timestep(plan, timestep)
        if sample.dtype != model_output.dtype:
            sample = _base.cast(sample, model_output)
        if variance_noise is None or eta == 0:
            prev, x0 = _base.single(self, plan, table, row, sample, model_output, generator, eta > 0)
        else:
            prev, x0, *_ = _base.run(self, plan, table, row, sample, model_output, noise=variance_noise)
        return _output(prev, x0) if return_dict else (prev, x0)

    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _noising.add_noise_by_alphas(self, original_samples, noise, timesteps)

    def get_velocity(self: Any, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _noising.velocity_by_alphas(self, sample, noise, timesteps)


_output = _base.output_maker(scheduling_ddim.DDIMSchedulerOutput, "prev_sample", "pred_original_sample")
