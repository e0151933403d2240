"""Sampling of diffusion models: a step, diffusers' schedulers on it, and the whole loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from variate import diffusion, schedulers
from variate.functional import denoise_step
from variate.reference import denoise as reference

from .harness import KEY, Case, Job, Target, compiled, jobs
from .results import TIME

SMALL, IMAGES = (256, 16), (16, 3, 64, 64)
STEPS, AT = 50, 25  # of a sampling, and the step in its middle that is timed
WORST = 2e-4  # of the largest value: what a step may differ by, some of diffusers' being sums of large terms in float32


def normals(count: int, *shape: int) -> Callable[[torch.device], Sequence[Tensor]]:
    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        return tuple(torch.randn(shape, generator=generator, device=device) for _ in range(count))

    return setup


def bytes_of(shape: Sequence[int], passes: int) -> int:
    return 4 * passes * torch.Size(shape).numel()


# A step by itself.


def ddpm_table() -> diffusion.Table:
    return diffusion.solver("ddpm", diffusion.NoiseSchedule(), STEPS, prediction="epsilon", clip=1.0)


class Step:
    """One step of DDPM, by `function`."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self.function, self.options, self.table = function, options, ddpm_table()

    def __call__(self, sample: Tensor, output: Tensor, **more: Any) -> Tensor:
        if self.table.coefficients.device != sample.device:
            self.table = self.table.to(sample.device)
        prev: Tensor = self.function(sample, output, self.table, AT, **self.options, **more).prev
        return prev


def expert_step() -> Callable[[Tensor, Tensor], Tensor]:
    """DDPM's update with its coefficients known, as an expert writes it."""
    column = {name: float(ddpm_table().column(name)[AT]) for name in diffusion.COLUMNS}

    def step(sample: Tensor, output: Tensor) -> Tensor:
        x0 = (column["x0_sample"] * sample).add_(output, alpha=column["x0_output"]).clamp_(-1.0, 1.0)
        prev = x0.mul_(column["prev_x0"]).add_(sample, alpha=column["prev_sample"])
        return prev.add_(torch.randn_like(sample), alpha=column["prev_noise"])

    return step


def check_step(args: Sequence[Any], leaves: Sequence[int]) -> None:
    key = torch.tensor(KEY, device=args[0].device)
    wide = [a.double() for a in args]
    close(Step(denoise_step)(*args, key=key), Step(reference.denoise_step)(*wide, key=key))


def close(actual: Tensor, expected: Tensor) -> None:
    error = (actual.double() - expected.double()).abs().max().item() / expected.abs().max().item()
    assert error <= WORST, f"differs from the reference by {error:.3g} of the largest value, allowed {WORST:.3g}"


# Schedulers of diffusers: the same class of each library, a step in the middle of a sampling.


class Scheduled:
    """A step of a scheduler as pipelines call it. It is the same step each time."""

    def __init__(self, module: Callable[[], Any], name: str, noise: str | None = None, **config: Any) -> None:
        self.module, self.name, self.noise, self.config = module, name, noise, config
        self.scheduler: Any = None

    def prepare(self, sample: Tensor, output: Tensor) -> None:
        self.scheduler = getattr(self.module(), self.name)(**self.config)
        if self.noise:
            self.scheduler.noise = self.noise
        self.scheduler.set_timesteps(STEPS)
        self.counts = hasattr(self.scheduler, "_step_index")
        for timestep in self.scheduler.timesteps[: AT + 1]:
            if hasattr(self.scheduler, "scale_model_input"):
                self.scheduler.scale_model_input(sample, timestep)
            self.scheduler.step(output, timestep, sample, return_dict=False)
        self.timestep = self.scheduler.timesteps[AT]

    def __call__(self, sample: Tensor, output: Tensor) -> Tensor:
        if self.scheduler is None:
            self.prepare(sample, output)
        if self.counts:
            self.scheduler._step_index = AT
        prev: Tensor = self.scheduler.step(output, self.timestep, sample, return_dict=False)[0]
        return prev


def ours_module() -> Any:
    return schedulers


def stock_module() -> Any:
    import diffusers

    return diffusers


def scheduled(
    op: str, name: str, shape: tuple[int, ...], target: float | None, passes: int, noise: bool = False, **config: Any
) -> Case:
    def check(args: Sequence[Any], leaves: Sequence[int]) -> None:
        """Every step of a sampling, of both, from the same stream of noise."""
        pair = [Scheduled(ours_module, name, "torch", **config), Scheduled(stock_module, name, **config)]
        found = []
        for side in pair:
            torch.manual_seed(0)
            side.prepare(*args)
            found.append(side(*args))
        close(*found)

    return Case(
        family="denoise",
        op=f"{op} step",
        shape=shape,
        setup=normals(2, *shape),
        competitors={
            "ours": Scheduled(ours_module, name, **config),
            "diffusers": Scheduled(stock_module, name, **config),
        },
        check=check,
        modes=("step",),
        traffic={"step": bytes_of(shape, passes)},
        words={"step": torch.Size(shape).numel() if noise else 0},
        targets=(Target("diffusers", target, "step"),) if target else (),
        quick=shape == SMALL,
    )


# The whole loop.


class Denoiser(nn.Module):
    """Three layers for vectors, with a learned vector for each timestep."""

    def __init__(self, width: int = SMALL[1], hidden: int = 128, timesteps: int = 1000) -> None:
        super().__init__()
        self.first, self.time = nn.Linear(width, hidden), nn.Embedding(timesteps, hidden)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        out: Tensor = self.rest(self.first(x) + self.time(timestep))
        return out


LOOP = 100


def loop_setup(device: torch.device) -> Sequence[Any]:
    torch.manual_seed(0)
    return (Denoiser().to(device).eval(),)


def our_loop(denoiser: Denoiser) -> Tensor:
    device = denoiser.first.weight.device
    return diffusion.sample(
        denoiser, SMALL, "ddpm", LOOP, schedule=diffusion.NoiseSchedule(), prediction="epsilon", clip=1.0, device=device
    )


class DiffusersLoop:
    """diffusers' loop as its pipelines write it, with its own schedulers or ours."""

    def __init__(self, module: Callable[[], Any]) -> None:
        self.module, self.scheduler = module, None

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser) -> Tensor:
        if self.scheduler is None:
            self.scheduler = self.module().DDPMScheduler()
        device = denoiser.first.weight.device
        self.scheduler.set_timesteps(LOOP, device=device)
        x = torch.randn(SMALL, device=device)
        for timestep in self.scheduler.timesteps:
            x = self.scheduler.step(denoiser(x, timestep), timestep, x, return_dict=False)[0]
        return x


def check_loop(args: Sequence[Any], leaves: Sequence[int]) -> None:
    """Of equal models the samples' moments agree: each mean over 256 x 16 numbers within five standard errors."""
    torch.manual_seed(0)
    found = [torch.cat([loop(*args) for _ in range(4)]) for loop in (our_loop, DiffusersLoop(stock_module))]
    for power in (1, 2):
        means = [(x**power).mean(0) for x in found]
        errors = sum(((x**power).var(0) / len(x)) for x in found).sqrt()
        worst = ((means[0] - means[1]).abs() / errors).max().item()
        assert worst <= 5, f"moment {power} differs by {worst:.2g} standard errors"


THRESHOLDED = {"thresholding": True, "sample_max_value": 2.0, "clip_sample": False}

CASES = [
    Case(
        family="denoise",
        op="denoise_step, DDPM",
        shape=shape,
        setup=normals(2, *shape),
        competitors={
            "ours": Step(denoise_step, key=torch.tensor(KEY)),
            "expert": expert_step(),
            **compiled(expert_step()),
        },
        check=check_step,
        traffic={"forward": bytes_of(shape, 3)},
        words={"forward": torch.Size(shape).numel()},
        targets=(Target(TIME, 8, "forward"),) if shape == SMALL else (),
        threaded=shape == IMAGES,
        devices=("cpu",),
    )
    for shape in (SMALL, IMAGES)
] + [
    *(scheduled("DDPM", "DDPMScheduler", shape, target, 4, noise=True) for shape, target in ((SMALL, 8), (IMAGES, 4))),
    *(scheduled("DDIM", "DDIMScheduler", shape, target, 4) for shape, target in ((SMALL, None), (IMAGES, 4))),
    *(
        scheduled("Euler ancestral", "EulerAncestralDiscreteScheduler", shape, target, 4, noise=True)
        for shape, target in ((SMALL, 5), (IMAGES, 4))
    ),
    *(scheduled("Euler", "EulerDiscreteScheduler", shape, None, 4) for shape in (SMALL, IMAGES)),
    *(
        scheduled("DPM-Solver++ 2M", "DPMSolverMultistepScheduler", shape, target, 5)
        for shape, target in ((SMALL, 9), (IMAGES, 4))
    ),
    *(scheduled("UniPC", "UniPCMultistepScheduler", shape, target, 8) for shape, target in ((SMALL, 25), (IMAGES, 8))),
    *(scheduled("Heun", "HeunDiscreteScheduler", shape, None, 5) for shape in (SMALL, IMAGES)),
    *(scheduled("flow matching Euler", "FlowMatchEulerDiscreteScheduler", shape, None, 3) for shape in (SMALL, IMAGES)),
    scheduled("DDIM with dynamic thresholding", "DDIMScheduler", IMAGES, 10, 5, **THRESHOLDED),
    Case(
        family="denoise",
        op=f"DDPM, {LOOP} steps of an MLP",
        shape=SMALL,
        setup=loop_setup,
        competitors={"ours": our_loop, "diffusers": DiffusersLoop(stock_module), "drop-in": DiffusersLoop(ours_module)},
        check=check_loop,
        modes=("step",),
        targets=(Target("diffusers", 1.7, "step"),),
    ),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_denoise(job: Job, bench: Any) -> None:
    pytest.importorskip("diffusers", reason='diffusers is not installed: pip install "variate[diffusers]"')
    bench(job)
