"""The tables of DDPM, DDIM, LCM, Euler and Euler ancestral: against the published update rules, on problems with known
solutions, and on a mixture whose score is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from variate import functional
from variate.diffusion import Levels, ddim, ddpm, euler, euler_ancestral, lcm, tcd, to_epsilon, to_x0
from variate.reference import random
from variate.reference.denoise import denoise_step

CLOSE = dict(rtol=1e-11, atol=1e-11)  # float64 throughout; a dozen roundings, of levels as small as 1e-2
VP = Levels.from_alphas_cumprod(np.append(np.cumprod(1 - np.linspace(1e-3, 0.2, 12))[::-1], 1.0))
VE = Levels.from_sigmas([14.6, 9.0, 6.5, 3.1, 1.4, 0.7, 0.3, 0.03, 0.0])
PREDICTIONS = ("epsilon", "x0", "v")
SHAPE = (3, 5)


def model_output(prediction: str, x0: Tensor, eps: Tensor, alpha: float, sigma: float) -> Tensor:
    r = math.hypot(alpha, sigma)
    return {"epsilon": eps, "x0": x0, "v": (alpha * eps - sigma * x0) / r, "flow": eps - x0}[prediction]


def step_at(levels: Levels, table, row: int, prediction: str, noise: Tensor, seed: int = 0):
    """x, x0 and eps of a sample at a row's level, and what a step with that model output makes of it."""
    x0, eps = (random.normal(SHAPE, key=torch.tensor([seed, i])).double() for i in (0, 1 << 20))
    alpha, sigma = levels.alpha[row], levels.sigma[row]
    x = alpha * x0 + sigma * eps
    output = model_output(prediction, x0, eps, alpha, sigma)
    done = denoise_step(x, output, table, row, noise=noise, outputs=("denoised", "next"))
    return x, x0, eps, done


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "flow"])
@pytest.mark.parametrize("levels", [VP, VE, Levels.flow([1.0, 0.6, 0.1])])
def test_a_prediction_says_what_x0_and_epsilon_are(prediction: str, levels: Levels) -> None:
    alpha, sigma = (torch.from_numpy(values[:-1].copy()) for values in (levels.alpha, levels.sigma))
    x0, eps = torch.randn(2, len(alpha), dtype=torch.float64, generator=torch.manual_seed(0))
    x = alpha * x0 + sigma * eps
    m = torch.stack([model_output(prediction, *values) for values in zip(x0, eps, alpha, sigma, strict=True)])
    if prediction == "epsilon" and alpha[0] == 0:
        x0, x, m, alpha, sigma, eps = (values[1:] for values in (x0, x, m, alpha, sigma, eps))
    for convert, expected in ((to_x0, x0), (to_epsilon, eps)):
        of_x, of_m = (torch.from_numpy(values) for values in convert(prediction, alpha.numpy(), sigma.numpy()))
        torch.testing.assert_close(of_x * x + of_m * m, expected, **CLOSE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"])
def test_ddpm_draws_from_the_posterior(prediction: str, variance_type: str) -> None:
    """Ho et al. 2020, equation 7, as the product of the two densities that it is, q(x_t | x_{t-1}) and
    q(x_{t-1} | x_0), both Gaussian in x_{t-1}."""
    table = ddpm(VP, np.arange(12)[::-1], prediction, variance_type=variance_type)
    bar = VP.alpha**2
    for row in range(11):
        forward = bar[row] / bar[row + 1]  # alpha_t of the paper
        beta = 1 - forward
        precision = forward / beta + 1 / (1 - bar[row + 1])
        noise = torch.randn(SHAPE, dtype=torch.float64, generator=torch.manual_seed(row))
        x, x0, _, done = step_at(VP, table, row, prediction, noise)
        mean = (math.sqrt(forward) / beta * x + math.sqrt(bar[row + 1]) / (1 - bar[row + 1]) * x0) / precision
        variance = beta if "large" in variance_type else 1 / precision
        torch.testing.assert_close(done.prev, mean + math.sqrt(variance) * noise, **CLOSE)
        torch.testing.assert_close(done.denoised, x0, **CLOSE)


def test_ddpm_ends_in_x0_without_noise() -> None:
    for variance_type in ("fixed_small", "fixed_large", "learned", "learned_range"):
        table = ddpm(VP, np.arange(12)[::-1], variance_type=variance_type)
        assert table.column("prev_noise")[-1] == 0
        noise = torch.ones(SHAPE, dtype=torch.float64)
        _, x0, _, done = step_at(VP, table, 11, "epsilon", noise)
        torch.testing.assert_close(done.prev, x0, **CLOSE)
    assert ddpm(VP, np.arange(12)[::-1], variance_type="fixed_large", final_noise=True).column("prev_noise")[-1] > 0


def test_ddpm_learned_variances_lie_between_the_fixed_ones() -> None:
    """Nichol and Dhariwal 2021, equation 15: at v = -1 the posterior's variance, at 1 beta, between them geometrically;
    "learned" is the variance itself."""
    ends = {
        v: ddpm(VP, np.arange(12), variance_type=kind).column("prev_noise")
        for v, kind in ((-1.0, "fixed_small"), (1.0, "fixed_large"))
    }
    ends[0.0] = (ends[-1.0] * ends[1.0]).sqrt()
    zero, noise = torch.zeros(SHAPE, dtype=torch.float64), torch.ones(SHAPE, dtype=torch.float64)
    ranged, learned = (ddpm(VP, np.arange(12), variance_type=kind) for kind in ("learned_range", "learned"))
    for row in range(11):
        for v, scale in ends.items():
            variance = torch.full(SHAPE, v, dtype=torch.float64)
            prev = denoise_step(zero, zero, ranged, row, variance=variance, noise=noise).prev
            torch.testing.assert_close(prev, scale[row].expand(SHAPE), **CLOSE)
        prev = denoise_step(zero, zero, learned, row, variance=torch.full_like(zero, 0.09), noise=noise).prev
        torch.testing.assert_close(prev, torch.full_like(zero, 0.3), **CLOSE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("use_clipped", [False, True])
def test_ddim_is_equation_12(prediction: str, eta: float, clip: float | None, use_clipped: bool) -> None:
    table = ddim(VP, np.arange(12), prediction, eta=eta, clip=clip, use_clipped=use_clipped)
    bar = VP.alpha**2
    for row in range(12):
        now, then = bar[row], bar[row + 1]
        s = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)  # equation 16
        noise = torch.randn(SHAPE, dtype=torch.float64, generator=torch.manual_seed(row))
        x, x0, eps, done = step_at(VP, table, row, prediction, noise)
        x0 = x0 if clip is None else x0.clamp(-clip, clip)
        direction = (x - math.sqrt(now) * x0) / math.sqrt(1 - now) if use_clipped else eps
        expected = math.sqrt(then) * x0 + math.sqrt(1 - then - s**2) * direction + s * noise
        torch.testing.assert_close(done.prev, expected, **CLOSE)


def test_ddim_with_eta_1_is_ddpm() -> None:
    one, other = ddim(VP, np.arange(12), eta=1.0), ddpm(VP, np.arange(12))
    for row in range(12):
        noise = torch.randn(SHAPE, dtype=torch.float64, generator=torch.manual_seed(row))
        results = [step_at(VP, table, row, "epsilon", noise)[-1].prev for table in (one, other)]
        torch.testing.assert_close(*results, **CLOSE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_lcm_denoises_and_adds_noise(prediction: str) -> None:
    timesteps = np.array([11.0, 8.0, 3.0])
    levels = Levels(VP.alpha[[0, 3, 8, 12]], VP.sigma[[0, 3, 8, 12]])
    table = lcm(levels, timesteps, prediction, timestep_scaling=0.1, sigma_data=0.5)
    for row, t in enumerate(timesteps):
        noise = torch.randn(SHAPE, dtype=torch.float64, generator=torch.manual_seed(row))
        x, x0, _, done = step_at(levels, table, row, prediction, noise)
        skip, out = 0.25 / ((0.1 * t) ** 2 + 0.25), 0.1 * t / math.sqrt((0.1 * t) ** 2 + 0.25)
        denoised = skip * x + out * x0
        torch.testing.assert_close(done.denoised, denoised, **CLOSE)
        expected = levels.alpha[row + 1] * denoised + levels.sigma[row + 1] * noise if row < 2 else denoised
        torch.testing.assert_close(done.prev, expected, **CLOSE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_tcd_goes_down_and_up_again(prediction: str) -> None:
    """Its noise is that of the process from the level between to the next: alpha x_s + sqrt(1 - alpha^2) n."""
    bar = VP.alpha**2
    between = np.append(0.4 + 0.6 * bar[1:-1], bar[-2])
    table = tcd(VP, between, np.arange(12), prediction)
    for row in range(12):
        noise = torch.randn(SHAPE, dtype=torch.float64, generator=torch.manual_seed(row))
        _, x0, eps, done = step_at(VP, table, row, prediction, noise)
        x_s = math.sqrt(between[row]) * x0 + math.sqrt(1 - between[row]) * eps
        forward = bar[row + 1] / between[row]
        expected = math.sqrt(forward) * x_s + math.sqrt(1 - forward) * noise if row < 11 else x_s
        torch.testing.assert_close(done.prev, expected, **CLOSE)
        torch.testing.assert_close(done.denoised, x0, **CLOSE)
    straight, other = tcd(VP, bar[1:], np.arange(12), prediction), ddim(VP, np.arange(12), prediction)
    torch.testing.assert_close(straight.coefficients, other.coefficients, **CLOSE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("churn", [0.0, 2.0, 40.0])
def test_euler_follows_the_derivative(prediction: str, churn: float) -> None:
    """Karras et al. 2022, algorithm 2: sigma^ = sigma + gamma sigma, d = (x^ - D) / sigma^,
    x' = x^ + (sigma' - sigma^) d. D is read from the model's output at x^."""
    table = euler(VE, np.arange(8), prediction, churn=churn, churn_min=0.5, churn_max=10.0, noise_scale=1.01)
    for row in range(8):
        sigma, after = VE.sigma[row], VE.sigma[row + 1]
        gamma = min(churn / 8, math.sqrt(2) - 1) if 0.5 <= sigma <= 10 else 0.0
        hat = sigma * (1 + gamma)
        noise = torch.randn(SHAPE, dtype=torch.float64, generator=torch.manual_seed(row))
        x, x0, eps, done = step_at(VE, table, row, prediction, noise)
        moved = x + 1.01 * noise * math.sqrt(hat**2 - sigma**2)
        output = model_output(prediction, x0, eps, 1.0, sigma)
        denoised = {
            "epsilon": moved - hat * output,
            "x0": output,
            "v": moved / (sigma**2 + 1) - sigma / math.sqrt(sigma**2 + 1) * output,
        }[prediction]
        torch.testing.assert_close(done.prev, moved + (after - hat) * (moved - denoised) / hat, **CLOSE)
        torch.testing.assert_close(done.denoised, denoised, **CLOSE)
        torch.testing.assert_close(done.next, done.prev / math.sqrt(after**2 + 1), **CLOSE)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_euler_ancestral_steps_down_and_adds_noise(prediction: str, eta: float) -> None:
    table = euler_ancestral(VE, np.arange(8), prediction, eta=eta, noise_scale=0.9)
    for row in range(8):
        sigma, after = VE.sigma[row], VE.sigma[row + 1]
        up = min(after, eta * math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
        down = math.sqrt(after**2 - up**2)
        noise = torch.randn(SHAPE, dtype=torch.float64, generator=torch.manual_seed(row))
        x, x0, _, done = step_at(VE, table, row, prediction, noise)
        expected = x + (down - sigma) * (x - x0) / sigma + 0.9 * up * noise
        torch.testing.assert_close(done.prev, expected, **CLOSE)


def test_euler_ancestral_has_the_posterior_of_its_process() -> None:
    """q(x' | x, x0) of x = x0 + sigma eps, in which variance is added: of precision 1 / sigma'^2 + 1 / (sigma^2 -
    sigma'^2)."""
    table = euler_ancestral(VE, np.arange(8))
    for row in range(7):
        sigma, after = VE.sigma[row], VE.sigma[row + 1]
        precision = 1 / after**2 + 1 / (sigma**2 - after**2)
        x, x0, _, done = step_at(VE, table, row, "epsilon", torch.zeros(SHAPE, dtype=torch.float64))
        mean = (x0 / after**2 + x / (sigma**2 - after**2)) / precision
        torch.testing.assert_close(done.prev, mean, **CLOSE)
        assert table.column("prev_noise")[row].item() == pytest.approx(math.sqrt(1 / precision), rel=1e-12)


def gaussian_error(make: Callable[[int], tuple[Levels, object]], steps: int, data: float) -> float:
    """The relative error at the end of a solver whose model is exact for data of N(0, data^2). The probability flow
    keeps the quantile: a sample at one standard deviation of the first level's marginal ends at one of the last's."""
    levels, table = make(steps)
    spread = np.sqrt((levels.alpha * data) ** 2 + levels.sigma**2)
    x = torch.full((1, 1), spread[0], dtype=torch.float64)
    for row in range(steps):
        x0 = levels.alpha[row] * data**2 / spread[row] ** 2 * x
        x = denoise_step(x, x0, table, row).prev
    return abs(x.item() / spread[-1] - 1)


def exploding(steps: int) -> Levels:
    return Levels.from_sigmas(np.geomspace(20.0, 0.05, steps + 1))


def preserving(steps: int) -> Levels:
    return Levels.vp_from_sigmas(np.geomspace(20.0, 0.05, steps + 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: (exploding(n), euler(exploding(n), np.arange(n), "x0")),
        lambda n: (exploding(n), euler_ancestral(exploding(n), np.arange(n), "x0", eta=0.0)),
        lambda n: (preserving(n), ddim(preserving(n), np.arange(n), "x0")),
    ],
    ids=["euler", "euler_ancestral, eta 0", "ddim"],
)
def test_deterministic_solvers_are_of_order_1(make: Callable[[int], tuple[Levels, object]]) -> None:
    errors = [gaussian_error(make, steps, 1.5) for steps in (50, 100, 200, 400)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert errors[-1] < 0.02
    assert all(abs(order - 1) < 0.1 for order in orders), (errors, orders)


# A mixture of two Gaussians, of which the expectation of x0 and the quantiles are known at every level.
WEIGHT, MEAN, SPREAD = (0.3, 0.7), (-1.5, 1.0), (0.2, 0.5)


def parts(alpha: float, sigma: float) -> list[tuple[float, float, float]]:
    return [(w, alpha * m, math.hypot(alpha * s, sigma)) for w, m, s in zip(WEIGHT, MEAN, SPREAD, strict=True)]


def cdf(x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
    return sum(w * torch.special.ndtr((x - m) / s) for w, m, s in parts(alpha, sigma))


def expected_x0(x: Tensor, alpha: float, sigma: float) -> Tensor:
    log_weight = torch.stack([math.log(w / s) - ((x - m) / s) ** 2 / 2 for w, m, s in parts(alpha, sigma)])
    posterior = [
        mean + alpha * spread**2 / s**2 * (x - m)
        for (_, m, s), mean, spread in zip(parts(alpha, sigma), MEAN, SPREAD, strict=True)
    ]
    return (log_weight.softmax(0) * torch.stack(posterior)).sum(0)


def distance(x: Tensor, alpha: float, sigma: float) -> float:
    """Kolmogorov's."""
    at = cdf(x.flatten().sort().values, alpha, sigma)
    n = len(at)
    below = torch.arange(n, dtype=at.dtype) / n
    return float(torch.maximum((at - below).abs(), (at - below - 1 / n).abs()).max())


SAMPLES, STEPS = 20_000, 150
# Of 20,000 samples of the very distribution it exceeds 0.0191 once in 10^6 (2 exp(-2 n d^2)); the rest is for the
# steps, which are of finite size.
FAR = 0.0191 + 0.006


def sampled(levels: Levels, table, model: Callable[[Tensor, float, float], Tensor], seed: int) -> list[float]:
    """Kolmogorov's distance at the middle and at the end."""
    x = table.first_scale * random.normal((SAMPLES, 1), key=torch.tensor([seed, 0])).double()
    x = x * math.hypot(levels.alpha[0], levels.sigma[0]) / table.first_scale
    found = []
    for row in range(len(table)):
        output = model(x, levels.alpha[row], levels.sigma[row])
        x = functional.denoise_step(x, output, table, row, key=torch.tensor([seed, 7]), first_step=row).prev
        if row + 1 in (len(table) * 2 // 3, len(table)):
            found.append(distance(x, levels.alpha[row + 1], levels.sigma[row + 1]))
    return found


def ends_at_zero(sigma: np.ndarray) -> np.ndarray:
    return np.append(sigma, 0.0)


SIGMA = ends_at_zero(np.linspace(60 ** (1 / 7), 0.01 ** (1 / 7), STEPS) ** 7)


@pytest.mark.parametrize(
    ("levels", "make"),
    [
        (Levels.vp_from_sigmas(SIGMA), lambda levels, t: ddpm(levels, t, "x0")),
        (Levels.vp_from_sigmas(SIGMA), lambda levels, t: ddim(levels, t, "x0", eta=1.0)),
        (Levels.vp_from_sigmas(SIGMA), lambda levels, t: ddim(levels, t, "x0", eta=0.5)),
        (Levels.from_sigmas(SIGMA), lambda levels, t: euler_ancestral(levels, t, "x0")),
        (Levels.from_sigmas(SIGMA), lambda levels, t: euler_ancestral(levels, t, "x0", eta=0.5)),
    ],
    ids=["ddpm", "ddim, eta 1", "ddim, eta 0.5", "euler_ancestral", "euler_ancestral, eta 0.5"],
)
def test_stochastic_solvers_sample_the_mixture(levels: Levels, make) -> None:
    for found in sampled(levels, make(levels, np.arange(STEPS)), expected_x0, 3):
        assert found < FAR


def test_lcm_samples_the_mixture() -> None:
    """With the exact consistency function, which keeps the quantile, no step has an error."""
    grid = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    of_data = cdf(grid)

    def consistent(x: Tensor, alpha: float, sigma: float) -> Tensor:
        q = cdf(x, alpha, sigma).flatten().clamp(1e-9, 1 - 1e-9)
        return grid[torch.searchsorted(of_data, q).clamp(max=len(grid) - 1)].reshape(x.shape)

    levels = Levels.vp_from_sigmas([60.0, 5.0, 1.5, 0.4, 0.0])
    table = lcm(levels, [999.0, 700.0, 400.0, 200.0], "x0")
    assert sampled(levels, table, consistent, 5)[-1] < 0.0191


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="prediction: expected"):
        ddim(VP, np.arange(12), "noise")
    with pytest.raises(ValueError, match="variance_type: expected one of fixed_small"):
        ddpm(VP, np.arange(12), variance_type="large")
    with pytest.raises(ValueError, match="between: expected levels that are no noisier"):
        tcd(VP, VP.alpha[:-1] ** 2, np.arange(12))
    with pytest.raises(ValueError, match=r"between: expected shape \(12,\)"):
        tcd(VP, VP.alpha**2, np.arange(12))
    with pytest.raises(ValueError, match="eta: expected a number from 0 to 1"):
        ddim(VP, np.arange(12), eta=1.5)
    with pytest.raises(ValueError, match="timesteps: expected 12"):
        ddpm(VP, np.arange(11))
    with pytest.raises(ValueError, match=r"levels: expected alpha = 1"):
        euler(VP, np.arange(12))
    with pytest.raises(ValueError, match="levels: expected one step or more"):
        Levels.from_sigmas([1.0])
    with pytest.raises(ValueError, match="clip: expected None or a positive number"):
        ddpm(VP, np.arange(12), clip=0.0)
    with pytest.raises(ValueError, match="quantile: expected None or a number from 0 to 1"):
        ddpm(VP, np.arange(12), quantile=1.5)


def test_epsilon_at_zero_terminal_snr_is_finite() -> None:
    levels = Levels.from_alphas_cumprod([0.0, 0.5, 1.0])
    for table in (ddpm(levels, [1, 0], clip=1.0), ddim(levels, [1, 0], clip=1.0)):
        assert table.coefficients.isfinite().all()
        x, m = torch.randn(2, 4, 4, generator=torch.manual_seed(0)).unbind()
        done = denoise_step(x, m, table, 0, noise=torch.zeros(4, 4), outputs=("denoised",))
        assert done.prev.isfinite().all() and (done.denoised.abs() == 1).all()
