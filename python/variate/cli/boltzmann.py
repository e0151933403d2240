"""``python -m variate train rbm``: a restricted Boltzmann machine on the binary digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .. import checkpoint, random
from .._optional import require
from ..checkpoint import write_whole
from ..functional import LogPartition
from ..models import RBM
from . import images
from ._arguments import CommandError
from .digits import BINARISATION, Digits

__all__ = ["HIDDEN", "RBMSettings", "train_rbm"]

HIDDEN = 500

_FIT, _SAMPLE, _PARTITION = range(3)  # draw numbers of the run's key
_BETAS, _CHAINS = 2000, 256  # of annealed importance sampling
_SHOWN = 64


@dataclass(frozen=True)
class RBMSettings:
    """What decides the result: a run resumes only where all of it is the same."""

    batch_size: int = 128
    lr: float = 0.05
    seed: int = 0
    steps: int = 5


def train_rbm(settings: RBMSettings, epochs: int, out: Path, device: torch.device | str = "cpu") -> LogPartition:
    """Train 784-500 by persistent contrastive divergence until `epochs` are done in all, from the checkpoint in `out`
    if any, with a picture of its filters and of its samples after each; return the estimate of log Z in the end."""
    require("matplotlib.image")  # rather now than after the first epoch
    console = require("rich.console").Console(highlight=False, soft_wrap=True)
    torch.manual_seed(settings.seed)
    digits = Digits(settings.seed, device)
    model = RBM(784, HIDDEN, method="pcd", steps=settings.steps).to(device)
    with torch.no_grad():  # the log odds of a pixel, which else take the first epochs
        mean = digits.epoch(0, len(digits))[0].mean(0)
        model.visible_bias.copy_(mean.clamp(0.01, 0.99).logit())
    key = random.key(settings.seed, device=device)
    key_of_fit = random.fold_in(key, _FIT)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "checkpoint.safetensors"
    resumed = checkpoint.load(path).tensors if path.exists() else {}
    if "key" in resumed and not resumed["key"].equal(key_of_fit.cpu()):
        raise CommandError(f"{path} is of another run (another --seed): use the same settings, or another --out")
    console.print(f"binarisation: {BINARISATION}")
    for epoch in range(epochs):
        (data,) = digits.epoch(epoch, len(digits))
        history = model.fit(
            data,
            epochs=epoch + 1,
            batch_size=settings.batch_size,
            lr=settings.lr,
            checkpoint_path=path,
            key=key_of_fit,
        )
        if history:
            _picture(model, data[:_SHOWN], out, random.fold_in(key, _SAMPLE))
            error = history[-1]["reconstruction"]
            console.print(f"epoch {epoch + 1:3d}   reconstruction error {error:.4f}")
    test = digits.fixed("test")
    found = model.log_partition(_BETAS, _CHAINS, base_bias=model.base_bias(test), key=random.fold_in(key, _PARTITION))
    with torch.no_grad():
        log_likelihood = (-model.free_energy(test).double() - found.log_z).mean().item()
    console.print(
        f"test log p(x) {log_likelihood:.2f} nats (fixed binarisation); log Z {found.log_z.item():.2f} "
        f"+- {found.standard_error.item():.2f} by {_BETAS} steps of {_CHAINS} annealed chains, "
        f"effective sample size {found.effective_sample_size.item():.1f}"
    )
    console.print(f"checkpoint.safetensors, filters.png and samples.png are in {out}")
    return found


def _picture(model: RBM, start: torch.Tensor, out: Path, key: torch.Tensor) -> None:
    """The weights of the first hidden units, mid grey being 0, and the means of what chains have come to that started
    at digits: from independent units they would all end in the same deep valley."""
    filters = model.weight.detach()[:, :_SHOWN].t().reshape(-1, 28, 28)
    write_whole(out / "filters.png", images.png(images.grid(0.5 + filters / (2 * filters.abs().max()))))
    samples = model.sample(len(start), steps=1000, start=start, means=True, key=key).view(-1, 28, 28)
    write_whole(out / "samples.png", images.png(images.grid(samples)))
