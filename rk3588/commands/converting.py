"""What of the ``rk3588`` command rkconvert does: found by name, for a board does without it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from rk3588.errors import UsageError


def converter(module: str, what: str) -> ModuleType:
    """A module of rkconvert; UsageError, which begins with ``what`` is asked of it, where that is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        way = f": pip install 'rk3588[convert]' (there is no {error.name})"
        if sys.version_info < (3, 10):
            way = ", which needs Python 3.10 or newer: ask where there is one"
        raise UsageError(f"{what} by rkconvert{way}") from error
