"""Relaxed and straight-through discrete samples: `functional.relaxed` against its rivals."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import OneHotCategoricalStraightThrough, RelaxedBernoulli

from variate import functional as ours
from variate.reference import relaxed as reference

from .harness import Case, Job, Target, compiled, jobs, matches_twin

MODES = ("forward", "backward", "both")
TAU = 0.7


def gumbel_softmax(logits: Tensor, hard: bool = False, **options: Any) -> Tensor:
    return ours.gumbel_softmax(logits, TAU, hard, **options)


def eager_gumbel_softmax(logits: Tensor, hard: bool = False) -> Tensor:
    """torch.nn.functional's."""
    return F.gumbel_softmax(logits, TAU, hard)


def relaxed_bernoulli(logits: Tensor, **options: Any) -> Tensor:
    return ours.relaxed_bernoulli_rsample(logits, TAU, **options)


def eager_relaxed_bernoulli(logits: Tensor) -> Tensor:
    """As people write it."""
    u = torch.rand_like(logits).clamp(1e-7, 1 - 1e-7)
    return torch.sigmoid((logits + torch.log(u) - torch.log1p(-u)) / TAU)


def distributions_relaxed_bernoulli(logits: Tensor) -> Tensor:
    """torch.distributions as it comes, argument checks on."""
    return RelaxedBernoulli(torch.tensor(TAU, device=logits.device), logits=logits).rsample()


def eager_bernoulli(logits: Tensor) -> Tensor:
    """As people write it."""
    probs = torch.sigmoid(logits)
    return (torch.rand_like(probs) < probs).to(probs.dtype) + probs - probs.detach()


def eager_categorical(logits: Tensor) -> Tensor:
    """As people write it."""
    probs = torch.softmax(logits, -1)
    drawn = F.one_hot(torch.multinomial(probs, 1).squeeze(-1), logits.shape[-1]).to(probs.dtype)
    return drawn + probs - probs.detach()


def distributions_categorical(logits: Tensor) -> Tensor:
    """torch.distributions as it comes, argument checks on."""
    return OneHotCategoricalStraightThrough(logits=logits).rsample()


def case(
    op: str,
    shape: tuple[int, int],
    function: Callable[..., Tensor],
    twin: Callable[..., Tensor],
    rivals: dict[str, Any],
    against: dict[str, float],
    dtype: torch.dtype = torch.float32,
    variant: str = "",
    reads_back: int = 1,
    draws_back: bool = False,
    exact_inputs: bool = False,
    **options: Any,
) -> Case:
    """`reads_back` tensors and the incoming gradient make the gradient; `draws_back` draws the noise again for it."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        return [torch.randn(shape, generator=generator, device=device).to(dtype)]

    elements = shape[0] * shape[1]
    forward, backward = 2 * elements * dtype.itemsize, (2 + reads_back) * elements * dtype.itemsize
    words = elements if draws_back else 0
    return Case(
        family="relaxed",
        op=op,
        shape=shape,
        setup=setup,
        competitors={"ours": function, **rivals},
        check=matches_twin(function, twin, exact_inputs=exact_inputs),
        modes=MODES,
        leaves=(0,),
        targets=tuple(Target(name, at_least, "both") for name, at_least in against.items()),
        variant=f"{str(dtype).removeprefix('torch.')}{variant}",
        traffic={"forward": forward, "backward": backward, "both": forward + backward},
        words={"forward": elements, "backward": words, "both": elements + words},
        **options,
    )


def softmax_case(*shape: int, hard: bool = False, against: dict[str, float], **options: Any) -> Case:
    eager = functools.partial(eager_gumbel_softmax, hard=True) if hard else eager_gumbel_softmax
    return case(
        "gumbel_softmax",
        (shape[0], shape[1]),
        functools.partial(gumbel_softmax, hard=hard),
        lambda logits, **given: reference.gumbel_softmax(logits, TAU, hard, **given),
        {"eager": eager, **(compiled(eager) if "compile" in against else {})},
        against,
        variant=", hard" if hard else "",
        draws_back=hard,
        **options,
    )


CASES = [
    softmax_case(4096, 64, against={"eager": 4, "compile": 3}, threaded=True),
    softmax_case(4096, 64, hard=True, against={"eager": 1, "compile": 1}),
    softmax_case(4096, 64, against={"eager": 1}, dtype=torch.bfloat16),
    softmax_case(128, 10, against={"eager": 1}),
    softmax_case(64, 8192, against={"eager": 1}),
    case(
        "relaxed_bernoulli_rsample",
        (1024, 784),
        relaxed_bernoulli,
        lambda logits, **given: reference.relaxed_bernoulli_rsample(logits, TAU, **given),
        {
            "eager": eager_relaxed_bernoulli,
            **compiled(eager_relaxed_bernoulli),
            "torch.distributions": distributions_relaxed_bernoulli,
        },
        {"eager": 1, "torch.distributions": 1},
        threaded=True,
    ),
    case(
        "bernoulli_straight_through",
        (1024, 784),
        ours.bernoulli_straight_through,
        reference.bernoulli_straight_through,
        {"eager": eager_bernoulli, **compiled(eager_bernoulli)},
        {"eager": 1},
    ),
    case(
        "categorical_straight_through",
        (4096, 64),
        ours.categorical_straight_through,
        reference.categorical_straight_through,
        {"eager": eager_categorical, "torch.distributions": distributions_categorical},
        {"eager": 1, "torch.distributions": 1},
    ),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_relaxed(job: Job, bench: Any) -> None:
    bench(job)
