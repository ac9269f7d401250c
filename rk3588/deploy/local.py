"""The board this very program runs on: the same commands, without SSH (``--board local``)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable
from typing import IO, Optional

from rk3588.errors import ConnectError

from .connection import Ask, Connection, Data, Session
from .shell import Marks

_STALL = 60.0  # seconds in which a command has to take something


def _reader(stream: IO[bytes]) -> Callable[[int], bytes]:
    """Reads what is there; closes the pipe at its end."""

    def read(size: int) -> bytes:
        data = os.read(stream.fileno(), size)
        if not data:
            stream.close()
        return data

    return read


class LocalSession(Session):
    def __init__(self, line: str, marks: Marks) -> None:
        super().__init__("this machine", marks)
        pipe = subprocess.PIPE
        # Unbuffered pipes; a group of its own, so that Ctrl-C here does not cut a step in half.
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", line], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True
        )
        assert self._process.stdout and self._process.stderr and self._process.stdin
        self._stdin = self._process.stdin
        os.set_blocking(self._stdin.fileno(), False)  # a write takes what fits; this end is only ours
        self._read_from(_reader(self._process.stdout), _reader(self._process.stderr))

    def send(self, data: Data) -> None:
        view, handle = memoryview(data), self._stdin.fileno()
        while view:
            if not select.select([], [handle], [], _STALL)[1]:
                raise ConnectError(f"{self.what} took no data for {_STALL:.0f} s")
            view = view[os.write(handle, view) :]

    def end_input(self) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()

    def exit_code(self, timeout: float) -> Optional[int]:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.end_input()


class LocalConnection(Connection):
    def __init__(self, ask: Ask) -> None:
        super().__init__("this machine", ask)

    def _start(self, line: str, marks: Marks) -> Session:
        return LocalSession(line, marks)

    def close(self) -> None:
        pass
