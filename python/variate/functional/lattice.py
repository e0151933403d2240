"""Ising and Potts models on square and cubic lattices: Gibbs sampling by checkerboard heat bath, and what is observed.

A lattice of `chains` independent copies is [chains, height, width] or [chains, depth, height, width]. Neighbours are
one step apart along one dimension; boundary "periodic" joins the ends of each side, which are even then, so that
neighbours have different colours (x + y + z) % 2, and at a side of 2 count twice; "open" does not, and takes any sides
from 2 on.

The fields of spins are whole numbers times J, so the draws are the same bits on every device, whatever the split of the
chains over calls, of the sweeps over calls, or the packing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..reference.lattice import IsingMeasurement, IsingObservables
from . import _backend, _checks, _gate, _key

__all__ = [
    "IsingMeasurement",
    "IsingObservables",
    "ising_gibbs",
    "ising_measure",
    "ising_observables",
    "ising_pack",
    "ising_unpack",
    "potts_gibbs",
]

_BOUNDARIES = {"periodic": False, "open": True}
_MOMENTS = 7


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
    """Sweeps of Gibbs sampling from p(s) ~ exp(beta (sum over bonds J s s' + field sum_x s_x)): in each sweep first the
    spins of colour 0, then those of colour 1, become +1 with probability

    sigmoid(2 beta (sum over neighbours J s' + field)), to 2^-40.

    Args:
        spins: int8 [chains, height, width] or [chains, depth, height, width] of +1 and -1; with ``packed`` the words of
            :func:`ising_pack`.
        beta: a finite number or 0-d tensor, or float32 or float64 [chains]; below 0 it pulls neighbours apart.
        coupling: J, in the same forms; or bonds [dimensions, *shape] of +J and -J, each from its site to the next one
            along that dimension. On open boundaries the last of a side has no next site and its bond is not read.
        field: as beta; infinite ones decide for certain.
        sweeps: at least 0.
        boundary: "periodic" or "open".
        packed: take and return words, one bit a spin.
        width: of the lattice, needed with ``packed``; the words do not tell another one of as many words apart.
        measure_every: measure after every so many sweeps, and return the means of this call too.
        key: int64 [2], or [chains, 2] for a stream per chain; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of chain 0 among all chains.
        first_step: the number of sweeps made before: a call of m + n sweeps equals one of m, and one of n whose
            first_step is m more.

    Returns:
        The spins after the sweeps, as they came in; with ``measure_every`` also the means of m, |m|, m^2, m^4, b, b^2
        and m b, float64 [chains, 7]: m is the magnetisation, b the sum over bonds of (sign J) s s', both per site.
        :func:`ising_observables` makes energies, heat capacities and cumulants of them.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, by name; an odd side of a periodic
            lattice, a spin that is neither +1 nor -1, bonds of different strength, a beta or coupling that is not
            finite, a field that is NaN, or infinite where beta is 0. The values of tensors are looked at on the CPU;
            on a GPU under ``variate.set_debug(True)``; under torch.compile not at all.
        RuntimeError: under torch.func without a key.

    Sweep k draws at step first_step + k, taken modulo 2^32. With rows r = z height + y and words of 32 sites of one
    colour, word w of row r and colour c takes eight words of the stream from element 8 ((c rows + r) words + w) on: bit
    b of the p-th is digit p of the uniform of site x = 2 (32 w + b) + (y + z + c) % 2. A site that eight digits leave
    undecided takes 32 more, the word of element (z height + y) width + x of fold_in(key, 1).

    Source: Glauber 1963; bit planes as in multi-spin coding, Creutz, Jacobs, Rebbi 1979.
    """
    opened = _opened(boundary)
    size = _check_spins(spins, boundary, packed, width)
    _checks.count("sweeps", sweeps, 0)
    _checks.count("first_step", first_step, 0)
    if measure_every is not None:
        _checks.count("measure_every", measure_every)
        if measure_every > sweeps:
            raise ValueError(f"measure_every: expected at most sweeps, {sweeps}, got {measure_every}")
    chains = spins.shape[0]
    coupling, bonds = _couplings(coupling, chains, size, opened, spins)
    beta = _parameter("beta", beta, chains, spins)
    field = _parameter("field", field, chains, spins, infinite=True)
    _check_certain(beta, field)
    op = _backend.select("ising_gibbs", spins)
    if op is None or _gate.transformed_noise("ising_gibbs", key):
        key = _key.check(key, generator, first_sample, spins)
        return reference.lattice.ising_gibbs(
            spins,
            beta=beta,
            coupling=coupling if bonds is None else coupling * bonds,
            field=field,
            sweeps=sweeps,
            boundary=boundary,
            packed=packed,
            width=width,
            measure_every=measure_every,
            key=key,
            generator=generator,
            first_sample=first_sample,
            first_step=first_step,
        )
    key = _key.resolve(key, generator, first_sample, spins)
    words = spins.clone(memory_format=torch.contiguous_format) if packed else _pack(spins, opened)
    signs = None if bonds is None else _bond_words(bonds, opened)
    moments = None
    if measure_every is not None:
        moments = torch.zeros((chains, _MOMENTS), dtype=torch.float64, device=spins.device)
    op(
        words,
        size[-1],
        opened,
        beta,
        coupling,
        field,
        signs,
        sweeps,
        first_step,
        moments,
        measure_every or 1,
        key,
        first_sample,
    )
    out = words if packed else _backend.select("ising_unpack", words)(words, size[-1])
    return out if moments is None else (out, moments / (sweeps // (measure_every or 1)))


def ising_pack(spins: Tensor, *, boundary: str = "periodic") -> Tensor:
    """One bit a spin, 1 for +1: int32 words [chains, 2, *shape[:-1], ceil(width / 64)].

    Bit b of word w of colour c is the site x = 2 (32 w + b) + (y + z + c) % 2 of its row; bits beyond the row are 0.

    Args:
        spins: int8 [chains, height, width] or [chains, depth, height, width] of +1 and -1.
        boundary: "periodic" or "open": which sides are allowed. The words are the same.

    Raises:
        TypeError, ValueError: as :func:`ising_gibbs`.
    """
    opened = _opened(boundary)
    _check_spins(spins, boundary, False, None)
    if _backend.select("ising_pack", spins) is None or _gate.transformed():
        return reference.lattice.ising_pack(spins, boundary=boundary)
    return _pack(spins, opened)


def ising_unpack(words: Tensor, width: int) -> Tensor:
    """The spins of :func:`ising_pack`'s words: int8 [chains, ..., width].

    Raises:
        TypeError, ValueError: words of another dtype or shape than lattices of this width have.
    """
    _check_words("words", words, width)
    op = _backend.select("ising_unpack", words)
    if op is None or _gate.transformed():
        return reference.lattice.ising_unpack(words, width)
    return op(words.contiguous(), width)


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
    """Magnetisation, energy, nearest-neighbour and radial correlation of each chain as it is.

    Args:
        spins, coupling, field, boundary, packed, width: as in :func:`ising_gibbs`.
        distance: how far along the last dimension s(x) s(x + r e_x) is averaged, r = 1 ... distance; below the width.

    Returns:
        A named tuple of float64: ``magnetisation`` (1/N) sum_x s_x [chains]; ``energy``
        -(1/N) (sum over bonds J s s' + field sum_x s_x) [chains]; ``nearest``, the mean of (sign J) s s' over the bonds
        [chains]; ``correlation`` [chains, distance], on open boundaries over the pairs inside.

    Raises:
        TypeError, ValueError: as :func:`ising_gibbs`.

    Source: Newman and Barkema 1999 ("Monte Carlo methods in statistical physics"), chapter 3.
    """
    opened = _opened(boundary)
    size = _check_spins(spins, boundary, packed, width)
    _checks.count("distance", distance, 0)
    if distance >= size[-1]:
        raise ValueError(f"distance: expected less than the width, {size[-1]}, got {distance}")
    chains = spins.shape[0]
    coupling, bonds = _couplings(coupling, chains, size, opened, spins)
    field = _parameter("field", field, chains, spins)
    op = _backend.select("ising_measure", spins)
    if op is None or _gate.transformed():
        return reference.lattice.ising_measure(
            spins,
            coupling=coupling if bonds is None else coupling * bonds,
            field=field,
            boundary=boundary,
            packed=packed,
            width=width,
            distance=distance,
        )
    words = spins.contiguous() if packed else _pack(spins, opened)
    signs = None if bonds is None else _bond_words(bonds, opened)
    sums, pairs = op(words, size[-1], opened, signs, distance)
    return reference.lattice.measurement_of(sums[:, 0], sums[:, 1], pairs, size, coupling, field, opened)


def ising_observables(
    moments: Tensor,
    size: Sequence[int],
    *,
    beta: float | Tensor,
    coupling: float | Tensor = 1.0,
    field: float | Tensor = 0.0,
    boundary: str = "periodic",
) -> IsingObservables:
    """What the means of :func:`ising_gibbs` say of a lattice of N sites, per site:

    energy e = -(J <b> + field <m>);  specific heat N beta^2 (<e^2> - <e>^2);
    susceptibility N beta (<m^2> - <|m|>^2);  Binder's cumulant 1 - <m^4> / (3 <m^2>^2);
    nearest, <b> by the number of bonds of a site.

    Args:
        moments: floating [..., 7]: of each chain, or averaged over chains.
        size: [height, width] or [depth, height, width] of the lattice.
        beta, coupling, field: numbers, or tensors that broadcast with moments[..., 0]. For bonds pass J itself.
        boundary: "periodic" or "open".

    Returns:
        A named tuple of float64, each of the shape that moments[..., 0] and the parameters broadcast to:
        ``magnetisation``, ``absolute_magnetisation``, ``energy``, ``nearest``, ``binder``, ``specific_heat``,
        ``susceptibility``.

    Raises:
        TypeError, ValueError: moments or a size of another shape, an unknown boundary.

    A mean over chains before the call, where all share beta, gives fluctuations over all of them; the chain by chain
    results, averaged, miss what the chains differ by.

    Source: Binder 1981.
    """
    _opened(boundary)
    _checks.floating("moments", moments)
    if moments.dim() == 0 or moments.shape[-1] != _MOMENTS:
        raise ValueError(f"moments: expected shape (..., {_MOMENTS}), got {tuple(moments.shape)}")
    if len(size) not in (2, 3) or any(n < 2 for n in size):
        raise ValueError(f"size: expected the two or three sides of the lattice, got {tuple(size)}")
    return reference.lattice.ising_observables(
        moments, tuple(size), beta=beta, coupling=coupling, field=field, boundary=boundary
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
    """Sweeps of Gibbs sampling from p(s) ~ exp(beta (J sum over bonds [s = s'] + sum_x field_{s_x})): in each sweep
    first the states of colour 0, then those of colour 1, become a with probability w_a / sum_b w_b,

    w_a = round(2^k exp(beta (J (n_a - n_m) + field_a - field_m))),  k = 31 - floor(log2 q),

    n_a being the number of neighbours in state a, and m the likeliest state. So probabilities are exact to 2^-k, and
    what is less likely than 2^-(k + 1) times the likeliest never happens.

    Args:
        states: uint8 [chains, height, width] or [chains, depth, height, width] of 0 ... q - 1.
        q: the number of states, 2 to 255.
        beta, coupling: numbers or 0-d tensors, or float32 or float64 [chains].
        field: floating [q] or [chains, q]; -infinity forbids a state. None for 0.
        sweeps, boundary, key, generator, first_sample, first_step: as in :func:`ising_gibbs`.

    Returns:
        uint8, the states after the sweeps.

    Raises:
        TypeError, ValueError: as :func:`ising_gibbs`; q below 2 or above 255, a state of q or more.
        RuntimeError: under torch.func without a key.

    Sweep k draws at step first_step + k: the site (z, y, x) of colour c takes the word of element
    (c rows + z height + y) ceil(width / 2) + x // 2, and its state is the a whose part of [0, sum_b w_b) holds
    word sum_b w_b 2^-32.

    Source: Wu 1982.
    """
    opened = _opened(boundary)
    if isinstance(q, bool) or not isinstance(q, int):
        raise TypeError(f"q: expected an int, got {type(q).__name__}")
    if not 2 <= q <= 255:
        raise ValueError(f"q: expected 2 to 255 states, got {q}")
    if not isinstance(states, Tensor):
        raise TypeError(f"states: expected a uint8 tensor, got {type(states).__name__}")
    if states.dtype != torch.uint8:
        raise TypeError(f"states: expected uint8, got {_checks.dtype_name(states.dtype)}")
    _check_lattice("states", states, opened)
    _checks.categories("states", states, q)
    _checks.count("sweeps", sweeps, 0)
    _checks.count("first_step", first_step, 0)
    chains = states.shape[0]
    beta = _parameter("beta", beta, chains, states)
    coupling = _parameter("coupling", coupling, chains, states)
    if field is not None:
        field = _state_field(field, q, chains, states)
        _check_certain(beta if field.dim() == 1 else beta[..., None], field)
    op = _backend.select("potts_gibbs", states)
    if op is None or _gate.transformed_noise("potts_gibbs", key):
        key = _key.check(key, generator, first_sample, states)
        return reference.lattice.potts_gibbs(
            states,
            q,
            beta=beta,
            coupling=coupling,
            field=field,
            sweeps=sweeps,
            boundary=boundary,
            key=key,
            generator=generator,
            first_sample=first_sample,
            first_step=first_step,
        )
    key = _key.resolve(key, generator, first_sample, states)
    out = states.clone(memory_format=torch.contiguous_format)
    op(out, q, opened, beta, coupling, field, sweeps, first_step, key, first_sample)
    return out


def _opened(boundary: str) -> bool:
    if boundary not in _BOUNDARIES:
        raise ValueError(f'boundary: expected "periodic" or "open", got {boundary!r}')
    return _BOUNDARIES[boundary]


def _check_lattice(name: str, value: Tensor, opened: bool) -> None:
    if value.dim() not in (3, 4):
        raise ValueError(
            f"{name}: expected shape (chains, height, width) or (chains, depth, height, width), "
            f"got {tuple(value.shape)}; one lattice is {name}[None]"
        )
    _check_sides(name, value.shape[1:], opened)


def _check_sides(name: str, size: Sequence[int], opened: bool) -> None:
    if any(n < 2 for n in size):
        raise ValueError(f"{name}: expected sides of at least 2, got {tuple(size)}")
    if not opened and any(n % 2 for n in size):
        raise ValueError(
            f"{name}: expected even sides, as an odd periodic one has neighbours of one colour, got {tuple(size)}; "
            'boundary="open" takes any'
        )


def _check_spins(spins: Tensor, boundary: str, packed: bool, width: int | None) -> torch.Size:
    """The size of the lattice."""
    opened = _BOUNDARIES[boundary]
    if packed:
        if width is None:
            raise ValueError("width: expected the width of the lattice with packed=True, got None")
        _check_words("spins", spins, width)
        size = torch.Size((*spins.shape[2:-1], width))
        _check_sides("spins", size, opened)
        return size
    if width is not None and isinstance(spins, Tensor) and spins.dim() and width != spins.shape[-1]:
        raise ValueError(f"width: expected None, or {spins.shape[-1]} as the spins have it, got {width}")
    if not isinstance(spins, Tensor):
        raise TypeError(f"spins: expected an int8 tensor, got {type(spins).__name__}")
    if spins.dtype != torch.int8:
        cure = "packed words take packed=True" if spins.dtype == torch.int32 else "spins.to(torch.int8) makes them"
        raise TypeError(f"spins: expected int8, got {_checks.dtype_name(spins.dtype)}; {cure}")
    _check_lattice("spins", spins, opened)
    if _checks.readable(spins) and not _all_spins(spins):
        wrong = spins[spins.abs() != 1][0].item()
        raise ValueError(f"spins: expected +1 and -1, got {wrong}; 2 * bits - 1 makes spins of 0 and 1")
    return spins.shape[1:]


def _all_spins(spins: Tensor) -> bool:
    """Whether all are +1 or -1: no comparison of each, which would take longer than a sweep."""
    low, high = torch.aminmax(spins)
    return bool(low >= -1) and bool(high <= 1) and bool(torch.count_nonzero(spins) == spins.numel())


def _check_words(name: str, words: Tensor, width: int) -> None:
    _checks.count("width", width)
    if not isinstance(words, Tensor):
        raise TypeError(f"{name}: expected int32 words, got {type(words).__name__}; ising_pack makes them")
    if words.dtype != torch.int32:
        raise TypeError(f"{name}: expected int32 words, got {_checks.dtype_name(words.dtype)}; ising_pack makes them")
    count = _words(width)
    if words.dim() not in (4, 5) or words.shape[1] != 2 or words.shape[-1] != count:
        raise ValueError(
            f"{name}: expected words of shape (chains, 2, [depth,] height, {count}) for width {width}, "
            f"got {tuple(words.shape)}"
        )


def _parameter(name: str, value: float | Tensor, chains: int, like: Tensor, *, infinite: bool = False) -> Tensor:
    """float64, 0-d or [chains], on the device of `like`."""
    if not isinstance(value, Tensor):
        number = _checks.number(name, value, torch.float64, like.device)
        if not torch.compiler.is_compiling() and not (math.isfinite(value) or (infinite and not math.isnan(value))):
            raise ValueError(f"{name}: expected a {'number' if infinite else 'finite number'}, got {value}")
        return number
    _floats(name, value, like)
    if value.dim() > 0 and value.shape != (chains,):
        raise ValueError(f"{name}: expected a number, or shape ({chains},) for one per chain, got {tuple(value.shape)}")
    _check_values(name, value, infinite)
    return value.detach().to(like.device, torch.float64)


def _floats(name: str, value: Tensor, like: Tensor) -> None:
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {_checks.dtype_name(value.dtype)}")
    if value.dim() > 0 or not value.is_cpu:
        _checks.same_device(name, value, "the lattice", like)


def _check_values(name: str, value: Tensor, infinite: bool) -> None:
    if not _checks.readable(value):
        return
    bad = value.isnan() if infinite else ~value.isfinite()
    if bool(bad.any()):
        expected = "numbers" if infinite else "finite numbers"
        raise ValueError(f"{name}: expected {expected}, got {value[bad].flatten()[0].item()}")


def _check_certain(beta: Tensor, field: Tensor) -> None:
    """beta field is a number."""
    if _checks.readable(beta) and bool((beta * field).isnan().any()):
        raise ValueError("field: expected finite numbers where beta is 0, got an infinite one")


def _state_field(field: Tensor, q: int, chains: int, like: Tensor) -> Tensor:
    """float64 [q] or [chains, q]."""
    if not isinstance(field, Tensor):
        raise TypeError(f"field: expected a tensor [{q}], got {type(field).__name__}")
    _floats("field", field, like)
    if field.shape not in ((q,), (chains, q)):
        raise ValueError(f"field: expected shape ({q},) or ({chains}, {q}), got {tuple(field.shape)}")
    _check_values("field", field, True)
    return field.detach().to(torch.float64)


def _couplings(
    coupling: float | Tensor, chains: int, size: torch.Size, opened: bool, like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """J as float64 0-d or [chains], and the signs of the bonds as int8 [dimensions, *size]."""
    if not isinstance(coupling, Tensor) or coupling.dim() < 2:
        return _parameter("coupling", coupling, chains, like), None
    if coupling.shape != (len(size), *size):
        raise ValueError(
            f"coupling: expected a number, shape ({chains},) for one per chain, or {(len(size), *size)} for bonds "
            f"[dimensions, *shape], got {tuple(coupling.shape)}"
        )
    if coupling.dtype not in _checks.FLOATING and coupling.dtype not in _checks.INTEGERS - {torch.uint8}:
        raise TypeError(
            f"coupling: expected floating or signed integer bonds, got {_checks.dtype_name(coupling.dtype)}"
        )
    _checks.same_device("coupling", coupling, "the lattice", like)
    coupling = coupling.detach()
    strength = reference.lattice.magnitude_of(coupling, opened)
    if _checks.readable(coupling):
        for bonds in reference.lattice.inner_bonds(coupling, opened):
            if bonds.numel() and bool(bonds.abs().amin() != strength):  # none is larger
                wrong = bonds[bonds.abs() != strength][0].item()
                raise ValueError(f"coupling: expected bonds of +J and -J, got {wrong:g} beside {strength.item():g}")
        _check_values("coupling", strength, False)
    return strength, 1 - 2 * (coupling < 0).to(torch.int8)


def _pack(spins: Tensor, opened: bool) -> Tensor:
    return _backend.select("ising_pack", spins)(spins, spins.dim() - 1, opened)


def _bond_words(signs: Tensor, opened: bool) -> Tensor:
    """For each dimension the bonds to the site before, then to the one behind."""
    both = [part for d, sign in enumerate(signs) for part in (torch.roll(sign, 1, d), sign)]
    return _pack(torch.stack(both), opened)


def _words(width: int) -> int:
    return (width + 63) // 64


@_backend.register("ising_pack")
def _(spins: Tensor, dimensions: int, open: bool) -> Tensor:
    size = (spins.shape[0], 2, *spins.shape[1:-1], _words(spins.shape[-1]))
    return spins.new_empty(size, dtype=torch.int32)


@_backend.register("ising_unpack")
def _(words: Tensor, width: int) -> Tensor:
    return words.new_empty((words.shape[0], *words.shape[2:-1], width), dtype=torch.int8)


@_backend.register("ising_gibbs")
def _(words: Tensor, *arguments: Any) -> None:
    return None


@_backend.register("ising_measure")
def _(words: Tensor, width: int, open: bool, bonds: Tensor | None, distance: int) -> tuple[Tensor, Tensor]:
    chains = words.shape[0]
    return words.new_empty((chains, 2), dtype=torch.int64), words.new_empty((chains, distance), dtype=torch.int64)


@_backend.register("potts_gibbs", cuda=False)
def _(states: Tensor, *arguments: Any) -> None:
    return None
