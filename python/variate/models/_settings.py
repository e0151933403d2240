"""What changes from step to step, and compiles but once: what people anneal, as 0-d tensors at one address, and counts
of steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["count_on", "like", "new_setting", "set_to"]


def like(module: nn.Module) -> Tensor:
    """A tensor of the dtype and device that the module's layers take."""
    return next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))


def new_setting(module: nn.Module) -> Tensor:
    """0, where the module is. On the meta device it would lose its value. Float32: a 0-d float64 input makes Dynamo
    compile everything twice."""
    device = like(module).device
    return torch.zeros((), dtype=torch.float32, device="cpu" if device.type == "meta" else device)


def count_on(module: nn.Module, name: str, steps: int) -> int:
    """Add `steps` to the module's count of that name; what it was before."""
    if torch.compiler.is_compiling():
        # Else an integer of a module is a constant, and every step would be compiled anew.
        with torch._dynamo.patch_dynamo_config(allow_unspec_int_on_nn_module=True):
            setattr(module, name, getattr(module, name) + steps)
    else:
        setattr(module, name, getattr(module, name) + steps)
    return getattr(module, name) - steps


def set_to(name: str, setting: Tensor, value: float | Tensor) -> None:
    """Write a float or 0-d tensor into a setting, in place."""
    if isinstance(value, Tensor):
        if value.dim() or value.is_complex():
            raise ValueError(f"{name}: expected a float or a real 0-d tensor, got {value.dtype} {tuple(value.shape)}")
        setting.copy_(value.detach())  # not checked further: that would wait for the device
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number, at least 0, got {value}")
        setting.fill_(value)
    else:
        raise TypeError(f"{name}: expected a float or a 0-d tensor, got {type(value).__name__}")
