"""The worker as the supervisor sees it: started, spoken to, watched and, if need be, killed.

Whatever goes wrong with it - it dies, it is silent for too long, the library logs ``E RKNN`` - ends the same way: the
process is killed, and everybody who waits for it gets WorkerGone with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from rk3588 import children, elf, hostlib, runtime
from rk3588.bundle import Bundle
from rk3588.errors import LibraryError, NoSuchLibrary, RkError

from . import protocol
from .jobs import EngineSettings
from .protocol import Frame

KILL_GRACE_S = 5.0  # a process that outlives SIGKILL by this hangs in the kernel: the NPU driver holds it
_DRAIN_S = 1.0  # of silence after a process has ended: a child of its own may hold its socket open
_FATAL_WORDS = ("E RKNN", "GGML_ASSERT")
_LINE_BYTES = 64 << 10


class WorkerGone(RkError):
    """The worker has died or was killed; the text says why."""


class WorkerProcess:
    """One worker process. Made by ``start``; used by one event loop."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log: Callable[[str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[str] = loop.create_future()
        self._process, self._writer, self._log = process, writer, log
        self._ids = itertools.count(1)
        self._inboxes: dict[Optional[int], asyncio.Queue[Frame]] = {}
        self._lines: deque[str] = deque(maxlen=20)
        self._reason = ""
        self._frames_read = 0
        self._reading = [loop.create_task(self._read_frames(reader)), loop.create_task(self._read_log())]
        self._end = loop.create_task(self._wait_for_exit())

    @classmethod
    async def start(
        cls,
        log: Callable[[str], None],
        command: Optional[Sequence[str]] = None,
        env: Optional[Mapping[str, str]] = None,
    ) -> WorkerProcess:
        """Start the process; ``log`` gets what it and the library print, by lines. ``env`` is added to ours."""
        child = children.python("rkruntime.daemon.worker")
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(command or child.command),
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    limit=_LINE_BYTES,
                    start_new_session=True,  # a terminal's Ctrl-C is for us, who end it through its socket
                    env={**child.environment, **(env or {})},
                )
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return cls(process, reader, writer, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def load(self, bundle: Path, settings: Mapping[str, Any], timeout_s: float) -> Frame:
        """The ``ready`` or ``failed`` frame, after the model has been loaded and has answered one token."""
        return await self._ask(None, {"op": "load", "bundle": str(bundle), "settings": dict(settings)}, timeout_s)

    async def encode(self, request: Frame, timeout_s: float) -> Frame:
        """The ``prompt`` of a conversation or text, or why it is refused."""
        number = next(self._ids)
        return await self._ask(number, {"op": "encode", "id": number, **request}, timeout_s)

    async def _ask(self, number: Optional[int], frame: Frame, timeout_s: float) -> Frame:
        inbox = self._inboxes[number] = asyncio.Queue()
        try:
            self.send(frame)
            return await self._next_frame(inbox, timeout_s)
        finally:
            self._inboxes.pop(number, None)

    def run(self, request: Frame) -> WorkerRun:
        """Begin an answer; its frames come out of the result."""
        number = next(self._ids)
        inbox = self._inboxes[number] = asyncio.Queue()
        self.send({"op": "run", "id": number, **request})
        return WorkerRun(self, number, inbox)

    def send(self, frame: Frame) -> None:
        if not self.gone.done():
            self._writer.write(protocol.pack(frame))

    async def _next_frame(self, inbox: asyncio.Queue[Frame], timeout_s: float) -> Frame:
        """The next frame for one who asked; a silence of ``timeout_s`` kills the worker."""
        if self.gone.done() and inbox.empty():
            raise WorkerGone(self.gone.result())
        timer = asyncio.get_running_loop().call_later(
            timeout_s, self.kill, f"the runtime gave no sign of life for {timeout_s:.0f} s"
        )
        try:
            frame = await inbox.get()
        finally:
            timer.cancel()
        if "gone" in frame:
            raise WorkerGone(frame["gone"])
        return frame

    def kill(self, reason: str) -> None:
        """SIGKILL; ``gone`` follows with this reason, also if the process survives in the kernel."""
        self._reason = self._reason or reason
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._mark_gone()

    async def ended(self, timeout_s: float = KILL_GRACE_S) -> bool:
        """Whether the process is no more, waiting at most so long."""
        await asyncio.wait({self._end}, timeout=timeout_s)
        return self._end.done()

    async def close(self, timeout_s: float) -> bool:
        """Ask it to end, kill it if it does not; False if it lives even then."""
        self.send({"op": "quit"})
        if not await self.ended(timeout_s):
            self.kill("it did not end when asked to")
        ended = await self.ended()
        for task in (*self._reading, self._end):
            task.cancel()
        await asyncio.gather(*self._reading, self._end, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        return ended

    def _mark_gone(self) -> None:
        if self.gone.done():
            return
        reason = self._reason or "the runtime's process ended"
        self.gone.set_result(reason)
        for inbox in self._inboxes.values():
            inbox.put_nowait({"gone": reason})

    async def _read_frames(self, reader: asyncio.StreamReader) -> None:
        try:
            while (frame := await protocol.receive(reader)) is not None:
                self._frames_read += 1
                inbox = self._inboxes.get(frame.get("id"))
                if inbox is not None:
                    inbox.put_nowait(frame)
        except protocol.ProtocolError as error:
            self.kill(f"the runtime's process sent garbage: {error}")

    async def _read_log(self) -> None:
        output = self._process.stdout
        assert output is not None
        while True:
            try:
                raw = await output.readline()
            except ValueError:  # a line longer than the limit: what was read of it is gone
                continue
            if not raw:
                return
            line = raw.decode("utf-8", "replace").rstrip()
            self._lines.append(line)
            self._log(line)
            if _FATAL_WORDS[0] in line:
                self.kill(f"the runtime reported a failure of the NPU or of the model: {line}")

    async def _wait_for_exit(self) -> None:
        """The end of the process; what it said before is read before anybody is told."""
        code = await self._process.wait()
        read = -1
        while read != self._frames_read:  # a busy loop may take long over what the socket holds, which is not much
            read = self._frames_read
            _, unread = await asyncio.wait(self._reading, timeout=_DRAIN_S)
            if not unread:
                break
        words = next((line for line in reversed(self._lines) if any(mark in line for mark in _FATAL_WORDS)), "")
        self._reason = self._reason or f"the runtime's process {_exit_of(code)}" + (f": {words}" if words else "")
        self._mark_gone()


class WorkerRun:
    """An answer that the worker is giving."""

    def __init__(self, worker: WorkerProcess, number: int, inbox: asyncio.Queue[Frame]) -> None:
        self._worker, self._number, self._inbox = worker, number, inbox

    async def next(self, timeout_s: float) -> Frame:
        """The next frame; WorkerGone, also when none comes for ``timeout_s``."""
        return await self._worker._next_frame(self._inbox, timeout_s)

    def abort(self) -> None:
        self._worker.send({"op": "abort", "id": self._number})

    def stop_listening(self) -> None:
        self._worker._inboxes.pop(self._number, None)


def _exit_of(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {children.signal_name(-code)}"


def library_variables(settings: EngineSettings, bundle: Bundle) -> dict[str, str]:
    """Where the worker finds librksim, if it needs it: in a zipapp there is no packaged one.

    LibraryError if there is none, or what is there is none: every load would fail.
    """
    path = settings.sim_library
    if path is not None and not path.is_file():
        raise NoSuchLibrary(f"there is no library {path}: give the path of a librksim.so (sim_library, --sim-library)")
    if path is not None or bundle.vocabulary:
        _check_librksim(path or hostlib.find())
    return {"RKSIM_LIBRARY": str(path)} if path else {}


def _check_librksim(path: Path) -> None:
    """By what it exports for this machine; nothing of it is loaded."""
    with contextlib.suppress(LibraryError):
        data = runtime.content(path)
        if elf.machine(data, path) == runtime.this_machine() and "rksim_version" in elf.exported(data, "rksim_", path):
            return
    raise LibraryError(
        f"{path} is no librksim.so for this machine ({runtime.this_machine()}): give the path of one (sim_library, "
        "--sim-library)"
    )


def prompt_length(encoded: Frame) -> int:
    """Tokens of a prompt, of which the worker sends only their number where they are too many."""
    tokens = encoded.get("tokens")
    return int(tokens) if tokens is not None else len(encoded["prompt"])
