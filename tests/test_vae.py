"""The autoencoder: its losses against formulas, training under every wrapper, and bad input."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import variate
from variate.models import VAE
from variate.reference import elbo as reference_elbo
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
import sys
import torch
import torch.distributed as dist
import variate
from torch.nn.parallel import DistributedDataParallel
from variate import checkpoint
from variate.models import VAE

rank, rendezvous, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
torch.manual_seed(rank)  # DistributedDataParallel must take rank 0's parameters to both
model = DistributedDataParallel(VAE.mlp(12, 8, 4, beta=0.5))
x = torch.randint(0, 2, (6, 12), generator=torch.Generator().manual_seed(0)).float()
key = variate.random.key(7)
model(x[3 * rank :][:3], key=key, first_sample=3 * rank).backward()
if rank == 0:
    gradients = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    checkpoint.save(out, gradients, {})
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_ranks_reproduce_one_process(tmp_path, x, key):
    pytest.importorskip("safetensors")
    from variate import checkpoint

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [str(tmp_path / "rendezvous"), str(tmp_path / "gradients")]
    ranks = [
        subprocess.Popen([sys.executable, "-c", _RANK, str(rank), *arguments], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=60)
            assert rank.returncode == 0, errors.decode()
    finally:
        for rank in ranks:
            rank.kill()
    model = _vae(beta=0.5)
    model(x, key=key).backward()
    gradients, _ = checkpoint.load(tmp_path / "gradients")
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
