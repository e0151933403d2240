"""Reparameterised sampling, alone and with the KL divergence: `functional.reparam` against its rivals."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from variate import functional as ours
from variate.reference import reparam as reference

from .harness import Case, Job, Target, compiled, jobs, matches_twin

MODES = ("forward", "backward", "both")


def gaussians(*shape: int, dtype: torch.dtype = torch.float32, prior: bool = False) -> Any:
    """A setup that draws the parameters of a posterior, and of a prior if asked."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        count = 4 if prior else 2
        return [torch.randn(shape, generator=generator, device=device).mul_(0.5).to(dtype) for _ in range(count)]

    return setup


def eager(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """As people write it."""
    std = torch.exp(0.5 * log_var)
    z = mean + torch.randn_like(std) * std
    kl = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp(), dim=1)
    return z, kl


def expert(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """Fewer passes: one exponential, fused multiply-adds, the constant outside the sum."""
    std = torch.exp(0.5 * log_var)
    z = torch.addcmul(mean, std, torch.randn_like(std))
    kl = torch.addcmul(torch.addcmul(-log_var, std, std), mean, mean).sum(1).sub(mean.shape[1]).mul(0.5)
    return z, kl


def distributions(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """torch.distributions as it comes, argument checks on."""
    posterior = Normal(mean, torch.exp(0.5 * log_var))
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return posterior.rsample(), kl_divergence(posterior, prior).sum(1)


def distributions_unchecked(mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """torch.distributions with its argument checks off."""
    posterior = Normal(mean, torch.exp(0.5 * log_var), validate_args=False)
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean), validate_args=False)
    return posterior.rsample(), kl_divergence(posterior, prior).sum(1)


def eager_prior(mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> tuple[Tensor, Tensor]:
    """As people write it, with a learned prior."""
    z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
    squared = (mean - prior_mean).pow(2)
    terms = prior_log_var - log_var + (log_var.exp() + squared) / prior_log_var.exp() - 1
    return z, 0.5 * terms.sum(dim=1)


def eager_sample(mean: Tensor, log_var: Tensor) -> Tensor:
    """As people write it, the sample alone."""
    std = torch.exp(0.5 * log_var)
    return mean + torch.randn_like(std) * std


def expert_sample(mean: Tensor, log_var: Tensor) -> Tensor:
    """One multiply-add fewer passes."""
    std = torch.exp(0.5 * log_var)
    return torch.addcmul(mean, std, torch.randn_like(std))


def distributions_sample(mean: Tensor, log_var: Tensor) -> Tensor:
    """torch.distributions as it comes, argument checks on."""
    return Normal(mean, torch.exp(0.5 * log_var)).rsample()


def work(elements: int, read: int, write: int, read_back: int, write_back: int, rows: int = 0, size: int = 4) -> Any:
    """Bytes and Philox words by mode, from the values read and written per element; noise is drawn twice."""
    forward = elements * size * (read + write) + 4 * rows
    backward = elements * size * (read_back + write_back) + 4 * rows
    return {
        "traffic": {"forward": forward, "backward": backward, "both": forward + backward},
        "words": {"forward": elements, "backward": elements, "both": 2 * elements},
    }


def with_kl(
    *shape: int,
    against: dict[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    compilers: bool = False,
    **options: Any,
) -> Case:
    """`normal_rsample_kl` with the standard normal prior; `against` is what the project promises, fwd+bwd."""
    targets = [Target(name, at_least, "both") for name, at_least in (against or {}).items()]
    elements = shape[0] * shape[1]
    if elements >= 2**24:
        binding = "bound: copy" if dtype.itemsize >= 4 else "bound: philox"
        targets += [Target(binding, 0.85, mode, device="cuda") for mode in MODES]
    if compilers:
        targets += [Target("compile", 1.0, mode, device="cuda") for mode in MODES]
    if options.get("threaded"):
        targets.append(Target("one thread", 1.8, "both", threads=2))
    return Case(
        family="reparam",
        op="normal_rsample_kl",
        shape=shape,
        setup=gaussians(*shape, dtype=dtype),
        competitors={
            "ours": ours.normal_rsample_kl,
            "eager": eager,
            "expert": expert,
            **(compiled(eager) if compilers else {}),
            "torch.distributions": distributions,
            "torch.distributions unchecked": distributions_unchecked,
        },
        check=matches_twin(ours.normal_rsample_kl, reference.normal_rsample_kl),
        modes=MODES,
        leaves=(0, 1),
        targets=tuple(targets),
        variant=str(dtype).removeprefix("torch."),
        **work(elements, 2, 1, 3, 2, rows=shape[0], size=dtype.itemsize),
        **options,
    )


SAMPLES = 50


def eager_noise(base: str, loc: Tensor) -> Tensor:
    """SAMPLES draws as people write them."""
    size = (SAMPLES, *loc.shape)
    if base == "normal":
        return torch.randn(size, device=loc.device)
    if base == "gumbel":
        return -torch.log(torch.empty(size, device=loc.device).exponential_())
    if base == "logistic":
        return torch.logit(torch.rand(size, device=loc.device), 1e-7)
    u = torch.rand(size, device=loc.device) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs().clamp(max=0.5 - 1e-7))


def many_samples(base: str, *shape: int) -> Case:
    """`samples=SAMPLES` of one family, and its gradient."""
    function = functools.partial(getattr(ours, f"{base}_rsample"), samples=SAMPLES)
    twin = getattr(reference, f"{base}_rsample")

    def named(loc: Tensor, log_scale: Tensor, **options: Any) -> Tensor:
        return function(loc, log_scale=log_scale, **options)

    def eager_samples(loc: Tensor, log_scale: Tensor) -> Tensor:
        return loc + torch.exp(log_scale) * eager_noise(base, loc)

    def twin_samples(loc: Tensor, log_scale: Tensor, **options: Any) -> Tensor:
        return twin(loc, log_scale=log_scale, samples=SAMPLES, **options)

    elements = shape[0] * shape[1]
    moved = 4 * elements * (2 + SAMPLES)
    return Case(
        family="reparam",
        op=f"{base}_rsample",
        shape=(SAMPLES, *shape),
        setup=gaussians(*shape),
        competitors={"ours": named, "eager": eager_samples},
        check=matches_twin(named, twin_samples),
        modes=MODES,
        leaves=(0, 1),
        targets=(Target("eager", 1.0, "both"),),
        variant=f"float32, K={SAMPLES}",
        traffic={"forward": moved, "backward": moved + 4 * elements, "both": 2 * moved + 4 * elements},
        words={
            "forward": SAMPLES * elements,
            "backward": SAMPLES * elements,
            "both": 2 * SAMPLES * elements,
        },
    )


CASES = [
    *(many_samples(base, 128, 50) for base in ("normal", "logistic", "laplace", "gumbel")),
    with_kl(
        1024,
        128,
        against={"eager": 3.5, "compile": 15, "compile_fallback_random": 2.5, "torch.distributions": 6},
        compilers=True,
    ),
    with_kl(4096, 512, against={"eager": 4, "compile": 15}, compilers=True, threaded=True),
    with_kl(128, 20, against={"eager": 1.5, "compile": 3}, compilers=True),
    with_kl(4096, 512, dtype=torch.bfloat16, compilers=True),
    with_kl(1024, 1024, threaded=True),
    Case(
        family="reparam",
        op="normal_rsample_kl",
        shape=(1024, 128),
        setup=gaussians(1024, 128, prior=True),
        competitors={"ours": ours.normal_rsample_kl, "eager": eager_prior, **compiled(eager_prior)},
        check=matches_twin(ours.normal_rsample_kl, reference.normal_rsample_kl),
        modes=MODES,
        leaves=(0, 1, 2, 3),
        targets=(Target("eager", 1.0, "both"),),
        variant="learned prior",
        **work(1024 * 128, 4, 1, 5, 4, rows=1024),
    ),
    Case(
        family="reparam",
        op="normal_rsample",
        shape=(1024, 128),
        setup=gaussians(1024, 128),
        competitors={
            "ours": ours.normal_rsample,
            "eager": eager_sample,
            "expert": expert_sample,
            **compiled(eager_sample),
            "torch.distributions": distributions_sample,
        },
        check=matches_twin(ours.normal_rsample, reference.normal_rsample),
        modes=MODES,
        leaves=(0, 1),
        targets=(Target("eager", 1.0, "both"),),
        **work(1024 * 128, 2, 1, 2, 1),  # the mean's gradient is the output's own
    ),
    *(
        with_kl(rows, columns, against={"eager": 1.0}, sweep=True)
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
    with_kl(16384, 1024, compilers=True, devices=("cuda",)),
    with_kl(16384, 1024, dtype=torch.bfloat16, compilers=True, devices=("cuda",)),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_reparam(job: Job, bench: Any) -> None:
    bench(job)
