"""The demo's two trainings: stock PyTorch and ours, step by step alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models import VAE
from .stock import StockVAE

__all__ = ["BATCH", "Side", "sides_of"]

BATCH = 128


@dataclass
class Side:
    """One of the two trainings, and what it has measured."""

    model: StockVAE | VAE
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)  # one per epoch: the mean over its steps
    validation: list[float] = field(default_factory=list)  # one per epoch: the ELBO
    seconds: list[float] = field(default_factory=list)  # one per block: per step

    def step(self, x: Tensor, **noise: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.model(x, **noise)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def block(self, batches: Sequence[Tensor]) -> None:
        """Train on the batches, timed."""
        start = time.perf_counter()
        losses = [self.step(x) for x in batches]
        self.seconds.append((time.perf_counter() - start) / len(batches))
        self.losses.append(torch.stack(losses).mean().item())

    def judged(self) -> VAE:
        """The model as the evaluator takes it: the same code, images and noise judge both sides."""
        return VAE(self.model.encoder, self.model.decoder, latent_shape=20)


def sides_of(seed: int) -> dict[str, Side]:
    """Both trainings, from equal parameters."""
    torch.manual_seed(seed)
    stock, fused = StockVAE(), VAE.mlp()
    fused.load_state_dict(stock.state_dict())
    return {name: _side(model) for name, model in (("stock", stock), ("fused", fused))}


def _side(model: StockVAE | VAE) -> Side:
    return Side(model, torch.optim.Adam(model.parameters(), lr=1e-3, fused=True))
