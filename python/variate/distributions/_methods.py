"""Methods of distributions on fused kernels, shared by variate.distributions and variate.patch.

Each takes a distribution and its method's arguments. It answers, or returns NotImplemented where torch's own method has
to: a dtype that is not among `dtypes`, another device, a tensor subclass, torch.func, forward-mode AD, torch.jit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, kl

from ..functional import _backend, _gate, _key
from . import _fused
from ._fused import GUMBEL, LAPLACE, LOG_SCALE, LOGISTIC, NORMAL, SCALE
from ._validation import PLAIN

NARROW = frozenset((torch.float32, torch.bfloat16, torch.float16))
_NO_SHAPE = torch.Size()


def or_torch(fused: Callable[..., Any], stock: Any, **options: Any) -> Callable[..., Any]:
    """`fused`, with `stock` for what it does not answer."""

    def method(self: Distribution, *args: Any, **kwargs: Any) -> Any:
        result = fused(self, *args, **kwargs, **options)
        return stock(self, *args, **kwargs) if result is NotImplemented else result

    method.fused = fused  # type: ignore[attr-defined]
    method.__name__ = stock.__name__
    method.__qualname__ = stock.__qualname__
    method.__doc__ = stock.__doc__
    return method


def serves(op: str, dtypes: frozenset[torch.dtype], *tensors: object) -> bool:
    """Whether the op takes these tensors."""
    on_cpu = True
    for tensor in tensors:
        if type(tensor) not in PLAIN or tensor.dtype not in dtypes:  # type: ignore[attr-defined]
            return False
        on_cpu = on_cpu and tensor.is_cpu  # type: ignore[attr-defined]
    first = tensors[0]
    if not on_cpu and any(tensor.device != first.device for tensor in tensors):  # type: ignore[attr-defined]
        return False
    if _gate.transformed() or torch._C._get_tracing_state():
        return False
    return _backend.select(op, first) is not None  # type: ignore[arg-type]


def _spread(distribution: Any) -> tuple[Tensor, int]:
    if getattr(distribution, "_by_log_scale", False):
        return distribution.log_scale, LOG_SCALE
    return distribution.scale, SCALE


def _by_logits(distribution: Any) -> bool:
    """Whether its parameters are logits: those made of probabilities are clamped, and tell 0 from the smallest."""
    return distribution._param is distribution.__dict__.get("logits")


def _terms(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], event_dims: int, *how: int) -> Any:
    """The function of each element, or summed over the last dimensions."""
    shape = tensors[0].shape
    for tensor in tensors[1:]:
        if tensor.shape != shape:
            # A broadcast copy costs more than the sum.
            return NotImplemented if event_dims else function(*torch.broadcast_tensors(*tensors), *how)
    if event_dims == 0:
        return function(*tensors, *how)
    batch = shape[: len(shape) - event_dims]
    if len(batch) != 1 and len(shape) > 1:  # else the ops find the rows themselves
        sizes = (batch.numel(), math.prod(shape[len(batch) :]))
        tensors = tuple(tensor.reshape(sizes) for tensor in tensors)
    result = function(*tensors, *how, summed=True)
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return (result if result.shape == batch else result.reshape(batch)).to(dtype)


# Draws.


def _draws(base: int, loc: Tensor, spread: Tensor, parametrization: int, sample_shape: Sequence[int]) -> Any:
    if len(sample_shape) == 0:
        return _fused.location_scale(base, loc, spread, _fresh(loc), 0, parametrization)
    samples = math.prod(sample_shape)
    if samples == 0:
        return NotImplemented
    draws = _fused.location_scale(base, loc, spread, _fresh(loc), samples, parametrization)
    return draws if len(sample_shape) == 1 else draws.reshape((*sample_shape, *loc.shape))


def _location_scale(base: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def rsample(self: Any, sample_shape: Sequence[int] = _NO_SHAPE, dtypes: frozenset[torch.dtype] = NARROW) -> Any:
        loc, (spread, parametrization) = self.loc, _spread(self)
        if not serves("location_scale_rsample", dtypes, loc, spread):
            return NotImplemented
        return _draws(base, loc, spread, parametrization, sample_shape)

    def sample(self: Any, sample_shape: Sequence[int] = _NO_SHAPE, dtypes: frozenset[torch.dtype] = NARROW) -> Any:
        loc, (spread, parametrization) = self.loc, _spread(self)
        if not serves("location_scale_rsample", dtypes, loc, spread):
            return NotImplemented
        return _draws(base, loc.detach(), spread.detach(), parametrization, sample_shape)

    return rsample, sample


_normal_rsample, normal_sample = _location_scale(NORMAL)
laplace_rsample, laplace_sample = _location_scale(LAPLACE)
gumbel_rsample, gumbel_sample = _location_scale(GUMBEL)


def normal_rsample(self: Any, sample_shape: Sequence[int] = _NO_SHAPE, dtypes: frozenset[torch.dtype] = NARROW) -> Any:
    loc, scale = self.loc, self.scale
    if len(sample_shape) or not loc.is_cpu or loc.dtype != torch.float32:
        return _normal_rsample(self, sample_shape, dtypes)
    # A processor multiplies by stored noise in less time than it draws it again, and torch stores it too.
    if not serves("normal", dtypes, loc, scale):
        return NotImplemented
    noise = torch.empty_like(loc, memory_format=torch.contiguous_format)
    _backend.select("normal", noise)(noise, _key.fresh(), 0)
    return torch.addcmul(loc, noise, scale)


def bernoulli_sample(
    self: Any, sample_shape: Sequence[int] = _NO_SHAPE, dtypes: frozenset[torch.dtype] = NARROW
) -> Any:
    probs = self.probs
    if not serves("bernoulli", dtypes, probs):
        return NotImplemented
    probs = probs.detach().expand(self._extended_shape(sample_shape))
    out = torch.empty(probs.shape, dtype=probs.dtype, device=probs.device)
    _backend.select("bernoulli", probs)(out, probs, _fresh(probs), 0)
    return out


def exact_logits(categorical: Any) -> Tensor:
    """Logits to draw by; those that torch makes of probabilities would now and then draw one of probability 0."""
    param = categorical._param.detach()
    return param if _by_logits(categorical) else param.log()


def categorical_sample(
    self: Any, sample_shape: Sequence[int] = _NO_SHAPE, dtypes: frozenset[torch.dtype] = NARROW
) -> Any:
    if math.prod(sample_shape) != 1 or not serves("categorical", dtypes, self._param):
        return NotImplemented  # many draws by a table of sums, as torch makes them, are quicker than each by itself
    logits = exact_logits(self)
    indices = _backend.select("categorical", logits)(logits, _fresh(logits), 0)
    return indices.reshape((*sample_shape, *indices.shape))


def one_hot(indices: Tensor, like: Tensor) -> Tensor:
    """One-hot vectors as long as the last dimension of `like`, in its dtype."""
    out = torch.zeros((*indices.shape, like.shape[-1]), dtype=like.dtype, device=like.device)
    return out.scatter_(-1, indices.unsqueeze(-1), 1)


def one_hot_sample(self: Any, sample_shape: Sequence[int] = _NO_SHAPE, dtypes: frozenset[torch.dtype] = NARROW) -> Any:
    indices = categorical_sample(self._categorical, sample_shape, dtypes)
    return NotImplemented if indices is NotImplemented else one_hot(indices, self._param)


def concrete_bernoulli_rsample(
    self: Any, sample_shape: Sequence[int] = _NO_SHAPE, dtypes: frozenset[torch.dtype] = NARROW
) -> Any:
    """(logits + logistic noise) / temperature, of LogitRelaxedBernoulli."""
    draws = _noisy_logits(self, LOGISTIC, sample_shape, dtypes)
    return draws if draws is NotImplemented else draws / self.temperature


def concrete_categorical_rsample(
    self: Any, sample_shape: Sequence[int] = _NO_SHAPE, dtypes: frozenset[torch.dtype] = NARROW
) -> Any:
    """log softmax((logits + Gumbel noise) / temperature), of ExpRelaxedCategorical."""
    draws = _noisy_logits(self, GUMBEL, sample_shape, dtypes)
    return draws if draws is NotImplemented else torch.log_softmax(draws / self.temperature, -1)


def relaxed_one_hot_rsample(
    self: Any, sample_shape: Sequence[int] = _NO_SHAPE, dtypes: frozenset[torch.dtype] = NARROW
) -> Any:
    """softmax((logits + Gumbel noise) / temperature), of RelaxedOneHotCategorical."""
    draws = _noisy_logits(self.base_dist, GUMBEL, sample_shape, dtypes)
    return draws if draws is NotImplemented else torch.softmax(draws / self.temperature, -1)


def relaxed_one_hot_sample(
    self: Any, sample_shape: Sequence[int] = _NO_SHAPE, dtypes: frozenset[torch.dtype] = NARROW
) -> Any:
    with torch.no_grad():
        return relaxed_one_hot_rsample(self, sample_shape, dtypes)


def _noisy_logits(self: Any, base: int, sample_shape: Sequence[int], dtypes: frozenset[torch.dtype]) -> Any:
    logits = self.logits
    if not serves("location_scale_rsample", dtypes, logits):
        return NotImplemented
    return _draws(base, logits, ones_like(logits), SCALE, sample_shape)


def ones_like(tensor: Tensor) -> Tensor:
    """One 1, in the shape of a tensor."""
    return tensor.new_ones(()).expand(tensor.shape)


def _fresh(like: Tensor) -> Tensor:
    return _key.fresh() if like.is_cpu else _key.draw(None, like.device)


# Log-probabilities.


def normal_log_prob(self: Any, value: Tensor, dtypes: frozenset[torch.dtype] = NARROW, event_dims: int = 0) -> Any:
    loc, (spread, parametrization) = self.loc, _spread(self)
    if not serves("normal_nll", dtypes, loc, spread, value):
        return NotImplemented
    if self._validate_args:
        self._validate_sample(value)
    return _terms(_fused.normal_log_prob, (loc, spread, value), event_dims, parametrization)


def bernoulli_log_prob(self: Any, value: Tensor, dtypes: frozenset[torch.dtype] = NARROW, event_dims: int = 0) -> Any:
    if not serves("bernoulli_nll", dtypes, self._param, value):
        return NotImplemented
    if self._validate_args:
        self._validate_sample(value)
    return _terms(_fused.bernoulli_log_prob, (self.logits, value), event_dims)


def log_normal_log_prob(self: Any, value: Tensor, dtypes: frozenset[torch.dtype] = NARROW) -> Any:
    base = self.base_dist
    loc, (spread, parametrization) = base.loc, _spread(base)
    if not serves("normal_nll", dtypes, loc, spread, value):
        return NotImplemented
    if self._validate_args:
        self._validate_sample(value)
    log_value = value.log()
    return _terms(_fused.normal_log_prob, (loc, spread, log_value), 0, parametrization) - log_value


def bernoulli_entropy(self: Any, dtypes: frozenset[torch.dtype] = NARROW) -> Any:
    if not serves("bernoulli_nll", dtypes, self._param):
        return NotImplemented
    return -_fused.bernoulli_log_prob(self.logits, self.probs)


def independent_log_prob(self: Any, value: Tensor, dtypes: frozenset[torch.dtype] = NARROW) -> Any:
    fused = getattr(type(self.base_dist).log_prob, "fused", None)
    if self.reinterpreted_batch_ndims == 0 or fused not in (normal_log_prob, bernoulli_log_prob):
        return NotImplemented
    return fused(self.base_dist, value, dtypes, self.reinterpreted_batch_ndims)


# Divergences.


def normal_kl(p: Any, q: Any, dtypes: frozenset[torch.dtype] = NARROW, event_dims: int = 0) -> Any:
    (p_spread, parametrization), (q_spread, q_parametrization) = _spread(p), _spread(q)
    if parametrization != q_parametrization:
        p_spread, q_spread, parametrization = p.scale, q.scale, SCALE
    if not serves("normal_kl", dtypes, p.loc, p_spread, q.loc, q_spread):
        return NotImplemented
    return _terms(_fused.normal_kl, (p.loc, p_spread, q.loc, q_spread), event_dims, parametrization)


def bernoulli_kl(p: Any, q: Any, dtypes: frozenset[torch.dtype] = NARROW, event_dims: int = 0) -> Any:
    if not (_by_logits(p) and _by_logits(q) and serves("bernoulli_kl", dtypes, p.logits, q.logits)):
        return NotImplemented
    return _terms(_fused.bernoulli_kl, (p.logits, q.logits), event_dims)


def independent_kl(p: Any, q: Any, dtypes: frozenset[torch.dtype] = NARROW) -> Any:
    event_dims = p.reinterpreted_batch_ndims
    if event_dims == 0 or event_dims != q.reinterpreted_batch_ndims:
        return NotImplemented
    # What torch has found for the pair: a user may have registered another.
    function = kl._KL_MEMOIZE.get((type(p.base_dist), type(q.base_dist)))
    fused = getattr(function, "fused", None)
    if fused not in (normal_kl, bernoulli_kl):
        return NotImplemented
    return fused(p.base_dist, q.base_dist, dtypes, event_dims)
