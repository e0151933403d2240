"""Boltzmann machines: restricted ones and deep ones."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checkpoint, functional, random
from .._progress import progress_bar
from ..functional import LogPartition, _key, boltzmann, rbm_gibbs, tempering
from ..functional._checks import count as check_count
from ..reference.rbm import VISIBLE_KINDS
from ._settings import count_on

__all__ = ["DBM", "RBM"]

_FEW = 2  # a smaller effective sample size of annealed chains is worth a warning

METHODS = ("cd", "pcd", "pt")


class _Machine(nn.Module):
    """What both share: chains, which are no buffers (DistributedDataParallel would make those of all ranks one), `fit`
    and its checkpoints."""

    _chains: Tensor | None
    _made: int  # steps of the chains, or rounds of tempering: no step's noise comes twice from one key

    def _gradients(self, x: Tensor, **noise: Any) -> list[Tensor]:
        """What forward(x).backward() would leave, in the order of the parameters."""
        raise NotImplementedError

    def _rows(self, x: Tensor) -> Tensor:
        """x as [B, units], checked."""
        raise NotImplementedError

    def _settings(self) -> dict[str, Any]:
        raise NotImplementedError

    def reconstruct(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(
        self,
        x: Tensor,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """The same call as ``model(x)``.

        Under DistributedDataParallel call the wrapper itself: only that averages the gradients.
        """
        return self(x, key=key, generator=generator, first_sample=first_sample)

    def fit(
        self,
        data: Tensor,
        *,
        epochs: int = 10,
        batch_size: int = 128,
        lr: float = 0.05,
        momentum: float = 0.5,
        weight_decay: float = 0.0,
        optimizer: torch.optim.Optimizer | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        progress: bool = True,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[dict[str, float]]:
        """Train on data [N, ...] until `epochs` are done in all.

        Args:
            data: as for the loss; it stays where it is, batches move to the model's device.
            epochs: in all, those before a resume included.
            batch_size: rows per step; the last batch of an epoch may be smaller.
            lr, momentum, weight_decay: of the SGD that trains where no `optimizer` is given; the decay is the weights'
                alone.
            optimizer: one over this model's parameters.
            checkpoint_path: a safetensors file, written whole after each epoch: parameters, optimizer, chains. An
                interrupted fit leaves that of the last whole epoch, and the same call goes on from it, to the same
                end, given a key; without one, it goes on with the key that was drawn. Data are not compared.
            progress: show a bar, where rich is installed and the output is a terminal.
            key: int64 [2]; drawn from torch's generator where it is left out. Epoch e draws its order from
                fold_in(key, 2^16 + 2 + e).
            generator: the generator that draws it.

        Returns:
            For each epoch that this call trained {"epoch": from 1 on, "reconstruction": mean squared error of
            ``reconstruct`` on its last batch}.

        Raises:
            TypeError, ValueError: data as for the loss; a number out of range.
            variate.checkpoint.CheckpointError: the file is damaged, or of another model or run: other settings, another
                key, batch_size, lr, momentum or weight_decay.
        """
        check_count("epochs", epochs, least=0)
        check_count("batch_size", batch_size, least=1)
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number, at least 0, got {value!r}")
        rows = self._rows(data)
        if len(rows) == 0:
            raise ValueError("data: expected at least one row")
        parameters = dict(self.named_parameters())
        device = next(iter(parameters.values())).device
        run: dict[str, Any] = {"batch_size": batch_size}
        if optimizer is None:
            run |= {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
            decayed = [p for p in parameters.values() if p.dim() > 1]
            plain = [p for p in parameters.values() if p.dim() < 2]
            groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain}]
            optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
        drawn = key is None
        key = _key.resolve(key, generator, 0, rows[0]).to(device)
        first, key = self._resume(checkpoint_path, optimizer, key, drawn, run)
        history: list[dict[str, float]] = []
        batches = math.ceil(len(rows) / batch_size)
        with progress_bar(max(0, epochs - first) * batches, "fit", progress) as advance:
            for epoch in range(first, epochs):
                order = random.uniform(len(rows), key=random.fold_in(key, boltzmann.START + 1 + epoch)).argsort()
                for index in order.to(rows.device).split(batch_size):
                    batch = rows[index].to(device)
                    for parameter, gradient in zip(parameters.values(), self._gradients(batch, key=key), strict=True):
                        parameter.grad = gradient.to(parameter.dtype)
                    optimizer.step()
                    advance(1)
                optimizer.zero_grad(set_to_none=True)
                with torch.no_grad():
                    error = (self.reconstruct(batch) - self._shown(batch)).square().mean()
                history.append({"epoch": epoch + 1, "reconstruction": float(error)})
                self._save(checkpoint_path, optimizer, key, epoch + 1, run)
        return history

    def _shown(self, rows: Tensor) -> Tensor:
        return rows

    def base_bias(self, x: Tensor) -> Tensor | None:
        raise NotImplementedError

    def log_partition(self, betas: int | Sequence[float] = 1000, chains: int = 256, **options: Any) -> LogPartition:
        raise NotImplementedError

    def _log_z(self, x: Tensor, betas: int | Sequence[float], chains: int, options: dict[str, Any]) -> Tensor:
        found = self.log_partition(betas, chains, **{"base_bias": self.base_bias(x), **options})
        if found.effective_sample_size < _FEW <= len(found.log_weights):
            warnings.warn(
                f"log_likelihood: {float(found.effective_sample_size):.1f} of {len(found.log_weights)} annealed chains "
                "outweigh all others, so log Z may be off by nats; raise betas",
                stacklevel=4,  # past log_likelihood and its decorator
            )
        return found.log_z

    def _save(
        self,
        path: str | os.PathLike[str] | None,
        optimizer: torch.optim.Optimizer,
        key: Tensor,
        epochs: int,
        run: dict[str, Any],
    ) -> None:
        if path is None:
            return
        tensors = checkpoint.pack(self, optimizer) | {"key": key}
        if self._chains is not None:
            tensors["chains"] = self._chains
        metadata = {"settings": self._settings(), "run": run, "epochs": epochs, "made": self._made}
        checkpoint.save(path, tensors, metadata)

    def _resume(
        self,
        path: str | os.PathLike[str] | None,
        optimizer: torch.optim.Optimizer,
        key: Tensor,
        drawn: bool,
        run: dict[str, Any],
    ) -> tuple[int, Tensor]:
        """How many epochs are done, and the key they were done with."""
        if path is None:
            return 0, key
        if not Path(path).parent.is_dir() or Path(path).is_dir():
            raise checkpoint.CheckpointError(f"{path}: expected a file in a folder that exists")
        if not Path(path).exists():
            return 0, key
        tensors, metadata = checkpoint.load(path)
        if changes := checkpoint.changes(metadata.get("settings", {}), self._settings()):
            raise checkpoint.CheckpointError(f"{path} is of another model ({changes}): name another file")
        chains, saved = tensors.pop("chains", None), tensors.pop("key").to(key.device)
        was = metadata.get("run", {})
        if not drawn:
            was, run = was | {"key": saved.tolist()}, run | {"key": key.tolist()}
        if changes := checkpoint.changes(was, run):
            raise checkpoint.CheckpointError(
                f"{path} is of another run ({changes}): use the same settings, or another file"
            )
        checkpoint.unpack(tensors, self, optimizer, path)
        self._chains = None if chains is None else chains.to(key.device)
        self._made = metadata["made"]
        return metadata["epochs"], saved

    def _apply(self, fn: Any, recurse: bool = True) -> _Machine:
        super()._apply(fn, recurse)
        if self._chains is not None:
            device = next(self.parameters()).device
            self._chains = None if device.type == "meta" else self._chains.to(device)
        return self


class RBM(_Machine):
    """A restricted Boltzmann machine: p(v, h) = exp(-E(v, h)) / Z, E = -a.v - b.h - v.W h; for Gaussian visibles
    E = |v - a|^2 / 2 - b.h - v.W h.

    ``forward(x)`` is a surrogate: mean F(x) - mean F(chains), whose gradient is that of contrastive divergence. Its
    value is no measure of fit: :meth:`log_likelihood` is.

    Args:
        visible: how many visible units, V.
        hidden: how many hidden units.
        visible_kind: "bernoulli": x in [0, 1], or uint8 or bool 0 and 1; "gaussian": real x, of unit variance;
            "categorical": integers [B, V / categories].
        categories: of "categorical" visibles: how many units there are to a group.
        method: what the negative phase is: "cd" (chains start at the data), "pcd" (chains go on from call to call) or
            "pt" (chains at several temperatures, which swap).
        steps: Gibbs steps a call, k; with "pt" rounds of one step and a swap.
        chains: of "pcd" and "pt": how many.
        betas: of "pt": the inverse temperatures, rising to 1.

    Parameters: ``weight`` [V, H], ``visible_bias``, ``hidden_bias``: the state dict. The chains are no part of it, and
    in the checkpoints of :meth:`fit`.

    Wherever noise is drawn, ``key`` fixes it and ``generator`` seeds it. The chains count their steps, so one key
    serves a whole run.

    Raises:
        TypeError: ``x`` is not such a tensor; a setting has the wrong type.
        ValueError: shapes do not fit together, a setting is out of range.

    Source: Hinton 2002 (CD); Tieleman 2008 (PCD); Desjardins et al. 2010 (PT).
    """

    def __init__(
        self,
        visible: int,
        hidden: int,
        *,
        visible_kind: str = "bernoulli",
        categories: int | None = None,
        method: str = "pcd",
        steps: int = 1,
        chains: int = 128,
        betas: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
    ) -> None:
        super().__init__()
        for name, value in (("visible", visible), ("hidden", hidden), ("steps", steps), ("chains", chains)):
            check_count(name, value, least=1)
        for name, word, words in (("visible_kind", visible_kind, VISIBLE_KINDS), ("method", method, METHODS)):
            if word not in words:
                raise ValueError(f"{name}: expected one of {', '.join(words)}, got {word!r}")
        self._ways = boltzmann.check_categories(visible_kind, categories, visible)
        ladder = [float(beta) for beta in betas]
        if method == "pt":
            tempering.check_rising(ladder, visible_kind)
            if ladder[-1] != 1:
                raise ValueError(f"betas: expected the last one to be 1, the model itself, got {ladder[-1]}")
        self.visible_kind, self.categories, self.method = visible_kind, categories, method
        self.steps, self.chains, self.betas = steps, chains, tuple(ladder)
        self.weight = nn.Parameter(torch.empty(visible, hidden).normal_(0, 0.01))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self._chains, self._made = None, 0

    def forward(
        self,
        x: Tensor,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """mean F(x) - mean F(chains), a scalar; moves the chains on."""
        rows = self._batch(x)
        negative = self._negative(rows, key, generator, first_sample)
        return self.free_energy(rows).mean() - self.free_energy(negative).mean()

    def free_energy(self, x: Tensor) -> Tensor:
        """F(x) = -log sum_h exp(-E(x, h)), [B]."""
        return functional.rbm_free_energy(self._rows(x), *self._parameters_(), visible_kind=self.visible_kind)

    def transform(self, x: Tensor) -> Tensor:
        """p(h = 1 | x), [B, H]."""
        return torch.sigmoid(torch.addmm(self.hidden_bias, self._states(self._rows(x)), self.weight))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(v | h) at the mean of p(h | x), [B, V]; no noise."""
        return self._visible_mean(torch.addmm(self.visible_bias, self.transform(x), self.weight.t()))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        steps: int = 1000,
        start: Tensor | None = None,
        means: bool = False,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """n visible states [n, V] (uint8; Gaussian float32; categorical [n, groups]), after so many Gibbs steps from
        `start`, or from independent units; or the `means` of their last draw, float32 [n, V]."""
        check_count("n", n, least=0)
        check_count("steps", steps, least=1)
        noise: dict[str, Any] = {"generator": generator, "first_sample": first_sample}
        if start is None:
            own = None if key is None else random.fold_in(key, boltzmann.START)
            bias = self.visible_bias.detach()
            start = boltzmann.independent(bias, n, self.visible_kind, self._ways, key=own, **noise)
        elif len(start) != n:
            raise ValueError(f"start: expected {n} rows, got {len(start)}")
        drawn = rbm_gibbs(
            self._rows(start),
            *self._parameters_(),
            steps=steps,
            visible_kind=self.visible_kind,
            return_probabilities=means,
            key=key,
            **noise,
        )
        return drawn[2] if means else drawn[0]

    def log_partition(self, betas: int | Sequence[float] = 1000, chains: int = 256, **options: Any) -> LogPartition:
        """log Z by annealed importance sampling: ``functional.ais_log_partition`` with its options. For a machine that
        is trained pass ``base_bias=model.base_bias(data)``."""
        return functional.ais_log_partition(
            *(p.detach() for p in self._parameters_()),
            betas=betas,
            chains=chains,
            visible_kind=self.visible_kind,
            categories=self.categories,
            **options,
        )

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, betas: int | Sequence[float] = 1000, chains: int = 256, **options: Any
    ) -> Tensor:
        """log p(x) = -F(x) - log Z, [B] nats, by :meth:`log_partition` from :meth:`base_bias` of x, if no other is
        given; all rows share its error. It errs high where the ladder is too short; where hardly any chain counts, it
        warns."""
        return -self.free_energy(x) - self._log_z(x, betas, chains, options).to(self.weight.dtype)

    @torch.no_grad()
    def base_bias(self, x: Tensor) -> Tensor | None:
        """log((1 + n_i) / (1 + B - n_i)), n_i = sum_b x_bi: biases [V] of independent units with about the means of x,
        from which annealing to a trained machine takes far fewer steps than from 0. Of categories log(1 + n_i); None
        for Gaussian visibles. x, and what it raises, as for the loss.

        Source: Salakhutdinov and Murray 2008.
        """
        counts = self._states(self._rows(x)).sum(0)
        if self.visible_kind == "gaussian":
            return None
        return torch.log1p(counts) - (torch.log1p(len(x) - counts) if self.visible_kind == "bernoulli" else 0)

    def extra_repr(self) -> str:
        visible, hidden = self.weight.shape
        return f"{visible}, {hidden}, visible_kind={self.visible_kind!r}, method={self.method!r}, steps={self.steps}"

    def _gradients(self, x: Tensor, **noise: Any) -> list[Tensor]:
        with torch.no_grad():
            rows = self._batch(x)
            negative = self._negative(rows, noise.get("key"), noise.get("generator"), noise.get("first_sample", 0))
            phases = self._states(rows), self._states(negative)
            of_weight, of_visible, of_hidden = boltzmann.phase_difference(*phases, self.weight, self.hidden_bias)
        return [of_weight, of_visible, of_hidden]

    @torch.no_grad()
    def _negative(
        self, rows: Tensor, key: Tensor | None, generator: torch.Generator | None, first_sample: int
    ) -> Tensor:
        """The visible states of the negative phase, after moving the chains on."""
        first = count_on(self, "_made", self.steps)
        kind, machine = self.visible_kind, self._parameters_()
        own = None if key is None else random.fold_in(key, boltzmann.START)
        noise: dict[str, Any] = {"generator": generator, "first_sample": first_sample}
        options: dict[str, Any] = {"visible_kind": kind, "key": key, "first_step": first, **noise}
        if self.method == "cd":
            own = None if own is None else random.fold_in(own, first)
            start = boltzmann.start_of(rows, kind, own, generator, first_sample)
            return rbm_gibbs(start, *machine, steps=self.steps, **options)[0]
        if self._chains is None:
            self._chains = self._first_chains(own, generator, first_sample)
        if self.method == "pcd":
            self._chains = rbm_gibbs(self._chains, *machine, steps=self.steps, **options)[0]
            return self._chains
        found = functional.parallel_tempering(self._chains, *machine, betas=self.betas, rounds=self.steps, **options)
        self._chains = found.visible
        return found.visible[-1]

    def _first_chains(self, key: Tensor | None, generator: torch.Generator | None, first_sample: int) -> Tensor:
        """Independent units, [chains, V]; of "pt" [temperatures, chains, V], drawn chain by chain, as tempering is."""
        tempered = len(self.betas) if self.method == "pt" else 1
        start = boltzmann.independent(
            self.visible_bias.detach(),
            self.chains * tempered,
            self.visible_kind,
            self._ways,
            key=key,
            generator=generator,
            first_sample=first_sample * tempered,
        )
        return start.unflatten(0, (self.chains, tempered)).transpose(0, 1) if self.method == "pt" else start

    def _parameters_(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.visible_bias, self.hidden_bias

    def _states(self, rows: Tensor) -> Tensor:
        return boltzmann.as_states(rows, self.weight, self.visible_kind)

    def _shown(self, rows: Tensor) -> Tensor:
        return self._states(rows)

    def _visible_mean(self, field: Tensor) -> Tensor:
        if self.visible_kind == "bernoulli":
            return torch.sigmoid(field)
        if self.visible_kind == "gaussian":
            return field
        return torch.softmax(field.unflatten(-1, (-1, self._ways)), -1).flatten(-2)

    def _rows(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        units = self.weight.shape[0] // (self._ways if self.visible_kind == "categorical" else 1)
        if x.dim() < 2 or x.shape[1:].numel() != units:
            raise ValueError(f"x: expected a batch [B, ...] of {units} visible values each, got {tuple(x.shape)}")
        floats = x.is_floating_point()
        fitting = {"bernoulli": True, "gaussian": floats, "categorical": not (floats or x.dtype == torch.bool)}
        if x.is_complex() or not fitting[self.visible_kind]:
            takes = {
                "bernoulli": "floats in [0, 1], or integers or bool 0 and 1",
                "gaussian": "floats",
                "categorical": "integer categories",
            }[self.visible_kind]
            raise TypeError(f"x: expected {takes}, got {x.dtype}")
        boltzmann.check_range("x", x, self.visible_kind)
        return x.flatten(1)

    def _batch(self, x: Tensor) -> Tensor:
        rows = self._rows(x)
        if len(rows) == 0:
            raise ValueError("x: the loss is a mean over the batch, and this batch is empty; skip it")
        return rows

    def _settings(self) -> dict[str, Any]:
        return {
            "model": "RBM",
            "shape": list(self.weight.shape),
            "visible_kind": self.visible_kind,
            "categories": self.categories,
            "method": self.method,
            "steps": self.steps,
            "chains": self.chains,
            "betas": list(self.betas) if self.method == "pt" else None,
        }


class DBM(_Machine):
    """A deep Boltzmann machine of binary layers x_0 (visible), ..., x_L: E = -sum_l b_l.x_l - sum_l x_l.W_l x_(l+1).

    ``forward(x)`` is a surrogate, mean E(x, mu) - mean E(chains), whose gradient is that of the variational bound with
    mean-field means mu for the data and persistent chains for the model.

    Args:
        sizes: how many units each layer has, from the visible one up: two layers at least.
        steps: Gibbs steps of the chains a call.
        chains: how many persistent chains.
        mean_field: iterations of the positive phase.

    Parameters: ``weights`` and ``biases``, a list each: the state dict. x is as for a Bernoulli :class:`RBM`; key and
    generator too.

    Raises:
        TypeError, ValueError: as :class:`RBM`.

    Source: Salakhutdinov and Hinton 2009.
    """

    def __init__(self, sizes: Sequence[int], *, steps: int = 5, chains: int = 128, mean_field: int = 10) -> None:
        super().__init__()
        sizes = list(sizes)
        if len(sizes) < 2:
            raise ValueError(f"sizes: expected two layers at least, the visible one first, got {sizes}")
        for size in sizes:
            check_count("sizes", size, least=1)
        for name, value in (("steps", steps), ("chains", chains), ("mean_field", mean_field)):
            check_count(name, value, least=1)
        self.steps, self.chains, self.mean_field = steps, chains, mean_field
        self.weights = nn.ParameterList(torch.empty(m, n).normal_(0, 0.01) for m, n in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(n) for n in sizes)
        self._chains, self._made = None, 0

    def forward(
        self,
        x: Tensor,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """mean E(x, mu) - mean E(chains), a scalar; moves the chains on."""
        rows = self._rows(x)
        if len(rows) == 0:
            raise ValueError("x: the loss is a mean over the batch, and this batch is empty; skip it")
        means = self._means(rows)
        layers = self._negative(key, generator, first_sample)
        return self._energy(means).mean() - self._energy(layers).mean()

    @torch.no_grad()
    def transform(self, x: Tensor) -> tuple[Tensor, ...]:
        """The mean-field means of the hidden layers, [B, units] each."""
        return functional.dbm_mean_field(self._rows(x), *self._lists(), iterations=self.mean_field)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x_0 | x_1) at the mean-field mean of x_1, [B, V]."""
        return torch.sigmoid(self.biases[0] + self.transform(x)[0] @ self.weights[0].t())

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        steps: int = 1000,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """n visible states, uint8 [n, V], after so many Gibbs steps from states of 0."""
        check_count("n", n, least=0)
        check_count("steps", steps, least=1)
        start = torch.zeros(n, len(self.biases[0]), dtype=torch.uint8, device=self.biases[0].device)
        noise: dict[str, Any] = {"key": key, "generator": generator, "first_sample": first_sample}
        return functional.dbm_gibbs(start, *self._lists(), steps=steps, **noise)[0]

    @torch.no_grad()
    def log_partition(self, betas: int | Sequence[float] = 1000, chains: int = 256, **options: Any) -> LogPartition:
        """log Z by annealed importance sampling: ``functional.ais_log_partition`` of the joined machine."""
        joined = functional.dbm_join(*self._lists())
        return functional.ais_log_partition(*joined, betas=betas, chains=chains, **options)

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, betas: int | Sequence[float] = 1000, chains: int = 256, **options: Any
    ) -> Tensor:
        """The variational bound on log p(x), [B] nats: -E(x, mu) + entropy(mu) - log Z, by :meth:`log_partition` from
        :meth:`base_bias` of x, if no other is given."""
        means = self._means(self._rows(x))
        entropy = sum((torch.special.entr(m) + torch.special.entr(1 - m)).sum(-1) for m in means[1:])
        return entropy - self._energy(means) - self._log_z(x, betas, chains, options).to(means[0].dtype)

    @torch.no_grad()
    def base_bias(self, x: Tensor) -> Tensor:
        """As :meth:`RBM.base_bias`, for the visible units and, by their mean-field means, those of the other even
        layers, side by side."""
        counts = torch.cat(self._means(self._rows(x))[::2], -1).sum(0)
        return torch.log1p(counts) - torch.log1p(len(x) - counts)

    def extra_repr(self) -> str:
        return f"{[len(b) for b in self.biases]}, steps={self.steps}, mean_field={self.mean_field}"

    def _gradients(self, x: Tensor, **noise: Any) -> list[Tensor]:
        with torch.enable_grad():
            return list(torch.autograd.grad(self(x, **noise), list(self.parameters())))

    @torch.no_grad()
    def _means(self, rows: Tensor) -> list[Tensor]:
        return [rows.to(self.weights[0].dtype), *self.transform(rows)]

    @torch.no_grad()
    def _negative(self, key: Tensor | None, generator: torch.Generator | None, first_sample: int) -> list[Tensor]:
        noise: dict[str, Any] = {"key": key, "generator": generator, "first_sample": first_sample}
        first = count_on(self, "_made", self.steps)
        sizes = [len(b) for b in self.biases]
        if self._chains is None:
            self._chains = torch.zeros(self.chains, sum(sizes), dtype=torch.uint8, device=self.biases[0].device)
        layers = functional.dbm_gibbs(
            self._chains.split(sizes, -1), *self._lists(), steps=self.steps, first_step=first, **noise
        )
        self._chains = torch.cat(layers, -1)
        return [layer.to(self.weights[0].dtype) for layer in layers]

    def _energy(self, layers: Sequence[Tensor]) -> Tensor:
        energy = -sum((x @ b for x, b in zip(layers, self.biases, strict=True)), torch.zeros(()))
        for lower, upper, weight in zip(layers, layers[1:], self.weights, strict=False):
            energy = energy - ((lower @ weight) * upper).sum(-1)
        return energy

    def _lists(self) -> tuple[list[Tensor], list[Tensor]]:
        return [w.detach() for w in self.weights], [b.detach() for b in self.biases]

    def _rows(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        if x.dim() < 2 or x.shape[1:].numel() != len(self.biases[0]):
            raise ValueError(
                f"x: expected a batch [B, ...] of {len(self.biases[0])} visible values each, got {tuple(x.shape)}"
            )
        boltzmann.check_range("x", x, "bernoulli")
        return x.flatten(1)

    def _settings(self) -> dict[str, Any]:
        sizes = [len(b) for b in self.biases]
        return {
            "model": "DBM",
            "sizes": sizes,
            "steps": self.steps,
            "chains": self.chains,
            "mean_field": self.mean_field,
        }
