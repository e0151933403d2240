"""Noising with its target, and the denoising loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from checklist import FLOATS, Arg, Checklist, OpCase, assert_same_bits, kernel_noise, upstream
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import variate
from variate import functional, random, reference

STEPS = 12
ALPHAS_CUMPROD = torch.linspace(0.9995, 0.0, STEPS, dtype=torch.float64)  # the last level has no signal
TABLE = torch.stack([ALPHAS_CUMPROD.sqrt(), (1 - ALPHAS_CUMPROD).sqrt()], 1)
PREDICTIONS = ("epsilon", "x0", "v", "flow", "edm")
KEY = random.key(17)


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] if len(shape) > 1 else (1,)


X0 = Arg("x0", lambda n: 1.5 * n, differentiable=False)  # its gradient is plain PyTorch's, tested below
NOISE = Arg("noise", differentiable=False)
# The transforms of torch.func take floating arguments only: these become integers in the cases' functions.
TIMESTEP = Arg(
    "timestep",
    lambda n: (4 * n).abs().floor().clamp(max=STEPS - 1),
    differentiable=False,
    read=False,
    shape=rows_of,
)
LEVELS = Arg(
    "levels",
    lambda n: n.abs(),
    dtypes=(torch.float64, torch.float32),
    differentiable=False,
    read=False,
    shape=lambda shape: (*rows_of(shape), 2),
)
KEPT = Arg("mask", lambda n: n > 0.5, differentiable=False, read=False)
MASK = Arg("mask", lambda n: n < -0.5, dtypes=(torch.uint8, torch.bool), differentiable=False, read=False)


def table_at(x0: Tensor) -> Tensor:
    return TABLE.to(x0.device)


def as_mask(tensor: Tensor) -> Tensor:
    return tensor != 0 if tensor.is_floating_point() else tensor


def noising(prediction: str, offset_noise: float = 0.0, masked: bool = False, given: bool = False) -> OpCase:
    """Noising by a table's rows."""

    def of(module):
        def function(x0, timestep, *others, **options):
            more = dict(zip([*["mask"] * masked, *["noise"] * given], others, strict=True))
            if masked:
                more["mask"] = as_mask(more["mask"])
            return module.noise_and_target(
                x0,
                timestep.long(),
                table_at(x0),
                prediction=prediction,
                offset_noise=offset_noise,
                **more,
                **options,
            )

        return function

    def raw(tensors, key):
        x0, timestep, *others = tensors
        mask = others.pop(0) != 0 if masked else None
        noise = others.pop(0) if given else None
        how = (PREDICTIONS.index(prediction), 0.5, offset_noise, noise, mask, None if given else key, 0 if given else 3)
        return [(torch.ops.variate.noise_and_target.default, (x0, timestep.long(), table_at(x0), *how))]

    args = (X0, TIMESTEP, *[KEPT] * masked, *[NOISE] * given)
    name = f"noise_and_target, {prediction}{', mask' * masked}{', offset' if offset_noise else ''}{', given' * given}"
    return OpCase(name, of(functional), of(reference.diffusion), args, raw, stochastic=not given)


def continuous(prediction: str) -> OpCase:
    """Noising by levels of each sample."""

    def of(module):
        def function(x0, levels, **options):
            return module.noise_and_target(x0, None, levels, prediction=prediction, **options)

        return function

    def raw(tensors, key):
        x0, levels = tensors
        how = (PREDICTIONS.index(prediction), 0.5, 0.0, None, None, key, 3)
        return [(torch.ops.variate.noise_and_target.default, (x0, None, levels, *how))]

    name = f"noise_and_target, {prediction}, levels"
    return OpCase(name, of(functional), of(reference.diffusion), (X0, LEVELS), raw, stochastic=True)


PREDICTION = Arg("prediction")
TARGET = Arg("target", lambda n: 1.3 * n + 0.1)
WEIGHT = Arg("weight", lambda n: n.abs(), differentiable=False, read=False, shape=rows_of)


def loss(kind: str, weighted: bool = False, masked: bool = False) -> OpCase:
    def of(module):
        def function(prediction, target, *others, **options):
            more = dict(zip([*["weight"] * weighted, *["mask"] * masked], others, strict=True))
            if masked:
                more["mask"] = as_mask(more["mask"])
            if weighted:
                more["weight"] = more["weight"].detach()  # a constant, for forward-mode AD too
            return module.denoising_loss(prediction, target, **more, kind=kind, delta=0.7, **options)

        return function

    def raw(tensors, key):
        prediction, target, *others = tensors
        weight = others.pop(0) if weighted else None
        mask = others.pop(0) if masked else None
        how = (("mse", "huber").index(kind), 0.7)
        grad = torch.ones(rows_of(tuple(prediction.shape)), device=prediction.device)
        forward = torch.ops.variate.denoising_loss.default
        backward = torch.ops.variate.denoising_loss_backward.default
        inputs = (prediction, target, weight, mask)
        return [
            (forward, (*inputs, *how, True)),
            (forward, (*inputs, *how, False)),
            (backward, (grad, *inputs, torch.empty_like(prediction), torch.empty_like(target), False, *how)),
        ]

    args = (PREDICTION, TARGET, *[WEIGHT] * weighted, *[MASK] * masked)
    name = f"denoising_loss, {kind}{', weight' * weighted}{', mask' * masked}"
    return OpCase(name, of(functional), of(reference.diffusion), args, raw)


CASES = (
    noising("epsilon"),
    noising("x0", masked=True),
    noising("v", offset_noise=0.1),
    noising("flow", given=True),
    continuous("edm"),
    loss("mse"),
    loss("huber", weighted=True),
    loss("mse", weighted=True, masked=True),
)


class TestChecklist(Checklist):
    cases = CASES


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Noising.


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_targets_by_their_definitions(prediction: str) -> None:
    """With the noise told, in float64."""
    x0, eps = draw(6, 2, 5, dtype=torch.float64), draw(6, 2, 5, seed=1, dtype=torch.float64)
    timestep = torch.tensor([0, 3, 11, 5, 5, 1])
    levels = TABLE
    if prediction == "edm":
        sigma = torch.logspace(-3, 2, STEPS, dtype=torch.float64)
        levels = torch.stack([torch.ones_like(sigma), sigma], 1)
    alpha, sigma = levels[timestep].T[..., None, None]
    x_t, target = functional.noise_and_target(x0, timestep, levels, prediction=prediction, noise=eps, sigma_data=0.7)
    c_skip = 0.7**2 / (sigma**2 + 0.7**2)
    c_out = sigma * 0.7 / (sigma**2 + 0.7**2).sqrt()
    expected = {
        "epsilon": eps,
        "x0": x0,
        "v": alpha * eps - sigma * x0,
        "flow": eps - x0,
        "edm": (x0 - c_skip * (x0 + sigma * eps)) / c_out,
    }[prediction]
    torch.testing.assert_close(x_t, alpha * x0 + sigma * eps, rtol=1e-14, atol=1e-14)
    # EDM's own formula cancels: eps * sigma_data / sigma of it.
    torch.testing.assert_close(target, expected, rtol=1e-12, atol=1e-11)


def test_edm_at_sigma_0_is_finite() -> None:
    x0 = draw(3, 4)
    table = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    x_t, target = functional.noise_and_target(x0, torch.zeros(3).long(), table, prediction="edm", key=KEY)
    assert torch.equal(x_t, x0) and target.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_the_smallest_levels(dtype: torch.dtype) -> None:
    """sigma of the first steps does not vanish, as it does where the table itself is rounded."""
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    table = torch.stack([bar.sqrt(), (1 - bar).sqrt()], 1)
    x0 = torch.zeros(1000, 64, dtype=dtype)
    x_t, _ = functional.noise_and_target(x0, torch.arange(1000), table, key=KEY)
    eps = random.normal(1000, 64, key=KEY, dtype=torch.float64)
    torch.testing.assert_close(x_t.double(), table[:, 1:] * eps, rtol=2.0**-8, atol=1e-6)


def test_the_noise_is_that_of_the_key() -> None:
    x0 = draw(5, 3, 7)
    timestep = torch.full((5,), 4)
    _, eps = functional.noise_and_target(x0, timestep, TABLE, key=KEY, first_sample=9)
    assert_same_bits((eps,), (random.normal(5, 3, 7, key=KEY, first_sample=9),))
    _, eps = functional.noise_and_target(x0, timestep, TABLE, key=KEY, first_sample=9, offset_noise=0.25)
    offsets = random.normal(5, 3, key=random.fold_in(KEY, 1), first_sample=9)
    plain = random.normal(5, 3, 7, key=KEY, first_sample=9)
    assert_same_bits((eps,), (plain + 0.25 * offsets[..., None],))
    given = functional.noise_and_target(
        x0, timestep, TABLE, key=KEY, first_sample=9, offset_noise=0.25, noise=plain.expand(5, 3, 7)
    )
    assert_same_bits((given[1],), (eps,))


def test_drawn_and_given_noise_agree() -> None:
    x0 = draw(5, 3, 7)
    timestep = torch.tensor([0, 1, 5, 11, 3])
    for prediction in PREDICTIONS:
        drawn = functional.noise_and_target(x0, timestep, TABLE, prediction=prediction, key=KEY)
        eps = random.normal(5, 3, 7, key=KEY)
        given = functional.noise_and_target(x0, timestep, TABLE, prediction=prediction, noise=eps)
        assert_same_bits(drawn, given)


def test_masked_elements_keep_the_data() -> None:
    x0 = draw(6, 4, 9, dtype=torch.float16)
    mask = torch.zeros(4, 1, dtype=torch.bool)
    mask[0] = True
    timestep = torch.arange(6)
    x_t, target = functional.noise_and_target(x0, timestep, TABLE, mask=mask, key=KEY)
    plain, same = functional.noise_and_target(x0, timestep, TABLE, key=KEY)
    assert torch.equal(x_t[:, 0], x0[:, 0]) and torch.equal(x_t[:, 1:], plain[:, 1:]) and torch.equal(target, same)


@pytest.mark.parametrize("cols", [(4, 5), (2, 2, 1050)])
def test_a_timestep_for_each_token(cols: tuple[int, ...]) -> None:
    x0 = draw(3, *cols)
    timestep = torch.tensor([[0, 3, 11, 2], [1, 1, 1, 1], [5, 4, 3, 2]])
    got = functional.noise_and_target(x0, timestep, TABLE, prediction="v", key=KEY)
    continuous = functional.noise_and_target(x0, None, TABLE[timestep], prediction="v", key=KEY)
    assert_same_bits(got, continuous)
    for token in range(4):
        each = functional.noise_and_target(x0, timestep[:, token], TABLE, prediction="v", key=KEY)
        for whole, alone in zip(got, each, strict=True):
            assert torch.equal(whole.reshape(3, 4, -1)[:, token], alone.reshape(3, 4, -1)[:, token])
    with kernel_noise():
        expected = reference.diffusion.noise_and_target(x0, timestep, TABLE, prediction="v", key=KEY)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_noising(prediction: str, masked: bool) -> None:
    x0, noise = (draw(4, 6, seed=s, dtype=torch.float64).requires_grad_() for s in (0, 1))
    timestep = torch.tensor([0, 5, 11, 3])
    mask = draw(4, 6, seed=2) > 0 if masked else None

    def of(module) -> Callable[..., tuple[Tensor, ...]]:
        return lambda x, n: module.noise_and_target(x, timestep, TABLE, prediction=prediction, noise=n, mask=mask)

    assert torch.autograd.gradcheck(of(functional), (x0, noise), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(of(functional), (x0, noise))
    gradients = []
    for module in (functional, reference.diffusion):
        outputs = of(module)(x0, noise)
        gradients.append(torch.autograd.grad(outputs, (x0, noise), [upstream(o) for o in outputs]))
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-14)


def test_gradients_of_noising_compile(fresh_dynamo: None) -> None:
    x0 = draw(4, 6).requires_grad_()
    timestep = torch.tensor([0, 5, 11, 3])

    def total(x):
        x_t, target = functional.noise_and_target(x, timestep, TABLE, prediction="v", key=KEY)
        return (x_t * target).sum()

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x0), x0), torch.autograd.grad(total(x0), x0))


def test_timesteps_of_other_dtypes_and_one_for_all() -> None:
    x0 = draw(4, 6)
    expected = functional.noise_and_target(x0, torch.full((4,), 3), TABLE, key=KEY)
    for timestep in (torch.tensor(3), torch.full((4,), 3, dtype=torch.int32), torch.tensor([3]).expand(4)):
        assert_same_bits(functional.noise_and_target(x0, timestep, TABLE, key=KEY), expected)
    assert_same_bits(functional.noise_and_target(x0, torch.tensor(3), TABLE.float().double(), key=KEY), expected)
    assert_same_bits(functional.noise_and_target(x0, torch.tensor(3), TABLE.t().contiguous().t(), key=KEY), expected)


X = torch.zeros(3, 4)
T = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("args", "options", "error", "names"),
    [
        ((X.long(), T, TABLE), {}, TypeError, "x0: expected float32"),
        ((X, T, TABLE.half()), {}, TypeError, "table: expected a float64 or float32 tensor, got float16"),
        ((X, T, None), {}, TypeError, "table: .*got NoneType"),
        ((X, T, TABLE[:, :1]), {}, ValueError, r"table: expected shape \(T, 2\)"),
        ((X, None, TABLE), {}, ValueError, r"table: expected shape \(3, 2\)"),
        ((X, T.float(), TABLE), {}, TypeError, "timestep: expected an int64 tensor, got float32"),
        ((X, 3, TABLE), {}, TypeError, "timestep: expected an int64 tensor, got int"),
        ((X, T[:2], TABLE), {}, ValueError, r"timestep: expected shape \(3,\)"),
        ((X, T[:, None].expand(3, 3), TABLE), {}, ValueError, "timestep: .*divides the 4"),
        ((X, T + 12, TABLE), {}, ValueError, "timestep: expected 0 to 11, got 12 to 12"),
        ((X, T - 1, TABLE), {}, ValueError, "timestep: expected 0 to 11, got -1 to -1"),
        ((X, T, TABLE), {"prediction": "score"}, ValueError, "prediction: expected one of epsilon, .*got 'score'"),
        ((X, T, TABLE), {"noise": X[0]}, ValueError, "noise: expected the shape of x0"),
        ((X, T, TABLE), {"noise": X.int()}, TypeError, "noise: expected float32"),
        ((X, T, TABLE), {"noise": X.to("meta")}, ValueError, "noise: expected the device"),
        ((X, T, TABLE), {"mask": X}, TypeError, "mask: expected a bool or uint8"),
        ((X, T, TABLE), {"mask": torch.zeros(5, dtype=torch.bool)}, ValueError, "mask: expected a shape that broad"),
        ((X, T, TABLE), {"offset_noise": "1"}, TypeError, "offset_noise: expected a number"),
        ((X, T, TABLE), {"sigma_data": 0.0}, ValueError, "sigma_data: expected a finite number above 0"),
        ((X, T, TABLE), {"key": torch.zeros(4, 2).long()}, ValueError, "key: expected shape"),
        ((X, T, TABLE), {"key": KEY, "first_sample": -1}, ValueError, "first_sample"),
    ],
)
def test_errors_of_noising(args, options, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        functional.noise_and_target(*args, **options)


@pytest.mark.gpu
def test_a_timestep_outside_the_table_is_nan_on_a_gpu() -> None:
    x0, timestep = draw(3, 4).cuda(), torch.tensor([0, STEPS, -1], device="cuda")
    for result in functional.noise_and_target(x0, timestep, TABLE.cuda()):
        assert result[0].isfinite().all() and result[1:].isnan().all()


# The loss.


@pytest.mark.parametrize("kind", ["mse", "huber"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_gradient_made_ahead_has_the_bits_of_one_made_later(kind: str, dtype: torch.dtype) -> None:
    prediction, target = draw(7, 3, 50, dtype=dtype).requires_grad_(), draw(7, 3, 50, seed=1, dtype=dtype)
    mask = draw(7, 3, 50, seed=2) > 1
    options = {"kind": kind, "delta": 0.5, "weight": draw(7, seed=3).abs(), "mask": mask}
    total = functional.denoising_loss(prediction, target, **options).mean()
    ahead, later = (torch.autograd.grad(total, prediction, retain_graph=True) for _ in range(2))
    assert_same_bits(ahead, later)
    ahead[0].zero_()  # a gradient is its owner's
    assert_same_bits(torch.autograd.grad(total, prediction), later)
    # Rows of which some are those of a mean.
    scales = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0, 1.0, -1.0]) / 7
    found = torch.autograd.grad((functional.denoising_loss(prediction, target, **options) * scales).sum(), prediction)
    expected = torch.autograd.grad(
        (reference.diffusion.denoising_loss(prediction, target, **options) * scales).sum(), prediction
    )
    torch.testing.assert_close(found, expected, rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("cols", [1, 1023, 1025, 300_000])
def test_long_rows(cols: int) -> None:
    prediction, target = draw(2, cols).requires_grad_(), draw(2, cols, seed=1)
    ours = functional.denoising_loss(prediction, target)
    exact = (prediction.double() - target.double()).square().mean(1)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    (found,) = torch.autograd.grad(ours.mean(), prediction)
    torch.testing.assert_close(found, (prediction - target).detach() / cols, rtol=1e-6, atol=0)


def test_gradients_of_weights() -> None:
    prediction, target = (draw(4, 6, seed=s, dtype=torch.float64).requires_grad_() for s in (0, 1))
    weight = draw(4, seed=2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: functional.denoising_loss(*a), (prediction, target, weight))
    for dtype in FLOATS:
        loss = functional.denoising_loss(draw(4, 6), draw(4, 6, seed=1), weight.detach().to(dtype).requires_grad_())
        assert loss.dtype == torch.float32 and loss.requires_grad


def test_masked_elements_cost_nothing() -> None:
    prediction, target = draw(3, 8), draw(3, 8, seed=1)
    prediction[:, 2] = math.nan
    prediction.requires_grad_()
    mask = torch.zeros(8, dtype=torch.uint8)
    mask[2] = 1
    loss = functional.denoising_loss(prediction, target, mask=mask)
    (gradient,) = torch.autograd.grad(loss.mean(), prediction)
    assert loss.isfinite().all() and gradient.isfinite().all() and not gradient[:, 2].any()


def test_a_training_step_compiles_once(fresh_dynamo: None) -> None:
    """Noising, a model, the loss and its gradient in one graph, with the bits of eager code."""
    model = torch.nn.Linear(6, 6)

    def step(x0: Tensor, timestep: Tensor, key: Tensor) -> Tensor:
        x_t, target = functional.noise_and_target(x0, timestep, TABLE, prediction="v", key=key)
        return functional.denoising_loss(model(x_t), target).mean()

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for i in range(4):
        args = draw(5, 6, seed=i), torch.tensor([0, 1, 2, 3, i]), random.key(i)
        results = []
        for function in (compiled, step):
            model.zero_grad()
            total = function(*args)
            total.backward()
            results.append((total.detach(), *(p.grad.clone() for p in model.parameters())))
        assert_same_bits(*results)
    assert counter.frame_count == 1


P = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("args", "options", "error", "names"),
    [
        ((P.int(), P), {}, TypeError, "prediction: expected float32"),
        ((P, P.int()), {}, TypeError, "target: expected float32"),
        ((P, P.T), {}, ValueError, "target: expected the shape of prediction"),
        ((P, P, P), {}, ValueError, r"weight: expected one number for each sample, \(3,\), got \(3, 4\)"),
        ((P, P, torch.ones(4)), {}, ValueError, "weight"),
        ((P, P, torch.ones(3).int()), {}, TypeError, "weight: expected float32"),
        ((P, P, 2.0), {}, TypeError, "weight: expected a tensor"),
        ((P, P), {"kind": "l1"}, ValueError, "kind: expected one of mse, huber, got 'l1'"),
        ((P, P), {"kind": "huber", "delta": 0.0}, ValueError, "delta: expected a finite number above 0"),
        ((P, P), {"mask": P}, TypeError, "mask"),
    ],
)
def test_errors_of_the_loss(args, options, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        functional.denoising_loss(*args, **options)


def test_the_reference_backend() -> None:
    prediction, target = draw(3, 4).requires_grad_(), draw(3, 4, seed=1)
    with variate.use_backend("reference"):
        loss = functional.denoising_loss(prediction, target)
        with pytest.raises(ValueError, match="timestep: expected 0 to 11"):
            functional.noise_and_target(X, T + 12, TABLE)
    torch.testing.assert_close(loss, functional.denoising_loss(prediction, target))
