"""Real data that ships with the package, so that a first run needs no download."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Digits", "mnist"]

_SPLITS = {
    "train": slice(0, 8000),
    "validation": slice(8000, 9000),
    "test": slice(9000, 10000),
    "all": slice(0, 10000),
}


class Digits(NamedTuple):
    """Images uint8 [N, 28, 28], 0 to 255, and labels int64 [N], 0 to 9."""

    images: Tensor
    labels: Tensor


def mnist(split: str = "train") -> Digits:
    """Ten thousand MNIST digits: 8,000 to train, 1,000 to validate, 1,000 to test.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"``, or ``"all"`` in that order.

    Returns:
        ``Digits(images, labels)``: uint8 [N, 28, 28] and int64 [N], fresh tensors on the CPU.

    Raises:
        ValueError: ``split`` is none of these.

    Source: LeCun, Cortes and Burges, CC BY-SA 3.0; ``README.md`` beside this file has the attribution.
    """
    if split not in _SPLITS:
        raise ValueError(f"split: expected one of {', '.join(map(repr, _SPLITS))}, got {split!r}")
    rows = _SPLITS[split]
    with (
        files(__name__).joinpath("mnist10k.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        images, labels = arrays["images"][rows], arrays["labels"][rows]
    return Digits(torch.tensor(images, device="cpu"), torch.tensor(labels, dtype=torch.int64, device="cpu"))
