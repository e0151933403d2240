"""The command line, ``python -m variate``: what is installed, a training run, and the demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import variate

from .._optional import MissingExtra
from ..checkpoint import CheckpointError
from . import demo, info, train
from ._arguments import CommandError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it went well, 1 if a check or the command failed, 2 for a wrong command line."""
    parser = _parser()
    args = parser.parse_args(argv)
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
        epilog="For a CMake project: cmake -DCMAKE_PREFIX_PATH=$(python -m variate --cmakedir), then find_package(variate).",
    )
    parser.set_defaults(command=None)
    parser.add_argument(
        "--version", action=_Print, read=lambda: f"variate {variate.__version__}", help="print the version"
    )
    parser.add_argument(
        "--cmakedir",
        action=_Print,
        read=lambda: variate.cmake_dir(),
        help="print the folder of the CMake config",
    )
    parser.add_argument(
        "--includedir",
        action=_Print,
        read=lambda: variate.include_dir(),
        help="print the folder of the headers",
    )
    parser.add_argument(
        "--libdir", action=_Print, read=lambda: variate.lib_dir(), help="print the folder of the library"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (info, train, demo):
        module.add_command(commands)
    return parser


class _Print(argparse.Action):
    """A flag that prints one line and ends, like argparse's own version action."""

    def __init__(self, *args, read, **kwargs):
        super().__init__(*args, nargs=0, **kwargs)
        self.read = read

    def __call__(self, parser, namespace, values, option_string=None):
        print(self.read())
        parser.exit()
