"""Samplers of a variance preserving process that go from level to level by its posterior: DDPM, DDIM, LCM, TCD."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .._table import Table
from .levels import Array, Levels, table, to_epsilon, to_x0

__all__ = ["ddim", "ddpm", "lcm", "tcd"]

_FIXED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
_LEARNED = ("learned", "learned_range")
VARIANCE_TYPES = (*_FIXED, *_LEARNED)
_LEAST_VARIANCE = 1e-20  # of the posterior, whose logarithm "learned_range" interpolates


def ddpm(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    variance_type: str = "fixed_small",
    clip: float | None = None,
    quantile: float | None = None,
    final_noise: bool = False,
    beta: ArrayLike | None = None,
) -> Table:
    """Ancestral sampling. With abar = alpha^2, bar' the next level's, and beta = 1 - abar / abar',

        x' = sqrt(abar') beta / (1 - abar) x0 + sqrt(abar / abar') (1 - abar') / (1 - abar) x + sqrt(variance) n

    ==================================  =========================================================================
    "fixed_small", "fixed_small_log"    variance = beta_post = (1 - abar') / (1 - abar) beta, the posterior's
    "fixed_large", "fixed_large_log"    variance = beta
    "learned"                           variance = v, the model's
    "learned_range"                     log variance = log beta_post + (v + 1) / 2 (log beta - log beta_post)
    ==================================  =========================================================================

    Args:
        levels: variance preserving.
        timesteps: [N], what the model is told.
        prediction: what the model says, see :func:`to_x0`.
        clip, quantile: see :class:`Table`.
        final_noise: whether the last step adds noise too. Its posterior has none where it ends in sigma 0.
        beta: [N], in place of 1 - abar / abar', most of whose digits cancel where the levels are near each other.

    Raises:
        ValueError: an unknown prediction or variance type, timesteps that are not one for each step.

    Source: Ho et al. 2020, equations 6, 7 and algorithm 2; Nichol and Dhariwal 2021, equation 15 (learned_range).
    """
    if variance_type not in VARIANCE_TYPES:
        raise ValueError(f"variance_type: expected one of {', '.join(VARIANCE_TYPES)}, got {variance_type!r}")
    (alpha, sigma), (alpha_next, sigma_next) = levels.now, levels.then
    x0_sample, x0_output = to_x0(prediction, alpha, sigma)
    beta = _beta(alpha, alpha_next) if beta is None else np.asarray(beta, dtype=np.float64)
    posterior = (sigma_next / sigma) ** 2 * beta
    noise = np.ones_like(beta)
    if variance_type in _FIXED:
        noise = np.sqrt(beta if variance_type.startswith("fixed_large") else posterior)
    if not final_noise:
        noise[-1] = 0
    learned = variance_type == "learned_range"
    return table(
        timesteps,
        {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "prev_sample": alpha / alpha_next * (sigma_next / sigma) ** 2,
            "prev_x0": alpha_next * beta / sigma**2,
            "prev_noise": noise,
            "denoised_x0": 1,
            "next_scale": 1,
            "min_log_variance": np.log(np.maximum(posterior, _LEAST_VARIANCE)) if learned else 0,
            "max_log_variance": np.log(np.maximum(beta, _LEAST_VARIANCE)) if learned else 0,
        },
        clip=clip,
        quantile=quantile,
        variance=variance_type if variance_type in _LEARNED else None,
    )


def ddim(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    eta: float = 0.0,
    use_clipped: bool = False,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s n with s = eta (sigma' / sigma) sqrt(1 - (alpha / alpha')^2).

    eta = 0 is deterministic, eta = 1 has DDPM's posterior.

    Args:
        levels: variance preserving.
        timesteps: [N], what the model is told.
        prediction: what the model says, see :func:`to_x0`.
        use_clipped: eps is (x - alpha x0) / sigma of the clipped x0, not what the model says.
        clip, quantile: see :class:`Table`.

    Raises:
        ValueError: an unknown prediction, eta outside [0, 1], timesteps that are not one for each step.

    Source: Song, Meng and Ermon 2021, equations 12 and 16.
    """
    return ddim_between(
        levels.now, levels.then, timesteps, prediction, eta=eta, use_clipped=use_clipped, clip=clip, quantile=quantile
    )


def ddim_between(
    now: tuple[Array, Array],
    then: tuple[Array, Array],
    timesteps: ArrayLike,
    prediction: str,
    *,
    eta: float,
    use_clipped: bool,
    clip: float | None,
    quantile: float | None,
    beta: ArrayLike | None = None,
) -> Table:
    """:func:`ddim` of rows that are not one after the other."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected a number from 0 to 1, got {eta}")
    (alpha, sigma), (alpha_next, sigma_next) = now, then
    x0_sample, x0_output = to_x0(prediction, alpha, sigma)
    beta = _beta(alpha, alpha_next) if beta is None else np.asarray(beta, dtype=np.float64)
    noise = eta * sigma_next / sigma * np.sqrt(np.maximum(beta, 0))
    direction = np.sqrt(np.maximum(sigma_next**2 - noise**2, 0))
    if use_clipped:
        columns = {"prev_sample": direction / sigma, "prev_x0": alpha_next - direction * alpha / sigma}
    else:
        epsilon_sample, epsilon_output = to_epsilon(prediction, alpha, sigma)
        columns = {
            "prev_sample": direction * epsilon_sample,
            "prev_output": direction * epsilon_output,
            "prev_x0": alpha_next,
        }
    return table(
        timesteps,
        {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            **columns,
            "prev_noise": noise,
            "denoised_x0": 1,
            "next_scale": 1,
        },
        clip=clip,
        quantile=quantile,
    )


def lcm(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    timestep_scaling: float = 10.0,
    sigma_data: float = 0.5,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """Multistep sampling of a consistency model: denoised = c_skip x + c_out x0, x' = alpha' denoised + sigma' n, with

        c_skip = d^2 / (u^2 + d^2),    c_out = u / sqrt(u^2 + d^2),    u = timestep_scaling t,  d = sigma_data

    The last step returns denoised itself, whatever the last level is.

    Args:
        levels: variance preserving.
        timesteps: [N], what the model is told, t in the formula.
        prediction: what the model says, see :func:`to_x0`.
        clip, quantile: see :class:`Table`.

    Raises:
        ValueError: an unknown prediction, timesteps that are not one for each step.

    Source: Luo et al. 2023, equation 9 and algorithm 2; Song et al. 2023, algorithm 1.
    """
    (alpha, sigma), (alpha_next, sigma_next) = levels.now, (levels.alpha[1:].copy(), levels.sigma[1:].copy())
    alpha_next[-1], sigma_next[-1] = 1, 0
    u = np.asarray(timesteps, dtype=np.float64) * timestep_scaling
    skip, out = sigma_data**2 / (u**2 + sigma_data**2), u / np.hypot(u, sigma_data)
    x0_sample, x0_output = to_x0(prediction, alpha, sigma)
    return table(
        timesteps,
        {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "prev_sample": alpha_next * skip,
            "prev_x0": alpha_next * out,
            "prev_noise": sigma_next,
            "denoised_sample": skip,
            "denoised_x0": out,
            "next_scale": 1,
        },
        clip=clip,
        quantile=quantile,
    )


def tcd(
    levels: Levels,
    between: ArrayLike,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """Trajectory consistency sampling: down the trajectory to a level between, and up again by noise,

        x_s = alpha_s x0 + sigma_s eps,    x' = (alpha' / alpha_s) x_s + sqrt(1 - (alpha' / alpha_s)^2) n

    with eps and x0 what the model says. Where the level between is the next one, this is :func:`ddim` without noise;
    where it is sigma 0, a consistency model's step. The last step adds no noise.

    Args:
        levels: variance preserving.
        between: [N], alpha_s^2 of each step, at least the next level's.
        timesteps: [N], what the model is told.
        prediction: what the model says, see :func:`to_x0`.
        clip, quantile: see :class:`Table`.

    Raises:
        ValueError: an unknown prediction, timesteps or levels between that are not one for each step, a level between
            that is noisier than the next.

    Source: Zheng et al. 2024, algorithm 4.
    """
    (alpha, sigma), alpha_next = levels.now, levels.then[0].copy()
    bar = np.asarray(between, dtype=np.float64)
    if bar.shape != alpha.shape:
        raise ValueError(f"between: expected shape {alpha.shape}, a level for each step, got {bar.shape}")
    alpha_s, sigma_s = np.sqrt(bar), np.sqrt(1 - bar)
    alpha_next[-1] = alpha_s[-1]
    if np.any(alpha_next > alpha_s):
        raise ValueError("between: expected levels that are no noisier than the next ones")
    x0_sample, x0_output = to_x0(prediction, alpha, sigma)
    epsilon_sample, epsilon_output = to_epsilon(prediction, alpha, sigma)
    kept = alpha_next / alpha_s
    return table(
        timesteps,
        {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "prev_sample": kept * sigma_s * epsilon_sample,
            "prev_output": kept * sigma_s * epsilon_output,
            "prev_x0": alpha_next,
            "prev_noise": np.sqrt(1 - kept**2),
            "denoised_x0": 1,
            "next_scale": 1,
        },
        clip=clip,
        quantile=quantile,
    )


def _beta(alpha: Array, alpha_next: Array) -> Array:
    beta: Array = 1 - (alpha / alpha_next) ** 2
    return beta
