"""The ladder: its loss against the formula, its likelihood against a chain of Gaussians, and bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributions import Normal, kl_divergence

import variate
from variate.models import HierarchicalVAE, TopDownLayer, likelihoods
from variate.reference import elbo as reference_elbo
from variate.reference import reparam as reference_reparam

BATCH, DATA = 6, 12


@pytest.fixture
def key():
    return variate.random.key(7)


@pytest.fixture
def x():
    return torch.randint(0, 2, (BATCH, DATA), generator=torch.Generator().manual_seed(0)).float()


def _mlp(**options) -> HierarchicalVAE:
    torch.manual_seed(0)
    return HierarchicalVAE.mlp(DATA, 8, (2, 3, 4), **options)


def _walk(model: HierarchicalVAE, x: Tensor, key: Tensor) -> tuple[Tensor, list[Tensor]]:
    """nll and the KL of each layer, written out for three layers, with the reference's draws of the same noise."""
    one, two, three = model.layers
    low = three.encode(x)
    middle = two.encode(low)
    high = one.encode(middle)
    state, kls = torch.empty(len(x), 0), []
    for number, (layer, h) in enumerate([(one, high), (two, middle), (three, low)]):
        mean, log_var = layer.posterior(torch.cat([state, h], 1)).chunk(2, 1)
        prior_mean, prior_log_var = torch.zeros_like(mean), torch.zeros_like(mean)
        if layer.prior is not None:
            prior_mean, prior_log_var = layer.prior(state).chunk(2, 1)
        mean, log_var = prior_mean + mean, prior_log_var + log_var
        q, p = (Normal(m, (v / 2).exp()) for m, v in ((mean, log_var), (prior_mean, prior_log_var)))
        kls.append(kl_divergence(q, p).sum(1))
        z = reference_reparam.normal_rsample(mean, log_var, key=variate.random.fold_in(key, number))
        state = layer.merge(torch.cat([state, z], 1))
    return reference_elbo.bernoulli_nll(model.decoder(state), x), kls


@pytest.mark.parametrize("kind", ["plain", "free bits", "balance"])
def test_loss_and_gradient_are_the_formula(x, key, kind):
    model = _mlp(beta=0.5, free_bits=0.1 if kind == "free bits" else 0.0, balance=kind == "balance")
    twin = copy.deepcopy(model)
    nll, kls = _walk(twin, x, key)
    assert model.elbo(x, key=key).shape == (BATCH,)
    torch.testing.assert_close(model.elbo(x, key=key), -(nll + sum(kls)), rtol=1e-5, atol=0)
    kl = torch.stack(kls)
    if kind == "free bits":
        assert 0 < (kl < 0.1).sum() < kl.numel()
        kl = kl.clamp(min=0.1)
    if kind == "balance":
        rate = kl.detach().mean(1) / torch.tensor([2, 3, 4])
        kl = kl * (3 * rate / rate.sum())[:, None]
    loss, expected = model(x, key=key), (nll + 0.5 * kl.sum(0)).mean()
    # Float32 sums of a few hundred terms, each side in its own order.
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for got, want in zip(
        torch.autograd.grad(loss, list(model.parameters())),
        torch.autograd.grad(expected, list(twin.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def _linear(*rows: list[float], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows))
    layer.load_state_dict({"weight": torch.tensor(rows), "bias": torch.tensor(bias)})
    return layer


def _chain(off: float) -> tuple[HierarchicalVAE, float]:
    """z1 ~ N(0, 1), z2 ~ N(a z1, s), x ~ N(b z2, t), with q the posterior, whose log variances are `off`; and the
    variance of x."""
    a, b, s, t = 0.8, 1.3, 0.5, 0.3
    below = b * b * s + t
    first, second = 1 + (a * b) ** 2 / below, 1 / s + b * b / t  # the posterior's precisions
    top = TopDownLayer(
        nn.Identity(),
        _linear([a * b / below / first], [0.0], bias=[0.0, -math.log(first) + off]),
        nn.Identity(),
    )
    # From (z1, x): what the posterior's mean adds to a z1, and its log variance to log s.
    add = [a / s / second - a, b / t / second]
    bottom = TopDownLayer(
        nn.Identity(),
        _linear(add, [0.0, 0.0], bias=[0.0, -math.log(second) - math.log(s) + off]),
        _linear([0.0, 1.0], bias=[0.0]),
        _linear([a], [0.0], bias=[0.0, math.log(s)]),
    )
    decoder = _linear([b], bias=[0.0])
    model = HierarchicalVAE([top, bottom], decoder, likelihood=likelihoods.Normal(math.log(t)))
    return model, b * b * (a * a + s) + t


def test_log_likelihood_is_exact(key):
    x = torch.linspace(-3, 3, 7)[:, None]
    model, variance = _chain(0.0)
    exact = Normal(0, math.sqrt(variance)).log_prob(x[:, 0])
    # With q the posterior every weight is p(x).
    torch.testing.assert_close(model.log_likelihood(x, 1, key=key), exact, rtol=1e-5, atol=1e-5)
    # With q wider by e^0.5 in both layers a weight has the relative variance 0.18: one standard error of 4000
    # samples is 0.007, and 5 of them bound seven rows.
    model, _ = _chain(0.5)
    estimate = model.log_likelihood(x, 4000, key=key)
    assert 1e-4 < (estimate - exact).abs().max() < 0.035
    assert model.elbo(x, key=key).mean() < exact.mean() - 0.1


def test_log_likelihood_does_not_depend_on_the_chunks(x, key):
    model = _mlp()
    whole = model.log_likelihood(x, 40, key=key)
    assert whole.shape == (BATCH,) and not whole.requires_grad
    for batch_size in (1, 4, 100):
        torch.testing.assert_close(
            model.log_likelihood(x, 40, batch_size=batch_size, key=key), whole, rtol=1e-6, atol=0
        )
    parts = [model.log_likelihood(x[a:b], 40, key=key, first_sample=a) for a, b in ((0, 2), (2, 6))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=0)


def test_first_sample_splits_the_batch(x, key):
    model = _mlp()
    parts = [model.elbo(rows, key=key, first_sample=first) for first, rows in ((0, x[:2]), (2, x[2:]))]
    torch.testing.assert_close(torch.cat(parts), model.elbo(x, key=key), rtol=1e-5, atol=0)


def test_sample_and_reconstruct(x, key):
    model = _mlp()
    whole = model.sample(8, key=key)
    assert whole.shape == (8, DATA) and whole.min() >= 0 and whole.max() <= 1
    torch.testing.assert_close(model.sample(3, key=key, first_sample=5), whole[5:], rtol=1e-5, atol=0)
    assert model.sample(0, key=key).shape == (0, DATA)
    assert model.reconstruct(x).shape == x.shape and torch.equal(model.reconstruct(x), model.reconstruct(x))
    torch.manual_seed(1)
    first = model.sample(2)
    torch.manual_seed(1)
    assert torch.equal(model.sample(2), first)


def test_latent_shape_is_learnt_or_asked_for(x, key):
    model = _mlp()
    bare = HierarchicalVAE(list(model.layers), model.decoder)
    with pytest.raises(ValueError, match="latent_shape: not known yet"):
        bare.sample(2)
    bare(x)
    assert torch.equal(bare.sample(2, key=key), model.sample(2, key=key))


@pytest.mark.parametrize("likelihood", ["bernoulli", "discretized_logistic_mixture"])
def test_convolutional(key, likelihood):
    torch.manual_seed(0)
    model = HierarchicalVAE.conv((3, 8, 8), 4, (3, 2), likelihood=likelihood)
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    images = images if likelihood != "bernoulli" else images / 255
    model(images, key=key).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.reconstruct(images).shape == images.shape
    assert model.sample(5, key=key).shape == (5, 3, 8, 8)
    assert model.log_likelihood(images, 3, key=key).shape == (3,)


def test_compiled_equals_eager_and_annealing_does_not_recompile(x, key, fresh_dynamo):
    model = _mlp()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(12):
        model.beta, model.free_bits = 0.1 + 0.07 * step, 0.001 * step
        noise = variate.random.fold_in(key, step)
        results = []
        for call in (compiled, model):
            model.zero_grad()
            loss = call(x, key=noise)
            loss.backward()
            results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1
    assert len({compiled(x).item() for _ in range(3)}) == 3


def test_checkpoint_round_trip(x, key, tmp_path):
    pytest.importorskip("safetensors")
    from variate import checkpoint

    model = HierarchicalVAE.mlp(DATA, 8, (2, 3), likelihood=likelihoods.Normal(learned=True))
    optimizer = torch.optim.Adam(model.parameters())
    model(x, key=key).backward()
    optimizer.step()
    checkpoint.save(tmp_path / "ladder", checkpoint.pack(model, optimizer), {})
    other = HierarchicalVAE.mlp(DATA, 8, (2, 3), likelihood=likelihoods.Normal(learned=True))
    tensors, _ = checkpoint.load(tmp_path / "ladder")
    checkpoint.unpack(tensors, other, torch.optim.Adam(other.parameters()), source=tmp_path)
    assert "likelihood.log_var" in model.state_dict()
    assert torch.equal(other(x, key=key), model(x, key=key))


def test_nan_goes_where_it_came_in(x, key):
    x[2, 0] = math.nan
    elbo = _mlp().elbo(x, key=key)
    assert elbo[2].isnan() and elbo.isnan().sum() == 1


def test_it_learns_with_every_layer():
    """Two levels of chance: which of two patterns, and which half of it is inverted."""
    torch.manual_seed(0)
    model = HierarchicalVAE.mlp(DATA, 32, (2, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    patterns = torch.tensor([[0.0, 1.0] * 6, [1.0, 1.0, 0.0] * 4])
    inverted = patterns.clone()
    inverted[:, :6] = 1 - inverted[:, :6]
    x = torch.cat([patterns, inverted])[torch.arange(64) % 4]
    key = variate.random.key(0)
    for step in range(400):
        model.balance, model.beta = step < 150, min(1.0, step / 150)
        optimizer.zero_grad()
        loss = model(x, key=variate.random.fold_in(key, step))
        loss.backward()
        optimizer.step()
    # Four equal classes cost log 4 = 1.39 nats at best, twelve fair coins 8.3.
    assert loss.item() < 3.5


def test_bad_modules(x):
    good = _mlp()
    top, middle, bottom = good.layers
    with pytest.raises(ValueError, match="layers: expected at least one"):
        HierarchicalVAE([], good.decoder)
    with pytest.raises(TypeError, match=r"layers\[1\]: expected a TopDownLayer, got Linear"):
        HierarchicalVAE([top, nn.Linear(2, 2)], good.decoder)
    with pytest.raises(ValueError, match=r"layers\[0\]: expected prior=None at the top"):
        HierarchicalVAE([middle, bottom], good.decoder)
    with pytest.raises(TypeError, match=r"decoder: expected an nn\.Module"):
        HierarchicalVAE([top], torch.sigmoid)
    odd = TopDownLayer(nn.Linear(DATA, 8), nn.Linear(8, 5), nn.Linear(2, 8))
    with pytest.raises(ValueError, match=r"layers\[0\].posterior: .* must be even, got shape \(6, 5\)"):
        HierarchicalVAE([odd], good.decoder)(x)
    with pytest.raises(ValueError, match=r"image: .* multiples of 4 for 2 layers, got \(1, 30, 28\)"):
        HierarchicalVAE.conv((1, 30, 28))
    with pytest.raises(ValueError, match="images of 1 or 3 channels, got 2"):
        HierarchicalVAE.conv((2, 28, 28), likelihood="discretized_logistic_mixture")
    with pytest.raises(ValueError, match=r"data_dim: expected .channels, height, width."):
        HierarchicalVAE.mlp(DATA, likelihood="discretized_logistic_mixture")
    for name, options in [("hidden", {"hidden": 0}), ("latents", {"latents": (2, 0)}), ("data_dim", {"data_dim": 0})]:
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            HierarchicalVAE.mlp(**options)


def test_bad_settings(x):
    model = _mlp()
    with pytest.raises(ValueError, match=r"likelihood: expected one of bernoulli, normal, .*, got 'poisson'"):
        _mlp(likelihood="poisson")
    with pytest.raises(ValueError, match="balance: expected False with free_bits"):
        _mlp(free_bits=0.1, balance=True)
    with pytest.raises(ValueError, match="free_bits: expected a finite number, at least 0, got -1"):
        model.free_bits = -1
    with pytest.raises(ValueError, match="batch is empty"):
        model(x[:0])
    assert model.elbo(x[:0]).shape == (0,)
    for name in ("samples", "batch_size"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            model.log_likelihood(x, **{name: 0})
