"""The page of public functions: it names every one, and no argument that they lack."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import variate

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "functions.md").read_text()


MODULES = [variate.random, variate.functional, variate.models, variate.diffusion, variate.diffusion.training]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_every_public_name_is_on_the_page(module):
    names = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    assert names and [name for name in names if not re.search(rf"\b{name}\b", PAGE)] == []


def test_arguments_on_the_page_are_those_of_the_functions():
    found = 0
    for name, listed in re.findall(r"`(?:variate\.models\.)?(\w+)\(([^`]*)\)`", PAGE):
        function = getattr(variate.functional, name, None) or getattr(variate.models, name, None)
        if function is None:
            continue
        own = inspect.signature(function).parameters
        arguments = re.findall(r"(?:^|, )(\w+)", listed)
        assert [argument for argument in arguments if argument not in own] == [], name
        found += 1
    assert found > 30
