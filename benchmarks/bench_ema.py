"""Exponential moving averages of a model's parameters: `functional.ema` against its rivals."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from variate import functional as ours

from .harness import Case, Compiled, Job, Target, jobs

DECAY = 0.9999


def shapes_of(width: int, blocks: int) -> list[tuple[int, ...]]:
    """A small U-Net's: convolutions, their biases and the norms between them."""
    one = [(width, width, 3, 3), (width,), (width,), (width,), (width, width), (width,)]
    return one * blocks


def parameters(width: int, blocks: int) -> Any:
    def setup(device: torch.device) -> Sequence[Any]:
        generator = torch.Generator(device).manual_seed(1)

        def draw() -> list[Tensor]:
            return [torch.randn(shape, generator=generator, device=device) for shape in shapes_of(width, blocks)]

        return [draw(), draw()]

    return setup


def fused(averages: list[Tensor], values: list[Tensor]) -> None:
    ours.ema_update_(averages, values, DECAY)


def eager(averages: list[Tensor], values: list[Tensor]) -> None:
    """As people write it: a loop of lerp_."""
    for average, value in zip(averages, values, strict=True):
        average.lerp_(value, 1 - DECAY)


def expert(averages: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_lerp_(averages, values, 1 - DECAY)


class Diffusers:
    """diffusers.training_utils.EMAModel.step, with or without its foreach."""

    def __init__(self, foreach: bool) -> None:
        self.foreach = foreach
        self.models: dict[int, Any] = {}

    def __call__(self, averages: list[Tensor], values: list[Tensor]) -> None:
        if id(values) not in self.models:
            from diffusers.training_utils import EMAModel

            for value in values:
                value.requires_grad_()  # else it copies
            self.models = {id(values): EMAModel(values, decay=DECAY, foreach=self.foreach)}
        self.models[id(values)].step(values)


def checked(args: Sequence[Any], leaves: Sequence[int]) -> None:
    averages, values = args
    found = [average.clone() for average in averages]
    fused(found, values)
    for after, before, value in zip(found, averages, values, strict=True):
        exact = before.double() * DECAY + value.double() * (1 - DECAY)
        torch.testing.assert_close(after.double(), exact, rtol=2.0**-23, atol=2.0**-22)


def model(width: int, blocks: int) -> Case:
    shapes = shapes_of(width, blocks)
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    peers = {"diffusers": Diffusers(False), "diffusers foreach": Diffusers(True)}
    return Case(
        family="ema",
        op="ema_update_",
        shape=(len(shapes), elements),
        setup=parameters(width, blocks),
        competitors={
            "ours": fused,
            "eager": eager,
            "expert": expert,
            "compile": Compiled(eager),
            **(peers if importlib.util.find_spec("diffusers") else {}),
        },
        check=checked,
        traffic={"forward": 12 * elements},
        targets=(Target("eager", 1.0, "forward"), Target("diffusers", 1.0, "forward")),
        threaded=width > 64,
    )


CASES = [model(16, 12), model(64, 24), model(128, 24)]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_ema(job: Job, bench: Any) -> None:
    bench(job)
