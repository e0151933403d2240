"""Noise levels, and what a model's prediction says about the sample without noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._table import COLUMN, COLUMNS, Table

Array: TypeAlias = NDArray[np.float64]

_PREDICTIONS = {
    "epsilon": "epsilon",
    "x0": "x0",
    "sample": "x0",
    "original_sample": "x0",
    "v": "v",
    "v_prediction": "v",
    "flow": "flow",
    "flow_prediction": "flow",
}
_LEAST_ALPHA = 1e-20  # with zero terminal SNR, epsilon says of x0 no more than a sign, which a clip makes a value


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """The noise levels of a sampler, x_k = alpha_k x0 + sigma_k eps with eps a standard normal.

    Attributes:
        alpha, sigma: float64 [N + 1]. The model is evaluated at levels 0 to N - 1; the last one is where the process
            ends, with sigma 0 or the smallest there is.
    """

    alpha: Array
    sigma: Array

    def __post_init__(self) -> None:
        for name in ("alpha", "sigma"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        if self.alpha.ndim != 1 or self.alpha.shape != self.sigma.shape:
            raise ValueError(
                f"alpha, sigma: expected two vectors of one length, got {self.alpha.shape} and {self.sigma.shape}"
            )
        if len(self.alpha) < 2:
            raise ValueError(f"levels: expected one step or more, that is two levels, got {len(self.alpha)}")

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: ArrayLike) -> Levels:
        """Variance preserving: alpha = sqrt(abar), sigma = sqrt(1 - abar)."""
        bar = np.asarray(alphas_cumprod, dtype=np.float64)
        return cls(np.sqrt(bar), np.sqrt(1 - bar))

    @classmethod
    def from_sigmas(cls, sigma: ArrayLike) -> Levels:
        """Variance exploding: alpha = 1."""
        values = np.asarray(sigma, dtype=np.float64)
        return cls(np.ones_like(values), values)

    @classmethod
    def vp_from_sigmas(cls, sigma: ArrayLike) -> Levels:
        """Variance preserving, from the sigma of the same signal-to-noise ratio where alpha is 1:
        alpha = 1 / sqrt(sigma^2 + 1), and sigma alpha."""
        values = np.asarray(sigma, dtype=np.float64)
        alpha = 1 / np.sqrt(values**2 + 1)
        return cls(alpha, values * alpha)

    @classmethod
    def flow(cls, sigma: ArrayLike) -> Levels:
        """Flow matching on the straight line: alpha = 1 - sigma."""
        values = np.asarray(sigma, dtype=np.float64)
        return cls(1 - values, values)

    def __len__(self) -> int:
        """The steps: one less than the levels."""
        return len(self.alpha) - 1

    @property
    def now(self) -> tuple[Array, Array]:
        """alpha and sigma [N] where each row is evaluated."""
        return self.alpha[:-1], self.sigma[:-1]

    @property
    def then(self) -> tuple[Array, Array]:
        """alpha and sigma [N] where each row ends."""
        return self.alpha[1:], self.sigma[1:]


def kind_of(prediction: str) -> str:
    """ "epsilon", "x0", "v" or "flow", by that name or by diffusers'."""
    kind = _PREDICTIONS.get(prediction) if isinstance(prediction, str) else None
    if kind is None:
        raise ValueError(
            'prediction: expected "epsilon", "x0" (or "sample"), "v" (or "v_prediction") or "flow" (or '
            f'"flow_prediction"), got {prediction!r}'
        )
    return kind


def to_x0(prediction: str, alpha: ArrayLike, sigma: ArrayLike) -> tuple[Array, Array]:
    """x0 = x0_sample x + x0_output m from the sample x = alpha x0 + sigma eps and the model's output m.

    ========================  ==================================================================
    "epsilon"                 m = eps:                      x0 = (x - sigma m) / alpha
    "x0", "sample"            m = x0
    "v", "v_prediction"       m = (alpha eps - sigma x0) / r:  x0 = (alpha x - sigma r m) / r^2
    "flow", "flow_prediction" m = eps - x0:                 x0 = (x - sigma m) / (alpha + sigma)
    ========================  ==================================================================

    r^2 = alpha^2 + sigma^2 is 1 where the process preserves variance. Where alpha is 1 this is the v of a model whose
    input was scaled by 1 / r.

    Args:
        alpha, sigma: float64 [N].

    Returns:
        (x0_sample, x0_output), each float64 [N]. Where alpha is 0 epsilon does not determine x0; alpha is then taken
        as 1e-20.

    Raises:
        ValueError: an unknown prediction.

    Source: Ho et al. 2020 (epsilon), Salimans and Ho 2022 (x0, v), Lipman et al. 2023 (flow).
    """
    a, s = np.asarray(alpha, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    kind = kind_of(prediction)
    if kind == "x0":
        return np.zeros_like(s), np.ones_like(s)
    if kind == "epsilon":
        a = np.maximum(a, _LEAST_ALPHA)
        return 1 / a, -s / a
    if kind == "v":
        r = np.hypot(a, s)
        return a / r**2, -s / r
    return 1 / (a + s), -s / (a + s)


def to_epsilon(prediction: str, alpha: ArrayLike, sigma: ArrayLike) -> tuple[Array, Array]:
    """eps = epsilon_sample x + epsilon_output m, as :func:`to_x0`: eps = (x - alpha x0) / sigma, with x0 not clipped.

    Returns:
        (epsilon_sample, epsilon_output), each float64 [N]. For "x0", infinite where sigma is 0.
    """
    a, s = np.asarray(alpha, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    kind = kind_of(prediction)
    if kind == "epsilon":
        return np.zeros_like(s), np.ones_like(s)
    if kind == "x0":
        with np.errstate(divide="ignore"):
            return 1 / s, -a / s
    if kind == "v":
        r = np.hypot(a, s)
        return s / r**2, a / r
    return 1 / (a + s), a / (a + s)


def table(
    timesteps: ArrayLike,
    columns: dict[str, ArrayLike],
    *,
    history: int = 0,
    state: bool = False,
    keeps: Sequence[bool] | None = None,
    clip: float | None = None,
    quantile: float | None = None,
    variance: str | None = None,
    first_scale: float = 1.0,
    first_input_scale: float = 1.0,
) -> Table:
    """A table from the columns that are not 0."""
    steps = np.asarray(timesteps, dtype=np.float64)
    if steps.ndim != 1 or len(steps) == 0:
        raise ValueError(f"timesteps: expected one for each step, one step or more, got shape {steps.shape}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip: expected None or a positive number, got {clip}")
    if quantile is not None and not 0 <= quantile <= 1:
        raise ValueError(f"quantile: expected None or a number from 0 to 1, got {quantile}")
    rows = np.zeros((len(steps), len(COLUMNS)))
    for name, values in columns.items():
        given = np.asarray(values, dtype=np.float64)
        if given.ndim > 0 and len(given) != len(steps):
            raise ValueError(f"timesteps: expected {len(given)}, one for each step of the levels, got {len(steps)}")
        rows[:, COLUMN[name]] = given
    return Table(
        torch.from_numpy(rows),
        torch.from_numpy(steps.copy()),
        first_scale=float(first_scale),
        first_input_scale=float(first_input_scale),
        history=history,
        state=state,
        keeps=keeps,
        clip=clip,
        quantile=quantile,
        variance=variance,
    )
