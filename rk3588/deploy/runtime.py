"""Which librkllmrt.so a file is, without loading it: it may be built for another processor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rk3588.errors import LibraryError

_MACHINES = {62: "x86_64", 183: "aarch64"}
_VERSION = re.compile(r"(?:rkllm-runtime|librkllmrt) version: (\d+\.\d+(?:\.\d+)?)")
_SAID = re.compile(rb"(?:rkllm-runtime|librkllmrt) version: [0-9.]+|rkllm_[a-z_]+|rksim_[a-z_]+|GLIBC_2\.\d+")


@dataclass(frozen=True)
class Library:
    """A shared library on this host: ``version`` "1.1.1", or "1.1" where only its functions tell."""

    path: Path
    machine: str
    version: str
    simulated: bool
    glibc: tuple[int, int]  # the newest it asks for


def version_in(text: str) -> str:
    """The release, by its version string, else by the functions it exports; "?" for no librkllmrt."""
    match = _VERSION.search(text)
    if match:
        return match[1]
    if "rkllm_init" not in text:
        return "?"
    if "rkllm_clear_kv_cache" in text:
        return "1.2 or newer"
    return "1.1" if "rkllm_run_async" in text else "1.0"


def read(path: Path) -> Library:
    """What ``path`` is; LibraryError if it is no shared library for a 64-bit machine we know."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LibraryError(f"cannot read {path}: {error.strerror}") from error
    machine = _MACHINES.get(int.from_bytes(data[18:20], "little")) if data[:4] == b"\x7fELF" else None
    if machine is None:
        raise LibraryError(f"{path} is not a shared library for aarch64 or x86-64: give Rockchip's librkllmrt.so")
    said = {match.decode() for match in _SAID.findall(data)}
    glibc = [(2, int(word[8:])) for word in said if word.startswith("GLIBC_2.")]
    simulated = b"RKSIM_" in data or any(word.startswith("rksim_") for word in said)
    return Library(path, machine, version_in("\n".join(said)), simulated, max(glibc, default=(2, 17)))
