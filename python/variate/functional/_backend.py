"""Which implementation of an op runs: the C++ kernel, the CUDA kernel, the Triton kernel, or the reference."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .._C import build_info

_BACKENDS = ("auto", "cuda", "triton", "reference")
_backend = "auto"
_cpu_ops: dict[str, Any] = {}
_cpu_calls: dict[str, Any] = {}  # the same without the layer of Python that torch.compile needs
_cuda_ops: dict[str, Any] = {}  # empty without CUDA kernels
_triton_ops: dict[str, Any] = {}  # empty without Triton
fakes: dict[str, Callable[..., Any]] = {}


def register(name: str, *, cuda: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the fake kernel of op `name`: what shapes, dtypes and device its results have. `cuda` says whether the
    op has a CUDA C++ kernel; one that has none is Triton's on a GPU."""

    def decorate(fake: Callable[..., Any]) -> Callable[..., Any]:
        if not hasattr(torch.ops.variate, name):
            raise ImportError(
                f"variate's binaries lack the op {name!r}: they are older than its Python code. Uninstall variate and "
                "build it again."
            )
        torch.library.register_fake(f"variate::{name}", fake)
        fakes[name] = fake
        _cpu_ops[name] = getattr(torch.ops.variate, name).default
        _cpu_calls[name] = _cpu_ops[name]._op
        if cuda and build_info()["cuda"]:
            _cuda_ops[name] = _cpu_ops[name]
        return fake

    return decorate


def register_triton() -> None:
    """Adds the Triton kernels, where a GPU build of torch and Triton are installed. Called once, after all ops."""
    if torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return
    from .. import _triton

    _triton_ops.update(_triton.register(fakes, _cuda_ops.keys()))


def select(name: str, like: Tensor) -> Any:
    """The op to call for tensors on the device of `like`, or None for the reference."""
    if _backend == "reference":
        return None
    if like.is_cpu:
        return _cpu_ops[name] if torch.compiler.is_compiling() else _cpu_calls[name]
    if not like.is_cuda:
        return None
    if _backend == "auto":
        return _cuda_ops.get(name) or _triton_ops.get(name)
    return (_cuda_ops if _backend == "cuda" else _triton_ops).get(name)


class use_backend:
    """Chooses what runs on a GPU, as a call or as a context manager; restores the previous choice on exit.

    Args:
        name: "auto" (the CUDA kernel where it was built, else Triton, else the reference), "cuda", "triton",
            or "reference": plain PyTorch, on CPU tensors too. CPU tensors otherwise always run the C++ kernels.

    The choice is one for the process, not for a thread.

    Raises:
        ValueError: an unknown name, or a backend that this installation lacks.
    """

    def __init__(self, name: str) -> None:
        global _backend
        if name not in _BACKENDS:
            raise ValueError(f"name: expected one of {', '.join(_BACKENDS)}, got {name!r}")
        if name == "cuda" and not _cuda_ops:
            raise ValueError(
                "name: 'cuda' needs the CUDA kernels, which this build lacks. Build with nvcc on the PATH and "
                "VARIATE_CUDA=ON, or use 'triton'."
            )
        if name == "triton" and not _triton_ops:
            raise ValueError("name: 'triton' needs a CUDA build of torch, and Triton, which one of them lacks here")
        self._previous = _backend
        _backend = name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _backend
        _backend = self._previous


def backends() -> dict[str, dict[str, str]]:
    """For each op, what runs it on each device: {"normal_rsample_kl": {"CPU": "C++ avx512", "CUDA": "cuda"}}."""
    capability = build_info()["cpu_capability"]

    def cuda(name: str) -> str:
        available = [
            label
            for label, ops in (("cuda", _cuda_ops), ("triton", _triton_ops))
            if name in ops and _backend in ("auto", label)
        ]
        return available[0] if available else "reference"

    on_cpu = "reference" if _backend == "reference" else f"C++ {capability}"
    return {name: {"CPU": on_cpu, "CUDA": cuda(name)} for name in sorted(_cpu_ops)}
