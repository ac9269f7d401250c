"""Which release of RKLLM a librkllmrt.so is, before anything of it runs here: a struct of the wrong layout must never
reach ``rkllm_init``.

First what it exports, read out of the file. Then, where that does not tell, the default parameters that it gives a
child process. Then the version that it names. What contradicts itself is refused.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Union

from . import children, elf, rkllm, runtime
from .errors import LibraryError

PathLike = Union[str, "os.PathLike[str]"]
PROBE_S = 20.0  # a board needs half a second
_MOST_ANSWER = 1 << 16  # bytes


class Release(NamedTuple):
    """``family``: one of ``rkllm.SPOKEN``, the releases with the same structs; ``version``: its own name for itself, or
    the family's where it has none."""

    family: str
    version: str


def version_of(path: PathLike) -> Release:
    """LibraryError, with what was found: no librkllmrt for this machine, or none whose structs are known."""
    return _version_of(Path(path).absolute(), identity(path))


def identity(path: PathLike) -> tuple[int, ...]:
    """Of the file that lies at ``path`` now: another one, and one that was changed, has another."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise LibraryError(f"cannot read {path}: {error.strerror}") from error
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=16)
def _version_of(path: Path, _which: tuple[int, ...]) -> Release:
    data = runtime.content(path)
    built_for, here = elf.machine(data, path), runtime.this_machine()
    if built_for != here:
        raise LibraryError(f"{path} is built for {built_for}, this machine is {here}: fetch the one for {here}")
    family = _by_functions(elf.exported(data, "rkllm_", path), path)
    named = sorted({match.decode() for match in rkllm.VERSION_IN_FILE.findall(data)})
    candidates = (family,) if family != rkllm.SAME_FUNCTIONS[0] else rkllm.SAME_FUNCTIONS
    _check_names(named, candidates, "its functions are", path)
    if len(candidates) > 1:
        family = _by_defaults(path)
        _check_names(named, (family,), "its default parameters are laid out as", path)
    return Release(family, named[0] if named else family)


def _by_functions(exported: frozenset[str], path: Path) -> str:
    """The family; of those that export the same, the first."""
    if "rkllm_init" not in exported:
        raise LibraryError(f"{path} is not librkllmrt: it has no rkllm_init")
    newest = rkllm.OLDEST
    for family, functions in rkllm.FUNCTIONS.items():
        if exported & functions:
            newest = family
    if newest not in rkllm.SPOKEN:
        raise LibraryError(_not_spoken(path, newest))
    for family, functions in rkllm.FUNCTIONS.items():
        missing = sorted(functions - exported)
        if missing:
            raise LibraryError(f"{path} has no {missing[0]}: it is not a whole librkllmrt {newest}, fetch it again")
        if family == newest:
            break
    return newest


def _not_spoken(path: Path, version: str) -> str:
    return (
        f"{path} is librkllmrt {version}, whose structs differ from those that are known here "
        f"({rkllm.SPOKEN_RELEASES}): install librkllmrt {rkllm.RELEASE}"
    )


def _check_names(named: list[str], families: tuple[str, ...], what: str, path: Path) -> None:
    """The versions in the file's text are one, and one of these families."""
    if len(named) > 1:
        raise LibraryError(f"{path} calls itself librkllmrt {' and '.join(named)}: fetch Rockchip's own file")
    for name in named:
        if not rkllm.is_spoken(name):
            raise LibraryError(_not_spoken(path, name))
        if not set(rkllm.families_of(name)) & set(families):
            raise LibraryError(
                f"{path} calls itself librkllmrt {name}, and {what} {' or '.join(families)}'s: it is not what it says, "
                "fetch Rockchip's own file"
            )


def _by_defaults(path: Path) -> str:
    raw = _ask(path)
    found = []
    for family, (mask_at, count_at) in rkllm.CPUS_AT.items():
        mask, count = int.from_bytes(raw[mask_at : mask_at + 4], "little"), raw[count_at]
        found.append((family, mask, count))
    fits = [family for family, *cpus in found if tuple(cpus) == rkllm.DEFAULT_CPUS]
    if len(fits) == 1:
        return fits[0]
    seen = ", ".join(f"as {family}'s they would be mask {mask:#x}, count {count}" for family, mask, count in found)
    mask, count = rkllm.DEFAULT_CPUS
    raise LibraryError(
        f"{path} is librkllmrt {' or '.join(rkllm.SAME_FUNCTIONS)}, and which cannot be told: its default CPUs are not "
        f"mask {mask:#x}, count {count} in one of the two layouts ({seen}): install librkllmrt {rkllm.RELEASE}"
    )


def _ask(path: Path) -> bytes:
    """The default parameters; LibraryError where a child process could not get them."""
    child = children.python("rk3588.library_probe", str(path))
    # What the simulated runtime is told, a trace to write say, is meant for the process that runs models.
    environment = {name: value for name, value in child.environment.items() if not name.startswith("RKSIM_")}
    try:
        process = subprocess.Popen(
            child.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise LibraryError(f"no process could be started to look at {path}: {error.strerror}") from error
    with process:
        try:
            answer, _ = process.communicate(timeout=PROBE_S)
        except subprocess.TimeoutExpired:
            _end(process)
            raise LibraryError(f"{path} did not give its default parameters within {PROBE_S:.0f} s: it hangs") from None
        except BaseException:
            _end(process)
            raise
    return _defaults_in(answer[:_MOST_ANSWER], process.returncode, path)


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def _defaults_in(answer: bytes, code: int, path: Path) -> bytes:
    try:
        said = json.loads(answer)
        if "error" in said:
            raise LibraryError(f"cannot load {path}: {said['error']}")
        return bytes.fromhex(said["defaults"])
    except (ValueError, KeyError, TypeError):
        pass
    by = f"was ended by {children.signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    raise LibraryError(f"{path} cannot be asked for its default parameters: the process that did {by}")
