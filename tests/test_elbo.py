"""The terms of the evidence lower bound: likelihoods."""

from __future__ import annotations

import math

import pytest
import torch
from checklist import FLOATS, Arg, Checklist, OpCase, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import variate
from variate import reference
from variate.functional import bernoulli_nll

TARGETS = (*FLOATS, torch.uint8, torch.bool)


def fractions(normals: Tensor) -> Tensor:
    """Targets 0, 1/4 ... 1: exact in every dtype; integers get the whole ones of them."""
    return (4 * normals.sigmoid()).round() / 4


def raw(tensors, key):
    logits, target = tensors
    grad = torch.ones(logits.shape[0] if logits.dim() > 1 else 1, device=logits.device)
    ops = torch.ops.variate
    return [
        (ops.bernoulli_nll.default, (logits, target)),
        (ops.bernoulli_nll_backward.default, (grad, logits, target, True)),
        (ops.bernoulli_nll_backward.default, (grad, logits, target, False)),
    ]


CASES = (
    OpCase(
        "bernoulli_nll",
        bernoulli_nll,
        reference.elbo.bernoulli_nll,
        (Arg("logits", lambda n: 3 * n), Arg("target", fractions, TARGETS)),
        raw,
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
