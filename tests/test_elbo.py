"""The terms of the evidence lower bound."""

from __future__ import annotations

import pytest
import torch
import variate
from checklist import FLOATS, Arg, Checklist, OpCase, assert_same_bits, strided
from hypothesis import given
from hypothesis import strategies as st
from variate import reference
from variate.functional import bernoulli_nll

TARGETS = (*FLOATS, torch.uint8, torch.bool)


def fractions(normals: torch.Tensor) -> torch.Tensor:
    """Targets 0, 1/4 ... 1: exact in every dtype; integers get the whole ones of them."""
    return (4 * normals.sigmoid()).round() / 4


def raw(tensors, key):
    logits, target = tensors
    grad = torch.ones(logits.shape[0] if logits.dim() > 1 else 1)
    ops = torch.ops.variate
    return [
        (ops.bernoulli_nll.default, (logits, target)),
        (ops.bernoulli_nll_backward.default, (grad.to(logits.device), logits, target, True)),
        (ops.bernoulli_nll_backward.default, (grad.to(logits.device), logits, target, False)),
    ]


CASES = (
    OpCase(
        "bernoulli_nll",
        bernoulli_nll,
        reference.elbo.bernoulli_nll,
        (Arg("logits", lambda n: 3 * n), Arg("target", fractions, TARGETS)),
        raw,
    ),
)


class TestChecklist(Checklist):
    cases = CASES
