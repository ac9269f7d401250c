"""Simulated boards up and down."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rk3588 import children
from rk3588.boards import NAME, Board
from rk3588.errors import TargetError, UsageError

from . import SimBoard, alive, find, home, tree

_UP_SECONDS = 30.0


def new_key(path: Path) -> str:
    """A new ed25519 key at ``path`` and its public half beside it; returns ``TYPE BASE64``."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.touch(mode=0o600)
    path.write_bytes(private)
    path.with_suffix(".pub").write_bytes(public + b"\n")
    return public.decode()


def prepare(name: str) -> Path:
    """The folder of a new board; UsageError if there is one of this name that is up."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r}: names have small letters, digits, dots and dashes only")
    there = find(name)
    if there and alive(there.pid):
        raise UsageError(f"{name} is up already: rk3588 board down {name}")
    folder = home() / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise TargetError(f"cannot make {folder}: {error.strerror}") from error
    return folder


def up(name: str, board: Board) -> SimBoard:
    """A board without root; it stays up until ``down`` or a reboot of this machine."""
    folder = prepare(name)
    (folder / "home").mkdir()
    tree.whole(folder / "tree", board)
    for key in ("id", "host_key"):
        new_key(folder / key)
    with (folder / "log").open("wb") as log:
        child = children.python("rk3588.simboard.server", str(folder))
        done = subprocess.run(
            child.command, env=child.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=_UP_SECONDS
        )
    deadline = time.monotonic() + _UP_SECONDS
    while done.returncode == 0 and time.monotonic() < deadline:
        found = find(name)
        if found:
            return found
        time.sleep(0.02)
    said = (folder / "log").read_text(errors="replace").strip().splitlines()
    raise TargetError(f"the simulated board did not come up: {said[-1] if said else 'no answer'}")


def down(name: str) -> None:
    """End a board and everything that was started on it; UsageError if there is none."""
    board = find(name)
    if board is None:
        raise UsageError(f"there is no simulated board {name!r}")
    if board.kind == "nspawn":
        from .nspawn import down as end_container

        end_container(board.folder)
    else:
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):  # again: one may just have started another
            living = [board.pid, *started_on(board.folder)]
            for pid in living:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            _wait_for_end(living)
    shutil.rmtree(board.folder, ignore_errors=True)


def _wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline and any(alive(pid) for pid in pids):
        time.sleep(0.05)


def started_on(folder: Path) -> list[int]:
    """Processes whose environment is that of the board in ``folder``."""
    mark, found = f"RKBOARD_SYSROOT={folder / 'tree'}\0".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found
