"""The Triton kernels: interpreted against an independent numpy reference, and compiled without a GPU.

The reference is float64 numpy on words from a Philox of its own. Words, uniforms and Bernoulli draws must
equal it in bits. Elsewhere float32 math is allowed the error that the bounds of the element math add up to.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parent))

import aot
import triton
import triton.language as tl
from triton_interpreter import Interpreter, load_kernels

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KEY = (0x0123456789ABCDEF, 5)
# Half an ulp of 1 in the dtype of an output, with some room for the float32 math before it; an ulp for
# bfloat16, which the interpreter truncates. A GPU rounds: see check_compiled.
ROUNDING = {
    torch.float32: 2.0**-22,
    torch.float64: 2.0**-22,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
}


def new(*size, dtype=torch.float32):
    """What a draw fills, poisoned: every element must be written."""
    return torch.full(size, math.nan if dtype.is_floating_point else 99, dtype=dtype)


@pytest.fixture(scope="module")
def interpreted():
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


# The reference.


def philox(seed, counter):
    """Words [4, ...] of Philox4x32-10; seed and the four counter words broadcast."""
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c = [np.asarray(x, np.uint64) for x in counter]
    k = [np.asarray(seed, np.uint64) & low, np.asarray(seed, np.uint64) >> shift]
    for _ in range(10):
        p = np.uint64(0xD2511F53) * c[0]
        q = np.uint64(0xCD9E8D57) * c[2]
        c = [(q >> shift) ^ c[1] ^ k[0], q & low, (p >> shift) ^ c[3] ^ k[1], p & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return np.stack(np.broadcast_arrays(*c))


def words_of(rows, cols, key=KEY, first_sample=0):
    """uint64 [rows, cols] of noise version 1, from one (seed, offset) or a list of one per row."""
    keys = [key] * rows if isinstance(key, tuple) else key
    out = np.empty((rows, cols), np.uint64)
    block = np.arange((cols + 3) // 4, dtype=np.uint64)
    for row, (seed, offset) in enumerate(keys):
        counter = np.uint64(offset % 2**64) + block  # wraps
        sample = first_sample + row if isinstance(key, tuple) else 0
        parts = philox(seed % 2**64, (counter & np.uint64(0xFFFFFFFF), counter >> np.uint64(32), sample, 0))
        out[row] = parts.T.reshape(-1)[:cols]
    return out


def uniforms_of(words):
    return (words.astype(np.float32).astype(np.float64) * 2.0**-32 + 2.0**-33).astype(np.float32)


def normals_of(rows, cols, key=KEY, first_sample=0):
    u = uniforms_of(words_of(rows, cols + -cols % 4, key, first_sample)).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log(u[:, 0::2]))
    angle = 2.0 * np.pi * u[:, 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return torch.from_numpy(pairs.reshape(rows, -1)[:, :cols])


def exponentials_of(words):
    u = uniforms_of(words).astype(np.float64)
    v = uniforms_of(words ^ np.uint64(0xFFFFFFFF)).astype(np.float64)
    return np.where(words < 2**31, -np.log(u), -np.log1p(-v))


def folded(key, data):
    block = (key[1] + data) % 2**64
    w = [int(x) for x in philox(key[0], (block & 0xFFFFFFFF, block >> 32, 0, 0))]
    return w[0] | w[1] << 32, w[2] | w[3] << 32


def signed(x):
    return x - 2**64 if x >= 2**63 else x


def tensor_of(key):
    return torch.tensor([[signed(x % 2**64) for x in k] for k in (key if isinstance(key, list) else [key])]).view(
        (-1, 2) if isinstance(key, list) else (2,)
    )


def close(actual, expected, dtype=torch.float32, scale=1.0):
    """|actual - expected| <= scale * rounding * max(1, |expected|)"""
    bound = scale * ROUNDING[dtype] * expected.abs().clamp(min=1.0)
    error = (actual.double() - expected).abs()
    assert bool((error <= bound).all()), f"error {(error / bound).max():.3g} times the bound"


# Draws.


@pytest.mark.parametrize(
    ("seed", "counter", "expected"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_reference_philox_gives_the_published_vectors(seed, counter, expected):
    assert tuple(int(x) for x in philox(np.uint64(seed), counter)) == expected


def test_bits_of_the_zero_counter_are_the_published_vector(interpreted):
    bits = interpreted.bits(new(4, dtype=torch.int64), torch.tensor([0, 0]), 0)
    assert bits.tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("size", [(), (7,), (1030,), (5, 4), (2, 3, 7), (3, 1027), (300, 1)])
@pytest.mark.parametrize("key", [KEY, (2**64 - 1, 2**64 - 2), (3, 2**32 - 1)])
def test_bits(interpreted, size, key):
    rows = size[0] if len(size) > 1 else 1
    bits = interpreted.bits(new(*size, dtype=torch.int64), tensor_of(key), 2**32 - rows)
    assert bits.dtype == torch.int64 and bits.shape == size
    expected = words_of(rows, math.prod(size) // rows, key, 2**32 - rows)
    assert np.array_equal(bits.numpy().reshape(rows, -1), expected.astype(np.int64))


def test_batched_keys_are_sample_0_of_their_own_stream(interpreted):
    keys = [(1, 0), (2**64 - 3, 7), (1, 2**64 - 1)]
    bits = interpreted.bits(new(3, 10, dtype=torch.int64), tensor_of(keys), 0)
    assert np.array_equal(bits.numpy(), words_of(3, 10, keys).astype(np.int64))
    strided = tensor_of(keys).repeat_interleave(2, 0)[::2]
    assert torch.equal(interpreted.bits(new(3, 10, dtype=torch.int64), strided, 0), bits)


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform(interpreted, dtype):
    draws = interpreted.uniform(new(3, 1000, dtype=dtype), tensor_of(KEY), 2)
    expected = torch.from_numpy(uniforms_of(words_of(3, 1000, first_sample=2)))
    if dtype == torch.bfloat16:  # truncated
        expected = (expected.view(torch.int32) & -0x10000).view(torch.float32)
    assert torch.equal(draws, expected.to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [(9000,), (7, 33)])
def test_normal(interpreted, dtype, size):
    draws = interpreted.normal(new(*size, dtype=dtype), tensor_of(KEY), 1)
    rows = size[0] if len(size) > 1 else 1
    expected = normals_of(rows, math.prod(size) // rows, first_sample=1).view(size)
    # cos and sin are off by at most 1e-7 near their zeros, times a radius of at most 6.7.
    close(draws, expected, dtype, scale=3.0)


def test_exponential_and_gumbel(interpreted):
    expected = torch.from_numpy(exponentials_of(words_of(2, 3000)))
    draws = interpreted.exponential(new(2, 3000), tensor_of(KEY), 0)
    assert bool((draws > 0).all())
    assert bool(((draws.double() - expected).abs() <= 4 * 2.0**-24 * expected).all())  # four half ulps
    gumbel = interpreted.gumbel(new(2, 3000), tensor_of(KEY), 0)
    close(gumbel, -torch.log(expected))


@pytest.mark.parametrize(
    "dtypes",
    [*zip(FLOATS, FLOATS, strict=True), *zip(FLOATS, (torch.uint8, torch.int64, torch.bool), strict=False)],
)
def test_bernoulli(interpreted, dtypes):
    words = words_of(4, 50, first_sample=9)
    probs = torch.from_numpy(words.astype(np.float64) * 2.0**-32).to(dtypes[0])  # the thresholds themselves
    probs[0, :5] = torch.tensor([0.0, 1.0, -1.0, 2.0, math.nan])
    out = new(4, 50, dtype=dtypes[1])
    draws = interpreted.bernoulli(out, probs, tensor_of(KEY), 9)
    p = probs.double().numpy()
    expected = torch.from_numpy((words.astype(np.float64) < p * 2.0**32).astype(np.float64))
    expected[0, 4] = math.nan if dtypes[1].is_floating_point else 0
    assert torch.equal(draws.double().nan_to_num(-1), expected.nan_to_num(-1))
    # An expanded input is read in place; transposed tensors are read and filled.
    transposed = interpreted.bernoulli(out.t().contiguous().t(), probs.t().contiguous().t(), tensor_of(KEY), 9)
    assert torch.equal(transposed.double().nan_to_num(-1), draws.double().nan_to_num(-1))
    row = interpreted.bernoulli(out, probs[1:2].expand(4, 50), tensor_of(KEY), 9)
    assert torch.equal(row[1], draws[1])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 4), (0, 2**31 + 1), (5, 5 + 2**32), (-(2**63), 2**32 - 2**63)])
def test_randint(interpreted, low, high):
    draws = interpreted.randint(new(2, 101, dtype=torch.int64), low, high, tensor_of(KEY), 3)
    first = words_of(2, 101, first_sample=3)
    second = words_of(2, 101, key=folded(KEY, 1), first_sample=3)
    expected = [
        low + ((int(a) << 32 | int(b)) * (high - low) >> 64) for a, b in zip(first.flat, second.flat, strict=True)
    ]
    assert draws.flatten().tolist() == expected


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ((7,), torch.float32),
        ((3, 5), torch.bfloat16),
        ((2, 3, 7), torch.float64),
        ((2, 2, 64), torch.float16),
        ((2, 2, 1301), torch.float32),
        ((2, 3000), torch.float32),
    ],
)
def test_categorical(interpreted, size, dtype):
    logits = torch.linspace(-1.0, 1.0, math.prod(size)).view(size).to(dtype)
    rows = size[0] if len(size) > 1 else 1
    choice = interpreted.categorical(logits, tensor_of(KEY), 4)
    gumbel = -np.log(exponentials_of(words_of(rows, logits.numel() // rows, first_sample=4)))
    scores = logits.double() + torch.from_numpy(gumbel).view(size)
    best = scores.topk(2).values
    assert bool((best[..., 0] - best[..., 1] > 1e-5).all()), "a tie: choose another key for this test"
    assert torch.equal(choice, scores.argmax(-1))


def test_categorical_of_extreme_logits(interpreted):
    logits = torch.zeros(5, 6)
    logits[0] = -math.inf
    logits[1, 3] = logits[1, 5] = math.inf
    logits[2, 2] = logits[2, 4] = math.nan
    logits[2, 1] = math.inf
    logits[3, :5] = -math.inf
    choice = interpreted.categorical(logits, tensor_of(KEY), 0)
    assert choice[:4].tolist() == [0, 3, 2, 5]


def test_fold_in(interpreted):
    keys = [(7, 0), (2**64 - 1, 2**64 - 1), (2**40, 12)]
    data = [0, 1, 2**63 - 1]
    expected = [folded(k, d) for k, d in zip(keys, data, strict=True)]
    assert torch.equal(interpreted.fold_in(tensor_of(keys), torch.tensor(data)), tensor_of(expected))
    assert torch.equal(interpreted.fold_in(tensor_of(KEY), torch.tensor(-1)), tensor_of(folded(KEY, 2**64 - 1)))


# Reparameterised sampling.


def example(size, dtype=torch.float32, other=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean, log_var = torch.randn(2, *size, generator=generator, dtype=torch.float64)
    return mean.to(dtype), log_var.to(other or dtype)


def expected_kl(mean, log_var, prior_mean=None, prior_log_var=None, free_bits=0.0):
    mean, log_var = mean.double(), log_var.double()
    prior_mean = torch.zeros_like(mean) if prior_mean is None else prior_mean.double()
    prior_log_var = torch.zeros_like(mean) if prior_log_var is None else prior_log_var.double()
    ratio = log_var - prior_log_var
    kl = 0.5 * (torch.expm1(ratio) - ratio + (mean - prior_mean) ** 2 * torch.exp(-prior_log_var))
    kl = torch.where(kl < free_bits, free_bits, kl) if free_bits > 0 else kl
    return kl.reshape(mean.shape[0] if mean.dim() > 1 else 1, -1).sum(1)


def expected_z(mean, log_var, first_sample=0, key=KEY):
    rows = mean.shape[0] if mean.dim() > 1 else 1
    noise = normals_of(rows, mean.numel() // rows, key, first_sample).view(mean.shape)
    return mean.double() + torch.exp(0.5 * log_var.double()) * noise


SIZES = [(), (5,), (37, 4), (2, 3, 7), (3, 784), (2, 9000)]


CASES = [
    *[(size, torch.float32, torch.float32) for size in SIZES],
    *[((2, 3, 7), dtype, dtype) for dtype in FLOATS[1:]],
    ((2, 3, 7), torch.bfloat16, torch.float64),
    ((2, 9000), torch.float64, torch.float64),
]


@pytest.mark.parametrize(("size", "first", "second"), CASES)
def test_normal_rsample_kl(interpreted, size, first, second):
    mean, log_var = example(size, first, second)
    z, kl = interpreted.normal_rsample_kl(mean, log_var, None, None, None, tensor_of(KEY), 3)
    assert z.shape == mean.shape and z.dtype == torch.promote_types(first, second)
    assert kl.dtype == (torch.float64 if torch.float64 in (first, second) else torch.float32)
    # sigma reaches e^2, so errors of the noise grow as much.
    close(z, expected_z(mean, log_var, 3), z.dtype, scale=20.0 if z.dtype.itemsize >= 4 else 3.0)
    # A float32 sum of thousands of terms in tree order; each term has a few roundings.
    precision = 1e-13 if kl.dtype == torch.float64 else 1e-6
    assert torch.allclose(kl.double(), expected_kl(mean, log_var), rtol=precision, atol=precision)
    assert torch.equal(interpreted.normal_rsample(mean, log_var, tensor_of(KEY), 3), z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("free_bits", [None, torch.tensor(0.0), torch.tensor(0.4), 0.4, torch.tensor(0.4).double()])
def test_normal_rsample_kl_with_a_prior(interpreted, dtype, free_bits):
    mean, log_var = example((6, 23), dtype)
    prior_mean, prior_log_var = example((23,), dtype, seed=1)
    priors = prior_mean.expand(6, 23), prior_log_var.expand(6, 23)
    bound = 0.0 if free_bits is None else float(free_bits)
    precision = 1e-7 if dtype == torch.float64 else 2e-6  # 1e-7: free bits may be a float32
    for given in [priors, (priors[0], None), (None, priors[1]), (None, None)]:
        z, kl = interpreted.normal_rsample_kl(mean, log_var, *given, free_bits, tensor_of(KEY), 0)
        expected = expected_kl(mean, log_var, *given, free_bits=bound)
        assert torch.allclose(kl.double(), expected, rtol=precision, atol=0)
        assert torch.equal(z, interpreted.normal_rsample(mean, log_var, tensor_of(KEY), 0))


@pytest.mark.parametrize("cols", [20, 784, 5000])
def test_the_bits_of_a_row_depend_on_neither_batch_nor_strides(interpreted, cols):
    mean, log_var = example((5, cols))
    z, kl = interpreted.normal_rsample_kl(mean, log_var, None, None, None, tensor_of(KEY), 0)
    for rows in (slice(2, 3), slice(1, 5)):
        part = interpreted.normal_rsample_kl(
            mean[rows].t().contiguous().t(), log_var[rows], None, None, None, tensor_of(KEY), rows.start
        )
        assert torch.equal(part[0], z[rows]) and torch.equal(part[1], kl[rows])


def test_strides_and_dimensions_are_read_as_they_are(interpreted):
    mean, log_var = example((4, 3, 6))
    expected = interpreted.normal_rsample_kl(mean, log_var, None, None, None, tensor_of(KEY), 0)
    permuted = mean.permute(2, 1, 0).contiguous().permute(2, 1, 0)  # inner strides differ: copied
    sliced = torch.stack([log_var, log_var], -1)[..., 0]  # inner stride 2: read in place
    actual = interpreted.normal_rsample_kl(permuted, sliced, None, None, None, tensor_of(KEY), 0)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    keys = [(1, 2), (3, 4), (5, 6), (7, 8)]
    z = interpreted.normal_rsample(mean, log_var, tensor_of(keys), 0)
    close(z, expected_z(mean, log_var, key=keys), scale=20.0)


@pytest.mark.parametrize(
    ("dtype", "free_bits", "given"),
    [
        (torch.float32, None, (False, False)),
        (torch.float32, torch.tensor(0.4), (False, False)),
        (torch.float32, torch.tensor(0.4), (True, True)),
        (torch.float64, torch.tensor(0.4), (True, True)),
        (torch.float64, None, (False, True)),
        (torch.bfloat16, None, (True, False)),
        (torch.float16, torch.tensor(0.4), (True, True)),
    ],
)
def test_normal_rsample_kl_backward(interpreted, dtype, free_bits, given):
    mean, log_var = example((5, 21), dtype)
    prior = [p if keep else None for p, keep in zip(example((5, 21), dtype, seed=1), given, strict=True)]
    grad_z, _ = example((5, 21), dtype, seed=2)
    grad_kl = torch.linspace(-1.0, 2.0, 5).to(torch.float64 if dtype == torch.float64 else torch.float32)
    noise = normals_of(5, 21, first_sample=2)
    leaves = [None if t is None else t.double().requires_grad_() for t in (mean, log_var, *prior)]
    for with_z, with_kl in [(True, True), (True, False), (False, True)]:
        z = leaves[0] + torch.exp(0.5 * leaves[1]) * noise
        # expected_kl with the gradient of max: none at elements that free bits hold up.
        kl = expected_kl(*leaves, free_bits=0.0 if free_bits is None else float(free_bits))
        loss = 0.0 * sum(t.sum() for t in leaves if t is not None)
        loss = loss + (z * grad_z.double()).sum() * with_z + (kl * grad_kl.double()).sum() * with_kl
        expected = torch.autograd.grad(loss, [t for t in leaves if t is not None])
        actual = interpreted.normal_rsample_kl_backward(
            grad_z if with_z else None, grad_kl if with_kl else None, mean, log_var, *prior, free_bits,
            tensor_of(KEY), 2, True,
        )  # fmt: skip
        for present, gradient in zip((True, True, *given), actual, strict=True):
            assert gradient.dtype == dtype and gradient.numel() == (mean.numel() if present else 0)
        for gradient, value in zip([g for g in actual if g.numel()], expected, strict=True):
            close(gradient, value, dtype, scale=30.0 if dtype.itemsize >= 4 else 2.0)
    unwanted = interpreted.normal_rsample_kl_backward(
        grad_z, grad_kl, mean, log_var, *prior, free_bits, tensor_of(KEY), 2, False
    )
    assert unwanted[2].numel() == unwanted[3].numel() == 0


BASES = ("normal", "logistic", "laplace", "gumbel")


def noise_of(base, rows, cols, key, first_sample):
    """The noise of variate_base, and its mirror image."""
    if base == "normal":
        noise = normals_of(rows, cols, key, first_sample)
        return noise, -noise
    words = words_of(rows, cols, key, first_sample)
    lower, upper = exponentials_of(words), exponentials_of(words ^ np.uint64(0xFFFFFFFF))  # -log u, -log(1 - u)
    if base == "gumbel":
        return torch.from_numpy(-np.log(lower)), torch.from_numpy(-np.log(upper))
    if base == "logistic":
        noise = upper - lower
    else:
        half = np.where(words < 2**31, words, words ^ np.uint64(0xFFFFFFFF))  # 2 u = (half + 1/2) 2^-31
        near = (half.astype(np.float32).astype(np.float64) * 2.0**-31 + 2.0**-32).astype(np.float32)
        rest = np.uint64(2**31 - 1) - half
        far = (rest.astype(np.float32).astype(np.float64) * 2.0**-31 + 2.0**-32).astype(np.float32)
        magnitude = np.where(half < 2**30, -np.log(near.astype(np.float64)), -np.log1p(-far.astype(np.float64)))
        noise = np.where(words < 2**31, -magnitude, magnitude)
    return torch.from_numpy(noise), torch.from_numpy(-noise)


@pytest.mark.parametrize(
    ("base", "dtype", "samples", "antithetic"),
    [
        *[(base, torch.float32, 0, False) for base in BASES],
        *[(base, torch.float32, 5, True) for base in BASES],
        ("logistic", torch.float64, 19, False),
        ("laplace", torch.float16, 3, False),
        ("gumbel", torch.float32, 35, True),
    ],
)
def test_location_scale_rsample(interpreted, base, dtype, samples, antithetic):
    """Few samples are one program's; many are those of several, whose sums are added."""
    loc, spread = example((3, 14), dtype)
    parametrization = BASES.index(base) % 3
    how = (tensor_of(KEY), 2, samples, antithetic, BASES.index(base), parametrization)
    noise = []
    for draw in range((max(samples, 1) + antithetic) // (1 + antithetic)):
        noise += noise_of(base, 3, 14, KEY if draw == 0 else folded(KEY, draw), 2)[: 1 + antithetic]
    noise = torch.stack(noise[: max(samples, 1)])
    leaves = [t.double().requires_grad_() for t in (loc, spread)]
    sigma = (torch.exp(0.5 * leaves[1]), torch.exp(leaves[1]), leaves[1])[parametrization]
    expected = leaves[0] + sigma * noise
    z = interpreted.location_scale_rsample(loc, spread, *how)
    assert z.dtype == dtype and z.shape == (loc.shape if samples == 0 else (samples, *loc.shape))
    close(z, expected.detach().view(z.shape), dtype, scale=20.0 if dtype.itemsize >= 4 else 3.0)
    grad_z = example(expected.shape, dtype, seed=3)[0]
    gradients = torch.autograd.grad(expected, leaves, grad_z.double())
    actual = interpreted.location_scale_rsample_backward(grad_z.view(z.shape), loc, spread, *how)
    for gradient, value in zip(actual, gradients, strict=True):
        assert gradient.dtype == dtype
        close(gradient, value, dtype, scale=100.0 if dtype.itemsize >= 4 else 2.0)  # a sum of as many terms
    one = torch.ones((), dtype=dtype).expand(z.shape)  # a gradient of stride 0
    assert torch.equal(
        interpreted.location_scale_rsample_backward(one, loc, spread, *how)[1],
        interpreted.location_scale_rsample_backward(one.contiguous(), loc, spread, *how)[1],
    )


# Relaxed and straight-through samples.


@pytest.mark.parametrize(
    ("size", "dtype", "tau"),
    [
        ((5, 21), torch.float32, None),
        ((2, 3, 7), torch.float64, torch.tensor(0.6)),  # lines begin inside a block of four
        ((9,), torch.float32, 0.6),
        ((2, 1301), torch.float32, torch.tensor(0.6).double()),  # and have more than one tile
        ((3, 8), torch.float16, torch.tensor(2.0)),
    ],
)
def test_gumbel_softmax(interpreted, size, dtype, tau):
    logits, grad_y = example(size, dtype)
    rows = size[0] if len(size) > 1 else 1
    gumbel = torch.from_numpy(-np.log(exponentials_of(words_of(rows, logits.numel() // rows, first_sample=2))))
    leaf = logits.double().requires_grad_()
    temperature = 1.0 if tau is None else float(tau)
    soft = torch.softmax((leaf + gumbel.view(size)) / temperature, -1)
    (expected,) = torch.autograd.grad(soft, leaf, grad_y.double(), retain_graph=True)
    key = tensor_of(KEY)
    y = interpreted.gumbel_softmax(logits, tau, key, 2, False)
    close(y, soft.detach(), dtype, scale=20.0 if dtype.itemsize >= 4 else 2.0)  # an exponential of up to 20 / 0.6
    hard = interpreted.gumbel_softmax(logits, tau, key, 2, True)
    assert torch.equal(hard, torch.nn.functional.one_hot(soft.argmax(-1), size[-1]).to(dtype))
    for source in ((y, None, tau, None, 0), (None, logits, tau, key, 2)):
        grad = interpreted.gumbel_softmax_backward(grad_y, *source)
        close(grad, expected, dtype, scale=50.0 if dtype.itemsize >= 4 else 4.0)
    (expected,) = torch.autograd.grad(torch.softmax(leaf / temperature, -1), leaf, grad_y.double())
    grad = interpreted.gumbel_softmax_backward(grad_y, None, logits, tau, None, 0)
    close(grad, expected, dtype, scale=20.0 if dtype.itemsize >= 4 else 2.0)


def test_gumbel_softmax_of_extreme_logits(interpreted):
    logits = torch.full((5, 6), -math.inf)
    logits[1, 3] = 0.0
    logits[2, 2:4] = math.inf
    logits[3, 2] = math.nan
    for tau in (1e-45, 1.0, 1e30):
        y = interpreted.gumbel_softmax(logits, torch.tensor(tau), tensor_of(KEY), 0, False)
        assert torch.equal(y[0], torch.full((6,), 1.0) / 6) and y[1].tolist() == [0, 0, 0, 1, 0, 0]
        assert y[2].tolist() == [0, 0, 0.5, 0.5, 0, 0] and y[3].isnan().all()
    hard = interpreted.gumbel_softmax(logits, None, tensor_of(KEY), 0, True)
    assert hard[:3].argmax(-1).tolist() == [0, 3, 2] and hard[3].isnan().all()


@pytest.mark.parametrize(("dtype", "temperature"), [(torch.float32, None), (torch.float64, 0.6), (torch.float16, 0.6)])
def test_relaxed_and_straight_through_bernoulli(interpreted, dtype, temperature):
    logits, grad_z = example((5, 21), dtype)
    key = tensor_of(KEY)
    logistic = noise_of("logistic", 5, 21, KEY, 2)[0]
    leaf = logits.double().requires_grad_()
    soft = torch.sigmoid((leaf + logistic) / (temperature or 1.0))
    (expected,) = torch.autograd.grad(soft, leaf, grad_z.double())
    z = interpreted.relaxed_bernoulli_rsample(logits, temperature, key, 2, False)
    close(z, soft.detach(), dtype, scale=3.0)
    hard = interpreted.relaxed_bernoulli_rsample(logits, temperature, key, 2, True)
    assert torch.equal(hard.double(), (soft > 0.5).double())
    for source in ((z, None, temperature, None, 0), (None, logits, temperature, key, 2)):
        close(interpreted.relaxed_bernoulli_rsample_backward(grad_z, *source), expected, dtype, scale=10.0)
    words = torch.from_numpy(words_of(5, 21, first_sample=2).astype(np.float64))
    draws = interpreted.bernoulli_straight_through(logits, key, 2)
    assert torch.equal(draws.double(), (words < torch.sigmoid(leaf).detach() * 2.0**32).double())


def test_nan_stays_where_it_came_in(interpreted):
    mean, log_var = example((4, 30))
    mean[1, 7] = math.nan
    log_var[2, 3] = math.inf
    for free_bits in (None, torch.tensor(0.5)):
        z, kl = interpreted.normal_rsample_kl(mean, log_var, None, None, free_bits, tensor_of(KEY), 0)
        assert z.isnan().nonzero().tolist() == [[1, 7]]
        assert kl.isfinite().tolist() == [True, False, False, True]


# Likelihoods.


def expected_nll(logits, target):
    terms = torch.nn.functional.softplus(logits.double()) - logits.double() * target.double()
    return terms.reshape(logits.shape[0] if logits.dim() > 1 else 1, -1).sum(1)


@pytest.mark.parametrize(
    ("size", "dtype", "target_dtype"),
    [*CASES, ((3, 20), FLOATS[0], torch.uint8), ((3, 20), FLOATS[2], torch.bool)],
)
def test_bernoulli_nll(interpreted, size, dtype, target_dtype):
    logits = 4.0 * example(size, dtype)[0]
    target = example(size)[1].sigmoid()
    target = target.round().to(target_dtype) if not target_dtype.is_floating_point else target.to(target_dtype)
    nll = interpreted.bernoulli_nll(logits, target)
    double = torch.float64 in (dtype, target_dtype)
    assert nll.dtype == (torch.float64 if double else torch.float32)
    assert torch.allclose(nll.double(), expected_nll(logits, target), rtol=1e-13 if double else 1e-6)

    grad_nll = torch.linspace(0.5, 1.5, nll.numel()).to(nll.dtype)
    floating = target.dtype.is_floating_point
    actual = interpreted.bernoulli_nll_backward(grad_nll, logits, target, 3 if floating else 1)
    g = grad_nll.double().view(-1, *[1] * (logits.dim() - 1)) if logits.dim() > 1 else grad_nll.double()[0]
    close(actual[0], g * (logits.double().sigmoid() - target.double()), dtype, scale=4.0)
    assert actual[0].dtype == dtype and actual[1].numel() == (target.numel() if floating else 0)
    if floating:
        close(actual[1], -g * logits.double(), actual[1].dtype)


# The terms of the evidence lower bound against their C++ twins, per element and summed.


def assert_twins(interpreted, name, *args, scale=4.0):
    """The kernel and the compiled op agree up to rounding, which sums of a thousand terms make a little larger."""
    pytest.importorskip("variate")
    actual, expected = getattr(interpreted, name)(*args), getattr(torch.ops.variate, name)(*args)
    actual, expected = (x if isinstance(x, tuple) else (x,) for x in (actual, expected))
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape, name
        close(a, e.double(), a.dtype, scale)


SHAPES = [((3, 20), torch.float32), ((2, 3, 7), torch.bfloat16), ((2, 1100), torch.float32), ((5,), torch.float64)]


@pytest.mark.parametrize("parametrization", [0, 1, 2])
@pytest.mark.parametrize(("size", "dtype"), SHAPES)
def test_normal_terms(interpreted, size, dtype, parametrization):
    mean, spread = example(size, dtype)
    prior_mean, prior_spread = example(size, dtype, seed=1)
    if parametrization == 2:
        spread, prior_spread = spread.exp(), prior_spread.exp()
    grad = example(size, dtype, seed=2)[0]
    rows = torch.linspace(0.5, 1.5, size[0] if len(size) > 1 else 1)
    for priors in [(prior_mean, prior_spread), (None, prior_spread), (prior_mean, None), (None, None)]:
        for free_bits in (None, torch.tensor(0.3)):
            arguments = (mean, spread, *priors, free_bits)
            assert_twins(interpreted, "normal_kl", *arguments, True, parametrization)
            assert_twins(interpreted, "normal_kl", *arguments, False, parametrization, scale=16.0)
            assert_twins(interpreted, "normal_kl_backward", grad, *arguments, 15, parametrization, scale=8.0)
        assert_twins(
            interpreted, "normal_kl_backward", rows, mean, spread, *priors, None, 2, parametrization, scale=8.0
        )
    assert_twins(interpreted, "normal_nll", mean, spread, prior_mean, True, parametrization)
    assert_twins(interpreted, "normal_nll", mean, spread, prior_mean, False, parametrization, scale=16.0)
    assert_twins(interpreted, "normal_nll_backward", grad, mean, spread, prior_mean, 7, parametrization, scale=8.0)
    assert_twins(interpreted, "normal_nll_backward", rows, mean, spread, prior_mean, 5, parametrization, scale=8.0)


@pytest.mark.parametrize(("size", "dtype"), SHAPES)
def test_bernoulli_terms(interpreted, size, dtype):
    logits, prior = (3 * x for x in example(size, dtype))
    grad = example(size, dtype, seed=2)[0]
    rows = torch.linspace(0.5, 1.5, size[0] if len(size) > 1 else 1)
    assert_twins(interpreted, "bernoulli_kl", logits, prior, True)
    assert_twins(interpreted, "bernoulli_kl", logits, prior, False, scale=16.0)
    assert_twins(interpreted, "bernoulli_nll", logits, prior.sigmoid(), True)
    for g, wanted in ((grad, 3), (rows, 1), (rows, 2)):
        assert_twins(interpreted, "bernoulli_kl_backward", g, logits, prior, wanted)
        assert_twins(interpreted, "bernoulli_nll_backward", g, logits, prior.sigmoid(), wanted)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        ((7,), torch.float32),
        ((3, 5), torch.bfloat16),
        ((2, 3, 7), torch.float64),
        ((2, 2, 64), torch.float16),
        ((2, 2, 1301), torch.float32),
        ((300, 3), torch.float32),
    ],
)
def test_categorical_terms(interpreted, size, dtype):
    logits, prior = (3 * x for x in example(size, dtype))
    logits[..., 1] = -math.inf
    target = torch.arange(math.prod(size[:-1])).view(size[:-1]) % (size[-1] - 2) + 2
    rows = torch.linspace(0.5, 1.5, size[0] if len(size) > 1 else 1)
    for index in (target, target.to(torch.uint8)) if size[-1] <= 256 else (target,):
        assert_twins(interpreted, "categorical_nll", logits, index, True, scale=16.0)
        log_sum_exp = interpreted.categorical_nll(logits, index, True)[1]
        assert_twins(interpreted, "categorical_nll_backward", rows, logits, index, log_sum_exp)
    assert_twins(interpreted, "categorical_kl", logits, prior, scale=16.0)
    for wanted in (1, 2, 3):
        assert_twins(interpreted, "categorical_kl_backward", rows, logits, prior, wanted)
    permuted = logits.transpose(0, -1).contiguous().transpose(0, -1)
    assert torch.equal(interpreted.categorical_kl(permuted, prior), interpreted.categorical_kl(logits, prior))


def test_categorical_nll_of_no_category_is_nan(interpreted):
    logits, target = torch.zeros(3, 2, 5), torch.tensor([[0, 4], [5, 1], [2, -1]])
    nll, log_sum_exp = interpreted.categorical_nll(logits, target, True)
    assert nll.isnan().tolist() == [False, True, True]
    gradient = interpreted.categorical_nll_backward(torch.ones(3), logits, target, log_sum_exp)
    assert gradient.isnan().all(-1).tolist() == [[False, False], [True, False], [False, True]]
    logits[0, 0, :4] = -math.inf
    masked = interpreted.categorical_nll(logits, target.clamp(0, 4), False)[0]
    assert masked[0] == math.inf and masked[1:].isfinite().all()


def test_terms_of_extreme_inputs(interpreted):
    inf = math.inf
    x, v = torch.full((2, 3), 0.7), torch.full((2, 3), -400.0)
    assert interpreted.normal_kl(x, v, x, v, None).tolist() == [0.0, 0.0]
    logits = torch.tensor([[inf], [-inf], [inf], [0.0]])
    prior = torch.tensor([[inf], [-inf], [-inf], [inf]])
    assert interpreted.bernoulli_kl(logits, prior).tolist() == [0.0, 0.0, inf, inf]


def test_bernoulli_nll_of_extreme_logits(interpreted):
    logits = torch.tensor([[math.inf], [-math.inf], [math.inf], [math.nan], [120.0], [-120.0]])
    target = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0], [1.0]])
    nll = interpreted.bernoulli_nll(logits, target)
    assert nll[:3].tolist() == [0.0, 0.0, math.inf] and nll[3].isnan()
    assert nll[4] < 1e-38 and nll[5] == 120.0


# Discretised logistics, against the compiled library: the same formulas, up to rounding.


def logistic_example(size, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean, log_scale = 0.5 * torch.randn(2, *size, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 256, size, generator=generator).to(torch.uint8)
    return mean.to(dtype), (log_scale - 2).to(dtype), target


def mixture_example(size, channels=3, mixtures=3, dtype=torch.float32, bits=8, channels_last=False):
    """Parameters and targets; size is [batch, height, width]."""
    generator = torch.Generator().manual_seed(1)
    count = mixtures * (10 if channels == 3 else 3)
    params = 0.7 * torch.randn(size[0], count, *size[1:], generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(0, 2**bits, (size[0], channels, *size[1:]), generator=generator).to(torch.uint8)
    if channels_last:
        return params.permute(0, 2, 3, 1).contiguous(), target.permute(0, 2, 3, 1).contiguous()
    return params, target


def bounds(dtype):
    """Relative errors of sums and of gradients: a float32 sum of thousands of terms; ROUNDING of the dtype."""
    return (1e-13, 1e-12) if dtype == torch.float64 else (1e-6, 8 * ROUNDING[dtype])


@pytest.mark.parametrize("edges", [0, 1])
@pytest.mark.parametrize(("size", "dtype"), [((7,), FLOATS[0]), ((3, 33), FLOATS[1]), ((2, 5000), FLOATS[2])])
def test_discretized_logistic_nll(interpreted, size, dtype, edges):
    pytest.importorskip("variate")
    mean, log_scale, target = logistic_example(size, dtype)
    value, gradient = bounds(dtype)
    for x in (target, (target.double() / 127.5 - 1).to(dtype)):
        nll = interpreted.discretized_logistic_nll(mean, log_scale, x, 8, edges)
        expected = torch.ops.variate.discretized_logistic_nll(mean, log_scale, x, 8, edges)
        torch.testing.assert_close(nll, expected, rtol=value, atol=0)
        g = torch.linspace(0.5, 1.5, nll.numel()).to(nll.dtype)
        actual = interpreted.discretized_logistic_nll_backward(g, mean, log_scale, x, 8, edges)
        wanted = torch.ops.variate.discretized_logistic_nll_backward(g, mean, log_scale, x, 8, edges)
        for a, e in zip(actual, wanted, strict=True):
            assert a.dtype == e.dtype and (a.double() - e.double()).abs().max() <= gradient * e.abs().max()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("size", "channels", "mixtures", "bits", "dtype"),
    [
        ((2, 11, 13), 3, 3, 8, torch.float32),
        ((1, 3, 5), 1, 4, 8, torch.float64),
        ((2, 16, 16), 3, 1, 5, torch.float32),
        ((3, 1, 7), 3, 2, 8, torch.bfloat16),
        ((3, 1, 7), 1, 2, 3, torch.float16),
    ],
)
def test_discretized_logistic_mixture(interpreted, size, channels, mixtures, bits, dtype, channels_last):
    pytest.importorskip("variate")
    params, target = mixture_example(size, channels, mixtures, dtype, bits, channels_last)
    ops = torch.ops.variate
    value, gradient = bounds(dtype)
    for edges in (0, 1):
        args = (params, target, mixtures, bits, edges, channels_last)
        nll = interpreted.discretized_logistic_mixture_nll(*args)
        torch.testing.assert_close(nll, ops.discretized_logistic_mixture_nll(*args), rtol=value, atol=0)
        g = torch.linspace(0.5, 1.5, nll.numel()).to(nll.dtype)
        actual = interpreted.discretized_logistic_mixture_nll_backward(g, *args)
        expected = ops.discretized_logistic_mixture_nll_backward(g, *args)
        assert actual.dtype == dtype and actual.stride() == expected.stride()
        assert (actual.double() - expected.double()).abs().max() <= gradient * expected.abs().max()
    for key in (tensor_of(KEY), tensor_of([KEY, (1, 2), (3, 4)][: size[0]])):
        first = 0 if key.dim() > 1 else 5
        args = (params, mixtures, bits, channels_last, key, first)
        levels = interpreted.discretized_logistic_mixture_sample(*args)
        # A level differs only where the interpreter's rounding of an fma crosses a boundary, which none does here.
        assert torch.equal(levels, ops.discretized_logistic_mixture_sample(*args))


def test_discretized_logistic_mixture_reads_strides_and_keeps_formats(interpreted):
    params, target = mixture_example((2, 4, 6))
    g = torch.ones(2)
    expected = interpreted.discretized_logistic_mixture_nll_backward(g, params, target, 3, 8, 0, False)
    last = params.contiguous(memory_format=torch.channels_last)
    transposed = params.transpose(2, 3).contiguous().transpose(2, 3)
    for x in (last, transposed, torch.stack([params, params], -1)[..., 0]):
        actual = interpreted.discretized_logistic_mixture_nll_backward(g, x, target, 3, 8, 0, False)
        assert torch.equal(actual, expected)
        assert actual.is_contiguous(memory_format=torch.channels_last) == (x is last)


def test_discretized_logistic_mixture_of_extreme_parameters(interpreted):
    params, target = mixture_example((4, 1, 3))
    params[0, 0] = -math.inf
    params[1, :, 0, 1] = math.nan
    params[2, 4, 0, 0] = math.nan
    nll = interpreted.discretized_logistic_mixture_nll(params, target, 3, 8, 0, False)
    assert nll.isfinite().tolist() == [True, False, False, True]
    gradient = interpreted.discretized_logistic_mixture_nll_backward(torch.ones(4), params, target, 3, 8, 0, False)
    assert gradient.isnan().any(1)[:, 0].nonzero().tolist() == [[1, 1], [2, 0]]
    levels = interpreted.discretized_logistic_mixture_sample(params, 3, 8, False, tensor_of(KEY), 0)
    assert levels[1, :, 0, 1].tolist() == [0, 0, 0]


def linear_example(likelihood, rows, units, variables, dtype=torch.float32, target_dtype=None):
    generator = torch.Generator().manual_seed(0)
    ways = 1 if likelihood == "bernoulli" else 5
    hidden, weight, bias = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        for size in ((*rows, units), (variables * ways, units), (variables * ways,))
    )
    target = torch.randint(0, 2 if likelihood == "bernoulli" else ways, (*rows[-1:], variables), generator=generator)
    return hidden, weight, bias, target.to(target_dtype or (dtype if likelihood == "bernoulli" else torch.int64))


def expected_linear_nll(likelihood, hidden, weight, bias, target):
    logits = hidden @ weight.t() + bias
    if likelihood == "bernoulli":
        terms = torch.nn.functional.softplus(logits) - logits * target
    else:
        logits = logits.unflatten(-1, (target.shape[-1], -1))
        index = target.long().expand(logits.shape[:-1])[..., None]
        terms = logits.logsumexp(-1) - logits.gather(-1, index)[..., 0]
    return terms.sum(-1)


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
@pytest.mark.parametrize(
    ("rows", "units", "variables", "dtype", "target_dtype"),
    [
        ((5,), 3, 7, torch.float32, None),
        ((2, 3), 5, 1100, torch.float32, torch.uint8),
        ((2, 3), 4, 9, torch.float64, None),
        ((2, 3), 4, 9, torch.bfloat16, torch.uint8),
        ((6,), 4, 9, torch.float16, torch.uint8),
    ],
)
def test_linear_nll(interpreted, likelihood, rows, units, variables, dtype, target_dtype):
    layer = linear_example(likelihood, rows, units, variables, dtype, target_dtype)
    leaves = [x.double().requires_grad_() for x in layer[:3]]
    exact = expected_linear_nll(likelihood, *leaves, layer[3].double())
    nll, *unit = getattr(interpreted, f"linear_{likelihood}_nll")(*layer, True, True, True)
    double = dtype == torch.float64
    assert nll.dtype == (torch.float64 if double else torch.float32) and nll.shape == exact.shape
    precision = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 4e-3}[dtype]

    def near(actual, expected):  # roundings of sums of products, by the largest element
        assert float((actual.double() - expected).abs().max()) <= precision * float(expected.abs().max())

    near(nll, exact)
    weights = torch.linspace(0.5, 2.0, nll.numel(), dtype=nll.dtype).view(nll.shape)
    uniform = torch.tensor(0.5, dtype=nll.dtype).expand(nll.shape)
    for upstream in (torch.ones_like(nll)[..., :1].expand(nll.shape) if nll.dim() == 1 else uniform, uniform, weights):
        expected = torch.autograd.grad(exact, leaves, upstream.double(), retain_graph=True)
        for made in (True, False):
            start = unit if made else [torch.full_like(x, math.nan) for x in unit]
            name = f"linear_{likelihood}_nll_backward"
            gradients = interpreted.filled(name, upstream, *layer, *start, made)[5:8]
            for gradient, value, like in zip(gradients, expected, layer[:3], strict=True):
                assert gradient.dtype == like.dtype and gradient.shape == like.shape
                near(gradient, value)
    plain, *nothing = getattr(interpreted, f"linear_{likelihood}_nll")(*layer, False, False, False)
    assert torch.equal(plain, nll) and all(x.numel() == 0 for x in nothing)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("chunk", [(2**24, 2**14, 256), (30, 8, 4), (1, 1, 1), (100, 5, 1)])
def test_linear_nll_is_the_same_by_any_chunks(monkeypatch, dtype, chunk):
    """What surrounds the kernels, with an epilogue by torch in their place."""
    module = sys.modules[f"{load_kernels().__name__}.linear"]
    for name, value in zip(("CHUNK", "CHUNK_COLS", "LEAST_ROWS"), chunk, strict=True):
        monkeypatch.setattr(module, name, value)

    def epilogue(products, bias, target, ways, first_sample, nll, gradient):
        logits = products.double() + bias
        x = target[(first_sample + torch.arange(len(products))) % len(target)].double()
        nll.copy_((torch.nn.functional.softplus(logits) - logits * x).sum(1))
        if gradient:
            products.copy_(logits.sigmoid() - x)

    layer = linear_example("bernoulli", (3, 7), 4, 21, dtype)
    leaves = [x.double().requires_grad_() for x in layer[:3]]
    exact = expected_linear_nll("bernoulli", *leaves, layer[3].double())
    nll, *unit = module._forward(epilogue, *layer, True, True, True)
    precision = 1e-13 if dtype == torch.float64 else 0.02
    torch.testing.assert_close(nll.double(), exact.detach(), rtol=precision, atol=0)
    for upstream in (torch.tensor(0.5).expand(3, 7), torch.linspace(0.5, 2.0, 21).view(3, 7)):
        expected = torch.autograd.grad(exact, leaves, upstream.double(), retain_graph=True)
        for made in (True, False):
            gradients = [x.clone() if made else torch.full_like(x, math.nan) for x in unit]
            module._backward(epilogue, upstream, *layer, *gradients, made)
            for gradient, value in zip(gradients, expected, strict=True):
                assert (gradient.double() - value).abs().max() <= precision * value.abs().max()


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
@pytest.mark.parametrize("sizes", [((0,), 3, 4), ((2, 0), 3, 4), ((3,), 0, 4), ((3,), 4, 0)])
def test_linear_nll_of_nothing(interpreted, likelihood, sizes):
    layer = linear_example(likelihood, *sizes)
    nll, *unit = getattr(interpreted, f"linear_{likelihood}_nll")(*layer, True, True, True)
    if sizes[1]:
        assert torch.equal(nll, torch.zeros(sizes[0]))
    for gradient, like in zip(unit, layer, strict=False):
        assert gradient.shape == like.shape and (gradient.isfinite().all() or not gradient.numel())


def test_linear_categorical_nll_of_many_ways_and_targets_outside(interpreted):
    hidden, weight = torch.ones(3, 2), torch.zeros(2 * 1500, 2)
    target = torch.tensor([[0, 1499], [7, 1500], [-1, 3]])
    nll, grad_hidden, *_ = interpreted.linear_categorical_nll(hidden, weight, None, target, True, False, False)
    assert nll[0].item() == pytest.approx(2 * math.log(1500), rel=1e-6)
    assert nll.isnan().tolist() == [False, True, True] and grad_hidden.isnan().all(1).tolist() == [False, True, True]


@pytest.mark.parametrize("size", [(0,), (0, 4), (3, 0)])
def test_empty_inputs(interpreted, size):
    x = torch.zeros(size)
    rows = size[0] if len(size) > 1 else 1
    key = tensor_of(KEY)
    assert interpreted.normal(x, key, 0).shape == size
    assert interpreted.bernoulli(x, x, key, 0).shape == size
    z, kl = interpreted.normal_rsample_kl(x, x, None, None, None, key, 0)
    assert z.shape == size and torch.equal(kl, torch.zeros(rows))
    gradients = interpreted.normal_rsample_kl_backward(x, kl, x, x, None, None, None, key, 0, True)
    assert [g.shape for g in gradients] == [size, size, (0,), (0,)]
    assert torch.equal(interpreted.bernoulli_nll(x, x), torch.zeros(rows))
    assert interpreted.bernoulli_nll_backward(kl, x, x, 3)[1].shape == size
    assert torch.equal(interpreted.discretized_logistic_nll(x, x, x, 8, 0), torch.zeros(rows))
    assert interpreted.discretized_logistic_nll_backward(kl, x, x, x, 8, 0)[1].shape == size
    image, target = mixture_example((rows, 0, 3))
    assert torch.equal(interpreted.discretized_logistic_mixture_nll(image, target, 3, 8, 0, False), torch.zeros(rows))
    sample = interpreted.discretized_logistic_mixture_sample(image, 3, 8, False, key, 0)
    assert sample.shape == target.shape and sample.dtype == torch.uint8


# Bounds of several samples.


def expected_bound(log_weight):
    """Bound, weights, effective sample size and learning signals, in float64."""
    x = log_weight.double()
    total, samples = torch.logsumexp(x, 0), len(x)
    weight = torch.exp(x - total)
    signal = []
    for k in range(samples):
        others = torch.cat([x[:k], x[k + 1 :]])
        signal.append(total - torch.logsumexp(torch.cat([others, others.mean(0, keepdim=True)]), 0))
    return total - math.log(samples), weight, 1 / weight.square().sum(0), torch.stack(signal)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("samples", "data"), [(2, 3), (50, 37), (1030, 2)])
def test_importance_weighted_bound(interpreted, dtype, samples, data):
    log_weight = (8.0 * example((samples, data))[0].double() - 50.0).to(dtype)
    log_weight[1, 0] = log_weight[:, 0].max()  # a tie
    actual = interpreted.importance_weighted_bound(log_weight, True)
    precision = 1e-12 if dtype == torch.float64 else 2e-6
    # A sum of samples log weights of 50 is rounded before the mean of the others is taken.
    for name, a, e in zip(("bound", "weight", "size", "signal"), actual, expected_bound(log_weight), strict=True):
        assert a.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.allclose(a.double(), e, rtol=10 * precision, atol=50 * precision), name
    strided = log_weight.t().contiguous().t()
    for leave_one_out in (True, False):
        again = interpreted.importance_weighted_bound(strided, leave_one_out)
        assert all(torch.equal(x, y) for x, y in zip(again[:3], actual[:3], strict=True))
    assert again[3].numel() == 0
    alone = interpreted.importance_weighted_bound(log_weight[:, 1:2], True)
    assert all(torch.equal(x, y[..., 1:2]) for x, y in zip(alone, actual, strict=True))


def test_importance_weighted_bound_of_zeros_infinities_and_nan(interpreted):
    pytest.importorskip("variate")
    inf = math.inf
    log_weight = torch.tensor(
        [[-inf, 0.0, -inf, inf, 0.0], [-inf, -inf, 0.0, 1.0, math.nan], [-inf, -inf, 0.0, 2.0, 1.0]]
    )
    actual = interpreted.importance_weighted_bound(log_weight, True)
    expected = torch.ops.variate.importance_weighted_bound(log_weight, True)
    for a, e in zip(actual, expected, strict=True):
        assert torch.allclose(a, e, equal_nan=True)
    single = interpreted.importance_weighted_bound(log_weight[:1], False)
    assert torch.equal(single[0], log_weight[0])
    assert interpreted.importance_weighted_bound(torch.zeros(3, 0), False)[1].shape == (3, 0)


# Lattices.


def lattice_example(shape, is_open, bonded, chains=3):
    """Packed spins, and numbers that leave some sites certain."""
    generator = torch.Generator().manual_seed(0)

    def spins(count):
        return (2 * torch.randint(0, 2, (count, *shape), generator=generator) - 1).to(torch.int8)

    bonds = torch.ops.variate.ising_pack(spins(2 * len(shape)), len(shape), True) if bonded else None
    beta = torch.tensor([0.3, 0.44, 60.0], dtype=torch.float64)[:chains]
    field = torch.tensor([0.1, -0.2, math.inf], dtype=torch.float64)[:chains]
    return spins(chains), bonds, (beta, torch.tensor(-0.9, dtype=torch.float64), field)


@pytest.mark.parametrize(
    ("shape", "is_open", "bonded"),
    [
        ((2, 2), False, False),
        ((4, 62), False, True),
        ((4, 64), False, False),
        ((2, 130), False, False),
        ((2, 4, 6), False, True),
        ((3, 3), True, True),
        ((2, 66), True, False),
        ((3, 127), True, True),
        ((2, 3, 5), True, False),
    ],
)
def test_ising(interpreted, shape, is_open, bonded):
    """Spins are integers: bits equal everywhere."""
    pytest.importorskip("variate")
    ops = torch.ops.variate
    spins, bonds, numbers = lattice_example(shape, is_open, bonded)
    packed = ops.ising_pack(spins, len(shape), is_open)
    assert torch.equal(interpreted.ising_pack(spins, len(shape), is_open), packed)
    assert torch.equal(interpreted.ising_unpack(packed, shape[-1]), spins)
    for key, first_sample in ((tensor_of(KEY), 2**32 - 3), (tensor_of([KEY, (1, 2), (3, -1)]), 0)):
        words, moments = packed.clone(), torch.full((3, 7), 0.5, dtype=torch.float64)
        before = (shape[-1], is_open, *numbers, bonds, 3, 2**32 - 2)
        after = (2, key, first_sample)
        filled = interpreted.filled("ising_gibbs", words, *before, moments, *after)
        ops.ising_gibbs(words, *before, moments, *after)
        assert torch.equal(filled[0], words) and torch.equal(filled[9], moments)
        assert not torch.equal(words, packed) or math.prod(shape) < 10
    for distance in (0, min(shape[-1] - 1, 3)):
        arguments = (words, shape[-1], is_open, bonds, distance)
        for actual, expected in zip(interpreted.ising_measure(*arguments), ops.ising_measure(*arguments), strict=True):
            assert torch.equal(actual, expected)


def test_ising_of_nothing(interpreted):
    pytest.importorskip("variate")
    spins, _, numbers = lattice_example((4, 6), False, False, chains=0)
    words = interpreted.ising_pack(spins, 2, False)
    assert words.shape == (0, 2, 4, 1) and interpreted.ising_unpack(words, 6).shape == (0, 4, 6)
    interpreted.ising_gibbs(words, 6, False, *numbers, None, 1, 0, None, 1, tensor_of(KEY), 0)
    sums, correlation = interpreted.ising_measure(words, 6, False, None, 2)
    assert sums.shape == (0, 2) and correlation.shape == (0, 2)


def potts_example(shape, q, field, chains=3):
    """States, and numbers of which some pull apart and some freeze."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(0, q, (chains, *shape), generator=generator, dtype=torch.uint8)
    beta = torch.tensor([0.7, -1.1, 30.0], dtype=torch.float64)[:chains]
    fields = None
    if field:
        fields = torch.randn(*((chains, q) if field > 1 else (q,)), generator=generator, dtype=torch.float64)
        fields[..., 1] = -math.inf
    return states, (beta.abs() if field else beta, torch.tensor(0.9, dtype=torch.float64), fields)


@pytest.mark.parametrize(
    ("shape", "is_open", "q", "field"),
    [
        ((2, 2), False, 2, 0),
        ((4, 30), False, 3, 0),
        ((6, 140), False, 5, 1),
        ((2, 4, 6), False, 4, 2),
        ((3, 3), True, 3, 1),
        ((3, 127), True, 5, 0),
        ((2, 3, 5), True, 3, 2),
    ],
)
def test_potts(interpreted, shape, is_open, q, field):
    """Weights are whole numbers: bits equal everywhere."""
    pytest.importorskip("variate")
    states, numbers = potts_example(shape, q, field)
    for key, first_sample in ((tensor_of(KEY), 2**32 - 3), (tensor_of([KEY, (1, 2), (3, -1)]), 0)):
        arguments = (q, is_open, *numbers, 2, 2**32 - 1, key, first_sample)
        expected = states.clone()
        torch.ops.variate.potts_gibbs(expected, *arguments)
        assert torch.equal(interpreted.potts_gibbs(states, *arguments), expected)
        assert not torch.equal(expected, states) or math.prod(shape) < 10
    pair = [(*arguments[:-4], 1, step, key, first_sample) for step in (2**32 - 1, 2**32)]
    assert torch.equal(interpreted.potts_gibbs(interpreted.potts_gibbs(states, *pair[0]), *pair[1]), expected)
    assert torch.equal(interpreted.potts_gibbs(states, *arguments[:-4], 0, 0, key, first_sample), states)


def test_potts_of_255_states(interpreted):
    """255 is what stands beyond an open boundary."""
    pytest.importorskip("variate")
    states, numbers = potts_example((2, 3), 255, 0, chains=1)
    arguments = (255, True, *numbers, 1, 0, tensor_of(KEY), 0)
    expected = states.clone()
    torch.ops.variate.potts_gibbs(expected, *arguments)
    assert torch.equal(interpreted.potts_gibbs(states, *arguments), expected)


def test_potts_of_nothing(interpreted):
    states, numbers = potts_example((4, 6), 3, 0, chains=0)
    assert interpreted.potts_gibbs(states, 3, False, *numbers, 1, 0, tensor_of(KEY), 0).shape == (0, 4, 6)


# Boltzmann machines.

BERNOULLI, GAUSSIAN, CATEGORICAL = 0, 1, 2


def machine(kind, chains, units, hidden_units, categories=0):
    """Chains, and a machine of which some units are certain."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(units, hidden_units, generator=generator) / math.sqrt(units + 1)
    biases = [torch.randn(n, generator=generator) for n in weight.shape]
    if kind != GAUSSIAN and units > 3:
        biases[0][1] = -math.inf
    if hidden_units > 3:
        biases[1][:2] = torch.tensor([math.inf, -math.inf])
    if kind == GAUSSIAN:
        visible = torch.randn(chains, units, generator=generator)
    else:
        size = (chains, units // categories) if categories else (chains, units)
        visible = torch.randint(0, categories or 2, size, generator=generator, dtype=torch.uint8)
    return visible, weight, *biases


def gibbs_arguments(kind, visible, weight, visible_bias, hidden_bias, *, beta=0.9, clamp=None, steps=2, first_step=0,
                    categories=0, probs=True, key=KEY, first_sample=0):  # fmt: skip
    """Those of variate::rbm_gibbs, with what it fills."""
    chains, (units, hidden_units) = len(visible), weight.shape
    return [
        visible.clone(), new(chains, hidden_units, dtype=torch.uint8), weight, visible_bias, hidden_bias,
        torch.as_tensor(beta, dtype=torch.float32), clamp, steps, first_step, kind, categories,
        new(chains, units) if probs and steps else None, new(chains, hidden_units) if probs else None,
        tensor_of(key), first_sample,
    ]  # fmt: skip


def same(actual, expected):
    """Equal in bits, or not there; NaN as -1."""
    if expected is None or actual is None:
        return actual is expected
    return torch.equal(actual.nan_to_num(-1.0), expected.nan_to_num(-1.0))


def filled_by(call, arguments):
    """visible, hidden and their probabilities after a call."""
    arguments = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    arguments = call(*arguments) or arguments
    return [arguments[i] for i in (0, 1, 11, 12)]


def interpreted_and_compiled(interpreted, kind, *args, **options):
    pytest.importorskip("variate")
    arguments = gibbs_arguments(kind, *args, **options)
    actual = filled_by(lambda *a: interpreted.filled("rbm_gibbs", *a), arguments)
    return actual, filled_by(torch.ops.variate.rbm_gibbs, arguments)


KEYS = [KEY, (1, 2), (3, -1), (2**64 - 1, 2**64 - 2)]


@pytest.mark.parametrize(
    ("chains", "units", "hidden_units", "options"),
    [
        (3, 70, 67, {"first_step": 2**32 - 2, "first_sample": 2**32 - 3}),
        (130, 5, 3, {"steps": 1}),
        (19, 40, 33, {"steps": 3}),
        (3, 300, 220, {"clamp": (torch.arange(900).view(3, 300) % 5 == 0).to(torch.uint8)}),  # a launch per half step
        (3, 9, 130, {"steps": 0, "first_step": 7}),
        (4, 9, 11, {"key": KEYS, "beta": [0.0, 1.0, 3.0, 40.0]}),
        (4, 9, 11, {"clamp": torch.tensor([1, 0, 1, 1, 0, 0, 0, 1, 1], dtype=torch.uint8), "probs": False}),
        (4, 9, 11, {"clamp": (torch.arange(72).view(9, 8)[:, ::2] % 3 == 0).t().to(torch.uint8)}),
        (4, 1, 1, {}),
        (4, 0, 5, {"steps": 1}),
        (4, 0, 5, {}),
        (4, 5, 0, {"steps": 1}),
        (4, 5, 0, {}),
    ],
)
def test_binary_machine(interpreted, chains, units, hidden_units, options):
    """Fields are integers: bits equal everywhere."""
    actual, expected = interpreted_and_compiled(
        interpreted, BERNOULLI, *machine(BERNOULLI, chains, units, hidden_units), **options
    )
    for a, e in zip(actual, expected, strict=True):
        assert same(a, e)


@pytest.mark.parametrize(("units", "hidden_units", "steps"), [(9, 70, 2), (300, 220, 2), (1, 9, 0)])
def test_machine_of_packed_states(interpreted, units, hidden_units, steps):
    visible, *machine_ = machine(BERNOULLI, 5, units, hidden_units)
    bits = torch.from_numpy(np.packbits(visible.numpy(), -1, "little"))
    arguments = gibbs_arguments(BERNOULLI, bits, *machine_, steps=steps)
    arguments[1] = new(5, (hidden_units + 7) // 8, dtype=torch.uint8)
    actual = filled_by(lambda *a: interpreted.filled("rbm_gibbs", *a), arguments)
    expected = filled_by(torch.ops.variate.rbm_gibbs, arguments)
    for a, e in zip(actual, expected, strict=True):
        assert same(a, e)


def test_machine_reads_strides_and_takes_what_is_not_0_as_1(interpreted):
    visible, weight, *biases = machine(BERNOULLI, 3, 12, 9)
    expected = interpreted_and_compiled(interpreted, BERNOULLI, visible, weight, *biases)[0]
    strided = [torch.stack([b, b], -1)[:, 0] for b in biases]
    actual = interpreted_and_compiled(interpreted, BERNOULLI, 255 * visible, weight.t().contiguous().t(), *strided)
    for pair in actual:
        assert all(torch.equal(a, e) for a, e in zip(pair, expected, strict=True))


def test_machine_of_extreme_weights(interpreted):
    """Scales at both ends, weights that roundings push over or under the bound on their sum, and none at all."""
    visible = torch.ones(2, 301, dtype=torch.uint8)
    almost_1 = 1.0 - 2.0**-24
    columns = [torch.full((301,), x) for x in (0.0, 1e38, -1e-38, 1e-44, 2.0**-100, 1.0)]
    for fraction in (0.49, 0.5, 0.51, 0.6):  # of 2^-31, beside a sum that is 128 of them below 1
        for count in (180, 210, 300):
            column = torch.zeros(301)
            column[0], column[1 : 1 + count] = almost_1, -fraction * 2.0**-31
            columns.append(column)
    columns.append(torch.linspace(-3e38, 3e38, 301))
    columns.append(torch.where(torch.arange(301) == 7, math.nan, torch.linspace(-1e-3, 1e-3, 301)))
    weight = torch.stack(columns, 1)
    biases = torch.linspace(-2.0, 2.0, 301), torch.linspace(-1.0, 1.0, len(columns))
    biases[1][1], biases[1][2] = 3e38, 1e-45
    actual, expected = interpreted_and_compiled(interpreted, BERNOULLI, visible, weight, *biases, beta=1e-3)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_machine_of_tiny_probabilities(interpreted):
    """Down to those that are 0 in float32, and to where 1 - p is."""
    bias = torch.cat([torch.linspace(-89.0, -84.0, 300), torch.linspace(-30.0, 30.0, 300)])
    parameters = torch.zeros(1, 600), torch.zeros(1), bias
    actual, expected = interpreted_and_compiled(
        interpreted, BERNOULLI, new(2, 1, dtype=torch.uint8), *parameters, beta=1.0
    )
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert bool((expected[3] == 0).any()) and bool(((expected[3] > 0) & (expected[3] < 2.0**-125)).any())


@pytest.mark.parametrize(
    ("units", "hidden_units", "categories", "options"),
    [
        (69, 67, 3, {"first_step": 2**32 - 2, "first_sample": 2**32 - 4}),
        (140, 9, 70, {"key": KEYS}),
        (256, 3, 256, {"beta": [0.0, 1.0, 3.0, 40.0]}),
        (300, 5, 10, {"clamp": torch.arange(30).to(torch.uint8) % 2}),
        (12, 5, 2, {"clamp": torch.arange(24).view(4, 6).to(torch.uint8) % 3, "probs": False}),
        (7, 5, 1, {}),
        (12, 5, 4, {"steps": 0}),
    ],
)
def test_categorical_machine(interpreted, units, hidden_units, categories, options):
    actual, expected = interpreted_and_compiled(
        interpreted, CATEGORICAL, *machine(CATEGORICAL, 4, units, hidden_units, categories), categories=categories,
        **options,
    )  # fmt: skip
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if i == 2 and e is not None:  # p(v): sums over the categories in another order
            torch.testing.assert_close(a, e, rtol=2e-6, atol=0, equal_nan=True)
        else:
            assert same(a, e)


@pytest.mark.parametrize(
    "options",
    [
        {"first_step": 2**32 - 2, "first_sample": 2**32 - 4},
        {"key": KEYS, "beta": [0.3, 1.0, 3.0, 40.0], "steps": 1},
        {"clamp": torch.arange(70).to(torch.uint8) % 2, "probs": False},
        {"steps": 0},
    ],
)
def test_gaussian_machine(interpreted, options):
    """The hidden layer's sums are float32. They may decide a draw otherwise where it is within their rounding: with
    these seeds none is. Everything else is the same sequence of operations."""
    actual, expected = interpreted_and_compiled(interpreted, GAUSSIAN, *machine(GAUSSIAN, 4, 70, 67), **options)
    for a, e in zip(actual[:3], expected[:3], strict=True):
        assert same(a, e)
    if expected[3] is not None:  # 70 terms below 4, times the slope of the sigmoid at beta 40
        assert bool(((actual[3] - expected[3]).abs() < 10 * 70 * 2.0**-23).all())


def test_steps_of_a_machine_split_over_calls(interpreted):
    visible, *parameters = machine(CATEGORICAL, 3, 21, 9, 3)
    options = {"categories": 3, "probs": False}
    whole = interpreted_and_compiled(interpreted, CATEGORICAL, visible, *parameters, **options, steps=3)[0]
    part = interpreted_and_compiled(interpreted, CATEGORICAL, visible, *parameters, **options, steps=1)[0]
    rest = interpreted_and_compiled(interpreted, CATEGORICAL, part[0], *parameters, **options, steps=2, first_step=1)[0]
    assert torch.equal(rest[0], whole[0]) and torch.equal(rest[1], whole[1])
    row = {**options, "steps": 3, "first_sample": 2}
    alone = interpreted_and_compiled(interpreted, CATEGORICAL, visible[2:], *parameters, **row)[0]
    assert torch.equal(alone[0], whole[0][2:]) and torch.equal(alone[1], whole[1][2:])


@pytest.mark.parametrize("kind", [BERNOULLI, GAUSSIAN, CATEGORICAL])
def test_machine_of_nothing(interpreted, kind):
    visible, *parameters = machine(kind, 0, 6, 5, 3 if kind == CATEGORICAL else 0)
    actual, _ = interpreted_and_compiled(
        interpreted, kind, visible, *parameters, categories=3 if kind == CATEGORICAL else 0
    )
    assert actual[0].shape == visible.shape and actual[1].shape == (0, 5)


# Compiled without a GPU.


def launches(dtype, rows, cols):
    """Name -> a call of each kernel on contiguous [rows, cols]."""
    kernels = load_kernels()
    key = torch.tensor([1, 2])
    x = torch.zeros(rows, cols, dtype=dtype)
    row = torch.zeros(rows, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    free_bits = torch.zeros(())
    integers = torch.zeros(rows, dtype=torch.int64)
    hidden, weight = torch.zeros(rows, 8, dtype=dtype), torch.zeros(cols, 8, dtype=dtype)
    layer = (hidden, weight, x[0])
    return {
        "uniform": lambda: kernels.uniform(x, key, 0),
        "normal": lambda: kernels.normal(x, key, 0),
        "exponential": lambda: kernels.exponential(x, key, 0),
        "gumbel": lambda: kernels.gumbel(x, key, 0),
        "bernoulli": lambda: kernels.bernoulli(x, x, key, 0),
        "normal_rsample": lambda: kernels.normal_rsample(x, x, key, 0),
        "normal_rsample_kl": lambda: kernels.normal_rsample_kl(x, x, None, None, None, key, 0),
        "learned_prior": lambda: kernels.normal_rsample_kl(x, x, x, x, free_bits, key, 0),
        "backward": lambda: kernels.normal_rsample_kl_backward(x, row, x, x, None, None, None, key, 0, False),
        "learned_prior_backward": lambda: kernels.normal_rsample_kl_backward(
            x, row, x, x, x, x, free_bits, key, 0, True
        ),
        "normal_kl": lambda: kernels.normal_kl(x, x, x, x, free_bits),
        "normal_kl_backward": lambda: kernels.normal_kl_backward(row, x, x, x, x, free_bits, 15),
        "normal_kl, scales": lambda: kernels.normal_kl(x, x, x, x, free_bits, True, 2),
        "normal_kl_backward, scales": lambda: kernels.normal_kl_backward(x, x, x, x, x, free_bits, 15, 2),
        "normal_nll": lambda: kernels.normal_nll(x, x, x),
        "normal_nll_backward": lambda: kernels.normal_nll_backward(row, x, x, x, 7),
        "bernoulli_kl": lambda: kernels.bernoulli_kl(x, x),
        "bernoulli_kl_backward": lambda: kernels.bernoulli_kl_backward(row, x, x, 3),
        **{
            f"{base}_samples": lambda i=i: kernels.location_scale_rsample(x, x, key, 0, 5, i % 2 == 0, i, i % 3)
            for i, base in enumerate(BASES)
        },
        **{
            f"{base}_samples_backward": lambda i=i: kernels.location_scale_rsample_backward(
                x.expand(5, rows, cols).contiguous(), x, x, key, 0, 5, i % 2 == 0, i, i % 3
            )
            for i, base in enumerate(BASES)
        },
        "gumbel_softmax": lambda: kernels.gumbel_softmax(x, free_bits, key, 0, False),
        "gumbel_softmax_hard": lambda: kernels.gumbel_softmax(x, None, key, 0, True),
        "gumbel_softmax_backward": lambda: kernels.gumbel_softmax_backward(x, x, None, free_bits, None, 0),
        "gumbel_softmax_hard_backward": lambda: kernels.gumbel_softmax_backward(x, None, x, free_bits, key, 0),
        "relaxed_bernoulli_rsample": lambda: kernels.relaxed_bernoulli_rsample(x, free_bits, key, 0, False),
        "relaxed_bernoulli_backward": lambda: kernels.relaxed_bernoulli_rsample_backward(x, x, None, None, None, 0),
        "relaxed_bernoulli_hard_backward": lambda: kernels.relaxed_bernoulli_rsample_backward(
            x, None, x, free_bits, key, 0
        ),
        "bernoulli_straight_through": lambda: kernels.bernoulli_straight_through(x, key, 0),
        "bernoulli_nll": lambda: kernels.bernoulli_nll(x, x),
        "categorical_kl": lambda: kernels.categorical_kl(x, x),
        "categorical_kl_backward": lambda: kernels.categorical_kl_backward(row, x, x, 3),
        "categorical_nll": lambda: kernels.categorical_nll(x, integers, True),
        "categorical_nll_backward": lambda: kernels.categorical_nll_backward(row, x, integers, row),
        "bernoulli_nll_backward": lambda: kernels.bernoulli_nll_backward(row, x, x, 3),
        "categorical": lambda: kernels.categorical(x, key, 0),
        "linear_bernoulli_nll": lambda: kernels.linear_bernoulli_nll(*layer, x, False, True, True),
        "linear_categorical_nll": lambda: kernels.linear_categorical_nll(
            *layer, torch.zeros(rows, 20, dtype=torch.uint8), False, True, True
        ),
        "linear_categorical_nll_of_pairs": lambda: kernels.linear_categorical_nll(
            *layer, torch.zeros(rows, cols // 2, dtype=torch.int64), False, False, False
        ),
        "discretized_logistic_nll": lambda: kernels.discretized_logistic_nll(x, x, x, 8, 1),
        "discretized_logistic_nll_backward": lambda: kernels.discretized_logistic_nll_backward(row, x, x, x, 8, 1),
    }


# They write one number per row or group.
SUMS = (
    "normal_kl",
    "normal_nll",
    "bernoulli_kl",
    "bernoulli_nll",
    "categorical_kl",
    "categorical_nll",
    "discretized_logistic_nll",
)


def check_compiled(kernel, dtype):
    assert kernel.stack == 0 and kernel.local == 0, f"{kernel.name} spills"
    assert not kernel.contracts
    if dtype == torch.bfloat16:
        assert "cvt.rz." not in kernel.ptx and ("st.global.b16" not in kernel.ptx or "cvt.rn.bf16" in kernel.ptx)
    if dtype != torch.float64:
        for inexact in (".approx", "div.full", ".ftz"):
            assert inexact not in kernel.ptx, f"{kernel.name} uses {inexact}"


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_kernels_compile_without_spills(capability, dtype):
    for name, call in launches(dtype, 64, 5120).items():
        kernels = aot.compiled(capability, call)
        for kernel in kernels:
            check_compiled(kernel, dtype)
        if dtype == torch.float32 and name not in ("categorical", "linear_categorical_nll_of_pairs"):
            reads = name not in ("uniform", "normal", "exponential", "gumbel")
            assert 4 in kernels[0].vector_widths("ld" if reads else "st"), f"{name} loads or stores one by one"
            if name not in SUMS:
                assert 4 in kernels[0].vector_widths("st"), f"{name} stores one by one"


@pytest.mark.parametrize("capability", [80, 90])
def test_short_rows_integers_and_batched_keys_compile_without_spills(capability):
    kernels = load_kernels()
    keys = torch.zeros(64, 2, dtype=torch.int64)
    integers = torch.zeros(64, 32, dtype=torch.int64)
    x = torch.zeros(64, 32)
    calls = [
        *launches(torch.float32, 64, 20).values(),
        lambda: kernels.bits(integers, keys[0], 0),
        lambda: kernels.randint(integers, 0, 10, keys[0], 0),
        lambda: kernels.fold_in(keys, keys[:, 0].contiguous()),
        lambda: kernels.normal(torch.zeros(64, 32), keys, 0),
        lambda: kernels.bernoulli_nll(torch.zeros(64, 32), torch.zeros(64, 32, dtype=torch.bool)),
        lambda: kernels.categorical(torch.zeros(64, 3, 7), keys, 0),
        lambda: kernels.importance_weighted_bound(torch.zeros(50, 128), True),
        lambda: kernels.importance_weighted_bound(torch.zeros(1, 128), False),
        lambda: kernels.gumbel_softmax(torch.zeros(64, 3, 7), None, keys, 0, False),
        lambda: kernels.gumbel_softmax_backward(torch.zeros(64, 3, 700), None, torch.zeros(64, 3, 700), None, keys, 0),
        lambda: kernels.relaxed_bernoulli_rsample(x, None, keys, 0, True),
        lambda: kernels.location_scale_rsample(x, x, keys, 0, 40, False, 1, 2),
        lambda: kernels.location_scale_rsample_backward(x.expand(40, 64, 32), x, x, keys, 0, 40, True, 3, 1),
    ]
    for call in calls:
        for kernel in aot.compiled(capability, call):
            check_compiled(kernel, torch.float32)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "channels", "edges", "channels_last"),
    [
        (torch.float32, 3, 1, False),
        (torch.float32, 3, 0, True),
        (torch.bfloat16, 3, 1, True),
        (torch.float64, 3, 1, False),
        (torch.float32, 1, 1, False),
    ],
)
def test_mixture_kernels_compile_without_spills(capability, dtype, channels, edges, channels_last):
    kernels = load_kernels()
    params, target = mixture_example((2, 32, 32), channels, 10, dtype, channels_last=channels_last)
    args = (params, target, 10, 8, edges, channels_last)
    row = torch.zeros(2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for call in (
        lambda: kernels.discretized_logistic_mixture_nll(*args),
        lambda: kernels.discretized_logistic_mixture_nll_backward(row, *args),
        lambda: kernels.discretized_logistic_mixture_sample(params, 10, 8, channels_last, torch.tensor([1, 2]), 0),
    ):
        for kernel in aot.compiled(capability, call):
            check_compiled(kernel, dtype)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("shape", "is_open", "bonded"),
    [((256, 256), False, False), ((250, 250), True, True), ((64, 64, 64), False, True), ((5, 6, 7), True, False)],
)
def test_lattice_kernels_compile_without_spills(capability, shape, is_open, bonded):
    kernels = load_kernels()
    dimensions, width = len(shape), shape[-1]
    words = torch.zeros(8, 2, *shape[:-1], ((width + 1) // 2 + 31) // 32, dtype=torch.int32)
    bonds = words[: 2 * dimensions].contiguous() if bonded else None
    number = torch.zeros((), dtype=torch.float64)
    moments = torch.zeros(8, 7, dtype=torch.float64)
    key = torch.zeros((8, 2) if bonded else (2,), dtype=torch.int64)
    arguments = (width, is_open, number, number.expand(8), number, bonds, 1, 0, moments, 1, key, 0)
    for call in (
        lambda: kernels.ising_gibbs(words, *arguments),
        lambda: kernels.ising_measure(words, width, is_open, bonds, 2),
        lambda: kernels.ising_pack(torch.zeros(8, *shape, dtype=torch.int8), dimensions, is_open),
        lambda: kernels.ising_unpack(words, width),
    ):
        for kernel in aot.compiled(capability, call):
            check_compiled(kernel, torch.float64)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("shape", "is_open", "q", "field"),
    [((256, 256), False, 3, 0), ((250, 251), True, 10, 1), ((64, 64, 64), False, 3, 2), ((5, 6, 7), True, 255, 0)],
)
def test_potts_kernels_compile_without_spills(capability, shape, is_open, q, field):
    kernels = load_kernels()
    states, numbers = potts_example(shape, q, field)
    key = tensor_of([KEY] * 3 if field else KEY)
    for kernel in aot.compiled(capability, lambda: kernels.potts_gibbs(states, q, is_open, *numbers, 1, 0, key, 0)):
        check_compiled(kernel, torch.float64)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("kind", "units", "categories"),
    [(BERNOULLI, 790, 0), (BERNOULLI, 120, 0), (GAUSSIAN, 790, 0), (CATEGORICAL, 790, 10)],
)
@pytest.mark.parametrize("plain", [True, False])
def test_machine_kernels_compile_without_spills(capability, kind, units, categories, plain):
    kernels = load_kernels()
    visible, *parameters = machine(kind, 256, units, 500, categories)
    options = {"probs": False} if plain else {"clamp": torch.zeros_like(visible, dtype=torch.uint8), "key": KEYS * 64}
    arguments = gibbs_arguments(kind, visible, *parameters, categories=categories, steps=2, **options)
    for kernel in aot.compiled(capability, lambda: kernels.rbm_gibbs(*arguments)):
        check_compiled(kernel, torch.float32)
        if "half_step" in kernel.name and kind != GAUSSIAN:
            assert {80: "mma.sync", 90: "wgmma.mma_async"}[capability] in kernel.ptx


@triton.jit
def _multiply_add_kernel(x, out):
    i = tl.arange(0, 128)
    value = tl.load(x + i)
    tl.store(out + i, value * value + value)


def test_launch_keeps_products_and_sums_apart():
    kernels = load_kernels()
    x = torch.zeros(128)
    launch = sys.modules[f"{kernels.__name__}.tiles"].launch
    [kernel] = aot.compiled(90, lambda: launch(_multiply_add_kernel, 1, x, x, device=x.device))
    assert not kernel.contracts and "fma" not in kernel.ptx and "mul" in kernel.ptx


# Against the compiled library.


def draws_of(call, key):
    """Every draw, from `call(name, out, ...)`."""
    probs = torch.linspace(0.0, 1.0, 3 * 1001, device=key.device).view(3, 1001)
    integers = new(3, 1001, dtype=torch.int64).to(key.device)
    floats = new(3, 1001).to(key.device)
    return {
        "bits": call("bits", integers, key, 2),
        "uniform": call("uniform", floats, key, 2),
        "bernoulli": call("bernoulli", floats, probs, key, 2),
        "randint": call("randint", integers, -7, 2**31 + 5, key, 2),
        "normal": call("normal", floats, key, 2),
        "exponential": call("exponential", floats, key, 2),
        "gumbel": call("gumbel", floats, key, 2),
        "normal_rsample": call("normal_rsample", probs, -probs, key, 2),
        **{
            f"{base}_samples": call("location_scale_rsample", probs, -probs, key, 2, 3, True, i, i % 3)
            for i, base in enumerate(BASES)
        },
    }


def compiled_op(name, *args):
    """`variate::<name>`; a draw fills a copy of its first argument."""
    args = (args[0].clone(), *args[1:])
    result = getattr(torch.ops.variate, name)(*args)
    return args[0] if result is None else result


def same_bits(actual, expected):
    for name, value in actual.items():
        assert torch.equal(value.cpu(), expected[name]), name


def test_draws_equal_the_compiled_library_in_bits(interpreted):
    pytest.importorskip("variate")
    actual = draws_of(lambda name, *args: getattr(interpreted, name)(*args), tensor_of(KEY))
    expected = draws_of(compiled_op, tensor_of(KEY))
    if tuple(int(x) for x in triton.__version__.split(".")[:2]) < (3, 9):  # its interpreter rounds an fma twice
        inexact = ("normal", "exponential", "gumbel", "normal_rsample", *(f"{base}_samples" for base in BASES))
        for name in inexact:
            close(actual.pop(name), expected[name].double(), scale=3.0)
    same_bits(actual, expected)


def test_ops_have_the_schemas_of_their_twins():
    pytest.importorskip("variate")
    from variate import _triton

    for name, schema in _triton.SCHEMAS.items():
        twin = getattr(torch.ops.variate, name).default._schema
        assert str(torch._C.parse_schema(f"variate::{name}{schema}")) == str(twin)


def test_registered_ops_have_fakes_and_reach_the_kernels():
    pytest.importorskip("variate")
    from torch._subclasses import FakeTensorMode

    from variate import _triton
    from variate.functional import _backend

    ops = _backend._triton_ops or _triton.register(_backend.fakes, ())
    assert ops.keys() == _triton.SCHEMAS.keys()
    with FakeTensorMode():
        x = torch.empty(4, 5, device="cuda")
        z, kl = ops["normal_rsample_kl"](x, x, None, None, None, torch.empty(2, dtype=torch.int64, device="cuda"), 0)
    assert z.shape == (4, 5) and kl.shape == (4,)


@pytest.mark.gpu
def test_draws_on_the_gpu_equal_the_cpu_in_bits():
    pytest.importorskip("variate")
    kernels = load_kernels()

    def call(name, *args):
        result = getattr(kernels, name)(*args)
        return args[0].clone() if result is None else result

    same_bits(draws_of(call, tensor_of(KEY).cuda()), draws_of(compiled_op, tensor_of(KEY)))


@pytest.mark.gpu
@pytest.mark.parametrize("cols", [20, 784, 9000])
def test_kernels_on_the_gpu_agree_with_the_cpu(cols):
    pytest.importorskip("variate")
    kernels = load_kernels()
    mean, log_var = example((300, cols))
    target = log_var.sigmoid()
    args = (None, None, torch.tensor(0.1), tensor_of(KEY), 0)
    z, kl = torch.ops.variate.normal_rsample_kl(mean, log_var, *args)
    # Free bits stay on the host: they travel with the launch.
    on_gpu = (None, None, torch.tensor(0.1), tensor_of(KEY).cuda(), 0)
    z_gpu, kl_gpu = kernels.normal_rsample_kl(mean.cuda(), log_var.cuda(), *on_gpu)
    assert torch.equal(z_gpu.cpu(), z)
    assert torch.allclose(kl_gpu.cpu(), kl, rtol=2e-6)
    for rows in (1, 7):  # the bits of a row do not depend on the batch
        part = kernels.normal_rsample_kl(mean[:rows].cuda(), log_var[:rows].cuda(), *on_gpu)
        assert torch.equal(part[1], kl_gpu[:rows])
    expected = torch.ops.variate.normal_rsample_kl_backward(z, kl, mean, log_var, *args, False)
    actual = kernels.normal_rsample_kl_backward(z.cuda(), kl.cuda(), mean.cuda(), log_var.cuda(), *on_gpu, False)
    for a, e in zip(actual[:2], expected[:2], strict=True):
        assert torch.allclose(a.cpu(), e, rtol=2e-6, atol=1e-6 * float(e.abs().max()))
    nll = kernels.bernoulli_nll(mean.cuda(), target.cuda())
    assert torch.allclose(nll.cpu(), torch.ops.variate.bernoulli_nll(mean, target), rtol=2e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("bonded", [False, True])
@pytest.mark.parametrize(("shape", "is_open"), [((256, 256), False), ((250, 130), True), ((8, 6, 66), False)])
def test_ising_on_the_gpu_equals_the_cpu_in_bits(shape, is_open, bonded):
    pytest.importorskip("variate")
    kernels = load_kernels()
    spins, bonds, numbers = lattice_example(shape, is_open, bonded)
    words = torch.ops.variate.ising_pack(spins, len(shape), is_open)
    moments = torch.zeros(3, 7, dtype=torch.float64)
    key = tensor_of(KEY)
    on_gpu = kernels.ising_pack(spins.cuda(), len(shape), is_open)
    assert torch.equal(on_gpu.cpu(), words)
    bonds_on_gpu = None if bonds is None else bonds.cuda()
    numbers_on_gpu = [number.cuda() for number in numbers]
    moments_on_gpu = moments.cuda()
    how = (shape[-1], is_open)
    torch.ops.variate.ising_gibbs(words, *how, *numbers, bonds, 20, 7, moments, 5, key, 2)
    kernels.ising_gibbs(on_gpu, *how, *numbers_on_gpu, bonds_on_gpu, 20, 7, moments_on_gpu, 5, key.cuda(), 2)
    assert torch.equal(on_gpu.cpu(), words) and torch.equal(moments_on_gpu.cpu(), moments)
    expected = torch.ops.variate.ising_measure(words, *how, bonds, 40)
    actual = kernels.ising_measure(on_gpu, *how, bonds_on_gpu, 40)
    assert all(torch.equal(a.cpu(), e) for a, e in zip(actual, expected, strict=True))
    assert torch.equal(kernels.ising_unpack(on_gpu, shape[-1]).cpu(), torch.ops.variate.ising_unpack(words, shape[-1]))


@pytest.mark.gpu
@pytest.mark.parametrize("field", [0, 1, 2])
@pytest.mark.parametrize(("shape", "is_open"), [((256, 256), False), ((251, 130), True), ((8, 6, 66), False)])
def test_potts_on_the_gpu_equals_the_cpu_in_bits(shape, is_open, field):
    pytest.importorskip("variate")
    kernels = load_kernels()
    for q in (2, 3, 10, 255):
        states, numbers = potts_example(shape, q, field)
        on_gpu = states.cuda()
        numbers_on_gpu = [None if number is None else number.cuda() for number in numbers]
        torch.ops.variate.potts_gibbs(states, q, is_open, *numbers, 10, 7, tensor_of(KEY), 2)
        kernels.potts_gibbs(on_gpu, q, is_open, *numbers_on_gpu, 10, 7, tensor_of(KEY).cuda(), 2)
        assert torch.equal(on_gpu.cpu(), states)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "categories"), [(BERNOULLI, 0), (GAUSSIAN, 0), (CATEGORICAL, 10)])
@pytest.mark.parametrize("batched", [False, True])
def test_machines_on_the_gpu_equal_the_cpu(kind, categories, batched):
    """In bits; of Gaussian visibles one step from states that the float32 sums of the hidden layer decide alike."""
    pytest.importorskip("variate")
    kernels = load_kernels()
    for sizes in ((300, 790, 500), (1, 70, 33), (129, 250, 256)):
        visible, *parameters = machine(kind, *sizes, categories)
        options = {"categories": categories, "steps": 1 if kind == GAUSSIAN else 5, "first_step": 3}
        if batched:
            chains = sizes[0]
            clamp = (torch.arange(visible.numel()).view(visible.shape) % 3 == 0).to(torch.uint8)
            keys = [(i, 7 * i) for i in range(chains)]
            options |= {"clamp": clamp, "key": keys, "beta": torch.linspace(0.5, 2.0, chains)}
        arguments = gibbs_arguments(kind, visible, *parameters, **options)
        on_gpu = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
        actual = [a.cpu() for a in filled_by(kernels.rbm_gibbs, on_gpu)]
        expected = filled_by(torch.ops.variate.rbm_gibbs, arguments)
        if kind == GAUSSIAN:
            torch.testing.assert_close(actual[3], expected[3], rtol=0, atol=1e-4)
            agree = (actual[1] == expected[1]).all(1)  # a draw may be within rounding of its threshold
            assert agree.float().mean() > 0.9
            assert torch.equal(actual[0][agree], expected[0][agree])
        else:
            assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
            assert torch.equal(actual[3], expected[3])
            torch.testing.assert_close(actual[2], expected[2], rtol=2e-6 if kind == CATEGORICAL else 0, atol=0)
