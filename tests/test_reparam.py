"""Reparameterised sampling."""

from __future__ import annotations

import torch
from checklist import Arg, Checklist, OpCase
from variate import functional, reference

MEAN = Arg("mean", lambda n: 1.5 * n)
LOG_VAR = Arg("log_var", lambda n: n.clamp(-3, 3))
PRIOR_MEAN = Arg("prior_mean", lambda n: 0.5 * n)
PRIOR_LOG_VAR = Arg("prior_log_var", lambda n: 0.7 * n.clamp(-3, 3))


def raw_rsample(tensors, key):
    return [(torch.ops.variate.normal_rsample.default, (*tensors, key, 3))]


def raw_kl(tensors, key):
    mean, log_var, *priors = (*tensors, None, None)[:4]
    rows = mean.shape[0] if mean.dim() > 1 else 1
    grad_kl = torch.ones(rows, device=mean.device)
    bits = torch.full((), 0.05, dtype=torch.float64)
    forward = torch.ops.variate.normal_rsample_kl.default
    backward = torch.ops.variate.normal_rsample_kl_backward.default
    return [
        (forward, (mean, log_var, *priors, bits, key, 3)),
        (backward, (mean, grad_kl, mean, log_var, *priors, bits, key, 3, True)),
        (backward, (None, grad_kl, mean, log_var, *priors, None, key, 3, False)),
        (backward, (mean, None, mean, log_var, None, None, None, key, 3, False)),
    ]


CASES = (
    OpCase(
        "normal_rsample",
        functional.normal_rsample,
        reference.reparam.normal_rsample,
        (MEAN, LOG_VAR),
        raw_rsample,
        stochastic=True,
    ),
    OpCase(
        "normal_rsample_kl",
        functional.normal_rsample_kl,
        reference.reparam.normal_rsample_kl,
        (MEAN, LOG_VAR),
        raw_kl,
        annealed=("free_bits",),
        stochastic=True,
    ),
    OpCase(
        "normal_rsample_kl, prior, free bits",
        functional.normal_rsample_kl,
        reference.reparam.normal_rsample_kl,
        (MEAN, LOG_VAR, PRIOR_MEAN, PRIOR_LOG_VAR),
        raw_kl,
        options={"free_bits": 0.3},
        annealed=("free_bits",),
        stochastic=True,
    ),
)


class TestChecklist(Checklist):
    cases = CASES
