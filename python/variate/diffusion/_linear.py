"""Rows of a table as linear expressions in what a step reads: every solver is written with these, over all rows at
once, and kernels see the coefficients that remain."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .levels import Array

TERMS = ("sample", "output", "x0", "state", "history_0", "history_1", "history_2", "noise")


def term(name: str, rows: int) -> Array:
    """float64 [rows, 8]: the expression that is one of ``TERMS`` itself."""
    expression = np.zeros((rows, len(TERMS)))
    expression[:, TERMS.index(name)] = 1.0
    return expression


def times(factor: Array | float, expression: Array) -> Array:
    """A multiple of an expression, row by row; a factor of 0 gives 0 whatever the expression holds."""
    each = np.broadcast_to(np.asarray(factor, dtype=np.float64), expression.shape[:1])[:, None]
    return np.where(each == 0, 0.0, each * np.where(each == 0, 0.0, expression))


def columns(**parts: Array) -> dict[str, ArrayLike]:
    """The columns of a table, by name, from expressions [rows, 8]: ``prev=``, ``saved=``, ``state=``."""
    by_name: dict[str, ArrayLike] = {}
    for name, expression in parts.items():
        for index, read in enumerate(TERMS):
            if np.any(expression[:, index] != 0):
                by_name[f"{name}_{read}"] = expression[:, index]
    return by_name
