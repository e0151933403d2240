"""Optional packages: imported where they are used, with one clear line where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["MissingExtra", "require"]


class MissingExtra(ImportError):
    """An optional package is not installed."""


def require(module: str, extra: str = "demo") -> ModuleType:
    """Import ``module``, or say which extra of variate installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise  # it is installed; something that it needs is not
        raise MissingExtra(f'{package} is not installed: pip install "variate[{extra}]"') from None
