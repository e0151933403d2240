"""Keys and draws: :mod:`variate.functional.random` under the name that people write."""

from .functional.random import *  # noqa: F403
from .functional.random import __all__ as __all__
