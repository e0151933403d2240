"""Noise version 1: published vectors, distributions, independence, errors.

Statistical tests fix their keys, so that they pass or fail for good; each is written for a false-alarm rate of 1e-6,
the chance that the bound is missed by a right generator under a key that nobody chose.
"""

from __future__ import annotations

import concurrent.futures
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from checklist import FLOATS, Arg, Checklist, OpCase, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import variate
from variate import random, reference

VECTORS = json.loads((Path(__file__).parent / "vectors" / "noise_v1.json").read_text())
# Philox4x32-10's own known answers: (counter, key, words).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
FALSE_ALARM = 1e-6
SIGMAS = stats.norm.isf(FALSE_ALARM / 2)  # 4.9
# Errors that the bounds in variate/math/elementary.hpp add up to. Normals: a radius below 6.77 (an ulp is 4.8e-7) to
# 1.1 ulp, times a sine to 1.0e-7, and a rounding. The others: an ulp and a half of a relative 6e-8.
ABSOLUTE = {"uniform": 0.0, "normal": 2e-6, "exponential": 0.0, "gumbel": 3e-7}
RELATIVE = {"uniform": 0.0, "normal": 0.0, "exponential": 3e-7, "gumbel": 3e-7}
DRAWS = tuple(ABSOLUTE)


def like(name: str, **options):
    """A draw as a function of a tensor, whose shape, dtype and device it takes."""

    def function(module):
        def draw(like, *, key=None, generator=None, first_sample=0):
            noise = {"key": key, "generator": generator, "first_sample": first_sample, "device": like.device}
            if name == "randint":
                return module.randint(-5, 3 * 2**30, like.shape, **noise)
            if name != "bits":
                noise["dtype"] = like.dtype
            return getattr(module, name)(like.shape, **noise)

        return draw

    def raw(tensors, key):
        dtype = torch.int64 if name in ("bits", "randint") else tensors[0].dtype
        bounds = (-5, 3 * 2**30) if name == "randint" else ()
        out = torch.empty(tensors[0].shape, dtype=dtype, device=key.device)
        return [(getattr(torch.ops.variate, name).default, (out, *bounds, key, 3))]

    argument = Arg("like", differentiable=False, read=False)
    return OpCase(
        name,
        function(random),
        function(reference.random),
        (argument,),
        raw,
        stochastic=True,
        noise=True,
        # Values reach 22.9, where an ulp and a half of float32 is 2.9e-6.
        absolute_error=3e-6,
    )


CASES = (
    *(like(name) for name in ("bits", "randint", *DRAWS)),
    OpCase(
        "bernoulli",
        random.bernoulli,
        reference.random.bernoulli,
        (Arg("probs", torch.sigmoid, differentiable=False),),
        lambda t, key: [(torch.ops.variate.bernoulli.default, (torch.empty_like(t[0]), t[0], key, 3))],
        stochastic=True,
        noise=True,
    ),
    OpCase(
        "categorical",
        random.categorical,
        reference.random.categorical,
        (Arg("logits", differentiable=False),),
        lambda t, key: [(torch.ops.variate.categorical.default, (t[0], key, 3))] if t[0].shape[-1] else [],
        stochastic=True,
        noise=True,
        accepts=lambda shape: len(shape) > 0 and shape[-1] > 0,
    ),
)


class TestChecklist(Checklist):
    cases = CASES


def key_of(pair) -> torch.Tensor:
    return random.key(*pair)


def signed(pair) -> list[int]:
    return [(x + 2**63) % 2**64 - 2**63 for x in pair]


# Vectors.


@pytest.mark.parametrize(("counter", "seed", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_philox(counter, seed, expected) -> None:
    key = random.key(seed[0] | seed[1] << 32, counter[0] | counter[1] << 32)
    words = reference.random.philox(key[0], key[1], counter[2], counter[3])
    assert tuple(words.tolist()) == expected
    if counter[3] == 0:  # the fourth word of a counter is the step, which no draw moves
        assert tuple(random.bits(1, 4, key=key, first_sample=counter[2])[0].tolist()) == expected


def check_vectors(module, device: str) -> None:
    for stream in VECTORS["streams"]:
        noise = {"key": key_of(stream["key"]).to(device), "first_sample": stream["sample"]}
        count = len(stream["bits"])
        assert module.bits(1, count, **noise)[0].tolist() == stream["bits"]
        for name in DRAWS:
            drawn = getattr(module, name)((1, count), dtype=torch.float32, device=device, **noise)[0].cpu().double()
            expected = torch.tensor(stream[name], dtype=torch.float64)
            torch.testing.assert_close(drawn, expected, rtol=RELATIVE[name], atol=ABSOLUTE[name])
        probs = torch.tensor([VECTORS["probabilities"]], dtype=torch.float64, device=device)
        assert module.bernoulli(probs, dtype=torch.int64, **noise)[0].tolist() == stream["bernoulli"]
        for (low, high), expected in zip(VECTORS["ranges"], stream["randint"], strict=True):
            assert module.randint(low, high, (1, count), **noise)[0].tolist() == expected
        logits = torch.tensor([VECTORS["logits"]], device=device)
        assert module.categorical(logits, **noise).tolist() == [stream["categorical"]]
    for key, number, expected in VECTORS["fold_in"]:
        assert module.fold_in(key_of(key).to(device), number).tolist() == signed(expected)
    for key, expected in VECTORS["split"]:
        assert module.split(key_of(key).to(device), len(expected)).tolist() == [signed(pair) for pair in expected]


def test_published_vectors(place) -> None:
    check_vectors(random, place.device)


def test_published_vectors_of_the_reference() -> None:
    check_vectors(reference.random, "cpu")


def test_key_functions_are_those_of_torch() -> None:
    """torch.func._random, where this build of torch has its kernels."""
    theirs = pytest.importorskip("torch.func._random")
    key = theirs.key(1234)
    try:
        folded, split = theirs.fold_in(key, 77), theirs.split(key, 5)
    except NotImplementedError:
        pytest.skip("torch has no CPU kernels for its keys")
    assert torch.equal(random.fold_in(key, 77), folded.view(torch.int64))
    assert torch.equal(random.split(key, 5), split.view(torch.int64))


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 40),
    st.lists(st.integers(0, 9), min_size=0, max_size=4),
)
def test_words_of_any_key_and_shape(seed: int, offset: int, first: int, size: list[int]) -> None:
    key = random.key(seed, offset)
    assert_same_bits(
        (random.bits(size, key=key, first_sample=first),),
        (reference.random.bits(size, key=key, first_sample=first),),
    )


def test_dtypes_are_roundings_of_float32() -> None:
    key = random.key(5)
    for name in DRAWS:
        single = getattr(random, name)(4, 1003, key=key, dtype=torch.float32)
        for dtype in FLOATS:
            assert_same_bits((getattr(random, name)(4, 1003, key=key, dtype=dtype),), (single.to(dtype),))
    assert random.normal(3).dtype == torch.get_default_dtype()


# The edges of the words. Under seed 0 these elements of sample 0 have all bits clear and all bits set.

ZERO, ONES = 5_992_377_491, 6_153_212_237


def at(element: int, draw):
    """The draw of one element of a long stream."""
    return draw(random.key(0, element // 4))[element % 4].item()


def test_edge_words() -> None:
    assert at(ZERO, lambda key: random.bits(4, key=key)) == 0
    assert at(ONES, lambda key: random.bits(4, key=key)) == 2**32 - 1
    assert at(ZERO, lambda key: random.uniform(4, key=key)) == 2.0**-33
    assert at(ONES, lambda key: random.uniform(4, key=key)) == 1.0
    assert at(ZERO, lambda key: random.exponential(4, key=key)) == pytest.approx(33 * math.log(2), rel=3e-7)
    assert at(ONES, lambda key: random.exponential(4, key=key)) == pytest.approx(2.0**-33, rel=3e-7)
    assert at(ZERO, lambda key: random.gumbel(4, key=key)) == pytest.approx(-math.log(33 * math.log(2)), rel=3e-7)
    assert at(ONES, lambda key: random.gumbel(4, key=key)) == pytest.approx(33 * math.log(2), rel=3e-7)
    for low, high in ((0, 3), (-7, 2**32 - 7), (5, 3 * 2**30)):
        assert at(ZERO, lambda key, low=low, high=high: random.randint(low, high, (4,), key=key)) == low
        assert at(ONES, lambda key, low=low, high=high: random.randint(low, high, (4,), key=key)) == high - 1


@pytest.mark.parametrize(
    ("p", "of_zero", "of_ones"),
    [
        (0.0, 0, 0),
        (-0.0, 0, 0),
        (-1.0, 0, 0),
        (5e-324, 1, 0),  # subnormal: the least chance above 0 is a word of 0
        (2.0**-32, 1, 0),
        (0.5, 1, 0),
        (1 - 2.0**-32, 1, 0),
        (1 - 2.0**-53, 1, 1),
        (1.0, 1, 1),
        (2.0, 1, 1),
        (math.inf, 1, 1),
        (-math.inf, 0, 0),
    ],
)
def test_bernoulli_at_the_edges(p: float, of_zero: int, of_ones: int) -> None:
    probs = torch.full((4,), p, dtype=torch.float64)
    assert at(ZERO, lambda key: random.bernoulli(probs, key=key)) == of_zero
    assert at(ONES, lambda key: random.bernoulli(probs, key=key)) == of_ones
    if float(probs.float()[0]) == p:
        assert at(ZERO, lambda key: random.bernoulli(probs.float(), key=key)) == of_zero
    # Nothing but the words of these edges can tell 2^-32 from 0.
    drawn = random.bernoulli(torch.full((4096,), p, dtype=torch.float64), key=random.key(1))
    if p <= 2.0**-32:
        assert not drawn.any()
    if p >= 1 - 2.0**-32:
        assert drawn.all()


def test_bernoulli_is_exact_beside_every_word() -> None:
    """p = word 2^-32 gives 0 and the next double gives 1."""
    key = random.key(9, 3)
    p = random.bits(6, 1001, key=key).double() * 2.0**-32
    above = torch.nextafter(p, torch.tensor(2.0, dtype=torch.float64))
    assert not random.bernoulli(p, key=key).any()
    assert random.bernoulli(above, key=key).all()


@pytest.mark.parametrize("dtype", [*FLOATS, torch.uint8, torch.bool, torch.int64], ids=str)
def test_bernoulli_dtypes(dtype: torch.dtype) -> None:
    probs = torch.rand(5, 103, generator=torch.Generator().manual_seed(1))
    probs[2, 7] = torch.nan
    drawn = random.bernoulli(probs, key=random.key(4), dtype=dtype)
    expected = reference.random.bernoulli(probs, key=random.key(4), dtype=dtype)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0, equal_nan=True)
    assert drawn.is_floating_point() == bool(drawn.isnan()[2, 7])
    assert drawn.dtype == dtype and drawn.double().nan_to_num().unique().tolist() == [0, 1]


def test_categorical_at_the_edges() -> None:
    key = random.key(8)
    logits = torch.zeros(2000, 5)
    logits[:, 1] = logits[:, 4] = -torch.inf
    assert set(random.categorical(logits, key=key).tolist()) == {0, 2, 3}
    logits[:, 3] = torch.inf
    assert (random.categorical(logits, key=key) == 3).all()
    logits[:, 2] = torch.nan
    logits[:, 4] = torch.nan
    assert (random.categorical(logits, key=key) == 2).all()
    assert (random.categorical(torch.full((7, 3), -torch.inf), key=key) == 0).all()
    assert random.categorical(torch.zeros(5, 1), key=key).tolist() == [0] * 5
    # More categories than a tile holds, several rows to a sample, a winner that must be there.
    wide = torch.zeros(2, 3, 5003)
    wide[1, 2, 5001] = 100.0
    drawn = random.categorical(wide, key=key)
    assert drawn.shape == (2, 3) and drawn[1, 2] == 5001
    assert torch.equal(drawn, reference.random.categorical(wide, key=key))


# Distributions, of 10^7 draws each.

N = 10_000_000
CDF = {
    "uniform": lambda x: x,
    "normal": lambda x: torch.special.ndtr(x),
    "exponential": lambda x: -torch.expm1(-x),
    "gumbel": lambda x: torch.exp(-torch.exp(-x)),
}
EULER = 0.5772156649015329


@pytest.mark.parametrize("name", DRAWS)
def test_kolmogorov_smirnov(name: str) -> None:
    """sup |F_n - F| exceeds sqrt(log(2 / a) / 2 n) with probability a; the steps of float32 add 2^-24."""
    drawn = getattr(random, name)(100, N // 100, key=random.key(2024), dtype=torch.float32).flatten()
    value = CDF[name](drawn.double().sort().values)
    rank = torch.arange(N, dtype=torch.float64)
    distance = max((value - rank / N).max().item(), ((rank + 1) / N - value).max().item())
    assert distance < math.sqrt(math.log(2 / FALSE_ALARM) / (2 * N)) + 2.0**-24


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        # E x^k for k = 1 ... 8.
        ("uniform", [1 / (k + 1) for k in range(1, 9)]),
        ("normal", [0, 1, 0, 3, 0, 15, 0, 105]),
        ("exponential", [math.factorial(k) for k in range(1, 9)]),
    ],
)
def test_moments(name: str, moments: list[float]) -> None:
    drawn = getattr(random, name)(N, key=random.key(7), dtype=torch.float32).double()
    power = torch.ones_like(drawn)
    for k in range(1, 5):
        power *= drawn
        spread = math.sqrt((moments[2 * k - 1] - moments[k - 1] ** 2) / N)
        assert abs(power.mean().item() - moments[k - 1]) < SIGMAS * spread, f"moment {k}"


def test_moments_of_gumbel() -> None:
    drawn = random.gumbel(N, key=random.key(7), dtype=torch.float32).double()
    variance = math.pi**2 / 6
    assert abs(drawn.mean().item() - EULER) < SIGMAS * math.sqrt(variance / N)
    # The fourth central moment is 5.4 variance^2.
    assert abs(drawn.var().item() - variance) < SIGMAS * variance * math.sqrt(4.4 / N)


def test_tails_of_the_normal() -> None:
    """10^8 normals: how many lie beyond 4, 4.5, 5 and 5.4 is Poisson, on each side; the largest is beyond 5.4."""
    cuts = torch.tensor([4.0, 4.5, 5.0, 5.4])
    counts = torch.zeros(2, len(cuts), dtype=torch.int64)
    largest = 0.0
    chunk = 4_000_000
    for first in range(0, 10**8, chunk):
        drawn = random.normal(chunk, key=random.key(11, first // 4), dtype=torch.float32)
        largest = max(largest, drawn.abs().max().item())
        far = drawn[drawn.abs() > 4.0]
        counts[0] += (far[:, None] > cuts).sum(0)
        counts[1] += (far[:, None] < -cuts).sum(0)
    expected = 10**8 * stats.norm.sf(cuts.double().numpy())
    low, high = stats.poisson.ppf(FALSE_ALARM, expected), stats.poisson.isf(FALSE_ALARM, expected)
    assert ((counts.numpy() >= low) & (counts.numpy() <= high)).all(), counts
    assert 5.4 < largest < 6.77


@pytest.mark.parametrize(
    ("low", "high", "bins"),
    [
        (0, 2, 2),
        (-3, 4, 7),
        (0, 1000, 1000),
        (0, 3 * 2**30, 3),  # without the second word, values that 3 divides would be twice as likely
        (0, 2**32 - 1, 5),
        (-(2**31), 2**31, 256),
    ],
)
def test_randint_is_uniform(low: int, high: int, bins: int) -> None:
    drawn = random.randint(low, high, (100, N // 100), key=random.key(77)).flatten()
    assert low <= drawn.min() and drawn.max() < high
    counts = torch.bincount((drawn - low) % bins, minlength=bins).numpy()
    # The residues of a range that bins does not divide differ by less than bins / range, of no weight here.
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_categorical_frequencies(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5, -6.0, 3.0, 2.0]).to(dtype)
    draws = 1_000_000
    drawn = random.categorical(logits.expand(draws, -1), key=random.key(78))
    expected = draws * torch.softmax(logits.double(), 0).numpy()
    assert stats.chisquare(torch.bincount(drawn, minlength=7).numpy(), expected).pvalue > FALSE_ALARM


def test_bernoulli_frequencies() -> None:
    p = torch.tensor([1e-4, 0.01, 0.3, 0.5, 0.9, 0.9999])
    drawn = random.bernoulli(p.expand(N // 6, -1), key=random.key(79)).double()
    spread = (p.double() * (1 - p.double()) / drawn.shape[0]).sqrt()
    assert ((drawn.mean(0) - p.double()).abs() < SIGMAS * spread).all()


# Independence.


def assert_independent(x: torch.Tensor, y: torch.Tensor) -> None:
    """Words that share nothing: half of their bits agree, bit by bit, and their normal scores do not correlate."""
    n = x.numel()
    differ = torch.bitwise_xor(x, y).flatten()
    for bit in range(32):
        share = ((differ >> bit) & 1).double().mean().item()
        assert abs(share - 0.5) < SIGMAS * 0.5 / math.sqrt(n), f"bit {bit}"
    correlation = np.corrcoef(x.flatten().numpy(), y.flatten().numpy())[0, 1]
    assert abs(correlation) < SIGMAS / math.sqrt(n)


def test_independence_of_elements_samples_and_keys() -> None:
    rows, cols = 1000, 1001
    words = random.bits(rows, cols, key=random.key(1))
    assert_independent(words[:, :-1], words[:, 1:])  # neighbours
    assert_independent(words[:, :-4], words[:, 4:])  # neighbouring blocks
    assert_independent(words[:-1], words[1:])  # neighbouring samples
    for other in (random.key(2), random.key(1 << 32), random.key(1, 2**32), random.key(1, 1 << 63)):
        assert_independent(words, random.bits(rows, cols, key=other))
    children = random.split(random.key(1), 3)
    for a, b in ((children[0], children[1]), (children[1], children[2]), (random.key(1), children[0])):
        assert_independent(random.bits(rows, cols, key=a), random.bits(rows, cols, key=b))


def test_pairs_of_normals_are_round() -> None:
    """Box-Muller makes pairs: x0 x1, x0^2 x1^2 and the quadrants show a pair that is not independent."""
    pairs = random.normal(N // 10, 2, key=random.key(3), dtype=torch.float32).double()
    x, y = pairs.unbind(1)
    n = len(pairs)
    assert abs((x * y).mean().item()) < SIGMAS / math.sqrt(n)
    assert abs((x.square() * y.square()).mean().item() - 1) < SIGMAS * math.sqrt(8 / n)  # E x^4 y^4 - 1 = 8
    quadrants = torch.bincount((x > 0).long() + 2 * (y > 0).long(), minlength=4).numpy()
    assert stats.chisquare(quadrants).pvalue > FALSE_ALARM


# Keys.


def test_keys() -> None:
    assert random.key(3, 4).tolist() == [3, 4]
    assert random.key(2**64 - 1, -1).tolist() == [-1, -1]
    assert random.key(2**64 + 5).tolist() == [5, 0]
    key = random.key(3, 4)
    assert torch.equal(random.split(key), torch.stack([random.fold_in(key, 0), random.fold_in(key, 1)]))
    assert random.split(random.split(key, 3), 2).shape == (2, 3, 2)
    assert random.split(key, 0).shape == (0, 2)
    numbers = torch.arange(3)
    assert torch.equal(random.fold_in(key, numbers), random.split(key, 3))
    grid = random.fold_in(random.split(key, 4)[:, None], numbers)
    assert grid.shape == (4, 3, 2) and torch.equal(grid[2, 1], random.fold_in(random.fold_in(key, 2), 1))
    assert torch.equal(random.fold_in(key.view(torch.uint64), 7), random.fold_in(key, 7))


def test_advance_moves_to_the_next_draw() -> None:
    key = random.key(6, 2**32 - 1)
    whole = random.normal(64, key=key)
    first = random.normal(24, key=key)
    assert random.advance_(key, 24 // 4) is key
    assert torch.equal(torch.cat([first, random.normal(40, key=key)]), whole)
    assert random.advance_(key, torch.tensor(-6)).tolist() == [6, 2**32 - 1]
    own = random.split(key, 3)
    assert torch.equal(random.advance_(own.clone(), 5)[:, 1], own[:, 1] + 5)


def test_the_step_is_word_three() -> None:
    """A step of the reference, which chains use, is not a draw of step 0."""
    key = random.key(1)
    assert not torch.equal(reference.random.words((8,), key, step=1), random.bits(8, key=key))


def test_size_as_torch_takes_it() -> None:
    key = random.key(1)
    expected = random.uniform((2, 3), key=key)
    for size in ((2, 3), ([2, 3],), (torch.Size([2, 3]),)):
        assert torch.equal(random.uniform(*size, key=key), expected)
    assert random.uniform((), key=key).shape == ()


@pytest.mark.parametrize(
    ("call", "error", "names"),
    [
        (lambda k: random.key(1.5), TypeError, "seed: expected an int, got float"),
        (lambda k: random.key(True), TypeError, "seed"),
        (lambda k: random.key(1, None), TypeError, "offset"),
        (lambda k: random.normal(3, key=[1, 2]), TypeError, "key: expected an int64 tensor, got list"),
        (lambda k: random.normal(3, key=k.int()), TypeError, "key: expected int64, got int32"),
        (lambda k: random.normal(3, key=k.float()), TypeError, "key: expected int64, got float32"),
        (lambda k: random.normal(3, key=k[0]), ValueError, r"key: expected shape \(2,\)"),
        (lambda k: random.normal(3, 4, key=k.expand(4, 2)), ValueError, r"\(3, 2\)"),
        (lambda k: random.normal(3, 4, key=k.expand(1, 3, 2)), ValueError, r"\(3, 2\)"),
        (lambda k: random.normal(3, 4, key=k.expand(3, 2), first_sample=1), ValueError, "first_sample"),
        (lambda k: random.normal(3, key=k, generator=torch.Generator()), ValueError, "generator"),
        (lambda k: random.normal(3, generator=7), TypeError, "generator: expected a torch.Generator"),
        (lambda k: random.normal(3, key=k, first_sample=-1), ValueError, "first_sample"),
        (lambda k: random.normal(3, 4, key=k, first_sample=2**32 - 2), ValueError, "first_sample"),
        (lambda k: random.normal(3, key=k, first_sample=1.0), TypeError, "first_sample: expected an int"),
        (lambda k: random.normal(3, key=k, dtype=torch.int32), TypeError, "dtype: expected float32"),
        (lambda k: random.normal(-1, key=k), ValueError, "size: expected ints of at least 0"),
        (lambda k: random.normal(2.5, key=k), TypeError, "size"),
        (lambda k: random.normal("a", key=k), TypeError, "size"),
        (lambda k: random.normal(3, key=k, device="meta"), ValueError, "key: expected it on meta"),
        (lambda k: random.bernoulli(0.5, key=k), TypeError, "probs: expected a tensor, got float"),
        (lambda k: random.bernoulli(torch.ones(3, dtype=torch.int64), key=k), TypeError, "probs"),
        (lambda k: random.bernoulli(torch.ones(3), key=k, dtype=torch.int32), TypeError, "dtype"),
        (lambda k: random.randint(0, 0, (3,), key=k), ValueError, "high"),
        (lambda k: random.randint(5, 2, (3,), key=k), ValueError, "high"),
        (lambda k: random.randint(0, 2**32 + 1, (3,), key=k), ValueError, "high"),
        (lambda k: random.randint(2**63 - 1, 2**63 + 1, (3,), key=k), ValueError, "high"),
        (lambda k: random.randint(0.0, 3, (3,), key=k), TypeError, "low: expected an int"),
        (lambda k: random.categorical(torch.zeros(3, 0), key=k), ValueError, "logits: expected shape"),
        (lambda k: random.categorical(torch.tensor(1.0), key=k), ValueError, "logits: expected shape"),
        (lambda k: random.categorical(torch.zeros(3).int(), key=k), TypeError, "logits"),
        (lambda k: random.fold_in(k, 1.0), TypeError, "data: expected an int or an int64 tensor, got float"),
        (lambda k: random.fold_in(k, torch.tensor(1.0)), TypeError, "data: expected int64, got float32"),
        (lambda k: random.fold_in(k.expand(3, 2), torch.arange(4)), ValueError, "data: expected a shape"),
        (lambda k: random.fold_in(k[:1], 1), ValueError, "key: expected shape"),
        (lambda k: random.fold_in((1, 2), 1), TypeError, "key"),
        (lambda k: random.split(k, -1), ValueError, "n: expected an int of at least 0"),
        (lambda k: random.split(k, 1.5), ValueError, "n: expected"),
        (lambda k: random.advance_(k.view(torch.uint64), 1), TypeError, "key: expected int64"),
    ],
)
def test_errors(call, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        call(random.key(1))


def test_probabilities_are_checked_on_request(debug: None) -> None:
    with pytest.raises(ValueError, match="probs: expected values in"):
        random.bernoulli(torch.tensor([0.5, 1.5]))
    variate.set_debug(False)
    assert random.bernoulli(torch.tensor([1.5, -0.5])).tolist() == [1, 0]


def test_draws_have_no_gradient() -> None:
    probs = torch.full((4,), 0.5, requires_grad=True)
    logits = torch.zeros(4, 3, requires_grad=True)
    assert not random.bernoulli(probs).requires_grad
    assert not random.categorical(logits).requires_grad


def test_python_threads_draw_alike() -> None:
    key = random.key(5)
    expected = random.normal(3, 70_001, key=key)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for drawn in pool.map(lambda _: random.normal(3, 70_001, key=key), range(4)):
            assert torch.equal(drawn, expected)
