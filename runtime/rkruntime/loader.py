"""Loads a librkllmrt.so, once it is known which release it is, and applies that release's table to it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

from rk3588.errors import LibraryError
from rk3588.library_version import PathLike as PathLike
from rk3588.library_version import identity, version_of

from . import abi_1_1, abi_1_2_0, abi_1_2_1, abi_1_3
from .abi import Features, Table

TABLES = {structs.VERSION: Table(structs) for structs in (abi_1_1, abi_1_2_0, abi_1_2_1, abi_1_3)}
_identities: dict[Path, tuple[int, ...]] = {}  # of what this process has loaded, which stays loaded


class Loaded(NamedTuple):
    library: ctypes.CDLL
    table: Table
    version: str  # "1.2.3"; "1.2.1" too where it does not say which of its family it is


def load(path: PathLike) -> Loaded:
    """The library at ``path`` with its signatures applied, and the table that fits it. LibraryError where there is
    none. Nothing in it is called here."""
    release = version_of(path)
    table, absolute = TABLES[release.family], Path(path).absolute()
    which = identity(path)
    if _identities.get(absolute, which) != which:  # dlopen would give the old one, which has the same name
        raise LibraryError(f"{path} was replaced since this process loaded it: start the program again")
    try:
        library = ctypes.CDLL(str(absolute))
    except OSError as error:
        raise LibraryError(f"cannot load {path}: {error}") from error
    _identities[absolute] = which
    for name, (restype, argtypes) in table.signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = restype, argtypes
        if name in table.error_checkers:
            function.errcheck = table.error_checkers[name]
    return Loaded(library, table, release.version)


def features_of(path: PathLike) -> Features:
    """What the library at ``path`` can do; it is not loaded. LibraryError as above."""
    return TABLES[version_of(path).family].features
