"""A step of a diffusion model's sampling."""

from __future__ import annotations

from ..reference.denoise import Denoised, denoise_step

__all__ = ["Denoised", "denoise_step"]
