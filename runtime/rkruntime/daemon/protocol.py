"""Frames between supervisor and worker: a length of four bytes, big-endian, then JSON in UTF-8.

The supervisor sends ``load``, ``encode``, ``run``, ``abort`` and ``quit``. The worker answers the first with ``ready``
or ``failed``, the others with frames that carry the request's ``id``. A worker that loses its supervisor ends.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from typing import Any, Optional

from rk3588.errors import RkError

Frame = dict[str, Any]

_LENGTH = struct.Struct(">I")
MAX_BYTES = 64 << 20  # far above any prompt: more is a length read from garbage


class ProtocolError(RkError):
    """The other side sent what is no frame."""


def pack(frame: Frame) -> bytes:
    # Escaped to ASCII, so that a lone surrogate out of a client's JSON survives the way.
    body = json.dumps(frame, separators=(",", ":")).encode()
    _check(len(body))  # here, where it costs one request: the other side could only hang up
    return _LENGTH.pack(len(body)) + body


def _size(head: bytes) -> int:
    size: int = _LENGTH.unpack(head)[0]
    _check(size)
    return size


def _check(size: int) -> None:
    if size > MAX_BYTES:
        raise ProtocolError(f"a frame of {size} bytes cannot be: at most {MAX_BYTES}")


def _unpack(body: bytes) -> Frame:
    try:
        frame = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame is not JSON: {error}") from error
    if not isinstance(frame, dict):
        raise ProtocolError("a frame is not a JSON object")
    return frame


async def receive(reader: asyncio.StreamReader) -> Optional[Frame]:
    """The next frame; None when the other side has gone, in the middle of one too."""
    try:
        return _unpack(await reader.readexactly(_size(await reader.readexactly(_LENGTH.size))))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class Channel:
    """The worker's end: blocking, sent to from any thread."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._sending = threading.Lock()

    def send(self, **frame: Any) -> None:
        self.send_packed(pack(frame))

    def send_packed(self, raw: bytes) -> None:
        with self._sending:
            self._socket.sendall(raw)

    def receive(self) -> Optional[Frame]:
        """The next frame; None when the supervisor has gone."""
        head = self._exactly(_LENGTH.size)
        body = self._exactly(_size(head)) if head else None
        return _unpack(body) if body is not None else None

    def _exactly(self, size: int) -> Optional[bytes]:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._socket.recv(size - len(parts))
            except ConnectionError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)
