"""Discretised logistic likelihoods: of images whose pixels have 2^bits levels, and their mixtures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate, _key

__all__ = ["discretized_logistic_mixture_nll", "discretized_logistic_mixture_sample", "discretized_logistic_nll"]

_EDGES = {"exact": 0, "compat": 1}
_LAYOUTS = {"nchw": False, "nhwc": True}
_BLOCKS = {1: 3, 3: 10}  # parameters of one component, by channels
_TARGETS = _checks.FLOATING | {torch.uint8}


def discretized_logistic_nll(
    mean: Tensor, log_scale: Tensor, target: Tensor, *, bits: int = 8, edges: str = "exact"
) -> Tensor:
    """nll_b = -sum_d log(sigmoid((x + h - mean) / s) - sigmoid((x - h - mean) / s)),  s = e^max(log_scale, -7),

    the probability that a logistic distribution gives to the bin of x = 2 target / (2^bits - 1) - 1, of half width
    h = 1 / (2^bits - 1). The outermost bins, |x| > 0.999, reach to infinity.

    Args:
        mean: [B, ...] float32, float64, bfloat16 or float16. A 1-D tensor is one sample.
        log_scale: floating, broadcast to the shape of mean. Below -7 it is -7 and gets no gradient.
        target: the shape of mean: uint8 levels 0 ... 2^bits - 1, or floating values x in [-1, 1]. It is data and gets
            no gradient. Low dtypes do not hold the values of 8 bits: pass uint8 there.
        bits: 1 to 8.
        edges: "exact" sums to 1 over the 2^bits levels. "compat" gives the numbers of PixelCNN++ and VDVAE: a bin of
            less than 1e-5 is charged the density at its middle times its width.

    Returns:
        [B] in nats: float64 where an input is, else float32.

    Raises:
        TypeError: a dtype that is not named above.
        ValueError: shapes or devices that do not fit; bits, edges or a target that is out of range (targets on a GPU
            are checked under ``variate.set_debug(True)``); a target that needs a gradient.

    Math is in float32, or float64 where an input is. Autocast leaves the inputs as they are.

    Source: Kingma et al. 2016, appendix B; Salimans et al. 2017, section 2.1.
    """
    _check_options(bits, edges)
    _checks.floating("mean", mean)
    _checks.floating("log_scale", log_scale)
    log_scale = _checks.expanded("log_scale", log_scale, "mean", mean)
    _check_target(target, bits, mean)
    _checks.same_shape("target", target, "mean", mean)
    op = _backend.select("discretized_logistic_nll", mean)
    if op is None or _gate.transformed():
        return reference.logistic.discretized_logistic_nll(mean, log_scale, target, bits=bits, edges=edges)
    if _gate.needs_grad(mean, log_scale):
        return _gate.apply(_DiscretizedLogisticNll, mean, log_scale, target, bits, _EDGES[edges])
    return op(mean, log_scale, target, bits, _EDGES[edges])


def discretized_logistic_mixture_nll(
    params: Tensor, target: Tensor, *, mixtures: int = 10, bits: int = 8, layout: str = "nchw", edges: str = "exact"
) -> Tensor:
    """nll_b = -sum_pixels log sum_m softmax(logits)_m prod_c P(x_c | mean_cm, log_scale_cm),

    P the bins of :func:`discretized_logistic_nll`. With three colours, and k = tanh(coefficients), red moves the other
    means: mean_1 + k_0 x_0 and mean_2 + k_1 x_0 + k_2 x_1.

    Args:
        params: [B, P, H, W], or [B, H, W, P] with layout "nhwc"; float32, float64, bfloat16 or float16. P is
            10 mixtures for three colours, 3 mixtures for one. In order: the logits of all mixtures; then for each
            colour the means, the log scales and, with three colours, the coefficients of all mixtures. That is the
            order of PixelCNN++, VDVAE and NVAE.
        target: [B, C, H, W], or [B, H, W, C]; C is 1 or 3. uint8 levels 0 ... 2^bits - 1, or floating values in
            [-1, 1]. It is data and gets no gradient. Low dtypes do not hold the values of 8 bits: pass uint8 there.
        mixtures: the number of components, at least 1.
        bits: 1 to 8.
        layout: "nchw" or "nhwc": the order of dimensions. Memory is another matter: channels_last tensors, and all
            whose height and width are one stride, are read in place; others are copied.
        edges: "exact" sums to 1 over all images of 2^bits levels; "compat" gives the published numbers.

    Returns:
        [B] in nats, summed over the image: float64 where an input is, else float32. VDVAE reports it divided by H W C.

    Raises:
        TypeError: a dtype that is not named above.
        ValueError: shapes or devices that do not fit; a channel count that does not fit ``mixtures``; an option or a
            target that is out of range (targets on a GPU are checked under ``variate.set_debug(True)``); a target
            that needs a gradient.

    Only the inputs are kept for the backward pass, whose memory is the gradient's. Math is in float32, or float64
    where an input is. Autocast leaves the inputs as they are.

    Source: Salimans et al. 2017, section 2; Child 2021, appendix.
    """
    _check_options(bits, edges)
    channels_last = _check_params(params, mixtures, layout)
    _check_target(target, bits, params)
    channels = _channels(params, mixtures, channels_last)
    expected = _with_channels(params.shape, channels, channels_last)
    if target.shape != expected:
        raise ValueError(
            f"target: expected shape {expected} for params of shape {tuple(params.shape)} and mixtures={mixtures} "
            f'in layout "{layout}", got {tuple(target.shape)}'
        )
    op = _backend.select("discretized_logistic_mixture_nll", params)
    if op is None or _gate.transformed():
        return reference.logistic.discretized_logistic_mixture_nll(
            params, target, mixtures=mixtures, bits=bits, layout=layout, edges=edges
        )
    if _gate.needs_grad(params):
        return _gate.apply(_DiscretizedLogisticMixtureNll, params, target, mixtures, bits, _EDGES[edges], channels_last)
    return op(params, target, mixtures, bits, _EDGES[edges], channels_last)


def discretized_logistic_mixture_sample(
    params: Tensor,
    *,
    mixtures: int = 10,
    bits: int = 8,
    layout: str = "nchw",
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    """Images drawn from :func:`discretized_logistic_mixture_nll` with edges "exact": at each pixel

    m = argmax(logits + Gumbel noise);  x_c = mean_cm + e^max(log_scale_cm, -7) logistic noise, colour by colour,
    each moved to the nearest of the 2^bits levels before it moves the means of the next.

    So an image of levels has exactly the probability that the likelihood gives it. VDVAE's sampler differs: its colours
    depend on the ones before as they were before rounding, clamped to [-1, 1], and its uniforms on [1e-5, 1 - 1e-5].

    Args:
        params, mixtures, bits, layout: as in :func:`discretized_logistic_mixture_nll`.
        key: int64 [2], or [B, 2] for a stream per sample; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of row 0 in the whole batch.

    Returns:
        uint8 levels [B, C, H, W] or [B, H, W, C]; the same levels in either layout. A NaN draws level 0.

    Raises:
        TypeError, ValueError: as :func:`discretized_logistic_mixture_nll`; a key of another shape.
        RuntimeError: under torch.func without a key.

    Pixel p takes elements p mixtures + m of the key for the component and p C + c of fold_in(key, 1) for its colours.
    """
    _check_options(bits, "exact")
    channels_last = _check_params(params, mixtures, layout)
    _channels(params, mixtures, channels_last)
    op = _backend.select("discretized_logistic_mixture_sample", params)
    if op is None or _gate.transformed_noise("discretized_logistic_mixture_sample", key):
        key = _key.check(key, generator, first_sample, params)
        return reference.logistic.discretized_logistic_mixture_sample(
            params,
            mixtures=mixtures,
            bits=bits,
            layout=layout,
            key=key,
            generator=generator,
            first_sample=first_sample,
        )
    key = _key.resolve(key, generator, first_sample, params)
    return op(params.detach(), mixtures, bits, channels_last, key, first_sample)


def _check_options(bits: int, edges: str) -> None:
    if type(bits) is not int:
        raise TypeError(f"bits: expected an int, got {type(bits).__name__}")
    if not 1 <= bits <= 8:
        raise ValueError(f"bits: expected 1 to 8, got {bits}")
    if edges not in _EDGES:
        raise ValueError(f'edges: expected "exact" or "compat", got {edges!r}')


def _check_target(target: Tensor, bits: int, like: Tensor) -> None:
    if not isinstance(target, Tensor) or target.dtype not in _TARGETS:
        dtype = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"target: expected a tensor of uint8 levels or floating values, got {dtype}")
    if _gate.needs_grad(target):
        raise ValueError("target: expected data, which gets no gradient, got a tensor that needs one; pass .detach()")
    _checks.same_device("target", target, "the parameters", like)
    _checks.levels("target", target, bits)


def _check_params(params: Tensor, mixtures: int, layout: str) -> bool:
    """Whether the channels are the last dimension."""
    if layout not in _LAYOUTS:
        raise ValueError(f'layout: expected "nchw" or "nhwc", got {layout!r}')
    if type(mixtures) is not int:
        raise TypeError(f"mixtures: expected an int, got {type(mixtures).__name__}")
    if mixtures < 1:
        raise ValueError(f"mixtures: expected at least 1, got {mixtures}")
    _checks.floating("params", params)
    if params.dim() != 4:
        shape = "[B, H, W, P]" if _LAYOUTS[layout] else "[B, P, H, W]"
        raise ValueError(f"params: expected shape {shape}, got {tuple(params.shape)}")
    return _LAYOUTS[layout]


def _channels(params: Tensor, mixtures: int, channels_last: bool) -> int:
    """The colours that this many parameters are for."""
    count = params.shape[-1 if channels_last else 1]
    for channels, blocks in _BLOCKS.items():
        if count == blocks * mixtures:
            return channels
    raise ValueError(
        f"params: expected {10 * mixtures} channels for three colours or {3 * mixtures} for one, with "
        f"mixtures={mixtures}, got {count} in shape {tuple(params.shape)}"
    )


def _with_channels(size: torch.Size, channels: int, channels_last: bool) -> tuple[int, ...]:
    return (*size[:-1], channels) if channels_last else (size[0], channels, *size[2:])


class _DiscretizedLogisticNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_scale: Tensor, target: Tensor, bits: int, edges: int) -> Tensor:
        ctx.save_for_backward(mean, log_scale, target)
        ctx.options = bits, edges
        return _backend.select("discretized_logistic_nll", mean)(mean, log_scale, target, bits, edges)

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        mean, log_scale, target = ctx.saved_tensors
        op = _backend.select("discretized_logistic_nll_backward", mean)
        grad_mean, grad_log_scale = op(grad_nll, mean, log_scale, target, *ctx.options)
        return grad_mean, grad_log_scale, None, None, None


class _DiscretizedLogisticMixtureNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, params: Tensor, target: Tensor, mixtures: int, bits: int, edges: int, channels_last: bool
    ) -> Tensor:
        ctx.save_for_backward(params, target)
        ctx.options = mixtures, bits, edges, channels_last
        return _backend.select("discretized_logistic_mixture_nll", params)(params, target, *ctx.options)

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        params, target = ctx.saved_tensors
        op = _backend.select("discretized_logistic_mixture_nll_backward", params)
        return op(grad_nll, params, target, *ctx.options), None, None, None, None, None


@_backend.register("discretized_logistic_nll", cuda=False)
def _(mean: Tensor, log_scale: Tensor, target: Tensor, bits: int, edges: int) -> Tensor:
    return mean.new_empty((_checks.rows_of(mean.shape),), dtype=_sum_dtype(mean, log_scale, target))


@_backend.register("discretized_logistic_nll_backward", cuda=False)
def _(
    grad_nll: Tensor, mean: Tensor, log_scale: Tensor, target: Tensor, bits: int, edges: int
) -> tuple[Tensor, Tensor]:
    return mean.new_empty(mean.shape), log_scale.new_empty(log_scale.shape)


@_backend.register("discretized_logistic_mixture_nll")
def _(params: Tensor, target: Tensor, mixtures: int, bits: int, edges: int, channels_last: bool) -> Tensor:
    return params.new_empty((params.shape[0],), dtype=_sum_dtype(params, target))


@_backend.register("discretized_logistic_mixture_nll_backward")
def _(
    grad_nll: Tensor, params: Tensor, target: Tensor, mixtures: int, bits: int, edges: int, channels_last: bool
) -> Tensor:
    channels_last_memory = params.is_contiguous(memory_format=torch.channels_last) and not params.is_contiguous()
    memory_format = torch.channels_last if channels_last_memory else torch.contiguous_format
    return torch.empty_like(params, memory_format=memory_format)


@_backend.register("discretized_logistic_mixture_sample", cuda=False)
def _(params: Tensor, mixtures: int, bits: int, channels_last: bool, key: Tensor, first_sample: int) -> Tensor:
    count = params.shape[-1 if channels_last else 1]
    channels = 3 if count == _BLOCKS[3] * mixtures else 1
    return params.new_empty(_with_channels(params.shape, channels, channels_last), dtype=torch.uint8)


def _sum_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
