"""The seconds that pass, on a terminal, while a command waits for something."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Optional

_COLUMNS = 80  # of a terminal that does not say


def fitting(text: str, end: str, out: Any) -> str:
    """``text`` and ``end`` on one line of the terminal ``out``, ``text`` cut where it is too long.

    What a terminal wraps is not overwritten any more.
    """
    try:
        columns = os.get_terminal_size(out.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return text[: max((columns or _COLUMNS) - 1 - len(end), 0)] + end


class ElapsedSeconds:
    """Draws the seconds on a line of its own, which goes when it stops. ``out``: a terminal, or None for nothing."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self._ended = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def start(self, ended: Optional[threading.Event] = None) -> None:
        """From nought, also where it runs already."""
        self.stop()
        if self._out is not None:
            self._ended = ended or threading.Event()
            self._thread = threading.Thread(target=self._tick, args=(time.monotonic(), self._ended), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None
            self._draw("")

    def _tick(self, started: float, ended: threading.Event) -> None:
        while not ended.wait(1.0):
            self._draw(f"  {time.monotonic() - started:.0f} s")

    def _draw(self, text: str) -> None:
        self._out.write(f"\r\x1b[K{text}")
        self._out.flush()
