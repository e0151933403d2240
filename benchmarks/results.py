"""The results file: machine facts and one row per measurement, merged row by row and written atomically."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(__file__).resolve().parent / "results"
SCRATCH = ROOT / "runs" / "bench"  # quick runs go here: they are for looking at, not for keeping

Row = dict[str, Any]
RATE = "flips/ns"  # a target against it promises a rate, not a ratio
TIME = "us"  # a target against it promises so many microseconds at most


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine(device: torch.device) -> dict[str, Any]:
    """Facts about the machine that a reader of the numbers needs."""
    facts: dict[str, Any] = {
        "device": device.type,
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    try:
        import variate

        facts["variate"] = {k: v for k, v in variate.build_info().items() if "/" not in str(v)}  # no paths
    except (ImportError, AttributeError):
        facts["variate"] = {}
    return facts


def device_slug(facts: dict[str, Any]) -> str:
    """A file name for the machine: its GPU, or its CPU and the widest instruction set in use."""
    name = facts.get("gpu") or f"{facts['cpu']} {facts['cpu_capability']}"
    name = re.sub(r"\((r|tm)\)|processor|cpu|@.*?hz", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def default_path(device: torch.device, quick: bool) -> Path:
    """Where results go when the user names no file."""
    return (SCRATCH if quick else FOLDER) / f"{device_slug(machine(device))}.json"


def revision() -> str:
    """The commit that was measured, or an empty string outside a checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def stamp() -> dict[str, str]:
    """When and of what a row was measured; each row has its own, since a file is filled by several runs."""
    return {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": revision()}


def load(path: Path) -> dict[str, Any]:
    """The results in `path`, empty if there are none yet."""
    if not path.exists():
        return {"machine": {}, "rows": {}}
    return json.loads(path.read_text())


def merge(path: Path, facts: dict[str, Any], row: Row, section: str = "rows") -> None:
    """Put one row into the file, in place of an older one of its name. No reader ever sees half a file."""
    data = load(path)
    data["machine"] = facts
    data.setdefault(section, {})[row["id"]] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(data, file, indent=1, sort_keys=True)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
