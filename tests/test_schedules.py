"""Noise schedules against diffusers' arrays, and against what they say of themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from variate.diffusion.schedules import BETAS, FlowSchedule, NoiseSchedule, dynamic_shift

# diffusers works in float32: a cumulative product of 1000 of its roundings is relative 1000 x 6e-8 off at the most.


def _diffusers(name, **config):
    diffusers = pytest.importorskip("diffusers")
    return getattr(diffusers, name)(**config)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"])
def test_betas_are_those_of_diffusers(betas):
    theirs = _diffusers("HeunDiscreteScheduler" if betas == "exp" else "DDPMScheduler", beta_schedule=betas)
    start, end = theirs.config.beta_start, theirs.config.beta_end
    ours = NoiseSchedule(1000, betas, beta_start=start, beta_end=end)
    np.testing.assert_allclose(theirs.betas.numpy(), ours.betas, rtol=1e-5, atol=2e-7)
    np.testing.assert_allclose(theirs.alphas_cumprod.numpy(), ours.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_betas_may_be_given():
    betas = [0.1, 0.2, 0.3]
    schedule = NoiseSchedule(betas=betas)
    assert schedule.train_steps == 3
    np.testing.assert_allclose(schedule.alphas_cumprod, [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], rtol=1e-15)
    np.testing.assert_array_equal(NoiseSchedule(10, "cosine").betas, NoiseSchedule(10, "squaredcos_cap_v2").betas)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal_snr(betas):
    schedule, before = NoiseSchedule(1000, betas, zero_snr=True), NoiseSchedule(1000, betas)
    assert schedule.alphas_cumprod[-1] == 0 and schedule.betas[-1] == 1 and np.isfinite(schedule.sigmas).all()
    assert math.isclose(schedule.alphas_cumprod[0], before.alphas_cumprod[0], rel_tol=1e-12)
    np.testing.assert_allclose(np.cumprod(1 - schedule.betas), schedule.alphas_cumprod, rtol=1e-9, atol=1e-300)
    name = "squaredcos_cap_v2" if betas == "cosine" else betas
    theirs = _diffusers("DDIMScheduler", beta_schedule=name, rescale_betas_zero_snr=True)
    np.testing.assert_allclose(theirs.alphas_cumprod.numpy(), schedule.alphas_cumprod, rtol=2e-3, atol=2e-6)
    theirs = _diffusers("EulerDiscreteScheduler", beta_schedule="linear", rescale_betas_zero_snr=True)
    assert math.isclose(float(theirs.sigmas[0]), NoiseSchedule(zero_snr=True).sigmas[-1], rel_tol=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 10, 27, 50, 999, 1000])
def test_timesteps_are_those_of_diffusers(spacing, steps):
    theirs = _diffusers("DDPMScheduler", timestep_spacing=spacing, steps_offset=0)
    theirs.set_timesteps(steps)
    expected = theirs.timesteps.numpy()[:steps]  # a step of float may add one more, timestep -1
    np.testing.assert_array_equal(NoiseSchedule().timesteps(steps, spacing), expected)
    if steps < 1000:
        theirs = _diffusers("DPMSolverMultistepScheduler", timestep_spacing=spacing)
        theirs.set_timesteps(steps)
        ours = NoiseSchedule().timesteps(steps, spacing, endpoint=False)
        np.testing.assert_array_equal(ours, theirs.timesteps.numpy()[:steps])


def test_an_offset_moves_leading_timesteps():
    theirs = _diffusers("DDIMScheduler", steps_offset=1)
    theirs.set_timesteps(50)
    np.testing.assert_array_equal(NoiseSchedule().timesteps(50, offset=1), theirs.timesteps.numpy())


@pytest.mark.parametrize("kind", [None, "karras", "exponential", "beta"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_sigmas_are_those_of_diffusers(kind, final):
    if kind == "beta":
        pytest.importorskip("scipy")
    flag = {} if kind is None else {f"use_{kind}_sigmas": True}
    theirs = _diffusers("EulerDiscreteScheduler", final_sigmas_type=final, **flag)
    theirs.set_timesteps(20)
    timesteps, sigmas = NoiseSchedule().spaced(20, "linspace", kind, final=final)
    if kind is None:  # theirs do not round here
        np.testing.assert_allclose(timesteps, theirs.timesteps.numpy(), atol=0.51)
        sigmas[:-1] = NoiseSchedule().sigmas_of(theirs.timesteps.numpy().astype(np.float64))
    else:
        # log sigma to 1e-5, where the schedule takes 1e-2 a timestep at the noisy end and less at the clean one
        np.testing.assert_allclose(timesteps, theirs.timesteps.numpy(), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(sigmas, theirs.sigmas.numpy(), rtol=1e-4)


def test_even_in_lambda():
    theirs = _diffusers("DPMSolverMultistepScheduler", use_lu_lambdas=True)
    theirs.set_timesteps(20)
    timesteps, sigmas = NoiseSchedule().spaced(20, sigmas="lambda")
    np.testing.assert_allclose(sigmas, theirs.sigmas.numpy(), rtol=1e-4)
    assert np.abs(timesteps - theirs.timesteps.numpy()).max() < 0.51  # theirs are rounded
    np.testing.assert_allclose(np.diff(np.log(sigmas[:-1])), math.log(sigmas[-2] / sigmas[0]) / 19, rtol=1e-9)


def test_timesteps_and_sigmas_are_inverse():
    schedule = NoiseSchedule(100, "cosine")
    whole = np.arange(100.0)
    np.testing.assert_allclose(schedule.timesteps_of(schedule.sigmas_of(whole)), whole, atol=1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("terminal", [None, 0.1])
def test_flow_sigmas_are_those_of_diffusers(shift, terminal):
    theirs = _diffusers("FlowMatchEulerDiscreteScheduler", shift=shift, shift_terminal=terminal)
    own = np.linspace(1, 1 / 12, 12)
    theirs.set_timesteps(sigmas=own)
    timesteps, sigmas = FlowSchedule(shift=shift).spaced(12, own, terminal=terminal)
    np.testing.assert_allclose(sigmas, theirs.sigmas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(timesteps, theirs.timesteps.numpy(), rtol=1e-6)
    if shift == 1 and terminal is None:
        theirs.set_timesteps(12)
        np.testing.assert_allclose(FlowSchedule().spaced(12)[1], theirs.sigmas.numpy(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_flow_sigmas_spaced_anew(kind):
    theirs = _diffusers("FlowMatchEulerDiscreteScheduler", **{f"use_{kind}_sigmas": True})
    theirs.set_timesteps(12)
    np.testing.assert_allclose(FlowSchedule().spaced(12, kind)[1], theirs.sigmas.numpy(), rtol=1e-4)


def test_a_dynamic_shift_is_a_shift():
    theirs = _diffusers("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    mu, own = dynamic_shift(1024), np.linspace(1, 1 / 12, 12)
    assert math.isclose(dynamic_shift(256), 0.5) and math.isclose(dynamic_shift(4096), 1.15)
    theirs.set_timesteps(sigmas=own, mu=mu)
    ours = FlowSchedule(shift=math.exp(mu)).spaced(12, own)[1]
    np.testing.assert_allclose(ours, theirs.sigmas.numpy(), rtol=1e-6)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("train_steps", [1, 2, 50])
def test_every_schedule_adds_noise(betas, train_steps):
    schedule = NoiseSchedule(train_steps, betas)
    assert ((schedule.betas >= 0) & (schedule.betas <= 0.999)).all()
    assert (np.diff(schedule.alphas_cumprod) < 0).all() and (schedule.alphas_cumprod > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NoiseSchedule(0), "train_steps: expected at least 1, got 0"),
        (lambda: NoiseSchedule(betas="quadratic"), "betas: expected one of linear"),
        (lambda: NoiseSchedule(5, [0.1, 0.2]), "train_steps: expected 2, as there are so many betas, got 5"),
        (lambda: NoiseSchedule(betas=[0.1, 1.2]), r"betas: expected a list of numbers in \[0, 1\]"),
        (lambda: NoiseSchedule(beta_start=0.5, beta_end=0.1), "beta_start, beta_end"),
        (lambda: NoiseSchedule(1, zero_snr=True), "zero_snr: expected two timesteps"),
        (lambda: NoiseSchedule().timesteps(0), "steps: expected at least 1, got 0"),
        (lambda: NoiseSchedule(100).timesteps(101), "steps: expected at most 100, the timesteps of the schedule"),
        (lambda: NoiseSchedule().timesteps(10, "even"), "spacing: expected one of leading"),
        (lambda: NoiseSchedule().timesteps(1000, offset=1), "offset: timestep 1000 is beyond the last, 999"),
        (lambda: NoiseSchedule().spaced(10, sigmas="cubic"), "sigmas: expected one of karras"),
        (lambda: NoiseSchedule().spaced(0, sigmas="karras"), "steps: expected at least 1"),
        (lambda: NoiseSchedule().spaced(10, final="none"), "final: expected 'zero' or 'sigma_min'"),
        (lambda: FlowSchedule(shift=0), "shift: expected a finite number above 0"),
        (lambda: FlowSchedule().spaced(0), "steps: expected at least 1"),
        (lambda: FlowSchedule().spaced(3, [0.5, 0.1]), r"sigmas: expected 3 numbers in \(0, 1\]"),
        (lambda: FlowSchedule().spaced(3, first=1.5), "first, last: expected 0 < last <= first <= 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
