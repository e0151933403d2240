"""diffusers' schedulers on one fused kernel: subclasses with the same names, configurations and behaviour.

    from variate.schedulers import DDIMScheduler
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)

``step``, ``add_noise`` and ``get_velocity`` are replaced, all else is diffusers' own. :func:`noise` says where noise
of stochastic samplers comes from. diffusers is imported when a class is first asked for;
``pip install "variate[diffusers]"`` installs it.
"""

from __future__ import annotations

import importlib
from typing import Any

from .._optional import require
from ._base import noise

CLASSES = {
    "DDIMScheduler": "_ddim",
    "DDPMScheduler": "_ddpm",
    "DPMSolverMultistepScheduler": "_multistep",
    "DPMSolverSinglestepScheduler": "_multistep",
    "EulerAncestralDiscreteScheduler": "_euler",
    "EulerDiscreteScheduler": "_euler",
    "FlowMatchEulerDiscreteScheduler": "_flow",
    "FlowMatchHeunDiscreteScheduler": "_flow",
    "HeunDiscreteScheduler": "_heun",
    "LCMScheduler": "_lcm",
    "UniPCMultistepScheduler": "_multistep",
}

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "UniPCMultistepScheduler",
    "noise",
]


def __getattr__(name: str) -> Any:
    if name not in CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("diffusers", "diffusers")
    return getattr(importlib.import_module(f".{CLASSES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
