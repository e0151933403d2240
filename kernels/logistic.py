"""Discretised logistic likelihoods, their mixtures and the sampler, the twin of variate/math/logistic.hpp.

A program of the mixture handles a block of pixels of one image, and goes through the components one by one.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import divide, exp, exponential, log, round_to_integer
from .philox import fold_in_key, load_key, noise_words
from .random import gumbel_draw, logistic_draw
from .tiles import (
    _row_sums_kernel,
    compute_dtype,
    launch,
    launch_row_sums,
    launch_tiles,
    load_column,
    load_tile,
    rows_and_cols,
    store_row_sums,
    store_tile,
    tile_mask,
    tile_start,
    tree_sum,
    view,
)

BLOCK = 128  # pixels of a program
WARPS = 8  # of a tile of bins, whose elements need more registers than those of other kernels


@triton.constexpr_function
def _half_bin(top):
    return 1 / top


@triton.constexpr_function
def _log_width(top):
    return math.log(2 / top)


@triton.jit
def log_any(x):
    """log(x) of a positive normal x; a NaN stays one."""
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        return tl.where(x == x, log(x), x)


@triton.jit
def tanh(x):
    """Without cancellation near 0."""
    e = exponential(-2.0 * tl.abs(x))[1]
    magnitude = divide(-e, e + 2.0)
    return tl.where(x < 0.0, -magnitude, magnitude)


@triton.jit
def bin_middle(level, TOP: tl.constexpr):
    """The value in [-1, 1] of a level."""
    return divide(level + level, tl.full(level.shape, TOP, level.dtype)) - 1.0


@triton.jit
def logistic_bin(x, mean, log_scale, TOP: tl.constexpr):
    """The bin of x: is it an outermost one, is its scale the least, and what its probability is made of.

    P = sigmoid(upper) - sigmoid(lower)
      = exp(min(upper, 0) - max(lower, 0)) (1 - exp(-width)) / ((1 + exp(-|upper|)) (1 + exp(-|lower|))).
    The outermost bins have an infinite upper or lower: 200 is as good.
    """
    low = x < -0.999
    high = x > 0.999
    floor = log_scale < -7.0
    log_scale = tl.where(floor, -7.0, log_scale)
    precision = exp(-log_scale)
    middle = (x - mean) * precision
    half = tl.full(x.shape, _half_bin(TOP), x.dtype) * precision
    upper = tl.where(high, 200.0, middle + half)
    lower = tl.where(low, -200.0, middle - half)
    width = tl.where(half + half < 1.4551915228366852e-11, 1.4551915228366852e-11, half + half)  # 2^-36
    complement = -exponential(-width)[1]
    exp_upper = exp(-tl.abs(upper))
    exp_lower = exp(-tl.abs(lower))
    return low | high, floor, log_scale, precision, middle, upper, lower, width, complement, exp_upper, exp_lower


@triton.jit
def bin_tails(v, reciprocal):
    """sigmoid(-upper) and sigmoid(lower), given 1 / ((1 + exp(-|upper|)) (1 + exp(-|lower|)))."""
    upper = reciprocal * (1.0 + v[10])
    lower = reciprocal * (1.0 + v[9])
    return tl.where(v[5] > 0.0, v[9] * upper, upper), tl.where(v[6] > 0.0, lower, v[10] * lower)


@triton.jit
def bin_probability(v, tails, TOP: tl.constexpr, COMPAT: tl.constexpr):
    """log P = linear + log(numerator / denominator), so that a product over colours takes one logarithm."""
    both = (1.0 + v[9]) * (1.0 + v[10])
    overlap = tl.where(v[5] > 0.0, 0.0, v[5]) - tl.where(v[6] < 0.0, 0.0, v[6])  # a NaN passes through
    log_width = tl.full(v[2].shape, _log_width(TOP), v[2].dtype) - v[2]
    linear = tl.where(v[0], overlap, overlap + log_width)
    numerator = tl.where(v[0], 1.0, v[8])
    denominator = tl.where(v[0], both, both * v[7])
    if COMPAT:
        thin = (1.0 - (tails[0] + tails[1]) <= 1e-5) & (v[0] == 0)
        root = 1.0 + exp(-tl.abs(v[4]))
        linear = tl.where(thin, log_width - tl.abs(v[4]), linear)
        numerator = tl.where(thin, 1.0, numerator)
        denominator = tl.where(thin, root * root, denominator)
    return linear, numerator, denominator


@triton.jit
def bin_of(x, mean, log_scale, TOP: tl.constexpr, COMPAT: tl.constexpr):
    """What bin_probability says of a bin."""
    v = logistic_bin(x, mean, log_scale, TOP)
    if COMPAT:
        one = tl.full(x.shape, 1.0, x.dtype)
        tails = bin_tails(v, divide(one, (1.0 + v[9]) * (1.0 + v[10])))
    else:
        tails = (x, x)
    return bin_probability(v, tails, TOP, COMPAT)


@triton.jit
def bin_gradient(x, mean, log_scale, TOP: tl.constexpr, COMPAT: tl.constexpr):
    """d log P / d mean = -(sigmoid(-upper) - sigmoid(lower)) / scale; d log P / d log_scale =
    lower sigmoid(lower) - upper sigmoid(-upper) - width / (exp(width) - 1), and 0 below the least scale."""
    v = logistic_bin(x, mean, log_scale, TOP)
    both = (1.0 + v[9]) * (1.0 + v[10])
    all_ = divide(tl.full(x.shape, 1.0, x.dtype), both * v[8])
    tails = bin_tails(v, all_ * v[8])
    width_term = v[7] * (1.0 - v[8]) * (all_ * both)
    d_mean = -v[3] * (tails[0] - tails[1])
    d_log_scale = tl.fma(v[6], tails[1], -v[5] * tails[0]) - tl.where(v[0], 0.0, width_term)
    if COMPAT:
        thin = (1.0 - (tails[0] + tails[1]) <= 1e-5) & (v[0] == 0)
        e = exp(-tl.abs(v[4]))
        slope = divide(1.0 - e, 1.0 + e)
        d_mean = tl.where(thin, -v[3] * tl.where(v[4] > 0.0, -slope, slope), d_mean)
        d_log_scale = tl.where(thin, tl.fma(tl.abs(v[4]), slope, -1.0), d_log_scale)
    return d_mean, tl.where(v[1], 0.0, d_log_scale)


# One logistic an element.


@triton.jit
def _nll_kernel(mean, log_scale, target, nll, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr,
                STEPS: tl.constexpr, TOP: tl.constexpr, COMPAT: tl.constexpr, LEVELS: tl.constexpr,
                DTYPE: tl.constexpr):  # fmt: skip
    """nll[r, chunk] = a sum of -log P."""
    first_row, first_col = tile_start(cols, ROWS, COLS * STEPS)
    total = tl.zeros([ROWS, COLS], DTYPE)
    for step in range(STEPS):
        col = first_col + step * COLS
        mask = tile_mask(first_row, col, rows, cols, ROWS, COLS)
        m = load_tile(mean, first_row, col, mask, DTYPE)
        s = load_tile(log_scale, first_row, col, mask, DTYPE)
        x = load_tile(target, first_row, col, mask, DTYPE)
        if LEVELS:
            x = bin_middle(x, TOP)
        linear, numerator, denominator = bin_of(x, m, s, TOP, COMPAT)
        total -= tl.where(mask, linear + log_any(divide(numerator, denominator)), 0.0)
    store_row_sums(nll, total, first_row, first_col, rows, cols, STEPS)


def discretized_logistic_nll(mean: Tensor, log_scale: Tensor, target: Tensor, bits: int, edges: int) -> Tensor:
    """variate::discretized_logistic_nll"""
    rows, cols = rows_and_cols(mean.shape)
    dtype, compute = compute_dtype(mean, log_scale, target)
    if mean.numel() == 0:
        return torch.zeros(rows, dtype=dtype, device=mean.device)
    nll = torch.empty(rows, dtype=dtype, device=mean.device)
    launch_row_sums(
        _nll_kernel, rows, cols, view(mean, rows), view(log_scale, rows), view(target, rows), out=nll,
        warps=WARPS, DTYPE=compute, **_bins(target, bits, edges),
    )  # fmt: skip
    return nll


@triton.jit
def _nll_backward_kernel(grad_nll, mean, log_scale, target, grad_mean, grad_log_scale, rows, cols,
                         ROWS: tl.constexpr, COLS: tl.constexpr, TOP: tl.constexpr, COMPAT: tl.constexpr,
                         LEVELS: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """The gradients of -log P."""
    first_row, first_col = tile_start(cols, ROWS, COLS)
    mask = tile_mask(first_row, first_col, rows, cols, ROWS, COLS)
    g = load_column(grad_nll, first_row, rows, ROWS, DTYPE)
    m = load_tile(mean, first_row, first_col, mask, DTYPE)
    s = load_tile(log_scale, first_row, first_col, mask, DTYPE)
    x = load_tile(target, first_row, first_col, mask, DTYPE)
    if LEVELS:
        x = bin_middle(x, TOP)
    d_mean, d_log_scale = bin_gradient(x, m, s, TOP, COMPAT)
    store_tile(grad_mean, cols, first_row, first_col, mask, -g * d_mean)
    store_tile(grad_log_scale, cols, first_row, first_col, mask, -g * d_log_scale)


def discretized_logistic_nll_backward(
    grad_nll: Tensor, mean: Tensor, log_scale: Tensor, target: Tensor, bits: int, edges: int
) -> tuple[Tensor, Tensor]:
    """variate::discretized_logistic_nll_backward"""
    rows, cols = rows_and_cols(mean.shape)
    grad_mean = torch.empty(mean.shape, dtype=mean.dtype, device=mean.device)
    grad_log_scale = torch.empty(mean.shape, dtype=log_scale.dtype, device=mean.device)
    if mean.numel() > 0:
        launch_tiles(
            _nll_backward_kernel, rows, cols, (grad_nll, grad_nll.stride(0)), view(mean, rows),
            view(log_scale, rows), view(target, rows), grad_mean, grad_log_scale, device=mean.device, warps=WARPS,
            DTYPE=compute_dtype(mean, log_scale, target)[1], **_bins(target, bits, edges),
        )  # fmt: skip
    return grad_mean, grad_log_scale


def _bins(target: Tensor, bits: int, edges: int) -> dict[str, int | bool]:
    """The constants of a kernel that reads levels."""
    return {"TOP": 2**bits - 1, "COMPAT": edges == 1, "LEVELS": not target.dtype.is_floating_point}


# The mixture.


def _image(tensor: Tensor, channels_last: bool) -> tuple[Tensor, int, int, int]:
    """An image tensor with its batch, pixel and channel strides; copied where height and width have no common one."""
    row = 1 if channels_last else 2
    height, width = tensor.shape[row : row + 2]
    if height > 1 and width > 1 and tensor.stride(row) != width * tensor.stride(row + 1):
        tensor = tensor.contiguous()
    pixel = tensor.stride(row + 1 if width > 1 else row)
    return tensor, tensor.stride(0), pixel, tensor.stride(3 if channels_last else 1)


@triton.jit
def block_start(pixels, BLOCK: tl.constexpr):
    """The image of a program, in 64 bits, and the pixels of its block, of which some may be beyond the image."""
    blocks = (pixels - 1) // BLOCK + 1
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def pixel_pointers(image, batch, pixel):
    """The addresses of the first channel of pixels."""
    return image[0] + batch * image[1] + pixel * image[2]


@triton.jit
def load_value(pointers, channel_stride, channel, mask, DTYPE: tl.constexpr):
    return tl.load(pointers + channel * channel_stride, mask, other=0).to(DTYPE)


@triton.jit
def store_value(pointers, channel_stride, channel, mask, value):
    """Rounded to the dtype of the image, to 16 bits by way of float32."""
    if value.dtype == tl.float64 and pointers.dtype.element_ty.primitive_bitwidth == 16:
        value = value.to(tl.float32)
    tl.store(pointers + channel * channel_stride, value, mask)


@triton.jit
def load_target(target, batch, pixel, mask, CHANNELS: tl.constexpr, TOP: tl.constexpr, LEVELS: tl.constexpr,
                DTYPE: tl.constexpr):  # fmt: skip
    """The colours of pixels in [-1, 1]; a grey one three times."""
    pointers = pixel_pointers(target, batch, pixel)
    x0 = load_value(pointers, target[3], 0, mask, DTYPE)
    x1 = x0
    x2 = x0
    if CHANNELS == 3:
        x1 = load_value(pointers, target[3], 1, mask, DTYPE)
        x2 = load_value(pointers, target[3], 2, mask, DTYPE)
    if LEVELS:
        x0 = bin_middle(x0, TOP)
        x1 = bin_middle(x1, TOP)
        x2 = bin_middle(x2, TOP)
    return x0, x1, x2


@triton.jit
def load_component(parameters, stride, m, x0, x1, mask, CHANNELS: tl.constexpr, MIXTURES: tl.constexpr,
                   DTYPE: tl.constexpr):  # fmt: skip
    """The means of a component, moved by the colours before, its log scales and its coefficients."""
    mean0 = load_value(parameters, stride, MIXTURES + m, mask, DTYPE)
    scale0 = load_value(parameters, stride, 2 * MIXTURES + m, mask, DTYPE)
    mean1 = mean0
    mean2 = mean0
    scale1 = scale0
    scale2 = scale0
    k0 = mean0
    k1 = mean0
    k2 = mean0
    if CHANNELS == 3:
        k0 = tanh(load_value(parameters, stride, 3 * MIXTURES + m, mask, DTYPE))
        mean1 = tl.fma(k0, x0, load_value(parameters, stride, 4 * MIXTURES + m, mask, DTYPE))
        scale1 = load_value(parameters, stride, 5 * MIXTURES + m, mask, DTYPE)
        k1 = tanh(load_value(parameters, stride, 6 * MIXTURES + m, mask, DTYPE))
        mean2 = tl.fma(k1, x0, load_value(parameters, stride, 7 * MIXTURES + m, mask, DTYPE))
        scale2 = load_value(parameters, stride, 8 * MIXTURES + m, mask, DTYPE)
        k2 = tanh(load_value(parameters, stride, 9 * MIXTURES + m, mask, DTYPE))
        mean2 = tl.fma(k2, x1, mean2)
    return mean0, mean1, mean2, scale0, scale1, scale2, k0, k1, k2


@triton.jit
def joint_log_prob(logit, p, x0, x1, x2, CHANNELS: tl.constexpr, TOP: tl.constexpr, COMPAT: tl.constexpr):
    """logit + log of the product of the colours' probabilities."""
    linear, numerator, denominator = bin_of(x0, p[0], p[3], TOP, COMPAT)
    if CHANNELS == 3:
        linear1, numerator1, denominator1 = bin_of(x1, p[1], p[4], TOP, COMPAT)
        linear2, numerator2, denominator2 = bin_of(x2, p[2], p[5], TOP, COMPAT)
        linear = linear + linear1 + linear2
        numerator = numerator * numerator1 * numerator2
        denominator = denominator * denominator1 * denominator2
    return logit + (linear + log_any(divide(numerator, denominator)))


@triton.jit
def add_exp(x, most, total):
    """A sum of exp(x - most), kept relative to the largest x; nothing is -infinity."""
    larger = tl.where(x > most, x, most)
    base = tl.where(larger == float("-inf"), 0.0, larger)
    return larger, total * exp(most - base) + exp(x - base)


@triton.jit
def log_sums(parameters, stride, x0, x1, x2, mask, CHANNELS: tl.constexpr, MIXTURES: tl.constexpr, TOP: tl.constexpr,
             COMPAT: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """Largest value and relative sum of exp, of joint log probabilities and of logits."""
    most = tl.full(x0.shape, float("-inf"), DTYPE)
    total = tl.zeros(x0.shape, DTYPE)
    most_logit = most
    total_logit = total
    for m in range(MIXTURES):
        logit = load_value(parameters, stride, m, mask, DTYPE)
        p = load_component(parameters, stride, m, x0, x1, mask, CHANNELS, MIXTURES, DTYPE)
        joint = joint_log_prob(logit, p, x0, x1, x2, CHANNELS, TOP, COMPAT)
        most, total = add_exp(joint, most, total)
        most_logit, total_logit = add_exp(logit, most_logit, total_logit)
    return most, total, most_logit, total_logit


@triton.jit
def _mixture_kernel(parameters, target, nll, pixels, CHANNELS: tl.constexpr, MIXTURES: tl.constexpr, TOP: tl.constexpr,
                    COMPAT: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """nll[b, block] = a sum of -log of the mixture's probabilities."""
    batch, pixel = block_start(pixels, BLOCK)
    mask = pixel < pixels
    x0, x1, x2 = load_target(target, batch, pixel, mask, CHANNELS, TOP, LEVELS, DTYPE)
    pointers = pixel_pointers(parameters, batch, pixel)
    most, total, most_logit, total_logit = log_sums(
        pointers, parameters[3], x0, x1, x2, mask, CHANNELS, MIXTURES, TOP, COMPAT, DTYPE
    )
    terms = tl.where(mask, (most_logit - most) + log_any(divide(total_logit, total)), 0.0)
    sums = tree_sum(tl.reshape(terms, [1, BLOCK]), 1, BLOCK)
    tl.store(nll + tl.program_id(0).to(tl.int64) + tl.arange(0, 1), sums)


def discretized_logistic_mixture_nll(
    params: Tensor, target: Tensor, mixtures: int, bits: int, edges: int, channels_last: bool
) -> Tensor:
    """variate::discretized_logistic_mixture_nll"""
    dtype, compute = compute_dtype(params, target)
    batch, pixels, channels = _sizes(params, mixtures, channels_last)
    nll = torch.empty(batch, dtype=dtype, device=params.device)
    if batch * pixels == 0:
        return nll.zero_()
    blocks = triton.cdiv(pixels, BLOCK)
    partial = nll if blocks == 1 else nll.new_empty(batch, blocks)
    launch(
        _mixture_kernel, batch * blocks, _image(params, channels_last), _image(target, channels_last), partial, pixels,
        device=params.device, CHANNELS=channels, MIXTURES=mixtures, BLOCK=BLOCK, DTYPE=compute,
        **_bins(target, bits, edges),
    )  # fmt: skip
    if blocks > 1:
        launch_row_sums(_row_sums_kernel, batch, blocks, view(partial, batch), out=nll)
    return nll


@triton.jit
def _mixture_backward_kernel(grad_nll, parameters, target, grad_params, pixels, CHANNELS: tl.constexpr,
                             MIXTURES: tl.constexpr, TOP: tl.constexpr, COMPAT: tl.constexpr, LEVELS: tl.constexpr,
                             BLOCK: tl.constexpr, DTYPE: tl.constexpr):  # fmt: skip
    """grad_params, in two passes over the components: the second knows their responsibilities."""
    batch, pixel = block_start(pixels, BLOCK)
    mask = pixel < pixels
    x0, x1, x2 = load_target(target, batch, pixel, mask, CHANNELS, TOP, LEVELS, DTYPE)
    pointers = pixel_pointers(parameters, batch, pixel)
    out = pixel_pointers(grad_params, batch, pixel)
    most, total, most_logit, total_logit = log_sums(
        pointers, parameters[3], x0, x1, x2, mask, CHANNELS, MIXTURES, TOP, COMPAT, DTYPE
    )
    g = tl.load(grad_nll[0] + batch * grad_nll[1]).to(DTYPE) + tl.zeros([BLOCK], DTYPE)
    reciprocal = divide(g, total)
    reciprocal_logit = divide(g, total_logit)
    for m in range(MIXTURES):
        logit = load_value(pointers, parameters[3], m, mask, DTYPE)
        p = load_component(pointers, parameters[3], m, x0, x1, mask, CHANNELS, MIXTURES, DTYPE)
        joint = joint_log_prob(logit, p, x0, x1, x2, CHANNELS, TOP, COMPAT)
        minus = -exp(joint - most) * reciprocal
        store_value(out, grad_params[3], m, mask, tl.fma(exp(logit - most_logit), reciprocal_logit, minus))
        d_mean, d_scale = bin_gradient(x0, p[0], p[3], TOP, COMPAT)
        store_value(out, grad_params[3], MIXTURES + m, mask, d_mean * minus)
        store_value(out, grad_params[3], 2 * MIXTURES + m, mask, d_scale * minus)
        if CHANNELS == 3:
            d_mean, d_scale = bin_gradient(x1, p[1], p[4], TOP, COMPAT)
            d_mean = d_mean * minus
            store_value(out, grad_params[3], 3 * MIXTURES + m, mask, d_mean * x0 * tl.fma(-p[6], p[6], 1.0))
            store_value(out, grad_params[3], 4 * MIXTURES + m, mask, d_mean)
            store_value(out, grad_params[3], 5 * MIXTURES + m, mask, d_scale * minus)
            d_mean, d_scale = bin_gradient(x2, p[2], p[5], TOP, COMPAT)
            d_mean = d_mean * minus
            store_value(out, grad_params[3], 6 * MIXTURES + m, mask, d_mean * x0 * tl.fma(-p[7], p[7], 1.0))
            store_value(out, grad_params[3], 7 * MIXTURES + m, mask, d_mean)
            store_value(out, grad_params[3], 8 * MIXTURES + m, mask, d_scale * minus)
            store_value(out, grad_params[3], 9 * MIXTURES + m, mask, d_mean * x1 * tl.fma(-p[8], p[8], 1.0))


def discretized_logistic_mixture_nll_backward(
    grad_nll: Tensor, params: Tensor, target: Tensor, mixtures: int, bits: int, edges: int, channels_last: bool
) -> Tensor:
    """variate::discretized_logistic_mixture_nll_backward"""
    formatted = params.is_contiguous(memory_format=torch.channels_last) and not params.is_contiguous()
    grad_params = torch.empty_like(params, memory_format=torch.channels_last if formatted else torch.contiguous_format)
    batch, pixels, channels = _sizes(params, mixtures, channels_last)
    if batch * pixels > 0:
        launch(
            _mixture_backward_kernel, batch * triton.cdiv(pixels, BLOCK), (grad_nll, grad_nll.stride(0)),
            _image(params, channels_last), _image(target, channels_last), _image(grad_params, channels_last), pixels,
            device=params.device, CHANNELS=channels, MIXTURES=mixtures, BLOCK=BLOCK,
            DTYPE=compute_dtype(params, target)[1], **_bins(target, bits, edges),
        )  # fmt: skip
    return grad_params


def _sizes(params: Tensor, mixtures: int, channels_last: bool) -> tuple[int, int, int]:
    """Batch, pixels and colours."""
    count = params.shape[3 if channels_last else 1]
    height, width = params.shape[1:3] if channels_last else params.shape[2:]
    return params.shape[0], height * width, 3 if count == 10 * mixtures else 1


# Sampling.


@triton.jit
def element_word(seed, offset, sample, element):
    """The word of each element."""
    w0, w1, w2, w3 = noise_words(seed, offset, element // 4, sample, 0)
    lane = element % 4
    return tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))


@triton.jit
def logistic_level(draw, mean, log_scale, TOP: tl.constexpr):
    """The level, of 0 ... TOP, that is nearest to mean + exp(max(log_scale, -7)) draw; a NaN stays one."""
    half: tl.constexpr = 0.5 * TOP
    scale = exp(tl.where(log_scale < -7.0, -7.0, log_scale))
    level = tl.fma(tl.fma(scale, draw, mean), half, half)
    level = tl.where(level < 0.0, 0.0, level)
    level = tl.where(level > TOP, TOP, level)
    if level.dtype == tl.float64:
        return (level + 6755399441055744.0) - 6755399441055744.0  # 1.5 * 2^52
    else:
        return round_to_integer(level)[0]


@triton.jit(do_not_specialize=["first_sample"])
def _mixture_sample_kernel(key, first_sample, parameters, out, rows, pixels, CHANNELS: tl.constexpr,
                           MIXTURES: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr, BATCHED: tl.constexpr,
                           DTYPE: tl.constexpr):  # fmt: skip
    """out = levels: a component by Gumbel noise, then each colour given those before it."""
    batch, pixel = block_start(pixels, BLOCK)
    seed, offset, sample = load_key(key, batch + tl.arange(0, 1), rows, first_sample, BATCHED)
    pixel = pixel[None, :]
    mask = pixel < pixels
    pointers = pixel_pointers(parameters, batch, pixel)
    best = tl.full([1, BLOCK], float("-inf"), DTYPE)
    chosen = tl.zeros([1, BLOCK], tl.int64)
    for m in range(MIXTURES):
        word = element_word(seed, offset, sample, pixel * MIXTURES + m)
        score = load_value(pointers, parameters[3], m, mask, DTYPE) + gumbel_draw(word).to(DTYPE)
        # The first of equals wins, and the first NaN over everything.
        wins = (score > best) | ((score != score) & (best == best))
        best = tl.where(wins, score, best)
        chosen = tl.where(wins, m, chosen)
    own_seed, own_offset = fold_in_key(seed, offset, seed * 0 + 1)
    samples = pixel_pointers(out, batch, pixel)
    x0 = tl.zeros([1, BLOCK], DTYPE)
    x1 = x0
    for c in tl.static_range(CHANNELS):
        noise = logistic_draw(element_word(own_seed, own_offset, sample, pixel * CHANNELS + c)).to(DTYPE)
        first = (1 + 3 * c) * MIXTURES + chosen
        mean = load_value(pointers, parameters[3], first, mask, DTYPE)
        log_scale = load_value(pointers, parameters[3], first + MIXTURES, mask, DTYPE)
        if c == 1:
            mean = tl.fma(tanh(load_value(pointers, parameters[3], 3 * MIXTURES + chosen, mask, DTYPE)), x0, mean)
        if c == 2:
            mean = tl.fma(tanh(load_value(pointers, parameters[3], 6 * MIXTURES + chosen, mask, DTYPE)), x0, mean)
            mean = tl.fma(tanh(load_value(pointers, parameters[3], 9 * MIXTURES + chosen, mask, DTYPE)), x1, mean)
        level = logistic_level(noise, mean, log_scale, TOP)
        if c == 0:
            x0 = bin_middle(level, TOP)
        else:
            x1 = bin_middle(level, TOP)
        tl.store(samples + c * out[3], tl.where(level == level, level, 0.0).to(tl.int32).to(tl.uint8), mask)


def discretized_logistic_mixture_sample(
    params: Tensor, mixtures: int, bits: int, channels_last: bool, key: Tensor, first_sample: int
) -> Tensor:
    """variate::discretized_logistic_mixture_sample"""
    batch, pixels, channels = _sizes(params, mixtures, channels_last)
    size = (*params.shape[:3], channels) if channels_last else (batch, channels, *params.shape[2:])
    sample = torch.empty(size, dtype=torch.uint8, device=params.device)
    if batch * pixels > 0:
        launch(
            _mixture_sample_kernel, batch * triton.cdiv(pixels, BLOCK), key.contiguous(), first_sample,
            _image(params, channels_last), _image(sample, channels_last), batch, pixels, device=params.device,
            CHANNELS=channels, MIXTURES=mixtures, TOP=2**bits - 1, BLOCK=BLOCK, BATCHED=key.dim() > 1,
            DTYPE=compute_dtype(params)[1],
        )  # fmt: skip
    return sample
