"""The terms of the evidence lower bound: `variate.functional.elbo` against its rivals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from variate import functional as ours
from variate.reference import elbo as reference

from .harness import Case, Compiled, Job, Target, compiled, jobs, matches_twin

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


def parameters(*shape: int, count: int) -> Any:
    """A setup that draws `count` tensors."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        return [torch.randn(shape, generator=generator, device=device).mul_(0.5) for _ in range(count)]

    return setup


def classes(*shape: int) -> Any:
    """A setup that draws logits, and a category for each of their last dimension."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        logits = torch.randn(shape, generator=generator, device=device)
        return logits, torch.randint(shape[-1], shape[:-1], generator=generator, device=device)

    return setup


def eager_kl(mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> Tensor:
    """As people write it: one exponential of each variance."""
    squared = (mean - prior_mean).pow(2)
    terms = prior_log_var - log_var + (log_var.exp() + squared) / prior_log_var.exp() - 1
    return 0.5 * terms.sum(dim=1)


def expert_kl(mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> Tensor:
    """Exponentials of differences, and the constant outside the sum."""
    ratio, precision = log_var - prior_log_var, torch.exp(-prior_log_var)
    terms = torch.addcmul(torch.exp(ratio) - ratio, (mean - prior_mean).square(), precision)
    return terms.sum(1).sub(mean.shape[1]).mul(0.5)


def distributions_kl(mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> Tensor:
    """torch.distributions as it comes, argument checks on."""
    posterior = Normal(mean, torch.exp(0.5 * log_var))
    return kl_divergence(posterior, Normal(prior_mean, torch.exp(0.5 * prior_log_var))).sum(1)


def eager_normal(mean: Tensor, log_var: Tensor, target: Tensor) -> Tensor:
    """As people write it."""
    return 0.5 * (math.log(2 * math.pi) + log_var + (target - mean).pow(2) / log_var.exp()).sum(1)


def expert_normal(mean: Tensor, log_var: Tensor, target: Tensor) -> Tensor:
    """A product in place of the quotient, and the constant outside the sum."""
    terms = torch.addcmul(log_var, (target - mean).square(), torch.exp(-log_var))
    return terms.sum(1).add(mean.shape[1] * math.log(2 * math.pi)).mul(0.5)


def distributions_normal(mean: Tensor, log_var: Tensor, target: Tensor) -> Tensor:
    """torch.distributions as it comes, argument checks on."""
    return -Normal(mean, torch.exp(0.5 * log_var)).log_prob(target).sum(1)


def eager_bernoulli_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """As people write it, with logarithms that do not overflow."""
    p = torch.sigmoid(logits)
    on = p * (F.logsigmoid(logits) - F.logsigmoid(prior_logits))
    off = (1 - p) * (F.logsigmoid(-logits) - F.logsigmoid(-prior_logits))
    return (on + off).sum(1)


def distributions_bernoulli_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """torch.distributions as it comes, argument checks on."""
    return kl_divergence(Bernoulli(logits=logits), Bernoulli(logits=prior_logits)).sum(1)


def eager_categorical(logits: Tensor, target: Tensor) -> Tensor:
    """As people write it: F.cross_entropy of each position."""
    nll = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    return nll.view(target.shape).sum(1)


def distributions_categorical(logits: Tensor, target: Tensor) -> Tensor:
    """torch.distributions as it comes, argument checks on."""
    return -Categorical(logits=logits).log_prob(target).sum(1)


def eager_categorical_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """As people write it."""
    log_p, log_r = F.log_softmax(logits, -1), F.log_softmax(prior_logits, -1)
    return F.kl_div(log_r, log_p, reduction="none", log_target=True).sum((1, 2))


def rivals(
    op: str,
    shape: tuple[int, ...],
    setup: Any,
    competitors: Mapping[str, Callable[..., Any]],
    against: dict[str, float],
    traffic: tuple[int, int],
    *,
    leaves: tuple[int, ...],
    **options: Any,
) -> Case:
    """`op` in float32 against its eager form, which is also compiled. `traffic` is the values that perfect forward and
    backward passes move. The first 64 samples are checked: some cases take gigabytes."""
    function, twin = getattr(ours, op), getattr(reference, op)
    check = matches_twin(function, twin, keyed=False)
    promises = [Target(name, at_least, "both") for name, at_least in against.items()]
    promises += [Target("compile", 1.0, mode, device="cuda") for mode in MODES]
    forward, backward = (4 * values for values in traffic)
    return Case(
        family="elbo",
        op=op,
        shape=shape,
        setup=setup,
        competitors={"ours": function, **competitors, "compile": Compiled(competitors["eager"])},
        check=lambda args, leaves: check([arg[:64] for arg in args], leaves),
        modes=MODES,
        leaves=leaves,
        traffic={"forward": forward, "backward": backward, "both": forward + backward},
        targets=tuple(promises),
        **options,
    )


def categorical_case(rows: int, columns: int, ways: int, against: dict[str, float], **options: Any) -> Case:
    """`categorical_nll`: the forward pass reads the logits, the backward pass reads them and writes as much."""
    values = rows * columns * ways
    return rivals(
        "categorical_nll",
        (rows, columns, ways),
        classes(rows, columns, ways),
        {"eager": eager_categorical, "torch.distributions": distributions_categorical},
        against,
        (values, 2 * values),
        leaves=(0,),
        **options,
    )


IMAGE = 1024 * 784

CASES = [
    rivals(
        "normal_kl",
        (1024, 784),
        parameters(1024, 784, count=4),
        {"eager": eager_kl, "expert": expert_kl, "torch.distributions": distributions_kl},
        {"eager": 4, "compile": 1},
        (4 * IMAGE, 8 * IMAGE),
        leaves=(0, 1, 2, 3),
        variant="two normals",
    ),
    rivals(
        "normal_nll",
        (1024, 784),
        parameters(1024, 784, count=3),
        {"eager": eager_normal, "expert": expert_normal, "torch.distributions": distributions_normal},
        {"eager": 4, "compile": 1},
        (3 * IMAGE, 5 * IMAGE),
        leaves=(0, 1),
    ),
    rivals(
        "bernoulli_kl",
        (1024, 784),
        parameters(1024, 784, count=2),
        {"eager": eager_bernoulli_kl, "torch.distributions": distributions_bernoulli_kl},
        {"eager": 1.0},
        (2 * IMAGE, 4 * IMAGE),
        leaves=(0, 1),
    ),
    categorical_case(1024, 784, 256, {"eager": 3, "compile": 2}, quick=False),
    categorical_case(64, 784, 256, {"eager": 1.0}),
    rivals(
        "categorical_kl",
        (1024, 32, 64),
        parameters(1024, 32, 64, count=2),
        {"eager": eager_categorical_kl},
        {"eager": 1.0},
        (2 * 1024 * 32 * 64, 4 * 1024 * 32 * 64),
        leaves=(0, 1),
    ),
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
