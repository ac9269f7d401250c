"""Simulated boards up and down."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from rk3588 import children
from rk3588.boards import BoardType
from rk3588.errors import BoardError, UsageError

from . import SimBoard, find, is_alive, nspawn, place_of, tree
from .preparing import discard, make_place, new_key, prepare

_UP_SECONDS = 30.0


def up(name: str, board: BoardType) -> SimBoard:
    """A board without root; it stays up until ``down`` or a reboot of this machine."""
    folder = prepare(name)
    place = make_place(folder)
    (place / "home").mkdir()
    tree.write_all(place / "tree", board)
    for key in ("id", "host_key"):
        new_key(place / key)
    with (folder / "log").open("wb") as log:
        child = children.python("rk3588.simboard.server", str(folder))
        try:
            returned = subprocess.run(
                child.command, env=child.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                timeout=_UP_SECONDS,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            raise BoardError(f"the simulated board did not come up within {_UP_SECONDS:.0f} s") from None
    deadline = time.monotonic() + _UP_SECONDS
    while returned == 0 and time.monotonic() < deadline:
        found = find(name)
        if found:
            return found
        time.sleep(0.02)
    said = (folder / "log").read_text(errors="replace").strip().splitlines()
    raise BoardError(f"the simulated board did not come up: {said[-1] if said else 'no answer'}")


def down(name: str) -> None:
    """End a board and everything that was started on it; UsageError if there is none."""
    board = find(name)
    if board is None:
        raise UsageError(f"there is no simulated board {name!r}")
    if board.kind == "nspawn":
        nspawn.down(board.folder)
    else:
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):  # again: one may just have started another
            living = [board.pid, *processes_of_board(board.folder)]
            for pid in living:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            _wait_for_end(living)
    discard(board.folder)


def _wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline and any(is_alive(pid) for pid in pids):
        time.sleep(0.05)


def processes_of_board(folder: Path) -> list[int]:
    """Processes whose environment is that of the board in ``folder``."""
    mark, found = f"RKBOARD_SYSROOT={place_of(folder) / 'tree'}\0".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found
