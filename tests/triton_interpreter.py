"""Run the Triton kernels on the CPU, in Triton's interpreter.

Triton reads TRITON_INTERPRET when a kernel is decorated, so the interpreter is a process of its own, which
this file is when it is run as a script: it answers calls over a pipe.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def load_kernels() -> ModuleType:
    """The kernels of this source tree, which need torch and triton and nothing that is built."""
    name = "variate_kernels_of_the_source_tree"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "kernels" / "__init__.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class Interpreter:
    """interpreter.normal_rsample(mean, log_var, key, 0) is kernels.normal_rsample of the same, interpreted.

    A kernel that fills its first argument leaves this process's tensor alone, and the filled one is returned;
    of one that fills others, interpreter.filled(name, *args) is all arguments after the call.
    """

    def __init__(self) -> None:
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            result, filled = self._ask(name, args)
            return filled[0] if result is None else result

        return call

    def filled(self, name: str, *args: Any) -> Any:
        return self._ask(name, args)[1]

    def set(self, module: str, **constants: Any) -> None:
        """Gives constants of kernels/<module>.py other values."""
        self._ask("", (module, constants))

    def _ask(self, name: str, args: tuple[Any, ...]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump((name, args), self._process.stdin)
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self._process.communicate()


def _serve() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a kernel prints is no answer
    kernels = load_kernels()
    while True:
        try:
            name, args = pickle.load(requests)
        except EOFError:
            return
        try:
            if not name:
                vars(sys.modules[f"{kernels.__name__}.{args[0]}"]).update(args[1])
                answer: Any = None, args
            else:
                answer = getattr(kernels, name)(*args), args
        except Exception as error:
            answer = RuntimeError(f"{name}: {error!r}")
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
