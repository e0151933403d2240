"""Lattices: `variate.functional.lattice` against checkerboard updates in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from variate import functional as ours
from variate import random
from variate.reference import lattice as reference

from .harness import KEY, Case, Compiled, Job, Target, jobs
from .results import RATE

BETA = 0.4  # T = 2.5, where neighbouring sweeps are much alike, but not for thousands of them
POTTS_BETA = 0.9
SWEEPS = 10  # of ours in a call; rivals take one
SITES = 2**22  # of a lattice, or of some chains, that rivals take: enough for any cost per call, and kind to caches


def spins_of(chains: int, *size: int) -> Callable[[torch.device], Sequence[Tensor]]:
    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        spins = torch.randint(0, 2, (chains, *size), generator=generator, device=device, dtype=torch.int8)
        return (spins.mul_(2).sub_(1),)

    return setup


def states_of(q: int, chains: int, *size: int) -> Callable[[torch.device], Sequence[Tensor]]:
    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        return (torch.randint(0, q, (chains, *size), generator=generator, device=device, dtype=torch.uint8),)

    return setup


def rivals(chains: int, sites: int, **functions: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Competitors and their portions: one sweep of some chains each."""
    some = min(chains, max(1, SITES // sites))
    competitors: dict[str, Any] = {name: _of_some(function, some) for name, function in functions.items()}
    competitors["compile"] = Compiled(competitors["expert"])
    return {"competitors": competitors, "portions": dict.fromkeys(competitors, some / chains / SWEEPS)}


def _of_some(function: Callable[[Tensor], Tensor], some: int) -> Callable[[Tensor], Tensor]:
    return lambda lattice: function(lattice[:some])


def _halves(lattice: Tensor) -> list[Tensor]:
    """The two colours of [chains, height, width], each [chains, height, width / 2]."""
    even, odd = lattice[..., 0::2], lattice[..., 1::2]
    rows = (torch.arange(lattice.shape[1], device=lattice.device) % 2 == 0)[:, None]
    return [torch.where(rows, even, odd), torch.where(rows, odd, even)]


def _joined(halves: Sequence[Tensor]) -> Tensor:
    rows = (torch.arange(halves[0].shape[1], device=halves[0].device) % 2 == 0)[:, None]
    pair = torch.where(rows, halves[0], halves[1]), torch.where(rows, halves[1], halves[0])
    return torch.stack(pair, -1).flatten(-2)


def _beside(other: Tensor, colour: int) -> Tensor:
    """The fourth neighbour: one to the left in rows whose first site has the colour, else one to the right."""
    rows = (torch.arange(other.shape[1], device=other.device) % 2 == colour)[:, None]
    return torch.where(rows, other.roll(1, -1), other.roll(-1, -1))


def expert_ising(spins: Tensor) -> Tensor:
    """One sweep as an expert writes it: each colour in an array of its own, in int8, no draw for nothing."""
    halves = _halves(spins)
    for colour in range(2):
        other = halves[1 - colour]
        pull = other + other.roll(1, 1) + other.roll(-1, 1) + _beside(other, colour)
        up = torch.rand(pull.shape, device=pull.device) < torch.sigmoid(pull.float() * (2 * BETA))
        halves[colour] = up.to(torch.int8) * 2 - 1
    return _joined(halves)


def expert_potts(states: Tensor, q: int) -> Tensor:
    """One sweep, by the cumulative weights of the states."""
    halves = _halves(states)
    for colour in range(2):
        other = halves[1 - colour]
        around = (other, other.roll(1, 1), other.roll(-1, 1), _beside(other, colour))
        total = torch.zeros(other.shape, device=other.device)
        cumulative = []
        for state in range(q):
            same = sum((near == state).to(torch.int8) for near in around)
            total = total + torch.exp(same * POTTS_BETA)
            cumulative.append(total)
        draw = torch.rand(other.shape, device=other.device) * total
        halves[colour] = sum((draw >= c).to(torch.uint8) for c in cumulative[:-1])
    return _joined(halves)


def same_bits(
    fused: Callable[..., Tensor], twin: Callable[..., Tensor]
) -> Callable[[Sequence[Any], Sequence[int]], None]:
    """A check of two chains, and no more of a lattice than its twin has memory for."""

    def check(args: Sequence[Any], leaves: Sequence[int]) -> None:
        lattice = args[0][:2, :256].contiguous()
        key = random.key(*KEY, device=lattice.device)
        assert torch.equal(fused(lattice, key=key), twin(lattice, key=key)), "differs from the reference"

    return check


@cache
def independent(beta: float) -> float:
    """Samples of the energy that a sweep is worth: 1 / (1 + 2 sum of its autocorrelations), at 256 x 256.

    By the variance of the means over many sweeps, from chain to chain, beside that of single sweeps.
    """
    sweeps, chains = 400, 128
    spins = torch.ones(chains, 256, 256, dtype=torch.int8)
    words = ours.ising_gibbs(ours.ising_pack(spins), beta=beta, sweeps=300, packed=True, width=256, key=random.key(1))
    _, moments = ours.ising_gibbs(
        words, beta=beta, sweeps=sweeps, packed=True, width=256, measure_every=1, key=random.key(2)
    )
    b, b2 = moments[:, 4], moments[:, 5]
    single = (b2.mean() - b.mean() ** 2).item()
    return min(1.0, single / (sweeps * b.var().item()))


def ising(
    chains: int, height: int, width: int, *, packed: bool, targets: Sequence[Target] = (), **options: Any
) -> Case:
    """Ten sweeps, from spins to spins or from words to words."""

    def fused(spins: Tensor, **noise: Any) -> Any:
        if packed:
            width = spins.shape[-1]
            return ours.ising_gibbs(words_of(spins), beta=BETA, sweeps=SWEEPS, packed=True, width=width, **noise)
        return ours.ising_gibbs(spins, beta=BETA, sweeps=SWEEPS, **noise)

    def twin(spins: Tensor, **noise: Any) -> Tensor:
        drawn = reference.ising_gibbs(spins, beta=BETA, sweeps=SWEEPS, **noise)
        return reference.ising_pack(drawn) if packed else drawn

    others = rivals(chains, height * width, eager=partial(reference.ising_gibbs, beta=BETA), expert=expert_ising)
    kept: dict[int, Tensor] = {}

    def words_of(spins: Tensor) -> Tensor:
        """Packed once: the caller of `packed` keeps words."""
        if kept.get(0) is not spins:
            kept[0], kept[1] = spins, ours.ising_pack(spins)
        return kept[1]

    return Case(
        family="lattice",
        op="ising_gibbs",
        shape=(chains, height, width),
        setup=spins_of(chains, height, width),
        competitors={"ours": fused, **others["competitors"]},
        portions=others["portions"],
        check=same_bits(fused, twin),
        flips=chains * height * width * SWEEPS,
        effective=lambda: chains * SWEEPS * independent(BETA),
        targets=tuple(targets),
        variant=f"{SWEEPS} sweeps, {'packed' if packed else 'int8'}",
        **options,
    )


def potts(q: int, chains: int, height: int, width: int, *, targets: Sequence[Target] = (), **options: Any) -> Case:
    fused = partial(ours.potts_gibbs, q=q, beta=POTTS_BETA, sweeps=SWEEPS)
    twin = partial(reference.potts_gibbs, q=q, beta=POTTS_BETA, sweeps=SWEEPS)
    eager = partial(reference.potts_gibbs, q=q, beta=POTTS_BETA)
    others = rivals(chains, 8 * height * width, eager=eager, expert=partial(expert_potts, q=q))
    return Case(
        family="lattice",
        op="potts_gibbs",
        shape=(chains, height, width),
        setup=states_of(q, chains, height, width),
        competitors={"ours": fused, **others["competitors"]},
        portions=others["portions"],
        check=same_bits(fused, twin),
        flips=chains * height * width * SWEEPS,
        targets=tuple(targets),
        variant=f"q = {q}, {SWEEPS} sweeps",
        **options,
    )


def rate(at_least: float) -> Target:
    return Target(RATE, at_least, "forward")


FIFTY = Target("compile", 50.0, "forward")
CASES = [
    ising(512, 256, 256, packed=True, targets=(rate(6.0), FIFTY), threaded=True),
    ising(512, 256, 256, packed=False, targets=(FIFTY,)),
    ising(1, 4096, 4096, packed=True, targets=(rate(3.0),), threaded=True),
    ising(1, 4096, 4096, packed=False),
    ising(64, 64, 64, packed=True),
    potts(3, 64, 256, 256, targets=(Target("eager", 20.0, "forward"),), threaded=True),
    potts(10, 16, 256, 256),
    potts(3, 1, 1024, 1024),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_lattice(job: Job, bench: Any) -> None:
    bench(job)
