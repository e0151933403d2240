"""The demo's third model: a restricted Boltzmann machine, by persistent contrastive divergence, stock and fused."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .. import random
from ..functional import rbm_cd_gradient
from ..models import RBM
from .boltzmann import HIDDEN
from .digits import Digits
from .sides import BATCH
from .stock import stock_cd_gradient

__all__ = ["STEPS", "train_machines"]

STEPS = 5  # of the chains, for each step of the parameters
_LR = 0.05


def train_machines(
    digits: Digits, epochs: int, seed: int, advance: Callable[[str], None]
) -> dict[str, tuple[RBM, list[float]]]:
    """784-500 from equal parameters, and its seconds per step in each epoch: "stock" with operations of PyTorch,
    "fused" with ``rbm_cd_gradient``. Each side draws its own noise, and they alternate epoch by epoch."""
    torch.manual_seed(seed)
    machines = {name: RBM(784, HIDDEN) for name in ("stock", "fused")}
    machines["fused"].load_state_dict(machines["stock"].state_dict())
    chains = {name: torch.zeros(BATCH, 784) for name in machines}
    seconds: dict[str, list[float]] = {name: [] for name in machines}
    key = random.key(seed)

    @torch.no_grad()
    def step(name: str, x: Tensor, number: int) -> None:
        model, start = machines[name], chains[name]
        machine = (model.weight, model.visible_bias, model.hidden_bias)
        if name == "stock":
            *gradients, chains[name] = stock_cd_gradient(x, *machine, start, STEPS)
        else:
            *gradients, chains[name] = rbm_cd_gradient(
                x, *machine, steps=STEPS, persistent=start, key=key, first_step=number * STEPS
            )
        for parameter, gradient in zip(machine, gradients, strict=True):
            parameter.add_(gradient, alpha=-_LR)

    number = 0
    for epoch in range(epochs):
        batches = digits.epoch(epoch, BATCH)[:-1]
        for name in sorted(machines, reverse=epoch % 2 == 1):
            start = time.perf_counter()
            for index, x in enumerate(batches):
                step(name, x, number + index)
            seconds[name].append((time.perf_counter() - start) / len(batches))
        number += len(batches)
        advance(", ".join(f"{name} {1e3 * statistics.median(times):.1f} ms" for name, times in seconds.items()))
    return {name: (machines[name], seconds[name]) for name in machines}
