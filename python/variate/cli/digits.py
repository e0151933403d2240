"""The digits as the commands use them: binarised and shuffled by keys, so that every run can be repeated."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import data, random
from ..models import VAE

__all__ = ["BINARISATION", "Digits", "evaluate"]

# Results move by about 2 nats between kinds of binarisation, so outputs always name it.
BINARISATION = "train dynamic, one Bernoulli draw per epoch; validation and test fixed, one draw for all runs"

# Not the run's seed: every run is judged on the same binary images, with the same noise.
_EVALUATION_SEED = 1998

_SHUFFLE, _BINARISE, _STEP = range(3)  # draw numbers of a run's key


class Digits:
    """The digits on a device, and the streams of a run's seed."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        key = random.key(seed, device=self.device)
        self._shuffle, self._binarise, self._step = (random.fold_in(key, draw) for draw in (_SHUFFLE, _BINARISE, _STEP))
        self._train = self._grey("train")

    def __len__(self) -> int:
        return len(self._train)

    def epoch(self, epoch: int, batch_size: int) -> tuple[Tensor, ...]:
        """The training set binarised and shuffled anew, in batches [B, 784] float32 of zeros and ones."""
        binary = random.bernoulli(self._train, key=random.fold_in(self._binarise, epoch))
        order = random.uniform(len(binary), key=random.fold_in(self._shuffle, epoch)).argsort(stable=True)
        return binary[order].split(batch_size)

    def step_key(self, step: int) -> Tensor:
        """The key of a training step's noise."""
        return random.fold_in(self._step, step)

    def fixed(self, split: str) -> Tensor:
        """A split binarised once and for all, [N, 784] float32."""
        key = random.key(_EVALUATION_SEED, device=self.device)
        return random.bernoulli(self._grey(split), key=random.fold_in(key, 0 if split == "validation" else 1))

    def _grey(self, split: str) -> Tensor:
        return data.mnist(split).images.to(self.device).flatten(1).float() / 255


@torch.no_grad()
def evaluate(model: VAE, x: Tensor, draws: int = 1) -> float:
    """The mean ELBO in nats over x and over ``draws`` draws of z each."""
    key = random.key(_EVALUATION_SEED, device=x.device)
    elbos = [model.elbo(x, key=random.fold_in(key, 2 + draw)).mean() for draw in range(draws)]
    return torch.stack(elbos).mean().item()
