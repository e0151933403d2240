"""What stands around the Gibbs steps of a Boltzmann machine: energies, training, tempering, partition functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..reference.rbm import VISIBLE_KINDS, one_hot
from . import _checks, random
from .rbm import rbm_gibbs

__all__ = [
    "RBMGradient",
    "dbm_gibbs",
    "dbm_join",
    "dbm_mean_field",
    "rbm_cd_gradient",
    "rbm_energy",
    "rbm_free_energy",
    "rbm_log_partition",
]

# fold_in(key, this) draws first states; the numbers below it are those of layers and of tempering's swaps.
START = 2**16 + 1


class RBMGradient(NamedTuple):
    """What :func:`rbm_cd_gradient` returns: the gradients of a loss to go down on, and where the chains are."""

    weight: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor
    chains: Tensor


def rbm_energy(
    visible: Tensor,
    hidden: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    visible_kind: str = "bernoulli",
) -> Tensor:
    """E(v, h) = -a.v - b.h - v.W h, for Gaussian visibles |v - a|^2 / 2 - b.h - v.W h; [B].

    Args:
        visible, hidden: [B, ...] as :func:`rbm_gibbs` takes and returns them; products are in the dtype of weight.
        weight, visible_bias, hidden_bias, visible_kind: as for :func:`rbm_free_energy`.

    Returns:
        [B], of the dtype of weight, differentiable to any order.

    Raises:
        TypeError, ValueError: as :func:`rbm_free_energy`.

    Source: Smolensky 1986; Gaussian visibles: Welling, Rosen-Zvi and Hinton 2005.
    """
    states = check_states("visible", visible, weight, visible_bias, hidden_bias, visible_kind)
    if hidden.shape != (len(states), len(hidden_bias)):
        raise ValueError(f"hidden: expected {(len(states), len(hidden_bias))}, got {tuple(hidden.shape)}")
    h = hidden.to(weight.dtype)
    own = (states - visible_bias).square().sum(-1) / 2 if visible_kind == "gaussian" else -(states @ visible_bias)
    return own - h @ hidden_bias - ((states @ weight) * h).sum(-1)


def rbm_free_energy(
    visible: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    beta: float | Tensor = 1.0,
    visible_kind: str = "bernoulli",
) -> Tensor:
    """F(v) = -beta a.v - sum_j softplus(beta (b_j + v.W_j)) = -log sum_h exp(-beta E(v, h)), [B]; for Gaussian
    visibles beta |v - a|^2 / 2 in the place of -beta a.v.

    Args:
        visible: [B, V], of any dtype, 0 and 1 or between them ("bernoulli") or real ("gaussian"); for "categorical"
            integer categories [B, G], G groups of V / G units each.
        weight: [V, H] float32 or float64.
        visible_bias, hidden_bias: [V] and [H], of its dtype.
        beta: the inverse temperature: a number, or a tensor, 0-d or [B].
        visible_kind: "bernoulli", "gaussian" (of unit variance) or "categorical".

    Returns:
        [B], of the dtype of weight, differentiable to any order.

    Raises:
        TypeError: an argument that is not a tensor, or of another dtype.
        ValueError: shapes or devices that do not fit, an unknown visible_kind.

    Source: Hinton 2012 ("A practical guide to training restricted Boltzmann machines"), section 16.1.
    """
    check_states("visible", visible, weight, visible_bias, hidden_bias, visible_kind)
    return reference.rbm.rbm_free_energy(
        visible, weight, visible_bias, hidden_bias, beta=beta, visible_kind=visible_kind
    )


def rbm_cd_gradient(
    data: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    steps: int = 1,
    persistent: Tensor | None = None,
    visible_kind: str = "bernoulli",
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    first_step: int = 0,
) -> RBMGradient:
    """The contrastive divergence estimate of the gradient of -log p(data), without autograd:

    weight:       mean over chains of v p(h = 1 | v)  -  mean over data of v p(h = 1 | v), and the biases likewise,

    the chains being `steps` Gibbs steps away from the data (CD-k) or from where they were (PCD-k).

    Args:
        data: [B, V] or [B, G], as for :func:`rbm_free_energy`. CD starts from a draw of binary data where they are
            floats between 0 and 1.
        weight, visible_bias, hidden_bias, visible_kind: as there.
        steps: Gibbs steps, at least 1.
        persistent: the chains of persistent contrastive divergence: what the last call returned; any number of them.
        key: int64 [2]; drawn from torch's generator where it is left out. fold_in(fold_in(key, 2^16 + 1),
            first_step) draws binary data.
        generator: the generator that draws it (eager code only).
        first_sample: the index of row 0 in the whole batch.
        first_step: how many steps the chains have made.

    Returns:
        (weight, visible_bias, hidden_bias, chains): gradients to go down on, and the chains' visible states.

    Raises:
        TypeError, ValueError: as :func:`rbm_free_energy`; steps below 1, no data.

    Source: Hinton 2002; Tieleman 2008.
    """
    positive = check_states("data", data, weight, visible_bias, hidden_bias, visible_kind)
    _checks.count("steps", steps)
    if len(positive) == 0:
        raise ValueError("data: expected at least one row, as the gradient is a mean; skip an empty batch")
    start = data if persistent is None else persistent
    if persistent is None and visible_kind == "bernoulli":
        own = None if key is None else random.fold_in(random.fold_in(key, START), first_step)
        start = start_of(data, visible_kind, own, generator, first_sample)
    with torch.no_grad():
        chains = rbm_gibbs(
            start,
            weight,
            visible_bias,
            hidden_bias,
            steps=steps,
            visible_kind=visible_kind,
            key=key,
            generator=generator,
            first_sample=first_sample,
            first_step=first_step,
        )[0]
        negative = check_states("persistent", chains, weight, visible_bias, hidden_bias, visible_kind)
        return RBMGradient(*phase_difference(positive, negative, weight, hidden_bias), chains)


def rbm_log_partition(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    visible_kind: str = "bernoulli",
    categories: int | None = None,
) -> Tensor:
    """log Z = log sum over v and h of exp(-E(v, h)), exactly, by enumeration: 0-d float64.

    Args:
        weight, visible_bias, hidden_bias, visible_kind: as for :func:`rbm_free_energy`.
        categories: of "categorical" visibles: how many units there are to a group.

    Raises:
        TypeError, ValueError: as there; more than 2^25 states of the hidden units (or of binary visible ones).

    Source: the definition; the units of the other layer are summed out in closed form.
    """
    check_machine(weight, visible_bias, hidden_bias, visible_kind)
    ways = check_categories(visible_kind, categories, len(visible_bias))
    units = min(weight.shape) if visible_kind == "bernoulli" else weight.shape[1]
    if units > 25:
        raise ValueError(
            f"weight: expected at most 25 hidden units to enumerate, or as many binary visible ones, got "
            f"{tuple(weight.shape)}; ais_log_partition estimates larger machines"
        )
    return reference.rbm.rbm_log_partition(
        weight, visible_bias, hidden_bias, visible_kind=visible_kind, categories=ways
    )


def dbm_gibbs(
    states: Tensor | Sequence[Tensor | None],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    steps: int = 1,
    beta: float | Tensor = 1.0,
    clamp: Tensor | None = None,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, ...]:
    """`steps` Gibbs steps of a deep Boltzmann machine of layers x_0 (visible), x_1, ..., x_L with the energy
    E = -sum_l b_l.x_l - sum_l x_l.W_l x_(l+1): the odd layers given the even ones, then the even ones given the odd.

    Layers of one parity know of each other only through those of the other: side by side they are the two layers of a
    restricted machine, which :func:`dbm_join` builds and :func:`rbm_gibbs` steps.

    Args:
        states: uint8 [chains, units], 0 and 1, for each layer; odd ones, which are drawn first, may be None. Or the
            visible layer alone: all deeper ones start at 0.
        weights: W_l [units of layer l, units of layer l + 1] float32, one or more.
        biases: [units], one for each layer.
        steps, beta, key, generator, first_sample, first_step: as for :func:`rbm_gibbs`. Odd layers take the words of
            key, even ones those of fold_in(key, 1); the element is the unit's place among the layers of its parity.
        clamp: mask [units] or [chains, units] of the visible layer: 1 = this unit keeps its value.

    Returns:
        The states of all layers, uint8.

    Raises:
        TypeError, ValueError: as :func:`rbm_free_energy`; layers that do not fit together.

    Source: Salakhutdinov and Hinton 2009.
    """
    weight, even_bias, odd_bias = dbm_join(weights, biases)
    sizes = [len(b) for b in biases]
    layers: list[Tensor | None] = [states] if isinstance(states, Tensor) else list(states)
    visible = layers[0]
    if visible is None:
        raise ValueError("states: expected a tensor for the visible layer, got None")
    chains = len(visible)
    if isinstance(states, Tensor):
        layers += [torch.zeros(chains, size, dtype=torch.uint8, device=weight.device) for size in sizes[1:]]
    if len(layers) != len(sizes):
        raise ValueError(f"states: expected a tensor for each of {len(sizes)} layers, got {len(layers)}")
    even: list[Tensor] = []
    for index, (layer, size) in enumerate(zip(layers, sizes, strict=True)):
        if index % 2 == 0 or layer is not None:
            if layer is None or layer.shape != (chains, size):
                what = "None" if layer is None else tuple(layer.shape)
                raise ValueError(f"states: expected shape {(chains, size)} for layer {index}, got {what}")
        if index % 2 == 0 and layer is not None:
            even.append(layer.to(torch.uint8))
    if clamp is not None:
        if clamp.shape not in ((sizes[0],), (chains, sizes[0])):
            raise ValueError(
                f"clamp: expected a mask of the visible layer, {(sizes[0],)} or {(chains, sizes[0])}, got "
                f"{tuple(clamp.shape)}"
            )
        clamp = F.pad(clamp.to(torch.uint8), (0, len(even_bias) - sizes[0]))
    drawn = rbm_gibbs(
        torch.cat(even, -1),
        weight,
        even_bias,
        odd_bias,
        steps=steps,
        beta=beta,
        clamp=clamp,
        key=key,
        generator=generator,
        first_sample=first_sample,
        first_step=first_step,
    )
    parts = [iter(x.split(sizes[parity::2], -1)) for parity, x in enumerate(drawn[:2])]
    return tuple(next(parts[index % 2]) for index in range(len(sizes)))


def dbm_join(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, even_bias, odd_bias): a deep Boltzmann machine as a restricted one, whose visible units are those of the
    even layers, side by side, and whose hidden units are those of the odd ones. So every function of restricted
    machines, :func:`ais_log_partition` and :func:`parallel_tempering` too, is one of deep machines; with more than
    three layers some blocks of weight are 0.

    Args:
        weights, biases: as for :func:`dbm_gibbs`, float32 or float64.

    Returns:
        (weight [even units, odd units], even_bias, odd_bias), differentiable.

    Raises:
        TypeError, ValueError: as :func:`dbm_gibbs`.

    Source: Salakhutdinov and Hinton 2009, whose Gibbs sampler draws the layers of one parity together.
    """
    if len(weights) < 1 or len(biases) != len(weights) + 1:
        raise ValueError(
            f"biases: expected one for each layer, that is one more than weights, which are at least one; got "
            f"{len(biases)} biases and {len(weights)} weights"
        )
    for index, bias in enumerate(biases):
        _parameter(f"biases[{index}]", bias, 1)
    sizes = [len(b) for b in biases]
    blocks = [
        [w.new_zeros(m, n) for n in sizes[1::2]] for m, w in zip(sizes[::2], [weights[0]] * len(sizes), strict=False)
    ]
    for index, weight in enumerate(weights):
        _parameter(f"weights[{index}]", weight, 2)
        if weight.shape != (sizes[index], sizes[index + 1]):
            raise ValueError(
                f"weights[{index}]: expected {(sizes[index], sizes[index + 1])}, from layer {index} to layer "
                f"{index + 1} by their biases, got {tuple(weight.shape)}"
            )
        blocks[(index + 1) // 2][index // 2] = weight if index % 2 == 0 else weight.t()
    joined = torch.cat([torch.cat(row, 1) for row in blocks])
    return joined, torch.cat(list(biases[::2])), torch.cat(list(biases[1::2]))


def dbm_mean_field(
    visible: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, iterations: int = 30
) -> tuple[Tensor, ...]:
    """The positive phase of a deep Boltzmann machine: means mu_l = sigmoid(b_l + mu_(l-1) W_(l-1) + W_l mu_(l+1)) of
    all hidden layers given mu_0 = visible, by `iterations` rounds of the odd layers, then the even ones. Each raises
    the variational bound on log p(visible).

    Args:
        visible: [B, V] in [0, 1], of any dtype.
        weights, biases: as for :func:`dbm_gibbs`, float32 or float64.
        iterations: rounds, at least 1. It stops early nowhere: that would wait for the device.

    Returns:
        [B, units] for each layer above the visible one.

    Raises:
        TypeError, ValueError: as :func:`dbm_gibbs`.

    Source: Salakhutdinov and Hinton 2009, whose doubled weights make the first pass up.
    """
    weight, even_bias, odd_bias = dbm_join(weights, biases)
    _checks.count("iterations", iterations)
    sizes = [len(b) for b in biases]
    if visible.dim() != 2 or visible.shape[1] != sizes[0]:
        raise ValueError(f"visible: expected [B, {sizes[0]}], got {tuple(visible.shape)}")
    means = [visible.to(weight.dtype)]
    for index in range(1, len(sizes)):
        doubled = 2.0 if index < len(weights) else 1.0
        means.append(torch.sigmoid(biases[index] + doubled * (means[-1] @ weights[index - 1])))
    even = torch.cat(means[::2], -1)
    odd = torch.cat(means[1::2], -1)
    for _ in range(iterations):
        odd = torch.sigmoid(torch.addmm(odd_bias, even, weight))
        if len(sizes) > 2:
            deeper = torch.addmm(even_bias[sizes[0] :], odd, weight[sizes[0] :].t())
            even = torch.cat((even[:, : sizes[0]], torch.sigmoid(deeper)), -1)
    parts = [iter(x.split(sizes[parity::2], -1)) for parity, x in enumerate((even, odd))]
    return tuple(next(parts[index % 2]) for index in range(len(sizes)))[1:]


def phase_difference(
    positive: Tensor, negative: Tensor, weight: Tensor, hidden_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Negative statistics minus positive ones: of weight, visible_bias and hidden_bias, from states [B, V]. Both phases
    are one product each way; a row's share of its mean scales it."""
    states = torch.cat((positive, negative))
    hidden = torch.sigmoid(torch.addmm(hidden_bias, states, weight))
    hidden[: len(positive)] *= -1 / len(positive)
    hidden[len(positive) :] *= 1 / len(negative)
    return states.t() @ hidden, negative.mean(0) - positive.mean(0), hidden.sum(0)


def start_of(
    data: Tensor, visible_kind: str, key: Tensor | None, generator: torch.Generator | None, first_sample: int
) -> Tensor:
    """Data as states of chains: a draw of those that are probabilities."""
    if visible_kind != "bernoulli" or not data.is_floating_point():
        return data if visible_kind == "gaussian" else data.to(torch.uint8)
    return random.bernoulli(data, key=key, generator=generator, first_sample=first_sample, dtype=torch.uint8)


def _parameter(name: str, value: Tensor, dims: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name}: expected float32 or float64, got {_checks.dtype_name(value.dtype)}; .float() makes it so"
        )
    if value.dim() != dims:
        raise ValueError(f"{name}: expected {dims} dimension{'s'[: dims - 1]}, got shape {tuple(value.shape)}")


def check_like(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    _parameter(name, value, like.dim())
    _checks.same_shape(name, value, like_name, like)
    _checks.same_device(name, value, like_name, like)


def check_machine(weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, visible_kind: str) -> None:
    if visible_kind not in VISIBLE_KINDS:
        raise ValueError(f"visible_kind: expected one of {', '.join(VISIBLE_KINDS)}, got {visible_kind!r}")
    _parameter("weight", weight, 2)
    for name, bias, units in (("visible_bias", visible_bias, 0), ("hidden_bias", hidden_bias, 1)):
        _parameter(name, bias, 1)
        if len(bias) != weight.shape[units]:
            transposed = "; transpose it?" if len(bias) == weight.shape[1 - units] else ""
            raise ValueError(
                f"{name}: expected {(weight.shape[units],)}, as weight is [visible, hidden] {tuple(weight.shape)}, got "
                f"{tuple(bias.shape)}{transposed}"
            )
        if bias.dtype != weight.dtype:
            raise TypeError(
                f"{name}: expected the dtype of weight, {_checks.dtype_name(weight.dtype)}, got "
                f"{_checks.dtype_name(bias.dtype)}"
            )
        _checks.same_device(name, bias, "weight", weight)


def check_states(
    name: str, visible: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, visible_kind: str
) -> Tensor:
    """The visible units' states [B, V] in the dtype of weight, after all checks."""
    check_machine(weight, visible_bias, hidden_bias, visible_kind)
    if not isinstance(visible, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(visible).__name__}")
    _checks.same_device(name, visible, "weight", weight)
    units = weight.shape[0]
    if visible_kind == "categorical":
        if visible.dtype not in _checks.INTEGERS:
            raise TypeError(f"{name}: expected integer categories, got {_checks.dtype_name(visible.dtype)}")
        groups = visible.shape[-1] if visible.dim() else 0
        if visible.dim() != 2 or groups == 0 or units % groups:
            raise ValueError(
                f"{name}: expected [B, groups] with groups that divide the {units} visible units, got "
                f"{tuple(visible.shape)}"
            )
        _checks.categories(name, visible, units // groups)
    elif visible.dim() != 2 or visible.shape[1] != units:
        raise ValueError(f"{name}: expected [B, {units}], got {tuple(visible.shape)}")
    check_range(name, visible, visible_kind)
    return as_states(visible, weight, visible_kind)


def check_range(name: str, visible: Tensor, visible_kind: str) -> None:
    """Bernoulli units between 0 and 1, Gaussian ones finite. Looked at on the CPU always, elsewhere under
    set_debug(True)."""
    if visible_kind == "categorical" or visible.dtype == torch.bool or not _checks.readable(visible):
        return
    low, high = (float(x) for x in torch.aminmax(visible.detach()))
    if visible_kind == "bernoulli" and not (low >= 0 and high <= 1):
        raise ValueError(
            f"{name}: expected values between 0 and 1 of bernoulli visibles, got {low:g} to {high:g}; divide bytes by "
            "255, and spins s are (s + 1) / 2"
        )
    if not math.isfinite(high - low):
        raise ValueError(f"{name}: expected finite values of {visible_kind} visibles, got {low:g} to {high:g}")


def as_states(visible: Tensor, weight: Tensor, visible_kind: str) -> Tensor:
    return (one_hot(visible, len(weight)) if visible_kind == "categorical" else visible).to(weight.dtype)


def check_categories(visible_kind: str, categories: int | None, units: int) -> int:
    if visible_kind != "categorical":
        if categories is not None:
            raise ValueError(f"categories: expected None for {visible_kind} visibles, got {categories}")
        return 2
    if categories is None:
        raise ValueError("categories: expected how many units there are to a group of categorical visibles, got None")
    _checks.count("categories", categories)
    if units % categories or categories > 256:
        raise ValueError(f"categories: expected a divisor of the {units} visible units, at most 256, got {categories}")
    return categories


def independent(
    bias: Tensor,
    chains: int,
    visible_kind: str,
    ways: int,
    *,
    key: Tensor | None,
    generator: torch.Generator | None,
    first_sample: int,
) -> Tensor:
    """A draw of independent visible units."""
    rows = bias.expand(chains, -1)
    noise: dict[str, Any] = {"key": key, "generator": generator, "first_sample": first_sample}
    if visible_kind == "gaussian":
        return rows + random.normal(rows.shape, dtype=bias.dtype, device=bias.device, **noise)
    if visible_kind == "bernoulli":
        return random.bernoulli(torch.sigmoid(rows), dtype=torch.uint8, **noise)
    return random.categorical(rows.unflatten(-1, (-1, ways)), **noise).to(torch.uint8)


def numbers(betas: Sequence[float] | Tensor) -> list[float]:
    """A ladder of inverse temperatures, on the host."""
    values = betas.tolist() if isinstance(betas, Tensor) else betas
    if not isinstance(values, (list, tuple)) or not all(isinstance(b, (int, float)) for b in values):
        raise TypeError(f"betas: expected a sequence of numbers, or a 1-D tensor, got {type(betas).__name__}")
    return [float(b) for b in values]


def falls(ladder: list[float]) -> bool:
    return any(not low < high for low, high in itertools.pairwise(ladder))


def shown(ladder: list[float]) -> str:
    return str(ladder) if len(ladder) < 8 else f"[{ladder[0]}, {ladder[1]}, ..., {ladder[-1]}]"
