"""The demo's fourth model: a denoiser of grey digits, trained and sampled by operations of PyTorch and by ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import random, reference
from ..diffusion import NoiseSchedule, sample, solver
from ..models import Diffusion
from .digits import Digits
from .sides import BATCH
from .stock import stock_denoising_loss, stock_sampling

__all__ = ["DRAWN", "STEPS", "Denoising", "equal_losses", "equal_samples", "train_denoisers"]

STEPS = 100  # of a sampling
DRAWN = 256  # samples at a time
_REPEATS = 5  # samplings of each side
_LR = 1e-3


@dataclass
class Denoising:
    """One side's model, and its seconds per step: of each epoch's training, and of each sampling."""

    model: Diffusion
    training: list[float] = field(default_factory=list)
    sampling: list[float] = field(default_factory=list)


def train_denoisers(digits: Digits, epochs: int, seed: int, advance: Callable[[str], None]) -> dict[str, Denoising]:
    """784-256-784 with three residual layers, from equal parameters, "stock" and "fused", which take turns; each draws
    its own noise. Then samplings of both."""
    sides = _sides(seed)
    optimizers = {
        name: torch.optim.Adam(side.model.denoiser.parameters(), lr=_LR, fused=True) for name, side in sides.items()
    }
    for epoch in range(epochs):
        batches = _vectors(digits.epoch(epoch, BATCH)[:-1])
        for name in sorted(sides, reverse=epoch % 2 == 1):
            side, optimizer = sides[name], optimizers[name]
            start = time.perf_counter()
            for x in batches:
                optimizer.zero_grad()
                loss = side.model(x) if name == "fused" else _stock_loss(side.model, x)
                loss.backward()
                optimizer.step()
            side.training.append((time.perf_counter() - start) / len(batches))
        advance("training")
    for repeat in range(1 + _REPEATS):
        for name in sorted(sides, reverse=repeat % 2 == 1):
            start = time.perf_counter()
            _draw(name, sides[name].model)
            if repeat:  # the first warms up
                sides[name].sampling.append((time.perf_counter() - start) / STEPS)
    return sides


def equal_losses(digits: Digits, seed: int, steps: int = 50) -> float:
    """The largest relative difference of the first losses with equal noise, which the stock side takes from the
    plain-PyTorch reference."""
    sides = _sides(seed)
    optimizers = {name: torch.optim.Adam(side.model.denoiser.parameters(), lr=_LR) for name, side in sides.items()}
    worst = torch.zeros(())
    for step, x in zip(range(steps), _vectors(digits.epoch(0, BATCH)), strict=False):
        key = digits.step_key(step)
        t = reference.random.randint(0, 1000, (len(x), 1), key=reference.random.fold_in(key, 2))[:, 0]
        eps = reference.random.normal(*x.shape, key=key)
        losses = [sides["fused"].model(x, key=key), _stock_loss(sides["stock"].model, x, t, eps)]
        for optimizer, loss in zip(optimizers.values(), reversed(losses), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ours, theirs = (loss.detach() for loss in losses)
        worst = torch.maximum(worst, ((ours - theirs) / theirs).abs().nan_to_num(torch.inf))
    return worst.item()


def equal_samples(model: Diffusion, seed: int) -> float:
    """The largest difference of samples after all steps with equal noise, by the largest sample."""
    key, size = random.key(seed), (DRAWN, 784)
    noises = [reference.random.normal_at(size, key, 0, step) for step in range(STEPS + 1)]
    theirs = _draw("stock", model, noises)
    return ((_draw("fused", model, key=key) - theirs).abs().max() / theirs.abs().max()).nan_to_num(torch.inf).item()


def _sides(seed: int) -> dict[str, Denoising]:
    torch.manual_seed(seed)
    models = [Diffusion.mlp(784, 256, 3, "cosine", prediction="v") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    return {name: Denoising(model) for name, model in zip(("stock", "fused"), models, strict=True)}


def _vectors(batches: Sequence[Tensor]) -> list[Tensor]:
    return [2 * x.flatten(1) - 1 for x in batches]


def _stock_loss(model: Diffusion, x: Tensor, t: Tensor | None = None, eps: Tensor | None = None) -> Tensor:
    return stock_denoising_loss(model.denoiser, x, _kept(model), t, eps)


def _draw(name: str, model: Diffusion, noises: list[Tensor] | None = None, key: Tensor | None = None) -> Tensor:
    schedule = model.schedule
    assert isinstance(schedule, NoiseSchedule)
    if name == "stock":
        timesteps = schedule.timesteps(STEPS).astype(int).tolist()
        return stock_sampling(model.denoiser, (DRAWN, 784), _kept(model), timesteps, noises)
    table = solver("ddpm", schedule, STEPS, prediction="v", clip=1.0)
    return sample(model.denoiser, (DRAWN, 784), table, key=key)


def _kept(model: Diffusion) -> Tensor:
    assert isinstance(model.schedule, NoiseSchedule)
    return torch.from_numpy(model.schedule.alphas_cumprod).float()
