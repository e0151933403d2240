"""What a denoising step computes, as a row of coefficients: the table that tables' builders fill and kernels read."""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

# The columns of a table, in the order of variate_denoise_column in variate/denoise.h.
COLUMNS = (
    "x0_sample",
    "x0_output",
    "x0_noise",
    "prev_sample",
    "prev_output",
    "prev_x0",
    "prev_state",
    "prev_history_0",
    "prev_history_1",
    "prev_history_2",
    "prev_noise",
    "saved_sample",
    "saved_output",
    "saved_x0",
    "state_sample",
    "state_output",
    "state_x0",
    "state_state",
    "state_history_0",
    "state_history_1",
    "state_history_2",
    "denoised_sample",
    "denoised_x0",
    "next_scale",
    "min_log_variance",
    "max_log_variance",
)
COLUMN = {name: index for index, name in enumerate(COLUMNS)}
NOISE = 1 << COLUMN["x0_noise"] | 1 << COLUMN["prev_noise"]  # the columns that need noise, as a mask
MOST_HISTORY = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A denoising process of N model evaluations, each a row of coefficients. With x the sample, m the model output
    (guided), n the noise, s the state and h_0, h_1, h_2 what the last calls saved, newest first, row k computes

        x0       = x0_sample x + x0_output m + x0_noise n, then clipped
        prev     = prev_sample x + prev_output m + prev_x0 x0 + prev_state s + sum_i prev_history_i h_i + prev_noise n
        saved    = saved_sample x + saved_output m + saved_x0 x0
        state    = state_sample x + state_output m + state_x0 x0 + state_state s + sum_i state_history_i h_i
        denoised = denoised_sample x + denoised_x0 x0
        next     = next_scale prev

    ``prev`` is the sample of row k + 1 and ``next`` the model's input there. A tensor whose coefficient is 0 is not
    read, so history and state may hold anything before they are written.

    Attributes:
        coefficients: float64 [N, 26], the columns in the order of ``COLUMNS``.
        timesteps: float64 [N], what the model is told at each row.
        first_scale: the standard deviation of the noise that the first sample is.
        first_input_scale: what the first sample is multiplied by to be the model's first input.
        history: how many saved tensors a row may read, at most 3.
        state: whether rows read a state.
        keeps: [N] whether row k's sample becomes the state of the rows after it; None where what the step returns does.
        clip: x0 is clamped to [-clip, clip]; with ``quantile``, the greatest threshold.
        quantile: dynamic thresholding: x0 is clamped to [-q, q] and divided by q, where q is this quantile of |x0| over
            a sample, clamped to [1, clip].
        variance: "learned" or "learned_range" where the noise is scaled by what the model says of the variance v:
            sqrt(v), or exp((min_log_variance + (v + 1) / 2 (max_log_variance - min_log_variance)) / 2).

    Raises:
        ValueError: coefficients of another dtype or width, an attribute out of range.
    """

    coefficients: Tensor
    timesteps: Tensor
    first_scale: float = 1.0
    first_input_scale: float = 1.0
    history: int = 0
    state: bool = False
    keeps: Sequence[bool] | None = None
    clip: float | None = None
    quantile: float | None = None
    variance: str | None = None
    masks: tuple[int, ...] = dataclasses.field(init=False, repr=False)  # bit c of row k: its column c is not 0
    mask: int = dataclasses.field(init=False, repr=False)  # of any row

    def __post_init__(self) -> None:
        c = self.coefficients
        if c.dtype != torch.float64 or c.dim() != 2 or c.shape[1] != len(COLUMNS):
            raise ValueError(
                f"coefficients: expected float64 [N, {len(COLUMNS)}], got {str(c.dtype).removeprefix('torch.')} "
                f"{list(c.shape)}"
            )
        if self.variance not in (None, "learned", "learned_range"):
            raise ValueError(f"variance: expected None, 'learned' or 'learned_range', got {self.variance!r}")
        if self.quantile is not None and not 0 < self.quantile <= 1:
            raise ValueError(f"quantile: expected a number in (0, 1], got {self.quantile}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip: expected a number above 0, got {self.clip}")
        if not 0 <= self.history <= MOST_HISTORY:
            raise ValueError(f"history: expected 0 to {MOST_HISTORY}, got {self.history}")
        object.__setattr__(self, "coefficients", c.contiguous())
        bits = (c != 0).cpu().long() << torch.arange(len(COLUMNS))
        object.__setattr__(self, "masks", tuple(bits.sum(1).tolist()))
        object.__setattr__(self, "mask", functools.reduce(operator.or_, self.masks, 0))

    def __len__(self) -> int:
        return len(self.coefficients)

    def column(self, name: str) -> Tensor:
        """float64 [N]: one coefficient of every row."""
        return self.coefficients[:, COLUMN[name]]

    def to(self, device: torch.device | str) -> Table:
        """The same table on another device."""
        moved = copy.copy(self)
        object.__setattr__(moved, "coefficients", self.coefficients.to(device))
        object.__setattr__(moved, "timesteps", self.timesteps.to(device))
        return moved

    @property
    def stochastic(self) -> bool:
        """Whether a row has noise."""
        return bool(self.mask & NOISE)
