"""The drop-in DPM-Solver, UniPC, Heun and flow matching schedulers against diffusers' own, step by step."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import variate
from variate import schedulers

diffusers = pytest.importorskip("diffusers")

DPM, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
UNIPC, HEUN = "UniPCMultistepScheduler", "HeunDiscreteScheduler"
FLOW, FLOW_HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
NAMES = (DPM, SINGLE, UNIPC, HEUN, FLOW, FLOW_HEUN)
SHAPE = (4, 3, 8, 6)
ULP = torch.finfo(torch.float32).eps

Config = dict[str, Any]
LAST = {"final_sigmas_type": "sigma_min"}
FLOWING = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}

# (class, configuration, arguments of set_timesteps)
CASES: list[tuple[str, Config, Config]] = [
    *(
        (DPM, {"algorithm_type": kind, "solver_order": order, "solver_type": solver, **last}, {})
        for kind, last in (("dpmsolver++", {}), ("sde-dpmsolver++", {}), ("dpmsolver", LAST), ("sde-dpmsolver", LAST))
        for order in (1, 2, 3)
        for solver in ("midpoint", "heun")
        if (kind, order) != ("sde-dpmsolver", 3)
    ),
    *(
        (DPM, {"algorithm_type": kind, "prediction_type": prediction, **LAST}, {})
        for kind in ("dpmsolver++", "dpmsolver")
        for prediction in ("sample", "v_prediction")
    ),
    *(
        (name, {"solver_order": order, **extra}, {})
        for name in (DPM, UNIPC)
        for order in (1, 2, 3)
        for extra in (
            {"use_karras_sigmas": True},
            {"use_exponential_sigmas": True},
            {"use_beta_sigmas": True},
            {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
            {"timestep_spacing": "leading", "steps_offset": 1, "beta_schedule": "scaled_linear"},
            {"lower_order_final": False, **LAST},
            {"thresholding": True, "sample_max_value": 1.6},
            FLOWING,
        )
    ),
    *((DPM, {"solver_order": order, "use_lu_lambdas": True}, {}) for order in (2, 3)),
    *((DPM, {"solver_order": order, "euler_at_final": True, **LAST}, {}) for order in (2, 3)),
    (DPM, {"solver_order": 3, "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.0}, {}),
    (DPM, {"algorithm_type": "dpmsolver", "thresholding": True, "sample_max_value": 1.6, **LAST}, {}),
    (DPM, {}, {"num_inference_steps": None, "timesteps": [901, 640, 403, 201, 100, 37, 5]}),
    (DPM, {"solver_order": 3}, {"num_inference_steps": 20}),
    *(
        (
            UNIPC,
            {"solver_order": order, "solver_type": kind, "predict_x0": x0, "prediction_type": prediction, **LAST},
            {},
        )
        for order in (1, 2, 3)
        for kind in ("bh1", "bh2")
        for x0 in (True, False)
        for prediction in ("epsilon", "sample", "v_prediction")
        if prediction == "epsilon" or order == 2
    ),
    *((UNIPC, {"solver_order": order, "disable_corrector": [0, 3]}, {}) for order in (2, 3)),
    (UNIPC, {"solver_order": 3}, {"num_inference_steps": 20}),
    *(
        (SINGLE, {"algorithm_type": kind, "solver_order": order, "solver_type": solver, **last}, {})
        for kind, last in (("dpmsolver++", {}), ("sde-dpmsolver++", {}), ("dpmsolver", LAST))
        for order in (1, 2, 3)
        for solver in ("midpoint", "heun")
    ),
    (SINGLE, {"use_karras_sigmas": True, "prediction_type": "v_prediction"}, {"num_inference_steps": 8}),
    *(
        (HEUN, {"prediction_type": prediction, **extra}, {})
        for prediction in ("epsilon", "sample", "v_prediction")
        for extra in (
            {},
            {"use_karras_sigmas": True},
            {"use_exponential_sigmas": True},
            {"use_beta_sigmas": True},
            {"clip_sample": True, "clip_sample_range": 0.8, "timestep_spacing": "trailing"},
            {"timestep_spacing": "leading", "steps_offset": 1, "beta_schedule": "exp"},
        )
    ),
    *(
        (FLOW, {"stochastic_sampling": stochastic, **config}, arguments)
        for stochastic in (False, True)
        for config, arguments in (
            ({"shift": 3.0}, {}),
            ({"use_dynamic_shifting": True}, {"mu": 1.15}),
            ({"use_karras_sigmas": True}, {}),
            ({"shift_terminal": 0.1}, {}),
            ({"invert_sigmas": True}, {}),
            ({}, {"num_inference_steps": None, "sigmas": [1.0, 0.8, 0.5, 0.1]}),
        )
    ),
    (FLOW_HEUN, {"shift": 2.0}, {}),
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    yield
    diffusers.utils.logging.set_verbosity(before)


def made(cls: Any, config: Config, arguments: Config) -> Any:
    scheduler = cls(**config)
    scheduler.set_timesteps(**{"num_inference_steps": 7, **arguments})
    scheduler.noise = "torch"
    return scheduler


def pair(name: str, config: Config, arguments: Config) -> tuple[Any, Any]:
    """diffusers' with its levels in float64, of which its formulas make float64, and ours."""
    theirs, ours = (made(getattr(module, name), config, arguments) for module in (diffusers, schedulers))
    theirs.sigmas = theirs.sigmas.double()
    return theirs, ours


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def draw(seed: int, permuted: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if permuted:
        return torch.randn(SHAPE[::-1], generator=generator).permute(3, 2, 1, 0)
    return torch.randn(SHAPE, generator=generator)


def told(name: str, timestep: Tensor, row: int) -> Any:
    """The timestep as an integer, a number or a tensor, as the scheduler takes them."""
    forms: list[Any] = [timestep, timestep.reshape(()).clone()]
    if "FlowMatch" in name:
        forms.append(float(timestep))
    else:
        forms.append(int(timestep) if timestep == int(timestep) else float(timestep))
        forms.append(float(timestep))
    return forms[row % len(forms)]


def sizes(*tensors: Any) -> float:
    return max([1.0, *(float(t.abs().max()) for t in tensors if isinstance(t, Tensor))])


def accepts_generator(scheduler: Any) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters


COUNTS = ("step_index", "begin_index", "lower_order_nums", "this_order", "num_inference_steps", "state_in_first_order")
TENSORS = ("last_sample", "prev_derivative", "sample", "dt")


@pytest.mark.parametrize(("name", "config", "arguments"), CASES)
def test_each_step_is_diffusers(name: str, config: Config, arguments: Config) -> None:
    """Random outputs and samples, through every step: within 16 ulp of the greatest of the sample, what the model said,
    what it meant of x0 and the result, and as near for every attribute; of third-order UniPC twice, which divides by
    small differences of lambda, rounded to float32 there. diffusers' own float32 formulas lose more."""
    theirs, ours = pair(name, config, arguments)
    assert torch.equal(theirs.timesteps, ours.timesteps)
    seen: list[float] = []
    bound = (32 if config.get("solver_order") == 3 and name == UNIPC else 16) * ULP
    for row, timestep in enumerate(ours.timesteps):
        scale = float(ours.sigmas[row]) if name == HEUN else 1.0
        sample, output = draw(row, permuted=row % 2 == 0) * max(1.0, scale), draw(100 + row, permuted=row % 3 == 0)
        keys = [{"generator": torch.Generator().manual_seed(row)} if accepts_generator(ours) else {} for _ in range(2)]
        t = told(name, timestep, row)
        got = ours.step(output, t, sample, **keys[0])
        if name == SINGLE and "sde" in config.get("algorithm_type", ""):  # its noise has the output's dtype
            want = theirs.step(output, t, sample, **keys[1])
        else:
            with float64():
                want = theirs.step(output.double(), t, sample.double(), **keys[1])
        said = [m for m in getattr(theirs, "model_outputs", []) if m is not None]
        seen.append(sizes(sample, output, want.prev_sample, *said))
        near = bound * max(seen[-4:])
        for field in want:
            if bool(want[field].isnan().any()):  # of bh1 to sigma 0, and steps that are documented
                continue
            assert float((got[field].double() - want[field].double()).abs().max()) <= near, (row, field)
            assert got[field].dtype == torch.float32
        for attribute in COUNTS:
            assert getattr(ours, attribute, None) == getattr(theirs, attribute, None)
        for attribute in TENSORS:
            mine, other = getattr(ours, attribute, None), getattr(theirs, attribute, None)
            assert (mine is None) == (other is None)
            if mine is not None:
                error = float((mine.double() - other.double()).abs().max())
                assert error <= max(near, bound * sizes(other)), (row, attribute)
        for mine, other in zip(getattr(ours, "model_outputs", []), getattr(theirs, "model_outputs", []), strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                assert float((mine.double() - other.double()).abs().max()) <= near
    with pytest.raises(ValueError, match="step: expected at most"):
        ours.step(output, ours.timesteps[-1], sample)


def test_bh1_to_sigma_0_is_finite() -> None:
    theirs, ours = pair(UNIPC, {"solver_type": "bh1"}, {})
    for row, timestep in enumerate(ours.timesteps):
        results = [s.step(draw(row), timestep, draw(50 + row)).prev_sample for s in (theirs, ours)]
    assert results[0].isnan().all() and results[1].isfinite().all()
    torch.testing.assert_close(results[1], ours.model_outputs[-1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("begin", [2, 3])
def test_from_the_middle(name: str, begin: int) -> None:
    """begin_index, and a first timestep in the middle: the order builds up from there."""
    for by_index in (True, False):
        theirs, ours = pair(name, {}, {})
        if by_index:
            for scheduler in (theirs, ours):
                scheduler.set_begin_index(begin)
        elif name in (HEUN, FLOW_HEUN) and begin % 2:
            begin = 4
        for row in range(begin, len(ours.timesteps)):
            sample, output, t = draw(row), draw(30 + row), ours.timesteps[row]
            got = ours.step(output, t, sample).prev_sample
            with float64():
                want = theirs.step(output.double(), t, sample.double()).prev_sample
            assert ours.step_index == theirs.step_index
            said = [m for m in getattr(theirs, "model_outputs", []) if m is not None]
            assert float((got - want).abs().max()) <= 32 * ULP * sizes(sample, output, want, *said)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("data", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_diffusers(name: str, model: torch.dtype, data: torch.dtype) -> None:
    """Of the results, for the dtypes of the model and of the sample; the values to the lower precision of the two."""
    theirs, ours = (made(getattr(module, name), {}, {}) for module in (diffusers, schedulers))
    for row in range(4):
        sample, output, t = draw(row).to(data), draw(9 + row).to(model), ours.timesteps[row]
        got, want = (s.step(output, t, sample) for s in (ours, theirs))
        if name == UNIPC and model != data:
            assert got.prev_sample.dtype == data  # diffusers refuses some of these pairs at later steps
        else:
            assert got.prev_sample.dtype == want.prev_sample.dtype
        said = [m for m in getattr(theirs, "model_outputs", []) if m is not None]
        near = 8 * max(torch.finfo(d).eps for d in (model, data)) * sizes(sample, output, want.prev_sample, *said)
        assert float((got.prev_sample.double() - want.prev_sample.double()).abs().max()) <= near


def test_a_learned_variance_is_left_out() -> None:
    """Whatever the channels: diffusers takes the first three."""
    plain, learned = (made(schedulers.DPMSolverMultistepScheduler, c, {}) for c in ({}, {"variance_type": "learned"}))
    for row, t in enumerate(plain.timesteps):
        output, variance, sample = draw(row)[:, :2], draw(row + 10)[:, :2], draw(row + 20)[:, :2]
        a = plain.step(output, t, sample).prev_sample
        b = learned.step(torch.cat([output, variance], 1), t, sample).prev_sample
        assert torch.equal(a, b)


def test_variance_noise() -> None:
    config = {"algorithm_type": "sde-dpmsolver++"}
    theirs, ours = pair(DPM, config, {})
    for row, t in enumerate(ours.timesteps):
        sample, output, noise = draw(row), draw(row + 10), draw(row + 20)
        got = ours.step(output, t, sample, variance_noise=noise).prev_sample
        want = theirs.step(output.double(), t, sample, variance_noise=noise).prev_sample
        assert float((got - want).abs().max()) <= 16 * ULP * sizes(
            want, *(m for m in theirs.model_outputs if m is not None)
        )


def test_kernel_noise() -> None:
    """The default noise: of the key that a generator gives, a step's own part of its stream, and of each sample."""
    config = {"algorithm_type": "sde-dpmsolver++"}

    def run(generator: Any, rows: slice = slice(None)) -> Tensor:
        scheduler = made(schedulers.DPMSolverMultistepScheduler, config, {})
        scheduler.noise = None
        x = draw(0)[rows]
        for row, t in enumerate(scheduler.timesteps):
            x = scheduler.step(draw(row + 1)[rows], t, x, generator=generator).prev_sample
        return x

    first, again, other = (run(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(run(torch.Generator().manual_seed(3), slice(0, 2)), first[:2])
    alone = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7, 8)]
    together = run(alone)
    second = run([torch.Generator().manual_seed(6)], slice(1, 2))
    torch.testing.assert_close(together[1:2], second)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("stochastic", [False, True])
def test_per_token_timesteps(stochastic: bool) -> None:
    """Each token of [B, T, C] from its own sigma to the next one below; conditioning tokens, whose timestep is 0, and
    sigmas that the schedule does not have, stay or go to the nearest below."""
    theirs, ours = pair(FLOW, {"stochastic_sampling": stochastic}, {})
    sample, output = draw(0).reshape(4, 24, 6), draw(1).reshape(4, 24, 6)
    tokens = torch.stack([ours.timesteps[:6].repeat(4)] * 4) * (torch.arange(24) % 5 != 0)
    tokens[1, 3:9] = torch.tensor([3.7, 600.0, 999.9, 0.0, 142.0, 1000.0])
    t = ours.timesteps[0]
    got, want = (
        s.step(output, t, sample, generator=torch.Generator().manual_seed(1), per_token_timesteps=tokens).prev_sample
        for s in (ours, theirs)
    )
    assert got.dtype == want.dtype == torch.float32 or want.dtype == torch.float64
    assert float((got - want).abs().max()) <= 8 * ULP * sizes(sample, output, want)
    assert ours.step_index == theirs.step_index == 1
    if not stochastic:
        still = tokens == 0
        assert torch.equal(got[still], sample[still])


@pytest.mark.parametrize("name", NAMES)
def test_forward_noise(name: str) -> None:
    """add_noise and scale_noise, with a timestep for each sample or a single one, in float32; and in bfloat16, where
    diffusers rounds its sigmas first, within what bfloat16 data has."""
    for dtype in (torch.float32, torch.bfloat16):
        for which in ([0, 1, 2, 5], [3]):
            for begin in (None, 2):
                theirs, ours = pair(name, {}, {})
                if begin is not None:
                    for scheduler in (theirs, ours):
                        scheduler.set_begin_index(begin)
                x0, noise, t = draw(0).to(dtype), draw(1).to(dtype), ours.timesteps[which]
                exact: list[Tensor] = [x0.double(), noise.double()]
                if name == FLOW:
                    got, want = ours.scale_noise(x0, t, noise), theirs.scale_noise(exact[0], t, exact[1])
                elif name == FLOW_HEUN:
                    return  # diffusers' own
                else:
                    got, want = ours.add_noise(x0, noise, t), theirs.add_noise(*exact, t)
                assert got.dtype == dtype
                eps = torch.finfo(dtype).eps
                torch.testing.assert_close(got.double(), want.double(), rtol=2 * eps, atol=2 * eps * sizes(want))


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_configurations(name: str, tmp_path: Any) -> None:
    """A scheduler saved and loaded, or copied half way, goes on with the same steps."""
    ours = made(getattr(schedulers, name), {}, {})
    ours.save_pretrained(tmp_path)
    loaded = getattr(schedulers, name).from_pretrained(tmp_path)
    other = getattr(schedulers, name).from_config(getattr(diffusers, name)().config)
    for scheduler in (loaded, other):
        scheduler.set_timesteps(7)
        scheduler.noise = "torch"
    for row in range(5):
        if row == 3:
            loaded = copy.deepcopy(loaded)
        t = ours.timesteps[row]
        results = [s.step(draw(row), t, draw(row + 9)).prev_sample for s in (ours, loaded, other)]
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    ours.set_timesteps(5)
    again = made(getattr(schedulers, name), {}, {"num_inference_steps": 5})
    assert torch.equal(*(s.step(draw(0), s.timesteps[0], draw(1)).prev_sample for s in (ours, again)))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_through(name: str) -> None:
    """Of a later step's result in the sample and in what the model said before."""
    ours = made(getattr(schedulers, name), {}, {})
    outputs = [draw(row).requires_grad_() for row in range(3)]
    for row in range(2):
        ours.step(outputs[row], ours.timesteps[row], draw(row + 9))
    sample = draw(20).requires_grad_()
    prev = ours.step(outputs[2], ours.timesteps[2], sample).prev_sample
    prev.sum().backward()
    assert sample.grad is not None and outputs[2].grad is not None
    assert sample.grad.isfinite().all()
    if name in (DPM, UNIPC):
        assert outputs[1].grad is not None and bool((outputs[1].grad != 0).any())


@pytest.mark.parametrize("name", NAMES)
def test_bad_input(name: str) -> None:
    fresh = getattr(schedulers, name)()
    x = draw(0)
    if name in (DPM, SINGLE, UNIPC):
        with pytest.raises(ValueError, match="set_timesteps"):
            fresh.step(x, 1, x)
    ours = made(getattr(schedulers, name), {}, {})
    with pytest.raises(ValueError, match="timestep: expected one of the scheduler's"):
        ours.step(x, 5000.5, x)
    t = ours.timesteps[0]
    with pytest.raises(ValueError, match="model_output: expected"):
        ours.step(x[:2], t, x)
    ours = made(getattr(schedulers, name), {}, {})
    ours.step(x, t, x)
    if name != FLOW:
        with pytest.raises((ValueError, RuntimeError), match=r"history|state|sample"):
            ours.step(x[:, :2], ours.timesteps[1], x[:, :2])
    if name in (FLOW, FLOW_HEUN):
        with pytest.raises(ValueError, match=r"timestep: expected one of scheduler\.timesteps, got the integer 3"):
            ours.step(x, 3, x)
    if name not in (FLOW, FLOW_HEUN):
        ours = made(getattr(schedulers, name), {"prediction_type": "noise"}, {})
        with pytest.raises(ValueError, match="prediction"):
            ours.step(x, ours.timesteps[0], x)


@pytest.mark.parametrize("name", NAMES)
def test_only_steps_and_noise_are_replaced(name: str) -> None:
    ours = getattr(schedulers, name)
    replaced = {n for n in vars(ours) if not n.startswith("_") and n in dir(getattr(diffusers, name))}
    assert replaced <= {"step", "add_noise", "scale_noise", "get_velocity"}
    for method in replaced:
        mine, other = (list(inspect.signature(getattr(c, method)).parameters) for c in (ours, getattr(diffusers, name)))
        assert mine == other
    assert math.isfinite(len(ours()))


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_table_of_sigmas_that_the_host_does_not_read(stochastic: bool) -> None:
    """Where a GPU holds the sigmas, the table is made there: the same coefficients, and no column that is not read."""
    from variate.schedulers import _flow

    sigmas = made(schedulers.FlowMatchEulerDiscreteScheduler, {"shift": 2.0}, {}).sigmas
    host = _flow._euler(sigmas, stochastic).table
    device = _flow._on_device(sigmas[:-1].double(), sigmas[1:].double(), stochastic)
    torch.testing.assert_close(device.coefficients, host.coefficients, rtol=1e-12, atol=1e-12)
    assert all(mine & other == other for mine, other in zip(device.masks, host.masks, strict=True))


@pytest.mark.parametrize("patched", [False, True])
def test_what_takes_diffusers_own_path(patched: bool) -> None:
    """A predictor of the user's in UniPC, and churn in flow matching's Heun: the same numbers, as a subclass and under
    the patch, and the kernel's path again after it."""

    def unipc(module: Any) -> list[Tensor]:
        scheduler = module.UniPCMultistepScheduler(solver_p=module.DPMSolverMultistepScheduler())
        scheduler.set_timesteps(6)
        return [scheduler.step(draw(k), t, draw(k + 9)).prev_sample for k, t in enumerate(scheduler.timesteps)]

    def churned(module: Any) -> list[Tensor]:
        scheduler = module.FlowMatchHeunDiscreteScheduler()
        scheduler.set_timesteps(4)
        results = []
        for k, t in enumerate(scheduler.timesteps):
            churn = {"s_churn": 2.0 if k < 2 else 0.0, "generator": torch.Generator().manual_seed(k)}
            results.append(scheduler.step(draw(k), t, draw(k + 9), **churn).prev_sample)
        return results

    for run in (unipc, churned):
        want = run(diffusers)
        if patched:
            with variate.patch.diffusers():
                got = run(diffusers)
        else:
            got = run(schedulers)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # diffusers' float32 coefficients
    assert torch.equal(run(diffusers)[-1], want[-1])


@pytest.mark.parametrize("config", [{}, {"thresholding": True, "sample_max_value": 2.0}])
@pytest.mark.parametrize("name", [DPM, UNIPC, SINGLE])
def test_a_step_depends_on_its_sample_alone(name: str, config: Config) -> None:
    """Bits: in a batch of four, and alone."""
    batch, alone = (made(getattr(schedulers, name), config, {}) for _ in range(2))
    for row, t in enumerate(batch.timesteps):
        output, sample = draw(row), draw(row + 9)
        whole = batch.step(output, t, sample).prev_sample
        assert torch.equal(whole[2:3], alone.step(output[2:3], t, sample[2:3]).prev_sample)
