"""scikit-learn's estimator on our kernels: its own tests, its checks of estimators, and comparisons."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
import torch

sklearn = pytest.importorskip("sklearn")

from sklearn.base import clone  # noqa: E402
from sklearn.neural_network import BernoulliRBM as Stock  # noqa: E402
from sklearn.neural_network.tests import test_rbm as suite  # noqa: E402
from sklearn.utils import gen_even_slices  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

import variate  # noqa: E402
from variate.sklearn import BernoulliRBM, _key_of  # noqa: E402


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn's tests find our class under its name."""
    monkeypatch.setattr(suite, "BernoulliRBM", BernoulliRBM)


# scikit-learn's own tests, under their names; test_fit_gibbs pins weights to four digits of NumPy's random stream.
for _name, _test in inspect.getmembers(suite, inspect.isfunction):
    if _name.startswith("test_") and _name != "test_fit_gibbs":
        globals()[_name.replace("test_", "test_of_sklearn_", 1)] = _test


# As in scikit-learn's own list: score_samples changes a feature of each row by chance, whatever the row.
BY_CHANCE = {
    "check_methods_subset_invariance": "fails for the score_samples method",
    "check_methods_sample_order_invariance": "fails for the score_samples method",
}


@parametrize_with_checks([BernoulliRBM(n_iter=2)], expected_failed_checks=lambda estimator: BY_CHANCE)
def test_checks_of_estimators(estimator, check) -> None:
    check(estimator)


def test_parameters_and_attributes_are_the_stock_ones() -> None:
    assert inspect.signature(BernoulliRBM) == inspect.signature(Stock)
    X = suite.Xdigits[:60]
    options = {"n_components": 7, "batch_size": 8, "n_iter": 1, "random_state": 3}
    for dtype in (np.float32, np.float64):
        one, other = (kind(**options).fit(X.astype(dtype)) for kind in (BernoulliRBM, Stock))
        assert sorted(vars(one)) == sorted(vars(other))
        for name in ("components_", "intercept_hidden_", "intercept_visible_", "h_samples_"):
            a, b = getattr(one, name), getattr(other, name)
            assert a.shape == b.shape and a.dtype == b.dtype
        assert one.components_.flags.f_contiguous and set(np.unique(one.h_samples_)) <= {0.0, 1.0}
    start = [kind(n_components=7, n_iter=0, random_state=3).fit(X).components_ for kind in (BernoulliRBM, Stock)]
    assert np.array_equal(*(np.float32(x) for x in start))


def test_the_same_mean_as_the_stock_one() -> None:
    """One batch with chains at 0: the positive phase is exact, the negative one a mean of 4,000 draws, whose standard
    error is at most 0.5 / sqrt(4000) = 0.008 an element; six of them are exceeded in 1,600 elements with probability
    3e-6."""
    X = suite.Xdigits[:4000]
    X = np.tile(X, (3, 1))[:4000]
    models = [
        kind(n_components=24, batch_size=4000, n_iter=1, learning_rate=1.0, random_state=5)
        for kind in (BernoulliRBM, Stock)
    ]
    for model in models:
        model.fit(X)
    for name in ("components_", "intercept_hidden_", "intercept_visible_"):
        np.testing.assert_allclose(*(getattr(model, name) for model in models), rtol=0, atol=6 * 0.008 * 2**0.5)
    models[0].components_[...] = models[1].components_
    models[0].intercept_hidden_[...] = models[1].intercept_hidden_
    models[0].intercept_visible_[...] = models[1].intercept_visible_
    for method in ("transform", "score_samples"):
        np.testing.assert_allclose(*(getattr(model, method)(X[:50]) for model in models), rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fit_is_the_rule_batch_by_batch(dtype) -> None:
    """Stochastic maximum likelihood in float64 by the same draws, with batches of 8 and of 7 rows."""
    X = suite.Xdigits[:75].astype(dtype)
    X.flags.writeable = False
    model = BernoulliRBM(n_components=19, batch_size=8, learning_rate=0.2, n_iter=2, random_state=4)
    rng = np.random.RandomState(4)
    weight = torch.from_numpy(rng.normal(0, 0.01, (19, 64))).T
    visible_bias, hidden_bias, chains = torch.zeros(64).double(), torch.zeros(19).double(), torch.zeros(8, 19).double()
    for _ in range(2):
        keys = iter(variate.random.split(_key_of(rng), 20))
        for rows in gen_even_slices(80, 10, n_samples=75):
            data = torch.tensor(X[rows]).double()
            field = chains @ weight.T + visible_bias
            negative = variate.reference.relaxed.bernoulli_straight_through(field.float(), key=next(keys)).double()
            positive, field = torch.sigmoid(data @ weight + hidden_bias), negative @ weight + hidden_bias
            chains = variate.reference.relaxed.bernoulli_straight_through(field.float(), key=next(keys)).double()
            rate, means = 0.2 / len(data), torch.sigmoid(field)
            weight = weight + rate * (data.T @ positive - negative.T @ means)
            hidden_bias = hidden_bias + rate * (positive.sum(0) - means.sum(0))
            visible_bias = visible_bias + rate * (data.sum(0) - negative.sum(0))
    for backend in ("auto", "reference"):
        with variate.use_backend(backend):
            model.fit(X)
        assert np.array_equal(model.h_samples_, chains.numpy())
        # Twenty updates in float32, each of 16 rows' sums below 20.
        np.testing.assert_allclose(model.components_, weight.T.numpy(), atol=2e-5)
        np.testing.assert_allclose(model.intercept_hidden_, hidden_bias.numpy(), atol=2e-5)
        np.testing.assert_allclose(model.intercept_visible_, visible_bias.numpy(), atol=2e-5)


def test_a_seed_is_a_result_and_a_fit_a_pickle() -> None:
    X = suite.Xdigits[:100]
    model = BernoulliRBM(n_components=5, n_iter=2, random_state=1)
    one, other = clone(model).fit(X), clone(model).fit(X)
    assert np.array_equal(one.components_, other.components_)
    assert not np.array_equal(one.components_, clone(model).set_params(random_state=2).fit(X).components_)
    again = pickle.loads(pickle.dumps(one))
    assert np.array_equal(again.transform(X), one.transform(X))
    assert np.array_equal(again.gibbs(X), one.gibbs(X))
