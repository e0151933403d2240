"""``python -m variate info``: versions, capabilities, and which op runs where."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform

import torch

import variate

__all__ = ["add_command", "versions"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("info", help="versions, CPU capability, CUDA, Triton, and which op runs where")
    command.set_defaults(command=_run)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "absent"
    build = variate.build_info()
    return {
        "variate": f"{build['version']} ({build['compiler']})",
        "noise": f"version {build['noise_version']}",
        "torch": torch.__version__,
        "triton": triton,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }


def _run(args: argparse.Namespace) -> int:
    build = variate.build_info()
    rows = versions()
    capabilities = ", ".join(build["cpu_capabilities"])
    rows["CPU"] = f"{build['cpu_capability']} (available: {capabilities}; VARIATE_CPU chooses)"
    rows["threads"] = (
        f"{torch.get_num_threads()} ({'OpenMP' if build['openmp'] else 'built without OpenMP: one at work'})"
    )
    rows["CUDA"] = f"built for {', '.join(build['cuda_architectures'])}" if build["cuda"] else "not built"
    rows["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    for name, value in rows.items():
        print(f"{name:9}{value}")
    print()
    print(_table(variate.functional.backends()))
    return 0


def _table(backends: dict[str, dict[str, str]]) -> str:
    devices = list(dict.fromkeys(device for places in backends.values() for device in places))
    lines = [["op", *devices]] + [
        [op, *(places.get(device, "-") for device in devices)] for op, places in backends.items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
