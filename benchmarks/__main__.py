"""``python -m benchmarks``: measure variate against PyTorch on this machine and keep the results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import pytest
    import pytest_benchmark  # noqa: F401
    import torch

    import variate  # noqa: F401
except ImportError as error:
    sys.exit(f"{error}. The benchmarks need variate, built and installed, with its extra: pip install '.[bench]'")

from . import report, results

HERE = Path(__file__).resolve().parent
FAMILIES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


class Progress:
    """A pytest plugin that shows a bar, and a line for each row as it is measured."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.rows: list[results.Row] = []
        self.done = self.total = 0
        try:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar
        except ImportError:
            self.bar = None
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self.bar = Bar(*columns)
        self.task = self.bar.add_task("collecting", total=None)

    def say(self, line: str) -> None:
        if self.bar:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"[{self.done}/{self.total}] {line}", flush=True)

    def pytest_collection_finish(self, session: Any) -> None:
        self.total = len(session.items)
        if self.bar:
            self.bar.update(self.task, total=self.total, description="")
            self.bar.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.bar:
            self.bar.update(self.task, description=nodeid.partition("[")[2].rstrip("]"))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.failed:
            self.done += 1
            row = dict(report.user_properties).get("row")
            if report.failed:
                self.failed.append(report.nodeid)
                self.say(f"FAILED {report.nodeid}\n{report.longreprtext}")
            elif row:
                self.say(summary(row))
            if row:
                self.rows.append(row)
            if self.bar:
                self.bar.advance(self.task)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
            self.say(f"FAILED {report.nodeid}\n{report.longreprtext}")

    def pytest_unconfigure(self) -> None:
        if self.bar:
            self.bar.update(self.task, description="")
            self.bar.stop()


def summary(row: results.Row) -> str:
    """One row in one line."""
    name = f"{row['op']} {report.shape(row)}"
    ratios = (f"{rival} {ratio['median']:.2f}x" for rival, ratio in row["ratio"].items())
    return f"{name:<38} {report.mode(row):<19} {report.duration(row['seconds']['ours']):>9}   " + "  ".join(ratios)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure variate against PyTorch on this machine. Each kernel is checked before it is "
        "timed. Results are written row by row: a run may be stopped, and its rows are kept.",
    )
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES, help="which families (default: all)")
    parser.add_argument(
        "--only", metavar="TEXT", help="only the rows whose name holds this text, such as bernoulli_nll"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a first look in a few minutes: few rounds, no torch.compile"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of the multi-thread rows; 1 leaves them out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--output",
        type=Path,
        help="results file (default: benchmarks/results/<device>.json, or runs/bench/<device>.json for a quick run)",
    )
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error("--threads: expected at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    output = (options.output or results.default_path(torch.device(options.device), options.quick)).resolve()
    progress = Progress()
    # The project's pytest options are for its tests, and the bar stands in for pytest's own output.
    command = ["-s", "-o", "addopts=", "-o", "filterwarnings=default", "--rootdir", str(HERE.parent)]
    command += ["-p", "no:terminal", "-p", "no:cacheprovider", "--benchmark-only", "--benchmark-quiet"]
    command += [
        f"--bench-device={options.device}",
        f"--bench-threads={options.threads}",
        f"--bench-output={output}",
    ]
    command += ["--bench-quick"] if options.quick else []
    command += ["-k", options.only] if options.only else []
    status = pytest.main([*command, *(str(HERE / f"bench_{name}.py") for name in options.family)], plugins=[progress])
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        print("no such rows")
    if progress.rows:
        show(report.promises(progress.rows))
        print(f"{report.machine_line(results.load(output))}\nresults: {output}")
    if progress.failed:
        print(f"{len(progress.failed)} failed: " + ", ".join(progress.failed))
    return int(status)


def show(table: report.Table) -> None:
    """A table on the terminal, drawn by rich if it is there."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(report.markdown(table))
        return
    drawn = Table(*table.columns, title=table.title)
    for row in table.rows:
        drawn.add_row(*row, style="red" if {"no", "WRONG"} & set(row) else None)
    Console(width=None if sys.stdout.isatty() else 150).print(drawn)


if __name__ == "__main__":
    sys.exit(main())
