"""The benchmark harness on fake ops: what a row says must be right whatever it measures."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def _load_suite() -> SimpleNamespace:
    """The suite, without the repository's root on sys.path, where `kernels` would shadow others."""
    if "benchmarks" not in sys.modules:
        folder = ROOT / "benchmarks"
        spec = importlib.util.spec_from_file_location(
            "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["benchmarks"])
    names = ("harness", "report", "results", "timing")
    return SimpleNamespace(**{name: importlib.import_module(f"benchmarks.{name}") for name in names})


suite = _load_suite()
QUICK = suite.harness.Settings(quick=True, threads=2)


def fake_case(ours=torch.exp, twin=torch.exp, **options):
    return suite.harness.Case(
        family="fake",
        op="exp",
        shape=(64, 8),
        setup=lambda device: (torch.linspace(-2, 2, 512, device=device).reshape(64, 8),),
        competitors={
            "ours": ours,
            "eager": lambda x: (x * 1.0).exp(),
            "broken": lambda x: x.no_such_method(),
        },
        check=suite.harness.matches_twin(ours, twin, keyed=False),
        leaves=(0,),
        targets=(suite.harness.Target("eager", 1e-6, "both"), suite.harness.Target("eager", 1e6, "forward")),
        **{"modes": ("forward", "backward", "both"), **options},
    )


def measured(**options):
    return [suite.harness.measure(job, QUICK)[0] for job in suite.harness.jobs([fake_case(**options)])]


def test_ratios_are_paired_round_by_round():
    # The machine slows down tenfold half way; the paired ratio is 2 throughout.
    ours, theirs = [1.0, 1.0, 10.0, 10.0], [2.0, 2.0, 20.0, 20.0]
    assert suite.timing.paired(ours, theirs) == (2.0, 2.0, 2.0)
    low_to_high = suite.timing.paired([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert (low_to_high.low, low_to_high.median, low_to_high.high) == (2.0, 3.0, 4.0)
    assert suite.timing.paired([2.0], [3.0]) == (1.5, 1.5, 1.5)
    with pytest.raises(ValueError):
        suite.timing.paired([1.0], [1.0, 2.0])


def test_interleaving_visits_everyone_each_round_in_turning_order():
    visits = []
    calls = {
        name: SimpleNamespace(seconds=lambda name=name: visits.append(name) or float(len(visits))) for name in "abc"
    }
    samples = suite.timing.interleave(calls, rounds=3)
    assert visits == list("abcbcacab")
    assert samples == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


@pytest.mark.parametrize("mode", ["forward", "backward", "both", "step"])
def test_a_call_runs_as_its_mode_says(mode):
    seen = []

    def op(x):
        seen.append((torch.is_grad_enabled(), x.requires_grad, x.grad))
        return x.exp()

    x = torch.zeros(3)
    call = suite.timing.Call(op, [x], mode=mode, leaves=(0,))
    call.loops = 4
    assert call.seconds() > 0
    gradients = mode in ("backward", "both")
    # One untimed call and four timed ones, each with a gradient of None; the caller's tensor is as it was.
    assert seen == [(mode != "forward", gradients, None)] * 5
    assert x.grad is None and not x.requires_grad
    if gradients:
        assert torch.equal(call.leaves[0].grad, call.cotangents[0])  # not accumulated over the calls
    with pytest.raises(ValueError, match="mode must be one of"):
        suite.timing.Call(op, [x], mode="sideways")


def test_calibration_makes_batches_long_enough_for_the_clock():
    call = suite.timing.Call(lambda: None)
    call.calibrate(at_least=1e-3)
    assert call.loops > 100  # an empty call takes well under a microsecond


def test_peak_memory_counts_what_is_held_at_once():
    kib = torch.zeros(256)  # 1 KiB
    one_output = suite.timing.Call(torch.exp, [kib])
    two_then_one = suite.timing.Call(lambda x: (x + 1) * 2, [kib])
    in_turn = suite.timing.Call(lambda x: [x.exp().sum() for _ in range(8)], [kib])
    assert one_output.peak_memory() == 1024
    assert 2048 <= two_then_one.peak_memory() < 2048 + 64  # torch makes tensors of the two numbers
    assert 1024 <= in_turn.peak_memory() < 2048


def test_a_row_holds_what_was_measured():
    forward, backward, both = measured()
    assert {row["status"] for row in (forward, backward, both)} == {"ok"}
    assert both["id"] == "exp/64x8/float32/both/1t"
    assert set(both["seconds"]) == {"ours", "eager"}
    assert both["unavailable"].keys() == {"broken"} and "no_such_method" in both["unavailable"]["broken"]
    assert both["ratio"]["eager"]["low"] <= both["ratio"]["eager"]["median"] <= both["ratio"]["eager"]["high"]
    assert [t["at_least"] for t in both["targets"]] == [1e-6] and [t["at_least"] for t in forward["targets"]] == [1e6]
    json.dumps([forward, backward, both])


def test_several_threads_are_paired_with_one():
    before = torch.get_num_threads()
    job = suite.harness.jobs([fake_case(threaded=True)])[-1]
    row, samples = suite.harness.measure(job, QUICK)
    assert (row["threads"], row["mode"], len(samples)) == (2, "both", QUICK.rounds)
    assert "one thread" in row["ratio"]
    assert torch.get_num_threads() == before
    assert not job.applies(suite.harness.Settings(threads=1))


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.exp()

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (lambda x: x.exp() * 1.001, "output 0: differs"),
        (lambda x: x.exp()[:1], "output 0: shape"),
        (lambda x: x.exp() + float("nan"), "output 0: differs"),
        (WrongGradient.apply, "gradient of argument 0: differs"),
    ],
    ids=["value", "shape", "nan", "gradient"],
)
def test_a_wrong_kernel_has_no_speed(ours, message):
    for row in measured(ours=ours):
        assert row["status"] == "wrong" and message in row["message"]
        assert "seconds" not in row and "ratio" not in row


def test_draws_are_compared_exactly():
    def draw(p, *, key):
        return (p > 0.5).to(p.dtype)

    p = torch.linspace(0, 1, 100)
    suite.harness.matches_twin(draw, draw, exact_inputs=True)([p], ())
    with pytest.raises(AssertionError, match="differ"):
        suite.harness.matches_twin(draw, lambda p, *, key: 1 - draw(p, key=key), exact_inputs=True)([p], ())
    with pytest.raises(AssertionError, match="draws differ"):
        suite.harness.matches_twin(lambda p, *, key: draw(p, key=key).long(), lambda p, *, key: p.long())([p], ())


def test_rows_merge_and_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "machine.json"
    suite.results.merge(path, {"cpu": "x"}, {"id": "a", "value": 1})
    suite.results.merge(path, {"cpu": "x"}, {"id": "b", "value": 2})
    suite.results.merge(path, {"cpu": "y"}, {"id": "a", "value": 3})
    expected = {"machine": {"cpu": "y"}, "rows": {"a": {"id": "a", "value": 3}, "b": {"id": "b", "value": 2}}}
    assert suite.results.load(path) == expected
    with pytest.raises(TypeError):
        suite.results.merge(path, {"cpu": "z"}, {"id": "c", "value": object()})
    assert suite.results.load(path) == expected
    assert [file.name for file in path.parent.iterdir()] == ["machine.json"]


def test_machine_facts_name_the_file():
    facts = suite.results.machine(torch.device("cpu"))
    assert facts["torch"] == torch.__version__ and facts["cores"] >= 1
    slug = suite.results.device_slug(
        {"cpu": "Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", "cpu_capability": "AVX512"}
    )
    assert slug == "intel-xeon-platinum-8488c-avx512"
    assert suite.results.device_slug({"gpu": "NVIDIA H100 80GB HBM3"}) == "nvidia-h100-80gb-hbm3"


def results_file(tmp_path, **options):
    path = tmp_path / "results" / "machine.json"
    for row in measured(**options):
        suite.results.merge(path, suite.results.machine(torch.device("cpu")), row)
    return path


def test_the_table_shows_promises_met_and_missed(tmp_path):
    table = suite.report.promises(list(suite.results.load(results_file(tmp_path))["rows"].values()))
    verdicts = {(row[2], row[3], row[6]): row[7] for row in table.rows}
    assert verdicts == {("fwd+bwd", "eager", "1e-06x"): "yes", ("fwd", "eager", "1e+06x"): "no"}
    text = suite.report.markdown(table)
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_memory_that_torch_does_not_see_is_not_shown():
    (row,) = (suite.harness.measure(job, QUICK)[0] for job in suite.harness.jobs([fake_case(modes=("forward",))]))
    assert row["memory"].keys() == {"ours", "eager"}

    def shown(**memory):
        return suite.report.details([row | {"memory": memory}], "fake").rows[0][-1]

    assert shown(ours=2048, eager=1024, other=0) == "2 KiB / 1 KiB"
    assert shown(ours=2048, other=0) == "2 KiB"


def test_samplers_show_rates_and_what_they_are_worth(tmp_path):
    rate = suite.harness.Target(suite.results.RATE, 1e-9, "forward")
    case = fake_case(flips=1000, effective=lambda: 10.0, portions={"eager": 0.1})
    case = dataclasses.replace(case, modes=("forward",), targets=(rate, dataclasses.replace(rate, at_least=1e9)))
    (row,) = (suite.harness.measure(job, QUICK)[0] for job in suite.harness.jobs([case]))
    assert row["effective"] is None  # in a quick run
    row["effective"], row["seconds"]["ours"] = 10.0, 1e-6
    (line,) = suite.report.samplers([row]).rows
    assert line[3:] == ("1.00", "1e+07")
    met, missed = suite.report.promises([row]).rows
    assert met[3] == "flips/ns" and met[5:8] == ("1.00", "1e-09", "yes")
    assert missed[5:8] == ("1.00", "1e+09", "no")


def test_a_competitor_of_a_part_counts_for_the_whole():
    def ratio(portion):
        case = dataclasses.replace(fake_case(portions={"eager": portion}), modes=("forward",))
        (row,) = (suite.harness.measure(job, QUICK)[0] for job in suite.harness.jobs([case]))
        return row["ratio"]["eager"]["median"]

    assert ratio(1e-3) > 20 * ratio(1.0)  # a thousandfold, but for the machine's moods


def test_a_sweep_shows_its_worst_size():
    def row(size, median):
        ratio = {"eager": {"median": median, "low": median, "high": median}}
        target = {"against": "eager", "at_least": 1.0, "mode": "forward", "device": "cpu", "threads": 1}
        return {
            "family": "fake", "op": "exp", "shape": [size], "variant": "float32", "mode": "forward",
            "threads": 1, "sweep": True, "status": "ok", "ratio": ratio, "seconds": {"ours": 1e-6},
            "targets": [target],
        }  # fmt: skip

    (line,) = suite.report.promises([row(1, 3.0), row(2048, 0.9), row(2**20, 2.0)]).rows
    assert line[1] == "3 sizes, worst 2K" and line[5].startswith("0.90x") and line[7] == "no"


def test_the_page_is_redrawn_between_its_markers(tmp_path):
    results = results_file(tmp_path, sweep=True).parent
    results_file(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{suite.report.BEGIN}\nold\n{suite.report.END}\nafter\n")
    draw = ["--results", str(results), "--page", str(page), "--plots", str(tmp_path / "plots")]
    suite.report.main(draw)
    first = page.read_text()
    assert first.startswith("before\n") and first.endswith("\nafter\n") and "old" not in first
    assert "## machine" in first and "![promises on machine](plots/machine-promises.svg)" in first
    assert all(name in first for name in ("### Promises", "### fake"))
    plot = (tmp_path / "plots" / "machine-promises.svg").read_bytes()
    suite.report.main(draw)
    assert page.read_text() == first and (tmp_path / "plots" / "machine-promises.svg").read_bytes() == plot
    page.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        suite.report.main(draw)
    assert page.read_text() == "no markers"


def test_wrong_kernels_are_named_on_the_page(tmp_path):
    path = results_file(tmp_path, ours=torch.sin)
    data = suite.results.load(path)
    text = suite.report.section("machine", data, tmp_path, tmp_path / "page.md")
    assert "WRONG" in text and "Wrong and not timed" in text


FAKE_BENCH = """
import pytest
import torch
from benchmarks.harness import Case, Job, jobs, matches_twin

def case(op, ours):
    return Case(family="fake", op=op, shape=(8,), setup=lambda device: (torch.ones(8),),
                competitors={"ours": ours, "eager": torch.exp},
                check=matches_twin(ours, torch.exp, keyed=False))

@pytest.mark.parametrize("job", jobs([case("right", torch.exp), case("wrong", torch.sin)]), ids=str)
def test_fake(job, bench):
    bench(job)
"""


def test_pytest_benchmark_runs_it_and_a_wrong_kernel_fails_the_run(tmp_path):
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "bench_fake.py").write_text(FAKE_BENCH)
    shown, kept = tmp_path / "shown.json", tmp_path / "kept.json"
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-only", f"--benchmark-json={shown}"]
    command += [
        "--import-mode=importlib",
        "-o",
        "addopts=",
        "-p",
        "benchmarks.conftest",
        "--rootdir",
        str(tmp_path),
    ]
    command += ["--bench-quick", f"--bench-output={kept}", str(tmp_path / "bench_fake.py")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "wrong result, not timed" in run.stdout
    rows = suite.results.load(kept)["rows"]
    assert {row["op"]: row["status"] for row in rows.values()} == {"right": "ok", "wrong": "wrong"}
    (benchmark,) = json.loads(shown.read_text())["benchmarks"]
    # pytest-benchmark's own statistics are those of our samples.
    right = next(row for row in rows.values() if row["op"] == "right")
    assert benchmark["stats"]["median"] == pytest.approx(right["seconds"]["ours"], rel=1e-6)
