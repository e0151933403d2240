"""``python -m benchmarks.gpu build|test|sanitize|bench``: the four parts of ``make gpu``, on the GPU of this machine.

Each runs its commands with this Python, downloads nothing, and writes what came of it into the section "gpu" of the
device's results file as it goes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

try:
    import torch
except ImportError:
    sys.exit(
        f"make gpu runs in a Python that has a CUDA build of torch, and {sys.executable} has no torch. "
        "GPU_PYTHON=... names another Python; `make test` needs no GPU."
    )

from . import results

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def run(command: Sequence[str], **environment: str) -> tuple[int, str, float]:
    """Runs a command, shows its output, and returns (exit status, output, seconds)."""
    print("+", " ".join(command), flush=True)
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=results.ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait(), "".join(lines), time.perf_counter() - start


def record(part: str, status: int, seconds: float, **facts: str | int) -> int:
    """Writes one part's outcome and returns its exit status."""
    device = torch.device("cuda")
    row = {"id": part, "passed": status == 0, "seconds": round(seconds, 1), **facts, **results.stamp()}
    results.merge(results.default_path(device, quick=False), results.machine(device), row, section="gpu")
    return status


def build() -> int:
    """Builds and installs the package with its CUDA kernels."""
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    status, _, seconds = run([*pip, "--config-settings=build-dir=build/gpu", "."], VARIATE_CUDA="ON")
    return record("build", status, seconds)


def counts(output: str) -> dict[str, int]:
    """The numbers of pytest's last line."""
    return {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", output[-400:])}


def test() -> int:
    """Every test that needs a GPU, and the Triton tests."""
    status, output, seconds = run([*PYTEST, "-m", "gpu", "tests"])
    return record("test", status, seconds, **counts(output))


def sanitize() -> int:
    """The marked subset under compute-sanitizer: out-of-bounds accesses, races, unwritten memory."""
    if shutil.which("compute-sanitizer") is None:
        sys.exit("compute-sanitizer is not on the PATH: it comes with the CUDA toolkit")
    worst = 0
    for tool in ("memcheck", "racecheck", "initcheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "86", "--target-processes", "all"]
        status, output, seconds = run(
            [*command, *PYTEST, "-m", "gpu and sanitize", "tests"], PYTORCH_NO_CUDA_MEMORY_CACHING="1"
        )
        worst = max(worst, record(f"sanitize {tool}", status, seconds, **counts(output)))
    return worst


def bench() -> int:
    """The benchmark suite on the GPU; its rows land in the same file."""
    status, _, seconds = run([sys.executable, "-m", "benchmarks", "--device", "cuda"])
    return record("bench", status, seconds)


PARTS: dict[str, Callable[[], int]] = {"build": build, "test": test, "sanitize": sanitize, "bench": bench}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    part = parser.parse_args().part
    if not torch.cuda.is_available():
        sys.exit(
            "make gpu needs an NVIDIA GPU and a CUDA build of torch, and this Python has none. "
            "GPU_PYTHON=... names another Python; `make test` needs no GPU."
        )
    return PARTS[part]()


if __name__ == "__main__":
    sys.exit(main())
