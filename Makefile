# The commands of the README. Everything lands in .venv, build and runs; `make clean` removes them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GPU_PYTHON ?= python3
CXX_FILES = $(shell git ls-files '*.cpp' '*.hpp' '*.h' '*.c' '*.cu' '*.cuh')
SOURCES := CMakeLists.txt pyproject.toml $(shell find cmake csrc -type f 2>/dev/null)

.PHONY: help demo test bench lint format clean gpu gpu-build gpu-test gpu-sanitize gpu-bench

help:
	@echo "make demo    train a VAE, a Boltzmann machine and a denoiser on real digits, stock and fused; write runs/demo/report.html"
	@echo "make test    every test"
	@echo "make bench   the benchmark suite against PyTorch; tables in docs/benchmarks.md"
	@echo "make lint    ruff, mypy and clang-format; make format mends what they can"
	@echo "make gpu     build, tests, compute-sanitizer and benchmarks on a CUDA GPU, in the Python of GPU_PYTHON"
	@echo "make clean   remove .venv, build and runs"

$(VENV)/requirements: requirements.txt
	@command -v $${CXX:-c++} >/dev/null || { echo "variate needs a C++20 compiler: on Debian and Ubuntu, apt install g++ python3-dev python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "variate needs Python 3.10 or newer; PYTHON=... names another"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/installed: $(VENV)/requirements $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --config-settings=build-dir=build/editable --editable .
	@touch $@

demo: $(VENV)/installed
	$(BIN)/python -m variate demo --out runs/demo

test: $(VENV)/installed
	$(BIN)/python -m pytest

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.report

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# On a GPU machine, in the Python that has its torch: nothing is downloaded. Each part adds to the device's results file.
gpu: gpu-build gpu-test gpu-sanitize gpu-bench

gpu-build gpu-test gpu-sanitize gpu-bench: gpu-%:
	$(GPU_PYTHON) -m benchmarks.gpu $*

clean:
	rm -rf $(VENV) build runs
