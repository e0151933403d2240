"""Peak memory of one of the demo's trainings, measured in a fresh process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from ._arguments import CommandError
from .digits import Digits
from .sides import BATCH, sides_of

__all__ = ["measure"]


def measure(name: str, threads: int) -> tuple[float, float]:
    """(peak, growth) in MiB of a process that trains ``"stock"`` or ``"fused"`` for one epoch.

    The peak is the largest resident set, Python and torch included; the growth is the part above what was
    resident when the training began.
    """
    command = [sys.executable, "-m", __name__, name, str(threads)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode != 0:
        raise CommandError(f"the process that measures memory failed ({child.returncode}):\n{child.stderr.strip()}")
    peak, growth = json.loads(child.stdout.splitlines()[-1])
    return peak, growth


def _resident() -> tuple[float, float]:
    """(now, largest so far) in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage: on Linux its maximum may be the parent's, kept across exec
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, largest = (int(lines[entry].split()[0]) / 1024 for entry in ("VmRSS", "VmHWM"))
        return now, largest
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
    return peak, peak


def _main(name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    side = sides_of(0)[name]
    batches = Digits(0).epoch(0, BATCH)
    before, _ = _resident()
    side.block(batches)
    _, peak = _resident()
    print(json.dumps([peak, peak - before]))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
