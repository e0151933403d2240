"""What the commands share: their error, and the types of their arguments."""

from __future__ import annotations

import argparse

import torch


class CommandError(Exception):
    """A command cannot go on; the message is for the user."""


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def non_negative_int(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected at least 0, got {value}")
    return value


def non_negative_float(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a finite number, at least 0, got {text}")
    return value


def positive_float(text: str) -> float:
    value = non_negative_float(text)
    if value == 0:
        raise argparse.ArgumentTypeError("expected more than 0")
    return value


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected 0 to 2^63 - 1, got {text}")
    return value


def device_of(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise CommandError(f"--device: {text!r} is no device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device: torch finds no CUDA device; try --device cpu")
    return device
