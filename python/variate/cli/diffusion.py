"""``python -m variate train diffusion`` and ``sample diffusion``: a small U-Net on the digits, told their labels."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint, data, random
from .._optional import require
from ..checkpoint import write_whole
from ..diffusion import SOLVERS, FlowSchedule, NoiseSchedule
from ..models import Diffusion
from . import images
from ._arguments import CommandError, device_of, non_negative_float, positive_int, seed
from .epochs import announce, epoch_bar, finite

__all__ = ["DiffusionSettings", "add_sample_command", "sample_diffusion", "train_diffusion"]

PREDICTIONS = ("v", "epsilon", "x0", "flow")

_CLASSES = 10
_SHUFFLE, _STEP, _VALIDATE, _SAMPLE = range(4)  # draw numbers of the run's key
_SOLVER, _STEPS, _GUIDANCE = "dpmpp_2m", 20, 1.5  # of the pictures after each epoch
_STAGES = 12  # of a strip
_COLUMNS = 10


@dataclass(frozen=True)
class DiffusionSettings:
    """What decides the result: a run resumes only where all of it is the same."""

    model: str = "diffusion"
    batch_size: int = 128
    lr: float = 2e-3
    seed: int = 0
    prediction: str = "v"
    width: int = 16


def model_of(settings: DiffusionSettings) -> Diffusion:
    flows = settings.prediction == "flow"
    schedule = FlowSchedule() if flows else NoiseSchedule(betas="cosine")
    return Diffusion.unet(
        (1, 28, 28),
        settings.width,
        schedule=schedule,
        prediction=settings.prediction,
        weighting="logit_normal" if flows else None,
        classes=_CLASSES,
        ema=0.995,
    )


def train_diffusion(
    settings: DiffusionSettings, epochs: int, out: Path, device: torch.device | str = "cpu"
) -> list[dict[str, Any]]:
    """Train until ``epochs`` are done in all, from the checkpoint in ``out`` if any, with a grid of samples and a strip
    of how they come about after each; return the history."""
    require("matplotlib.image")  # rather now than after the first epoch
    console = require("rich.console").Console(highlight=False, soft_wrap=True)
    torch.manual_seed(settings.seed)
    model = model_of(settings).to(device)
    out.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.Adam(model.denoiser.parameters(), lr=settings.lr, fused=True)
    history = _resume(out / "checkpoint.safetensors", settings, model, optimizer)
    key = random.key(settings.seed, device=device)
    shuffle, steps, validate = (random.fold_in(key, draw) for draw in (_SHUFFLE, _STEP, _VALIDATE))
    x, labels = _digits("train", device)
    held_out = _digits("validation", device)

    announce(console, out, len(history), epochs)
    with epoch_bar(console) as progress:
        task = progress.add_task("")
        for epoch in range(len(history), epochs):
            order = random.uniform(len(x), key=random.fold_in(shuffle, epoch)).argsort(stable=True)
            batches = order.split(settings.batch_size)
            progress.reset(task, total=len(batches), description=f"epoch {epoch + 1}/{epochs}")
            total = torch.zeros((), device=device)
            for index, rows in enumerate(batches):
                optimizer.zero_grad()
                own = random.fold_in(steps, epoch * len(batches) + index)
                loss = model(x[rows], labels[rows], key=own)
                loss.backward()
                optimizer.step()
                model.update_average()
                total += loss.detach() * len(rows)
                progress.advance(task)
            train_loss = finite(total.item() / len(x), epoch + 1)
            with torch.no_grad():
                validation = model(*held_out, key=validate).item()
            history.append({"epoch": epoch + 1, "train_loss": train_loss, "validation_loss": validation})
            metadata = {"settings": asdict(settings), "history": history}
            checkpoint.save(out / "checkpoint.safetensors", checkpoint.pack(model, optimizer), metadata)
            shown = torch.arange(_CLASSES * 8, device=device) % _CLASSES
            _pictures(model, shown, out, _SOLVER, _STEPS, _GUIDANCE, random.fold_in(key, _SAMPLE))
            console.print(f"epoch {epoch + 1:3d}   train loss {train_loss:.4f}   validation loss {validation:.4f}")
    console.print(f"checkpoint.safetensors, samples.png and denoising.png are in {out}")
    return history


def sample_diffusion(
    run: Path,
    out: Path,
    count: int,
    solver: str | None,
    steps: int,
    guidance: float,
    label: int | None,
    seed: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Samples [count, 1, 28, 28] of the model in ``run`` as samples.png in ``out``, and how they came about as
    denoising.png."""
    path = run / "checkpoint.safetensors"
    if not path.exists():
        raise CommandError(f"{path} is not there: python -m variate train diffusion --out {run} makes it")
    tensors, metadata = checkpoint.load(path)
    own = metadata.get("settings", {})
    if own.get("model") != "diffusion":
        raise CommandError(f"{path} is of another model: train diffusion makes one")
    model = model_of(DiffusionSettings(**own)).to(device)
    checkpoint.unpack(tensors, model, source=run)
    out.mkdir(parents=True, exist_ok=True)
    labels = torch.arange(count, device=device) % _CLASSES if label is None else torch.full((count,), label)
    return _pictures(model, labels.to(device), out, solver, steps, guidance, random.key(seed, device=device), True)


def add_sample_command(models: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    names = [name for name in SOLVERS if name != "edm"]
    command = models.add_parser(
        "diffusion",
        help="digits of a trained diffusion model",
        description="Draw digits with a model that train diffusion has made: samples.png, and denoising.png, which "
        "shows how they come about.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--run", type=Path, required=True, metavar="DIR", help="the --out of train diffusion")
    command.add_argument("--out", type=Path, default=None, metavar="DIR", help="of the pictures; the run's if left out")
    command.add_argument("--count", type=positive_int, default=100, help="digits")
    command.add_argument("--scheduler", choices=names, default=None, help="solver; dpmpp_2m if left out")
    command.add_argument("--steps", type=positive_int, default=_STEPS, help="of the solver")
    command.add_argument("--guidance", type=non_negative_float, default=_GUIDANCE, help="past the unlabelled output")
    command.add_argument("--label", type=int, choices=range(_CLASSES), default=None, help="all of them if left out")
    command.add_argument("--seed", type=seed, default=0, help="of the noise")
    command.add_argument("--threads", type=positive_int, default=None, help="CPU threads; torch's choice if left out")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    command.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> int:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = device_of(args.device)
    require("matplotlib.image")
    out = args.run if args.out is None else args.out
    how = args.count, args.scheduler, args.steps, args.guidance, args.label, args.seed
    try:
        sample_diffusion(args.run, out, *how, device)
    except ValueError as error:
        if isinstance(error, checkpoint.CheckpointError):
            raise
        raise CommandError(str(error)) from None
    print(f"samples.png and denoising.png are in {out}")
    return 0


def _digits(split: str, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and labels."""
    digits = data.mnist(split)
    return digits.images[:, None].to(device).float() / 127.5 - 1, digits.labels.to(device)


def _pictures(
    model: Diffusion,
    labels: Tensor,
    out: Path,
    solver: str | None,
    steps: int,
    guidance: float,
    key: Tensor,
    progress: bool = False,
) -> Tensor:
    chain: list[Tensor] = []
    kept: Callable[[int, Any], None] = lambda row, done: chain.append(done.denoised[:_COLUMNS])  # noqa: E731
    samples = model.sample(
        len(labels),
        solver or _SOLVER,
        steps,
        labels=labels,
        guidance=guidance,
        key=key,
        progress=progress,
        callback=kept,
    )
    write_whole(out / "samples.png", images.png(images.grid((samples[:, 0] + 1) / 2, columns=_COLUMNS)))
    stages = [round(k * (len(chain) - 1) / (_STAGES - 1)) for k in range(_STAGES - 1)]
    strip = torch.stack([*(chain[k] for k in stages), samples[:_COLUMNS]], 1)  # a digit a row, clearer to the right
    write_whole(out / "denoising.png", images.png(images.grid((strip.flatten(0, 2) + 1) / 2, columns=_STAGES)))
    return samples


def _resume(
    path: Path, settings: DiffusionSettings, model: Diffusion, optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    tensors, metadata = checkpoint.load(path)
    if changes := checkpoint.changes(metadata.get("settings", {}), asdict(settings)):
        raise CommandError(f"{path} is of another run ({changes}): use the same settings, or another --out")
    checkpoint.unpack(tensors, model, optimizer, source=path)
    return metadata["history"]
