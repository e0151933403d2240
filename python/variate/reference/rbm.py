"""Restricted Boltzmann machines as an expert writes them in PyTorch, and exact answers for small ones."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import random

VISIBLE_KINDS = ("bernoulli", "gaussian", "categorical")


def rbm_gibbs(
    visible: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    steps: int = 1,
    beta: float | Tensor = 1.0,
    clamp: Tensor | None = None,
    visible_kind: str = "bernoulli",
    packed: bool = False,
    return_probabilities: bool = False,
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, ...]:
    if packed:
        visible = unpack(visible, len(visible_bias))
    if key is None:
        machine: _Stock | _Keyed = _Stock(weight, visible_bias, hidden_bias, beta, visible_kind, generator)
    else:
        machine = _Keyed(weight, visible_bias, hidden_bias, beta, visible_kind, key, first_sample)
    states = machine.encode(visible)
    kept = None if clamp is None else machine.mask(clamp.bool(), states)
    visible_probs = machine.visible_probabilities_of(states)
    hidden, hidden_probs = machine.hidden(states, first_step)
    for step in range(first_step, first_step + steps):
        if step > first_step:
            hidden, hidden_probs = machine.hidden(states, step)
        drawn, visible_probs = machine.visible(hidden, step)
        states = drawn if kept is None else torch.where(kept, states, drawn)
    result = (machine.decode(states), hidden.to(torch.uint8))
    if packed:
        result = (pack(result[0]), pack(result[1]))
    return (*result, visible_probs, hidden_probs) if return_probabilities else result


def pack(states: Tensor) -> Tensor:
    """uint8 [..., units] of 0 and 1 as bits [..., ceil(units / 8)], the first the lowest of its byte."""
    places = torch.arange(8, dtype=torch.uint8, device=states.device)
    padded = F.pad(states.to(torch.uint8), (0, -states.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (padded << places).sum(-1, dtype=torch.uint8)


def unpack(bits: Tensor, units: int) -> Tensor:
    """The inverse of :func:`pack`."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[..., None] >> places) & 1).flatten(-2)[..., :units]


class _Machine:
    def __init__(
        self, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, beta: float | Tensor, visible_kind: str
    ) -> None:
        self.kind = visible_kind
        self.weight, self.visible_bias, self.hidden_bias = (
            x.detach().to(torch.float32) for x in (weight, visible_bias, hidden_bias)
        )
        inverse = torch.as_tensor(beta, dtype=torch.float32, device=weight.device).detach()
        self.beta = inverse[:, None] if inverse.dim() else inverse

    def encode(self, visible: Tensor) -> Tensor:
        """The units' states as floats; a category as its indicators."""
        if self.kind == "categorical":
            return one_hot(visible, len(self.visible_bias)).to(torch.float32)
        return visible.to(torch.float32)

    def decode(self, states: Tensor) -> Tensor:
        if self.kind == "gaussian":
            return states
        if self.kind == "bernoulli":
            return states.to(torch.uint8)
        return self._by_group(states).argmax(-1).to(torch.uint8)

    def mask(self, clamp: Tensor, states: Tensor) -> Tensor:
        if self.kind == "categorical":
            clamp = clamp.repeat_interleave(states.shape[-1] // clamp.shape[-1], -1)
        return clamp.expand(states.shape)

    def visible_probabilities_of(self, states: Tensor) -> Tensor:
        """What steps=0 leaves as the probabilities of the visible units: those of certainty."""
        return states

    def _by_group(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.groups, -1))

    groups = 0


class _Stock(_Machine):
    """torch's noise: uniforms below probabilities, products in float32."""

    def __init__(
        self,
        weight: Tensor,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        beta: float | Tensor,
        visible_kind: str,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(weight, visible_bias, hidden_bias, beta, visible_kind)
        self.generator = generator

    def encode(self, visible: Tensor) -> Tensor:
        self.groups = visible.shape[-1]
        return super().encode(visible)

    def hidden(self, states: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return self._draw(torch.sigmoid(self.beta * torch.addmm(self.hidden_bias, states, self.weight)))

    def visible(self, hidden: Tensor, step: int) -> tuple[Tensor, Tensor]:
        field = torch.addmm(self.visible_bias, hidden, self.weight.t())
        if self.kind == "bernoulli":
            return self._draw(torch.sigmoid(self.beta * field))
        if self.kind == "gaussian":
            return field + torch.empty_like(field).normal_(generator=self.generator) / self.beta.sqrt(), field
        probs = torch.softmax(self._by_group(self.beta * field), -1)
        race = torch.empty_like(probs).exponential_(generator=self.generator)
        winner = (probs / race).argmax(-1)
        return F.one_hot(winner, probs.shape[-1]).flatten(-2).to(field.dtype), probs.flatten(-2)

    def _draw(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        uniform = torch.rand(probs.shape, generator=self.generator, device=probs.device)
        return (uniform < probs).to(probs.dtype), probs


class _Keyed(_Machine):
    """The library's noise, and fields in fixed point: int sums that no order of summation changes."""

    def __init__(
        self,
        weight: Tensor,
        visible_bias: Tensor,
        hidden_bias: Tensor,
        beta: float | Tensor,
        visible_kind: str,
        key: Tensor,
        first_sample: int,
    ) -> None:
        super().__init__(weight, visible_bias, hidden_bias, beta, visible_kind)
        self.hidden_key, self.visible_key, self.first_sample = key, random.fold_in(key, 1), first_sample
        self.downwards = fixed_point(self.weight.t(), self.visible_bias)
        self.upwards = fixed_point(self.weight, self.hidden_bias) if visible_kind != "gaussian" else None

    def encode(self, visible: Tensor) -> Tensor:
        self.groups = visible.shape[-1]
        return super().encode(visible)

    def hidden(self, states: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if self.upwards is None:
            field = torch.addmm(self.hidden_bias, states, self.weight)
        else:
            field = _field(states, *self.upwards)
        return self._draw(self.beta * field, self.hidden_key, step)

    def visible(self, hidden: Tensor, step: int) -> tuple[Tensor, Tensor]:
        field = _field(hidden, *self.downwards)
        if self.kind == "bernoulli":
            return self._draw(self.beta * field, self.visible_key, step)
        if self.kind == "gaussian":
            rows, count = field.shape
            words = random.words((rows, (count + 3) // 4 * 4), self.visible_key, self.first_sample, step)
            return field + random.normals_of(words)[:, :count].float() / self.beta.sqrt(), field
        logits = self._by_group(self.beta * field)
        words = random.words(field.shape, self.visible_key, self.first_sample, step)
        winner = (logits + self._by_group(random.gumbel_of(words).float())).argmax(-1)
        probs = torch.softmax(logits, -1).flatten(-2)
        return F.one_hot(winner, logits.shape[-1]).flatten(-2).to(field.dtype), probs

    def _draw(self, logits: Tensor, key: Tensor, step: int) -> tuple[Tensor, Tensor]:
        probs = sigmoid(logits)
        words = random.words(logits.shape, key, self.first_sample, step)
        return (words < torch.ceil(probs.double() * 2.0**32)).to(torch.float32), probs


def fixed_point(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(q, bias_q, e): round(weight 2^e) and round(bias 2^e) with an e for each column, the largest for which the sum of
    the column's |q| and |bias_q| is below 2^31. Integers, in float64, whose sums are exact; infinite biases stay."""
    wide = torch.where(weight.isfinite(), weight, 0).double()
    offset = torch.where(bias.isfinite(), bias, 0).double()
    total = wide.abs().sum(0) + offset.abs()
    # An upper bound, of which the exponent is at most a few steps short.
    exponent = torch.where(total == 0, 0, 33 - torch.frexp(total).exponent).to(torch.int64)
    while True:
        q, bias_q = _scaled(wide, exponent), _scaled(offset, exponent)
        above = q.abs().sum(0) + bias_q.abs() >= 2.0**31
        if not above.any():
            return q, torch.where(bias.isinf(), bias.double(), bias_q), exponent
        exponent = exponent - above.to(torch.int64)


def _scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """round(x 2^exponent), ties to even."""
    return torch.round(x * _power_of_two(exponent))


def _field(states: Tensor, q: Tensor, bias_q: Tensor, exponent: Tensor) -> Tensor:
    """float32(sum) 2^-exponent: one rounding."""
    total = (states.double() @ q + bias_q).float().double()
    return (total * _power_of_two(-exponent)).float()


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, from its bits."""
    return ((exponent + 1023) << 52).view(torch.float64)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) in float32, with the bits of the kernels' own: the steps of math/elementary.hpp."""
    x = x.to(torch.float32)
    below = torch.clamp(-x.abs(), min=-104.0)
    magic = 12582912.0
    n = (below * float.fromhex("0x1.715476p+0") + magic) - magic
    r = _fma(-float.fromhex("0x1.7f7d1cp-20"), n, _fma(-float.fromhex("0x1.62e4p-1"), n, below))
    q = torch.full_like(r, float.fromhex("0x1.6d722cp-10"))
    for coefficient in ("0x1.122680p-7", "0x1.5554c8p-5", "0x1.5554b2p-3", "0x1p-1"):
        q = _fma(q, r, float.fromhex(coefficient))
    fraction = _fma(r * r, q, r)
    scale = torch.where(n > -127, _power_of_two(n.long()), 0.0).float()
    e = _fma(fraction, scale, scale)
    return torch.where(x < 0, e, 1.0) / (1.0 + e)


def _fma(a: Tensor | float, b: Tensor, c: Tensor | float) -> Tensor:
    """a b + c of float32, rounded once: the product is exact in float64, and the sum is rounded to odd there."""
    b = b.double()
    product = a.double() * b if isinstance(a, Tensor) else a * b
    c = c.double() if isinstance(c, Tensor) else torch.full_like(product, c)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = (total.view(torch.int64) & 1) == 0
    towards = torch.where((error > 0) == (total > 0), 1, -1)
    odd = (total.view(torch.int64) + towards).view(torch.float64)
    return torch.where((error != 0) & even & (total != 0), odd, total).float()


def one_hot(categories: Tensor, units: int) -> Tensor:
    """[..., groups] to indicators [..., units]: the units of group g follow each other."""
    return F.one_hot(categories.long(), max(1, units // max(1, categories.shape[-1]))).flatten(-2)


def rbm_free_energy(
    visible: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    beta: float | Tensor = 1.0,
    visible_kind: str = "bernoulli",
) -> Tensor:
    states = one_hot(visible, len(visible_bias)) if visible_kind == "categorical" else visible
    states = states.to(weight.dtype)
    inverse = torch.as_tensor(beta, dtype=weight.dtype, device=weight.device)
    field = torch.addmm(hidden_bias, states, weight) * (inverse[:, None] if inverse.dim() else inverse)
    if visible_kind == "gaussian":
        own = (states - visible_bias).square().sum(-1) / 2
    else:
        own = -states @ visible_bias
    return inverse * own - F.softplus(field).sum(-1)


def rbm_cd_gradient(
    data: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    steps: int = 1,
    persistent: Tensor | None = None,
    visible_kind: str = "bernoulli",
    key: Tensor | None = None,
    generator: torch.Generator | None = None,
    first_sample: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    noise: dict[str, Any] = {"key": key, "generator": generator, "first_sample": first_sample}
    start = data if persistent is None else persistent
    if persistent is None and visible_kind == "bernoulli" and data.is_floating_point():
        own = noise if key is None else noise | {"key": random.fold_in(random.fold_in(key, 2**16 + 1), first_step)}
        start = random.bernoulli(data, **own, dtype=torch.uint8)
    chains = rbm_gibbs(
        start,
        weight,
        visible_bias,
        hidden_bias,
        steps=steps,
        visible_kind=visible_kind,
        first_step=first_step,
        **noise,
    )[0]
    phases = []
    for visible in (data, chains):
        states = one_hot(visible, len(visible_bias)) if visible_kind == "categorical" else visible
        states = states.to(weight.dtype)
        hidden = torch.sigmoid(torch.addmm(hidden_bias, states, weight))
        own_mean = states.mean(0) - visible_bias if visible_kind == "gaussian" else states.mean(0)
        phases.append((states.t() @ hidden / len(states), own_mean, hidden.mean(0)))
    of_weight, of_visible, of_hidden = (negative - positive for positive, negative in zip(*phases, strict=True))
    return of_weight, of_visible, of_hidden, chains


def rbm_log_partition(
    weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, *, visible_kind: str = "bernoulli", categories: int = 2
) -> Tensor:
    """log Z in float64, by enumeration of the hidden units, or of binary visible ones where they are fewer."""
    w, a, b = weight.double(), visible_bias.double(), hidden_bias.double()
    if visible_kind == "bernoulli" and len(a) < len(b):
        w, a, b = w.t(), b, a
    total = torch.tensor(-math.inf, dtype=torch.float64, device=w.device)
    bits = torch.arange(len(b), device=w.device)
    for first in range(0, 2 ** len(b), 2**14):
        index = torch.arange(first, min(first + 2**14, 2 ** len(b)), device=w.device)
        h = ((index[:, None] >> bits) & 1).double()
        field = h @ w.t()
        if visible_kind == "gaussian":
            log_sum = (field * (field / 2 + a)).sum(-1) + len(a) / 2 * math.log(2 * math.pi)
        elif visible_kind == "bernoulli":
            log_sum = F.softplus(field + a).sum(-1)
        else:
            log_sum = torch.logsumexp((field + a).unflatten(-1, (-1, categories)), -1).sum(-1)
        total = torch.logaddexp(total, torch.logsumexp(h @ b + log_sum, 0))
    return total
