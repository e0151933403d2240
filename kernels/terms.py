"""The terms of the evidence lower bound, one element at a time: the twin of variate/math/elbo.hpp.

Source: Kingma and Welling, "Auto-encoding variational Bayes", 2014, appendices B and C.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elementary import divide, exp, exponential, hex_float, log, sigmoid, softplus_tail
from .tiles import load_tile

LOG_VAR = tl.constexpr(0)  # variate_parametrization
SCALE = tl.constexpr(2)


@triton.jit
def log_nonnegative(x):
    """log(x) of x >= 0 that need not be normal: -infinity of 0, infinity of infinity, NaN of what is negative."""
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        small = x < hex_float("0x1p-126")
        normal = log(tl.where(small, x * hex_float("0x1p24"), x)) - tl.where(small, hex_float("0x1.0a2b24p+4"), 0.0)
        positive = tl.where(x <= hex_float("0x1.fffffep+127"), normal, x)
        return tl.where(x > 0.0, positive, tl.where(x == 0.0, float("-inf"), float("nan")))


@triton.jit
def load_spread(x, first_row, first_col, mask, DTYPE: tl.constexpr, PARAMETRIZATION: tl.constexpr):
    """A tile of a spread: the standard normal's without a view. Outside the mask its math is finite."""
    if x is None:
        return tl.full(mask.shape, 1.0 if PARAMETRIZATION == SCALE else 0.0, DTYPE)
    else:
        return load_tile(x, first_row, first_col, mask, DTYPE)


@triton.jit
def log_variance(spread, PARAMETRIZATION: tl.constexpr):
    if PARAMETRIZATION == SCALE:
        return 2.0 * log_nonnegative(spread)
    else:
        return spread if PARAMETRIZATION == LOG_VAR else 2.0 * spread


@triton.jit
def inverse_sigma(spread, PARAMETRIZATION: tl.constexpr):
    if PARAMETRIZATION == SCALE:
        return divide(tl.full(spread.shape, 1.0, spread.dtype), spread)
    else:
        return exp(-0.5 * spread if PARAMETRIZATION == LOG_VAR else -spread)


@triton.jit
def log_variance_slope(spread, PARAMETRIZATION: tl.constexpr):
    """d log sigma^2 / d spread"""
    if PARAMETRIZATION == SCALE:
        return divide(tl.full(spread.shape, 2.0, spread.dtype), spread)
    else:
        return 1.0 if PARAMETRIZATION == LOG_VAR else 2.0


@triton.jit
def variance_ratio(spread, prior_spread, PARAMETRIZATION: tl.constexpr):
    """Of r = sigma^2 / prior sigma^2: r - 1 without cancellation near r = 1, and log r."""
    if PARAMETRIZATION == SCALE:
        root = divide(spread, prior_spread)
        return (root - 1.0) * (root + 1.0), 2.0 * log_nonnegative(root)
    else:
        log_root = 0.5 * (spread - prior_spread) if PARAMETRIZATION == LOG_VAR else spread - prior_spread
        root, root_minus_1 = exponential(log_root)
        return root_minus_1 * (root + 1.0), 2.0 * log_root


@triton.jit
def scaled(x, factor):
    """x factor, and 0 where x is, whatever the factor."""
    return tl.where(x == 0.0, 0.0, x * factor)


@triton.jit
def standard_normal_kl_term(mean, log_var, variance_minus_1):
    """KL(N(mean, e^log_var) || N(0, 1)) = (mean^2 + (sigma^2 - 1) - log_var) / 2."""
    return 0.5 * tl.fma(mean, mean, variance_minus_1 - log_var)


@triton.jit
def normal_kl_term(mean, spread, prior_mean, prior_spread, PARAMETRIZATION: tl.constexpr = LOG_VAR):
    """KL(N(mean, sigma^2) || N(prior_mean, prior sigma^2)) = (distance + ratio_minus_1 - log ratio) / 2.

    d kl / d mean = scaled difference = -d kl / d prior_mean, d kl / d log sigma^2 = ratio_minus_1 / 2,
    d kl / d log prior sigma^2 = -(ratio_minus_1 + distance) / 2.
    """
    root_precision = inverse_sigma(prior_spread, PARAMETRIZATION)
    distance = scaled(mean - prior_mean, root_precision)
    ratio_minus_1, log_ratio = variance_ratio(spread, prior_spread, PARAMETRIZATION)
    kl = 0.5 * tl.fma(distance, distance, ratio_minus_1 - log_ratio)
    return kl, scaled(distance, root_precision), ratio_minus_1, distance * distance


@triton.jit
def least_kl(free_bits, DTYPE: tl.constexpr):
    """Free bits, a number or a pointer to one, as the bound that holds kl up, if they are positive.

    kl < bound: held, and no gradient passes. A NaN is never held.
    """
    free_bits = tl.core.to_tensor(free_bits)  # the interpreter leaves numbers as they are
    if free_bits.dtype.is_ptr():
        free_bits = tl.load(free_bits)
    free_bits = free_bits.to(DTYPE)
    return tl.where(free_bits > 0.0, free_bits, float("-inf"))


@triton.jit
def normal_nll_term(mean, spread, target, PARAMETRIZATION: tl.constexpr):
    """-log N(target | mean, sigma^2) = (log 2 pi + log sigma^2 + distance) / 2; d nll / d target, the scaled
    difference; and d nll / d log sigma^2 = (1 - distance) / 2."""
    root_precision = inverse_sigma(spread, PARAMETRIZATION)
    distance = scaled(target - mean, root_precision)
    constant = log_variance(spread, PARAMETRIZATION) + hex_float("0x1.d67f1c864beb5p+0")
    nll = 0.5 * tl.fma(distance, distance, constant)
    return nll, scaled(distance, root_precision), 0.5 * tl.fma(-distance, distance, 1.0)


@triton.jit
def bernoulli_kl_term(logit, prior_logit):
    """KL(Bernoulli(sigmoid(logit)) || Bernoulli(sigmoid(prior_logit))), and its gradients by either logit.

    With a = |logit| and b = prior_logit turned by the sign of logit it is
    tail(b) - tail(a) + (1 - q) max(-b, 0) + q (max(b, 0) - a), q = 1 / (1 + e^a): see variate/math/elbo.hpp.
    """
    turn = logit < 0.0
    a = tl.abs(logit)
    b = tl.where(turn, -prior_logit, prior_logit)
    odds = exp(-a)
    p = divide(tl.full(a.shape, 1.0, a.dtype), 1.0 + odds)
    q = odds * p
    common = p * tl.where(b < 0.0, -b, 0.0)
    rare = scaled(q, tl.where(b > 0.0, b, 0.0) - a)
    grad_b = q - sigmoid(-b)
    grad_a = scaled(p * q, a - b)
    kl = (softplus_tail(b) - softplus_tail(a)) + (common + rare)
    return kl, tl.where(turn, -grad_a, grad_a), tl.where(turn, -grad_b, grad_b)


@triton.jit
def bernoulli_nll_term(logit, target):
    """softplus(logit) - logit target = |logit| y + log(1 + exp(-|logit|)), y = 1 - target or target by sign.

    Written so, an infinite logit that is right costs 0 and not NaN.
    """
    miss = tl.where(logit > 0.0, 1.0 - target, target)
    return tl.where(miss == 0.0, 0.0, tl.abs(logit) * miss) + softplus_tail(logit)
