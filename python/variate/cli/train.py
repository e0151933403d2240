"""``python -m variate train``: train on the shipped digits, with checkpoints that resume exactly."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint, random
from .._optional import require
from ..checkpoint import write_whole
from ..functional.bound import ESTIMATORS
from ..models import VAE, HierarchicalVAE
from ..models.likelihoods import LIKELIHOODS
from . import images
from ._arguments import (
    CommandError,
    device_of,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    seed,
)
from .boltzmann import HIDDEN, RBMSettings, train_rbm
from .diffusion import PREDICTIONS, DiffusionSettings, train_diffusion
from .digits import BINARISATION, KINDS, Digits, evaluate, log_likelihood
from .epochs import announce, epoch_bar, finite

__all__ = ["Settings", "add_command", "train"]

_SAMPLES = 100  # for log p(x) of each test digit


@dataclass(frozen=True)
class Settings:
    """What decides the result: a run resumes only where all of it is the same."""

    model: str = "vae"
    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 0
    likelihood: str = "bernoulli"
    samples: int = 1
    estimator: str | None = None
    beta: float = 1.0
    free_bits: float = 0.0


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    default = Settings()
    command = commands.add_parser(
        "train",
        help="train a model on the shipped MNIST digits",
        description=f"Train a model on the shipped MNIST digits. For a Bernoulli likelihood they are binarised: "
        f"{BINARISATION}. For a normal one they are grey in [0, 1], for the others 256 levels. "
        "Run the same command again with more epochs to go on from the checkpoint in DIR.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument(
        "model",
        choices=[*_MODELS, "rbm", "diffusion"],
        help=f"vae: 784-400-20; hvae: two stochastic layers, 20 and 10; rbm: a Boltzmann machine 784-{HIDDEN}, by "
        "persistent contrastive divergence; diffusion: a small U-Net that is told the labels, on grey digits",
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="checkpoint, samples and reconstructions"
    )
    command.add_argument("--epochs", type=positive_int, default=5, help="epochs in all, those before a resume included")
    command.add_argument("--batch-size", type=positive_int, default=default.batch_size, help="rows per step")
    command.add_argument(
        "--lr",
        type=positive_float,
        default=argparse.SUPPRESS,
        help=f"learning rate: Adam's, {default.lr} if left out, or {DiffusionSettings().lr} for diffusion; rbm: SGD's, "
        f"{RBMSettings().lr}",
    )
    command.add_argument("--seed", type=seed, default=default.seed, help="of parameters, order, binarisation and noise")
    command.add_argument("--likelihood", choices=list(LIKELIHOODS), default=default.likelihood, help="p(x | z)")
    command.add_argument(
        "--prediction",
        choices=PREDICTIONS,
        default=argparse.SUPPRESS,
        help=f"diffusion: what the denoiser says, {DiffusionSettings().prediction} if left out",
    )
    command.add_argument("--samples", type=positive_int, default=default.samples, help="vae: draws of z per digit")
    command.add_argument(
        "--estimator",
        choices=ESTIMATORS,
        default=default.estimator,
        help="vae: train the bound of all samples together",
    )
    command.add_argument("--beta", type=non_negative_float, default=default.beta, help="weight of the KL")
    command.add_argument(
        "--free-bits",
        type=non_negative_float,
        default=default.free_bits,
        help="KL floor per latent element, nats",
    )
    command.add_argument(
        "--log-likelihood-samples",
        type=non_negative_int,
        default=_SAMPLES,
        metavar="K",
        help="samples for log p(x) of each test digit at the end; 0 leaves it out",
    )
    command.add_argument("--threads", type=positive_int, default=None, help="CPU threads; torch's choice if left out")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    command.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> int:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = device_of(args.device)
    given = vars(args)
    if "prediction" in given and args.model != "diffusion":
        raise CommandError(f"--prediction: {args.model} does not take it; leave it out")
    if args.model == "diffusion":
        _only_for_autoencoders(args)
        own = {field.name: given[field.name] for field in fields(DiffusionSettings) if field.name in given}
        train_diffusion(DiffusionSettings(**own), args.epochs, args.out, device)
        return 0
    if args.model == "rbm":
        _only_for_autoencoders(args)
        own = {field.name: given[field.name] for field in fields(RBMSettings) if field.name in given}
        train_rbm(RBMSettings(**own), args.epochs, args.out, device)
        return 0
    settings = Settings(**{field.name: given[field.name] for field in fields(Settings) if field.name in given})
    train(settings, args.epochs, args.out, device, args.log_likelihood_samples)
    return 0


def _only_for_autoencoders(args: argparse.Namespace) -> None:
    names = ("likelihood", "samples", "estimator", "beta", "free_bits")
    default = {name: getattr(Settings(), name) for name in names} | {"log_likelihood_samples": _SAMPLES}
    for name in default:
        if getattr(args, name) != default[name]:
            raise CommandError(f"--{name.replace('_', '-')}: {args.model} does not take it; leave it out")


def _vae(settings: Settings) -> VAE:
    return VAE.mlp(
        (1, 28, 28),
        likelihood=settings.likelihood,
        samples=settings.samples,
        estimator=settings.estimator,
        beta=settings.beta,
        free_bits=settings.free_bits,
    )


def _hvae(settings: Settings) -> HierarchicalVAE:
    if settings.samples != 1 or settings.estimator is not None:
        raise ValueError("--samples, --estimator: only vae takes them")
    return HierarchicalVAE.mlp(
        (1, 28, 28), likelihood=settings.likelihood, beta=settings.beta, free_bits=settings.free_bits
    )


_MODELS: dict[str, Callable[[Settings], VAE | HierarchicalVAE]] = {"vae": _vae, "hvae": _hvae}


def train(
    settings: Settings, epochs: int, out: Path, device: torch.device | str = "cpu", samples: int = 0
) -> list[dict[str, Any]]:
    """Train until ``epochs`` are done in all, from the checkpoint in ``out`` if any; return the history. In the end
    report log p(x) from so many ``samples``, if any."""
    require("matplotlib.image")  # rather now than after the first epoch
    console = require("rich.console").Console(highlight=False, soft_wrap=True)

    torch.manual_seed(settings.seed)
    try:
        model = _MODELS[settings.model](settings).to(device)
    except ValueError as error:
        raise CommandError(str(error)) from None
    out.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    history = _resume(out / "checkpoint.safetensors", settings, model, optimizer)
    digits = Digits(settings.seed, device, KINDS.get(settings.likelihood, "levels"))
    validation, test = digits.fixed("validation"), digits.fixed("test")

    console.print(f"binarisation: {BINARISATION}" if digits.kind == "binary" else f"digits: {digits.kind}")
    announce(console, out, len(history), epochs)
    with epoch_bar(console) as progress:
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
            train_loss = finite(total.item() / sum(map(len, batches)), epoch + 1)
            elbo = evaluate(model, validation)
            history.append({"epoch": epoch + 1, "train_loss": train_loss, "validation_elbo": elbo})
            _save(out, settings, history, model, optimizer, validation)
            console.print(f"epoch {epoch + 1:3d}   train loss {train_loss:8.3f}   validation ELBO {elbo:8.3f}")
    how = "fixed binarisation, " if digits.kind == "binary" else ""
    console.print(f"test ELBO {evaluate(model, test):.3f} nats ({how}{len(history)} epochs)")
    if samples:
        console.print(f"test log p(x) {log_likelihood(model, test, samples):.3f} nats ({samples} samples per digit)")
    console.print(f"checkpoint.safetensors, samples.png and reconstructions.png are in {out}")
    return history


def _resume(
    path: Path, settings: Settings, model: VAE | HierarchicalVAE, optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    tensors, metadata = checkpoint.load(path)
    if changes := checkpoint.changes(metadata.get("settings", {}), asdict(settings)):
        raise CommandError(f"{path} is of another run ({changes}): use the same settings, or another --out")
    checkpoint.unpack(tensors, model, optimizer, source=path)
    return metadata["history"]


def _save(
    out: Path,
    settings: Settings,
    history: list[dict[str, Any]],
    model: VAE | HierarchicalVAE,
    optimizer: torch.optim.Optimizer,
    validation: Tensor,
) -> None:
    # Noise depends on the seed, epoch and step alone: settings and history are the whole generator state.
    metadata = {"settings": asdict(settings), "history": history, "binarisation": BINARISATION}
    checkpoint.save(out / "checkpoint.safetensors", checkpoint.pack(model, optimizer), metadata)
    with torch.no_grad():
        shown = validation[:64]
        samples = model.sample(128, key=random.key(settings.seed, device=validation.device))
        above, below = (images.in_unit_interval(x, model.likelihood) for x in (shown, model.reconstruct(shown)))
    write_whole(out / "samples.png", images.png(images.grid(images.in_unit_interval(samples, model.likelihood))))
    write_whole(out / "reconstructions.png", images.png(images.grid(images.side_by_side(above, below))))
