"""The command line, ``python -m variate``: what is installed, a training run, a lattice, and the demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import variate

from .._optional import MissingExtra
from ..checkpoint import CheckpointError
from . import demo, info, sample, train
from ._arguments import CommandError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it went well, 1 if a check or the command failed, 2 for a wrong command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.answer is not None:
        print(args.answer())
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    try:
        return args.command(args)
    except (CommandError, CheckpointError, MissingExtra, OSError) as error:
        print(f"variate: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("variate: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m variate",
        description="Fused kernels for deep generative models in PyTorch.",
        epilog="In a CMake project: cmake -Dvariate_DIR=$(python -m variate --cmakedir), and find_package(variate).",
    )
    parser.set_defaults(command=None, answer=None)
    for name, answer, what in (
        ("version", lambda: f"variate {variate.__version__}", "the version"),
        ("cmakedir", lambda: variate.cmake_dir(), "the folder of the CMake config"),
        ("includedir", lambda: variate.include_dir(), "the folder of the headers"),
        ("libdir", lambda: variate.lib_dir(), "the folder of the library"),
    ):
        parser.add_argument(f"--{name}", dest="answer", action="store_const", const=answer, help=f"print {what}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (info, train, sample, demo):
        module.add_command(commands)
    return parser
