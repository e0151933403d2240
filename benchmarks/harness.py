"""The common harness: what a case is, the gate that a kernel must pass to be timed, how a row is made."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .results import Row, stamp
from .timing import CPU, Call, interleave, paired

KEY = (20, 26)  # (seed, offset) of every correctness check
PROBE_FROM = 2**20  # bytes; below this a case is bound by its fixed cost and the machine's rates say nothing
PHILOX_CHUNK = 2**18  # words; 1 MiB stays in a core's cache, so that Philox binds and not memory


@dataclass(frozen=True)
class Target:
    """A promise: `against` takes at least `at_least` times as long as ours, or ours makes so many flips per nanosecond,
    or takes so many microseconds at most. Missing it fails nothing."""

    against: str
    at_least: float
    mode: str
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Compiled:
    """A competitor under torch.compile; made when its case runs, since importing the compiler is slow."""

    fn: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Callable[..., Any]:
        return torch.compile(self.fn, options=dict(self.options)) if self.options else torch.compile(self.fn)


def compiled(eager: Callable[..., Any]) -> dict[str, Compiled]:
    """Both compiled forms of an eager function: Inductor's own random numbers, and eager's."""
    return {"compile": Compiled(eager), "compile_fallback_random": Compiled(eager, {"fallback_random": True})}


@dataclass(frozen=True, eq=False)
class Case:
    """One op at one shape.

    `setup(device)` gives the arguments that every competitor is called with; `leaves` are the positions
    that take gradients. Of `competitors` the first is "ours"; a name that begins with "bound: " is no rival
    but a limit. `check(args, leaves)` raises AssertionError if ours is wrong. `traffic` and `words` are, by
    mode, the bytes a perfect implementation moves and the Philox words it draws. A threaded case is also
    timed with several threads against one; the sizes of a sweep are summarised together.

    `portions`: which part of the work a competitor does that is too slow for all of it, or how many times as much; its
    times count for the whole.
    Of a sampler, `flips` are the site updates of one call, and `effective()` how many independent samples it is worth.
    """

    family: str
    op: str
    shape: tuple[int, ...]
    setup: Callable[[torch.device], Sequence[Any]]
    competitors: Mapping[str, Callable[..., Any] | Compiled]
    check: Callable[[Sequence[Any], Sequence[int]], None]
    modes: tuple[str, ...] = ("forward",)
    leaves: tuple[int, ...] = ()
    traffic: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, int] = field(default_factory=dict)
    portions: Mapping[str, float] = field(default_factory=dict)
    flips: int = 0
    effective: Callable[[], float] | None = None
    targets: tuple[Target, ...] = ()
    variant: str = "float32"
    threaded: bool = False
    sweep: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    quick: bool = True

    @property
    def label(self) -> str:
        return "x".join(map(str, self.shape))


@dataclass(frozen=True)
class Job:
    """One row to measure: a case in one mode, with one thread or with several."""

    case: Case
    mode: str
    threaded: bool = False

    def __str__(self) -> str:
        parts = [self.case.op, self.case.label, self.case.variant, self.mode]
        return "-".join(parts + ["threads"] * self.threaded)

    def applies(self, settings: Settings) -> bool:
        """Whether this row is measured on this device with these threads."""
        if self.threaded and (settings.threads < 2 or settings.device.type != "cpu"):
            return False
        if settings.quick and not self.case.quick:
            return False
        return settings.device.type in self.case.devices


@dataclass(frozen=True)
class Settings:
    """How a run measures. A quick run shows that all works: few rounds, short batches, no compiler."""

    device: torch.device = CPU
    threads: int = 2
    quick: bool = False

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 21

    @property
    def batch_seconds(self) -> float:
        return 2e-4 if self.quick else 2e-3


def jobs(cases: Sequence[Case]) -> list[Job]:
    """Every row of `cases`; threaded cases give one more for forward, or forward and backward together."""
    out = []
    for case in cases:
        out += [Job(case, mode) for mode in case.modes]
        if case.threaded:
            out.append(Job(case, "both" if "both" in case.modes else case.modes[0], threaded=True))
    return out


def _close(name: str, ours: torch.Tensor, exact: torch.Tensor) -> None:
    assert ours.shape == exact.shape, f"{name}: shape {tuple(ours.shape)}, reference {tuple(exact.shape)}"
    if ours.numel() == 0:
        return
    if not ours.dtype.is_floating_point:
        # Whole numbers are equal, save where rounding turns the argmax of two nearly tied floats.
        wrong = (ours.long() != exact.long()).double().mean().item()
        assert wrong <= 1e-4, f"{name}: {wrong:.2%} of the draws differ from the reference"
        return
    # 64 float32 roundings of the largest value cover a sum over a row; a narrow output adds its own rounding.
    scale = exact.double().abs().max().item()
    tolerance = max(64 * torch.finfo(torch.float32).eps, 2 * torch.finfo(ours.dtype).eps) * max(scale, 1.0)
    error = (ours.double() - exact.double()).abs().max().item()
    assert error <= tolerance, f"{name}: differs from the reference by {error:.3g}, allowed {tolerance:.3g}"


def matches_twin(
    ours: Callable[..., Any], twin: Callable[..., Any], *, keyed: bool = True, exact_inputs: bool = False
) -> Callable[[Sequence[Any], Sequence[int]], None]:
    """A check of values and gradients against the reference twin, both with the same key if they draw.

    The twin runs in float64 on the same (already rounded) inputs, so the difference is our error alone.
    `exact_inputs` leaves its inputs as they are, for draws that turn on comparing them.
    """

    def check(args: Sequence[Any], leaves: Sequence[int]) -> None:
        def run(fn: Callable[..., Any], wide: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
            inputs = list(args)
            for index, value in enumerate(inputs):
                if isinstance(value, torch.Tensor) and value.dtype.is_floating_point:
                    value = value.detach().double() if wide else value.detach().clone()
                    inputs[index] = value.requires_grad_(index in leaves)
            device = next((a.device for a in args if isinstance(a, torch.Tensor)), CPU)
            named = {"key": torch.tensor(KEY, dtype=torch.int64, device=device)} if keyed else {}
            out = fn(*inputs, **named)
            outputs = [out] if isinstance(out, torch.Tensor) else list(out)
            if not leaves:
                return outputs, []
            generator = torch.Generator().manual_seed(0)
            # Values that every dtype holds exactly, so that both sides get the same.
            cotangents = [torch.randint(-8, 9, o.shape, generator=generator) / 8 for o in outputs]
            cotangents = [c.to(device, o.dtype) for c, o in zip(cotangents, outputs, strict=True)]
            torch.autograd.backward(outputs, cotangents)
            return outputs, [inputs[index].grad for index in leaves]

        values, gradients = run(ours, False)
        exact_values, exact_gradients = run(twin, not exact_inputs)
        for number, (value, exact) in enumerate(zip(values, exact_values, strict=True)):
            _close(f"output {number}", value.detach(), exact.detach())
        for index, gradient, exact in zip(leaves, gradients, exact_gradients, strict=True):
            _close(f"gradient of argument {index}", gradient, exact)

    return check


def _probes(case: Case, mode: str, settings: Settings) -> dict[str, Callable[[], Any]]:
    """The machine's limits, timed among the competitors: copy as many bytes, draw as many words."""
    probes: dict[str, Callable[[], Any]] = {}
    bytes_moved, words = case.traffic.get(mode, 0), case.words.get(mode, 0)
    if bytes_moved < PROBE_FROM:
        return probes
    source = torch.zeros(bytes_moved // 2, dtype=torch.uint8, device=settings.device)
    sink = torch.empty_like(source)
    probes["bound: copy"] = lambda: sink.copy_(source)
    if words:
        from variate.random import key, uniform  # one word and one multiply-add a value: Philox at its barest

        pieces = 1 if settings.device.type == "cuda" else math.ceil(words / PHILOX_CHUNK)

        fixed = key(KEY[0], device=settings.device)

        def draw() -> None:
            for _ in range(pieces):
                uniform(words // pieces, key=fixed, device=settings.device)

        probes["bound: philox"] = draw
    return probes


def _calls(job: Job, args: Sequence[Any], settings: Settings) -> tuple[dict[str, Call], dict[str, str]]:
    """The competitors that run here, warmed up and calibrated, and why the others do not."""
    case, mode = job.case, job.mode
    threads = settings.threads if job.threaded else 1
    entries: dict[str, tuple[Callable[..., Any] | Compiled, int]] = {}
    for name, fn in case.competitors.items():
        if not (settings.quick and isinstance(fn, Compiled)):
            entries[name] = (fn, threads)
    if job.threaded:
        entries["one thread"] = (case.competitors["ours"], 1)
    torch.compiler.reset()  # a graph compiled for another shape would make this one dynamic
    calls, failures = {}, {}
    for name, (fn, count) in entries.items():
        try:
            built = fn.build() if isinstance(fn, Compiled) else fn
            call = Call(built, args, mode=mode, leaves=case.leaves, threads=count, device=settings.device)
            call.run()
            # Compiling anything turns the argument checks of torch.distributions off for the whole process.
            torch.distributions.Distribution.set_default_validate_args(__debug__)
            if settings.device.type == "cuda" and math.prod(case.shape) > 1:
                call.capture()  # one element is there to show the launch, so it stays as it is
            call.calibrate(settings.batch_seconds)
        except Exception as error:  # a rival that cannot run here is noted; ours must run
            if name == "ours":
                raise
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            continue
        calls[name] = call
    for name, fn in _probes(case, mode, settings).items():
        calls[name] = Call(fn, threads=threads, device=settings.device)
        calls[name].calibrate(settings.batch_seconds)
    return calls, failures


@functools.cache
def _settle_allocator() -> None:
    """Frees a large block once. Until a program has, glibc hands memory back to the system whenever tensors are freed,
    and a page fault for each 4 KiB is timed in place of the kernels; one that trains has. So for all competitors."""
    torch.empty(30 * 2**20, dtype=torch.uint8)


@functools.cache
def _fault(case: Case, device: torch.device) -> str | None:
    """What is wrong with our kernel, None if nothing is; asked once for all modes of a case."""
    try:
        case.check(case.setup(device), case.leaves)
    except AssertionError as error:
        return (str(error).strip() or "the check failed").splitlines()[0]
    return None


def measure(job: Job, settings: Settings) -> tuple[Row, list[float]]:
    """Check, then time. Returns the row for the results file and our samples in seconds per call.

    A wrong kernel gives a row that says so and has no times.
    """
    case, mode = job.case, job.mode
    threads = settings.threads if job.threaded else 1
    row: Row = {
        "id": f"{case.op}/{case.label}/{case.variant}/{mode}/{threads}t",
        "family": case.family,
        "op": case.op,
        "shape": list(case.shape),
        "variant": case.variant,
        "mode": mode,
        "threads": threads,
        "sweep": case.sweep,
        "quick": settings.quick,
        **stamp(),
    }
    if message := _fault(case, settings.device):
        return {**row, "status": "wrong", "message": message}, []
    args = case.setup(settings.device)
    _settle_allocator()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        calls, failures = _calls(job, args, settings)
        memory = {name: call.peak_memory() for name, call in calls.items() if not name.startswith("bound: ")}
        samples = interleave(calls, settings.rounds)
        samples = {name: [t / case.portions.get(name, 1.0) for t in times] for name, times in samples.items()}
    finally:
        torch.set_num_threads(before)
    ours = samples["ours"]
    targets = [
        asdict(target)
        for target in case.targets
        if (target.mode, target.device, target.threads) == (mode, settings.device.type, threads)
    ]
    row |= {
        "status": "ok",
        "rounds": settings.rounds,
        "loops": {name: call.loops for name, call in calls.items()},
        "seconds": {name: sorted(times)[len(times) // 2] for name, times in samples.items()},
        "ratio": {name: paired(ours, times)._asdict() for name, times in samples.items() if name != "ours"},
        "memory": memory,
        "traffic": case.traffic.get(mode, 0),
        "words": case.words.get(mode, 0),
        "targets": targets,
        "unavailable": failures,
    }
    if case.flips:
        row["flips"] = case.flips
        row["effective"] = case.effective() if case.effective and not settings.quick else None
    return row, ours
