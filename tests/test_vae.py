"""The autoencoder: its losses against formulas, training under every wrapper, and bad input."""

from __future__ import annotations

import copy
import math
from unittest import mock

import pytest
import ranks
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributions import Normal

import variate
from variate.cli.digits import Digits, evaluate
from variate.functional.bound import ESTIMATORS
from variate.models import VAE, likelihoods
from variate.reference import bound as reference_bound
from variate.reference import elbo as reference_elbo
from variate.reference import logistic as reference_logistic
from variate.reference import reparam as reference_reparam

BATCH, DATA, LATENT = 6, 12, 4


@pytest.fixture
def key():
    return variate.random.key(7)


@pytest.fixture
def x():
    return torch.randint(0, 2, (BATCH, DATA), generator=torch.Generator().manual_seed(0)).float()


def _vae(**options) -> VAE:
    torch.manual_seed(0)
    return VAE.mlp(DATA, 8, LATENT, **options)


def _terms(model, x, key, free_bits=0.0):
    """nll and kl from the reference, with the same noise."""
    mean, log_var = model.encoder(x).chunk(2, dim=1)
    z, kl = reference_reparam.normal_rsample_kl(mean, log_var, free_bits=free_bits, key=key)
    return reference_elbo.bernoulli_nll(model.decoder(z), x), kl


def test_loss_and_gradient_are_the_formula(x, key):
    model = _vae(beta=0.5, free_bits=0.1)
    twin = copy.deepcopy(model)
    loss = model(x, key=key)
    nll, kl = _terms(twin, x, key, free_bits=0.1)
    expected = (nll + 0.5 * kl).mean()
    loss.backward()
    expected.backward()
    assert loss.shape == ()
    # Float32 sums of a few hundred terms, each side in its own order.
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for got, want in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-6)


def test_elbo_is_the_bound_whatever_the_settings(x, key):
    model = _vae(beta=4.0, free_bits=0.5)
    nll, kl = _terms(model, x, key)
    assert model.elbo(x, key=key).shape == (BATCH,)
    torch.testing.assert_close(model.elbo(x, key=key), -(nll + kl), rtol=1e-5, atol=0)
    model.beta, model.free_bits = 1.0, 0.0
    torch.testing.assert_close(model(x, key=key), -model.elbo(x, key=key).mean(), rtol=1e-6, atol=0)


def test_encoder_may_return_a_pair(x, key):
    class Pair(nn.Module):
        def __init__(self, joint):
            super().__init__()
            self.joint = joint

        def forward(self, x):
            return self.joint(x).chunk(2, dim=1)

    model = _vae()
    paired = VAE(Pair(model.encoder), model.decoder)
    assert torch.equal(paired(x, key=key), model(x, key=key))


def test_convolutional(key):
    encoder = nn.Conv2d(1, 4, 3, stride=2, padding=1)
    decoder = nn.ConvTranspose2d(2, 1, 4, stride=2, padding=1)
    model = VAE(encoder, decoder)
    x = torch.rand(3, 1, 8, 8)
    model(x, key=key).backward()
    assert model.reconstruct(x).shape == x.shape
    assert model.sample(5, key=key).shape == (5, 1, 8, 8)


def test_images_and_flat_rows_are_one(key):
    model = VAE.mlp(16, 8, 3)
    images = torch.randint(0, 2, (5, 4, 4)).float()
    assert torch.equal(model(images, key=key), model(images.flatten(1), key=key))
    assert model.reconstruct(images).shape == images.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_binary_integers_are_floats(x, key, dtype):
    model = _vae()
    torch.testing.assert_close(model(x.to(dtype), key=key), model(x, key=key), rtol=1e-6, atol=0)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x.to(dtype), key=key), model(x, key=key), rtol=1e-6, atol=0)


def test_reconstruct_is_the_decoded_mean(x):
    model = _vae()
    mean, _ = model.encode(x)
    assert torch.equal(model.reconstruct(x), torch.sigmoid(model.decoder(mean)))


def test_sample(key):
    model = _vae()
    whole = model.sample(8, key=key)
    assert whole.shape == (8, DATA) and whole.min() >= 0 and whole.max() <= 1
    part = model.sample(3, key=key, first_sample=5)
    torch.testing.assert_close(part, whole[5:], rtol=1e-5, atol=0)  # the same z; matmul may sum otherwise
    assert model.sample(0, key=key).shape == (0, DATA)
    torch.manual_seed(1)
    first = model.sample(2)
    torch.manual_seed(1)
    assert torch.equal(model.sample(2), first)
    one, two = (model.sample(2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)


def test_latent_shape_is_learnt_or_asked_for(x, key):
    model = _vae()
    bare = VAE(model.encoder, model.decoder)
    with pytest.raises(ValueError, match=r"latent_shape: not known yet; pass VAE\(..., latent_shape="):
        bare.sample(2)
    bare(x)
    assert torch.equal(bare.sample(2, key=key), model.sample(2, key=key))


def test_first_sample_splits_the_batch(x, key):
    model = _vae()
    whole = model.elbo(x, key=key)
    parts = [model.elbo(rows, key=key, first_sample=first) for first, rows in ((0, x[:2]), (2, x[2:]))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=0)


def test_state_dict_holds_the_submodules_only(x, key):
    model = _vae(beta=2.0)
    assert set(model.state_dict()) == {
        *(f"encoder.{name}" for name in model.encoder.state_dict()),
        *(f"decoder.{name}" for name in model.decoder.state_dict()),
    }
    assert not list(model.buffers())
    other = _vae(beta=2.0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x, key=key), model(x, key=key))


def test_settings_follow_the_module_and_keep_their_value():
    model = _vae(beta=0.1, free_bits=0.25)
    model.bfloat16().to_empty(device="cpu")  # rounds and empties the parameters, not the settings
    assert model.beta == torch.tensor(0.1) and model.free_bits == 0.25
    assert copy.deepcopy(model).free_bits == 0.25
    assert model.to("meta").free_bits == 0.25
    with torch.device("meta"):
        assert VAE.mlp(DATA, 8, LATENT, beta=3.0).to_empty(device="cpu").beta == 3.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers_of_another_dtype(x, key, dtype):
    exact = _vae(beta=0.5, free_bits=0.1)
    model = _vae(beta=0.5, free_bits=0.1).to(dtype)
    loss = model(x.to(torch.uint8), key=key)
    loss.backward()
    assert model.sample(2).dtype == dtype
    # Three layers, each rounded.
    assert loss.item() == pytest.approx(exact(x, key=key).item(), rel=3 * 2**-8)


def test_loss_is_the_same_call(x, key):
    model = _vae()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(model.loss(x, key=key), model(x, key=key))
    assert len(calls) == 2


def test_float64(x, key):
    model = _vae().double()
    loss = model(x.double(), key=key)
    nll, kl = _terms(model, x.double(), key)
    assert loss.dtype == torch.float64
    # Float32 noise, widened: the reference's may differ in the last place of a normal.
    torch.testing.assert_close(loss, (nll + kl).mean(), rtol=1e-7, atol=0)


def test_autocast_bfloat16(x, key):
    model = _vae()
    exact = model(x, key=key).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, key=key)
    loss.backward()
    # Three bfloat16 layers: each rounds to 2^-9 relative.
    assert loss.item() == pytest.approx(exact, rel=3 * 2**-8)
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_compiled_equals_eager_and_annealing_does_not_recompile(x, key):
    model = _vae()
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(12):
        model.beta = 0.1 + 0.07 * step
        model.free_bits = torch.tensor(0.01 * step) if step % 2 else 0.01 * step
        noise = variate.random.fold_in(key, step)
        model.zero_grad()
        loss = compiled(x, key=noise)
        loss.backward()
        got = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        expected = model(x, key=noise)
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(got, [parameter.grad for parameter in model.parameters()], rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1


def test_compiled_draws_without_a_key(x):
    model = VAE(_vae().encoder, _vae().decoder)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    losses = {compiled(x).item() for _ in range(3)}
    assert len(losses) == 3
    assert model.sample(2).shape == (2, DATA)  # the latent shape was learnt in compiled code


_RANK = """
from variate.models import VAE

options = {"beta": 0.5} if arguments[0] == "elbo" else {"samples": 3, "estimator": arguments[0]}
model = DistributedDataParallel(VAE.mlp(12, 8, 4, **options))
x = torch.randint(0, 2, (6, 12), generator=torch.Generator().manual_seed(0)).float()
key = variate.random.key(7)
model(x[3 * rank :][:3], key=key, first_sample=3 * rank).backward()
result = {name: parameter.grad for name, parameter in model.module.named_parameters()}
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("objective", ["elbo", "dreg"])
def test_two_ranks_reproduce_one_process(tmp_path, x, key, objective):
    pytest.importorskip("safetensors")
    gradients = ranks.run(_RANK, tmp_path, objective)
    model = _vae(beta=0.5) if objective == "elbo" else _vae(samples=3, estimator=objective)
    model(x, key=key).backward()
    for name, parameter in model.named_parameters():
        # The mean over the ranks adds in another order.
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_it_learns():
    model = _vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    patterns = F.one_hot(torch.arange(4), 4).repeat_interleave(3, dim=1).float()
    x = patterns[torch.arange(64) % 4]
    key = variate.random.key(0)
    losses = []
    for step in range(300):
        optimizer.zero_grad()
        loss = model(x, key=variate.random.fold_in(key, step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Four equal classes cost log 4 = 1.39 nats at best, twelve fair coins 8.3.
    assert losses[0] > 8 and losses[-1] < 3.5


def test_nan_goes_where_it_came_in(x, key):
    model = _vae()
    x[2, 0] = float("nan")
    elbo = model.elbo(x, key=key)
    assert elbo[2].isnan() and elbo.isnan().sum() == 1


def test_empty_batch(key):
    model = _vae()
    empty = torch.empty(0, DATA)
    assert model.elbo(empty, key=key).shape == (0,)
    assert model.reconstruct(empty).shape == (0, DATA)
    with pytest.raises(ValueError, match=r"x: .* this batch is empty"):
        model(empty)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1.0], TypeError, "x: expected a tensor, got list"),
        (torch.zeros(3, DATA, dtype=torch.int64), TypeError, r"x: .*got torch\.int64"),
        (torch.zeros(3, DATA, dtype=torch.complex64), TypeError, r"x: .*got torch\.complex64"),
        (torch.zeros(DATA), ValueError, r"x: expected a batch.*got shape \(12,\)"),
        (torch.tensor(1.0), ValueError, "x: expected a batch"),
    ],
)
@pytest.mark.parametrize("method", ["forward", "elbo", "reconstruct"])
def test_bad_x(method, x, error, message):
    with pytest.raises(error, match=message):
        getattr(_vae(), method)(x)


def test_bad_modules(x):
    good = _vae()
    with pytest.raises(TypeError, match=r"encoder: expected an nn\.Module, got function"):
        VAE(lambda x: x, good.decoder)
    with pytest.raises(ValueError, match=r"encoder: .* must be even, got shape \(6, 5\)"):
        VAE(nn.Linear(DATA, 5), good.decoder)(x)
    with pytest.raises(ValueError, match=r"encoder: latent_shape is \(3,\).*got \(6, 4\)"):
        VAE(good.encoder, good.decoder, latent_shape=3)(x)
    with pytest.raises(ValueError, match=r"decoder: expected logits shaped as x, \(6, 12\).*got \(6, 11\)"):
        VAE(good.encoder, nn.Linear(LATENT, 11))(x)

    class Three(nn.Module):
        def forward(self, x):
            return x, x, x

    with pytest.raises(TypeError, match=r"encoder: expected \(mean, log_var\) or one tensor"):
        VAE(Three(), good.decoder)(x)


def test_channels_are_not_reordered_silently():
    class Wrong(nn.Module):
        def forward(self, z):
            return torch.zeros(len(z), 3, 4, 4)

    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    with pytest.raises(ValueError, match="decoder: expected logits shaped as x"):
        VAE(encoder, Wrong())(torch.rand(2, 4, 4, 3))


@pytest.mark.parametrize("name", ["beta", "free_bits"])
def test_bad_settings(name):
    model = _vae()
    for value, error in [
        (-1.0, ValueError),
        (float("nan"), ValueError),
        ("1", TypeError),
        (torch.ones(2), ValueError),
    ]:
        with pytest.raises(error, match=f"^{name}: expected"):
            setattr(model, name, value)
        with pytest.raises(error, match=f"^{name}: expected"):
            _vae(**{name: value})


def test_bad_counts():
    model = _vae()
    for n, error in [(-1, ValueError), (2.0, TypeError), (True, TypeError)]:
        with pytest.raises(error, match=r"^n: expected"):
            model.sample(n)
    with pytest.raises(ValueError, match="latent: expected at least 1"):
        VAE.mlp(DATA, 8, 0)
    with pytest.raises(ValueError, match="latent_shape: expected at least 0"):
        VAE(model.encoder, model.decoder, latent_shape=(-1,))


# Other likelihoods, several samples, and the importance weighted bound.

LIKELIHOODS = ["normal", "categorical", "discretized_logistic", "discretized_logistic_mixture"]


def _images(likelihood: str, batch: int = BATCH) -> torch.Tensor:
    """[B, 1, 3, 4]: DATA pixels, as the likelihood has them."""
    generator = torch.Generator().manual_seed(0)
    if likelihood == "bernoulli":
        return torch.randint(0, 2, (batch, 1, 3, 4), generator=generator).float()
    levels = torch.randint(0, 256, (batch, 1, 3, 4), generator=generator, dtype=torch.uint8)
    return levels if likelihood != "normal" else levels / 255


def _of(likelihood: str, **options) -> VAE:
    torch.manual_seed(0)
    return VAE.mlp((1, 3, 4), 8, LATENT, likelihood=likelihood, **options)


def _nll(likelihood: str, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """From the reference."""
    if likelihood == "bernoulli":
        return reference_elbo.bernoulli_nll(output, x.flatten(1))
    if likelihood == "normal":
        return 0.5 * ((output - x.flatten(1)).square() + math.log(2 * math.pi)).sum(1)
    if likelihood == "categorical":
        logits = output.view(-1, 256)
        return F.cross_entropy(logits, x.flatten().long(), reduction="none").view(len(x), -1).sum(1)
    if likelihood == "discretized_logistic":
        return reference_logistic.discretized_logistic_nll(*output.chunk(2, 1), x.flatten(1))
    return reference_logistic.discretized_logistic_mixture_nll(output, x)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods(key, likelihood, fresh_dynamo):
    x, model = _images(likelihood), _of(likelihood)
    seen = x if likelihood == "normal" else x.float() / 127.5 - 1
    mean, log_var = model.encoder(seen).chunk(2, 1)
    z, kl = reference_reparam.normal_rsample_kl(mean, log_var, key=key)
    loss, expected = model(x, key=key), (_nll(likelihood, model.decoder(z), x) + kl).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for got, want in zip(
        torch.autograd.grad(loss, list(model.parameters())),
        torch.autograd.grad(expected, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, key=key), loss, rtol=1e-6, atol=0)
    # What people look at.
    assert model.reconstruct(x).shape == x.shape
    assert model.reconstruct(x).abs().max() <= 1.5
    whole = model.sample(8, key=key)
    assert whole.shape[0] == 8 and whole.shape[1:].numel() == DATA
    assert whole.dtype == (
        torch.uint8 if likelihood in ("categorical", "discretized_logistic_mixture") else torch.float32
    )
    torch.testing.assert_close(model.sample(3, key=key, first_sample=5), whole[5:], rtol=1e-5, atol=1e-6)


def test_levels_as_floats_are_the_same(key):
    """Grey in [-1, 1] for the discretised logistics: their own scale."""
    for likelihood in ("discretized_logistic", "discretized_logistic_mixture"):
        x, model = _images(likelihood), _of(likelihood)
        torch.testing.assert_close(model(x.float() / 127.5 - 1, key=key), model(x, key=key), rtol=1e-6, atol=0)


def test_mean_of_a_mixture():
    """Against the mean of 20,000 draws: standard errors are at most 0.01, a level is 0.008 wide."""
    likelihood = likelihoods.DiscretizedLogisticMixture(mixtures=2)
    params = 0.3 * torch.randn(1, 20, 2, 2, generator=torch.Generator().manual_seed(0))
    for colour in range(3):
        params[:, 4 + 6 * colour : 6 + 6 * colour] = -4  # log scales: components that no edge cuts off
    many = params.expand(20_000, -1, -1, -1)
    draws = variate.functional.discretized_logistic_mixture_sample(many, mixtures=2, key=variate.random.key(1))
    torch.testing.assert_close(likelihood.mean(params)[0], (draws.float() / 127.5 - 1).mean(0), rtol=0, atol=0.03)


def test_a_normal_with_its_own_variance(key):
    x = _images("normal").flatten(1)
    fixed, learned = (_of(likelihoods.Normal(-1.0, learned=flag)) for flag in (False, True))
    assert "likelihood.log_var" in learned.state_dict() and "likelihood.log_var" not in fixed.state_dict()
    torch.testing.assert_close(fixed(x, key=key), learned(x, key=key), rtol=1e-6, atol=0)
    learned(x, key=key).backward()
    assert learned.likelihood.log_var.grad.abs() > 0

    class Both(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, z):
            mean = self.body(z)
            return mean, torch.full_like(mean, -1.0)

    both = VAE(fixed.encoder, Both(fixed.decoder), likelihood="normal")
    torch.testing.assert_close(both(x, key=key), fixed(x, key=key), rtol=1e-6, atol=0)


@pytest.mark.parametrize("likelihood", ["bernoulli", *LIKELIHOODS])
def test_samples_are_draws_of_their_own(key, likelihood):
    """The loss of K samples is the mean of the losses of its K draws."""
    x, several, single = _images(likelihood), _of(likelihood, samples=3), _of(likelihood)
    draws = [key, *(variate.random.fold_in(key, k) for k in (1, 2))]
    expected = torch.stack([single(x, key=draw) for draw in draws]).mean()
    torch.testing.assert_close(several(x, key=key), expected, rtol=1e-5, atol=0)
    elbos = torch.stack([single.elbo(x, key=draw) for draw in draws]).mean(0)
    torch.testing.assert_close(several.elbo(x, key=key), elbos, rtol=1e-5, atol=0)


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_the_last_layer_and_its_likelihood_are_one_op_unless_watched(key, likelihood):
    """As one op and as two: one loss, one gradient."""
    x, model = _images(likelihood), _of(likelihood, samples=3)
    linear = variate.functional.linear
    results, calls = [], []
    for hook in (False, True):
        if hook:
            model.decoder[-1].register_forward_hook(lambda *_: calls.append(1))
        with mock.patch.object(linear, "nll", wraps=linear.nll) as fused:
            loss = model(x, key=key)
            assert fused.called is not hook and bool(calls) is hook
            bound = model.log_likelihood(x, 4, key=key)
        results.append([loss, bound, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators(x, key, estimator, fresh_dynamo):
    """Loss and gradient against the formula, in eager and compiled code."""
    model = _vae(samples=5, estimator=estimator)
    mean, log_var = model.encoder(x).chunk(2, 1)
    attached = estimator in ("iwae", "stl", "dreg")
    keys = [key, *(variate.random.fold_in(key, k) for k in range(1, 5))]
    z = torch.stack([reference_reparam.normal_rsample(mean, log_var, key=k) for k in keys])
    z = z if attached else z.detach()
    fixed = estimator in ("stl", "dreg")
    q = Normal(*((p.detach() if fixed else p) for p in (mean, (log_var / 2).exp())))
    log_q = q.log_prob(z).sum(2)
    nll = torch.stack([reference_elbo.bernoulli_nll(model.decoder(draw), x) for draw in z])
    log_weight = Normal(0, 1).log_prob(z).sum(2) - nll - log_q
    expected = -reference_bound.importance_weighted_bound(
        log_weight,
        estimator,
        log_q=None if attached else log_q,
        latent=z if estimator == "dreg" else None,
    )[0].mean()
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    for call in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        loss = call(x, key=key)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(torch.autograd.grad(loss, parameters), wanted, rtol=1e-3, atol=1e-6)
    # The bound is one of log p(x), tighter than the ELBO; rows are their own.
    assert -loss > model.elbo(x, key=key).mean()


def test_first_sample_splits_a_batch_of_several_samples(x, key):
    model = _vae(samples=3, estimator="iwae")
    parts = [model(rows, key=key, first_sample=first) for first, rows in ((0, x[:2]), (2, x[2:]))]
    torch.testing.assert_close((2 * parts[0] + 4 * parts[1]) / 6, model(x, key=key), rtol=1e-5, atol=0)


def _linear_gaussian(off: float) -> tuple[VAE, torch.distributions.Distribution]:
    """x = W z + b + noise, with q the posterior, whose covariance here is diagonal, its log variances `off`."""
    weight = torch.tensor([[1.0, 0.5], [-1.0, 0.5], [0.5, 1.0], [0.5, -1.0]]).double()  # orthogonal columns
    bias, noise = torch.tensor([0.1, -0.2, 0.3, 0.0]).double(), 0.6
    precision = 1 + weight.square().sum(0) / noise
    encoder, decoder = nn.Linear(4, 4).double(), nn.Linear(2, 4).double()
    with torch.no_grad():
        back = weight.T / noise / precision[:, None]
        encoder.weight.copy_(torch.cat([back, torch.zeros(2, 4)]))
        encoder.bias.copy_(torch.cat([-back @ bias, -precision.log() + off]))
        decoder.weight.copy_(weight)
        decoder.bias.copy_(bias)
    covariance = weight @ weight.T + noise * torch.eye(4).double()
    model = VAE(encoder, decoder, latent_shape=2, likelihood=likelihoods.Normal(math.log(noise)))
    return model, torch.distributions.MultivariateNormal(bias, covariance)


def test_log_likelihood_is_exact(key):
    x = 2 * torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double()
    model, marginal = _linear_gaussian(0.0)
    # With q the posterior each weight is p(x): float32 noise, float64 everything else.
    torch.testing.assert_close(model.log_likelihood(x, 1, key=key), marginal.log_prob(x), rtol=1e-10, atol=1e-10)
    # With q wider by e^0.7 in two dimensions a weight has the relative variance 0.34: one standard error of 5000
    # samples is 0.008, and 5 of them bound nine rows.
    model, marginal = _linear_gaussian(0.7)
    estimate = model.log_likelihood(x, key=key)
    error = (estimate - marginal.log_prob(x)).abs()
    assert 1e-5 < error.max() < 0.04
    model.samples = 1000
    assert (model.elbo(x, key=key) < estimate - 0.1).all()  # the gap is KL(q || posterior) = 0.31


def test_log_likelihood_does_not_depend_on_the_chunks(x, key, capsys):
    model = _vae()
    whole = model.log_likelihood(x, 40, key=key)
    assert whole.shape == (BATCH,) and whole.dtype == torch.float32 and not whole.requires_grad
    for batch_size in (1, 4, 100):
        again = model.log_likelihood(x, 40, batch_size=batch_size, key=key, progress=False)
        torch.testing.assert_close(again, whole, rtol=1e-6, atol=0)
    parts = [model.log_likelihood(x[a:b], 40, key=key, first_sample=a) for a, b in ((0, 2), (2, 6))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=0)
    own = variate.random.fold_in(key, torch.arange(BATCH))
    assert torch.equal(model.log_likelihood(x, 40, key=own), whole)
    torch.manual_seed(1)
    first = model.log_likelihood(x, 3)
    torch.manual_seed(1)
    assert torch.equal(model.log_likelihood(x, 3), first) and not torch.equal(model.log_likelihood(x, 3), first)
    assert model.log_likelihood(x[:0], 3).shape == (0,)
    assert capsys.readouterr() == ("", "")  # no bar where there is no terminal
    for name in ("samples", "batch_size"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            model.log_likelihood(x, **{name: 0})


def test_bad_likelihoods_and_estimators(x):
    for options, error, message in [
        ({"likelihood": "poisson"}, ValueError, "likelihood: expected one of bernoulli, normal, .*, got 'poisson'"),
        ({"likelihood": nn.Linear}, TypeError, "likelihood: expected a name or a Likelihood, got type"),
        (
            {"estimator": "elbo"},
            ValueError,
            "estimator: expected None or one of iwae, dreg, stl, rws, vimco, got 'elbo'",
        ),
        ({"samples": 0}, ValueError, "samples: expected at least 1, got 0"),
        ({"samples": 1, "estimator": "vimco"}, ValueError, "samples: expected at least 2, got 1"),
        ({"samples": 2.0}, TypeError, "samples: expected an int"),
        ({"estimator": "dreg", "beta": 0.5}, ValueError, "beta: expected it to be left alone with estimator='dreg'"),
        ({"estimator": "iwae", "free_bits": 0.5}, ValueError, "free_bits: expected it to be left alone"),
    ]:
        with pytest.raises(error, match=message):
            _vae(**options)
    with pytest.raises(ValueError, match="beta: expected it to be left alone"):
        _vae(estimator="stl").beta = 2
    for likelihood, bad in [("categorical", x), ("normal", x.byte()), ("discretized_logistic", x.long())]:
        with pytest.raises(TypeError, match="x: expected"):
            _of(likelihood)(bad)
    with pytest.raises(ValueError, match="bits: expected 1 to 8, got 9"):
        likelihoods.Categorical(9)
    encoder = _vae().encoder
    with pytest.raises(ValueError, match=r"decoder: for 'discretized_logistic' .* must be even, got shape \(6, 7\)"):
        VAE(encoder, nn.Linear(LATENT, 7), likelihood="discretized_logistic")(x)
    with pytest.raises(ValueError, match="decoder: expected logits"):
        VAE(encoder, nn.Linear(LATENT, 7), likelihood="categorical")(_images("categorical").flatten(1))


@pytest.mark.slow
def test_the_digits_are_learnt_as_well_without_our_kernels(threads):
    """The test bound after 4 epochs, of three seeds with the kernels and three without, each with noise of its own: the
    two means are within three standard errors of their difference, as the spread of the seeds has it."""
    torch.set_num_threads(1)
    bounds = {name: [_bound_on_digits(seed, name) for seed in range(3)] for name in ("auto", "reference")}
    ours, theirs = (torch.tensor(values) for values in bounds.values())
    spread = torch.cat([ours - ours.mean(), theirs - theirs.mean()]).square().sum().div(4).sqrt().item()
    print(f"bounds {bounds}, standard deviation of the seeds {spread:.3f}")
    assert spread < 2.5  # at bounds of about -164
    assert abs(ours.mean() - theirs.mean()) < 3 * spread * math.sqrt(2 / 3)


def _bound_on_digits(seed: int, backend: str) -> float:
    digits = Digits(seed)
    torch.manual_seed(seed)
    model = VAE.mlp(784, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(4):
        batches = digits.epoch(epoch, 128)
        with variate.use_backend(backend):
            for x in batches:
                optimizer.zero_grad()
                model(x).backward()
                optimizer.step()
    return evaluate(model, digits.fixed("test"), draws=4)
