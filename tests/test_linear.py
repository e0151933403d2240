"""A decoder's last layer and its likelihood."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from checklist import FLOATS, THREADED_SHAPE, Arg, Checklist, OpCase, assert_accurate, assert_same_bits, make, run
from torch import Tensor

import variate
from variate import reference
from variate.functional import bernoulli_nll, linear, linear_bernoulli_nll, linear_categorical_nll

FUNCTIONS = {"bernoulli": linear_bernoulli_nll, "categorical": linear_categorical_nll}
REFERENCES = {
    "bernoulli": reference.linear.linear_bernoulli_nll,
    "categorical": reference.linear.linear_categorical_nll,
}
LIKELIHOODS = tuple(FUNCTIONS)
WAYS = 3
SUM = torch.ones_like  # the gradients that arrive: of nll.sum(), of a mean, of a weighted bound
MEAN = lambda nll: torch.full_like(nll, 1 / max(nll.numel(), 1))  # noqa: E731
WEIGHTS = lambda nll: torch.linspace(0.5, 2.0, nll.numel(), dtype=nll.dtype).reshape(nll.shape)  # noqa: E731

Layer = tuple[Tensor, Tensor, Tensor | None, Tensor]


def numbers(like: Tensor, *size: int) -> Tensor:
    """Numbers in (-1, 1) that every dtype holds exactly and that look like no pattern."""
    index = torch.arange(torch.Size(size).numel(), device=like.device).reshape(size)
    return (((index * 37 + 11) % 61 - 30) / 32).to(like.dtype)


def of_hidden(likelihood: str, function):
    """The function of hidden alone, for the checklist: the rest is made to fit."""

    def call(hidden: Tensor) -> Tensor:
        hidden = hidden.flatten(1) if hidden.dim() > 1 else hidden.reshape(hidden.numel())
        units = hidden.shape[-1]
        outputs = units if likelihood == "bernoulli" else WAYS * units
        target = (torch.arange(units, device=hidden.device) % 5 % WAYS).expand(hidden.shape)
        target = target > 0 if likelihood == "bernoulli" else target
        scale = 2.0 ** -math.ceil(math.log2(max(units, 1)) / 2)  # so that the logits of many units are no larger
        return function(hidden, scale * numbers(hidden, outputs, units), numbers(hidden, outputs), target)

    return call


def raw(likelihood: str):
    def calls(tensors, key):
        (hidden,) = tensors
        hidden = hidden.flatten(1) if hidden.dim() > 1 else hidden
        outputs, variables = (6, 6) if likelihood == "bernoulli" else (6 * WAYS, 6)
        layer = (hidden, numbers(hidden, outputs, hidden.shape[-1]), numbers(hidden, outputs))
        rows = hidden.shape[:-1]
        target = torch.zeros((*rows, variables), dtype=torch.uint8, device=hidden.device)
        op = getattr(torch.ops.variate, f"linear_{likelihood}_nll").default
        backward = getattr(torch.ops.variate, f"linear_{likelihood}_nll_backward").default
        grad = WEIGHTS(torch.empty(rows or (1,), device=hidden.device))
        return [
            (op, (*layer, target, True, True, True)),
            (op, (*layer[:2], None, target, False, True, False)),
            *(
                (backward, (grad, *layer, target, *(torch.zeros_like(x) for x in layer), unit))
                for unit in (True, False)
            ),
            (backward, (grad, *layer[:2], None, target, None, torch.zeros_like(layer[1]), None, False)),
        ]

    return calls


CASES = tuple(
    OpCase(
        f"linear_{likelihood}_nll",
        of_hidden(likelihood, FUNCTIONS[likelihood]),
        of_hidden(likelihood, REFERENCES[likelihood]),
        (Arg("hidden"),),
        raw(likelihood),
    )
    for likelihood in LIKELIHOODS
)


class TestChecklist(Checklist):
    cases = CASES

    def test_nan_stays_where_it_is(self, case: OpCase, place) -> None:
        """In its row of nll and of hidden's gradient: every logit of the row has it."""
        (hidden,) = make(case, (4, 21), torch.float32, place.device)
        clean = run(case, (hidden.clone(),))
        hidden[2, 3] = torch.nan
        for actual, expected in zip(run(case, (hidden,)).all, clean.all, strict=True):
            assert actual[2].isnan().all()
            actual[2] = expected[2]
            assert_same_bits((actual,), (expected,))

    def test_threads(self, case: OpCase, threads: None) -> None:
        """The products' sums are the product library's, in an order that may depend on threads: float32 rounding of
        301 terms. What follows them does not."""
        tensors = make(case, THREADED_SHAPE)
        torch.set_num_threads(1)
        one = run(case, tensors)
        for count in (2, 3):
            torch.set_num_threads(count)
            torch.testing.assert_close(run(case, tensors).all, one.all, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512", "amx"])
    def test_instruction_sets(self, instruction_set: str, threads: None) -> None:
        torch.set_num_threads(1)
        super().test_instruction_sets(instruction_set)

    def test_autocast_leaves_dtypes_alone(self, case: OpCase, place) -> None:
        """It casts, as it does for F.linear: the layer's inputs to bfloat16, where float64 is left alone."""
        (hidden,) = make(case, (6, 21), torch.float32, place.device)
        with torch.autocast(place.device, dtype=torch.bfloat16):
            (nll,), (gradient,) = (result := run(case, (hidden,))).outputs, result.gradients
            wide = run(case, (hidden.double(),))
        expected = run(case, (hidden.bfloat16(),))
        assert_same_bits((nll,), expected.outputs)
        assert_same_bits((gradient,), tuple(g.float() for g in expected.gradients))
        assert nll.dtype == torch.float32
        assert_same_bits(wide.all, run(case, (hidden.double(),)).all)


def draw(
    likelihood: str,
    rows: tuple[int, ...],
    units: int,
    variables: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Layer:
    """A layer whose logits have the size of 1, and its target. The same values in every dtype that holds them."""
    generator = torch.Generator().manual_seed(seed)
    outputs = variables * (1 if likelihood == "bernoulli" else WAYS)
    hidden, weight, bias = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((*rows, units), (outputs, units), (outputs,))
    )
    target = torch.randint(0, 2 if likelihood == "bernoulli" else WAYS, (*rows[-1:], variables), generator=generator)
    target = target.to(torch.float32) if likelihood == "bernoulli" else target
    return hidden.to(dtype), (weight / max(units, 1) ** 0.5).to(dtype), bias.to(dtype), target


def gradients_of(function, layer: Layer, upstream=SUM) -> tuple[Tensor, ...]:
    """nll and the gradients of hidden, weight and bias."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in layer[:3]]
    nll = function(*leaves, layer[3])
    return (nll.detach(), *torch.autograd.grad(nll, [x for x in leaves if x is not None], upstream(nll)))


def widened(layer: Layer) -> Layer:
    return tuple(x.double() if x is not None and x.is_floating_point() else x for x in layer)  # type: ignore[return-value]


def check(likelihood: str, layer: Layer, upstream=SUM, function=None) -> None:
    """Against the reference in the same dtype and in float64. Both sum the same products in their own order, so some
    roundings of a sum of n terms are allowed where the reference's own error is small by luck: sqrt(n) of them."""
    theirs = REFERENCES[likelihood]
    actual = gradients_of(function or FUNCTIONS[likelihood], layer, upstream)
    stock, exact = gradients_of(theirs, layer, upstream), gradients_of(theirs, widened(layer), upstream)
    terms = max(layer[0].numel(), layer[1].numel(), 1)
    slack = (
        terms**0.5
        * torch.finfo(torch.float32).eps
        * max([x.abs().max().item() for x in exact if x.numel()], default=0.0)
    )
    assert_accurate(actual, stock, exact, layer[:2], slack)


# More rows than a chunk holds, more columns than a block, and both; neither divides evenly.
SIZES = (((7,), 5, 11), ((1000,), 20, 600), ((3, 5), 7, 11), ((9, 64), 20, 784), ((150,), 9, 2500), ((2, 75), 6, 2500))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("upstream", [SUM, MEAN, WEIGHTS], ids=["sum", "mean", "weights"])
@pytest.mark.parametrize(("rows", "units", "variables"), SIZES, ids=str)
def test_values_and_gradients(likelihood: str, upstream, rows, units: int, variables: int) -> None:
    check(likelihood, draw(likelihood, rows, units, variables), upstream)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(likelihood: str, dtype: torch.dtype) -> None:
    for rows, units, variables in (((1,), 5, 11), ((500,), 20, 600), ((2, 75), 9, 2500)):
        for upstream in (MEAN, WEIGHTS):
            check(likelihood, draw(likelihood, rows, units, variables, dtype), upstream)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_without_bias(likelihood: str) -> None:
    hidden, weight, _, target = draw(likelihood, (2, 5), 7, 11)
    for upstream in (SUM, WEIGHTS):
        check(likelihood, (hidden, weight, None, target), upstream)


@pytest.mark.parametrize("target_dtype", [*FLOATS, torch.uint8, torch.bool], ids=str)
def test_bernoulli_target_dtypes(target_dtype: torch.dtype) -> None:
    *layer, target = draw("bernoulli", (2, 5), 7, 11)
    nll = linear_bernoulli_nll(*layer, target.to(target_dtype))
    assert nll.dtype == (torch.float64 if target_dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(nll, linear_bernoulli_nll(*layer, target).to(nll.dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_categorical_target_dtypes(target_dtype: torch.dtype) -> None:
    *layer, target = draw("categorical", (2, 5), 7, 11)
    assert_same_bits(
        (linear_categorical_nll(*layer, target.to(target_dtype)),), (linear_categorical_nll(*layer, target),)
    )


def test_bernoulli_is_that_of_its_logits() -> None:
    """The epilogue is bernoulli_nll's math: with products that are exact, its bits."""
    hidden, weight, bias = (
        torch.eye(9).repeat(2, 1, 1),
        3 * numbers(torch.empty(0), 301, 9),
        numbers(torch.empty(0), 301),
    )
    target = (numbers(torch.empty(0), 9, 301) + 1) / 2
    nll = linear_bernoulli_nll(hidden, weight, bias, target)
    assert_same_bits((nll[1],), (bernoulli_nll(weight.t() + bias, target),))


def test_many_ways() -> None:
    """A variable of more categories than a tile holds, each in the memory of a chunk: log 3000 of equal logits."""
    hidden, weight, target = torch.ones(4, 2), torch.zeros(3000 * 2, 2), torch.tensor([[0, 2999]]).repeat(4, 1)
    nll, *gradients = gradients_of(linear_categorical_nll, (hidden, weight, None, target))
    torch.testing.assert_close(nll, torch.full((4,), 2 * math.log(3000)))
    expected = torch.full((2, 3000, 2), 4 / 3000)
    expected[0, 0] -= 4
    expected[1, 2999] -= 4
    torch.testing.assert_close(gradients[1], expected.view(6000, 2))


def test_infinite_logits() -> None:
    weight, hidden = torch.tensor([[1.0]]), torch.tensor([[torch.inf], [-torch.inf], [torch.inf]])
    nll = linear_bernoulli_nll(hidden, weight, None, torch.tensor([[1.0], [0.0], [0.0]]))
    assert nll.tolist() == [0.0, 0.0, torch.inf]
    ways = torch.tensor([[-1.0], [0.0], [0.0]])
    bias = torch.tensor([-torch.inf, 0.0, 0.0])
    nll = linear_categorical_nll(torch.zeros(2, 1), ways, bias, torch.tensor([[1], [0]]))
    assert nll.tolist() == [pytest.approx(math.log(2)), torch.inf]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_samples_of_a_datum_share_its_target(likelihood: str) -> None:
    hidden, weight, bias, target = draw(likelihood, (40, 11), 7, 301)
    repeated = (hidden.reshape(440, 7), weight, bias, target.repeat(40, 1))
    for upstream in (SUM, WEIGHTS):
        nll, grad_hidden, *rest = gradients_of(FUNCTIONS[likelihood], (hidden, weight, bias, target), upstream)
        expected = gradients_of(FUNCTIONS[likelihood], repeated, upstream)
        assert nll.shape == (40, 11) and grad_hidden.shape == hidden.shape
        assert_same_bits((nll.view(440), grad_hidden.view(440, 7), *rest), expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_strides(likelihood: str) -> None:
    """Of all that comes in, samples of a larger batch and images among it."""
    hidden, weight, bias, target = draw(likelihood, (4, 6), 5, 12)
    views = (
        hidden.transpose(0, 1).contiguous().transpose(0, 1),
        torch.cat([weight, weight], 1)[:, :5],
        torch.stack([bias, bias], 1)[:, 0],
        target.view(6, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    )
    others = (hidden.repeat(1, 2, 1)[:, :6], weight, bias, target.t().contiguous().t())
    for upstream in (SUM, WEIGHTS):
        expected = gradients_of(FUNCTIONS[likelihood], (hidden, weight, bias, target), upstream)
        for layer in (views, others):
            assert_same_bits(gradients_of(FUNCTIONS[likelihood], layer, upstream), expected)
        transposed = (hidden, weight.t().contiguous().t(), bias, target)  # its products have another order of summation
        actual = gradients_of(FUNCTIONS[likelihood], transposed, upstream)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    ("rows", "units", "variables"),
    [((0,), 3, 4), ((3,), 0, 4), ((3,), 4, 0), ((2, 0), 3, 4), ((0, 2), 3, 4), ((0,), 0, 0), ((), 3, 0)],
    ids=str,
)
def test_empty(likelihood: str, rows, units: int, variables: int) -> None:
    layer = draw(likelihood, rows, units, variables)
    layer = (*layer[:3], layer[3] if rows else layer[3].reshape(variables))
    for upstream in (SUM, WEIGHTS):
        check(likelihood, layer, upstream)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradcheck_of_all_inputs(likelihood: str) -> None:
    for rows in ((), (2, 3)):
        *layer, target = draw(likelihood, rows, 2, 3, torch.float64)
        target = target if rows else target.reshape(3)
        leaves = [x.requires_grad_() for x in layer]
        for weighted in (False, True):
            for of in (torch.sum, lambda nll: (nll * WEIGHTS(nll)).sum()):

                def loss(*args: Tensor, target=target, weighted=weighted, of=of) -> Tensor:
                    return of(linear.nll(likelihood, *args, target, weighted=weighted))

                assert torch.autograd.gradcheck(loss, leaves, check_forward_ad=True)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_each_gradient_alone(likelihood: str) -> None:
    *layer, target = draw(likelihood, (2, 300), 7, 100)
    for upstream, weighted in itertools.product((SUM, MEAN, WEIGHTS), (False, True)):
        among = gradients_of(
            lambda *args, w=weighted: linear.nll(likelihood, *args, weighted=w), (*layer, target), upstream
        )
        for index in range(3):
            leaves = [x.clone().requires_grad_(i == index) for i, x in enumerate(layer)]
            nll = linear.nll(likelihood, *leaves, target, weighted=weighted)
            assert_same_bits(torch.autograd.grad(nll, leaves[index], upstream(nll)), among[1 + index : 2 + index])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_opcheck_of_the_residual(likelihood: str) -> None:
    op = getattr(torch.ops.variate, f"linear_{likelihood}_nll_residual").default
    for rows in ((4,), (2, 3), (2, 0)):
        torch.library.opcheck(op, draw(likelihood, rows, 3, 5))


def test_the_residual_is_the_gradient_to_the_logits() -> None:
    """Also where it is cut into chunks of rows and of columns."""
    for rows, units in (((3, 7), 30), ((2, 300), 5000)):
        hidden, weight, bias, target = draw("bernoulli", rows, 3, units)
        nll, residual, _ = torch.ops.variate.linear_bernoulli_nll_residual(hidden, weight, bias, target)
        logits = F.linear(hidden, weight, bias)
        expected = (logits.sigmoid() - target).flatten(0, 1)
        torch.testing.assert_close(residual, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(nll, linear_bernoulli_nll(hidden, weight, bias, target), rtol=1e-6, atol=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_graph_can_be_used_again(likelihood: str) -> None:
    """The first backward may spend what the forward pass made; those that follow have the same bits."""
    *layer, target = draw(likelihood, (3, 20), 7, 30)
    leaves = [x.requires_grad_() for x in layer]
    fresh = {up: gradients_of(FUNCTIONS[likelihood], (*layer, target), up)[1:] for up in (SUM, MEAN)}
    for order in itertools.permutations((SUM, MEAN, SUM)):
        nll = FUNCTIONS[likelihood](*leaves, target)
        kept = []
        for up in order:
            kept.append(torch.autograd.grad(nll, leaves, up(nll), retain_graph=True))
        for up, gradients in zip(order, kept, strict=True):  # looked at only now: none was written to later
            assert_same_bits(gradients, fresh[up])
    weighted = gradients_of(FUNCTIONS[likelihood], (*layer, target), WEIGHTS)[1:]
    again = torch.autograd.grad(nll, leaves, WEIGHTS(nll))
    torch.testing.assert_close(again, weighted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradients_accumulate(likelihood: str) -> None:
    *layer, target = draw(likelihood, (20,), 7, 30)
    leaves = [x.requires_grad_() for x in layer]
    for _ in range(2):
        FUNCTIONS[likelihood](*leaves, target).sum().backward()
    for leaf, once in zip(leaves, gradients_of(FUNCTIONS[likelihood], (*layer, target))[1:], strict=True):
        assert_same_bits((leaf.grad,), (2 * once,))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_inputs_changed_before_backward_raise(likelihood: str) -> None:
    for index in range(4):
        *layer, target = draw(likelihood, (20,), 7, 30)
        leaves = [x.requires_grad_() for x in layer]
        nll = FUNCTIONS[likelihood](*leaves, target)
        with torch.no_grad():
            (*leaves, target)[index].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            nll.sum().backward()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("weighted", [False, True])
def test_compiled(likelihood: str, weighted: bool, fresh_dynamo: None) -> None:
    *layer, target = draw(likelihood, (3, 20), 7, 30)
    weights = WEIGHTS(torch.empty(3, 20))

    def loss(*args: Tensor) -> Tensor:
        nll = linear.nll(likelihood, *args, target, weighted=weighted)
        return (nll * weights).sum() if weighted else nll.mean()

    def gradients(of) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in layer]
        return torch.autograd.grad(of(*leaves), leaves)

    expected = gradients(loss)
    for backend in ("aot_eager", "inductor"):
        actual = gradients(torch.compile(loss, fullgraph=True, backend=backend))
        if weighted:  # the last sums are torch's, which Inductor orders in its own way
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        else:
            assert_same_bits(actual, expected)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_autocast_is_that_of_linear(likelihood: str) -> None:
    hidden, weight, bias, target = draw(likelihood, (3, 20), 7, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = gradients_of(FUNCTIONS[likelihood], (hidden, weight.bfloat16(), bias, target))
    low = tuple(x.bfloat16() for x in (hidden, weight, bias))
    expected = gradients_of(FUNCTIONS[likelihood], (*low, target))
    assert [x.dtype for x in actual] == [torch.float32, torch.float32, torch.bfloat16, torch.float32]
    assert_same_bits(actual, tuple(x.to(y.dtype) for x, y in zip(expected, actual, strict=True)))


def test_memory() -> None:
    """Beyond its results, a call with gradients holds a chunk of 2^18 logits and less than as much again."""
    *layer, target = draw("bernoulli", (50, 64), 400, 784)
    leaves = [x.requires_grad_() for x in layer]
    results = sum(x.nbytes for x in layer)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        linear_bernoulli_nll(*leaves, target).mean().backward()
    live = peak = 0
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert results < peak < results + 2 * 4 * 2**18


BAD = [
    ({"hidden": [0.0]}, TypeError, "hidden: expected a tensor, got list"),
    ({"hidden": torch.zeros(4, 3).long()}, TypeError, "hidden: expected float32.*got int64"),
    ({"hidden": torch.zeros(())}, ValueError, r"hidden: expected \[B, H\] or \[K, B, H\], got shape \(\)"),
    ({"hidden": torch.zeros(2, 2, 4, 3)}, ValueError, "hidden: expected"),
    ({"weight": None}, TypeError, "weight: expected a tensor, got NoneType"),
    ({"weight": torch.zeros(6, 3).double()}, TypeError, "weight: expected the dtype of hidden, float32, got float64"),
    ({"weight": torch.zeros(6, 4)}, ValueError, r"weight: expected \[outputs, 3\], got shape \(6, 4\)"),
    ({"weight": torch.zeros(6)}, ValueError, "weight: expected"),
    ({"weight": torch.zeros(6, 3, device="meta")}, ValueError, "weight: expected the device of hidden"),
    ({"bias": torch.zeros(5)}, ValueError, r"bias: expected \[6\], got shape \(5,\)"),
    ({"bias": torch.zeros(6).bfloat16()}, TypeError, "bias: expected the dtype of hidden, float32, got bfloat16"),
    ({"bias": 0.0}, TypeError, "bias: expected a tensor, got float"),
    ({"target": [0]}, TypeError, "target: expected .*, got list"),
    ({"target": torch.zeros(4, 6).cfloat()}, TypeError, "target: expected .*, got complex64"),
    ({"target": torch.zeros(3, 6).byte()}, ValueError, r"target: expected \[4, ...\], got \(3, 6\)"),
    ({"target": torch.zeros(6).byte()}, ValueError, r"target: expected \[4, ...\]"),
    ({"target": torch.zeros(4, 5).byte()}, ValueError, "target: expected .*6"),
    ({"target": torch.zeros(4, 12).byte()}, ValueError, "target: expected .*6"),
    ({"target": torch.zeros(4, 0).byte()}, ValueError, "target: expected .*6"),
    ({"hidden": torch.zeros(3), "target": torch.zeros(1, 6).byte()}, ValueError, "target: expected one dimension"),
    ({"target": torch.zeros(4, 6, device="meta").byte()}, ValueError, "target: expected the device of hidden"),
]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(("changed", "error", "names"), BAD)
def test_errors(likelihood: str, changed, error: type[Exception], names: str) -> None:
    layer = {
        "hidden": torch.zeros(4, 3),
        "weight": torch.zeros(6, 3),
        "bias": torch.zeros(6),
        "target": torch.zeros(4, 6).byte(),
    }
    FUNCTIONS[likelihood](**layer)
    with pytest.raises(error, match=names):
        FUNCTIONS[likelihood](**{**layer, **changed})


def test_targets_that_do_not_fit_the_likelihood() -> None:
    layer = (torch.zeros(4, 3), torch.zeros(6, 3).requires_grad_(), None)
    with pytest.raises(ValueError, match="target: expected a tensor that requires no gradient"):
        linear_bernoulli_nll(*layer, torch.zeros(4, 6).requires_grad_())
    with pytest.raises(TypeError, match="target: expected an integer dtype, got float32"):
        linear_categorical_nll(*layer, torch.zeros(4, 2))
    with pytest.raises(TypeError, match="target: expected a floating dtype, uint8 or bool, got int64"):
        linear_bernoulli_nll(*layer, torch.zeros(4, 6).long())
    for value in (-1, 3):
        with pytest.raises(ValueError, match=f"target: expected categories 0 to 2, got .*{value}"):
            linear_categorical_nll(*layer, torch.tensor([[0, value]]).repeat(4, 1))


def test_targets_outside_their_categories_are_nan_where_none_looks() -> None:
    """Under torch.compile and on a GPU the values of a target are not looked at."""
    target = torch.tensor([[0, 1], [0, 3], [-1, 1], [2, 2]])
    layer = (torch.ones(4, 3), torch.zeros(6, 3), None, target, True, True, False)
    nll, grad_hidden, *_ = torch.ops.variate.linear_categorical_nll(*layer)
    for result in (nll, grad_hidden):
        assert result.reshape(4, -1).isnan().all(1).tolist() == [False, True, True, False]


def test_targets_are_checked_on_request(debug: None) -> None:
    with pytest.raises(ValueError, match=r"target: expected values in \[0, 1\], got 0.0 to 2.0"):
        linear_bernoulli_nll(torch.zeros(1, 1), torch.zeros(2, 1), None, torch.tensor([[0.0, 2.0]]))


def test_one_loss_of_a_decoder() -> None:
    """Beneath a layer of a user's own, through F.linear's gradients."""
    generator = torch.Generator().manual_seed(0)
    first, last = torch.nn.Linear(5, 8), torch.nn.Linear(8, 12)
    z, x = torch.randn(6, 5, generator=generator), torch.randint(0, 2, (6, 3, 2, 2), generator=generator).bool()
    parameters = [*first.parameters(), *last.parameters()]
    ours = linear_bernoulli_nll(first(z).relu(), last.weight, last.bias, x).mean()
    theirs = F.binary_cross_entropy_with_logits(last(first(z).relu()), x.flatten(1).float(), reduction="none")
    gradients = torch.autograd.grad(ours, parameters)
    torch.testing.assert_close(gradients, torch.autograd.grad(theirs.sum(1).mean(), parameters), rtol=1e-5, atol=1e-6)


def test_the_reference_runs_on_request() -> None:
    layer = draw("bernoulli", (2, 5), 7, 11)
    with variate.use_backend("reference"):
        assert_same_bits((linear_bernoulli_nll(*layer),), (REFERENCES["bernoulli"](*layer),))
