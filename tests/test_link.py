"""C and C++ programs link the library, from the Python package and from a plain install, and print Python's numbers."""

import sys
from pathlib import Path

import pytest
import torch
from cmake_build import ROOT, build, needs_compiler, run, tool

import variate

EXAMPLE = ROOT / "examples" / "link_c"


def build_example(folder, *options):
    """The folder of the built programs, which find the library by `options` alone."""
    run(tool("cmake"), "-S", EXAMPLE, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", *options)
    run(tool("cmake"), "--build", folder)
    return folder


@pytest.fixture(scope="module")
def from_package(tmp_path_factory):
    needs_compiler()
    if not EXAMPLE.is_dir():
        pytest.skip("the examples are not beside the tests")
    place = run(sys.executable, "-m", "variate", "--cmakedir").strip()
    return build_example(tmp_path_factory.mktemp("from_package"), f"-Dvariate_DIR={place}")


@pytest.fixture(scope="module")
def from_prefix(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("prefix")
    run(tool("cmake"), "--install", build("plain"), "--prefix", prefix)
    return build_example(tmp_path_factory.mktemp("from_prefix"), f"-DCMAKE_PREFIX_PATH={prefix}")


def python_numbers():
    """What examples/link_c computes."""
    i = torch.arange(12, dtype=torch.float32)
    key = variate.random.key(42)
    mean, log_var = (0.25 * i - 1.0).view(2, 6), (0.5 - 0.125 * i).view(2, 6)
    target = (torch.arange(12) % 3 == 0).to(torch.uint8).view(2, 6)
    normals = variate.random.normal(2, 6, key=key)
    z, kl = variate.functional.normal_rsample_kl(mean, log_var, key=key)
    nll = variate.functional.bernoulli_nll(z, target)
    return {"normal": normals, "own": normals, "z": z, "kl": kl, "nll": nll}


@pytest.mark.parametrize("installed", ["from_package", "from_prefix"])
@pytest.mark.parametrize("program", ["sample_c", "sample_cpp"])
def test_programs_print_the_numbers_of_python(request, installed, program):
    lines = run(request.getfixturevalue(installed) / program).splitlines()
    printed = {name: [float.fromhex(x) for x in numbers] for name, *numbers in map(str.split, lines)}
    expected = python_numbers()
    if program == "sample_c":
        del expected["own"]
    assert printed == {name: x.flatten().tolist() for name, x in expected.items()}


def test_paths_hold_what_they_say():
    assert (Path(variate.cmake_dir()) / "variateConfig.cmake").is_file()
    assert (Path(variate.cmake_dir()) / "variateTargets.cmake").is_file()
    assert (Path(variate.include_dir()) / "variate" / "variate.h").is_file()
    assert (Path(variate.include_dir()) / "variate" / "math" / "random.hpp").is_file()
    assert list(Path(variate.lib_dir()).glob("libvariate.*"))


@pytest.mark.parametrize(
    ("option", "where"),
    [
        ("--cmakedir", variate.cmake_dir),
        ("--includedir", variate.include_dir),
        ("--libdir", variate.lib_dir),
    ],
)
def test_command_line_prints_the_places(option, where):
    assert run(sys.executable, "-m", "variate", option).strip() == where()


def test_installed_headers_are_those_of_the_sources():
    """A header that is not installed would be missed by nobody here but by everyone who links."""
    sources = ROOT / "csrc" / "include"
    if not sources.is_dir():
        pytest.skip("the sources are not beside the tests")
    installed = Path(variate.include_dir())
    names = {p.relative_to(sources) for p in sources.rglob("*.h*")}
    assert names == {p.relative_to(installed) for p in installed.rglob("*.h*")}
