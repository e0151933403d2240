"""Gibbs steps of restricted Boltzmann machines: bits against the reference, and the distribution against enumeration.

Statistical tests fix their keys and are written for a false-alarm rate of 1e-6.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from checklist import Arg, Checklist, OpCase, assert_same_bits
from scipy import stats
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import variate
from variate import random, reference
from variate.functional import rbm_gibbs

FALSE_ALARM = 1e-6
WAYS = 3
HIDDEN = 70  # more than a panel of units
KINDS = ("bernoulli", "gaussian", "categorical")
KEY = random.key(0x0123456789ABCDEF, 2**33 - 2)


def machine(units: int, hidden: int = HIDDEN, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Uniform numbers of variance scale^2, without a generator, which torch.func and torch.compile would not take."""

    def numbers(count: int, which: int) -> Tensor:
        x = torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * (12.9898 + which) + seed) * 43758.5453
        return ((x - x.floor()) * 2 - 1).mul(scale * 3**0.5).float()

    weight = numbers(units * hidden, 0).view(units, hidden) / max(units, 1) ** 0.5
    return weight, numbers(units, 1), numbers(hidden, 2)


def states(kind: str, chains: int, units: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "gaussian":
        return torch.randn((chains, units), generator=generator)
    groups, ways = (units // WAYS, WAYS) if kind == "categorical" else (units, 2)
    return torch.randint(0, ways, (chains, groups), generator=generator, dtype=torch.uint8)


def case(kind: str) -> OpCase:
    """As a function of where the chains start alone, which is what has rows."""

    def of(module):
        def draw(visible, *, key=None, generator=None, first_sample=0):
            if visible.dim() == 1:  # one chain
                return tuple(x[0] for x in draw(visible[None], key=key, first_sample=first_sample))
            visible = visible.flatten(1)
            ways = WAYS if kind == "categorical" else 1
            device, units = visible.device, visible.shape[-1] * ways
            return module(
                visible.to(torch.uint8) if kind == "categorical" else visible,
                *(x.to(device) for x in machine(units)),
                steps=2,
                visible_kind=kind,
                key=key,
                generator=generator,
                first_sample=first_sample,
            )

        return draw

    def raw(tensors, key):
        visible = tensors[0].to(torch.float32 if kind == "gaussian" else torch.uint8)
        ways = WAYS if kind == "categorical" else 1
        parts = [x.to(visible.device) for x in machine(visible.shape[1] * ways)]
        hidden = torch.empty((len(visible), HIDDEN), dtype=torch.uint8, device=visible.device)
        probs = torch.empty((len(visible), visible.shape[1] * ways), device=visible.device)
        beta = torch.ones((), device=visible.device)
        number = KINDS.index(kind)
        op = torch.ops.variate.rbm_gibbs.default
        return [
            (op, (visible, hidden, *parts, beta, None, 2, 5, number, ways, None, None, key, 3)),
            (op, (visible, hidden, *parts, beta, None, 2, 5, number, ways, probs, None, key, 3)),
        ]

    values = {
        "bernoulli": lambda n: n > 0,
        "gaussian": lambda n: n,
        "categorical": lambda n: (n > 0).int() + (n > 1).int(),
    }
    return OpCase(
        f"rbm_gibbs ({kind})",
        of(rbm_gibbs),
        of(reference.rbm.rbm_gibbs),
        (Arg("visible", values[kind], differentiable=False, read=False),),
        raw,
        stochastic=True,
        noise=True,
        # Gaussian visibles: a normal's error (test_random.py), and a float32 sum's.
        absolute_error=1e-5,
        accepts=lambda shape: len(shape) == 2 and (shape[1] > 0 or kind != "categorical"),
    )


CASES = tuple(case(kind) for kind in KINDS)


class TestChecklist(Checklist):
    cases = CASES


# Bits against the reference.


@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0, 60.0])
@pytest.mark.parametrize(("chains", "units", "hidden"), [(70, 33, 90), (5, 1, 1), (3, 200, 3), (40, 300, 300)])
def test_bits_of_the_reference(chains: int, units: int, hidden: int, scale: float) -> None:
    parts = machine(units, hidden, scale)
    visible = states("bernoulli", chains, units)
    generator = torch.Generator().manual_seed(2)
    betas = (1.0, 0.0, torch.rand(chains, generator=generator) + 0.2)
    clamps = (None, torch.rand(units, generator=generator) < 0.3, torch.rand(chains, units, generator=generator) < 0.3)
    for beta, clamp in itertools.product(betas, clamps):
        options = {"beta": beta, "clamp": clamp, "steps": 3, "key": KEY, "first_sample": 5, "first_step": 7}
        expected = reference.rbm.rbm_gibbs(visible, *parts, return_probabilities=True, **options)
        assert_same_bits(rbm_gibbs(visible, *parts, return_probabilities=True, **options), expected)
        assert_same_bits(rbm_gibbs(visible, *parts, **options), expected[:2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_and_strides_of_weights(dtype: torch.dtype) -> None:
    weight, visible_bias, hidden_bias = (x.to(dtype) for x in machine(50, 90))
    visible = states("bernoulli", 20, 50)
    single = [x.float() for x in (weight, visible_bias, hidden_bias)]
    expected = rbm_gibbs(visible, *single, key=KEY)
    wide = torch.stack([weight, weight], -1)[..., 0]
    for w in (weight, weight.t().contiguous().t(), wide):
        assert_same_bits(rbm_gibbs(visible, w, visible_bias, hidden_bias, key=KEY), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64, torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_of_states(dtype: torch.dtype) -> None:
    parts, visible = machine(30), states("bernoulli", 9, 30)
    assert_same_bits(rbm_gibbs(visible.to(dtype), *parts, key=KEY), rbm_gibbs(visible, *parts, key=KEY))


@pytest.mark.parametrize("kind", KINDS)
def test_the_arguments_stay(kind: str) -> None:
    parts, visible = machine(30), states(kind, 9, 30)
    kept = [x.clone() for x in (visible, *parts)]
    rbm_gibbs(visible, *parts, visible_kind=kind, steps=3)
    assert_same_bits((visible, *parts), tuple(kept))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_chain", [False, True])
def test_clamped_units_stay(kind: str, per_chain: bool) -> None:
    parts, visible = machine(30), states(kind, 40, 30)
    generator = torch.Generator().manual_seed(4)
    clamp = torch.rand(visible.shape if per_chain else visible.shape[1:], generator=generator) < 0.5
    after, _ = rbm_gibbs(visible, *parts, steps=3, clamp=clamp, visible_kind=kind, key=KEY)
    mask = clamp.expand(visible.shape)
    assert torch.equal(after[mask], visible[mask])
    assert not torch.equal(after[~mask], visible[~mask])
    assert_same_bits(
        rbm_gibbs(visible, *parts, clamp=clamp.to(torch.uint8), visible_kind=kind, key=KEY),
        rbm_gibbs(visible, *parts, clamp=clamp, visible_kind=kind, key=KEY),
    )


# What the chains do not depend on.


@pytest.mark.parametrize("kind", KINDS)
def test_splits_of_a_launch(kind: str) -> None:
    parts, visible = machine(30), states(kind, 40, 30)
    options = {"visible_kind": kind, "key": KEY, "return_probabilities": True}
    whole = rbm_gibbs(visible, *parts, steps=5, first_step=2**32 - 5, **options)
    parted = rbm_gibbs(visible, *parts, steps=2, first_step=2**32 - 5, **options)
    assert_same_bits(rbm_gibbs(parted[0], *parts, steps=3, first_step=2**32 - 3, **options), whole)
    step = visible
    for k in range(5):
        drawn = rbm_gibbs(step, *parts, first_step=2**32 - 5 + k, **options)
        step = drawn[0]
    assert_same_bits(drawn, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_splits_of_the_chains(kind: str) -> None:
    parts, visible = machine(30), states(kind, 75, 30)
    options = {"visible_kind": kind, "key": KEY, "return_probabilities": True, "steps": 2}
    whole = rbm_gibbs(visible, *parts, **options)
    for cut in (1, 16, 31, 74):
        parts_of = [
            rbm_gibbs(visible[:cut], *parts, **options),
            rbm_gibbs(visible[cut:], *parts, first_sample=cut, **options),
        ]
        assert_same_bits(tuple(torch.cat(pair) for pair in zip(*parts_of, strict=True)), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_per_chain(kind: str) -> None:
    parts, visible = machine(30), states(kind, 5, 30)
    keys = random.split(KEY, 5)
    together = rbm_gibbs(visible, *parts, visible_kind=kind, key=keys, steps=2)
    for c in range(5):
        alone = rbm_gibbs(visible[c : c + 1], *parts, visible_kind=kind, key=keys[c], steps=2)
        assert_same_bits(tuple(x[c : c + 1] for x in together), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_thread_counts(kind: str, threads: None) -> None:
    """More chains than one thread keeps at once, too."""
    parts, visible = machine(30), states(kind, 2100, 30)
    options = {"visible_kind": kind, "key": KEY, "return_probabilities": True, "steps": 2}
    torch.set_num_threads(1)
    one = rbm_gibbs(visible, *parts, **options)
    for count in (2, 3, 40):
        torch.set_num_threads(count)
        assert_same_bits(rbm_gibbs(visible, *parts, **options), one)


LARGE = """
import torch, variate
from test_rbm import KEY, WAYS, machine, states
print(variate.build_info()["cpu_capability"])
for scale in (0.3, 3.0, 30.0):
    for beta in (1.0, 300.0):
        drawn = variate.functional.rbm_gibbs(
            states("bernoulli", 40, 700), *machine(700, 300, scale), beta=beta, steps=2, key=KEY
        )
        print([hash(x.numpy().tobytes()) for x in drawn])
for kind in ("bernoulli", "gaussian", "categorical"):
    start = states(kind, 40, 198)
    drawn = variate.functional.parallel_tempering(
        start.unflatten(0, (4, 10)), *machine(198, 90), betas=(0.1, 0.4, 0.7, 1), rounds=5, steps=2,
        visible_kind=kind, key=KEY,
    )
    print([hash(x.numpy().tobytes()) for x in drawn])
    ways = WAYS if kind == "categorical" else None
    options = {"betas": 5, "start": start, "visible_kind": kind, "categories": ways, "key": KEY}
    found = variate.functional.ais_log_partition(*machine(198, 90), **options)
    print(hash(found.log_weights.numpy().tobytes()))
"""


def test_draws_that_the_upper_limbs_leave_open() -> None:
    """Where a set decides most draws from a part of the sum, large machines and strong fields leave many open."""
    found = {}
    for name in ("portable", "avx2", "avx512", "amx"):
        environment = {
            **os.environ,
            "VARIATE_CPU": name,
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]),
        }
        result = subprocess.run(
            [sys.executable, "-c", LARGE], env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr
        used, *lines = result.stdout.strip().splitlines()
        found[used] = lines
    assert all(lines == found["portable"] for lines in found.values())


@pytest.mark.parametrize(("units", "hidden"), [(1, 1), (1, 9), (8, 64), (70, 13)])
def test_packed_states_are_the_bits_of_the_others(units: int, hidden: int, threads: None) -> None:
    parts, visible = machine(units, hidden), states("bernoulli", 45, units)
    bits = torch.from_numpy(np.packbits(visible.numpy(), -1, "little"))
    clamp = visible[0] == 1
    for steps in (0, 1, 3):
        options = {"steps": steps, "clamp": clamp, "key": KEY, "return_probabilities": True}
        *drawn, visible_probs, hidden_probs = rbm_gibbs(visible, *parts, **options)
        expected = [torch.from_numpy(np.packbits(x.numpy(), -1, "little")) for x in drawn]
        for count in (1, 3):
            torch.set_num_threads(count)
            found = rbm_gibbs(bits, *parts, packed=True, **options)
            assert_same_bits(found, (*expected, visible_probs, hidden_probs))
        with variate.use_backend("reference"):
            assert_same_bits(rbm_gibbs(bits, *parts, packed=True, **options)[:2], tuple(expected))
    beyond = bits.clone()
    beyond[:, -1] |= 256 - 2 ** ((units - 1) % 8 + 1)  # bits of no unit
    found = rbm_gibbs(beyond, *parts, packed=True, key=KEY)
    assert_same_bits(found, rbm_gibbs(bits, *parts, packed=True, key=KEY))
    with pytest.raises(ValueError, match=rf"visible: expected uint8 bits of shape \(chains, {bits.shape[1]}\)"):
        rbm_gibbs(visible.expand(45, units).repeat(1, 9), *parts, packed=True)
    with pytest.raises(ValueError, match="packed: expected False for gaussian visibles"):
        rbm_gibbs(visible.float(), *parts, packed=True, visible_kind="gaussian")


# No steps, and probabilities.


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_draws_the_hidden_units(kind: str) -> None:
    parts, visible = machine(30), states(kind, 40, 30)
    options = {"visible_kind": kind, "key": KEY, "first_step": 3, "return_probabilities": True}
    same, hidden, visible_probs, hidden_probs = rbm_gibbs(visible, *parts, steps=0, **options)
    stepped = rbm_gibbs(visible, *parts, steps=1, **options)
    assert_same_bits((same, hidden, hidden_probs), (visible, stepped[1], stepped[3]))
    expected = reference.rbm.one_hot(visible, 30).float() if kind == "categorical" else visible.float()
    assert_same_bits((visible_probs,), (expected,))


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities(kind: str) -> None:
    """Against float64, for the states that were drawn: a float32 logit of size 10 has an error of 1e-6 or less."""
    weight, visible_bias, hidden_bias = machine(30, scale=2.0)
    visible = states(kind, 40, 30)
    beta = torch.linspace(0.1, 2, 40)
    options = {"visible_kind": kind, "key": KEY, "beta": beta, "return_probabilities": True}
    _, hidden, visible_probs, hidden_probs = rbm_gibbs(visible, weight, visible_bias, hidden_bias, **options)
    wide = reference.rbm.one_hot(visible, 30).double() if kind == "categorical" else visible.double()
    exact = torch.sigmoid(beta.double()[:, None] * (wide @ weight.double() + hidden_bias.double()))
    torch.testing.assert_close(hidden_probs.double(), exact, rtol=0, atol=2e-6)
    field = hidden.double() @ weight.double().t() + visible_bias.double()
    scaled = beta.double()[:, None] * field
    exact = {
        "bernoulli": torch.sigmoid(scaled),
        "gaussian": field,
        "categorical": torch.softmax(scaled.unflatten(1, (-1, WAYS)), -1).flatten(1),
    }[kind]
    torch.testing.assert_close(visible_probs.double(), exact, rtol=0, atol=4e-6)


@pytest.mark.parametrize("inputs", [1, 3, 10, 64, 200, 784, 1000])
def test_logits_are_no_worse_than_those_of_a_product(inputs: int) -> None:
    """The means of Gaussian visibles are fields over binary units. Over normal weights, whose largest stand out, the
    errors against float64 are at most those of torch's float32 product, the largest and the root of the mean square.
    Of one input, both are of one rounding."""
    generator = torch.Generator().manual_seed(inputs)
    weight, visible_bias, hidden_bias = (
        torch.randn(size, generator=generator) * 0.1 for size in ((200, inputs), (200,), (inputs,))
    )
    start = torch.randn((400, 200), generator=generator)
    options = {"visible_kind": "gaussian", "return_probabilities": True, "key": KEY}
    _, h, mean, _ = rbm_gibbs(start, weight, visible_bias, hidden_bias, **options)
    exact = h.double() @ weight.double().t() + visible_bias.double()
    product = torch.addmm(visible_bias, h.float(), weight.t())
    ours, stock = (mean.double() - exact).abs(), (product.double() - exact).abs()
    assert ours.max() <= stock.max()
    assert ours.square().mean() <= stock.square().mean()


# Distributions.


def deterministic_machine(units: int, hidden: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """W_ij = scale sin(1 + 3 i + 7 j), a_i = cos(2 i) / 2, b_j = sin(1/2 + j) / 2."""
    i, j = torch.arange(units, dtype=torch.float64), torch.arange(hidden, dtype=torch.float64)
    weight = scale * torch.sin(1 + 3 * i[:, None] + 7 * j)
    return weight.float(), (torch.cos(2 * i) / 2).float(), (torch.sin(0.5 + j) / 2).float()


def bits_of(count: int) -> Tensor:
    return (torch.arange(2**count)[:, None] >> torch.arange(count)) & 1


def chi_square(observed: Tensor, probs: Tensor) -> float:
    """The p-value of counts, cells of fewer than ten expected together."""
    order = probs.argsort()
    expected = probs[order] * observed.sum()
    small = int((expected.cumsum(0) < 10).sum()) + 1
    cells = [torch.cat([x[:small].sum(0, keepdim=True), x[small:]]) for x in (observed[order].double(), expected)]
    statistic = ((cells[0] - cells[1]).square() / cells[1]).sum()
    return float(stats.chi2.sf(statistic.item(), len(cells[0]) - 1))


@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_joint_distribution(beta: float) -> None:
    """Chains that start in the enumerated distribution of v stay in that of (v, h): all 1024 joint states."""
    weight, visible_bias, hidden_bias = (x.double() for x in deterministic_machine(6, 4))
    v, h = bits_of(6).double(), bits_of(4).double()
    energy = -(v @ visible_bias)[:, None] - h @ hidden_bias - v @ weight @ h.t()
    joint = torch.softmax(-beta * energy.flatten(), 0).view(64, 16)
    chains = 400_000
    start = np.random.default_rng(0).choice(64, chains, p=joint.sum(1).numpy())
    visible, hidden = rbm_gibbs(
        bits_of(6)[torch.from_numpy(start)].to(torch.uint8),
        *deterministic_machine(6, 4),
        beta=beta,
        steps=3,
        key=random.key(1),
    )
    powers = 2 ** torch.arange(6)
    index = (visible.long() @ powers) * 16 + hidden.long() @ powers[:4]
    assert chi_square(torch.bincount(index, minlength=1024), joint.flatten()) > FALSE_ALARM


def test_chains_reach_the_distribution() -> None:
    """From all zeros, after 200 steps: more than enough for weights of size 1, as the first test's rate shows."""
    parts = deterministic_machine(12, 8)
    weight, visible_bias, hidden_bias = (x.double() for x in parts)
    v = bits_of(12).double()
    log_p = v @ visible_bias + torch.nn.functional.softplus(v @ weight + hidden_bias).sum(1)
    assert torch.logsumexp(log_p, 0).item() == pytest.approx(17.98265216, abs=1e-6)
    probs = torch.softmax(log_p, 0)
    visible, _ = rbm_gibbs(torch.zeros(200_000, 12, dtype=torch.uint8), *parts, steps=200, key=random.key(2))
    index = visible.long() @ (2 ** torch.arange(12))
    assert chi_square(torch.bincount(index, minlength=4096), probs) > FALSE_ALARM


def test_gaussian_visibles() -> None:
    """p(h) by enumeration, and v's moments: v given h is N(a + W h, 1)."""
    i, j = torch.arange(3, dtype=torch.float64), torch.arange(4, dtype=torch.float64)
    weight = 0.5 * torch.sin(1 + 3 * i[:, None] + 7 * j)
    visible_bias, hidden_bias = torch.cos(2 * i) / 2, torch.sin(0.5 + j) / 2
    h = bits_of(4).double()
    field = h @ weight.t()
    log_p = h @ hidden_bias + (field * (field / 2 + visible_bias)).sum(1)
    assert torch.logsumexp(log_p, 0).item() + 1.5 * np.log(2 * np.pi) == pytest.approx(7.81443481, abs=1e-6)
    probs = torch.softmax(log_p, 0)
    parts = [x.float() for x in (weight, visible_bias, hidden_bias)]
    chains = 200_000
    visible, hidden = rbm_gibbs(torch.zeros(chains, 3), *parts, steps=100, visible_kind="gaussian", key=random.key(3))
    assert chi_square(torch.bincount(hidden.long() @ (2 ** torch.arange(4)), minlength=16), probs) > FALSE_ALARM
    mean = probs @ (field + visible_bias)
    variance = 1 + probs @ (field + visible_bias - mean).square()
    sigmas = stats.norm.isf(FALSE_ALARM / 2 / 3)
    assert ((visible.double().mean(0) - mean).abs() < sigmas * (variance / chains).sqrt()).all()
    noise = visible - (hidden.float() @ parts[0].t() + parts[1])
    assert stats.kstest(noise[:, 0].numpy(), "norm").pvalue > FALSE_ALARM


def test_categorical_visibles() -> None:
    parts = deterministic_machine(6, 4, 2.0)
    weight, visible_bias, hidden_bias = (x.double() for x in parts)
    category = torch.tensor(list(itertools.product(range(3), repeat=2)))
    v = reference.rbm.one_hot(category, 6).double()
    h = bits_of(4).double()
    energy = -(v @ visible_bias)[:, None] - h @ hidden_bias - v @ weight @ h.t()
    joint = torch.softmax(-energy.flatten(), 0)
    visible, hidden = rbm_gibbs(
        torch.zeros(200_000, 2, dtype=torch.uint8), *parts, steps=100, visible_kind="categorical", key=random.key(4)
    )
    index = (visible.long() @ torch.tensor([3, 1])) * 16 + hidden.long() @ (2 ** torch.arange(4))
    assert chi_square(torch.bincount(index, minlength=144), joint) > FALSE_ALARM


# Edges.


def test_infinite_and_extreme_fields_saturate() -> None:
    weight, visible_bias, hidden_bias = machine(40, 90)
    visible = states("bernoulli", 33, 40)
    hidden_bias[3], hidden_bias[4], visible_bias[5], visible_bias[6] = torch.inf, -torch.inf, torch.inf, -torch.inf
    hidden_bias[7], hidden_bias[8] = 1e30, -3e38
    weight[:, 9] = 1e-30
    weight[:, 10] = 1e-42
    weight[:, 11] = 1e37
    hidden_bias[9:12] = 0
    v, h, visible_probs, hidden_probs = rbm_gibbs(
        visible, weight, visible_bias, hidden_bias, key=KEY, steps=2, return_probabilities=True
    )
    assert h[:, 3].all() and not h[:, 4].any() and v[:, 5].all() and not v[:, 6].any()
    assert h[:, 7].all() and not h[:, 8].any() and h[:, 11].all()
    assert (hidden_probs[:, 9:11] == 0.5).all()
    assert ((0 <= visible_probs) & (visible_probs <= 1)).all() and ((0 <= hidden_probs) & (hidden_probs <= 1)).all()
    assert_same_bits(rbm_gibbs(visible, weight, visible_bias, hidden_bias, key=KEY, steps=2), (v, h))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chains", "units", "hidden"), [(0, 6, 5), (4, 0, 5), (4, 6, 0), (4, 0, 0), (0, 0, 0)])
def test_empty(kind: str, chains: int, units: int, hidden: int) -> None:
    visible = states(kind, chains, units)
    for steps in (0, 2):
        drawn = rbm_gibbs(
            visible,
            *machine(units, hidden),
            steps=steps,
            visible_kind=kind,
            return_probabilities=True,
            key=KEY,
        )
        assert [tuple(x.shape) for x in drawn] == [
            tuple(visible.shape),
            (chains, hidden),
            (chains, units),
            (chains, hidden),
        ]


def test_poisoned_memory(poisoned) -> None:
    parts, visible = machine(30), states("bernoulli", 9, 30)
    expected = rbm_gibbs(visible, *parts, key=KEY, return_probabilities=True)
    with poisoned():
        assert_same_bits(rbm_gibbs(visible, *parts, key=KEY, return_probabilities=True), expected)


def test_changing_settings_do_not_recompile(fresh_dynamo: None) -> None:
    parts, visible = machine(30), states("bernoulli", 9, 30)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rbm_gibbs, fullgraph=True, backend=counter)
    for k in range(12):
        options = {"steps": 2 + k, "first_step": 5 * k + 2, "beta": 0.5 + 0.1 * k, "key": KEY}
        assert_same_bits(compiled(visible, *parts, **options), rbm_gibbs(visible, *parts, **options))
    assert counter.frame_count <= 2


# Bad input.

GOOD = {"visible": states("bernoulli", 4, 6), "weight": torch.zeros(6, 5)}
GOOD |= {"visible_bias": torch.zeros(6), "hidden_bias": torch.zeros(5)}


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"visible": 3}, TypeError, "visible: expected a tensor, got int"),
        ({"visible": torch.zeros(4, 7)}, ValueError, r"visible: expected shape \(chains, 6\), got \(4, 7\)"),
        ({"visible": torch.zeros(6)}, ValueError, "visible: expected shape"),
        ({"visible": torch.full((4, 6), 0.5)}, ValueError, "visible: expected states 0 and 1"),
        ({"visible": torch.full((4, 6), 2, dtype=torch.uint8)}, ValueError, "visible: expected states 0 and 1"),
        ({"visible": torch.zeros(4, 6, dtype=torch.complex64)}, TypeError, "visible: expected a dtype"),
        ({"visible_kind": "gaussian"}, TypeError, "visible: expected a dtype of gaussian units, got uint8"),
        ({"visible_kind": "poisson"}, ValueError, "visible_kind: expected one of .*, got 'poisson'"),
        (
            {"visible_kind": "categorical", "visible": torch.full((4, 2), 3)},
            ValueError,
            "visible: expected categories 0 to 2, got 3 to 3",
        ),
        ({"visible_kind": "categorical", "visible": torch.zeros(4, 4, dtype=torch.uint8)}, ValueError, "a divisor"),
        ({"weight": torch.zeros(6)}, ValueError, "weight: expected"),
        ({"weight": torch.zeros(6, 5, dtype=torch.int32)}, TypeError, "weight: expected float32"),
        ({"weight": torch.full((6, 5), torch.nan)}, ValueError, "weight: expected finite weights"),
        ({"weight": torch.full((6, 5), -torch.inf)}, ValueError, "weight: expected finite weights"),
        ({"visible_bias": torch.zeros(5)}, ValueError, r"visible_bias: expected shape \(6,\)"),
        ({"hidden_bias": torch.zeros(5, 1)}, ValueError, r"hidden_bias: expected shape \(5,\)"),
        ({"hidden_bias": torch.full((5,), torch.nan)}, ValueError, "hidden_bias: expected numbers, got a NaN"),
        ({"steps": -1}, ValueError, "steps: expected at least 0, got -1"),
        ({"steps": 1.0}, TypeError, "steps: expected an int, got float"),
        ({"steps": True}, TypeError, "steps: expected an int, got bool"),
        ({"first_step": -1}, ValueError, "first_step: expected at least 0, got -1"),
        ({"first_step": 2**32}, ValueError, "first_step: expected"),
        ({"first_step": 2**32 - 1, "steps": 2}, ValueError, "first_step: expected"),
        ({"beta": -0.5}, ValueError, "beta: expected a finite number of at least 0, got -0.5"),
        ({"beta": torch.inf}, ValueError, "beta: expected a finite number"),
        ({"beta": "hot"}, TypeError, "beta: expected a number"),
        ({"beta": torch.ones(3)}, ValueError, "beta: expected a number, or one for each of 4 chains"),
        (
            {"beta": 0, "visible_kind": "gaussian", "visible": torch.zeros(4, 6)},
            ValueError,
            "beta: expected a finite number above 0",
        ),
        ({"clamp": torch.zeros(5, dtype=torch.bool)}, ValueError, r"clamp: expected shape \(4, 6\) or \(6,\), got"),
        ({"clamp": torch.zeros(6)}, TypeError, "clamp: expected a bool or uint8 tensor, got float32"),
        ({"key": torch.zeros(3, dtype=torch.int64)}, ValueError, "key: expected shape"),
        ({"first_sample": 2**32}, ValueError, "first_sample: expected"),
    ],
)
def test_bad_input(changed, error, words) -> None:
    with pytest.raises(error, match=words):
        rbm_gibbs(**{**GOOD, **changed})


def test_gradients_do_not_flow() -> None:
    parts = [x.requires_grad_() for x in machine(6, 5)]
    drawn = rbm_gibbs(states("bernoulli", 4, 6), *parts, return_probabilities=True, key=KEY)
    assert not any(x.requires_grad for x in drawn)


def test_the_backend_is_told() -> None:
    assert variate.functional.backends()["rbm_gibbs"]["CPU"].startswith("C++")
