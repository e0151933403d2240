"""The variational autoencoder with a Gaussian latent and a Bernoulli likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional, random

__all__ = ["VAE"]


class VAE(nn.Module):
    """loss(x) = mean over the batch of  -log p(x | z) + beta KL(q(z | x) || N(0, I)).

    q(z | x) is Normal(mean, exp(log_var)), of which each x gets one draw: z = mean + exp(log_var / 2) eps.

    Args:
        encoder: a module; ``encoder(x)`` returns ``(mean, log_var)``, or one tensor that is chunked in two
            along dimension 1.
        decoder: a module; ``decoder(z)`` returns Bernoulli logits, shaped as x, or either is flat [B, D].
        latent_shape: the shape of one z, an int or a tuple, for :meth:`sample`. Left out, it is learnt from
            the encoder's latest output.
        beta: the weight of the KL (Higgins et al. 2017), at least 0.
        free_bits: the least KL in nats that each latent element is charged (Kingma et al. 2016), at least 0.

    ``x`` is a float tensor with values in [0, 1], or uint8 or bool with values 0 and 1 (the encoder then sees
    it as float). Its first dimension is the batch. ``beta`` and ``free_bits`` may be set at any time, to a
    float or a 0-d tensor, and are kept as 0-d tensors at one address: a compiled or captured training step
    sees the new value, and is not compiled again. They are settings, not state: the state dict holds the
    submodules' parameters and buffers only.

    Wherever noise is drawn, ``key`` fixes it, ``generator`` seeds it, and ``first_sample`` is the index of
    row 0 in the whole batch, so that data-parallel ranks together draw what one process would.

    Raises:
        TypeError: ``x`` is not such a tensor; a module or a setting has the wrong type.
        ValueError: shapes do not fit together, a setting is negative or not finite, or the loss is asked of
            an empty batch.

    Source: Kingma and Welling 2014; Rezende, Mohamed and Wierstra 2014.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent_shape: int | Sequence[int] | None = None,
        beta: float | Tensor = 1.0,
        free_bits: float | Tensor = 0.0,
    ) -> None:
        super().__init__()
        for name, module in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name}: expected an nn.Module, got {type(module).__name__}")
        self.encoder = encoder
        self.decoder = decoder
        self.latent_shape = _as_shape(latent_shape)
        self._seen_shape: tuple[int, ...] | None = None
        # The settings live where the modules do, but on the meta device they would lose their value. Float32:
        # a 0-d float64 input makes Dynamo compile everything twice.
        device = _like(self).device
        device = torch.device("cpu") if device.type == "meta" else device
        self._beta = torch.zeros((), dtype=torch.float32, device=device)
        self._free_bits = torch.zeros((), dtype=torch.float32, device=device)
        self.beta = beta
        self.free_bits = free_bits

    @classmethod
    def mlp(cls, data_dim: int = 784, hidden: int = 400, latent: int = 20, **options: Any) -> VAE:
        """data_dim - hidden - latent, one hidden ReLU layer on each side; x is [B, data_dim], or images."""
        for name, value in (("data_dim", data_dim), ("hidden", hidden), ("latent", latent)):
            _check_count(name, value, least=1)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(data_dim, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, data_dim))
        return cls(encoder, decoder, latent_shape=latent, **options)

    @property
    def beta(self) -> Tensor:
        """The weight of the KL, a 0-d tensor; set it to a float or a 0-d tensor."""
        return self._beta

    @beta.setter
    def beta(self, value: float | Tensor) -> None:
        _assign("beta", self._beta, value)

    @property
    def free_bits(self) -> Tensor:
        """The KL floor per latent element in nats, a 0-d tensor; set it to a float or a 0-d tensor."""
        return self._free_bits

    @free_bits.setter
    def free_bits(self, value: float | Tensor) -> None:
        _assign("free_bits", self._free_bits, value)

    def forward(
        self,
        x: Tensor,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """The loss, a scalar: mean over the batch of nll + beta kl, with free bits."""
        if isinstance(x, Tensor) and x.dim() and x.shape[0] == 0:
            raise ValueError("x: the loss is a mean over the batch, and this batch is empty; skip it, or use elbo(x)")
        nll, kl = self._terms(x, self.free_bits, key, generator, first_sample)
        return torch.addcmul(nll, self.beta, kl).mean()

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

    def elbo(
        self,
        x: Tensor,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """log p(x | z) - KL(q(z | x) || N(0, I)), [B] nats: the bound, whatever beta and free bits are."""
        nll, kl = self._terms(x, 0.0, key, generator, first_sample)
        return -(nll + kl)

    def reconstruct(self, x: Tensor) -> Tensor:
        """sigmoid(decoder(mean of q(z | x))): Bernoulli means, shaped as x; no noise."""
        mean, _ = self.encode(x)
        logits = self.decoder(mean)
        _matching(x, logits)
        return torch.sigmoid(logits).reshape(x.shape)

    def sample(
        self,
        n: int,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """sigmoid(decoder(z)), z ~ N(0, I): n Bernoulli means, shaped as the decoder's output.

        ``variate.random.bernoulli`` draws binary data from them.
        """
        _check_count("n", n, least=0)
        shape = self.latent_shape if self.latent_shape is not None else self._seen_shape
        if shape is None:
            raise ValueError(
                "latent_shape: not known yet; pass VAE(..., latent_shape=...), or run the model on data once"
            )
        like = _like(self.decoder)
        z = random.normal(
            n,
            *shape,
            key=key,
            generator=generator,
            dtype=like.dtype,
            device=like.device,
            first_sample=first_sample,
        )
        return torch.sigmoid(self.decoder(z))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log_var) of q(z | x)."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        if not (x.is_floating_point() or x.dtype in (torch.uint8, torch.bool)):
            raise TypeError(f"x: expected a float tensor in [0, 1], or uint8 or bool holding 0 and 1, got {x.dtype}")
        if x.dim() < 2:
            raise ValueError(f"x: expected a batch, [B, ...] with two or more dimensions, got shape {tuple(x.shape)}")
        out = self.encoder(x if x.is_floating_point() else x.to(_like(self.encoder).dtype))
        if isinstance(out, Tensor):
            if out.dim() < 2 or out.shape[1] % 2:
                raise ValueError(
                    "encoder: one output tensor is chunked in two along dimension 1, which must be even, "
                    f"got shape {tuple(out.shape)}; or return (mean, log_var)"
                )
            mean, log_var = out.chunk(2, dim=1)
        elif isinstance(out, (tuple, list)) and len(out) == 2:
            mean, log_var = out
        else:
            raise TypeError(f"encoder: expected (mean, log_var) or one tensor, got {type(out).__name__}")
        if self.latent_shape is None:
            self._seen_shape = tuple(mean.shape[1:])
        elif tuple(mean.shape[1:]) != self.latent_shape:
            raise ValueError(
                f"encoder: latent_shape is {self.latent_shape}, so mean should be "
                f"{('B', *self.latent_shape)}, got {tuple(mean.shape)}"
            )
        return mean, log_var

    def _terms(
        self,
        x: Tensor,
        free_bits: float | Tensor,
        key: Tensor | None,
        generator: torch.Generator | None,
        first_sample: int,
    ) -> tuple[Tensor, Tensor]:
        mean, log_var = self.encode(x)
        z, kl = functional.normal_rsample_kl(
            mean, log_var, free_bits=free_bits, key=key, generator=generator, first_sample=first_sample
        )
        logits = self.decoder(z)
        return functional.bernoulli_nll(logits, _matching(x, logits)), kl

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VAE:
        # Not buffers: DistributedDataParallel would broadcast them before every step, and a change of dtype
        # or to_empty would change their values. So they follow the modules' device alone.
        super()._apply(fn, recurse)
        device = fn(self._beta).device
        if device.type != "meta":
            self._beta, self._free_bits = self._beta.to(device), self._free_bits.to(device)
        return self


def _like(module: nn.Module) -> Tensor:
    """A tensor of the dtype and device that the module's layers take."""
    return next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))


def _assign(name: str, setting: Tensor, value: float | Tensor) -> None:
    """Write a float or 0-d tensor into a setting, in place."""
    if isinstance(value, Tensor):
        if value.dim() or value.is_complex():
            raise ValueError(f"{name}: expected a float or a real 0-d tensor, got {value.dtype} {tuple(value.shape)}")
        setting.copy_(value.detach())  # not checked further: that would wait for the device
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number, at least 0, got {value}")
        setting.fill_(value)
    else:
        raise TypeError(f"{name}: expected a float or a 0-d tensor, got {type(value).__name__}")


def _matching(x: Tensor, logits: Tensor) -> Tensor:
    """x as the target of logits: of one shape, or one of the two flat. Other reshapes would hide mistakes."""
    if x.shape != logits.shape:
        flat = x.dim() == 2 or logits.dim() == 2
        if not (flat and x.shape[:1] == logits.shape[:1] and x.numel() == logits.numel()):
            raise ValueError(
                f"decoder: expected logits shaped as x, {tuple(x.shape)}, or one of the two flat, "
                f"got {tuple(logits.shape)}"
            )
        x = x.reshape(logits.shape)
    return x


def _as_shape(shape: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    for size in sizes:
        _check_count("latent_shape", size, least=0)
    return sizes


def _check_count(name: str, value: int, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
