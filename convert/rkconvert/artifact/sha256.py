"""SHA-256 of several files that grow side by side: with librksim faster than hashlib can go, else with hashlib.

direct_file.py says what whole conversions gain by it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from rk3588 import hostlib

# FIPS 180-4, 5.3.3.
_START = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
_BLOCK = 64
Bytes = npt.NDArray[np.uint8]


class Sha256:
    """One message. ``update_together`` is the way to add to it."""

    def __init__(self) -> None:
        self._state = np.array(_START, np.uint32)
        self._plain = None if hostlib.has_sha256() else hashlib.sha256()
        self._tail = np.empty(0, np.uint8)  # less than a block
        self._size = 0

    def _whole_blocks(self, data: Bytes) -> list[Bytes]:
        """What there is to be hashed now, in whole blocks; the rest waits for the next bytes."""
        self._size += len(data)
        whole = []
        if len(self._tail):
            missing = min(_BLOCK - len(self._tail), len(data))
            self._tail, data = np.concatenate([self._tail, data[:missing]]), data[missing:]
            if len(self._tail) < _BLOCK:
                return []
            whole = [self._tail]
        end = len(data) // _BLOCK * _BLOCK
        self._tail = data[end:].copy()
        return [*whole, data[:end]]

    def hexdigest(self) -> str:
        """The hash; nothing can be added after it."""
        if self._plain:
            return self._plain.hexdigest()
        padding = b"\x80" + bytes(-(self._size + 9) % _BLOCK) + (8 * self._size).to_bytes(8, "big")
        update_together([(self, np.frombuffer(padding, np.uint8))])
        return self._state.astype(">u4").tobytes().hex()


def update_together(pieces: Iterable[tuple[Sha256, Bytes]]) -> None:
    """Add each piece to its message, in the order given; the messages go on side by side."""
    waiting: dict[Sha256, deque[Bytes]] = {}
    for message, data in pieces:
        if message._plain:
            message._plain.update(data.data)
        else:
            waiting.setdefault(message, deque()).extend(message._whole_blocks(data))
    while waiting:
        waiting = {message: queue for message, queue in waiting.items() if queue}
        hostlib.sha256_blocks([(message._state, queue.popleft()) for message, queue in waiting.items()])
