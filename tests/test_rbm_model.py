"""Boltzmann machines as models: gradients by the rules, training against exact answers, checkpoints."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import variate
from variate import checkpoint
from variate.functional import dbm_join, rbm_cd_gradient, rbm_free_energy, rbm_log_partition
from variate.models import DBM, RBM

KEY = (123, 0)


def states(units: int) -> Tensor:
    return ((torch.arange(2**units)[:, None] >> torch.arange(units)) & 1).to(torch.uint8)


def patterns(count: int = 400) -> Tensor:
    """Three patterns of six bits, each bit wrong with probability 0.05."""
    generator = torch.Generator().manual_seed(0)
    pure = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0]], dtype=torch.uint8)
    chosen = pure[torch.randint(0, 3, (count,), generator=generator)]
    return chosen ^ (torch.rand(count, 6, generator=generator) < 0.05).to(torch.uint8)


def parameters(model: RBM) -> tuple[Tensor, Tensor, Tensor]:
    return model.weight.detach(), model.visible_bias.detach(), model.hidden_bias.detach()


def exact_log_likelihood(model: RBM, x: Tensor) -> Tensor:
    m = parameters(model)
    return -rbm_free_energy(x, *m) - rbm_log_partition(*m)


def data_of(kind: str) -> tuple[Tensor, int | None]:
    generator = torch.Generator().manual_seed(1)
    return {
        "bernoulli": (patterns(60), None),
        "gaussian": (torch.randn(60, 6, generator=generator), None),
        "categorical": (torch.randint(0, 3, (60, 2), generator=generator), 3),
    }[kind]


def model_of(kind: str, method: str, seed: int = 0, **options) -> RBM:
    torch.manual_seed(seed)
    model = RBM(6, 4, visible_kind=kind, categories=data_of(kind)[1], method=method, chains=20, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape))
    return model


@pytest.mark.parametrize("method", ["cd", "pcd", "pt"])
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "categorical"])
def test_the_surrogates_gradient_is_the_rule(kind, method) -> None:
    x, _ = data_of(kind)
    model = model_of(kind, method, steps=2)
    key = variate.random.key(*KEY)
    model(x, key=key)  # chains that have been somewhere
    twin = copy.deepcopy(model)
    model(x, key=key).backward()
    by_rule = twin._gradients(x, key=key)
    for parameter, gradient in zip(model.parameters(), by_rule, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)  # float32 sums of 60 rows
    if method == "cd":
        expected = rbm_cd_gradient(x, *parameters(model), steps=2, visible_kind=kind, key=key, first_step=2)
    elif method == "pcd":
        before = model_of(kind, method, steps=2)
        before(x, key=key)
        expected = rbm_cd_gradient(
            x, *parameters(model), steps=2, persistent=before._chains, visible_kind=kind, key=key, first_step=2
        )
    else:
        return
    for one, other in zip(by_rule, expected, strict=False):
        torch.testing.assert_close(one, other)


def test_a_step_goes_down_on_the_likelihoods_gradient() -> None:
    """With many chains, long run, the rule is the gradient of the mean log-likelihood."""
    x = patterns(200)
    model = model_of("bernoulli", "pcd", steps=30)
    model.chains = 20_000
    model.loss(x, key=variate.random.key(*KEY)).backward()
    w, a, b = (p.detach().double().requires_grad_() for p in model.parameters())
    loss = rbm_free_energy(x, w, a, b).mean() + torch.logsumexp(-rbm_free_energy(states(6), w, a, b), 0)
    for parameter, truth in zip(model.parameters(), torch.autograd.grad(loss, (w, a, b)), strict=True):
        # A mean of 20,000 numbers of [0, 1]: five standard errors of at most 0.0036, false alarm below 1e-6 each
        torch.testing.assert_close(parameter.grad.double(), truth, rtol=0, atol=5 * 0.0036)


@pytest.mark.parametrize("method", ["cd", "pcd", "pt"])
def test_fit_learns(method) -> None:
    """A right machine gains: independent units reach -6 log 2 at first, -3.9 at best; these data have -2.4."""
    x = patterns()
    torch.manual_seed(0)
    model = RBM(6, 8, method=method, steps=2, chains=64, betas=(0.3, 0.6, 1.0))
    before = exact_log_likelihood(model, x).mean()
    history = model.fit(x, epochs=60, batch_size=40, lr=0.1, key=variate.random.key(*KEY))
    assert [row["epoch"] for row in history] == list(range(1, 61))
    after = exact_log_likelihood(model, x).mean()
    assert before < -4 and after > -3.2
    assert history[-1]["reconstruction"] < 0.1


def test_log_likelihood_and_samples() -> None:
    x = patterns()
    model = model_of("bernoulli", "pcd")
    estimate = model.log_likelihood(x, betas=300, chains=500, key=variate.random.key(*KEY))
    partition = model.log_partition(betas=300, chains=500, key=variate.random.key(*KEY))
    # five standard errors of log Z
    torch.testing.assert_close(
        estimate, exact_log_likelihood(model, x), rtol=0, atol=5 * float(partition.standard_error)
    )
    assert partition.standard_error < 0.02
    drawn = model.sample(20_000, steps=40, key=variate.random.key(*KEY))
    exact = torch.softmax(-rbm_free_energy(states(6), *parameters(model)), 0) @ states(6).float()
    torch.testing.assert_close(drawn.float().mean(0), exact, rtol=0, atol=5 * 0.0036)
    means = model.sample(20_000, steps=40, means=True, key=variate.random.key(*KEY))
    torch.testing.assert_close(means.mean(0), exact, rtol=0, atol=5 * 0.0036)
    part = model.sample(7, steps=40, first_sample=5, start=drawn[5:12], key=variate.random.key(*KEY))
    assert part.shape == (7, 6) and part.dtype == torch.uint8
    assert model.transform(x).shape == (len(x), 4) and model.reconstruct(x).shape == x.shape


def test_images_are_flattened() -> None:
    model = RBM(6, 3)
    x = patterns(5)
    key = variate.random.key(*KEY)
    assert model.free_energy(x.view(5, 2, 3)).equal(model.free_energy(x))
    assert copy.deepcopy(model)(x.view(5, 1, 2, 3), key=key).equal(model(x, key=key))


def test_the_state_dict_is_the_parameters() -> None:
    model = RBM(6, 3)
    model(patterns(5))
    assert list(model.state_dict()) == ["weight", "visible_bias", "hidden_bias"]
    assert not list(model.buffers())
    assert list(DBM([6, 4, 3]).state_dict()) == ["weights.0", "weights.1", "biases.0", "biases.1", "biases.2"]


@pytest.mark.parametrize(
    "make", [lambda: RBM(6, 4, chains=16), lambda: RBM(6, 4, method="pt", chains=8), lambda: DBM([6, 4, 3])]
)
def test_a_resumed_fit_is_the_whole_one(make, tmp_path) -> None:
    x = patterns(100)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(make())
    whole, resumed = models
    options = {"batch_size": 32, "key": variate.random.key(*KEY)}
    whole.fit(x, epochs=4, **options)
    path = tmp_path / "machine.safetensors"
    resumed.fit(x, epochs=2, checkpoint_path=path, **options)
    torch.manual_seed(1)
    fresh = make()
    history = fresh.fit(x, epochs=4, checkpoint_path=path, **options)
    assert [row["epoch"] for row in history] == [3, 4]
    for one, other in zip(whole.parameters(), fresh.parameters(), strict=True):
        assert one.equal(other)
    assert fresh.fit(x, epochs=4, checkpoint_path=path, **options) == []


def test_an_interrupted_fit_keeps_the_last_whole_checkpoint(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = patterns(100)
    path = tmp_path / "machine.safetensors"
    model = RBM(6, 4)
    counter = itertools.count()
    own = model._gradients

    def interrupted(batch: Tensor, **noise) -> list[Tensor]:
        if next(counter) == 9:  # in the third epoch of four batches
            raise KeyboardInterrupt
        return own(batch, **noise)

    monkeypatch.setattr(model, "_gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, epochs=5, batch_size=25, checkpoint_path=path, key=variate.random.key(*KEY))
    tensors, metadata = checkpoint.load(path)
    assert metadata["epochs"] == 2 and "chains" in tensors
    assert list(tmp_path.iterdir()) == [path]
    whole = RBM(6, 4)
    whole.fit(x, epochs=5, batch_size=25, checkpoint_path=path, key=variate.random.key(*KEY))
    with pytest.raises(checkpoint.CheckpointError, match="is of another model: its settings"):
        RBM(6, 5).fit(x, checkpoint_path=path)


def test_deep_machine_learns() -> None:
    x = patterns()
    torch.manual_seed(0)
    model = DBM([6, 8, 4], steps=5, chains=64)

    def exact_bound() -> Tensor:
        """By the exact log Z in the place of the estimate, which the test compares too."""
        joined = dbm_join(*model._lists())
        partition = model.log_partition(betas=300, chains=300, key=variate.random.key(*KEY))
        exact = rbm_log_partition(*joined)
        assert (partition.log_z - exact).abs() < 5 * partition.standard_error + 1e-6
        bound = model.log_likelihood(x, betas=300, chains=300, key=variate.random.key(*KEY))
        return (bound + partition.log_z - exact).mean()

    before = exact_bound()
    model.fit(x, epochs=80, batch_size=40, lr=0.05, key=variate.random.key(*KEY))
    after = exact_bound()
    assert before < -4 and after > -3.4
    assert model.sample(9, steps=10).shape == (9, 6) and model.reconstruct(x).shape == x.shape
    assert [tuple(m.shape) for m in model.transform(x[:5])] == [(5, 8), (5, 4)]


@pytest.mark.parametrize("make", [lambda: RBM(6, 4, chains=8), lambda: RBM(6, 4, method="cd"), lambda: DBM([6, 4, 3])])
def test_compiled_steps_are_not_compiled_again(make, fresh_dynamo) -> None:
    x, key = patterns(16), variate.random.key(*KEY)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(make())
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(models[0], backend=counter)
    for step in range(12):
        found, expected = compiled(x, key=key), models[1](x, key=key)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        found.backward()
        if step == 2:
            count = counter.frame_count
    assert counter.frame_count == count


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="method: expected one of cd, pcd, pt, got 'mcmc'"):
        RBM(6, 4, method="mcmc")
    with pytest.raises(ValueError, match="visible_kind: expected one of"):
        RBM(6, 4, visible_kind="potts")
    with pytest.raises(ValueError, match="hidden: expected at least 1"):
        RBM(6, 0)
    with pytest.raises(ValueError, match="betas: expected the last one to be 1"):
        RBM(6, 4, method="pt", betas=(0.1, 0.5))
    with pytest.raises(ValueError, match="that rise to the target"):
        RBM(6, 4, method="pt", betas=(0.5, 0.1, 1))
    with pytest.raises(ValueError, match="categories: expected a divisor of the 6"):
        RBM(6, 4, visible_kind="categorical", categories=4)
    with pytest.raises(ValueError, match="sizes: expected two layers at least"):
        DBM([6])
    model = RBM(6, 4)
    with pytest.raises(ValueError, match=r"x: expected a batch \[B, ...\] of 6 visible values"):
        model(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="this batch is empty"):
        model(torch.zeros(0, 6))
    with pytest.raises(TypeError, match="x: expected a tensor, got list"):
        model([1])
    with pytest.raises(TypeError, match="x: expected integer categories"):
        RBM(6, 4, visible_kind="categorical", categories=3)(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="lr: expected a finite number"):
        model.fit(patterns(5), lr=float("nan"))
    with pytest.raises(ValueError, match="data: expected at least one row"):
        model.fit(torch.zeros(0, 6))
