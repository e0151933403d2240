"""The loop: every solver's process against what the table says, equal noise however a batch is split, no waiting, one
compilation."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import variate
import variate.schedulers
from variate.diffusion import FlowSchedule, NoiseSchedule, sample, solver
from variate.diffusion.solvers import SOLVERS
from variate.reference import denoise as reference

# Solvers as a few steps of them, on schedules of their own.
STEPS = 6
KEY = 11


class Denoiser(nn.Module):
    """A small one that has something to say of the timestep and of a condition."""

    def __init__(self, features: int = 4, conditions: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(features + 1 + conditions, 8)
        self.second = nn.Linear(8, features)

    def forward(self, x, timestep, condition=None):
        parts = [x, timestep[:, None].to(x.dtype) / 1000]
        if condition is not None:
            parts.append(condition.to(x.dtype))
        return self.second(torch.tanh(self.first(torch.cat(parts, 1))))


@pytest.fixture
def key():
    return variate.random.key(KEY)


def _schedule(name):
    return FlowSchedule() if SOLVERS[name].levels == "flow" else NoiseSchedule()


def _by_hand(denoiser, table, size, key):
    """The loop as the reference says it, in float64."""
    x = variate.random.normal(*size, key=key).double() * table.first_scale
    inputs, history, state = x * table.first_input_scale, [torch.zeros_like(x)] * table.history, torch.zeros_like(x)
    for k in range(len(table)):
        said = denoiser(inputs.float(), table.timesteps[k].expand(size[0])).double()
        done = reference.denoise_step(
            x,
            said,
            table,
            k,
            history=history,
            state=state if table.state else None,
            outputs=("saved", "state", "next"),
            key=key,
            first_step=k + 1,
        )
        if table.keeps is None:
            state = done.state
        elif table.keeps[k]:
            state = x
        x, inputs, history = done.prev, done.next, [done.saved, *history][: table.history]
    return x


@pytest.mark.parametrize("name", list(SOLVERS))
def test_every_solver_is_its_table(name, key):
    denoiser, table = Denoiser(), solver(name, _schedule(name), STEPS)
    found = sample(denoiser, (5, 4), name, STEPS, key=key)
    assert found.dtype == torch.float32 and found.shape == (5, 4)
    with torch.no_grad():
        expected = _by_hand(denoiser, table, (5, 4), key)
    # float32 against float64 over a few steps, each of which may double what came before.
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found, sample(denoiser, (5, 4), table, key=key))
    assert torch.equal(found, sample(denoiser, (5, 4), table.to("cpu"), len(table), key=key))


@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral", "lcm"])
def test_noise_does_not_depend_on_the_split(name, key):
    denoiser, table = Denoiser().double(), solver(name, NoiseSchedule(), STEPS)
    whole = sample(denoiser, (6, 4), table, key=key)
    parts = [sample(denoiser, (n, 4), table, key=key, first_sample=first) for first, n in ((0, 1), (1, 3), (4, 2))]
    # Not bits, as the products of the denoiser may depend on the batch.
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


def test_a_key_for_each_sample(key):
    denoiser, table = Denoiser().double(), solver("ddpm", NoiseSchedule(), STEPS)
    keys = variate.random.split(key, 3)
    whole = sample(denoiser, (3, 4), table, key=keys)
    for i in range(3):
        alone = sample(denoiser, (1, 4), table, key=keys[i])
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-12, atol=1e-12)


def test_generators_and_keys(key):
    denoiser, table = Denoiser(), solver("ddpm", NoiseSchedule(), STEPS)
    one, two = (sample(denoiser, (3, 4), table, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, sample(denoiser, (3, 4), table, key=key))
    torch.manual_seed(3)
    one = sample(denoiser, (3, 4), table)
    torch.manual_seed(3)
    assert torch.equal(one, sample(denoiser, (3, 4), table))
    assert not torch.equal(one, sample(denoiser, (3, 4), table))


def test_the_first_sample_and_the_rows_have_noise_of_their_own(key):
    seen = []

    def denoiser(x, timestep):
        seen.append(x)
        return torch.zeros_like(x)

    table = solver("ddpm", NoiseSchedule(), STEPS)
    last = sample(denoiser, (2, 3), table, key=key)
    assert torch.equal(seen[0], variate.random.normal(2, 3, key=key))
    assert len(seen) == STEPS and seen[0].dtype == torch.float32
    noise = [
        (b - table.column("prev_sample")[k] * a - table.column("prev_x0")[k] * table.column("x0_sample")[k] * a)
        / table.column("prev_noise")[k]
        for k, (a, b) in enumerate(itertools.pairwise(seen))
    ]
    for k, n in enumerate(noise):
        expected = reference.random.normal_at((2, 3), key, 0, k + 1)
        torch.testing.assert_close(n.float(), expected, rtol=1e-3, atol=1e-4)  # a difference of rounded numbers
    assert (
        torch.equal(seen[0], sample(lambda x, t: x * 0, (2, 3), "ddim", 1, key=key) * 0 + seen[0])
        and last.isfinite().all()
    )


def test_guidance_is_the_combination_of_both(key):
    denoiser = Denoiser(conditions=2).double()
    condition, nothing = torch.randn(3, 2), torch.zeros(3, 2)
    table = solver("euler", NoiseSchedule(), STEPS)

    def combined(x, timestep):
        u, c = denoiser(x, timestep, nothing), denoiser(x, timestep, condition)
        return u + 2.5 * (c - u)

    guided = sample(denoiser, (3, 4), table, condition=condition, unconditional=nothing, guidance=2.5, key=key)
    torch.testing.assert_close(
        guided, sample(combined, (3, 4), table, key=key, dtype=torch.float64), rtol=1e-10, atol=1e-10
    )
    named = {"condition": condition}, {"condition": nothing}
    again = sample(denoiser, (3, 4), table, condition=named[0], unconditional=named[1], guidance=2.5, key=key)
    assert torch.equal(again, guided)
    plain = sample(denoiser, (3, 4), table, condition=condition, key=key)
    one = sample(denoiser, (3, 4), table, condition=condition, unconditional=nothing, guidance=1.0, key=key)
    torch.testing.assert_close(one, plain, rtol=1e-10, atol=1e-10)


def test_a_learned_variance_has_channels_of_its_own(key):
    table = solver("ddpm", NoiseSchedule(), STEPS, variance_type="learned_range")

    def denoiser(x, timestep):
        return torch.cat([0.1 * x, torch.ones_like(x)], 1)

    found = sample(denoiser, (2, 3, 2, 2), table, key=key)
    large = solver("ddpm", NoiseSchedule(), STEPS, variance_type="fixed_large")
    expected = sample(lambda x, t: 0.1 * x, (2, 3, 2, 2), large, key=key)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sample_is_float32_between_steps_of_a_lower_precision(dtype, key):
    seen = []

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.5, dtype=dtype))

        def forward(self, x, timestep):
            seen.append(x)
            return self.weight * x

    table = solver("ddpm", NoiseSchedule(), STEPS)
    found = sample(Half(), (4, 8), table, key=key)
    assert found.dtype == torch.float32 and {x.dtype for x in seen} == {dtype}
    with torch.no_grad():
        expected = sample(lambda x, t: 0.5 * x, (4, 8), table, key=key)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_objects_and_tuples_are_outputs_too(key):
    class Output:
        def __init__(self, sample):
            self.sample = sample

    table = solver("ddim", NoiseSchedule(), STEPS)
    plain = sample(lambda x, t: 0.1 * x, (2, 4), table, key=key)
    assert torch.equal(plain, sample(lambda x, t: Output(0.1 * x), (2, 4), table, key=key))
    assert torch.equal(plain, sample(lambda x, t: (0.1 * x,), (2, 4), table, key=key))


def test_timesteps_are_whole_where_they_can_be(key):
    for name, sigmas, dtype in (("ddim", None, torch.int64), ("euler", "karras", torch.float32)):
        seen = []

        def denoiser(x, timestep, seen=seen):
            seen.append(timestep)
            return 0 * x

        table = solver(name, NoiseSchedule(), STEPS, sigmas=sigmas)
        sample(denoiser, (2, 4), table, key=key)
        assert [t.dtype for t in seen] == [dtype] * STEPS and all(t.shape == (2,) for t in seen)
        torch.testing.assert_close(torch.stack(seen)[:, 0].double(), table.timesteps, rtol=1e-6, atol=0)


def test_a_start_and_a_callback(key):
    table = solver("ddim", NoiseSchedule(), STEPS)
    rows, denoised = [], []

    def callback(row, done):
        rows.append(row)
        denoised.append(done.denoised)

    start = torch.full((2, 4), 0.5)
    found = sample(lambda x, t: 0 * x, (2, 4), table, start=start, key=key, callback=callback)
    assert rows == list(range(STEPS)) and torch.equal(start, torch.full((2, 4), 0.5))
    # A model that says no noise: the sample grows to x / sqrt(abar), and denoised says so at once.
    torch.testing.assert_close(denoised[0], found, rtol=1e-5, atol=0)


class Waits(TorchDispatchMode):
    """Fails at what makes a host wait for a device, or reads a tensor."""

    names = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.names:
            raise AssertionError(f"aten::{name} in the loop")
        if name == "_to_copy" and kwargs.get("device") not in (None, args[0].device):
            raise AssertionError("a copy between devices in the loop")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler_ancestral", "lcm", "dpmpp_2m", "unipc", "heun", "flow_euler"])
def test_nothing_is_waited_for(name, key):
    denoiser, table, mode = Denoiser(conditions=2), solver(name, _schedule(name), STEPS), Waits()
    condition, nothing = torch.randn(3, 2), torch.zeros(3, 2)

    class Watched(nn.Module):
        """Watches from its first call to its last."""

        def __init__(self):
            super().__init__()
            self.inner, self.left = denoiser, len(table)

        def forward(self, *inputs):
            if self.left == len(table):
                mode.__enter__()
            said = self.inner(*inputs)
            self.left -= 1
            return said

    watched = Watched()
    try:
        sample(watched, (3, 4), table, condition=condition, unconditional=nothing, guidance=2.0, key=key)
    finally:
        mode.__exit__(None, None, None)
    assert watched.left == 0
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Waits():
        torch.ones(()).item()


@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral", "dpmpp_2m", "unipc", "heun"])
def test_one_compilation_for_all_steps(name, key, monkeypatch, fresh_dynamo):
    counter = CompileCounterWithBackend("aot_eager")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend=counter, **options))
    denoiser, table = Denoiser(conditions=2), solver(name, _schedule(name), STEPS)
    guided = {"condition": torch.randn(3, 2), "unconditional": torch.zeros(3, 2), "guidance": 2.0}
    found = sample(denoiser, (3, 4), table, compile=True, key=key, **guided)
    assert counter.frame_count == 1
    torch.testing.assert_close(found, sample(denoiser, (3, 4), table, key=key, **guided), rtol=1e-5, atol=1e-5)
    sample(denoiser, (3, 4), table, compile=True, key=variate.random.key(3), **guided)
    assert counter.frame_count == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral", "dpmpp_2m", "unipc", "heun"])
def test_the_loop_is_one_graph(name):
    key = variate.random.key(KEY, device="cuda")
    denoiser, table = Denoiser().cuda(), solver(name, _schedule(name), STEPS).to("cuda")
    expected = sample(denoiser, (5, 4), table, key=key)
    other = variate.random.key(KEY + 1, device="cuda")
    later = sample(denoiser, (5, 4), table, key=other)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        sample(denoiser, (5, 4), table, key=key)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sample(denoiser, (5, 4), table, key=key)
    graph.replay()
    torch.testing.assert_close(captured, expected, rtol=1e-5, atol=1e-5)
    key.copy_(other)
    graph.replay()
    torch.testing.assert_close(captured, later, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_is_never_waited_for():
    key = variate.random.key(KEY, device="cuda")
    denoiser, table = Denoiser().cuda(), solver("ddpm", NoiseSchedule(), STEPS).to("cuda")
    sample(denoiser, (5, 4), table, key=key)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sample(denoiser, (5, 4), table, key=key)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _zero(x, timestep):
    return 0 * x


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (((2, 4), "dpm"), {}, ValueError, "scheduler: expected one of ddpm, ddim, .*, got 'dpm'"),
        (((2, 4), "ddim", 0), {}, ValueError, "steps: expected at least 1, got 0"),
        (
            ((2, 4), "ddim", 1001),
            {},
            ValueError,
            "steps: expected at most 1000, the timesteps of the schedule, got 1001",
        ),
        (((2, 4), "ddim", 5), {"prediction": "noise"}, ValueError, "prediction: expected .*, got 'noise'"),
        (((2, 4), "ddim", 5), {"etas": 1}, TypeError, "etas: 'ddim' does not take it; it takes eta"),
        (
            ((2, 4), "ddim", 5),
            {"schedule": FlowSchedule()},
            ValueError,
            "schedule: expected a NoiseSchedule for 'ddim'",
        ),
        (((2, 4), "flow_euler", 5), {"schedule": NoiseSchedule()}, ValueError, "schedule: expected a FlowSchedule"),
        (
            ((2, 4), "ddim", 5),
            {"schedule": "linear"},
            TypeError,
            "schedule: expected a NoiseSchedule or a FlowSchedule",
        ),
        (((2, 4), "ddim", 5), {"sigmas": "karras"}, ValueError, "sigmas: expected it to be left out"),
        (
            ((2, 4), 5),
            {},
            TypeError,
            "scheduler: expected a Table, a scheduler of variate.schedulers or a name, got int",
        ),
        (((4,), "ddim", 5), {}, ValueError, r"shape: expected \[B, ...\] with two or more dimensions"),
        (((2, -4), "ddim", 5), {}, ValueError, "shape: expected at least 0, got -4"),
        (((2, 4), "ddim", 5), {"dtype": torch.int64}, TypeError, "dtype: expected float32"),
        (((2, 4), "ddim", 5), {"guidance": 2.0}, ValueError, "guidance: expected both condition and unconditional"),
        (((2, 4), "ddim", 5), {"unconditional": torch.ones(2)}, ValueError, "unconditional: expected it with guidance"),
        (((2, 4), "ddim", 5), {"condition": torch.ones(3)}, ValueError, "condition: expected 2 rows"),
        (((2, 4), "ddim", 5), {"start": torch.ones(3, 4)}, ValueError, r"start: expected the shape \(2, 4\)"),
        (((2, 4), "ddim", 5), {"key": torch.zeros(3, 2, dtype=torch.int64)}, ValueError, "key: expected shape"),
    ],
)
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        sample(_zero, *arguments, **options)


def test_tables_are_not_kept():
    table = solver("ddim", NoiseSchedule(), 5)
    sample(_zero, (2, 4), table)
    copied, alive = copy.copy(table), weakref.ref(table)
    assert torch.equal(
        sample(_zero, (2, 4), copied, start=torch.ones(2, 4)), sample(_zero, (2, 4), table, start=torch.ones(2, 4))
    )
    del table, copied
    gc.collect()
    assert alive() is None


def test_a_table_has_its_own_steps_and_prediction():
    table = solver("ddim", NoiseSchedule(), 5)
    with pytest.raises(ValueError, match="steps: expected 5, the rows of the table, or none, got 6"):
        sample(_zero, (2, 4), table, 6)
    with pytest.raises(TypeError, match="prediction: expected it to be left out"):
        sample(_zero, (2, 4), table, prediction="x0")


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_schedulers_of_ours_and_of_diffusers(name, key):
    diffusers = pytest.importorskip("diffusers")
    denoiser, start = Denoiser(conditions=2), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    guided = {"condition": torch.ones(3, 2), "unconditional": torch.zeros(3, 2), "guidance": 2.0, "rescale": 0.5}
    ours, theirs = getattr(variate.schedulers, name)(), getattr(diffusers, name)()
    ours.noise = "torch"
    found = [
        sample(denoiser, (3, 4), s, STEPS, start=start, generator=torch.Generator().manual_seed(1), **guided)
        for s in (ours, theirs)
    ]
    # Each rounds in its own order.
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    ours.noise = None
    seen = []
    one = sample(denoiser, (3, 4), ours, STEPS, key=key, callback=lambda k, done: seen.append(k), **guided)
    assert seen == list(range(STEPS)) and torch.equal(one, sample(denoiser, (3, 4), ours, STEPS, key=key, **guided))
    with pytest.raises(ValueError, match="key: expected none with a scheduler of diffusers' own"):
        sample(denoiser, (3, 4), theirs, STEPS, key=key, **guided)
    with pytest.raises(ValueError, match="compile: expected False"):
        sample(denoiser, (3, 4), ours, STEPS, compile=True, **guided)
    with pytest.raises(ValueError, match="first_sample: expected 0 with a scheduler"):
        sample(denoiser, (3, 4), ours, STEPS, first_sample=1, **guided)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        sample(denoiser, (3, 4), ours, 0, **guided)


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_scheduler_with_a_learned_variance(guidance, key):
    diffusers = pytest.importorskip("diffusers")
    denoiser, start = Denoiser(conditions=2), torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    twice = lambda x, t, c: torch.cat([denoiser(x, t, c), torch.tanh(x)], 1)  # noqa: E731
    told = {"condition": torch.ones(3, 2)}
    told |= {} if guidance is None else {"unconditional": torch.zeros(3, 2), "guidance": guidance}
    ours, theirs = (m.DDPMScheduler(variance_type="learned_range") for m in (variate.schedulers, diffusers))
    ours.noise = "torch"
    found = [
        sample(twice, (3, 4), s, STEPS, start=start, generator=torch.Generator().manual_seed(1), **told)
        for s in (ours, theirs)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)  # each rounds in its own order
    # diffusers' step of the first timestep adds no noise, and neither does the table's last row.
    table = solver("ddpm", NoiseSchedule(), STEPS, variance_type="learned_range", clip=1.0)
    ours.noise = None
    by_table = sample(twice, (3, 4), table, key=key, **told)
    torch.testing.assert_close(by_table, sample(twice, (3, 4), ours, STEPS, key=key, **told), rtol=1e-4, atol=1e-4)


def test_a_scheduler_of_ours_is_its_table(key):
    pytest.importorskip("diffusers")
    denoiser = Denoiser()
    scheduler = variate.schedulers.DDPMScheduler(clip_sample=False)
    found = sample(denoiser, (3, 4), scheduler, STEPS, key=key)
    # diffusers' last level is the first timestep's own where the leading spacing ends at 0: the same as the table's.
    torch.testing.assert_close(found, sample(denoiser, (3, 4), "ddpm", STEPS, key=key), rtol=1e-4, atol=1e-4)


def _mixture(x, alpha, sigma, means, spread):
    """What remains of the noise in a mixture of normals, eps = sigma times minus the score, in closed form."""
    variance = (alpha * spread) ** 2 + sigma**2
    weight = torch.softmax(-((x[:, None] - alpha[..., None] * means) ** 2).sum(-1) / (2 * variance), 1)
    return sigma / variance * (x - alpha * (weight[..., None] * means).sum(1))


@pytest.mark.parametrize(
    "name", ["ddpm", "ddim", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "heun", "deis", "lms", "lcm"]
)
def test_samples_of_a_known_mixture(name, key):
    schedule = NoiseSchedule()
    means, spread = torch.tensor([[-1.0, 0.0], [1.0, 1.0]]), 0.2
    root = torch.from_numpy(schedule.sigmas)

    def denoiser(x, timestep):
        t = timestep.double()
        low = t.floor().long()
        sigma = torch.lerp(root[low], root[(low + 1).clamp(max=999)], t - low).float()[:, None]
        alpha = (1 + sigma**2) ** -0.5
        return _mixture(x, alpha, sigma * alpha, means, spread)

    steps = {"lcm": 50, "ddpm": 200}.get(name, 50)
    options = {"timestep_scaling": 1e6} if name == "lcm" else {}  # a model of x0, not one of consistency
    found = sample(denoiser, (4000, 2), name, steps, key=key, **options)
    right = found[:, 0] > 0
    # 4000 draws: the weight to 0.008, the moments to spread / sqrt(2000) = 0.0045, one standard deviation each. Four of
    # them, and as much again for the steps' own error, which is LCM's part (it draws too wide) and DDPM's at the end.
    assert abs(right.float().mean() - 0.5) < 0.06
    tolerance = 0.25 if name == "lcm" else 0.04
    for side, mean in ((~right, means[0]), (right, means[1])):
        assert (found[side].mean(0) - mean).abs().max() < tolerance
        assert (found[side].std(0) - spread).abs().max() < tolerance


def test_conditions_that_differ_are_tensors():
    """Anything else cannot be joined: the unconditional half would be told the condition."""

    def denoiser(x, timestep, *others, **named):
        return x

    for condition, unconditional in ((3, 0), ([1, 2], [0, 0]), ({"flag": True}, {"flag": False})):
        with pytest.raises(ValueError, match=r"condition.*expected tensors with a row for each sample"):
            sample(denoiser, (2, 2), "ddim", 1, condition=condition, unconditional=unconditional, guidance=2.0)
    same = {"scale": 0.5}
    assert sample(denoiser, (2, 2), "ddim", 1, condition=same, unconditional=same, guidance=2.0).shape == (2, 2)


@pytest.mark.parametrize("said", [None, {"a": 1}, (), 3.0])
def test_a_denoiser_that_returns_something_else(said):
    with pytest.raises(TypeError, match="denoiser: expected it to return a tensor"):
        sample(lambda x, t: said, (2, 2), "ddim", 1)
