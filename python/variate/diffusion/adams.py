"""Linear multistep methods that interpolate the model's epsilon: Adams-Bashforth's in sigma, DEIS in its logarithm."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import Polynomial, polynomial
from numpy.typing import ArrayLike

from .._table import MOST_HISTORY, Table
from ._linear import columns, term, times
from .euler import _exploding, _input_scale
from .heun import direction
from .levels import Levels, table, to_x0
from .multistep import dpm_solver_pp

__all__ = ["deis", "lms"]


def lms(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    order: int = 4,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """x' = x + sum_{i < order} d_i int_sigma^sigma' l_i(s) ds, with d = (x - x0) / sigma, d_i what it was i levels ago
    and l_i the polynomial that is 1 at the sigma there and 0 at the others.

    Args:
        levels: variance exploding; the model's input is x / sqrt(sigma^2 + 1).
        timesteps: [N], what the model is told.
        prediction: what the model says, see :func:`to_x0`.
        order: 1 to 4. The first steps have the order that the outputs so far allow.
        clip, quantile: x0 is clamped, or thresholded dynamically.

    Raises:
        ValueError: an unknown prediction, timesteps that are not one for each step, levels that are not variance
            exploding, an order that is none of these.

    Source: Karras et al. 2022, the probability flow; Hairer, Norsett and Wanner, chapter III.1, for the method.
    """
    if order not in range(1, MOST_HISTORY + 2):
        raise ValueError(f"order must be 1 to {MOST_HISTORY + 1}, got {order}")
    sigma, _ = _exploding(levels)
    rows = len(levels)
    d = direction(levels, prediction, clip is not None or quantile is not None)
    weights = np.zeros((order, rows))
    for k in range(rows):
        nodes = levels.sigma[k - min(k, order - 1) : k + 1][::-1]
        for i, node in enumerate(nodes):
            others = np.delete(nodes, i)
            # in distances from here, where the polynomials lose no digits
            basis = Polynomial(polynomial.polyfromroots(others - sigma[k])) / np.prod(node - others)
            weights[i, k] = basis.integ()(levels.sigma[k + 1] - sigma[k])
    past = [d, *(term(f"history_{i}", rows) for i in range(order - 1))]
    prev = term("sample", rows) + sum(times(w, each) for w, each in zip(weights, past, strict=True))
    x0_sample, x0_output = to_x0(prediction, *levels.now)
    return table(
        timesteps,
        {
            "x0_sample": x0_sample,
            "x0_output": x0_output,
            "denoised_x0": 1.0,
            "next_scale": _input_scale(levels.sigma[1:]),
            **columns(prev=prev, saved=d),
        },
        history=order - 1,
        clip=clip,
        quantile=quantile,
        first_scale=float(sigma[0]),
        first_input_scale=float(_input_scale(sigma)[0]),
    )


def deis(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    order: int = 2,
    lower_order_final: bool = True,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """x' = alpha' / alpha x + alpha' sum_{i < order} eps_i int l_i(log r) dr from r = sigma / alpha to r' = sigma' /
    alpha', with eps_i what the model said i levels ago and l_i the polynomial that is 1 at the log r there and 0 at the
    others. This is :func:`dpm_solver_pp` with ``predict_x0=False`` and ``kind="heun"``.

    Args:
        levels, timesteps, prediction, order, lower_order_final, clip, quantile: see there.

    Raises:
        ValueError: as :func:`lms`.

    Source: Zhang and Chen 2023, DEIS, in log rho.
    """
    return dpm_solver_pp(
        levels,
        timesteps,
        prediction,
        order=order,
        kind="heun",
        predict_x0=False,
        lower_order_final=lower_order_final,
        clip=clip,
        quantile=quantile,
    )
