"""Runs the distribution tests of PyTorch and Pyro with and without variate.patch, and prints what differs.

    python tests/conformance.py PYTORCH [PYRO] [-k EXPRESSION] [--timeout SECONDS]

PYTORCH and PYRO are checkouts of their repositories, of the versions that are installed; their tests need scipy,
expecttest and pytest. Exits with 1 where a test has another outcome with the patch than without it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

PLUGIN = "import variate\nvariate.patch.torch_distributions()\n"


def outcomes(test: Path, root: Path, patched: bool, expression: str, timeout: float) -> dict[str, str]:
    """The outcome of each test of a file, or of the file where it does not end."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        (Path(folder) / "patched_by_variate.py").write_text(PLUGIN if patched else "")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "patched_by_variate", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", str(test), *(["-k", expression] if expression else [])]
        try:
            subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=timeout)
            cases = ElementTree.parse(report).getroot().iter("testcase")
        except (subprocess.TimeoutExpired, FileNotFoundError) as error:
            return {test.name: type(error).__name__}
        return {f"{case.get('classname')}.{case.get('name')}": outcome(case) for case in cases}


def outcome(case: ElementTree.Element) -> str:
    tags = {child.tag for child in case}
    return next((tag for tag in ("failure", "error", "skipped") if tag in tags), "passed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pytorch", type=Path)
    parser.add_argument("pyro", type=Path, nargs="?")
    parser.add_argument("-k", dest="expression", default="", help="as pytest's")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each file")
    options = parser.parse_args()
    tests = [(path, path.parent) for path in sorted(options.pytorch.glob("test/distributions/test_*.py"))]
    if options.pyro:
        tests += [(path, options.pyro) for path in sorted(options.pyro.glob("tests/distributions/test_*.py"))]
    if not tests:
        parser.error(f"no test/distributions in {options.pytorch}")
    different = 0
    for test, root in tests:
        stock, patched = (
            outcomes(test.resolve(), root.resolve(), flag, options.expression, options.timeout)
            for flag in (False, True)
        )
        passed = [sum(result == "passed" for result in results.values()) for results in (stock, patched)]
        print(f"{test.name}: {passed[0]} of {len(stock)} pass without the patch, {passed[1]} with it", flush=True)
        for name in sorted(stock.keys() | patched.keys()):
            if stock.get(name) != patched.get(name):
                different += 1
                print(f"  {name}: {stock.get(name)} without, {patched.get(name)} with")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
