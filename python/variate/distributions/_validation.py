"""torch.distributions' argument checks in fewer passes.

A check here reads each value once and can only say that all is well: whatever it cannot vouch for goes to torch's own
check, and so do the errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all as _torch_broadcast_all
from torch.distributions.utils import lazy_property

from ..functional import _backend, _gate
from ..functional._checks import FLOATING

PLAIN = (Tensor, torch.nn.Parameter)  # not their subclasses, whose operators mean something else

_torch_init = Distribution.__init__
_torch_validate_sample = Distribution._validate_sample


def _real(value: Tensor) -> bool:
    smallest = value.min().item()  # NaN where a NaN is
    return smallest == smallest


def _unit_interval(value: Tensor) -> bool:
    smallest, largest = torch.aminmax(value)
    return smallest.item() >= 0 and largest.item() <= 1


def _boolean(value: Tensor) -> bool:
    return torch.equal(value.clamp(0, 1).round_(), value)


# The constraint's number, variate_constraint, and its check where variate::satisfies has no kernel.
_CHECKS: dict[int, tuple[int, Callable[[Tensor], bool]]] = {
    id(constraints.real): (0, _real),
    id(constraints.positive): (1, lambda value: value.min().item() > 0),
    id(constraints.nonnegative): (2, lambda value: value.min().item() >= 0),
    id(constraints.unit_interval): (3, _unit_interval),
    id(constraints.boolean): (4, _boolean),
}


def _holds(constraint: Any, value: Any) -> bool:
    """Whether all of `value` satisfies the constraint, as far as can be told."""
    known = _CHECKS.get(id(constraint))
    if known is None:
        if type(constraint) is not constraints.independent:
            return False
        fits = isinstance(value, Tensor) and value.dim() >= constraint.reinterpreted_batch_ndims
        return fits and _holds(constraint.base_constraint, value)
    if type(value) not in PLAIN or value.dtype not in FLOATING:
        return False
    number, check = known
    op = _backend.select("satisfies", value)
    if op is not None:
        return op(value, number)
    return value.numel() == 0 or check(value.detach())


def _readable() -> bool:
    """Whether values may be read: not under torch.compile, tracing and torch.func."""
    return not (torch.compiler.is_compiling() or torch._C._get_tracing_state() or _gate.transformed())


def _arguments_hold(distribution: Distribution) -> bool:
    if not _readable():
        return False
    try:
        arguments = distribution.arg_constraints
    except NotImplementedError:
        return False
    given = distribution.__dict__
    for name, constraint in arguments.items():
        if name not in given and _is_left_out(distribution, name, constraint):
            continue
        if not _holds(constraint, getattr(distribution, name)) and not constraints.is_dependent(constraint):
            return False
    return True


def _is_left_out(distribution: Distribution, name: str, constraint: Any) -> bool:
    return constraints.is_dependent(constraint) or isinstance(getattr(type(distribution), name), lazy_property)


def broadcast_all(*values: Any) -> Sequence[Any]:
    """torch.distributions.utils.broadcast_all."""
    shape = getattr(values[0], "shape", None) if values else None
    for value in values:
        if type(value) not in PLAIN or value.shape != shape:
            return _torch_broadcast_all(*values)
    return values


def init(
    self: Distribution,
    batch_shape: torch.Size = torch.Size(),  # noqa: B008
    event_shape: torch.Size = torch.Size(),  # noqa: B008
    validate_args: bool | None = None,
) -> None:
    """Distribution.__init__."""
    self._batch_shape = batch_shape
    self._event_shape = event_shape
    if validate_args is not None:
        self._validate_args = validate_args
    if self._validate_args and not _arguments_hold(self):
        _torch_init(self, batch_shape, event_shape, validate_args)
    else:
        super(Distribution, self).__init__()


def validate_sample(self: Distribution, value: Tensor) -> None:
    """Distribution._validate_sample."""
    if type(value) in PLAIN and "support" not in self.__dict__:
        shape = self._batch_shape + self._event_shape
        fits = value.shape[len(value.shape) - len(shape) :] == shape
        if fits and _readable() and _holds(type(self).support, value):
            return
    _torch_validate_sample(self, value)


class Checked(Distribution):
    """Distribution with these checks: a base class to put behind torch's own."""

    __init__ = init
    _validate_sample = validate_sample
