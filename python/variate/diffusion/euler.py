"""Euler's method on the probability flow of a variance exploding process, and with ancestral noise."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from .._table import Table
from .levels import Array, Levels, kind_of, table, to_x0

__all__ = ["euler", "euler_ancestral"]


def euler(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    noise_scale: float = 1.0,
) -> Table:
    """x' = x^ + (sigma' - sigma^) (x^ - x0) / sigma^, with sigma^ = sigma (1 + g) and x^ = x + noise_scale
    sqrt(sigma^^2 - sigma^2) n, where g = min(churn / N, sqrt(2) - 1) for sigma in [churn_min, churn_max], 0 elsewhere.

    The model has been evaluated at the sample x and the level sigma; x0 is read from x^ and sigma^ for a prediction
    "epsilon", from x^ and sigma for "v", as diffusers does. :func:`edm` adds the noise before the model, as the paper
    does.

    Args:
        levels: variance exploding; the model's input is x / sqrt(sigma^2 + 1).
        timesteps: [N], what the model is told.
        prediction: what the model says, see :func:`to_x0`.

    Raises:
        ValueError: an unknown prediction, timesteps that are not one for each step, levels that are not variance
            exploding.

    Source: Karras et al. 2022, algorithm 2 without its second-order correction.
    """
    sigma, sigma_next = _exploding(levels)
    gamma = np.where((churn_min <= sigma) & (sigma <= churn_max), min(churn / len(sigma), math.sqrt(2) - 1), 0)
    hat = sigma * (1 + gamma)
    added = noise_scale * np.sqrt(np.maximum(hat**2 - sigma**2, 0))
    level = hat if kind_of(prediction) in ("epsilon", "flow") else sigma
    x0_sample, x0_output = to_x0(prediction, 1.0, level)
    return table(
        timesteps,
        {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "x0_noise": x0_sample * added,
            "prev_sample": sigma_next / hat,
            "prev_x0": 1 - sigma_next / hat,
            "prev_noise": sigma_next / hat * added,
            "denoised_x0": 1,
            "next_scale": _input_scale(sigma_next),
        },
        first_scale=float(sigma[0]),
        first_input_scale=float(_input_scale(sigma)[0]),
    )


def euler_ancestral(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    eta: float = 1.0,
    noise_scale: float = 1.0,
) -> Table:
    """x' = x + (down - sigma) (x - x0) / sigma + noise_scale up n, where

        up = min(sigma', eta sigma' / sigma sqrt(sigma^2 - sigma'^2)),    down = sqrt(sigma'^2 - up^2)

    eta = 1 has the posterior's variance; eta = 0 is :func:`euler`.

    Args:
        levels: variance exploding; the model's input is x / sqrt(sigma^2 + 1).
        timesteps: [N], what the model is told.
        prediction: what the model says, see :func:`to_x0`.

    Raises:
        ValueError: an unknown prediction, timesteps that are not one for each step, levels that are not variance
            exploding.

    Source: Song et al. 2021 (score-based models, appendix F), the ancestral sampler of the variance exploding process.
    """
    sigma, sigma_next = _exploding(levels)
    variance = np.maximum(sigma**2 - sigma_next**2, 0)
    up = np.minimum(sigma_next, eta * sigma_next / sigma * np.sqrt(variance))
    down = np.sqrt(np.maximum(sigma_next**2 - up**2, 0))
    x0_sample, x0_output = to_x0(prediction, 1.0, sigma)
    return table(
        timesteps,
        {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "prev_sample": down / sigma,
            "prev_x0": 1 - down / sigma,
            "prev_noise": noise_scale * up,
            "denoised_x0": 1,
            "next_scale": _input_scale(sigma_next),
        },
        first_scale=float(sigma[0]),
        first_input_scale=float(_input_scale(sigma)[0]),
    )


def _exploding(levels: Levels) -> tuple[Array, Array]:
    if not np.all(levels.alpha == 1):
        raise ValueError("levels: expected alpha = 1 at each level, Levels.from_sigmas(sigma)")
    return levels.sigma[:-1], levels.sigma[1:]


def _input_scale(sigma: Array) -> Array:
    return 1 / np.sqrt(sigma**2 + 1)
