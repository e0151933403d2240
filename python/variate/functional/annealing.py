"""Partition functions by annealed importance sampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _backend, _checks, _gate, _key, random
from .boltzmann import (
    START,
    as_states,
    check_categories,
    check_like,
    check_machine,
    check_states,
    falls,
    independent,
    numbers,
    shown,
)
from .rbm import KINDS, check_chains, check_weights, rbm_gibbs, single

__all__ = ["LogPartition", "ais_log_partition"]

_Machine = tuple[Tensor, Tensor, Tensor]  # weight, visible_bias, hidden_bias
_Noise = dict[str, Any]  # key, generator, first_sample


class LogPartition(NamedTuple):
    """What :func:`ais_log_partition` returns, float64: ``log_z``, its ``standard_error``, the ``effective_sample_size``
    of the weights and ``log_weights``. Where a few weights outweigh all others, and the effective sample size is of the
    order of 1, standard_error means nothing: lengthen the ladder, or bracket log Z by the means of the log weights."""

    log_z: Tensor
    standard_error: Tensor  # of log_z, by the spread of the weights
    effective_sample_size: Tensor  # (sum w)^2 / sum w^2, between 1 and the number of chains
    log_weights: Tensor  # [chains]; log_z is the log of their mean weight, for reverse runs minus that


@torch.no_grad()
def ais_log_partition(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    betas: int | Sequence[float] | Tensor = 1000,
    chains: int = 256,
    base_bias: Tensor | None = None,
    start: Tensor | None = None,
    visible_kind: str = "bernoulli",
    categories: int | None = None,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> LogPartition:
    """log Z by annealed importance sampling: log of the mean of w = prod_k p_k(v_(k-1)) / p_(k-1)(v_(k-1)), where
    p_k(v) sums exp(-E_k(v, h)) over h, and E_k goes from machines of independent units to this one:

    E_k = -(beta_k a + (1 - beta_k) base_bias).v - beta_k (b.h + v.W h); Gaussian: |v - a|^2 / 2 - beta_k (b.h + v.W h).

    Forward runs start from independent units: E log w <= log Z. Reverse runs start from the machine's own samples, and
    their weights are those of 1 / Z: log Z <= -E log w. So the mean of log_weights and minus that of a reverse run
    bracket log Z, each up to its noise.

    Args:
        weight, visible_bias, hidden_bias, visible_kind: as for :func:`rbm_free_energy`.
        betas: how many steps the ladder has, evenly, or the whole ladder, rising from 0 to 1; read on the host.
        chains: how many weights are drawn.
        base_bias: [V] biases of the independent visible units, 0 if left out. The log odds of the data's means take
            fewer steps. Not for "gaussian".
        start: exact or long-run samples of the visible units, one for each chain: makes it a reverse run. `chains` is
            then their number.
        categories: of "categorical" visibles: how many units there are to a group.
        key: int64 [2]; drawn from torch's generator where it is left out. The Gibbs step after the k-th weight,
            k = 0, 1, ..., is step k; fold_in(key, 2^16 + 1) draws the first states.
        generator: the generator that draws it (eager code only).
        first_sample: the index of chain 0 among all chains.

    Returns:
        (log_z, standard_error, effective_sample_size, log_weights [chains]), float64.

    Raises:
        TypeError, ValueError: as :func:`rbm_free_energy`; a ladder that does not rise from 0 to 1.

    Source: Neal 2001; Salakhutdinov and Murray 2008; reverse runs: Burda, Grosse and Salakhutdinov 2015.
    """
    check_machine(weight, visible_bias, hidden_bias, visible_kind)
    ladder = _ladder(betas)
    ways = check_categories(visible_kind, categories, len(visible_bias))
    gaussian = visible_kind == "gaussian"
    if base_bias is not None:
        if gaussian:
            raise ValueError("base_bias: expected None for Gaussian visibles, whose independent units have the mean a")
        check_like("base_bias", base_bias, "visible_bias", visible_bias)
    base = torch.zeros_like(visible_bias) if base_bias is None else base_bias
    noise: dict[str, Any] = {"generator": generator, "first_sample": first_sample}
    if start is None:
        _checks.count("chains", chains)
        own = None if key is None else random.fold_in(key, START)
        visible = independent(visible_bias if gaussian else base, chains, visible_kind, ways, key=own, **noise)
    else:
        check_states("start", start, weight, visible_bias, hidden_bias, visible_kind)
        check_chains("start", start, visible_kind, ways)
        visible = start

    travelled = torch.tensor(ladder if start is None else ladder[::-1], dtype=torch.float64, device=weight.device)
    machine = (weight, visible_bias, hidden_bias)
    log_weights = _anneal(visible, machine, base, travelled, visible_kind, ways, {"key": key, **noise})
    units = len(hidden_bias) * math.log(2)
    if gaussian:
        log_base = torch.tensor(units + len(visible_bias) / 2 * math.log(2 * math.pi)).double()
    elif visible_kind == "bernoulli":
        log_base = F.softplus(base.double()).sum() + units
    else:
        log_base = torch.logsumexp(base.double().unflatten(-1, (-1, ways)), -1).sum() + units
    if start is None:
        return _estimate(log_weights + log_base, 1)
    return _estimate(log_weights - log_base, -1)


def _anneal(
    visible: Tensor, machine: _Machine, base_bias: Tensor, betas: Tensor, visible_kind: str, ways: int, noise: _Noise
) -> Tensor:
    """float64 log weights [chains] of a run along betas."""
    check_weights(*machine)
    key, first_sample = noise["key"], noise["first_sample"]
    op = _backend.select("rbm_anneal", visible)
    if op is None or _gate.transformed_noise("rbm_anneal", key):
        return _anneal_by_steps(visible, machine, base_bias, betas, visible_kind, noise)
    log_weights = torch.empty(len(visible), dtype=torch.float64, device=visible.device)
    dtype = torch.float32 if visible_kind == "gaussian" else torch.uint8
    op(
        visible.to(dtype, memory_format=torch.contiguous_format, copy=True),
        *(single(parameter) for parameter in (*machine, base_bias)),
        betas,
        log_weights,
        0,
        KINDS[visible_kind],
        ways if visible_kind == "categorical" else 0,
        _key.resolve(key, noise["generator"], first_sample, visible),
        first_sample,
    )
    return log_weights


def _anneal_by_steps(
    visible: Tensor, machine: _Machine, base_bias: Tensor, betas: Tensor, visible_kind: str, noise: _Noise
) -> Tensor:
    """The same where no kernel makes the whole run: a call for every Gibbs step."""
    weight, visible_bias, hidden_bias = machine
    gaussian = visible_kind == "gaussian"
    log_weights = torch.zeros(len(visible), dtype=torch.float64, device=weight.device)
    ladder = betas.tolist()
    for k, (before, beta) in enumerate(itertools.pairwise(ladder)):
        states = as_states(visible, weight, visible_kind)
        field = torch.addmm(hidden_bias, states, weight).double()
        log_weights += (F.softplus(beta * field) - F.softplus(before * field)).sum(-1)
        if not gaussian:
            log_weights += (beta - before) * (states.double() @ (visible_bias.double() - base_bias.double()))
        if k + 2 == len(ladder):
            break
        if gaussian:  # the visibles' own variance does not anneal
            now, inverse = (weight * beta, visible_bias, hidden_bias * beta), 1.0
        else:
            now, inverse = (weight, visible_bias + base_bias * (1 / beta - 1), hidden_bias), beta
        visible = rbm_gibbs(visible, *now, beta=inverse, visible_kind=visible_kind, first_step=k, **noise)[0]
    return log_weights


def _estimate(log_weights: Tensor, sign: int) -> LogPartition:
    """log of the mean weight, by the delta method; sign -1 where the weights are those of 1 / Z."""
    count = len(log_weights)
    relative = torch.exp(log_weights - log_weights.max())
    mean = relative.mean()
    log_z = log_weights.max() + mean.log()
    error = relative.std() / mean / math.sqrt(count) if count > 1 else torch.full_like(mean, math.inf)
    return LogPartition(sign * log_z, error, relative.sum() ** 2 / relative.square().sum(), log_weights)


def _ladder(betas: int | Sequence[float] | Tensor) -> list[float]:
    if isinstance(betas, int) and not isinstance(betas, bool):
        _checks.count("betas", betas)
        return [k / betas for k in range(betas + 1)]
    ladder = numbers(betas)  # type: ignore[arg-type]
    if len(ladder) < 2 or ladder[0] != 0 or ladder[-1] != 1 or falls(ladder):
        raise ValueError(
            f"betas: expected a ladder that rises from 0 to 1, got {shown(ladder)}; "
            "sort it, or pass the number of its steps"
        )
    return ladder


@_backend.register("rbm_anneal", cuda=False)
def _(*arguments: Any) -> None:
    return None
