"""How a call is timed: calibrated batches, all competitors interleaved in one process, paired ratios."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch

CPU = torch.device("cpu")
MODES = ("forward", "backward", "both", "step")


class Ratio(NamedTuple):
    """Median and quartiles of the ratio of two timings taken in the same rounds."""

    median: float
    low: float
    high: float


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """How many times longer `theirs` takes than `ours`, round by round: drift of the machine cancels."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    if len(ratios) < 2:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


class WallClock:
    """Marks are seconds of the host."""

    mark = staticmethod(time.perf_counter)

    @staticmethod
    def seconds(spans: Sequence[tuple[Any, Any]]) -> float:
        return sum(end - start for start, end in spans)


class EventClock:
    """Marks are CUDA events on the current stream: the host's time counts only where it is the limit."""

    @staticmethod
    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def seconds(spans: Sequence[tuple[Any, Any]]) -> float:
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in spans) / 1e3


def clock_for(device: torch.device) -> WallClock | EventClock:
    return EventClock() if device.type == "cuda" else WallClock()


class Call:
    """One competitor in one mode, ready to be timed.

    `forward` runs without autograd, as in evaluation; `backward` times the backward pass alone, each on a
    graph of its own; `both` is forward plus backward; `step` is a function that does its own training step.
    The leaves are fresh copies and their gradients are None before each pass, as zero_grad leaves them. A competitor
    with a `context` runs inside it, entered and left off the clock.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        args: Sequence[Any] = (),
        *,
        mode: str = "forward",
        leaves: Sequence[int] = (),
        threads: int | None = None,
        device: torch.device = CPU,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        self.fn, self.mode, self.threads, self.device = fn, mode, threads, device
        self.clock = clock_for(device)
        self.loops = 1
        self.args = list(args)
        self.leaves: list[torch.Tensor] = []
        self.cotangents: list[torch.Tensor] | None = None
        if mode in ("backward", "both"):
            for index in leaves:
                self.args[index] = self.args[index].detach().clone().requires_grad_()
                self.leaves.append(self.args[index])
        self._replay: Callable[[], None] | None = None

    def _forward(self) -> list[torch.Tensor]:
        for leaf in self.leaves:
            leaf.grad = None
        out = self.fn(*self.args)
        return [out] if isinstance(out, torch.Tensor) else list(out)

    def _backward(self, outputs: list[torch.Tensor]) -> None:
        if self.cotangents is None:
            generator = torch.Generator(self.device).manual_seed(0)
            self.cotangents = [
                torch.randn(out.shape, generator=generator, device=self.device, dtype=out.dtype) for out in outputs
            ]
        torch.autograd.backward(outputs, self.cotangents)

    def _once(self) -> None:
        if self.mode in ("forward", "step"):
            self.fn(*self.args)
        else:
            self._backward(self._forward())

    @contextmanager
    def _conditions(self) -> Iterator[None]:
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.set_grad_enabled(self.mode != "forward"), getattr(self.fn, "context", nullcontext)():
            yield

    def run(self) -> None:
        """One call, under the conditions it is timed in; the gradients are left on the leaves."""
        with self._conditions():
            self._once()

    def capture(self) -> bool:
        """Make a CUDA graph of the call, to compare kernels and not launches. False where it cannot be."""
        if self.mode == "backward":  # its untimed forward would be captured too
            return False
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.run()
        except RuntimeError:
            return False
        self._replay = graph.replay
        return True

    def seconds(self) -> float:
        """Seconds per call, over one batch of `loops` calls that follows an untimed one."""
        mark = self.clock.mark
        with self._conditions():
            if self.mode == "backward":
                self._once()
                spans = []
                for _ in range(self.loops):
                    outputs = self._forward()
                    start = mark()
                    self._backward(outputs)
                    spans.append((start, mark()))
                return self.clock.seconds(spans) / self.loops
            body, args = self._body()
            body(*args)
            start = mark()
            for _ in range(self.loops):
                body(*args)
            return self.clock.seconds([(start, mark())]) / self.loops

    def _body(self) -> tuple[Callable[..., Any], Sequence[Any]]:
        if self._replay:
            return self._replay, ()
        if self.mode in ("forward", "step"):
            return self.fn, self.args  # nothing of the harness between the clock and the competitor
        return self._once, ()

    def calibrate(self, at_least: float) -> None:
        """Warm up, then choose how many calls make a batch that lasts `at_least` seconds."""
        for _ in range(3):
            self.run()
        # The quicker of two, lest an interruption pass for a slow call.
        while (spent := min(self.seconds(), self.seconds()) * self.loops) < at_least:
            self.loops *= min(10, max(2, round(at_least / max(spent, 1e-9))))

    def peak_memory(self) -> int:
        """The most bytes one call holds at once beyond what it was given, outputs and gradients included."""
        for leaf in self.leaves:
            leaf.grad = None
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run()
            return torch.cuda.max_memory_allocated() - before
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            self.run()
        live = peak = 0
        events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        return peak


def interleave(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Time every call once a round; the order rotates, so that nobody always goes first."""
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(calls[name].seconds())
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()
    return samples
