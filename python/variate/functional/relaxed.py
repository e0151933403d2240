"""Relaxed and straight-through samples of discrete variables: draws with a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import _backend, _checks, _gate, _key

__all__ = [
    "bernoulli_straight_through",
    "categorical_straight_through",
    "gumbel_softmax",
    "relaxed_bernoulli_rsample",
]


def gumbel_softmax(
    logits: Tensor,
    tau: float | Tensor = 1,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    """y = softmax((logits + g) / tau),  g = -log(-log u) the standard Gumbel: torch.nn.functional.gumbel_softmax.

    Args:
        logits: [B, ...] float32, float64, bfloat16 or float16: log-probabilities, normalised or not. A 1-D tensor is
            one sample. -inf has probability 0; +inf is certain, and shares with others that are.
        tau: the temperature, above 0: a number, or a 0-d tensor that may change under torch.compile and is not checked.
        hard: 1 at the largest of logits + g, the first of equals, and 0 elsewhere, with the gradient of the soft y.
        eps: has no effect, as in torch.
        dim: the dimension of the categories. The noise is that of the tensor with this dimension moved last: dimension
            0 of what is left is the sample, an element's index is row-major.
        key: int64 [2], or [B, 2] for a stream per sample; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of row 0 in the whole batch.

    Returns:
        y with the shape and dtype of logits. Neither infinite nor NaN, but for a category whose group has a NaN.

    Raises:
        TypeError: logits is not a tensor of a dtype named above, tau not a number.
        ValueError: logits without a dimension, dim out of range, tau at 0 or below, a key of another shape.
        RuntimeError: under torch.func without a key.

    The gradient is (y / tau) (g - sum y g). It is made of y, which is all that is kept; with `hard` of the logits and
    the noise, drawn again. tau gets none.

    Source: Jang, Gu and Poole 2017; Maddison, Mnih and Teh 2017.
    """
    _checks.floating("logits", logits)
    dims = logits.dim()
    if dims == 0:
        raise ValueError("logits: expected at least one dimension, got shape ()")
    if not -dims <= dim < dims:
        raise ValueError(f"dim: expected {-dims} <= dim < {dims}, got {dim}")
    if dim not in (-1, dims - 1):
        moved = gumbel_softmax(
            logits.movedim(dim, -1), tau, hard, key=key, generator=generator, first_sample=first_sample
        )
        return moved.movedim(-1, dim)
    temperature = _checks.positive("tau", tau, logits)
    op = _backend.select("gumbel_softmax", logits)
    if op is None or _gate.transformed_noise("gumbel_softmax", key):
        key = _key.check(key, generator, first_sample, logits)
        return reference.relaxed.gumbel_softmax(
            logits, tau, hard, key=key, generator=generator, first_sample=first_sample
        )
    key = _key.resolve(key, generator, first_sample, logits)
    if _gate.needs_grad(logits):
        return _gate.apply(_GumbelSoftmax, logits, temperature, key, first_sample, bool(hard))
    return op(logits, temperature, key, first_sample, bool(hard))


def relaxed_bernoulli_rsample(
    logits: Tensor,
    temperature: float | Tensor,
    hard: bool = False,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    """z = sigmoid((logits + eps) / temperature),  eps = log u - log(1 - u) the standard logistic.

    Args:
        logits: [B, ...] float32, float64, bfloat16 or float16. A 1-D tensor is one sample.
        temperature: above 0: a number, or a 0-d tensor that may change under torch.compile and is not checked.
        hard: 1 where z > 1/2, else 0, with the gradient of the soft z.
        key: int64 [2], or [B, 2] for a stream per sample; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of row 0 in the whole batch.

    Returns:
        z in [0, 1] with the shape and dtype of logits.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`gumbel_softmax`.

    The gradient is z (1 - z) / temperature, from z, which is all that is kept; with `hard` from the logits and the
    noise, drawn again. The temperature gets none.

    Source: Maddison, Mnih and Teh 2017, section 3.
    """
    _checks.floating("logits", logits)
    number = _checks.positive("temperature", temperature, logits)
    op = _backend.select("relaxed_bernoulli_rsample", logits)
    if op is None or _gate.transformed_noise("relaxed_bernoulli_rsample", key):
        key = _key.check(key, generator, first_sample, logits)
        return reference.relaxed.relaxed_bernoulli_rsample(
            logits, temperature, hard, key=key, generator=generator, first_sample=first_sample
        )
    key = _key.resolve(key, generator, first_sample, logits)
    if _gate.needs_grad(logits):
        return _gate.apply(_RelaxedBernoulli, logits, number, key, first_sample, bool(hard))
    return op(logits, number, key, first_sample, bool(hard))


def bernoulli_straight_through(
    logits: Tensor,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    """x ~ Bernoulli(p), p = sigmoid(logits), whose gradient is that of p: x + p - p.detach().

    Args:
        logits: [B, ...] float32, float64, bfloat16 or float16. A 1-D tensor is one sample.
        key: int64 [2], or [B, 2] for a stream per sample; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of row 0 in the whole batch.

    Returns:
        0 and 1 with the shape and dtype of logits: the draws of ``variate.random.bernoulli(p)`` by the same key.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`gumbel_softmax`.

    The gradient is p (1 - p).

    Source: Bengio, Leonard and Courville 2013.
    """
    _checks.floating("logits", logits)
    op = _backend.select("bernoulli_straight_through", logits)
    if op is None or _gate.transformed_noise("bernoulli_straight_through", key):
        key = _key.check(key, generator, first_sample, logits)
        return reference.relaxed.bernoulli_straight_through(
            logits, key=key, generator=generator, first_sample=first_sample
        )
    key = _key.resolve(key, generator, first_sample, logits)
    if _gate.needs_grad(logits):
        return _gate.apply(_BernoulliStraightThrough, logits, key, first_sample)
    return op(logits, key, first_sample)


def categorical_straight_through(
    logits: Tensor,
    *,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
) -> Tensor:
    """x one-hot with probability p = softmax(logits), whose gradient is that of p: x + p - p.detach().

    Args:
        logits: [B, ..., K] float32, float64, bfloat16 or float16; the categories are the last dimension. A 1-D tensor
            is one sample.
        key: int64 [2], or [B, 2] for a stream per sample; drawn from torch's generator where it is left out.
        generator: the generator that draws it (eager code only).
        first_sample: the index of row 0 in the whole batch.

    Returns:
        One-hot, with the shape and dtype of logits: ``variate.random.categorical(logits)`` by the same key.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`gumbel_softmax`.

    The gradient is p (g - sum p g).

    Source: Bengio, Leonard and Courville 2013; torch.distributions.OneHotCategoricalStraightThrough.
    """
    _checks.floating("logits", logits)
    if logits.dim() == 0:
        raise ValueError("logits: expected at least one dimension, got shape ()")
    op = _backend.select("gumbel_softmax", logits)
    if op is None or _gate.transformed_noise("categorical_straight_through", key):
        key = _key.check(key, generator, first_sample, logits)
        return reference.relaxed.categorical_straight_through(
            logits, key=key, generator=generator, first_sample=first_sample
        )
    key = _key.resolve(key, generator, first_sample, logits)
    if _gate.needs_grad(logits):
        return _gate.apply(_CategoricalStraightThrough, logits, key, first_sample)
    return op(logits, None, key, first_sample, True)


class _GumbelSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, temperature: Tensor | None, key: Tensor, first_sample: int, hard: bool
    ) -> Tensor:
        y: Tensor = _backend.select("gumbel_softmax", logits)(logits, temperature, key, first_sample, hard)
        ctx.first_sample = first_sample
        ctx.save_for_backward(*((None, logits, temperature, key) if hard else (y, None, temperature, None)))
        return y

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        op = _backend.select("gumbel_softmax_backward", grad_y)
        return op(grad_y, *ctx.saved_tensors, ctx.first_sample), None, None, None, None


class _CategoricalStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, key: Tensor, first_sample: int) -> Tensor:
        ctx.save_for_backward(logits)
        return _backend.select("gumbel_softmax", logits)(logits, None, key, first_sample, True)

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        op = _backend.select("gumbel_softmax_backward", grad_y)
        return op(grad_y, None, *ctx.saved_tensors, None, None, 0), None, None


class _RelaxedBernoulli(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, temperature: Tensor | None, key: Tensor, first_sample: int, hard: bool
    ) -> Tensor:
        op = _backend.select("relaxed_bernoulli_rsample", logits)
        z: Tensor = op(logits, temperature, key, first_sample, hard)
        ctx.first_sample = first_sample
        ctx.save_for_backward(*((None, logits, temperature, key) if hard else (z, None, temperature, None)))
        return z

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        op = _backend.select("relaxed_bernoulli_rsample_backward", grad_z)
        return op(grad_z, *ctx.saved_tensors, ctx.first_sample), None, None, None, None


class _BernoulliStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, key: Tensor, first_sample: int) -> Tensor:
        ctx.save_for_backward(logits)
        return _backend.select("bernoulli_straight_through", logits)(logits, key, first_sample)

    @staticmethod
    @_gate.differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        op = _backend.select("relaxed_bernoulli_rsample_backward", grad)
        return op(grad, None, *ctx.saved_tensors, None, None, 0), None, None


@_backend.register("gumbel_softmax", cuda=False)
def _(logits: Tensor, temperature: Tensor | None, key: Tensor, first_sample: int, hard: bool) -> Tensor:
    return logits.new_empty(logits.shape)


@_backend.register("relaxed_bernoulli_rsample", cuda=False)
def _(logits: Tensor, temperature: Tensor | None, key: Tensor, first_sample: int, hard: bool) -> Tensor:
    return logits.new_empty(logits.shape)


@_backend.register("bernoulli_straight_through", cuda=False)
def _(logits: Tensor, key: Tensor, first_sample: int) -> Tensor:
    return logits.new_empty(logits.shape)


def _grad_of_source(
    grad: Tensor,
    sample: Tensor | None,
    logits: Tensor | None,
    temperature: Tensor | None,
    key: Tensor | None,
    first_sample: int,
) -> Tensor:
    source = logits if sample is None else sample
    assert source is not None
    return source.new_empty(source.shape)


_backend.register("gumbel_softmax_backward", cuda=False)(_grad_of_source)
_backend.register("relaxed_bernoulli_rsample_backward", cuda=False)(_grad_of_source)
