"""The Triton kernels of diffusion training and of averages: interpreted against the C++ kernels, compiled without a
GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("variate")
sys.path.insert(0, str(Path(__file__).parent))

import aot
from triton_interpreter import Interpreter, load_kernels

KEY = torch.tensor([0x0123456789ABCDEF, 5])
STEPS = 50
BAR = torch.linspace(0.999, 0.0, STEPS, dtype=torch.float64)
TABLE = torch.stack([BAR.sqrt(), (1 - BAR).sqrt()], 1)
SIZES = [(), (6,), (5, 3, 4, 7), (300, 2), (3, 2500)]
ops = torch.ops.variate


@pytest.fixture(scope="module")
def interpreted():
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


def draw(*size, dtype=torch.float32, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows_of(size):
    return size[0] if len(size) > 1 else 1


def timesteps(rows, *parts):
    return torch.randint(STEPS, (rows, *parts), generator=torch.Generator().manual_seed(1))


def same_bits(actual, expected):
    for x, y in zip(actual, expected, strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y)


def noisings(size):
    """Arguments of noise_and_target: drawn noise, offsets and a mask, given noise, levels of each sample."""
    rows, parts = rows_of(size), timesteps(rows_of(size))
    mask, noise = draw(*size, seed=2) > 0.5, draw(*size, seed=3)
    keys = torch.stack([KEY + i for i in range(rows)])
    return [
        (parts, TABLE, 0.0, None, None, KEY, 3),
        (parts, TABLE, 0.1, None, mask, KEY, 3),
        (parts, TABLE.float(), 0.0, noise, None, None, 0),
        (None, TABLE[parts], 0.1, None, None, keys, 0),
    ]


@pytest.mark.parametrize("prediction", range(5))
@pytest.mark.parametrize("size", SIZES)
def test_noise_and_target(interpreted, size, prediction):
    """Bits: the interpreter's normals are the C++ ones."""
    x0 = draw(*size)
    for timestep, levels, offset, *rest in noisings(size):
        args = (x0, timestep, levels, prediction, 0.7, offset, *rest)
        same_bits(interpreted.noise_and_target(*args), ops.noise_and_target(*args))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_noise_and_target_of_other_dtypes(interpreted, dtype):
    x0 = draw(5, 3, 8, dtype=dtype)
    for timestep, levels, offset, *rest in noisings(x0.shape):
        args = (x0, timestep, levels, 2, 0.5, offset, *rest)
        # The interpreter truncates bfloat16.
        tolerance = 2.0**-6 if dtype == torch.bfloat16 else 0.0
        for x, y in zip(interpreted.noise_and_target(*args), ops.noise_and_target(*args), strict=True):
            assert x.dtype == dtype
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_tokens_strides_and_timesteps_outside_the_table(interpreted):
    x0 = draw(4, 3, 4)
    args = (x0, timesteps(4, 6), TABLE, 2, 0.5, 0.0, None, None, KEY, 0)
    same_bits(interpreted.noise_and_target(*args), ops.noise_and_target(*args))
    levels = TABLE[timesteps(4, 6)].flatten(0, 1)
    same_bits(interpreted.noise_and_target(x0, None, levels, *args[3:]), ops.noise_and_target(*args))
    strided = (
        x0.transpose(1, 2).contiguous().transpose(1, 2),
        timesteps(8)[::2],
        TABLE.t().contiguous().t(),
        *args[3:],
    )
    same_bits(interpreted.noise_and_target(*strided), ops.noise_and_target(*strided))
    outside = torch.tensor([0, -1, STEPS, 3])
    for result in interpreted.noise_and_target(x0, outside, *args[2:]):
        assert result.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
    assert not any(r.isnan()[[0, 3]].any() for r in interpreted.noise_and_target(x0, outside, *args[2:]))


@pytest.mark.parametrize("penalty", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [*SIZES, (3, 9000)])
def test_denoising_loss(interpreted, size, weighted, penalty):
    rows = rows_of(size)
    prediction, target = draw(*size), draw(*size, seed=1)
    weight, mask = (draw(rows, seed=2).abs(), draw(*size, seed=3) > 0.5) if weighted else (None, None)
    inputs = (prediction, target, weight, mask)
    how = (penalty, 0.7)
    loss, ahead = interpreted.denoising_loss(*inputs, *how, True)
    expected, gradient = ops.denoising_loss(*inputs, *how, True)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)  # sums of another order
    same_bits([ahead], [gradient])
    same_bits([interpreted.denoising_loss(*inputs, *how, False)[0]], [loss])
    grad_loss = torch.full((rows,), 1 / rows)
    grad_loss[::2] = 0.3
    for buffers, ready in (((ahead, None), True), ((torch.empty(size), torch.empty(size)), False)):
        args = (grad_loss, *inputs, *[None if b is None else b.clone() for b in buffers], ready, *how)
        found = interpreted.filled("denoising_loss_backward", *args)[5:7]
        ops.denoising_loss_backward(*args)
        same_bits([f for f in found if f is not None], [a for a in args[5:7] if a is not None])


def test_rows_that_are_ready_are_left_alone(interpreted):
    x = draw(4, 30)
    there = torch.full((4, 30), 7.0)
    grad_loss = torch.tensor([0.25, 0.5, 0.25, 0.25])
    args = (grad_loss, x, x + 1, None, None, there, None, True, 0, 1.0)
    found = interpreted.filled("denoising_loss_backward", *args)[5]
    assert bool((found[[0, 2, 3]] == 7).all()) and not bool((found[1] == 7).any())


@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("average_dtype", [torch.float32, torch.float64, torch.float16])
def test_ema_update(interpreted, average_dtype, parameter_dtype):
    shapes = [(3,), (5000,), (2, 3, 4), (0,), (4097,)]

    def tensors(seed, dtype):
        return [draw(*shape, dtype=dtype, seed=seed) for shape in shapes]

    parameters = tensors(0, parameter_dtype)
    parameters[2] = parameters[2].transpose(0, 1).contiguous().transpose(0, 1)
    averages = [*tensors(1, average_dtype), *tensors(2, torch.float32)]
    decay = torch.tensor([0.999, 0.3], dtype=torch.float64)
    found = interpreted.filled("ema_update_", averages, parameters, decay)[0]
    ops.ema_update_(averages, parameters, decay)
    same_bits(found, averages)


def launches(dtype, rows, cols):
    kernels = load_kernels()
    x, row = torch.zeros(rows, cols, dtype=dtype), torch.zeros(rows)
    mask = torch.zeros(rows, cols, dtype=torch.bool)
    step, key = torch.zeros(rows, dtype=torch.int64), torch.tensor([1, 2])
    tokens = torch.zeros(rows, 4, dtype=torch.int64)
    noised = kernels.noise_and_target
    return {
        **{f"noise {p}": lambda p=p: noised(x, step, TABLE, p, 0.5, 0.0, None, None, key, 0) for p in range(5)},
        "noise given": lambda: noised(x, step, TABLE, 2, 0.5, 0.0, x, mask, None, 0),
        "noise by token": lambda: noised(x, tokens, TABLE, 2, 0.5, 0.0, None, None, key, 0),
        "loss": lambda: kernels.denoising_loss(x, x, row, mask, 0, 1.0, True),
        "huber": lambda: kernels.denoising_loss(x, x, None, None, 1, 0.5, True),
        "backward": lambda: kernels.denoising_loss_backward(row, x, x, row, mask, x, None, True, 0, 1.0),
        "ema": lambda: kernels.ema_update_([x, x.float()], [x], torch.zeros(2, dtype=torch.float64)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_spills(capability, dtype):
    for name, call in launches(dtype, 64, 5120).items():
        kernels = aot.compiled(capability, call)
        for kernel in kernels:
            assert kernel.stack == 0 and kernel.local == 0, f"{name} spills"
            assert not kernel.contracts
            if dtype != torch.float64:
                for inexact in (".approx", "div.full", ".ftz"):
                    assert inexact not in kernel.ptx, f"{name} uses {inexact}"
        if dtype == torch.float32:
            assert 4 in kernels[0].vector_widths("ld"), f"{name} loads one by one"
            assert 4 in kernels[0].vector_widths("st"), f"{name} stores one by one"


@pytest.mark.parametrize("capability", [80, 90])
def test_short_rows_compile_without_spills(capability):
    for name, call in launches(torch.float32, 64, 20).items():
        for kernel in aot.compiled(capability, call):
            assert kernel.stack == 0 and kernel.local == 0, f"{name} spills"


@pytest.mark.gpu
@pytest.mark.parametrize("cols", [20, 784, 9000])
def test_kernels_on_the_gpu_agree_with_the_cpu(cols):
    kernels = load_kernels()
    x, y = draw(300, cols), draw(300, cols, seed=1)
    step = timesteps(300)
    args = (x, step, TABLE, 2, 0.5, 0.1, None, None, KEY, 0)
    on_gpu = tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in args)
    same_bits([r.cpu() for r in kernels.noise_and_target(*on_gpu)], ops.noise_and_target(*args))
    loss, gradient = kernels.denoising_loss(x.cuda(), y.cuda(), None, None, 1, 0.5, True)
    expected = ops.denoising_loss(x, y, None, None, 1, 0.5, True)
    torch.testing.assert_close(loss.cpu(), expected[0], rtol=2e-6, atol=1e-7)
    same_bits([gradient.cpu()], expected[1:])
    averages, decay = [x.cuda(), y.cuda()], torch.tensor([0.999], dtype=torch.float64)
    kernels.ema_update_(averages, [y.cuda(), x.cuda()], decay.cuda())
    here = [x.clone(), y.clone()]
    ops.ema_update_(here, [y, x], decay)
    same_bits([a.cpu() for a in averages], here)
