"""Two ranks on this machine, joined by gloo, whose result a test compares with that of one process."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from torch import Tensor

from variate import checkpoint

_BEFORE = """
import os
import sys
import torch
import torch.distributed as dist
import variate
from torch.nn.parallel import DistributedDataParallel
from variate import checkpoint

rank, rendezvous, out, arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
torch.manual_seed(rank)  # DistributedDataParallel must take rank 0's parameters to both
"""

_AFTER = """
if rank == 0:
    checkpoint.save(out, result, {})
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads may still want the interpreter while it ends, and abort then
"""


# Nothing of this package: whether PyTorch's ranks run on this machine.
_PROBE = """
model = DistributedDataParallel(torch.nn.Linear(3, 2))
model(torch.ones(4, 3)).sum().backward()
result = {"gradient": model.module.weight.grad}
"""


def run(program: str, folder: Path, *arguments: str) -> dict[str, Tensor]:
    """What `program` leaves in rank 0 as `result`, tensors by name. It finds its `rank`, 0 or 1, and `arguments`."""
    if problem := _stock_problem():
        pytest.skip(f"PyTorch's own data-parallel ranks do not run here: {problem}")
    problem = _run(program, folder, *arguments)
    assert problem is None, problem
    return checkpoint.load(folder / "result").tensors


@functools.cache
def _stock_problem() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        return _run(_PROBE, Path(folder))


def _run(program: str, folder: Path, *arguments: str) -> str | None:
    """What went wrong."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    # Gloo looks for the interface of the machine's name otherwise, which need not resolve.
    for _, interface in socket.if_nameindex():
        if interface in ("lo", "lo0"):
            environment["GLOO_SOCKET_IFNAME"] = interface
    command = [sys.executable, "-c", _BEFORE + program + _AFTER]
    files = [str(folder / "rendezvous"), str(folder / "result")]
    ranks = [
        subprocess.Popen([*command, str(rank), *files, *arguments], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=60)
            if process.returncode != 0:
                return f"status {process.returncode}: {errors.decode()}"
    except subprocess.TimeoutExpired:
        return "no end after a minute"
    finally:
        for process in ranks:
            process.kill()
    return None
