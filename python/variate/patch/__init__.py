"""Drop-ins: other packages' classes on variate's kernels, without a change in the code that uses them."""

from __future__ import annotations

from ._diffusers import diffusers
from ._torch_distributions import torch_distributions

__all__ = ["diffusers", "torch_distributions"]
