"""A decoder's last layer and its likelihood: products by torch on chunks of the logits, and the epilogues that turn a
chunk into its likelihood and, in place, into its gradient. Twins of csrc/torch/linear.cpp and csrc/cpu/linear.cpp."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elbo import bernoulli_nll_term
from .elementary import divide, exp, log, sigmoid
from .tiles import (
    _row_sums_kernel,
    compute_dtype,
    launch,
    launch_row_sums,
    load_tile,
    rows_and_cols,
    store_row_sums,
    store_tile,
    tile_mask,
    tile_shape,
    tile_start,
    tree_sum,
    view,
)

CHUNK = 2**24  # logits: enough to fill a GPU, and little beside what it holds
CHUNK_COLS = 2**14
LEAST_ROWS = 2**8


class _ProductSum:
    """out = a sum of `terms` products: in float32 where `out` is narrower and there are several."""

    def __init__(self, out: Tensor, terms: int) -> None:
        self.out = out if terms else out.zero_()
        self.wide = torch.empty_like(out, dtype=torch.float32) if terms > 1 and out.dtype.itemsize == 2 else None

    def add(self, rows: slice, first: bool, a: Tensor, b: Tensor) -> None:
        """Adds a b to some rows; `first` says that they hold nothing yet."""
        out = self.out[rows]
        if first or self.wide is not None:
            torch.mm(a, b, out=out)
        else:
            torch.addmm(out, a, b, out=out)
        if self.wide is not None:
            self.wide[rows] = out if first else self.wide[rows] + out

    def finish(self) -> None:
        if self.wide is not None:
            self.out.copy_(self.wide)


class _Layer:
    """A last layer, its target, and how its logits are cut: by their shape alone."""

    def __init__(self, epilogue: Callable[..., None], hidden: Tensor, weight: Tensor, bias: Tensor | None,
                 target: Tensor) -> None:  # fmt: skip
        self.epilogue, self.weight, self.bias = epilogue, weight, bias
        self.size = hidden.shape[:-1] if hidden.dim() > 1 else (1,)
        self.hidden = hidden.reshape(self.size.numel() if hidden.dim() > 1 else 1, hidden.shape[-1])
        target_rows, variables = rows_and_cols(target.shape)
        self.target = target.reshape(target_rows, variables)
        self.ways = weight.shape[0] // max(variables, 1)
        self.dtype = compute_dtype(hidden, target)[0]
        cols = weight.shape[0]
        blocks = triton.cdiv(cols, max(CHUNK_COLS, self.ways))
        self.block_cols = triton.cdiv(variables, blocks) * self.ways if blocks else 1
        most_rows = max(LEAST_ROWS, CHUNK // self.block_cols)
        rows = self.hidden.shape[0]
        self.chunk_rows = triton.cdiv(rows, triton.cdiv(rows, most_rows)) if rows else 1

    def nll(self, hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """[rows], and the gradients of its sum into the tensors that are given."""
        nll = torch.zeros(self.hidden.shape[0], dtype=self.dtype, device=self.hidden.device)
        self._run(None, nll, hidden, weight, bias)
        return nll.view(self.size)

    def gradients(self, factors: Tensor | None, hidden: Tensor | None, weight: Tensor | None,
                  bias: Tensor | None) -> None:  # fmt: skip
        """The gradients of the sum of nll, but those of weight and bias weighted by `factors` [rows, 1]."""
        self._run(factors, None, hidden, weight, bias)

    def _run(self, factors: Tensor | None, nll: Tensor | None, hidden: Tensor | None, weight: Tensor | None,
             bias: Tensor | None) -> None:  # fmt: skip
        rows, cols = self.hidden.shape[0], self.weight.shape[0]
        blocks, chunks = triton.cdiv(cols, self.block_cols), triton.cdiv(rows, self.chunk_rows)
        gradient = not (hidden is weight is bias is None)
        buffer = self.hidden.new_empty(self.chunk_rows * self.block_cols)
        ones = self.hidden.new_ones(1, self.chunk_rows) if factors is None and bias is not None else None
        hidden_sum = _ProductSum(hidden.view(self.hidden.shape), blocks) if hidden is not None else None
        for col in range(0, cols, self.block_cols):
            block = slice(col, min(col + self.block_cols, cols))
            layer = self.weight[block]
            weight_sum = _ProductSum(weight[block], chunks) if weight is not None else None
            bias_sum = _ProductSum(bias[None, block], chunks) if bias is not None else None
            for row in range(0, rows, self.chunk_rows):
                here = slice(row, min(row + self.chunk_rows, rows))
                inputs, first = self.hidden[here], row == 0
                chunk = buffer[: inputs.shape[0] * layer.shape[0]].view(inputs.shape[0], layer.shape[0])
                torch.mm(inputs, layer.t(), out=chunk)
                part = torch.empty(len(chunk), dtype=self.dtype, device=chunk.device)
                self.epilogue(
                    chunk, None if self.bias is None else self.bias[block],
                    self.target[:, col // self.ways : block.stop // self.ways], self.ways, row, part, gradient,
                )  # fmt: skip
                if nll is not None:
                    nll[here] += part
                if hidden_sum is not None:
                    hidden_sum.add(here, col == 0, chunk, layer)
                if weight_sum is not None:
                    weighted = inputs if factors is None else (inputs * factors[here]).to(inputs.dtype)
                    weight_sum.add(slice(None), first, chunk.t(), weighted)
                if bias_sum is not None:
                    row_weights = ones[:, : len(chunk)] if factors is None else factors[here].t().to(chunk.dtype)
                    bias_sum.add(slice(None), first, row_weights, chunk)
            for total in (weight_sum, bias_sum):
                if total is not None:
                    total.finish()
        if hidden_sum is not None:
            hidden_sum.finish()


@triton.jit
def load_target(target, target_rows, sample, first_col, mask, DTYPE: tl.constexpr):
    """The targets of some samples, whose rows repeat: sample s has row s mod target_rows."""
    row = (sample % target_rows)[:, None]
    col = first_col + tl.arange(0, mask.shape[1]).to(tl.int64)[None, :]
    return tl.load(target[0] + row * target[1] + col * target[2], mask, other=0).to(DTYPE)


@triton.jit
def _bernoulli_kernel(chunk, bias, target, target_rows, first_sample, nll, rows, cols, ROWS: tl.constexpr,
                      COLS: tl.constexpr, STEPS: tl.constexpr, DTYPE: tl.constexpr,
                      GRADIENT: tl.constexpr):  # fmt: skip
    """nll[r, piece] = a sum of -log Bernoulli(target | sigmoid(chunk + bias)); the chunk becomes its gradient."""
    first_row, first_col = tile_start(cols, ROWS, COLS * STEPS)
    sample = first_sample + first_row + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLS], DTYPE)
    for step in range(STEPS):
        col = first_col + step * COLS
        mask = tile_mask(first_row, col, rows, cols, ROWS, COLS)
        logit = load_tile((chunk, cols, 1), first_row, col, mask, DTYPE) + load_tile(bias, 0, col, mask, DTYPE)
        x = load_target(target, target_rows, sample, col, mask, DTYPE)
        total += tl.where(mask, bernoulli_nll_term(logit, x), 0.0)
        if GRADIENT:
            store_tile(chunk, cols, first_row, col, mask, sigmoid(logit) - x)
    store_row_sums(nll, total, first_row, first_col, rows, cols, STEPS)


def _bernoulli(chunk: Tensor, bias: Tensor | None, target: Tensor, ways: int, first_sample: int, nll: Tensor,
               gradient: bool) -> None:  # fmt: skip
    rows, cols = chunk.shape
    launch_row_sums(
        _bernoulli_kernel, rows, cols, chunk, None if bias is None else (bias, 0, bias.stride(0)),
        (target, *target.stride()), target.shape[0], first_sample, out=nll,
        DTYPE=compute_dtype(chunk, target)[1], GRADIENT=gradient,
    )  # fmt: skip


@triton.jit
def _categorical_logits(chunk, bias, item, way, ways, variables, mask, DTYPE: tl.constexpr):
    """The logits of some ways of some items, -inf outside the mask."""
    logit = tl.load(chunk + item[:, None] * ways + way[None, :], mask, other=0.0).to(DTYPE)
    if bias is not None:
        col = (item % variables)[:, None] * ways + way[None, :]
        logit += tl.load(bias[0] + col * bias[1], mask, other=0.0).to(DTYPE)
    return tl.where(mask, logit, float("-inf"))


@triton.jit
def _categorical_kernel(chunk, bias, target, target_rows, first_sample, terms, items, ways, variables,
                        ROWS: tl.constexpr, COLS: tl.constexpr, DTYPE: tl.constexpr,
                        GRADIENT: tl.constexpr):  # fmt: skip
    """terms[item] = -log softmax(chunk + bias)[item, target], an item being a variable of a sample; the chunk becomes
    its gradient. Three passes: the largest logit, the sum of the exponentials below it, the gradient."""
    item = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = item < items
    row = (first_sample + item // variables) % target_rows
    label = tl.load(target[0] + row * target[1] + (item % variables) * target[2], inside, other=0).to(tl.int64)
    highest = tl.full([ROWS], float("-inf"), DTYPE)
    chosen = tl.zeros([ROWS], DTYPE)
    for start in range(0, ways, COLS):
        way = start + tl.arange(0, COLS)
        mask = inside[:, None] & (way < ways)[None, :]
        logit = _categorical_logits(chunk, bias, item, way, ways, variables, mask, DTYPE)
        highest = tl.maximum(highest, tl.max(logit, 1))
        chosen += tl.sum(tl.where((way[None, :] == label[:, None]) & mask, logit, 0.0), 1)
    total = tl.zeros([ROWS], DTYPE)
    for start in range(0, ways, COLS):
        way = start + tl.arange(0, COLS)
        mask = inside[:, None] & (way < ways)[None, :]
        logit = _categorical_logits(chunk, bias, item, way, ways, variables, mask, DTYPE)
        total += tree_sum(tl.where(mask, exp(logit - highest[:, None]), 0.0), ROWS, COLS)
    valid = (label >= 0) & (label < ways)
    if DTYPE == tl.float64:
        log_total = tl.log(total)
    else:
        log_total = tl.where(total == total, log(total), total)
    tl.store(terms + item, tl.where(valid, highest - chosen + log_total, float("nan")), inside)
    if GRADIENT:
        factor = tl.where(valid, divide(tl.full([ROWS], 1.0, DTYPE), total), float("nan"))[:, None]
        for start in range(0, ways, COLS):
            way = start + tl.arange(0, COLS)
            mask = inside[:, None] & (way < ways)[None, :]
            logit = _categorical_logits(chunk, bias, item, way, ways, variables, mask, DTYPE)
            residual = exp(logit - highest[:, None]) * factor - (way[None, :] == label[:, None]).to(DTYPE)
            if DTYPE == tl.float64 and chunk.dtype.element_ty.primitive_bitwidth == 16:
                residual = residual.to(tl.float32)
            tl.store(chunk + item[:, None] * ways + way[None, :], residual, mask)


def _categorical(chunk: Tensor, bias: Tensor | None, target: Tensor, ways: int, first_sample: int, nll: Tensor,
                 gradient: bool) -> None:  # fmt: skip
    rows, variables = chunk.shape[0], target.shape[1]
    terms = nll.new_empty(rows, variables)
    tile = tile_shape(ways)
    launch(
        _categorical_kernel, triton.cdiv(terms.numel(), tile["ROWS"]), chunk,
        None if bias is None else (bias, bias.stride(0)), (target, *target.stride()), target.shape[0], first_sample,
        terms, terms.numel(), ways, variables, device=chunk.device, **tile, DTYPE=compute_dtype(chunk)[1],
        GRADIENT=gradient,
    )  # fmt: skip
    launch_row_sums(_row_sums_kernel, rows, variables, view(terms, rows), out=nll)


@torch.no_grad()
def _forward(epilogue: Callable[..., None], hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor,
             *wanted: bool) -> tuple[Tensor, ...]:  # fmt: skip
    layer = _Layer(epilogue, hidden, weight, bias, target)
    unit = [
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if want and x is not None else None
        for x, want in zip((hidden, weight, bias), wanted, strict=True)
    ]
    return (layer.nll(*unit), *(weight.new_empty(0) if x is None else x for x in unit))


@torch.no_grad()
def _backward(epilogue: Callable[..., None], grad_nll: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None,
              target: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None, grad_bias: Tensor | None,
              unit: bool) -> None:  # fmt: skip
    """`unit`: the gradients that are given hold those of the sum of nll. Whether grad_nll is one number is read from
    its strides, as `.sum()` and `.mean()` leave them: no value is waited for."""
    layer = _Layer(epilogue, hidden, weight, bias, target)
    gradients = (grad_hidden, grad_weight, grad_bias)
    if grad_nll.numel() and not any(s for s, n in zip(grad_nll.stride(), grad_nll.shape, strict=True) if n > 1):
        if not unit:
            layer.gradients(None, *gradients)
        factor = grad_nll.flatten()[:1]
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(factor)
        return
    factors = grad_nll.reshape(-1, 1)
    layer.gradients(factors, None if unit else grad_hidden, grad_weight, grad_bias)
    if grad_hidden is not None:
        grad_hidden.view(layer.hidden.shape).mul_(factors)


def linear_bernoulli_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, hidden_grad: bool,
                         weight_grad: bool, bias_grad: bool) -> tuple[Tensor, ...]:  # fmt: skip
    """variate::linear_bernoulli_nll"""
    return _forward(_bernoulli, hidden, weight, bias, target, hidden_grad, weight_grad, bias_grad)


def linear_bernoulli_nll_backward(*args) -> None:
    """variate::linear_bernoulli_nll_backward"""
    _backward(_bernoulli, *args)


def linear_categorical_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, hidden_grad: bool,
                           weight_grad: bool, bias_grad: bool) -> tuple[Tensor, ...]:  # fmt: skip
    """variate::linear_categorical_nll"""
    return _forward(_categorical, hidden, weight, bias, target, hidden_grad, weight_grad, bias_grad)


def linear_categorical_nll_backward(*args) -> None:
    """variate::linear_categorical_nll_backward"""
    _backward(_categorical, *args)
