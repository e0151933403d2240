"""Reparameterised sampling, and its Kullback-Leibler divergence (elbo.py); the twin of variate/math/reparam.hpp.

Source: Kingma and Welling, "Auto-encoding variational Bayes", 2014, section 2.4 and appendix B.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import exp, exponential
from .philox import fold_in_key, interleave4, load_key
from .random import gumbel_draw, laplace_draw, logistic_draw, tile_normals, tile_words
from .terms import least_kl, normal_kl_term, standard_normal_kl_term
from .tiles import (
    compute_dtype,
    launch_row_sums,
    launch_tiles,
    load_column,
    load_tile,
    rows_and_cols,
    scalar,
    store_row_sums,
    store_tile,
    tile_mask,
    tile_start,
    view,
)


@triton.jit
def spread(log_var):
    """sigma = exp(log_var / 2), and sigma^2 - 1 without cancellation near log_var = 0."""
    sigma, sigma_minus_1 = exponential(0.5 * log_var)
    return sigma, sigma_minus_1 * (sigma + 1.0)


@triton.jit(do_not_specialize=["first_sample"])
def _normal_rsample_kernel(key, first_sample, mean, log_var, z, rows, cols, ROWS: tl.constexpr,
                           COLS: tl.constexpr, BATCHED: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """z = mean + exp(log_var / 2) eps."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    m = load_tile(mean, first_row, first_col, mask, DTYPE)
    v = load_tile(log_var, first_row, first_col, mask, DTYPE)
    seed, offset, sample = load_key(key, first_row + tl.arange(0, ROWS), rows, first_sample, BATCHED)
    eps = tile_normals(seed, offset, sample, first_col, COLS).to(DTYPE)
    store_tile(z, cols, first_row, first_col, mask, tl.fma(exp(0.5 * v), eps, m))


def normal_rsample(mean: Tensor, log_var: Tensor, key: Tensor, first_sample: int) -> Tensor:
    """variate::normal_rsample"""
    z = torch.empty(mean.shape, dtype=torch.promote_types(mean.dtype, log_var.dtype), device=mean.device)
    if z.numel() > 0:
        rows, cols = rows_and_cols(mean.shape)
        launch_tiles(
            _normal_rsample_kernel, rows, cols, key.contiguous(), first_sample, view(mean, rows),
            view(log_var, rows), z, device=z.device, BATCHED=key.dim() > 1,
            DTYPE=compute_dtype(mean, log_var)[1],
        )  # fmt: skip
    return z


@triton.jit(do_not_specialize=["first_sample"])
def _normal_rsample_kl_kernel(key, first_sample, mean, log_var, prior_mean, prior_log_var, free_bits, z, kl,
                              rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr, STEPS: tl.constexpr,
                              BATCHED: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """z = mean + exp(log_var / 2) eps, and kl[r, chunk] = a sum of max(KL, free_bits)."""
    first_row, first_col = tile_start(cols, ROWS, COLS * STEPS)
    seed, offset, sample = load_key(key, first_row + tl.arange(0, ROWS), rows, first_sample, BATCHED)
    total = tl.zeros([ROWS, COLS], DTYPE)
    for step in range(STEPS):
        col = first_col + step * COLS
        mask = tile_mask(first_row, col, rows, cols, ROWS, COLS)
        m = load_tile(mean, first_row, col, mask, DTYPE)
        v = load_tile(log_var, first_row, col, mask, DTYPE)
        sigma, variance_minus_1 = spread(v)
        if prior_mean is None and prior_log_var is None:
            term = standard_normal_kl_term(m, v, variance_minus_1)
        else:
            pm = load_tile(prior_mean, first_row, col, mask, DTYPE)
            pv = load_tile(prior_log_var, first_row, col, mask, DTYPE)
            term = normal_kl_term(m, v, pm, pv)[0]
        if free_bits is not None:
            least = least_kl(free_bits, DTYPE)
            term = tl.where(term < least, least, term)
        total += tl.where(mask, term, 0.0)
        eps = tile_normals(seed, offset, sample, col, COLS).to(DTYPE)
        store_tile(z, cols, first_row, col, mask, tl.fma(sigma, eps, m))
    store_row_sums(kl, total, first_row, first_col, rows, cols, STEPS)


def normal_rsample_kl(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None,
    prior_log_var: Tensor | None,
    free_bits: Tensor | float | None,
    key: Tensor,
    first_sample: int,
) -> tuple[Tensor, Tensor]:
    """variate::normal_rsample_kl"""
    rows, cols = rows_and_cols(mean.shape)
    dtype, compute = compute_dtype(mean, log_var, prior_mean, prior_log_var)
    z = torch.empty(mean.shape, dtype=torch.promote_types(mean.dtype, log_var.dtype), device=mean.device)
    if z.numel() == 0:
        return z, torch.zeros(rows, dtype=dtype, device=mean.device)
    kl = torch.empty(rows, dtype=dtype, device=mean.device)
    launch_row_sums(
        _normal_rsample_kl_kernel, rows, cols, key.contiguous(), first_sample, view(mean, rows),
        view(log_var, rows), view(prior_mean, rows), view(prior_log_var, rows),
        scalar(free_bits, dtype, mean.device), z, out=kl, BATCHED=key.dim() > 1, DTYPE=compute,
    )  # fmt: skip
    return z, kl


@triton.jit(do_not_specialize=["first_sample"])
def _normal_rsample_kl_backward_kernel(key, first_sample, grad_z, grad_kl, mean, log_var, prior_mean,
                                       prior_log_var, free_bits, grad_mean, grad_log_var, grad_prior_mean,
                                       grad_prior_log_var, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr,
                                       BATCHED: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """grad_mean = grad_z + g d kl / d mean, grad_log_var = grad_z sigma eps / 2 + g d kl / d log_var, ...

    g = grad_kl, and 0 where free bits hold kl up. eps is drawn again.
    """
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    m = load_tile(mean, first_row, first_col, mask, DTYPE)
    v = load_tile(log_var, first_row, first_col, mask, DTYPE)
    sigma, variance_minus_1 = spread(v)
    d_mean = load_tile(grad_z, first_row, first_col, mask, DTYPE)
    d_log_var = tl.zeros([ROWS, COLS], DTYPE)
    if grad_z is not None:
        seed, offset, sample = load_key(key, first_row + tl.arange(0, ROWS), rows, first_sample, BATCHED)
        eps = tile_normals(seed, offset, sample, first_col, COLS).to(DTYPE)
        d_log_var = 0.5 * d_mean * eps * sigma
    if grad_kl is not None:
        if prior_mean is None and prior_log_var is None:
            kl = standard_normal_kl_term(m, v, variance_minus_1)
            scaled = m
            ratio_minus_1 = variance_minus_1
            distance = m * m
        else:
            pm = load_tile(prior_mean, first_row, first_col, mask, DTYPE)
            pv = load_tile(prior_log_var, first_row, first_col, mask, DTYPE)
            kl, scaled, ratio_minus_1, distance = normal_kl_term(m, v, pm, pv)
        g = load_column(grad_kl, first_row, rows, ROWS, DTYPE)
        if free_bits is not None:
            g = tl.where(kl < least_kl(free_bits, DTYPE), 0.0, g)
        d_mean = tl.fma(g, scaled, d_mean)
        d_log_var = tl.fma(0.5 * g, ratio_minus_1, d_log_var)
        if grad_prior_mean is not None:
            store_tile(grad_prior_mean, cols, first_row, first_col, mask, -g * scaled)
        if grad_prior_log_var is not None:
            d_prior_log_var = -0.5 * g * (ratio_minus_1 + distance)
            store_tile(grad_prior_log_var, cols, first_row, first_col, mask, d_prior_log_var)
    store_tile(grad_mean, cols, first_row, first_col, mask, d_mean)
    store_tile(grad_log_var, cols, first_row, first_col, mask, d_log_var)


def normal_rsample_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None,
    prior_log_var: Tensor | None,
    free_bits: Tensor | float | None,
    key: Tensor,
    first_sample: int,
    prior_needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """variate::normal_rsample_kl_backward"""
    rows, cols = rows_and_cols(mean.shape)
    dtype, compute = compute_dtype(mean, log_var, prior_mean, prior_log_var)
    # Without grad_kl no kernel writes the prior's gradients.
    empty = torch.empty if grad_kl is not None else torch.zeros
    grad_mean = torch.empty(mean.shape, dtype=mean.dtype, device=mean.device)
    grad_log_var = torch.empty(log_var.shape, dtype=log_var.dtype, device=mean.device)
    grad_priors = [
        empty(prior.shape, dtype=prior.dtype, device=mean.device) if prior_needs_grad and prior is not None else None
        for prior in (prior_mean, prior_log_var)
    ]
    if mean.numel() > 0:
        launch_tiles(
            _normal_rsample_kl_backward_kernel, rows, cols, key.contiguous(), first_sample,
            view(grad_z, rows), None if grad_kl is None else (grad_kl, grad_kl.stride(0)), view(mean, rows),
            view(log_var, rows), view(prior_mean, rows), view(prior_log_var, rows),
            scalar(free_bits, dtype, mean.device), grad_mean, grad_log_var, *grad_priors,
            device=mean.device, BATCHED=key.dim() > 1, DTYPE=compute,
        )  # fmt: skip
    grad_prior_mean, grad_prior_log_var = (mean.new_empty(0) if g is None else g for g in grad_priors)
    return grad_mean, grad_log_var, grad_prior_mean, grad_prior_log_var


# variate_base and variate_parametrization.
NORMAL, LOGISTIC, LAPLACE, GUMBEL = (tl.constexpr(base) for base in range(4))
LOG_VAR, LOG_SCALE, SCALE = (tl.constexpr(parametrization) for parametrization in range(3))

DRAWS = 4  # of a forward program
SUMMANDS = 16  # samples that a backward program adds up
MAX_LAYERS = 65535


@triton.jit
def draw_key(seed, offset, draw):
    """The key itself for draw 0, fold_in(key, draw) for others."""
    folded_seed, folded_offset = fold_in_key(seed, offset, seed * 0 + draw)
    return tl.where(draw == 0, seed, folded_seed), tl.where(draw == 0, offset, folded_offset)


@triton.jit
def tile_noise(seed, offset, sample, first_col, COLS: tl.constexpr, BASE: tl.constexpr):
    """The noise of a tile, and its mirror image: that of the uniforms 1 - u."""
    if BASE == NORMAL:
        noise = tile_normals(seed, offset, sample, first_col, COLS)
        return noise, noise * -1.0
    else:
        w0, w1, w2, w3 = tile_words(seed, offset, sample, first_col, COLS)
        word = interleave4(w0, w1, w2, w3)
        if BASE == GUMBEL:
            return gumbel_draw(word), gumbel_draw(word ^ 0xFFFFFFFF)
        else:
            noise = logistic_draw(word) if BASE == LOGISTIC else laplace_draw(word)
            return noise, noise * -1.0


@triton.jit
def within(mask, k, samples):
    """The mask where k < samples, else nothing."""
    return mask & (tl.zeros(mask.shape, tl.int32) + k < samples)


@triton.jit
def sigma_of(spread, PARAMETRIZATION: tl.constexpr):
    """sigma, and d sigma / d spread."""
    if PARAMETRIZATION == SCALE:
        return spread, spread * 0.0 + 1.0
    elif PARAMETRIZATION == LOG_SCALE:
        sigma = exp(spread)
        return sigma, sigma
    else:
        sigma = exp(0.5 * spread)
        return sigma, 0.5 * sigma


@triton.jit(do_not_specialize=["first_sample", "draws", "samples"])
def _location_scale_rsample_kernel(key, first_sample, loc, scale, z, sample_stride, draws, samples, rows, cols,
                                   ROWS: tl.constexpr, COLS: tl.constexpr, BATCHED: tl.constexpr,
                                   ANTITHETIC: tl.constexpr, BASE: tl.constexpr, PARAMETRIZATION: tl.constexpr,
                                   DTYPE: tl.constexpr):  # fmt: skip
    """z[k] = loc + sigma noise[k] for the samples of `draws` draws; with ANTITHETIC a draw is two of them."""
    WIDTH: tl.constexpr = 2 if ANTITHETIC else 1
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    m = load_tile(loc, first_row, first_col, mask, DTYPE)
    sigma = sigma_of(load_tile(scale, first_row, first_col, mask, DTYPE), PARAMETRIZATION)[0]
    seed, offset, sample = load_key(key, first_row + tl.arange(0, ROWS), rows, first_sample, BATCHED)
    first_draw = tl.program_id(1) * draws
    for i in range(draws):
        draw = first_draw + i
        draw_seed, draw_offset = draw_key(seed, offset, draw)
        noise, mirrored = tile_noise(draw_seed, draw_offset, sample, first_col, COLS, BASE)
        k = WIDTH * draw
        z_k = z + k.to(tl.int64) * sample_stride
        store_tile(z_k, cols, first_row, first_col, within(mask, k, samples), tl.fma(sigma, noise.to(DTYPE), m))
        if ANTITHETIC:
            value = tl.fma(sigma, mirrored.to(DTYPE), m)
            store_tile(z_k + sample_stride, cols, first_row, first_col, within(mask, k + 1, samples), value)


def location_scale_rsample(
    loc: Tensor,
    scale: Tensor,
    key: Tensor,
    first_sample: int,
    samples: int,
    antithetic: bool,
    base: int,
    parametrization: int,
) -> Tensor:
    """variate::location_scale_rsample"""
    rows, cols = rows_and_cols(loc.shape)
    shape = (samples, *loc.shape) if samples else loc.shape
    z = torch.empty(shape, dtype=torch.promote_types(loc.dtype, scale.dtype), device=loc.device)
    if z.numel() > 0:
        count = max(samples, 1)
        draws = (count + 1) // 2 if antithetic else count
        each = max(min(draws, DRAWS), triton.cdiv(draws, MAX_LAYERS))
        launch_tiles(
            _location_scale_rsample_kernel, rows, cols, key.contiguous(), first_sample, view(loc, rows),
            view(scale, rows), z, loc.numel(), each, count, device=z.device, layers=triton.cdiv(draws, each),
            BATCHED=key.dim() > 1, ANTITHETIC=antithetic, BASE=base, PARAMETRIZATION=parametrization,
            DTYPE=compute_dtype(loc, scale)[1],
        )  # fmt: skip
    return z


@triton.jit(do_not_specialize=["first_sample", "summands", "samples"])
def _location_scale_rsample_backward_kernel(key, first_sample, grad_z, sample_stride, scale, grad_loc, grad_scale,
                                            layer_stride, summands, samples, rows, cols, ROWS: tl.constexpr,
                                            COLS: tl.constexpr, BATCHED: tl.constexpr, ANTITHETIC: tl.constexpr,
                                            BASE: tl.constexpr, PARAMETRIZATION: tl.constexpr,
                                            DTYPE: tl.constexpr):  # fmt: skip
    """grad_loc[layer] = a sum of grad_z[k], grad_scale[layer] = (d sigma / d scale) a sum of grad_z[k] noise[k].

    A layer is `summands` samples, an even number of them with ANTITHETIC.
    """
    WIDTH: tl.constexpr = 2 if ANTITHETIC else 1
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    seed, offset, sample = load_key(key, first_row + tl.arange(0, ROWS), rows, first_sample, BATCHED)
    total = tl.zeros([ROWS, COLS], DTYPE)
    noise_total = tl.zeros([ROWS, COLS], DTYPE)
    first = tl.program_id(1) * summands
    for i in range(0, summands, WIDTH):
        k = first + i
        draw_seed, draw_offset = draw_key(seed, offset, k // WIDTH)
        noise, mirrored = tile_noise(draw_seed, draw_offset, sample, first_col, COLS, BASE)
        at = k.to(tl.int64) * sample_stride
        g = load_tile((grad_z[0] + at, grad_z[1], grad_z[2]), first_row, first_col, within(mask, k, samples), DTYPE)
        total += g
        noise_total = tl.fma(g, noise.to(DTYPE), noise_total)
        if ANTITHETIC:
            view_1 = (grad_z[0] + (at + sample_stride), grad_z[1], grad_z[2])
            g = load_tile(view_1, first_row, first_col, within(mask, k + 1, samples), DTYPE)
            total += g
            noise_total = tl.fma(g, mirrored.to(DTYPE), noise_total)
    slope = sigma_of(load_tile(scale, first_row, first_col, mask, DTYPE), PARAMETRIZATION)[1]
    layer = tl.program_id(1).to(tl.int64) * layer_stride
    store_tile(grad_loc + layer, cols, first_row, first_col, mask, total)
    store_tile(grad_scale + layer, cols, first_row, first_col, mask, noise_total * slope)


def location_scale_rsample_backward(
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
    """variate::location_scale_rsample_backward"""
    rows, cols = rows_and_cols(loc.shape)
    dtype, compute = compute_dtype(loc, scale)
    count = max(samples, 1)
    summands = max(min(count + count % 2, SUMMANDS), triton.cdiv(count, 2 * MAX_LAYERS) * 2)
    layers = triton.cdiv(count, summands)
    grads = [
        torch.empty(t.shape if layers == 1 else (layers, *t.shape), dtype=t.dtype if layers == 1 else dtype,
                    device=loc.device)
        for t in (loc, scale)
    ]  # fmt: skip
    if loc.numel() > 0:
        samples_of = grad_z.reshape(count, rows, -1)
        launch_tiles(
            _location_scale_rsample_backward_kernel, rows, cols, key.contiguous(), first_sample,
            view(samples_of[0], rows), samples_of.stride(0), view(scale, rows), *grads, loc.numel(), summands, count,
            device=loc.device, layers=layers, BATCHED=key.dim() > 1, ANTITHETIC=antithetic, BASE=base,
            PARAMETRIZATION=parametrization, DTYPE=compute,
        )  # fmt: skip
    if layers > 1:
        grads = [grad.sum(0).to(t.dtype) for grad, t in zip(grads, (loc, scale), strict=True)]
    return grads[0], grads[1]
