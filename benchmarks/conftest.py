"""pytest-benchmark as the runner: options, and the `bench` fixture that measures a job and keeps its row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from . import results
from .harness import Job, Settings, measure

_now = 0.0


def measured_time() -> float:
    """The timer given to pytest-benchmark: it stands still but for the samples that `bench` plays back."""
    return _now


def _play_back(samples: list[float]) -> Callable[[], None]:
    remaining = iter(samples)

    def advance() -> None:
        global _now
        _now += next(remaining)

    return advance


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("variate benchmarks")
    group.addoption("--bench-device", choices=("cpu", "cuda"), default="cpu")
    group.addoption("--bench-threads", type=int, default=2, help="threads of the multi-thread rows; 1 leaves them out")
    group.addoption("--bench-quick", action="store_true", help="few rounds, no torch.compile")
    group.addoption("--bench-output", type=Path, help="results file (default: by device)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")


def _settings(config: pytest.Config) -> Settings:
    device = torch.device(config.getoption("bench_device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--bench-device cuda: torch sees no GPU here")
    return Settings(device, config.getoption("bench_threads"), config.getoption("bench_quick"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        job = item.callspec.params.get("job") if hasattr(item, "callspec") else None
        if isinstance(job, Job):
            item.add_marker(pytest.mark.benchmark(timer=measured_time, group=f"{job.case.op} {job.mode}"))
            (kept if job.applies(_settings(config)) else left_out).append(item)
        else:
            kept.append(item)
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def settings(pytestconfig: pytest.Config) -> Settings:
    """How this run measures, from the options."""
    return _settings(pytestconfig)


@pytest.fixture(scope="session")
def facts(settings: Settings) -> dict[str, Any]:
    return results.machine(settings.device)


@pytest.fixture
def bench(
    request: pytest.FixtureRequest, benchmark: Any, settings: Settings, facts: dict[str, Any]
) -> Callable[[Job], None]:
    """Measure a job, merge its row into the results file, and show our times to pytest-benchmark.

    The harness takes the samples, because pytest-benchmark times one function after another and a ratio
    needs them side by side; they are then played back, so that its table, JSON and --benchmark-compare work.
    """

    def run(job: Job) -> None:
        row, samples = measure(job, settings)
        path = request.config.getoption("bench_output") or results.default_path(settings.device, settings.quick)
        results.merge(path, facts, row)
        request.node.user_properties.append(("row", row))
        benchmark.extra_info.update(row)
        if row["status"] != "ok":
            pytest.fail(f"{row['id']}: wrong result, not timed: {row['message']}", pytrace=False)
        benchmark.pedantic(_play_back(samples), rounds=len(samples))

    return run
