"""A decoder's last layer and its likelihood: `variate.functional.linear` against its rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from variate.functional import linear
from variate.reference import linear as reference

from .harness import Case, Compiled, Job, Target, jobs, matches_twin

Nll = Callable[..., Tensor]


def loss_of(nll: Nll, weighted: bool) -> Nll:
    """What training differentiates: a mean, or the bound of importance-weighted samples, whose gradient differs from
    row to row."""

    def mean(*layer: Tensor) -> Tensor:
        return nll(*layer).mean()

    def bound(*layer: Tensor) -> Tensor:
        return -torch.logsumexp(-nll(*layer), 0).mean()

    return bound if weighted else mean


class Products(torch.autograd.Function):
    """The three products of a step and nothing else: no rival, but a limit."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        rows = hidden.flatten(0, -2)
        logits = rows @ weight.t()
        ctx.gradients = (logits @ weight).view(hidden.shape), logits.t() @ rows, bias
        return logits[0, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.gradients, None


def layer(samples: tuple[int, ...], batch: int, units: int, variables: int, ways: int) -> Any:
    """A setup that draws hidden units after a rectifier, a layer as nn.Linear begins it, and pixels."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        draw = {"generator": generator, "device": device}
        hidden = torch.randn(*samples, batch, units, **draw).relu()
        weight = torch.rand(variables * ways, units, **draw).mul_(2).sub_(1).div_(units**0.5)
        bias = torch.rand(variables * ways, **draw).mul_(2).sub_(1).div_(units**0.5)
        if ways == 1:
            return hidden, weight, bias, (torch.rand(batch, variables, **draw) < 0.2).float()
        return hidden, weight, bias, torch.randint(0, ways, (batch, variables), **draw)

    return setup


def case(
    samples: int,
    batch: int,
    units: int,
    variables: int,
    against: dict[str, float],
    *,
    ways: int = 1,
    weighted: bool = False,
    variant: str = "float32",
    **options: Any,
) -> Case:
    """Forward and backward of a loss; `against` is what the project promises."""
    likelihood = "bernoulli" if ways == 1 else "categorical"
    twin = getattr(reference, f"linear_{likelihood}_nll")
    stock = loss_of(twin, weighted)

    def ours(*args: Tensor) -> Tensor:
        return linear.nll(likelihood, *args, weighted=weighted)

    competitors: dict[str, Any] = {
        "ours": loss_of(ours, weighted),
        "eager": stock,
        "compile": Compiled(stock),
        "bound: products": Products.apply,
    }
    if weighted:  # for who does not say so beforehand
        competitors["ours, unannounced"] = loss_of(getattr(linear, f"linear_{likelihood}_nll"), weighted)

    def check(args: Sequence[Any], leaves: Sequence[int]) -> None:
        for mine, theirs in ((ours, twin), (loss_of(ours, weighted), stock)):  # any gradient, and the one that is timed
            matches_twin(mine, theirs, keyed=False)(args, leaves)

    rows, outputs = max(samples, 1) * batch, variables * ways
    return Case(
        family="linear",
        op=f"linear_{likelihood}_nll",
        shape=(*([samples] if samples else []), batch, units, outputs),
        setup=layer((samples,) if samples else (), batch, units, variables, ways),
        competitors=competitors,
        check=check,
        modes=("both",),
        leaves=(0, 1, 2),
        # What a step reads and writes at least: hidden and its gradient, weight and its gradient, the target.
        traffic={"both": 4 * (2 * rows * units + 2 * outputs * units + batch * variables)},
        targets=tuple(Target(name, at_least, "both") for name, at_least in against.items()),
        variant=variant,
        **options,
    )


CASES = [
    case(0, 512, 400, 784, {"eager": 1.2, "compile": 1.05}, threaded=True),
    case(50, 64, 400, 784, {"eager": 1.35, "compile": 1.2}),
    case(50, 64, 400, 784, {"eager": 1.0}, weighted=True, variant="float32, weighted"),
    case(0, 128, 400, 3072, {"eager": 1.0}),
    case(0, 64, 200, 784, {"eager": 1.0}, ways=256),
    *(
        case(0, batch, units, outputs, {"eager": 1.0}, sweep=True)
        for batch, units, outputs in [(1, 8, 8), (64, 64, 64)]
    ),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_linear(job: Job, bench: Any) -> None:
    bench(job)
