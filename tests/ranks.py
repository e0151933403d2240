"""Two ranks on this machine, joined by gloo, whose result a test compares with that of one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

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


def run(program: str, folder: Path, *arguments: str) -> dict[str, Tensor]:
    """What `program` leaves in rank 0 as `result`, tensors by name. It finds its `rank`, 0 or 1, and `arguments`."""
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
            assert process.returncode == 0, errors.decode()
    finally:
        for process in ranks:
            process.kill()
    return checkpoint.load(folder / "result").tensors
