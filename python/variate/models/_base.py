"""What the latent variable models share: settings, the likelihood, and the estimate of log p(x)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional, random
from .._progress import progress_bar
from ..functional import _key
from ..functional._checks import count as check_count
from ._settings import new_setting, set_to
from .likelihoods import Likelihood, likelihood_of

__all__ = ["LatentVariableModel"]


class LatentVariableModel(nn.Module):
    """A model p(x | z) p(z) with a q(z | x), whose ``forward(x)`` is its loss."""

    likelihood: Likelihood
    decoder: nn.Module

    def _set_up(self, likelihood: str | Likelihood, beta: float | Tensor, free_bits: float | Tensor) -> None:
        """Called once the layers are there, on whose device the settings are."""
        self.likelihood = likelihood_of(likelihood)
        self._beta, self._free_bits = new_setting(self), new_setting(self)
        set_to("beta", self._beta, beta)
        set_to("free_bits", self._free_bits, free_bits)

    @property
    def beta(self) -> Tensor:
        """The weight of the KL, a 0-d tensor; set it to a float or a 0-d tensor."""
        return self._beta

    @beta.setter
    def beta(self, value: float | Tensor) -> None:
        self._change("beta", self._beta, value)

    @property
    def free_bits(self) -> Tensor:
        """The KL that is charged at least, in nats, a 0-d tensor; set it to a float or a 0-d tensor."""
        return self._free_bits

    @free_bits.setter
    def free_bits(self, value: float | Tensor) -> None:
        self._change("free_bits", self._free_bits, value)

    def _change(self, name: str, setting: Tensor, value: float | Tensor) -> None:
        set_to(name, setting, value)

    def loss(
        self,
        x: Tensor,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """The same call as ``model(x)``.

        Under DistributedDataParallel call the wrapper itself: only that averages the gradients.
        """
        return self(x, key=key, generator=generator, first_sample=first_sample)

    @torch.no_grad()
    def log_likelihood(
        self,
        x: Tensor,
        samples: int = 5000,
        *,
        batch_size: int = 4096,
        progress: bool = True,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """log (1/K) sum_k p(x, z_k) / q(z_k | x), [B] nats: a lower bound in the mean, and log p(x) as K grows.

        Args:
            x: [B, ...] as for the loss.
            samples: K.
            batch_size: how many z are decoded at a time; the result does not depend on it, up to rounding.
            progress: show a bar, where rich is installed and the output is a terminal.
            key, generator, first_sample: as everywhere. Sample k of row i draws from the stream of
                fold_in(fold_in(key, first_sample + i), k), or of fold_in(key[i], k) with a key per row.

        Source: Burda et al. 2016.
        """
        check_count("samples", samples, least=1)
        check_count("batch_size", batch_size, least=1)
        self._check_x(x)
        key = _key.resolve(key, generator, first_sample, x)
        if len(x) == 0:
            return torch.empty(0, device=x.device)
        if key.dim() == 1:
            index = torch.arange(first_sample, first_sample + len(x), device=x.device)
            key = random.fold_in(key.expand(len(x), 2), index)
        parts = []
        with progress_bar(len(x) * samples, "log p(x)", progress) as advance:
            for rows, keys in zip(x.split(batch_size), key.split(batch_size), strict=True):
                parts.append(self._stream(rows, keys, samples, max(1, batch_size // len(rows)), advance))
        return torch.cat(parts) - math.log(samples)

    def _stream(self, x: Tensor, keys: Tensor, samples: int, at_once: int, advance: Callable[[int], None]) -> Tensor:
        """logsumexp of all log weights of each x, a chunk of samples at a time."""
        features = self._features(x)
        total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        for first in range(0, samples, at_once):
            draws = torch.arange(first, min(first + at_once, samples), device=x.device)
            own = random.fold_in(keys, draws[:, None]).flatten(0, 1)
            log_weight = self._log_weight(x, features, own).view(len(draws), len(x))
            total = torch.logaddexp(total, torch.logsumexp(log_weight.double(), 0))
            advance(len(draws) * len(x))
        return total.to(log_weight.dtype)

    def _features(self, x: Tensor) -> Any:
        """What the encoder makes of x, once."""
        raise NotImplementedError

    def _log_weight(self, x: Tensor, features: Any, keys: Tensor) -> Tensor:
        """log p(x, z) - log q(z | x) of one z for each of the N = K B keys [N, 2], [N]; x and features have B rows."""
        raise NotImplementedError

    def _nll(self, z: Tensor, x: Tensor, *, uniform: bool = True) -> Tensor:
        """-log p(x | z) for N = K B rows of z, [N]. `uniform` says that the gradient of the result is one number."""
        several = z.shape[0] > x.shape[0]
        layers = self._fused_layers(x) if several or not torch.is_grad_enabled() else None
        if layers is None:  # with one sample two ops are as fast
            return self.likelihood.nll(self.decoder(z), x)
        *body, last = layers
        for layer in body:
            z = layer(z)
        if several:
            z = z.unflatten(0, (-1, x.shape[0]))
        name: Any = self.likelihood.fused
        return functional.linear.nll(name, z, last.weight, last.bias, x, weighted=not uniform).flatten()

    def _fused_layers(self, x: Tensor) -> list[Any] | None:
        """The decoder's layers, if the last one and the likelihood can be one op: nothing else may watch it run."""
        decoder = self.decoder
        if self.likelihood.fused is None or type(decoder) is not nn.Sequential or not len(decoder):
            return None
        last = decoder[-1]
        if type(last) is not nn.Linear or _watched(decoder) or _watched(last):
            return None
        return list(decoder) if last.out_features == self.likelihood.outputs(x.shape[1:].numel()) else None

    def _check_x(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        if not self.likelihood.accepts(x):
            raise TypeError(f"x: expected {self.likelihood.takes}, got {x.dtype}")
        if x.dim() < 2:
            raise ValueError(f"x: expected a batch, [B, ...] with two or more dimensions, got shape {tuple(x.shape)}")

    def _check_batch(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.dim() and x.shape[0] == 0:
            raise ValueError("x: the loss is a mean over the batch, and this batch is empty; skip it, or use elbo(x)")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LatentVariableModel:
        # The settings are not buffers: DistributedDataParallel would broadcast them before every step, and a change of
        # dtype or to_empty would change their values. So they follow the modules' device alone.
        super()._apply(fn, recurse)
        device = fn(self._beta).device
        if device.type != "meta":
            self._beta, self._free_bits = self._beta.to(device), self._free_bits.to(device)
        return self


def _watched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)
