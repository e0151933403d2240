"""Reparameterised sampling as an expert writes it in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import elbo, random


def normal_rsample(
    mean: Tensor,
    log_var: Tensor | None = None,
    *,
    log_scale: Tensor | None = None,
    scale: Tensor | None = None,
    samples: int | None = None,
    antithetic: bool = False,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    sigma = _sigma(log_var, log_scale, scale)
    return _rsample("normal", mean, sigma, samples, antithetic, key, generator, first_sample)


def logistic_rsample(
    loc: Tensor,
    log_scale: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    samples: int | None = None,
    antithetic: bool = False,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    sigma = _sigma(None, log_scale, scale)
    return _rsample("logistic", loc, sigma, samples, antithetic, key, generator, first_sample)


def laplace_rsample(
    loc: Tensor,
    log_scale: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    samples: int | None = None,
    antithetic: bool = False,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    sigma = _sigma(None, log_scale, scale)
    return _rsample("laplace", loc, sigma, samples, antithetic, key, generator, first_sample)


def gumbel_rsample(
    loc: Tensor,
    log_scale: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    samples: int | None = None,
    antithetic: bool = False,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    sigma = _sigma(None, log_scale, scale)
    return _rsample("gumbel", loc, sigma, samples, antithetic, key, generator, first_sample)


def normal_rsample_kl(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_var: Tensor | None = None,
    *,
    free_bits: float | Tensor = 0.0,
    samples: int | None = None,
    antithetic: bool = False,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> tuple[Tensor, Tensor]:
    z = normal_rsample(
        mean,
        log_var,
        samples=samples,
        antithetic=antithetic,
        key=key,
        generator=generator,
        first_sample=first_sample,
    )
    return z, elbo.normal_kl(mean, log_var, prior_mean, prior_log_var, free_bits=free_bits)


def base_noise(
    base: str,
    size: Sequence[int],
    samples: int | None,
    antithetic: bool,
    key: Tensor | None,
    generator: torch.Generator | None,
    first_sample: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The standard noise of a distribution: one draw of this size, or `samples` of them."""
    count = 1 if samples is None else samples
    draws = (count + 1) // 2 if antithetic else count
    if key is None:
        forms = _drawn(base, (draws, *size), antithetic, generator, dtype, device)
    else:
        keys = [key if draw == 0 else random.fold_in(key, draw) for draw in range(draws)]
        forms = [torch.stack(each) for each in zip(*(_keyed(base, size, k, first_sample) for k in keys), strict=True)]
    noise = torch.stack(forms, 1).flatten(0, 1)[:count] if antithetic else forms[0]
    return (noise[0] if samples is None else noise).to(dtype)


def _keyed(base: str, size: Sequence[int], key: Tensor, first_sample: int) -> tuple[Tensor, Tensor]:
    """The library's noise, and its mirror image: the noise of the uniforms 1 - u."""
    if base == "normal":
        noise = random.normal(size, key=key, first_sample=first_sample, dtype=torch.float32, device=key.device)
        return noise, -noise
    words = random.words(size, key, first_sample)
    if base == "gumbel":
        return random.gumbel_of(words).float(), random.gumbel_of(words ^ 0xFFFFFFFF).float()
    noise = (random.logistic_of(words) if base == "logistic" else random.laplace_of(words)).float()
    return noise, -noise


def _drawn(
    base: str,
    size: Sequence[int],
    antithetic: bool,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    """torch's noise, and with `antithetic` its mirror image."""
    if base == "normal":
        noise = torch.randn(size, generator=generator, dtype=dtype, device=device)
        return [noise, -noise] if antithetic else [noise]
    bounds = torch.finfo(dtype).tiny, 1 - torch.finfo(dtype).eps / 2
    u = torch.rand(size, generator=generator, dtype=dtype, device=device).clamp(*bounds)
    if base == "gumbel":
        noise = -torch.log(-torch.log(u))
        return [noise, -torch.log(-torch.log1p(-u))] if antithetic else [noise]
    noise = torch.logit(u) if base == "logistic" else torch.where(u < 0.5, torch.log(2 * u), -torch.log(2 - 2 * u))
    return [noise, -noise] if antithetic else [noise]


def _sigma(log_var: Tensor | None, log_scale: Tensor | None, scale: Tensor | None) -> Tensor:
    if log_var is not None:
        return torch.exp(0.5 * log_var)
    if log_scale is not None:
        return torch.exp(log_scale)
    assert scale is not None
    return scale


def _rsample(
    base: str,
    loc: Tensor,
    sigma: Tensor,
    samples: int | None,
    antithetic: bool,
    key: Tensor | None,
    generator: torch.Generator | None,
    first_sample: int,
) -> Tensor:
    size = torch.broadcast_shapes(loc.shape, sigma.shape)
    dtype = torch.promote_types(loc.dtype, sigma.dtype)
    noise = base_noise(base, size, samples, antithetic, key, generator, first_sample, dtype, loc.device)
    return loc + sigma * noise
