"""Ising and Potts models that keep their lattices from call to call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional, random, reference
from ..functional import IsingMeasurement, IsingObservables, _key
from ..functional._checks import count as check_count
from ._settings import count_on

__all__ = ["Ising", "Potts", "PottsMeasurement", "PottsObservables"]

_STARTS = ("random", "ordered")
_START = 2  # draw number of the first spins; a sweep takes 0 and 1


class PottsMeasurement(NamedTuple):
    """Of each chain."""

    fractions: Tensor
    """How much of the lattice is in each state, [chains, q]."""
    order: Tensor
    """(q max fraction - 1) / (q - 1), [chains]: 1 where all sites agree."""
    energy: Tensor
    """-(1/N) (J sum over bonds [s = s'] + sum_x field_{s_x}), [chains]."""


class PottsObservables(NamedTuple):
    """Means over the measurements, per site, [chains]."""

    energy: Tensor
    specific_heat: Tensor
    """N beta^2 (<e^2> - <e>^2)."""
    order: Tensor
    susceptibility: Tensor
    """N beta (<order^2> - <order>^2)."""


class _Lattice(nn.Module):
    """Chains of a lattice, the parameters they are drawn with, and where in the stream of their key they are."""

    key: Tensor
    beta: Tensor
    coupling: Tensor
    field: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        chains: int,
        parameters: dict[str, Any],
        boundary: str,
        start: str,
        key: Tensor | None,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        check_count("chains", chains, least=1)
        if not isinstance(shape, Sequence) or len(shape) not in (2, 3) or any(not isinstance(n, int) for n in shape):
            raise ValueError(f"shape: expected (height, width) or (depth, height, width), got {shape!r}")
        if start not in _STARTS:
            raise ValueError(f'start: expected "random" or "ordered", got {start!r}')
        self.shape, self.chains, self.boundary = tuple(shape), chains, boundary
        self.steps = 0
        if key is None:
            key = _key.draw(None, torch.device(device or torch.get_default_device()))
        self.register_buffer("key", _key.as_int64(key).to(device))
        for name, value in parameters.items():
            self.register_buffer(name, self._parameter(name, value))

    def _parameter(self, name: str, value: float | Tensor | None) -> Tensor | None:
        if value is None and name == "field":
            return None
        if not isinstance(value, Tensor):
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")
            value = torch.tensor(float(value), dtype=torch.float64)
        return value.detach().to(self.key.device, copy=True)

    def set(self, **parameters: float | Tensor) -> None:
        """Change beta, coupling or field: numbers, or tensors as the function that sweeps takes them."""
        for name, value in parameters.items():
            if name not in ("beta", "coupling", "field"):
                raise TypeError(f"{name}: expected beta, coupling or field")
            setattr(self, name, self._parameter(name, value))

    def sweep(self, sweeps: int = 1) -> None:
        """Update every site `sweeps` times."""
        raise NotImplementedError

    def observe(self, sweeps: int, every: int = 1) -> Any:
        """Sweep, and measure after every so many sweeps."""
        raise NotImplementedError

    def forward(self, sweeps: int = 1) -> Tensor:
        """Sweep; the lattices afterwards."""
        self.sweep(sweeps)
        return self.lattices()

    def lattices(self) -> Tensor:
        raise NotImplementedError

    def anneal(self, betas: Sequence[float] | Tensor, sweeps: int = 1) -> None:
        """So many sweeps at each beta in turn; the last one stays."""
        for beta in betas:
            self.set(beta=beta)
            self.sweep(sweeps)

    def scan(
        self,
        betas: Sequence[float] | Tensor,
        *,
        burn_in: int,
        sweeps: int,
        every: int = 1,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> Any:
        """Observables at each beta in turn, as :meth:`observe` gives them, stacked: [betas, chains]. It takes the
        options. Each beta starts from where the one before it ended, with `burn_in` sweeps that are not measured.
        `progress` is called with the sweeps that are done."""
        if isinstance(betas, (int, float)):
            raise TypeError(f"betas: expected a sequence of numbers, got {betas}")
        results = []
        for beta in betas:
            self.set(beta=beta)
            self.sweep(burn_in)
            results.append(self.observe(sweeps, every, **options))
            if progress is not None:
                progress(burn_in + sweeps)
        if not results:
            raise ValueError("betas: expected at least one")
        return type(results[0])(*(torch.stack(parts) for parts in zip(*results, strict=True)))

    def _noise(self, sweeps: int) -> dict[str, Any]:
        """What the next sweeps draw from."""
        first = count_on(self, "steps", sweeps)
        return {"key": self.key, "first_step": first, "sweeps": sweeps, "boundary": self.boundary}

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = int(state["steps"])

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, {self.chains} chains, {self.boundary}"


class Ising(_Lattice):
    """Chains of spins +1 and -1 from p(s) ~ exp(beta (sum over bonds J s s' + field sum_x s_x)).

    Args:
        shape: (height, width) or (depth, height, width).
        chains: how many independent lattices.
        beta, coupling, field, boundary: as in :func:`variate.functional.ising_gibbs`.
        start: "random" spins, or "ordered": all +1.
        key: the noise of all sweeps; drawn from torch's generator where it is left out.
        device: where the lattices are.

    The spins are kept packed, one bit each, in the state dict too, and with them the number of sweeps made: a model
    that is loaded goes on as the saved one would have.
    """

    words: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        chains: int = 1,
        *,
        beta: float | Tensor,
        coupling: float | Tensor = 1.0,
        field: float | Tensor = 0.0,
        boundary: str = "periodic",
        start: str = "random",
        key: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        parameters = {"beta": beta, "coupling": coupling, "field": field}
        super().__init__(shape, chains, parameters, boundary, start, key, device)
        size = (chains, *self.shape)
        if start == "ordered":
            spins = torch.ones(size, dtype=torch.int8, device=self.key.device)
        else:
            bit = random.randint(0, 2, size, key=random.fold_in(self.key, _START), device=self.key.device)
            spins = (2 * bit - 1).to(torch.int8)
        self.register_buffer("words", functional.ising_pack(spins, boundary=boundary))
        self.sweep(0)  # which looks at the parameters

    def _given(self) -> dict[str, Any]:
        named = {"beta": self.beta, "coupling": self.coupling, "field": self.field}
        return {**named, "packed": True, "width": self.shape[-1]}

    @property
    def spins(self) -> Tensor:
        """int8 [chains, *shape]."""
        return functional.ising_unpack(self.words, self.shape[-1])

    def lattices(self) -> Tensor:
        return self.spins

    def sweep(self, sweeps: int = 1) -> None:
        check_count("sweeps", sweeps, least=0)
        words = functional.ising_gibbs(self.words, **self._given(), **self._noise(sweeps))
        assert isinstance(words, Tensor)
        self.words = words

    def observe(self, sweeps: int, every: int = 1, *, pool: bool = False) -> IsingObservables:
        """Sweep, and measure after every so many sweeps: :func:`variate.functional.ising_observables` [chains]. With
        `pool`, of all chains together, 0-d, which sees what they differ by; for chains that share their parameters."""
        check_count("every", every, least=1)
        check_count("sweeps", sweeps, least=every)
        self.words, moments = functional.ising_gibbs(
            self.words, **self._given(), **self._noise(sweeps), measure_every=every
        )
        strength = self.coupling
        if strength.dim() > 1:  # bonds
            strength = reference.lattice.magnitude_of(strength, self.boundary == "open")
        if pool:
            if any(parameter.dim() == 1 for parameter in (self.beta, self.coupling, self.field)):
                raise ValueError("pool: expected False for chains whose beta, coupling or field differ")
            moments = moments.mean(0)
        return functional.ising_observables(
            moments, self.shape, beta=self.beta, coupling=strength, field=self.field, boundary=self.boundary
        )

    def measure(self, distance: int = 0) -> IsingMeasurement:
        """The lattices as they are: :func:`variate.functional.ising_measure`."""
        return functional.ising_measure(
            self.words,
            coupling=self.coupling,
            field=self.field,
            boundary=self.boundary,
            packed=True,
            width=self.shape[-1],
            distance=distance,
        )


class Potts(_Lattice):
    """Chains of states 0 ... q - 1 from p(s) ~ exp(beta (J sum over bonds [s = s'] + sum_x field_{s_x})).

    Args:
        shape, chains, start, key, device: as in :class:`Ising`; "ordered" is all 0.
        q, beta, coupling, field, boundary: as in :func:`variate.functional.potts_gibbs`.
    """

    states: Tensor
    field: Tensor | None  # type: ignore[assignment]

    def __init__(
        self,
        shape: Sequence[int],
        q: int,
        chains: int = 1,
        *,
        beta: float | Tensor,
        coupling: float | Tensor = 1.0,
        field: Tensor | None = None,
        boundary: str = "periodic",
        start: str = "random",
        key: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_count("q", q, least=2)
        parameters = {"beta": beta, "coupling": coupling, "field": field}
        super().__init__(shape, chains, parameters, boundary, start, key, device)
        self.q = q
        size = (chains, *self.shape)
        if start == "ordered":
            states = torch.zeros(size, dtype=torch.uint8, device=self.key.device)
        else:
            drawn = random.randint(0, q, size, key=random.fold_in(self.key, _START), device=self.key.device)
            states = drawn.to(torch.uint8)
        self.register_buffer("states", states)
        self.sweep(0)  # which looks at the parameters

    def _given(self) -> dict[str, Any]:
        return {"beta": self.beta, "coupling": self.coupling, "field": self.field}

    def lattices(self) -> Tensor:
        return self.states

    def sweep(self, sweeps: int = 1) -> None:
        check_count("sweeps", sweeps, least=0)
        self.states = functional.potts_gibbs(self.states, self.q, **self._given(), **self._noise(sweeps))

    def observe(self, sweeps: int, every: int = 1) -> PottsObservables:
        check_count("every", every, least=1)
        check_count("sweeps", sweeps, least=every)
        seen = []
        for _ in range(sweeps // every):
            self.sweep(every)
            seen.append(self.measure())
        self.sweep(sweeps % every)
        energy, order = (torch.stack([getattr(one, name) for one in seen]) for name in ("energy", "order"))
        sites = self.states[0].numel()
        return PottsObservables(
            energy.mean(0),
            self.beta**2 * sites * energy.var(0, correction=0),
            order.mean(0),
            self.beta * sites * order.var(0, correction=0),
        )

    def measure(self) -> PottsMeasurement:
        """The lattices as they are."""
        sites = self.states[0].numel()
        fractions = torch.stack([(self.states == a).flatten(1).sum(1) for a in range(self.q)], 1).double() / sites
        bonds = torch.zeros(self.chains, dtype=torch.float64, device=self.states.device)
        for d in range(1, self.states.dim()):
            same = self.states == self.states.roll(-1, d)
            if self.boundary == "open":
                same = same.narrow(d, 0, same.shape[d] - 1)
            bonds = bonds + same.flatten(1).sum(1)
        energy = -self.coupling.double() * bonds / sites
        if self.field is not None:
            energy = energy - torch.where(fractions > 0, fractions * self.field.double(), 0.0).sum(1)
        return PottsMeasurement(fractions, (self.q * fractions.amax(1) - 1) / (self.q - 1), energy)
