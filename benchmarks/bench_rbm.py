"""Gibbs steps of restricted Boltzmann machines: `variate.functional.rbm_gibbs` against eager loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import variate
from variate import functional as ours
from variate.reference import rbm as reference

from .harness import KEY, Case, Compiled, Job, Target, jobs

CHECKED = 24  # chains of a case that are compared with the reference
# What each instruction set promises of the large machine.
PROMISES: dict[str, dict[str, float]] = {
    "amx": {"eager": 7, "expert": 5, "expert, medium precision": 2.2, "compile": 6},
    "avx512": {"eager": 3, "expert": 2},
}


def machine(chains: int, visible: int, hidden: int) -> Callable[[torch.device], Sequence[Tensor]]:
    """A setup with weights of the size that training gives them."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)

        def normals(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, device=device)

        states = (torch.rand(chains, visible, generator=generator, device=device) < 0.5).to(torch.uint8)
        return states, normals(visible, hidden) * 0.05, normals(visible) * 0.3, normals(hidden) * 0.3

    return setup


def fused(steps: int) -> Callable[..., Any]:
    return lambda *machine: ours.rbm_gibbs(*machine, steps=steps)


def eager(steps: int) -> Callable[..., Any]:
    """As people write it."""

    def gibbs(states: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> tuple[Tensor, Tensor]:
        v = states.to(weight.dtype)
        for _ in range(steps):
            h = torch.bernoulli(torch.sigmoid(v @ weight + hidden_bias))
            v = torch.bernoulli(torch.sigmoid(h @ weight.t() + visible_bias))
        return v, h

    return gibbs


def expert(steps: int) -> Callable[..., Any]:
    """Biases in the product, uniforms in place of torch.bernoulli."""

    def gibbs(states: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> tuple[Tensor, Tensor]:
        v = states.to(weight.dtype)
        for _ in range(steps):
            p = torch.addmm(hidden_bias, v, weight).sigmoid_()
            h = (torch.rand_like(p) < p).to(weight.dtype)
            p = torch.addmm(visible_bias, h, weight.t()).sigmoid_()
            v = (torch.rand_like(p) < p).to(weight.dtype)
        return v, h

    return gibbs


def medium(steps: int) -> Callable[..., Any]:
    """The same with products in bfloat16, where torch and the machine have them."""
    loop = expert(steps)

    def gibbs(*machine: Tensor) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            return loop(*machine)
        finally:
            torch.set_float32_matmul_precision(before)

    return gibbs


def check(steps: int) -> Callable[[Sequence[Any], Sequence[int]], None]:
    """The states of some chains are the reference's, bit for bit."""

    def compare(args: Sequence[Any], leaves: Sequence[int]) -> None:
        states, *parameters = args
        key = torch.tensor(KEY, dtype=torch.int64, device=states.device)
        found = ours.rbm_gibbs(states, *parameters, steps=steps, key=key)
        expected = reference.rbm_gibbs(states[:CHECKED], *parameters, steps=steps, key=key)
        for name, x, y in zip(("visible", "hidden"), found, expected, strict=True):
            wrong = int((x[:CHECKED] != y).sum())
            assert wrong == 0, f"{name}: {wrong} states differ from the reference"

    return compare


def case(chains: int, visible: int, hidden: int, steps: int, promises: dict[str, float], **options: Any) -> Case:
    rivals: dict[str, Any] = {"eager": eager(steps)}
    if "sweep" not in options:
        rivals |= {
            "expert": expert(steps),
            "expert, medium precision": medium(steps),
            "compile": Compiled(eager(steps)),
        }
    return Case(
        family="rbm",
        op=f"rbm_gibbs, {steps} steps",
        shape=(chains, visible, hidden),
        setup=machine(chains, visible, hidden),
        competitors={"ours": fused(steps), **rivals},
        check=check(steps),
        words={"forward": steps * chains * (visible + hidden)},
        targets=tuple(Target(rival, least, "forward") for rival, least in promises.items()),
        variant="bernoulli",
        **options,
    )


def promised(*rivals: str) -> dict[str, float]:
    of_set = PROMISES.get(variate.build_info()["cpu_capability"], {})
    return {rival: least for rival, least in of_set.items() if not rivals or rival in rivals}


CASES = [
    case(1024, 784, 1024, 10, promised(), threaded=True, quick=False),
    case(512, 784, 500, 10, promised("eager")),
    *(case(chains, 784, 500, 1, {}, sweep=True) for chains in (1, 16, 128, 2048)),
    *(case(512, units, units, 10, {}, sweep=True) for units in (32, 256)),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_rbm(job: Job, bench: Any) -> None:
    bench(job)
