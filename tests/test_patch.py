"""The drop-ins: every patched method against the one it replaces, what is left to it, and that they leave no trace."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributions as D
from checklist import assert_accurate, upstream
from scipy import stats
from torch import Tensor
from torch.distributions import kl
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

import variate
from variate.patch import _diffusers, _torch_distributions

SHAPES = ((), (1,), (7,), (5, 3), (2, 3, 5), (0, 3), (130, 20))


@pytest.fixture
def patched() -> Iterator[None]:
    with variate.patch.torch_distributions():
        yield


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive(*shape: int, seed: int = 1) -> Tensor:
    return draw(*shape, seed=seed).mul(0.7).exp()


def bits(*shape: int, seed: int = 2) -> Tensor:
    return (draw(*shape, seed=seed) > 0).double()


def categories(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 4)


# What a method computes from its parameters: (name, parameters of a shape, function of them).
Case = tuple[str, Callable[[tuple[int, ...]], tuple[Tensor, ...]], Callable[..., Tensor]]

DETERMINISTIC: tuple[Case, ...] = (
    (
        "Normal.log_prob",
        lambda shape: (draw(*shape), positive(*shape), draw(*shape, seed=3)),
        lambda loc, scale, x: D.Normal(loc, scale).log_prob(x),
    ),
    (
        "LogNormal.log_prob",
        lambda shape: (draw(*shape), positive(*shape), positive(*shape, seed=3)),
        lambda loc, scale, x: D.LogNormal(loc, scale).log_prob(x),
    ),
    (
        "Bernoulli.log_prob",
        lambda shape: (draw(*shape), bits(*shape)),
        lambda logits, x: D.Bernoulli(logits=logits).log_prob(x),
    ),
    (
        "Bernoulli(probs).log_prob",
        lambda shape: (draw(*shape).sigmoid(), bits(*shape)),
        lambda probs, x: D.Bernoulli(probs).log_prob(x),
    ),
    ("Bernoulli.entropy", lambda shape: (draw(*shape),), lambda logits: D.Bernoulli(logits=logits).entropy()),
    ("Bernoulli(probs).entropy", lambda shape: (draw(*shape).sigmoid(),), lambda probs: D.Bernoulli(probs).entropy()),
    (
        "Independent(Normal).log_prob",
        lambda shape: (draw(*shape, 3), positive(*shape, 3), draw(*shape, 3, seed=3)),
        lambda loc, scale, x: D.Independent(D.Normal(loc, scale), 1).log_prob(x),
    ),
    (
        "Independent(Bernoulli).log_prob",
        lambda shape: (draw(*shape, 2, 3), bits(*shape, 2, 3)),
        lambda logits, x: D.Independent(D.Bernoulli(logits=logits), 2).log_prob(x),
    ),
    (
        "kl(Normal, Normal)",
        lambda shape: (draw(*shape), positive(*shape), draw(*shape, seed=3), positive(*shape, seed=4)),
        lambda a, b, c, d: D.kl_divergence(D.Normal(a, b), D.Normal(c, d)),
    ),
    (
        "kl(Bernoulli, Bernoulli)",
        lambda shape: (draw(*shape), draw(*shape, seed=3)),
        lambda a, b: D.kl_divergence(D.Bernoulli(logits=a), D.Bernoulli(logits=b)),
    ),
    (
        "kl(Independent, Independent)",
        lambda shape: (draw(*shape, 3), positive(*shape, 3), draw(*shape, 3, seed=3), positive(*shape, 3, seed=4)),
        lambda a, b, c, d: D.kl_divergence(D.Independent(D.Normal(a, b), 1), D.Independent(D.Normal(c, d), 1)),
    ),
    (
        "kl(LogNormal, LogNormal)",
        lambda shape: (draw(*shape), positive(*shape), draw(*shape, seed=3), positive(*shape, seed=4)),
        lambda a, b, c, d: D.kl_divergence(D.LogNormal(a, b), D.LogNormal(c, d)),
    ),
    (
        "Independent(Independent).log_prob",
        lambda shape: (draw(*shape, 2, 3), positive(*shape, 2, 3), draw(*shape, 2, 3, seed=3)),
        lambda loc, scale, x: D.Independent(D.Independent(D.Normal(loc, scale), 1), 1).log_prob(x),
    ),
)
deterministic = pytest.mark.parametrize("case", DETERMINISTIC, ids=lambda case: case[0])


def values_and_gradients(function: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    output = function(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, upstream(output))


@deterministic
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_and_gradients(case: Case, dtype: torch.dtype) -> None:
    """As accurate as torch's, to twice its error (see checklist.assert_accurate)."""
    name, parameters, function = case
    for shape in SHAPES:
        if 0 in shape and "Independent" in name:
            continue  # torch's own raises
        low = tuple(t.to(dtype) for t in parameters(shape))
        stock = values_and_gradients(function, low)
        exact = values_and_gradients(function, tuple(t.double() for t in low))
        with variate.patch.torch_distributions():
            actual = values_and_gradients(function, low)
        assert [(t.dtype, t.shape) for t in actual] == [(t.dtype, t.shape) for t in stock]
        assert_accurate(actual, stock, exact, low)


@deterministic
def test_hessian_vector_products(case: Case, patched: None) -> None:
    """create_graph=True, as natural gradients need: the derivative of the gradient is torch's."""
    _, parameters, function = case

    def product(dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in parameters((4, 3))]
        gradients = torch.autograd.grad(function(*leaves).sum(), leaves, create_graph=True)
        along = sum((g * (1 + index)).sum() for index, g in enumerate(gradients))
        found = torch.autograd.grad(along, leaves, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g.to(dtype) for g, t in zip(found, leaves, strict=True)]

    # Sums of a few float32 terms of up to e^6.
    torch.testing.assert_close(
        product(torch.float32), [g.float() for g in product(torch.float64)], rtol=1e-4, atol=1e-4
    )


@deterministic
def test_float64_is_torchs_own(case: Case) -> None:
    _, parameters, function = case
    tensors = parameters((5, 3))
    stock = values_and_gradients(function, tensors)
    with variate.patch.torch_distributions():
        for ours, theirs in zip(values_and_gradients(function, tensors), stock, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("event", [0, 1, 2])
def test_broadcasting(event: int) -> None:
    """Values with sample dimensions, parameters that are numbers, and expanded distributions; gradients are summed."""
    loc, scale = draw(3, 1).float(), positive(5).float()
    x = draw(4, 2, 3, 5).float()

    def results() -> list[Tensor]:
        a, b, c = loc.clone().requires_grad_(), scale.clone().requires_grad_(), x.clone().requires_grad_()
        q = D.Normal(a, b).expand((2, 3, 5))
        given = D.Independent(q, event)
        prior = D.Independent(D.Normal(0.0, 1.0).expand((2, 3, 5)), event)
        terms = given.log_prob(c), D.kl_divergence(given, prior), D.kl_divergence(q, D.Normal(0.5, 2.0))
        gradients = torch.autograd.grad([t.sum() for t in terms], (a, b, c))
        return [*(t.detach() for t in terms), *gradients]

    stock = results()
    with variate.patch.torch_distributions():
        # Float32 sums over up to 120 terms, each in its own order.
        torch.testing.assert_close(results(), stock, rtol=2e-5, atol=2e-5)


def test_one_tensor_as_parameter_and_value(patched: None) -> None:
    x = draw(5, 3).float().requires_grad_()
    total = D.Normal(x, x.exp()).log_prob(x).sum()
    (first,) = torch.autograd.grad(total, x, create_graph=True)
    torch.testing.assert_close(first, -torch.ones_like(x), rtol=1e-5, atol=1e-5)
    assert first.sum().requires_grad


def test_only_the_gradients_that_are_needed(patched: None) -> None:
    loc, scale, x = draw(5, 3).float(), positive(5, 3).float(), draw(5, 3, seed=4).float()
    q = D.Normal(loc, scale.requires_grad_())
    (found,) = torch.autograd.grad(q.log_prob(x).sum(), scale)
    torch.testing.assert_close(found, ((x - loc).square() / scale**3 - 1 / scale).detach(), rtol=1e-5, atol=1e-5)
    assert not D.Normal(loc, scale.detach()).log_prob(x).requires_grad
    with torch.no_grad():
        assert not q.log_prob(x).requires_grad and not q.rsample().requires_grad
    assert not q.sample().requires_grad


def test_infinite_divergences(patched: None) -> None:
    """Probabilities of 0 and 1 are torch's own business."""
    edge = torch.tensor([0.0, 0.5, 1.0])
    p, q = D.Bernoulli(edge[:, None].expand(3, 3)), D.Bernoulli(edge.expand(3, 3))
    expected = torch.tensor([[0, 0.6931, torch.inf], [torch.inf, 0, torch.inf], [torch.inf, 0.6931, 0]])
    torch.testing.assert_close(D.kl_divergence(p, q), expected, rtol=1e-4, atol=1e-6)


# Draws.

N = 200_000
DRAWS: tuple[tuple[str, Callable[[], D.Distribution], Callable[[], Any]], ...] = (
    ("Normal", lambda: D.Normal(torch.full((N,), 0.7), torch.full((N,), 2.0)), lambda: stats.norm(0.7, 2)),
    (
        "LogNormal",
        lambda: D.LogNormal(torch.full((N,), 0.7), torch.full((N,), 0.5)),
        lambda: stats.lognorm(0.5, 0, 2.01375),
    ),
    ("Laplace", lambda: D.Laplace(torch.full((N,), 0.7), torch.full((N,), 2.0)), lambda: stats.laplace(0.7, 2)),
    ("Gumbel", lambda: D.Gumbel(torch.full((N,), 0.7), torch.full((N,), 2.0)), lambda: stats.gumbel_r(0.7, 2)),
)


@pytest.mark.parametrize("method", ["sample", "rsample"])
@pytest.mark.parametrize("case", DRAWS, ids=lambda case: case[0])
def test_draws(case: Any, method: str, patched: None) -> None:
    """Kolmogorov and Smirnov's test at 1e-6, on one sample and on the second draw of three."""
    _, distribution, expected = case
    torch.manual_seed(0)
    d = distribution()
    one, three = getattr(d, method)(), getattr(d, method)((3, 1))
    assert one.shape == (N,) and three.shape == (3, 1, N)
    for values in (one, three[1, 0]):
        assert stats.kstest(values.double().numpy(), expected().cdf).pvalue > 1e-6
    # Draws, and calls, are independent: |correlation| < 4.9 / sqrt(N) with a false-alarm rate below 1e-6 each.
    ranks = [torch.from_numpy(stats.rankdata(t)) for t in (one, three[0, 0], three[1, 0], three[2, 0])]
    assert (torch.corrcoef(torch.stack(ranks)) - torch.eye(4)).abs().max() < 4.9 / N**0.5


PROBABILITIES = torch.tensor([0.0, 0.05, 0.3, 0.65])


@pytest.mark.parametrize("by", ["probs", "logits"])
@pytest.mark.parametrize("sample_shape", [(), (1,), (3, 2)])
def test_discrete_draws(by: str, sample_shape: tuple[int, ...], patched: None) -> None:
    """Each count within 4.9 standard deviations (a false-alarm rate of 1e-6 each), and probability 0 never drawn."""
    torch.manual_seed(0)
    count = 100_000
    p = PROBABILITIES.expand(count, 4)
    parameters = {by: p if by == "probs" else p.log()}
    indices = D.Categorical(**parameters).sample(sample_shape)
    one_hot = D.OneHotCategorical(**parameters).sample(sample_shape)
    assert indices.shape == (*sample_shape, count) and indices.dtype == torch.int64
    assert one_hot.shape == (*sample_shape, count, 4) and one_hot.dtype == torch.float32
    assert (one_hot.sum(-1) == 1).all()
    bernoulli = {by: p if by == "probs" else torch.logit(p)}
    binary = D.Bernoulli(**bernoulli).sample(sample_shape)
    assert binary.shape == one_hot.shape and binary.dtype == torch.float32
    n = indices.numel()
    counts = torch.bincount(indices.flatten(), minlength=4), one_hot.flatten(0, -2).sum(0), binary.flatten(0, -2).sum(0)
    deviation = (n * PROBABILITIES * (1 - PROBABILITIES)).sqrt()
    for found in counts:
        assert ((found - n * PROBABILITIES).abs() <= 4.9 * deviation).all()


def test_straight_through(patched: None) -> None:
    logits = draw(5, 4).float().requires_grad_()
    weights = draw(5, 4, seed=1).float()
    sample = D.OneHotCategoricalStraightThrough(logits=logits).rsample()
    assert set(sample.detach().round().unique().tolist()) == {0.0, 1.0}
    (found,) = torch.autograd.grad((sample * weights).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(-1) * weights).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


REPARAMETRISED = {
    "Normal": lambda loc, scale: D.Normal(loc, scale),
    "Laplace": lambda loc, scale: D.Laplace(loc, scale),
    "Gumbel": lambda loc, scale: D.Gumbel(loc, scale),
    "LogNormal": lambda loc, scale: D.LogNormal(loc, scale),
    "Independent": lambda loc, scale: D.Independent(D.Normal(loc, scale), 1),
}


@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", REPARAMETRISED)
def test_gradients_of_draws(name: str, sample_shape: tuple[int, ...], patched: None) -> None:
    """d z / d loc = 1 and d z / d scale = eps, with the z that came out (of its logarithm for LogNormal)."""
    loc, scale = draw(5, 4).float().requires_grad_(), positive(5, 4).float().requires_grad_()
    weights = draw(*sample_shape, 5, 4, seed=5).float()
    z = REPARAMETRISED[name](loc, scale).rsample(sample_shape)
    z = z.log() if name == "LogNormal" else z
    found = torch.autograd.grad((z * weights).sum(), (loc, scale), create_graph=True)
    eps = ((z - loc) / scale).detach()
    every = tuple(range(len(sample_shape)))
    expected = [weights.sum(every), (weights * eps).sum(every)] if every else [weights, weights * eps]
    # eps comes back from a float32 z: an ulp of z, divided by a scale of at least e^-3.
    torch.testing.assert_close(list(found), expected, rtol=1e-4, atol=2e-4)


def test_seeds_reproduce(patched: None) -> None:
    def draws() -> list[Tensor]:
        torch.manual_seed(3)
        q = D.Normal(torch.zeros(4, 3), torch.ones(4, 3))
        logits = draw(4, 3).float()
        return [q.sample(), q.rsample((2,)), D.Bernoulli(logits=logits).sample(), D.Categorical(logits=logits).sample()]

    first, second = draws(), draws()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1][0])


@pytest.mark.parametrize("sample_shape", [(0,), (2, 0)])
def test_no_samples(sample_shape: tuple[int, ...], patched: None) -> None:
    q, b = D.Normal(torch.zeros(3), torch.ones(3)), D.Bernoulli(logits=torch.zeros(3))
    assert (
        q.rsample(sample_shape).shape
        == q.sample(sample_shape).shape
        == b.sample(sample_shape).shape
        == (*sample_shape, 3)
    )


def test_sample_shape_as_people_pass_it(patched: None) -> None:
    q = D.Normal(0.0, 1.0)
    assert (
        q.sample().shape == () and q.sample([2]).shape == (2,) and q.sample(sample_shape=torch.Size([2])).shape == (2,)
    )
    assert q.expand((3,)).rsample((2, 2)).shape == (2, 2, 3)


# What is torch's own business.


def stock_draw(make: Callable[[], Tensor]) -> bool:
    """Whether the patched classes draw the numbers of the stock ones."""
    torch.manual_seed(0)
    theirs = make()
    with variate.patch.torch_distributions():
        torch.manual_seed(0)
        return torch.equal(make(), theirs)


class Tagged(Tensor):
    """A tensor subclass."""


def test_what_is_left_to_torch() -> None:
    zero, one = torch.zeros(5, 3), torch.ones(5, 3)
    assert not stock_draw(lambda: D.Normal(zero, one).sample())
    assert stock_draw(lambda: D.Normal(zero.double(), one.double()).sample())
    assert stock_draw(lambda: D.Bernoulli(logits=zero.double()).sample())
    assert stock_draw(lambda: D.Categorical(logits=zero.double()).sample())
    assert stock_draw(lambda: D.Normal(zero.as_subclass(Tagged), one).rsample())
    assert stock_draw(lambda: D.Beta(one, one).sample())
    with variate.use_backend("reference"):
        assert stock_draw(lambda: D.Normal(zero, one).sample())
    assert stock_draw(lambda: torch.jit.trace(lambda x: D.Normal(x, one).rsample(), zero, check_trace=False)(zero))


def test_forward_mode_ad(patched: None) -> None:
    loc, scale, x = (t.float() for t in (draw(5, 3), positive(5, 3), draw(5, 3, seed=3)))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(loc, torch.ones_like(loc))
        tangent = forward_ad.unpack_dual(D.Normal(dual, scale, validate_args=False).log_prob(x)).tangent
        drawn = forward_ad.unpack_dual(D.Normal(dual, scale, validate_args=False).rsample()).tangent
    torch.testing.assert_close(tangent, (x - loc) / scale**2)
    assert torch.equal(drawn, torch.ones_like(loc))


def test_functorch(patched: None) -> None:
    loc, scale, x = (t.float() for t in (draw(5, 3), positive(5, 3), draw(5, 3, seed=3)))

    def log_prob(loc: Tensor) -> Tensor:
        return D.Normal(loc, scale, validate_args=False).log_prob(x).sum()

    torch.testing.assert_close(torch.func.grad(log_prob)(loc), (x - loc) / scale**2)
    hessian = torch.func.hessian(log_prob)(loc).reshape(15, 15)
    torch.testing.assert_close(hessian, torch.diag(-1 / scale.flatten() ** 2))
    divergences = torch.func.vmap(
        lambda loc: D.kl_divergence(D.Normal(loc, 1.0, validate_args=False), D.Normal(0.0, 1.0, validate_args=False))
    )(loc)
    torch.testing.assert_close(divergences, 0.5 * loc.square())


@pytest.mark.parametrize("validate", [True, False])
def test_errors_are_torchs(validate: bool) -> None:
    """The same exception, where values are checked with the same words, for bad parameters and bad values."""
    good, bad = torch.zeros(2, 3), torch.tensor([[0.0, 1.0, torch.nan], [0.0, 1.0, -1.0]])
    calls: list[Callable[[], Any]] = [
        lambda: D.Normal(bad, good + 1, validate_args=validate),
        lambda: D.Normal(good, bad, validate_args=validate),
        lambda: D.Normal(good, good, validate_args=validate),
        lambda: D.Laplace(good, -good, validate_args=validate),
        lambda: D.Bernoulli(probs=bad, validate_args=validate),
        lambda: D.Bernoulli(probs=good + 1.5, validate_args=validate),
        lambda: D.Bernoulli(logits=bad, validate_args=validate),
        lambda: D.Categorical(logits=bad, validate_args=validate),
        lambda: D.Categorical(probs=good - 1, validate_args=validate),
        lambda: D.Normal(good, good + 1, validate_args=validate).log_prob(bad),
        lambda: D.Normal(good, good + 1, validate_args=validate).log_prob(torch.zeros(4)),
        lambda: D.Normal(good, good + 1, validate_args=validate).log_prob("x"),
        lambda: D.Bernoulli(logits=good, validate_args=validate).log_prob(good + 0.5),
        lambda: D.Bernoulli(logits=good, validate_args=validate).log_prob(good + torch.inf),
        lambda: D.Bernoulli(logits=good, validate_args=validate).log_prob(bad),
        lambda: D.LogNormal(good, good + 1, validate_args=validate).log_prob(good - 1),
        lambda: D.Independent(D.Normal(good, good + 1, validate_args=validate), 1).log_prob(bad),
        lambda: D.Independent(D.Normal(good, good + 1), 3),
        lambda: D.kl_divergence(D.Normal(good, good + 1), D.Normal(torch.zeros(4), torch.ones(4))),
        lambda: D.kl_divergence(D.Independent(D.Normal(good, good + 1), 1), D.Independent(D.Normal(good, good + 1), 2)),
    ]

    def outcomes() -> list[tuple[str, str] | str]:
        found: list[tuple[str, str] | str] = []
        for call in calls:
            try:
                call()
                found.append("passed")
            except Exception as error:
                found.append((type(error).__name__, str(error) if validate else ""))
        return found

    stock = outcomes()
    with variate.patch.torch_distributions():
        assert outcomes() == stock
        with variate.use_backend("reference"):
            assert outcomes() == stock
    assert sum(outcome != "passed" for outcome in stock) >= (17 if validate else 4)


def test_broadcasting_is_torchs() -> None:
    """Arguments of one shape as they are, any others by torch, and its errors."""

    class Own(Tensor):
        pass

    loc, row = torch.ones(2, 3, requires_grad=True), torch.ones(3)
    for arguments in ((loc, loc), (loc, row), (loc, 1.0), (0.0, row), (0, 1), (row.as_subclass(Own), row)):
        stock = D.Normal(*arguments)
        with variate.patch.torch_distributions():
            ours = D.Normal(*arguments)
        for one, other in ((ours.loc, stock.loc), (ours.scale, stock.scale)):
            assert type(one) is type(other) and one.shape == other.shape and one.equal(other)
        assert (ours.loc is loc) == (stock.loc is loc)
    with variate.patch.torch_distributions(), pytest.raises(ValueError, match="must all be instances of Number"):
        D.Normal("loc", row)


def test_validation_follows_its_switches(patched: None) -> None:
    bad = torch.tensor([-1.0])
    assert D.Normal(bad, -bad)._validate_args == D.Distribution._validate_args
    D.Normal(bad, bad, validate_args=False)
    before = D.Distribution._validate_args
    try:
        D.Distribution.set_default_validate_args(False)
        D.Normal(bad, bad)
        with pytest.raises(ValueError, match="parameter scale"):
            D.Normal(bad, bad, validate_args=True)
    finally:
        D.Distribution.set_default_validate_args(before)


# Classes.


def test_subclasses_keep_what_they_override(patched: None) -> None:
    class Shifted(D.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) + 1

    class Strange(D.Normal):
        @property
        def scale(self) -> float:
            return 2.0

        @scale.setter
        def scale(self, value: Any) -> None:
            pass

    x = draw(5, 3).float()
    shifted = Shifted(torch.zeros(5, 3), torch.ones(5, 3), validate_args=False)
    expected = D.Normal(torch.zeros(5, 3), torch.ones(5, 3)).log_prob(x)
    torch.testing.assert_close(shifted.log_prob(x), expected + 1)
    torch.testing.assert_close(D.Independent(shifted, 1).log_prob(x), expected.sum(-1) + 3)
    assert isinstance(shifted.expand((2, 5, 3)), Shifted)
    strange = Strange(torch.zeros(5, 3), 1.0, validate_args=False)
    torch.testing.assert_close(strange.log_prob(x), D.Normal(0.0, 2.0).log_prob(x))

    @D.register_kl(Shifted, D.Normal)
    def _(p: Shifted, q: D.Normal) -> Tensor:
        return torch.full(p.batch_shape, 7.0)

    try:
        q = D.Normal(torch.zeros(5, 3), torch.ones(5, 3))
        assert (D.kl_divergence(shifted, q) == 7).all()
        assert (D.kl_divergence(D.Independent(shifted, 1), D.Independent(q, 1)) == 21).all()
    finally:
        del kl._KL_REGISTRY[Shifted, D.Normal]
        kl._KL_MEMOIZE.clear()


def test_copies(patched: None) -> None:
    q = D.Independent(D.Normal(torch.zeros(5, 3), torch.ones(5, 3)), 1)
    for twin in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(twin.log_prob(torch.ones(5, 3)), q.log_prob(torch.ones(5, 3)))


# The patch itself.


def snapshot() -> dict[Any, Any]:
    classes = [c for c in vars(D).values() if isinstance(c, type)] + [LogitRelaxedBernoulli, ExpRelaxedCategorical]
    attributes = {(c, name): value for c in classes for name, value in vars(c).items()}
    return {**attributes, **kl._KL_REGISTRY}


def same(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return a.keys() == b.keys() and all(a[key] is b[key] for key in a)


def test_undo_restores_the_very_same_objects() -> None:
    before = snapshot()
    patch = variate.patch.torch_distributions()
    assert not same(snapshot(), before)
    patch.undo()
    assert same(snapshot(), before)
    patch.undo()
    assert same(snapshot(), before)


def test_twice_is_once() -> None:
    before = snapshot()
    variate.patch.torch_distributions()
    once = snapshot()
    second = variate.patch.torch_distributions()
    assert same(snapshot(), once)
    second.undo()
    assert same(snapshot(), before)


def test_contexts_nest() -> None:
    before = snapshot()
    with variate.patch.torch_distributions():
        inside = snapshot()
        with variate.patch.torch_distributions():
            assert same(snapshot(), inside)
        assert same(snapshot(), inside)
    assert same(snapshot(), before)
    patch = variate.patch.torch_distributions()
    with variate.patch.torch_distributions():
        pass
    assert same(snapshot(), inside)
    patch.undo()
    with pytest.raises(ZeroDivisionError), variate.patch.torch_distributions():
        raise ZeroDivisionError
    assert same(snapshot(), before)


def test_one_object_as_several_contexts() -> None:
    before = snapshot()
    patch = variate.patch.torch_distributions()
    for _ in range(2):
        with patch:
            assert not same(snapshot(), before)
        assert same(snapshot(), before)


def test_what_others_replace_stays() -> None:
    original = D.Normal.log_prob
    patch = variate.patch.torch_distributions()
    theirs = lambda self, value: value  # noqa: E731
    D.Normal.log_prob = theirs
    try:
        patch.undo()
        assert D.Normal.log_prob is theirs
    finally:
        D.Normal.log_prob = original


def test_kl_divergence_imported_before(patched: None) -> None:
    from torch.distributions import kl_divergence

    q = D.Normal(torch.zeros(3, requires_grad=True), torch.ones(3))
    assert type(kl_divergence(q, q).grad_fn).__name__ == "_NormalKlBackward"


def test_every_patched_method_is_tested() -> None:
    tested = " ".join([name for name, *_ in DETERMINISTIC])
    for (cls, name), _ in _torch_distributions._FUSED.items():
        assert name in ("sample", "rsample") or f"{cls.__name__}" in tested, f"{cls.__name__}.{name}"
    for pair in _torch_distributions._FUSED_KL:
        assert f"kl({pair[0].__name__}, {pair[1].__name__})" in tested


def test_pyro(patched: None) -> None:
    """A guide and a model of Pyro train on the patched classes: KL(q | p) of a conjugate pair goes to 0."""
    pyro = pytest.importorskip("pyro")
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    x = torch.tensor([1.0, 3.0, 2.0])  # of N(z, 1) with z of N(0, 1): the posterior is N(1.5, 1 / 4)

    def model() -> None:
        z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(1), torch.ones(1)).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)

    def guide() -> None:
        loc = pyro.param("loc", torch.zeros(1))
        scale = pyro.param("scale", torch.ones(1), constraint=D.constraints.positive)
        pyro.sample("z", pyro.distributions.Normal(loc, scale).to_event(1))

    elbo = pyro.infer.TraceMeanField_ELBO(num_particles=16, vectorize_particles=False)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    for _ in range(300):
        svi.step()
    # Adam's last steps of 0.05 at most, on gradients of 16 draws.
    assert pyro.param("loc").item() == pytest.approx(1.5, abs=0.1)
    assert pyro.param("scale").item() == pytest.approx(0.5, abs=0.1)


# diffusers.


@pytest.fixture
def gaussian() -> Any:
    return pytest.importorskip("diffusers.models.autoencoders.vae").DiagonalGaussianDistribution


def latents(*shape: int, seed: int = 0) -> Tensor:
    """Some of the log-variances lie outside of diffusers' clamp."""
    return 12 * draw(*shape, seed=seed).float()


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (1, 2, 3, 5), (2, 8, 3, 4, 4)])
def test_diffusers_values(gaussian: Any, shape: tuple[int, ...]) -> None:
    """kl and nll, their shapes and dtypes, and the gradients of the parameters, which the clamp stops."""

    def results(dtype: torch.dtype) -> tuple[Tensor, ...]:
        a, b = (latents(*shape, seed=seed).to(dtype).requires_grad_() for seed in (0, 1))
        q = gaussian(a)
        near, other = gaussian(a / 8), gaussian(b / 8)  # e^x of a float32 x is off by x ulp
        x = draw(*q.mean.shape, seed=2).to(dtype)
        outputs = q.kl(), near.kl(other), q.nll(x), q.nll(x, dims=(1, 2)), q.nll(x, [1, 2, 3])
        gradients = torch.autograd.grad([output.sum() for output in outputs], (a, b))
        return tuple(o.detach() for o in outputs) + gradients

    for dtype in (torch.float32, torch.float64):
        stock, exact = results(dtype), results(torch.float64)
        with variate.patch.diffusers():
            actual = results(dtype)
        assert [(t.dtype, t.shape) for t in actual] == [(t.dtype, t.shape) for t in stock]
        assert_accurate(actual, stock, exact, stock)
        if dtype == torch.float64:
            assert all(torch.equal(a, b) for a, b in zip(actual, stock, strict=True))
    log_var = latents(*shape).chunk(2, 1)[1]
    assert ((log_var < -30) | (log_var > 20)).any()
    with variate.patch.diffusers():
        parameters = latents(*shape).requires_grad_()
        gradient = torch.autograd.grad(gaussian(parameters).kl().sum(), parameters)[0]
    clamped = gradient.chunk(2, 1)[1][(log_var < -30) | (log_var > 20)]
    assert not clamped.any()


def test_diffusers_sample(gaussian: Any) -> None:
    parameters = latents(3, 8, 16, 16).requires_grad_()
    with variate.patch.diffusers():
        q = gaussian(parameters)
        z = q.sample(torch.Generator().manual_seed(4))
        assert torch.equal(z, q.sample(torch.Generator().manual_seed(4))) and z.dtype == torch.float32
        eps = ((z - q.mean) / q.std).detach()
        gradient = torch.autograd.grad(z.sum(), parameters)[0]
        mean_gradient, log_var_gradient = gradient.chunk(2, 1)
        assert (mean_gradient == 1).all()
        inside = (q.logvar > -5) & (q.logvar < 20)  # below, eps is lost in the rounding of z
        torch.testing.assert_close(log_var_gradient[inside], (0.5 * q.std * eps)[inside], rtol=1e-3, atol=1e-3)
        # A list has a generator for each sample, which gives what it gives alone.
        several = q.sample([torch.Generator().manual_seed(seed) for seed in (4, 5, 6)])
        alone = gaussian(parameters[1:2]).sample(torch.Generator().manual_seed(5))
        assert torch.equal(several[1:2], alone)
        assert torch.equal(q.sample([torch.Generator().manual_seed(4)]), z)
        with pytest.raises(IndexError):
            q.sample([torch.Generator(), torch.Generator()])
        torch.manual_seed(0)
        first = q.sample()
        torch.manual_seed(0)
        assert torch.equal(q.sample(), first)
        q.std = torch.zeros_like(q.std)
        assert torch.equal(q.sample(), q.mean)
        half = gaussian(torch.zeros(1, 8, 64, 64, dtype=torch.bfloat16)).sample()
        assert half.dtype == torch.bfloat16 and stats.kstest(half.flatten().double().numpy(), "norm").pvalue > 1e-6


def test_diffusers_deterministic(gaussian: Any) -> None:
    with variate.patch.diffusers():
        q = gaussian(latents(2, 8, 4, 4), deterministic=True)
        assert torch.equal(q.sample(), q.mean) and torch.equal(q.mode(), q.mean)
        assert q.kl().tolist() == q.nll(q.mean).tolist() == [0.0]
        assert not gaussian(latents(2, 8, 4, 4)).kl(q).isfinite().any()


def test_diffusers_undo(gaussian: Any) -> None:
    before = dict(vars(gaussian))
    with variate.patch.diffusers():
        with variate.patch.diffusers():
            assert vars(gaussian)["kl"] is not before["kl"]
        assert vars(gaussian)["kl"] is not before["kl"]
    assert same(dict(vars(gaussian)), before)


def test_diffusers_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    _diffusers._patch.cache_clear()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "variate\[diffusers\]"'):
        variate.patch.diffusers()
    _diffusers._patch.cache_clear()


COMPILED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "Normal.rsample": lambda a, b: D.Normal(a, b).rsample(),
    "Normal.rsample((4,))": lambda a, b: D.Normal(a, b).rsample((4,)),
    "Normal.log_prob": lambda a, b: D.Normal(a, b).log_prob(b),
    "kl(Normal)": lambda a, b: D.kl_divergence(D.Normal(a, b), D.Normal(torch.zeros_like(a), torch.ones_like(b))),
    "kl(Bernoulli)": lambda a, b: D.kl_divergence(D.Bernoulli(logits=a), D.Bernoulli(logits=b)),
    "Bernoulli": lambda a, b: D.Bernoulli(logits=a).log_prob(D.Bernoulli(logits=b).sample()),
    "Categorical": lambda a, b: D.Categorical(logits=a).log_prob(D.Categorical(logits=b).sample()),
    "Independent.log_prob": lambda a, b: D.Independent(D.Normal(a, b), 1).log_prob(b),
    "kl(Independent)": lambda a, b: D.kl_divergence(
        D.Independent(D.Normal(a, b), 1), D.Independent(D.Normal(torch.zeros_like(a), torch.ones_like(b)), 1)
    ),
    "others": lambda a, b: D.Laplace(a, b).rsample() + D.Gumbel(a, b).rsample() + D.LogNormal(a, b).log_prob(b),
}


@pytest.mark.parametrize("name", COMPILED)
def test_fullgraph(name: str, patched: None, fresh_dynamo: None) -> None:
    """Also kl_divergence, on its first call of all, which stock torch cannot compile."""
    function, validates = COMPILED[name], D.Distribution._validate_args
    D.Distribution.set_default_validate_args(False)  # as the first torch.compile does
    a, b = draw(5, 3).float().requires_grad_(), positive(5, 3).float().requires_grad_()
    try:
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        result = compiled(a, b)
        expected = function(a, b)
        assert result.shape == expected.shape
        found = torch.autograd.grad(result.sum(), (a, b), allow_unused=True)
        if "log_prob" in name or "kl" in name:
            torch.testing.assert_close(result, expected)
            torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), (a, b), allow_unused=True))
    finally:
        D.Distribution.set_default_validate_args(validates)
