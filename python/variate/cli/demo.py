"""``python -m variate demo``: models trained with stock PyTorch and with the fused ops, side by side; and a ladder."""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import random, reference
from .._optional import require
from ..checkpoint import write_whole
from ..models import RBM, VAE, HierarchicalVAE
from . import images, report
from ._arguments import CommandError, positive_int, seed
from .chain import DRAWN, Denoising, equal_losses, equal_samples, train_denoisers
from .chain import STEPS as CHAIN_STEPS
from .digits import BINARISATION, Digits, evaluate, log_likelihood
from .info import versions
from .ladder import train_ladder
from .memory import measure
from .pcd import STEPS, train_machines
from .sides import BATCH, Side, sides_of

__all__ = ["add_command", "agreement"]

_LOSS_TOLERANCE = 1e-5  # relative, over the first 50 losses with equal noise
# Relative to the largest sample, of a chain of 100 steps with equal noise: each step's rounding is carried on.
_SAMPLE_TOLERANCE = 1e-3
_ELBO_TOLERANCE = 5e-3  # relative, of the final test ELBOs with each side's own noise
# Trainings per side, from parameters and noise of their own. The final ELBO of one varies with its seed by about half
# of the tolerance, so that single runs would exceed it by chance every so often; means of four hardly ever do.
_RUNS = 4
_SAMPLES = 100  # of z per test digit, for log p(x)
_BETAS = 4000  # of annealed importance sampling
_TIME = (
    "ms per step: the median over blocks of one epoch, which alternate between the two; a step is forward, "
    "backward and Adam, with batches prepared before, and each side draws its own noise. Ratio: stock time "
    "over ours, the median and the quartiles of the paired blocks."
)
_MEMORY = (
    "Peak MiB: the largest resident set of a fresh process that trains one epoch, Python and torch included; "
    "in brackets what the training itself added."
)
_NAMES = {"stock": "stock PyTorch", "fused": "variate"}


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "demo",
        help="train on real digits with stock PyTorch and with the fused ops, side by side",
        description="Train a variational autoencoder, 784-400-20, on the shipped MNIST digits twice: "
        "with stock PyTorch and with the fused ops. Print a table, write report.html, fail if they disagree. "
        "Then train a ladder of two stochastic layers once, and a Boltzmann machine, 784-500, and a denoiser, on both "
        "sides.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="where report.html goes")
    command.add_argument("--epochs", type=positive_int, default=25, help="epochs of each training; 62 steps each")
    command.add_argument("--seed", type=seed, default=0, help="of parameters, order, binarisation and noise")
    command.add_argument("--threads", type=positive_int, default=None, help="CPU threads; torch's choice if left out")
    command.set_defaults(command=_run)


def agreement(seed: int, steps: int = 50) -> float:
    """The largest relative difference of the first losses, where stock training gets the fused run's noise.

    The stock side takes it from the plain-PyTorch reference, whose generator is its own, not our kernel.
    """
    sides, digits = sides_of(seed), Digits(seed)
    worst = 0.0
    for step, x in zip(range(steps), digits.epoch(0, BATCH), strict=False):
        key, zero = digits.step_key(step), torch.zeros(len(x), 20)
        eps = reference.reparam.normal_rsample(zero, zero, key=key)
        stock, fused = sides["stock"].step(x, eps=eps).item(), sides["fused"].step(x, key=key).item()
        difference = abs(stock - fused) / abs(stock)
        worst = max(worst, math.inf if math.isnan(difference) else difference)
    return worst


def _run(args: argparse.Namespace) -> int:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    console = require("rich.console").Console(highlight=False, soft_wrap=True)
    require("matplotlib.figure")  # rather now than after the training
    args.out.mkdir(parents=True, exist_ok=True)
    console.print(
        f"VAE 784-400-20, batch {BATCH}, fused Adam, {_RUNS} trainings of {args.epochs} epochs on each side, "
        f"CPU threads: {torch.get_num_threads()}"
    )
    console.print(f"binarisation: {BINARISATION}")

    digits = Digits(args.seed)
    test = digits.fixed("test")
    worst = agreement(args.seed)
    runs = [sides_of(args.seed + run) for run in range(_RUNS)]
    _train(runs, digits, args.epochs, console)
    elbos = {name: [evaluate(sides[name].judged(), test, draws=16) for sides in runs] for name in _NAMES}
    means = {name: statistics.mean(values) for name, values in elbos.items()}
    gap = abs(means["fused"] - means["stock"]) / abs(means["stock"])
    checks = [
        _check("equal noise", "the first 50 losses", worst, _LOSS_TOLERANCE),
        _check("own noise", "the final test ELBOs", gap, _ELBO_TOLERANCE),
    ]
    header, rows = _results(runs, elbos)
    ladder, seconds = _climb(digits, args.epochs, args.seed, console)
    compared = _compared(runs[0]["fused"], ladder, seconds, test)
    machines = _sample(digits, args.epochs, args.seed, console)
    machine_table = _machine_table(machines, test)
    grey = Digits(args.seed, kind="grey")
    denoisers = _denoise(grey, args.epochs, args.seed, console)
    checks += [
        _check("equal noise", "the first 50 losses of a denoiser", equal_losses(grey, args.seed), _LOSS_TOLERANCE),
        _check(
            "equal noise",
            f"samples after {CHAIN_STEPS} steps",
            equal_samples(denoisers["fused"].model, args.seed),
            _SAMPLE_TOLERANCE,
        ),
    ]
    denoiser_table = _denoiser_table(denoisers, grey.fixed("test"))
    notes = [
        _TIME,
        _MEMORY,
        f"Test ELBO: the mean over {_RUNS} trainings and its standard error; 16 draws of z per digit, one evaluator "
        f"for both. Binarisation: {BINARISATION}.",
    ]
    lead = (
        f"784-400-20 with a Bernoulli likelihood, on {len(digits)} MNIST digits: batch {BATCH}, fused Adam, "
        f"{_RUNS} trainings of {args.epochs} epochs each, CPU threads: {torch.get_num_threads()}, seed {args.seed}. "
        "The curves and pictures are those of the first."
    )
    parts = [
        report.table(header, rows),
        report.verdicts(checks),
        report.paragraphs(notes),
        *_figures(runs[0], test),
        *_ladder_parts(compared, ladder, test),
        *_machine_parts(machine_table, machines, test),
        *_denoiser_parts(denoiser_table, denoisers),
    ]
    parts += [report.heading("Versions"), report.table([], list(versions().items()))]
    page = report.page("A variational autoencoder, stock PyTorch and variate", lead, parts)
    write_whole(args.out / "report.html", page.encode())

    for heading, lines in ((header, rows), compared, machine_table, denoiser_table):
        table = require("rich.table").Table(*heading)
        for row in lines:
            table.add_row(*row)
        console.print(table)
    for name, text, passed in checks:
        console.print(f"{'[green]ok[/]  ' if passed else '[red]FAIL[/]'} {name}: {text}")
    console.print(f"report: {args.out / 'report.html'}")
    if not all(passed for _, _, passed in checks):
        failed = "; ".join(f"{name}: {text}" for name, text, passed in checks if not passed)
        raise CommandError(f"stock and fused disagree. {failed}")
    return 0


def _train(runs: list[dict[str, Side]], digits: Digits, epochs: int, console: Any) -> None:
    validation = digits.fixed("validation")
    with _progress("training both", console) as progress:
        task = progress.add_task("", total=len(runs) * epochs)
        for sides in runs:
            for epoch in range(epochs):
                batches = digits.epoch(epoch, BATCH)[:-1]  # full batches only
                # Take turns at going first, so that neither always finds the other's caches.
                for name in sorted(sides, reverse=epoch % 2 == 1):
                    sides[name].block(batches)
                if sides is runs[0]:
                    for side in sides.values():
                        side.validation.append(evaluate(side.judged(), validation))
                losses = ", ".join(f"{_NAMES[name]} {side.losses[-1]:.1f}" for name, side in sides.items())
                progress.update(task, advance=1, description=f"loss: {losses}", refresh=True)


def _climb(digits: Digits, epochs: int, seed: int, console: Any) -> tuple[HierarchicalVAE, float]:
    with _progress("training a ladder", console) as progress:
        task = progress.add_task("", total=epochs)

        def advance(loss: float) -> None:
            progress.update(task, advance=1, description=f"loss: {loss:.1f}", refresh=True)

        return train_ladder(digits, epochs, seed, advance)


def _sample(digits: Digits, epochs: int, seed: int, console: Any) -> dict[str, tuple[RBM, list[float]]]:
    with _progress("training Boltzmann machines", console) as progress:
        task = progress.add_task("", total=epochs)

        def advance(text: str) -> None:
            progress.update(task, advance=1, description=text, refresh=True)

        return train_machines(digits, epochs, seed, advance)


def _denoise(digits: Digits, epochs: int, seed: int, console: Any) -> dict[str, Denoising]:
    with _progress("training denoisers", console) as progress:
        task = progress.add_task("", total=epochs)

        def advance(text: str) -> None:
            progress.update(task, advance=1, description=text, refresh=True)

        return train_denoisers(digits, epochs, seed, advance)


def _progress(what: str, console: Any) -> Any:
    bars = require("rich.progress")
    return bars.Progress(
        what,
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.description}"),
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
        auto_refresh=False,  # its thread would run inside the timed blocks
        disable=not console.is_terminal,
    )


def _compared(fused: Side, ladder: HierarchicalVAE, seconds: float, test: Tensor) -> tuple[list[str], list[list[str]]]:
    """The first of our trainings beside the ladder: header and rows."""
    models: list[tuple[str, VAE | HierarchicalVAE, float]] = [
        ("one layer", fused.judged(), statistics.median(fused.seconds)),
        ("two layers", ladder, seconds),
    ]
    rows = [
        [
            name,
            f"{1e3 * time:.2f}",
            f"{evaluate(model, test, draws=16):.2f}",
            f"{log_likelihood(model, test, _SAMPLES):.2f}",
        ]
        for name, model, time in models
    ]
    return ["variate", "ms per step", "test ELBO", "test log p(x)"], rows


@torch.no_grad()
def _ladder_parts(compared: tuple[list[str], list[list[str]]], ladder: HierarchicalVAE, test: Tensor) -> list[str]:
    shown = test[:48].view(-1, 28, 28)
    twins = images.side_by_side(shown, ladder.reconstruct(shown), columns=12)
    samples = ladder.sample(96, key=random.key(0)).view(-1, 28, 28)
    return [
        report.heading("A ladder"),
        report.table(*compared),
        report.paragraphs(
            [
                "Two layers: variate.models.HierarchicalVAE with 20 latents and 10 above them, trained once on the "
                "same batches, with balanced KL while its weight rises. One layer: the first of the fused trainings. "
                f"log p(x) by importance sampling, {_SAMPLES} samples per digit: a lower bound in the mean.",
            ]
        ),
        _picture(twins, "ladder: test digits, and below each its reconstruction"),
        _picture(samples, "ladder: samples"),
    ]


@torch.no_grad()
def _machine_table(machines: dict[str, tuple[RBM, list[float]]], test: Tensor) -> tuple[list[str], list[list[str]]]:
    ratio = _ratio(machines["stock"][1], machines["fused"][1])
    rows = []
    for name, (machine, seconds) in machines.items():
        found = machine.log_partition(_BETAS, base_bias=machine.base_bias(test), key=random.key(0))
        rows.append(
            [
                _NAMES[name],
                f"{1e3 * statistics.median(seconds):.2f}",
                "1" if name == "stock" else ratio,
                f"{(-machine.free_energy(test).double() - found.log_z).mean().item():.1f}",
                f"{found.log_z.item():.2f} ± {found.standard_error.item():.2f}",
            ]
        )
    return ["Boltzmann machine", "ms per step", "ratio", "test log p(x)", "log Z"], rows


@torch.no_grad()
def _machine_parts(
    table: tuple[list[str], list[list[str]]], machines: dict[str, tuple[RBM, list[float]]], test: Tensor
) -> list[str]:
    machine = machines["fused"][0]
    filters = machine.weight[:, :96].t().reshape(-1, 28, 28)
    samples = machine.sample(96, steps=1000, start=test[:96], means=True, key=random.key(0)).view(-1, 28, 28)
    return [
        report.heading("A Boltzmann machine"),
        report.table(*table),
        report.paragraphs(
            [
                f"784-500 by persistent contrastive divergence, {BATCH} chains and {STEPS} steps of theirs for each "
                "step of the parameters, from equal parameters with noise of their own. log Z, and with it log p(x), "
                f"by {_BETAS} steps of annealed importance sampling from independent units with the digits' means, one "
                "evaluator for both, with its standard error; it errs low, and log p(x) high, where the chains miss "
                "what the machine has learnt. The log p(x) of one training moves with its seed.",
            ]
        ),
        _picture(0.5 + filters / (2 * filters.abs().max()), "Boltzmann machine: weights of hidden units"),
        _picture(samples, "Boltzmann machine: chains that started at test digits, 1000 steps on"),
    ]


@torch.no_grad()
def _denoiser_table(sides: dict[str, Denoising], test: Tensor) -> tuple[list[str], list[list[str]]]:
    ratios = [_ratio(getattr(sides["stock"], what), getattr(sides["fused"], what)) for what in ("training", "sampling")]
    rows = [
        [
            _NAMES[name],
            f"{1e3 * statistics.median(side.training):.2f}",
            "1" if name == "stock" else ratios[0],
            f"{1e6 * statistics.median(side.sampling):.0f}",
            "1" if name == "stock" else ratios[1],
            f"{side.model(2 * test.flatten(1) - 1, key=random.key(0)).item():.4f}",
        ]
        for name, side in sides.items()
    ]
    return ["denoiser", "ms per training step", "ratio", "us per sampling step", "ratio", "test loss"], rows


def _denoiser_parts(table: tuple[list[str], list[list[str]]], sides: dict[str, Denoising]) -> list[str]:
    chain: list[Tensor] = []
    options: dict[str, Any] = {"clip": 1.0, "callback": lambda row, done: chain.append(done.denoised[:8])}
    samples = sides["fused"].model.sample(96, "ddpm", CHAIN_STEPS, key=random.key(0), **options)
    strip = torch.stack([*(chain[k * len(chain) // 11] for k in range(11)), samples[:8]], 1)
    return [
        report.heading("A diffusion model"),
        report.table(*table),
        report.paragraphs(
            [
                f"A perceptron of three residual layers of 256 units that predicts v on grey digits, batch {BATCH}, "
                "fused Adam, from equal parameters with noise of each side's own; a sampling step is one of "
                f"{CHAIN_STEPS} of ancestral sampling of {DRAWN} digits, the network included. A network this small "
                "makes rough digits; python -m variate train diffusion has a U-Net, which makes better ones.",
            ]
        ),
        _picture((samples.view(-1, 28, 28) + 1) / 2, "diffusion: samples"),
        _picture((strip.reshape(-1, 28, 28) + 1) / 2, "diffusion: what the model takes the digit to be, step by step"),
    ]


def _results(runs: list[dict[str, Side]], elbos: dict[str, list[float]]) -> tuple[list[str], list[list[str]]]:
    seconds = {name: [t for sides in runs for t in sides[name].seconds] for name in _NAMES}
    ratio = _ratio(seconds["stock"], seconds["fused"])
    rows = []
    for name, values in elbos.items():
        peak, growth = measure(name, torch.get_num_threads())
        error = statistics.stdev(values) / len(values) ** 0.5
        rows.append(
            [
                _NAMES[name],
                f"{statistics.median(seconds[name]) * 1e3:.2f}",
                "1" if name == "stock" else ratio,
                f"{peak:.0f} (+{growth:.0f})",
                f"{statistics.mean(values):.2f} ± {error:.2f}",
            ]
        )
    return ["", "ms per step", "ratio", "peak MiB", "test ELBO"], rows


def _ratio(stock: list[float], fused: list[float]) -> str:
    """Median and quartiles of the paired ratios; of one epoch there is but one."""
    ratios = [theirs / ours for theirs, ours in zip(stock, fused, strict=True)]
    if len(ratios) == 1:
        return f"{ratios[0]:.2f}"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def _check(name: str, what: str, value: float, limit: float) -> tuple[str, str, bool]:
    return name, f"{what} differ by {value:.1e} relative (allowed: {limit:.0e})", value <= limit


@torch.no_grad()
def _figures(sides: dict[str, Side], test: Tensor) -> list[str]:
    panels = [
        ("training loss, nats", {_NAMES[name]: side.losses for name, side in sides.items()}),
        ("validation ELBO, nats", {_NAMES[name]: side.validation for name, side in sides.items()}),
        (
            "time per step, ms",
            {_NAMES[name]: [1e3 * t for t in side.seconds] for name, side in sides.items()},
        ),
    ]
    parts = [
        report.heading("Training"),
        report.curves(panels, "epoch"),
        report.heading("Reconstructions and samples"),
    ]
    shown, key = test[:48].view(-1, 28, 28), random.key(0)
    for name, side in sides.items():
        twins = images.side_by_side(shown, side.judged().reconstruct(shown), columns=12)
        parts.append(_picture(twins, f"{_NAMES[name]}: test digits, and below each its reconstruction"))
    for name, side in sides.items():
        samples = side.judged().sample(96, key=key).view(-1, 28, 28)
        parts.append(_picture(samples, f"{_NAMES[name]}: samples, from the same z on both sides"))
    return parts


def _picture(pictures: Tensor, caption: str) -> str:
    return report.picture(images.png(images.grid(pictures, columns=12), scale=1), caption)
