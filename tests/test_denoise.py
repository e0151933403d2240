"""A denoising step."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from checklist import (
    FLOATS,
    Arg,
    Checklist,
    OpCase,
    assert_same_bits,
    key,
    keys,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from variate import functional, random, reference
from variate._table import COLUMN, COLUMNS, Table
from variate.functional import denoise_step

FULL = {name: 0.1 + 0.05 * i for i, name in enumerate(COLUMNS)}


def table(
    rows: int = 1, clip: float | None = None, quantile: float | None = None, variance: str | None = None, **columns
):
    """A table of these coefficients, a little different in each row."""
    c = torch.zeros(rows, len(COLUMNS), dtype=torch.float64)
    for name, value in columns.items():
        c[:, COLUMN[name]] = value * (1 + torch.arange(rows) / 7)
    return Table(c, torch.arange(rows).double(), history=3, clip=clip, quantile=quantile, variance=variance)


DDPM = {"x0_sample": 1.2, "x0_output": -0.5, "prev_sample": 0.3, "prev_x0": 0.7, "prev_noise": 0.4, "denoised_x0": 1.0}
PLAIN = {k: v for k, v in FULL.items() if "noise" not in k and "variance" not in k}
EVERYTHING = ("denoised", "saved", "state", "next")


def case(name: str, args: tuple[str, ...], tab: Table, outputs: tuple[str, ...] = (), values=None, **options) -> OpCase:
    """args: sample, output, and the names of what else is passed, history as history_0, ..."""

    def of(step):
        def function(sample, output, *others, **more):
            named = dict(zip(args, others, strict=True))
            history = [named.pop(n) for n in args if n.startswith("history")]
            result = step(
                sample, output, tab.to(sample.device), 1, history=history, outputs=outputs, **named, **options, **more
            )
            return tuple(x for x in result if x is not None)

        return function

    def raw(tensors, k):
        sample, output, *others = tensors
        named = dict(zip(args, others, strict=True))
        past = [named.get(f"history_{i}") for i in range(3)]
        wanted = sum(functional.denoise.OUTPUTS[n] for n in outputs)
        rest = (
            named.get("state"),
            0,
            None,
            named.get("unconditional"),
            torch.tensor(3.0, dtype=torch.float64) if "unconditional" in named else None,
            0.0,
            tab.quantile or 0.0,
            named.get("variance"),
            functional.denoise.VARIANCES[tab.variance],
            None,
        )
        step = (sample, output, tab.coefficients.to(sample.device), 1, tab.clip or 0.0, wanted, k, 0, *past, *rest)
        counter = torch.tensor([7, 0], device=sample.device)
        ops = torch.ops.variate
        calls = [(ops.denoise_step_full.default, (None, *step)), (ops.denoise_step_full.default, (counter, *step))]
        plain = tab.variance is None and "unconditional" not in named
        return [*calls, (ops.denoise_step.default, step[:13])] if plain else calls

    given = (Arg("sample", differentiable=False), Arg("output", differentiable=False))
    others = tuple(Arg(n, (values or {}).get(n, lambda x: x), differentiable=False) for n in args)
    return OpCase(
        name,
        of(denoise_step),
        of(reference.denoise.denoise_step),
        given + others,
        raw,
        stochastic=tab.stochastic,
        # exp and the quantile's interpolation, on values of a few units
        absolute_error=1e-6,
    )


CASES = (
    case("ddpm", (), table(3, clip=1.0, **DDPM), ("denoised",)),
    case("ddim", (), table(2, **{k: v for k, v in DDPM.items() if "noise" not in k})),
    case("multistep", ("history_0", "history_1", "history_2", "state"), table(2, **PLAIN), EVERYTHING),
    case("churn", (), table(2, **{**DDPM, "x0_noise": 0.3}), ("denoised", "next")),
    case(
        "learned range",
        ("variance",),
        table(2, variance="learned_range", min_log_variance=-2.0, max_log_variance=-1.0, **DDPM),
    ),
    case("learned", ("variance",), table(2, variance="learned", **DDPM), values={"variance": lambda n: n * n + 0.1}),
    case("guided", ("unconditional",), table(2, **DDPM), ("next",), guidance=3.0),
)


class TestChecklist(Checklist):
    cases = CASES


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(7)]


def test_columns_are_those_of_the_header():
    header = Path(__file__).parents[1] / "csrc/include/variate/denoise.h"
    names = re.findall(r"^  VARIATE_DENOISE_([A-Z0-9_]+)(?: = 0)?,$", header.read_text(), re.MULTILINE)
    assert tuple(name.lower() for name in names) == COLUMNS


@pytest.mark.parametrize("column", [name for name in COLUMNS if "variance" not in name])
def test_each_coefficient_alone_is_an_exact_product(column):
    """One coefficient at a time: it reads what its name says, and nothing else is read, not even NaN."""
    x, m, s, h0, h1, h2, n = normals(3, 21)
    columns = {column: 0.7}
    source = column.split("_", 1)[1]
    target = column.split("_", 1)[0]
    if target == "x0":
        columns["denoised_x0"] = 1.0
        target = "denoised"
    if source == "x0":
        columns["x0_sample"] = 1.0
    if column == "next_scale":
        columns["prev_sample"] = 1.0
    inputs = {"sample": x, "output": m, "noise": n, "state": s, "history_0": h0, "history_1": h1, "history_2": h2}
    expected = inputs["sample" if source in ("x0", "scale") else source]
    poison = torch.full_like(x, torch.nan)
    kept = {name: value if value is expected else poison for name, value in inputs.items()}
    result = denoise_step(
        kept["sample"],
        kept["output"],
        table(**columns),
        0,
        history=[kept["history_0"], kept["history_1"], kept["history_2"]],
        state=kept["state"],
        noise=kept["noise"],
        outputs=EVERYTHING,
    )
    assert_same_bits((getattr(result, target),), (torch.tensor(0.7, dtype=torch.float32) * expected,))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(3, 7), (2, 3000), (70, 16), (2, 3, 5, 4)], ids=str)
def test_a_row_of_its_own_for_each_sample_and_token(shape, dtype, threads):
    """A batch of several rows is, sample by sample and token by token, what each row alone is."""
    x, m, s, h0, h1, h2, _ = normals(*shape, dtype=dtype)
    tab = table(5, clip=1.5, **FULL)
    generator = torch.Generator().manual_seed(1)
    per_sample = torch.randint(5, shape[:1], generator=generator)
    per_token = torch.randint(5, shape[:2], generator=generator)
    common = {"key": key(), "outputs": EVERYTHING, "state": s, "history": [h0, h1, h2], "copies": 2}
    alone = [denoise_step(x, m, tab, row, **common) for row in range(5)]
    for count in (1, 2):
        torch.set_num_threads(count)
        by_sample = denoise_step(x, m, tab, per_sample, **common)
        by_token = denoise_step(x, m, tab, per_token, **common)
        for field in ("prev", "denoised", "saved", "state", "next"):
            each = torch.stack([getattr(a, field) for a in alone])
            rows = torch.arange(len(per_sample))
            if field == "next":
                half = each[:, : shape[0]]
                assert_same_bits((each[:, shape[0] :],), (half,))
                assert_same_bits((getattr(by_sample, field),), (torch.cat([half[per_sample, rows]] * 2),))
                continue
            assert_same_bits((getattr(by_sample, field),), (each[per_sample, rows],))
            cols = torch.arange(shape[1])
            assert_same_bits((getattr(by_token, field),), (each[per_token, rows[:, None], cols],))


def test_a_scalar_row_as_a_tensor_is_the_row():
    x, m, *_ = normals(4, 9)
    tab = table(3, **DDPM)
    for row in range(3):
        number, tensor = (denoise_step(x, m, tab, r, key=key()) for r in (row, torch.tensor(row)))
        assert_same_bits((number.prev,), (tensor.prev,))


def test_the_noise_is_that_of_its_step():
    """prev = noise: the library's normals with word 3 the step; a counter is the same, and moves on."""
    x, m, *_ = normals(6, 21)
    tab = table(prev_noise=1.0)
    for step in (0, 1, 2**31 + 5, 2**32 - 1):
        expected = reference.random.normal_at(x.shape, key(), 3, step)
        actual = denoise_step(x, m, tab, 0, key=key(), first_sample=3, first_step=step).prev
        torch.testing.assert_close(actual, expected, rtol=3e-6, atol=3e-6)
    assert torch.equal(denoise_step(x, m, tab, 0, key=key()).prev, random.normal(6, 21, key=key()))
    counter = torch.tensor([5, 0])
    for step in range(5, 8):
        moved = denoise_step(x, m, tab, 0, key=key(), first_step=counter).prev
        assert torch.equal(moved, denoise_step(x, m, tab, 0, key=key(), first_step=step).prev)
    assert counter.tolist() == [8, 0]


def test_a_counter_for_each_sample():
    x, m, *_ = normals(5, 1030)
    tab = table(prev_noise=1.0, prev_sample=0.5)
    steps = torch.tensor([4, 0, 7, 7, 2])
    counter = torch.stack([steps, torch.zeros_like(steps)], 1)
    for own in (key(), keys(5)):
        before = counter[:, 0].clone()
        whole = denoise_step(x, m, tab, 0, key=own, first_step=counter).prev
        for i in range(5):
            one = {"key": own, "first_sample": i} if own.dim() == 1 else {"key": own[i].clone()}
            alone = denoise_step(x[i : i + 1], m[i : i + 1], tab, 0, first_step=int(before[i]), **one).prev
            assert torch.equal(whole[i : i + 1], alone)
    assert counter[:, 0].tolist() == (steps + 2).tolist()


def test_float64_noise_is_float32s():
    x, m, *_ = normals(3, 21, dtype=torch.float64)
    tab = table(prev_noise=1.0)
    assert torch.equal(denoise_step(x, m, tab, 0, key=key()).prev, random.normal(3, 21, key=key()).double())


# Guidance.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_guidance_from_halves_and_apart(dtype):
    x, c, u, *_ = normals(4, 3, 50, dtype=dtype)
    tab = table(prev_output=1.0)
    apart = denoise_step(x, c, tab, 0, unconditional=u, guidance=7.5)
    halves = denoise_step(x, torch.cat([u, c]), tab, 0, guidance=torch.tensor(7.5))
    assert_same_bits((apart.prev,), (halves.prev,))
    exact = u.double() + 7.5 * (c.double() - u.double())
    torch.testing.assert_close(apart.prev.double(), exact, rtol=1e-6 if dtype == torch.float32 else 2**-8, atol=1e-5)
    assert_same_bits((denoise_step(x, c, tab, 0, unconditional=u).prev,), (denoise_step(x, c, tab, 0).prev,)) if (
        dtype == torch.float64
    ) else None


@pytest.mark.parametrize("shape", [(3, 2), (5, 19), (2, 3, 40, 41), (300,)], ids=str)
def test_rescaled_guidance_against_float64(shape):
    """Lin et al. 2024, equations 15 and 16, with means far from 0."""
    x, c, u, *_ = (t + 3 for t in normals(*shape))
    tab = table(prev_output=1.0)
    actual = denoise_step(x, c, tab, 0, unconditional=u, guidance=4.0, rescale=0.7).prev
    inner = tuple(range(1, len(shape))) or (0,)
    guided = u.double() + 4.0 * (c.double() - u.double())
    ratio = c.double().std(inner, keepdim=True) / guided.std(inner, keepdim=True)
    exact = guided * (0.7 * ratio + 0.3)
    # Two standard deviations, each a mean of squares in float32: a few ulp each.
    torch.testing.assert_close(actual.double(), exact, rtol=4e-6, atol=1e-5)


# Clipping.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (4, 33), (2, 1025), (2, 3, 40, 41)], ids=str)
def test_dynamic_thresholding_is_the_exact_quantile(shape, dtype, threads):
    for scale, q, most in itertools.product((0.1, 1.0, 30.0), (0.01, 0.3, 0.5, 0.995, 1.0), (None, 0.6, 1.0, 5.0)):
        x, m, *_ = normals(*shape, dtype=dtype)
        x = x * scale
        tab = table(clip=most, quantile=q, x0_sample=1.0, denoised_x0=1.0, prev_x0=1.0)
        bound = torch.quantile(x.double().flatten(1).abs(), q, dim=1).clamp(min=1, max=most)
        bound = bound.reshape(-1, *[1] * (len(shape) - 1))
        exact = x.double().clamp(-bound, bound) / bound
        for count in (1, 2):
            torch.set_num_threads(count)
            actual = denoise_step(x, m, tab, 0, outputs=("denoised",)).denoised
            torch.testing.assert_close(actual.double(), exact, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)


@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1e-40, 0.5, 1.0, -2.0, 2.0, 3.0, -3.0, 1e30]), min_size=1, max_size=90),
    q=st.floats(0.01, 1),
)
def test_quantiles_of_ties_zeros_and_extremes(values, q):
    x = torch.tensor([values], dtype=torch.float32) * 4
    tab = table(quantile=q, x0_sample=1.0, denoised_x0=1.0)
    bound = torch.quantile(x.double().abs(), q).clamp(min=1)
    actual = denoise_step(x, x, tab, 0, outputs=("denoised",)).denoised
    # Between 4 and 4e30 an interpolated bound is as inexact as q (n - 1) in float64, 1e-14, is of their distance.
    torch.testing.assert_close(actual.double(), x.double().clamp(-bound, bound) / bound, rtol=1e-6, atol=1e-12)


def test_a_nan_in_a_thresholded_sample_is_in_all_of_it_alone():
    x, m, *_ = normals(3, 50)
    x[1, 7] = torch.nan
    result = denoise_step(x, m, table(quantile=0.9, x0_sample=2.0, prev_x0=1.0), 0).prev
    assert result[1].isnan().all() and not result[[0, 2]].isnan().any()


def test_clipping_keeps_infinities_in_and_nan():
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan, 0.5]])
    result = denoise_step(x, x, table(clip=1.0, x0_sample=1.0, prev_x0=1.0), 0).prev
    assert result[0, :2].tolist() == [1.0, -1.0] and result[0, 2].isnan() and result[0, 3] == 0.5


# Dtypes.


def test_a_float32_state_of_a_bfloat16_model():
    x, *_ = normals(2, 40)
    m = normals(2, 40, seed=1, dtype=torch.bfloat16)[0]
    result = denoise_step(x, m, table(prev_sample=1.0, prev_output=-0.1, next_scale=0.5), 0, outputs=("next",))
    assert result.prev.dtype == torch.float32 and result.next.dtype == torch.bfloat16
    assert torch.equal(result.next, (0.5 * result.prev).bfloat16())


# Gradients.


def test_gradients_are_those_of_the_expression():
    options = {"outputs": EVERYTHING, "key": key(), "guidance": 3.0, "rescale": 0.5, "first_step": 4}
    for tab in (table(**FULL), table(clip=0.8, **FULL), table(quantile=0.8, clip=3.0, **FULL)):
        leaves = [t.requires_grad_() for t in normals(3, 10, dtype=torch.float64)]

        def total(step, leaves=leaves, tab=tab):
            x, m, u, s, *h = leaves
            results = step(x, m, tab, 0, unconditional=u, state=s, history=h, **options)
            return sum(((i + 1) * r).pow(2).sum() for i, r in enumerate(results) if r is not None)

        ours = torch.autograd.grad(total(denoise_step), leaves, create_graph=True)
        theirs = torch.autograd.grad(total(reference.denoise.denoise_step), leaves, create_graph=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # the noise: float32 here, exact there
        second = [torch.autograd.grad(sum(g.sum() for g in grads), leaves) for grads in (ours, theirs)]
        torch.testing.assert_close(*second, rtol=1e-5, atol=1e-5)


def test_gradcheck():
    x, m, s, h0, *_ = (t.requires_grad_() for t in normals(2, 5, dtype=torch.float64))
    columns = {**DDPM, "prev_state": 0.4, "prev_history_0": -0.2}

    def step(x, m, s, h0):
        return denoise_step(x, m, table(clip=1.5, **columns), 0, state=s, history=[h0], key=key()).prev

    assert torch.autograd.gradcheck(step, (x, m, s, h0))


def test_a_gradient_does_not_change_the_result():
    x, m, *_ = normals(3, 21)
    tab = table(**DDPM)
    counter = torch.tensor([3, 0])
    plain = denoise_step(x, m, tab, 0, key=key(), first_step=3).prev
    leaf = m.clone().requires_grad_()
    with_gradient = denoise_step(x, leaf, tab, 0, key=key(), first_step=counter).prev
    assert torch.equal(plain, with_gradient.detach())
    (gradient,) = torch.autograd.grad(with_gradient.sum(), leaf)
    torch.testing.assert_close(gradient, torch.full_like(m, 0.7 * -0.5))
    assert counter.tolist() == [4, 0]


# torch.compile.


def test_one_graph_for_all_rows_and_steps(fresh_dynamo):
    x, m, *_ = normals(4, 21)
    tab, counter = table(12, **DDPM), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(denoise_step, fullgraph=True, backend=counter)
    rows, k = torch.arange(12), key()
    for i in range(12):
        actual = compiled(x, m, tab, rows[i], key=k, first_step=torch.tensor([i, 0])).prev
        assert torch.equal(actual, denoise_step(x, m, tab, i, key=k, first_step=i).prev)
    assert counter.frame_count == 1
    for i in range(12):
        actual = compiled(x, m, tab, i, key=k, first_step=i).prev
        assert torch.equal(actual, denoise_step(x, m, tab, i, key=k, first_step=i).prev)
    assert counter.frame_count <= 3


def test_one_graph_for_guidance_that_changes(fresh_dynamo):
    x, m, u, *_ = normals(4, 21)
    tab, counter = table(**DDPM), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(denoise_step, fullgraph=True, backend=counter)
    for form in (float, torch.tensor):
        for i in range(12):
            options = {"unconditional": u, "guidance": form(1 + i / 8), "key": key()}
            assert torch.equal(compiled(x, m, tab, 0, **options).prev, denoise_step(x, m, tab, 0, **options).prev)
    assert counter.frame_count <= 4


# Bad input.


@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (TypeError, "sample: expected", {"sample": torch.ones(3, 4, dtype=torch.int64)}),
        (TypeError, "model_output: expected a tensor", {"model_output": None}),
        (ValueError, "model_output: expected the shape of sample", {"model_output": torch.ones(3, 5)}),
        (ValueError, "model_output: expected 6 rows", {"guidance": 2.0}),
        (TypeError, "table: expected a variate", {"table": torch.zeros(1, 26)}),
        (ValueError, r"row: expected a row of the table, 0 to 1, got 2", {"row": 2}),
        (ValueError, r"row: expected a row of the table, 0 to 1, got -1", {"row": -1}),
        (TypeError, "row: expected an int", {"row": 0.5}),
        (ValueError, "row: expected rows 0 to 1 of the table, got 0 to 2", {"row": torch.tensor([0, 1, 2])}),
        (ValueError, "row: expected an int, or an int64 tensor of shape", {"row": torch.tensor([0, 1])}),
        (ValueError, "row: expected an int, or an int64 tensor of shape", {"row": torch.tensor(0.0)}),
        (ValueError, "outputs: expected any of denoised, saved, state, next, got 'x0'", {"outputs": ("x0",)}),
        (ValueError, "copies: expected 1 or 2, got 3", {"copies": 3}),
        (ValueError, "rescale: expected a number in", {"rescale": 2.0, "unconditional": torch.ones(3, 4)}),
        (ValueError, "history: expected at most 3", {"history": [torch.ones(3, 4)] * 4}),
        (ValueError, "history: expected the shape", {"history": [torch.ones(3, 5)]}),
        (ValueError, "state: expected the shape", {"state": torch.ones(4, 4)}),
        (ValueError, "noise: expected the shape", {"noise": torch.ones(4, 4)}),
        (TypeError, "guidance: expected a number", {"guidance": "2", "unconditional": torch.ones(3, 4)}),
        (ValueError, "key: expected shape", {"key": torch.zeros(3, dtype=torch.int64)}),
        (ValueError, "first_step: expected", {"first_step": -1}),
        (ValueError, "first_step: expected", {"first_step": torch.zeros(4, 2, dtype=torch.int64)}),
        (TypeError, "first_step: expected", {"first_step": 0.5}),
    ],
)
def test_bad_input(error, message, changed):
    arguments = {"sample": torch.ones(3, 4), "model_output": torch.ones(3, 4), "table": table(2, **DDPM), "row": 0}
    with pytest.raises(error, match=message):
        denoise_step(**{**arguments, **changed})


def test_what_a_row_reads_must_be_there():
    x = torch.ones(3, 4)
    with pytest.raises(ValueError, match="history: expected at least 2 tensors"):
        denoise_step(x, x, table(prev_history_1=1.0), 0, history=[x])
    with pytest.raises(ValueError, match="state: expected a tensor"):
        denoise_step(x, x, table(prev_state=1.0), 0)
    with pytest.raises(ValueError, match="variance: expected the tensor"):
        denoise_step(x, x, table(variance="learned", **DDPM), 0)
    with pytest.raises(ValueError, match="coefficients: expected float64"):
        Table(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="variance: expected None"):
        table(variance="small", **DDPM)


def test_a_failed_call_leaves_the_counter():
    counter = torch.tensor([3, 0])
    with pytest.raises(ValueError):
        denoise_step(torch.ones(3, 4), torch.ones(3, 5), table(**DDPM), 0, first_step=counter)
    assert counter.tolist() == [3, 0]
