"""Boltzmann machines as models: gradients by the rules, training against exact answers, checkpoints."""

from __future__ import annotations

import copy
import itertools

import pytest
import ranks
import torch
import torch.nn.functional as F
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


def test_a_fit_resumes_only_as_the_same_run(tmp_path) -> None:
    x, path = patterns(50), tmp_path / "machine.safetensors"
    options = {"batch_size": 25, "checkpoint_path": path}
    RBM(6, 4).fit(x, epochs=1, key=variate.random.key(*KEY), **options)
    for change, named in [
        ({"batch_size": 10}, "batch_size 25, here 10"),
        ({"lr": 0.5}, "lr 0.05, here 0.5"),
        ({"momentum": 0.0}, "momentum 0.5, here 0.0"),
        ({"weight_decay": 0.1}, "weight_decay 0.0, here 0.1"),
        ({"key": variate.random.key(124)}, r"key \[123, 0\], here \[124, 0\]"),
    ]:
        with pytest.raises(checkpoint.CheckpointError, match=rf"is of another run \({named}\)"):
            RBM(6, 4).fit(x, epochs=2, **(options | change))
    with pytest.raises(checkpoint.CheckpointError, match=r"is of another model \(shape \[6, 4\], here \[6, 5\]\)"):
        RBM(6, 5).fit(x, epochs=2, **options)
    with pytest.raises(checkpoint.CheckpointError, match=r"another run \(lr 0.05, here None, momentum 0.5, here None"):
        model = RBM(6, 4)
        model.fit(x, epochs=2, optimizer=torch.optim.Adam(model.parameters()), **options)


def test_a_resumed_fit_needs_no_key(tmp_path) -> None:
    x, path, key = patterns(50), tmp_path / "machine.safetensors", variate.random.key(*KEY)
    torch.manual_seed(0)
    whole = RBM(6, 4)
    parts = copy.deepcopy(whole)
    whole.fit(x, epochs=2, key=key)
    parts.fit(x, epochs=1, key=key, checkpoint_path=path)
    parts.fit(x, epochs=2, checkpoint_path=path)
    assert parts.weight.equal(whole.weight) and parts._chains.equal(whole._chains)


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


MACHINES = ("cd", "pcd", "pt", "dbm")


def machine_of(name: str, chains: int) -> RBM | DBM:
    torch.manual_seed(0)
    return DBM([6, 4, 3], chains=chains) if name == "dbm" else RBM(6, 4, method=name, steps=2, chains=chains)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_compiled_step_is_one_graph_and_not_compiled_again(machine, fresh_dynamo) -> None:
    x, key = patterns(16), variate.random.key(*KEY)
    models = [machine_of(machine, 8) for _ in range(2)]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(models[0], backend=counter, fullgraph=True)
    for step in range(12):
        found, expected = compiled(x, key=key), models[1](x, key=key)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        found.backward()
        if machine != "cd":
            assert models[0]._chains.equal(models[1]._chains)
        if step == 2:
            count = counter.frame_count
    assert counter.frame_count == count
    assert models[0]._made == models[1]._made == 12 * models[1].steps


_RANK = """
from variate.models import DBM, RBM

name = arguments[0]
model = DBM([6, 4, 3], chains=3) if name == "dbm" else RBM(6, 4, method=name, steps=2, chains=3)
model = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
x = torch.randint(0, 2, (6, 6), generator=torch.Generator().manual_seed(0))
for _ in range(3):
    optimizer.zero_grad()
    model(x[3 * rank :][:3], key=variate.random.key(7), first_sample=3 * rank).backward()
    optimizer.step()
result = dict(model.module.named_parameters())
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("machine", MACHINES)
def test_two_ranks_reproduce_one_process(tmp_path, machine) -> None:
    """Three rows and three chains a rank are the six of one process."""
    pytest.importorskip("safetensors")
    found = ranks.run(_RANK, tmp_path, machine)
    model = machine_of(machine, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randint(0, 2, (6, 6), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        model(x, key=variate.random.key(7)).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        # The mean over the ranks adds in another order.
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("model", [RBM(6, 4), RBM(6, 4, method="pcd"), DBM((6, 4, 3))], ids=["cd", "pcd", "dbm"])
def test_bytes_and_spins_are_refused(model, tmp_path) -> None:
    for x in (torch.full((3, 6), 255, dtype=torch.uint8), -torch.ones(3, 6)):
        for call in (model.fit, model.loss):
            with pytest.raises(ValueError, match="x: expected values between 0 and 1 of bernoulli visibles"):
                call(x)
    for path in (tmp_path, tmp_path / "none" / "file"):
        with pytest.raises(checkpoint.CheckpointError, match="expected a file in a folder that exists"):
            model.fit(torch.ones(3, 6), checkpoint_path=path)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical", "gaussian"])
def test_base_bias_has_the_means_of_the_data(kind) -> None:
    """Up to one count more of each state."""
    categories = 3 if kind == "categorical" else None
    model = RBM(6, 4, visible_kind=kind, categories=categories)
    x = torch.randint(0, categories or 2, (50, 6 // (categories or 1)), generator=torch.Generator().manual_seed(0))
    base = model.base_bias(x.float() if kind == "gaussian" else x)
    if kind == "gaussian":
        assert base is None
    elif kind == "categorical":
        counts = F.one_hot(x, 3).sum(0)
        torch.testing.assert_close(torch.softmax(base.view(2, 3), -1), (counts + 1) / 53)
    else:
        torch.testing.assert_close(torch.sigmoid(base), (x.sum(0) + 1) / 52)
    deep = DBM((6, 4, 3))
    assert deep.base_bias(torch.ones(3, 6)).shape == (9,)


def test_a_ladder_that_is_too_short_warns() -> None:
    model = RBM(30, 20)
    with torch.no_grad():
        model.weight.copy_(3 * torch.sin(torch.arange(600.0)).view(30, 20))
    with pytest.warns(UserWarning, match="of 50 annealed chains outweigh all others"):
        model.log_likelihood(torch.zeros(1, 30), betas=1, chains=50, key=variate.random.key(0))
