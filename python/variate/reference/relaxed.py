"""Relaxed and straight-through discrete samples as an expert writes them in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import random, reparam


def gumbel_softmax(
    logits: Tensor,
    tau: float | Tensor = 1,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    if key is None and generator is None:
        return F.gumbel_softmax(logits, tau, hard, dim=dim)  # type: ignore[arg-type]
    moved = logits.movedim(dim, -1)
    noise = random.gumbel(
        moved.shape,
        key=key,
        generator=generator,
        first_sample=first_sample,
        dtype=torch.float32,
        device=logits.device,
    )
    soft = torch.softmax((moved + noise.to(moved.dtype)) / tau, -1)
    return (_straight_through(_one_hot(moved, noise), soft) if hard else soft).movedim(-1, dim)


def relaxed_bernoulli_rsample(
    logits: Tensor,
    temperature: float | Tensor,
    hard: bool = False,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    wide = logits.dtype if key is None else torch.promote_types(logits.dtype, torch.float32)
    noise = reparam.base_noise("logistic", logits.shape, None, False, key, generator, first_sample, wide, logits.device)
    soft = torch.sigmoid((logits + noise.to(logits.dtype)) / temperature)
    if not hard:
        return soft
    sum_ = logits.to(wide) + noise
    return _straight_through(torch.where(sum_.isnan(), sum_, (sum_ > 0).to(wide)).to(logits.dtype), soft)


def bernoulli_straight_through(
    logits: Tensor,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    wide = logits.dtype if key is None else torch.promote_types(logits.dtype, torch.float32)
    probs = torch.sigmoid(logits.detach().to(wide))
    drawn = random.bernoulli(probs, key=key, generator=generator, first_sample=first_sample)
    return _straight_through(drawn.to(logits.dtype), torch.sigmoid(logits))


def categorical_straight_through(
    logits: Tensor,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    if key is None:
        index = random.categorical(logits.detach(), generator=generator)
        hard = F.one_hot(index, logits.shape[-1]).to(logits.dtype)
    else:
        noise = random.gumbel(
            logits.shape, key=key, first_sample=first_sample, dtype=torch.float32, device=logits.device
        )
        hard = _one_hot(logits, noise)
    return _straight_through(hard, torch.softmax(logits, -1))


def _one_hot(logits: Tensor, noise: Tensor) -> Tensor:
    """1 at the first of the largest scores, NaN where one is; written for torch.func, which has no scatter_."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    scores = logits.detach().to(wide) + noise.to(wide)
    if scores.numel() == 0:
        return scores.to(logits.dtype)
    index = torch.arange(scores.shape[-1], device=scores.device)
    hard = (index == scores.argmax(-1, keepdim=True)).to(wide)
    return torch.where(scores.isnan().any(-1, keepdim=True), torch.nan, hard).to(logits.dtype)


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of one with the gradient of the other; the difference is 0 exactly."""
    return hard.detach() + (soft - soft.detach())
