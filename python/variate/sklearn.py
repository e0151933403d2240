"""scikit-learn's estimators on this library's kernels: ``from variate.sklearn import BernoulliRBM``."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import random, reference
from ._optional import MissingExtra
from .functional import _backend

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
    """The machine in float32, as a batch after the other changes it: the hidden biases are a last row of its weights,
    the visible ones a last column, of units that are always 1. So a batch is three products and two draws. Units that
    are always 0 fill rows and columns to whole cache lines."""

    def __init__(self, model: BernoulliRBM) -> None:
        self.components, self.features = model.components_.shape
        chains, visible, hidden = len(model.h_samples_), _lines(self.features + 1), _lines(self.components + 1)
        self.machine = torch.zeros(visible, hidden)
        weight, hidden_bias, visible_bias = self.parameters()
        weight.copy_(_single(model.components_.T))
        hidden_bias.copy_(_single(model.intercept_hidden_))
        visible_bias.copy_(_single(model.intercept_visible_))
        self.machine_t = self.machine.t()
        self.chains = torch.zeros(chains, hidden)
        self.chains[:, self.components] = 1
        self.samples = self.chains[:, : self.components]
        self.samples.copy_(_single(model.h_samples_))
        self.visible = torch.empty(chains, visible)
        self.visible_field = self.visible[:, : self.features]
        self.rate = float(model.learning_rate)
        self.phases: dict[int, tuple[Tensor, ...]] = {}
        self.draw = _backend.select("bernoulli_straight_through", self.machine) or _reference_draw

    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where weight [features, components], hidden biases and visible ones are in the machine."""
        components, features = self.components, self.features
        return (
            self.machine[:features, :components],
            self.machine[features, :components],
            self.machine[:features, components],
        )

    def phases_of(self, rows: int) -> tuple[Tensor, ...]:
        """For batches of so many rows: the visible and the hidden units of both phases, what each row counts, and what
        the units that are always 1 and 0 count; then parts of these, as making a view at each batch costs time."""
        if rows not in self.phases:
            states = torch.zeros(rows + len(self.chains), len(self.machine))
            states[:, self.features] = 1
            hidden = torch.empty(len(states), self.machine.shape[1])
            share = torch.full((len(states), 1), self.rate / rows)
            share[rows:] *= -1
            fixed = torch.zeros_like(hidden[:, self.components :])
            fixed[:, :1] = share
            visible = states[:, : self.features]
            parts = visible[:rows], visible[rows:], hidden[rows:, : self.components], hidden[:, self.components :]
            self.phases[rows] = (states, hidden, share, fixed, states.t(), *parts)
        return self.phases[rows]

    def step(self, data: Tensor, visible_key: Tensor, hidden_key: Tensor) -> None:
        states, hidden, share, fixed, states_t, positive, negative, field, rest = self.phases_of(len(data))
        positive.copy_(data)
        torch.mm(self.chains, self.machine_t, out=self.visible)
        negative.copy_(self.draw(self.visible_field, visible_key, 0))
        torch.mm(states, self.machine, out=hidden)
        self.samples.copy_(self.draw(field, hidden_key, 0))
        hidden.sigmoid_().mul_(share)
        rest.copy_(fixed)
        self.machine.addmm_(states_t, hidden)

    def write(self, model: BernoulliRBM) -> None:
        """The attributes, each in the dtype it has."""
        weight, hidden_bias, visible_bias = (part.numpy() for part in self.parameters())
        model.components_[...] = weight.T
        model.intercept_hidden_[...], model.intercept_visible_[...] = hidden_bias, visible_bias
        model.h_samples_ = self.samples.numpy().astype(model.h_samples_.dtype)


def _lines(units: int) -> int:
    """`units` rounded up to whole cache lines of float32."""
    return -(-units // 16) * 16


def _reference_draw(logits: Tensor, key: Tensor, first_sample: int) -> Tensor:
    return reference.relaxed.bernoulli_straight_through(logits, key=key, first_sample=first_sample)


def _single(array: Any) -> Tensor:
    """As float32, in place where it is that and torch takes it."""
    return torch.from_numpy(np.require(array, np.float32, ("C", "A", "W")))


def _dense(batch: Any) -> Tensor:
    if sparse.issparse(batch):
        batch = batch.toarray()
    return batch if isinstance(batch, Tensor) else _single(batch)


def _key_of(rng: np.random.RandomState) -> Tensor:
    return random.key(int(rng.randint(-(2**63), 2**63 - 1, dtype=np.int64)))


def _draw(probs: Any, rng: np.random.RandomState) -> Any:
    return random.bernoulli(torch.from_numpy(np.atleast_1d(probs)), key=_key_of(rng), dtype=torch.uint8).numpy() == 1
