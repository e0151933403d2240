"""Importance weighted bounds: `variate.functional.importance_weighted_bound` against its rivals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from variate import functional as ours
from variate.reference import bound as reference

from .harness import Case, Job, compiled, jobs, matches_twin

MODES = ("forward", "both")


def log_weights(samples: int, data: int) -> Any:
    """A setup that draws log weights as a trained model has them."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        return (torch.randn(samples, data, generator=generator, device=device).mul_(5).sub_(90),)

    return setup


def bound(log_weight: Tensor) -> Tensor:
    return ours.importance_weighted_bound(log_weight)[0]


def twin(log_weight: Tensor) -> Tensor:
    return reference.importance_weighted_bound(log_weight)[0]


def eager(log_weight: Tensor) -> Tensor:
    """The bound and the normalised weights, as people write them."""
    bound = torch.logsumexp(log_weight, 0) - math.log(log_weight.shape[0])
    torch.softmax(log_weight.detach(), 0)
    return bound


def vimco(log_weight: Tensor) -> Tensor:
    return ours.importance_weighted_bound(log_weight, "vimco", log_q=log_weight)[0]


def vimco_eager(log_weight: Tensor) -> Tensor:
    """The leave-one-out baselines through one array [K, K, B], as people write them."""
    return reference.importance_weighted_bound(log_weight, "vimco", log_q=log_weight)[0]


def case(samples: int, data: int, op: str = "importance_weighted_bound", **options: Any) -> Case:
    function, rival = (bound, eager) if op == "importance_weighted_bound" else (vimco, vimco_eager)
    elements = samples * data
    return Case(
        family="bound",
        op=op,
        shape=(samples, data),
        setup=log_weights(samples, data),
        competitors={"ours": function, "eager": rival, **({} if "sweep" in options else compiled(rival))},
        check=matches_twin(function, twin if function is bound else vimco_eager, keyed=False),
        modes=MODES,
        leaves=(0,),
        traffic={"forward": 8 * elements, "both": 16 * elements},
        **options,
    )


CASES = [
    case(50, 128),
    case(50, 128, "importance_weighted_bound, VIMCO"),
    *(case(samples, data, sweep=True) for samples, data in [(1, 128), (5, 512), (50, 1024), (5000, 128)]),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_bound(job: Job, bench: Any) -> None:
    bench(job)
