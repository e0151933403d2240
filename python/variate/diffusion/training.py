"""What training a diffusion or flow-matching model chooses: times, weights, preconditioning, pairs.

All of it is plain PyTorch on one number per sample, on the device of its arguments, and waits for no device.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random
from .._optional import require

__all__ = [
    "Preconditioning",
    "couple",
    "edm_preconditioning",
    "flow_weight",
    "lognormal_sigmas",
    "loss_weight",
    "noising_table",
    "sample_times",
]

WEIGHTS = ("uniform", "snr", "min_snr", "soft_min_snr", "v", "edm")
DENSITIES = ("uniform", "logit_normal", "mode", "cosmap")
FLOW_WEIGHTS = ("uniform", "sigma_sqrt", "cosmap")
_LEAST = 1e-20  # of alpha^2 and sigma^2: at zero signal, or zero noise, a weight is its limit or very large, never NaN


def noising_table(alphas_cumprod: Tensor) -> Tensor:
    """float64 [T, 2]: (alpha, sigma) = (sqrt(abar), sqrt(1 - abar)) of each timestep, for ``noise_and_target``.

    Args:
        alphas_cumprod: abar, [T] in [0, 1].

    Source: Ho, Jain and Abbeel 2020, equation 4.
    """
    bar = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
    return torch.stack([bar.sqrt(), (1 - bar).sqrt()], -1)


def loss_weight(
    levels: Tensor,
    weighting: str = "min_snr",
    prediction: str = "epsilon",
    *,
    gamma: float = 5.0,
    sigma_data: float = 0.5,
) -> Tensor:
    """The weight of each sample's squared error in what the model predicts. By the error of x0, with snr =
    alpha^2 / sigma^2, the weightings are

        "uniform" 1 on the prediction's own error      "snr" snr          "min_snr" min(snr, gamma)
        "v" snr + 1      "edm" 1 / sigma^2 + 1 / sigma_data^2      "soft_min_snr" snr gamma / (snr + gamma)

    and what it is by the error of another prediction follows: that of epsilon is snr times as large, that of v
    (alpha^2 + sigma^2)^2 / sigma^2, of flow (alpha + sigma)^2 / sigma^2, of EDM's network 1 / c_out^2 times.

    Args:
        levels: (alpha, sigma) in the last dimension: ``table[timestep]``.
        prediction: "epsilon", "x0", "v", "flow" or "edm".
        gamma: of the two min-SNR weightings.
        sigma_data: of "edm".

    Returns:
        float32 [...]: finite where alpha or sigma is 0, as at zero terminal SNR.

    Raises:
        ValueError: an unknown weighting or prediction.

    Source: SNR and v: Salimans and Ho 2022; min-SNR: Hang et al. 2023; soft min-SNR: Crowson et al. 2024; EDM: Karras
    et al. 2022.
    """
    alpha, sigma = levels.double().unbind(-1)
    a, s = alpha.square().clamp(min=_LEAST), sigma.square().clamp(min=_LEAST)
    data = sigma_data**2
    errors = {
        "epsilon": a,
        "x0": s,
        "v": (a + s).square(),
        "flow": (a.sqrt() + s.sqrt()).square(),
        "edm": (s + data) / data,
    }
    if prediction not in errors:
        raise ValueError(f"prediction: expected one of {', '.join(errors)}, got {prediction!r}")
    error = errors[prediction]  # sigma^2 times the prediction's error, by that of x0
    if weighting not in WEIGHTS:
        flow = "; it is one of a FlowSchedule" if weighting in DENSITIES else ""
        raise ValueError(f"weighting: expected one of {', '.join(WEIGHTS)}, got {weighting!r}{flow}")
    if weighting == "uniform":
        return torch.ones_like(alpha, dtype=torch.float32)
    weight = {
        "snr": a,
        "min_snr": torch.minimum(a, gamma * s),
        "soft_min_snr": gamma * s * (a / (a + gamma * s)),
        "v": a + s,
        "edm": (s + data) / data,
    }[weighting]
    return (weight / error).float()


def flow_weight(sigma: Tensor, weighting: str = "uniform") -> Tensor:
    """The weight of each sample's squared flow error at time sigma: 1, "sigma_sqrt" sigma^-2, or "cosmap"
    2 / (pi (1 - 2 sigma + 2 sigma^2)). float32 in the shape of sigma, finite at sigma = 0.

    Raises:
        ValueError: another weighting.

    Source: Esser et al. 2024, section 3.1.
    """
    if weighting not in FLOW_WEIGHTS:
        raise ValueError(f"weighting: expected one of {', '.join(FLOW_WEIGHTS)}, got {weighting!r}")
    t = sigma.double()
    if weighting == "sigma_sqrt":
        return t.square().clamp(min=_LEAST).reciprocal().float()
    if weighting == "cosmap":
        return (2 / (math.pi * (1 - 2 * t + 2 * t.square()))).float()
    return torch.ones_like(t, dtype=torch.float32)


def sample_times(
    count: int,
    density: str = "uniform",
    *,
    mean: float = 0.0,
    std: float = 1.0,
    scale: float = 1.29,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """float32 [count]: times in [0, 1] of a density. With u uniform and n normal,

        "uniform" u      "logit_normal" sigmoid(mean + std n)      "mode" 1 - u - scale (cos^2(pi u / 2) - 1 + u)
        "cosmap" 1 - 1 / (tan(pi u / 2) + 1).

    (1 - t, t) is then the level of flow matching.

    Raises:
        ValueError: another density, or what :mod:`variate.random` refuses of count and key.

    Source: Esser et al. 2024, section 3.1.
    """
    if density not in DENSITIES:
        raise ValueError(f"density: expected one of {', '.join(DENSITIES)}, got {density!r}")
    draws: dict[str, Any] = {"key": key, "generator": generator, "device": device, "dtype": torch.float32}
    if density == "logit_normal":
        return torch.sigmoid(mean + std * random.normal(count, **draws))
    u = random.uniform(count, **draws)
    if density == "mode":
        return 1 - u - scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)
    if density == "cosmap":
        return 1 - 1 / (torch.tan(math.pi / 2 * u).abs() + 1)
    return u


def lognormal_sigmas(
    count: int,
    *,
    mean: float = -1.2,
    std: float = 1.2,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """float32 [count]: exp(mean + std n), the levels that EDM trains at.

    Raises:
        ValueError: what :mod:`variate.random` refuses of count and key.

    Source: Karras et al. 2022, table 1.
    """
    n = random.normal(count, key=key, generator=generator, device=device, dtype=torch.float32)
    return torch.exp(mean + std * n)


class Preconditioning(NamedTuple):
    """D(x) = c_skip x + c_out F(c_in x, c_noise), the denoiser D by the network F; each [B].

    Source: Karras et al. 2022, equation 7.
    """

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_preconditioning(sigma: Tensor, sigma_data: float = 0.5) -> Preconditioning:
    """c_skip = sigma_data^2 / (sigma^2 + sigma_data^2), c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2),
    c_in = 1 / sqrt(sigma^2 + sigma_data^2), c_noise = log(sigma) / 4, each [B] in the dtype of sigma.

    What F is to say, (x0 - c_skip x) / c_out, is the target of ``noise_and_target(prediction="edm")``, whose squared
    error has EDM's weight as it is. sigma: [B] floating, above 0.

    Source: Karras et al. 2022, table 1.
    """
    s = sigma.double()
    norm = (s.square() + sigma_data**2).rsqrt()
    found = (sigma_data**2 * norm.square(), s * sigma_data * norm, norm, s.log() / 4)
    return Preconditioning(*(c.to(sigma.dtype) for c in found))


def couple(x0: Tensor, noise: Tensor) -> Tensor:
    """The rows of `noise` in the order that makes sum |x0_b - noise_b|^2 least: the optimal transport between two
    batches, whose pairs make straighter flows than independent ones. It waits for the device, as SciPy assigns them.

    Args:
        x0, noise: [B, ...] of one shape.

    Raises:
        ValueError: shapes that differ.
        MissingExtra: without SciPy.

    Source: Tong et al. 2024; Pooladian et al. 2023.
    """
    if x0.shape != noise.shape or x0.dim() < 2:
        raise ValueError(f"noise: expected the shape of x0, [B, ...], {tuple(x0.shape)}, got {tuple(noise.shape)}")
    assignment = require("scipy.optimize", "sklearn").linear_sum_assignment
    a, b = x0.detach().flatten(1).float(), noise.detach().flatten(1).float()
    # |a - b|^2 but for what no assignment changes.
    _, columns = assignment((-(a @ b.t())).double().cpu().numpy())
    return noise[torch.as_tensor(columns, device=noise.device)]
