"""The benchmark suite: ``python -m benchmarks`` measures, ``python -m benchmarks.report`` draws."""

import os

# Read when torch is first used: without them its memory profiler writes notes of its own into the output.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
