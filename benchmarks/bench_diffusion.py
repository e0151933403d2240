"""Training a diffusion model: noising, its target and the loss, `functional.diffusion` against its rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from variate import functional as ours
from variate.reference import diffusion as reference

from .harness import Case, Compiled, Job, Target, jobs, matches_twin

STEPS = 1000


def table(device: torch.device) -> Tensor:
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0)
    return torch.stack([bar.sqrt(), (1 - bar).sqrt()], 1).to(device)


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Any:
    """A setup: data, timesteps, the table, its rounded columns for rivals, and a model's output, a leaf."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        x0, output = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2))
        timestep = torch.randint(STEPS, shape[:1], generator=generator, device=device)
        return [x0, timestep, table(device), output.requires_grad_()]

    return setup


def spread(column: Tensor, x: Tensor) -> Tensor:
    return column.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def eager(x0: Tensor, timestep: Tensor, levels: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """As people write it, v-prediction: x_t, and the mean of the samples' losses."""
    noise = torch.randn_like(x0)
    alpha, sigma = (spread(column, x0) for column in levels[timestep].unbind(1))
    x_t = alpha * x0 + sigma * noise
    target = alpha * noise - sigma * x0
    loss = torch.nn.functional.mse_loss(output, target, reduction="none").flatten(1).mean(1)
    return x_t, loss.mean()


def expert(x0: Tensor, timestep: Tensor, levels: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Fewer passes: fused multiply-adds in place of two operations, one mean."""
    noise = torch.randn_like(x0)
    alpha, sigma = (spread(column, x0) for column in levels[timestep].unbind(1))
    x_t = torch.addcmul(alpha * x0, sigma, noise)
    target = torch.addcmul(alpha * noise, sigma, x0, value=-1)
    return x_t, torch.nn.functional.mse_loss(output, target)


def fused(x0: Tensor, timestep: Tensor, levels: Tensor, output: Tensor, **noise: Any) -> tuple[Tensor, Tensor]:
    x_t, target = ours.noise_and_target(x0, timestep, levels, prediction="v", **noise)
    return x_t, ours.denoising_loss(output, target).mean()


def twin(x0: Tensor, timestep: Tensor, levels: Tensor, output: Tensor, **noise: Any) -> tuple[Tensor, Tensor]:
    x_t, target = reference.noise_and_target(x0, timestep, levels, prediction="v", **noise)
    return x_t, reference.denoising_loss(output, target).mean()


def step(forward: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """Forward, and the gradient of the model's output."""

    def run(x0: Tensor, timestep: Tensor, levels: Tensor, output: Tensor) -> Any:
        x_t, loss = forward(x0, timestep, levels, output)
        return x_t, torch.autograd.grad(loss, output)

    return run


@dataclass(frozen=True)
class CompiledStep(Compiled):
    """The forward pass compiled, and with it the backward pass that it leaves."""

    def build(self) -> Callable[..., Any]:
        return step(super().build())


def checked(args: Sequence[Any], leaves: Sequence[int]) -> None:
    """Values and gradients, x_t and the loss apart."""
    for output in (0, 1):
        which = leaves if output else ()
        matches_twin(
            lambda *inputs, output=output, **noise: fused(*inputs, **noise)[output],
            lambda *inputs, output=output, **noise: twin(*inputs, **noise)[output],
        )(args, which)


def training(*shape: int, dtype: torch.dtype = torch.float32, targets: dict[str, float] | None = None) -> Case:
    """noise_and_target and denoising_loss with its gradient; `targets` is what the project promises."""
    elements = 1
    for size in shape:
        elements *= size
    return Case(
        family="diffusion",
        op="noise_and_target+loss",
        shape=shape,
        setup=batch(*shape, dtype=dtype),
        competitors={
            "ours": step(fused),
            "eager": step(eager),
            "expert": step(expert),
            "compile": CompiledStep(eager),
            "compile_fallback_random": CompiledStep(eager, {"fallback_random": True}),
        },
        check=checked,
        modes=("step",),
        leaves=(3,),
        targets=tuple(Target(name, at_least, "step") for name, at_least in (targets or {}).items()),
        variant=str(dtype).removeprefix("torch."),
        traffic={"step": elements * dtype.itemsize * 6},
        words={"step": elements},
    )


def noising_alone(*shape: int) -> Case:
    """noise_and_target of an epsilon model."""

    def noised(x0: Tensor, timestep: Tensor, levels: Tensor, output: Tensor, **noise: Any) -> Any:
        return ours.noise_and_target(x0, timestep, levels, **noise)

    def eager_noised(x0: Tensor, timestep: Tensor, levels: Tensor, output: Tensor) -> Any:
        noise = torch.randn_like(x0)
        alpha, sigma = (spread(column, x0) for column in levels[timestep].unbind(1))
        return alpha * x0 + sigma * noise, noise

    def twin_noised(x0: Tensor, timestep: Tensor, levels: Tensor, output: Tensor, **noise: Any) -> Any:
        return reference.noise_and_target(x0, timestep, levels, **noise)

    elements = 1
    for size in shape:
        elements *= size
    return Case(
        family="diffusion",
        op="noise_and_target",
        shape=shape,
        setup=batch(*shape),
        competitors={"ours": noised, "eager": eager_noised},
        check=matches_twin(noised, twin_noised),
        targets=(Target("eager", 1.0, "forward"),),
        traffic={"forward": elements * 12},
        words={"forward": elements},
    )


CASES = [
    training(64, 3, 32, 32, targets={"eager": 4.0, "compile": 2.0}),
    training(64, 3, 32, 32, dtype=torch.bfloat16),
    training(256, 16, targets={"eager": 1.0}),
    noising_alone(64, 3, 32, 32),
    noising_alone(16, 3, 64, 64),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_diffusion(job: Job, bench: Any) -> None:
    bench(job)
