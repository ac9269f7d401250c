"""One cell in a process of its own, which ends when the sweep does: this module with the arguments ``FD ARGUMENTS``.

FD is the read end of a pipe that only the sweep can write to. When the sweep is gone, however that came about, the
pipe ends, and this process ends itself as after a SIGTERM: nothing half-written stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from typing import IO, Any

from rk3588 import children

_SECONDS_TO_CLEAN_UP = 60.0  # seconds to clean up in


@dataclass(frozen=True)
class Result:
    """How a cell ended: "made", "there" (it had been made before) or "failed"."""

    state: str
    reason: str = ""
    bytes: int | None = None


class CellProcess:
    """A cell at work."""

    def __init__(self, arguments: list[str], inherited: tuple[int, ...] = ()) -> None:
        """``inherited``: descriptors the process shall hold open for as long as it lives."""
        self._stdout: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in result()
        self._stderr: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        theirs, self._lifeline = os.pipe()
        child = children.python(__name__, str(theirs), "build", *arguments)
        try:
            # A session of its own: Ctrl-C is the sweep's to handle.
            self._process = subprocess.Popen(
                child.command, env=child.environment, stdin=subprocess.DEVNULL, stdout=self._stdout,
                stderr=self._stderr, pass_fds=(theirs, *inherited), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(theirs)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> None:
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._close_lifeline()
        try:
            self._process.wait(_SECONDS_TO_CLEAN_UP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def result(self) -> Result:
        """How it ended, after it has."""
        self._close_lifeline()
        code = self._process.wait()
        with self._stdout as out, self._stderr as err:
            out.seek(0)
            err.seek(0)
            printed, said = out.read(), [line for line in err.read().splitlines() if line.strip()]
        if code == 0:
            return Result("made", bytes=json.loads(printed)["bundles"][0]["bytes"])
        errors = [line.removeprefix("Error: ") for line in said if line.startswith("Error: ")]
        if errors:
            return Result("failed", errors[-1])
        how = f"it was ended by {children.signal_name(-code)}" if code < 0 else f"exit code {code}"
        return Result("failed", said[-1] if said and code > 0 else how)

    def _close_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def run(arguments: list[str]) -> dict[str, Any]:
    """A whole cell, for a machine of a Dask cluster; plain data, since it travels."""
    cell = CellProcess(arguments)
    try:
        cell.wait()
        return asdict(cell.result())
    finally:
        cell.stop()


def _end_with(lifeline: int) -> None:
    """Wait until the sweep is gone, and end this process as SIGTERM does."""
    with contextlib.suppress(OSError):
        os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    lifeline = int(sys.argv.pop(1))
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    from rkconvert.cli import main as rkconvert

    rkconvert()


if __name__ == "__main__":
    main()
