"""Files to the board: through one running agent, from where an earlier transfer stopped, at a limited rate."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Optional

from rk3588.errors import DeployError

from . import agent_client
from .connection import PATIENCE, CommandResult, Connection, Session
from .steps import Send

BLOCK = 1 << 20
_HASH_SECONDS_PER_BYTE = 1 / 30e6  # an SD card, read once
Progress = Callable[[int], None]


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
            self._session = agent_client.start(self._connection, "receive", root=step.root)
        session, sent = self._session, 0
        try:
            session.send(json.dumps([step.path, step.file.size, step.file.sha256, step.file.mode]).encode() + b"\n")
            offset, digest = self._offer(step)
            with _opened(step) as source:
                if offset and _prefix_hash(source, offset) != digest:
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
            agent_client.raise_its_last_words(self._connection, session)
        return sent

    def _offer(self, step: Send) -> tuple[int, Any]:
        """How many bytes of the file are there, and their hash."""
        offer = self._answer(PATIENCE + step.have * _HASH_SECONDS_PER_BYTE)
        have = offer.get("have")
        if not isinstance(have, int) or not 0 <= have <= step.file.size:
            raise DeployError(
                f"{self._connection.name} says of {step.file.path} what makes no sense (it has {str(have)[:60]} bytes "
                "of it): does python3 run there?"
            )
        return have, offer.get("sha256")

    def _answer(self, seconds: float) -> dict[str, Any]:
        """The agent's next word; DeployError where it is a refusal or its end."""
        assert self._session
        line = self._session.read_line(seconds)
        said = agent_client.last_json_object(line.decode("utf-8", "replace"))
        if said is None or said.get("ok") is False:
            result = self._session.finish()
            whole = CommandResult(result.code, line + b"\n" + result.out, result.err)
            agent_client.checked_answer(self._connection, whole)
            raise DeployError(f"{self._connection.name} ended a transfer: {result.error_line}")
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
