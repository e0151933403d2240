"""Discretised logistic likelihoods: `variate.functional.logistic` against the published formula in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from variate import functional as ours
from variate.reference import logistic as reference

from .harness import Case, Compiled, Job, Target, jobs, matches_twin

MODES = ("forward", "backward", "both")


def pictures(
    batch: int, channels: int, side: int, mixtures: int, layout: str, dtype: torch.dtype
) -> Callable[[torch.device], Sequence[Tensor]]:
    """A setup that draws parameters as an untrained network gives them, and bytes."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        count = mixtures * (10 if channels == 3 else 3)
        params = torch.randn(batch, count, side, side, generator=generator, device=device).mul_(0.5).to(dtype)
        target = torch.randint(0, 256, (batch, channels, side, side), generator=generator, device=device)
        target = target.to(torch.uint8)
        if layout == "nhwc":
            params, target = (t.permute(0, 2, 3, 1).contiguous() for t in (params, target))
        return params, target

    return setup


def mixture(
    batch: int,
    channels: int,
    side: int,
    *,
    mixtures: int = 10,
    layout: str = "nchw",
    edges: str = "compat",
    dtype: torch.dtype = torch.float32,
    against: dict[str, float] | None = None,
    **options: Any,
) -> Case:
    """The mixture's likelihood; `against` is what the project promises, forward and backward together."""
    chosen = {"mixtures": mixtures, "layout": layout, "edges": edges}
    eager = partial(reference.discretized_logistic_mixture_nll, **chosen)
    fused = partial(ours.discretized_logistic_mixture_nll, **chosen)
    pixels = batch * side * side
    params = pixels * mixtures * (10 if channels == 3 else 3) * dtype.itemsize
    forward, backward = params + pixels * channels, 2 * params + pixels * channels
    promises = [Target(name, at_least, "both") for name, at_least in (against or {}).items()]
    promises += [Target("compile", 1.0, mode, device="cuda") for mode in MODES]
    if options.get("threaded"):
        promises.append(Target("one thread", 1.8, "both", threads=2))
    if params >= 2**26:
        promises += [Target("bound: copy", 0.85, mode, device="cuda") for mode in MODES]
    return Case(
        family="logistic",
        op="discretized_logistic_mixture_nll",
        shape=(batch, channels, side, side),
        setup=pictures(batch, channels, side, mixtures, layout, dtype),
        competitors={"ours": fused, "eager": eager, "compile": Compiled(eager)},
        check=matches_twin(fused, eager, keyed=False),
        modes=MODES,
        leaves=(0,),
        traffic={"forward": forward, "backward": backward, "both": forward + backward},
        targets=tuple(promises),
        variant=f"{str(dtype).removeprefix('torch.')}, {layout}, {edges}",
        **options,
    )


def single(rows: int, columns: int, edges: str) -> Case:
    """One logistic per element."""

    def setup(device: torch.device) -> Sequence[Tensor]:
        generator = torch.Generator(device).manual_seed(1)
        mean, log_scale = torch.randn(2, rows, columns, generator=generator, device=device).mul_(0.5)
        log_scale -= 2
        # Targets that the model expects: the formulas of "compat" part where a bin has about 1e-5.
        noise = torch.rand(rows, columns, generator=generator, device=device).clamp(1e-3, 1 - 1e-3).logit()
        target = ((mean + log_scale.exp() * noise + 1) * 127.5).round().clamp(0, 255)
        return mean, log_scale, target.to(torch.uint8)

    eager = partial(reference.discretized_logistic_nll, edges=edges)
    fused = partial(ours.discretized_logistic_nll, edges=edges)
    elements = rows * columns
    return Case(
        family="logistic",
        op="discretized_logistic_nll",
        shape=(rows, columns),
        setup=setup,
        competitors={"ours": fused, "eager": eager, "compile": Compiled(eager)},
        check=matches_twin(fused, eager, keyed=False),
        modes=MODES,
        leaves=(0, 1),
        traffic={"forward": 9 * elements, "backward": 17 * elements, "both": 26 * elements},
        targets=(Target("eager", 1.0, "both"), Target("compile", 1.0, "both")),
        variant=f"float32, {edges}",
    )


def sampler(batch: int, channels: int, side: int, mixtures: int = 10) -> Case:
    """Pictures drawn from parameters."""
    eager = partial(reference.discretized_logistic_mixture_sample, mixtures=mixtures)
    fused = partial(ours.discretized_logistic_mixture_sample, mixtures=mixtures)
    draw = pictures(batch, channels, side, mixtures, "nchw", torch.float32)
    pixels = batch * side * side
    return Case(
        family="logistic",
        op="discretized_logistic_mixture_sample",
        shape=(batch, channels, side, side),
        setup=lambda device: draw(device)[:1],
        competitors={"ours": fused, "eager": eager, "compile": Compiled(eager)},
        check=matches_twin(fused, eager),
        traffic={"forward": pixels * (4 * mixtures * (10 if channels == 3 else 3) + channels)},
        words={"forward": pixels * (mixtures + channels)},
        targets=(Target("eager", 1.0, "forward"),),
    )


CASES = [
    mixture(16, 3, 32, against={"eager": 12, "compile": 9}, threaded=True),
    mixture(16, 3, 32, edges="exact", against={"eager": 12, "compile": 9}),
    mixture(16, 3, 32, layout="nhwc", against={"eager": 12, "compile": 9}),
    mixture(16, 3, 32, layout="nhwc", edges="exact", against={"eager": 12, "compile": 9}),
    mixture(16, 3, 32, dtype=torch.bfloat16, against={"eager": 1.0, "compile": 1.0}),
    mixture(64, 1, 28, against={"eager": 1.0, "compile": 1.0}),
    single(256, 3072, "exact"),
    single(256, 3072, "compat"),
    sampler(16, 3, 32),
    mixture(64, 3, 64, devices=("cuda",)),
    mixture(64, 3, 64, layout="nhwc", devices=("cuda",)),
    mixture(64, 3, 64, dtype=torch.bfloat16, devices=("cuda",)),
]


@pytest.mark.parametrize("job", jobs(CASES), ids=str)
def test_logistic(job: Job, bench: Any) -> None:
    bench(job)
