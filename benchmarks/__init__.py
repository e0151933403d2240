"""The benchmark suite: ``python -m benchmarks`` measures, ``python -m benchmarks.report`` draws."""
