"""Which implementation runs, and the debug switch."""

from __future__ import annotations

import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import variate
from variate import functional, random, reference
from variate.functional import _backend

KEY = random.key(3)
X = torch.linspace(-2, 2, 12).reshape(3, 4)


@pytest.fixture
def kernels_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for a GPU build with both kernels of `normal`, and one of each of two others."""
    monkeypatch.setattr(_backend, "_cuda_ops", {"normal": "cuda normal", "bits": "cuda bits"})
    monkeypatch.setattr(_backend, "_triton_ops", {"normal": "triton normal", "uniform": "triton uniform"})


@pytest.fixture
def on_gpu() -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(2, device="cuda")


def test_the_reference_runs_where_it_is_asked_for() -> None:
    noise = {"key": KEY, "first_sample": 5}
    calls = [
        lambda module: module.random.normal(3, 4, **noise),
        lambda module: module.random.categorical(X, **noise),
        lambda module: module.reparam.normal_rsample_kl(X, X, free_bits=0.2, **noise),
        lambda module: module.elbo.bernoulli_nll(X, X.sigmoid()),
    ]
    with mock.patch.dict(_backend._cpu_calls, clear=True), variate.use_backend("reference"):  # no kernel to call
        for call in calls:
            torch.testing.assert_close(call(functional), call(reference), rtol=0, atol=0)
        random.fold_in(KEY, 1)
        # Without a key the reference draws as torch does, which the kernels do not.
        torch.manual_seed(1)
        drawn = random.normal(5)
        torch.manual_seed(1)
        assert torch.equal(drawn, torch.randn(5))


def test_the_reference_has_gradients() -> None:
    gradients = []
    for name in ("auto", "reference"):
        leaf = X.double().requires_grad_()
        with variate.use_backend(name):
            (gradient,) = torch.autograd.grad(functional.bernoulli_nll(leaf, X.sigmoid().double()).sum(), leaf)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-13)


def test_the_reference_checks_its_arguments_too() -> None:
    with variate.use_backend("reference"):
        with pytest.raises(ValueError, match="key: expected shape"):
            random.normal(3, 4, key=random.split(KEY, 4))
        with pytest.raises(ValueError, match="first_sample"):
            functional.normal_rsample(X, X, key=KEY, first_sample=-1)
        with pytest.raises(TypeError, match="key: expected an int64 tensor"):
            random.bernoulli(X.sigmoid(), key=3)


def test_choices_nest_and_are_restored() -> None:
    assert _backend._backend == "auto"
    with variate.use_backend("reference"):
        with variate.use_backend("auto"):
            assert _backend._backend == "auto"
        assert _backend._backend == "reference"
        with pytest.raises(KeyError), variate.use_backend("auto"):
            raise KeyError
        assert _backend._backend == "reference"
    assert _backend._backend == "auto"


def test_as_a_call_it_lasts() -> None:
    choice = variate.use_backend("reference")
    try:
        assert functional.backends()["normal"]["CPU"] == "reference"
    finally:
        choice.__exit__(None, None, None)
    assert functional.backends()["normal"]["CPU"] == f"C++ {variate.build_info()['cpu_capability']}"


def test_unknown_names_change_nothing() -> None:
    for name in ("cpp", "", None, "CUDA"):
        with pytest.raises(ValueError, match="name: expected one of auto, cuda, triton, reference, got"):
            variate.use_backend(name)
    assert _backend._backend == "auto"


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA")
def test_missing_backends_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="Build with nvcc"):
        variate.use_backend("cuda")
    with pytest.raises(ValueError, match="CUDA build of torch"):
        variate.use_backend("triton")
    assert _backend._backend == "auto"


def test_backends_lists_every_op() -> None:
    table = functional.backends()
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("variate::")}
    assert set(table) == {name for name in registered if not name.startswith("triton_")}
    assert all(set(row) == {"CPU", "CUDA"} for row in table.values())


def test_selection_on_a_gpu(kernels_on_a_gpu: None, on_gpu: torch.Tensor) -> None:
    """CUDA before Triton, the chosen one before both, the reference where the chosen one lacks the op."""
    expected = {
        "auto": ("cuda normal", "cuda bits", "triton uniform", None),
        "cuda": ("cuda normal", "cuda bits", None, None),
        "triton": ("triton normal", None, "triton uniform", None),
        "reference": (None, None, None, None),
    }
    for name, ops in expected.items():
        with variate.use_backend(name):
            found = tuple(_backend.select(op, on_gpu) for op in ("normal", "bits", "uniform", "categorical"))
            assert found == ops
            table = functional.backends()
            for op, kernel in zip(("normal", "bits", "uniform", "categorical"), ops, strict=True):
                assert table[op]["CUDA"] == (kernel.split()[0] if kernel else "reference")


def test_other_devices_run_the_reference() -> None:
    meta = torch.empty(3, 4, device="meta")
    assert _backend.select("normal_rsample", meta) is None
    z, kl = functional.normal_rsample_kl(meta, meta)
    assert z.shape == (3, 4) and kl.shape == (3,) and z.is_meta and kl.is_meta


def test_compiled_functions_see_the_kernels(fresh_dynamo: None) -> None:
    """torch.compile traces the op, not the reference."""
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph.code)
        return graph

    torch.compile(functional.bernoulli_nll, backend=backend, fullgraph=True)(X, X.sigmoid())
    assert len(graphs) == 1 and "torch.ops.variate.bernoulli_nll.default" in graphs[0]


def test_debug_is_off_and_can_be_turned_off_again(fresh_dynamo: None) -> None:
    outside = torch.tensor([2.0])
    functional.bernoulli_nll(outside, outside)
    variate.set_debug(True)
    try:
        with pytest.raises(ValueError, match="target"):
            functional.bernoulli_nll(outside, outside)
        with pytest.raises(ValueError, match="probs"):
            random.bernoulli(outside)
        # Where there are no values to read the check passes.
        assert torch.vmap(functional.bernoulli_nll)(outside[None], outside[None]).shape == (1, 1)
        torch.compile(functional.bernoulli_nll, backend="eager", fullgraph=True)(outside, outside)
    finally:
        variate.set_debug(False)
    functional.bernoulli_nll(outside, outside)


def test_neither_importing_nor_drawing_imports_the_compiler():
    """It takes longer than the rest of the package, torch aside."""
    code = """
import sys, torch
slow = {"torch._dynamo", "torch._inductor", "sympy"} - sys.modules.keys()
import variate
keys = variate.random.split(variate.random.key(1), 3)
variate.random.normal(3, 4, key=keys)
assert not slow & sys.modules.keys(), slow & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
