"""Whole fits on real digits: the estimators of `variate.sklearn` against scikit-learn's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch

from variate.data import mnist

from .harness import Case, Job, Target, jobs

DIGITS, HIDDEN, ITERATIONS = 8000, 256, 3
CHECKED, SEEDS = 2000, 8  # the digits and the fits that the check compares


def setup(dtype: type) -> Callable[[torch.device], Sequence[Any]]:
    def digits(device: torch.device) -> Sequence[Any]:
        """Grey levels in [0, 1]."""
        return ((mnist("train").images.reshape(-1, 784).numpy() / 255).astype(dtype)[:DIGITS],)

    return digits


def ours(X: Any, iterations: int = ITERATIONS, seed: int = 0) -> Any:
    from variate.sklearn import BernoulliRBM

    return BernoulliRBM(HIDDEN, n_iter=iterations, random_state=seed).fit(X)


class Stock:
    """scikit-learn's own, on as many threads as torch has; one iteration, which all of them are like."""

    def __call__(self, X: Any, iterations: int = 1, seed: int = 0) -> Any:
        from sklearn.neural_network import BernoulliRBM

        return BernoulliRBM(HIDDEN, n_iter=iterations, random_state=seed).fit(X)

    def context(self) -> AbstractContextManager[Any]:
        from threadpoolctl import threadpool_limits

        return threadpool_limits(torch.get_num_threads())


def reconstruction(model: Any, X: Any) -> float:
    """The mean squared error of the visible means at the hidden ones."""
    field = model.transform(X) @ model.components_ + model.intercept_visible_
    return float(np.square(torch.from_numpy(field).sigmoid().numpy() - X).mean())


def check(args: Sequence[Any], leaves: Sequence[int]) -> None:
    """Machines fitted by either reconstruct digits that they have not seen equally well. The draws are different, so it
    is a mean over seeds, within five standard errors of the difference."""
    seen, unseen = args[0][:CHECKED], args[0][CHECKED : 2 * CHECKED]
    errors = []
    for fit in (ours, Stock()):
        fits = (fit(seen, iterations=1, seed=seed) for seed in range(SEEDS))
        errors.append(np.array([reconstruction(model, unseen) for model in fits]))
    difference = abs(errors[0].mean() - errors[1].mean())
    allowed = 5 * np.sqrt(sum(e.var(ddof=1) for e in errors) / SEEDS)
    assert difference <= allowed, f"reconstruction: differs by {difference:.3g}, allowed {allowed:.3g}"


CASES = [
    Case(
        family="sklearn",
        op=f"BernoulliRBM.fit, {ITERATIONS} iterations",
        shape=(DIGITS, 784, HIDDEN),
        setup=setup(dtype),
        competitors={"ours": ours, "scikit-learn": Stock()},
        check=check,
        modes=("step",),
        portions={"scikit-learn": 1 / ITERATIONS},
        targets=(Target("scikit-learn", 8, "step"),),
        variant=dtype.__name__,
        devices=("cpu",),
        quick=dtype is np.float32,
    )
    for dtype in (np.float32, np.float64)
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_sklearn(job: Job, bench: Any) -> None:
    pytest.importorskip("sklearn", reason='scikit-learn is not installed: pip install "variate[sklearn]"')
    bench(job)
