"""Relaxed and straight-through discrete samples."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from checklist import Arg, Checklist, OpCase, assert_same_bits, kernel_noise, upstream
from torch import Tensor

from variate import functional, random, reference

LOGITS = Arg("logits", lambda n: 2 * n)
KEY = random.key(17)


def raw_gumbel_softmax(tensors, key):
    (logits,) = tensors
    tau = torch.full((), 0.7, dtype=torch.float64)
    forward, backward = torch.ops.variate.gumbel_softmax.default, torch.ops.variate.gumbel_softmax_backward.default
    return [
        (forward, (logits, tau, key, 3, False)),
        (forward, (logits, None, key, 3, True)),
        (backward, (logits, logits, None, tau, None, 0)),
        (backward, (logits, None, logits, tau, key, 3)),
        (backward, (logits, None, logits, None, None, 0)),
    ]


def raw_relaxed_bernoulli(tensors, key):
    (logits,) = tensors
    temperature = torch.full((), 0.7)
    forward = torch.ops.variate.relaxed_bernoulli_rsample.default
    backward = torch.ops.variate.relaxed_bernoulli_rsample_backward.default
    return [
        (forward, (logits, temperature, key, 3, False)),
        (forward, (logits, None, key, 3, True)),
        (backward, (logits, logits, None, temperature, None, 0)),
        (backward, (logits, None, logits, temperature, key, 3)),
    ]


def raw_bernoulli(tensors, key):
    (logits,) = tensors
    backward = torch.ops.variate.relaxed_bernoulli_rsample_backward.default
    return [
        (torch.ops.variate.bernoulli_straight_through.default, (logits, key, 3)),
        (backward, (logits, None, logits, None, None, 0)),
    ]


def some_dimension(shape: tuple[int, ...]) -> bool:
    return len(shape) > 0


def case(name: str, function: str, raw, **options) -> OpCase:
    categorical = function in ("gumbel_softmax", "categorical_straight_through")
    hard = options.get("options", {}).get("hard", "straight_through" in function)
    temperature = {"gumbel_softmax": "tau", "relaxed_bernoulli_rsample": "temperature"}.get(function)
    return OpCase(
        name,
        getattr(functional, function),
        getattr(reference.relaxed, function),
        (LOGITS,),
        raw,
        annealed=(temperature,) if temperature else (),
        annealed_from=0.5,
        stochastic=True,
        straight_through=hard,
        keeps_output=not hard,
        joint_dims=1 if categorical else 0,
        accepts=some_dimension if categorical else lambda shape: True,
        **options,
    )


CASES = (
    case("gumbel_softmax", "gumbel_softmax", raw_gumbel_softmax, options={"tau": 0.7}),
    case("gumbel_softmax, hard", "gumbel_softmax", raw_gumbel_softmax, options={"tau": 0.7, "hard": True}),
    case("relaxed_bernoulli_rsample", "relaxed_bernoulli_rsample", raw_relaxed_bernoulli, options={"temperature": 0.7}),
    case(
        "relaxed_bernoulli_rsample, hard",
        "relaxed_bernoulli_rsample",
        raw_relaxed_bernoulli,
        options={"temperature": 1.5, "hard": True},
    ),
    case("bernoulli_straight_through", "bernoulli_straight_through", raw_bernoulli),
    case("categorical_straight_through", "categorical_straight_through", raw_gumbel_softmax),
)


class TestChecklist(Checklist):
    cases = CASES


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Shapes and dimensions.


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("shape", [(1024,), (1025,), (3, 5000), (3, 700, 2), (2, 300, 7), (2, 5, 301), (2, 4, 1300)])
def test_lines_of_any_length(shape: tuple[int, ...], hard: bool) -> None:
    """Several to a tile, several tiles to a line, and lines that begin inside a block of four."""
    logits = draw(*shape).requires_grad_()
    wide = logits.detach().double().requires_grad_()
    with kernel_noise():
        y = functional.gumbel_softmax(logits, 0.6, hard, key=KEY)
        exact = reference.relaxed.gumbel_softmax(wide, 0.6, hard, key=KEY)
    # exp of a difference of up to 40 / 0.6 has its rounding as relative error; results are at most 1.
    torch.testing.assert_close(y.double(), exact, rtol=2e-5, atol=1e-9)
    (ours,) = torch.autograd.grad(y, logits, upstream(y))
    (theirs,) = torch.autograd.grad(exact, wide, upstream(exact))
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -2])
def test_dim_is_moved_last(dim: int) -> None:
    logits = draw(3, 4, 5, 6).requires_grad_()
    for hard in (False, True):
        y = functional.gumbel_softmax(logits, 0.5, hard, dim=dim, key=KEY)
        moved = functional.gumbel_softmax(logits.movedim(dim, -1).contiguous(), 0.5, hard, key=KEY).movedim(-1, dim)
        assert y.shape == logits.shape
        assert_same_bits((y, *torch.autograd.grad(y, logits, upstream(y))),
                         (moved, *torch.autograd.grad(moved, logits, upstream(y))))  # fmt: skip


# The distributions.


def test_hard_frequencies() -> None:
    """Chi-squared over 8 categories of 2 x 10^5 draws: false-alarm rate 1e-6 (7 degrees of freedom: 40.5)."""
    n = 200_000
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1.5, -math.inf])
    expected = n * torch.softmax(logits.double(), -1)
    for draws in (
        functional.gumbel_softmax(logits.expand(n, 8), 0.1, True, key=KEY),
        functional.gumbel_softmax(logits.expand(n, 8), 3.0, True, key=random.key(18)),
        functional.categorical_straight_through(logits.expand(n, 8), key=random.key(19)),
    ):
        assert (draws.sum(-1) == 1).all() and draws.unique().tolist() == [0, 1]
        counts = draws.double().sum(0)
        assert counts[-1] == 0
        assert ((counts - expected).square() / expected.clamp(min=1e-9))[:-1].sum() < 40.5


def test_hard_is_the_largest_of_soft() -> None:
    logits = draw(500, 12)
    soft = functional.gumbel_softmax(logits, 0.8, key=KEY)
    hard = functional.gumbel_softmax(logits, 0.8, True, key=KEY)
    assert torch.equal(hard, F.one_hot(soft.argmax(-1), 12).float())


def test_relaxed_bernoulli_has_its_closed_form() -> None:
    """P(z <= c) = sigmoid(T logit(c) - logits): Kolmogorov and Smirnov's bound with a false-alarm rate of 1e-6."""
    n = 200_000
    for logit, temperature in ((0.3, 0.5), (-2.0, 2.0), (1.0, 1.0)):
        z = functional.relaxed_bernoulli_rsample(
            torch.full((n,), logit, dtype=torch.float64), temperature, key=random.key(5, n)
        )
        cdf = torch.sigmoid(temperature * torch.logit(z.sort().values) - logit)
        rank = torch.arange(n, dtype=torch.float64)
        distance = torch.maximum(cdf - rank / n, (rank + 1) / n - cdf).max().item()
        assert distance < math.sqrt(-math.log(1e-6 / 2) / (2 * n))
        hard = functional.relaxed_bernoulli_rsample(torch.full((n,), logit), temperature, True, key=random.key(5, n))
        assert torch.equal(hard.double(), (z > 0.5).double())


def test_straight_through_draws_are_those_of_random() -> None:
    logits = draw(400, 9)
    probs = torch.sigmoid(logits.double()).float()  # an ulp from the kernel's, which turns one draw in 2^24
    assert torch.equal(functional.bernoulli_straight_through(logits, key=KEY), random.bernoulli(probs, key=KEY))
    chosen = functional.categorical_straight_through(logits, key=KEY)
    assert torch.equal(chosen.argmax(-1), random.categorical(logits, key=KEY))


def test_straight_through_gradients_are_those_of_the_probabilities() -> None:
    logits = draw(6, 9, dtype=torch.float64).requires_grad_()
    for function, probabilities in (
        (functional.bernoulli_straight_through, torch.sigmoid),
        (functional.categorical_straight_through, lambda x: torch.softmax(x, -1)),
    ):
        x = function(logits, key=KEY)
        (actual,) = torch.autograd.grad(x, logits, upstream(x))
        (expected,) = torch.autograd.grad(probabilities(logits), logits, upstream(x))
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-15)


# Extreme logits and temperatures.


@pytest.mark.parametrize("tau", [1e-45, 1e-30, 0.01, 1.0, 1e30])
def test_never_nan(tau: float) -> None:
    """Not at temperatures that float32 cannot invert, nor for logits at its ends."""
    rows = [
        [0.0, -math.inf, 1.0, -math.inf],
        [-math.inf] * 4,
        [math.inf, 0.0, math.inf, -math.inf],
        [3e38, -3e38, 3e38, 0.0],
        [1e-40, -1e-40, 0.0, -0.0],
    ]
    logits = torch.tensor(rows).requires_grad_()
    for hard in (False, True):
        y = functional.gumbel_softmax(logits, tau, hard, key=KEY)
        assert y.isfinite().all() and (y >= 0).all()
        torch.testing.assert_close(y.sum(-1), torch.ones(5), rtol=1e-6, atol=0)
        assert (y[0, [1, 3]] == 0).all() and (y[2, [1, 3]] == 0).all()
        if tau >= 0.01:  # below, 1 / tau itself may overflow the gradient
            (gradient,) = torch.autograd.grad(y, logits, upstream(y))
            assert gradient.isfinite().all()
        z = functional.relaxed_bernoulli_rsample(logits, tau, hard, key=KEY)
        assert z.isfinite().all() and (z >= 0).all() and (z <= 1).all()
    assert functional.bernoulli_straight_through(logits, key=KEY)[1].tolist() == [0, 0, 0, 0]


def test_no_noise_makes_a_million_draws_nan() -> None:
    y = functional.gumbel_softmax(torch.zeros(1_000_000, 4), 0.1, key=KEY)
    assert y.isfinite().all()


def test_a_nan_stays_in_its_group() -> None:
    logits = draw(3, 2, 700)
    logits[1, 1, 3] = math.nan
    for hard in (False, True):
        y = functional.gumbel_softmax(logits, 0.5, hard, key=KEY)
        assert y[1, 1].isnan().all() and y.isnan().sum() == 700


def test_ties_go_to_the_first() -> None:
    """Infinite logits are equal whatever the noise."""
    for size in (6, 2000):
        logits = torch.zeros(3, size)
        logits[:, 2:5] = math.inf
        assert functional.gumbel_softmax(logits, hard=True, key=KEY).argmax(-1).tolist() == [2, 2, 2]


# What is saved, signature, errors.


def test_soft_samples_are_all_that_is_kept() -> None:
    logits = draw(64, 32).requires_grad_()
    saved: list[Tensor] = []
    for hard in (False, True):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            y = functional.gumbel_softmax(logits, 0.5, hard, key=KEY)
        large = {t.data_ptr() for t in saved if t.numel() > 2}
        assert large == {logits.data_ptr() if hard else y.data_ptr()}


def test_arguments_of_torch() -> None:
    logits = draw(5, 7)
    expected = functional.gumbel_softmax(logits, 0.5, True, dim=1, key=KEY)
    assert_same_bits((functional.gumbel_softmax(logits, 0.5, True, 1e-3, -1, key=KEY),), (expected,))
    assert_same_bits((functional.gumbel_softmax(logits=logits, tau=0.5, hard=True, eps=0.0, dim=-1, key=KEY),),
                     (expected,))  # fmt: skip
    assert_same_bits((functional.gumbel_softmax(logits, torch.tensor(0.5), True, key=KEY),), (expected,))


Z = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("function", "args", "options", "error", "names"),
    [
        ("gumbel_softmax", (Z.long(),), {}, TypeError, "logits: expected float32"),
        ("gumbel_softmax", (torch.zeros(()),), {}, ValueError, "logits: expected at least one dimension"),
        ("gumbel_softmax", (Z,), {"dim": 2}, ValueError, "dim: expected -2 <= dim < 2, got 2"),
        ("gumbel_softmax", (Z, 0), {}, ValueError, "tau: expected a finite number above 0, got 0"),
        ("gumbel_softmax", (Z, -1.0), {}, ValueError, "tau: .*got -1.0"),
        ("gumbel_softmax", (Z, math.nan), {}, ValueError, "tau: .*got nan"),
        ("gumbel_softmax", (Z, math.inf), {}, ValueError, "tau: .*got inf"),
        ("gumbel_softmax", (Z, "1"), {}, TypeError, "tau: expected a number or a 0-d tensor, got str"),
        ("gumbel_softmax", (Z, Z), {}, ValueError, "tau: expected a number or a 0-d"),
        ("relaxed_bernoulli_rsample", (Z, 0.0), {}, ValueError, "temperature: expected a finite number above 0"),
        ("relaxed_bernoulli_rsample", (Z.int(), 1.0), {}, TypeError, "logits: expected float32"),
        ("bernoulli_straight_through", (1.0,), {}, TypeError, "logits: expected a tensor, got float"),
        ("categorical_straight_through", (torch.zeros(()),), {}, ValueError, "logits: expected at least one"),
        ("categorical_straight_through", (Z,), {"key": 3}, TypeError, "key: expected an int64 tensor"),
        ("bernoulli_straight_through", (Z,), {"key": KEY, "first_sample": -1}, ValueError, "first_sample"),
        ("gumbel_softmax", (Z,), {"key": KEY, "generator": torch.Generator()}, ValueError, "generator"),
    ],
)
def test_errors(function: str, args, options, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        getattr(functional, function)(*args, **options)
