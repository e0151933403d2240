"""Boltzmann machines against enumeration: distributions, partition functions, gradients, tempering, deep machines.

The machines have weights without a random number in them, so that their exact values can be had in any language. Every
statistical test has fixed seeds; its bound is one that a right sampler exceeds with the probability stated beside it.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

import variate
from variate import functional, reference
from variate.functional import (
    ais_log_partition,
    boltzmann,
    dbm_gibbs,
    dbm_join,
    dbm_mean_field,
    parallel_tempering,
    rbm_cd_gradient,
    rbm_energy,
    rbm_free_energy,
    rbm_log_partition,
    tempering,
)

SIGMAS = 5.0  # a right mean is further off with probability 6e-7
LEAST_P = 1e-6  # of a chi-squared test

Machine = tuple[Tensor, Tensor, Tensor]


def machine(visible: int, hidden: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Machine:
    i, j = torch.arange(visible, dtype=torch.float64), torch.arange(hidden, dtype=torch.float64)
    weight = scale * torch.sin(1 + 3 * i[:, None] + 7 * j)
    return weight.to(dtype), (0.5 * torch.cos(2 * i)).to(dtype), (0.5 * torch.sin(0.5 + j)).to(dtype)


def deep(*sizes: int) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and no biases."""
    weights = []
    for level, (m, n) in enumerate(itertools.pairwise(sizes)):
        i, j = torch.arange(m, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
        first, second = ((3, 7), (5, 3), (2, 11))[level % 3]
        weights.append(torch.sin(1 + level + first * i + second * j).float())
    return weights, [torch.zeros(n) for n in sizes]


def states(units: int) -> Tensor:
    """All 2^units states; unit 0 is the lowest bit."""
    return (torch.arange(2**units)[:, None] >> torch.arange(units)) & 1


def index(rows: Tensor) -> Tensor:
    """Where a state stands among `states`."""
    return (rows.long() << torch.arange(rows.shape[-1])).sum(-1)


def exact_visible(m: Machine) -> tuple[Tensor, Tensor]:
    """All visible states and their probabilities, float64."""
    v = states(len(m[1]))
    log_p = -rbm_free_energy(v, *(t.double() for t in m))
    return v, torch.softmax(log_p, 0)


def exact_samples(m: Machine, count: int, seed: int = 0) -> Tensor:
    v, p = exact_visible(m)
    drawn = torch.multinomial(p, count, replacement=True, generator=torch.Generator().manual_seed(seed))
    return v[drawn].to(torch.uint8)


def chi_squared(drawn: Tensor, probs: Tensor) -> float:
    """The p-value of counts of indices, cells below ten expected put together."""
    expected = probs * len(drawn)
    counts = torch.bincount(drawn, minlength=len(probs)).double()
    rare = expected < 10
    if rare.any():
        expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
        counts = torch.cat((counts[~rare], counts[rare].sum()[None]))
        if expected[-1] == 0:
            expected, counts = expected[:-1], counts[:-1]
    return float(stats.chi2.sf(((counts - expected) ** 2 / expected).sum().item(), len(expected) - 1))


def assert_mean(values: Tensor, truth: float | Tensor) -> None:
    """Of independent rows, within SIGMAS standard errors and what six published digits leave open."""
    values = values.double()
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - torch.as_tensor(truth)).abs() <= SIGMAS * error + 1e-6).all()


# Energies and partition functions.


@pytest.mark.parametrize(
    ("shape", "log_z"), [((6, 4, 1.0), 10.21889070), ((12, 8, 1.0), 17.98265216), ((16, 12, 2.0), 61.47601930)]
)
def test_log_partition_of_published_machines(shape, log_z) -> None:
    w, a, b = machine(*shape, dtype=torch.float64)
    assert rbm_log_partition(w, a, b).item() == pytest.approx(log_z, abs=6e-9)
    assert rbm_log_partition(w.t(), b, a).item() == pytest.approx(log_z, abs=6e-9)


def test_log_partition_of_other_visibles() -> None:
    gaussian = machine(3, 4, 0.5, torch.float64)
    assert rbm_log_partition(*gaussian, visible_kind="gaussian").item() == pytest.approx(7.81443481, abs=6e-9)
    m = machine(6, 4, 1.0, torch.float64)
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    brute = torch.logsumexp(-rbm_free_energy(every, *m, visible_kind="categorical"), 0)
    exact = rbm_log_partition(*m, visible_kind="categorical", categories=3)
    torch.testing.assert_close(exact, brute, rtol=1e-12, atol=0)
    assert rbm_log_partition(torch.zeros(2, 0), torch.zeros(2), torch.zeros(0)).item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "categorical"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_free_energy_sums_the_energy_over_the_hidden_units(kind, beta) -> None:
    m = machine(6, 4, 1.0, torch.float64)
    generator = torch.Generator().manual_seed(0)
    visible = {
        "bernoulli": torch.randint(0, 2, (5, 6), generator=generator),
        "gaussian": torch.randn(5, 6, generator=generator, dtype=torch.float64),
        "categorical": torch.randint(0, 3, (5, 2), generator=generator),
    }[kind]
    h = states(4)
    energy = rbm_energy(visible.repeat_interleave(16, 0), h.repeat(5, 1), *m, visible_kind=kind).view(5, 16)
    expected = -torch.logsumexp(-beta * energy, 1)
    # softplus is linear above 20, where 2e-9 is left
    torch.testing.assert_close(rbm_free_energy(visible, *m, beta=beta, visible_kind=kind), expected, rtol=1e-8, atol=0)
    each = torch.full((5,), beta, dtype=torch.float64)
    torch.testing.assert_close(rbm_free_energy(visible, *m, beta=each, visible_kind=kind), expected, rtol=1e-8, atol=0)
    parameters = [t.clone().requires_grad_() for t in m]
    assert torch.autograd.gradcheck(lambda *p: rbm_free_energy(visible, *p, visible_kind=kind), parameters)
    assert torch.autograd.gradgradcheck(lambda *p: rbm_free_energy(visible, *p, visible_kind=kind), parameters)


def test_free_energy_keeps_the_dtype_and_takes_no_rows() -> None:
    for dtype in (torch.float32, torch.float64):
        m = machine(3, 2, dtype=dtype)
        assert rbm_free_energy(torch.ones(4, 3, dtype=torch.uint8), *m).dtype == dtype
        assert rbm_free_energy(torch.ones(0, 3), *m).shape == (0,)


# The chains' distribution.


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_joint_histogram(beta) -> None:
    m = machine(5, 4, 1.5)
    visible, hidden = functional.rbm_gibbs(
        torch.zeros(40_000, 5, dtype=torch.uint8), *m, steps=40, beta=beta, key=variate.random.key(1)
    )
    every = states(9)
    energy = rbm_energy(every[:, :5], every[:, 5:], *(t.double() for t in m))
    probs = torch.softmax(-beta * energy, 0)
    assert chi_squared(index(torch.cat((visible, hidden), 1)), probs) > LEAST_P


def test_posterior_under_a_clamp() -> None:
    m = machine(5, 4, 1.5)
    start = torch.tensor([1, 0, 0, 1, 0], dtype=torch.uint8).repeat(40_000, 1)
    clamp = torch.tensor([1, 1, 0, 0, 0], dtype=torch.uint8)
    visible, _ = functional.rbm_gibbs(start, *m, steps=40, clamp=clamp, key=variate.random.key(2))
    assert visible[:, :2].equal(start[:, :2])
    every, probs = exact_visible(m)
    fitting = (every[:, 0] == 1) & (every[:, 1] == 0)
    conditional = torch.where(fitting, probs, 0.0) / probs[fitting].sum()
    assert chi_squared(index(visible), conditional) > LEAST_P


def test_categorical_histogram() -> None:
    m = machine(6, 4, 1.5)
    visible, _ = functional.rbm_gibbs(
        torch.zeros(40_000, 2, dtype=torch.uint8),
        *m,
        steps=60,
        visible_kind="categorical",
        key=variate.random.key(3),
    )
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    probs = torch.softmax(-rbm_free_energy(every, *(t.double() for t in m), visible_kind="categorical"), 0)
    assert chi_squared(visible[:, 0].long() * 3 + visible[:, 1], probs) > LEAST_P


@pytest.mark.parametrize(
    ("shape", "v0", "h0", "v0h0", "sums"),
    [
        ((6, 4, 1.0), 0.930556, 0.850730, 0.801273, (2.997001, 3.267156)),
        ((12, 8, 1.0), 0.833671, 0.772084, 0.685804, (6.020725, 4.099834)),
    ],
)
def test_means_of_published_machines(shape, v0, h0, v0h0, sums) -> None:
    m = machine(*shape)
    v, h = functional.rbm_gibbs(
        torch.zeros(30_000, shape[0], dtype=torch.uint8), *m, steps=50, key=variate.random.key(4)
    )
    v, h = v.double(), h.double()
    for values, truth in (
        (v[:, 0], v0),
        (h[:, 0], h0),
        (v[:, 0] * h[:, 0], v0h0),
        (v.sum(1), sums[0]),
        (h.sum(1), sums[1]),
    ):
        assert_mean(values, truth)


def test_gaussian_means() -> None:
    m = machine(3, 4, 0.5)
    v, h = functional.rbm_gibbs(
        torch.zeros(30_000, 3), *m, steps=60, visible_kind="gaussian", key=variate.random.key(5)
    )
    assert_mean(v, torch.tensor([1.538564, -1.293164, 0.783077]).double())
    assert_mean(h, torch.tensor([0.814276, 0.877944, 0.811615, 0.502351]).double())
    # The hidden units' joint distribution at another temperature: exp(-beta E) summed over v in closed form.
    _, h = functional.rbm_gibbs(
        torch.zeros(30_000, 3), *m, steps=60, beta=0.6, visible_kind="gaussian", key=variate.random.key(6)
    )
    w, a, b = (t.double() for t in m)
    every = states(4).double()
    field = every @ w.t()
    probs = torch.softmax(0.6 * (every @ b + (field * (field / 2 + a)).sum(1)), 0)
    assert chi_squared(index(h), probs) > LEAST_P


# The fixed point of the reference.


def test_fixed_point_exponents_are_the_largest() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 60, generator=generator) * torch.exp2(torch.linspace(-140, 120, 60))
    bias = torch.randn(60, generator=generator) * torch.exp2(torch.linspace(100, -130, 60))
    weight[:, 3], bias[3], weight[:, 4] = 0, 0, 0
    q, bias_q, exponent = reference.rbm.fixed_point(weight, bias)
    assert exponent[3] == 0

    def fits(e: Tensor) -> Tensor:
        scale = torch.exp2(e.double())
        small, offset = (weight.double() * scale).round().abs(), (bias.double() * scale).round().abs()
        return small.sum(0) + offset < 2**31

    assert fits(exponent).all()
    assert not fits(exponent + 1)[torch.arange(60) != 3].any()
    assert q.equal(q.round()) and bias_q.equal(bias_q.round())


# Contrastive divergence.


def exact_gradient(data: Tensor, m: Machine) -> list[Tensor]:
    """Of -log p(data), in float64."""
    parameters = [t.double().requires_grad_() for t in m]
    loss = rbm_free_energy(data, *parameters).mean() + torch.logsumexp(
        -rbm_free_energy(states(len(m[1])), *parameters), 0
    )
    return list(torch.autograd.grad(loss, parameters))


def test_gradient_of_converged_chains_is_that_of_the_likelihood() -> None:
    m = machine(6, 4)
    data = exact_samples(machine(6, 4, 0.5), 500)
    start = torch.zeros(40_000, 6, dtype=torch.uint8)
    found = rbm_cd_gradient(data, *m, steps=50, persistent=start, key=variate.random.key(7))
    for gradient, truth in zip(found, exact_gradient(data, m), strict=False):
        # A mean of 40,000 numbers between 0 and 1 has a standard error of at most 0.0025.
        torch.testing.assert_close(gradient.double(), truth, rtol=0, atol=SIGMAS * 0.0025)


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "categorical"])
def test_gradient_is_that_of_free_energies(kind) -> None:
    m = tuple(t.requires_grad_() for t in machine(6, 4))
    generator = torch.Generator().manual_seed(0)
    data = {
        "bernoulli": torch.randint(0, 2, (9, 6), generator=generator, dtype=torch.uint8),
        "gaussian": torch.randn(9, 6, generator=generator),
        "categorical": torch.randint(0, 3, (9, 2), generator=generator, dtype=torch.uint8),
    }[kind]
    key = variate.random.key(8)
    found = rbm_cd_gradient(data, *m, steps=3, visible_kind=kind, key=key)
    energies = [rbm_free_energy(x, *m, visible_kind=kind).mean() for x in (data, found.chains)]
    for gradient, truth in zip(found, torch.autograd.grad(energies[0] - energies[1], m), strict=False):
        torch.testing.assert_close(gradient, truth, rtol=1e-4, atol=1e-6)  # float32 sums of nine rows
    again = reference.rbm.rbm_cd_gradient(data, *m, steps=3, visible_kind=kind, key=key)
    assert again[3].equal(found.chains) or kind == "gaussian"
    more = rbm_cd_gradient(data, *m, persistent=found.chains, steps=2, first_step=3, visible_kind=kind, key=key)
    whole = rbm_cd_gradient(data, *m, steps=5, visible_kind=kind, key=key)
    assert more.chains.equal(whole.chains)


def test_data_between_0_and_1_start_the_chains_as_draws() -> None:
    m = machine(6, 4)
    data = torch.full((20_000, 6), 0.3)
    found = rbm_cd_gradient(data, m[0] * 0, m[1] * 0, m[2] * 0 - 30, key=variate.random.key(9))
    again = reference.rbm.rbm_cd_gradient(data, m[0] * 0, m[1] * 0, m[2] * 0 - 30, key=variate.random.key(9))
    assert again[3].equal(found.chains)
    start = boltzmann.start_of(data, "bernoulli", variate.random.key(9), None, 0)
    assert_mean(start, 0.3)
    assert found.chains.dtype == torch.uint8
    # Positive statistics take the probabilities themselves.
    torch.testing.assert_close(found.visible_bias, found.chains.float().mean(0) - 0.3)


# Annealed importance sampling.


@pytest.mark.parametrize("shape", [(6, 4, 1.0), (12, 8, 1.0), (16, 12, 2.0)])
def test_ais_forward_and_reverse_bracket_log_z(shape) -> None:
    m = machine(*shape)
    truth = rbm_log_partition(*m)
    forward = ais_log_partition(*m, betas=300, chains=400, key=variate.random.key(10))
    reverse = ais_log_partition(*m, betas=300, start=exact_samples(m, 400), key=variate.random.key(11))
    for estimate in (forward, reverse):
        assert (estimate.log_z - truth).abs() < SIGMAS * estimate.standard_error
        assert estimate.standard_error < 0.05 and 250 < estimate.effective_sample_size <= 400
    # E log w <= log Z, and the other way round for reverse runs: up to noise in the mean of log w, and no bound is
    # so slack that it says nothing.
    low, high = forward.log_weights, -reverse.log_weights
    slack = [SIGMAS * x.std() / math.sqrt(400) for x in (low, high)]
    assert low.mean() < truth + slack[0] and high.mean() > truth - slack[1]
    assert high.mean() - low.mean() < 0.5


def test_ais_of_other_visibles_and_bases() -> None:
    m = machine(3, 4, 0.5)
    truth = rbm_log_partition(*m, visible_kind="gaussian")
    found = ais_log_partition(*m, betas=100, chains=400, visible_kind="gaussian", key=variate.random.key(12))
    assert (found.log_z - truth).abs() < SIGMAS * found.standard_error and found.standard_error < 0.05
    m = machine(6, 4)
    options = {"visible_kind": "categorical", "categories": 3}
    base = torch.linspace(-1, 1, 6)
    for base_bias in (None, base):
        found = ais_log_partition(*m, betas=100, chains=400, base_bias=base_bias, **options, key=variate.random.key(13))
        truth = rbm_log_partition(*m, **options)
        assert (found.log_z - truth).abs() < SIGMAS * found.standard_error and found.standard_error < 0.05
    found = ais_log_partition(*m, betas=[0, 0.2, 0.6, 1], chains=4000, base_bias=base, key=variate.random.key(14))
    assert (found.log_z - rbm_log_partition(*m)).abs() < SIGMAS * found.standard_error < 0.5


def test_ais_is_exact_where_units_are_independent() -> None:
    _, a, b = machine(6, 4)
    found = ais_log_partition(torch.zeros(6, 4), a, b * 0, betas=1, chains=3, base_bias=a, key=variate.random.key(15))
    torch.testing.assert_close(found.log_z, rbm_log_partition(torch.zeros(6, 4), a, b * 0), rtol=1e-12, atol=0)
    assert found.standard_error < 1e-12 and found.effective_sample_size.item() == pytest.approx(3)


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "categorical"])
@pytest.mark.parametrize("reverse", [False, True])
def test_ais_against_its_steps_one_by_one(kind, reverse) -> None:
    """Each weight, of binary units and categories along the same chains: fields in float32 have errors of 1e-6, of
    which a run adds up 40 times 70, with random signs. Gaussian chains part where weights are rounded differently."""
    m = machine(90, 70, 0.3)
    options = {"visible_kind": kind, "betas": 40, "chains": 45, "key": variate.random.key(16)}
    if kind == "categorical":
        options["categories"] = 3
    if reverse:
        options["start"] = boltzmann.independent(
            m[1], 45, kind, 3, key=variate.random.key(1), generator=None, first_sample=0
        )
    found = ais_log_partition(*m, **options)
    with variate.use_backend("reference"):
        expected = ais_log_partition(*m, **options)
    if kind != "gaussian":
        torch.testing.assert_close(found.log_weights, expected.log_weights, rtol=0, atol=3e-4)
    else:
        assert (found.log_weights.mean() - expected.log_weights.mean()).abs() < SIGMAS * math.sqrt(2 / 45) * (
            expected.log_weights.std()
        )


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "categorical"])
def test_ais_does_not_depend_on_the_split_of_chains(kind, threads) -> None:
    m = machine(90, 70, 0.3)
    options = {"visible_kind": kind, "betas": 20, "base_bias": None if kind == "gaussian" else 0.1 * m[1]}
    options |= {"key": variate.random.key(16)} | ({"categories": 3} if kind == "categorical" else {})
    torch.set_num_threads(1)
    whole = ais_log_partition(*m, chains=150, **options)
    part = ais_log_partition(*m, chains=41, first_sample=7, **options)
    assert part.log_weights.equal(whole.log_weights[7:48])
    for count in (2, 3):
        torch.set_num_threads(count)
        assert ais_log_partition(*m, chains=150, **options).log_weights.equal(whole.log_weights)


# Parallel tempering.

LADDER = (0.05, 0.2, 0.4, 0.7, 1.0)


def tempered_distance(blocks: int) -> tuple[float, float]:
    """Total variation from the exact marginals at beta = 1, of the visible and of the hidden units, of `blocks` times
    12,000 states two rounds apart, after 40 rounds."""
    m = machine(16, 12, 2.0)
    w, a, b = (t.double() for t in m)
    _, p_visible = exact_visible(m)
    p_hidden = torch.softmax(-rbm_free_energy(states(12), w.t().contiguous(), b, a), 0)
    key, chains = variate.random.key(17), 12_000
    visible = torch.zeros(len(LADDER), chains, 16, dtype=torch.uint8)
    visible = parallel_tempering(visible, *m, betas=LADDER, rounds=40, key=key).visible
    counts = [torch.zeros(2**16, dtype=torch.int64), torch.zeros(2**12, dtype=torch.int64)]
    for block in range(blocks):
        found = parallel_tempering(visible, *m, betas=LADDER, rounds=2, first_step=40 + 2 * block, key=key)
        visible = found.visible
        for count, rows in zip(counts, (found.visible[-1], found.hidden[-1]), strict=True):
            count += torch.bincount(index(rows), minlength=len(count))
    distances = [
        (count / (blocks * chains) - probs).abs().sum().item() / 2
        for count, probs in zip(counts, (p_visible, p_hidden), strict=True)
    ]
    return distances[0], distances[1]


def test_tempering_finds_the_strong_machines_distribution() -> None:
    """The sum of sqrt(p) is 3.6, so that N independent draws have a distance of about 1.4 / sqrt(N), 0.0017 for these,
    with a standard deviation of a fifth of that, as two states make up half of it. 0.003 is four of them above."""
    assert max(tempered_distance(60)) < 0.003


def test_tempering_on_free_energies_is_seen_to_be_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    """What swaps on F(v) in the place of E(v, h) must fail the test above."""

    def wrong(visible: Tensor, hidden: Tensor, *m: Tensor, visible_kind: str) -> Tensor:
        return rbm_free_energy(visible, *m, visible_kind=visible_kind)

    monkeypatch.setattr(tempering, "rbm_energy", wrong)
    select = tempering._backend.select
    monkeypatch.setattr(tempering._backend, "select", lambda n, x: None if n == "rbm_temper" else select(n, x))
    visible, hidden = tempered_distance(20)
    assert visible > 0.005 and hidden > 0.05


def test_tempering_of_gaussian_visibles() -> None:
    m = machine(3, 4, 1.0)
    visible = torch.zeros(3, 10_000, 3)
    found = parallel_tempering(
        visible, *m, betas=(0.3, 0.6, 1), rounds=60, visible_kind="gaussian", key=variate.random.key(18)
    )
    w, a, b = (t.double() for t in m)
    every = states(4).double()
    field = every @ w.t()
    for beta, hidden in zip((0.3, 0.6, 1.0), found.hidden, strict=True):
        probs = torch.softmax(beta * (every @ b + (field * (field / 2 + a)).sum(1)), 0)
        assert chi_squared(index(hidden), probs) > LEAST_P
    assert (found.swap_rates > 0.3).all() and (found.swap_rates < 1).all()


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "categorical"])
def test_tempering_does_not_depend_on_the_threads(kind, threads) -> None:
    """More chains than one thread keeps at once, too, and energies of groups that begin in one panel of units and end
    in the next; the states of binary units and of categories are those of a call for every round."""
    m = machine(72, 40, 0.5)
    start = torch.zeros((5, 230, 24 if kind == "categorical" else 72), dtype=torch.uint8)
    start = start.float() if kind == "gaussian" else start
    options = {"betas": LADDER, "rounds": 6, "visible_kind": kind, "key": variate.random.key(20)}
    torch.set_num_threads(1)
    one = parallel_tempering(start, *m, **options)
    assert (one.swap_rates > 0).all()
    for count in (2, 3):
        torch.set_num_threads(count)
        assert all(x.equal(y) for x, y in zip(parallel_tempering(start, *m, **options), one, strict=True))
    if kind != "gaussian":
        with variate.use_backend("reference"):
            assert all(x.equal(y) for x, y in zip(parallel_tempering(start, *m, **options), one, strict=True))


def test_tempering_does_not_depend_on_the_split() -> None:
    m = machine(6, 4, 2.0)
    key = variate.random.key(19)
    start = torch.zeros(3, 12, 6, dtype=torch.uint8)
    whole = parallel_tempering(start, *m, betas=(0.1, 0.5, 1), rounds=9, steps=2, key=key)
    first = parallel_tempering(start, *m, betas=(0.1, 0.5, 1), rounds=4, steps=2, key=key)
    rest = parallel_tempering(first.visible, *m, betas=(0.1, 0.5, 1), rounds=5, steps=2, first_step=4, key=key)
    assert rest.visible.equal(whole.visible) and rest.hidden.equal(whole.hidden)
    some = parallel_tempering(start[:, 5:9], *m, betas=(0.1, 0.5, 1), rounds=9, steps=2, first_sample=5, key=key)
    assert some.visible.equal(whole.visible[:, 5:9])
    # Five rounds of even number and four odd ones, twelve chains each.
    rates = whole.swap_rates * torch.tensor([5 * 12, 4 * 12])
    assert rates.equal(rates.round()) and (whole.swap_rates > 0).all()
    assert parallel_tempering(start, *m, betas=(0.1, 0.5, 1), key=key).swap_rates.isnan().tolist() == [False, True]
    alone = parallel_tempering(start[:1], *m, betas=[1.0], rounds=3, key=key)
    assert alone.swap_rates.shape == (0,)
    assert alone.visible[0].equal(functional.rbm_gibbs(start[0], *m, steps=3, key=key)[0])


# Deep machines.


def test_deep_machine_has_its_published_means() -> None:
    weights, biases = deep(5, 4, 3)
    assert rbm_log_partition(*dbm_join(weights, biases)).item() == pytest.approx(11.57054883, abs=1e-6)
    layers = dbm_gibbs(torch.zeros(30_000, 5, dtype=torch.uint8), weights, biases, steps=60, key=variate.random.key(20))
    assert_mean(layers[0], torch.tensor([0.886577, 0.105912, 0.897024, 0.104299, 0.890091]).double())
    assert_mean(layers[2], torch.tensor([0.612309, 0.415353, 0.554790]).double())


def deep_energy(layers: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    x = [layer.double() for layer in layers]
    energy = -sum((x[i] @ b.double() for i, b in enumerate(biases)), torch.zeros(()))
    for i, w in enumerate(weights):
        energy = energy - ((x[i] @ w.double()) * x[i + 1]).sum(-1)
    return energy


@pytest.mark.parametrize("sizes", [(5, 4, 3), (4, 3, 2, 2), (3, 2, 2, 2, 1), (4, 4)])
def test_deep_joint_histogram(sizes) -> None:
    weights, biases = deep(*sizes)
    biases = [b + 0.3 * torch.cos(1.0 + torch.arange(len(b))) for b in biases]
    start = [None if i % 2 else torch.zeros(30_000, n, dtype=torch.uint8) for i, n in enumerate(sizes)]
    layers = dbm_gibbs(start, weights, biases, steps=40, key=variate.random.key(21))
    assert [tuple(x.shape) for x in layers] == [(30_000, n) for n in sizes]
    every = states(sum(sizes)).split(sizes, -1)
    probs = torch.softmax(-deep_energy(list(every), weights, biases), 0)
    assert chi_squared(index(torch.cat(layers, -1)), probs) > LEAST_P
    # A clamped visible layer leaves its posterior.
    clamped = dbm_gibbs(
        start[0], weights, biases, steps=40, clamp=torch.ones(sizes[0], dtype=torch.bool), key=variate.random.key(22)
    )
    assert not clamped[0].any()
    posterior = torch.where(every[0].any(-1), 0.0, probs)
    assert chi_squared(index(torch.cat(clamped, -1)), posterior / posterior.sum()) > LEAST_P


def test_mean_field_is_a_fixed_point_below_the_likelihood() -> None:
    sizes = (5, 4, 3, 2)
    weights, biases = (list(x) for x in deep(*sizes))
    every = states(sum(sizes)).split(sizes, -1)
    energy = deep_energy(list(every), weights, biases)
    visible = states(5)
    log_z = torch.logsumexp(-energy, 0)
    log_p = torch.stack([torch.logsumexp(-energy[(every[0] == v).all(-1)], 0) for v in visible]) - log_z

    def bound(means: tuple[Tensor, ...]) -> Tensor:
        entropy = sum(
            torch.special.entr(m.double()).sum(-1) + torch.special.entr(1 - m.double()).sum(-1) for m in means
        )
        return -deep_energy([visible, *means], weights, biases) + entropy - log_z

    bounds = [bound(dbm_mean_field(visible, weights, biases, iterations=n)) for n in (1, 2, 5, 50)]
    for earlier, later in itertools.pairwise(bounds):
        assert (later >= earlier - 1e-5).all()  # float32 means
    assert (bounds[-1] <= log_p + 1e-5).all() and (bounds[-1] > log_p - 1).all()
    means = [visible.float(), *dbm_mean_field(visible, weights, biases, iterations=200)]
    for i in range(1, 4):
        above = means[i + 1] @ weights[i].t() if i < 3 else 0.0
        torch.testing.assert_close(means[i], torch.sigmoid(means[i - 1] @ weights[i - 1] + above), rtol=0, atol=1e-5)
    # With one hidden layer it is exact.
    (only,) = dbm_mean_field(visible, weights[:1], biases[:2], iterations=1)
    torch.testing.assert_close(only, torch.sigmoid(visible.float() @ weights[0]))


# Everywhere.


def everything(key: Tensor) -> list[Tensor]:
    m = machine(6, 4)
    x = exact_samples(m, 8)
    weights, biases = deep(5, 4, 3)
    tempered = parallel_tempering(x.expand(3, 8, 6), *m, betas=(0.2, 0.6, 1), rounds=3, key=key)
    layers = dbm_gibbs(torch.zeros(4, 5, dtype=torch.uint8), weights, biases, steps=2, key=key)
    return [rbm_cd_gradient(x, *m, steps=2, key=key).chains, tempered.visible, tempered.hidden, *layers]


def test_the_reference_has_the_same_bits() -> None:
    key = variate.random.key(23)
    ours = everything(key)
    with variate.use_backend("reference"):
        theirs = everything(key)
    for one, other in zip(ours, theirs, strict=True):
        assert one.equal(other)


def test_a_seed_of_torch_is_a_result() -> None:
    m = machine(6, 4)
    start = torch.zeros(3, 8, 6, dtype=torch.uint8)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        tempered = parallel_tempering(start, *m, betas=(0.2, 0.6, 1), rounds=3)
        results.append((tempered.visible, ais_log_partition(*m, betas=5, chains=8).log_weights))
    assert all(a.equal(b) for a, b in zip(results[0], results[1], strict=True))
    assert not any(a.equal(b) for a, b in zip(results[0], results[2], strict=True))


def test_compiles_whole(fresh_dynamo: None) -> None:
    m = machine(6, 4)
    x = 0.9 * exact_samples(m, 8)
    key = variate.random.key(24)

    def step(x: Tensor, first_step: int) -> tuple[Tensor, ...]:
        return rbm_cd_gradient(x, *m, steps=2, key=key, first_step=first_step), rbm_free_energy(x, *m)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for first in (0, 2, 4):
        (gradient, energy), (found, other) = step(x, first), compiled(x, first)
        torch.testing.assert_close((*found, other), (*gradient, energy))


# Bad input.


def test_errors() -> None:
    w, a, b = machine(6, 4)
    v = torch.zeros(3, 6, dtype=torch.uint8)
    with pytest.raises(ValueError, match="visible_kind: expected one of bernoulli, gaussian, categorical, got 'potts'"):
        rbm_free_energy(v, w, a, b, visible_kind="potts")
    with pytest.raises(ValueError, match=r"visible: expected \[B, 6\], got \(3, 5\)"):
        rbm_free_energy(v[:, :5], w, a, b)
    with pytest.raises(ValueError, match=r"hidden_bias: expected \(4,\), as weight is \[visible, hidden\]"):
        rbm_free_energy(v, w, a, a)
    with pytest.raises(TypeError, match="weight: expected float32 or float64, got bfloat16"):
        rbm_free_energy(v, w.bfloat16(), a, b)
    with pytest.raises(TypeError, match="visible_bias: expected the dtype of weight"):
        rbm_free_energy(v, w, a.double(), b)
    with pytest.raises(TypeError, match="visible: expected integer categories, got float32"):
        rbm_free_energy(torch.zeros(3, 2), w, a, b, visible_kind="categorical")
    with pytest.raises(ValueError, match="visible: expected categories 0 to 2, got 0 to 3"):
        rbm_free_energy(torch.tensor([[0, 3]]), w, a, b, visible_kind="categorical")
    with pytest.raises(ValueError, match=r"hidden: expected \(3, 4\)"):
        rbm_energy(v, v, w, a, b)
    with pytest.raises(ValueError, match="data: expected values between 0 and 1 of bernoulli visibles, got 0 to 255"):
        rbm_cd_gradient(torch.tensor([[0.0, 255, 3, 0, 0, 9]]), w, a, b)
    with pytest.raises(ValueError, match=r"visible: expected values between 0 and 1 .* got nan to nan"):
        rbm_free_energy(torch.full((1, 6), math.nan), w, a, b)
    with pytest.raises(ValueError, match="visible: expected finite values of gaussian visibles"):
        rbm_free_energy(torch.full((1, 6), math.inf), w, a, b, visible_kind="gaussian")
    with pytest.raises(ValueError, match=r"visible: expected states 0 and 1 of bernoulli units, got 0.5"):
        parallel_tempering(torch.full((2, 3, 6), 0.5), w, a, b, betas=(0.5, 1))
    with pytest.raises(ValueError, match=r"start: expected states 0 and 1 of bernoulli units, got 0.25"):
        ais_log_partition(w, a, b, start=torch.full((3, 6), 0.25))
    with pytest.raises(ValueError, match="transpose it"):
        rbm_free_energy(v, w.t(), a, b)
    with pytest.raises(ValueError, match="weight: expected finite weights"):
        ais_log_partition(w * math.nan, a, b)
    with pytest.raises(ValueError, match="data: expected at least one row"):
        rbm_cd_gradient(v[:0], w, a, b)
    with pytest.raises(ValueError, match="steps: expected at least 1"):
        rbm_cd_gradient(v, w, a, b, steps=0)
    with pytest.raises(ValueError, match="ais_log_partition estimates larger machines"):
        rbm_log_partition(torch.zeros(30, 30), torch.zeros(30), torch.zeros(30))
    for betas in ([0.0], [0, 0.5], [0, 0.7, 0.5, 1], [0, 0.5, 0.5, 1], [0, math.nan, 1]):
        with pytest.raises(ValueError, match="betas: expected a ladder that rises from 0 to 1"):
            ais_log_partition(w, a, b, betas=betas)
    with pytest.raises(ValueError, match="categories: expected how many"):
        ais_log_partition(w, a, b, visible_kind="categorical")
    with pytest.raises(ValueError, match="base_bias: expected None for Gaussian"):
        ais_log_partition(w, a, b, base_bias=a, visible_kind="gaussian")
    for betas in ([1, 0.5], [-1, 1], [0.5, math.inf], []):
        with pytest.raises(ValueError, match=r"betas: expected finite numbers .* that rise"):
            parallel_tempering(v[None], w, a, b, betas=betas)
    with pytest.raises(ValueError, match="betas: expected finite numbers above 0"):
        parallel_tempering(v.float()[None], w, a, b, betas=[0, 1], visible_kind="gaussian")
    with pytest.raises(ValueError, match="with 2 temperatures, as many as betas"):
        parallel_tempering(v[None], w, a, b, betas=[0.5, 1])
    weights, biases = deep(5, 4, 3)
    with pytest.raises(ValueError, match=r"weights\[1\]: expected \(4, 3\)"):
        dbm_join([weights[0], weights[0]], biases)
    with pytest.raises(ValueError, match="biases: expected one for each layer"):
        dbm_join(weights, biases[:2])
    with pytest.raises(ValueError, match=r"states: expected shape \(2, 3\) for layer 2, got None"):
        dbm_gibbs([torch.zeros(2, 5), None, None], weights, biases)
    with pytest.raises(ValueError, match="clamp: expected a mask of the visible layer"):
        dbm_gibbs(torch.zeros(2, 5), weights, biases, clamp=torch.ones(3))
