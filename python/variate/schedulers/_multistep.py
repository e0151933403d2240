"""variate.schedulers.DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler and UniPCMultistepScheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.schedulers import (
    scheduling_dpmsolver_multistep,
    scheduling_dpmsolver_singlestep,
    scheduling_unipc_multistep,
)
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from ..diffusion.levels import Levels
from ..diffusion.multistep import dpm_solver_pp, dpm_solver_pp_singlestep, unipc
from . import _base, _chain, _noising

# taken now: patch.diffusers puts ours into the class, where super() would not find it
_their_unipc_step = scheduling_unipc_multistep.UniPCMultistepScheduler.step
_SAVED_AND_STATE = _chain.SAVED | _chain.STATE


class DPMSolverMultistepScheduler(  # type: ignore[misc]
    _base.Fused, scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler
):
    """diffusers' ``DPMSolverMultistepScheduler``, each step in one kernel.

    ``model_outputs``, ``lower_order_nums`` and ``step_index`` are as there. Steps of third order are diffusers' (see
    ``released`` of :func:`variate.diffusion.dpm_solver_pp`). A learned variance is split off whatever the channels.
    Predictions are converted at the levels that the sigmas are of: v also at those of flow matching, flow also at
    those that preserve variance, where diffusers has the formula of the other.
    """

    _variate_levels = "sigmas"
    _variate_noise_dtype = torch.float32

    def _variate_make_plan(self: Any) -> _chain.ChainPlan:
        config = self.config
        order, kind = config.solver_order, config.algorithm_type
        made = _chain.table_of(
            dpm_solver_pp,
            _levels(self),
            self.sigmas,
            prediction=config.prediction_type,
            order=order,
            kind=config.solver_type,
            stochastic=kind.startswith("sde"),
            predict_x0=kind.endswith("++"),
            released=True,
            rows_by_order=True,
            **_base.clip_of(config),
        )
        plan = _chain.ChainPlan(self, made, [])
        steps = plan.steps
        few = config.lower_order_final and steps < 15
        last = config.euler_at_final or few or config.final_sigmas_type == "zero"
        for so_far in range(order + 1):
            orders = [min(order, so_far + 1)] * steps
            if few and steps > 1:
                orders[-2] = min(orders[-2], 2)
            if last:
                orders[-1] = 1
            plan.at.append([(p - 1) * steps + k for k, p in enumerate(orders)])
        return plan

    def step(
        self: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        plan: Any = _base.plan_of(self)
        k = self._step_index
        if k is None or not 0 <= k < plan.steps:
            k = _row(self, timestep, plan.steps)
        if model_output.shape != sample.shape:
            model_output = _mean(self, model_output, sample)
        if model_output.dtype != sample.dtype:
            sample = _base.cast(sample, model_output)
        so_far, outputs = self.lower_order_nums, self.model_outputs
        most = len(outputs)
        prev, said = _chain.chained(
            self,
            plan,
            plan.at[so_far][k],
            sample,
            model_output,
            _chain.SAVED,
            outputs[-1] if most > 1 else None,
            outputs[-2] if most > 2 else None,
            None,
            None,
            generator,
            variance_noise if variance_noise is None else variance_noise.to(sample.device),
        )
        outputs.append(said)
        del outputs[0]
        if so_far < most:
            self.lower_order_nums = so_far + 1
        self._step_index = k + 1
        return _output(prev) if return_dict else (prev,)

    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return add_noise_by_levels(self, original_samples, noise, timesteps)


class DPMSolverSinglestepScheduler(  # type: ignore[misc]
    _base.Fused, scheduling_dpmsolver_singlestep.DPMSolverSinglestepScheduler
):
    """diffusers' ``DPMSolverSinglestepScheduler``, each step in one kernel.

    ``model_outputs``, ``sample``, ``order_list`` and ``step_index`` are as there.
    """

    _variate_levels = "sigmas"

    def _variate_make_plan(self: Any) -> _chain.ChainPlan:
        config = self.config
        made = _chain.table_of(
            dpm_solver_pp_singlestep,
            _levels(self),
            self.sigmas,
            prediction=config.prediction_type,
            order=config.solver_order,
            kind=config.solver_type,
            stochastic=config.algorithm_type.startswith("sde"),
            predict_x0=config.algorithm_type.endswith("++"),
            released=True,
            rows_by_order=True,
            **_base.clip_of(config),
        )
        return _chain.ChainPlan(self, made)

    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True
    ) -> Any:
        plan: Any = _base.plan_of(self)
        steps = plan.steps
        k = self._step_index
        if k is None or not 0 <= k < steps:
            k = _row(self, timestep, steps)
        if model_output.shape != sample.shape:
            model_output = _mean(self, model_output, sample)
        if model_output.dtype != sample.dtype:
            sample = _base.cast(sample, model_output)
        outputs: Any = self.model_outputs
        history = [said for said in outputs[:0:-1] if said is not None]
        order = min(self.order_list[k], len(history) + 1)
        if order == 1:
            self.sample = sample
        row = (order - 1) * steps + k
        h0, h1 = (*history, None, None)[:2]
        prev, said = _chain.chained(
            self, plan, row, sample, model_output, _chain.SAVED, h0, h1, None, self.sample, generator
        )
        outputs.append(said)
        del outputs[0]
        self._step_index = k + 1
        return _output(prev) if return_dict else (prev,)

    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return add_noise_by_levels(self, original_samples, noise, timesteps)


class UniPCMultistepScheduler(_base.Fused, scheduling_unipc_multistep.UniPCMultistepScheduler):  # type: ignore[misc]
    """diffusers' ``UniPCMultistepScheduler``: the corrector of the last step and the predictor of this one in one
    kernel.

    ``model_outputs``, ``timestep_list``, ``lower_order_nums``, ``this_order``, ``last_sample`` and ``step_index`` are
    as there. A ``solver_p`` takes diffusers' own path. A last step of higher order to sigma 0, where diffusers gives
    NaN, is of first order.
    """

    _variate_levels = "sigmas"

    def _variate_make_plan(self: Any) -> _chain.ChainPlan:
        config = self.config
        order = config.solver_order
        clip = _base.clip_of(config) if self.predict_x0 else {}
        made = _chain.table_of(
            unipc,
            _levels(self),
            self.sigmas,
            prediction=config.prediction_type,
            order=order,
            kind=config.solver_type,
            predict_x0=self.predict_x0,
            rows_by_order=True,
            **clip,
        )
        steps = len(self.sigmas) - 1
        most = [min(order, steps - k) if config.lower_order_final else order for k in range(steps)]
        return _chain.ChainPlan(self, made, most)

    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
        if self.solver_p:
            return _their_unipc_step(self, model_output, timestep, sample, return_dict)
        plan: Any = _base.plan_of(self)
        steps = plan.steps
        k = self._step_index
        if k is None or not 0 <= k < steps:
            k = _row(self, timestep, steps)
        dtype = sample.dtype
        if model_output.dtype != dtype:
            sample = _base.cast(sample, model_output)
        outputs, so_far, last = self.model_outputs, self.lower_order_nums, self.last_sample
        order = min(plan.at[k], so_far + 1)
        most = len(outputs)
        h0, h1, h2 = outputs[-1], outputs[-2] if most > 1 else None, outputs[-3] if most > 2 else None
        if k > 0 and last is not None and k - 1 not in self.disable_corrector:
            row = (self.this_order * most + order - 1) * steps + k
            prev, said, self.last_sample = _chain.chained(
                self, plan, row, sample, model_output, _SAVED_AND_STATE, h0, h1, h2, last
            )
        else:
            row = (order - 1) * steps + k
            prev, said = _chain.chained(self, plan, row, sample, model_output, _chain.SAVED, h0, h1, h2)
            self.last_sample = sample
        outputs.append(said)
        del outputs[0]
        times = self.timestep_list
        times.append(timestep)
        del times[0]
        self.this_order = order
        if so_far < most:
            self.lower_order_nums = so_far + 1
        self._step_index = k + 1
        if prev.dtype != dtype:
            prev = prev.to(dtype)
        return _output(prev) if return_dict else (prev,)

    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return add_noise_by_levels(self, original_samples, noise, timesteps)


def _row(scheduler: Any, timestep: Any, steps: int) -> int:
    """The row of a first step, or of one too many. A timestep that training has and the schedule does not is the last
    one, as in diffusers."""
    if scheduler._step_index is None and scheduler._begin_index is None:
        value = timestep.item() if isinstance(timestep, Tensor) and timestep.is_cpu else timestep
        known = not isinstance(value, Tensor) and 0 <= value < scheduler.config.num_train_timesteps
        if known and not bool((scheduler.timesteps == value).any()):
            scheduler._step_index = steps - 1
    return _base.row_of_index(scheduler, timestep, steps)


def _levels(scheduler: Any) -> Callable[[Any], Levels]:
    if scheduler.num_inference_steps is None:
        raise ValueError("timesteps: expected set_timesteps(n) before the first step, got none")
    return Levels.flow if scheduler.config.use_flow_sigmas else Levels.vp_from_sigmas


def _mean(scheduler: Any, model_output: Tensor, sample: Tensor) -> Tensor:
    """The mean of a model that says its variance too."""
    if scheduler.config.variance_type in ("learned", "learned_range") and model_output.dim() > 1:
        return model_output[:, : sample.shape[1]]
    return model_output


def add_noise_by_levels(scheduler: Any, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """alpha x0 + sigma noise."""
    sigma = _noising.sigmas_at(scheduler, timesteps).double()
    if scheduler.config.use_flow_sigmas:
        return _noising.scaled(1 - sigma, original, sigma, noise)
    alpha = (sigma**2 + 1).rsqrt()
    return _noising.scaled(alpha, original, alpha * sigma, noise)


_output = _base.output_maker(SchedulerOutput, "prev_sample")
