"""Parallel tempering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate, _key, random
from .boltzmann import check_machine, check_states, falls, numbers, rbm_energy, shown
from .rbm import KINDS, check_chains, check_weights, rbm_gibbs, single

__all__ = ["Tempering", "parallel_tempering"]

_SWAPS = 2**16  # fold_in(key, this) decides swaps


class Tempering(NamedTuple):
    """What :func:`parallel_tempering` returns."""

    visible: Tensor  # [temperatures, chains, ...]
    hidden: Tensor  # [temperatures, chains, hidden units] uint8
    swap_rates: Tensor  # [temperatures - 1] float64: of each pair of neighbours; NaN where none was tried


def parallel_tempering(
    visible: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    betas: Sequence[float] | Tensor,
    rounds: int = 1,
    steps: int = 1,
    visible_kind: str = "bernoulli",
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    first_step: int = 0,
) -> Tempering:
    """`rounds` times: `steps` Gibbs steps at every inverse temperature, in one call, and then a swap of neighbours, the
    states (v, h) at beta and beta' with probability min(1, exp((beta - beta') (E(v, h) - E(v', h')))).

    The energy is the joint one, as the Gibbs steps leave exp(-beta E(v, h)) alone; the free energies at the two
    temperatures would do only with four of them, two across. Rounds of even number swap the pairs (0, 1), (2, 3), ...,
    odd ones (1, 2), (3, 4), .... States move, temperatures stay: `visible[-1]` are samples at betas[-1].

    Args:
        visible: [temperatures, chains, V] (or G) as :func:`rbm_gibbs` takes them.
        weight, visible_bias, hidden_bias, visible_kind: as for :func:`rbm_free_energy`.
        betas: [temperatures], rising, at least 0 (for Gaussian visibles above it); the last one, usually 1, is the
            target. Read on the host.
        rounds, steps: at least 1.
        key: int64 [2]; drawn from torch's generator where it is left out. The Gibbs steps take it, a chain's sample
            being (first_sample + chain) temperatures + its temperature's index; fold_in(key, 2^16) decides swaps
            (sample = chain, step = round, element = pair).
        generator: the generator that draws it (eager code only).
        first_sample: the index of chain 0 among all chains.
        first_step: how many rounds were made before.

    Returns:
        (visible, hidden, swap_rates).

    Raises:
        TypeError, ValueError: as :func:`rbm_free_energy`; betas that do not rise, another number of temperatures.

    Source: Swendsen and Wang 1986; Desjardins et al. 2010.
    """
    check_machine(weight, visible_bias, hidden_bias, visible_kind)
    ladder = check_rising(betas, visible_kind)
    _checks.count("rounds", rounds)
    _checks.count("steps", steps)
    count = len(ladder)
    if key is not None and key.shape != (2,):
        raise ValueError(
            f"key: expected one key, shape (2,), as its chains are rows of one call, got {tuple(key.shape)}"
        )
    if visible.dim() != 3 or len(visible) != count:
        raise ValueError(
            f"visible: expected [temperatures, chains, units] with {count} temperatures, as many as betas, got "
            f"{tuple(visible.shape)}"
        )
    chains = visible.shape[1]
    # Chain by chain, so that a chain's rows and samples do not depend on how many chains there are.
    states = visible.transpose(0, 1).flatten(0, 1)
    check_states("visible", states, weight, visible_bias, hidden_bias, visible_kind)
    check_chains("visible", states, visible_kind, weight.shape[0] // max(1, states.shape[1]))
    beta = torch.tensor(ladder, dtype=torch.float64, device=weight.device)
    _checks.first_sample(first_sample * count, chains * count)
    check_weights(weight, visible_bias, hidden_bias)
    machine = (weight, visible_bias, hidden_bias)
    key = _key.resolve(key, generator, 0, weight)
    counts = (rounds, steps, first_step)
    op = _backend.select("rbm_temper", states)
    if op is None or _gate.transformed_noise("rbm_temper", key):
        states, hidden, accepted = _temper_by_steps(states, *machine, beta, *counts, visible_kind, key, first_sample)
    else:
        dtype = torch.float32 if visible_kind == "gaussian" else torch.uint8
        states = states.to(dtype, memory_format=torch.contiguous_format, copy=True)
        hidden = torch.empty((chains * count, weight.shape[1]), dtype=torch.uint8, device=weight.device)
        accepted = torch.zeros(count - 1, dtype=torch.int64, device=weight.device)
        ways = weight.shape[0] // states.shape[1] if visible_kind == "categorical" else 0
        parameters = (single(parameter) for parameter in machine)
        op(states, hidden, *parameters, beta, accepted, *counts, KINDS[visible_kind], ways, key, first_sample)
    even = (rounds + 1 - first_step % 2) // 2
    tried = torch.full_like(accepted, chains * (rounds - even))
    tried[::2] = chains * even
    rates = accepted.double() / torch.where(tried > 0, tried.double(), torch.nan)
    shape = (chains, count)
    return Tempering(states.unflatten(0, shape).transpose(0, 1), hidden.unflatten(0, shape).transpose(0, 1), rates)


def _temper_by_steps(
    states: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    beta: Tensor,
    rounds: int,
    steps: int,
    first_round: int,
    visible_kind: str,
    key: Tensor,
    first_sample: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """States of all rows and accepted swaps, where no kernel makes all rounds: a call for each of them."""
    count = len(beta)
    chains = len(states) // count
    machine = (weight, visible_bias, hidden_bias)
    every = beta.float().repeat(chains)
    swap_key = random.fold_in(key, _SWAPS)
    accepted = torch.zeros(count - 1, dtype=torch.int64, device=weight.device)
    hidden = torch.empty(0)
    with torch.no_grad():
        for number in range(first_round, first_round + rounds):
            states, hidden = rbm_gibbs(
                states,
                *machine,
                steps=steps,
                beta=every,
                visible_kind=visible_kind,
                key=key,
                first_sample=first_sample * count,
                first_step=number * steps,
            )[:2]
            if count == 1:
                continue
            energy = rbm_energy(states, hidden, *machine, visible_kind=visible_kind).double().view(chains, count)
            log_ratio = (beta[1:] - beta[:-1]) * (energy[:, 1:] - energy[:, :-1])
            words = reference.random.words((chains, count - 1), swap_key, first_sample, number)
            swap = words < torch.ceil(torch.exp(log_ratio.clamp(max=0)) * 2.0**32)
            swap[:, (number + 1) % 2 :: 2] = False
            accepted += swap.sum(0)
            rows = torch.arange(chains * count, device=states.device).view(chains, count)
            rows[:, 1:] -= swap.long()
            rows[:, :-1] += swap.long()
            states, hidden = states[rows.flatten()], hidden[rows.flatten()]
    return states, hidden, accepted


def check_rising(betas: Sequence[float] | Tensor, visible_kind: str) -> list[float]:
    ladder = numbers(betas)
    low = 0.0 if visible_kind != "gaussian" else math.ulp(0.0)
    if not ladder or falls(ladder) or not (low <= ladder[0] and ladder[-1] < math.inf):
        what = "numbers above 0" if low else "numbers of at least 0"
        raise ValueError(f"betas: expected finite {what} that rise to the target, got {shown(ladder)}; sort them")
    return ladder


@_backend.register("rbm_temper", cuda=False)
def _(*arguments: Any) -> None:
    return None
