"""Reparameterised sampling: draws whose gradients reach the distribution's parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate, _key, elbo

__all__ = ["gumbel_rsample", "laplace_rsample", "logistic_rsample", "normal_rsample", "normal_rsample_kl"]


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
    """z_k = mean + sigma eps_k,  eps_k ~ N(0, 1),  sigma = exp(log_var / 2) = exp(log_scale) = scale.

    Args:
        mean: [B, ...] float32, float64, bfloat16 or float16. A 1-D tensor is one sample.
        log_var, log_scale, scale: exactly one of them; it broadcasts with mean, and its dtype may be another. A scale
            is taken as it is, also 0 or below.
        samples: K draws for each element, at least 1. Draw 0 takes the key itself, draw k > 0 fold_in(key, k): the
            first K draws are the same for every larger K.
        antithetic: samples 2j and 2j + 1 share draw j: the second takes -eps.
        key: int64 [2], or [B, 2] for a stream per sample; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of row 0 in the whole batch.

    Returns:
        z in the shape that mean and its spread broadcast to, with `samples` [K, ...], and in the dtype that torch
        promotes the two to.

    Raises:
        TypeError: none or several spreads; an argument that is not a tensor, or not of a dtype named above.
        ValueError: shapes or devices that do not fit, samples below 1, a key of another shape.
        RuntimeError: under torch.func without a key.

    The noise is float32, whatever the dtype, and is drawn again in the backward pass: nothing but the inputs and the
    16-byte key is kept, however many samples there are.

    Source: Kingma and Welling 2014, section 2.4; antithetic pairs: Hammersley and Morton 1956.
    """
    if samples is not None or log_var is None or log_scale is not None or scale is not None:
        return _location_scale(
            "normal",
            ("mean", mean),
            {"log_var": log_var, "log_scale": log_scale, "scale": scale},
            samples,
            antithetic,
            key,
            generator,
            first_sample,
        )
    mean, log_var = _checks.broadcast("log_var", log_var, "mean", mean)
    op = _backend.select("normal_rsample", mean)
    if op is None or _gate.transformed_noise("normal_rsample", key):
        key = _key.check(key, generator, first_sample, mean)
        return reference.reparam.normal_rsample(mean, log_var, key=key, generator=generator, first_sample=first_sample)
    key = _key.resolve(key, generator, first_sample, mean)
    if _gate.needs_grad(mean, log_var):
        return _gate.apply(_NormalRsample, mean, log_var, key, first_sample)
    return op(mean, log_var, key, first_sample)


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
    """z_k = loc + sigma eps_k,  eps_k ~ Logistic(0, 1),  sigma = exp(log_scale) = scale.

    eps = log u - log(1 - u) with u the uniform of the element's word, never infinite.
    With ``antithetic`` samples 2j and 2j + 1 share a draw: the second takes -eps. Everything else is as in
    :func:`normal_rsample`.

    Source: Balakrishnan, "Handbook of the logistic distribution", 1991.
    """
    spreads = {"log_scale": log_scale, "scale": scale}
    return _location_scale("logistic", ("loc", loc), spreads, samples, antithetic, key, generator, first_sample)


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
    """z_k = loc + sigma eps_k,  eps_k ~ Laplace(0, 1),  sigma = exp(log_scale) = scale.

    eps = log 2u for u <= 1/2, -log(2 - 2u) above with u the uniform of the element's word, never infinite.
    With ``antithetic`` samples 2j and 2j + 1 share a draw: the second takes -eps. Everything else is as in
    :func:`normal_rsample`.

    Source: Kotz, Kozubowski and Podgorski, "The Laplace distribution and generalizations", 2001.
    """
    spreads = {"log_scale": log_scale, "scale": scale}
    return _location_scale("laplace", ("loc", loc), spreads, samples, antithetic, key, generator, first_sample)


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
    """z_k = loc + sigma eps_k,  eps_k ~ Gumbel(0, 1),  sigma = exp(log_scale) = scale.

    eps = -log(-log u) with u the uniform of the element's word, never infinite.
    With ``antithetic`` samples 2j and 2j + 1 share a draw: the second takes the noise of 1 - u. Everything else is
    as in :func:`normal_rsample`.

    Source: Gumbel, "Statistics of extremes", 1958.
    """
    spreads = {"log_scale": log_scale, "scale": scale}
    return _location_scale("gumbel", ("loc", loc), spreads, samples, antithetic, key, generator, first_sample)


_BASES = {"normal": 0, "logistic": 1, "laplace": 2, "gumbel": 3}
_PARAMETRIZATIONS = {"log_var": 0, "log_scale": 1, "scale": 2}


def _location_scale(
    base: str,
    named_loc: tuple[str, Tensor],
    spreads: dict[str, Tensor | None],
    samples: int | None,
    antithetic: bool,
    key: Tensor | None,
    generator: torch.Generator | None,
    first_sample: int,
) -> Tensor:
    loc_name, loc = named_loc
    given = {name: spread for name, spread in spreads.items() if spread is not None}
    if len(given) != 1:
        raise TypeError(f"{', '.join(spreads)}: expected exactly one of them, got {' and '.join(given) or 'none'}")
    ((name, spread),) = given.items()
    loc, spread = _checks.broadcast(name, spread, loc_name, loc)
    if samples is not None:
        _checks.count("samples", samples)
    op = _backend.select("location_scale_rsample", loc)
    if op is None or _gate.transformed_noise(f"{base}_rsample", key):
        key = _key.check(key, generator, first_sample, loc)
        return getattr(reference.reparam, f"{base}_rsample")(
            loc,
            **{name: spread},
            samples=samples,
            antithetic=antithetic,
            key=key,
            generator=generator,
            first_sample=first_sample,
        )
    key = _key.resolve(key, generator, first_sample, loc)
    how = (key, first_sample, samples or 0, bool(antithetic), _BASES[base], _PARAMETRIZATIONS[name])
    if _gate.needs_grad(loc, spread):
        return _gate.apply(LocationScaleRsample, loc, spread, *how)
    return op(loc, spread, *how)


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
    """z = mean + exp(log_var / 2) eps  and  kl_b = sum_d max(KL_bd, free_bits), where

    KL_bd = KL(N(mean, e^log_var) || N(prior_mean, e^prior_log_var))
          = (e^(log_var - prior_log_var) - 1 - (log_var - prior_log_var) + (mean - prior_mean)^2 e^-prior_log_var) / 2.

    Args:
        mean, log_var: [B, ...] of one shape; float32, float64, bfloat16 or float16, mixed as you like. A 1-D tensor
            is one sample.
        prior_mean, prior_log_var: broadcast to the shape of mean and get gradients; one that is left out is 0, both
            are the standard normal.
        free_bits: the least KL in nats that each element is charged, at least 0: a number, or a 0-d tensor that may
            change under torch.compile and in a captured graph. An element below it passes no KL gradient.
        samples, antithetic: K draws for each element, as in :func:`normal_rsample`.
        key: int64 [2], or [B, 2] for a stream per sample; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of row 0 in the whole batch.

    Returns:
        z with the shape of mean, with `samples` [K, ...], and the dtype that torch promotes mean and log_var to; kl [B]
        in nats, summed over all other dimensions, float64 where an input is, else float32.

    Raises:
        TypeError: an argument that is not a tensor, or not of a dtype named above.
        ValueError: shapes or devices that do not fit, a negative free_bits, samples below 1, a key of another shape.
        RuntimeError: under torch.func without a key.

    Each input is read once and z written once. The noise is drawn again in the backward pass: nothing but the inputs
    and the 16-byte key is kept. Autocast leaves the inputs as they are.

    Source: Kingma and Welling 2014, section 2.4 and appendix B; free bits: Kingma et al. 2016, appendix C.8.
    """
    _checks.alike("log_var", log_var, "mean", mean)
    if prior_mean is not None:
        _checks.floating("prior_mean", prior_mean)
        prior_mean = _checks.expanded("prior_mean", prior_mean, "mean", mean)
    if prior_log_var is not None:
        _checks.floating("prior_log_var", prior_log_var)
        prior_log_var = _checks.expanded("prior_log_var", prior_log_var, "mean", mean)
    bits = _checks.scalar("free_bits", free_bits, mean)
    op = _backend.select("normal_rsample_kl", mean)
    if op is None or _gate.transformed_noise("normal_rsample_kl", key):
        key = _key.check(key, generator, first_sample, mean)
        return reference.reparam.normal_rsample_kl(
            mean,
            log_var,
            prior_mean,
            prior_log_var,
            free_bits=free_bits,
            samples=samples,
            antithetic=antithetic,
            key=key,
            generator=generator,
            first_sample=first_sample,
        )
    key = _key.resolve(key, generator, first_sample, mean)
    if samples is not None:
        z = normal_rsample(mean, log_var, samples=samples, antithetic=antithetic, key=key, first_sample=first_sample)
        return z, elbo.normal_kl(mean, log_var, prior_mean, prior_log_var, free_bits=free_bits)
    if _gate.needs_grad(mean, log_var, prior_mean, prior_log_var):
        return _gate.apply(_NormalRsampleKl, mean, log_var, prior_mean, prior_log_var, bits, key, first_sample)
    return op(mean, log_var, prior_mean, prior_log_var, bits, key, first_sample)


class _NormalRsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_var: Tensor, key: Tensor, first_sample: int) -> Tensor:
        ctx.save_for_backward(mean, log_var, key)
        ctx.first_sample = first_sample
        return _backend.select("normal_rsample", mean)(mean, log_var, key, first_sample)

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        mean, log_var, key = ctx.saved_tensors
        op = _backend.select("normal_rsample_kl_backward", mean)
        grads = op(grad_z, None, mean, log_var, None, None, None, key, ctx.first_sample, False)
        return grads[0], grads[1], None, None


class LocationScaleRsample(torch.autograd.Function):
    """variate::location_scale_rsample, whose samples = 0 is one draw without a dimension for it."""

    @staticmethod
    def forward(
        ctx: Any,
        loc: Tensor,
        scale: Tensor,
        key: Tensor,
        first_sample: int,
        samples: int,
        antithetic: bool,
        base: int,
        parametrization: int,
    ) -> Tensor:
        ctx.save_for_backward(loc, scale, key)
        ctx.how = (first_sample, samples, antithetic, base, parametrization)
        return _backend.select("location_scale_rsample", loc)(loc, scale, key, *ctx.how)

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, key = ctx.saved_tensors
        op = _backend.select("location_scale_rsample_backward", loc)
        return *op(grad_z, loc, scale, key, *ctx.how), None, None, None, None, None, None


class _NormalRsampleKl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mean: Tensor,
        log_var: Tensor,
        prior_mean: Tensor | None,
        prior_log_var: Tensor | None,
        free_bits: Tensor | None,
        key: Tensor,
        first_sample: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mean, log_var, prior_mean, prior_log_var, free_bits, key)
        ctx.first_sample = first_sample
        ctx.set_materialize_grads(False)
        op = _backend.select("normal_rsample_kl", mean)
        return op(mean, log_var, prior_mean, prior_log_var, free_bits, key, first_sample)

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor | None, ...]:
        mean, log_var, prior_mean, prior_log_var, free_bits, key = ctx.saved_tensors
        op = _backend.select("normal_rsample_kl_backward", mean)
        _, _, prior_mean_needs, prior_log_var_needs, *_ = ctx.needs_input_grad
        grads = op(
            grad_z,
            grad_kl,
            mean,
            log_var,
            prior_mean,
            prior_log_var,
            free_bits,
            key,
            ctx.first_sample,
            prior_mean_needs or prior_log_var_needs,
        )
        return (
            grads[0],
            grads[1],
            grads[2] if prior_mean_needs else None,
            grads[3] if prior_log_var_needs else None,
            None,
            None,
            None,
        )


@_backend.register("normal_rsample")
def _(mean: Tensor, log_var: Tensor, key: Tensor, first_sample: int) -> Tensor:
    return mean.new_empty(mean.shape, dtype=torch.promote_types(mean.dtype, log_var.dtype))


@_backend.register("location_scale_rsample", cuda=False)
def _(
    loc: Tensor,
    scale: Tensor,
    key: Tensor,
    first_sample: int,
    samples: int,
    antithetic: bool,
    base: int,
    parametrization: int,
) -> Tensor:
    shape = loc.shape if samples == 0 else (samples, *loc.shape)
    return loc.new_empty(shape, dtype=torch.promote_types(loc.dtype, scale.dtype))


@_backend.register("location_scale_rsample_backward", cuda=False)
def _(
    grad_z: Tensor,
    loc: Tensor,
    scale: Tensor,
    key: Tensor,
    first_sample: int,
    samples: int,
    antithetic: bool,
    base: int,
    parametrization: int,
) -> tuple[Tensor, Tensor]:
    return loc.new_empty(loc.shape), scale.new_empty(scale.shape)


@_backend.register("normal_rsample_kl")
def _(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None,
    prior_log_var: Tensor | None,
    free_bits: Tensor | None,
    key: Tensor,
    first_sample: int,
) -> tuple[Tensor, Tensor]:
    given = [t.dtype for t in (mean, log_var, prior_mean, prior_log_var) if t is not None]
    kl_dtype = torch.float64 if torch.float64 in given else torch.float32
    z = mean.new_empty(mean.shape, dtype=torch.promote_types(mean.dtype, log_var.dtype))
    return z, mean.new_empty((_checks.rows_of(mean.shape),), dtype=kl_dtype)


@_backend.register("normal_rsample_kl_backward")
def _(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None,
    prior_log_var: Tensor | None,
    free_bits: Tensor | None,
    key: Tensor,
    first_sample: int,
    prior_needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def of(prior: Tensor | None) -> Tensor:
        return prior.new_empty(prior.shape) if prior_needs_grad and prior is not None else mean.new_empty((0,))

    return mean.new_empty(mean.shape), log_var.new_empty(log_var.shape), of(prior_mean), of(prior_log_var)
