"""The C++ tests, plain and under the address and undefined-behaviour sanitizers. Nothing in them needs Python."""

import xml.etree.ElementTree as ElementTree

import pytest
from cmake_build import BUILDS, build, run, tool


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
def test_ctest(name, tmp_path):
    folder = build(name)
    report = tmp_path / "ctest.xml"
    run(tool("ctest"), "--output-on-failure", "--output-junit", report, cwd=folder)
    results = {case.get("name"): case.get("status") for case in ElementTree.parse(report).iter("testcase")}
    assert {"philox", "elementary", "arguments", "capi_c", "capi_portable"} <= set(results)
    # A test may be skipped for an instruction set that this machine lacks, for no other reason.
    others = {test for test, status in results.items() if status != "run"}
    assert others <= {"capi_avx2", "capi_avx512", "capi_amx"}, f"not run: {others}"
