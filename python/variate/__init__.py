"""Fused kernels for deep generative models.

The functions are in :mod:`variate.functional` and :mod:`variate.random`, the same in plain PyTorch in
:mod:`variate.reference`, the models that call them in :mod:`variate.models`.
"""

from __future__ import annotations

import torch

from ._C import build_info
from ._paths import cmake_dir, include_dir, lib_dir

torch.ops.load_library(f"{lib_dir()}/libvariate_torch.so")

from . import data, diffusion, distributions, functional, models, patch, random, reference  # noqa: E402
from .functional import set_debug, use_backend  # noqa: E402

__version__: str = build_info()["version"]

__all__ = [
    "build_info",
    "cmake_dir",
    "data",
    "diffusion",
    "distributions",
    "functional",
    "include_dir",
    "lib_dir",
    "models",
    "patch",
    "random",
    "reference",
    "set_debug",
    "use_backend",
]
