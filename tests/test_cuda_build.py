"""The CUDA kernels as nvcc compiles them: no spills, 16-byte accesses, no contraction. No GPU is needed."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
CAPABILITIES = (80, 90)

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH"),
    pytest.mark.skipif(not SOURCES, reason="the CUDA sources are not beside the tests"),
]

# A dense float32 kernel reads and writes 16 bytes at a time, unless it has no input or writes one number
# per row.
NO_INPUT = {("random", "fill_kernel")}
# A thread is a pixel here, whose neighbour's values lie beside its own, or a word of spins.
WITHOUT_QUADS = {"logistic", "lattice"}
ONE_PER_ROW = {("random", "categorical_kernel"), ("elbo", "forward_kernel"), ("denoise", "moments_kernel")}


class Kernel(NamedTuple):
    family: str
    name: str
    capability: int
    registers: int
    stack: int
    spilled: int
    ptx: str


def demangle(names):
    """{mangled: name without namespaces and parameters}"""
    filt = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    noise = re.compile(r"variate::cuda::|\(anonymous namespace\)::|^void ")
    short = [noise.sub("", line).split("(")[0] for line in filt.stdout.splitlines()]
    return dict(zip(names, short, strict=True))


def resource_reports(log):
    """{(mangled name, capability): (registers, stack bytes, spilled bytes)}, from `-Xptxas -v`."""
    pattern = (
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    return {
        (name, int(capability)): (int(registers), int(stack), int(stores) + int(loads))
        for name, capability, stack, stores, loads, registers in re.findall(pattern, log, re.DOTALL)
    }


@pytest.fixture(scope="module", params=SOURCES, ids=lambda path: path.stem)
def kernels(request, tmp_path_factory):
    """Every kernel of one source file, for every capability."""
    folder = tmp_path_factory.mktemp(request.param.stem)
    source = request.param
    command = [
        "nvcc",
        "--fatbin",
        str(source),
        "-o",
        "out.fatbin",
        "--keep",
        "-I",
        str(ROOT / "csrc/include"),
    ]
    command += ["-std=c++20", "-fmad=false", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
    for capability in CAPABILITIES:
        command += ["-gencode", f"arch=compute_{capability},code=sm_{capability}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = resource_reports(done.stdout + done.stderr)
    names = demangle(sorted({name for name, _ in reports}))
    found = []
    for capability in CAPABILITIES:
        ptx = (folder / f"{source.stem}.compute_{capability}.ptx").read_text()
        for name, body in re.findall(r"\.entry (\w+)\((.*?)\n}\n", ptx, re.DOTALL):
            found.append(Kernel(source.stem, names[name], capability, *reports[name, capability], body))
    assert len(found) == len(reports) > 0
    return found


def test_no_kernel_spills(kernels):
    bad = [
        f"{k.name} sm_{k.capability}: {k.stack} bytes of stack, {k.spilled} spilled"
        for k in kernels
        if k.stack or k.spilled
    ]
    assert not bad, "\n".join(bad)


def test_no_kernel_uses_local_memory(kernels):
    bad = [f"{k.name} sm_{k.capability}" for k in kernels if re.search(r"\b(ld|st)\.local|\.local \.", k.ptx)]
    assert not bad, "\n".join(bad)


def test_dense_float32_kernels_access_16_bytes(kernels):
    dense = [k for k in kernels if "Dense<float>" in k.name]
    assert dense or kernels[0].family in WITHOUT_QUADS
    bad = []
    for k in dense:
        kernel = (k.family, k.name.split("<")[0])
        accesses = ["ld"] * (kernel not in NO_INPUT) + ["st"] * (kernel not in ONE_PER_ROW)
        for access in accesses:
            if not re.search(rf"\b{access}\.global[\w.]*\.v4\.[bfu]32", k.ptx):
                bad.append(f"{k.name} sm_{k.capability}: {access}.global")
    assert not bad, "\n".join(bad)


def test_nothing_is_contracted(kernels):
    """An `add` or `mul` without a rounding mode is one that ptxas may fuse; each of ours says `.rn`."""
    bad = []
    for k in kernels:
        loose = set(re.findall(r"\b(?:(?:add|sub|mul|mad)\.f(?:32|64)|\w+\.(?:approx|ftz)[\w.]*f32)\b", k.ptx))
        if loose:
            bad.append(f"{k.name} sm_{k.capability}: {', '.join(sorted(loose))}")
    assert not bad, "\n".join(bad)


def test_the_build_forbids_contraction():
    assert "-fmad=false" in (ROOT / "cmake" / "library.cmake").read_text()
