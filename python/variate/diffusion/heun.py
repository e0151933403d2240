"""Heun's method and the samplers that take it or Euler's along a straight path: EDM, and flow matching."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from .._table import Table
from ._linear import columns, term, times
from .euler import _exploding, _input_scale
from .levels import Array, Levels, kind_of, table, to_epsilon, to_x0

__all__ = ["edm", "flow_euler", "flow_heun", "heun"]


def heun(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """Two rows for each step but the last, which has one: with d = (x - x0) / sigma,

        x' = x + (sigma' - sigma) d                       the first
        x' = s + (sigma' - sigma) (d_1 + d') / 2          the second, from the first's sample s and d_1, and d' at x'

    Args:
        levels: variance exploding; the model's input is x / sqrt(sigma^2 + 1).
        timesteps: [N], what the model is told at each level.
        prediction: what the model says, see :func:`to_x0`.
        clip, quantile: x0 is clamped, or thresholded dynamically.

    Returns:
        A table of 2 N - 1 rows, which save d; its state is the sample of the first row of a step.

    Raises:
        ValueError: an unknown prediction, timesteps that are not one for each step, levels that are not variance
            exploding.

    Source: Karras et al. 2022, algorithm 1.
    """
    _exploding(levels)
    twice, told = _twice(levels, timesteps)
    return two_stages(
        twice,
        told,
        prediction,
        input_scale=_input_scale(twice.sigma),
        first_scale=float(levels.sigma[0]),
        clip=clip,
        quantile=quantile,
    )


def edm(
    levels: Levels,
    timesteps: ArrayLike | None = None,
    prediction: str = "x0",
    *,
    second_order: bool = True,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    noise_scale: float = 1.0,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """The stochastic sampler of EDM. With g = min(churn / N, sqrt(2) - 1) for sigma in [churn_min, churn_max], 0
    elsewhere, and sigma^ = sigma (1 + g), a step is

        x^ = x + noise_scale sqrt(sigma^^2 - sigma^2) n
        x' = Heun's step, or Euler's, of d = (x^ - x0) / sigma^ from sigma^ to sigma'

    The noise comes before the model, so it is added at the end of the row before: what a row gives is x^, the model's
    input, and the first noise is part of the first sample.

    Args:
        levels: variance exploding.
        timesteps: [2 N - 1], or [N] without ``second_order``, what the model is told; log(sigma) / 4 if None, of the
            sigma where each row evaluates it.
        prediction: what the model says of its sample: "x0" is the denoiser D(x, sigma), with its preconditioning.
        second_order: Heun's step, which is two rows but for the last; else Euler's.

    Returns:
        A table; with ``second_order`` as :func:`heun`'s.

    Raises:
        ValueError: an unknown prediction, timesteps that are not one for each row, levels that are not variance
            exploding.

    Source: Karras et al. 2022, algorithm 2; its table 1 for log(sigma) / 4.
    """
    now, then = _exploding(levels)
    gamma = np.where((churn_min <= now) & (now <= churn_max), min(churn / len(now), math.sqrt(2) - 1), 0.0)
    hat = now * (1 + gamma)
    added = noise_scale * np.sqrt(np.maximum(hat**2 - now**2, 0.0))
    after = np.append(added[1:], 0.0)  # the next step's noise
    first_scale = float(np.hypot(now[0], added[0]))
    at = np.stack([hat, then], axis=1).reshape(-1)[:-1] if second_order else hat
    if timesteps is None:
        timesteps = np.log(at) / 4
    if second_order:
        return two_stages(
            Levels.from_sigmas(np.append(at, then[-1])),
            timesteps,
            prediction,
            noise=np.stack([np.zeros_like(after), after], axis=1).reshape(-1)[:-1],
            first_scale=first_scale,
            clip=clip,
            quantile=quantile,
        )
    x0_sample, x0_output = to_x0(prediction, 1.0, hat)
    return table(
        timesteps,
        {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "prev_sample": then / hat,
            "prev_x0": 1 - then / hat,
            "prev_noise": after,
            "denoised_x0": 1.0,
            "next_scale": 1.0,
        },
        first_scale=first_scale,
        clip=clip,
        quantile=quantile,
    )


def flow_euler(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "flow",
    *,
    stochastic: bool = False,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """x' = x + (sigma' - sigma) v, with v = (x - x0) / sigma; ``stochastic``: x' = (1 - sigma') x0 + sigma' n.

    Args:
        levels: of flow matching, alpha = 1 - sigma.
        timesteps: [N], what the model is told.
        prediction: what the model says: "flow" is v itself.
        clip, quantile: x0 is clamped, or thresholded dynamically.

    Raises:
        ValueError: an unknown prediction, timesteps that are not one for each step, levels that are not of flow
            matching.

    Source: Lipman et al. 2023, Liu et al. 2023 (rectified flow).
    """
    _straight(levels)
    (_, sigma), (_, then) = levels.now, levels.then
    x0_sample, x0_output = to_x0(prediction, *levels.now)
    v = direction(levels, prediction, clip is not None or quantile is not None, straight=True)
    rows = len(levels)
    if stochastic:
        prev = times(1 - then, term("x0", rows)) + times(then, term("noise", rows))
    else:
        prev = term("sample", rows) + times(then - sigma, v)
    return table(
        timesteps,
        {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "denoised_x0": 1.0,
            "next_scale": 1.0,
            **columns(prev=prev),
        },
        clip=clip,
        quantile=quantile,
    )


def flow_heun(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "flow",
    *,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """As :func:`heun`, with v = (x - x0) / sigma in place of d.

    Args:
        levels: of flow matching, alpha = 1 - sigma.
        timesteps: [N], what the model is told at each level.
        prediction: what the model says: "flow" is v itself.
        clip, quantile: x0 is clamped, or thresholded dynamically.

    Raises:
        ValueError: as :func:`flow_euler`.

    Source: Lipman et al. 2023.
    """
    _straight(levels)
    twice, told = _twice(levels, timesteps)
    return two_stages(twice, told, prediction, straight=True, clip=clip, quantile=quantile)


def two_stages(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str,
    *,
    straight: bool = False,
    rows_by_order: bool = False,
    noise: Array | None = None,
    input_scale: Array | None = None,
    first_scale: float = 1.0,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """Heun's rows. Row k as a first one steps from level k to the next; as a second one it repeats, from the state, the
    step of row k - 1 with both directions. Even rows are first ones; with ``rows_by_order`` there are twice the rows:
    each as a first one, then each as a second one.

    Args:
        levels: the level where each row is evaluated, and the last one.
        straight: d points along flow matching's path.
        noise: [rows], what second rows add.
        input_scale: [rows + 1], the scale of the model's input at each level.
    """
    rows = len(levels)
    sigma, k = levels.sigma, np.arange(rows)
    odd = k % 2 == 1
    # with churn the second row's level is where the first one's step ends, and its own step ends there too
    h = sigma[1:] - sigma[:-1]
    d = direction(levels, prediction, clip is not None or quantile is not None, straight)
    first = term("sample", rows) + times(h, d)
    second = term("state", rows) + times(h[np.maximum(k - 1, 0)] / 2, d + term("history_0", rows))
    if noise is not None:
        second += times(noise, term("noise", rows))
    prev = np.concatenate([first, second]) if rows_by_order else np.where(odd[:, None], second, first)
    repeats = 2 if rows_by_order else 1
    x0_sample, x0_output = to_x0(prediction, *levels.now)
    scale = np.ones(rows + 1) if input_scale is None else input_scale
    return table(
        np.tile(np.asarray(timesteps, dtype=np.float64), repeats),
        {
            "x0_sample": np.tile(x0_sample, repeats),
            "x0_output": np.tile(x0_output, repeats),
            "denoised_x0": 1.0,
            "next_scale": np.tile(scale[1:], repeats),
            **columns(prev=prev, saved=np.tile(d, (repeats, 1))),
        },
        history=1,
        state=True,
        keeps=[True] * rows + [False] * rows if rows_by_order else [not second for second in odd],
        clip=clip,
        quantile=quantile,
        first_scale=first_scale,
        first_input_scale=float(scale[0]),
    )


def _twice(levels: Levels, timesteps: ArrayLike) -> tuple[Levels, ArrayLike]:
    """Where each of Heun's rows is evaluated, and the last level; and what the model is told there."""
    told = np.asarray(timesteps, dtype=np.float64)
    if told.shape != (len(levels),):
        raise ValueError(f"timesteps: expected {len(levels)}, one for each step of the levels, got {told.shape}")
    middle = np.repeat(np.arange(1, len(levels)), 2)
    at = np.concatenate([[0], middle, [len(levels)]])
    return Levels(levels.alpha[at], levels.sigma[at]), told[at[:-1]]


def direction(levels: Levels, prediction: str, clipped: bool, straight: bool = False) -> Array:
    """(x - x0) / sigma: of the model's output where nothing is clipped, without the cancellation."""
    (alpha, sigma), rows = levels.now, len(levels)
    sample, output = term("sample", rows), term("output", rows)
    if not clipped and not straight:
        epsilon_sample, epsilon_output = to_epsilon(prediction, alpha, sigma)
        return times(epsilon_sample, sample) + times(epsilon_output, output)
    if not clipped and kind_of(prediction) == "flow":
        return output
    return times(1 / sigma, sample - term("x0", rows))


def _straight(levels: Levels) -> None:
    if not np.allclose(levels.alpha + levels.sigma, 1, rtol=0, atol=1e-12):
        raise ValueError("levels: expected alpha = 1 - sigma at each level, Levels.flow(sigma)")
