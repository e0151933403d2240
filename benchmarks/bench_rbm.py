"""Restricted Boltzmann machines against eager loops: Gibbs steps, steps of training on real digits, ladders of
temperatures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import variate
from variate import functional as ours
from variate.cli.stock import stock_cd_gradient
from variate.data import mnist
from variate.reference import rbm as reference

from .harness import KEY, Case, Compiled, Job, Target, jobs

CHECKED = 24  # chains of a case that are compared with the reference
# What each instruction set promises of the large machine, and of a step of training.
PROMISES: dict[str, dict[str, float]] = {
    "amx": {"eager": 7, "expert": 5, "expert, medium precision": 2.2, "compile": 6},
    "avx512": {"eager": 3, "expert": 2},
}
TRAINING: dict[str, dict[str, float]] = {"amx": {"eager": 4}}
BATCH, STEPS, LEARNING_RATE = 128, 10, 0.05  # of training: rows and chains, Gibbs steps
AT_ONCE = 8  # steps of training that are timed together
LADDER = 100  # steps of annealing
BETAS = tuple(k / 10 for k in range(1, 11))  # of tempering


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


trained = machine(BATCH, 784, 500)


def fused_gradient(x: Tensor, *machine: Tensor) -> Sequence[Tensor]:
    *parameters, chains = machine
    return ours.rbm_cd_gradient(x, *parameters, steps=STEPS, persistent=chains)


def eager_gradient(x: Tensor, *machine: Tensor) -> Sequence[Tensor]:
    """As people write it."""
    return stock_cd_gradient(x, *machine, STEPS)


def expert_gradient(
    x: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, chains: Tensor
) -> Sequence[Tensor]:
    """Biases in the products, uniforms in place of torch.bernoulli, and what can be done in place."""
    chains, _ = expert(STEPS)(chains, weight, visible_bias, hidden_bias)
    positive = torch.addmm(hidden_bias, x, weight).sigmoid_()
    negative = torch.addmm(hidden_bias, chains, weight).sigmoid_()
    of_weight = torch.mm(chains.t(), negative).addmm_(x.t(), positive, alpha=-1).div_(len(x))
    return of_weight, chains.mean(0).sub_(x.mean(0)), negative.mean(0).sub_(positive.mean(0)), chains


def training(gradient: Callable[..., Sequence[Tensor]], batches: Sequence[Tensor]) -> Iterator[None]:
    """784-500 from its first weights on, a step of SGD for each batch."""
    states, *machine = trained(batches[0].device)
    chains = states.to(machine[0].dtype)
    for x in itertools.cycle(batches):
        *gradients, chains = gradient(x, *machine, chains)
        for parameter, slope in zip(machine, gradients, strict=True):
            parameter.add_(slope, alpha=-LEARNING_RATE)
        yield


class Step:
    """Some steps of training, one after the other as in a fit; the machine is made at the first one."""

    def __init__(self, gradient: Callable[..., Sequence[Tensor]]) -> None:
        self.gradient = gradient
        self.steps: Iterator[None] | None = None

    def __call__(self, batches: Sequence[Tensor]) -> None:
        if self.steps is None:
            self.steps = training(self.gradient, batches)
        for _ in range(AT_ONCE):
            next(self.steps)


@dataclass(frozen=True)
class CompiledStep(Compiled):
    """A step whose gradient is under torch.compile."""

    def build(self) -> Step:
        return Step(torch.compile(self.fn, options=dict(self.options) or None))


def digits(device: torch.device) -> Sequence[Any]:
    """Sixty-two batches of digits, pixels rounded to 0 or 1."""
    images = mnist("train").images.reshape(-1, 784)
    batches = (images >= 128).float().to(device).split(BATCH)
    return ([batch for batch in batches if len(batch) == BATCH],)


def check_gradient(args: Sequence[Any], leaves: Sequence[int]) -> None:
    """The chains are the reference's, bit for bit, and the gradients its up to rounding."""
    x = args[0][0]
    states, *parameters = trained(x.device)
    named = {"steps": STEPS, "persistent": states, "key": torch.tensor(KEY, dtype=torch.int64, device=x.device)}
    found = ours.rbm_cd_gradient(x, *parameters, **named)
    expected = reference.rbm_cd_gradient(x, *parameters, **named)
    wrong = int((found[3] != expected[3]).sum())
    assert wrong == 0, f"chains: {wrong} states differ from the reference"
    for name, one, other in zip(("weight", "visible_bias", "hidden_bias"), found, expected, strict=False):
        error = (one - other).abs().max().item()
        # Differences of means of 128 numbers up to 1: float32 roundings of each.
        assert error <= 1e-5, f"gradient of {name}: differs from the reference by {error:.3g}"


TRAINING_STEP = Case(
    family="rbm",
    op=f"PCD-{STEPS} training step",
    shape=(BATCH, 784, 500),
    setup=digits,
    competitors={
        "ours": Step(fused_gradient),
        "eager": Step(eager_gradient),
        "expert": Step(expert_gradient),
        "compile": CompiledStep(eager_gradient),
    },
    check=check_gradient,
    modes=("step",),
    portions=dict.fromkeys(("ours", "eager", "expert", "compile"), AT_ONCE),
    targets=tuple(
        Target(rival, least, "step")
        for rival, least in TRAINING.get(variate.build_info()["cpu_capability"], {}).items()
    ),
    variant="bernoulli",
    threaded=True,
)


def annealed(x: Tensor, *machine: Tensor) -> Tensor:
    return ours.ais_log_partition(*machine, betas=LADDER, chains=len(x)).log_z


def expert_annealed(states: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> Tensor:
    """Each field from one product, for the weight and for the next states, as rbm_gibbs's expert makes them."""
    betas = torch.linspace(0, 1, LADDER + 1).tolist()
    v = (torch.rand(states.shape, device=states.device) < 0.5).to(weight.dtype)
    log_weight = torch.zeros(len(v), dtype=torch.float64, device=v.device)
    for before, beta in itertools.pairwise(betas):
        field = torch.addmm(hidden_bias, v, weight)
        change = F.softplus(beta * field).sub_(F.softplus(before * field)).sum(-1)
        log_weight += change.add_(v @ visible_bias, alpha=beta - before)
        h = (torch.rand_like(field) < field.mul_(beta).sigmoid_()).to(weight.dtype)
        p = torch.addmm(visible_bias, h, weight.t()).mul_(beta).sigmoid_()
        v = (torch.rand_like(p) < p).to(weight.dtype)
    units = math.log(2) * (len(visible_bias) + len(hidden_bias))
    return torch.logsumexp(log_weight, 0) - math.log(len(v)) + units


def check_annealed(args: Sequence[Any], leaves: Sequence[int]) -> None:
    """Weights against those of single Gibbs steps in the reference, whose chains are the same bits."""
    states, *parameters = args
    named = {"betas": LADDER, "chains": CHECKED, "key": torch.tensor(KEY, dtype=torch.int64, device=states.device)}
    found = ours.ais_log_partition(*parameters, **named).log_weights
    with variate.use_backend("reference"):
        expected = ours.ais_log_partition(*parameters, **named).log_weights
    error = (found - expected).abs().max().item()
    # Of each of 100 steps, the roundings of 500 fields in float32, and of products of 784 numbers.
    assert error <= 2e-3, f"log weights differ from the reference's by {error:.3g} nats"


def tempered(states: Tensor, *machine: Tensor) -> Tensor:
    return ours.parallel_tempering(states, *machine, betas=BETAS, rounds=STEPS).visible


def expert_tempered(states: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> Tensor:
    """All temperatures in one product, and swaps without a loop over pairs."""
    count, chains, units = states.shape
    beta = torch.tensor(BETAS, device=states.device)
    every = beta.repeat_interleave(chains)[:, None]
    v = states.reshape(-1, units).to(weight.dtype)
    rows = torch.arange(count * chains, device=v.device).view(count, chains)
    for round_ in range(STEPS):
        p = torch.addmm(hidden_bias, v, weight).mul_(every).sigmoid_()
        h = (torch.rand_like(p) < p).to(weight.dtype)
        field = torch.addmm(visible_bias, h, weight.t())
        p = (field * every).sigmoid_()
        v = (torch.rand_like(p) < p).to(weight.dtype)
        energy = (v * field).sum(-1).add_(h @ hidden_bias).neg_().view(count, chains)
        ratio = (beta[1:] - beta[:-1])[:, None] * (energy[1:] - energy[:-1])
        swap = (torch.rand_like(ratio).log_() < ratio).long()
        swap[(round_ + 1) % 2 :: 2] = 0
        order = rows.clone()
        order[:-1] += chains * swap
        order[1:] -= chains * swap
        v = v[order.flatten()]
    return v.view(states.shape)


def check_tempered(args: Sequence[Any], leaves: Sequence[int]) -> None:
    """The states of some chains are the reference's, bit for bit."""
    states, *parameters = args
    key = torch.tensor(KEY, dtype=torch.int64, device=states.device)
    named = {"betas": BETAS, "rounds": 4, "key": key}
    found = ours.parallel_tempering(states[:, :CHECKED], *parameters, **named).visible
    with variate.use_backend("reference"):
        expected = ours.parallel_tempering(states[:, :CHECKED], *parameters, **named).visible
    wrong = int((found != expected).sum())
    assert wrong == 0, f"visible: {wrong} states differ from the reference"


def ladder(device: torch.device) -> Sequence[Tensor]:
    states, *parameters = machine(len(BETAS) * 64, 784, 500)(device)
    return (states.view(len(BETAS), 64, 784), *parameters)


ALONG_A_LADDER = [
    Case(
        family="rbm",
        op=f"ais_log_partition, {LADDER} steps",
        shape=(BATCH, 784, 500),
        setup=machine(BATCH, 784, 500),
        competitors={"ours": annealed, "eager": expert_annealed},
        check=check_annealed,
        variant="bernoulli",
    ),
    Case(
        family="rbm",
        op=f"parallel_tempering, {STEPS} rounds",
        shape=(len(BETAS), 64, 784, 500),
        setup=ladder,
        competitors={"ours": tempered, "eager": expert_tempered},
        check=check_tempered,
        variant="bernoulli",
    ),
]


def promised(*rivals: str) -> dict[str, float]:
    of_set = PROMISES.get(variate.build_info()["cpu_capability"], {})
    return {rival: least for rival, least in of_set.items() if not rivals or rival in rivals}


CASES = [
    case(1024, 784, 1024, 10, promised(), threaded=True, quick=False),
    case(512, 784, 500, 10, promised("eager")),
    *(case(chains, 784, 500, 1, {}, sweep=True) for chains in (1, 16, 128, 2048)),
    *(case(512, units, units, 10, {}, sweep=True) for units in (32, 256)),
    TRAINING_STEP,
    *ALONG_A_LADDER,
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_rbm(job: Job, bench: Any) -> None:
    bench(job)
