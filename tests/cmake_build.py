"""CMake builds that tests share. They live under build/, so that a second run compiles what changed and no more."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Neither build may need Python: with it out of sight, nobody adds such a need unseen.
OPTIONS = ["-DCMAKE_BUILD_TYPE=Release", "-DVARIATE_CUDA=OFF", "-DCMAKE_DISABLE_FIND_PACKAGE_Python=ON"]
BUILDS = {"plain": [], "sanitized": ["-DVARIATE_SANITIZE=address,undefined"]}


def tool(name: str) -> str:
    """The path of a program beside this Python or on the PATH; skips the test that asks for one that is not there."""
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if path is None:
        pytest.skip(f"{name} is not on the PATH")
    return path


def run(*command: str | Path, **options) -> str:
    """What the command printed; its failure is the test's."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def needs_compiler() -> None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler is on the PATH")


@functools.cache
def build(name: str) -> Path:
    """The folder of the library and its C++ tests, built as BUILDS says."""
    if not (ROOT / "CMakeLists.txt").is_file():
        pytest.skip("the sources are not beside the tests")
    needs_compiler()
    folder = ROOT / "build" / "tests" / name
    run(tool("cmake"), "-S", ROOT, "-B", folder, *OPTIONS, *BUILDS[name])
    run(tool("cmake"), "--build", folder, "--parallel", str(os.cpu_count() or 1))
    return folder
