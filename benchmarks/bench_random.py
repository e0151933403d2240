"""Random draws: `variate.random` against torch's own generators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Gumbel

from variate import random as ours
from variate.reference import random as reference

from .harness import Case, Job, Target, compiled, jobs, matches_twin

SIZES = (1, 64, 2048, 16384, 131072, 1048576, 4194304)
NEVER_SLOWER_FROM = 2048  # elements
GPU_SIZE = 2**24  # elements; from here on a GPU is bound by its memory or its arithmetic, not by the launch


@dataclass(frozen=True)
class Sampler:
    """A draw of n values. Competitors take (n, device, buffer): an expert fills a buffer that is kept."""

    name: str
    dtype: torch.dtype
    ours: Callable[..., Any]  # (module, n, device, **key), so that one line serves ours and its twin
    rivals: dict[str, Callable[[int, torch.device, Tensor], Any]]

    def call(self, module: Any) -> Callable[..., Tensor]:
        return lambda n, device, buffer, **key: self.ours(module, n, device, **key)


def eager_gumbel(n: int, device: torch.device, buffer: Tensor) -> Tensor:
    """As torch.nn.functional.gumbel_softmax draws it."""
    return -torch.empty(n, device=device).exponential_().log()


def distributions_gumbel(n: int, device: torch.device, buffer: Tensor) -> Tensor:
    """torch.distributions as it comes, argument checks on."""
    return Gumbel(buffer.new_zeros(()), buffer.new_ones(())).sample((n,))


SAMPLERS = [
    Sampler(
        "normal",
        torch.float32,
        lambda module, n, device, **key: module.normal(n, device=device, **key),
        {
            "eager": lambda n, device, buffer: torch.randn(n, device=device),
            "expert": lambda n, device, buffer: buffer.normal_(),
        },
    ),
    Sampler(
        "uniform",
        torch.float32,
        lambda module, n, device, **key: module.uniform(n, device=device, **key),
        {
            "eager": lambda n, device, buffer: torch.rand(n, device=device),
            "expert": lambda n, device, buffer: buffer.uniform_(),
        },
    ),
    Sampler(
        "bits",
        torch.int64,
        lambda module, n, device, **key: module.bits(n, device=device, **key),
        {
            "eager": lambda n, device, buffer: torch.randint(0, 2**32, (n,), device=device),
            "expert": lambda n, device, buffer: buffer.random_(0, 2**32),
        },
    ),
    Sampler(
        "exponential",
        torch.float32,
        lambda module, n, device, **key: module.exponential(n, device=device, **key),
        {
            "eager": lambda n, device, buffer: torch.empty(n, device=device).exponential_(),
            "expert": lambda n, device, buffer: buffer.exponential_(),
        },
    ),
    Sampler(
        "gumbel",
        torch.float32,
        lambda module, n, device, **key: module.gumbel(n, device=device, **key),
        {
            "eager": eager_gumbel,
            "expert": lambda n, device, buffer: buffer.exponential_().log_().neg_(),
            "torch.distributions": distributions_gumbel,
        },
    ),
    Sampler(
        "randint",
        torch.int64,
        lambda module, n, device, **key: module.randint(0, 10, (n,), device=device, **key),
        {
            "eager": lambda n, device, buffer: torch.randint(0, 10, (n,), device=device),
            "expert": lambda n, device, buffer: buffer.random_(0, 10),
        },
    ),
]


def promises(
    n: int, factor: float = 1.0, *, threaded: bool = False, binding: str = "bound: philox"
) -> tuple[Target, ...]:
    """The project's promises for n draws."""
    out = [Target("eager", factor, "forward")] if n >= NEVER_SLOWER_FROM else []
    if threaded:
        out.append(Target("one thread", 1.8, "forward", threads=2))
    if n >= GPU_SIZE:
        out.append(Target(binding, 0.85, "forward", device="cuda"))
        out.append(Target("compile", 1.0, "forward", device="cuda"))
    return tuple(out)


def draws(sampler: Sampler, n: int, *, headline: bool = False, **options: Any) -> Case:
    """One sampler at one size."""
    threaded = n >= 2**20 and not options
    factor = 3.5 if headline and sampler.name == "normal" else 1.0
    compilers = n >= GPU_SIZE or factor > 1
    return Case(
        family="random",
        op=sampler.name,
        shape=(n,),
        setup=lambda device: (n, device, torch.empty(n, dtype=sampler.dtype, device=device)),
        competitors={
            "ours": sampler.call(ours),
            **sampler.rivals,
            **(compiled(sampler.rivals["eager"]) if compilers else {}),
        },
        check=matches_twin(sampler.call(ours), sampler.call(reference)),
        traffic={"forward": n * sampler.dtype.itemsize},
        words={"forward": n},
        targets=promises(n, factor, threaded=threaded),
        variant=str(sampler.dtype).removeprefix("torch."),
        threaded=threaded,
        sweep=not headline and not options,
        **options,
    )


def probabilities(n: int) -> Callable[[torch.device], Sequence[Tensor]]:
    def setup(device: torch.device) -> Sequence[Tensor]:
        return (torch.rand(n, generator=torch.Generator(device).manual_seed(1), device=device),)

    return setup


def bernoulli(n: int, **options: Any) -> Case:
    """Draws from n probabilities; an expert compares with uniforms."""
    threaded = n >= 2**20 and not options
    return Case(
        family="random",
        op="bernoulli",
        shape=(n,),
        setup=probabilities(n),
        competitors={
            "ours": ours.bernoulli,
            "eager": torch.bernoulli,
            "expert": lambda probs: (torch.rand_like(probs) < probs).to(probs.dtype),
            **(compiled(torch.bernoulli) if n >= GPU_SIZE else {}),
        },
        check=matches_twin(ours.bernoulli, reference.bernoulli, exact_inputs=True),
        traffic={"forward": 8 * n},
        words={"forward": n},
        targets=promises(n, threaded=threaded, binding="bound: copy"),
        threaded=threaded,
        sweep=not options,
        **options,
    )


def categorical(rows: int, classes: int) -> Case:
    """One draw for each row of logits."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        return (torch.randn(rows, classes, generator=torch.Generator(device).manual_seed(1), device=device),)

    def expert(logits: Tensor) -> Tensor:
        return logits.softmax(-1).div_(torch.empty_like(logits).exponential_()).argmax(-1)

    return Case(
        family="random",
        op="categorical",
        shape=(rows, classes),
        setup=setup,
        competitors={
            "ours": ours.categorical,
            "eager": lambda logits: torch.multinomial(logits.softmax(-1), 1).squeeze(-1),
            "expert": expert,
            "torch.distributions": lambda logits: Categorical(logits=logits).sample(),
        },
        check=matches_twin(ours.categorical, reference.categorical, exact_inputs=True),
        traffic={"forward": 4 * rows * classes + 8 * rows},
        words={"forward": rows * classes},
        targets=promises(rows * classes),
    )


CASES = [
    *(draws(sampler, n, headline=n == SIZES[-1]) for sampler in SAMPLERS for n in SIZES),
    *(bernoulli(n) for n in SIZES),
    categorical(1024, 10),
    categorical(4096, 256),
    *(draws(sampler, GPU_SIZE, headline=True, devices=("cuda",)) for sampler in SAMPLERS),
    bernoulli(GPU_SIZE, devices=("cuda",)),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_random(job: Job, bench: Any) -> None:
    bench(job)
