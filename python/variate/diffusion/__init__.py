"""Tables of coefficients for a diffusion model's samplers: noise levels, and a builder for each solver."""

from __future__ import annotations

from . import training
from .ancestral import ddim, ddpm, lcm
from .euler import euler, euler_ancestral
from .heun import edm, flow_euler, flow_heun, heun
from .levels import Levels, to_epsilon, to_x0
from .multistep import dpm_solver_pp, dpm_solver_pp_singlestep, unipc

__all__ = [
    "Levels",
    "ddim",
    "ddpm",
    "dpm_solver_pp",
    "dpm_solver_pp_singlestep",
    "edm",
    "euler",
    "euler_ancestral",
    "flow_euler",
    "flow_heun",
    "heun",
    "lcm",
    "to_epsilon",
    "to_x0",
    "training",
    "unipc",
]
