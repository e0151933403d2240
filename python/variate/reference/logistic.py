"""Discretised logistic likelihoods and their mixtures as an expert writes them in PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import random
from ._rows import sum_rows

LEAST_LOG_SCALE = -7.0
OUTERMOST = 0.999  # beyond it lie the outermost bins


def discretized_logistic_nll(
    mean: Tensor, log_scale: Tensor, target: Tensor, *, bits: int = 8, edges: str = "exact"
) -> Tensor:
    dtype = _dtype(mean, log_scale, target)
    x = _values(target, bits, dtype)
    return -sum_rows(_log_prob(x, mean.to(dtype), log_scale.to(dtype), bits, edges))


def discretized_logistic_mixture_nll(
    params: Tensor, target: Tensor, *, mixtures: int = 10, bits: int = 8, layout: str = "nchw", edges: str = "exact"
) -> Tensor:
    dtype = _dtype(params, target)
    x = _channels_first(_values(target, bits, dtype), layout).unsqueeze(2)
    logits, mean, log_scale, coefficients = split_mixture(_channels_first(params.to(dtype), layout), mixtures)
    if coefficients is not None:
        red, green, blue = mean.unbind(1)
        k = coefficients.tanh()
        green = green + k[:, 0] * x[:, 0]
        blue = blue + k[:, 1] * x[:, 0] + k[:, 2] * x[:, 1]
        mean = torch.stack([red, green, blue], 1)
    colours = _log_prob(x, mean, log_scale, bits, edges).sum(1)
    return -sum_rows(torch.logsumexp(F.log_softmax(logits, 1) + colours, 1))


def discretized_logistic_mixture_sample(
    params: Tensor,
    *,
    mixtures: int = 10,
    bits: int = 8,
    layout: str = "nchw",
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    dtype = _dtype(params)
    top = 2**bits - 1
    logits, mean, log_scale, coefficients = split_mixture(_channels_first(params.detach().to(dtype), layout), mixtures)
    channels = mean.shape[1]
    # Noise comes pixel by pixel, in either layout.
    rows, height, width = logits.shape[0], *logits.shape[2:]
    gumbel, logistic = _noise(rows, height * width, mixtures, channels, params.device, key, generator, first_sample)
    chosen = (logits.permute(0, 2, 3, 1) + gumbel.view(rows, height, width, mixtures).to(dtype)).argmax(-1)

    def of_chosen(values: Tensor) -> Tensor:
        return values.permute(0, 3, 4, 1, 2).gather(-1, chosen[..., None, None].expand(*chosen.shape, channels, 1))[
            ..., 0
        ]

    mean, scale = of_chosen(mean), of_chosen(log_scale).clamp(min=LEAST_LOG_SCALE).exp()
    noise = scale * logistic.view(rows, height, width, channels).to(dtype)
    k = None if coefficients is None else of_chosen(coefficients).tanh()
    levels: list[Tensor] = []
    values: list[Tensor] = []
    for c in range(channels):
        centre = mean[..., c]
        if k is not None and c == 1:
            centre = centre + k[..., 0] * values[0]
        if k is not None and c == 2:
            centre = centre + k[..., 1] * values[0] + k[..., 2] * values[1]
        drawn = ((centre + noise[..., c] + 1) * (top / 2)).clamp(0, top).round()
        levels.append(drawn.nan_to_num(0.0).to(torch.uint8))
        values.append(drawn * (2 / top) - 1)
    return torch.stack(levels, 1 if layout == "nchw" else -1)


def _log_prob(x: Tensor, mean: Tensor, log_scale: Tensor, bits: int, edges: str) -> Tensor:
    """The log probability of the bin of x, for each logistic."""
    half = 1 / (2**bits - 1)
    log_scale = log_scale.clamp(min=LEAST_LOG_SCALE)
    precision = torch.exp(-log_scale)
    middle = (x - mean) * precision
    upper, lower = middle + half * precision, middle - half * precision
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
    if edges == "exact":
        inside = below + above + torch.log(-torch.expm1(-2 * half * precision))
    else:
        mass = torch.sigmoid(upper) - torch.sigmoid(lower)
        density = middle + 2 * F.logsigmoid(-middle) - log_scale + math.log(2 * half)
        inside = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    return torch.where(x < -OUTERMOST, below, torch.where(x > OUTERMOST, above, inside))


def _dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in [t.dtype for t in tensors] else torch.float32


def _values(target: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The target in [-1, 1]."""
    if target.dtype == torch.uint8:
        return target.to(dtype) * 2 / (2**bits - 1) - 1
    return target.detach().to(dtype)


def _channels_first(image: Tensor, layout: str) -> Tensor:
    return image if layout == "nchw" else image.movedim(-1, 1)


def split_mixture(params: Tensor, mixtures: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Logits [B, M, H, W]; means, log scales and, for three colours, coefficients [B, C, M, H, W]."""
    blocks = params.shape[1] // mixtures
    logits, rest = params[:, :mixtures], params[:, mixtures:]
    if blocks == 3:
        mean, log_scale = rest.unflatten(1, (1, 2, mixtures)).unbind(2)
        return logits, mean, log_scale, None
    mean, log_scale, coefficients = rest.unflatten(1, (3, 3, mixtures)).unbind(2)
    return logits, mean, log_scale, coefficients


def _noise(
    rows: int,
    pixels: int,
    mixtures: int,
    channels: int,
    device: torch.device,
    key: Tensor | None,
    generator: torch.Generator | None,
    first_sample: int,
) -> tuple[Tensor, Tensor]:
    """Gumbel noise [rows, pixels * mixtures] and logistic noise [rows, pixels * channels]."""
    sizes = (rows, pixels * mixtures), (rows, pixels * channels)
    if key is None:
        gumbel = random.gumbel(sizes[0], generator=generator, device=device)
        uniform = torch.rand(sizes[1], generator=generator, device=device).clamp(min=torch.finfo(torch.float32).tiny)
        return gumbel, uniform.logit()
    words = random.words(sizes[1], random.fold_in(key, 1), first_sample)
    return random.gumbel(sizes[0], key=key, first_sample=first_sample), random.logistic_of(words).float()
