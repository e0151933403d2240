"""``python -m variate sample``: lattices at many temperatures beside the exact result; or digits."""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import random
from .._optional import require
from ..checkpoint import write_whole
from ..models import Ising
from ._arguments import CommandError, device_of, non_negative_int, positive_int, seed
from .diffusion import add_sample_command

__all__ = ["CRITICAL", "Curve", "add_command", "onsager_magnetisation", "sample_ising"]

CRITICAL = 2 / math.log1p(math.sqrt(2))  # the temperature at which the order ends, J = 1
_COLDEST, _HOTTEST = 1.5, 3.0
_PICTURED = (0.9 * CRITICAL, CRITICAL, 1.2 * CRITICAL)
_EVERY = 5  # sweeps, between which little changes
_PARTS = 50  # of a run, each a step of the progress bar


@dataclass(frozen=True)
class Curve:
    """What a run found at each temperature, coldest first."""

    temperatures: list[float]
    magnetisation: Tensor
    energy: Tensor
    spins: Tensor
    flips_per_second: float


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    chosen = commands.add_parser("sample", help="sample a lattice at many temperatures, or a trained diffusion model")
    models = chosen.add_subparsers(title="models", metavar="MODEL", required=True)
    add_sample_command(models)
    command = models.add_parser(
        "ising",
        help="a lattice at many temperatures",
        description="Sample square Ising lattices at temperatures around the critical one, all in one call. Draw the "
        "magnetisation beside Onsager's and Yang's exact curve, and the lattice at three temperatures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--size", type=positive_int, default=512, help="sites along each side, an even number")
    command.add_argument("--temperatures", type=positive_int, default=29, help="how many, beside the three pictured")
    command.add_argument("--burn-in", type=non_negative_int, default=2000, help="sweeps before the first measurement")
    command.add_argument("--sweeps", type=positive_int, default=2000, help="sweeps measured")
    command.add_argument("--seed", type=seed, default=0, help="of the noise")
    command.add_argument("--threads", type=positive_int, default=None, help="CPU threads; torch's choice if left out")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    command.add_argument("--out", type=Path, default=Path("runs/ising"), metavar="DIR", help="where ising.png goes")
    command.set_defaults(command=_run)


def onsager_magnetisation(temperature: float) -> float:
    """|m| of the infinite square lattice, J = 1. Source: Yang 1952."""
    return (1 - math.sinh(2 / temperature) ** -4) ** 0.125 if temperature < CRITICAL else 0.0


def sample_ising(
    size: int,
    temperatures: list[float],
    burn_in: int,
    sweeps: int,
    seed: int,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] = lambda count: None,
) -> Curve:
    """One lattice for each temperature, from all spins up; `advance` is called with the sweeps done."""
    order = sorted(temperatures)
    beta = 1 / torch.tensor(order, dtype=torch.float64, device=device)
    model = Ising((size, size), len(order), beta=beta, start="ordered", key=random.key(seed, device=device))
    began = time.perf_counter()
    for part in _parts(burn_in):
        model.sweep(part)
        advance(part)
    magnetisation, energy = torch.zeros_like(beta), torch.zeros_like(beta)
    for part in _parts(sweeps):
        seen = model.observe(part, every=min(part, _EVERY))
        magnetisation += part / sweeps * seen.absolute_magnetisation
        energy += part / sweeps * seen.energy
        advance(part)
    spins = model.spins.cpu()
    seconds = time.perf_counter() - began
    flips = (burn_in + sweeps) * spins.numel()
    return Curve(order, magnetisation.cpu(), energy.cpu(), spins, flips / seconds)


def _parts(sweeps: int) -> list[int]:
    part = max(1, sweeps // _PARTS)
    return [min(part, sweeps - done) for done in range(0, sweeps, part)]


def _run(args: argparse.Namespace) -> int:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.size % 2 or args.size < 2:
        raise CommandError(f"--size: expected an even number, as the lattice is periodic, got {args.size}")
    device = device_of(args.device)
    console = require("rich.console").Console(highlight=False, soft_wrap=True)
    bars = require("rich.progress")
    require("matplotlib.figure")  # rather now than after the sweeps
    args.out.mkdir(parents=True, exist_ok=True)

    spaced = np.linspace(_COLDEST, _HOTTEST, args.temperatures).tolist()
    with bars.Progress(
        "{task.description}",
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(f"{args.size}x{args.size}", total=args.burn_in + args.sweeps)
        curve = sample_ising(
            args.size,
            [*spaced, *_PICTURED],
            args.burn_in,
            args.sweeps,
            args.seed,
            device,
            lambda count: progress.advance(task, count),
        )
    table = require("rich.table").Table("temperature", "|m|", "exact, infinite lattice", "energy per site")
    for index, temperature in enumerate(curve.temperatures):
        table.add_row(
            f"{temperature:.4f}",
            f"{curve.magnetisation[index]:.4f}",
            f"{onsager_magnetisation(temperature):.4f}",
            f"{curve.energy[index]:.4f}",
        )
    console.print(table)
    console.print(
        f"{len(curve.temperatures)} lattices of {args.size}x{args.size}, {args.burn_in} + {args.sweeps} sweeps: "
        f"{curve.flips_per_second * 1e-9:.2f} flips per nanosecond, measurements included"
    )
    write_whole(args.out / "ising.png", _figure(curve, args.size))
    console.print(f"figure: {args.out / 'ising.png'}")
    return 0


def _figure(curve: Curve, size: int) -> bytes:
    figure = require("matplotlib.figure").Figure(figsize=(10, 8), layout="constrained")
    grid = figure.add_gridspec(2, len(_PICTURED), height_ratios=(1, 1))
    axes = figure.add_subplot(grid[0, :])
    fine = np.linspace(_COLDEST, _HOTTEST, 1500)
    axes.plot(fine, [onsager_magnetisation(t) for t in fine], color="#8a94a0", label="exact, infinite lattice")
    axes.plot(curve.temperatures, curve.magnetisation, "o", ms=4, color="#2f7de1", label=f"{size} x {size}")
    axes.axvline(CRITICAL, color="#dfe3e8", lw=1, zorder=0)
    axes.set_xlabel("temperature")
    axes.set_ylabel("magnetisation")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    for column, temperature in enumerate(_PICTURED):
        axes = figure.add_subplot(grid[1, column])
        spins = curve.spins[curve.temperatures.index(temperature)]
        axes.imshow(spins.numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(f"T = {temperature:.3f}", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
