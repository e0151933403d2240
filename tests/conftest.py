"""Fixtures that every test file may ask for."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings

import variate

# Draws of hypothesis are the same in every run, and a slow machine is no failure.
settings.register_profile("variate", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("variate")


@dataclass(frozen=True)
class Place:
    """Where a test runs: a device, and which of its kernels."""

    device: str
    backend: str

    def __str__(self) -> str:
        return self.device if self.device == "cpu" else f"{self.device}-{self.backend}"


PLACES = (Place("cpu", "auto"), Place("cuda", "cuda"), Place("cuda", "triton"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The cases of a Checklist: those that a test applies to, by the predicate `checklist.applies` left on it."""
    if "case" in metafunc.fixturenames and hasattr(metafunc.cls, "cases"):
        wanted = getattr(metafunc.function, "applies_to", lambda case: True)
        cases = [case for case in metafunc.cls.cases if wanted(case)]
        metafunc.parametrize("case", cases, ids=lambda case: case.name)
    if "place" in metafunc.fixturenames:
        marks = {"cpu": (), "cuda": pytest.mark.gpu}
        places = [pytest.param(place, marks=marks[place.device], id=str(place)) for place in PLACES]
        metafunc.parametrize("place", places, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    try:
        chosen = variate.use_backend(request.param.backend)
    except ValueError as error:
        pytest.skip(str(error))
    with chosen:
        yield request.param


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def threads() -> Iterator[None]:
    """torch.set_num_threads is undone."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.fixture
def debug() -> Iterator[None]:
    variate.set_debug(True)
    yield
    variate.set_debug(False)


@contextlib.contextmanager
def _poison() -> Iterator[None]:
    """New memory holds NaN (all bits set), so that an element that a kernel does not write shows.

    On the CPU by glibc's M_PERTURB, which also reaches what is allocated in C++: new memory is filled with the
    complement of the low byte of a value other than 0. On a GPU by torch's deterministic mode.
    """
    perturb = -6
    library = ctypes.CDLL(None)
    library.mallopt(perturb, 0x100)
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        library.mallopt(perturb, 0)
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def poisoned() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with poisoned():` fills what is allocated with NaN."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc fills what it allocates")
    with _poison():
        assert torch.empty(100_000).isnan().all()
    return _poison
