"""Runs the distribution tests of PyTorch and Pyro, and the scheduler tests of diffusers, with and without
variate.patch, and prints what differs.

    python tests/conformance.py [PYTORCH] [PYRO] [--diffusers DIFFUSERS] [-k EXPRESSION] [--timeout SECONDS]

PYTORCH, PYRO and DIFFUSERS are checkouts of their repositories, of the versions that are installed; their tests need
scipy, expecttest, parameterized, torchsde and pytest. Exits with 1 where a test has another outcome with the patch than
without it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

PLUGIN = "import variate\nvariate.patch.torch_distributions()\n"
DIFFUSERS = {
    "": "",
    "patch": "import variate\nvariate.schedulers.noise('torch')\nvariate.patch.diffusers()\n",
    "subclasses": """import diffusers, variate
variate.schedulers.noise('torch')
for name in variate.schedulers.CLASSES:
    setattr(diffusers, name, getattr(variate.schedulers, name))
""",
}


def diffusers_outcomes(checkout: Path, way: str, expression: str = "", timeout: float = 600) -> dict[str, str]:
    """The outcomes of diffusers' scheduler tests with its own classes, or by one of the ways of DIFFUSERS with ours."""
    tests = sorted(checkout.resolve().glob("tests/schedulers/test_*.py"))
    found = outcomes(tests, checkout.resolve(), DIFFUSERS[way], expression, timeout)
    # A class of the same name stands in a module of another one.
    return {name.removeprefix("tests.schedulers."): result for name, result in found.items()}


def outcomes(tests: Sequence[Path], root: Path, plugin: str, expression: str, timeout: float) -> dict[str, str]:
    """The outcome of each test of some files, or of the files where they do not end."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        (Path(folder) / "patched_by_variate.py").write_text(plugin)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "patched_by_variate", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", *map(str, tests), *(["-k", expression] if expression else [])]
        try:
            subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=timeout)
            cases = ElementTree.parse(report).getroot().iter("testcase")
        except (subprocess.TimeoutExpired, FileNotFoundError) as error:
            return {tests[0].name: type(error).__name__}
        return {f"{case.get('classname')}.{case.get('name')}": outcome(case) for case in cases}


def outcome(case: ElementTree.Element) -> str:
    tags = {child.tag for child in case}
    return next((tag for tag in ("failure", "error", "skipped") if tag in tags), "passed")


def report(name: str, stock: dict[str, str], patched: dict[str, str]) -> int:
    """Prints what differs, and returns how many do."""
    passed = [sum(result == "passed" for result in results.values()) for results in (stock, patched)]
    print(f"{name}: {passed[0]} of {len(stock)} pass without the patch, {passed[1]} with it", flush=True)
    different = [test for test in sorted(stock.keys() | patched.keys()) if stock.get(test) != patched.get(test)]
    for test in different:
        print(f"  {test}: {stock.get(test)} without, {patched.get(test)} with")
    return len(different)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pytorch", type=Path, nargs="?")
    parser.add_argument("pyro", type=Path, nargs="?")
    parser.add_argument("--diffusers", type=Path)
    parser.add_argument("-k", dest="expression", default="", help="as pytest's")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each file")
    options = parser.parse_args()
    tests = [(path, path.parent) for path in sorted((options.pytorch or Path()).glob("test/distributions/test_*.py"))]
    if options.pyro:
        tests += [(path, options.pyro) for path in sorted(options.pyro.glob("tests/distributions/test_*.py"))]
    if not tests and not options.diffusers:
        parser.error(f"no test/distributions in {options.pytorch}")
    different = 0
    for test, root in tests:
        stock, patched = (
            outcomes([test.resolve()], root.resolve(), plugin, options.expression, options.timeout)
            for plugin in ("", PLUGIN)
        )
        different += report(test.name, stock, patched)
    if options.diffusers:
        stock, patched, ours = (
            diffusers_outcomes(options.diffusers, way, options.expression, options.timeout) for way in DIFFUSERS
        )
        different += report("diffusers, patched", stock, patched) + report("diffusers, subclasses", stock, ours)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
