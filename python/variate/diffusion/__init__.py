"""Sampling of diffusion models: schedules, noise levels, tables of coefficients for each solver, and the loop."""

from __future__ import annotations

from .._table import COLUMNS, Table
from . import training
from .adams import deis, lms
from .ancestral import ddim, ddpm, lcm, tcd
from .euler import euler, euler_ancestral
from .heun import edm, flow_euler, flow_heun, heun
from .levels import Levels, to_epsilon, to_x0
from .loop import sample
from .multistep import dpm_solver_pp, dpm_solver_pp_singlestep, unipc
from .schedules import FlowSchedule, NoiseSchedule, dynamic_shift
from .solvers import SOLVERS, solver

__all__ = [
    "COLUMNS",
    "SOLVERS",
    "FlowSchedule",
    "Levels",
    "NoiseSchedule",
    "Table",
    "ddim",
    "ddpm",
    "deis",
    "dpm_solver_pp",
    "dpm_solver_pp_singlestep",
    "dynamic_shift",
    "edm",
    "euler",
    "euler_ancestral",
    "flow_euler",
    "flow_heun",
    "heun",
    "lcm",
    "lms",
    "sample",
    "solver",
    "tcd",
    "to_epsilon",
    "to_x0",
    "training",
    "unipc",
]
