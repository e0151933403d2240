"""Patched torch.distributions against torch.distributions as shipped, argument checks on, built at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributions as D
from torch import Tensor

import variate

from .harness import Case, Job, Target, jobs

SMALL, LARGE = (128, 64), (1024, 784)


class Patched:
    """A function under variate.patch.torch_distributions(), which the harness enters off the clock."""

    context = staticmethod(variate.patch.torch_distributions)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Tensor) -> Any:
        return self.function(*args)


def parameters(shape: tuple[int, ...], scales: Sequence[int], bits: Sequence[int], count: int) -> Any:
    """Standard normals; those of `scales` exponentiated, those of `bits` rounded to 0 or 1."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        normals = [torch.randn(shape, generator=generator, device=device) for _ in range(count)]
        return [
            x.mul(0.5).exp() if index in scales else (x > 0).float() if index in bits else x
            for index, x in enumerate(normals)
        ]

    return setup


def rsample_and_kl(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> tuple[Tensor, Tensor]:
    posterior, prior = D.Normal(loc, scale), D.Normal(prior_loc, prior_scale)
    return posterior.rsample(), D.kl_divergence(posterior, prior)


def rsample_and_event_kl(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> tuple[Tensor, Tensor]:
    posterior, prior = D.Independent(D.Normal(loc, scale), 1), D.Independent(D.Normal(prior_loc, prior_scale), 1)
    return posterior.rsample(), D.kl_divergence(posterior, prior)


def deterministic(function: Callable[..., Tensor]) -> Callable[[Sequence[Any], Sequence[int]], None]:
    """A check of values and gradients against the same classes in float64, which the patch leaves to torch."""

    def check(args: Sequence[Any], leaves: Sequence[int]) -> None:
        with variate.patch.torch_distributions():
            found, exact = (_values_and_gradients(function, args, leaves, dtype) for dtype in (None, torch.float64))
        for ours, wide in zip(found, exact, strict=True):
            # 64 float32 roundings of the largest value cover a sum over a row.
            bound = 64 * torch.finfo(torch.float32).eps * max(wide.abs().max().item(), 1.0)
            assert (ours.double() - wide).abs().max().item() <= bound

    return check


def _values_and_gradients(
    function: Callable[..., Tensor], args: Sequence[Tensor], leaves: Sequence[int], dtype: torch.dtype | None
) -> list[Tensor]:
    inputs = [arg.detach().to(dtype or arg.dtype).clone().requires_grad_(i in leaves) for i, arg in enumerate(args)]
    output = function(*inputs)
    wanted = [inputs[index] for index in leaves]
    return [output.detach(), *(torch.autograd.grad(output.sum(), wanted) if wanted else ())]


def draws(
    function: Callable[..., Any], mean: float, deviation: float
) -> Callable[[Sequence[Any], Sequence[int]], None]:
    """A check of the mean of the draws at parameters of 0 and 1: within 6 deviations."""

    def check(args: Sequence[Any], leaves: Sequence[int]) -> None:
        inputs = [torch.zeros_like(args[0]), *(torch.ones_like(arg) for arg in args[1:])]
        with variate.patch.torch_distributions():
            out = function(*inputs)
        drawn = (out[0] if isinstance(out, tuple) else out).double()
        assert abs(drawn.mean().item() - mean) <= 6 * deviation / drawn.numel() ** 0.5

    return check


def cases(
    op: str,
    function: Callable[..., Any],
    check: Callable[[Sequence[Any], Sequence[int]], None],
    *,
    count: int = 2,
    scales: Sequence[int] = (1,),
    bits: Sequence[int] = (),
    leaves: tuple[int, ...] = (0, 1),
    targets: tuple[Target, ...] = (),
) -> list[Case]:
    """The function at both shapes; the targets are those of the small one."""
    return [
        Case(
            family="distributions",
            op=op,
            shape=shape,
            setup=parameters(shape, scales, bits, count),
            competitors={"ours": Patched(function), "torch.distributions": function},
            check=check,
            modes=("both",) if leaves else ("forward",),
            leaves=leaves,
            targets=targets if shape == SMALL else (),
        )
        for shape in (SMALL, LARGE)
    ]


def normal_log_prob(loc: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    return D.Normal(loc, scale).log_prob(x)


def log_normal_log_prob(loc: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    return D.LogNormal(loc, scale).log_prob(x)


def independent_log_prob(loc: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    return D.Independent(D.Normal(loc, scale), 1).log_prob(x)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    return D.Bernoulli(logits=logits).log_prob(x)


def bernoulli_kl(logits: Tensor, other: Tensor) -> Tensor:
    return D.kl_divergence(D.Bernoulli(logits=logits), D.Bernoulli(logits=other))


def bernoulli_entropy(logits: Tensor) -> Tensor:
    return D.Bernoulli(logits=logits).entropy()


def normal_rsample(loc: Tensor, scale: Tensor) -> Tensor:
    return D.Normal(loc, scale).rsample()


def laplace_rsample(loc: Tensor, scale: Tensor) -> Tensor:
    return D.Laplace(loc, scale).rsample()


def gumbel_rsample(loc: Tensor, scale: Tensor) -> Tensor:
    return D.Gumbel(loc, scale).rsample()


def log_normal_rsample(loc: Tensor, scale: Tensor) -> Tensor:
    return D.LogNormal(loc, scale).rsample()


def bernoulli_sample(logits: Tensor) -> Tensor:
    return D.Bernoulli(logits=logits).sample()


def categorical_sample(logits: Tensor) -> Tensor:
    return D.Categorical(logits=logits).sample()


def one_hot_sample(logits: Tensor) -> Tensor:
    return D.OneHotCategorical(logits=logits).sample()


def straight_through(logits: Tensor) -> Tensor:
    return D.OneHotCategoricalStraightThrough(logits=logits).rsample()


def relaxed_bernoulli_rsample(logits: Tensor) -> Tensor:
    return D.RelaxedBernoulli(logits.new_tensor(0.5), logits=logits).rsample()


def relaxed_one_hot_rsample(logits: Tensor) -> Tensor:
    return D.RelaxedOneHotCategorical(logits.new_tensor(0.5), logits=logits).rsample()


EULER = 0.5772156649
PRIOR = {"count": 4, "scales": (1, 3)}
DATA = {"count": 3}
LOGITS = {"count": 1, "scales": ()}

CASES = [
    *cases(
        "Normal.rsample + kl_divergence",
        rsample_and_kl,
        draws(rsample_and_kl, 0.0, 1.0),
        targets=(Target("torch.distributions", 4.0, "both"),),
        **PRIOR,
    ),
    *cases("Independent(Normal).rsample + kl", rsample_and_event_kl, draws(rsample_and_event_kl, 0.0, 1.0), **PRIOR),
    *cases("Normal.rsample", normal_rsample, draws(normal_rsample, 0.0, 1.0)),
    *cases("Normal.log_prob", normal_log_prob, deterministic(normal_log_prob), **DATA),
    *cases("Independent(Normal).log_prob", independent_log_prob, deterministic(independent_log_prob), **DATA),
    *cases("LogNormal.rsample", log_normal_rsample, draws(log_normal_rsample, 1.6487212707, 2.1611974159)),
    *cases("LogNormal.log_prob", log_normal_log_prob, deterministic(log_normal_log_prob), count=3, scales=(1, 2)),
    *cases("Laplace.rsample", laplace_rsample, draws(laplace_rsample, 0.0, 1.4142135624)),
    *cases("Gumbel.rsample", gumbel_rsample, draws(gumbel_rsample, EULER, 1.2825498302)),
    *cases("Bernoulli.sample", bernoulli_sample, draws(bernoulli_sample, 0.5, 0.5), leaves=(), **LOGITS),
    *cases(
        "Bernoulli.log_prob",
        bernoulli_log_prob,
        deterministic(bernoulli_log_prob),
        scales=(),
        bits=(1,),
        leaves=(0,),
    ),
    *cases("Bernoulli.entropy", bernoulli_entropy, deterministic(bernoulli_entropy), leaves=(0,), **LOGITS),
    *cases("kl(Bernoulli, Bernoulli)", bernoulli_kl, deterministic(bernoulli_kl), scales=()),
    *cases("Categorical.sample", categorical_sample, lambda args, leaves: None, leaves=(), **LOGITS),
    *cases("OneHotCategorical.sample", one_hot_sample, lambda args, leaves: None, leaves=(), **LOGITS),
    *cases("StraightThrough.rsample", straight_through, lambda args, leaves: None, leaves=(0,), **LOGITS),
    *cases(
        "RelaxedBernoulli.rsample",
        relaxed_bernoulli_rsample,
        draws(relaxed_bernoulli_rsample, 0.5, 0.5),
        leaves=(0,),
        **LOGITS,
    ),
    *cases(
        "RelaxedOneHotCategorical.rsample",
        relaxed_one_hot_rsample,
        lambda args, leaves: None,
        leaves=(0,),
        **LOGITS,
    ),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_distributions(job: Job, bench: Any) -> None:
    bench(job)
