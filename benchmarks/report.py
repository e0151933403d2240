"""``python -m benchmarks.report``: draw the results as tables in docs/benchmarks.md and plots beside it."""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .results import FOLDER, RATE, ROOT, TIME, Row, load

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"
MODE_NAMES = {"forward": "fwd", "backward": "bwd", "both": "fwd+bwd", "step": "step"}


class Table(NamedTuple):
    """A table of text, drawn as markdown or on a terminal."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def short(number: int) -> str:
    """4194304 as 4M."""
    for size, suffix in ((2**20, "M"), (2**10, "K")):
        if number >= size and number % size == 0:
            return f"{number // size}{suffix}"
    return str(number)


def duration(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.3g} ns"


def size(count: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"


def factor(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})"


def shape(row: Row) -> str:
    text = short(row["shape"][0]) if len(row["shape"]) == 1 else "x".join(map(str, row["shape"]))
    return text if row["variant"] == "float32" or row["sweep"] else f"{text}, {row['variant']}"


def elements(row: Row) -> int:
    count = 1
    for side in row["shape"]:
        count *= side
    return count


def bound(row: Row) -> tuple[str, dict[str, float]] | None:
    """The limit that binds, which is the one nearest to our time, and the fraction of it that we reach."""
    limits = {name: ratio for name, ratio in row["ratio"].items() if name.startswith("bound: ")}
    if not limits:
        return None
    name = max(limits, key=lambda name: limits[name]["median"])
    return name.removeprefix("bound: "), limits[name]


def bound_text(row: Row) -> str:
    found = bound(row)
    return f"{found[1]['median']:.0%} of {found[0]}" if found else ""


def _met(row: Row, target: dict[str, Any]) -> bool:
    if target["against"] == RATE:
        return flips_per_ns(row) >= target["at_least"]
    if target["against"] == TIME:
        return bool(row["seconds"]["ours"] * 1e6 <= target["at_least"])
    ratio = row["ratio"].get(target["against"])
    return bool(ratio) and ratio["median"] >= target["at_least"]


def flips_per_ns(row: Row) -> float:
    return row["flips"] / row["seconds"]["ours"] * 1e-9


def _measured(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["status"] == "ok"]


def mode(row: Row) -> str:
    """The mode, and the threads if there are several."""
    return MODE_NAMES[row["mode"]] + (f", {row['threads']} threads" if row["threads"] > 1 else "")


def _order(row: Row) -> tuple[Any, ...]:
    return (
        row["family"],
        row["op"],
        row["variant"],
        elements(row),
        row["threads"],
        list(MODE_NAMES).index(row["mode"]),
    )


def promises(rows: Sequence[Row]) -> Table:
    """Each promised ratio beside the measured one; the sizes of a sweep share a line that shows the worst."""
    lines: list[tuple[str, ...]] = []
    sweeps: dict[tuple[Any, ...], list[tuple[Row, dict[str, Any]]]] = defaultdict(list)
    for row in sorted(rows, key=_order):
        if row["status"] != "ok":
            lines.append((row["op"], shape(row), mode(row), "", "", "", "", "WRONG", ""))
            continue
        for target in row["targets"]:
            if row["sweep"]:
                promise = (row["op"], mode(row), target["against"], target["at_least"])
                sweeps[promise].append((row, target))
            else:
                lines.append(_promise(row, target, shape(row)))
    for group in sweeps.values():
        group = [(row, target) for row, target in group if target["against"] in row["ratio"]]
        if group:
            row, target = min(group, key=lambda pair: pair[0]["ratio"][pair[1]["against"]]["median"])
            several = f"{len(group)} sizes, worst " if len(group) > 1 else ""
            lines.append(_promise(row, target, several + shape(row)))
    columns = ("op", "shape", "mode", "against", "ours", "measured", "promised", "met", "bound")
    return Table("Promises", columns, lines)


def _promise(row: Row, target: dict[str, Any], where: str) -> tuple[str, ...]:
    against = target["against"]
    ratio = row["ratio"].get(against)
    if against == RATE:
        found, promised, known = f"{flips_per_ns(row):.2f}", f"{target['at_least']:g}", True
    elif against == TIME:
        found, promised, known = f"{row['seconds']['ours'] * 1e6:.2f}", f"at most {target['at_least']:g}", True
    else:
        found, promised, known = factor(ratio) if ratio else "not measured", f"{target['at_least']:g}x", bool(ratio)
    return (
        row["op"],
        where,
        mode(row),
        against,
        duration(row["seconds"]["ours"]),
        found,
        promised,
        "yes" if _met(row, target) else "no" if known else "",
        bound_text(row),
    )


def details(rows: Sequence[Row], family: str) -> Table:
    """Every row of a family, with every competitor that was timed."""
    rows = [row for row in _measured(rows) if row["family"] == family]
    found = {name: None for row in rows for name in row["ratio"] if not name.startswith("bound: ")}
    first = ["eager", "expert", "compile", "compile_fallback_random"]
    rivals = [name for name in first if name in found] + [name for name in found if name not in first]
    lines = []
    for row in rows:
        ours = row["memory"]["ours"]
        # torch sees nothing of what another library holds: 0 is no measurement.
        theirs = [peak for name, peak in row["memory"].items() if peak and name not in ("ours", "one thread")]
        lines.append(
            (
                row["op"],
                shape(row),
                mode(row),
                duration(row["seconds"]["ours"]),
                *(f"{row['ratio'][name]['median']:.2f}x" if name in row["ratio"] else "" for name in rivals),
                bound_text(row),
                f"{size(ours)} / {size(min(theirs))}" if theirs else size(ours),
            )
        )
    columns = ("op", "shape", "mode", "ours", *rivals, "bound", "memory, ours / least")
    return Table(family, columns, lines)


def samplers(rows: Sequence[Row]) -> Table:
    """Site updates per nanosecond, and independent samples per second of all chains together."""
    lines = []
    for row in _measured(rows):
        if row.get("flips"):
            seconds, effective = row["seconds"]["ours"], row.get("effective")
            worth = f"{effective / seconds:.3g}" if effective else ""
            lines.append((row["op"], shape(row), mode(row), f"{flips_per_ns(row):.2f}", worth))
    columns = ("op", "shape", "mode", "flips per ns", "effective samples per second")
    return Table("Samplers", columns, lines)


def fixed_costs(rows: Sequence[Row]) -> Table:
    """Microseconds for one element: what a call costs before it does anything."""
    lines = []
    for row in _measured(rows):
        if elements(row) == 1 and row["threads"] == 1:
            seconds = row["seconds"]
            names = ("ours", "eager", "expert")
            costs = (f"{seconds[name] * 1e6:.2f}" if name in seconds else "" for name in names)
            lines.append((row["op"], MODE_NAMES[row["mode"]], *costs))
    return Table("Fixed cost, µs for one element", ("op", "mode", "ours", "eager", "expert"), lines)


def tables(data: dict[str, Any]) -> list[Table]:
    """Every table of one machine, empty ones left out."""
    rows = sorted(data["rows"].values(), key=_order)
    families = sorted({row["family"] for row in rows})
    drawn = [promises(rows), fixed_costs(rows), samplers(rows), *(details(rows, family) for family in families)]
    return [table for table in drawn if table.rows]


def markdown(table: Table) -> str:
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in table.rows])


def machine_line(data: dict[str, Any]) -> str:
    """The facts about the machine and the build, in a sentence."""
    facts, rows = data["machine"], list(data["rows"].values())
    where = facts.get("gpu") or f"{facts['cpu']}, {facts['cores']} cores"
    library = facts.get("variate", {})
    parts = [
        where,
        f"torch {facts['torch']} ({facts['cpu_capability']})",
        f"variate {library.get('version', '')} ({library.get('cpu_capability', 'no build info')})",
        facts["system"],
    ]
    latest = max(rows, key=lambda row: row["date"])
    earlier = " and earlier" if any(row["commit"] != latest["commit"] for row in rows) else ""
    when = f"Measured {latest['date'][:10]} at {latest['commit'] or 'an unknown commit'}{earlier}."
    quick = " Quick run: rough numbers." if any(row["quick"] for row in rows) else ""
    return f"{'; '.join(parts)}. {when}{quick}"


def _figure() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "variate", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})  # no date: equal results draw equal files
    plt.close(figure)


def plot_promises(data: dict[str, Any], path: Path) -> bool:
    """The measured ratios with their quartiles, and a tick at each promise. False if there are none."""
    points = [
        (f"{row['op']} {shape(row)} {mode(row)} vs {target['against']}", row, target)
        for row in sorted(_measured(data["rows"].values()), key=_order)
        for target in row["targets"]
        if target["against"] in row["ratio"] and not row["sweep"]
    ]
    if not points:
        return False
    plt = _figure()
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.28 * len(points)))
    for height, (_, row, target) in enumerate(points):
        ratio = row["ratio"][target["against"]]
        spread = [[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]]
        colour = "tab:green" if _met(row, target) else "tab:red"
        axes.errorbar(ratio["median"], height, xerr=spread, color=colour, marker="o", capsize=3)
        axes.plot(target["at_least"], height, color="black", marker="|", markersize=12, markeredgewidth=2)
    axes.set_yticks(range(len(points)), [label for label, _, _ in points])
    axes.set_xscale("log")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("times faster than the rival, median of paired ratios and quartiles; black: the promise")
    axes.invert_yaxis()
    _save(plt, figure, path)
    return True


def plot_sweeps(data: dict[str, Any], path: Path) -> bool:
    """Time against size for ours and the rivals, one panel per op and mode. False if there are none."""
    panels: dict[tuple[str, str], list[Row]] = defaultdict(list)
    rows = _measured(data["rows"].values())
    swept = {(row["op"], row["variant"]) for row in rows if row["sweep"]}
    for row in rows:
        if (row["op"], row["variant"]) in swept and row["threads"] == 1 and row["mode"] in ("forward", "both"):
            panels[row["op"], row["mode"]].append(row)
    if not panels:
        return False
    plt = _figure()
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure, grid = plt.subplots(down, across, figsize=(4 * across, 3 * down), squeeze=False, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, ((op, mode), members) in zip(grid.flat, sorted(panels.items()), strict=False):
        members.sort(key=elements)
        for name in ("ours", "eager", "expert"):
            points = [(elements(row), row["seconds"][name]) for row in members if name in row["seconds"]]
            if points:
                axes.loglog(*zip(*points, strict=True), marker=".", label=name, linewidth=2 if name == "ours" else 1)
        axes.set_title(f"{op}, {MODE_NAMES[mode]}")
        axes.set_xlabel("elements")
        axes.set_ylabel("seconds")
        axes.legend()
    _save(plt, figure, path)
    return True


def section(name: str, data: dict[str, Any], plots: Path, page: Path) -> str:
    """One machine's part of the page; draws its plots on the way."""
    parts = [f"## {name}", machine_line(data)]
    for kind, draw in (("promises", plot_promises), ("sweeps", plot_sweeps)):
        path = plots / f"{name}-{kind}.svg"
        if draw(data, path):
            parts.append(f"![{kind} on {name}]({os.path.relpath(path, page.parent)})")
    parts += [f"### {table.title}\n\n{markdown(table)}" for table in tables(data)]
    wrong = [row for row in data["rows"].values() if row["status"] != "ok"]
    parts += [f"**Wrong and not timed:** {row['id']}: {row['message']}" for row in wrong]
    return "\n\n".join(parts)


def replace_between(text: str, body: str) -> str:
    """`text` with what stands between the markers replaced; the markers must be there."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page must hold the markers {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}"


def draw(results: Path = FOLDER, page: Path = PAGE, plots: Path = PLOTS) -> list[Path]:
    """Write the tables of every results file into the page, and its plots. Returns the files read."""
    files = [path for path in sorted(results.glob("*.json")) if load(path)["rows"]]
    sections = [section(path.stem, load(path), plots, page) for path in files]
    body = "\n\n".join(sections) or "No results yet: run `python -m benchmarks`."
    page.write_text(replace_between(page.read_text(), body))
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Draw the benchmark results.")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of results files, one per device")
    parser.add_argument("--page", type=Path, default=PAGE, help="markdown page with the markers")
    parser.add_argument("--plots", type=Path, default=PLOTS, help="folder for the plots")
    options = parser.parse_args(arguments)
    files = draw(options.results, options.page, options.plots)
    print(f"{options.page}: {len(files)} machine(s); plots in {options.plots}")


if __name__ == "__main__":
    main()
