"""A folder that appears whole or not at all, and that two processes do not both make."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import files
from .errors import TargetError, TargetTaken

_RANDOM = "[a-z0-9_]" * 8  # what tempfile puts into a name


@contextmanager
def new_folder(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes ``final`` when the block ends well, and vanishes when it does not."""
    if final.exists() and not replace:
        raise _taken(final)
    new_parents = [folder for folder in final.parents if not files.exists(folder)]
    try:
        try:
            folder, lock = _locked_folder(final, replace)
        except FileNotFoundError:  # another that failed took the parent away, which it had made
            folder, lock = _locked_folder(final, replace)
    except OSError as error:
        _remove_empty(new_parents)
        raise TargetError(f"cannot write to {final.parent}: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        with _locked(final.parent):
            if final.exists():
                if not replace:  # it was made meanwhile
                    raise _taken(final)
                shutil.rmtree(final)
            folder.rename(final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(new_parents)
        raise
    finally:
        os.close(lock)


def _remove_empty(folders: list[Path]) -> None:
    """Those that were made on the way, the innermost first, as far as nothing lies in them."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _taken(final: Path) -> TargetTaken:
    return TargetTaken(f"{final} exists already: remove it, choose another -o, or give --overwrite")


def _locked_folder(final: Path, replace: bool) -> tuple[Path, int]:
    """A temporary folder for ``final``, and the open descriptor that holds a lock on it.

    A folder like it that nobody holds is what a killed process left: it goes. One that is held is of a process that
    is making ``final``: TargetTaken, unless it is to be replaced. The parent is locked meanwhile, so that nobody takes
    one for left that was made a moment ago.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    with _locked(final.parent):
        for other in final.parent.glob(f".{glob.escape(final.name)}.{_RANDOM}.part"):
            if _is_left(other):
                shutil.rmtree(other, ignore_errors=True)
            elif not replace:
                raise TargetTaken(f"another process is writing {final}: wait for it, or choose another -o")
        folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent))
        lock = os.open(folder, os.O_RDONLY)
        _lock(lock, fcntl.LOCK_EX)
        return folder, lock


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY)
    try:
        _lock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, how: int) -> bool:
    """Whether the lock was had; True as well where the file system has no locks."""
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        return False
    except OSError:
        return not how & fcntl.LOCK_NB
    return True


def _is_left(folder: Path) -> bool:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        return _lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
