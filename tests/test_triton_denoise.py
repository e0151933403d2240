"""The Triton kernel of a denoising step: interpreted, against the CPU kernel and the reference; compiled without a GPU.

Everything but bfloat16 and rescaled guidance must equal the CPU kernel in bits: products, sums and their order are the
same, and so is the noise. The interpreter truncates to bfloat16.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("variate")
sys.path.insert(0, str(Path(__file__).parent))

import aot
from triton_interpreter import Interpreter, load_kernels

import variate
from variate._table import COLUMN, COLUMNS, Table
from variate.reference.denoise import denoise_step as reference

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DENOISED, SAVED, STATE, NEXT, TWICE = 1, 2, 4, 8, 16
ALL = DENOISED | SAVED | STATE | NEXT


@pytest.fixture(scope="module")
def interpreted():
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


@pytest.fixture
def long_samples(interpreted):
    """Samples of 1500 elements take the path of those that fit into no program; float64 ones of 300."""
    interpreted.set("denoise", WHOLE=1024)
    interpreted.set("denoise_rows", COUNT_TILE=512, COUNT_PROGRAMS=2, MOMENT_STEPS=1)
    yield
    interpreted.set("denoise", WHOLE=16384)
    interpreted.set("denoise_rows", COUNT_TILE=4096, COUNT_PROGRAMS=512, MOMENT_STEPS=16)


class Call(NamedTuple):
    """The arguments of variate::denoise_step."""

    sample: torch.Tensor
    output: torch.Tensor
    coefficients: torch.Tensor
    row: int = 1
    clip: float = 0.0
    wanted: int = 0
    key: torch.Tensor | None = None
    step: int = 0
    history_0: torch.Tensor | None = None
    history_1: torch.Tensor | None = None
    history_2: torch.Tensor | None = None
    state: torch.Tensor | None = None
    first_sample: int = 0
    rows: torch.Tensor | None = None
    unconditional: torch.Tensor | None = None
    guidance: torch.Tensor | None = None
    rescale: float = 0.0
    quantile: float = 0.0
    variance: torch.Tensor | None = None
    variance_kind: int = 0
    drawn: torch.Tensor | None = None
    counter: torch.Tensor | None = None

    def to(self, device: str) -> Call:
        """Copies, on a device."""
        return Call(*(x.to(device, copy=True) if isinstance(x, torch.Tensor) else x for x in self))

    def by(self, ops: Any) -> list[torch.Tensor]:
        """The results of the op that this is a call of."""
        short = Call._fields.index("rows")
        if not any(isinstance(x, torch.Tensor) or x for x in self[short:]):
            return ops.denoise_step(*self[:short])
        wanted = [True, *(bool(self.wanted >> bit & 1) for bit in range(4))]
        return [x for x, w in zip(ops.denoise_step_full(*self.full()), wanted, strict=True) if w]

    def full(self) -> tuple[Any, ...]:
        return self[-1], *self[:-1]

    @property
    def history(self) -> list[torch.Tensor]:
        return [h for h in (self.history_0, self.history_1, self.history_2) if h is not None]

    def reference(self) -> list[torch.Tensor]:
        outputs = ("denoised", "saved", "state", "next")
        result = reference(
            self.sample,
            self.output,
            Table(
                self.coefficients,
                torch.zeros(len(self.coefficients)),
                clip=self.clip or None,
                quantile=self.quantile or None,
                variance=(None, "learned", "learned_range")[self.variance_kind],
            ),
            self.row if self.rows is None else self.rows,
            unconditional=self.unconditional,
            guidance=1.0 if self.guidance is None else self.guidance,
            rescale=self.rescale,
            variance=self.variance,
            history=self.history,
            state=self.state,
            noise=self.drawn,
            outputs=[name for bit, name in enumerate(outputs) if self.wanted >> bit & 1],
            copies=2 if self.wanted & TWICE else 1,
            key=self.key,
            first_sample=self.first_sample,
            first_step=self.step if self.counter is None else self.counter.clone(),
        )
        return [x for x in result if x is not None]


def make_table(rows: int = 4, absent: tuple[str, ...] = ()) -> torch.Tensor:
    """Every coefficient of some size, but those that read what is `absent`, and but for the last row, which has few."""
    generator = torch.Generator().manual_seed(rows)
    table = torch.randn(rows, len(COLUMNS), generator=generator, dtype=torch.float64)
    table[-1] = 0
    table[-1, [COLUMN["x0_sample"], COLUMN["prev_x0"], COLUMN["next_scale"], COLUMN["denoised_x0"]]] = 1.0
    table[:, [i for i, column in enumerate(COLUMNS) if column.endswith(absent)]] = 0
    return table


def make(shape: tuple[int, ...], dtype=torch.float32, output=None, seed: int = 0, **changed: Any) -> Call:
    """A call with everything in it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    output = output or dtype
    return Call(
        draw(dtype),
        draw(output),
        make_table(),
        unconditional=draw(output),
        guidance=torch.tensor(3.5, dtype=torch.float64),
        history_0=draw(dtype),
        history_1=draw(dtype),
        history_2=draw(dtype),
        state=draw(dtype),
        wanted=ALL,
        key=torch.tensor([5, 11]),
        first_sample=7,
        step=9,
    )._replace(**changed)


def on_cpu(call: Call) -> list[torch.Tensor]:
    return call.to("cpu").by(torch.ops.variate)


def equal(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


def close(actual: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float | None = None) -> None:
    """Coefficients reach 3 and values 30, and a sum has up to 8 roundings; 16-bit ones are rounded once more."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape
        bound = tolerance or {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}.get(a.dtype, 2.0**-20)
        torch.testing.assert_close(a.double(), e.double(), rtol=bound, atol=30 * 2.0**-20, equal_nan=True)


SHAPES = [(7,), (5, 4), (3, 2, 7), (2, 1030), (3, 5, 600)]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_cpu_in_bits(interpreted, shape):
    call = make(shape, wanted=ALL | (TWICE if len(shape) > 1 else 0))
    actual = call.by(interpreted)
    equal(actual, on_cpu(call))
    close(actual, call.reference())


@pytest.mark.parametrize("wanted", [0, DENOISED, SAVED | NEXT, STATE])
def test_only_what_is_wanted_is_returned(interpreted, wanted):
    call = make((3, 20), wanted=wanted, unconditional=None, guidance=None)
    equal(call.by(interpreted), on_cpu(call))


@pytest.mark.parametrize(
    ("dtype", "output"), [(d, d) for d in FLOATS[1:]] + [(FLOATS[0], d) for d in FLOATS[1:]] + [(FLOATS[3], FLOATS[1])]
)
def test_dtypes(interpreted, dtype, output):
    call = make((3, 50), dtype, output)
    actual = call.by(interpreted)
    if torch.bfloat16 in (dtype, output):
        close(actual, on_cpu(call))
    else:
        equal(actual, on_cpu(call))
    if torch.float64 not in (dtype, output):
        close(actual, call.reference())


def test_halves_strides_and_expanded_tensors(interpreted):
    call = make((4, 3, 10))
    both = torch.cat([call.unconditional, call.output])
    strided = call._replace(
        sample=call.sample.transpose(0, 2).contiguous().transpose(0, 2),
        output=both[4:],
        unconditional=both[:4],
        history_0=call.history_0.permute(1, 0, 2).contiguous().permute(1, 0, 2),
        state=call.state[:1].expand(4, 3, 10),
    )
    equal(strided.by(interpreted), on_cpu(strided))
    dense = call._replace(state=strided.state.contiguous())
    equal(dense.by(interpreted), on_cpu(strided))


def test_tensors_without_a_coefficient_may_hold_anything(interpreted):
    call = make((3, 50), row=3, wanted=ALL)
    nan = torch.full_like(call.sample, torch.nan)
    poisoned = call._replace(
        output=nan, unconditional=None, guidance=None, history_0=nan, history_1=nan, history_2=nan, state=nan
    )
    actual = poisoned.by(interpreted)
    equal(actual, on_cpu(poisoned))
    assert torch.equal(actual[0], call.sample) and torch.equal(actual[-1], call.sample)
    rows = poisoned._replace(rows=torch.full((3, 5), 3))
    equal(rows.by(interpreted), actual)


@pytest.mark.parametrize("kind", [1, 2])
def test_learned_variance(interpreted, kind):
    call = make((3, 50), variance_kind=kind, variance=torch.linspace(0.0, 1.0, 150).view(3, 50))
    actual = call.by(interpreted)
    equal(actual, on_cpu(call))
    close(actual, call.reference(), 2.0**-18)


def test_given_noise(interpreted):
    call = make((3, 50), drawn=torch.linspace(-2.0, 2.0, 150).view(3, 50), key=None)
    equal(call.by(interpreted), on_cpu(call))


@pytest.mark.parametrize(
    "rows",
    [torch.tensor(2), torch.tensor([2, 0, 1]), torch.tensor([[2, 0], [1, 1], [0, 3]]), torch.tensor([[0], [1], [2]])],
)
@pytest.mark.parametrize("cols", [30, 1500])
def test_rows_of_samples_and_of_parts(interpreted, rows, cols):
    call = make((3, cols), rows=rows, row=0)
    actual = call.by(interpreted)
    equal(actual, on_cpu(call))
    scaled = call._replace(rows=rows.expand(3, 10) if rows.dim() == 2 and rows.shape[1] == 1 else rows)
    equal(scaled.by(interpreted), actual)


@pytest.mark.parametrize("row", [-1, 4, 2**40])
def test_rows_outside_the_table_are_nan(interpreted, row):
    call = make((3, 10), row=row)
    assert all(bool(x.isnan().all()) for x in call.by(interpreted))
    rows = torch.tensor([[0, 1], [row, 2], [1, 1]])
    outside = (rows == row).repeat_interleave(5, 1)
    expected = call._replace(rows=rows.where(rows != row, 0)).by(interpreted)
    for a, e in zip(call._replace(rows=rows).by(interpreted), expected, strict=True):
        assert torch.equal(a.isnan(), outside) and torch.equal(a[~outside], e[~outside])


@pytest.mark.parametrize("cols", [10, 1500])
def test_the_counter_is_the_step_and_advances(interpreted, cols):
    call = make(
        (3, cols),
        wanted=0,
        history_0=None,
        history_1=None,
        history_2=None,
        state=None,
        unconditional=None,
        guidance=None,
    )
    call = call._replace(coefficients=call.coefficients * (torch.arange(26) < 6) + 0.5 * (torch.arange(26) == 10))
    for counter, steps in ((torch.tensor([9, 0]), [9, 9, 9]), (torch.tensor([[3, 0], [8, 0], [2**32, 0]]), [3, 8, 0])):
        counted = call._replace(counter=counter.clone())
        result = interpreted.filled("denoise_step_full", *counted.full())[0]
        expected = counter.clone()
        expected[..., 0] += 1
        assert torch.equal(result, expected)
        actual = counted.by(interpreted)[0]
        equal([actual], on_cpu(counted))
        for b, step in enumerate(steps):
            assert torch.equal(actual[b], call._replace(step=step).by(interpreted)[0][b])


def test_a_row_without_noise_advances_the_counter_too(interpreted):
    for key in (None, torch.tensor([1, 2])):
        call = make((3, 2000), row=3, key=key, counter=torch.tensor([4, 0]))
        assert interpreted.filled("denoise_step_full", *call.full())[0].tolist() == [5, 0]
    empty = make((0, 5), counter=torch.tensor([4, 0]))
    assert interpreted.filled("denoise_step_full", *empty.full())[0].tolist() == [5, 0]


def test_keys_of_samples(interpreted):
    keys = torch.tensor([[3, 5], [7, -1], [2**40, 8]])
    call = make((3, 50), key=keys, first_sample=0)
    equal(call.by(interpreted), on_cpu(call))


def test_a_sample_depends_on_nothing_else_in_its_batch(interpreted):
    call = make((5, 300), rescale=0.7, quantile=0.9, clip=2.0)
    whole = call.by(interpreted)
    part = {name: x[2:4] for name, x in call._asdict().items() if isinstance(x, torch.Tensor) and x.shape == (5, 300)}
    few = call._replace(**part, first_sample=9).by(interpreted)
    equal(few, [x[2:4] for x in whole])


def test_clip_lets_nan_through(interpreted):
    call = make((3, 50), clip=0.5)
    call.sample[0, 3], call.sample[1, 1] = torch.nan, torch.inf
    equal(call.by(interpreted), on_cpu(call))


def check_thresholds(interpreted, cols, dtype, quantile):
    call = make((2, cols), dtype, quantile=quantile, clip={20: 1.5, 3: 0.6}.get(cols, 0.0), wanted=DENOISED)
    actual = call.by(interpreted)
    equal(actual, on_cpu(call))
    if dtype == torch.float32:  # the reference's normals are those of float64 math
        close(actual, call.reference())


@pytest.mark.parametrize("cols", [3, 20, 1025])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("quantile", [0.995, 0.3, 1.0])
def test_dynamic_thresholding(interpreted, cols, dtype, quantile):
    check_thresholds(interpreted, cols, dtype, quantile)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("quantile", [0.995, 0.3, 1.0])
def test_dynamic_thresholding_of_long_samples(interpreted, long_samples, dtype, quantile):
    check_thresholds(interpreted, 1501, dtype, quantile)


def check_ties(interpreted, cols):
    table = torch.zeros(2, len(COLUMNS), dtype=torch.float64)
    table[:, [COLUMN["x0_sample"], COLUMN["prev_x0"]]] = 1.0
    sample = torch.full((6, cols), -3.0)
    sample[1, ::2] = 5.0
    sample[2, cols // 2 :] = torch.inf
    sample[3, 1] = torch.nan
    sample[4] = 0.0
    sample[5] = torch.linspace(-2.0, 2.0, cols)
    for quantile in (0.5, 0.25, 1.0):
        call = Call(sample, sample, table, quantile=quantile)
        equal(call.by(interpreted), on_cpu(call))
    outside = call._replace(rows=torch.tensor([0, 0, 0, 0, 0, 2])).by(interpreted)[0]
    assert bool(outside[5].isnan().all()) and bool(outside[3].isnan().all()) and not bool(outside[1].isnan().any())


def test_thresholds_of_ties_infinities_and_nan(interpreted):
    check_ties(interpreted, 40)


def test_thresholds_of_ties_infinities_and_nan_in_long_samples(interpreted, long_samples):
    check_ties(interpreted, 1500)


def check_rescaled(interpreted, cols, dtype):
    """The standard deviations are sums of other orders: within the rounding of float32 squares."""
    call = make((2, cols), dtype, rescale=0.7)
    close(call.by(interpreted), on_cpu(call), 2.0**-20)
    both = call._replace(quantile=0.9)
    close(both.by(interpreted), on_cpu(both), 2.0**-20)


@pytest.mark.parametrize("cols", [20, 1025])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rescaled_guidance(interpreted, cols, dtype):
    check_rescaled(interpreted, cols, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rescaled_guidance_of_long_samples(interpreted, long_samples, dtype):
    check_rescaled(interpreted, 1500, dtype)


# Compiled without a GPU.


def variants(shape: tuple[int, ...], dtype: torch.dtype, output: torch.dtype) -> dict[str, Call]:
    full = make(shape, dtype, output, counter=torch.tensor([2, 0]), wanted=ALL | TWICE)
    past = ("_state", "history_0", "history_1", "history_2")
    plain = full._replace(
        coefficients=make_table(absent=past),
        history_0=None,
        history_1=None,
        history_2=None,
        state=None,
        unconditional=None,
        guidance=None,
        wanted=0,
    )
    samples = shape[0]
    return {
        "plain": plain._replace(coefficients=make_table(absent=(*past, "_noise")), key=None, counter=None),
        "stochastic": plain,
        "clip": plain._replace(clip=1.0, wanted=DENOISED),
        "multistep": plain._replace(
            coefficients=make_table(absent=("_state", "history_2")),
            history_0=full.history_0,
            history_1=full.history_1,
            wanted=SAVED | NEXT,
        ),
        "guided": plain._replace(unconditional=full.unconditional, guidance=full.guidance, wanted=NEXT | TWICE),
        "learned": plain._replace(variance=full.output, variance_kind=2),
        "everything": full._replace(clip=1.0),
        "samples": full._replace(
            rows=torch.arange(samples) % 4,
            counter=torch.arange(2 * samples).view(samples, 2) * torch.tensor([1, 0]),
            key=torch.arange(2 * samples).view(samples, 2),
            first_sample=0,
        ),
        "parts": full._replace(rows=torch.arange(4 * samples).view(samples, 4) % 3),
        "thresholded": plain._replace(quantile=0.995, clip=1.0),
        "rescaled": full._replace(rescale=0.7),
        "everything and thresholded": full._replace(rescale=0.7, quantile=0.995, clip=1.0),
    }


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "output", "names"),
    [
        (torch.float32, torch.float32, None),
        (torch.float32, torch.bfloat16, ("guided", "everything and thresholded")),
        (torch.bfloat16, torch.bfloat16, ("everything", "thresholded")),
        (torch.float64, torch.float64, ("everything and thresholded",)),
    ],
)
def test_compiles_without_spills(capability, dtype, output, names):
    kernels = load_kernels()
    double = dtype == torch.float64
    for cols in (20, 4096, 65536):
        for name, call in variants((8, cols), dtype, output).items():
            both_ways = "thresholded" in name or "rescaled" in name
            if capability == 80 and names is None and name in ("plain", "clip", "multistep", "guided", "learned"):
                continue
            if name not in (names or (name,)) or (cols == 20 and not both_ways) or (cols > 4096 and not both_ways):
                continue
            compiled = aot.compiled(capability, lambda call=call: call.by(kernels))
            launches = 1
            if cols > 4096:
                launches += 2 * (call.rescale > 0) + (1 + (6 if double else 3)) * (call.quantile > 0)
            assert len(compiled) == launches
            for kernel in compiled:
                assert kernel.stack == 0 and kernel.local == 0, f"{name}, {cols}: {kernel.name} spills"
                assert not kernel.contracts
                if not double:
                    for inexact in (".approx", "div.full", ".ftz"):
                        assert inexact not in kernel.ptx, f"{name}: {kernel.name} uses {inexact}"
            if dtype == output == torch.float32 and cols > 20:
                assert 4 in compiled[-1].vector_widths("ld"), f"{name} loads one by one"
                assert 4 in compiled[-1].vector_widths("st"), f"{name} stores one by one"


# On a GPU.


@pytest.fixture(params=["cuda", "triton"])
def on_gpu(request):
    """The ops on a GPU: those in CUDA C++, where there are any, or in Triton."""
    if request.param == "cuda" and not variate._C.build_info()["cuda"]:
        pytest.skip("no CUDA kernels were built")
    with variate.use_backend(request.param):
        yield load_kernels() if request.param == "triton" else torch.ops.variate


@pytest.mark.gpu
@pytest.mark.parametrize("cols", [20, 301, 3000, 70000])
@pytest.mark.parametrize(
    ("dtype", "output"), [(d, d) for d in FLOATS] + [(torch.float32, torch.bfloat16), (torch.float32, torch.float16)]
)
def test_a_gpu_equals_the_cpu_in_bits(on_gpu, cols, dtype, output):
    for name, call in variants((8, cols), dtype, output).items():
        if name == "parts" and cols % 4 != 0:
            continue
        there = call.to("cuda")
        actual = [x.cpu() for x in there.by(on_gpu)]
        here = call.to("cpu")
        expected = here.by(torch.ops.variate)
        if call.rescale > 0 or dtype == torch.float64:  # math of a library
            close(actual, expected)
        else:
            equal(actual, expected)
        if call.counter is not None:
            assert torch.equal(there.counter.cpu(), here.counter)
        rows = call._replace(counter=None, rows=torch.full((8,), 9)).to("cuda")
        assert all(bool(x.isnan().all()) for x in rows.by(on_gpu))


@pytest.mark.gpu
def test_gpu_halves_and_strides(on_gpu):
    call = make((4, 3, 10))
    both = torch.cat([call.unconditional, call.output])
    moved = call.to("cuda")
    both = both.cuda()
    strided = moved._replace(
        sample=moved.sample.transpose(0, 2).contiguous().transpose(0, 2),
        output=both[4:],
        unconditional=both[:4],
        state=moved.state[:1].expand(4, 3, 10),
    )
    expected = on_cpu(call._replace(state=call.state[:1].expand(4, 3, 10)))
    equal([x.cpu() for x in strided.by(on_gpu)], expected)


STEPS = 50


def loop_table() -> Table:
    coefficients = torch.zeros(STEPS, len(COLUMNS), dtype=torch.float64)
    columns = {"x0_sample": 1.0, "x0_output": -0.5, "prev_sample": 0.7, "prev_x0": 0.2, "prev_history_0": 0.05}
    for name, value in {**columns, "prev_noise": 0.1, "saved_x0": 1.0, "next_scale": 0.9}.items():
        coefficients[:, COLUMN[name]] = value + 0.001 * torch.arange(STEPS)
    coefficients[0, COLUMN["prev_history_0"]] = 0
    return Table(coefficients, torch.arange(STEPS).double(), history=1, clip=2.0)


def sampling_loop(x: torch.Tensor, weight: torch.Tensor, key: torch.Tensor, counter: torch.Tensor, table: Table):
    saved, model_input = x, x
    for row in range(STEPS):
        step = variate.functional.denoise.denoise_step(
            x,
            torch.tanh(model_input @ weight),
            table,
            row,
            history=(saved,),
            outputs=("saved", "next"),
            key=key,
            first_step=counter,
        )
        x, saved, model_input = step.prev, step.saved, step.next
    return x


@pytest.mark.gpu
def test_a_loop_in_one_graph_never_waits(on_gpu):
    table = loop_table().to("cuda")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 16, generator=generator).cuda()
    weight = torch.randn(16, 16, generator=generator).cuda()
    key, counter = torch.tensor([3, 5]).cuda(), torch.tensor([0, 0]).cuda()
    sampling_loop(x, weight, key, counter, table)  # compiles
    expected = [sampling_loop(x, weight, key, counter, table) for _ in range(2)]
    assert counter.tolist() == [3 * STEPS, 0] and not torch.equal(*expected)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampling_loop(x, weight, key, counter, table)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sampling_loop(x, weight, key, counter, table)
    counter.copy_(torch.tensor([STEPS, 0]))
    for result in expected:
        graph.replay()
        assert torch.equal(captured, result)
    assert counter.tolist() == [3 * STEPS, 0]
