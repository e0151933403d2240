"""Exponential moving averages."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from checklist import FLOATS, assert_same_bits
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import variate
from variate import functional, reference

SHAPES = ((), (1,), (7,), (0,), (5, 3), (130, 20), (16_384,), (16_385,), (3, 40_000), (2, 3, 4, 5))


def tensors(dtype: torch.dtype = torch.float32, seed: int = 0, shapes=SHAPES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def clones(of: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in of]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9, 0.9999, 1.0])
@pytest.mark.parametrize(("average_dtype", "dtype"), list(itertools.product(FLOATS, FLOATS)), ids=str)
def test_values(average_dtype: torch.dtype, dtype: torch.dtype, decay: float) -> None:
    averages, parameters = tensors(average_dtype), tensors(dtype, seed=1)
    expected = [a.double() * decay + p.double() * (1 - decay) for a, p in zip(averages, parameters, strict=True)]
    functional.ema_update_(averages, parameters, decay)
    for a, p, exact in zip(averages, parameters, expected, strict=True):
        assert a.dtype == average_dtype
        # Two roundings of the larger of the two, 1 - decay and p - a, and the result's own.
        eps = max(torch.finfo(average_dtype).eps, 2.0**-23 if average_dtype != torch.float64 else 0)
        torch.testing.assert_close(
            a.double(),
            exact,
            rtol=eps,
            atol=4 * torch.finfo(torch.float64 if average_dtype == torch.float64 else torch.float32).eps * 4,
        )
        if decay == 0:
            assert torch.equal(a, p.to(average_dtype))


def test_the_ends_are_exact() -> None:
    averages, parameters = tensors(), tensors(seed=1)
    kept = clones(averages)
    functional.ema_update_(averages, parameters, 1.0)
    assert_same_bits(tuple(averages), tuple(kept))
    for decay in (0.1, 0.5, 0.999):
        same = clones(parameters)
        functional.ema_update_(same, parameters, decay)
        assert_same_bits(tuple(same), tuple(parameters))


def test_the_reference() -> None:
    for decay in (0.2, 0.5, 0.75, 0.9999):
        ours, theirs = tensors(), tensors()
        functional.ema_update_(ours, tensors(seed=1), decay)
        reference.ema.ema_update_(theirs, tensors(seed=1), decay)
        torch.testing.assert_close(ours, theirs, rtol=2.0**-22, atol=2.0**-22)


def test_profiles_are_calls_by_themselves() -> None:
    parameters = tensors(torch.bfloat16, seed=1)
    decays = [0.5, 0.99, 0.9999]
    profiles = [tensors(seed=2), tensors(torch.float64, seed=3), tensors(torch.bfloat16, seed=4)]
    alone = [clones(profile) for profile in profiles]
    for profile, decay in zip(alone, decays, strict=True):
        functional.ema_update_(profile, parameters, decay)
    for form in (decays, tuple(decays), torch.tensor(decays, dtype=torch.float64), [torch.tensor(d) for d in decays]):
        together = [
            clones(profile) for profile in (tensors(seed=2), tensors(torch.float64, 3), tensors(torch.bfloat16, 4))
        ]
        functional.ema_update_(together, parameters, form)
        for x, y in zip(together, alone, strict=True):
            if isinstance(form, list) and isinstance(form[0], Tensor):
                torch.testing.assert_close(x, y)  # float32 decays
            else:
                assert_same_bits(tuple(x), tuple(y))


def test_decays_of_other_forms() -> None:
    expected = tensors()
    functional.ema_update_(expected, tensors(seed=1), 0.75)
    for decay in (torch.tensor(0.75), torch.tensor(0.75, dtype=torch.float64), torch.tensor([0.75])):
        averages = tensors()
        functional.ema_update_(averages, tensors(seed=1), decay)
        assert_same_bits(tuple(averages), tuple(expected))


def test_strides() -> None:
    """Any layout: the same as each other's, as channels last, or not, or with gaps, or overlapping parameters."""
    p = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    a = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    expected = a.clone()
    functional.ema_update_([expected], [p], 0.9)

    def layouts(t: Tensor) -> list[Tensor]:
        gaps = torch.zeros(2, 3, 4, 10)[..., ::2]
        gaps.copy_(t)
        return [
            t.clone(),
            t.contiguous(memory_format=torch.channels_last),
            t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
            gaps,
        ]

    for average, parameter in itertools.product(layouts(a), layouts(p)):
        average = average.as_strided(average.shape, average.stride()) if average.is_contiguous() else average
        fresh = torch.empty_strided(average.shape, average.stride()).copy_(a)
        functional.ema_update_([fresh], [parameter], 0.9)
        assert_same_bits((fresh,), (expected,))
    row = torch.randn(5)
    average = torch.zeros(4, 5)
    functional.ema_update_([average], [row.expand(4, 5)], 0.0)
    assert torch.equal(average, row.expand(4, 5))


def test_a_models_parameters() -> None:
    """Leaves that need gradients, and none made."""
    model, average = torch.nn.Linear(9, 5), torch.nn.Linear(9, 5)
    before = [p.detach().clone() for p in average.parameters()]
    functional.ema_update_(list(average.parameters()), list(model.parameters()), 0.9)
    for b, a, p in zip(before, average.parameters(), model.parameters(), strict=True):
        assert a.requires_grad and a.grad_fn is None
        torch.testing.assert_close(a.detach(), 0.9 * b + 0.1 * p.detach())
    functional.ema_update_([], [], 0.9)


def test_nan_stays_where_it_is() -> None:
    averages, parameters = [torch.zeros(3, 50)], [torch.ones(3, 50)]
    parameters[0][1, 7] = torch.nan
    averages[0][2, 9] = torch.nan
    functional.ema_update_(averages, parameters, 0.5)
    assert averages[0].isnan().sum() == 2 and averages[0][1, 7].isnan() and averages[0][2, 9].isnan()


def test_threads(threads: None) -> None:
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        averages = tensors()
        functional.ema_update_([averages, clones(averages)], tensors(seed=1), [0.9, 0.1])
        results.append(tuple(averages))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_instruction_sets(instruction_set: str) -> None:
    code = (
        "import hashlib, torch, test_ema, variate; from variate import functional\n"
        "print(variate.build_info()['cpu_capability'])\n"
        "state = hashlib.sha256()\n"
        "for dtype in test_ema.FLOATS:\n"
        "    for decay in (0.3, 0.999):\n"
        "        averages = test_ema.tensors(dtype)\n"
        "        functional.ema_update_(averages, test_ema.tensors(seed=1), decay)\n"
        "        for a in averages: state.update(a.reshape(-1).view(torch.uint8).numpy().tobytes())\n"
        "print(state.hexdigest())"
    )
    digests = []
    for choice in (instruction_set, ""):
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "OMP_NUM_THREADS": "1"}
        environment |= {"VARIATE_CPU": choice} if choice else {}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        used, found = done.stdout.split()
        if choice and used != choice:
            pytest.skip(f"this machine runs {used}")
        digests.append(found)
    assert digests[0] == digests[1]


def test_opcheck() -> None:
    averages, parameters = tensors(shapes=((3,), (2, 5))), tensors(seed=1, shapes=((3,), (2, 5)))
    decay = torch.tensor([0.9], dtype=torch.float64)
    torch.library.opcheck(torch.ops.variate.ema_update_.default, (averages, parameters, decay))


def test_compiled(fresh_dynamo: None) -> None:
    """A decay that changes makes at most two graphs, one that is a tensor makes one."""
    for form, most in ((float, 2), (torch.tensor, 1)):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(functional.ema_update_, fullgraph=True, backend=counter)
        ours, eager = tensors(), tensors()
        for step in range(12):
            parameters, decay = tensors(seed=step + 1), form(0.5 + 0.04 * step)
            compiled(ours, parameters, decay)
            functional.ema_update_(eager, parameters, decay)
            assert_same_bits(tuple(ours), tuple(eager))
        assert counter.frame_count <= most


def test_the_reference_backend() -> None:
    ours, theirs = tensors(), tensors()
    functional.ema_update_(ours, tensors(seed=1), 0.9)
    with variate.use_backend("reference"):
        functional.ema_update_([theirs], tensors(seed=1), [0.9])
    torch.testing.assert_close(ours, theirs)


A = torch.zeros(3)


@pytest.mark.parametrize(
    ("args", "error", "names"),
    [
        (([A], [A, A], 0.9), ValueError, "averages: expected 2 tensors, one for each parameter, got 1"),
        (([[A], []], [A], [0.9, 0.9]), ValueError, r"averages\[1\]: expected 1 tensors"),
        (([A.int()], [A], 0.9), TypeError, r"averages\[0\]: expected float32"),
        (([A], [A.int()], 0.9), TypeError, r"parameters\[0\]: expected float32"),
        (([A], ["p"], 0.9), TypeError, r"parameters\[0\]: expected a tensor, got str"),
        (([A, A], [A, torch.zeros(4)], 0.9), ValueError, r"averages\[1\]: expected the shape of parameters\[1\]"),
        (([[A], [A.to("meta")]], [A], [0.9, 0.9]), ValueError, r"averages\[1\]\[0\]: expected the device"),
        (([A], [A], -0.1), ValueError, "decay: expected 0 <= decay <= 1, got -0.1"),
        (([A], [A], 1.1), ValueError, "decay: expected 0 <= decay <= 1, got 1.1"),
        (([A], [A], "x"), TypeError, "decay: expected a number or a tensor, got str"),
        (([A], [A], torch.ones(2)), ValueError, "decay: expected a number or a 0-d"),
        (([A], [A], torch.tensor(1)), ValueError, "decay: .*int64"),
        (([[A], [A]], [A], [0.9]), ValueError, "decay: expected 2 numbers"),
        (([[A], [A]], [A], 0.9), ValueError, "decay: expected 2 numbers"),
    ],
)
def test_errors(args, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        functional.ema_update_(*args)
