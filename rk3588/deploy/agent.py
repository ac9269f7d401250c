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
from typing import Any, BinaryIO, Optional

from rk3588.errors import ConnectError, DeployError

from . import shell
from .connection import PATIENCE, Connection, Result, Session
from .plan import Send
from .release import agent_zip

# The zip is read from stdin into memory and imported from there: nothing is left on the board.
_BOOT = (
    "import os,sys; b=sys.stdin.buffer; f=os.memfd_create('agent'); os.write(f,b.read(int(b.readline()))); "
    "sys.path.insert(0,'/proc/self/fd/%d'%f); from rk3588.deploy.board.agent import main; main(sys.argv[1:])"
)
BLOCK = 1 << 20
_HASH_SECONDS_PER_BYTE = 1 / 30e6  # an SD card, read once
_BEAT_SECONDS = 5.0
Progress = Callable[[int], None]


@functools.lru_cache(maxsize=1)
def _program() -> bytes:
    data = agent_zip()
    return f"{len(data)}\n".encode() + data


def line(words: str) -> str:
    """The command line that runs the agent with ``words``, already quoted."""
    return f"{shell.command('python3', '-c', _BOOT)} {words}"


def start(connection: Connection, words: str, *, root: bool) -> Session:
    session = connection.start(line(words), root=root)
    session.send(_program())
    return session


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
        # A tenth of a second's worth: a slow link is to be used evenly, and what was sent to arrive.
        self.block = BLOCK if rate is None else max(min(BLOCK, int(rate / 10)), 1024)

    def wait(self, size: int) -> None:
        if self._rate:
            now = time.monotonic()
            self._due = max(self._due, now) + size / self._rate
            time.sleep(max(0.0, self._due - now))


def send(connection: Connection, step: Send, throttle: Throttle, progress: Progress) -> int:
    """Send one file, from where an earlier transfer of it stopped; returns how many bytes went over the wire.

    ``progress`` is told sizes: what is there already first, then each block.
    """
    session = start(connection, step.line, root=step.root)
    greeting = session.read_line(PATIENCE + step.have * _HASH_SECONDS_PER_BYTE)
    try:
        offer = json.loads(greeting or b"null")
    except ValueError:
        offer = None
    if not isinstance(offer, dict) or "have" not in offer:
        result = session.finish()
        answer(connection, Result(result.code, greeting + b"\n" + result.out, result.err))
        raise DeployError(f"{connection.name} did not take {step.path}")
    sent = 0
    with _opened(step) as source:
        offset = int(offer["have"])
        if offset and _prefix_hash(source, offset) != offer["sha256"]:
            offset = 0  # another file's beginning, or damaged
        source.seek(offset)
        progress(offset)
        try:
            session.send(str(offset).encode() + b"\n")
            for block in iter(lambda: source.read(throttle.block), b""):
                throttle.wait(len(block))
                session.send(block)
                sent += len(block)
                progress(len(block))
        except BrokenPipeError:
            pass  # it gave up: its last words say why
        except OSError as error:
            raise DeployError(f"cannot read {step.file.path}: {error.strerror}") from error
    answer(connection, session.finish(PATIENCE + step.file.size * _HASH_SECONDS_PER_BYTE))
    return sent


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
    beat = threading.Thread(target=_beat, args=(session, done), daemon=True)
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


def _beat(session: Session, done: threading.Event) -> None:
    while not done.wait(_BEAT_SECONDS):
        try:
            session.send(b"\n")
        except (OSError, ConnectError):
            return  # the next step says so
