"""Where the installed headers, library and CMake files are."""

from __future__ import annotations

from pathlib import Path

from . import _C

# The compiled module's place, not this file's: in an editable install the sources are elsewhere.
_ROOT = Path(_C.__file__).parent


def include_dir() -> str:
    """The directory of `variate/variate.h`: what a compiler's `-I` takes."""
    return str(_ROOT / "include")


def lib_dir() -> str:
    """The directory of `libvariate.so`."""
    return str(_ROOT / "lib")


def cmake_dir() -> str:
    """The directory of `variateConfig.cmake`: what CMake's `-Dvariate_DIR=` takes."""
    return str(_ROOT / "share" / "cmake" / "variate")
