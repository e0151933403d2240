"""scikit-learn's estimators on this library's kernels: ``from variate.sklearn import BernoulliRBM``."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import random
from ._optional import MissingExtra
from .functional import bernoulli_straight_through

try:
    import scipy.sparse as sparse
    from sklearn.base import _fit_context
    from sklearn.neural_network import BernoulliRBM as _BernoulliRBM
    from sklearn.utils import check_random_state, gen_even_slices
    from sklearn.utils.validation import validate_data
except ModuleNotFoundError as error:
    if error.name is not None and error.name.partition(".")[0] not in ("sklearn", "scipy"):
        raise
    raise MissingExtra('scikit-learn is not installed: pip install "variate[sklearn]"') from None

__all__ = ["BernoulliRBM"]


class BernoulliRBM(_BernoulliRBM):  # type: ignore[misc]
    """``sklearn.neural_network.BernoulliRBM``: the same parameters, attributes, rule (stochastic maximum likelihood,
    one step of the persistent chains a batch) and initial weights.

    Training is float32 whatever the dtype of X, which is that of the attributes; there the weights change with every
    batch of a few rows, and a fused float product beats one that first rounds the weights to integers. Probabilities
    and scores are in the dtype of X. `random_state` seeds this library's noise, so that the draws, and what
    is learnt of them, differ from scikit-learn's by chance only.

    Raises:
        variate._optional.MissingExtra: on import, where scikit-learn is missing.
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> BernoulliRBM:
        """Fit the model to X [n_samples, n_features], dense or sparse, of values in [0, 1]; y is not looked at."""
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32))
        rng = check_random_state(self.random_state)
        rows, features = X.shape
        self.components_ = np.asarray(rng.normal(0, 0.01, (self.n_components, features)), order="F", dtype=X.dtype)
        self._n_features_out = self.n_components
        self.intercept_hidden_ = np.zeros(self.n_components, dtype=X.dtype)
        self.intercept_visible_ = np.zeros(features, dtype=X.dtype)
        self.h_samples_ = np.zeros((self.batch_size, self.n_components), dtype=X.dtype)
        training = _Training(self)
        batches = -(-rows // self.batch_size)
        slices = list(gen_even_slices(batches * self.batch_size, batches, n_samples=rows))
        data = X if sparse.issparse(X) else _single(X)
        begin = time.time()
        for iteration in range(1, self.n_iter + 1):
            keys = random.split(_key_of(rng), 2 * batches).unbind()
            for number, rows_of_batch in enumerate(slices):
                training.step(_dense(data[rows_of_batch]), *keys[2 * number : 2 * number + 2])
            if self.verbose:
                training.write(self)
                end = time.time()
                print(
                    f"[{type(self).__name__}] Iteration {iteration}, pseudo-likelihood = "
                    f"{self.score_samples(X).mean():.2f}, time = {end - begin:.2f}s"
                )
                begin = end
        training.write(self)
        return self

    def _fit(self, v_pos: Any, rng: np.random.RandomState) -> None:
        """One batch: what partial_fit calls."""
        training = _Training(self)
        training.step(_dense(v_pos), *random.split(_key_of(rng), 2).unbind())
        training.write(self)

    def _mean_hiddens(self, v: Any) -> Any:
        if sparse.issparse(v):
            return super()._mean_hiddens(v)
        field = torch.from_numpy(v @ self.components_.T)
        return field.add_(torch.from_numpy(self.intercept_hidden_)).sigmoid_().numpy()

    def _sample_hiddens(self, v: Any, rng: np.random.RandomState) -> Any:
        return _draw(self._mean_hiddens(v), rng)

    def _sample_visibles(self, h: Any, rng: np.random.RandomState) -> Any:
        field = torch.from_numpy(np.asarray(h, dtype=self.components_.dtype) @ self.components_)
        return _draw(field.add_(torch.from_numpy(self.intercept_visible_)).sigmoid_().numpy(), rng)


class _Training:
    """The machine in float32, as a batch after the other changes it: the hidden biases are the last row of its weights,
    the visible ones the last column, of units that are always 1. So a batch is three products and two draws."""

    def __init__(self, model: BernoulliRBM) -> None:
        self.components, self.features = model.components_.shape
        machine = np.zeros((self.features + 1, self.components + 1), dtype=np.float32)
        machine[:-1, :-1] = model.components_.T
        machine[-1, :-1], machine[:-1, -1] = model.intercept_hidden_, model.intercept_visible_
        self.machine = torch.from_numpy(machine)
        self.chains = torch.ones(len(model.h_samples_), self.components + 1)
        self.chains[:, :-1] = _single(model.h_samples_)
        self.visible = torch.empty(len(self.chains), self.features + 1)
        self.rate = float(model.learning_rate)
        self.phases: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def phases_of(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """For batches of so many rows: room for the visible and the hidden units of both phases, and what each row
        counts."""
        if rows not in self.phases:
            states = torch.ones(rows + len(self.chains), self.features + 1)
            share = torch.full((len(states), 1), self.rate / rows)
            share[rows:] *= -1
            self.phases[rows] = states, torch.empty(len(states), self.components + 1), share
        return self.phases[rows]

    @torch.no_grad()
    def step(self, data: Tensor, visible_key: Tensor, hidden_key: Tensor) -> None:
        rows = len(data)
        states, hidden, share = self.phases_of(rows)
        states[:rows, :-1] = data
        torch.mm(self.chains, self.machine.t(), out=self.visible)
        states[rows:, :-1] = bernoulli_straight_through(self.visible[:, :-1], key=visible_key)
        torch.mm(states, self.machine, out=hidden)
        self.chains[:, :-1] = bernoulli_straight_through(hidden[rows:, :-1], key=hidden_key)
        hidden.sigmoid_()
        hidden[:, -1] = 1
        hidden *= share
        self.machine.addmm_(states.t(), hidden)

    def write(self, model: BernoulliRBM) -> None:
        """The attributes, each in the dtype it has."""
        machine = self.machine.numpy()
        model.components_[...] = machine[:-1, :-1].T
        model.intercept_hidden_[...], model.intercept_visible_[...] = machine[-1, :-1], machine[:-1, -1]
        model.h_samples_ = self.chains[:, :-1].numpy().astype(model.h_samples_.dtype)


def _single(array: Any) -> Tensor:
    """A float32 copy."""
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _dense(batch: Any) -> Tensor:
    if sparse.issparse(batch):
        batch = batch.toarray()
    return batch if isinstance(batch, Tensor) else _single(batch)


def _key_of(rng: np.random.RandomState) -> Tensor:
    return random.key(int(rng.randint(-(2**63), 2**63 - 1, dtype=np.int64)))


def _draw(probs: Any, rng: np.random.RandomState) -> Any:
    return random.bernoulli(torch.from_numpy(np.atleast_1d(probs)), key=_key_of(rng), dtype=torch.uint8).numpy() == 1
