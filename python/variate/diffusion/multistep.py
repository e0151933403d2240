"""Exponential integrators of high order: DPM-Solver and DPM-Solver++ with several steps or stages, and UniPC."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._table import Table
from ._linear import columns, term, times
from .levels import Array, Levels, table, to_epsilon, to_x0

__all__ = ["dpm_solver_pp", "dpm_solver_pp_singlestep", "unipc"]

IntArray: TypeAlias = NDArray[np.int64]


def dpm_solver_pp(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    order: int = 2,
    kind: str = "midpoint",
    stochastic: bool = False,
    predict_x0: bool = True,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    released: bool = False,
    rows_by_order: bool = False,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """DPM-Solver++ with several steps. With L = log(alpha / sigma), h = L' - L from this level to the next, c = 1, and
    D_n the n-th derivative along L of the model's x0, from what it said here and at the last order - 1 levels:

        x' = sigma' / sigma exp(-(c - 1) h) x + alpha' sum_{n < order} J_n D_n + [sigma' sqrt(1 - exp(-2 h)) n]
        J_n = int_0^h c exp(-c (h - u)) u^n / n! du

    ``stochastic`` has c = 2 and the noise n, the reverse stochastic equation; else it is the probability flow.

    Args:
        levels: the N + 1 noise levels, of any process; the model's input is the sample. Where the last has sigma 0, the
            last step is of first order.
        timesteps: [N], what the model is told.
        prediction: "epsilon", "x0", "v" or "flow".
        order: 1, 2 or 3. The first steps have the order that the outputs so far allow.
        kind: "midpoint" takes half the first integral in place of the second, at order 2; "heun" takes the second.
        stochastic: the reverse stochastic equation in place of the probability-flow equation.
        predict_x0: False is DPM-Solver, with D_n the derivatives of the model's epsilon in place of x0:
            x' = alpha' / alpha x - c sigma' sum_n J_n D_n + [sigma' sqrt(exp(2 h) - 1) n], J_n as above with
            exp(h - u).
        lower_order_final: with fewer than 15 steps, the last is of first order and the last but one at most of second.
        euler_at_final: the last step is of first order.
        released: the third-order step as released code has it, and not as derived here: with half of D_2, which leaves
            it of order 2, and where ``stochastic`` with J_2 - h^2 in place of J_2.
        rows_by_order: order N rows, (p - 1) N + k for step k with order p, in place of N.
        clip, quantile: x0 is clamped, or thresholded dynamically.

    Returns:
        A table whose rows read order - 1 saved tensors.

    Raises:
        ValueError: order, kind or prediction is not one of those named, or the epsilon form is asked for stochastic
            steps of third order.

    Source: Lu et al. 2022, DPM-Solver; Lu et al. 2022, DPM-Solver++.
    """
    _check(order, kind, ("midpoint", "heun"))
    if stochastic and not predict_x0 and order == 3:
        raise ValueError("stochastic steps of order 3 need predict_x0=True")
    steps = len(levels)
    said = _Model(levels, prediction, predict_x0, clip is not None or quantile is not None)
    k = np.arange(steps)
    step = _Step(levels, k, k + 1, predict_x0, stochastic)
    past = [term(f"history_{i}", steps) for i in range(order - 1)]
    nodes = [step.distance(k - i) for i in range(1, order)]
    prev = [step.first_order(term("sample", steps), said.now)]
    if order > 1:
        prev.append(prev[0] + step.second_order(said.now, past[0], nodes[0], kind))
    if order > 2:
        third = prev[0] + step.third_order(said.now, past, nodes, released, 0.5 if released else 1.0)
        prev.append(np.where(np.isfinite(nodes[1])[:, None], third, prev[1]))
    if not rows_by_order:
        orders = np.minimum(k + 1, order)
        if lower_order_final and steps < 15:
            orders = np.minimum(orders, steps - k)
        if euler_at_final or levels.sigma[-1] == 0:
            orders[-1] = 1
        prev = [np.stack(prev)[orders - 1, k]]
    return _finish(said, timesteps, prev, history=order - 1, clip=clip, quantile=quantile)


def dpm_solver_pp_singlestep(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    order: int = 2,
    kind: str = "midpoint",
    stochastic: bool = False,
    predict_x0: bool = True,
    lower_order_final: bool = True,
    orders: Sequence[int] | None = None,
    released: bool = False,
    rows_by_order: bool = False,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """DPM-Solver++ with several stages (2S, 3S): the rows of a group of ``order`` levels start from the same sample.
    The p-th of them steps from the group's first level with what the model said at the group's first p levels, by the
    formula of :func:`dpm_solver_pp`.

    Args:
        levels: the N + 1 noise levels, N model evaluations.
        timesteps, prediction, stochastic, predict_x0, released, clip, quantile: see :func:`dpm_solver_pp`.
        order: 1, 2 or 3.
        kind: as there; at order 3 "midpoint" takes the difference between the first and the last stage alone.
        lower_order_final: the last group is shorter, so that the last row is of first order or, with steps that a group
            does not divide, of the order that is left.
        orders: [N] the stage of every row, 1 where a group begins; in place of the last two.
        rows_by_order: order N rows, (p - 1) N + k for row k as stage p, in place of N.

    Returns:
        A table whose state is the sample of the group's first row.

    Raises:
        ValueError: order, kind or prediction is not one of those named, or ``orders`` skips a stage.

    Source: Lu et al. 2022, DPM-Solver; Lu et al. 2022, DPM-Solver++.
    """
    _check(order, kind, ("midpoint", "heun"))
    steps = len(levels)
    said = _Model(levels, prediction, predict_x0, clip is not None or quantile is not None)
    stages = _stages(steps, order, lower_order_final, bool(levels.sigma[-1] == 0)) if orders is None else list(orders)
    if len(stages) != steps or any(not 1 <= p <= min(order, q + 1) for q, p in zip([0, *stages], stages, strict=False)):
        raise ValueError(
            f"orders must give each of {steps} rows a stage of at most {order} and skip none, got {stages}"
        )
    k = np.arange(steps)
    state, h0, h1 = (term(name, steps) for name in ("state", "history_0", "history_1"))
    prev = [_Step(levels, k, k + 1, predict_x0, stochastic).first_order(term("sample", steps), said.now)]
    if order > 1:
        step = _Step(levels, k - 1, k + 1, predict_x0, stochastic)
        prev.append(step.first_order(state, h0) + step.second_order(h0, said.now, step.distance(k), kind))
    if order > 2:
        step = _Step(levels, k - 2, k + 1, predict_x0, stochastic)
        far, near = step.distance(k), step.distance(k - 1)
        if kind == "midpoint":
            rest = step.second_order(h1, said.now, far, "heun")
        else:
            rest = step.third_order(h1, [h0, said.now], [near, far], released)
        prev.append(step.first_order(state, h1) + rest)
    if rows_by_order:
        stages = [p for p in range(1, order + 1) for _ in k]
    else:
        prev = [np.stack(prev)[np.asarray(stages) - 1, k]]
    keeps = None if order == 1 else [p == 1 for p in stages]
    return _finish(said, timesteps, prev, history=order - 1, keeps=keeps, clip=clip, quantile=quantile)


def unipc(
    levels: Levels,
    timesteps: ArrayLike,
    prediction: str = "epsilon",
    *,
    order: int = 2,
    kind: str = "bh2",
    predict_x0: bool = True,
    lower_order_final: bool = True,
    disable_corrector: Collection[int] = (),
    rows_by_order: bool = False,
    clip: float | None = None,
    quantile: float | None = None,
) -> Table:
    """UniPC. With L = log(alpha / sigma), h = L' - L, m_i what the model said of x0 i levels ago, L_i the L there and
    D_i = (m_i - m_0) h / (L_i - L), a step of order p is

        x' = sigma' / sigma x^ + alpha' (1 - exp(-h)) m_0 - alpha' B sum_{0 < i < p} r_i D_i
        x^' = sigma' / sigma x^ + alpha' (1 - exp(-h)) m_0 - alpha' B (sum_{0 < i < p} s_i D_i + s_p (m' - m_0))

    the second, x' corrected, once m' is known. The r make the step exact where x0 is a polynomial in L of degree p - 1,
    the s where it is of degree p; but a weight that is alone is 1 / 2. A row corrects its sample x' to x^' with what
    the model says there, then predicts the next one: a single linear expression for each.

    Args:
        levels, timesteps, prediction, predict_x0, clip, quantile: see :func:`dpm_solver_pp`.
        order: 1, 2 or 3, of the predictor; the corrector has one more.
        kind: "bh1", B = -h, or "bh2", B = exp(-h) - 1.
        lower_order_final: the last step has order 1, the last but one 2, and so on.
        disable_corrector: the steps that no corrector follows.
        rows_by_order: (order + 1) order N rows in place of N: (c order + p - 1) N + k for step k, corrected with order
            c (0: not corrected) and predicted with order p.

    Returns:
        A table whose rows read ``order`` saved tensors and whose state is the corrected sample.

    Raises:
        ValueError: order, kind or prediction is not one of those named.

    Source: Zhao et al. 2023, UniPC.
    """
    _check(order, kind, ("bh1", "bh2"))
    steps = len(levels)
    said = _Model(levels, prediction, predict_x0, clip is not None or quantile is not None)
    k = np.arange(steps)
    here, last = _Step(levels, k, k + 1, predict_x0), _Step(levels, k - 1, k, predict_x0)
    sample, state = term("sample", steps), term("state", steps)
    past = [term(f"history_{i}", steps) for i in range(order)]
    corrected = [sample]
    for c in range(1, order + 1):
        nodes = [last.distance(k - 1 - i) for i in range(1, c)] + [last.h]
        update = last.first_order(state, past[0]) + last.unified(past[0], [*past[1:c], said.now], nodes, kind)
        possible = np.asarray(np.isfinite(nodes).all(axis=0))
        corrected.append(np.where(possible[:, None], update, corrected[-1]))
    before = [here.distance(k - i) for i in range(1, order)]
    predicted = []
    for start in corrected:
        rows = [here.first_order(start, said.now)]
        for p in range(2, order + 1):
            update = rows[0] + here.unified(said.now, past[: p - 1], before[: p - 1], kind)
            possible = np.asarray(np.isfinite([here.h, *before[: p - 1]]).all(axis=0))
            rows.append(np.where(possible[:, None], update, rows[-1]))
        predicted.append(rows)
    if rows_by_order:
        prev = [rows for start in predicted for rows in start]
        states = [start for start in corrected for _ in range(order)]
    else:
        orders = np.minimum(k + 1, order)
        if lower_order_final:
            orders = np.minimum(orders, steps - k)
        after = np.concatenate([[0], orders[:-1]])
        after[[i + 1 for i in disable_corrector if 0 <= i + 1 < steps]] = 0
        prev = [np.stack([np.stack(rows) for rows in predicted])[after, orders - 1, k]]
        states = [np.stack(corrected)[after, k]]
    return _finish(said, timesteps, prev, history=order, states=states, clip=clip, quantile=quantile)


class _Step:
    """The steps from level ``first`` to level ``to``, one for each row; where there is no level ``first``, anything."""

    def __init__(
        self, levels: Levels, first: IntArray, to: IntArray, predict_x0: bool, stochastic: bool = False
    ) -> None:
        with np.errstate(divide="ignore"):
            self.log_ratio = np.log(levels.alpha) - np.log(levels.sigma)
        self.exists, self.first, self.predict_x0 = first >= 0, np.maximum(first, 0), predict_x0
        alpha, sigma = levels.alpha[self.first], levels.sigma[self.first]
        alpha_to, sigma_to = levels.alpha[to], levels.sigma[to]
        c = 2.0 if stochastic else 1.0
        self.h = self.distance(to)
        self.integrals = _integrals(np.nan_to_num(self.h), -c if predict_x0 else 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            if predict_x0:
                decay = sigma_to * alpha / (sigma * alpha_to)  # exp(-h)
                self.factor, self.scale = sigma_to / sigma * decay ** (c - 1), alpha_to
                whole = alpha_to * (1 - decay**c)
                variance = sigma_to**2 * (1 - decay**2)
            else:
                grown = alpha_to * sigma / alpha  # sigma' exp(h)
                self.factor, self.scale = alpha_to / alpha, -c * sigma_to
                whole = -c * (grown - sigma_to)
                variance = grown**2 - sigma_to**2
        self.whole = np.where(np.isfinite(self.h), self.scale * self.integrals[0], whole)
        self.noise = np.sqrt(np.maximum(variance, 0.0)) if stochastic else np.zeros_like(self.h)
        self.stochastic = stochastic

    def distance(self, k: IntArray) -> Array:
        """L_k - L_first; NaN where nothing can be divided by it: it is 0 or not finite, or there is no such level."""
        with np.errstate(invalid="ignore"):
            difference = self.log_ratio[np.maximum(k, 0)] - self.log_ratio[self.first]
        return np.where(self.exists & (k >= 0) & np.isfinite(difference) & (difference != 0), difference, np.nan)

    def first_order(self, x: Array, m: Array) -> Array:
        return times(self.factor, x) + times(self.whole, m) + times(self.noise, term("noise", len(x)))

    def second_order(self, m: Array, other: Array, node: Array, kind: str) -> Array:
        """What the first derivative adds, which is the slope from m to the other."""
        weight = self.integrals[1] if kind == "heun" else self.h * self.integrals[0] / 2
        return times(np.nan_to_num(self.scale * weight / node), other - m)

    def third_order(
        self, m: Array, others: list[Array], nodes: list[Array], released: bool, part: float = 1.0
    ) -> Array:
        """What both derivatives add of the parabola through m and two others, with ``part`` of the second."""
        integral = self.integrals[2]
        if released and self.stochastic:
            integral = integral - self.h**2
        slopes = [times(np.nan_to_num(1 / node), other - m) for node, other in zip(nodes, others, strict=True)]
        apart = nodes[1] - nodes[0]
        second = times(np.nan_to_num(2 / np.where(apart == 0, np.nan, apart)), slopes[1] - slopes[0])
        first = slopes[0] - times(np.nan_to_num(nodes[0] / 2), second)
        return times(self.scale * self.integrals[1], first) + times(np.nan_to_num(self.scale * integral * part), second)

    def unified(self, m: Array, others: list[Array], nodes: list[Array], kind: str) -> Array:
        """What the differences to the others add: with a weight of B / 2 if there is one, else with those that make the
        step exact where m is a polynomial of the distance."""
        possible = np.isfinite(self.h) & np.isfinite(nodes).all(axis=0)
        for i, node in enumerate(nodes):
            for other in nodes[:i]:
                possible &= node != other
        h = np.where(possible, self.h, 1.0)
        r = [np.where(possible, node, i + 1.0) / h for i, node in enumerate(nodes)]
        if len(r) == 1:
            sign = -1.0 if self.predict_x0 else 1.0
            b = sign * h if kind == "bh1" else np.expm1(sign * h)
            weights = [sign * self.scale * b / 2]
        else:
            powers = np.stack([np.stack([x**n for x in r], axis=-1) for n in range(len(r))], axis=-2)
            moments = np.stack([math.factorial(n) * self.integrals[n] / h**n for n in range(1, len(r) + 1)], axis=-1)
            weights = list((self.scale[:, None] * np.linalg.solve(powers, moments[..., None])[..., 0]).T)
        total = np.zeros_like(m)
        for weight, x, other in zip(weights, r, others, strict=True):
            total += times(np.where(possible, weight / x, 0.0), other - m)
        return total


def _integrals(h: Array, rate: float) -> list[Array]:
    """|rate| int_0^h exp(rate (h - u)) u^n / n! du for n from 0 to 3, with no cancellation where h is small."""
    whole = np.expm1(rate * h) * np.sign(rate)
    parts = [whole]
    for n in range(1, 4):
        parts.append((parts[-1] - abs(rate) * h**n / math.factorial(n)) / rate)
    small = np.abs(rate * h) < 1
    for n in range(1, 4):
        series = sum(rate**j * h ** (n + 1 + j) / math.factorial(n + 1 + j) for j in range(18))
        parts[n] = np.where(small, abs(rate) * series, parts[n])
    return parts


class _Model:
    """What the model said, as the quantity that a solver expands: x0, or the noise."""

    def __init__(self, levels: Levels, prediction: str, predict_x0: bool, clipped: bool) -> None:
        alpha, sigma = levels.now
        if not predict_x0 and np.any(alpha == 0):
            raise ValueError("levels: expected alpha > 0 with predict_x0=False, got alpha = 0")
        exploding = bool(np.all(levels.alpha == 1))
        self.first_scale = float(sigma[0]) if exploding else 1.0
        self.x0_sample, self.x0_output = to_x0(prediction, alpha, sigma)
        sample, output, x0 = (term(name, len(levels)) for name in ("sample", "output", "x0"))
        if predict_x0:
            self.now = x0
        elif clipped:
            self.now = times(1 / sigma, sample) - times(alpha / sigma, x0)
        else:
            epsilon_sample, epsilon_output = to_epsilon(prediction, alpha, sigma)
            self.now = times(epsilon_sample, sample) + times(epsilon_output, output)


def _finish(
    said: _Model,
    timesteps: ArrayLike,
    prev: list[Array],
    *,
    history: int,
    states: list[Array] | None = None,
    keeps: list[bool] | None = None,
    clip: float | None,
    quantile: float | None,
) -> Table:
    """One block of rows for each of ``prev``."""
    repeats = len(prev)
    parts = {"prev": np.concatenate(prev), "saved": np.tile(said.now, (repeats, 1))}
    if states is not None:
        parts["state"] = np.concatenate(states)
    return table(
        np.tile(np.asarray(timesteps, np.float64), repeats),
        {
            "x0_sample": np.tile(said.x0_sample, repeats),
            "x0_output": np.tile(said.x0_output, repeats),
            "denoised_x0": 1.0,
            "next_scale": 1.0,
            **columns(**parts),
        },
        history=history,
        state=states is not None or keeps is not None,
        keeps=keeps,
        clip=clip,
        quantile=quantile,
        first_scale=said.first_scale,
    )


def _stages(steps: int, order: int, lower_order_final: bool, last_is_zero: bool) -> list[int]:
    """Groups of 1, 2, .. order; the last group is what is left, and shorter where the last row is to be of order 1."""
    stages = [k % order + 1 for k in range(steps)]
    if lower_order_final and order > 1 and stages[-1] == order:
        stages[-1] = 1
    if last_is_zero:
        stages[-1] = 1
    return stages


def _check(order: int, kind: str, kinds: Sequence[str]) -> None:
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}, got {kind!r}")
