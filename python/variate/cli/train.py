"""``python -m variate train vae``: train on the shipped digits, with checkpoints that resume exactly."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint, random
from .._optional import require
from ..checkpoint import write_whole
from ..models import VAE
from . import images
from ._arguments import CommandError, non_negative_float, positive_float, positive_int, seed
from .digits import BINARISATION, Digits, evaluate

__all__ = ["Settings", "add_command", "train"]


@dataclass(frozen=True)
class Settings:
    """What decides the result: a run resumes only where all of it is the same."""

    model: str = "vae"
    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 0
    beta: float = 1.0
    free_bits: float = 0.0


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    default = Settings()
    command = commands.add_parser(
        "train",
        help="train a model on the shipped MNIST digits",
        description=f"Train a model on the shipped MNIST digits. Binarisation: {BINARISATION}. "
        "Run the same command again with more epochs to go on from the checkpoint in DIR.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("model", choices=["vae"], help="vae: 784-400-20, Bernoulli likelihood")
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="checkpoint, samples and reconstructions"
    )
    command.add_argument("--epochs", type=positive_int, default=5, help="epochs in all, those before a resume included")
    command.add_argument("--batch-size", type=positive_int, default=default.batch_size, help="rows per step")
    command.add_argument("--lr", type=positive_float, default=default.lr, help="Adam's learning rate")
    command.add_argument("--seed", type=seed, default=default.seed, help="of parameters, order, binarisation and noise")
    command.add_argument("--beta", type=non_negative_float, default=default.beta, help="weight of the KL")
    command.add_argument(
        "--free-bits",
        type=non_negative_float,
        default=default.free_bits,
        help="KL floor per latent element, nats",
    )
    command.add_argument("--threads", type=positive_int, default=None, help="CPU threads; torch's choice if left out")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    command.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> int:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        device = torch.device(args.device)
    except RuntimeError:
        raise CommandError(f"--device: {args.device!r} is no device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device: torch finds no CUDA device; try --device cpu")
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    train(settings, args.epochs, args.out, device)
    return 0


def train(settings: Settings, epochs: int, out: Path, device: torch.device | str = "cpu") -> list[dict[str, Any]]:
    """Train until ``epochs`` are done in all, from the checkpoint in ``out`` if any; return the history."""
    progress_bar = require("rich.progress")
    require("matplotlib.image")  # rather now than after the first epoch
    console = require("rich.console").Console(highlight=False, soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(settings.seed)
    model = VAE.mlp(beta=settings.beta, free_bits=settings.free_bits).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    history = _resume(out / "checkpoint.safetensors", settings, model, optimizer)
    digits = Digits(settings.seed, device)
    validation, test = digits.fixed("validation"), digits.fixed("test")

    console.print(f"binarisation: {BINARISATION}")
    if history:
        console.print(f"resumed {out} after epoch {len(history)}")
    if len(history) >= epochs:
        console.print(f"nothing left to train: --epochs is {epochs}, those before the resume included")
    with progress_bar.Progress(
        "{task.description}",
        progress_bar.BarColumn(),
        progress_bar.MofNCompleteColumn(),
        progress_bar.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("")
        for epoch in range(len(history), epochs):
            batches = digits.epoch(epoch, settings.batch_size)
            progress.reset(task, total=len(batches), description=f"epoch {epoch + 1}/{epochs}")
            total = torch.zeros((), device=device)
            for index, x in enumerate(batches):
                optimizer.zero_grad()
                loss = model(x, key=digits.step_key(epoch * len(batches) + index))
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(x)
                progress.advance(task)
            train_loss = total.item() / sum(map(len, batches))
            if not math.isfinite(train_loss):
                raise CommandError(
                    f"the loss of epoch {epoch + 1} is {train_loss}: try a smaller --lr (it was not saved)"
                )
            elbo = evaluate(model, validation)
            history.append({"epoch": epoch + 1, "train_loss": train_loss, "validation_elbo": elbo})
            _save(out, settings, history, model, optimizer, validation)
            console.print(f"epoch {epoch + 1:3d}   train loss {train_loss:8.3f}   validation ELBO {elbo:8.3f}")
    console.print(f"test ELBO {evaluate(model, test):.3f} nats (fixed binarisation, {len(history)} epochs)")
    console.print(f"checkpoint.safetensors, samples.png and reconstructions.png are in {out}")
    return history


def _resume(path: Path, settings: Settings, model: VAE, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    tensors, metadata = checkpoint.load(path)
    saved, wanted = metadata.get("settings", {}), asdict(settings)
    differing = [name for name in saved.keys() | wanted if saved.get(name) != wanted.get(name)]
    if differing:
        changes = ", ".join(f"{name} {saved.get(name)!r}, here {wanted.get(name)!r}" for name in sorted(differing))
        raise CommandError(f"{path} is of another run ({changes}): use the same settings, or another --out")
    checkpoint.unpack(tensors, model, optimizer, source=path)
    return metadata["history"]


def _save(
    out: Path,
    settings: Settings,
    history: list[dict[str, Any]],
    model: VAE,
    optimizer: torch.optim.Optimizer,
    validation: Tensor,
) -> None:
    # Noise depends on the seed, epoch and step alone: settings and history are the whole generator state.
    metadata = {"settings": asdict(settings), "history": history, "binarisation": BINARISATION}
    checkpoint.save(out / "checkpoint.safetensors", checkpoint.pack(model, optimizer), metadata)
    with torch.no_grad():
        shown = validation[:64]
        samples = model.sample(128, key=random.key(settings.seed, device=validation.device))
        pairs = images.side_by_side(shown.view(-1, 28, 28), model.reconstruct(shown).view(-1, 28, 28))
    write_whole(out / "samples.png", images.png(images.grid(samples.view(-1, 28, 28))))
    write_whole(out / "reconstructions.png", images.png(images.grid(pairs)))
