"""The variational autoencoder with a Gaussian latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional, random
from ..functional._checks import count as check_count
from ..functional.bound import ESTIMATORS
from ._base import LatentVariableModel
from ._gaussian import log_normal, log_standard_normal
from ._layers import flat_sizes, halves, relu_layers
from ._settings import like
from .likelihoods import Likelihood, likelihood_of

__all__ = ["VAE"]


class VAE(LatentVariableModel):
    """loss(x) = mean over the batch of  -log p(x | z) + beta KL(q(z | x) || N(0, I)).

    q(z | x) is Normal(mean, exp(log_var)), of which each x gets one draw: z = mean + exp(log_var / 2) eps.

    Args:
        encoder: a module; ``encoder(x)`` returns ``(mean, log_var)``, or one tensor that is chunked in two
            along dimension 1.
        decoder: a module; ``decoder(z)`` returns what the likelihood needs: for "bernoulli" logits, shaped as x, or
            either is flat [B, D].
        latent_shape: the shape of one z, an int or a tuple, for :meth:`sample`. Left out, it is learnt from
            the encoder's latest output.
        beta: the weight of the KL (Higgins et al. 2017), at least 0.
        free_bits: the least KL in nats that each latent element is charged (Kingma et al. 2016), at least 0.
        likelihood: "bernoulli", "normal", "categorical", "discretized_logistic", "discretized_logistic_mixture", or one
            of the classes of that name in ``variate.models.likelihoods``, which say what x is and what the decoder
            returns.
        samples: K draws of z for each x, all in one pass of the decoder, over K B rows.
        estimator: None for the mean of the K losses above; or "iwae", "dreg", "stl", "rws" or "vimco" for minus the
            importance weighted bound, log (1/K) sum_k p(x, z_k) / q(z_k | x), with that estimator's gradients: see
            ``functional.importance_weighted_bound``. It takes neither beta nor free_bits.

    ``x`` is, for "bernoulli", a float tensor with values in [0, 1], or uint8 or bool with values 0 and 1 (the encoder
    then sees it as float). Its first dimension is the batch. ``beta`` and ``free_bits`` may be set at any time, to a
    float or a 0-d tensor, and are kept as 0-d tensors at one address: a compiled or captured training step
    sees the new value, and is not compiled again. They are settings, not state: the state dict holds the
    submodules' parameters and buffers only.

    Wherever noise is drawn, ``key`` fixes it, ``generator`` seeds it, and ``first_sample`` is the index of
    row 0 in the whole batch, so that data-parallel ranks together draw what one process would.

    Raises:
        TypeError: ``x`` is not such a tensor; a module or a setting has the wrong type.
        ValueError: shapes do not fit together, a setting is negative or not finite, a likelihood or an estimator is not
            known, or the loss is asked of an empty batch.

    Source: Kingma and Welling 2014; Rezende, Mohamed and Wierstra 2014; Burda et al. 2016.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent_shape: int | Sequence[int] | None = None,
        beta: float | Tensor = 1.0,
        free_bits: float | Tensor = 0.0,
        likelihood: str | Likelihood = "bernoulli",
        samples: int = 1,
        estimator: str | None = None,
    ) -> None:
        super().__init__()
        for name, module in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name}: expected an nn.Module, got {type(module).__name__}")
        check_count("samples", samples, least=2 if estimator == "vimco" else 1)
        if estimator is not None and estimator not in ESTIMATORS:
            raise ValueError(f"estimator: expected None or one of {', '.join(ESTIMATORS)}, got {estimator!r}")
        self.encoder = encoder
        self.decoder = decoder
        self.latent_shape = _as_shape(latent_shape)
        self.samples = samples
        self.estimator = estimator
        self._seen_shape: tuple[int, ...] | None = None
        self._set_up(likelihood, beta, free_bits)
        if estimator is not None:
            for name, value, neutral in (("beta", beta, 1.0), ("free_bits", free_bits, 0.0)):
                if not isinstance(value, (int, float)) or value != neutral:
                    self._refuse(name)

    @classmethod
    def mlp(
        cls,
        data_dim: int | Sequence[int] = 784,
        hidden: int | Sequence[int] = 400,
        latent: int = 20,
        *,
        likelihood: str | Likelihood = "bernoulli",
        **options: Any,
    ) -> VAE:
        """data_dim - hidden - latent, ReLU layers on both sides, one for each size in `hidden`; x is [B, data_dim], or
        images. `data_dim` may be the shape of one x, as a mixture's (channels, height, width)."""
        sizes = [hidden] if isinstance(hidden, int) else list(hidden)
        for name, value in (*(("hidden", size) for size in sizes), ("latent", latent)):
            check_count(name, value, least=1)
        likelihood = likelihood_of(likelihood)
        count, width, shaped = flat_sizes(data_dim, likelihood)
        encoder = nn.Sequential(nn.Flatten(), *relu_layers(count, *sizes, 2 * latent))
        decoder = nn.Sequential(*relu_layers(latent, *reversed(sizes), width), *shaped)
        return cls(encoder, decoder, latent_shape=latent, likelihood=likelihood, **options)

    def forward(
        self,
        x: Tensor,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """The loss, a scalar: mean over the batch of nll + beta kl, with free bits; or of minus the bound."""
        self._check_batch(x)
        if self.estimator is not None:
            return -self._bound(x, self.estimator, key=key, generator=generator, first_sample=first_sample).mean()
        nll, kl = self._terms(x, self.free_bits, key=key, generator=generator, first_sample=first_sample)
        return torch.addcmul(nll, self.beta, kl).mean()

    def elbo(
        self,
        x: Tensor,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """log p(x | z) - KL(q(z | x) || N(0, I)), [B] nats, the mean over the K draws of z: the bound, whatever beta,
        free bits and the estimator are."""
        nll, kl = self._terms(x, 0.0, key=key, generator=generator, first_sample=first_sample)
        return -(nll + kl)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x | z) at the mean of q(z | x), shaped as x; no noise. For "bernoulli" sigmoid(decoder(mean)),
        for levels on [-1, 1]."""
        mean, _ = self.encode(x)
        return self.likelihood.reconstruction(x, self.decoder(mean))

    def sample(
        self,
        n: int,
        *,
        key: Tensor | None = None,
        generator: torch.Generator | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        """n pictures from z ~ N(0, I), shaped as the decoder's output: for "bernoulli" sigmoid(decoder(z)), from which
        ``variate.random.bernoulli`` draws binary data; the likelihood says what for others.

        The pixels' draw, where there is one, takes fold_in(key, 1).
        """
        check_count("n", n, least=0)
        shape = self.latent_shape if self.latent_shape is not None else self._seen_shape
        if shape is None:
            raise ValueError(
                "latent_shape: not known yet; pass VAE(..., latent_shape=...), or run the model on data once"
            )
        layers = like(self.decoder)
        z = random.normal(
            n,
            *shape,
            key=key,
            generator=generator,
            dtype=layers.dtype,
            device=layers.device,
            first_sample=first_sample,
        )
        key = None if key is None else random.fold_in(key, 1)
        return self.likelihood.sample(self.decoder(z), key=key, generator=generator, first_sample=first_sample)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log_var) of q(z | x)."""
        self._check_x(x)
        mean, log_var = halves("encoder", self.encoder(self.likelihood.seen(x, like(self.encoder).dtype)))
        if self.latent_shape is None:
            self._seen_shape = tuple(mean.shape[1:])
        elif tuple(mean.shape[1:]) != self.latent_shape:
            raise ValueError(
                f"encoder: latent_shape is {self.latent_shape}, so mean should be "
                f"{('B', *self.latent_shape)}, got {tuple(mean.shape)}"
            )
        return mean, log_var

    def _terms(self, x: Tensor, free_bits: float | Tensor, **noise: Any) -> tuple[Tensor, Tensor]:
        """-log p(x | z), the mean over K draws, and the KL, [B] each."""
        mean, log_var = self.encode(x)
        if self.samples == 1:
            z, kl = functional.normal_rsample_kl(mean, log_var, free_bits=free_bits, **noise)
            return self._nll(z, x), kl
        z, kl = functional.normal_rsample_kl(mean, log_var, free_bits=free_bits, samples=self.samples, **noise)
        return self._nll(z.flatten(0, 1), x).view(self.samples, -1).mean(0), kl

    def _bound(self, x: Tensor, estimator: str, **noise: Any) -> Tensor:
        """The importance weighted bound [B], with the estimator's gradients."""
        mean, log_var = self.encode(x)
        # What q's parameters get, they get through z, or through log q, or both.
        fixed = mean.detach(), log_var.detach()
        through_z, through_q = estimator in ("iwae", "stl", "dreg"), estimator in ("iwae", "rws", "vimco")
        z = functional.normal_rsample(*((mean, log_var) if through_z else fixed), samples=self.samples, **noise)
        log_q = log_normal(z, *((mean, log_var) if through_q else fixed))
        log_p = log_standard_normal(z, 2) - self._nll(z.flatten(0, 1), x, uniform=False).view(log_q.shape)
        return functional.importance_weighted_bound(
            log_p - log_q,
            estimator,
            log_q=None if through_z else log_q,
            latent=z if estimator == "dreg" else None,
        ).bound

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode(x)

    def _log_weight(self, x: Tensor, features: tuple[Tensor, Tensor], keys: Tensor) -> Tensor:
        mean, log_var = (f.expand(len(keys) // len(x), *f.shape).flatten(0, 1) for f in features)
        z = functional.normal_rsample(mean, log_var, key=keys)
        return log_standard_normal(z, 1) - log_normal(z, mean, log_var) - self._nll(z, x)

    def _change(self, name: str, setting: Tensor, value: float | Tensor) -> None:
        if self.estimator is not None:
            self._refuse(name)
        super()._change(name, setting, value)

    def _refuse(self, name: str) -> None:
        raise ValueError(
            f"{name}: expected it to be left alone with estimator={self.estimator!r}, whose bound has no KL"
        )


def _as_shape(shape: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    for size in sizes:
        check_count("latent_shape", size, least=0)
    return sizes
