"""Likelihood terms of the evidence lower bound: `variate.functional.elbo` against its rivals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli

from variate import functional as ours
from variate.reference import elbo as reference

from .harness import Case, Job, Target, compiled, jobs, matches_twin

MODES = ("forward", "backward", "both")


def images(rows: int, columns: int, dtype: torch.dtype, target: torch.dtype) -> Any:
    """A setup that draws logits and binary pixels, a fifth of them on."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        logits = torch.randn(rows, columns, generator=generator, device=device).mul_(3).to(dtype)
        pixels = torch.rand(rows, columns, generator=generator, device=device) < 0.2
        return logits, pixels.to(target)

    return setup


def eager(logits: Tensor, target: Tensor) -> Tensor:
    """As people write it; bytes become floats first, since torch takes no others."""
    target = target.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)


def expert(logits: Tensor, target: Tensor) -> Tensor:
    """Softplus and an inner product: no array of the terms is kept."""
    return F.softplus(logits).sum(1) - torch.linalg.vecdot(logits, target.to(logits.dtype))


def distributions(logits: Tensor, target: Tensor) -> Tensor:
    """torch.distributions as it comes, argument checks on."""
    return -Bernoulli(logits=logits).log_prob(target.to(logits.dtype)).sum(1)


def case(
    rows: int,
    columns: int,
    against: dict[str, float] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    target: torch.dtype | None = None,
    compilers: bool = False,
    **options: Any,
) -> Case:
    """`bernoulli_nll` at one shape; `against` is what the project promises, forward and backward together."""
    target = target or dtype
    promises = [Target(name, at_least, "both") for name, at_least in (against or {}).items()]
    elements = rows * columns
    if elements >= 2**24:
        promises += [Target("bound: copy", 0.85, mode, device="cuda") for mode in MODES]
    if compilers:
        promises += [Target("compile", 1.0, mode, device="cuda") for mode in MODES]
    if options.get("threaded"):
        promises.append(Target("one thread", 1.8, "both", threads=2))
    names = [str(kind).removeprefix("torch.") for kind in (dtype, target)]
    forward = elements * (dtype.itemsize + target.itemsize) + 4 * rows
    backward = elements * (2 * dtype.itemsize + target.itemsize) + 4 * rows
    return Case(
        family="elbo",
        op="bernoulli_nll",
        shape=(rows, columns),
        setup=images(rows, columns, dtype, target),
        competitors={
            "ours": ours.bernoulli_nll,
            "eager": eager,
            "expert": expert,
            **(compiled(eager) if compilers else {}),
            "torch.distributions": distributions,
        },
        check=matches_twin(ours.bernoulli_nll, reference.bernoulli_nll, keyed=False),
        modes=MODES,
        leaves=(0,),
        traffic={"forward": forward, "backward": backward, "both": forward + backward},
        targets=tuple(promises),
        variant=names[0] if dtype == target else f"{names[0]}, {names[1]} target",
        **options,
    )


CASES = [
    case(1024, 784, {"eager": 3, "compile": 2}, compilers=True),
    case(2048, 784, threaded=True),
    case(1024, 784, {"eager": 1.0}, target=torch.uint8, compilers=True),
    case(1024, 784, {"eager": 1.0}, dtype=torch.bfloat16, compilers=True),
    case(1024, 784, {"eager": 1.0}, dtype=torch.bfloat16, target=torch.uint8),
    *(
        case(rows, columns, {"eager": 1.0}, sweep=True)
        for rows, columns in [
            (1, 1),
            (4, 4),
            (16, 8),
            (64, 16),
            (128, 128),
            (512, 256),
            (1024, 512),
            (4096, 1024),
        ]
    ),
    case(16384, 1024, compilers=True, devices=("cuda",)),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_elbo(job: Job, bench: Any) -> None:
    bench(job)
