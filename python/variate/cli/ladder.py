"""The demo's second model: a ladder of two stochastic layers, on the same digits."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ..models import HierarchicalVAE
from .digits import Digits
from .sides import BATCH

__all__ = ["train_ladder"]


def train_ladder(
    digits: Digits, epochs: int, seed: int, advance: Callable[[float], None]
) -> tuple[HierarchicalVAE, float]:
    """784-400 with 20 and, above them, 10 latents, and its seconds per step; `advance` gets the loss of each epoch.

    For the first third of the time the weight of the KL rises to 1, balanced between the layers, so that the upper one
    finds something to say before the lower one has said it all.
    """
    torch.manual_seed(seed)
    model = HierarchicalVAE.mlp(hidden=400, latents=(10, 20))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    warm, steps, seconds = max(1, epochs // 3), 0, 0.0
    for epoch in range(epochs):
        batches = digits.epoch(epoch, BATCH)[:-1]
        model.beta, model.balance = min(1.0, (epoch + 1) / warm), epoch < warm
        start, losses = time.perf_counter(), []
        for x in batches:
            optimizer.zero_grad()
            loss = model(x, key=digits.step_key(steps))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            steps += 1
        seconds += time.perf_counter() - start
        advance(torch.stack(losses).mean().item())
    return model, seconds / steps
