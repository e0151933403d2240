"""Times, weights, preconditioning and pairs for training a diffusion model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from variate import functional, random
from variate.diffusion import training

BAR = torch.linspace(0.999, 0.001, 20, dtype=torch.float64)
VP = training.noising_table(BAR)
SIGMAS = torch.logspace(-2, 2, 20, dtype=torch.float64)
VE = torch.stack([torch.ones_like(SIGMAS), SIGMAS], 1)
FLOW = torch.stack([1 - torch.linspace(0.01, 0.99, 20), torch.linspace(0.01, 0.99, 20)], 1).double()


def test_min_snr_by_its_formulas() -> None:
    snr = BAR / (1 - BAR)
    least = snr.clamp(max=5)
    for prediction, expected in (("epsilon", least / snr), ("x0", least), ("v", least / (snr + 1))):
        found = training.loss_weight(VP, "min_snr", prediction)
        torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=0)
    soft = snr * 4 / (snr + 4)
    for prediction, expected in (("epsilon", soft / snr), ("x0", soft), ("v", soft / (snr + 1))):
        found = training.loss_weight(VP, "soft_min_snr", prediction, gamma=4)
        torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=0)


def test_natural_weights_are_1() -> None:
    ones = torch.ones(20)
    for levels, weighting, prediction in ((VP, "snr", "epsilon"), (VP, "v", "v"), (VE, "edm", "edm")):
        torch.testing.assert_close(training.loss_weight(levels, weighting, prediction), ones)
    torch.testing.assert_close(
        training.loss_weight(VE, "edm", "x0"), ((SIGMAS**2 + 0.25) / (SIGMAS * 0.5) ** 2).float(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("weighting", [w for w in training.WEIGHTS if w != "uniform"])
def test_a_weighted_loss_does_not_depend_on_what_is_predicted(weighting: str) -> None:
    """The error of one denoiser, told as an error of each prediction, costs the same."""
    generator = torch.Generator().manual_seed(0)
    for levels, predictions in ((VP, ("epsilon", "x0", "v")), (FLOW, ("epsilon", "x0", "flow")), (VE, ("x0", "edm"))):
        x0, eps, error = (torch.randn(20, 30, dtype=torch.float64, generator=generator) for _ in range(3))
        alpha, sigma = levels.T[..., None]
        losses = []
        for prediction in predictions:
            options = {"prediction": prediction}
            x_t, target = functional.noise_and_target(x0, None, levels, noise=eps, **options)
            # The noise that a wrong x0 implies.
            guess = (x_t - alpha * (x0 + error)) / sigma
            _, told = functional.noise_and_target(x0 + error, None, levels, noise=guess, **options)
            weight = training.loss_weight(levels, weighting, prediction)
            losses.append(functional.denoising_loss(told, target, weight))
        for loss in losses[1:]:
            torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-12)


def test_no_weight_is_nan_at_the_ends() -> None:
    ends = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    for weighting, prediction in itertools.product(training.WEIGHTS, ("epsilon", "x0", "v", "flow", "edm")):
        weight = training.loss_weight(ends, weighting, prediction)
        assert weight.dtype == torch.float32 and weight.isfinite().all() and (weight >= 0).all()
    assert training.loss_weight(ends, "min_snr", "epsilon").tolist() == pytest.approx([1.0, 0.0], abs=1e-15)
    assert training.loss_weight(ends, "min_snr", "x0").tolist() == pytest.approx([0.0, 5.0], abs=1e-15)
    for weighting in training.FLOW_WEIGHTS:
        assert training.flow_weight(torch.tensor([0.0, 0.5, 1.0]), weighting).isfinite().all()


def test_preconditioning_and_its_target() -> None:
    x0 = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_t, target = functional.noise_and_target(x0, None, VE, prediction="edm", key=random.key(1))
    c = training.edm_preconditioning(SIGMAS)
    torch.testing.assert_close(c.c_skip[:, None] * x_t + c.c_out[:, None] * target, x0, rtol=1e-9, atol=1e-9)
    # Data and noise of these variances make inputs and targets of variance 1.
    torch.testing.assert_close(c.c_in**2 * (SIGMAS**2 + 0.25), torch.ones_like(SIGMAS))
    torch.testing.assert_close(c.c_noise, SIGMAS.log() / 4)


QUANTILES = {
    "uniform": lambda u: u,
    "logit_normal": lambda u: torch.sigmoid(0.3 + 0.8 * torch.special.ndtri(u)),
    "mode": lambda u: u - 1.29 * (torch.cos(math.pi / 2 * (1 - u)).square() - u),  # decreasing in the uniform
    "cosmap": lambda u: 1 - 1 / (torch.tan(math.pi / 2 * u) + 1),
}


@pytest.mark.parametrize("density", training.DENSITIES)
def test_densities_of_times(density: str) -> None:
    """Kolmogorov and Smirnov's bound by quantiles, at a false-alarm rate of 1e-6."""
    n = 20_000
    times = training.sample_times(n, density, mean=0.3, std=0.8, key=random.key(5)).double().sort().values
    assert (times >= 0).all() and (times <= 1).all()
    slack = math.sqrt(math.log(2 / 1e-6) / (2 * n))
    rank = torch.arange(n, dtype=torch.float64) / n
    low, high = (rank - slack).clamp(1e-9, 1), (rank + 1 / n + slack).clamp(0, 1 - 1e-9)
    quantile = QUANTILES[density]
    assert (times >= quantile(low) - 1e-6).all() and (times <= quantile(high) + 1e-6).all()


def test_levels_of_edm() -> None:
    sigmas = training.lognormal_sigmas(10_000, key=random.key(5)).log()
    assert abs(sigmas.mean() + 1.2) < 0.06 and abs(sigmas.std() - 1.2) < 0.05  # five standard errors


def test_optimal_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(6, 2, generator=generator) for _ in range(2))
    paired = training.couple(x0, noise)
    cost = min((x0 - noise[list(order)]).square().sum().item() for order in itertools.permutations(range(6)))
    assert (x0 - paired).square().sum().item() == pytest.approx(cost)
    assert sorted(paired.tolist()) == sorted(noise.tolist())
    _, velocity = functional.noise_and_target(x0, None, FLOW[:6], prediction="flow", noise=paired)
    torch.testing.assert_close(velocity, paired - x0)
    with pytest.raises(ValueError, match="noise: expected the shape of x0"):
        training.couple(x0, noise[:3])


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: training.loss_weight(VP, "p2"), "weighting: expected one of uniform"),
        (lambda: training.loss_weight(VP, "snr", "score"), "prediction: expected one of epsilon"),
        (lambda: training.sample_times(3, "beta"), "density: expected one of uniform"),
        (lambda: training.flow_weight(SIGMAS, "snr"), "weighting: expected one of uniform"),
    ],
)
def test_errors(call, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        call()
