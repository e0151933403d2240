"""The variational autoencoder with a ladder of stochastic layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional, random
from ..functional._checks import count as check_count
from ._base import LatentVariableModel
from ._gaussian import log_normal, log_standard_normal
from ._layers import flat_sizes, halves, relu_layers
from ._settings import like
from .likelihoods import Likelihood, likelihood_of

__all__ = ["HierarchicalVAE", "TopDownLayer"]


class TopDownLayer(nn.Module):
    """The networks of one stochastic layer; each is a module.

    Args:
        encode: its feature h, from the feature of the layer below, or from x.
        posterior: from (state, h), joined along dimension 1, or h alone at the top, to (d_mean, d_log_var), or one
            tensor that is chunked in two along dimension 1.
        merge: the state for the layer below, or for the decoder, from (state, z), joined along dimension 1, or z alone
            at the top.
        prior: from the state to (mean, log_var), or one tensor to chunk; None at the top, whose prior is N(0, I).
    """

    def __init__(
        self, encode: nn.Module, posterior: nn.Module, merge: nn.Module, prior: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.encode, self.posterior, self.merge, self.prior = encode, posterior, merge, prior


class HierarchicalVAE(LatentVariableModel):
    """loss(x) = mean over the batch of  -log p(x | z) + beta sum_l KL(q(z_l | x, z_<l) || p(z_l | z_<l)).

    Layer 1 is the top. On the way down a state gathers what has been drawn; each layer's prior N(m_l, e^v_l) is made
    from the state, and its posterior is relative to it: q = N(m_l + d_mean, e^(v_l + d_log_var)), with both from the
    state and the feature h_l of a bottom-up pass over x.

    Args:
        layers: the stochastic layers, from the top down.
        decoder: from the last state to what the likelihood needs.
        latent_shape: the shape of one z of the top layer, for :meth:`sample`. Left out, it is learnt from data.
        likelihood: as for :class:`VAE`.
        beta: the weight of the KL, at least 0.
        free_bits: the least KL in nats that each layer is charged for each x, at least 0; one below it passes no
            gradient.
        balance: weigh the KL of layer l by gamma_l, proportional to its mean over the batch per element of z_l, with
            mean 1 over the layers and no gradient: layers that say more are charged more, so that none falls silent.
            For the time in which beta rises; :attr:`balance` may be set at any time. It ties the rows of a batch
            together.

    x, beta, free_bits, key, generator and first_sample are as for :class:`VAE`; layer l = 0 ... L - 1 from the top
    draws from fold_in(key, l).

    Raises:
        TypeError: x or a module is of another type.
        ValueError: no layers; shapes that do not fit together, such as an odd number of channels to chunk; a setting
            that is negative or not finite; free_bits and balance together; a loss of an empty batch.

    Source: Soenderby et al. 2016 (the ladder); Vahdat and Kautz 2020 (residual posterior, balancing); Kingma et al.
    2016 (free bits).
    """

    layers: Any  # a ModuleList of TopDownLayer

    def __init__(
        self,
        layers: Sequence[TopDownLayer],
        decoder: nn.Module,
        *,
        latent_shape: int | Sequence[int] | None = None,
        likelihood: str | Likelihood = "bernoulli",
        beta: float | Tensor = 1.0,
        free_bits: float | Tensor = 0.0,
        balance: bool = False,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("layers: expected at least one")
        for index, layer in enumerate(layers):
            if not isinstance(layer, TopDownLayer):
                raise TypeError(f"layers[{index}]: expected a TopDownLayer, got {type(layer).__name__}")
            if (layer.prior is None) != (index == 0):
                raise ValueError(f"layers[{index}]: expected prior=None at the top, and a prior everywhere else")
        if not isinstance(decoder, nn.Module):
            raise TypeError(f"decoder: expected an nn.Module, got {type(decoder).__name__}")
        if balance and (isinstance(free_bits, Tensor) or free_bits != 0):
            raise ValueError("balance: expected False with free_bits, or free_bits=0")
        self.layers = nn.ModuleList(layers)
        self.decoder = decoder
        self.latent_shape = (latent_shape,) if isinstance(latent_shape, int) else latent_shape
        self.balance = balance
        self._set_up(likelihood, beta, free_bits)

    @classmethod
    def mlp(
        cls,
        data_dim: int | Sequence[int] = 784,
        hidden: int = 256,
        latents: Sequence[int] = (10, 20),
        *,
        likelihood: str | Likelihood = "bernoulli",
        **options: Any,
    ) -> HierarchicalVAE:
        """ReLU layers of `hidden` units; `latents` are the sizes of the z, from the top down. x is [B, data_dim], or
        images; `data_dim` may be the shape of one x."""
        for name, value in (("hidden", hidden), *(("latents", size) for size in latents)):
            check_count(name, value, least=1)
        likelihood = likelihood_of(likelihood)
        count, width, shaped = flat_sizes(data_dim, likelihood)
        layers = []
        for index, size in enumerate(latents):
            bottom, state = index == len(latents) - 1, hidden if index else 0
            first = [nn.Flatten()] if bottom else []
            layers.append(
                TopDownLayer(
                    nn.Sequential(*first, nn.Linear(count if bottom else hidden, hidden), nn.ReLU()),
                    nn.Sequential(*relu_layers(state + hidden, hidden, 2 * size)),
                    nn.Sequential(nn.Linear(state + size, hidden), nn.ReLU()),
                    nn.Sequential(*relu_layers(hidden, hidden, 2 * size)) if index else None,
                )
            )
        decoder = nn.Sequential(*relu_layers(hidden, hidden, width), *shaped)
        return cls(layers, decoder, latent_shape=latents[0] if latents else None, likelihood=likelihood, **options)

    @classmethod
    def conv(
        cls,
        image: Sequence[int] = (1, 28, 28),
        channels: int = 32,
        latents: Sequence[int] = (8, 4),
        *,
        likelihood: str | Likelihood = "bernoulli",
        **options: Any,
    ) -> HierarchicalVAE:
        """Convolutions of `channels` channels for x [B, *image]; `latents` are the channels of the z, from the top
        down. The bottom layer has half the resolution of the image, and each layer above half of that below it."""
        for name, value in (("channels", channels), *(("latents", size) for size in latents)):
            check_count(name, value, least=1)
        colours, *size = image
        halvings = 2 ** len(latents)
        if len(size) != 2 or any(side % halvings for side in size):
            raise ValueError(
                f"image: expected (channels, height, width), the last two multiples of {halvings} for {len(latents)} "
                f"layers, got {tuple(image)}"
            )
        likelihood = likelihood_of(likelihood)
        layers = []
        for index, latent in enumerate(latents):
            bottom, state = index == len(latents) - 1, channels if index else 0
            layers.append(
                TopDownLayer(
                    nn.Sequential(
                        _conv(colours if bottom else channels, channels, stride=2), nn.SiLU(), _Residual(channels)
                    ),
                    nn.Sequential(_conv(state + channels, channels), nn.SiLU(), _conv(channels, 2 * latent)),
                    nn.Sequential(_conv(state + latent, channels), _Residual(channels), nn.Upsample(scale_factor=2)),
                    nn.Sequential(_Residual(channels), _conv(channels, 2 * latent)) if index else None,
                )
            )
        decoder = nn.Sequential(_Residual(channels), _conv(channels, likelihood.outputs(colours)))
        top = (latents[0], *(side // halvings for side in size)) if latents else None
        return cls(layers, decoder, latent_shape=top, likelihood=likelihood, **options)

    def forward(
        self,
        x: Tensor,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """The loss, a scalar: mean over the batch of nll + beta kl, with free bits or balance."""
        self._check_batch(x)
        nll, kls, sizes = self._terms(x, key=key, generator=generator, first_sample=first_sample)
        kl = torch.stack(kls).clamp(min=self.free_bits)
        if self.balance:
            share = kl.detach().mean(1) / torch.tensor(sizes, device=kl.device) + torch.finfo(kl.dtype).tiny
            kl = kl * (share / share.mean())[:, None]
        return torch.addcmul(nll, self.beta, kl.sum(0)).mean()

    def elbo(
        self,
        x: Tensor,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """log p(x | z) - sum_l KL_l, [B] nats: the bound, whatever the settings are."""
        nll, kls, _ = self._terms(x, key=key, generator=generator, first_sample=first_sample)
        return -(nll + sum(kls))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x | z) at the means of q(z_l | x, z_<l), shaped as x; no noise."""
        state: Any = None
        for index, h in enumerate(self._features(x)):
            z, _ = self._posterior(index, state, h, self._prior(index, state))
            state = self._merge(index, state, z)
        return self.likelihood.reconstruction(x, self.decoder(state))

    def sample(
        self,
        n: int,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """n pictures from z ~ p, as of :meth:`VAE.sample`. The pixels' draw, where there is one, takes fold_in(key,
        L)."""
        check_count("n", n, least=0)
        if self.latent_shape is None:
            raise ValueError("latent_shape: not known yet; pass it, or run the model on data once")
        noise: dict[str, Any] = {"generator": generator, "first_sample": first_sample}
        state: Any = None
        top = like(self)
        for index in range(len(self.layers)):
            prior, own = self._prior(index, state), _draw(key, index)
            if prior is None:
                z = random.normal(n, *self.latent_shape, key=own, dtype=top.dtype, device=top.device, **noise)
            else:
                z = functional.normal_rsample(*prior, key=own, **noise)
            state = self._merge(index, state, z)
        return self.likelihood.sample(self.decoder(state), key=_draw(key, len(self.layers)), **noise)

    def _terms(self, x: Tensor, *, key: Tensor | None, **noise: Any) -> tuple[Tensor, list[Tensor], list[int]]:
        """-log p(x | z), the KL [B] of each layer, and how many elements its z has."""
        state: Any = None
        kls: list[Tensor] = []
        sizes: list[int] = []
        for index, h in enumerate(self._features(x)):
            prior = self._prior(index, state)
            mean, log_var = self._posterior(index, state, h, prior)
            z, kl = functional.normal_rsample_kl(mean, log_var, *(prior or ()), key=_draw(key, index), **noise)
            kls.append(kl)
            sizes.append(mean.shape[1:].numel())
            state = self._merge(index, state, z)
        return self._nll(state, x), kls, sizes

    def _features(self, x: Tensor) -> list[Tensor]:
        """The feature of each layer, from the top down."""
        self._check_x(x)
        h, features = self.likelihood.seen(x, like(self).dtype), []
        for layer in reversed(self.layers):
            h = layer.encode(h)
            features.append(h)
        return features[::-1]

    def _prior(self, index: int, state: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """(mean, log_var) of p(z_l | z_<l); None at the top."""
        layer = self.layers[index]
        return None if layer.prior is None else halves(f"layers[{index}].prior", layer.prior(state))

    def _posterior(
        self, index: int, state: Tensor | None, h: Tensor, prior: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """(mean, log_var) of q(z_l | x, z_<l)."""
        mean, log_var = halves(f"layers[{index}].posterior", self.layers[index].posterior(_joined(state, h)))
        if prior is not None:
            return prior[0] + mean, prior[1] + log_var
        if self.latent_shape is None:
            self.latent_shape = tuple(mean.shape[1:])
        return mean, log_var

    def _merge(self, index: int, state: Tensor | None, z: Tensor) -> Tensor:
        """The state below layer `index`."""
        return self.layers[index].merge(_joined(state, z))

    def _log_weight(self, x: Tensor, features: list[Tensor], keys: Tensor) -> Tensor:
        samples = len(keys) // len(x)
        state: Any = None
        log_weight = torch.zeros((), device=x.device)
        for index, h in enumerate(features):
            prior = self._prior(index, state)
            mean, log_var = self._posterior(index, state, h.expand(samples, *h.shape).flatten(0, 1), prior)
            z = functional.normal_rsample(mean, log_var, key=random.fold_in(keys, index))
            log_p = log_standard_normal(z, 1) if prior is None else log_normal(z, *prior)
            log_weight = log_weight + log_p - log_normal(z, mean, log_var)
            state = self._merge(index, state, z)
        return log_weight - self._nll(state, x)


def _joined(state: Tensor | None, other: Tensor) -> Tensor:
    return other if state is None else torch.cat([state, other], 1)


def _draw(key: Tensor | None, number: int) -> Tensor | None:
    return None if key is None else random.fold_in(key, number)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class _Residual(nn.Module):
    """x + conv(silu(conv(silu(x))))"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.SiLU(), _conv(channels, channels), nn.SiLU(), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
