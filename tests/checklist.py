"""What every op keeps, as tests: a family writes one OpCase per op and inherits Checklist.

    CASES = (OpCase("normal_rsample", functional.normal_rsample, reference.reparam.normal_rsample, ...),)

    class TestChecklist(Checklist):
        cases = CASES

conftest.py runs each test on the cases it applies to, and on a GPU, where there is one, once per backend.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import variate
from variate.functional import _gate

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((), (1,), (7,), (1, 1), (5, 3), (130, 20), (3, 1025), (2, 3, 5), (2, 3, 4, 5))
EMPTY_SHAPES = ((0,), (0, 3), (2, 0), (2, 3, 0))
KEY = (0x0123456789ABCDEF, 2**33 - 2)  # its offset carries into the counter's second word
# More elements than the CPU kernels give to one thread, and rows that end inside a block of four.
THREADED_SHAPE = (70, 301)

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Arg:
    """One tensor argument: how standard normals become its values, and what it may be."""

    name: str
    values: Callable[[Tensor], Tensor] = lambda normals: normals
    dtypes: tuple[torch.dtype, ...] = FLOATS
    differentiable: bool = True
    read: bool = True  # False: only its shape, dtype and device matter
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape  # its own, from that of the case


@dataclass(frozen=True)
class OpCase:
    """One op as its users call it: function(*args, **options), with key= where it draws noise."""

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    args: tuple[Arg, ...]
    # The raw ops, for opcheck: from tensors and a key to (op, its arguments), forward and backward.
    raw: Callable[[Tensors, Tensor], list[tuple[Any, tuple[Any, ...]]]]
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    annealed: tuple[str, ...] = ()  # the options that people change from step to step
    annealed_from: float = 0.0
    stochastic: bool = False
    noise: bool = False  # it is a draw itself: the reference then draws its own, and so tests the noise
    absolute_error: float = 0.0  # what the float32 result may differ from float64's beyond rounding, and why
    accepts: Callable[[tuple[int, ...]], bool] = lambda shape: True  # which shapes
    joint_dims: int = 0  # the last dimensions that a NaN spreads over, as it does over categories
    straight_through: bool = False  # its gradient is another function's
    keeps_output: bool = False  # its backward pass reads the output in place of the inputs

    @property
    def differentiable(self) -> bool:
        return any(arg.differentiable for arg in self.args)

    def shapes(self, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[tuple[int, ...]]:
        return [shape for shape in shapes if self.accepts(shape)]


@dataclass
class Result:
    outputs: Tensors
    gradients: Tensors

    @property
    def all(self) -> Tensors:
        return self.outputs + self.gradients


def applies(predicate: Callable[[OpCase], bool]) -> Callable[..., Any]:
    """Restricts a test to some of the cases."""

    def mark(test: Callable[..., Any]) -> Callable[..., Any]:
        test.applies_to = predicate  # type: ignore[attr-defined]
        return test

    return mark


stochastic = applies(lambda case: case.stochastic)
deterministic = applies(lambda case: not case.stochastic)
differentiable = applies(lambda case: case.differentiable)
reading = applies(lambda case: any(arg.read for arg in case.args))


def key(device: str = "cpu") -> Tensor:
    return variate.random.key(*KEY, device=device)


def keys(count: int, device: str = "cpu") -> Tensor:
    """One key per sample, [count, 2]."""
    return variate.random.split(key(device), count)


def make(
    case: OpCase,
    shape: tuple[int, ...],
    dtypes: torch.dtype | tuple[torch.dtype, ...] = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    lead: int = 0,
) -> Tensors:
    """Sample inputs: the same values on every device. A dtype that an argument lacks becomes its first. The first
    `lead` dimensions are for vmap to map, and every argument has them as they are."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(dtypes, torch.dtype):
        dtypes = tuple(dtypes if dtypes in arg.dtypes else arg.dtypes[0] for arg in case.args)
    return tuple(
        arg.values(torch.randn(shape[:lead] + arg.shape(shape[lead:]), dtype=torch.float64, generator=generator)).to(
            device, dtype
        )
        for arg, dtype in zip(case.args, dtypes, strict=True)
    )


def outputs_of(result: Any) -> Tensors:
    return result if isinstance(result, tuple) else (result,)


def call(case: OpCase, tensors: Tensors, function: Callable[..., Any] | None = None, **changed: Any) -> Tensors:
    options = {**case.options, **changed}
    if case.stochastic and "key" not in options:
        options["key"] = key(str(tensors[0].device))
    return outputs_of((function or case.function)(*tensors, **options))


def upstream(output: Tensor) -> Tensor:
    """The gradient that arrives at an output: neighbours differ, none is 0, all are exact in every dtype."""
    index = torch.arange(output.numel(), device=output.device)
    return (1 + (1 + index % 62) / 64).reshape(output.shape).to(output.dtype)


def run(case: OpCase, tensors: Tensors, function: Callable[..., Any] | None = None, **changed: Any) -> Result:
    """Outputs, and the gradients of all arguments that have them. The tensors keep their strides."""
    leaves = tuple(
        tensor.detach().requires_grad_(arg.differentiable and tensor.is_floating_point())
        for arg, tensor in zip(case.args, tensors, strict=True)
    )
    outputs = call(case, leaves, function, **changed)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    sources = [output for output in outputs if output.requires_grad]
    if not sources:
        return Result(outputs, ())
    gradients = torch.autograd.grad(sources, wanted, [upstream(output) for output in sources])
    return Result(tuple(output.detach() for output in outputs), gradients)


@contextlib.contextmanager
def kernel_noise() -> Iterator[None]:
    """The reference draws by the library's kernels, so that what is compared is what is made of the noise."""
    names = ("uniform", "normal", "exponential", "gumbel", "bernoulli")
    with contextlib.ExitStack() as stack:
        for name in names:
            kernel = getattr(variate.random, name)
            stack.enter_context(mock.patch.object(variate.reference.random, name, kernel))
        stack.enter_context(mock.patch.object(variate.reference.random, "normal_at", _kernel_normal))
        stack.enter_context(mock.patch.object(variate.reference.reparam, "base_noise", _kernel_base_noise))
        yield


def _kernel_normal(size: tuple[int, ...], key: Tensor, first_sample: int, step: int) -> Tensor:
    assert isinstance(step, int) and step == 0, "the kernel draws at step 0"
    return variate.random.normal(size, key=key, first_sample=first_sample)


def _kernel_base_noise(
    base: str,
    size: tuple[int, ...],
    samples: int | None,
    antithetic: bool,
    key: Tensor,
    generator: None,
    first_sample: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """variate.reference.reparam.base_noise by the kernel: 0 + 1 noise."""
    rsample = getattr(variate.functional, f"{base}_rsample")
    zeros, ones = torch.zeros(size, device=device), torch.ones(size, device=device)
    drawn = rsample(zeros, scale=ones, samples=samples, antithetic=antithetic, key=key, first_sample=first_sample)
    return drawn.to(dtype)


def assert_same_bits(actual: Tensors, expected: Tensors) -> None:
    assert len(actual) == len(expected)
    for index, (x, y) in enumerate(zip(actual, expected, strict=True)):
        assert x.dtype == y.dtype and x.shape == y.shape, f"result {index}: {x.dtype} {x.shape}, {y.dtype} {y.shape}"
        assert torch.equal(bytes_of(x), bytes_of(y)), f"result {index} differs by {(x.double() - y).abs().max()}"


def bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def assert_accurate(
    actual: Tensors, stock: Tensors, truth: Tensors, inputs: Tensors, absolute_error: float = 0.0
) -> None:
    """The error against float64 is at most twice that of PyTorch in the same dtype, by maximum norm, and some ulp.

    Where PyTorch's error is small by luck, some ulp are allowed: 8 in float32 and float64, the sum of the bounds of the
    element functions that a value passes through (variate/math/elementary.hpp), of the largest value, or of 1 where
    terms of that size cancel; 1 in bfloat16 and float16, where the one rounding of the result is all there is.
    """
    low = [tensor.dtype for tensor in inputs if tensor.dtype in (torch.bfloat16, torch.float16)]
    for index, (x, y, exact) in enumerate(zip(actual, stock, truth, strict=True)):
        assert x.shape == exact.shape
        if not x.dtype.is_floating_point:
            assert torch.equal(x, exact.to(x.dtype)), f"result {index}"
            continue
        if not x.numel():
            continue
        assert exact.isfinite().all(), "the sample inputs overflow"
        worst = exact.abs().max().item()
        eps = torch.finfo(x.dtype).eps
        rounding = eps * worst if x.dtype in low else 8 * eps * max(worst, 1.0)
        bound = 2 * (y.double() - exact).abs().max().item() + rounding + absolute_error
        error = (x.double() - exact).abs().max().item()
        assert error <= bound, f"result {index}: error {error:.3g}, bound {bound:.3g}"


def strided(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors with other strides than their contiguous copies, in the shape of `tensor` where its values stay."""
    if tensor.dim() == 0:
        return
    yield "every second", torch.stack([tensor, tensor], -1)[..., 0]
    yield "chunk", torch.cat([tensor, tensor], -1).chunk(2, -1)[1]
    yield "expanded rows", tensor[:1].expand(tensor.shape)
    yield "expanded columns", tensor[..., :1].expand(tensor.shape)
    yield "one number", tensor.flatten()[0].expand(tensor.shape)
    if tensor.dim() > 1:
        yield "transposed", tensor.transpose(0, -1).contiguous().transpose(0, -1)
        yield "rows of a larger one", torch.cat([tensor, tensor])[tensor.shape[0] :]
    if tensor.dim() == 4:
        yield "channels last", tensor.contiguous(memory_format=torch.channels_last)


def digest(case: OpCase) -> str:
    """A hash of all bits that a case computes, to compare processes by."""
    state = hashlib.sha256()
    for shape, dtype in itertools.product(case.shapes(), FLOATS):
        for tensor in run(case, make(case, shape, dtype)).all:
            state.update(bytes_of(tensor).numpy().tobytes())
    return state.hexdigest()


def digests_on(instruction_set: str, module: str) -> dict[str, str]:
    """The digests of the CASES of a test module, in a process that uses one instruction set."""
    code = (
        f"import checklist, importlib, variate; print(variate.build_info()['cpu_capability'])\n"
        f"for case in importlib.import_module({module!r}).CASES: print(case.name, checklist.digest(case), sep='\\t')"
    )
    environment = {
        **os.environ,
        "VARIATE_CPU": instruction_set,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    used, *lines = result.stdout.strip().splitlines()
    if used != instruction_set:
        pytest.skip(f"this machine runs {used}")
    return dict(line.split("\t") for line in lines)


class Checklist:
    """Inherit it as TestChecklist, with `cases`."""

    cases: tuple[OpCase, ...] = ()

    # Values and gradients.

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_accuracy(self, case: OpCase, place: Any, dtype: torch.dtype) -> None:
        for seed, shape in enumerate(case.shapes()):
            self.check_accuracy(case, make(case, shape, dtype, place.device, seed))

    @applies(lambda case: len(case.args) > 1)
    def test_accuracy_of_mixed_dtypes(self, case: OpCase, place: Any) -> None:
        mixtures = itertools.product(*(arg.dtypes for arg in case.args))
        for seed, dtypes in enumerate(itertools.islice(mixtures, 40)):
            self.check_accuracy(case, make(case, (5, 19), dtypes, place.device, seed))

    def check_accuracy(self, case: OpCase, tensors: Tensors) -> None:
        actual = run(case, tensors)
        with kernel_noise() if not case.noise else contextlib.nullcontext():
            stock = run(case, tensors, case.reference)
            widened = tuple(tensor.double() for tensor in tensors) if not case.noise else tensors
            truth = run(case, widened, case.reference)
        # A target in integers has no gradient, its float64 form has: compare those that are there.
        there = [
            tensor.is_floating_point() for arg, tensor in zip(case.args, tensors, strict=True) if arg.differentiable
        ]
        exact = tuple(itertools.compress(truth.gradients, there)) if len(there) == len(truth.gradients) else ()
        assert len(actual.gradients) == len(stock.gradients) == len(exact)
        for gradient, tensor in zip(
            actual.gradients,
            [t for a, t in zip(case.args, tensors, strict=True) if a.differentiable and t.is_floating_point()],
            strict=True,
        ):
            assert gradient.dtype == tensor.dtype and gradient.shape == tensor.shape
        assert_accurate(actual.all, stock.all, truth.outputs + exact, tensors, case.absolute_error)

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    def test_the_reference_has_the_same_shapes_and_dtypes(self, case: OpCase, dtype: torch.dtype) -> None:
        for shape in case.shapes(SHAPES + EMPTY_SHAPES):
            tensors = make(case, shape, dtype)
            for ours, theirs in zip(run(case, tensors).all, run(case, tensors, case.reference).all, strict=True):
                assert ours.dtype == theirs.dtype and ours.shape == theirs.shape

    @applies(lambda case: case.differentiable and not case.straight_through)
    def test_gradcheck(self, case: OpCase) -> None:
        tensors = tuple(
            tensor.requires_grad_(arg.differentiable)
            for arg, tensor in zip(case.args, make(case, (3, 5), torch.float64), strict=True)
        )
        # Forward mode goes to the reference, whose float64 noise differs by the 2e-6 of float32 normals.
        assert torch.autograd.gradcheck(lambda *args: call(case, args), tensors, check_forward_ad=True, atol=1e-5)

    @pytest.mark.sanitize
    def test_empty(self, case: OpCase, place: Any) -> None:
        for shape in case.shapes(EMPTY_SHAPES):
            tensors = make(case, shape, torch.float32, place.device)
            actual, expected = run(case, tensors).all, run(case, tensors, case.reference).all
            for x, y in zip(actual, expected, strict=True):
                assert x.shape == y.shape and torch.equal(x, y.to(x.dtype))

    @pytest.mark.sanitize
    def test_strides(self, case: OpCase, place: Any) -> None:
        for shape in case.shapes(((9,), (6, 21), (3, 4, 5), (2, 3, 4, 5), (3, 1030))):
            tensors = make(case, shape, torch.float32, place.device)
            layouts = [list(strided(tensor)) for tensor in tensors]
            for variants in zip(*layouts, strict=False):  # an argument with fewer dimensions has fewer layouts
                views = tuple(view for _, view in variants)
                expected = run(case, tuple(view.contiguous() for view in views))
                assert_same_bits(run(case, views).all, expected.all)

    @differentiable
    def test_strides_of_incoming_gradients(self, case: OpCase, place: Any) -> None:
        """`z.sum().backward()` sends a gradient of stride 0."""
        tensors = make(case, (6, 21), torch.float32, place.device)

        def gradients(of: Callable[[Tensor], Tensor]) -> Tensors:
            leaves = tuple(
                tensor.clone().requires_grad_(arg.differentiable)
                for arg, tensor in zip(case.args, tensors, strict=True)
            )
            outputs = call(case, leaves)
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            return torch.autograd.grad(outputs, wanted, [of(output) for output in outputs])

        one = torch.tensor(0.7, device=place.device)
        assert_same_bits(
            gradients(lambda output: one.expand(output.shape)),
            gradients(lambda output: one.expand(output.shape).contiguous()),
        )
        assert_same_bits(
            gradients(lambda output: upstream(output).repeat_interleave(2, -1)[..., ::2]),
            gradients(upstream),
        )

    @differentiable
    def test_each_gradient_alone(self, case: OpCase, place: Any) -> None:
        """Each argument's gradient from each output alone is what it is among all."""
        tensors = make(case, (5, 19), torch.float32, place.device)
        which = [i for i, arg in enumerate(case.args) if arg.differentiable]

        def gradient(argument: int, output: int, leaves_wanted: list[int]) -> Tensor | None:
            leaves = tuple(t.clone().requires_grad_(i in leaves_wanted) for i, t in enumerate(tensors))
            result = call(case, leaves)[output]
            if not result.requires_grad:
                return None
            return torch.autograd.grad(result, leaves[argument], upstream(result), allow_unused=True)[0]

        for argument, output in itertools.product(which, range(len(call(case, tensors)))):
            alone, among = gradient(argument, output, [argument]), gradient(argument, output, which)
            zero = torch.zeros_like(tensors[argument])
            assert torch.equal(zero if alone is None else alone, zero if among is None else among)

    # Bad memory, bad numbers.

    @pytest.mark.sanitize
    def test_every_element_is_written(self, case: OpCase, place: Any, poisoned: Any) -> None:
        for shape, dtype in itertools.product(case.shapes(SHAPES + EMPTY_SHAPES), FLOATS):
            tensors = make(case, shape, dtype, place.device)
            expected = run(case, tensors).all
            assert not any(tensor.isnan().any() for tensor in expected)
            with poisoned():
                actual = run(case, tensors).all
            assert_same_bits(actual, expected)

    @reading
    def test_nan_stays_where_it_is(self, case: OpCase, place: Any) -> None:
        own = any(arg.shape((4, 3, 7)) != (4, 3, 7) for arg in case.args)
        shape, where = ((4, 7), (2, ..., 3)) if own else ((4, 3, 7), (2, 1, 3))
        for index, arg in enumerate(case.args):
            tensors = make(case, shape, torch.float32, place.device)
            if not arg.read:
                continue
            tensors[index][where] = torch.nan
            result = run(case, tensors)
            assert any(tensor.isnan().any() for tensor in result.all) or not result.outputs[0].is_floating_point()
            clean = run(case, make(case, shape, torch.float32, place.device))
            for number, (tensor, before) in enumerate(zip(result.all, clean.all, strict=True)):
                here = where[: min(tensor.dim(), len(where) - case.joint_dims)]
                is_output = number < len(result.outputs)
                if is_output and tensor.is_floating_point() and tensor.dim() < len(shape):
                    assert tensor[here].isnan().all()  # a sum over the sample, which the NaN is part of
                tensor[here] = before[here]
            assert_same_bits(result.all, clean.all)

    # Noise.

    @stochastic
    def test_a_key_repeats_and_keys_differ(self, case: OpCase, place: Any) -> None:
        tensors = make(case, (5, 19), torch.float32, place.device)
        first = run(case, tensors)
        assert_same_bits(run(case, tensors).all, first.all)
        for other in (variate.random.key(KEY[0] + 1, KEY[1]), variate.random.key(KEY[0], KEY[1] + 100)):
            again = call(case, tensors, key=other.to(place.device))
            assert any(not torch.equal(x, y) for x, y in zip(again, first.outputs, strict=True))

    @stochastic
    def test_manual_seed_and_generator(self, case: OpCase, place: Any) -> None:
        tensors = make(case, (5, 19), torch.float32, place.device)
        torch.manual_seed(3)
        first, second = call(case, tensors, key=None), call(case, tensors, key=None)
        torch.manual_seed(3)
        assert_same_bits(call(case, tensors, key=None), first)
        assert any(not torch.equal(x, y) for x, y in zip(first, second, strict=True))
        state = torch.random.get_rng_state()
        for device in {"cpu", place.device}:
            draws = [
                call(case, tensors, key=None, generator=torch.Generator(device).manual_seed(seed)) for seed in (5, 5, 6)
            ]
            assert_same_bits(draws[0], draws[1])
            assert any(not torch.equal(x, y) for x, y in zip(draws[0], draws[2], strict=True))
        assert torch.equal(torch.random.get_rng_state(), state)  # the default generator is left alone

    @stochastic
    def test_noise_does_not_depend_on_the_split_of_a_batch(self, case: OpCase, place: Any) -> None:
        for shape, first in (((11, 19), 0), ((11, 19), 2**32 - 11), ((6, 2, 1031), 7)):
            tensors = make(case, shape, torch.float32, place.device)
            whole = call(case, tensors, first_sample=first)
            for cut in (1, 5):
                parts = [
                    call(case, tuple(t[:cut] for t in tensors), first_sample=first),
                    call(case, tuple(t[cut:] for t in tensors), first_sample=first + cut),
                ]
                assert_same_bits(tuple(torch.cat(pair) for pair in zip(*parts, strict=True)), whole)

    @pytest.mark.sanitize
    @stochastic
    def test_a_key_per_sample_is_a_call_by_itself(self, case: OpCase, place: Any) -> None:
        for shape in ((5, 19), (3, 2, 1031), (70, 6)):
            tensors = make(case, shape, torch.float32, place.device)
            own = keys(shape[0], place.device)
            whole = run(case, tensors, key=own)
            alone = [call(case, tuple(t[i : i + 1] for t in tensors), key=own[i].clone()) for i in range(shape[0])]
            assert_same_bits(tuple(torch.cat(parts) for parts in zip(*alone, strict=True)), whole.outputs)
            # Strided keys, and torch.func._random's unsigned ones.
            assert_same_bits(call(case, tensors, key=torch.stack([own, own], 1)[:, 0]), whole.outputs)
            assert_same_bits(call(case, tensors, key=own.cpu().view(torch.uint64).to(place.device)), whole.outputs)

    @stochastic
    def test_noise_does_not_depend_on_dtype(self, case: OpCase, place: Any) -> None:
        """A low dtype's result is within rounding of the wide result from the same, rounded inputs."""
        low = make(case, (6, 21), torch.bfloat16, place.device)
        wide = tuple(tensor.float() for tensor in low)
        for x, y in zip(call(case, low), call(case, wide), strict=True):
            scale = y.double().abs().max().clamp(min=1)
            assert ((x.double() - y.double()).abs() <= 2.0**-8 * scale).all()

    def test_threads(self, case: OpCase, threads: None) -> None:
        tensors = make(case, THREADED_SHAPE)
        torch.set_num_threads(1)
        one = run(case, tensors)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert_same_bits(run(case, tensors).all, one.all)

    @pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512", "amx"])
    def test_instruction_sets(self, instruction_set: str) -> None:
        """The same bits as this process, which runs the best set unless VARIATE_CPU says otherwise."""
        if variate.build_info()["cpu_capability"] == instruction_set:
            pytest.skip("it is the one that this process runs")
        found = digests_on(instruction_set, type(self).__module__)
        assert found == {case.name: digest(case) for case in self.cases}

    # torch.library, torch.compile.

    def test_opcheck(self, case: OpCase, place: Any) -> None:
        for shape in case.shapes(((4, 6), (7,), (2, 0))):
            for op, args in case.raw(make(case, shape, torch.float32, place.device), key(place.device)):
                torch.library.opcheck(op, args)

    def test_compiled_equals_eager(self, case: OpCase, place: Any, fresh_dynamo: None) -> None:
        compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager")
        for dtype in (torch.float32, torch.bfloat16):
            tensors = make(case, (6, 21), dtype, place.device)
            assert_same_bits(run(case, tensors, compiled).all, run(case, tensors).all)
        if case.stochastic:  # two draws without a key are not merged into one
            tensors = make(case, (6, 21), torch.float32, place.device)
            twice = torch.compile(
                lambda *args: (call(case, args, key=None), call(case, args, key=None)),
                fullgraph=True,
                backend="aot_eager",
            )
            leaves = tuple(t.requires_grad_(a.differentiable) for a, t in zip(case.args, tensors, strict=True))
            first, second = twice(*leaves)
            assert any(not torch.equal(x, y) for x, y in zip(first, second, strict=True))

    def test_recompilations_for_batch_sizes(self, case: OpCase, fresh_dynamo: None) -> None:
        self.check_recompilations(case, lambda step: (2 + step, {}))

    @stochastic
    def test_recompilations_for_first_samples(self, case: OpCase, fresh_dynamo: None) -> None:
        self.check_recompilations(case, lambda step: (4, {"first_sample": 4 * step}))

    @applies(lambda case: bool(case.annealed))
    @pytest.mark.parametrize("form", [float, torch.tensor], ids=["float", "tensor"])
    def test_recompilations_for_annealed_scalars(self, case: OpCase, form: Any, fresh_dynamo: None) -> None:
        def at(step: int) -> tuple[int, dict[str, Any]]:
            return 4, {name: form(case.annealed_from + 0.03 * step) for name in case.annealed}

        self.check_recompilations(case, at)

    def check_recompilations(self, case: OpCase, at: Callable[[int], tuple[int, dict[str, Any]]]) -> None:
        """Twelve values of what changes from step to step: at most two graphs, the second with a symbol."""
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(case.function, fullgraph=True, backend=counter)
        for step in range(12):
            rows, changed = at(step)
            tensors = make(case, (rows, 6))
            assert_same_bits(run(case, tensors, compiled, **changed).all, run(case, tensors, **changed).all)
        assert counter.frame_count <= 2

    def test_inductor(self, place: Any, fresh_dynamo: None) -> None:
        """The family's last case only, usually its richest: Inductor takes seconds."""
        case = self.cases[-1]
        tensors = make(case, (6, 21), torch.float32, place.device)
        compiled = torch.compile(case.function, fullgraph=True)
        assert_same_bits(run(case, tensors, compiled).all, run(case, tensors).all)

    # The gate.

    @differentiable
    def test_no_autograd_function_without_need(self, case: OpCase) -> None:
        tensors = make(case, (5, 3))
        leaves = tuple(t.clone().requires_grad_(a.differentiable) for a, t in zip(case.args, tensors, strict=True))
        with mock.patch.object(_gate, "apply", side_effect=AssertionError("an autograd Function ran")):
            plain = call(case, tensors)
            with torch.no_grad():
                assert_same_bits(call(case, leaves), plain)
            with torch.inference_mode():
                assert_same_bits(call(case, leaves), plain)
            with pytest.raises(AssertionError, match="ran"):
                call(case, leaves)
        assert_same_bits(call(case, leaves), plain)

    @differentiable
    def test_double_backward_raises(self, case: OpCase) -> None:
        """From each argument, and through the incoming gradient alone, to whoever asks: never a silent 0."""
        tensors = make(case, (5, 3), torch.float64)
        leaves = tuple(t.requires_grad_(a.differentiable) for a, t in zip(case.args, tensors, strict=True))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        for power in (1, 2):
            total = sum(output.pow(power).sum() for output in call(case, leaves))
            gradients = torch.autograd.grad(total, wanted, create_graph=True)
            again = sum(gradient.sum() for gradient in gradients)
            for leaf in wanted:
                with pytest.raises(RuntimeError, match="once_differentiable"):
                    torch.autograd.grad(again, leaf, retain_graph=True, allow_unused=True)
            with pytest.raises(RuntimeError, match="once_differentiable"):
                again.backward()

    @applies(lambda case: case.differentiable and not case.keeps_output)
    def test_inputs_changed_before_backward_raise(self, case: OpCase) -> None:
        for index in range(len(case.args)):
            tensors = make(case, (5, 3))
            leaves = [t.clone().requires_grad_(a.differentiable) for a, t in zip(case.args, tensors, strict=True)]
            total = sum(output.sum() for output in call(case, tuple(leaves)))
            with torch.no_grad():
                leaves[index].add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                total.backward()

    @differentiable
    def test_forward_mode_and_jvp(self, case: OpCase) -> None:
        """<u, J v> = <J^T u, v>: tangents against the kernels' own gradients."""
        tensors = make(case, (4, 6), torch.float64)
        tangents = make(case, (4, 6), torch.float64, seed=1)
        result = run(case, tensors)
        which = [v for v, arg in zip(tangents, case.args, strict=True) if arg.differentiable]
        expected = sum((g * v).sum() for g, v in zip(result.gradients, which, strict=True))
        floating = [i for i, tensor in enumerate(tensors) if tensor.is_floating_point()]

        def of_floating(*values: Tensor) -> Tensors:
            whole = list(tensors)  # integers have no tangent
            for i, value in zip(floating, values, strict=True):
                whole[i] = value
            return call(case, tuple(whole))

        points, directions = (tuple(of[i] for i in floating) for of in (tensors, tangents))
        _, by_jvp = torch.func.jvp(of_floating, points, directions)
        with forward_ad.dual_level():
            duals = tuple(forward_ad.make_dual(t, v) for t, v in zip(points, directions, strict=True))
            by_duals = tuple(forward_ad.unpack_dual(output).tangent for output in of_floating(*duals))
        for found in (by_jvp, by_duals):
            actual = sum((upstream(v) * v).sum() for v in found)
            # The reference's normals are exact, the kernel's float32: 2e-6 of each of the terms.
            tolerance = 1e-12 + case.absolute_error
            torch.testing.assert_close(actual, expected, rtol=1e-5 if case.stochastic else 1e-12, atol=tolerance)

    @differentiable
    def test_torch_func_grad(self, case: OpCase) -> None:
        tensors = make(case, (4, 6), torch.float64)
        which = tuple(i for i, arg in enumerate(case.args) if arg.differentiable)

        def loss(*args: Tensor) -> Tensor:
            return sum((upstream(output) * output).sum() for output in call(case, args))

        actual = torch.func.grad(loss, argnums=which)(*tensors)
        expected = run(case, tensors).gradients
        torch.testing.assert_close(actual, expected, rtol=1e-5 if case.stochastic else 1e-12, atol=1e-5)

    @deterministic
    def test_vmap(self, case: OpCase) -> None:
        tensors = make(case, (3, 4, 6), torch.float64, lead=1)
        mapped = torch.vmap(lambda *args: call(case, args))(*tensors)
        each = [call(case, tuple(tensor[i] for tensor in tensors)) for i in range(3)]
        for x, parts in zip(mapped, zip(*each, strict=True), strict=True):
            torch.testing.assert_close(x, torch.stack(parts), rtol=1e-12, atol=1e-12 + case.absolute_error)

    @stochastic
    def test_transforms_without_keys_raise(self, case: OpCase) -> None:
        tensors, mapped = make(case, (4, 6), torch.float64), make(case, (4, 2, 6), torch.float64, lead=1)
        one = key()
        with pytest.raises(RuntimeError, match="key="):
            torch.vmap(lambda *args: call(case, args, key=None), randomness="different")(*mapped)
        with pytest.raises(RuntimeError, match="split"):
            torch.vmap(lambda *args: call(case, args, key=one))(*mapped)
        with pytest.raises(RuntimeError, match="key="):
            torch.func.jvp(lambda *args: call(case, args, key=None), tensors, tensors)
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="key="):
            call(case, tensors, key=None)
        # Two maps over one batch of keys: the rows of the inner map would share their noise.
        twice = torch.vmap(lambda *args: torch.vmap(lambda *row: call(case, row, key=args[-1]))(*args[:-1]))
        with pytest.raises(RuntimeError, match="split"):
            twice(*make(case, (4, 3, 2, 6), torch.float64, lead=2), keys(4))

    @stochastic
    def test_vmap_with_a_key_per_row(self, case: OpCase) -> None:
        tensors = make(case, (4, 3, 6), torch.float64, lead=1)
        own = keys(4)
        mapped = torch.vmap(lambda k, *args: call(case, args, key=k))(own, *tensors)
        for i in range(4):
            expected = call(case, tuple(tensor[i] for tensor in tensors), key=own[i])
            # Exact normals under vmap, float32 ones in the kernel: 2e-6 apart, once scaled by what multiplies them.
            torch.testing.assert_close(tuple(m[i] for m in mapped), expected, rtol=1e-5, atol=1e-5)

    @differentiable
    def test_gradients_per_sample(self, case: OpCase) -> None:
        """vmap of grad, as in differential privacy and influence functions: each row a batch of one."""
        tensors = make(case, (4, 6), torch.float64)
        rows = tuple(tensor.unsqueeze(1) for tensor in tensors)
        own = keys(4)

        def loss(k: Tensor, *args: Tensor) -> Tensor:
            changed = {"key": k} if case.stochastic else {}
            return sum(output.sum() for output in call(case, args, **changed))

        which = [i for i, arg in enumerate(case.args) if arg.differentiable]
        mapped = torch.vmap(torch.func.grad(loss, argnums=tuple(1 + i for i in which)))(own, *rows)
        leaves = tuple(t.clone().requires_grad_(a.differentiable) for a, t in zip(case.args, tensors, strict=True))
        changed = {"key": own} if case.stochastic else {}
        total = sum(output.sum() for output in call(case, leaves, **changed))
        expected = torch.autograd.grad(total, [leaves[i] for i in which])
        torch.testing.assert_close(tuple(m.squeeze(1) for m in mapped), expected, rtol=1e-5, atol=1e-5)

    def test_autocast_leaves_dtypes_alone(self, case: OpCase, place: Any) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            tensors = make(case, (6, 21), dtype, place.device)
            expected = run(case, tensors)
            with torch.autocast(place.device, dtype=torch.bfloat16):
                actual = run(case, tensors)
            assert_same_bits(actual.all, expected.all)

    # A GPU.

    @pytest.mark.gpu
    @stochastic
    def test_noise_is_that_of_the_cpu(self, case: OpCase, place: Any) -> None:
        """Draws: bits. What is made of them: within the float32 rounding of a few operations."""
        tensors = make(case, (6, 1030))
        here, there = call(case, tensors), call(case, tuple(t.to(place.device) for t in tensors))
        there = tuple(t.cpu() for t in there)
        if case.noise:
            assert_same_bits(there, here)
        else:
            torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)

    @pytest.mark.gpu
    def test_no_host_sync(self, case: OpCase, place: Any) -> None:
        tensors = make(case, (6, 21), torch.float32, place.device)
        changed = {"key": key(place.device)} if case.stochastic else {}
        run(case, tensors, **changed)  # compiles the Triton kernel, which may wait
        gradients = [upstream(output) for output in call(case, tensors, **changed)]
        leaves = tuple(t.requires_grad_(a.differentiable) for a, t in zip(case.args, tensors, strict=True))
        torch.cuda.set_sync_debug_mode("error")
        try:
            outputs = call(case, leaves, **changed)
            if case.differentiable:
                torch.autograd.grad(outputs, [leaf for leaf in leaves if leaf.requires_grad], gradients)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.gpu
    def test_cuda_graph(self, case: OpCase, place: Any) -> None:
        """A captured call follows its inputs, and its key, when they change in place."""
        static = make(case, (6, 21), torch.float32, "cuda")
        static_key = key("cuda")
        changed = {"key": static_key} if case.stochastic else {}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(case, static, **changed)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(case, static, **changed)
        new = make(case, (6, 21), torch.float32, "cuda", seed=1)
        with torch.no_grad():
            for old, value in zip(static, new, strict=True):
                old.copy_(value)
            variate.random.advance_(static_key, 100)
        graph.replay()
        torch.cuda.synchronize()
        changed = {"key": static_key.clone()} if case.stochastic else {}
        assert_same_bits(captured.all, run(case, new, **changed).all)
