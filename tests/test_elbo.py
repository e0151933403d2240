"""The terms of the evidence lower bound: likelihoods."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from checklist import FLOATS, Arg, Checklist, OpCase, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import variate
from variate import reference
from variate.functional import (
    bernoulli_kl,
    bernoulli_nll,
    categorical_kl,
    categorical_nll,
    normal_kl,
    normal_nll,
)

TARGETS = (*FLOATS, torch.uint8, torch.bool)
INTEGERS = (torch.int64, torch.uint8, torch.int32, torch.int16, torch.int8)
CATEGORIES = 5


def fractions(normals: Tensor) -> Tensor:
    """Targets 0, 1/4 ... 1: exact in every dtype; integers get the whole ones of them."""
    return (4 * normals.sigmoid()).round() / 4


def categories(normals: Tensor) -> Tensor:
    return (CATEGORIES * normals.sigmoid()).floor().clamp(max=CATEGORIES - 1)


def raw(name: str, constants: tuple[int, ...] = (), settings: tuple = ()):
    """The op `name` and its backward, with sums and with terms, for opcheck; parametrisations differ by `constants`."""
    forward = getattr(torch.ops.variate, name).default
    backward = getattr(torch.ops.variate, f"{name}_backward").default

    def calls(tensors, key):
        like = tensors[0]
        per_row = torch.ones(like.shape[0] if like.dim() > 1 else 1, device=like.device)
        everything = 2 ** len(tensors) - 1
        return [
            (forward, (*tensors, *settings, False, *constants)),
            (forward, (*tensors, *settings, True, *constants)),
            (backward, (per_row, *tensors, *settings, everything, *constants)),
            (backward, (torch.ones_like(like), *tensors, *settings, 1, *constants)),
        ]

    return calls


def categorical_nll_raw(tensors, key):
    logits, target = tensors
    ops = torch.ops.variate
    log_sum_exp = torch.logsumexp(logits, -1)
    grad = torch.ones(logits.shape[0] if logits.dim() > 1 else 1, device=logits.device)
    return [
        (ops.categorical_nll.default, (logits, target, False)),
        (ops.categorical_nll.default, (logits, target, True)),
        (ops.categorical_nll_backward.default, (grad, logits, target, log_sum_exp)),
    ]


def categorical_kl_raw(tensors, key):
    ops, like = torch.ops.variate, tensors[0]
    grad = torch.ones(like.shape[0] if like.dim() > 1 else 1, device=like.device)
    backwards = [(ops.categorical_kl_backward.default, (grad, *tensors, wanted)) for wanted in (1, 2, 3)]
    return [(ops.categorical_kl.default, tensors), *backwards]


def standard_raw(tensors, key):
    return raw("normal_kl", settings=(None, None, None), constants=(0,))(tensors, key)


MEAN = Arg("mean", lambda n: 1.5 * n)
LOG_VAR = Arg("log_var", lambda n: n.clamp(-3, 3))
LOGITS = Arg("logits", lambda n: 3 * n)
PRIORS = (Arg("prior_mean", lambda n: 0.5 * n), Arg("prior_log_var", lambda n: 0.7 * n.clamp(-3, 3)))
E = reference.elbo

CASES = (
    OpCase("normal_kl, standard", normal_kl, E.normal_kl, (MEAN, LOG_VAR), standard_raw, annealed=("free_bits",)),
    OpCase(
        "normal_kl",
        normal_kl,
        E.normal_kl,
        (MEAN, LOG_VAR, *PRIORS),
        raw("normal_kl", settings=(torch.tensor(0.05, dtype=torch.float64),), constants=(0,)),
        options={"free_bits": 0.05},
        annealed=("free_bits",),
    ),
    OpCase(
        "categorical_nll",
        categorical_nll,
        E.categorical_nll,
        (
            Arg("logits", lambda n: 3 * n, shape=lambda shape: (*shape, CATEGORIES)),
            Arg("target", categories, INTEGERS, differentiable=False, read=False),
        ),
        categorical_nll_raw,
        joint_dims=1,
    ),
    OpCase(
        "categorical_kl",
        categorical_kl,
        E.categorical_kl,
        (LOGITS, Arg("prior_logits")),
        categorical_kl_raw,
        accepts=lambda shape: len(shape) > 0 and shape[-1] > 0,
        joint_dims=1,
    ),
    OpCase("bernoulli_kl", bernoulli_kl, E.bernoulli_kl, (LOGITS, Arg("prior_logits")), raw("bernoulli_kl")),
    OpCase("normal_nll", normal_nll, E.normal_nll, (MEAN, LOG_VAR, Arg("target")), raw("normal_nll", constants=(0,))),
    OpCase(
        "bernoulli_nll",
        bernoulli_nll,
        E.bernoulli_nll,
        (LOGITS, Arg("target", fractions, TARGETS)),
        raw("bernoulli_nll"),
    ),
)


class TestChecklist(Checklist):
    cases = CASES


def exact_nll(logit: float, target: float) -> float:
    miss = 1 - target if logit > 0 else target
    return abs(logit) * miss + math.log1p(math.exp(-abs(logit)))


def draw(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(shape, generator=generator)
    return logits, torch.bernoulli(logits.sigmoid(), generator=generator)


@pytest.mark.parametrize("logit", [0.0, 1e-30, 1e-7, 0.3, 2.0, 17.0, 40.0, 88.0, 104.0, 1e4, 1e30])
@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_each_element_is_accurate(logit: float, target: float) -> None:
    """One element to a row. For a whole target nothing cancels, and the error is that of softplus: 1.6 ulp. For a
    fraction the two terms are positive again; sigmoid(x) - y cancels to the error of sigmoid, 2.6 ulp of at most 1."""
    for sign in (1, -1):
        x = torch.tensor([[sign * logit]], requires_grad=True)
        nll = bernoulli_nll(x, torch.tensor([[target]]))
        exact = exact_nll(x.item(), target)
        assert nll.item() == pytest.approx(exact, rel=2.0**-21, abs=1e-38)
        (gradient,) = torch.autograd.grad(nll, x)
        s = 1 / (1 + math.exp(-x.item())) if x.item() > -700 else 0.0
        assert gradient.item() == pytest.approx(s - target, rel=2.0**-21, abs=2.0**-22 if target else 1.2e-38)


def test_infinite_logits() -> None:
    logits = torch.tensor([[torch.inf], [-torch.inf], [torch.inf], [-torch.inf], [torch.inf]], requires_grad=True)
    target = torch.tensor([[1.0], [0.0], [0.0], [1.0], [0.5]])
    nll = bernoulli_nll(logits, target)
    assert nll.tolist() == [0.0, 0.0, math.inf, math.inf, math.inf]
    (gradient,) = torch.autograd.grad(nll.sum(), logits)
    assert gradient.flatten().tolist() == [0.0, 0.0, 1.0, -1.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool], ids=str)
def test_integer_targets_are_their_float_values(dtype: torch.dtype) -> None:
    logits, target = draw(7, 53)
    for values in FLOATS:
        leaf = logits.to(values).requires_grad_()
        as_integer = bernoulli_nll(leaf, target.to(dtype))
        as_float = bernoulli_nll(leaf, target.to(values))
        assert_same_bits((as_integer,), (as_float,))
        assert_same_bits(torch.autograd.grad(as_integer.sum(), leaf), torch.autograd.grad(as_float.sum(), leaf))


def test_every_value_of_uint8_is_taken_as_it_is() -> None:
    target = torch.arange(256, dtype=torch.uint8)
    logits = torch.full((256,), -2.0)
    assert_same_bits((bernoulli_nll(logits, target),), (bernoulli_nll(logits, target.float()),))


def test_targets_may_need_gradients_alone() -> None:
    logits, target = draw(5, 21)
    target.requires_grad_()
    (gradient,) = torch.autograd.grad(bernoulli_nll(logits, target).sum(), target)
    assert_same_bits((gradient,), (-logits,))


def test_one_tensor_as_both_arguments() -> None:
    x = torch.rand(5, 21, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(bernoulli_nll(x, x).sum(), x)
    torch.testing.assert_close(gradient, (x.sigmoid() - 2 * x).detach(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("cols", [1023, 1024, 1025, 5000, 3_000_000])
def test_long_rows(cols: int) -> None:
    """A float32 sum in lanes and tiles stays within an ulp of float64's: 16 lanes of 64 terms, tiles in float64."""
    logits, target = draw(2, cols)
    exact = reference.elbo.bernoulli_nll(logits.double(), target.double())
    leaf = logits.requires_grad_()
    nll = bernoulli_nll(leaf, target)
    torch.testing.assert_close(nll.double(), exact, rtol=4e-7, atol=0)
    (gradient,) = torch.autograd.grad(nll.sum(), leaf)
    torch.testing.assert_close(gradient, (logits.sigmoid() - target).detach(), rtol=0, atol=3e-7)


def test_more_than_2_31_elements() -> None:
    """One number, seen as a row too long for 32-bit indices. A logit of 128 costs 128 nats, and all sums are exact."""
    count = 2**31 + 1024 + 256
    logits, target = torch.tensor(128.0).expand(1, count), torch.tensor(0.0).expand(1, count)
    assert bernoulli_nll(logits, target).item() == 128 * count


def test_rows_do_not_depend_on_the_rest_of_the_batch() -> None:
    logits, target = draw(70, 301)
    whole = bernoulli_nll(logits, target)
    for row in (0, 3, 37, 69):
        assert_same_bits((bernoulli_nll(logits[row : row + 1], target[row : row + 1]),), (whole[row : row + 1],))


# Exact values: closed forms, torch.distributions in float64, sums over the outcomes.

SPREADS = {"log_var": lambda s: (s / 2).exp(), "log_scale": torch.exp, "scale": lambda s: s}  # to sigma


def close(actual: Tensor, exact: Tensor, ulps: float = 16.0) -> None:
    """To `ulps` float32 roundings of the largest exact value, or of 1 where terms of that size cancel."""
    worst = max(1.0, exact.abs().max().item())
    torch.testing.assert_close(actual.double(), exact.double(), rtol=0, atol=ulps * 2.0**-23 * worst)


def spreads(kind: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    log_scale = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2)
    return {"log_var": 2 * log_scale, "log_scale": log_scale, "scale": log_scale.exp()}[kind]


@pytest.mark.parametrize("kind", SPREADS)
@pytest.mark.parametrize("prior", ["standard", "mean", "spread", "both"])
def test_normal_ops_per_element_and_parametrisation(kind: str, prior: str) -> None:
    """The ops that variate.distributions calls, values and gradients, against torch.distributions."""
    ops, shape, number = torch.ops.variate, (6, 21), list(SPREADS).index(kind)
    generator = torch.Generator().manual_seed(0)
    mean, prior_mean, target = torch.randn(3, *shape, generator=generator)
    tensors = [mean, spreads(kind, 1, shape), prior_mean, spreads(kind, 2, shape)]
    tensors[2] = None if prior in ("standard", "spread") else tensors[2]
    tensors[3] = None if prior in ("standard", "mean") else tensors[3]
    exact = [None if t is None else t.double().requires_grad_() for t in tensors]
    q = D.Normal(exact[0], SPREADS[kind](exact[1]))
    zero, one = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    p = D.Normal(zero if exact[2] is None else exact[2], one if exact[3] is None else SPREADS[kind](exact[3]))
    grad = torch.rand(shape, generator=generator)
    for bits in (None, torch.tensor(0.3, dtype=torch.float64)):
        terms = D.kl_divergence(q, p)
        terms = terms if bits is None else terms.clamp(min=0.3)
        actual = ops.normal_kl(*tensors, bits, True, number)
        assert actual.shape == shape and actual.dtype == torch.float32
        close(actual, terms.detach())
        close(ops.normal_kl(*tensors, bits, False, number), terms.detach().sum(1))
        gradients = ops.normal_kl_backward(grad, *tensors, bits, 15, number)
        given = [t for t in exact if t is not None]
        found = [gradient for gradient in gradients if gradient.numel()]
        expected = torch.autograd.grad(terms, given, grad.double(), retain_graph=True)
        for gradient, exact_gradient in zip(found, expected, strict=True):
            close(gradient, exact_gradient)
    q = D.Normal(exact[0], SPREADS[kind](exact[1]))
    terms = -q.log_prob(target.double())
    close(ops.normal_nll(mean, tensors[1], target, True, number), terms.detach())
    gradients = ops.normal_nll_backward(grad, mean, tensors[1], target, 7, number)
    expected = torch.autograd.grad(terms, exact[:2], grad.double())
    close(gradients[0], expected[0])
    close(gradients[1], expected[1])
    assert torch.equal(gradients[2], -gradients[0])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_terms_have_the_dtype_of_the_inputs_and_sums_a_wide_one(dtype: torch.dtype) -> None:
    ops = torch.ops.variate
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for op, arguments in (
        (ops.normal_kl, (x, x, None, None, None)),
        (ops.bernoulli_kl, (x, x)),
        (ops.normal_nll, (x, x, x)),
        (ops.bernoulli_nll, (x, x.sigmoid())),
        (ops.bernoulli_nll, (x, torch.zeros(4, 9, dtype=torch.uint8))),
    ):
        terms, sums = op(*arguments, True), op(*arguments, False)
        assert terms.dtype == dtype and terms.shape == x.shape and sums.dtype == wide
        torch.testing.assert_close(terms.to(wide).sum(1), sums, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_bernoulli_ops_per_element() -> None:
    ops = torch.ops.variate
    logits, target = draw(6, 21)
    prior, grad = draw(6, 21, seed=1)[0], torch.rand(6, 21)
    leaves = [logits.double().requires_grad_(), prior.double().requires_grad_()]
    kl = D.kl_divergence(D.Bernoulli(logits=leaves[0]), D.Bernoulli(logits=leaves[1]))
    close(ops.bernoulli_kl(logits, prior, True), kl.detach())
    expected = torch.autograd.grad(kl, leaves, grad.double())
    for gradient, exact in zip(ops.bernoulli_kl_backward(grad, logits, prior, 3), expected, strict=True):
        close(gradient, exact)
    nll = -D.Bernoulli(logits=leaves[0]).log_prob(target.double())
    close(ops.bernoulli_nll(logits, target, True), nll.detach())
    close(
        ops.bernoulli_nll_backward(grad, logits, target, 1)[0],
        torch.autograd.grad(nll, leaves[0], grad.double())[0],
    )


@pytest.mark.parametrize("log_var", [-200.0, -90.0, -30.0, -1e-4, 0.0, 3.0, 20.0, 80.0, 300.0])
@pytest.mark.parametrize("prior_log_var", [-200.0, -89.0, -30.0, 0.0, 20.0, 80.0, 300.0])
@pytest.mark.parametrize("difference", [0.0, 1e-3, 2.0])
def test_normal_kl_is_finite_wherever_the_exact_value_is(log_var, prior_log_var, difference) -> None:
    """One element: variances that float32 does not hold, too. Twelve roundings of the terms it is made of."""
    leaves = [torch.tensor([[x]], requires_grad=True) for x in (1.0 + difference, log_var, 1.0, prior_log_var)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ratio = exact[1] - exact[3]
    square = (exact[0] - exact[2]).square() * torch.exp(-exact[3])
    truth = 0.5 * (torch.expm1(ratio) - ratio + square)
    kl = normal_kl(*leaves)
    largest = torch.finfo(torch.float32).max
    terms = torch.expm1(ratio).abs() + ratio.abs() + square
    if truth.item() < largest / 4:
        bound = 12 * 2.0**-23 * terms.item() * (1 + ratio.abs().item() / 8)
        assert abs(kl.item() - truth.item()) <= bound + 2.0**-124  # below it exp is 0
    else:
        assert kl.item() > largest / 8
    gradients = torch.autograd.grad(kl.sum(), leaves)
    expected = torch.autograd.grad(truth.sum(), exact)
    for gradient, value in zip(gradients, expected, strict=True):
        if value.abs().item() < largest / 4:
            assert gradient.item() == pytest.approx(
                value.item(), rel=12 * 2.0**-23 * (1 + ratio.abs().item() / 8), abs=2.0**-22
            )


def test_a_prior_too_narrow_for_float32_does_not_charge_equal_means() -> None:
    """e^89 and e^200 are no float32 numbers; the difference that they multiply is 0."""
    for log_var in (-89.0, -200.0, -400.0, -1e4):
        x, v = torch.full((2, 3), 0.7), torch.full((2, 3), log_var, requires_grad=True)
        kl = normal_kl(x, v, x, v)
        assert kl.tolist() == [0.0, 0.0]
        nll = normal_nll(x, v, x)
        assert nll.tolist() == pytest.approx([1.5 * (math.log(2 * math.pi) + log_var)] * 2, rel=1e-6)
        (gradient,) = torch.autograd.grad(nll.sum(), v)
        assert torch.equal(gradient, torch.full((2, 3), 0.5))


@pytest.mark.parametrize("log_var", [-400.0, -30.0, -3.0, 0.0, 20.0, 300.0])
def test_normal_nll_of_a_number(log_var: float) -> None:
    """A fixed variance: the value of the tensor, and no gradient."""
    mean, target = draw(5, 21)
    tensor = torch.full((), log_var)
    leaf = mean.requires_grad_()
    nll = normal_nll(leaf, log_var, target)
    assert_same_bits((nll,), (normal_nll(leaf, tensor, target),))
    if abs(log_var) <= 30:
        exact = -D.Normal(mean.detach().double(), math.exp(log_var / 2)).log_prob(target.double()).sum(1)
        torch.testing.assert_close(nll.double(), exact, rtol=2e-6, atol=0)
        (gradient,) = torch.autograd.grad(nll.sum(), leaf)
        exact = (mean - target).detach().double() * math.exp(-log_var)
        torch.testing.assert_close(gradient.double(), exact, rtol=4e-6 * (1 + abs(log_var) / 8), atol=0)
    wide = normal_nll(mean.detach().double(), log_var, target)
    assert wide.dtype == torch.float64


@pytest.mark.parametrize("shape", [(), (1,), (21,), (5, 1), (1, 21)])
def test_shared_variances_and_priors_get_summed_gradients(shape: tuple[int, ...]) -> None:
    mean, target = (x.double() for x in draw(5, 21))
    shared = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    for call in (
        lambda of: of.normal_nll(mean, shared, target),
        lambda of: of.normal_kl(mean, target, shared, shared),
        lambda of: of.bernoulli_kl(mean, shared),
    ):
        actual, expected = (
            torch.autograd.grad((call(of) * weights).sum(), shared)[0] for of in (variate.functional, reference.elbo)
        )
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("free_bits", [0.5, torch.tensor(0.5)])
def test_free_bits_hold_each_element(free_bits) -> None:
    """Elements of exactly known divergence, mean^2 / 2: below, at and above the bound."""
    mean = torch.tensor([[0.5, 1.0, 2.0], [0.0, 0.0, 0.0]], requires_grad=True)
    kl = normal_kl(mean, torch.zeros(2, 3), free_bits=free_bits)
    assert kl.tolist() == [3.0, 1.5]
    (gradient,) = torch.autograd.grad(kl.sum(), mean)
    assert gradient.tolist() == [[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]


def bernoulli_kl_by_enumeration(a: float, b: float) -> float:
    """The sum over both outcomes, in logarithms that do not overflow."""

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))

    return sum(math.exp(log_sigmoid(s * a)) * (log_sigmoid(s * a) - log_sigmoid(s * b)) for s in (1, -1))


@pytest.mark.parametrize("a", [0.0, 1e-4, 0.7, -3.0, 20.0, -60.0, 100.0])
@pytest.mark.parametrize("b", [0.0, 1e-3, -0.7, 3.0, -20.0, 60.0, 100.0, 3e4])
def test_bernoulli_kl_of_each_element(a: float, b: float) -> None:
    """16 float32 roundings of the largest term, which is at most max(1, |b|) p, p of the outcome that b calls rare."""
    logit, prior = (torch.tensor([[x]], requires_grad=True) for x in (a, b))
    kl = bernoulli_kl(logit, prior)
    exact = bernoulli_kl_by_enumeration(logit.item(), prior.item())
    assert kl.item() == pytest.approx(exact, rel=16 * 2.0**-24, abs=16 * 2.0**-24)
    grads = torch.autograd.grad(kl, (logit, prior))
    p, r = torch.sigmoid(logit.double()).item(), torch.sigmoid(prior.double()).item()
    q = torch.sigmoid(-logit.double()).item()
    assert grads[0].item() == pytest.approx(p * q * (logit.item() - prior.item()), rel=2e-6, abs=1e-36)
    assert grads[1].item() == pytest.approx(r - p, rel=2e-6, abs=4e-7)


def test_bernoulli_kl_of_infinite_logits() -> None:
    inf = math.inf
    logits = torch.tensor([[inf], [-inf], [inf], [-inf], [inf], [-inf], [0.0], [0.0]], requires_grad=True)
    prior = torch.tensor([[inf], [-inf], [-inf], [inf], [0.0], [0.0], [inf], [-inf]])
    kl = bernoulli_kl(logits, prior)
    half = pytest.approx(math.log(2), rel=1e-6)
    assert kl.tolist() == [0.0, 0.0, inf, inf, half, half, inf, inf]
    (gradient,) = torch.autograd.grad(kl[:6].sum(), logits)
    assert gradient.flatten().tolist()[:6] == [0.0] * 6


LENGTHS = [1, 2, 5, 16, 17, 256, 1000, 1024, 1025, 3001]  # around a vector and a tile of 1024


@pytest.mark.parametrize("length", LENGTHS)
def test_categorical_nll_of_any_number_of_categories(length: int) -> None:
    """Against F.cross_entropy in float64. A float32 sum of exponentials: 16 roundings of the log, 32 in all."""
    generator = torch.Generator().manual_seed(length)
    logits = (4 * torch.randn(3, 7, length, generator=generator)).requires_grad_()
    target = torch.randint(0, length, (3, 7), generator=generator)
    exact = logits.detach().double().requires_grad_()
    truth = F.cross_entropy(exact.flatten(0, 1), target.flatten(), reduction="none").view(3, 7).sum(1)
    nll = categorical_nll(logits, target)
    close(nll, truth.detach(), 32)
    weights = torch.tensor([1.0, -2.0, 0.5])
    (gradient,) = torch.autograd.grad(nll, logits, weights)
    (expected,) = torch.autograd.grad(truth, exact, weights.double())
    close(gradient, expected)
    assert_same_bits((categorical_nll(logits.detach(), target.to(torch.int32)),), (nll,))


@pytest.mark.parametrize("length", LENGTHS)
def test_categorical_kl_of_any_number_of_categories(length: int) -> None:
    """Against torch.distributions in float64, where some posterior categories have probability 0."""
    generator = torch.Generator().manual_seed(length)
    logits, prior = 3 * torch.randn(2, 3, 7, length, generator=generator)
    if length > 2:
        logits[:, :, : length // 3] = -math.inf
    leaves = [logits.requires_grad_(), prior.requires_grad_()]
    kl = categorical_kl(*leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    p, r = (D.Categorical(logits=leaf) for leaf in exact)
    close(kl, D.kl_divergence(p, r).sum(1).detach(), 32)
    gradients = torch.autograd.grad(kl.sum(), leaves)
    log_ratio = torch.where(p.probs == 0, 0, p.logits - r.logits)
    own = (p.probs * log_ratio).sum(-1, keepdim=True)
    close(gradients[0], (p.probs * (log_ratio - own)).detach())
    close(gradients[1], (r.probs - p.probs).detach())


def test_categorical_sums_to_one_over_the_outcomes() -> None:
    """exp(-nll) over every target of one group, and the divergence as their expectation."""
    logits, prior = draw(4, 9)[0].double(), draw(4, 9, seed=1)[0].double()
    targets = torch.arange(9)
    nll = torch.stack([categorical_nll(logits, targets[k].expand(4)) for k in range(9)])
    prior_nll = torch.stack([categorical_nll(prior, targets[k].expand(4)) for k in range(9)])
    torch.testing.assert_close(torch.exp(-nll).sum(0), torch.ones(4, dtype=torch.float64))
    expected = (torch.exp(-nll) * (prior_nll - nll)).sum(0)
    torch.testing.assert_close(categorical_kl(logits, prior), expected, rtol=1e-12, atol=1e-12)


def test_two_categories_are_a_bernoulli() -> None:
    logits, target = (x.double() for x in draw(5, 21))
    prior = draw(5, 21, seed=1)[0].double()

    def both(x: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(x), x], -1)

    torch.testing.assert_close(categorical_nll(both(logits), target.long()), bernoulli_nll(logits, target))
    torch.testing.assert_close(categorical_kl(both(logits), both(prior)), bernoulli_kl(logits, prior))


@pytest.mark.parametrize("length", [6, 16, 1500, 2600])
def test_masked_categories(length: int) -> None:
    """-inf masks; the first 1024 masked leave a first tile without a category. A masked target costs infinity."""
    logits = torch.randn(2, length, generator=torch.Generator().manual_seed(0))
    logits[:, : length - 3] = -math.inf
    logits.requires_grad_()
    nll = categorical_nll(logits, torch.tensor([length - 1, 0]))
    exact = -torch.log_softmax(logits[0, -3:].detach().double(), -1)[-1].item()
    assert nll[0].item() == pytest.approx(exact, rel=1e-6) and nll[1] == math.inf
    (gradient,) = torch.autograd.grad(nll.sum(), logits)
    assert gradient.isfinite().all() and gradient[1, 0] == -1 and (gradient[0, : length - 3] == 0).all()
    prior = torch.zeros(2, length)
    prior[1, -1] = -math.inf  # the prior forbids what the posterior has
    kl = categorical_kl(logits, prior)
    assert kl[0].isfinite() and kl[1] == math.inf
    assert categorical_kl(logits, logits).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_logits_of_any_size() -> None:
    """A constant changes nothing: exp is of differences from the largest."""
    logits, target = draw(4, 3, 10)[0], torch.randint(0, 10, (4, 3))
    nll = categorical_nll(logits, target)
    for constant in (-1e4, 1e4):
        torch.testing.assert_close(categorical_nll(logits + constant, target), nll, rtol=0, atol=3e-2)
    assert categorical_nll(torch.tensor([[3e38, -3e38]]), torch.tensor([0])).item() == 0.0
    assert categorical_nll(torch.tensor([[3e38, 0.0]]), torch.tensor([1])).item() == pytest.approx(3e38)


@pytest.mark.parametrize("target", [-1, 5, 255, 2**40, -(2**63)])
def test_kernels_never_read_beyond_the_categories(target: int) -> None:
    """What a GPU gives: NaN for the sample, and for the gradient of the position."""
    ops = torch.ops.variate
    logits = torch.zeros(3, 2, 5)
    index = torch.zeros(3, 2, dtype=torch.int64)
    index[1, 1] = target
    nll, log_sum_exp = ops.categorical_nll(logits, index, True)
    assert nll.isnan().tolist() == [False, True, False] and log_sum_exp.isfinite().all()
    gradient = ops.categorical_nll_backward(torch.ones(3), logits, index, log_sum_exp)
    assert gradient.isnan().nonzero().tolist() == [[1, 1, k] for k in range(5)]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_targets_outside_the_categories_raise(dtype: torch.dtype) -> None:
    target = torch.tensor([[0, 4], [5, 1]], dtype=dtype)
    with pytest.raises(ValueError, match="target: expected categories 0 to 4, got 0 to 5"):
        categorical_nll(torch.zeros(2, 2, 5), target)
    if dtype != torch.uint8:
        with pytest.raises(ValueError, match=r"target: .* got -1 to 4"):
            categorical_nll(torch.zeros(2, 2, 5), target.clamp(max=4) - (target == 0).to(dtype))


@pytest.mark.parametrize(
    ("call", "error", "names"),
    [
        (lambda z: normal_kl([0.0], z), TypeError, "mean: expected a tensor, got list"),
        (lambda z: normal_kl(z, z.long()), TypeError, "log_var: expected float32.*got int64"),
        (lambda z: normal_kl(z, z[:, :3]), ValueError, "log_var: expected the shape of mean"),
        (lambda z: normal_kl(z, z, z.cfloat()), TypeError, "prior_mean: expected float32"),
        (lambda z: normal_kl(z, z, z[:, :3]), ValueError, "prior_mean: expected a shape that broadcasts"),
        (lambda z: normal_kl(z, z, None, z.to("meta")), ValueError, "prior_log_var: expected the device"),
        (lambda z: normal_kl(z, z, free_bits=-1.0), ValueError, "free_bits: expected at least 0, got -1.0"),
        (lambda z: normal_nll(z, z, z[0]), ValueError, "target: expected the shape of mean"),
        (lambda z: normal_nll(z, z, z.byte()), TypeError, "target: expected float32.*got uint8"),
        (lambda z: normal_nll(z, "1", z), TypeError, "log_var: expected a number or a tensor, got str"),
        (lambda z: normal_nll(z, True, z), TypeError, "log_var: expected a number or a tensor, got bool"),
        (lambda z: normal_nll(z, z.long(), z), TypeError, "log_var: expected float32.*got int64"),
        (lambda z: normal_nll(z, torch.zeros(3), z), ValueError, "log_var: expected a shape that broadcasts"),
        (lambda z: categorical_nll(z, [0]), TypeError, "target: expected a tensor, got list"),
        (lambda z: categorical_nll(z, z[:, 0]), TypeError, "target: expected an integer dtype, got float32"),
        (lambda z: categorical_nll(z, z[:, 0].bool()), TypeError, "target: expected an integer dtype, got bool"),
        (lambda z: categorical_nll(z.long(), z[:, 0].long()), TypeError, "logits: expected float32"),
        (lambda z: categorical_nll(z, z.long()), ValueError, "target: expected the shape of logits without its last"),
        (lambda z: categorical_nll(z, z[:, 0].long().to("meta")), ValueError, "target: expected the device"),
        (lambda z: categorical_nll(z[:, :0], z[:, 0].long()), ValueError, "logits: expected at least one category"),
        (lambda z: categorical_nll(z[0, 0], z[0, 0].long()), ValueError, "logits: expected at least one category"),
        (lambda z: categorical_kl(z[:, :0], z[:, :0]), ValueError, "logits: expected at least one category"),
        (lambda z: categorical_kl(z, 0.0), TypeError, "prior_logits: expected a tensor, got float"),
        (lambda z: categorical_kl(z, z[:, :3]), ValueError, "prior_logits: expected a shape that broadcasts"),
        (lambda z: bernoulli_kl(z, 0.0), TypeError, "prior_logits: expected a tensor, got float"),
        (lambda z: bernoulli_kl(z.bool(), z), TypeError, "logits: expected float32"),
        (lambda z: bernoulli_kl(z, z[:, :3]), ValueError, "prior_logits: expected a shape that broadcasts"),
    ],
)
def test_errors_name_the_argument(call, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        call(torch.zeros(5, 4))


@given(
    st.lists(st.integers(0, 6), min_size=0, max_size=4),
    st.sampled_from(FLOATS),
    st.sampled_from(TARGETS),
    st.permutations(range(4)),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_any_shape_dtype_and_stride(size, logits_dtype, target_dtype, order, step, seed) -> None:
    """Permuted and stepped views of a larger tensor have the bits of their contiguous copies."""

    def view(tensor: Tensor) -> Tensor:
        order_here = [d for d in order if d < len(size)]
        inverse = [order_here.index(d) for d in range(len(size))]
        large = tensor.new_zeros([step * size[d] for d in order_here])
        part = large[tuple(slice(None, None, step) for _ in size)].permute(inverse)
        return part.copy_(tensor)

    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(size, generator=generator)).to(logits_dtype)
    target = torch.randint(0, 2, size, generator=generator).to(target_dtype)
    strided = view(logits).requires_grad_()
    dense = logits.clone().requires_grad_()
    nll, expected = bernoulli_nll(strided, view(target)), bernoulli_nll(dense, target)
    assert_same_bits((nll,), (expected,))
    assert_same_bits(torch.autograd.grad(nll.sum(), strided), torch.autograd.grad(expected.sum(), dense))
    truth = reference.elbo.bernoulli_nll(logits.double(), target.double())
    # 1.6 ulp of softplus, and the sum of a few hundred positive terms.
    torch.testing.assert_close(expected.double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("logits", "target", "error", "names"),
    [
        (torch.zeros(3), [0.0] * 3, TypeError, "target: expected a tensor, got list"),
        ([0.0] * 3, torch.zeros(3), TypeError, "logits: expected a tensor, got list"),
        (torch.zeros(3).long(), torch.zeros(3), TypeError, "logits: expected float32.*got int64"),
        (torch.zeros(3).byte(), torch.zeros(3), TypeError, "logits"),
        (torch.zeros(3), torch.zeros(3).long(), TypeError, "target: expected float32.*got int64"),
        (torch.zeros(3), torch.zeros(3).cfloat(), TypeError, "target"),
        (torch.zeros(3, 4), torch.zeros(4, 3), ValueError, r"target: expected the shape of logits, \(3, 4\)"),
        (torch.zeros(3, 4), torch.zeros(4), ValueError, "target: expected the shape"),
        (torch.zeros(3), torch.zeros(3, device="meta"), ValueError, "target: expected the device of logits"),
    ],
)
def test_errors(logits, target, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        bernoulli_nll(logits, target)


def test_targets_are_checked_on_request(debug: None) -> None:
    logits = torch.zeros(3)
    with pytest.raises(ValueError, match=r"target: expected values in \[0, 1\], got -0.5 to 1.0"):
        bernoulli_nll(logits, torch.tensor([-0.5, 0.0, 1.0]))
    assert bernoulli_nll(logits, torch.tensor([0.0, torch.nan, 1.0])).isnan().all()
    bernoulli_nll(logits, torch.tensor([0, 1, 1], dtype=torch.uint8))
    variate.set_debug(False)
    # Outside [0, 1] the formula is taken as it is.
    assert bernoulli_nll(torch.tensor([1.0]), torch.tensor([2.0])).item() == pytest.approx(
        exact_nll(1.0, 2.0), rel=1e-6
    )


CONSTRAINTS = (
    D.constraints.real,
    D.constraints.positive,
    D.constraints.nonnegative,
    D.constraints.unit_interval,
    D.constraints.boolean,
)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("number", range(len(CONSTRAINTS)))
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 7), (33, 64), (3, 2049), (0, 3), (3, 0)])
def test_satisfies_is_torchs_check(shape: tuple[int, ...], number: int, dtype: torch.dtype) -> None:
    """One value among ones, at the first, some and the last place: lanes beyond a row have no say."""
    tiny = torch.finfo(dtype).smallest_normal / 2  # a subnormal number
    values = (1.0, 0.5, 1.5, tiny, 0.0, -0.0, -tiny, -1.0, math.inf, -math.inf, math.nan)
    check = torch.ops.variate.satisfies.default
    for value in values:
        for place in {0, math.prod(shape) // 2, max(math.prod(shape) - 1, 0)}:
            x = torch.ones(shape, dtype=dtype)
            x.view(-1)[place : place + 1] = value
            wide = torch.stack((x, torch.full_like(x, math.nan)), -1)[..., 0]
            for laid in (x, wide, x.clone().mT if x.dim() > 1 else x, torch._neg_view(-x)):
                assert check(laid, number) == bool(CONSTRAINTS[number].check(laid).all())
    with pytest.raises(RuntimeError, match="constraint must lie in"):
        check(torch.ones(3), len(CONSTRAINTS))


def test_satisfies_with_threads(threads: None) -> None:
    torch.set_num_threads(2)
    x = torch.ones(512, 784)
    assert torch.ops.variate.satisfies(x, 1)
    for place in (0, 1000, x.numel() - 1):
        bad = x.clone()
        bad.view(-1)[place] = 0
        assert not torch.ops.variate.satisfies(bad, 1)
