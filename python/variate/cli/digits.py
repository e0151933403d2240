"""The digits as the commands use them: binarised and shuffled by keys, so that every run can be repeated."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import data, random
from ..models import VAE, HierarchicalVAE

__all__ = ["BINARISATION", "KINDS", "Digits", "evaluate", "log_likelihood"]

# Results move by about 2 nats between kinds of binarisation, so outputs always name it.
BINARISATION = "train dynamic, one Bernoulli draw per epoch; validation and test fixed, one draw for all runs"

# What x is, by likelihood: zeros and ones, grey in [0, 1], or 256 levels.
KINDS = {"bernoulli": "binary", "normal": "grey"}

# Not the run's seed: every run is judged on the same binary images, with the same noise.
_EVALUATION_SEED = 1998

_SHUFFLE, _BINARISE, _STEP = range(3)  # draw numbers of a run's key


class Digits:
    """The digits on a device, and the streams of a run's seed.

    Binary digits are [B, 784] float32 of zeros and ones. Grey ones are images [B, 1, 28, 28], float32 in [0, 1], and
    levels the same as uint8.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", kind: str = "binary") -> None:
        self.device = torch.device(device)
        self.kind = kind
        key = random.key(seed, device=self.device)
        self._shuffle, self._binarise, self._step = (random.fold_in(key, draw) for draw in (_SHUFFLE, _BINARISE, _STEP))
        self._train = self._values("train")

    def __len__(self) -> int:
        return len(self._train)

    def epoch(self, epoch: int, batch_size: int) -> tuple[Tensor, ...]:
        """The training set, binarised anew if it is to be binary, and shuffled anew, in batches."""
        x = self._train
        if self.kind == "binary":
            x = random.bernoulli(x, key=random.fold_in(self._binarise, epoch))
        order = random.uniform(len(x), key=random.fold_in(self._shuffle, epoch)).argsort(stable=True)
        return x[order].split(batch_size)

    def step_key(self, step: int) -> Tensor:
        """The key of a training step's noise."""
        return random.fold_in(self._step, step)

    def fixed(self, split: str) -> Tensor:
        """A split, binarised once and for all if it is to be binary."""
        if self.kind != "binary":
            return self._values(split)
        key = random.key(_EVALUATION_SEED, device=self.device)
        return random.bernoulli(self._values(split), key=random.fold_in(key, 0 if split == "validation" else 1))

    def _values(self, split: str) -> Tensor:
        """uint8 levels, or grey in [0, 1], which for binary digits is the probability of a one."""
        levels = data.mnist(split).images.to(self.device)
        if self.kind == "levels":
            return levels[:, None]
        grey = levels.flatten(1).float() / 255
        return grey if self.kind == "binary" else grey.view(-1, 1, 28, 28)


@torch.no_grad()
def evaluate(model: VAE | HierarchicalVAE, x: Tensor, draws: int = 1) -> float:
    """The mean ELBO in nats over x and over ``draws`` draws of z each."""
    key = random.key(_EVALUATION_SEED, device=x.device)
    elbos = [model.elbo(x, key=random.fold_in(key, 2 + draw)).mean() for draw in range(draws)]
    return torch.stack(elbos).mean().item()


def log_likelihood(model: VAE | HierarchicalVAE, x: Tensor, samples: int) -> float:
    """The mean over x of the estimate of log p(x) from so many samples each, in nats."""
    return model.log_likelihood(x, samples, key=random.key(_EVALUATION_SEED, device=x.device)).mean().item()
