"""Discretised logistic likelihoods, their mixtures, and the sampler of these."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from checklist import FLOATS, Arg, Checklist, OpCase, assert_same_bits
from torch import Tensor

import variate
from variate import reference
from variate.functional import (
    discretized_logistic_mixture_nll,
    discretized_logistic_mixture_sample,
    discretized_logistic_nll,
)

EDGES = ("exact", "compat")
BLOCKS = {1: 3, 3: 10}


def values(normals: Tensor, bits: int = 8) -> Tensor:
    """Levels of all sizes, the outermost among them, as values in [-1, 1]."""
    top = 2**bits - 1
    return 2 * ((2 * normals).sigmoid() * (top + 1)).floor().clamp(max=top) / top - 1


def image(channels: int) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """[B, n] and [B, h, n] as images of so many channels."""
    return lambda shape: (shape[0], channels, *([1] if len(shape) == 2 else []), *shape[1:])


def is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3)


def raw(tensors, key):
    mean, log_scale, target = tensors
    grad = torch.ones(mean.shape[0] if mean.dim() > 1 else 1, device=mean.device)
    ops = torch.ops.variate
    return [
        (ops.discretized_logistic_nll.default, (mean, log_scale, target, 8, 0)),
        (ops.discretized_logistic_nll_backward.default, (grad, mean, log_scale, target, 8, 1)),
    ]


def raw_mixture(mixtures: int, edges: int):
    def calls(tensors, key):
        params, target = tensors
        grad = torch.ones(params.shape[0], device=params.device)
        ops = torch.ops.variate
        return [
            (ops.discretized_logistic_mixture_nll.default, (params, target, mixtures, 8, edges, False)),
            (ops.discretized_logistic_mixture_nll_backward.default, (grad, params, target, mixtures, 8, edges, False)),
        ]

    return calls


def raw_sample(tensors, key):
    return [(torch.ops.variate.discretized_logistic_mixture_sample.default, (tensors[0], 2, 3, False, key, 3))]


# The reference's own error in float64, which the checklist takes for the truth. Exact: a rounding of arguments of some
# tens. Compat: a bin of 1e-5 is a difference of numbers near 1, off by 2^-53 / 1e-5, and its gradient by that over the
# scale, and then there is the sum over a sample.
TRUTH_ERROR = {"exact": 1e-13, "compat": 1e-8}


def case(edges: str) -> OpCase:
    return OpCase(
        "discretized_logistic_nll_" + edges,
        discretized_logistic_nll,
        reference.logistic.discretized_logistic_nll,
        (
            Arg("mean", lambda n: 0.5 * n),
            Arg("log_scale", lambda n: 0.7 * n - 2),
            Arg("target", values, differentiable=False),
        ),
        raw,
        {"edges": edges},
        absolute_error=TRUTH_ERROR[edges],
    )


def mixture_case(channels: int, mixtures: int, edges: str) -> OpCase:
    return OpCase(
        f"discretized_logistic_mixture_nll_{edges}_{channels}",
        discretized_logistic_mixture_nll,
        reference.logistic.discretized_logistic_mixture_nll,
        (
            Arg("params", lambda n: 0.7 * n - 0.3, shape=image(BLOCKS[channels] * mixtures)),
            Arg("target", values, differentiable=False, shape=image(channels)),
        ),
        raw_mixture(mixtures, EDGES.index(edges)),
        {"mixtures": mixtures, "edges": edges},
        absolute_error=TRUTH_ERROR[edges],
        accepts=is_image,
    )


CASES = (
    case("exact"),
    case("compat"),
    OpCase(
        "discretized_logistic_mixture_sample",
        discretized_logistic_mixture_sample,
        reference.logistic.discretized_logistic_mixture_sample,
        # Few bits: a level at whose edge the reference's float64 rounds another way is one in a million.
        (Arg("params", lambda n: 0.7 * n - 0.3, differentiable=False, shape=image(20)),),
        raw_sample,
        {"mixtures": 2, "bits": 3},
        stochastic=True,
        accepts=is_image,
    ),
    mixture_case(1, 3, "exact"),
    mixture_case(3, 2, "compat"),
    mixture_case(3, 2, "exact"),
)


class TestChecklist(Checklist):
    cases = CASES


def draw(shape: tuple[int, int, int], channels: int = 3, mixtures: int = 4, bits: int = 8, seed: int = 0):
    """Parameters [B, P, H, W] and uint8 targets [B, C, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = shape
    params = 0.7 * torch.randn(batch, BLOCKS[channels] * mixtures, height, width, generator=generator)
    target = torch.randint(0, 2**bits, (batch, channels, height, width), generator=generator)
    return params, target.to(torch.uint8)


# The probabilities of all levels sum to 1.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bits", range(1, 9))
def test_exact_probabilities_sum_to_1(bits: int, dtype: torch.dtype) -> None:
    """One level to a row. Neighbouring bins share an edge, whose sigmoid is taken twice from arguments that differ by
    rounding: in float32 x is off by up to 2^-25, the argument by that over the least scale, e^-7."""
    means = torch.tensor([-3.0, -1.0, -0.3, 0.0, 0.77, 1.0, 5.0], dtype=dtype)
    scales = torch.tensor([-30.0, -7.0, -5.5, -3.0, 0.0, 5.0, 20.0], dtype=dtype)
    grid = torch.cartesian_prod(means, scales)
    levels = torch.arange(2**bits, dtype=torch.uint8)
    mean, log_scale = grid[:, None, :].expand(-1, 2**bits, -1).reshape(-1, 2, 1).unbind(1)
    nll = discretized_logistic_nll(mean, log_scale, levels.repeat(len(grid))[:, None], bits=bits)
    total = torch.exp(-nll.double()).view(len(grid), -1).sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=5e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mixtures", [1, 3])
def test_exact_joint_probabilities_of_a_pixel_sum_to_1(mixtures: int, dtype: torch.dtype) -> None:
    """All 64 pixels of three colours of two bits, for several parameters."""
    pixels = torch.cartesian_prod(*[torch.arange(4, dtype=torch.uint8)] * 3)
    params = 2 * torch.randn(5, 10 * mixtures, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row in params.to(dtype):
        repeated = row.view(1, -1, 1, 1).expand(64, -1, 1, 1)
        nll = discretized_logistic_mixture_nll(repeated, pixels.view(64, 3, 1, 1), mixtures=mixtures, bits=2)
        assert torch.exp(-nll.double()).sum().item() == pytest.approx(1, abs=1e-6 if dtype == torch.float32 else 1e-13)


# Values.


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def compat_log_prob(level: int, mean: float, log_scale: float, bits: int = 8) -> float:
    """The published formula, in float64, one number at a time."""
    top = 2**bits - 1
    x = 2 * level / top - 1
    log_scale = max(log_scale, -7.0)
    precision = math.exp(-log_scale)
    upper, lower = (x - mean + 1 / top) * precision, (x - mean - 1 / top) * precision
    if x < -0.999:
        return -math.log1p(math.exp(-upper)) if upper > -700 else upper
    if x > 0.999:
        return -math.log1p(math.exp(lower)) if lower < 700 else -lower
    mass = sigmoid(upper) - sigmoid(lower)
    if mass > 1e-5:
        return math.log(mass)
    middle = (x - mean) * precision
    softplus = max(middle, 0) + math.log1p(math.exp(-abs(middle)))
    return middle - log_scale - 2 * softplus - math.log(top / 2)


def test_compat_is_the_published_formula() -> None:
    """In float64, over both sides of each branch: outermost bins, the least log scale, bins of 1e-5."""
    levels, log_scales = (0, 1, 2, 77, 254, 255), (-9.0, -7.0, -6.9, -3.0, 0.5)
    # Around the distance at which a bin of scale e^-3 holds 1e-5.
    edge = math.exp(-3) * math.log(2 / 255 * math.exp(3) / 1e-5)
    means = (-1.0, -0.996, 0.0, 0.3, 1.2, *(77 / 127.5 - 1 + edge * k for k in (0.99, 0.999, 1.001, 1.01)))
    rows = list(itertools.product(levels, means, log_scales))
    level, mean, log_scale = (torch.tensor(column, dtype=torch.float64)[:, None] for column in zip(*rows, strict=True))
    nll = discretized_logistic_nll(mean, log_scale, level.to(torch.uint8), edges="compat")
    expected = torch.tensor([-compat_log_prob(*row) for row in rows], dtype=torch.float64)
    thin = [e for row, e in zip(rows, expected, strict=True) if 0 < row[0] < 255 and e > -math.log(1e-5)]
    assert 20 < len(thin) < len(rows) - 20  # both formulas were at work
    torch.testing.assert_close(nll, expected, rtol=1e-9, atol=1e-9)
    in_float32 = discretized_logistic_nll(mean.float(), log_scale.float(), level.to(torch.uint8), edges="compat")
    # x - mean cancels to 2^-24, times the precision e^7.
    torch.testing.assert_close(in_float32.double(), expected, rtol=1e-4, atol=1e-4)


def test_compat_of_wide_bins_is_that_of_the_mixture() -> None:
    params, target = draw((2, 4, 5), channels=1, mixtures=3)
    logits, mean, log_scale = params.double().unflatten(1, (3, 3)).unbind(1)
    nll = discretized_logistic_mixture_nll(params.double(), target, mixtures=3, edges="compat")
    for b in range(2):
        total = 0.0
        for i, j in itertools.product(range(4), range(5)):
            log_prob = [
                compat_log_prob(int(target[b, 0, i, j]), float(mean[b, m, i, j]), float(log_scale[b, m, i, j]))
                for m in range(3)
            ]
            total -= float(
                torch.logsumexp(logits[b, :, i, j].log_softmax(0) + torch.tensor(log_prob, dtype=torch.float64), 0)
            )
        assert nll[b].item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("bits", [1, 5, 8])
def test_one_component_is_the_logistic_itself(edges: str, bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_scale = torch.randn(2, 4, 3, 5, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 2**bits, (4, 3, 5, 7), generator=generator).to(torch.uint8)
    blocks = torch.stack([mean, log_scale, torch.zeros_like(mean)], 2)  # three colours that do not move each other
    params = torch.cat([torch.randn(4, 1, 5, 7, generator=generator), blocks.flatten(1, 2)], 1)
    nll = discretized_logistic_mixture_nll(params, target, mixtures=1, bits=bits, edges=edges)
    expected = discretized_logistic_nll(mean, log_scale, target, bits=bits, edges=edges)
    torch.testing.assert_close(nll, expected, rtol=1e-13, atol=0)
    grey = torch.stack([params[:, 0], mean[:, 0], log_scale[:, 0]], 1)
    nll = discretized_logistic_mixture_nll(grey, target[:, :1], mixtures=1, bits=bits, edges=edges)
    expected = discretized_logistic_nll(mean[:, 0], log_scale[:, 0], target[:, 0], bits=bits, edges=edges)
    torch.testing.assert_close(nll, expected, rtol=1e-13, atol=0)


def test_each_colour_depends_on_those_before_it() -> None:
    """-log p(r, g, b) of one component, written out."""
    params = torch.randn(10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    _, mean_r, scale_r, raw_0, mean_g, scale_g, raw_1, mean_b, scale_b, raw_2 = params.tolist()
    pixel = (20, 200, 255)
    r, g, _ = (level / 127.5 - 1 for level in pixel)
    green, blue = mean_g + math.tanh(raw_0) * r, mean_b + math.tanh(raw_1) * r + math.tanh(raw_2) * g
    means = torch.tensor([mean_r, green, blue], dtype=torch.float64)
    scales = torch.tensor([scale_r, scale_g, scale_b], dtype=torch.float64)
    target = torch.tensor(pixel, dtype=torch.uint8)
    nll = discretized_logistic_mixture_nll(params.view(1, 10, 1, 1), target.view(1, 3, 1, 1), mixtures=1)
    torch.testing.assert_close(nll, discretized_logistic_nll(means, scales, target), rtol=1e-13, atol=0)


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("log_scale", [-7.5, -7.0, -6.5, -1.0, 3.0, 40.0])
def test_extremes_are_finite(log_scale: float, edges: str) -> None:
    """Far tails and narrow scales: the density there is exp(-|x - mean| / scale), and so is its gradient."""
    mean = torch.linspace(-30, 30, 61)[:, None].repeat(1, 3).requires_grad_()
    scale = torch.full_like(mean, log_scale).requires_grad_()
    target = torch.tensor([0, 100, 255], dtype=torch.uint8).expand(61, 3)
    nll = discretized_logistic_nll(mean, scale, target, edges=edges)
    expected = [sum(-compat_log_prob(level, m, log_scale) for level in (0, 100, 255)) for m in range(-30, 31)]
    if edges == "compat" or log_scale > -1:  # elsewhere a thin bin's density at its middle is not its mass
        torch.testing.assert_close(nll.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-4)
    assert nll.isfinite().all() and (nll > 0).all()
    gradients = torch.autograd.grad(nll.sum(), (mean, scale))
    assert all(g.isfinite().all() for g in gradients)
    if log_scale < -7:
        assert (gradients[1] == 0).all()
    elif log_scale == -7:  # a tie keeps its gradient
        assert (gradients[1] != 0).any()


def test_infinite_parameters() -> None:
    """A component of logit -inf is not there; a component that is alone has all the weight."""
    params, target = draw((2, 3, 3), mixtures=2)
    params[:, 0] = -torch.inf
    one = params[:, [1, *range(3, 20, 2)]]
    params.requires_grad_()
    nll = discretized_logistic_mixture_nll(params, target, mixtures=2)
    torch.testing.assert_close(nll, discretized_logistic_mixture_nll(one, target, mixtures=1), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(nll.sum(), params)
    assert gradient.isfinite().all() and (gradient[:, 0::2] == 0).all()


def test_float_targets_are_those_of_their_levels() -> None:
    params, target = draw((3, 4, 5), bits=5)
    as_values = target.double() * 2 / 31 - 1
    for dtype in (torch.float32, torch.float64):
        wide = params.to(dtype)
        for edges in EDGES:
            a = discretized_logistic_mixture_nll(wide, target, mixtures=4, bits=5, edges=edges)
            b = discretized_logistic_mixture_nll(wide, as_values.to(dtype), mixtures=4, bits=5, edges=edges)
            torch.testing.assert_close(a, b, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0)


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("edges", EDGES)
def test_bits_against_the_reference(bits: int, edges: str) -> None:
    params, target = draw((3, 4, 5), bits=bits)
    params = params.double().requires_grad_()
    options = {"mixtures": 4, "bits": bits, "edges": edges}
    nll = discretized_logistic_mixture_nll(params, target, **options)
    expected = reference.logistic.discretized_logistic_mixture_nll(params, target, **options)
    torch.testing.assert_close(nll, expected, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(x.sum(), params)[0] for x in (nll, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)  # log(sigmoid - sigmoid) cancels in the reference


def test_log_scales_broadcast() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, shared = torch.randn(6, 3, 5, generator=generator), torch.randn(3, 1, generator=generator).requires_grad_()
    target = torch.randint(0, 256, (6, 3, 5), generator=generator).to(torch.uint8)
    nll = discretized_logistic_nll(mean, shared, target)
    expanded = shared.detach().expand(6, 3, 5).clone().requires_grad_()
    expected = discretized_logistic_nll(mean, expanded, target)
    assert_same_bits((nll,), (expected,))
    (gradient,), (parts,) = torch.autograd.grad(nll.sum(), shared), torch.autograd.grad(expected.sum(), expanded)
    torch.testing.assert_close(gradient, parts.sum((0, 2))[:, None])


# Layouts.


def nhwc(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_layouts_have_the_same_bits(dtype: torch.dtype, channels: int, edges: str) -> None:
    params, target = draw((3, 9, 11), channels)
    results = []
    for layout, p, t in (
        ("nchw", params, target),
        ("nchw", params.contiguous(memory_format=torch.channels_last), target),
        ("nchw", torch.stack([params, params], -1)[..., 0], torch.stack([target, target], -1)[..., 0]),
        ("nchw", params.transpose(2, 3).contiguous().transpose(2, 3), target),  # no common stride: copied
        ("nhwc", nhwc(params), nhwc(target)),
        ("nhwc", params.permute(0, 2, 3, 1), target.permute(0, 2, 3, 1)),
    ):
        leaf = p.to(dtype).requires_grad_()
        nll = discretized_logistic_mixture_nll(leaf, t, mixtures=4, layout=layout, edges=edges)
        (gradient,) = torch.autograd.grad(nll.sum(), leaf)
        sample = discretized_logistic_mixture_sample(leaf, mixtures=4, layout=layout, key=variate.random.key(1))
        first = layout == "nchw"
        results.append(
            (nll, gradient if first else gradient.movedim(-1, 1), sample if first else sample.movedim(-1, 1))
        )
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_gradients_keep_the_memory_format() -> None:
    params, target = draw((3, 9, 11))
    leaf = params.contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(discretized_logistic_mixture_nll(leaf, target, mixtures=4).sum(), leaf)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_opcheck_of_the_other_layout() -> None:
    params, target = draw((2, 3, 5), mixtures=2)
    grad, ops = torch.ones(2), torch.ops.variate
    last = (nhwc(params), nhwc(target), 2, 8, 1, True)
    formatted = (params.contiguous(memory_format=torch.channels_last), target, 2, 8, 0, False)
    for args in (last, formatted):
        torch.library.opcheck(ops.discretized_logistic_mixture_nll.default, args)
        torch.library.opcheck(ops.discretized_logistic_mixture_nll_backward.default, (grad, *args))
    args = (nhwc(params), 2, 8, True, variate.random.key(0), 0)
    torch.library.opcheck(ops.discretized_logistic_mixture_sample.default, args)


def test_images_do_not_depend_on_the_rest_of_the_batch() -> None:
    params, target = draw((7, 11, 13))
    whole = discretized_logistic_mixture_nll(params, target, mixtures=4)
    for row in (0, 3, 6):
        alone = discretized_logistic_mixture_nll(params[row : row + 1], target[row : row + 1], mixtures=4)
        assert_same_bits((alone,), (whole[row : row + 1],))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_memory_of_a_training_step_is_the_gradient(layout: str) -> None:
    """Forward and backward hold at most 1.1 times the parameters at once, beyond what they were given."""
    params, target = draw((16, 32, 32), mixtures=10)
    if layout == "nhwc":
        params, target = nhwc(params), nhwc(target)
    params.requires_grad_()
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        discretized_logistic_mixture_nll(params, target, layout=layout).sum().backward()
    live = peak = 0
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert params.nbytes <= peak <= 1.1 * params.nbytes


# The sampler.


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_samples_have_the_probabilities_of_the_likelihood(layout: str) -> None:
    """Pearson's chi-squared over the 64 pixels of three colours of two bits, 60000 draws from one set of parameters;
    a right sampler fails with probability 1e-6."""
    side, bits, mixtures = 245, 2, 3
    row = torch.randn(10 * mixtures, generator=torch.Generator().manual_seed(5))
    pixels = torch.cartesian_prod(*[torch.arange(4, dtype=torch.uint8)] * 3)
    nll = discretized_logistic_mixture_nll(
        row.double().view(1, -1, 1, 1).expand(64, -1, 1, 1), pixels.view(64, 3, 1, 1), mixtures=mixtures, bits=bits
    )
    shape = (1, -1, 1, 1) if layout == "nchw" else (1, 1, 1, -1)
    size = (1, -1, side, side) if layout == "nchw" else (1, side, side, -1)
    sample = discretized_logistic_mixture_sample(
        row.view(shape).expand(size), mixtures=mixtures, bits=bits, layout=layout, key=variate.random.key(7)
    )
    levels = sample.movedim(1 if layout == "nchw" else -1, 0).flatten(1).long()
    counts = torch.bincount(levels[0] * 16 + levels[1] * 4 + levels[2], minlength=64).double()
    expected = torch.exp(-nll) * side * side
    order = expected.argsort()
    rare = order[expected[order].cumsum(0) < 10]  # joined to one cell, as the approximation wants
    cells = torch.ones(64, dtype=torch.bool)
    cells[rare] = False
    observed = torch.cat([counts[cells], counts[rare].sum()[None]])
    wanted = torch.cat([expected[cells], expected[rare].sum()[None].clamp(min=1e-9)])
    chi_squared = ((observed - wanted).square() / wanted).sum()
    freedom = torch.tensor(float(cells.sum()), dtype=torch.float64)
    assert freedom > 20
    assert torch.special.gammaincc(freedom / 2, chi_squared / 2) > 1e-6


def test_samples_of_many_components_and_one_channel() -> None:
    """More components than a tile of noise has numbers, one of which has all the weight."""
    mixtures, which = 1500, 1234
    params = torch.zeros(2, 3 * mixtures, 3, 30)
    params[:, which] = 100.0
    params[:, mixtures + which] = 0.5
    params[:, 2 * mixtures + which] = -20.0  # e^-7: 1e-3 of the range; levels of 3 bits are 2 / 7 apart
    sample = discretized_logistic_mixture_sample(params, mixtures=mixtures, bits=3, key=variate.random.key(0))
    assert sample.shape == (2, 1, 3, 30) and sample.dtype == torch.uint8
    assert (sample == 5).all()  # (0.5 + 1) 3.5 = 5.25


def test_samples_of_extreme_parameters() -> None:
    params, _ = draw((1, 1, 5), channels=1, mixtures=1)
    params[0, 1] = torch.tensor([-1e30, 1e30, torch.nan, 0.0, 0.0])
    params[0, 2] = torch.tensor([0.0, 0.0, 0.0, torch.nan, 200.0])
    sample = discretized_logistic_mixture_sample(params, mixtures=1, key=variate.random.key(0))
    assert sample[0, 0, 0, :4].tolist() == [0, 255, 0, 0] and sample[0, 0, 0, 4] in (0, 255)


def test_samples_need_no_gradient() -> None:
    params, _ = draw((1, 2, 2))
    assert not discretized_logistic_mixture_sample(params.requires_grad_(), mixtures=4).requires_grad


# Bad input.

PARAMS, TARGET = torch.zeros(2, 100, 4, 5), torch.zeros(2, 3, 4, 5, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("params", "target", "options", "error", "names"),
    [
        ([0.0], TARGET, {}, TypeError, "params: expected a tensor, got list"),
        (PARAMS.long(), TARGET, {}, TypeError, "params: expected float32.*got int64"),
        (PARAMS, [0], {}, TypeError, "target: expected a tensor of uint8 levels or floating values, got list"),
        (PARAMS, TARGET.long(), {}, TypeError, "target: expected a tensor of uint8.*got torch.int64"),
        (PARAMS[0], TARGET, {}, ValueError, r"params: expected shape \[B, P, H, W\], got \(100, 4, 5\)"),
        (PARAMS[0], TARGET, {"layout": "nhwc"}, ValueError, r"params: expected shape \[B, H, W, P\]"),
        (PARAMS[:, :99], TARGET, {}, ValueError, "params: expected 100 channels for three colours or 30 for one"),
        (PARAMS, TARGET, {"mixtures": 9}, ValueError, "params: expected 90 channels.*mixtures=9, got 100"),
        (PARAMS, TARGET, {"mixtures": 0}, ValueError, "mixtures: expected at least 1, got 0"),
        (PARAMS, TARGET, {"mixtures": 10.0}, TypeError, "mixtures: expected an int, got float"),
        (PARAMS, TARGET, {"layout": "nhwc"}, ValueError, "params: expected 100 channels.*got 5"),
        (PARAMS, TARGET, {"layout": "chw"}, ValueError, 'layout: expected "nchw" or "nhwc", got \'chw\''),
        (PARAMS, TARGET, {"edges": "soft"}, ValueError, 'edges: expected "exact" or "compat", got \'soft\''),
        (PARAMS, TARGET, {"bits": 0}, ValueError, "bits: expected 1 to 8, got 0"),
        (PARAMS, TARGET, {"bits": 9}, ValueError, "bits: expected 1 to 8, got 9"),
        (PARAMS, TARGET, {"bits": 8.0}, TypeError, "bits: expected an int, got float"),
        (PARAMS, TARGET[:, :2], {}, ValueError, r"target: expected shape \(2, 3, 4, 5\).*got \(2, 2, 4, 5\)"),
        (PARAMS, TARGET[:, :1], {}, ValueError, r"target: expected shape \(2, 3, 4, 5\).*got \(2, 1, 4, 5\)"),
        (PARAMS, TARGET[:1], {}, ValueError, "target: expected shape"),
        (PARAMS, TARGET.permute(0, 2, 3, 1), {}, ValueError, "target: expected shape"),
        (PARAMS, TARGET.to("meta"), {}, ValueError, "target: expected the device of"),
        (PARAMS, TARGET + 32, {"bits": 5}, ValueError, "target: expected levels 0 to 31 of 5 bits, got 32"),
        (PARAMS, TARGET.float() + 1.1, {}, ValueError, r"target: expected the values 2 level / 255 - 1.*\[-1, 1\]"),
        (PARAMS, TARGET.float() - 1.1, {}, ValueError, "target: expected the values"),
        (PARAMS, TARGET.float(), {}, ValueError, "target: expected the values.*one that is 0.5 levels"),
        (PARAMS, TARGET.float().requires_grad_(), {}, ValueError, "target: expected data.*detach"),
    ],
)
def test_mixture_errors(params, target, options, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        discretized_logistic_mixture_nll(params, target, **options)


@pytest.mark.parametrize(
    ("params", "options", "error", "names"),
    [
        (PARAMS[:, :99], {}, ValueError, "params: expected 100 channels"),
        (PARAMS, {"mixtures": -1}, ValueError, "mixtures"),
        (PARAMS, {"bits": 16}, ValueError, "bits"),
        (PARAMS, {"layout": "NCHW"}, ValueError, "layout"),
        (PARAMS, {"key": torch.zeros(3, 2, dtype=torch.int64)}, ValueError, "key: expected shape"),
        (PARAMS, {"first_sample": -1}, ValueError, "first_sample"),
    ],
)
def test_sampler_errors(params, options, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        discretized_logistic_mixture_sample(params, **options)


@pytest.mark.parametrize(
    ("mean", "log_scale", "target", "options", "error", "names"),
    [
        ([0.0], torch.zeros(3), torch.zeros(3), {}, TypeError, "mean: expected a tensor"),
        (torch.zeros(3), 0.0, torch.zeros(3), {}, TypeError, "log_scale: expected a tensor, got float"),
        (torch.zeros(3), torch.zeros(4), torch.zeros(3), {}, ValueError, "log_scale: expected a shape that broadcasts"),
        (torch.zeros(3), torch.zeros(3), torch.ones(4), {}, ValueError, "target: expected the shape of mean"),
        (torch.zeros(3), torch.zeros(3), torch.zeros(3).byte(), {"bits": 12}, ValueError, "bits"),
        (torch.zeros(3), torch.zeros(3), torch.zeros(3).byte(), {"edges": None}, ValueError, "edges"),
        (torch.zeros(3), torch.zeros(3), torch.full((3,), 4).byte(), {"bits": 2}, ValueError, "levels 0 to 3"),
        (torch.zeros(3), torch.zeros(3), torch.full((3,), 0.5), {}, ValueError, "target: expected the values"),
    ],
)
def test_errors(mean, log_scale, target, options, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        discretized_logistic_nll(mean, log_scale, target, **options)


def test_nan_targets_pass_the_check() -> None:
    target = torch.tensor([[1.0, torch.nan], [-1.0, 1.0]])
    nll = discretized_logistic_nll(torch.zeros(2, 2), torch.zeros(2, 2), target)
    assert nll.isnan().tolist() == [True, False]
