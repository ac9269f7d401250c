"""The daemon and the libraries that go into a release: found on this host, and checked against the board."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Optional

from rk3588 import elf, rkllm, runtime
from rk3588.errors import DeployError, LibraryError
from rk3588.resources import packaged, source_tree

from .facts import Facts

# What each option wants, and how to say it.
_GIVEN = {
    "--runtime": ("librkllmrt.so", "Rockchip's librkllmrt.so"),
    "--sim-library": ("librksim.so", "the librksim.so for the board"),
    "--sim-runtime": ("librkllmrt.so", "the simulated librkllmrt.so for the board"),
}
_CROSS_COMPILED = ("aarch64", "x86_64")  # what `make` builds on another machine


def find_daemon() -> Path:
    """``rkchatd.pyz``: of the package, else what ``make pyz`` built in this source tree."""
    for candidate in (_packaged("rkchatd.pyz"), _built("rkchatd.pyz")):
        if candidate and candidate.is_file():
            return candidate
    if source_tree():
        raise DeployError("rkchatd.pyz is not built yet: run `make pyz`, or give --daemon FILE")
    raise DeployError(
        "rkchatd.pyz is not in this installation, which was made without a network: install rk3588 again with one, or "
        "run `make pyz` in a clone of its sources and give --daemon build/rkchatd.pyz of there"
    )


def find_library(name: str, machine: str) -> Path:
    """Our own library for the board's processor: this machine's, or what ``make aarch64`` built.

    ``name``: as it lies in ``lib/``, for a simulated runtime of another release with its folder.
    """
    candidates = [_packaged(f"lib/{machine}/{name}"), _built(f"{machine}/{name}")]
    if machine in ("", runtime.this_machine()):
        candidates.append(_packaged(f"lib/{name}"))
    for candidate in candidates:
        if candidate and candidate.is_file():
            return candidate
    options = {"librksim.so": "--sim-library", **({} if name == "librksim.so" else {name: "--sim-runtime"})}
    if machine not in _CROSS_COMPILED:
        raise LibraryError(f"there is no {name} for {machine} here: compile it there, and give {options[name]} FILE")
    if source_tree():
        raise LibraryError(f"{name} for {machine} is not built yet: run `make {machine}`, or give {options[name]} FILE")
    given = " ".join(f"{option} build/{machine}/{file}" for file, option in options.items())
    raise LibraryError(
        f"this installation has {' and '.join(options)} for {runtime.this_machine()} only, and the board is {machine}: "
        f"run `make {machine}` in a clone of rk3588's sources and give {given} of there"
    )


def _built(name: str) -> Optional[Path]:
    top = source_tree()
    return top / "build" / name if top else None


def _packaged(name: str) -> Optional[Path]:
    try:
        return packaged(name)
    except LibraryError:
        return None


def read_library(path: Path, option: str) -> runtime.Library:
    """The library ``path``, given with ``option``; LibraryError where it is another file."""
    what, give = _GIVEN[option]
    library = runtime.read(path, what, give)
    if option == "--runtime":
        check_is_rockchips(library)
    elif option == "--sim-runtime":
        if not library.simulated or library.version == rkllm.UNKNOWN:
            raise LibraryError(f"{path} is not the simulated runtime: give {give}")
    elif not elf.exported(runtime.content(path, what), "rksim_", path):
        raise LibraryError(f"{path} is no {what}: give {give}")
    return library


def check_daemon(path: Path) -> None:
    """DeployError for what is no rkchatd.pyz."""
    if not zipfile.is_zipfile(path):
        raise DeployError(f"{path} is no rkchatd.pyz: build it with `make pyz`")


def read_for_board(path: Path, facts: Facts, option: str) -> runtime.Library:
    """The library ``path``, given with ``option``; LibraryError where this board could not load it."""
    library = read_library(path, option)
    if facts.machine and library.machine != facts.machine:
        machines = f"built for {library.machine}, the board is {facts.machine}"
        raise LibraryError(f"{path} is {machines}: give the file for {facts.machine} with {option}")
    newest = tuple(int(part) for part in facts.libc.removeprefix("glibc ").split(".") if part.isdigit())
    if facts.libc.startswith("glibc ") and library.glibc > newest:
        raise LibraryError(
            f"{path} needs glibc {library.glibc[0]}.{library.glibc[1]}, the board has {facts.libc[6:]}: give {option}, "
            "built for an older one (make aarch64 builds for 2.28)"
        )
    return library


def check_is_rockchips(library: runtime.Library) -> None:
    """LibraryError for the simulated runtime, and for a release of Rockchip's that this toolkit does not speak."""
    if library.simulated:
        raise LibraryError(f"{library.path} is the simulated runtime: say --runtime sim for it")
    if not rkllm.is_spoken(library.version):
        raise LibraryError(
            f"{library.path} is librkllmrt {library.version}; this toolkit speaks {rkllm.SPOKEN_RELEASES}: fetch one "
            f"of those, {rkllm.RELEASE} say (see README)"
        )
