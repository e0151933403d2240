"""Lattices: bits against the plain-PyTorch twin, invariance, exact oracles, bad input.

Statistical tests fix their keys, so that they pass or fail for good. Each compares a mean over independent chains with
its exact value at 4 standard errors of that mean: for a right sampler under a key that nobody chose a comparison fails
with probability 6e-5, and with about 75 of them here one or more with 5e-3.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch._dynamo.testing import CompileCounterWithBackend

import variate
from variate import functional, random, reference
from variate.functional import (
    ising_gibbs,
    ising_measure,
    ising_observables,
    ising_pack,
    ising_unpack,
    potts_gibbs,
)
from variate.models import Ising, Potts

KEY = random.key(0x0123456789ABCDEF, 2**33 - 2)  # its offset carries into the counter's second word
SIGMAS = 4
CRITICAL = 2 / math.log1p(math.sqrt(2))  # temperature
TEMPERATURES = (1.5, 2.0, CRITICAL, 2.5, 3.0)
WIDTHS = (2, 6, 34, 64, 70, 130)
PERIODIC = (
    *((3, 4, width) for width in WIDTHS),
    (17, 4, 6),
    (33, 2, 64),
    (1, 6, 1030),
    (2, 2, 4, 6),
    (18, 4, 2, 34),
    (1, 2, 6, 514),
)
OPEN = (
    (3, 4, 6),
    (3, 5, 7),
    (2, 3, 2),
    (17, 3, 63),
    (1, 5, 65),
    (2, 3, 129),
    (1, 3, 1031),
    (2, 3, 2, 5),
    (17, 3, 5, 33),
)


def spins_of(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return (2 * torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)) - 1).to(torch.int8)


def states_of(shape: tuple[int, ...], q: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, q, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def bonds_of(shape: tuple[int, ...], strength: float = 0.8) -> torch.Tensor:
    """+-J of a lattice of this shape, [dimensions, *shape]."""
    return strength * spins_of((len(shape), *shape), seed=1).double()


def spread(low: float, high: float, chains: int) -> torch.Tensor:
    return torch.linspace(low, high, chains, dtype=torch.float64)


def check_ising(spins: torch.Tensor, **options) -> None:
    options = {"beta": 0.44, "sweeps": 3, "key": KEY, "first_sample": 5, "first_step": 2, **options}
    boundary, width = options.get("boundary", "periodic"), spins.shape[-1]
    expected, moments = reference.lattice.ising_gibbs(spins, measure_every=1, **options)
    actual, measured = ising_gibbs(spins, measure_every=1, **options)
    assert actual.dtype == torch.int8 and torch.equal(actual, expected)
    torch.testing.assert_close(measured, moments, rtol=1e-13, atol=1e-15)  # sums of a few float64
    words = ising_gibbs(ising_pack(spins, boundary=boundary), packed=True, width=width, **options)
    assert torch.equal(words, ising_pack(expected, boundary=boundary))


# Bits.


@pytest.mark.parametrize(("shape", "boundary"), [*((s, "periodic") for s in PERIODIC), *((s, "open") for s in OPEN)])
class TestBits:
    @pytest.mark.sanitize
    def test_packing(self, shape, boundary) -> None:
        spins = spins_of(shape)
        words = ising_pack(spins, boundary=boundary)
        assert torch.equal(words, reference.lattice.ising_pack(spins, boundary=boundary))
        assert torch.equal(ising_unpack(words, shape[-1]), spins)
        assert torch.equal(reference.lattice.ising_unpack(words, shape[-1]), spins)
        assert torch.equal(ising_pack(spins.transpose(0, -1).contiguous().transpose(0, -1), boundary=boundary), words)

    @pytest.mark.sanitize
    def test_sweeps(self, shape, boundary) -> None:
        check_ising(spins_of(shape), boundary=boundary)
        chains = shape[0]
        check_ising(
            spins_of(shape),
            beta=spread(0.1, 0.9, chains),
            coupling=spread(-1, 1.5, chains),
            field=spread(-0.5, 0.7, chains),
            boundary=boundary,
        )

    @pytest.mark.sanitize
    def test_bonds(self, shape, boundary) -> None:
        check_ising(spins_of(shape), coupling=bonds_of(shape[1:]), field=0.1, boundary=boundary)

    @pytest.mark.sanitize
    def test_measurements(self, shape, boundary) -> None:
        spins = spins_of(shape)
        for options in (
            {"coupling": 1.3, "field": spread(-1, 1, shape[0])},
            {"coupling": bonds_of(shape[1:])},
            {"distance": min(5, shape[-1] - 1)},
            {"distance": min(40, shape[-1] - 1)},
        ):
            expected = reference.lattice.ising_measure(spins, boundary=boundary, **options)
            words = ising_pack(spins, boundary=boundary)
            for actual in (
                ising_measure(spins, boundary=boundary, **options),
                ising_measure(words, packed=True, width=shape[-1], boundary=boundary, **options),
            ):
                for x, y in zip(actual, expected, strict=True):
                    torch.testing.assert_close(x, y, rtol=0, atol=0)

    @pytest.mark.sanitize
    def test_potts(self, shape, boundary) -> None:
        chains = shape[0]
        for q in (2, 3, 4, 7):
            states = states_of(shape, q)
            noise = {"sweeps": 2, "boundary": boundary, "key": KEY, "first_sample": 5, "first_step": 2}
            for options in (
                {"beta": 0.9},
                {"beta": spread(0.1, 1.5, chains), "coupling": spread(-1, 1, chains)},
                {"beta": 0.7, "field": torch.linspace(-1, 1, q)},
                {"beta": -0.7, "field": torch.tensor([0.5, -math.inf, 0.5, 0.5, 1.0, 0.0, -math.inf])[:q]},
                {"beta": spread(0.1, 1.5, chains), "field": torch.linspace(-1, 1, chains * q).view(chains, q)},
            ):
                expected = reference.lattice.potts_gibbs(states, q, **options, **noise)
                actual = potts_gibbs(states, q, **options, **noise)
                assert actual.dtype == torch.uint8 and torch.equal(actual, expected)


def test_many_states() -> None:
    for q in (16, 255):
        states = states_of((2, 4, 70), q)
        for field in (None, torch.linspace(-1, 1, q)):
            options = {"beta": 3.0, "field": field, "sweeps": 3, "key": KEY}
            assert torch.equal(potts_gibbs(states, q, **options), reference.lattice.potts_gibbs(states, q, **options))


def test_strides_and_the_input_is_kept() -> None:
    spins = spins_of((4, 6, 34))
    wide = torch.stack([spins, spins], -1)[..., 0]
    kept = wide.clone()
    assert torch.equal(ising_gibbs(wide, beta=0.4, key=KEY), ising_gibbs(spins, beta=0.4, key=KEY))
    assert torch.equal(wide, kept)
    words = ising_pack(spins)
    ising_gibbs(words, beta=0.4, key=KEY, packed=True, width=34)
    assert torch.equal(words, ising_pack(spins))
    states = states_of((4, 6, 34), 3)
    wide = torch.stack([states, states], -1)[..., 0]
    assert torch.equal(potts_gibbs(wide, 3, beta=0.4, key=KEY), potts_gibbs(states, 3, beta=0.4, key=KEY))
    assert torch.equal(states, states_of((4, 6, 34), 3))


def test_nothing_to_do() -> None:
    spins, states = spins_of((3, 4, 6)), states_of((3, 4, 6), 3)
    assert torch.equal(ising_gibbs(spins, beta=0.4, sweeps=0, key=KEY), spins)
    assert torch.equal(potts_gibbs(states, 3, beta=0.4, sweeps=0, key=KEY), states)
    assert ising_gibbs(spins[:0], beta=0.4, key=KEY).shape == (0, 4, 6)
    assert potts_gibbs(states[:0], 3, beta=0.4, key=KEY).shape == (0, 4, 6)
    assert ising_measure(spins[:0], distance=2).correlation.shape == (0, 2)


# Invariance.


def samplers():
    """Of the words or states of a slice of chains."""
    spins, states = spins_of((37, 6, 70)), states_of((37, 6, 70), 3)
    beta, bonds = spread(0.2, 0.7, 37), bonds_of((6, 70))

    def ising(part=slice(None), start=None, **options):
        return ising_gibbs((spins if start is None else start)[part], beta=beta[part], **options)

    def glass(part=slice(None), start=None, **options):
        given = (spins if start is None else start)[part]
        return ising_gibbs(given, beta=beta[part], coupling=bonds, field=0.2, **options)

    def potts(part=slice(None), start=None, **options):
        return potts_gibbs((states if start is None else start)[part], 3, beta=beta[part], **options)

    def large(part=slice(None), start=None, **options):
        given = spins_of((2, 96, 1026)) if start is None else start
        return ising_gibbs(given[part], beta=0.44, **options)

    def large_potts(part=slice(None), start=None, **options):
        given = states_of((2, 96, 1026), 4) if start is None else start
        return potts_gibbs(given[part], 4, beta=0.9, **options)

    return {"ising": ising, "glass": glass, "potts": potts, "large": large, "large_potts": large_potts}


SAMPLERS = samplers()


@pytest.mark.parametrize("name", SAMPLERS)
class TestInvariance:
    def test_chain_splits(self, name) -> None:
        sample = SAMPLERS[name]
        for first in (0, 2**32 - 37):
            whole = sample(sweeps=3, key=KEY, first_sample=first)
            for cut in (1, 16, 20):
                if cut >= len(whole):
                    continue
                parts = [
                    sample(slice(None, cut), sweeps=3, key=KEY, first_sample=first),
                    sample(slice(cut, None), sweeps=3, key=KEY, first_sample=first + cut),
                ]
                assert torch.equal(torch.cat(parts), whole)

    def test_launch_splits(self, name) -> None:
        sample = SAMPLERS[name]
        for first in (0, 2**32 - 2):  # steps are taken modulo 2^32
            whole = sample(sweeps=5, key=KEY, first_step=first)
            half = sample(sweeps=2, key=KEY, first_step=first)
            assert torch.equal(sample(start=half, sweeps=3, key=KEY, first_step=first + 2), whole)

    def test_a_key_per_chain(self, name) -> None:
        sample = SAMPLERS[name]
        count = len(sample(sweeps=0, key=KEY))
        keys = random.split(KEY, count)
        whole = sample(sweeps=2, key=keys)
        alone = [sample(slice(i, i + 1), sweeps=2, key=keys[i]) for i in range(count)]
        assert torch.equal(torch.cat(alone), whole)
        expected = sample(sweeps=2, key=torch.stack([keys, keys], 1)[:, 0])
        assert torch.equal(expected, whole)

    def test_threads(self, name, threads) -> None:
        torch.set_num_threads(1)
        one = SAMPLERS[name](sweeps=3, key=KEY)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(SAMPLERS[name](sweeps=3, key=KEY), one)

    def test_seeds(self, name) -> None:
        sample = SAMPLERS[name]
        torch.manual_seed(3)
        first, second = sample(), sample()
        torch.manual_seed(3)
        assert torch.equal(sample(), first) and not torch.equal(first, second)
        draws = [sample(generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_threads_measure_the_same(threads) -> None:
    spins = spins_of((40, 6, 70))
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        _, moments = ising_gibbs(spins, beta=0.4, sweeps=6, measure_every=2, key=KEY)
        results.append((moments, *ising_measure(spins, distance=9)))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(other, results[0], strict=True))


def digest() -> str:
    state = hashlib.sha256()
    for name in SAMPLERS:
        state.update(SAMPLERS[name](sweeps=3, key=KEY).numpy().tobytes())
    for shape, boundary in (
        (PERIODIC[5], "periodic"),
        (PERIODIC[-2], "periodic"),
        (OPEN[3], "open"),
        (OPEN[-1], "open"),
    ):
        spins, moments = ising_gibbs(spins_of(shape), beta=0.3, boundary=boundary, sweeps=2, measure_every=1, key=KEY)
        state.update(spins.numpy().tobytes() + moments.numpy().tobytes())
        field = torch.linspace(0, 1, 5)
        potts = potts_gibbs(states_of(shape, 5), 5, beta=0.8, field=field, boundary=boundary, key=KEY)
        state.update(potts.numpy().tobytes())
    return state.hexdigest()


@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_instruction_sets(instruction_set: str) -> None:
    if variate.build_info()["cpu_capability"] == instruction_set:
        pytest.skip("it is the one that this process runs")
    code = "import test_lattice, variate; print(variate.build_info()['cpu_capability'], test_lattice.digest())"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "VARIATE_CPU": instruction_set, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    used, found = result.stdout.split()
    if used != instruction_set:
        pytest.skip(f"this machine runs {used}")
    assert found == digest()


# What the twin is made of.


def test_the_fma_of_the_reference_rounds_once() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 3000, dtype=torch.float64, generator=generator)
    a = torch.ldexp(a, torch.randint(-30, 30, (3000,), generator=generator))
    near = torch.ldexp(torch.randn(3000, generator=generator), -torch.randint(0, 56, (3000,), generator=generator))
    c = torch.where(torch.arange(3000) % 4 == 0, c, -a * b * (1 + near.double()))
    numbers = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    expected = [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in numbers]
    assert torch.equal(reference.lattice._fma(a, b, c), torch.tensor(expected, dtype=torch.float64))


def test_thresholds() -> None:
    x = torch.linspace(-45, 45, 40001, dtype=torch.float64)
    threshold = reference.lattice.heat_bath_threshold(x)
    # The ceiling of 2^40 p, p to a relative 2^-50: off by no more than 1 and 2^-10.
    assert ((threshold - 2.0**40 * torch.sigmoid(x)) <= 1 + 2.0**-10).all()
    assert ((threshold - 2.0**40 * torch.sigmoid(x)) >= -(2.0**-10)).all()
    ends = torch.tensor([0.0, math.inf, -math.inf], dtype=torch.float64)
    assert reference.lattice.heat_bath_threshold(ends).tolist() == [2**39, 2**40, 0]


# Exact oracles.


def assert_mean(samples: torch.Tensor, exact: float) -> None:
    """The mean over independent chains, within its standard error."""
    error = (samples.std() / math.sqrt(len(samples))).item()
    assert abs(samples.mean().item() - exact) <= SIGMAS * error, f"{samples.mean().item():.6f} +- {error:.6f}, {exact}"


def kaufman_log_z(rows: int, columns: int, beta: float) -> float:
    """log Z of a torus, J = 1. Source: Kaufman 1949, with cosh gamma_r = coth 2b cosh 2b - cos(pi r / columns)."""
    r = np.arange(2 * columns)
    cosine = math.cosh(2 * beta) / math.tanh(2 * beta) - np.cos(np.pi * r / columns)
    gamma = np.arccosh(np.maximum(cosine, 1.0))
    gamma[0] = 2 * beta + math.log(math.tanh(beta))  # this one has a sign
    terms, signs = [], []
    for values in (gamma[1::2], gamma[0::2]):
        x = rows * values / 2
        magnitude = np.abs(x)
        for sign in (1, -1):  # of products of 2 cosh x, of 2 sinh x
            with np.errstate(divide="ignore"):
                terms.append((magnitude + np.log1p(sign * np.exp(-2 * magnitude))).sum())
            signs.append(1 if sign == 1 else np.prod(np.sign(x)))
    size = rows * columns
    return size / 2 * math.log(2 * math.sinh(2 * beta)) - math.log(2) + special.logsumexp(terms, b=signs)


def kaufman_energy(side: int, temperature: float) -> float:
    """Per site."""
    beta, h = 1 / temperature, 1e-5
    return -(kaufman_log_z(side, side, beta + h) - kaufman_log_z(side, side, beta - h)) / (2 * h * side**2)


def spin_configurations(shape: tuple[int, ...]) -> torch.Tensor:
    """All of them, int8 [2^sites, *shape]."""
    sites = math.prod(shape)
    numbers = torch.arange(2**sites)
    return (2 * (numbers[:, None] >> torch.arange(sites) & 1) - 1).to(torch.int8).view(-1, *shape)


def enumerated(spins: torch.Tensor, boundary: str, beta: float, coupling, field: float) -> tuple[float, float, float]:
    """Means of energy, magnetisation and its magnitude per site, by sums over all states that share no code."""
    array, sites = spins.numpy().astype(np.int64), spins[0].numel()
    bond_energy = np.zeros(len(array))
    for axis in range(1, array.ndim):
        length = array.shape[axis]
        for i in range(length - (boundary == "open")):
            product = array.take(i, axis) * array.take((i + 1) % length, axis)
            weights = coupling if np.isscalar(coupling) else np.asarray(coupling)[axis - 1].take(i, axis - 1)
            bond_energy += (weights * product).reshape(len(array), -1).sum(1)
    total = array.reshape(len(array), -1).sum(1)
    energy = -(bond_energy + field * total)
    weight = np.exp(-beta * (energy - energy.min()))
    weight /= weight.sum()
    return (
        float((weight * energy).sum()) / sites,
        float((weight * total).sum()) / sites,
        float((weight * np.abs(total)).sum()) / sites,
    )


def sampled(
    shape: tuple[int, ...], chains: int, burn_in: int, sweeps: int, start: int | None = None, **options
) -> functional.IsingObservables:
    """Observables of independent chains from random spins, or from all of them `start`."""
    spins = spins_of((chains, *shape), seed=9) if start is None else torch.full((chains, *shape), start).to(torch.int8)
    words = ising_pack(spins, boundary=options.get("boundary", "periodic"))
    options = {"packed": True, "width": shape[-1], "key": KEY, **options}
    words = ising_gibbs(words, sweeps=burn_in, **options)
    _, moments = ising_gibbs(words, sweeps=sweeps, measure_every=1, first_step=burn_in, **options)
    coupling = options.get("coupling", 1.0)
    coupling = coupling.abs().max() if isinstance(coupling, torch.Tensor) and coupling.dim() > 1 else coupling
    parameters = {"beta": options["beta"], "coupling": coupling, "field": options.get("field", 0.0)}
    return ising_observables(moments, shape, boundary=options.get("boundary", "periodic"), **parameters)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("side", [4, 8, 16])
def test_energies_of_finite_tori(side: int, temperature: float) -> None:
    """From all spins up; a sweep's memory is a few hundred sweeps at 16 and Tc, and ends below Tc with the sign."""
    exact = kaufman_energy(side, temperature)
    chains, burn_in = (2048, 200) if side < 16 else (1024, 2000)
    seen = sampled((side, side), chains, burn_in, 50, start=1, beta=1 / temperature)
    assert_mean(seen.energy, exact)


LARGE = [
    *((32, temperature, 512, 10_000 if temperature == CRITICAL else 1_000) for temperature in TEMPERATURES),
    *((side, temperature, 64, 1_000) for side in (64, 128) for temperature in TEMPERATURES if temperature != CRITICAL),
]


@pytest.mark.parametrize(("side", "temperature", "chains", "burn_in"), LARGE)
def test_energies_of_larger_tori(side: int, temperature: float, chains: int, burn_in: int) -> None:
    """From all spins up. A sweep's memory is about side^2.17 sweeps at Tc, some 2000 at 32, and elsewhere below 100."""
    seen = sampled((side, side), chains, burn_in, 50, start=1, beta=1 / temperature)
    assert_mean(seen.energy, kaufman_energy(side, temperature))


def test_kaufman_against_enumeration() -> None:
    configurations = spin_configurations((4, 4))
    for temperature in TEMPERATURES:
        energy, _, _ = enumerated(configurations, "periodic", 1 / temperature, 1.0, 0.0)
        assert kaufman_energy(4, temperature) == pytest.approx(energy, rel=1e-8)  # a difference of log Z


def test_kaufman_of_large_tori() -> None:
    """Onsager's energy per site but for what decays as exp(-side / correlation length), that of Tc as 1 / side."""
    for temperature in TEMPERATURES:
        k = 2 * math.sinh(2 / temperature) / math.cosh(2 / temperature) ** 2
        curve = 2 * math.tanh(2 / temperature) ** 2 - 1
        elliptic = 0.0 if temperature == CRITICAL else 2 / math.pi * curve * special.ellipk(k**2)
        onsager = -(1 + elliptic) / math.tanh(2 / temperature)
        tolerance = 1 / 128 if temperature == CRITICAL else 1e-7
        assert kaufman_energy(128, temperature) == pytest.approx(onsager, abs=tolerance)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_magnetisation_of_a_small_torus(temperature: float) -> None:
    _, _, exact = enumerated(spin_configurations((4, 4)), "periodic", 1 / temperature, 1.0, 0.0)
    seen = sampled((4, 4), 2048, 200, 50, beta=1 / temperature)
    assert_mean(seen.absolute_magnetisation, exact)


ENUMERATED = {
    "open": ((4, 4), "open", 0.5, 1.0, 0.1),
    "open, odd": ((3, 5), "open", 0.4, 1.0, -0.3),
    "open, narrow": ((2, 7), "open", 0.8, -0.7, 0.2),
    "field": ((4, 4), "periodic", 0.3, 1.0, 0.25),
    "antiferromagnet": ((4, 4), "periodic", -0.4, 1.0, 0.5),
    "glass": ((4, 4), "periodic", 0.7, bonds_of((4, 4)), 0.0),
    "open glass in a field": ((4, 4), "open", 0.7, bonds_of((4, 4)), 0.3),
    "cube": ((2, 2, 2), "periodic", 0.15, 1.0, 0.1),
    "bar": ((2, 2, 4), "periodic", 0.2, 1.0, 0.05),
    "open bar": ((2, 2, 4), "open", 0.4, 1.0, 0.05),
    "glass bar": ((2, 2, 4), "periodic", 0.4, bonds_of((2, 2, 4)), 0.0),
}


@pytest.mark.parametrize("name", ENUMERATED)
def test_against_enumeration(name: str) -> None:
    shape, boundary, beta, coupling, field = ENUMERATED[name]
    numbers = coupling.numpy() if isinstance(coupling, torch.Tensor) else coupling
    energy, magnetisation, _ = enumerated(spin_configurations(shape), boundary, beta, numbers, field)
    seen = sampled(shape, 2048, 200, 40, beta=beta, coupling=coupling, field=field, boundary=boundary)
    assert_mean(seen.energy, energy)
    assert_mean(seen.magnetisation, magnetisation)


def test_joint_distribution_of_a_small_lattice() -> None:
    """A chi-square test of the last states of 65,536 chains over all 64 of an open 2 x 3 lattice, at 1e-4."""
    shape, beta, field, chains = (2, 3), 0.4, 0.1, 65536
    spins = ising_gibbs(
        spins_of((chains, *shape)), beta=beta, field=field, boundary="open", sweeps=100, key=KEY, first_step=7
    )
    places = 2 ** torch.arange(6)
    counts = torch.bincount(((spins.flatten(1) > 0) * places).sum(1), minlength=64).numpy()
    measured = ising_measure(spin_configurations(shape), field=field, boundary="open")
    weight = torch.exp(-beta * 6 * measured.energy).numpy()
    assert stats.chisquare(counts, chains * weight / weight.sum()).pvalue > 1e-4


def potts_log_z(q: int, side: int, beta: float) -> float:
    """log Z of a torus by its transfer matrix, E = -sum [s = s']."""
    rows = np.array(list(itertools.product(range(q), repeat=side)))
    inside = (rows == np.roll(rows, 1, 1)).sum(1)
    between = (rows[:, None] == rows[None]).sum(-1)
    half = np.exp(beta * inside / 2)
    values = np.linalg.eigvalsh(half[:, None] * np.exp(beta * between) * half)
    return math.log(float((values**side).sum()))


@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize("q", [2, 3, 4])
def test_potts_energies(q: int, fraction: float) -> None:
    """At and below beta_c = log(1 + sqrt q), on a torus of 4 x 4."""
    beta, h = fraction * math.log1p(math.sqrt(q)), 1e-4
    exact = -(potts_log_z(q, 4, beta + h) - potts_log_z(q, 4, beta - h)) / (2 * h * 16)
    states = potts_gibbs(states_of((4096, 4, 4), q), q, beta=beta, sweeps=200, key=KEY)
    energies = []
    for step in range(5):
        states = potts_gibbs(states, q, beta=beta, sweeps=10, key=KEY, first_step=200 + 10 * step)
        same = sum((states == states.roll(1, d)).double().mean((1, 2)) for d in (1, 2))
        energies.append(-same)
    assert_mean(torch.stack(energies).mean(0), exact)


def test_potts_with_two_states_is_ising() -> None:
    """E = -J (1 + s s') / 2: the Potts model at 2 beta, with a field that pulls state 1 up."""
    beta, field = 0.3, 0.2
    energy, magnetisation, _ = enumerated(spin_configurations((4, 4)), "periodic", beta, 1.0, field)
    pull = torch.tensor([0.0, field])
    states = potts_gibbs(states_of((8192, 4, 4), 2), 2, beta=2 * beta, field=pull, sweeps=100, key=KEY)
    spins = 2 * states.double() - 1
    assert_mean(spins.mean((1, 2)), magnetisation)
    bonds = sum((spins * spins.roll(1, d)).mean((1, 2)) for d in (1, 2))
    assert_mean(-(bonds + field * spins.mean((1, 2))), energy)


# Extremes.


def test_extreme_parameters_are_certain() -> None:
    spins = spins_of((3, 6, 10))
    up, down = torch.ones_like(spins), -torch.ones_like(spins)
    for field, expected in ((math.inf, up), (-math.inf, down), (1e300, up), (-100.0, down)):
        assert torch.equal(ising_gibbs(spins, beta=1.0, field=field, key=KEY), expected)
    each = torch.tensor([math.inf, -math.inf, 1e3])
    assert ising_gibbs(spins, beta=1.0, field=each, key=KEY).double().mean((1, 2)).tolist() == [1, -1, 1]
    # At temperature 0 a torus that is up stays up, and one with a field against it turns over.
    assert torch.equal(ising_gibbs(up, beta=1e3, sweeps=5, key=KEY), up)
    assert torch.equal(ising_gibbs(up, beta=1e3, field=-5.0, sweeps=5, key=KEY), down)
    states = states_of((3, 6, 10), 3)
    forbidden = torch.tensor([0.0, -math.inf, 0.0])
    assert (potts_gibbs(states, 3, beta=1.0, field=forbidden, key=KEY) != 1).all()
    only = torch.tensor([0.0, math.inf, 0.0])
    assert (potts_gibbs(states, 3, beta=1.0, field=only, key=KEY) == 1).all()
    assert (potts_gibbs(torch.full_like(states, 2), 3, beta=50.0, sweeps=5, key=KEY) == 2).all()


def test_beta_zero_is_a_fair_coin() -> None:
    """Also for the uniforms' first digit: at beta 0 the threshold is 2^39, which that digit alone decides."""
    spins = ising_gibbs(spins_of((64, 64, 64)), beta=0.0, key=KEY)
    assert_mean(spins.double().mean((1, 2)), 0.0)
    states = potts_gibbs(states_of((64, 64, 64), 3), 3, beta=0.0, key=KEY)
    for state in range(3):
        assert_mean((states == state).double().mean((1, 2)), 1 / 3)


def test_undecided_sites_take_more_digits() -> None:
    """Thresholds 2^-9 apart from those that eight digits tell: p = 1/2 + 2^-10."""
    field = math.atanh(2.0**-9)
    spins = torch.ones(512, 128, 128, dtype=torch.int8)
    drawn = ising_gibbs(spins, beta=1.0, coupling=0.0, field=field, key=KEY)
    assert_mean(drawn.double().mean((1, 2)), 2.0**-9)


# Observables.


def test_observables() -> None:
    """From the moments as from the states themselves."""
    shape, beta, coupling, field = (6, 10), 0.4, 1.2, 0.3
    spins, measurements = spins_of((2, *shape)), []
    options = {"beta": beta, "coupling": coupling, "field": field, "key": KEY}
    last, moments = ising_gibbs(spins, sweeps=6, measure_every=2, **options)
    for step in (0, 2, 4):
        spins = ising_gibbs(spins, sweeps=2, first_step=step, **options)
        measurements.append(ising_measure(spins, coupling=coupling, field=field))
    assert torch.equal(spins, last)
    m = torch.stack([x.magnetisation for x in measurements])
    energy = torch.stack([x.energy for x in measurements])
    nearest = torch.stack([x.nearest for x in measurements])
    seen = ising_observables(moments, shape, beta=beta, coupling=coupling, field=field)
    for actual, expected in (
        (seen.magnetisation, m.mean(0)),
        (seen.absolute_magnetisation, m.abs().mean(0)),
        (seen.energy, energy.mean(0)),
        (seen.nearest, nearest.mean(0)),
        (seen.binder, 1 - (m**4).mean(0) / (3 * (m**2).mean(0) ** 2)),
        (seen.specific_heat, beta**2 * 60 * energy.var(0, correction=0)),
        (seen.susceptibility, beta * 60 * ((m**2).mean(0) - m.abs().mean(0) ** 2)),
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    assert ising_observables(moments.mean(0), shape, beta=beta).binder.shape == ()


def test_bonds_of_one_sign_are_a_coupling() -> None:
    spins = spins_of((3, 6, 10))
    for boundary in ("periodic", "open"):
        options = {"beta": 0.5, "boundary": boundary, "sweeps": 4, "key": KEY}
        bonds = torch.full((2, 6, 10), -0.7)
        expected = ising_gibbs(spins, coupling=float(torch.tensor(-0.7)), **options)
        assert torch.equal(ising_gibbs(spins, coupling=bonds, **options), expected)


def test_the_last_bonds_of_open_sides_are_not_read() -> None:
    bonds = bonds_of((4, 6))
    other = bonds.clone()
    other[0, -1], other[1, :, -1] = math.nan, 17.0
    results = [ising_gibbs(spins_of((3, 4, 6)), beta=0.5, coupling=b, boundary="open", key=KEY) for b in (bonds, other)]
    assert torch.equal(*results)


# torch.library, torch.compile, torch.func.


def test_opcheck() -> None:
    spins, states = spins_of((3, 4, 70)), states_of((3, 4, 70), 3)
    words, number = ising_pack(spins), torch.tensor(0.4, dtype=torch.float64)
    bonds = ising_pack(spins_of((4, 4, 70)))
    ops = torch.ops.variate
    moments = torch.zeros(3, 7, dtype=torch.float64)
    for op, arguments in (
        (ops.ising_pack, (spins, 2, False)),
        (ops.ising_unpack, (words, 70)),
        (ops.ising_gibbs, (words, 70, False, number, number, number, bonds, 2, 0, moments, 1, KEY, 0)),
        (ops.ising_gibbs, (words, 70, False, number, number, number, None, 2, 0, None, 1, KEY, 0)),
        (ops.ising_measure, (words, 70, False, bonds, 3)),
        (ops.potts_gibbs, (states, 3, False, number, number, None, 2, 0, KEY, 0)),
        (ops.potts_gibbs, (states, 3, False, number, number, torch.zeros(3).double(), 2, 0, KEY, 0)),
    ):
        torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("kind", ["ising", "potts"])
def test_a_compiled_model_counts_its_sweeps(kind, fresh_dynamo) -> None:
    models = [
        Ising((4, 6), 3, beta=0.4, key=KEY) if kind == "ising" else Potts((4, 6), 3, 3, beta=0.4, key=KEY)
        for _ in range(2)
    ]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(models[0], backend=counter, fullgraph=True)
    for step in range(12):
        assert torch.equal(compiled(2), models[1](2))
        if step == 2:
            count = counter.frame_count
    assert counter.frame_count == count and models[0].steps == models[1].steps == 24


def test_annealing_does_not_recompile(fresh_dynamo) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    spins, states = spins_of((3, 4, 6)), states_of((3, 4, 6), 3)

    @torch.compile(fullgraph=True, backend=counter)
    def step(spins, states, beta, field, first_step, key):
        spins, moments = ising_gibbs(
            spins, beta=beta, field=field, sweeps=2, measure_every=1, key=key, first_step=first_step
        )
        return spins, moments, potts_gibbs(states, 3, beta=beta, key=key, first_step=first_step)

    for i in range(12):
        beta, field = 0.1 + 0.05 * i, 0.3 - 0.02 * i
        actual = step(spins, states, beta, field, 2 * i, KEY)
        expected = ising_gibbs(spins, beta=beta, field=field, sweeps=2, measure_every=1, key=KEY, first_step=2 * i)
        assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
        assert torch.equal(actual[2], potts_gibbs(states, 3, beta=beta, key=KEY, first_step=2 * i))
    assert counter.frame_count <= 3  # the first, one where numbers become symbols, one where 0 and 1 do

    counter.clear()
    for i in range(12):
        step(spins, states, torch.tensor(0.1 + 0.05 * i), torch.tensor(0.1 * i), 2 * i + 30, KEY)
    assert counter.frame_count <= 1


def test_the_reference_answers_under_torch_func() -> None:
    spins, keys = spins_of((5, 3, 4, 6)), random.split(KEY, 5)
    mapped = torch.func.vmap(lambda s, k: ising_gibbs(s, beta=0.4, sweeps=2, key=k))(spins, keys)
    expected = [ising_gibbs(s, beta=0.4, sweeps=2, key=k) for s, k in zip(spins, keys, strict=True)]
    assert torch.equal(mapped, torch.stack(expected))
    with pytest.raises(RuntimeError, match="ising_gibbs draws noise"):
        torch.func.vmap(lambda s: ising_gibbs(s, beta=0.4), randomness="different")(spins)


def test_the_reference_backend_draws_as_torch_does() -> None:
    spins, states = spins_of((64, 8, 8)), states_of((64, 8, 8), 3)
    with variate.use_backend("reference"):
        assert torch.equal(
            ising_gibbs(spins, beta=0.4, key=KEY), reference.lattice.ising_gibbs(spins, beta=0.4, key=KEY)
        )
        torch.manual_seed(1)
        first = ising_gibbs(spins, beta=0.4, sweeps=2), potts_gibbs(states, 3, beta=0.4)
        torch.manual_seed(1)
        assert torch.equal(first[0], reference.lattice.ising_gibbs(spins, beta=0.4, sweeps=2))
        assert torch.equal(first[1], reference.lattice.potts_gibbs(states, 3, beta=0.4))


# Bad input.

SPINS, STATES = spins_of((3, 4, 6)), states_of((3, 4, 6), 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"spins": spins_of((3, 5, 6))}, ValueError, 'spins: expected even sides.*"open" takes any'),
        ({"spins": spins_of((3, 2, 3, 6))}, ValueError, "spins: expected even sides"),
        ({"spins": spins_of((3, 1, 6)), "boundary": "open"}, ValueError, "spins: expected sides of at least 2"),
        ({"spins": SPINS * 0}, ValueError, r"spins: expected \+1 and -1, got 0"),
        ({"spins": SPINS * 3}, ValueError, r"spins: expected \+1 and -1, got -?3"),
        ({"spins": SPINS.float()}, TypeError, "spins: expected int8, got float32"),
        ({"spins": [1, -1]}, TypeError, "spins: expected an int8 tensor, got list"),
        ({"spins": SPINS[0]}, ValueError, "spins: expected shape .chains, height, width."),
        ({"beta": math.nan}, ValueError, "beta: expected a finite number, got nan"),
        ({"beta": math.inf}, ValueError, "beta: expected a finite number, got inf"),
        ({"beta": "hot"}, TypeError, "beta: expected a number"),
        ({"beta": torch.tensor([0.1, math.nan, 0.1])}, ValueError, "beta: expected finite numbers, got nan"),
        ({"beta": torch.ones(4)}, ValueError, r"beta: expected a number, or shape \(3,\)"),
        ({"beta": torch.ones(3, dtype=torch.int64)}, TypeError, "beta: expected float32 or float64"),
        ({"field": math.nan}, ValueError, "field: expected a number, got nan"),
        ({"field": torch.full((3,), math.nan)}, ValueError, "field: expected numbers, got nan"),
        ({"field": math.inf, "beta": 0.0}, ValueError, "field: expected finite numbers where beta is 0"),
        ({"coupling": math.nan}, ValueError, "coupling: expected a finite number"),
        ({"coupling": torch.ones(2, 4, 4)}, ValueError, r"coupling: expected .* \(2, 4, 6\) for bonds"),
        ({"coupling": torch.ones(2, 4, 6, dtype=torch.uint8)}, TypeError, "coupling: expected floating or signed"),
        ({"coupling": torch.arange(48.0).view(2, 4, 6)}, ValueError, r"coupling: expected bonds of \+J and -J"),
        ({"coupling": torch.full((2, 4, 6), math.nan)}, ValueError, "coupling: expected"),
        ({"sweeps": -1}, ValueError, "sweeps: expected at least 0, got -1"),
        ({"sweeps": 1.5}, TypeError, "sweeps: expected an int, got float"),
        ({"first_step": -1}, ValueError, "first_step: expected at least 0"),
        ({"boundary": "helical"}, ValueError, 'boundary: expected "periodic" or "open"'),
        ({"measure_every": 0}, ValueError, "measure_every: expected at least 1"),
        ({"measure_every": 2}, ValueError, "measure_every: expected at most sweeps, 1, got 2"),
        ({"width": 5}, ValueError, "width: expected None, or 6"),
        ({"packed": True}, ValueError, "width: expected the width of the lattice"),
        ({"packed": True, "width": 6}, TypeError, "spins: expected int32 words, got int8"),
        ({"packed": True, "width": 70, "spins": ising_pack(SPINS)}, ValueError, "spins: expected words of shape"),
        ({"packed": True, "width": 5, "spins": ising_pack(SPINS)}, ValueError, "spins: expected even sides"),
        ({"key": 3}, TypeError, "key: expected an int64 tensor"),
        ({"key": random.split(KEY, 4)}, ValueError, "key: expected shape"),
        ({"first_sample": -1}, ValueError, "first_sample: expected"),
    ],
    ids=str,
)
def test_ising_refuses(change, error, message) -> None:
    arguments = {"spins": SPINS, "beta": 0.4, "key": KEY, **change}
    spins = arguments.pop("spins")
    for name in ("auto", "reference"):
        with variate.use_backend(name), pytest.raises(error, match=message):
            ising_gibbs(spins, **arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": 1}, ValueError, "q: expected 2 to 255 states, got 1"),
        ({"q": 256}, ValueError, "q: expected 2 to 255 states, got 256"),
        ({"q": 3.0}, TypeError, "q: expected an int"),
        ({"q": 2}, ValueError, "states: expected categories 0 to 1, got 0 to 2"),
        ({"states": STATES.long()}, TypeError, "states: expected uint8, got int64"),
        ({"states": states_of((3, 5, 6), 3)}, ValueError, "states: expected even sides"),
        ({"states": STATES[0]}, ValueError, "states: expected shape"),
        ({"beta": math.nan}, ValueError, "beta: expected a finite number"),
        ({"field": 1.0}, TypeError, r"field: expected a tensor \[3\]"),
        ({"field": torch.zeros(4)}, ValueError, r"field: expected shape \(3,\) or \(3, 3\)"),
        ({"field": torch.full((3,), math.nan)}, ValueError, "field: expected numbers, got nan"),
        (
            {"field": torch.full((3,), -math.inf), "beta": 0},
            ValueError,
            "field: expected finite numbers where beta is 0",
        ),
        ({"sweeps": -1}, ValueError, "sweeps: expected at least 0"),
        ({"boundary": "helical"}, ValueError, "boundary: expected"),
    ],
    ids=str,
)
def test_potts_refuses(change, error, message) -> None:
    arguments = {"states": STATES, "q": 3, "beta": 0.4, "key": KEY, **change}
    states, q = arguments.pop("states"), arguments.pop("q")
    for name in ("auto", "reference"):
        with variate.use_backend(name), pytest.raises(error, match=message):
            potts_gibbs(states, q, **arguments)


def test_measurements_refuse() -> None:
    with pytest.raises(ValueError, match="distance: expected less than the width, 6, got 6"):
        ising_measure(SPINS, distance=6)
    with pytest.raises(ValueError, match="distance: expected at least 0"):
        ising_measure(SPINS, distance=-1)
    with pytest.raises(ValueError, match=r"moments: expected shape \(..., 7\)"):
        ising_observables(torch.zeros(3, 6), (4, 6), beta=1.0)
    with pytest.raises(ValueError, match="size: expected the two or three sides"):
        ising_observables(torch.zeros(3, 7), (4,), beta=1.0)
    with pytest.raises(ValueError, match="words: expected words of shape"):
        ising_unpack(ising_pack(SPINS), 65)
    with pytest.raises(TypeError, match="words: expected int32 words"):
        ising_unpack(SPINS, 6)


# Models.


def test_the_models_are_their_functions() -> None:
    model = Ising((6, 70), 3, beta=0.4, coupling=bonds_of((6, 70)), field=spread(-0.2, 0.2, 3), key=KEY)
    start = model.spins
    options = {"beta": 0.4, "coupling": bonds_of((6, 70)), "field": spread(-0.2, 0.2, 3), "key": KEY}
    model.sweep(3)
    seen = model.observe(4, every=2)
    expected = ising_gibbs(start, sweeps=3, **options)
    expected, moments = ising_gibbs(expected, sweeps=4, measure_every=2, first_step=3, **options)
    assert torch.equal(model.spins, expected)
    wanted = ising_observables(moments, (6, 70), beta=0.4, coupling=0.8, field=spread(-0.2, 0.2, 3))
    assert all(torch.equal(x, y) for x, y in zip(seen, wanted, strict=True))
    measured = ising_measure(expected, coupling=options["coupling"], field=options["field"], distance=5)
    assert all(torch.equal(x, y) for x, y in zip(model.measure(5), measured, strict=True))
    assert torch.equal(model(2), ising_gibbs(expected, sweeps=2, first_step=7, **options))

    potts = Potts((4, 6), 3, 5, beta=0.8, key=KEY)
    start = potts.states
    potts.sweep(2)
    assert torch.equal(potts(1), potts_gibbs(start, 3, beta=0.8, sweeps=3, key=KEY))
    measured = potts.measure()
    assert torch.allclose(measured.fractions.sum(1), torch.ones(5, dtype=torch.float64))
    bonds = sum((potts.states == potts.states.roll(1, d)).double().mean((1, 2)) for d in (1, 2))
    torch.testing.assert_close(measured.energy, -bonds)


def test_a_potts_model_with_two_states_is_an_ising_model() -> None:
    ising = Ising((8, 8), 64, beta=0.4, field=0.1, key=KEY)
    potts = Potts((8, 8), 2, 64, beta=0.8, field=torch.tensor([0.0, 0.1]), key=KEY, boundary="periodic")
    for model in (ising, potts):
        model.sweep(50)
    seen, other = ising.observe(400), potts.observe(400)
    # Bonds [s = s'] are (1 + s s') / 2, and states s (1 + s) / 2.
    difference = other.energy - (seen.energy / 2 - 1 - 0.05)
    assert_mean(difference, 0.0)


def test_models_go_on_from_a_state_dict(tmp_path) -> None:
    for make in (lambda key: Ising((4, 6), 3, beta=0.4, key=key), lambda key: Potts((4, 6), 3, 3, beta=0.4, key=key)):
        model, other = make(KEY), make(random.key(9))
        model.sweep(3)
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(5), other(5)) and model.steps == other.steps == 8


def test_annealing_and_scans() -> None:
    model = Ising((6, 10), 4, beta=0.1, start="ordered", key=KEY)
    assert (model.spins == 1).all()
    betas = [0.2, 0.3, 0.4]
    done = []
    seen = model.scan(betas, burn_in=2, sweeps=4, every=2, progress=done.append)
    assert seen.energy.shape == (3, 4) and done == [6, 6, 6] and model.steps == 18
    spins = torch.ones(4, 6, 10, dtype=torch.int8)
    for index, beta in enumerate(betas):
        spins = ising_gibbs(spins, beta=beta, sweeps=6, first_step=6 * index, key=KEY)
    assert torch.equal(model.spins, spins)
    model.anneal(torch.tensor([0.5, 0.6]), sweeps=2)
    assert model.beta.item() == pytest.approx(0.6) and model.steps == 22
    potts = Potts((4, 6), 3, 2, beta=1.0, start="ordered", key=KEY)
    assert potts.scan([0.5, 1.0], burn_in=1, sweeps=3).order.shape == (2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Ising((5, 6), beta=0.4), ValueError, "spins: expected even sides"),
        (lambda: Ising((6,), beta=0.4), ValueError, "shape: expected"),
        (lambda: Ising((4, 6), 0, beta=0.4), ValueError, "chains: expected at least 1"),
        (lambda: Ising((4, 6), beta=math.nan), ValueError, "beta: expected finite numbers"),
        (lambda: Ising((4, 6), beta="hot"), TypeError, "beta: expected a number or a tensor"),
        (lambda: Ising((4, 6), beta=0.4, start="up"), ValueError, "start: expected"),
        (lambda: Ising((4, 6), beta=0.4, coupling=torch.ones(3, 4, 6)), ValueError, "coupling: expected"),
        (lambda: Ising((4, 6), beta=0.4).observe(3, every=4), ValueError, "sweeps: expected at least 4"),
        (
            lambda: Ising((4, 6), beta=0.4).set(heat=1),
            TypeError,
            "heat: expected beta, coupling or field",
        ),
        (lambda: Ising((4, 6), beta=0.4).scan([], burn_in=1, sweeps=1), ValueError, "betas: expected at least one"),
        (lambda: Potts((4, 6), 1, beta=0.4), ValueError, "q: expected at least 2"),
        (lambda: Potts((4, 6), 3, beta=0.4, field=torch.zeros(2)), ValueError, "field: expected shape"),
    ],
)
def test_models_refuse(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_pooled_observables_see_what_chains_differ_by() -> None:
    """At beta = 1 each chain keeps the sign that it came to, and the mean of all is none of theirs."""
    chains = Ising((8, 8), 64, beta=1.0, key=random.key(5))
    chains.sweep(200)
    again = copy.deepcopy(chains)
    pooled, each = chains.observe(40, pool=True), again.observe(40)
    assert pooled.energy.item() == pytest.approx(each.energy.mean().item(), rel=1e-12)
    assert pooled.binder.shape == () and pooled.susceptibility >= each.susceptibility.mean()
    assert chains.scan([0.9, 1.0], burn_in=1, sweeps=4, pool=True).energy.shape == (2,)
    with pytest.raises(ValueError, match="pool: expected False for chains whose beta"):
        Ising((8, 8), 2, beta=torch.tensor([0.1, 0.2])).observe(2, pool=True)
    with pytest.raises(TypeError, match="betas: expected a sequence"):
        chains.scan(0.4, burn_in=1, sweeps=1)
    with pytest.raises(ValueError, match=r"shape: expected .height, width."):
        Ising(8, 2, beta=1.0)
