"""Whole training steps on real digits: the models of `variate.models` against stock PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import variate
from variate.data import mnist
from variate.models import VAE, HierarchicalVAE
from variate.reference import elbo, reparam

from .harness import KEY, Case, Compiled, Job, Target, jobs

BATCH, PIXELS, HIDDEN, LATENT = 128, 784, 400, 20
SAMPLES = 50  # of the importance weighted bound


def model(device: torch.device) -> VAE:
    """The same weights for every competitor; the rivals use its encoder and decoder, which are stock."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VAE.mlp(PIXELS, HIDDEN, LATENT).to(device)


def bounded(device: torch.device) -> VAE:
    """784-200-200-50 and back, trained by DReG."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VAE.mlp(PIXELS, (200, 200), 50, samples=SAMPLES, estimator="dreg").to(device)


def ladder(device: torch.device) -> HierarchicalVAE:
    """784-400 with 20 latents, and 10 above them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HierarchicalVAE.mlp(PIXELS, HIDDEN, (10, LATENT)).to(device)


def ours(net: VAE) -> Callable[[Tensor], Tensor]:
    return net


def stock(net: VAE) -> Callable[[Tensor], Tensor]:
    """The loss in stock ops, as an expert writes it."""

    def loss(x: Tensor) -> Tensor:
        mean, log_var = net.encoder(x).chunk(2, dim=1)
        std = torch.exp(0.5 * log_var)
        z = torch.addcmul(mean, std, torch.randn_like(std))
        kl = 0.5 * torch.addcmul(torch.addcmul(-log_var, std, std), mean, mean).sub(1).sum()
        nll = F.binary_cross_entropy_with_logits(net.decoder(z), x, reduction="sum")
        return (nll + kl) / x.shape[0]

    return loss


def stock_dreg(net: VAE) -> Callable[[Tensor], Tensor]:
    """The doubly reparameterised gradient in stock ops, as an expert writes it: no array of the likelihood's terms, one
    pass of the decoder, and a surrogate in the place of the bound."""

    def loss(x: Tensor) -> Tensor:
        mean, log_var = net.encoder(x).chunk(2, dim=1)
        std = torch.exp(0.5 * log_var)
        z = torch.addcmul(mean, std, torch.randn(SAMPLES, *mean.shape, device=x.device))
        standard = (z - mean.detach()) / std.detach()
        log_ratio = 0.5 * (standard.square() + log_var.detach() - z.square()).sum(2)  # log p(z) - log q(z | x)
        logits = net.decoder(z)
        log_weight = log_ratio + torch.linalg.vecdot(logits, x) - F.softplus(logits).sum(2)
        weight = torch.softmax(log_weight.detach(), 0)
        z.register_hook(lambda grad: grad * weight.unsqueeze(2))
        return -(weight * log_weight).sum(0).mean()

    return loss


def stock_ladder(net: HierarchicalVAE) -> Callable[[Tensor], Tensor]:
    """The ladder's loss in stock ops, as an expert writes it."""
    top, bottom = net.layers

    def draw(mean: Tensor, log_var: Tensor) -> Tensor:
        std = torch.exp(0.5 * log_var)
        return torch.addcmul(mean, std, torch.randn_like(std))

    def loss(x: Tensor) -> Tensor:
        low = bottom.encode(x)
        mean, log_var = top.posterior(top.encode(low)).chunk(2, dim=1)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum()
        state = top.merge(draw(mean, log_var))
        prior_mean, prior_log_var = bottom.prior(state).chunk(2, dim=1)
        mean, log_var = bottom.posterior(torch.cat([state, low], 1)).chunk(2, dim=1)
        square = mean.square() * torch.exp(-prior_log_var)  # mean and log_var are relative to the prior's
        kl = kl + 0.5 * (square + log_var.exp() - 1 - log_var).sum()
        z = draw(prior_mean + mean, prior_log_var + log_var)
        logits = net.decoder(bottom.merge(torch.cat([state, z], 1)))
        nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (nll + kl) / x.shape[0]

    return loss


class Step:
    """zero_grad, forward, backward and fused Adam on the next batch; the model is made at the first call."""

    def __init__(
        self,
        loss: Callable[[Any], Callable[[Tensor], Tensor]],
        model: Callable[[torch.device], Any] = model,
    ) -> None:
        self.loss = loss
        self.model = model
        self.step: Callable[[], None] | None = None

    def backward(self, net: VAE) -> Callable[[Tensor], None]:
        """What computes the gradients for one batch."""
        loss = self.loss(net)
        return lambda x: loss(x).backward()

    def __call__(self, batches: Sequence[Tensor]) -> None:
        if self.step is None:
            net = self.model(batches[0].device)
            graphs = batches[0].is_cuda  # a step counter on the device lets a CUDA graph hold the optimiser
            optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True, capturable=graphs)
            backward, turn = self.backward(net), itertools.cycle(batches)

            def step() -> None:
                optimizer.zero_grad()
                backward(next(turn))
                optimizer.step()

            self.step = step
        self.step()


class FreeStep(Step):
    """The step with sampling, KL and likelihood free: fixed gradients enter at the logits and the code."""

    def __init__(self) -> None:
        super().__init__(stock)

    def backward(self, net: VAE) -> Callable[[Tensor], None]:
        device = net.beta.device
        generator = torch.Generator(device).manual_seed(0)
        at_logits = torch.randn(BATCH, PIXELS, generator=generator, device=device).mul_(1e-3)
        at_code = torch.randn(BATCH, 2 * LATENT, generator=generator, device=device).mul_(1e-3)

        def run(x: Tensor) -> None:
            code = net.encoder(x)
            logits = net.decoder(code[:, :LATENT])
            torch.autograd.backward([logits, code], [at_logits, at_code])

        return run


@dataclass(frozen=True)
class CompiledStep(Compiled):
    """A step whose loss is under torch.compile."""

    model: Callable[[torch.device], Any] = model

    def build(self) -> Step:
        options = dict(self.options) or None
        return Step(lambda net: torch.compile(self.fn(net), options=options), self.model)


def setup(device: torch.device) -> Sequence[Any]:
    """Sixty-two batches of digits, pixels rounded to 0 or 1."""
    images = mnist("train").images.reshape(-1, PIXELS)
    batches = (images >= 128).float().to(device).split(BATCH)
    return ([batch for batch in batches if len(batch) == BATCH],)


def check(args: Sequence[Any], leaves: Sequence[int]) -> None:
    """The loss and every gradient, with the same key, against the reference twins on the same modules."""
    x = args[0][0]
    net = model(x.device)
    key = torch.tensor(KEY, dtype=torch.int64, device=x.device)

    def twin() -> Tensor:
        mean, log_var = net.encoder(x).chunk(2, dim=1)
        z, kl = reparam.normal_rsample_kl(mean, log_var, key=key)
        return (elbo.bernoulli_nll(net.decoder(z), x) + kl).mean()

    def values(loss: Tensor) -> list[Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))]

    for number, (found, expected) in enumerate(zip(values(net(x, key=key)), values(twin()), strict=True)):
        error = (found - expected).abs().max().item() / expected.abs().max().item()
        assert error <= 1e-4, f"{'gradient' if number else 'loss'} {number}: relative difference {error:.3g}"


def matches_reference(model: Callable[[torch.device], Any]) -> Callable[[Sequence[Any], Sequence[int]], None]:
    """A check of the loss and every gradient, with one key, against the same model on the reference."""

    def check(args: Sequence[Any], leaves: Sequence[int]) -> None:
        x = args[0][0]
        net = model(x.device)
        key = torch.tensor(KEY, dtype=torch.int64, device=x.device)
        results = []
        for backend in ("auto", "reference"):
            with variate.use_backend(backend):
                loss = net(x, key=key)
                results.append([loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))])
        for number, (found, expected) in enumerate(zip(*results, strict=True)):
            error = (found - expected).abs().max().item() / expected.abs().max().item()
            # Weights are exponentials of sums of 784 terms, whose float32 rounding they multiply by their size.
            assert error <= 2e-3, f"{'gradient' if number else 'loss'} {number}: relative difference {error:.3g}"

    return check


def stock_case(op: str, model: Callable[[torch.device], Any], rival: Any, eager: float, compiled: float) -> Case:
    """A step of `model` against `rival`, with what is promised."""
    return Case(
        family="vae",
        op=op,
        shape=(BATCH, PIXELS),
        setup=setup,
        competitors={
            "ours": Step(ours, model),
            "eager": Step(rival, model),
            "compile": CompiledStep(rival, model=model),
            "compile_fallback_random": CompiledStep(rival, {"fallback_random": True}, model=model),
        },
        check=matches_reference(model),
        modes=("step",),
        targets=(
            Target("eager", eager, "step"),
            Target("compile", compiled, "step"),
            Target("compile", 1.0, "step", device="cuda"),
        ),
        threaded=True,
    )


CASES = [
    Case(
        family="vae",
        op="VAE training step",
        shape=(BATCH, PIXELS),
        setup=setup,
        competitors={
            "ours": Step(ours),
            "eager": Step(stock),
            "compile": CompiledStep(stock),
            "compile_fallback_random": CompiledStep(stock, {"fallback_random": True}),
            "bound: sampling, KL and likelihood free": FreeStep(),
        },
        check=check,
        modes=("step",),
        targets=(
            Target("eager", 1.07, "step"),
            Target("compile", 1.07, "step"),
            Target("compile", 1.0, "step", device="cuda"),
        ),
        threaded=True,
    ),
    stock_case("DReG training step, 50 samples", bounded, stock_dreg, 1.5, 1.2),
    stock_case("ladder training step", ladder, stock_ladder, 1.0, 1.0),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_vae(job: Job, bench: Any) -> None:
    bench(job)
