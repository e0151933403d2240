"""models.Diffusion: its loss against the formula, what it is told, its average, training and sampling, bad input."""

from __future__ import annotations

import copy

import pytest
import ranks
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import variate
from variate import checkpoint
from variate.diffusion import FlowSchedule, NoiseSchedule, sample, solver
from variate.models import Diffusion, MLPDenoiser, UNetDenoiser

BATCH, DATA = 6, 5


@pytest.fixture
def key():
    return variate.random.key(7)


@pytest.fixture
def x():
    return torch.randn(BATCH, DATA, generator=torch.Generator().manual_seed(0))


def _model(**options) -> Diffusion:
    torch.manual_seed(0)
    return Diffusion.mlp(DATA, 16, 2, **options)


class Spy(nn.Module):
    """Says nothing, and keeps what it was told."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.told = []

    def forward(self, x, timestep, *labels):
        self.told.append((x.detach(), timestep, *labels))
        return self.scale * x


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("weighting", [None, "min_snr"])
def test_the_loss_is_the_formula(x, key, prediction, weighting):
    model = _model(prediction=prediction, weighting=weighting)
    loss = model(x, key=key)
    assert loss.shape == () and torch.equal(loss, model.loss(x, key=key))
    t = variate.random.randint(0, 1000, (BATCH, 1), key=variate.random.fold_in(key, 2))[:, 0]
    eps = variate.random.normal(BATCH, DATA, key=key)
    kept = torch.from_numpy(NoiseSchedule().alphas_cumprod)[t, None].float()
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    target = {"epsilon": eps, "x0": x, "v": alpha * eps - sigma * x}[prediction]
    each = (model.denoiser(alpha * x + sigma * eps, t) - target).square().mean(1)
    if weighting is not None:
        snr = (kept / (1 - kept))[:, 0]
        each = each * snr.clamp(max=5) / {"epsilon": snr, "x0": 1, "v": snr + 1}[prediction]
    # float32 sums of a few terms, and sigma from 1 - abar in float32 here
    torch.testing.assert_close(loss, each.mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(model.losses(x, key=key), each, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(model.losses(x, timestep=t, key=key), each, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("weighting", [None, "logit_normal"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_loss_of_a_flow(x, key, weighting, shift):
    model = _model(schedule=FlowSchedule(shift=shift), weighting=weighting)
    own = variate.random.fold_in(key, 2)
    drawn = variate.random.uniform(BATCH, 1, key=own)
    if weighting is not None:
        drawn = torch.sigmoid(variate.random.normal(BATCH, 1, key=own))
    sigma = shift * drawn / (1 + (shift - 1) * drawn)
    eps = variate.random.normal(BATCH, DATA, key=key)
    said = model.denoiser((1 - sigma) * x + sigma * eps, 1000 * sigma[:, 0])
    torch.testing.assert_close(model(x, key=key), F.mse_loss(said, eps - x), rtol=1e-5, atol=0)


def test_weights_of_the_callers_own(x, key):
    weights = torch.rand(1000)
    t = torch.arange(BATCH) * 100
    plain, weighted = _model(), _model(weighting=weights)
    expected = plain.losses(x, timestep=t, key=key) * weights[t]
    torch.testing.assert_close(weighted.losses(x, timestep=t, key=key), expected, rtol=1e-6, atol=0)


def test_parts_of_a_batch_have_the_losses_of_the_whole(x, key):
    model = _model(classes=3, dropout=0.5)
    labels = torch.arange(BATCH) % 3
    whole = model.losses(x, labels, key=key)
    parts = [model.losses(x[i : i + 2], labels[i : i + 2], key=key, first_sample=i) for i in range(0, BATCH, 2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


def test_labels_are_withheld_as_often_as_asked(key):
    spy = Spy()
    model = Diffusion(spy, classes=4, dropout=0.25)
    x, labels = torch.randn(8000, 1), torch.arange(8000) % 4
    model(x, labels, key=key)
    told = spy.told[0][2]
    dropped = told == 4
    # 8000 draws of 1/4: five standard deviations, 5 sqrt(3/16 / 8000)
    assert abs(dropped.float().mean() - 0.25) < 0.025
    assert torch.equal(told[~dropped], labels[~dropped])
    assert spy.told[0][1].dtype == torch.int64 and 0 <= int(spy.told[0][1].min()) <= int(spy.told[0][1].max()) < 1000


def test_guidance_is_away_from_no_label(key):
    model = _model(classes=3)
    table = solver("ddim", NoiseSchedule(), 5)
    labels = torch.tensor([0, 1, 2, 0])

    @torch.no_grad()
    def combined(x, t):
        u, c = model.denoiser(x, t, torch.full_like(labels, 3)), model.denoiser(x, t, labels)
        return u + 3 * (c - u)

    expected = sample(combined, (4, DATA), table, key=key)
    found = model.sample(4, steps=5, labels=labels, guidance=3.0, key=key)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # batches of 8 and of 4
    assert torch.equal(model.sample(4, table, labels=labels, guidance=3.0, key=key), found)
    with torch.no_grad():
        none = sample(lambda x, t: model.denoiser(x, t), (4, DATA), table, key=key)
    torch.testing.assert_close(model.sample(4, steps=5, key=key), none, rtol=1e-5, atol=1e-5)
    alike = model.sample(4, steps=5, labels=1, key=key)
    assert torch.equal(alike, model.sample(4, steps=5, labels=torch.ones(4, dtype=torch.int64), key=key))


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m", "euler_ancestral", "unipc"])
def test_any_solver_samples(name, key):
    model = _model(prediction="v")
    found = model.sample(3, name, 6, key=key)
    assert found.shape == (3, DATA) and found.isfinite().all() and not found.requires_grad
    assert torch.equal(found, model.sample(3, name, 6, key=key))
    flow = _model(schedule=FlowSchedule())
    assert flow.sample(3, steps=6, key=key).isfinite().all()
    assert flow.sample(3, "dpmpp_2m", 6, key=key).isfinite().all()


def test_the_average_follows_the_weights():
    model = _model(ema=0.9)
    start = copy.deepcopy(model.average.state_dict())
    with torch.no_grad():
        for p in model.denoiser.parameters():
            p.add_(1.0)
    expected = {name: value.clone() for name, value in start.items()}
    for n in range(3):
        model.update_average()
        decay = min(0.9, (1 + n) / (10 + n))
        for name, value in model.denoiser.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in model.average.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert int(model.updates) == 3 and not any(p.requires_grad for p in model.average.parameters())
    key = variate.random.key(1)
    averaged, latest = model.sample(2, steps=3, key=key), model.sample(2, steps=3, averaged=False, key=key)
    assert not torch.equal(averaged, latest)
    model.denoiser.load_state_dict(model.average.state_dict())
    torch.testing.assert_close(model.sample(2, steps=3, averaged=False, key=key), averaged)


def test_a_checkpoint_holds_all_of_it(tmp_path, x, key):
    pytest.importorskip("safetensors")
    one, two = _model(ema=0.9), _model(ema=0.9)
    optimizers = [torch.optim.Adam(m.denoiser.parameters(), lr=1e-2) for m in (one, two)]

    def step(model, optimizer, n):
        optimizer.zero_grad()
        model(x, key=variate.random.fold_in(key, n)).backward()
        optimizer.step()
        model.update_average()

    step(one, optimizers[0], 0)
    checkpoint.save(tmp_path / "model.safetensors", checkpoint.pack(one, optimizers[0]), {})
    checkpoint.unpack(checkpoint.load(tmp_path / "model.safetensors").tensors, two, optimizers[1])
    for model, optimizer in ((one, optimizers[0]), (two, optimizers[1])):
        step(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    with pytest.raises(checkpoint.CheckpointError, match="of another model"):
        checkpoint.unpack(checkpoint.load(tmp_path / "model.safetensors").tensors, _model())


def test_training_learns_a_mixture(key, threads):
    """Points of two small clusters: a model that has learnt them puts hardly any sample elsewhere."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    means = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    labels = torch.arange(256) % 2
    data = means[labels] + 0.1 * torch.randn(256, 2)
    model = Diffusion.mlp(2, 64, 2, classes=2, prediction="v", ema=0.99)
    optimizer = torch.optim.Adam(model.denoiser.parameters(), lr=3e-3)
    for n in range(400):
        optimizer.zero_grad()
        model(data, labels, key=variate.random.fold_in(key, n)).backward()
        optimizer.step()
        model.update_average()
    for label in (0, 1):
        found = model.sample(200, "ddim", 30, labels=label, guidance=1.5, key=key)
        distance = (found - means[label]).norm(dim=1)
        assert (distance < 0.6).float().mean() > 0.9


@pytest.mark.parametrize("classes", [None, 3])
def test_denoisers(classes, key):
    torch.manual_seed(0)
    labels = None if classes is None else torch.tensor([0, 2])
    for denoiser, shape in (
        (MLPDenoiser(12, 16, classes=classes), (2, 3, 2, 2)),
        (UNetDenoiser(3, 8, classes=classes), (2, 3, 8, 12)),
        (UNetDenoiser(1, 16, (1,)), (2, 1, 5, 5)),
    ):
        for parameter in denoiser.parameters():  # the U-Net says 0 at first
            nn.init.normal_(parameter, std=0.2)
        x, t = torch.randn(shape), torch.tensor([3, 700])
        told = (labels,) if classes is not None and denoiser.embedding.classes is not None else ()
        said = denoiser(x, t, *told)
        assert said.shape == x.shape and not torch.equal(said[0], denoiser(x, t + 50, *told)[0])
        if told:
            assert not torch.equal(said, denoiser(x, t))
            assert torch.equal(denoiser(x, t), denoiser(x, t, torch.full_like(labels, 3)))
        denoiser.bfloat16()
        assert denoiser(x.bfloat16(), t, *told).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="H and W divisible by 4"):
        UNetDenoiser(1)(torch.zeros(1, 1, 30, 30), torch.zeros(1))
    with pytest.raises(ValueError, match="width: expected a multiple of 8"):
        UNetDenoiser(1, 12)


def test_one_compilation_of_training(x, key, fresh_dynamo):
    counter = CompileCounterWithBackend("aot_eager")
    model = _model(classes=3)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    labels = torch.arange(BATCH) % 3
    for n in range(3):
        own = variate.random.fold_in(key, n)
        loss, expected = compiled(x, labels, key=own), twin(x, labels, key=own)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        loss.backward()
    assert counter.frame_count == 1


_RANK = """
from variate.models import Diffusion
model = Diffusion.mlp(5, 16, 2, classes=3, ema=0.9)
wrapped = DistributedDataParallel(model)
x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))[3 * rank : 3 * rank + 3]
labels = (torch.arange(6) % 3)[3 * rank : 3 * rank + 3]
wrapped(x, labels, key=variate.random.key(7), first_sample=3 * rank).backward()
model.update_average()
result = {name: p.grad for name, p in model.denoiser.named_parameters()}
"""


def test_two_ranks_reproduce_one_process(tmp_path, x, key):
    pytest.importorskip("safetensors")
    gradients = ranks.run(_RANK, tmp_path)
    model = _model(classes=3)
    model(x, torch.arange(BATCH) % 3, key=key).backward()
    for name, parameter in model.denoiser.named_parameters():
        # The mean over the ranks adds in another order.
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_moving_and_casting_leave_the_levels(x, key):
    model = _model(weighting="min_snr")
    levels = model._levels.clone()
    model = model.to(torch.bfloat16)
    assert torch.equal(model._levels, levels)
    assert model(x.bfloat16(), key=key).isfinite()
    assert model.sample(2, steps=3, key=key).dtype == torch.float32
    with torch.device("meta"):
        empty = Diffusion.mlp(DATA, 16, 2, ema=0.9)
    assert empty.to_empty(device="cpu")._levels.device.type == "cpu"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"denoiser": len}, TypeError, "denoiser: expected an nn.Module, got builtin"),
        ({"schedule": "quadratic"}, ValueError, "betas: expected one of linear"),
        ({"schedule": 1000}, TypeError, "schedule: expected a NoiseSchedule or a FlowSchedule, got int"),
        ({"prediction": "noise"}, ValueError, "prediction: expected .* got 'noise'"),
        ({"prediction": "flow"}, ValueError, "prediction: expected 'flow' with a FlowSchedule, and with no other"),
        ({"classes": 0}, ValueError, "classes: expected at least 1, got 0"),
        ({"dropout": 2.0}, ValueError, "dropout: expected a number from 0 to 1"),
        ({"ema": -1.0}, ValueError, "ema: expected a number from 0 to 1"),
        ({"shape": (3, 0)}, ValueError, "shape: expected at least 1, got 0"),
        ({"weighting": "cube"}, ValueError, "weighting: expected one of uniform, snr, min_snr"),
        ({"weighting": "snr", "schedule": FlowSchedule()}, ValueError, "weighting: expected None or 'logit_normal'"),
        ({"weighting": torch.ones(7)}, ValueError, r"weighting: expected \[T\] numbers"),
    ],
)
def test_bad_settings_are_named(options, error, message):
    with pytest.raises(error, match=message):
        Diffusion(**{"denoiser": nn.Linear(2, 2), **options})


def test_bad_input_is_named(x, key):
    model, labelled = _model(), _model(classes=3)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    for call, error, message in [
        (lambda: model(x.long()), TypeError, "x: expected floats, as images in"),
        (lambda: model([1.0]), TypeError, "x: expected a tensor, got list"),
        (lambda: model(x[0]), ValueError, "x: expected a batch"),
        (lambda: model(x[:0]), ValueError, "this batch is empty"),
        (lambda: model(x[:, :3]), ValueError, r"x: expected \('B', 5\), as shape says"),
        (lambda: model(x, labels), ValueError, "labels: expected none, as this model has no classes"),
        (lambda: labelled(x), ValueError, r"labels: expected int64 \[B\], one for each x"),
        (lambda: labelled(x, labels.float()), TypeError, "labels: expected int64, got torch.float32"),
        (lambda: labelled(x, labels[:2]), ValueError, r"labels: expected shape \(6,\), got \(2,\)"),
        (lambda: model.sample(2, labels=1), ValueError, "labels: expected none"),
        (lambda: labelled.sample(2, labels=3), ValueError, "labels: expected 0 to 2, got 3"),
        (lambda: labelled.sample(2, guidance=2.0), ValueError, "labels: expected them with guidance"),
        (lambda: model.sample(2, "edm", 4), ValueError, "scheduler: 'edm' is for"),
        (lambda: model.sample(2, "dpm", 4), ValueError, "scheduler: expected one of"),
        (lambda: model.sample(2, steps=0), ValueError, "steps: expected at least 1"),
        (lambda: model.sample(2, steps=1001), ValueError, "steps: expected at most 1000"),
        (lambda: model.sample(-1), ValueError, "n: expected at least 0"),
        (lambda: model.update_average(), ValueError, "ema: expected a decay"),
        (lambda: Diffusion(nn.Linear(2, 2)).sample(2), ValueError, "shape: not known yet"),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert model.sample(0, steps=3).shape == (0, DATA)
