"""Noise schedules: how much of a sample is noise at each timestep, and which timesteps a solver takes. All float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..functional._checks import count as check_count

__all__ = ["BETAS", "SIGMAS", "SPACINGS", "FlowSchedule", "NoiseSchedule", "dynamic_shift"]

BETAS = ("linear", "scaled_linear", "cosine", "sigmoid", "laplace", "exp")
SPACINGS = ("leading", "trailing", "linspace")
SIGMAS = ("karras", "exponential", "beta", "lambda")

_ALIASES = {"squaredcos_cap_v2": "cosine"}
_MOST_BETA = 0.999
_LEAST_ALPHA_BAR = 2.0**-24  # of a schedule that ends in pure noise, for whoever divides by it


class NoiseSchedule:
    """A variance preserving process of T timesteps: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,
    abar_t = prod_{s <= t} (1 - beta_s).

    Args:
        train_steps: T; left out 1000, or as many as the betas given.
        betas: "linear" in beta; "scaled_linear", linear in sqrt(beta); "sigmoid" of -6 to 6;
            or by abar(t), t from 0 to 1: "cosine" (also named "squaredcos_cap_v2") cos^2((t + 0.008) / 1.008 pi / 2),
            "exp" e^(-12 t), "laplace" with a log SNR that is Laplace distributed; or T numbers.
        beta_start, beta_end: the ends of the first three.
        zero_snr: shift and scale sqrt(abar) so that the last is 0 and the first stays: the process ends in pure noise.

    Attributes:
        betas, alphas_cumprod: float64 numpy [T].
        sigmas: sqrt((1 - abar) / abar), float64 [T]: the noise where the data are not scaled. A last abar of 0 counts
            as 2^-24 there.

    Raises:
        TypeError, ValueError: a number out of range, or a schedule that is not known.

    Source: Ho et al. 2020; Nichol and Dhariwal 2021; Rombach et al. 2022; Xu et al. 2022 (sigmoid); Hang and Gu 2024
    (Laplace); Lin et al. 2024 (zero SNR).
    """

    def __init__(
        self,
        train_steps: int | None = None,
        betas: str | Sequence[float] | np.ndarray = "linear",
        *,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        zero_snr: bool = False,
    ) -> None:
        if not isinstance(betas, str):
            betas = np.asarray(betas, dtype=np.float64)
            if betas.ndim != 1 or not len(betas) or not ((betas >= 0) & (betas <= 1)).all():
                raise ValueError("betas: expected a list of numbers in [0, 1], or one of " + ", ".join(BETAS))
            if train_steps not in (None, len(betas)):
                raise ValueError(f"train_steps: expected {len(betas)}, as there are so many betas, got {train_steps}")
            train_steps = len(betas)
        train_steps = 1000 if train_steps is None else train_steps
        check_count("train_steps", train_steps, least=1)
        if not 0 <= beta_start <= beta_end <= 1:
            raise ValueError(f"beta_start, beta_end: expected 0 <= start <= end <= 1, got {beta_start}, {beta_end}")
        self.train_steps = train_steps
        values = _betas(betas, train_steps, beta_start, beta_end) if isinstance(betas, str) else betas
        self.alphas_cumprod = np.cumprod(1 - values)
        if zero_snr:
            root = np.sqrt(self.alphas_cumprod)
            if root[0] == root[-1]:
                raise ValueError("zero_snr: expected two timesteps or more, and noise between them")
            self.alphas_cumprod = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
            values = 1 - self.alphas_cumprod / np.append(1.0, self.alphas_cumprod[:-1])
        self.betas = values

    @property
    def sigmas(self) -> np.ndarray:
        kept = np.maximum(self.alphas_cumprod, _LEAST_ALPHA_BAR)
        return np.sqrt((1 - kept) / kept)

    def timesteps(self, steps: int, spacing: str = "leading", *, offset: int = 0, endpoint: bool = True) -> np.ndarray:
        """[steps] timesteps, the noisiest first, as float64 whole numbers.

        Args:
            steps: how many.
            spacing: "leading": multiples of T // steps, and ``offset`` on top; "trailing": T - 1 and back by T / steps;
                "linspace": from T - 1 to 0.
            endpoint: False leaves out the last of steps + 1, timestep 0, of "linspace" and "leading": multistep solvers
                go from the one before to clean data.

        Raises:
            ValueError: no steps, more steps than the schedule has timesteps, an unknown spacing.
        """
        check_steps(steps, self.train_steps)
        points = steps if endpoint else steps + 1
        if spacing == "linspace":
            found = np.linspace(0, self.train_steps - 1, points).round()[::-1][:steps]
        elif spacing == "leading":
            found = (np.arange(points) * max(self.train_steps // points, 1))[::-1][:steps] + float(offset)
        elif spacing == "trailing":
            found = np.round(self.train_steps - np.arange(steps) * (self.train_steps / steps)) - 1
        else:
            raise ValueError(f"spacing: expected one of {', '.join(SPACINGS)}, got {spacing!r}")
        if found[0] >= self.train_steps:
            raise ValueError(f"offset: timestep {found[0]:.0f} is beyond the last, {self.train_steps - 1}")
        return np.ascontiguousarray(found, dtype=np.float64)

    def sigmas_of(self, timesteps: np.ndarray) -> np.ndarray:
        """The sigmas of timesteps, between two whole ones by linear interpolation."""
        return np.interp(timesteps, np.arange(self.train_steps), self.sigmas)

    def timesteps_of(self, sigmas: np.ndarray) -> np.ndarray:
        """The timesteps of sigmas, by linear interpolation in log sigma, and not rounded."""
        return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(self.sigmas), np.arange(self.train_steps))

    def spaced(
        self,
        steps: int,
        spacing: str = "linspace",
        sigmas: str | None = None,
        *,
        offset: int = 0,
        endpoint: bool = True,
        final: str = "zero",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(timesteps [steps], sigmas [steps + 1]): the sigmas of ``timesteps(...)``; or, with ``sigmas``, those between
        the least and the greatest spaced anew: "karras" evenly in sigma^(1/7), "exponential" and "lambda" in log sigma,
        "beta" by quantiles of Beta(0.6, 0.6). The last sigma is 0, or with final="sigma_min" the schedule's least.

        Raises:
            ValueError: as for ``timesteps``; an unknown word.

        Source: Karras et al. 2022; Lu et al. 2022 (lambda); Lee et al. 2024 (beta).
        """
        if final not in ("zero", "sigma_min"):
            raise ValueError(f"final: expected 'zero' or 'sigma_min', got {final!r}")
        own = self.sigmas
        if sigmas is None:
            times = self.timesteps(steps, spacing, offset=offset, endpoint=endpoint)
            levels = self.sigmas_of(times)
        else:
            check_steps(steps, self.train_steps)
            low = own[0] if sigma_min is None else sigma_min
            levels = spaced_sigmas(sigmas, steps, low, own[-1] if sigma_max is None else sigma_max)
            times = self.timesteps_of(levels)
        return times, np.append(levels, 0.0 if final == "zero" else own[0])


class FlowSchedule:
    """A straight line from data to noise: x = (1 - sigma) x_0 + sigma eps, the timestep T sigma.

    With a shift s the sigmas are moved to s sigma / (1 + (s - 1) sigma): more steps where there is more noise. A
    dynamic shift mu is ``shift=math.exp(mu)``, and ``dynamic_shift`` gives that of a number of tokens.

    Args:
        train_steps: T, what sigma = 1 is called to the model.
        shift: s.

    Raises:
        TypeError, ValueError: a number out of range.

    Source: Lipman et al. 2023; Liu et al. 2023; Esser et al. 2024 (shift).
    """

    def __init__(self, train_steps: int = 1000, *, shift: float = 1.0) -> None:
        check_count("train_steps", train_steps, least=1)
        if not 0 < shift < math.inf:
            raise ValueError(f"shift: expected a finite number above 0, got {shift}")
        self.train_steps, self.shift = train_steps, float(shift)

    def shifted(self, sigmas: np.ndarray) -> np.ndarray:
        """s sigma / (1 + (s - 1) sigma)."""
        return self.shift * sigmas / (1 + (self.shift - 1) * sigmas)

    def spaced(
        self,
        steps: int,
        sigmas: str | Sequence[float] | np.ndarray | None = None,
        *,
        first: float = 1.0,
        last: float | None = None,
        terminal: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(timesteps [steps], sigmas [steps + 1]) of which the last is 0.

        Args:
            steps: how many.
            sigmas: the steps' own, before the shift; or how the shifted ones are spaced anew between their ends:
                "karras", "exponential", "beta" or "lambda"; evenly from ``first`` to ``last`` where left out.
            first, last: before the shift; 1 and 1 / T.
            terminal: stretch the shifted sigmas so that the last step's is this one.

        Raises:
            ValueError: no steps, more than T, a number out of range, an unknown word.
        """
        check_steps(steps, self.train_steps)
        last = 1 / self.train_steps if last is None else last
        if sigmas is None or isinstance(sigmas, str):
            if not 0 < last <= first <= 1:
                raise ValueError(f"first, last: expected 0 < last <= first <= 1, got {first}, {last}")
            own = np.linspace(first, last, steps)
        else:
            own = np.asarray(sigmas, dtype=np.float64)
            if own.shape != (steps,) or not ((own > 0) & (own <= 1)).all():
                raise ValueError(f"sigmas: expected {steps} numbers in (0, 1]")
        levels = self.shifted(own)
        if terminal is not None:
            levels = 1 - (1 - levels) * ((1 - terminal) / (1 - levels[-1]))
        if isinstance(sigmas, str):
            levels = spaced_sigmas(sigmas, steps, levels[-1], levels[0])
        return levels * self.train_steps, np.append(levels, 0.0)


def dynamic_shift(
    tokens: int, base_tokens: int = 256, most_tokens: int = 4096, base_shift: float = 0.5, most_shift: float = 1.15
) -> float:
    """mu, linear in the number of an image's tokens through (base_tokens, base_shift) and (most_tokens, most_shift).

    Source: Esser et al. 2024, section 5.3, shift e^mu with the resolution; the numbers are those of FLUX.1 (Black
    Forest Labs 2024).
    """
    return base_shift + (most_shift - base_shift) * (tokens - base_tokens) / (most_tokens - base_tokens)


def spaced_sigmas(kind: str, steps: int, low: float, high: float) -> np.ndarray:
    """[steps] sigmas from `high` down to `low`."""
    if not 0 < low <= high:
        raise ValueError(f"sigma_min, sigma_max: expected 0 < min <= max, got {low}, {high}")
    ramp = np.linspace(0, 1, steps)
    if kind == "karras":
        root = high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))
        return root**7
    if kind in ("exponential", "lambda"):
        return np.exp(math.log(high) + ramp * (math.log(low) - math.log(high)))
    if kind == "beta":
        return low + _beta_quantile(1 - ramp, 0.6) * (high - low)
    raise ValueError(f"sigmas: expected one of {', '.join(SIGMAS)}, got {kind!r}")


def check_steps(steps: int, most: int) -> None:
    check_count("steps", steps, least=1)
    if steps > most:
        raise ValueError(f"steps: expected at most {most}, the timesteps of the schedule, got {steps}")


def _betas(kind: str, count: int, start: float, end: float) -> np.ndarray:
    kind = _ALIASES.get(kind, kind)
    if kind == "linear":
        return np.linspace(start, end, count)
    if kind == "scaled_linear":
        return np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    if kind == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count)))
    t = np.arange(count + 1) / count
    if kind == "cosine":
        kept = np.cos((t + 0.008) / 1.008 * (math.pi / 2)) ** 2
    elif kind == "exp":
        kept = np.exp(-12 * t)
    elif kind == "laplace":
        log_snr = -0.5 * np.copysign(1, 0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6)
        kept = np.sqrt(1 / (1 + np.exp(-log_snr)))
    else:
        raise ValueError(f"betas: expected one of {', '.join(BETAS)}, or a list of numbers, got {kind!r}")
    return np.minimum(1 - kept[1:] / kept[:-1], _MOST_BETA)


def _beta_quantile(p: np.ndarray, a: float) -> np.ndarray:
    """The quantile of Beta(a, a) by bisection. Below 1/2 its distribution function is x^a times a power series whose
    terms fall by half; above, by symmetry."""
    k = np.arange(64)
    factors = np.cumprod(np.append(1.0, (k[:-1] + 1 - a) / (k[:-1] + 1))) / (a + k)
    half = np.sum(factors * 0.5 ** (a + k))  # at x = 1/2, where the function is 1/2
    target = np.minimum(p, 1 - p) * 2 * half
    low, high = np.zeros_like(p), np.full_like(p, 0.5)
    for _ in range(64):
        x = (low + high) / 2
        below = np.sum(factors * x[:, None] ** (a + k), axis=1) < target
        low, high = np.where(below, x, low), np.where(below, high, x)
    return np.where(p < 0.5, high, 1 - high)
