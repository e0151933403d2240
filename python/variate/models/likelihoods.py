"""What a decoder's output says of x: one small class per likelihood."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import functional, random
from ..reference.logistic import split_mixture

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Likelihood",
    "Normal",
    "likelihood_of",
]

Output = Any  # what a decoder returns: a tensor, or for some likelihoods a pair


class Likelihood(nn.Module):
    """p(x | z) given the decoder's output. The output is [N, ...] with N = K B rows, sample after sample, for x [B,
    ...]."""

    name: ClassVar[str]
    takes: ClassVar[str]  # what x may be, for people
    needs_images: ClassVar[bool] = False
    fused: ClassVar[str | None] = None  # the likelihood's name in functional.linear_<name>_nll

    def accepts(self, x: Tensor) -> bool:
        """Whether x has a dtype of this likelihood."""
        raise NotImplementedError

    def seen(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x as the encoder sees it: floating, of the order of 1."""
        raise NotImplementedError

    def outputs(self, channels: int) -> int:
        """How many channels the decoder's output needs for x of so many."""
        return channels

    def nll(self, output: Output, x: Tensor) -> Tensor:
        """-log p(x | z) in nats, [N]."""
        raise NotImplementedError

    def mean(self, output: Output) -> Tensor:
        """The mean of x, floating, as the encoder sees it."""
        raise NotImplementedError

    def reconstruction(self, x: Tensor, output: Output) -> Tensor:
        """The mean, shaped as x."""
        mean = self.mean(output)
        _matching(x, mean)
        return mean.reshape(x.shape)

    def sample(self, output: Output, **noise: Any) -> Tensor:
        """x, for people to look at: the mean where draws of pixels are but noise around it, else a draw; `noise` is
        key, generator and first_sample."""
        return self.mean(output)


class Bernoulli(Likelihood):
    """x in {0, 1}, or in [0, 1]; the decoder returns logits, shaped as x, or either is flat [B, D]."""

    name = fused = "bernoulli"
    takes = "a float tensor in [0, 1], or uint8 or bool holding 0 and 1"

    def accepts(self, x: Tensor) -> bool:
        return x.is_floating_point() or x.dtype in (torch.uint8, torch.bool)

    def seen(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x if x.is_floating_point() else x.to(dtype)

    def nll(self, output: Output, x: Tensor) -> Tensor:
        return functional.bernoulli_nll(output, _matching(x, output))

    def mean(self, output: Output) -> Tensor:
        return torch.sigmoid(output)


class Normal(Likelihood):
    """x real; the decoder returns the mean, shaped as x, or either is flat [B, D], or (mean, log_var).

    Args:
        log_var: log sigma^2 where the decoder returns the mean alone.
        learned: it is a parameter, one for all elements, that starts at log_var.
    """

    name = "normal"
    takes = "a float tensor"

    def __init__(self, log_var: float = 0.0, *, learned: bool = False) -> None:
        super().__init__()
        self.log_var: float | nn.Parameter = nn.Parameter(torch.tensor(float(log_var))) if learned else float(log_var)

    def accepts(self, x: Tensor) -> bool:
        return x.is_floating_point()

    def seen(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x

    def nll(self, output: Output, x: Tensor) -> Tensor:
        mean, log_var = (output, self.log_var) if isinstance(output, Tensor) else _pair("normal", output)
        return functional.normal_nll(mean, log_var, _matching(x, mean))

    def mean(self, output: Output) -> Tensor:
        return output if isinstance(output, Tensor) else output[0]


class _Levels(Likelihood):
    """x = one of 2^bits levels, as integers or spread over [-1, 1]."""

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 8:
            raise ValueError(f"bits: expected 1 to 8, got {bits!r}")
        self.bits = bits

    takes = "uint8 levels, or a float tensor in [-1, 1]"

    def accepts(self, x: Tensor) -> bool:
        return x.is_floating_point() or x.dtype == torch.uint8

    def seen(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x if x.is_floating_point() else x.to(dtype) * (2 / (2**self.bits - 1)) - 1


class Categorical(_Levels):
    """x = integer levels 0 ... 2^bits - 1; the decoder returns logits [B, ..., 2^bits], or flat [B, D 2^bits]."""

    name = fused = "categorical"
    takes = "integer levels"

    def accepts(self, x: Tensor) -> bool:
        return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)

    def outputs(self, channels: int) -> int:
        return channels * 2**self.bits

    def nll(self, output: Output, x: Tensor) -> Tensor:
        rows, classes = output.shape[0], 2**self.bits
        if output.dim() < 2 or output.numel() != rows * x[:1].numel() * classes:
            raise ValueError(
                f"decoder: expected logits {('B', *x.shape[1:], classes)}, or flat [B, D * {classes}], "
                f"got {tuple(output.shape)}"
            )
        target = _repeated(x, rows)
        return functional.categorical_nll(output.reshape(*target.shape, classes), target)

    def mean(self, output: Output) -> Tensor:
        levels = torch.linspace(-1, 1, 2**self.bits, dtype=output.dtype, device=output.device)
        return torch.softmax(self._by_pixel(output), -1) @ levels

    def sample(self, output: Output, **noise: Any) -> Tensor:
        draw = random.categorical(self._by_pixel(output), **noise)
        return draw.to(torch.uint8)

    def _by_pixel(self, output: Tensor) -> Tensor:
        """[B, D, 2^bits]"""
        return output.reshape(len(output), -1, 2**self.bits)


class DiscretizedLogistic(_Levels):
    """The decoder returns (mean, log_scale), shaped as x, or one tensor that is chunked in two along dimension 1; the
    mean lives on [-1, 1]."""

    name = "discretized_logistic"

    def __init__(self, bits: int = 8, *, edges: str = "exact") -> None:
        super().__init__(bits)
        self.edges = edges

    def outputs(self, channels: int) -> int:
        return 2 * channels

    def nll(self, output: Output, x: Tensor) -> Tensor:
        mean, log_scale = _pair("discretized_logistic", output)
        target = _matching(x, mean)
        return functional.discretized_logistic_nll(mean, log_scale, target, bits=self.bits, edges=self.edges)

    def mean(self, output: Output) -> Tensor:
        return _pair("discretized_logistic", output)[0].clamp(-1, 1)


class DiscretizedLogisticMixture(_Levels):
    """x [B, 1 or 3, H, W]; the decoder returns the parameters of the mixtures, as
    ``functional.discretized_logistic_mixture_nll`` takes them: [B, 3 M, H, W] for one channel, [B, 10 M, H, W] for
    three."""

    name = "discretized_logistic_mixture"
    needs_images = True

    def __init__(self, mixtures: int = 10, bits: int = 8, *, edges: str = "exact") -> None:
        super().__init__(bits)
        self.mixtures, self.edges = mixtures, edges

    def outputs(self, channels: int) -> int:
        if channels not in (1, 3):
            raise ValueError(f"likelihood: {self.name} is for images of 1 or 3 channels, got {channels}")
        return self.mixtures * (3 if channels == 1 else 10)

    def nll(self, output: Output, x: Tensor) -> Tensor:
        return functional.discretized_logistic_mixture_nll(
            output, _repeated(x, output.shape[0]), mixtures=self.mixtures, bits=self.bits, edges=self.edges
        )

    def mean(self, output: Output) -> Tensor:
        logits, mean, _, coefficients = split_mixture(output, self.mixtures)  # mean: [B, C, M, H, W]
        channels = list(mean.unbind(1))
        if coefficients is not None:
            k = coefficients.tanh()
            channels[1] = channels[1] + k[:, 0] * channels[0]
            channels[2] = channels[2] + k[:, 1] * channels[0] + k[:, 2] * channels[1]
        return (torch.softmax(logits, 1)[:, None] * torch.stack(channels, 1)).sum(2).clamp(-1, 1)

    def sample(self, output: Output, **noise: Any) -> Tensor:
        return functional.discretized_logistic_mixture_sample(output, mixtures=self.mixtures, bits=self.bits, **noise)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    kind.name: kind for kind in (Bernoulli, Normal, Categorical, DiscretizedLogistic, DiscretizedLogisticMixture)
}


def likelihood_of(likelihood: str | Likelihood) -> Likelihood:
    """A likelihood by its name, with its defaults, or as it is."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    if not isinstance(likelihood, str):
        raise TypeError(f"likelihood: expected a name or a Likelihood, got {type(likelihood).__name__}")
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood: expected one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
    return LIKELIHOODS[likelihood]()


def _pair(name: str, output: Output) -> tuple[Tensor, Tensor]:
    """Location and spread: two tensors, or one to chunk."""
    if isinstance(output, (tuple, list)) and len(output) == 2:
        return output[0], output[1]
    if not isinstance(output, Tensor):
        raise TypeError(f"decoder: expected two tensors or one for {name!r}, got {type(output).__name__}")
    if output.dim() < 2 or output.shape[1] % 2:
        raise ValueError(
            f"decoder: for {name!r} one output tensor is chunked in two along dimension 1, which must be even, "
            f"got shape {tuple(output.shape)}"
        )
    first, second = output.chunk(2, dim=1)
    return first, second


def _matching(x: Tensor, output: Tensor) -> Tensor:
    """x as the target of the decoder's output, once for each sample: of one shape, or one of the two flat. Other
    reshapes would hide mistakes."""
    if x.shape == output.shape:
        return x
    flat = x.dim() == 2 or output.dim() == 2
    fits = output.shape[1:] == x.shape[1:] or (flat and output.shape[1:].numel() == x.shape[1:].numel())
    if not (fits and _repeats(x, output.shape[0])):
        raise ValueError(
            f"decoder: expected logits shaped as x, {tuple(x.shape)}, or one of the two flat, got {tuple(output.shape)}"
        )
    return _repeated(x, output.shape[0]).reshape(output.shape)


def _repeats(x: Tensor, rows: int) -> bool:
    return rows % x.shape[0] == 0 if x.shape[0] else rows == 0


def _repeated(x: Tensor, rows: int) -> Tensor:
    """x once for each sample: [rows, ...]."""
    if x.shape[0] == rows:
        return x
    if not _repeats(x, rows):
        raise ValueError(f"decoder: expected {x.shape[0]} rows, or a multiple of them, got {rows}")
    return x.expand(rows // x.shape[0], *x.shape).flatten(0, 1)
