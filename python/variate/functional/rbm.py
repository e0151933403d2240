"""Gibbs steps of restricted Boltzmann machines, all of a call in one op."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate, _key

__all__ = ["rbm_gibbs"]

KINDS = {"bernoulli": 0, "gaussian": 1, "categorical": 2}
_STATES = _checks.FLOATING | _checks.INTEGERS | {torch.bool}


def rbm_gibbs(
    visible: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    steps: int = 1,
    beta: float | Tensor = 1.0,
    clamp: Tensor | None = None,
    visible_kind: str = "bernoulli",
    packed: bool = False,
    return_probabilities: bool = False,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, ...]:
    """`steps` block-Gibbs steps of B chains of p(v, h) proportional to exp(-beta E(v, h)). Each step draws

    h_j = 1 with probability sigmoid(beta (b_j + sum_i v_i W_ij)), then
    v_i = 1 with probability sigmoid(beta (a_i + sum_j W_ij h_j)),

    with E = -a.v - b.h - v.W h. Gaussian visibles, of unit variance (E = |v - a|^2 / 2 - b.h - v.W h):
    v_i = a_i + sum_j W_ij h_j + eps / sqrt(beta). Categorical ones: v_i = 1 for one unit of each group, drawn with
    probability softmax(beta (a_i + sum_j W_ij h_j)) over the group, as the largest of these logits plus Gumbel noise.

    Args:
        visible: where the chains start. "bernoulli": [B, V] of 0 and 1, in any dtype; "gaussian": [B, V] floating;
            "categorical": [B, G] integers in [0, V / G), unit g V / G + c being category c of group g, V / G <= 256.
        weight: [V, H] float32, float64, bfloat16 or float16, any strides; used as float32.
        visible_bias, hidden_bias: [V] and [H], likewise. An infinite bias makes its unit certain.
        steps: at least 0. No step leaves visible as it is and draws h given it, by the words of `first_step`.
        beta: the inverse temperature: a number, or a float tensor, 0-d or [B]; at least 0, above 0 for "gaussian".
        clamp: bool or uint8, [V] or [B, V] ([G], [B, G] for "categorical"): where it is set, v keeps its value.
        packed: Bernoulli states are bits, visible uint8 [B, ceil(V / 8)] and hidden likewise: unit i is bit i % 8 of
            byte i / 8, the lowest first, as ``numpy.packbits(states, -1, "little")`` makes them.
        return_probabilities: also return what the last draws were made with.
        key: int64 [2], or [B, 2] for a stream per chain; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of chain 0 in the whole batch.
        first_step: the step that this call starts at: a call of K steps equals K calls of one with first_step moved on.

    Returns:
        visible and hidden [B, H], uint8 (bits, if they were packed), Gaussian visibles float32. hidden is what visible
        was drawn from.
        With return_probabilities also float32 [B, V] and [B, H]: p(v_i = 1 | h), or Gaussian visibles' means (of no
        step: the states themselves), and p(h_j = 1 | v). Nothing has a gradient.

    Draws: unit e of chain c at step s takes word e of sample c at step s, hidden units of `key`, visible ones of
    fold_in(key, 1).

    Raises:
        TypeError: an argument of a type or dtype that is not named above.
        ValueError: shapes or devices that do not fit, an unknown visible_kind, steps or first_step out of range, a
            state that visible_kind does not have, a NaN or infinite weight, a NaN bias. Values are looked at on the CPU
            in eager code, elsewhere under ``variate.set_debug(True)``; where they are not, such a weight is taken as 0.
        RuntimeError: under torch.func without a key.

    Sums over binary and one-hot inputs are exact. For each unit the weights and the bias are rounded to multiples of
    2^-e, e being the largest with sum |W| + |bias| below 2^31 of them, and added as integers; the logit is rounded to
    float32 once. So these chains are the same bits whatever computes them, and up to a thousand inputs their logits are
    no further from float64's than those of a float32 product, beyond that a few times. Gaussian visibles' sums are
    float32, over i in order.

    Source: Hinton, "Training products of experts by minimizing contrastive divergence", 2002.
    """
    kind = KINDS.get(visible_kind)
    if kind is None:
        raise ValueError(f"visible_kind: expected one of {', '.join(KINDS)}, got {visible_kind!r}")
    categories = _check_machine(visible, weight, visible_bias, hidden_bias, visible_kind, packed)
    if not packed:
        check_chains("visible", visible, visible_kind, categories)
    check_weights(weight, visible_bias, hidden_bias)
    _check_steps(steps, first_step)
    inverse = _inverse_temperature(beta, visible, visible_kind)
    if clamp is not None:
        clamp = _mask(clamp, visible, weight.shape[0] if packed else visible.shape[1])
    op = _backend.select("rbm_gibbs", visible)
    if op is None or _gate.transformed_noise("rbm_gibbs", key):
        return reference.rbm.rbm_gibbs(
            visible.detach(),
            weight,
            visible_bias,
            hidden_bias,
            steps=steps,
            beta=inverse,
            clamp=clamp,
            visible_kind=visible_kind,
            packed=packed,
            return_probabilities=return_probabilities,
            key=_key.check(key, generator, first_sample, visible),
            generator=generator,
            first_sample=first_sample,
            first_step=first_step,
        )
    key = _key.resolve(key, generator, first_sample, visible)
    dtype = torch.float32 if visible_kind == "gaussian" else torch.uint8
    states = visible.detach().to(dtype, memory_format=torch.contiguous_format, copy=True)
    if packed and weight.numel() == 1:
        states &= 1  # the op takes the bits of single units for their bytes
    chains, units = len(states), weight.shape[1]
    stored = (units + 7) // 8 if packed else units
    hidden = torch.empty((chains, stored), dtype=torch.uint8, device=states.device)
    visible_probs = hidden_probs = None
    if return_probabilities:
        hidden_probs = torch.empty((chains, units), dtype=torch.float32, device=states.device)
        if steps > 0:
            visible_probs = torch.empty((chains, weight.shape[0]), dtype=torch.float32, device=states.device)
    op(
        states,
        hidden,
        single(weight),
        single(visible_bias),
        single(hidden_bias),
        inverse,
        clamp,
        steps,
        first_step,
        kind,
        categories,
        visible_probs,
        hidden_probs,
        key,
        first_sample,
    )
    if hidden_probs is None:
        return states, hidden
    if visible_probs is None:
        certain = states
        if visible_kind == "categorical":
            certain = reference.rbm.one_hot(states, weight.shape[0])
        elif packed:
            certain = reference.rbm.unpack(states, weight.shape[0])
        visible_probs = certain.to(torch.float32, copy=True)
    return states, hidden, visible_probs, hidden_probs


def single(tensor: Tensor) -> Tensor:
    return (tensor.detach() if tensor.requires_grad else tensor).to(torch.float32)


def _check_machine(
    visible: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, kind: str, packed: bool
) -> int:
    """Shapes, dtypes and devices; returns the categories of a group, 0 where there are none."""
    if not isinstance(visible, Tensor):
        raise TypeError(f"visible: expected a tensor, got {type(visible).__name__}")
    wanted = {"bernoulli": _STATES, "gaussian": _checks.FLOATING, "categorical": _checks.INTEGERS}[kind]
    if visible.dtype not in wanted:
        raise TypeError(f"visible: expected a dtype of {kind} units, got {_checks.dtype_name(visible.dtype)}")
    for name, value in (("weight", weight), ("visible_bias", visible_bias), ("hidden_bias", hidden_bias)):
        _checks.floating(name, value)
        _checks.same_device(name, value, "visible", visible)
    if weight.dim() != 2:
        raise ValueError(f"weight: expected [visible units, hidden units], got shape {tuple(weight.shape)}")
    units, hidden_units = weight.shape
    for name, value, size in (("visible_bias", visible_bias, units), ("hidden_bias", hidden_bias, hidden_units)):
        if value.shape != (size,):
            raise ValueError(
                f"{name}: expected shape ({size},), as weight is [visible, hidden] {tuple(weight.shape)}, got "
                f"{tuple(value.shape)}"
            )
    if packed:
        if kind != "bernoulli":
            raise ValueError(f"packed: expected False for {kind} visibles, whose states are more than a bit")
        if visible.dtype != torch.uint8 or visible.dim() != 2 or visible.shape[1] != (units + 7) // 8:
            raise ValueError(
                f"visible: expected uint8 bits of shape (chains, {(units + 7) // 8}) for {units} units, got "
                f"{_checks.dtype_name(visible.dtype)} {tuple(visible.shape)}"
            )
    elif visible.dim() != 2 or (kind != "categorical" and visible.shape[1] != units):
        raise ValueError(f"visible: expected shape (chains, {units}), got {tuple(visible.shape)}")
    if kind != "categorical":
        return 0
    groups = visible.shape[1]
    categories = units // groups if groups else 0
    if categories * groups != units or (groups and not 1 <= categories <= 256):
        raise ValueError(
            f"visible: expected [chains, G], G a divisor of {units} units that leaves at most 256 categories, "
            f"got {tuple(visible.shape)}"
        )
    return categories or 1


def check_chains(name: str, visible: Tensor, kind: str, categories: int) -> None:
    """Where chains start: states that the units have."""
    if kind == "categorical":
        _checks.categories(name, visible, categories)
    elif kind == "bernoulli" and visible.dtype != torch.bool and _checks.readable(visible):
        if visible.dtype == torch.uint8:
            wrong = int(visible.max()) > 1
        else:
            wrong = not bool(((visible == 0) | (visible == 1)).all())
        if wrong:
            other = visible[(visible != 0) & (visible != 1)][0].item()
            raise ValueError(
                f"{name}: expected states 0 and 1 of bernoulli units, got {other}; random.bernoulli draws them from "
                "probabilities, and spins s are (s + 1) // 2"
            )


def check_weights(weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> None:
    # A sum is quick, and finite unless an element is not; a sum that overflowed is looked into.
    if (
        _checks.readable(weight)
        and not math.isfinite(float(weight.detach().sum()))
        and not bool(weight.isfinite().all())
    ):
        raise ValueError("weight: expected finite weights, got a NaN or an infinity")
    for name, bias in (("visible_bias", visible_bias), ("hidden_bias", hidden_bias)):
        if _checks.readable(bias) and math.isnan(float(bias.detach().sum())) and bool(bias.isnan().any()):
            raise ValueError(f"{name}: expected numbers, got a NaN")


def _check_steps(steps: int, first_step: int) -> None:
    _checks.count("steps", steps, 0)
    _checks.count("first_step", first_step, 0)
    if first_step + steps > 2**32 or first_step >= 2**32:
        raise ValueError(f"first_step: expected first_step + steps of at most 2^32, got {first_step} + {steps}")


def _inverse_temperature(beta: float | Tensor, visible: Tensor, kind: str) -> Tensor:
    """beta as float32, 0-d or [chains], on the device of the chains."""
    if isinstance(beta, Tensor):
        _checks.floating("beta", beta)
        if beta.shape not in ((), visible.shape[:1]):
            raise ValueError(f"beta: expected a number, or one for each of {len(visible)} chains, got {beta.shape}")
        if beta.dim():
            _checks.same_device("beta", beta, "visible", visible)
        return single(beta).to(visible.device, non_blocking=True)
    if isinstance(beta, (int, float)) and not isinstance(beta, bool) and not torch.compiler.is_compiling():
        if not 0 <= beta < math.inf or (kind == "gaussian" and beta == 0):
            least = "above 0" if kind == "gaussian" else "of at least 0"
            raise ValueError(f"beta: expected a finite number {least}, got {beta}")
    return _checks.number("beta", beta, torch.float32, visible.device)


def _mask(clamp: Tensor, visible: Tensor, columns: int) -> Tensor:
    if not isinstance(clamp, Tensor) or clamp.dtype not in (torch.bool, torch.uint8):
        got = _checks.dtype_name(clamp.dtype) if isinstance(clamp, Tensor) else type(clamp).__name__
        raise TypeError(f"clamp: expected a bool or uint8 tensor, got {got}")
    _checks.same_device("clamp", clamp, "visible", visible)
    if clamp.shape not in ((len(visible), columns), (columns,)):
        raise ValueError(f"clamp: expected shape {(len(visible), columns)} or {(columns,)}, got {tuple(clamp.shape)}")
    return clamp.view(torch.uint8) if clamp.dtype == torch.bool else clamp


@_backend.register("rbm_gibbs", cuda=False)
def _(*arguments: Any) -> None:
    return None
