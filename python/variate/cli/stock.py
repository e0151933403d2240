"""The demo's other half: the same models in stock PyTorch, as a user would write them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["StockVAE", "stock_cd_gradient", "stock_denoising_loss", "stock_sampling"]


class StockVAE(nn.Module):
    """784-400-20, parameters named as in ``VAE.mlp()``; ``forward(x)`` is the loss, a mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, x: Tensor, eps: Tensor | None = None) -> Tensor:
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        std = torch.exp(0.5 * log_var)
        if eps is None:  # the demo's agreement check feeds noise; training draws torch's own
            eps = torch.randn_like(std)
        logits = self.decoder(mean + eps * std)
        nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
        return (nll + kl) / x.shape[0]


def stock_cd_gradient(
    x: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, chains: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of persistent contrastive divergence for (weight, visible_bias, hidden_bias), and the chains."""
    for _ in range(steps):
        hidden = torch.bernoulli(torch.sigmoid(chains @ weight + hidden_bias))
        chains = torch.bernoulli(torch.sigmoid(hidden @ weight.t() + visible_bias))
    positive = torch.sigmoid(x @ weight + hidden_bias)
    negative = torch.sigmoid(chains @ weight + hidden_bias)
    of_weight = chains.t() @ negative / len(chains) - x.t() @ positive / len(x)
    return of_weight, chains.mean(0) - x.mean(0), negative.mean(0) - positive.mean(0), chains


def stock_denoising_loss(
    denoiser: nn.Module, x: Tensor, kept: Tensor, t: Tensor | None = None, eps: Tensor | None = None
) -> Tensor:
    """The loss of a denoiser that predicts v, at random timesteps; `kept` are the products of 1 - beta."""
    t = torch.randint(len(kept), (len(x),)) if t is None else t
    eps = torch.randn_like(x) if eps is None else eps
    alpha, sigma = kept[t, None].sqrt(), (1 - kept[t, None]).sqrt()
    return F.mse_loss(denoiser(alpha * x + sigma * eps, t), alpha * eps - sigma * x)


@torch.no_grad()
def stock_sampling(
    denoiser: nn.Module,
    size: tuple[int, int],
    kept: Tensor,
    timesteps: Sequence[int],
    noises: Sequence[Tensor] | None = None,
) -> Tensor:
    """Ancestral sampling with a denoiser that predicts v; x0 is clamped to [-1, 1]."""
    x = torch.randn(size) if noises is None else noises[0]
    for k, t in enumerate(timesteps):
        last = k + 1 == len(timesteps)
        now, then = kept[t], kept.new_ones(()) if last else kept[timesteps[k + 1]]
        v = denoiser(x, torch.full((size[0],), t))
        x0 = (now.sqrt() * x - (1 - now).sqrt() * v).clamp(-1, 1)
        beta = 1 - now / then
        x = then.sqrt() * beta / (1 - now) * x0 + (now / then).sqrt() * (1 - then) / (1 - now) * x
        if not last:
            noise = torch.randn_like(x) if noises is None else noises[k + 1]
            x = x + ((1 - then) / (1 - now) * beta).sqrt() * noise
    return x
