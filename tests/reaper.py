"""Ends the simulated boards of a test run that was killed: ``python -m tests.reaper FOLDER``.

It waits until its stdin ends, which happens however the run does. After a whole run it finds nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from rk3588.simboard.control import processes_of_board


def reap(top: Path) -> None:
    """End every board below ``top`` and what was started on it."""
    for described in top.glob("**/rk3588/boards/*/board.json"):
        folder = described.parent
        said = json.loads(described.read_text(encoding="utf-8"))
        if said["kind"] == "nspawn":
            from rk3588.simboard import nspawn

            nspawn.down(folder)
        elif str(folder).encode() in _command_of(said["pid"]):
            _kill(said["pid"])
    for tree in top.glob("**/tree"):  # --board local is described nowhere
        for _ in range(3):  # one may just have started another
            for pid in processes_of_board(tree.parent):
                _kill(pid)


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.stdin.read()
    reap(Path(sys.argv[1]))
