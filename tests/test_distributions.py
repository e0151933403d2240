"""variate.distributions: torch's classes with keys, what torch lacks, and what they give against torch in float64."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torch.distributions as D
from scipy import stats
from torch import Tensor

import variate
from variate import distributions as V
from variate.functional import discretized_logistic_mixture_nll

KEY = variate.random.key(5)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


LOC, SCALE, LOGITS = draw(5, 4), draw(5, 4, seed=1).exp(), draw(5, 4, seed=2)
HALF = torch.tensor(0.5)
MAKERS: dict[str, Any] = {
    "Normal": lambda m: m.Normal(LOC, SCALE),
    "LogNormal": lambda m: m.LogNormal(LOC, SCALE),
    "Laplace": lambda m: m.Laplace(LOC, SCALE),
    "Gumbel": lambda m: m.Gumbel(LOC, SCALE),
    "Bernoulli": lambda m: m.Bernoulli(logits=LOGITS),
    "Bernoulli(probs)": lambda m: m.Bernoulli(LOGITS.sigmoid()),
    "Categorical": lambda m: m.Categorical(logits=LOGITS),
    "OneHotCategorical": lambda m: m.OneHotCategorical(logits=LOGITS),
    "OneHotCategoricalStraightThrough": lambda m: m.OneHotCategoricalStraightThrough(LOGITS.softmax(-1)),
    "RelaxedBernoulli": lambda m: m.RelaxedBernoulli(HALF, logits=LOGITS),
    "RelaxedOneHotCategorical": lambda m: m.RelaxedOneHotCategorical(HALF, logits=LOGITS),
    "Independent": lambda m: m.Independent(m.Normal(LOC, SCALE), 1),
}
OWN: dict[str, Any] = {
    "Normal(log_scale)": lambda: V.Normal(LOC, log_scale=SCALE.log()),
    "Logistic": lambda: V.Logistic(LOC, SCALE),
}
ALL = {**{name: lambda make=make: make(V) for name, make in MAKERS.items()}, **OWN}
each = pytest.mark.parametrize("name", ALL)
of_torch = pytest.mark.parametrize("name", MAKERS)


@of_torch
def test_it_is_torchs_class(name: str) -> None:
    ours, theirs = MAKERS[name](V), MAKERS[name](D)
    assert isinstance(ours, type(theirs)) and type(ours).__name__ == type(theirs).__name__
    assert ours.batch_shape == theirs.batch_shape and ours.event_shape == theirs.event_shape
    assert ours.has_rsample == theirs.has_rsample
    x = theirs.sample()
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=1e-5, atol=1e-5)
    for attribute in ("mean", "variance", "entropy"):
        try:
            expected = getattr(theirs, attribute)
            expected = expected() if attribute == "entropy" else expected
        except NotImplementedError:
            continue
        found = getattr(ours, attribute)
        found = found() if attribute == "entropy" else found
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert repr(ours) == repr(theirs)


@each
def test_expand_and_copy(name: str) -> None:
    ours = ALL[name]()
    wide = ours.expand((3, *ours.batch_shape))
    assert type(wide) is type(ours) and wide.batch_shape == (3, *ours.batch_shape)
    x = wide.sample(key=KEY)
    assert x.shape == (3, *ours.batch_shape, *ours.event_shape)
    for twin in (wide, copy.deepcopy(wide)):
        torch.testing.assert_close(twin.log_prob(x)[1], ours.log_prob(x[1]), rtol=1e-5, atol=1e-5)


@each
def test_keys_and_generators(name: str) -> None:
    """A key fixes a draw; draw k of several takes fold_in(key, k); rows do not see how a batch is split."""
    ours = ALL[name]()
    first = ours.sample(key=KEY)
    assert torch.equal(ours.sample(key=KEY), first)
    assert not torch.equal(ours.sample(key=variate.random.fold_in(KEY, 1)), first)
    several = ours.sample((2, 3), key=KEY)
    assert torch.equal(several[0, 0], first)
    assert torch.equal(several[1, 1], ours.sample(key=variate.random.fold_in(KEY, 4)))
    drawn = [ours.sample(shape, generator=torch.Generator().manual_seed(3)) for shape in ((), (), (4,), (4,))]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[2], drawn[3])
    torch.manual_seed(3)
    again = ours.sample()
    torch.manual_seed(3)
    assert torch.equal(again, ours.sample()) and not torch.equal(again, ours.sample())
    assert not ours.sample(key=KEY).requires_grad
    if ours.has_rsample:
        assert torch.equal(ours.rsample((2,), key=KEY).detach(), ours.sample((2,), key=KEY))


ROWS: dict[str, Any] = {
    "Normal": lambda x: V.Normal(x, x.exp()),
    "Bernoulli": lambda x: V.Bernoulli(logits=x),
    "Categorical": lambda x: V.Categorical(logits=x),
    "OneHotCategorical": lambda x: V.OneHotCategorical(logits=x),
    "RelaxedBernoulli": lambda x: V.RelaxedBernoulli(HALF, logits=x),
    "RelaxedOneHotCategorical": lambda x: V.RelaxedOneHotCategorical(HALF, logits=x),
    "Logistic": lambda x: V.Logistic(x, x.exp()),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_samples(name: str) -> None:
    """first_sample is the index of row 0; a key for each row makes it sample 0 of its own stream."""
    x = draw(9, 4)
    whole = ROWS[name](x).sample(key=KEY)
    tolerance = 1e-6 if "Relaxed" in name else 0.0  # torch's sigmoid rounds by an element's place in a vector
    part = ROWS[name](x[6:]).sample(key=KEY, first_sample=6)
    torch.testing.assert_close(part, whole[6:], rtol=tolerance, atol=0)
    keys = variate.random.split(KEY, 9)
    each = ROWS[name](x).sample(key=keys)
    torch.testing.assert_close(each[4:5], ROWS[name](x[4:5]).sample(key=keys[4]), rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_functions_behind(dtype: torch.dtype) -> None:
    """Every floating dtype is served, float64 too."""
    loc, scale, x = (t.to(dtype).requires_grad_() for t in (draw(5, 4), draw(5, 4, seed=1).exp(), draw(5, 4, seed=2)))
    ours, theirs = V.Normal(loc, scale), D.Normal(loc, scale)
    assert type(ours.log_prob(x).grad_fn).__name__ == "_NormalLogProbBackward"
    tolerance = {"rtol": 16 * torch.finfo(dtype).eps, "atol": 16 * torch.finfo(dtype).eps}
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), **tolerance)
    z = variate.functional.normal_rsample(loc, scale=scale, key=KEY)
    assert torch.equal(ours.rsample(key=KEY), z) and z.dtype == dtype


# Normal by its log scale.


def test_log_scale() -> None:
    log_scale = torch.tensor([-40.0, 0.0, 3.0]).requires_grad_()
    loc = torch.tensor([1.0, 2.0, 3.0]).requires_grad_()
    ours = V.Normal(loc, log_scale=log_scale)
    theirs = D.Normal(loc.double(), log_scale.double().exp())
    x = (loc + torch.tensor([1e-26, -0.5, 2.0])).detach()
    for name in ("mean", "stddev", "variance"):
        torch.testing.assert_close(getattr(ours, name).double(), getattr(theirs, name), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.entropy().double(), theirs.entropy(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.log_prob(x).double(), theirs.log_prob(x.double()), rtol=1e-6, atol=1e-6)
    prior = V.Normal(torch.zeros(3), log_scale=torch.full((3,), -40.0))
    kl = V.kl_divergence(prior, V.Normal(torch.zeros(3), log_scale=log_scale.detach()))
    exact = torch.tensor([0.0, 39.5, 42.5])
    torch.testing.assert_close(kl, exact, rtol=1e-6, atol=1e-6)
    mixed = V.kl_divergence(V.Normal(loc, log_scale=log_scale), V.Normal(loc, torch.ones(3)))
    torch.testing.assert_close(
        mixed.double(), D.kl_divergence(theirs, D.Normal(loc.double(), 1.0)), rtol=1e-6, atol=1e-6
    )
    assert "log_scale" in repr(ours)
    with pytest.raises(ValueError, match="scale, log_scale: expected exactly one of them, got both"):
        V.Normal(loc, 1.0, log_scale=0.0)
    with pytest.raises(ValueError, match="scale, log_scale: expected exactly one of them, got none"):
        V.Normal(loc)
    with pytest.raises(ValueError, match="parameter log_scale"):
        V.Normal(loc, log_scale=torch.tensor(math.nan))
    assert V.Normal(0.0, log_scale=0.0).sample((3,)).shape == (3,)


# Divergences.


def test_divergences() -> None:
    q, p = V.Normal(LOC, SCALE), V.Normal(torch.zeros(5, 4), torch.ones(5, 4))
    assert (
        type(V.kl_divergence(V.Normal(LOC.clone().requires_grad_(), SCALE), p).grad_fn).__name__ == "_NormalKlBackward"
    )
    stock = D.kl_divergence(D.Normal(LOC, SCALE), D.Normal(torch.zeros(5, 4), torch.ones(5, 4)))
    pairs = itertools.product((q, D.Normal(LOC, SCALE)), (p, D.Normal(torch.zeros(5, 4), torch.ones(5, 4))))
    for a, b in pairs:
        torch.testing.assert_close(D.kl_divergence(a, b), stock, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            D.kl_divergence(V.Independent(a, 1), D.Independent(b, 1)), stock.sum(-1), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            D.kl_divergence(V.Independent(a, 1), V.Independent(b, 1)), stock.sum(-1), rtol=1e-5, atol=1e-5
        )
    a, b = V.Bernoulli(logits=LOGITS), V.Bernoulli(logits=LOC)
    expected = D.kl_divergence(D.Bernoulli(logits=LOGITS.double()), D.Bernoulli(logits=LOC.double()))
    torch.testing.assert_close(V.kl_divergence(a, b).double(), expected, rtol=1e-5, atol=1e-6)
    for name in ("Laplace", "Gumbel", "Categorical", "OneHotCategorical", "LogNormal"):
        ours, theirs = MAKERS[name](V), MAKERS[name](D)
        torch.testing.assert_close(D.kl_divergence(ours, ours), D.kl_divergence(theirs, theirs), rtol=1e-5, atol=1e-5)
    transformed = D.TransformedDistribution(V.Normal(LOC, SCALE), D.ExpTransform())
    x = transformed.rsample()
    torch.testing.assert_close(transformed.log_prob(x), D.LogNormal(LOC, SCALE).log_prob(x), rtol=1e-5, atol=1e-5)


# What torch lacks.


def test_logistic() -> None:
    """Against scipy, draws by Kolmogorov and Smirnov's test at 1e-6."""
    ours = V.Logistic(draw(50, dtype=torch.float64), draw(50, seed=1, dtype=torch.float64).exp())
    theirs = stats.logistic(ours.loc.numpy(), ours.scale.numpy())
    x = 5 * draw(50, seed=2, dtype=torch.float64)
    u = draw(50, seed=3, dtype=torch.float64).sigmoid()
    for found, expected in (
        (ours.log_prob(x), theirs.logpdf(x.numpy())),
        (ours.cdf(x), theirs.cdf(x.numpy())),
        (ours.icdf(u), theirs.ppf(u.numpy())),
        (ours.entropy(), theirs.entropy()),
        (ours.mean, theirs.mean()),
        (ours.variance, theirs.var()),
        (ours.stddev, theirs.std()),
    ):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)
    drawn = V.Logistic(torch.full((200_000,), 0.7), torch.tensor(2.0)).sample(key=KEY)
    assert stats.kstest(drawn.numpy(), stats.logistic(0.7, 2).cdf).pvalue > 1e-6
    assert V.Logistic(0.0, 1.0).log_prob(torch.tensor([-1e4, 1e4])).tolist() == [-1e4, -1e4]
    assert V.Logistic(0.0, 1.0).batch_shape == ()
    loc = torch.zeros(3, requires_grad=True)
    z = V.Logistic(loc, torch.ones(3)).rsample((4,))
    assert torch.equal(torch.autograd.grad(z.sum(), loc)[0], torch.full((3,), 4.0))
    with pytest.raises(ValueError, match="parameter scale"):
        V.Logistic(0.0, torch.tensor(-1.0))
    with pytest.raises(NotImplementedError):
        V.kl_divergence(ours, ours)


@pytest.mark.parametrize(("channels", "layout"), [(1, "nchw"), (3, "nchw"), (3, "nhwc")])
def test_discretized_logistic_mixture(channels: int, layout: str) -> None:
    count = 2 * (10 if channels == 3 else 3)
    shape = (4, count, 3, 5) if layout == "nchw" else (4, 3, 5, count)
    event = (channels, 3, 5) if layout == "nchw" else (3, 5, channels)
    params = draw(*shape).requires_grad_()
    ours = V.DiscretizedLogisticMixture(params, mixtures=2, bits=3, layout=layout)
    assert ours.batch_shape == (4,) and ours.event_shape == event
    images = ours.sample(key=KEY)
    assert images.dtype == torch.uint8 and images.shape == (4, *event) and images.max() < 8
    assert ours.support.check(images).all()
    nll = discretized_logistic_mixture_nll(params, images, mixtures=2, bits=3, layout=layout)
    assert torch.equal(ours.log_prob(images), -nll) and ours.log_prob(images).requires_grad
    several = ours.sample((2, 3), key=KEY)
    assert torch.equal(several[0, 0], images) and several.shape == (2, 3, 4, *event)
    assert torch.equal(several[1, 0], ours.sample(key=variate.random.fold_in(KEY, 3)))
    assert torch.equal(ours.log_prob(several)[0, 0], ours.log_prob(images))
    assert ours.sample((0,)).shape == (0, 4, *event)
    one = V.DiscretizedLogisticMixture(params[:1], mixtures=2, bits=3, layout=layout).expand((4,))
    assert one.sample().shape == (4, *event)
    with pytest.raises(ValueError, match="channels"):
        V.DiscretizedLogisticMixture(params, mixtures=3, layout=layout)
    with pytest.raises(ValueError, match="parameter params"):
        V.DiscretizedLogisticMixture(params.detach() * math.nan, mixtures=2, layout=layout)


def test_the_probability_of_all_images_is_1() -> None:
    params = draw(1, 6, 1, 1, dtype=torch.float64)
    ours = V.DiscretizedLogisticMixture(params, mixtures=2)
    levels = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1, 1)
    assert ours.log_prob(levels).exp().sum().item() == pytest.approx(1, abs=1e-12)


# The rest.


def test_no_probability_of_zero_is_drawn() -> None:
    p = torch.tensor([0.0, 1e-30, 1.0]).expand(100_000, 3)
    assert (V.Categorical(p).sample(key=KEY) == 2).all()
    assert not V.Bernoulli(torch.zeros(1000)).sample(key=KEY).any()


def test_errors() -> None:
    q = V.Normal(LOC, SCALE)
    with pytest.raises(ValueError, match="key"):
        q.sample(key=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="generator: expected None where a key is given"):
        V.Bernoulli(logits=LOGITS).sample(key=KEY, generator=torch.Generator())
    with pytest.raises(ValueError, match="parameter scale"):
        V.Normal(LOC, -SCALE)
    with pytest.raises(ValueError, match="support"):
        q.log_prob(LOC * math.nan)
    with pytest.raises(RuntimeError, match="pass key="):
        torch.func.vmap(lambda loc: V.Normal(loc, SCALE, validate_args=False).sample())(draw(2, 5, 4))


def test_under_the_patch_too() -> None:
    q = V.Normal(LOC, SCALE)
    before = q.sample(key=KEY), q.log_prob(LOC), V.kl_divergence(q, q), V.Independent(q, 1).log_prob(LOC)
    with variate.patch.torch_distributions():
        q = V.Normal(LOC, SCALE)
        after = q.sample(key=KEY), q.log_prob(LOC), V.kl_divergence(q, q), V.Independent(q, 1).log_prob(LOC)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["Normal", "Bernoulli", "Independent"])
def test_fullgraph(name: str, fresh_dynamo: None) -> None:
    def step(logits: Tensor) -> Tensor:
        base = V.Bernoulli(logits=logits) if name == "Bernoulli" else V.Normal(logits, log_scale=logits)
        d = V.Independent(base, 1) if name == "Independent" else base
        return d.log_prob(d.sample(key=KEY))

    validates = D.Distribution._validate_args
    D.Distribution.set_default_validate_args(False)
    try:
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(LOGITS), step(LOGITS))
    finally:
        D.Distribution.set_default_validate_args(validates)
