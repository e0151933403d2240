"""Bounds of several importance samples: the values, and each estimator's gradients against what it estimates."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from checklist import FLOATS, Arg, Checklist, OpCase, applies, assert_same_bits
from torch import Tensor
from torch.distributions import Normal

from variate import reference
from variate.functional import bernoulli_nll, importance_weighted_bound, normal_rsample
from variate.functional.bound import ESTIMATORS


def by_datum(function, estimator):
    """The bound where dimension 0 is the datum, as the checklist has it: [B, K], or one datum."""

    def bound(log_q: Tensor, log_p: Tensor) -> Tensor:
        columns = [x.flatten(1).t() if x.dim() > 1 else x.reshape(-1, 1) for x in (log_q, log_p)]
        return function(columns[1] - columns[0], estimator, log_q=columns[0] if estimator != "iwae" else None)[0]

    return bound


def raw(tensors, key):
    op = torch.ops.variate.importance_weighted_bound.default
    log_weight = tensors[0] if tensors[0].dim() > 1 else tensors[0].reshape(-1, 1)
    return [(op, (log_weight, False)), (op, (log_weight.t() if min(log_weight.shape) > 1 else log_weight, True))]


def case(estimator: str, least: int) -> OpCase:
    return OpCase(
        f"importance_weighted_bound ({estimator})",
        by_datum(importance_weighted_bound, estimator),
        by_datum(reference.bound.importance_weighted_bound, estimator),
        # Not "read": a NaN reaches all weights of its datum, which a test below has in the place of the checklist's.
        (Arg("log_q", read=False), Arg("log_p", lambda n: 4 * n, read=False)),
        raw,
        # Log weights reach 30, and their rounding is an absolute error of exponentials: in the float64 truth, too.
        absolute_error=1e-14,
        accepts=lambda shape: math.prod(shape[1:] if len(shape) > 1 else shape) >= least,
    )


CASES = (case("iwae", 1), case("rws", 1), case("vimco", 2))


a_gradient = applies(lambda case: "iwae" in case.name)


class TestChecklist(Checklist):
    cases = CASES

    # The other estimators are not the derivative of their value: that is their point.

    @a_gradient
    def test_gradcheck(self, case: OpCase) -> None:
        super().test_gradcheck(case)

    @a_gradient
    def test_forward_mode_and_jvp(self, case: OpCase) -> None:
        super().test_forward_mode_and_jvp(case)

    def test_inputs_changed_before_backward_raise(self) -> None:
        """The backward pass reads no input: the weights, which it does read, are the bound's own."""
        log_weight = torch.zeros(3, 4, requires_grad=True)
        bound, weight, _ = importance_weighted_bound(log_weight)
        with torch.no_grad():
            log_weight.add_(1)
        assert torch.autograd.grad(bound.sum(), log_weight, retain_graph=True)[0].equal(weight)
        weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            bound.sum().backward()


def draw(*shape: int, seed: int = 0, scale: float = 8.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Values.


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (2, 3), (33, 200), (50, 64), (5000, 3)])
def test_values(shape, dtype) -> None:
    log_weight = (draw(*shape) - 100).to(dtype)
    bound, weight, size = importance_weighted_bound(log_weight)
    exact = log_weight.double()
    total = torch.logsumexp(exact, 0)
    # An ulp of 100 in float32 for the bound; weights have the rounding of one exponential.
    tight = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(bound.double(), total - math.log(shape[0]), rtol=tight, atol=0)
    torch.testing.assert_close(weight.double(), torch.exp(exact - total), rtol=0, atol=tight)
    torch.testing.assert_close(weight.double().sum(0), torch.ones(shape[1]).double(), rtol=0, atol=tight)
    torch.testing.assert_close(size.double(), 1 / torch.exp(exact - total).square().sum(0), rtol=10 * tight, atol=0)


def test_weights_of_zero_and_infinity() -> None:
    inf, nan = math.inf, math.nan
    log_weight = torch.tensor([[-inf, 1.0, nan, inf, -inf], [-inf, -inf, 0.0, 2.0, 3.0]]).requires_grad_()
    bound, weight, size = importance_weighted_bound(log_weight)
    halved = [1.0 - math.log(2), 3.0 - math.log(2)]
    assert bound.tolist() == pytest.approx([-inf, halved[0], nan, inf, halved[1]], nan_ok=True)
    assert weight.T.flatten().tolist() == pytest.approx([0, 0, 1, 0, nan, nan, 1, 0, 0, 1], nan_ok=True)
    assert size.tolist() == pytest.approx([0, 1, nan, 1, 1], nan_ok=True)
    (gradient,) = torch.autograd.grad(bound.sum(), log_weight)
    assert gradient.isnan().sum() == 2 and gradient[:, 0].tolist() == [0.0, 0.0]


def test_a_datum_does_not_depend_on_the_others() -> None:
    log_weight = draw(13, 300).float()
    whole = importance_weighted_bound(log_weight)
    part = importance_weighted_bound(log_weight[:, 77:150])
    assert_same_bits((part.bound, part.weight), (whole.bound[77:150], whole.weight[:, 77:150].contiguous()))


def _signal(log_weight: Tensor) -> Tensor:
    log_q = torch.zeros_like(log_weight).requires_grad_()
    bound = importance_weighted_bound(log_weight, "vimco", log_q=log_q).bound
    (gradient,) = torch.autograd.grad(bound.sum(), log_q)
    return gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 300.0])
def test_learning_signals_do_not_cancel(dtype, spread) -> None:
    """Also where one weight is all but the whole sum, and the rest of the sum below the precision of the total."""
    log_weight = draw(6, 40, scale=spread).to(dtype)
    log_weight[1, 0] = log_weight[2, 0] = log_weight[:, 0].max() + 1  # a tie at the top
    exact = log_weight.double()
    rows = []
    for k in range(6):
        others = torch.cat([exact[:k], exact[k + 1 :]])
        replaced = torch.cat([others, others.mean(0, keepdim=True)])
        rows.append(torch.logsumexp(exact, 0) - torch.logsumexp(replaced, 0))
    # In float32 a mean of five log weights is rounded; everything else is relative to differences.
    atol = 4 * torch.finfo(dtype).eps * max(1.0, exact.abs().max().item())
    torch.testing.assert_close(_signal(log_weight).double(), torch.stack(rows), rtol=1e-6, atol=atol)


def test_learning_signals_of_weights_of_zero() -> None:
    inf = math.inf
    log_weight = torch.tensor([[-inf, 0.0, -inf], [-inf, -inf, 0.0], [-inf, -inf, 0.0]])
    # Without the one weight that is not 0 nothing is left; the mean of 0 and anything is 0.
    half = math.log(2 / 1)
    assert _signal(log_weight).T.tolist() == [[0, 0, 0], [inf, 0, 0], pytest.approx([math.log(2 / 3), half, half])]


# What the estimators estimate.


def _linear_gaussian(count: int, samples: int, seed: int = 0) -> dict[str, Tensor]:
    """x = theta z + noise at x = 1.2, theta = 0.8; q is somewhat off. Every draw has parameters of its own: leaves."""
    eps = torch.randn(samples, count, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    parameters = {"mean": 0.2, "log_sd": -0.4, "theta": 0.8}
    leaves = {name: torch.full((count,), value, dtype=torch.float64) for name, value in parameters.items()}
    return {"eps": eps, **{name: leaf.requires_grad_() for name, leaf in leaves.items()}}


def _bound(m: dict[str, Tensor], estimator: str) -> Tensor:
    mean, sd, theta = m["mean"][:, None], m["log_sd"].exp()[:, None], m["theta"][:, None]
    z = mean + sd * m["eps"]
    q = Normal(mean, sd) if estimator == "iwae" else Normal(mean.detach(), sd.detach())
    log_weight = Normal(0, 1).log_prob(z) + Normal(theta * z, 1).log_prob(torch.tensor(1.2).double()) - q.log_prob(z)
    latent = z if estimator == "dreg" else None
    return importance_weighted_bound(log_weight.sum(-1), estimator, latent=latent).bound


_LOG_P = Normal(0, math.sqrt(1 + 0.8**2)).log_prob(torch.tensor(1.2, dtype=torch.float64)).item()


def test_bounds_rise_to_the_likelihood() -> None:
    """The first K of common samples: paired differences of 5 standard errors and more do not happen by chance."""
    with torch.no_grad():
        m = _linear_gaussian(50_000, 64)
        bounds = [_bound({**m, "eps": m["eps"][:count]}, "iwae") for count in (1, 2, 8, 64)]
    for lower, higher in itertools.pairwise(bounds):
        difference = higher - lower
        assert difference.mean() > 5 * difference.std() / len(difference) ** 0.5
    gap = _LOG_P - bounds[-1]
    assert 0 < gap.mean() < 0.01  # var(w) / 2 K
    assert _LOG_P - bounds[0].mean() > 0.1


def test_estimators_agree_on_the_mean_gradient() -> None:
    """DReG's equals IWAE's, for q and for p; STL's for q does not. 4 standard errors: 6e-5 false alarms a parameter."""
    names = ("mean", "log_sd", "theta")
    gradients = {}
    for seed, estimator in enumerate(("iwae", "dreg", "stl")):
        m = _linear_gaussian(200_000, 5, seed)
        gradients[estimator] = torch.autograd.grad(_bound(m, estimator).sum(), [m[name] for name in names])

    def distance(estimator: str, index: int) -> float:
        a, b = gradients["iwae"][index], gradients[estimator][index]
        return ((a.mean() - b.mean()).abs() / ((a.var() + b.var()) / len(a)).sqrt()).item()

    for index, name in enumerate(names):
        assert distance("dreg", index) < 4, name
    assert distance("stl", 2) < 4
    assert distance("stl", 0) > 8 and distance("stl", 1) > 8
    # What it is for: q's gradients are less noisy than those of the plain bound.
    assert all(gradients["dreg"][index].var() < gradients["iwae"][index].var() for index in (0, 1))


STATES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)), dtype=torch.float64)


class Tiny:
    """p(h) p(x | h) with two binary units each, q(h | x) likewise, at one x: 4 states, so all can be enumerated."""

    def __init__(self) -> None:
        self.prior, self.bias, self.q = (draw(2, seed=seed, scale=0.7).requires_grad_() for seed in (1, 2, 3))
        self.weight = draw(2, 2, seed=4, scale=1.5).requires_grad_()
        self.x = torch.tensor([1.0, 0.0], dtype=torch.float64)
        self.p_parameters = [self.prior, self.bias, self.weight]

    def log_q(self, h: Tensor) -> Tensor:
        return self._log(self.q, h)

    def log_p(self, h: Tensor) -> Tensor:
        return self._log(self.prior, h) + self._log(h @ self.weight + self.bias, self.x.expand(h.shape))

    @staticmethod
    def _log(logits: Tensor, h: Tensor) -> Tensor:
        flat = logits.expand(h.shape).reshape(-1, 2)
        return -bernoulli_nll(flat, h.reshape(-1, 2)).view(h.shape[:-1])

    def tuples(self, samples: int) -> tuple[Tensor, Tensor]:
        """Every tuple of K states, [K, 4^K, 2], and its probability under q [4^K]."""
        h = STATES[torch.cartesian_prod(*[torch.arange(4)] * samples).T]
        return h, self.log_q(h).sum(0).exp()


def test_vimco_is_unbiased() -> None:
    """The expected gradient, by enumeration of all triples of states, is that of the expected bound."""
    tiny = Tiny()
    h, probability = tiny.tuples(3)
    log_q, log_p = tiny.log_q(h), tiny.log_p(h)
    bound = importance_weighted_bound(log_p - log_q, "vimco", log_q=log_q).bound
    leaves = [tiny.q, *tiny.p_parameters]
    expected = (probability * (torch.logsumexp(log_p - log_q, 0) - math.log(3))).sum()
    estimate = torch.autograd.grad((probability.detach() * bound).sum(), leaves, retain_graph=True)
    torch.testing.assert_close(estimate, torch.autograd.grad(expected, leaves), rtol=1e-10, atol=1e-12)


def test_reweighted_wake_sleep() -> None:
    """q's gradient is that of sum_k w_k log q(z_k), p's that of the bound; from each state once, w is p(h | x)."""
    tiny = Tiny()
    h, probability = tiny.tuples(3)
    log_q, log_p = tiny.log_q(h), tiny.log_p(h)
    result = importance_weighted_bound(log_p - log_q, "rws", log_q=log_q)
    leaves = [tiny.q, *tiny.p_parameters]
    estimate = torch.autograd.grad((probability.detach() * result.bound).sum(), leaves, retain_graph=True)
    wake = (probability.detach() * (result.weight * (log_q + log_p)).sum(0)).sum()
    torch.testing.assert_close(estimate, torch.autograd.grad(wake, leaves), rtol=1e-10, atol=1e-12)

    log_q, log_p = tiny.log_q(STATES), tiny.log_p(STATES)
    uniform = torch.full((4, 1), math.log(0.25), dtype=torch.float64)
    weight = importance_weighted_bound(log_p[:, None] - uniform).weight
    torch.testing.assert_close(weight[:, 0], torch.softmax(log_p, 0).detach(), rtol=1e-12, atol=0)


def test_dreg_under_compile(fresh_dynamo: None) -> None:
    """The hook on z is part of the graph, with z a product of our own op."""
    key = torch.tensor([3, 4])

    def loss(mean: Tensor, theta: Tensor) -> Tensor:
        rows = mean.expand(5, *mean.shape)
        z = normal_rsample(rows, torch.zeros_like(rows), key=key)
        log_weight = -0.5 * (1.2 - theta * z).square().sum(-1) - 0.5 * z.square().sum(-1)
        return importance_weighted_bound(log_weight, "dreg", latent=z).bound.mean()

    leaves = [draw(7, 3, seed=5, scale=1.0).requires_grad_(), draw(3, seed=6, scale=1.0).requires_grad_()]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for backend in ("aot_eager", "inductor"):
        compiled = torch.compile(loss, fullgraph=True, backend=backend)
        torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), expected, rtol=1e-10, atol=1e-12)
    by_transform = torch.func.grad(loss, argnums=(0, 1))(*(leaf.detach() for leaf in leaves))
    torch.testing.assert_close(by_transform, expected, rtol=1e-5, atol=1e-6)  # the reference's normals are float64


def test_a_frozen_encoder_needs_no_hook() -> None:
    log_weight = draw(3, 4).requires_grad_()
    z = draw(3, 4, 2)
    importance_weighted_bound(log_weight, "dreg", latent=z).bound.sum().backward()
    with torch.no_grad():
        importance_weighted_bound(log_weight, "dreg", latent=z.requires_grad_())
    assert not z._backward_hooks


# Bad input.

GOOD = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("args", "options", "error", "names"),
    [
        ((GOOD, "elbo"), {}, ValueError, "estimator: expected one of iwae, dreg, stl, rws, vimco, got 'elbo'"),
        (([1.0],), {}, TypeError, "log_weight: expected a tensor, got list"),
        ((GOOD.long(),), {}, TypeError, "log_weight: expected float32.*got int64"),
        ((GOOD[0],), {}, ValueError, r"log_weight: expected \[K, B\], got shape \(4,\)"),
        ((GOOD[:0],), {}, ValueError, "log_weight: expected K >= 1 samples for 'iwae', got 0"),
        ((GOOD[:1], "vimco"), {"log_q": GOOD[:1]}, ValueError, "log_weight: expected K >= 2 samples for 'vimco'"),
        ((GOOD, "rws"), {}, ValueError, "log_q: expected a tensor for estimator 'rws', got None"),
        ((GOOD, "vimco"), {}, ValueError, "log_q: expected a tensor"),
        ((GOOD, "dreg"), {}, ValueError, "latent: expected a tensor for estimator 'dreg', got None"),
        ((GOOD, "iwae"), {"log_q": GOOD}, ValueError, "log_q: expected None, since only rws and vimco use it"),
        ((GOOD, "stl"), {"latent": GOOD}, ValueError, "latent: expected None, since only dreg use"),
        ((GOOD, "rws"), {"log_q": GOOD[0]}, ValueError, r"log_q: expected the shape of log_weight, \(3, 4\)"),
        ((GOOD, "rws"), {"log_q": [0.0]}, TypeError, "log_q: expected a tensor, got list"),
        ((GOOD, "rws"), {"log_q": GOOD.to("meta")}, ValueError, "log_q: expected the device"),
        ((GOOD, "dreg"), {"latent": GOOD.T}, ValueError, r"latent: expected \[K, B, ...\] with K, B = \(3, 4\)"),
        ((GOOD, "dreg"), {"latent": GOOD.long()}, TypeError, "latent: expected float32"),
    ],
)
def test_errors(args, options, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        importance_weighted_bound(*args, **options)


def test_every_estimator_runs_without_data() -> None:
    empty = torch.empty(3, 0)
    for estimator in ESTIMATORS:
        extra = {"log_q": empty} if estimator in ("rws", "vimco") else {}
        extra |= {"latent": torch.empty(3, 0, 2)} if estimator == "dreg" else {}
        result = importance_weighted_bound(empty, estimator, **extra)
        assert result.bound.shape == (0,) and result.weight.shape == (3, 0)
