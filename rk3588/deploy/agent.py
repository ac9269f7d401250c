"""The agent's end on this side: sends the program along, asks it things, sends files through it."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NoReturn, Optional

from rk3588.errors import ConnectError, DeployError

from . import shell
from .agent_zip import agent_zip
from .connection import PATIENCE, Connection, Result, Session
from .steps import Send

# The zip is read from stdin into memory and imported from there: nothing is left on the board. -I: nothing is imported
# from the current folder or the user's, which root must not run.
_BOOT = (
    "import os,sys; b=sys.stdin.buffer; f=os.memfd_create('agent'); os.write(f,b.read(int(b.readline()))); "
    "sys.path.insert(0,'/proc/self/fd/%d'%f); from rk3588.deploy.board.agent import main; main(sys.argv[1:])"
)
BLOCK = 1 << 20
_HASH_SECONDS_PER_BYTE = 1 / 30e6  # an SD card, read once
_BEAT_SECONDS = 2.0
Progress = Callable[[int], None]


@functools.lru_cache(maxsize=1)
def _program() -> bytes:
    data = agent_zip()
    return f"{len(data)}\n".encode() + data


def line(words: str) -> str:
    """The command line that runs the agent with ``words``, already quoted."""
    return f"{shell.command('python3', '-I', '-c', _BOOT)} {words}"


def start(connection: Connection, words: str, *, root: bool, stdin: bytes = b"") -> Session:
    """The running agent; DeployError, with the board's own words, where it ends before it has read all of ``stdin``."""
    session = connection.start(line(words), root=root)
    try:
        session.send(_program() + stdin)
    except BrokenPipeError:
        _gave_up(connection, session)
    return session


def _gave_up(connection: Connection, session: Session) -> NoReturn:
    """It ended while it was sent something: its last words say why."""
    result = session.finish()
    answer(connection, result)
    raise DeployError(f"{connection.name} broke a step off: {result.complaint}")


def ask(connection: Connection, *words: object, root: bool, seconds: float = PATIENCE) -> dict[str, Any]:
    """The agent's answer to one question; DeployError with its own words when it says no."""
    session = start(connection, shell.command(*words), root=root)
    return answer(connection, session.finish(seconds))


def answer(connection: Connection, result: Result) -> dict[str, Any]:
    last = _last_object(result.text)
    if last is None:
        raise DeployError(f"{connection.name}: {result.complaint}")
    if not last.get("ok"):
        raise DeployError(f"{connection.name}: {last.get('error', 'the step failed')}")
    return last


def _last_object(text: str) -> Optional[dict[str, Any]]:
    for candidate in reversed(text.splitlines()):
        try:
            found = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return None


class Throttle:
    """At most ``rate`` bytes a second, measured from the first; None: no limit."""

    def __init__(self, rate: Optional[float]) -> None:
        self._rate = rate
        self._due = 0.0
        # Small enough that a low rate is a steady one.
        self.block = BLOCK if rate is None else max(4096, min(BLOCK, int(rate / 10)))

    def wait(self, size: int) -> None:
        if self._rate:
            now = time.monotonic()
            self._due = max(self._due, now) + size / self._rate
            time.sleep(max(0.0, self._due - now))


class Sender:
    """Sends files through one running agent, started for the first of them."""

    def __init__(self, connection: Connection, throttle: Throttle, progress: Progress) -> None:
        self._connection = connection
        self._throttle = throttle
        self._progress = progress
        self._session: Optional[Session] = None

    def send(self, step: Send) -> int:
        """Send one file, from where an earlier transfer of it stopped; returns how many bytes went over the wire.

        Progress is told sizes: what is there already first, then each block.
        """
        if self._session is None:
            self._session = start(self._connection, "receive", root=step.root)
        session, sent = self._session, 0
        try:
            session.send(json.dumps([step.path, step.file.size, step.file.sha256, step.file.mode]).encode() + b"\n")
            offer = self._answer(PATIENCE + step.have * _HASH_SECONDS_PER_BYTE)
            with _opened(step) as source:
                offset = int(offer["have"])
                if offset and _prefix_hash(source, offset) != offer["sha256"]:
                    offset = 0  # another file's beginning, or damaged
                source.seek(offset)
                self._progress(offset)
                session.send(str(offset).encode() + b"\n")
                for block in _blocks(source, self._throttle.block, step.file.path):
                    self._throttle.wait(len(block))
                    session.send(block)
                    sent += len(block)
                    self._progress(len(block))
            self._answer(PATIENCE + step.file.size * _HASH_SECONDS_PER_BYTE)
        except BrokenPipeError:
            _gave_up(self._connection, session)
        return sent

    def _answer(self, seconds: float) -> dict[str, Any]:
        """The agent's next word; DeployError where it is a refusal or its end."""
        assert self._session
        line = self._session.read_line(seconds)
        said = _last_object(line.decode("utf-8", "replace"))
        if said is None or said.get("ok") is False:
            result = self._session.finish()
            answer(self._connection, Result(result.code, line + b"\n" + result.out, result.err))
            raise DeployError(f"{self._connection.name} ended a transfer: {result.complaint}")
        return said

    def close(self) -> None:
        if self._session is not None:
            self._session.finish()
            self._session = None


@contextmanager
def _opened(step: Send) -> Iterator[BinaryIO]:
    if isinstance(step.file.source, bytes):
        yield io.BytesIO(step.file.source)
        return
    try:
        file = step.file.source.open("rb", buffering=0)
    except OSError as error:
        raise DeployError(f"cannot read {step.file.source}: {error.strerror}") from error
    with file:
        yield file


def _blocks(source: BinaryIO, size: int, name: str) -> Iterator[bytes]:
    """The rest of the file; DeployError when the disk does not give it."""
    while True:
        try:
            block = source.read(size)
        except OSError as error:
            raise DeployError(f"cannot read {name}: {error.strerror}") from error
        if not block:
            return
        yield block


def _prefix_hash(source: BinaryIO, size: int) -> str:
    digest, left = hashlib.sha256(), size
    while left:
        block = source.read(min(BLOCK, left))
        if not block:
            return ""
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


@contextmanager
def locked(
    connection: Connection, path: str, who: str, prefix: str, *, root: bool, waiting: Callable[[], None]
) -> Iterator[None]:
    """One deployment at a time: held on the board while this side shows that it lives."""
    session = start(connection, shell.command("lock", path, who, prefix), root=root)
    said = session.read_line()
    if b'"waiting"' in said:
        waiting()
        said = session.read_line(1800.0)
    if b'"ok": true' not in said:
        result = session.finish()
        answer(connection, Result(result.code, said + b"\n" + result.out, result.err))
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(connection, session, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join(2 * _BEAT_SECONDS)
        try:
            session.finish(10.0)
        except ConnectError:
            session.kill()


def _beat(connection: Connection, session: Session, done: threading.Event) -> None:
    while not done.wait(_BEAT_SECONDS):
        try:
            session.send(b"\n")
        except (OSError, ConnectError):
            connection.end("the board's lock was lost, as nothing was heard from here for a while: run it again")
            return
