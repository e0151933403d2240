"""The drop-in schedulers against diffusers' own, step by step; their noise, their errors, and patch.diffusers."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checklist import assert_accurate
from conformance import diffusers_outcomes
from torch import Tensor

import variate
from variate import schedulers
from variate.schedulers import _base

diffusers = pytest.importorskip("diffusers")

NAMES = (
    "DDPMScheduler",
    "DDIMScheduler",
    "LCMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
)
BY_ALPHAS = NAMES[:3]
STOCHASTIC = ("DDPMScheduler", "LCMScheduler", "EulerAncestralDiscreteScheduler")
SHAPE = (3, 4, 6, 5)

# (class, configuration, arguments of set_timesteps, arguments of step)
CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    *(
        (name, {"prediction_type": prediction, "timestep_spacing": spacing}, {}, {})
        for name in NAMES
        for prediction in ("epsilon", "sample", "v_prediction")
        for spacing in ("leading", "trailing", "linspace")
        if (name, prediction) != ("EulerAncestralDiscreteScheduler", "sample")
        and (name != "LCMScheduler" or spacing == "leading")
    ),
    *(
        (name, {"clip_sample": True, "clip_sample_range": 0.7, "beta_schedule": schedule}, {}, {})
        for name in BY_ALPHAS
        for schedule in ("scaled_linear", "squaredcos_cap_v2")
    ),
    *((name, {"thresholding": True, "sample_max_value": 1.6}, {}, {}) for name in BY_ALPHAS),
    *(
        (name, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "clip_sample": False}, {}, {})
        for name in BY_ALPHAS
    ),
    *(
        ("DDPMScheduler", {"variance_type": kind}, {}, {})
        for kind in ("fixed_small_log", "fixed_large", "learned_range")
    ),
    ("DDPMScheduler", {"variance_type": "learned", "clip_sample": False}, {}, {}),
    ("DDPMScheduler", {"steps_offset": 1, "variance_type": "fixed_large"}, {}, {}),
    ("DDPMScheduler", {}, {"num_inference_steps": None, "timesteps": [900, 612, 400, 37, 5, 0]}, {}),
    ("DDIMScheduler", {}, {}, {"eta": 1.0}),
    ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}, {}, {"eta": 0.3}),
    ("DDIMScheduler", {"prediction_type": "v_prediction"}, {}, {"use_clipped_model_output": True, "eta": 0.5}),
    ("LCMScheduler", {"timestep_scaling": 0.01, "set_alpha_to_one": False}, {}, {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}, {"s_churn": 3.0, "s_noise": 1.003}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, {}, {"s_churn": 9.0, "s_tmin": 0.5, "s_tmax": 9.0}),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear", "final_sigmas_type": "sigma_min"}, {}, {}),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}, {}, {}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, "prediction_type": "sample"}, {}, {}),
    ("EulerDiscreteScheduler", {}, {"num_inference_steps": None, "sigmas": [14.0, 3.0, 0.7, 0.02, 0.0]}, {}),
    ("EulerAncestralDiscreteScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, {}, {}),
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    yield
    diffusers.utils.logging.set_verbosity(before)


def made(cls: Any, config: dict[str, Any], arguments: dict[str, Any]) -> Any:
    scheduler = cls(**config)
    scheduler.set_timesteps(**{"num_inference_steps": 7, **arguments})
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True
    return scheduler


def exact(scheduler: Any) -> Any:
    """The scheduler with its levels in float64, of which its formulas make float64 of a float64 sample."""
    for name in ("alphas_cumprod", "final_alpha_cumprod", "sigmas", "one"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def outputs_for(scheduler: Any, config: dict[str, Any], row: int) -> Tensor:
    output = draw(100 + row)
    if config.get("variance_type", "").startswith("learned"):
        variance = draw(200 + row)
        output = torch.cat([output, variance.abs() if config["variance_type"] == "learned" else variance.tanh()], 1)
    return output


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.randn draws other numbers in float64."""
    for name in NAMES:
        module = sys.modules[getattr(diffusers, name).__module__]

        def randn(shape: Any, generator: Any = None, device: Any = None, dtype: Any = None) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        monkeypatch.setattr(module, "randn_tensor", randn)


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in tensors)


@pytest.mark.usefixtures("same_noise")
@pytest.mark.parametrize(("name", "config", "arguments", "step"), CASES)
def test_each_step_is_diffusers(
    name: str, config: dict[str, Any], arguments: dict[str, Any], step: dict[str, Any]
) -> None:
    """Against its formulas in float64 no worse than twice as far as they are in float32, and 8 ulp."""
    ours, theirs, truth = (
        made(cls, config, arguments)
        for cls in (getattr(schedulers, name), getattr(diffusers, name), getattr(diffusers, name))
    )
    ours.noise = "torch"
    exact(truth)
    sample = draw(1) * float(ours.init_noise_sigma)
    for row, t in enumerate(ours.timesteps):
        output = outputs_for(ours, config, row)

        def result(scheduler: Any, *tensors: Tensor, t: Tensor = t, row: int = row) -> Any:
            return scheduler.step(tensors[0], t, tensors[1], generator=torch.Generator().manual_seed(row), **step)

        one, other, exactly = (
            result(ours, output, sample),
            result(theirs, output, sample),
            result(truth, *wide(output, sample)),
        )
        assert type(one) is type(other) and list(one.keys()) == list(other.keys())
        assert one[0] is one.prev_sample is one["prev_sample"]
        assert [(x.dtype, x.shape) for x in one.to_tuple()] == [(x.dtype, x.shape) for x in other.to_tuple()]
        assert_accurate(one.to_tuple(), other.to_tuple(), exactly.to_tuple(), (sample, output))
        assert getattr(ours, "step_index", None) == getattr(theirs, "step_index", None)
        sample = other.prev_sample


@pytest.mark.parametrize("name", NAMES)
def test_strides_and_tuples(name: str) -> None:
    ours = made(getattr(schedulers, name), {}, {})
    ours.noise = "torch"
    t = ours.timesteps[2]
    sample, output = (draw(seed, 6, 5, 3, 4).permute(2, 3, 0, 1) for seed in (1, 2))
    results = []
    for x, m in ((sample, output), (sample.contiguous(), output), (sample, output.contiguous())):
        ours._step_index = 2
        prev, x0 = ours.step(m, t, x, generator=torch.Generator().manual_seed(0), return_dict=False)
        results.append((prev, x0))
        assert prev.shape == sample.shape
    assert all(torch.equal(a, b) for pair in results[1:] for a, b in zip(results[0], pair, strict=True))


@pytest.mark.parametrize("name", BY_ALPHAS)
def test_timesteps_are_integers_floats_or_tensors(name: str) -> None:
    ours = made(getattr(schedulers, name), {}, {})
    sample, output = draw(1), draw(2)
    t = int(ours.timesteps[3])
    results = []
    for timestep in (t, float(t), torch.tensor(t), torch.tensor([t]), torch.tensor(float(t))):
        ours._step_index = 3
        ours._variate_plan = None
        results.append(ours.step(output, timestep, sample, generator=torch.Generator().manual_seed(0)).prev_sample)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_each_sample_may_have_its_timestep(name: str) -> None:
    ours = made(getattr(schedulers, name), {}, {})
    sample, output = draw(1), draw(2)
    at = ours.timesteps[[4, 0, 6]]
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    together = ours.step(output, at, sample, generator=generators).prev_sample
    for row, t in enumerate(at):
        alone = made(getattr(schedulers, name), {}, {})
        generator = torch.Generator().manual_seed(row)
        prev = alone.step(output[row, None], t, sample[row, None], generator=generator).prev_sample
        assert torch.equal(prev[0], together[row])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("of_sample", "of_output"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes_are_diffusers(name: str, of_sample: torch.dtype, of_output: torch.dtype) -> None:
    """The returned sample's, and its values at one rounding of it, of the formula in float32 or float64."""
    ours, theirs = (made(getattr(module, name), {}, {}) for module in (schedulers, diffusers))
    truth = exact(made(getattr(diffusers, name), {}, {}))
    ours.noise = "torch"
    sample, output = draw(1, dtype=of_sample), draw(2, dtype=of_output)
    t = ours.timesteps[-1]  # of which DDPM and LCM draw no noise
    for scheduler in (ours, theirs, truth):
        scheduler._step_index = 6
    one, other = (s.step(output, t, sample).prev_sample for s in (ours, theirs))
    assert one.dtype == other.dtype
    exactly = truth.step(*wide(output), t, *wide(sample)).prev_sample
    coarse = max(torch.finfo(dtype).eps for dtype in (one.dtype, torch.float32))
    torch.testing.assert_close(one.double(), exactly.double(), rtol=coarse, atol=4e-7)  # terms of size 3 cancel


def test_a_view_of_the_timesteps_says_where_it_lies() -> None:
    """What a step on a GPU knows of its timestep without waiting for it."""
    steps = torch.tensor([9, 5, 5, 1])
    assert [_base._position(steps, t) for t in steps] == [0, 1, 2, 3]
    assert _base._position(steps, steps[2:][1]) == 3
    assert _base._position(steps, torch.tensor(5)) is None and _base._position(steps, steps.int()[0]) is None


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_steps_on_a_gpu_wait_for_nothing(name: str, where: str) -> None:
    """From the second step on, with the timesteps on either side; the samples are the CPU's."""
    results = []
    for device in ("cpu", "cuda"):
        scheduler = getattr(schedulers, name)()
        scheduler.set_timesteps(7, device=where if device == "cuda" else "cpu")
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True
        x, generator = draw(1).to(device), torch.Generator().manual_seed(0)
        try:
            for t in scheduler.timesteps:
                x = scheduler.step(0.3 * x, t, x, generator=generator).prev_sample
                if device == "cuda":
                    torch.cuda.set_sync_debug_mode("error")
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        results.append(x.cpu())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


# Noise.


def loop(
    scheduler: Any, seed: int | None = 0, steps: int = 5, shape: tuple[int, ...] = SHAPE, **arguments: Any
) -> Tensor:
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True
    if seed is not None:
        arguments["generator"] = torch.Generator().manual_seed(seed)
    x = draw(1, *shape)
    for t in scheduler.timesteps:
        x = scheduler.step(0.3 * x, t, x, **arguments).prev_sample
    return x


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_generator_decides_the_noise(name: str) -> None:
    scheduler = getattr(schedulers, name)()
    first = loop(scheduler)
    assert torch.equal(loop(scheduler), first) and not torch.equal(loop(scheduler, 1), first)
    torch.manual_seed(3)
    first = loop(scheduler, None)
    assert not torch.equal(loop(scheduler, None), first)
    torch.manual_seed(3)
    assert torch.equal(loop(getattr(schedulers, name)(), None), first)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_list_of_generators_is_one_for_each_sample(name: str) -> None:
    scheduler = getattr(schedulers, name)()
    together = loop(scheduler, None, generator=[torch.Generator().manual_seed(seed) for seed in (4, 5, 6)])
    for row in range(3):
        scheduler.set_timesteps(5)
        x = draw(1)[row, None]
        generator = [torch.Generator().manual_seed(4 + row)]
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * x, t, x, generator=generator).prev_sample
        # The key of one sample is a stream of which it is sample 0, as it is with a key of its own.
        assert torch.equal(x[0], together[row])
    with pytest.raises(ValueError, match="generator: expected one for each of 3 samples, got 2"):
        loop(scheduler, None, generator=[torch.Generator(), torch.Generator()])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_no_two_steps_share_their_noise(name: str) -> None:
    """Neither those of one loop, nor of a second one without set_timesteps, nor of copies."""
    scheduler = made(getattr(schedulers, name), {}, {})
    zero, output = torch.zeros(2, 500), torch.zeros(2, 500)
    seen = []

    def noise_of(scheduler: Any, row: int) -> Tensor:
        scheduler._step_index = row
        prev = scheduler.step(output, scheduler.timesteps[row], zero).prev_sample
        return (prev / prev.std()).flatten()

    for row in (1, 2, 3, 1, 2):
        seen.append(noise_of(scheduler, row))
    for copied in (copy.deepcopy(scheduler), copy.copy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        seen.append(noise_of(copied, 1))
    seen.append(noise_of(scheduler, 1))
    # Two independent vectors of 1000 correlate by more than 0.2 once in 10^9.
    assert all(abs(torch.dot(a, b) / 1000) < 0.2 for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_noise_is_standard_normal(name: str) -> None:
    """Of the given levels: its variance by a chi-squared test at 10^-6, both ways of drawing it."""
    values = []
    for mode in ("kernel", "torch"):
        scheduler = made(getattr(schedulers, name), {"clip_sample": False} if name in BY_ALPHAS else {}, {})
        scheduler.noise = mode
        scheduler._step_index = 2
        zero = torch.zeros(100, 1000)
        generator = torch.Generator().manual_seed(0)
        values.append(scheduler.step(zero, scheduler.timesteps[2], zero, generator=generator).prev_sample)
    std = scheduler._variate_plan.made.get("fixed_small", scheduler._variate_plan.table).column("prev_noise")[2].item()
    for x in values:
        assert abs(float((x / std).var()) - 1) < 4.9 * math.sqrt(2 / x.numel())
        assert abs(float((x / std).mean())) < 4.9 / math.sqrt(x.numel())


def test_the_mode_is_a_call_or_a_block() -> None:
    scheduler, stock = (made(module.DDPMScheduler, {}, {}) for module in (schedulers, diffusers))
    x = draw(1)

    def same() -> bool:
        results = [s.step(x, s.timesteps[0], x, generator=torch.Generator().manual_seed(0)) for s in (scheduler, stock)]
        return torch.allclose(results[0].prev_sample, results[1].prev_sample, atol=1e-5)

    assert not same()
    with schedulers.noise("torch"):
        assert same()
        with schedulers.noise("kernel"):
            assert not same()
        assert same()
    assert not same()
    scheduler.noise = "torch"
    assert same()
    with pytest.raises(ValueError, match='noise: expected "kernel" or "torch", got \'numpy\''):
        schedulers.noise("numpy")
    scheduler.noise = "numpy"
    with pytest.raises(ValueError, match="noise: expected"):
        same()


def test_given_noise_is_used() -> None:
    scheduler, stock = (made(module.DDIMScheduler, {}, {}) for module in (schedulers, diffusers))
    x, noise = draw(1), draw(2)
    one, other = (s.step(x, s.timesteps[1], x, eta=0.8, variance_noise=noise)[0] for s in (scheduler, stock))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="variance_noise"):
        scheduler.step(x, 0, x, eta=0.8, variance_noise=noise, generator=torch.Generator())


def test_gradients_go_through_a_step() -> None:
    for name in NAMES:
        grads = []
        for module in (schedulers, diffusers):
            scheduler = made(getattr(module, name), {}, {})
            scheduler.noise = "torch"
            scheduler._step_index = 2
            x, m = draw(1).requires_grad_(), (0.1 * draw(2)).requires_grad_()
            generator = torch.Generator().manual_seed(0)
            prev = scheduler.step(m, scheduler.timesteps[2], x, generator=generator).prev_sample
            grads.append(torch.autograd.grad((prev * draw(3)).sum(), (x, m)))
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# add_noise and get_velocity.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_add_noise_and_velocity(name: str, dtype: torch.dtype) -> None:
    """Some roundings of the formula in float64, also at the first timesteps, of whose noise diffusers loses all in
    bfloat16."""
    ours, theirs = (getattr(module, name)() for module in (schedulers, diffusers))
    truth = exact(getattr(diffusers, name)())
    x, noise = draw(1, 40, 3, 2, dtype=dtype), draw(2, 40, 3, 2, dtype=dtype)
    t = theirs.timesteps[torch.randint(0, 1000, (40,), generator=torch.Generator().manual_seed(0))]
    t[:10] = theirs.timesteps[-10:]
    bound = max(torch.finfo(dtype).eps, 2e-7)
    for method in ("add_noise", "get_velocity"):
        if not hasattr(theirs, method):
            assert not hasattr(ours, method)
            continue
        if method == "get_velocity" and "Euler" in name:
            sigma = theirs.sigmas.double()[[theirs.index_for_timestep(each) for each in t]].reshape(-1, 1, 1)
            exactly = (noise.double() - sigma * x.double()) / (sigma**2 + 1).sqrt()
        else:
            exactly = getattr(truth, method)(*wide(x, noise), t)
        result = getattr(ours, method)(x, noise, t)
        assert result.dtype == dtype
        size = exactly.abs() + x.double().abs() + noise.double().abs()
        assert ((result.double() - exactly).abs() <= 3 * bound * size).all()
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.add_noise(x, noise, t[:1]).shape == x.shape


def test_eulers_add_noise_in_a_pipeline_is_at_the_step() -> None:
    for name in NAMES[3:]:
        ours, theirs = (made(getattr(module, name), {}, {}) for module in (schedulers, diffusers))
        x, noise = draw(1), draw(2)
        for s in (ours, theirs):
            s.set_begin_index(3)
        t = ours.timesteps[3:4].repeat(3)
        assert torch.equal(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t))
        for s in (ours, theirs):
            s.step(x, s.timesteps[3], x)
        assert ours.step_index == theirs.step_index == 4
        assert torch.equal(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t))


# What upstream has wrong.


def test_fixed_large_log_is_not_nan() -> None:
    ours = made(schedulers.DDPMScheduler, {"variance_type": "fixed_large_log"}, {})
    large = made(schedulers.DDPMScheduler, {"variance_type": "fixed_large"}, {})
    x = draw(1)
    one, other = (s.step(x, s.timesteps[1], x, generator=torch.Generator().manual_seed(0))[0] for s in (ours, large))
    assert torch.equal(one, other) and one.isfinite().all()


# Errors.


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_named(name: str) -> None:
    cls = getattr(schedulers, name)
    ours = made(cls, {}, {})
    x = draw(1)
    t = ours.timesteps[0]
    with pytest.raises(ValueError, match=r"model_output: expected the sample's shape \(3, 4, 6, 5\), got \(3, 4, 6\)"):
        ours.step(x[..., 0], t, x)
    with pytest.raises(ValueError, match="model_output: expected it on the sample's device cpu, got meta"):
        ours.step(x.to("meta"), t, x)
    if name != "DDIMScheduler":
        fresh = made(cls, {}, {})
        with pytest.raises(ValueError, match=r"timestep: expected one of the scheduler's 7 timesteps, got .*12345"):
            fresh.step(x, 12345.0, x)
    with pytest.raises(ValueError, match="timestep"):
        made(cls, {}, {}).step(x, torch.tensor(-3.0), x)
    with pytest.raises(ValueError, match=r"prediction"):
        made(cls, {"prediction_type": "noise"}, {}).step(x, t, x)
    if "alphas_cumprod" == ours._variate_levels:
        for bad in (-1, 1000):
            with pytest.raises(ValueError, match="timesteps: expected integers from 0 to 999"):
                ours.add_noise(x, x, torch.tensor([bad]))
    else:
        with pytest.raises(ValueError, match=r"timesteps: expected some of scheduler.timesteps, got \[3.25\]"):
            ours.add_noise(x, x, torch.tensor([3.25]))


@pytest.mark.parametrize("name", NAMES[2:])
def test_a_step_after_the_last_is_named(name: str) -> None:
    ours = made(getattr(schedulers, name), {}, {})
    x = draw(1)
    for t in ours.timesteps:
        ours.step(x, t, x)
    with pytest.raises(ValueError, match="step: expected at most 7 after set_timesteps"):
        ours.step(x, ours.timesteps[0], x)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_steps(name: str) -> None:
    cls = getattr(schedulers, name)
    with pytest.raises((ValueError, ZeroDivisionError)):
        made(cls, {}, {"num_inference_steps": 0}).step(draw(1), 1.0, draw(1))
    if name in BY_ALPHAS:
        with pytest.raises(ValueError, match="1001"):
            made(cls, {}, {"num_inference_steps": 1001})
        with pytest.raises(ValueError, match=r"timestep: expected .*, got 1001"):
            made(cls, {}, {}).step(draw(1), 1001, draw(1))


def test_learned_variances_need_their_channels() -> None:
    ours = made(schedulers.DDPMScheduler, {"variance_type": "learned_range"}, {})
    with pytest.raises(ValueError, match="model_output: expected 8 channels"):
        ours.step(draw(1), ours.timesteps[0], draw(1))


def test_other_names_of_diffusers_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'PNDMScheduler'"):
        _ = schedulers.PNDMScheduler
    assert set(NAMES) <= set(dir(schedulers))


def test_diffusers_missing() -> None:
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import variate.schedulers\n"
        "try: variate.schedulers.DDPMScheduler\n"
        "except ImportError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == 'diffusers is not installed: pip install "variate[diffusers]"'


# Configurations, copies, patches.


@pytest.mark.parametrize("name", NAMES)
def test_save_load_and_from_config(name: str, tmp_path: Path) -> None:
    ours, stock = getattr(schedulers, name), getattr(diffusers, name)
    scheduler = ours(beta_start=0.002, prediction_type="v_prediction")
    scheduler.save_pretrained(tmp_path)
    for cls in (ours, stock):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is cls
        assert loaded.config.beta_start == 0.002 and loaded.config.prediction_type == "v_prediction"
    assert ours.from_config(stock(beta_start=0.003).config).config.beta_start == 0.003
    assert isinstance(scheduler, stock)
    assert inspect.signature(ours.step).parameters.keys() == inspect.signature(stock.step).parameters.keys()
    changed = {n for n in vars(ours) if not n.startswith("_")}
    assert changed <= {"step", "add_noise", "get_velocity", "scale_noise"}


def unet() -> Any:
    return diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


def test_a_pipeline_saves_what_diffusers_alone_loads(tmp_path: Path) -> None:
    pipe = diffusers.DDPMPipeline(unet=unet(), scheduler=schedulers.DDPMScheduler(beta_start=0.002))
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is diffusers.DDPMScheduler and loaded.scheduler.config.beta_start == 0.002
    given = schedulers.DDPMScheduler.from_config(loaded.scheduler.config)
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path, scheduler=given)
    assert type(pipe.scheduler) is schedulers.DDPMScheduler


@pytest.mark.parametrize("name", NAMES)
def test_pickles_are_of_the_same_class(name: str) -> None:
    scheduler = made(getattr(schedulers, name), {"beta_start": 0.002}, {})
    for copied in (copy.copy(scheduler), copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert type(copied) is type(scheduler) and copied.config == scheduler.config
        assert torch.equal(copied.timesteps, scheduler.timesteps)


def test_a_changed_configuration_is_seen() -> None:
    ours = made(schedulers.DDPMScheduler, {}, {})
    x, t = draw(1), ours.timesteps[6]
    before = ours.step(x, t, x).prev_sample
    ours.register_to_config(prediction_type="sample")
    assert torch.equal(ours.step(x, t, x).pred_original_sample, x.clamp(-1, 1))
    assert not torch.equal(ours.step(x, t, x).prev_sample, before)
    ours.alphas_cumprod = ours.alphas_cumprod * 0.5
    half = ours.step(x, ours.timesteps[1], x, generator=torch.Generator().manual_seed(0)).prev_sample
    assert half.isfinite().all()


def test_patched_pipelines_run_on_the_kernel() -> None:
    network = unet()
    for pipeline, scheduler in (("DDPMPipeline", "DDPMScheduler"), ("DDIMPipeline", "DDIMScheduler")):
        pipe = getattr(diffusers, pipeline)(unet=network, scheduler=getattr(diffusers, scheduler)())
        pipe.set_progress_bar_config(disable=True)

        def run(pipe: Any = pipe) -> Tensor:
            images = pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images
            return torch.from_numpy(images)

        stock = run()
        with variate.patch.diffusers(), schedulers.noise("torch"):
            patched = run()
        assert pipe.scheduler._variate_plan is not None
        torch.testing.assert_close(patched, stock, rtol=0, atol=1e-4)  # three passes through a random network
        assert torch.equal(run(), stock)


def test_a_patch_is_undone_and_leaves_subclasses_alone() -> None:
    class Own(diffusers.DDPMScheduler):
        def _get_variance(self, *args: Any, **kwargs: Any) -> Tensor:
            return torch.tensor(0.25)

    before = {name: dict(vars(getattr(diffusers, name))) for name in NAMES}
    x = draw(1)
    own = made(Own, {}, {})
    expected = own.step(x, own.timesteps[0], x, generator=torch.Generator().manual_seed(0)).prev_sample
    with variate.patch.diffusers():
        stock, ours = (made(module.DDPMScheduler, {}, {}) for module in (diffusers, schedulers))
        one, other, again = (
            s.step(x, s.timesteps[0], x, generator=torch.Generator().manual_seed(0)).prev_sample
            for s in (stock, ours, own)
        )
        assert torch.equal(one, other) and torch.equal(again, expected)
        assert "generator" in inspect.signature(stock.step).parameters
    assert {name: dict(vars(getattr(diffusers, name))) for name in NAMES} == before


# diffusers' own tests.


@pytest.mark.skipif("VARIATE_DIFFUSERS_TESTS" not in os.environ, reason="VARIATE_DIFFUSERS_TESTS names no checkout")
@pytest.mark.parametrize("way", ["subclasses", "patch"])
def test_diffusers_own_tests(way: str) -> None:
    checkout = Path(os.environ["VARIATE_DIFFUSERS_TESTS"])
    found = {each: diffusers_outcomes(checkout, each) for each in ("", way)}
    assert len(found[""]) > 100 and found[way] == found[""]
