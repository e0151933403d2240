"""Tables of coefficients for a diffusion model's samplers: noise levels, and a builder for each solver."""

from __future__ import annotations

from .ancestral import ddim, ddpm, lcm
from .euler import euler, euler_ancestral
from .levels import Levels, to_epsilon, to_x0

__all__ = ["Levels", "ddim", "ddpm", "euler", "euler_ancestral", "lcm", "to_epsilon", "to_x0"]
