"""Reparameterised sampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.distributions as D
from checklist import (
    FLOATS,
    Arg,
    Checklist,
    OpCase,
    assert_same_bits,
    kernel_noise,
    key,
    make,
    run,
    upstream,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from variate import functional, random, reference

MEAN = Arg("mean", lambda n: 1.5 * n)
LOG_VAR = Arg("log_var", lambda n: n.clamp(-3, 3))
PRIOR_MEAN = Arg("prior_mean", lambda n: 0.5 * n)
PRIOR_LOG_VAR = Arg("prior_log_var", lambda n: 0.7 * n.clamp(-3, 3))


def raw_rsample(tensors, key):
    return [(torch.ops.variate.normal_rsample.default, (*tensors, key, 3))]


def raw_kl(tensors, key):
    mean, log_var, *priors = (*tensors, None, None)[:4]
    rows = mean.shape[0] if mean.dim() > 1 else 1
    grad_kl = torch.ones(rows, device=mean.device)
    bits = torch.full((), 0.05, dtype=torch.float64)
    forward = torch.ops.variate.normal_rsample_kl.default
    backward = torch.ops.variate.normal_rsample_kl_backward.default
    return [
        (forward, (mean, log_var, *priors, bits, key, 3)),
        (backward, (mean, grad_kl, mean, log_var, *priors, bits, key, 3, True)),
        (backward, (None, grad_kl, mean, log_var, *priors, None, key, 3, False)),
        (backward, (mean, None, mean, log_var, None, None, None, key, 3, False)),
    ]


def location_scale(base, spread, samples, antithetic=False):
    """A case whose second argument is the spread of that name."""

    def of(module):
        rsample = getattr(module, f"{base}_rsample")

        def function(loc, spread_tensor, **options):
            z = rsample(loc, **{spread: spread_tensor}, samples=samples, antithetic=antithetic, **options)
            return z if samples is None else z.movedim(0, -1)  # the checklist's dimension 0 is that of the inputs

        return function

    how = samples or 0, antithetic, BASES.index(base), SPREADS.index(spread)

    def raw(tensors, key):
        loc = tensors[0]
        grad_z = loc.expand(samples, *loc.shape) if samples else loc
        return [
            (torch.ops.variate.location_scale_rsample.default, (*tensors, key, 3, *how)),
            (torch.ops.variate.location_scale_rsample_backward.default, (grad_z, *tensors, key, 3, *how)),
        ]

    name = f"{base}_rsample, {spread}, samples={samples}{', antithetic' if antithetic else ''}"
    arg = Arg(spread, lambda n: n.clamp(-3, 3) if spread != "scale" else 0.1 + n.abs())
    return OpCase(name, of(functional), of(reference.reparam), (MEAN, arg), raw, stochastic=True)


BASES = ("normal", "logistic", "laplace", "gumbel")
SPREADS = ("log_var", "log_scale", "scale")

CASES = (
    location_scale("normal", "log_var", 3, antithetic=True),
    location_scale("normal", "scale", None),
    location_scale("logistic", "log_scale", None),
    location_scale("laplace", "scale", 2),
    location_scale("gumbel", "log_scale", 5, antithetic=True),
    OpCase(
        "normal_rsample",
        functional.normal_rsample,
        reference.reparam.normal_rsample,
        (MEAN, LOG_VAR),
        raw_rsample,
        stochastic=True,
    ),
    OpCase(
        "normal_rsample_kl",
        functional.normal_rsample_kl,
        reference.reparam.normal_rsample_kl,
        (MEAN, LOG_VAR),
        raw_kl,
        annealed=("free_bits",),
        stochastic=True,
    ),
    OpCase(
        "normal_rsample_kl, prior, free bits",
        functional.normal_rsample_kl,
        reference.reparam.normal_rsample_kl,
        (MEAN, LOG_VAR, PRIOR_MEAN, PRIOR_LOG_VAR),
        raw_kl,
        options={"free_bits": 0.3},
        annealed=("free_bits",),
        stochastic=True,
    ),
)


class TestChecklist(Checklist):
    cases = CASES


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype), torch.randn(shape, generator=generator).to(dtype)


def exact_kl(m: float, v: float, pm: float = 0.0, pv: float = 0.0) -> float:
    return 0.5 * (math.expm1(v - pv) - (v - pv) + (m - pm) ** 2 * math.exp(-pv))


KEY = random.key(17)
Z0 = torch.zeros(3, 4)


# The divergence.


@pytest.mark.parametrize(
    ("m", "v", "pm", "pv"),
    [
        (0.0, 0.0, 0.0, 0.0),
        (1.0, 0.0, 0.0, 0.0),
        (0.0, 1e-4, 0.0, 0.0),  # the difference of nearly equal terms
        (1e-4, -1e-3, 0.0, 0.0),
        (-3.0, 2.5, 1.0, -0.5),
        (0.5, -20.0, 0.5, 3.0),
        (2.0, 0.3, 2.0, 0.3),
        (7.0, 80.0, -2.0, 10.0),
    ],
)
def test_closed_form(m: float, v: float, pm: float, pv: float) -> None:
    """torch.distributions.kl_divergence, in both dtypes and with either prior left out where it is 0."""
    for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        given = [torch.full((1, 1), x, dtype=dtype) for x in (m, v, pm, pv)]
        wide = [x.double() for x in given]
        q, p = (D.Normal(wide[i], (0.5 * wide[i + 1]).exp()) for i in (0, 2))
        assert D.kl_divergence(q, p).item() == pytest.approx(exact_kl(*(x.item() for x in wide)), rel=1e-9, abs=1e-15)
        expected = exact_kl(*(x.item() for x in wide))
        # Near 0 the terms v and e^v - 1 cancel to an ulp of themselves.
        absolute = 2 * torch.finfo(dtype).eps * min(abs(v - pv), 1.0)
        forms = [given]
        if pm == 0:
            forms.append([*given[:2], None, given[3]])
        if pv == 0:
            forms.append([*given[:3], None])
        if pm == pv == 0:
            forms.append(given[:2])
        for form in forms:
            kl = functional.normal_rsample_kl(*form, key=KEY)[1]
            assert kl.dtype == dtype and kl.item() == pytest.approx(expected, rel=rtol, abs=absolute)


def test_divergence_is_never_below_its_rounding() -> None:
    """KL >= 0: near log_var = 0 the float32 result stays above minus an ulp of log_var."""
    log_var = torch.linspace(-0.1, 0.1, 10_001)[:, None]
    kl = functional.normal_rsample_kl(torch.zeros_like(log_var), log_var, key=KEY)[1]
    assert (kl >= -(2.0**-23) * log_var[:, 0].abs()).all()


@pytest.mark.parametrize("cols", [1023, 1025, 4096, 3_000_000])
def test_long_rows(cols: int) -> None:
    """A row that spans tiles: the float32 sum stays within 1e-6 of float64's, the noise is the row's own stream."""
    mean, log_var = (t.requires_grad_() for t in draw(2, cols))
    z, kl = functional.normal_rsample_kl(mean, log_var, key=KEY, first_sample=5)
    wide = [t.detach().double().requires_grad_() for t in (mean, log_var)]
    with kernel_noise():
        z64, kl64 = reference.reparam.normal_rsample_kl(*wide, key=KEY, first_sample=5)
    torch.testing.assert_close(kl.double(), kl64, rtol=1e-6, atol=0)
    torch.testing.assert_close(z.double(), z64, rtol=1e-6, atol=1e-6)
    ours = torch.autograd.grad(z.sum() + (kl * torch.tensor([0.5, 2.0])).sum(), (mean, log_var))
    theirs = torch.autograd.grad(z64.sum() + (kl64 * torch.tensor([0.5, 2.0])).sum(), wide)
    # A sum of two terms of up to e^4.5 and its half.
    torch.testing.assert_close([g.double() for g in ours], list(theirs), rtol=1e-6, atol=1e-5)


def test_broadcast_priors_get_summed_gradients() -> None:
    """A learned prior is one vector, or one number, for the whole batch."""
    mean, log_var = draw(6, 4, 5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for shape in ((), (5,), (4, 1), (1, 4, 5), (6, 1, 1), (6, 4, 5)):
        priors = [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
        weights = torch.rand(6, dtype=torch.float64, generator=generator)
        gradients = []
        for function in (functional.normal_rsample_kl, reference.reparam.normal_rsample_kl):
            _, kl = function(mean, log_var, *priors, free_bits=0.2, key=KEY)
            gradients.append(torch.autograd.grad((kl * weights).sum(), priors))
            assert [g.shape for g in gradients[-1]] == [shape, shape]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=4)))
def test_gradients_only_where_they_are_needed(needed: tuple[bool, ...]) -> None:
    tensors = make(CASES[-1], (5, 19))
    everything = run(CASES[-1], tensors).gradients
    leaves = [t.clone().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)]
    outputs = functional.normal_rsample_kl(*leaves, free_bits=0.3, key=key())
    assert outputs[1].requires_grad == any(needed)
    if any(needed):
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = torch.autograd.grad(outputs, wanted, [upstream(output) for output in outputs])
        assert_same_bits(found, tuple(itertools.compress(everything, needed)))


def test_only_one_output_used() -> None:
    """The gradients through z alone and through kl alone sum to those through both."""
    tensors = [t.requires_grad_() for t in make(CASES[-1], (5, 19), torch.float64)]

    def gradient(through: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        z, kl = functional.normal_rsample_kl(*tensors, free_bits=0.3, key=key())
        found = torch.autograd.grad(through(z, kl), tensors, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]

    by_z, by_kl = gradient(lambda z, kl: z.square().sum()), gradient(lambda z, kl: kl.square().sum())
    both = gradient(lambda z, kl: z.square().sum() + kl.square().sum())
    torch.testing.assert_close([a + b for a, b in zip(by_z, by_kl, strict=True)], both, rtol=1e-13, atol=1e-13)
    assert not by_z[2].any() and not by_z[3].any()
    # And those of z are those of the function that makes z alone.
    z = functional.normal_rsample(*tensors[:2], key=key())
    assert_same_bits(torch.autograd.grad(z.square().sum(), tensors[:2]), tuple(by_z[:2]))


def test_one_tensor_as_several_arguments() -> None:
    x = draw(5, 7, dtype=torch.float64)[0].requires_grad_()
    gradients = []
    for module in (functional, reference.reparam):
        with kernel_noise():
            z, kl = module.normal_rsample_kl(x, x, x, key=KEY)
        gradients.append(torch.autograd.grad(z.sum() + kl.sum(), x))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


# Free bits.


def test_free_bits_are_a_floor_of_each_element() -> None:
    mean = torch.tensor([[0.0, 0.1, 1.0, 3.0]], dtype=torch.float64).requires_grad_()
    log_var = torch.zeros(1, 4, dtype=torch.float64).requires_grad_()
    each = 0.5 * mean.detach().square()  # 0, 0.005, 0.5, 4.5
    for floor in (0.0, 0.005, 0.25, 0.5, 10.0):
        for form in (floor, torch.tensor(floor), torch.tensor(floor, dtype=torch.float64), torch.tensor([floor])):
            kl = functional.normal_rsample_kl(mean, log_var, free_bits=form, key=KEY)[1]
            value = float(form)
            assert kl.item() == pytest.approx(each.clamp(min=value).sum().item(), rel=1e-14)
            (gradient,) = torch.autograd.grad(kl.sum(), mean)
            assert torch.equal(gradient, torch.where(each < value, 0.0, mean.detach()))  # passes at a tie


def test_free_bits_of_zero_switch_it_off() -> None:
    """Where rounding leaves a KL below 0 its gradient passes all the same."""
    mean, log_var = (t.requires_grad_() for t in draw(50, 40))
    log_var.data *= 1e-4
    results = []
    for floor in (0.0, 0, torch.tensor(0.0)):
        kl = functional.normal_rsample_kl(mean, log_var, free_bits=floor, key=KEY)[1]
        results.append((kl.detach(), *torch.autograd.grad(kl.sum(), (mean, log_var))))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])
    torch.testing.assert_close(results[0][2], 0.5 * torch.expm1(log_var.detach()), rtol=1e-5, atol=1e-9)


def test_free_bits_leave_z_alone() -> None:
    mean, log_var = draw(5, 7)
    alone = functional.normal_rsample(mean, log_var, key=KEY)
    for floor in (0.0, 3.0, math.inf):
        assert_same_bits(functional.normal_rsample_kl(mean, log_var, free_bits=floor, key=KEY)[:1], (alone,))
    assert functional.normal_rsample_kl(mean, log_var, free_bits=math.inf, key=KEY)[1].isinf().all()


# Extreme values.


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_extreme_log_var(dtype: torch.dtype) -> None:
    """At -200 sigma is 3.7e-44 and z the mean; at 150 float32 holds sigma and not its square; at 200 neither."""
    mean = torch.zeros(3, 2, dtype=dtype).requires_grad_()
    log_var = torch.tensor([-200.0, 150.0, 200.0]).to(dtype)[:, None].repeat(1, 2).requires_grad_()
    z, kl = functional.normal_rsample_kl(mean, log_var, key=KEY)
    noise = random.normal(3, 2, key=KEY).double()
    assert z[0].double().abs().max() < 1e-40
    assert kl[0].item() == pytest.approx(199.0, rel=1e-6)
    for row, exponent in ((1, 75.0), (2, 100.0)):
        if math.exp(exponent) < torch.finfo(dtype).max:
            rtol = max(1e-6, torch.finfo(dtype).eps)
            torch.testing.assert_close(z[row].double(), math.exp(exponent) * noise[row], rtol=rtol, atol=0)
        else:
            assert_same_bits((z[row].double(),), (math.inf * noise[row],))
        exact = math.exp(2 * exponent) - 1 - 2 * exponent
        assert kl[row].item() == (pytest.approx(exact, rel=1e-12) if dtype == torch.float64 else math.inf)
    gradient = torch.autograd.grad(kl[0], log_var)[0]
    assert torch.equal(gradient[0], torch.full((2,), -0.5, dtype=dtype))


def test_narrow_priors() -> None:
    """A prior as narrow as the posterior: the ratio of the variances counts, not the variances."""
    narrow = torch.full((1, 1), -80.0)
    kl = functional.normal_rsample_kl(torch.zeros(1, 1), narrow, torch.zeros(1, 1), narrow - 1, key=KEY)[1]
    assert kl.item() == pytest.approx(exact_kl(0.0, 1.0), rel=1e-6)


def test_infinities() -> None:
    mean = torch.tensor([[math.inf, -math.inf], [0.0, 1.0], [0.0, 1.0]])
    log_var = torch.tensor([[0.0, 0.0], [-math.inf, 0.0], [math.inf, 0.0]])
    z, kl = functional.normal_rsample_kl(mean, log_var, key=KEY)
    noise = random.normal(3, 2, key=KEY)
    assert z[0].tolist() == [math.inf, -math.inf]
    assert z[1, 0] == 0  # a variance of 0
    assert z[2, 0] == math.inf * noise[2, 0].sign()
    assert kl[0] == math.inf and kl[1] == math.inf
    # e^inf - inf has no value; in no case is it a finite one, and its neighbours in the batch do not see it.
    assert not kl[2].isfinite()
    assert_same_bits((z[:, 1],), ((mean[:, 1] + noise[:, 1]),))


# The noise.


def test_z_is_the_noise_of_random_normal() -> None:
    zero = torch.zeros(5, 4, 7)
    for first in (0, 3, 2**32 - 5):
        z = functional.normal_rsample(zero, zero, key=KEY, first_sample=first)
        assert_same_bits((z,), (random.normal(5, 4, 7, key=KEY, first_sample=first),))
    with pytest.raises(ValueError, match="first_sample: expected 0 <= first_sample <= 2\\^32 - 5"):
        functional.normal_rsample(zero, zero, key=KEY, first_sample=2**32 - 4)


def test_gradients_at_the_last_samples() -> None:
    """Backward draws the noise of forward again, there too."""
    mean, log_var = (t.requires_grad_() for t in draw(4, 9, dtype=torch.float64))
    z = functional.normal_rsample(mean, log_var, key=KEY, first_sample=2**32 - 4)
    (gradient,) = torch.autograd.grad(z.sum(), log_var)
    torch.testing.assert_close(gradient, (0.5 * (z - mean)).detach(), rtol=1e-12, atol=1e-12)


def test_monte_carlo_mean_variance_and_divergence() -> None:
    """E z, Var z and E [log q(z) - log p(z)] of 10^6 draws, each with a false-alarm rate below 1e-6 (4.9 sigma)."""
    n, sigmas = 1_000_000, 4.9
    m, v = torch.tensor([0.7, -2.0, 0.0]), torch.tensor([-1.0, 0.8, 0.0])
    z, kl = functional.normal_rsample_kl(m.expand(n, 3), v.expand(n, 3), key=KEY)
    z, m, v = z.double(), m.double(), v.double()
    sigma = (0.5 * v).exp()
    assert ((z.mean(0) - m).abs() < sigmas * sigma / n**0.5).all()
    assert ((z.var(0) - v.exp()).abs() < sigmas * v.exp() * (2 / n) ** 0.5).all()
    ratio = (D.Normal(m, sigma).log_prob(z) - D.Normal(0, 1).log_prob(z)).sum(1)
    assert abs(ratio.mean().item() - kl[0].item()) < sigmas * ratio.std().item() / n**0.5
    assert (kl == kl[0]).all()


# Samples, antithetic pairs, bases.


def rsample(base: str, *args: Tensor, **options) -> Tensor:
    return getattr(functional, f"{base}_rsample")(*args, **options)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("shape", [(7,), (5, 19), (3, 2, 700)])
def test_samples_are_calls_with_folded_keys(base: str, shape: tuple[int, ...]) -> None:
    """Draw 0 takes the key itself, draw k fold_in(key, k); of a larger K they are the first."""
    loc, log_scale = draw(*shape)
    keys = [KEY, *(random.fold_in(KEY, k) for k in range(1, 5))]
    whole = rsample(base, loc, log_scale=log_scale, samples=5, key=KEY, first_sample=3)
    each = [rsample(base, loc, log_scale=log_scale, key=k, first_sample=3) for k in keys]
    assert_same_bits((whole,), (torch.stack(each),))
    for samples in (1, 3):
        few = rsample(base, loc, log_scale=log_scale, samples=samples, key=KEY, first_sample=3)
        assert_same_bits((few,), (whole[:samples],))
    own = random.split(KEY, shape[0]) if len(shape) > 1 else KEY
    whole = rsample(base, loc, log_scale=log_scale, samples=3, key=own)
    each = [rsample(base, loc, log_scale=log_scale, key=random.fold_in(own, k) if k else own) for k in range(3)]
    assert_same_bits((whole,), (torch.stack(each),))


def test_the_three_spreads_are_one() -> None:
    loc, log_scale = draw(5, 19, dtype=torch.float64)
    scale = log_scale.exp()
    expected = functional.normal_rsample(loc, scale=scale, samples=3, key=KEY)
    for spread in ({"log_var": 2 * log_scale}, {"log_scale": log_scale}):
        actual = functional.normal_rsample(loc, **spread, samples=3, key=KEY)
        torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-14)
    assert_same_bits(
        (functional.normal_rsample(loc, 2 * log_scale, samples=1, key=KEY)[0],),
        (functional.normal_rsample(loc, 2 * log_scale, key=KEY),),
    )
    mirrored = functional.normal_rsample(loc, scale=-scale, key=KEY)  # as it is, also where it is no scale
    torch.testing.assert_close(mirrored, 2 * loc - expected[0], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("base", BASES)
def test_antithetic_pairs(base: str) -> None:
    """The second of a pair is made of 1 - u: -eps where the distribution is symmetric."""
    loc, scale = draw(40, 30)[0], draw(40, 30, seed=1)[0].abs()
    z = rsample(base, loc, scale=scale, samples=5, antithetic=True, key=KEY)
    plain = rsample(base, loc, scale=scale, samples=3, key=KEY)
    assert_same_bits((z[::2],), (plain,))
    if base != "gumbel":
        # Two roundings of a sum of this size.
        bound = 2.0**-23 * (loc.abs() + (z[0] - loc).abs())
        assert ((z[0] + z[1] - 2 * loc).abs() <= bound).all()
    else:
        noise = rsample(base, torch.zeros(40, 30), scale=torch.ones(40, 30), samples=2, antithetic=True, key=KEY)
        u = torch.exp(-torch.exp(-noise.double()))
        torch.testing.assert_close(u[0] + u[1], torch.ones_like(u[0]), rtol=0, atol=1e-6)
    alone = rsample(base, loc, scale=scale, antithetic=True, key=KEY)
    assert_same_bits((alone,), (plain[0],))


CDFS = {
    "normal": lambda x: 0.5 * torch.erfc(-x / math.sqrt(2)),
    "logistic": torch.sigmoid,
    "laplace": lambda x: torch.where(x < 0, 0.5 * torch.exp(-x.abs()), 1 - 0.5 * torch.exp(-x.abs())),
    "gumbel": lambda x: torch.exp(-torch.exp(-x)),
}
MOMENTS = {  # mean, variance, fourth central moment
    "normal": (0.0, 1.0, 3.0),
    "logistic": (0.0, math.pi**2 / 3, 7 * math.pi**4 / 15),
    "laplace": (0.0, 2.0, 24.0),
    "gumbel": (0.5772156649015329, math.pi**2 / 6, 3 * math.pi**4 / 20),
}


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_distributions(base: str, antithetic: bool) -> None:
    """Kolmogorov and Smirnov's bound, mean and variance of 2 x 10^5 draws: false-alarm rates of 1e-6 each.

    Of antithetic pairs each half is tested by itself.
    """
    n = 200_000
    zero, one = torch.zeros(n // 10, 10), torch.ones(n // 10, 10)
    draws = rsample(base, zero, scale=one, samples=2, antithetic=antithetic, key=KEY).double().flatten(1)
    mean, variance, fourth = MOMENTS[base]
    rank = torch.arange(n, dtype=torch.float64)
    for x in draws:
        cdf = CDFS[base](x.sort().values)
        distance = torch.maximum(cdf - rank / n, (rank + 1) / n - cdf).max().item()
        assert distance < math.sqrt(-math.log(1e-6 / 2) / (2 * n))
        assert abs(x.mean().item() - mean) < 4.9 * math.sqrt(variance / n)
        spread = (x - mean).square().mean().item()
        assert abs(spread - variance) < 4.9 * math.sqrt((fourth - variance**2) / n)


def test_antithetic_pairs_are_correlated_and_draws_are_not() -> None:
    """corr(eps_0, eps_1) is -1 in a pair, exactly, and 0 across pairs, at 4.9 sigma."""
    zero, one = torch.zeros(1000, 100), torch.ones(1000, 100)
    z = functional.normal_rsample(zero, scale=one, samples=4, antithetic=True, key=KEY).double().flatten(1)
    correlation = z @ z.T / z.shape[1]
    assert correlation[0, 1] == -correlation[0, 0] and correlation[2, 3] == -correlation[2, 2]
    assert correlation[0, 2].abs() < 4.9 / z.shape[1] ** 0.5


def test_broadcasting() -> None:
    """A shared location or spread is read in place, and its gradient is the sum."""
    wide = torch.Size((6, 4, 5))
    for loc_shape, scale_shape in (((6, 4, 5), ()), ((6, 4, 5), (5,)), ((6, 1, 1), (4, 5)), ((1, 4, 5), (6, 4, 1))):
        loc = draw(*loc_shape, dtype=torch.float64)[0].requires_grad_()
        scale = draw(*scale_shape, seed=1, dtype=torch.float64)[0].requires_grad_()
        results = []
        for module in (functional, reference.reparam):
            with kernel_noise():
                z = module.laplace_rsample(loc, scale=scale, samples=3, key=KEY)
            assert z.shape == (3, *wide)
            results.append((z.detach(), *torch.autograd.grad(z, (loc, scale), upstream(z))))
        torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)


def test_threads_of_many_samples(threads: None) -> None:
    loc, scale = (t.requires_grad_() for t in draw(40, 50))
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        z = functional.gumbel_rsample(loc, scale=scale, samples=50, key=KEY)
        results.append((z.detach(), *torch.autograd.grad(z, (loc, scale), upstream(z))))
    assert_same_bits(*results)


@pytest.mark.parametrize("antithetic", [False, True])
def test_samples_with_the_divergence(antithetic: bool) -> None:
    mean, log_var, prior_mean, prior_log_var = (t.requires_grad_() for seed in (0, 1) for t in draw(5, 7, seed=seed))
    priors = prior_mean, prior_log_var
    z, kl = functional.normal_rsample_kl(
        mean, log_var, *priors, free_bits=0.2, samples=3, antithetic=antithetic, key=KEY
    )
    _, alone = functional.normal_rsample_kl(mean, log_var, *priors, free_bits=0.2, key=KEY)
    assert_same_bits((kl,), (alone,))
    assert_same_bits((z,), (functional.normal_rsample(mean, log_var, samples=3, antithetic=antithetic, key=KEY),))
    gradients = torch.autograd.grad((z, kl), (mean, log_var, *priors), (upstream(z), upstream(kl)))
    with kernel_noise():
        outputs = reference.reparam.normal_rsample_kl(
            mean, log_var, *priors, free_bits=0.2, samples=3, antithetic=antithetic, key=KEY
        )
    expected = torch.autograd.grad(outputs, (mean, log_var, *priors), (upstream(z), upstream(kl)))
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("counts", [range(1, 13), [None, *range(1, 12)]])
def test_recompilations_for_samples(counts, fresh_dynamo: None) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(functional.logistic_rsample, fullgraph=True, backend=counter)
    loc, scale = draw(4, 6)
    for samples in counts:
        options = {"scale": scale, "samples": samples, "key": KEY}
        assert_same_bits((compiled(loc, **options),), (functional.logistic_rsample(loc, **options),))
    assert counter.frame_count <= 3  # none, one, many


@pytest.mark.parametrize(
    ("function", "args", "options", "error", "names"),
    [
        ("normal", (Z0, Z0), {"scale": Z0}, TypeError, "log_var, log_scale, scale: .*got log_var and scale"),
        ("normal", (Z0,), {}, TypeError, "log_var, log_scale, scale: expected exactly one of them, got none"),
        ("laplace", (Z0,), {}, TypeError, "log_scale, scale: expected exactly one of them, got none"),
        ("logistic", (Z0, 1.0), {}, TypeError, "log_scale: expected a tensor, got float"),
        ("gumbel", (Z0.long(),), {"scale": Z0}, TypeError, "loc: expected float32.*got int64"),
        ("gumbel", (Z0,), {"scale": torch.ones(2)}, ValueError, "scale: expected a shape that broadcasts with .* loc"),
        ("normal", (Z0, torch.ones(2)), {}, ValueError, "log_var: expected a shape that broadcasts with that of mean"),
        ("normal", (Z0, Z0), {"samples": 0}, ValueError, "samples: expected at least 1, got 0"),
        ("laplace", (Z0, Z0), {"samples": -3}, ValueError, "samples: expected at least 1, got -3"),
        ("laplace", (Z0, Z0), {"samples": 2.0}, TypeError, "samples: expected an int, got float"),
        ("normal", (Z0, Z0), {"samples": True}, TypeError, "samples: expected an int, got bool"),
        ("laplace", (Z0, Z0), {"key": torch.zeros(4, 2).long()}, ValueError, "key: expected shape"),
    ],
)
def test_errors_of_location_scale(function: str, args, options, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        rsample(function, *args, **options)


# What is saved, any layout, errors.


def test_nothing_but_inputs_and_key_is_saved() -> None:
    mean, log_var = (t.requires_grad_() for t in draw(64, 32))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        functional.normal_rsample_kl(mean, log_var, key=KEY)
    pointers = {mean.data_ptr(), log_var.data_ptr(), KEY.data_ptr()}
    assert {t.data_ptr() for t in saved} == pointers


@given(
    st.lists(st.integers(0, 6), min_size=0, max_size=4),
    st.tuples(*[st.sampled_from(FLOATS)] * 2),
    st.permutations(range(4)),
    st.integers(1, 3),
    st.integers(0, 2**32 - 6),
    st.integers(-(2**63), 2**63 - 1),
)
def test_any_shape_dtype_and_stride(size, dtypes, order, step, first, seed) -> None:
    """Permuted and stepped views of larger tensors have the bits of their contiguous copies, forward and backward."""

    def view(tensor: Tensor) -> Tensor:
        order_here = [d for d in order if d < len(size)]
        inverse = [order_here.index(d) for d in range(len(size))]
        large = tensor.new_zeros([step * size[d] for d in order_here])
        part = large[tuple(slice(None, None, step) for _ in size)].permute(inverse)
        return part.copy_(tensor)

    tensors = [t.to(dtype) for t, dtype in zip(draw(*size), dtypes, strict=True)]
    results = []
    for form in (view, torch.clone):
        leaves = [form(t).requires_grad_() for t in tensors]
        z, kl = functional.normal_rsample_kl(*leaves, free_bits=0.1, key=random.key(seed, -seed), first_sample=first)
        gradients = torch.autograd.grad((z, kl), leaves, (form(upstream(z)), upstream(kl)))
        results.append((z.detach(), kl.detach(), *gradients))
    assert_same_bits(*results)
    assert z.dtype == torch.promote_types(*dtypes) and z.shape == tuple(size)
    assert kl.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)


Z = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("args", "options", "error", "names"),
    [
        ((Z.long(), Z), {}, TypeError, "mean: expected float32.*got int64"),
        ((Z, Z.int()), {}, TypeError, "log_var: expected float32.*got int32"),
        ((1.0, Z), {}, TypeError, "mean: expected a tensor, got float"),
        ((Z, None), {}, TypeError, "log_var: expected a tensor, got NoneType"),
        ((Z, Z.T), {}, ValueError, r"log_var: expected the shape of mean, \(3, 4\), got \(4, 3\)"),
        ((Z, Z[0]), {}, ValueError, "log_var: expected the shape of mean"),
        ((Z, Z.to("meta")), {}, ValueError, "log_var: expected the device of mean, cpu, got meta"),
        ((Z, Z, Z.cfloat()), {}, TypeError, "prior_mean: expected float32"),
        ((Z, Z, 0.0), {}, TypeError, "prior_mean: expected a tensor"),
        ((Z, Z, None, Z.bool()), {}, TypeError, "prior_log_var: expected float32"),
        ((Z, Z, Z[:, :3]), {}, ValueError, "prior_mean: expected a shape that broadcasts to that of mean"),
        ((Z, Z, None, Z[None]), {}, ValueError, "prior_log_var: expected a shape that broadcasts"),
        ((Z, Z, None, Z.to("meta")), {}, ValueError, "prior_log_var: expected the device"),
        ((Z, Z), {"free_bits": -0.1}, ValueError, "free_bits: expected at least 0, got -0.1"),
        ((Z, Z), {"free_bits": math.nan}, ValueError, "free_bits: expected at least 0, got nan"),
        ((Z, Z), {"free_bits": "1"}, TypeError, "free_bits: expected a number or a 0-d tensor, got str"),
        ((Z, Z), {"free_bits": True}, TypeError, "free_bits"),
        ((Z, Z), {"free_bits": Z}, ValueError, "free_bits: expected a number or a 0-d"),
        ((Z, Z), {"free_bits": torch.tensor(1)}, ValueError, "free_bits: .*int64"),
        ((Z, Z), {"key": torch.zeros(3, dtype=torch.int64)}, ValueError, r"key: expected shape \(2,\), or \(3, 2\)"),
        ((Z, Z), {"key": torch.zeros(4, 2, dtype=torch.int64)}, ValueError, "key"),
        ((Z, Z), {"key": torch.zeros(2)}, TypeError, "key: expected int64, got float32"),
        ((Z, Z), {"key": 3}, TypeError, "key: expected an int64 tensor, got int"),
        ((Z, Z), {"key": KEY, "first_sample": -1}, ValueError, "first_sample"),
        ((Z, Z), {"key": KEY, "generator": torch.Generator()}, ValueError, "generator"),
    ],
)
def test_errors(args, options, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        functional.normal_rsample_kl(*args, **options)
    if len(args) == 2 and "free_bits" not in options and None not in args and "shape of mean" not in names:
        with pytest.raises(error, match=names):
            functional.normal_rsample(*args, **options)


def test_a_generator_under_compile_is_refused(fresh_dynamo: None) -> None:
    compiled = torch.compile(functional.normal_rsample, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=r"pass key=variate\.random\.key"):
        compiled(Z, Z, generator=torch.Generator())
