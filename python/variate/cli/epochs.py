"""What every training on the digits has: what it says first, a bar for each epoch, and a loss that is a number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .._optional import require
from ._arguments import CommandError

__all__ = ["announce", "epoch_bar", "finite"]


def announce(console: Any, out: Path, done: int, epochs: int) -> None:
    """How far a training is that may have been resumed."""
    if done:
        console.print(f"resumed {out} after epoch {done}")
    if done >= epochs:
        console.print(f"nothing left to train: --epochs is {epochs}, those before the resume included")


def epoch_bar(console: Any) -> Any:
    """rich's progress bar of the batches of an epoch."""
    bars = require("rich.progress")
    return bars.Progress(
        "{task.description}",
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def finite(train_loss: float, epoch: int) -> float:
    """The loss of an epoch, or an error before it is saved."""
    if not math.isfinite(train_loss):
        raise CommandError(f"the loss of epoch {epoch} is {train_loss}: try a smaller --lr (it was not saved)")
    return train_loss
