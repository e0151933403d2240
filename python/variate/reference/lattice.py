"""Ising and Potts models on square and cubic lattices, updated one colour of the checkerboard at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import random

_PLANES = 8  # digits of a site's uniform that come as bit planes
_REST = 32  # and those that follow them
_CERTAIN = 40.0


class IsingMeasurement(NamedTuple):
    """Of each chain, per site but for the correlation."""

    magnetisation: Tensor
    """(1/N) sum_x s_x, [chains]."""
    energy: Tensor
    """-(1/N) (sum over bonds J s s' + field sum_x s_x), [chains]."""
    nearest: Tensor
    """The mean of (sign J) s s' over the bonds, [chains]."""
    correlation: Tensor
    """The mean of s(x) s(x + r e_x) over the pairs there are, r = 1 ... distance, [chains, distance]."""


class IsingObservables(NamedTuple):
    """Per site, each with the shape of moments[..., 0]."""

    magnetisation: Tensor
    absolute_magnetisation: Tensor
    energy: Tensor
    nearest: Tensor
    binder: Tensor
    specific_heat: Tensor
    susceptibility: Tensor


def ising_gibbs(
    spins: Tensor,
    *,
    beta: float | Tensor,
    coupling: float | Tensor = 1.0,
    field: float | Tensor = 0.0,
    sweeps: int = 1,
    boundary: str = "periodic",
    packed: bool = False,
    width: int | None = None,
    measure_every: int | None = None,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    first_step: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    words = spins
    if packed:
        assert width is not None
        spins = ising_unpack(words, width)
    opened = boundary == "open"
    size, dims = spins.shape[1:], spins.dim() - 1
    coupling, bonds = _bonds(coupling, dims, size, opened)
    beta, coupling, field = (_number(x, spins.device) for x in (beta, coupling, field))
    # The neighbours of a spin pull it by -2 dims ... 2 dims: a probability for each.
    pulls = torch.arange(-2 * dims, 2 * dims + 1, device=spins.device)
    logits = 2 * (beta * (coupling * pulls + field))
    thresholds = heat_bath_threshold(logits) if key is not None else torch.sigmoid(logits).float()
    rows = torch.arange(thresholds.shape[0], device=spins.device).view(-1, *[1] * dims)
    colours = _colours(size, spins.device)
    moments = []
    for sweep in range(sweeps):
        for colour in range(2):
            pull = _pull(spins, bonds, opened)
            threshold = thresholds[rows, (pull + 2 * dims).long()]
            if key is None:
                draw = torch.rand(spins.shape, generator=generator, device=spins.device)
            else:
                draw = _uniforms(spins.shape, colour, key, first_sample, (first_step + sweep) % 2**32)
            drawn = torch.where(draw < threshold, 1, -1).to(spins.dtype)
            spins = torch.where(colours == colour, drawn, spins)
        if measure_every is not None and (sweep + 1) % measure_every == 0:
            moments.append(_moments(spins, bonds, opened))
    out = ising_pack(spins, boundary=boundary) if packed else spins.clone() if sweeps == 0 else spins
    if measure_every is None:
        return out
    total = moments[0]
    for more in moments[1:]:
        total = total + more
    return out, total / len(moments)


def ising_pack(spins: Tensor, *, boundary: str = "periodic") -> Tensor:
    width = spins.shape[-1]
    count = (width + 63) // 64
    colours = _colours(spins.shape[1:], spins.device)
    up = torch.nn.functional.pad((spins > 0).long(), (0, 64 * count - width))
    colours = torch.nn.functional.pad(colours, (0, 64 * count - width), value=-1)
    places = torch.arange(32, device=spins.device)
    planes = []
    for colour in range(2):
        # Of the sites 2 j and 2 j + 1 one has the colour, and its bit is j.
        pairs = torch.where(colours == colour, up, 0).unflatten(-1, (count, 32, 2)).sum(-1)
        planes.append((pairs << places).sum(-1))
    words = torch.stack(planes, 1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def ising_unpack(words: Tensor, width: int) -> Tensor:
    size = (*words.shape[2:-1], width)
    places = torch.arange(32, device=words.device)
    bits = (words[..., None] >> places & 1).flatten(-2)  # [chains, 2, ..., 32 words]
    pair = torch.arange(width, device=words.device) // 2
    spread = bits.index_select(-1, pair)
    up = torch.where(_colours(size, words.device) == 0, spread[:, 0], spread[:, 1])
    return (2 * up - 1).to(torch.int8)


def ising_measure(
    spins: Tensor,
    *,
    coupling: float | Tensor = 1.0,
    field: float | Tensor = 0.0,
    boundary: str = "periodic",
    packed: bool = False,
    width: int | None = None,
    distance: int = 0,
) -> IsingMeasurement:
    if packed:
        assert width is not None
        spins = ising_unpack(spins, width)
    opened = boundary == "open"
    size = spins.shape[1:]
    coupling, bonds = _bonds(coupling, len(size), size, opened)
    coupling, field = (_number(x, spins.device)[:, 0] for x in (coupling, field))
    spin_sum, bond_sum = _sums(spins, bonds, opened)
    pairs = []
    for r in range(1, distance + 1):
        other = spins[..., r:] if opened else torch.roll(spins, -r, -1)
        product = other * spins[..., : other.shape[-1]]
        pairs.append(product.flatten(1).sum(1))
    correlation = torch.stack(pairs, 1) if pairs else spin_sum.new_empty((len(spins), 0))
    return measurement_of(spin_sum, bond_sum, correlation, size, coupling, field, opened)


def ising_observables(
    moments: Tensor,
    size: tuple[int, ...],
    *,
    beta: float | Tensor,
    coupling: float | Tensor = 1.0,
    field: float | Tensor = 0.0,
    boundary: str = "periodic",
) -> IsingObservables:
    sites = torch.Size(size).numel()
    m, absolute, m2, m4, b, b2, mb = moments.double().unbind(-1)
    beta, coupling, field = (torch.as_tensor(x, dtype=torch.float64, device=m.device) for x in (beta, coupling, field))
    energy = -(coupling * b + field * m)
    square = coupling**2 * b2 + 2 * coupling * field * mb + field**2 * m2
    return IsingObservables(
        magnetisation=m,
        absolute_magnetisation=absolute,
        energy=energy,
        nearest=b * (sites / max(bond_count(size, boundary == "open"), 1)),
        binder=1 - m4 / (3 * m2**2),
        specific_heat=beta**2 * sites * (square - energy**2),
        susceptibility=beta * sites * (m2 - absolute**2),
    )


def potts_gibbs(
    states: Tensor,
    q: int,
    *,
    beta: float | Tensor,
    coupling: float | Tensor = 1.0,
    field: Tensor | None = None,
    sweeps: int = 1,
    boundary: str = "periodic",
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    first_step: int = 0,
) -> Tensor:
    opened = boundary == "open"
    size, dims = states.shape[1:], states.dim() - 1
    beta, coupling = (_number(x, states.device).view(-1, 1, *[1] * dims) for x in (beta, coupling))
    if field is None:
        field = torch.zeros(q, dtype=torch.float64, device=states.device)
    field = field.to(states.device, torch.float64).view(-1, q, *[1] * dims)
    colours = _colours(size, states.device)
    for sweep in range(sweeps):
        for colour in range(2):
            same = torch.stack([_ising_sum((states == a).to(torch.int8), opened) for a in range(q)], 1)
            if key is None:
                logits = (beta * (coupling * same + field)).float().movedim(1, -1)
                p = torch.softmax(logits, -1).flatten(0, -2)
                drawn = torch.multinomial(p, 1, generator=generator).view(states.shape)
            else:
                word = _potts_words(states.shape, colour, key, first_sample, (first_step + sweep) % 2**32)
                drawn = _potts_draw(same, beta * coupling, beta * field, word)
            states = torch.where(colours == colour, drawn.to(torch.uint8), states)
    return states.clone() if sweeps == 0 else states


def bond_count(size: tuple[int, ...], opened: bool) -> int:
    sites = torch.Size(size).numel()
    return sum(sites // n * (n - opened) for n in size)


def measurement_of(
    spin_sum: Tensor,
    bond_sum: Tensor,
    pairs: Tensor,
    size: tuple[int, ...],
    coupling: Tensor,
    field: Tensor,
    opened: bool,
) -> IsingMeasurement:
    """From sums over a lattice."""
    sites = torch.Size(size).numel()
    r = torch.arange(1, pairs.shape[1] + 1, device=pairs.device)
    counts = sites // size[-1] * ((size[-1] - r).clamp(min=0) if opened else torch.full_like(r, size[-1]))
    return IsingMeasurement(
        magnetisation=spin_sum.double() / sites,
        energy=-(coupling * (bond_sum.double() / sites) + field * (spin_sum.double() / sites)),
        nearest=bond_sum.double() / max(bond_count(size, opened), 1),
        correlation=pairs.double() / counts,
    )


def exp_exact(x: Tensor) -> Tensor:
    """exp of -708 <= x <= 0 by the operations of variate/math/lattice.hpp, and so to its bits."""
    magic = float.fromhex("0x1.8p52")
    n = _fma(x, torch.full_like(x, float.fromhex("0x1.71547652b82fep+0")), torch.full_like(x, magic)) - magic
    r = _fma(n, torch.full_like(x, -float.fromhex("0x1.62e42fefa39efp-1")), x)
    r = _fma(n, torch.full_like(x, -float.fromhex("0x1.abc9e3b39803fp-56")), r)
    inverse_factorials = (
        "0x1.6124613a86d09p-33 0x1.1eed8eff8d898p-29 0x1.ae64567f544e4p-26 0x1.27e4fb7789f5cp-22 "
        "0x1.71de3a556c734p-19 0x1.a01a01a01a01ap-16 0x1.a01a01a01a01ap-13 0x1.6c16c16c16c17p-10 "
        "0x1.1111111111111p-7 0x1.5555555555555p-5 0x1.5555555555555p-3 0x1.0p-1"
    )
    first, *rest = (torch.full_like(x, float.fromhex(c)) for c in inverse_factorials.split())
    p = first
    for c in rest:
        p = _fma(p, r, c)
    p = _fma(p * r, r, r) + 1.0
    return p * ((n.long() + 1023) << 52).view(torch.float64)


def heat_bath_threshold(x: Tensor) -> Tensor:
    """ceil(2^40 sigmoid(x)) as int64."""
    e = exp_exact(-x.abs().clamp(max=_CERTAIN))
    p = torch.where(x < 0, e, 1.0) / (1.0 + e)
    threshold = torch.ceil(p * 2.0**40)
    certain = torch.where(x < 0, 0.0, 2.0**40)
    return torch.where(x.abs() < _CERTAIN, threshold, certain).long()


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c rounded once, of numbers whose products neither overflow nor lose bits.

    Source: Boldo, Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd",
    IEEE Transactions on Computers 2008.
    """
    product, product_error = _two_product(a, b)
    low, low_error = _two_sum(c, product_error)
    high, high_error = _two_sum(product, low)
    return high + _sum_to_odd(low_error, high_error)


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    scaled = a * (2.0**27 + 1)
    high = scaled - (scaled - a)
    return high, a - high


def _sum_to_odd(a: Tensor, b: Tensor) -> Tensor:
    """a + b; where it is not exact, the one of its two neighbours whose last bit is 1."""
    total, error = _two_sum(a, b)
    even = (total.view(torch.int64) & 1) == 0
    neighbour = torch.nextafter(total, torch.where(error > 0, torch.inf, -torch.inf))
    return torch.where(even & (error != 0), neighbour, total)


def _number(value: float | Tensor, device: torch.device) -> Tensor:
    """float64 [chains or 1, 1]."""
    return torch.as_tensor(value, dtype=torch.float64, device=device).reshape(-1, 1)


def _bonds(
    coupling: float | Tensor, dims: int, size: tuple[int, ...], opened: bool
) -> tuple[float | Tensor, Tensor | None]:
    """J, and the signs of the bonds to the next site along each dimension, int8 [dims, *size]."""
    if not isinstance(coupling, Tensor) or coupling.dim() < 2:
        return coupling, None
    return magnitude_of(coupling, opened), torch.where(coupling < 0, -1, 1).to(torch.int8)


def magnitude_of(bonds: Tensor, opened: bool) -> Tensor:
    """J of +-J bonds, 0-d float64; 0 of a lattice without bonds."""
    inside = inner_bonds(bonds, opened)
    return torch.cat([b.flatten() for b in (*inside, bonds.new_zeros(1))]).abs().amax().double()


def inner_bonds(bonds: Tensor, opened: bool) -> list[Tensor]:
    """Those of each dimension that join two sites."""
    return [b.narrow(d, 0, b.shape[d] - opened) for d, b in enumerate(bonds)]


def _colours(size: tuple[int, ...], device: torch.device) -> Tensor:
    """(x + y + z) % 2."""
    total = torch.zeros((1,) * len(size), dtype=torch.int64, device=device)
    for d, n in enumerate(size):
        total = total + torch.arange(n, device=device).view(-1, *[1] * (len(size) - 1 - d))
    return total % 2


def _next(x: Tensor, dim: int, opened: bool) -> Tensor:
    """At each site what is at the one behind it along a dimension; 0 beyond an open boundary."""
    if not opened:
        return torch.roll(x, -1, dim)
    return torch.cat([x.narrow(dim, 1, x.shape[dim] - 1), torch.zeros_like(x.narrow(dim, 0, 1))], dim)


def _previous(x: Tensor, dim: int, opened: bool) -> Tensor:
    if not opened:
        return torch.roll(x, 1, dim)
    return torch.cat([torch.zeros_like(x.narrow(dim, 0, 1)), x.narrow(dim, 0, x.shape[dim] - 1)], dim)


def _ising_sum(x: Tensor, opened: bool) -> Tensor:
    total = torch.zeros_like(x)
    for dim in range(1, x.dim()):
        total = total + _next(x, dim, opened) + _previous(x, dim, opened)
    return total


def _pull(spins: Tensor, bonds: Tensor | None, opened: bool) -> Tensor:
    """The sum over neighbours of bond spin."""
    if bonds is None:
        return _ising_sum(spins, opened)
    total = torch.zeros_like(spins)
    for d, bond in enumerate(bonds):
        total = total + bond * _next(spins, 1 + d, opened) + _previous(bond * spins, 1 + d, opened)
    return total


def _sums(spins: Tensor, bonds: Tensor | None, opened: bool) -> tuple[Tensor, Tensor]:
    """Of the spins and of the bonds, int64 [chains]."""
    total = torch.zeros_like(spins)
    for d in range(spins.dim() - 1):
        product = spins * _next(spins, 1 + d, opened)
        total = total + (product if bonds is None else bonds[d] * product)
    return spins.flatten(1).sum(1, dtype=torch.int64), total.flatten(1).sum(1, dtype=torch.int64)


def _moments(spins: Tensor, bonds: Tensor | None, opened: bool) -> Tensor:
    sites = spins[0].numel()
    m, b = (total.double() / sites for total in _sums(spins, bonds, opened))
    m2 = m * m
    return torch.stack([m, m.abs(), m2, m2 * m2, b, b * b, m * b], -1)


def _uniforms(size: torch.Size, colour: int, key: Tensor, first_sample: int, step: int) -> Tensor:
    """40-bit draws of the sites of one colour; those of the other colour mean nothing."""
    chains, width = size[0], size[-1]
    rows = size[1:-1].numel()
    count = ((width + 1) // 2 + 31) // 32
    drawn = random.words((chains, 2 * rows * count * _PLANES), key, first_sample, step)
    planes = drawn.view(chains, 2, rows, count, _PLANES)[:, colour]
    pair = torch.arange(width, device=key.device) // 2
    digits = planes[:, :, pair // 32] >> (pair % 32)[:, None] & 1
    head = (digits << torch.arange(_PLANES - 1, -1, -1, device=key.device)).sum(-1).view(size)
    rest = random.words((chains, rows * width), random.fold_in(key, 1), first_sample, step).view(size)
    return head << _REST | rest


def _potts_words(size: torch.Size, colour: int, key: Tensor, first_sample: int, step: int) -> Tensor:
    chains, width = size[0], size[-1]
    rows, half = size[1:-1].numel(), (width + 1) // 2
    drawn = random.words((chains, 2 * rows * half), key, first_sample, step).view(chains, 2, rows, half)
    return drawn[:, colour, :, torch.arange(width, device=key.device) // 2].view(size)


def _potts_draw(same: Tensor, coupling: Tensor, field: Tensor, word: Tensor) -> Tensor:
    """The state whose share of the integer weights the word falls into; `same` counts the neighbours in each state."""
    q = same.shape[1]
    logits = coupling * same + field
    best = logits.argmax(1, keepdim=True)
    field = field.expand(same.shape[0], *field.shape[1:]).expand_as(logits)
    best_field = field.gather(1, best)
    apart = torch.where(field == best_field, 0.0, field - best_field)
    x = coupling * (same - same.gather(1, best)) + apart
    scale = 2.0 ** (32 - q.bit_length())
    weight = torch.floor(exp_exact(x.clamp(-_CERTAIN, 0.0)) * scale + 0.5).long()
    cumulative = weight.cumsum(1)
    # word total < 2^64 in halves that int64 holds.
    total = cumulative[:, -1]
    draw = (word * (total >> 16) + (word * (total & 0xFFFF) >> 16)) >> 16
    return (draw[:, None] >= cumulative[:, :-1]).sum(1)
