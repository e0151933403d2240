"""Compile the kernels that a call would launch, without a GPU, and read what the compiler made of them.

    kernels = compiled(80, lambda: variate.kernels.bernoulli_nll(logits, target))

gives the specialisations for sm_80 that these very (CPU) tensors would run, with the options of the launch.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class Compiled:
    name: str
    ptx: str
    registers: int
    stack: int
    local: int
    shared: int
    contracts: bool  # a * b + c may have become fma

    def vector_widths(self, access: str, space: str = "global") -> set[int]:
        """The widths, in values, of this kernel's `ld` or `st` instructions: {4} means that all are .v4."""
        found = re.findall(rf"\b{access}\.{space}[.\w:]*?(?:\.v(\d))?\.[bfsu]\d+\b", self.ptx)
        return {int(width or 1) for width in found}


class _NoDevice:
    """What Triton asks of a driver up to the launch."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernel caches are per device: keep the targets apart

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(capability: int, call: Callable[[], object]) -> list[Compiled]:
    """Every kernel that `call` launches, compiled for sm_<capability>. None runs: its results are garbage."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("kernels decorated under TRITON_INTERPRET=1 cannot be compiled")
    results = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        results.append(_inspect(kernel))
        return kernel

    no_device = mock.patch.object(driver, "_active", _NoDevice(capability))
    with no_device, mock.patch.object(JITFunction, "run", compile_only):
        call()
    return results


def _inspect(kernel) -> Compiled:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def dumped(what: str) -> str:
            return subprocess.run(
                [tool, f"--dump-{what}", file.name], capture_output=True, text=True, check=True
            ).stdout

        usage = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", dumped("resource-usage"))}
        if usage["STACK"] and not re.search(r"\b(LDL|STL)\b", dumped("sass")):
            usage["STACK"] = 0  # a frame that no instruction reads or writes
    return Compiled(
        name=kernel.metadata.name,
        ptx=kernel.asm["ptx"],
        registers=usage["REG"],
        stack=usage["STACK"],
        local=usage["LOCAL"],
        shared=usage["SHARED"],
        contracts=kernel.metadata.enable_fp_fusion,
    )
