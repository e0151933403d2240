"""Derive the polynomial coefficients of csrc/include/variate/math/elementary.hpp.

Each is the near-minimax polynomial of a function on a reduced interval: a weighted least-squares fit on Chebyshev
points whose weights are sharpened towards the largest error (Lawson's algorithm), with the coefficients rounded to
float32 one by one, lowest order first, and the rest refitted after each. Run `python tools/minimax.py` to print them
with the largest error of the polynomial alone, in units of 2^-24 relative to the function.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Real = np.longdouble


def lawson(design: np.ndarray, target: np.ndarray, iterations: int = 60) -> np.ndarray:
    """Coefficients c that nearly minimise max |design c - target|."""
    weight = np.ones(len(target)) / len(target)
    best, best_error = None, np.inf
    for _ in range(iterations):
        root = np.sqrt(weight)[:, None]
        coefficients = np.linalg.lstsq(design * root, target * root[:, 0], rcond=None)[0]
        residual = np.abs(design @ coefficients - target)
        if residual.max() < best_error:
            best, best_error = coefficients, residual.max()
        weight = weight * residual
        weight /= weight.sum()
    return best


def fit(function: Callable, low: float, high: float, degree: int, scale: Callable) -> tuple[np.ndarray, float]:
    """Fit `function` on [low, high] by a polynomial of `degree`; `scale(x)` turns its error into a relative one."""
    nodes = np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)
    x = (low + high) / 2 + (high - low) / 2 * nodes
    y = function(x.astype(Real)).astype(np.float64)
    weight = scale(x.astype(Real)).astype(np.float64)
    powers = np.vander(x, degree + 1, increasing=True)
    fixed: list[float] = []
    for order in range(degree + 1):
        rest = y - powers[:, :order] @ np.array(fixed)
        free = lawson(powers[:, order:] * weight[:, None], rest * weight)
        fixed.append(float(np.float32(free[0])))
    error = np.abs(powers @ np.array(fixed) - y) * weight
    return np.array(fixed), error.max() * 2**24


def log_tail(f):  # log(1 + f) = f - f^2 / 2 + f^3 P(f)
    series = sum((-1) ** (k + 1) * f ** (k - 3) / Real(k) for k in range(3, 30))
    with np.errstate(divide="ignore", invalid="ignore"):
        direct = (np.log1p(f) - f + f * f / 2) / f**3
    return np.where(np.abs(f) < 0.05, series, direct)


def exp_tail(r):  # exp(r) - 1 = r + r^2 Q(r)
    return sum(r**k / Real(np.prod(np.arange(1, k + 3, dtype=np.float64))) for k in range(0, 18))


def sin_over_r(s):  # sin(2 pi r) / r at s = r^2
    return sum((-1) ** k * (2 * Real(np.pi)) ** (2 * k + 1) * s**k / factorial(2 * k + 1) for k in range(12))


def cos_tail(s):  # (cos(2 pi r) - 1) / r^2 at s = r^2
    return sum((-1) ** (k + 1) * (2 * Real(np.pi)) ** (2 * k + 2) * s**k / factorial(2 * k + 2) for k in range(12))


def log1p_over(e):  # log(1 + e) / e
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(e) < 1e-8, 1 - e / 2, np.log1p(e) / e)


def factorial(n: int) -> Real:
    return Real(np.prod(np.arange(1, n + 1, dtype=np.float64)))


HALF_LN2 = float(np.log(2) / 2) * 1.0005
FITS = {
    "log": (log_tail, np.sqrt(0.5) - 1, np.sqrt(2) - 1, 7, lambda f: np.abs(f**2)),
    "log1p": (log1p_over, 0.0, 1.0, 9, lambda e: 1 / log1p_over(e)),
    "exp": (exp_tail, -HALF_LN2, HALF_LN2, 4, lambda r: np.abs(r)),
    "sin": (sin_over_r, 0.0, 1 / 64, 3, lambda s: 1 / sin_over_r(s)),
    "cos": (cos_tail, 0.0, 1 / 64, 3, lambda s: s),
}

if __name__ == "__main__":
    for name, arguments in FITS.items():
        coefficients, error = fit(*arguments)
        print(f"{name}: error {error:.3f} x 2^-24")
        for order, c in enumerate(coefficients):
            print(f"  c{order} = {float(c).hex()}f  // {c:.9g}")
