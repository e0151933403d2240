"""Diffusion and flow models around any denoiser."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional, random
from .._table import Table
from ..diffusion.levels import kind_of
from ..diffusion.loop import sample
from ..diffusion.schedules import FlowSchedule, NoiseSchedule
from ..diffusion.solvers import solver
from ..diffusion.training import loss_weight, noising_table
from ..functional import _key
from ..functional._checks import FLOATING
from ..functional._checks import categories as check_categories
from ..functional._checks import count as check_count
from ._settings import like
from .denoisers import MLPDenoiser, UNetDenoiser

__all__ = ["Diffusion"]

_TIMESTEP, _LABEL = 2, 3  # of fold_in; what noising itself may fold in is 1


class Diffusion(nn.Module):
    """loss(x) = mean over the batch of  w(t) |denoiser(alpha_t x + sigma_t eps, t) - target|^2 / elements,  with a
    timestep t and noise eps of its own for each x; the target is eps, x, v = alpha eps - sigma x, or eps - x.

    Args:
        denoiser: a module; ``denoiser(x_t, timestep)`` is shaped as x, ``denoiser(x_t, timestep, labels)`` where there
            are classes. The timestep is [B]: int64, or float32 with a ``FlowSchedule``.
        schedule: a ``NoiseSchedule``, the name of its betas, or a ``FlowSchedule``, whose sigma is uniform in training.
        prediction: "epsilon", "x0", "v" or "flow", what the denoiser says; left out "epsilon", or "flow" with a
            ``FlowSchedule``, which takes no other.
        shape: of one x, an int or a tuple, for :meth:`sample`. Left out, it is learnt from the latest x.
        classes: how many labels there are. The denoiser sees the label ``classes`` where none is given.
        dropout: how often a label is withheld in training, for guidance.
        weighting: of the loss. None: 1. "min_snr", "soft_min_snr", "snr", "v" or "edm", see
            ``diffusion.training.loss_weight``, or a tensor [T]. With a ``FlowSchedule``, "logit_normal": sigma is
            drawn as sigmoid(n) instead.
        ema: the decay of the average of the denoiser's weights, which :meth:`update_average` makes; None for none. Its
            first updates decay less, (1 + n) / (10 + n).

    ``forward(x) == loss(x)``. Wherever noise is drawn, ``key`` fixes it, ``generator`` seeds it, and ``first_sample``
    is the index of row 0 in the whole batch. The state dict holds the denoiser, and with ``ema`` its average, as
    ``average``, and the count of updates.

    Raises:
        TypeError: ``x`` is not a floating tensor; a module or a setting has the wrong type.
        ValueError: a setting is out of range or not known, labels and classes do not fit together, or the loss is
            asked of an empty batch.

    Source: Ho et al. 2020; Salimans and Ho 2022 (v); Lipman et al. 2023 (flow); Ho and Salimans 2022 (guidance);
    Hang et al. 2023 (min-SNR); Esser et al. 2024 (logit-normal).
    """

    updates: Tensor

    def __init__(
        self,
        denoiser: nn.Module,
        schedule: NoiseSchedule | FlowSchedule | str = "linear",
        *,
        prediction: str | None = None,
        shape: int | Sequence[int] | None = None,
        classes: int | None = None,
        dropout: float = 0.1,
        weighting: str | Tensor | None = None,
        ema: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(denoiser, nn.Module):
            raise TypeError(f"denoiser: expected an nn.Module, got {type(denoiser).__name__}")
        if isinstance(schedule, str):
            schedule = NoiseSchedule(betas=schedule)
        if not isinstance(schedule, (NoiseSchedule, FlowSchedule)):
            raise TypeError(f"schedule: expected a NoiseSchedule or a FlowSchedule, got {type(schedule).__name__}")
        flows = isinstance(schedule, FlowSchedule)
        kind = kind_of(prediction if prediction is not None else "flow" if flows else "epsilon")
        if flows != (kind == "flow"):
            raise ValueError(f"prediction: expected 'flow' with a FlowSchedule, and with no other, got {prediction!r}")
        if classes is not None:
            check_count("classes", classes, least=1)
        for name, value in (("dropout", dropout), ("ema", ema)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
        self.denoiser = denoiser
        self.schedule = schedule
        self.prediction = kind
        self.classes, self.dropout = classes, dropout
        self.shape = _as_shape(shape)
        self.weighting = weighting
        self.ema = ema
        with torch.device("cpu"):  # values, wherever the modules are made
            self._levels, self._weights = _levels(schedule), _weights(schedule, kind, weighting)
        self._logit_normal = isinstance(weighting, str) and weighting == "logit_normal"
        self._tables: dict[Any, Table] = {}
        self.average: nn.Module | None = None
        if ema is not None:
            self.average = copy.deepcopy(denoiser).requires_grad_(False)
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=like(denoiser).device))

    @classmethod
    def mlp(
        cls, shape: int | Sequence[int] = 784, hidden: int = 256, layers: int = 3, *args: Any, **options: Any
    ) -> Diffusion:
        """Around an :class:`MLPDenoiser`, which flattens x."""
        own = _as_shape(shape)
        assert own is not None
        denoiser = MLPDenoiser(math.prod(own), hidden, layers, options.get("classes"))
        return cls(denoiser, *args, shape=own, **options)

    @classmethod
    def unet(
        cls,
        shape: Sequence[int] = (1, 28, 28),
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        *args: Any,
        **options: Any,
    ) -> Diffusion:
        """Around a :class:`UNetDenoiser`; x is [B, channels, height, width]."""
        if len(shape) != 3:
            raise ValueError(f"shape: expected (channels, height, width), got {tuple(shape)}")
        denoiser = UNetDenoiser(shape[0], width, multipliers, options.get("classes"))
        return cls(denoiser, *args, shape=shape, **options)

    def forward(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """The loss, a scalar. x: [B, ...] floating, best of about unit scale, as images in [-1, 1]; labels: int64 [B],
        where there are classes."""
        if isinstance(x, Tensor) and x.dim() and len(x) == 0:
            raise ValueError("x: the loss is a mean over the batch, and this batch is empty; skip it")
        return self.losses(x, labels, key=key, generator=generator, first_sample=first_sample).mean()

    def loss(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """The same call as ``model(x)``.

        Under DistributedDataParallel call the wrapper itself: only that averages the gradients.
        """
        return self(x, labels, key=key, generator=generator, first_sample=first_sample)

    def losses(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        timestep: Tensor | None = None,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """The loss of each x, [B]; at a ``timestep`` [B] of the caller's, else at random ones."""
        self._check(x, labels)
        self.shape = tuple(x.shape[1:]) if self.shape is None else self.shape
        key = _key.resolve(key, generator, first_sample, x)
        rows: dict[str, Any] = {"first_sample": first_sample}
        if isinstance(self.schedule, FlowSchedule):
            sigma = self._sigma(x, timestep, random.fold_in(key, _TIMESTEP), rows)
            timestep = sigma * self.schedule.train_steps
            levels, index = torch.stack([1 - sigma, sigma], 1), None
        else:
            if timestep is None:
                own = random.fold_in(key, _TIMESTEP)
                timestep = random.randint(0, self.schedule.train_steps, (len(x), 1), key=own, **rows)[:, 0]
            levels, index = self._levels, timestep
        noisy, target = functional.noise_and_target(
            x, index, levels, prediction=self.prediction, key=key, first_sample=first_sample
        )
        said = self.denoiser(noisy, timestep, *self._told(x, labels, key, rows))
        weight = None if self._weights is None else self._weights[timestep]
        return functional.denoising_loss(said, target, weight)

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average toward the denoiser's weights: call it after each step of the optimizer."""
        if self.average is None or self.ema is None:
            raise ValueError("ema: expected a decay, as in Diffusion(..., ema=0.999), for an average to update")
        counted = self.updates.float()
        decay = ((1 + counted) / (10 + counted)).clamp_(max=self.ema)
        functional.ema_update_(list(self.average.parameters()), list(self.denoiser.parameters()), decay)
        for mine, theirs in zip(self.average.buffers(), self.denoiser.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1

    @torch.no_grad()
    def sample(
        self,
        n: int,
        scheduler: str | Table | None = None,
        steps: int = 50,
        *,
        labels: Tensor | int | None = None,
        guidance: float | None = None,
        averaged: bool = True,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
        progress: bool = False,
        compile: bool = False,
        callback: Callable[..., None] | None = None,
        **options: Any,
    ) -> Tensor:
        """n samples [n, ...], by :func:`variate.diffusion.sample`.

        Args:
            n: how many.
            scheduler: the name of a solver, or a table; left out "ddim", or "flow_euler" with a ``FlowSchedule``.
            steps: the solver's; a table has its own.
            labels: int64 [n], or one for all; none withholds it.
            guidance: with labels, how far past the unconditional output: u + guidance (c - u).
            averaged: by the average of the weights, where there is one.
            progress, compile, callback: see :func:`variate.diffusion.sample`.
            options: the solver's, as ``eta=1.0``, ``clip=1.0``, ``sigmas="karras"``.
        """
        check_count("n", n, least=0)
        if self.shape is None:
            raise ValueError("shape: not known yet; pass Diffusion(..., shape=...), or run the model on data once")
        denoiser = self.average if averaged and self.average is not None else self.denoiser
        scheduler = (
            ("flow_euler" if isinstance(self.schedule, FlowSchedule) else "ddim") if scheduler is None else scheduler
        )
        table = scheduler if isinstance(scheduler, Table) else self._table(scheduler, steps, options)
        condition = unconditional = None
        if self.classes is None:
            if labels is not None:
                raise ValueError("labels: expected none, as this model has no classes")
        else:
            device = like(denoiser).device
            unconditional = torch.full((n,), self.classes, device=device)
            condition = unconditional if labels is None else self._check_labels(labels, n, device)
        if guidance is not None and labels is None:
            raise ValueError("labels: expected them with guidance, which is away from having none")
        return sample(
            denoiser,
            (n, *self.shape),
            table,
            condition=condition,
            unconditional=unconditional if guidance is not None else None,
            guidance=guidance,
            key=key,
            generator=generator,
            first_sample=first_sample,
            progress=progress,
            compile=compile,
            callback=callback,
        )

    def extra_repr(self) -> str:
        return f"prediction={self.prediction!r}, classes={self.classes}, ema={self.ema}"

    def _table(self, scheduler: str, steps: int, options: dict[str, Any]) -> Table:
        if scheduler == "edm":
            raise ValueError("scheduler: 'edm' is for models D(x, sigma), and this one is told a timestep; try 'heun'")
        try:
            name = scheduler, steps, *sorted(options.items())
            if name not in self._tables:
                self._tables[name] = solver(scheduler, self.schedule, steps, prediction=self.prediction, **options)
            return self._tables[name]
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
            return solver(scheduler, self.schedule, steps, prediction=self.prediction, **options)

    def _sigma(self, x: Tensor, timestep: Tensor | None, key: Tensor, rows: dict[str, Any]) -> Tensor:
        """The noise of each x on a straight line, [B] float32."""
        assert isinstance(self.schedule, FlowSchedule)
        if timestep is not None:
            return timestep.float() / self.schedule.train_steps
        draw = random.normal if self._logit_normal else random.uniform
        drawn = draw(len(x), 1, key=key, dtype=torch.float32, device=x.device, **rows)[:, 0]
        drawn = torch.sigmoid(drawn) if self._logit_normal else drawn
        shift = self.schedule.shift
        return drawn if shift == 1 else shift * drawn / (1 + (shift - 1) * drawn)

    def _told(self, x: Tensor, labels: Tensor | None, key: Tensor, rows: dict[str, Any]) -> tuple[Tensor, ...]:
        if self.classes is None or labels is None:
            return ()
        if not self.dropout:
            return (labels,)
        own = random.fold_in(key, _LABEL)
        drawn = random.uniform(len(x), 1, key=own, dtype=torch.float32, device=x.device, **rows)[:, 0]
        return (torch.where(drawn <= self.dropout, self.classes, labels),)

    def _check(self, x: Tensor, labels: Tensor | None) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        if x.dtype not in FLOATING:
            raise TypeError(f"x: expected floats, as images in [-1, 1], got {x.dtype}")
        if x.dim() < 2:
            raise ValueError(f"x: expected a batch, [B, ...] with two or more dimensions, got shape {tuple(x.shape)}")
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x: expected {('B', *self.shape)}, as shape says, got {tuple(x.shape)}")
        if (labels is None) != (self.classes is None):
            wanted = "none, as this model has no classes" if self.classes is None else "int64 [B], one for each x"
            raise ValueError(f"labels: expected {wanted}")
        if labels is not None:
            self._check_labels(labels, len(x), x.device)

    def _check_labels(self, labels: Tensor | int, count: int, device: torch.device) -> Tensor:
        assert self.classes is not None
        if isinstance(labels, int):
            if not 0 <= labels < self.classes:
                raise ValueError(f"labels: expected 0 to {self.classes - 1}, got {labels}")
            return torch.full((count,), labels, device=device)
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels: expected int64, got {got}")
        if tuple(labels.shape) != (count,):
            raise ValueError(f"labels: expected shape {(count,)}, got {tuple(labels.shape)}")
        if labels.device != device:
            raise ValueError(f"labels: expected them on {device}, got {labels.device}")
        check_categories("labels", labels, self.classes)
        return labels

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Diffusion:
        # Not buffers: a change of dtype must not round the levels.
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self._levels.device)).device
        if device.type != "meta":
            self._levels = self._levels.to(device)
            self._weights = None if self._weights is None else self._weights.to(device)
        return self


def _levels(schedule: NoiseSchedule | FlowSchedule) -> Tensor:
    """(alpha, sigma) of each timestep, float64 [T, 2]."""
    if isinstance(schedule, FlowSchedule):
        return torch.empty(0, 2, dtype=torch.float64)
    return noising_table(torch.from_numpy(schedule.alphas_cumprod))


def _weights(schedule: NoiseSchedule | FlowSchedule, prediction: str, weighting: str | Tensor | None) -> Tensor | None:
    """[T], what the squared difference is multiplied by; None for 1."""
    if isinstance(schedule, FlowSchedule):
        if weighting is None or (isinstance(weighting, str) and weighting == "logit_normal"):
            return None
        raise ValueError(f"weighting: expected None or 'logit_normal' with a FlowSchedule, got {weighting!r}")
    if weighting is None:
        return None
    if isinstance(weighting, Tensor):
        if tuple(weighting.shape) != (schedule.train_steps,):
            raise ValueError(
                f"weighting: expected [T] numbers, T = {schedule.train_steps}, got {tuple(weighting.shape)}"
            )
        return weighting.detach().float()
    return loss_weight(_levels(schedule), weighting, prediction)


def _as_shape(shape: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    for size in sizes:
        check_count("shape", size, least=1)
    return sizes
