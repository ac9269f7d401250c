"""Loads a librkllmrt.so: refuses what it cannot speak to, and applies the table to it."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Union

from rk3588 import rkllm
from rk3588.errors import LibraryError
from rk3588.runtime import this_machine

from . import abi_1_1
from .abi import Table

PathLike = Union[str, "os.PathLike[str]"]
TABLES: dict[str, Table] = {abi_1_1.VERSION: abi_1_1}

_ELF_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


def load(path: PathLike) -> tuple[ctypes.CDLL, Table]:
    """The library at ``path`` with its signatures applied, and the table that fits it. Nothing in it is called."""
    _check_file(Path(path))
    try:
        library = ctypes.CDLL(str(Path(path).absolute()))
    except OSError as error:
        raise LibraryError(f"cannot load {path}: {error}") from error
    table = TABLES.get(version_of(library, path))
    if table is None:
        raise LibraryError(
            f"{path} is librkllmrt {version_of(library, path)}, whose structs differ; this version speaks "
            f"{', '.join(TABLES)}.x: install librkllmrt {rkllm.RELEASE}"
        )
    for name, (restype, argtypes) in table.SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise LibraryError(f"{path} has no {name}: it is not a whole librkllmrt 1.1") from error
        function.restype, function.argtypes = restype, argtypes
        if name in table.ERROR_CHECKERS:
            function.errcheck = table.ERROR_CHECKERS[name]
    return library, table


def version_of(library: ctypes.CDLL, path: PathLike) -> str:
    """The release by the functions it exports: a struct of the wrong layout must never reach ``rkllm_init``."""
    found = rkllm.version_of_functions({name for name in rkllm.TELLING if hasattr(library, name)})
    if found == rkllm.UNKNOWN:
        raise LibraryError(f"{path} is not librkllmrt: it has no rkllm_init")
    return found


def _check_file(path: Path) -> None:
    """What the dynamic loader says badly: "No such file" of another processor's library, a crash on half of one."""
    try:
        with path.open("rb") as file:
            header = file.read(64)
            size = os.fstat(file.fileno()).st_size
            if len(header) < 64 or header[:4] != b"\x7fELF":
                raise LibraryError(f"{path} is not a shared library: give the path of a librkllmrt.so")
            machine = int.from_bytes(header[18:20], "little")
            built_for = _ELF_MACHINES.get(machine, f"machine {machine}")
            here = this_machine()
            if built_for != here:
                raise LibraryError(f"{path} is built for {built_for}, this machine is {here}: fetch the one for {here}")
            segments_at, entry, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
            file.seek(segments_at)
            table = file.read(entry * count)
    except OSError as error:
        raise LibraryError(f"cannot read {path}: {error.strerror}") from error
    # Of each segment: its offset in the file at 8, its size there at 32.
    ends = [sum(struct.unpack_from("<8xQ16xQ", table, i)) for i in range(0, len(table) - 39, max(entry, 1))]
    if len(table) < entry * count or any(end > size for end in ends):
        raise LibraryError(f"{path} is cut off at {size} bytes: fetch it again")
