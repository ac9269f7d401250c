"""Logs: one JSON object a line on stderr, or plain words on a terminal.

No prompt, no answer and no key ever goes in, and no flood comes out.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Optional

from rk3588.errors import printable

_log = logging.getLogger("rkchatd")
WINDOW_S = 10.0
MOST = 200  # lines of one kind within it
MOST_WARNINGS = 20  # the same of warnings and errors
# What a terminal would obey, or show as something else than it is. JSON escapes only those below U+0020.
_UNSEEN = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def _unseen(text: str) -> str:
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class JsonLines(logging.Formatter):
    """A record with its ``fields`` as one line, which no terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        entry: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            # Where, and what kind; the text of an exception may quote what somebody wrote.
            kind, _, trace = record.exc_info
            entry["traceback"] = [*traceback.format_tb(trace), kind.__qualname__ if kind else ""]
        return _unseen(json.dumps(entry, ensure_ascii=False, default=str))


class PlainLines(logging.Formatter):
    """The same for somebody who watches: ``12:30:05 warning load failed: error="no such file" seconds=1.2``."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        fields = {name: value for name, value in getattr(record, "fields", {}).items() if name != "time"}
        words = [f"{name}={_word(value)}" for name, value in fields.items()]
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()} "
        message = json.dumps(record.getMessage(), ensure_ascii=False)[1:-1]
        text = _unseen(f"{moment} {level}{message}" + (": " if words else "") + " ".join(words))
        if record.exc_info:
            kind, _, trace = record.exc_info
            places = "".join(traceback.format_tb(trace)).splitlines()
            text += "".join(f"\n    {printable(place)}" for place in [*places, kind.__qualname__ if kind else ""])
        return text


def _word(value: Any) -> str:
    """As JSON has it, without the quotes where nothing is lost by it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text[1:-1] if re.fullmatch(r'"[\w./:@+-]+"', text) else text


class Limited(logging.StreamHandler):  # type: ignore[type-arg, unused-ignore]
    """Of lines of one kind it lets so many through in a while, and then says how many it left out.

    A kind is a place in the code, with an event's name and a request's status: nothing that a client chooses makes
    more of them.
    """

    def __init__(self, stream: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._began = clock()
        self._seen: dict[tuple[Any, ...], int] = {}
        self._left_out: dict[tuple[Any, ...], logging.LogRecord] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.log_dropped_counts()
        if record.levelno > logging.DEBUG:  # who asks for those wants all
            fields: Optional[dict[str, Any]] = getattr(record, "fields", None)
            named = () if fields is None else (record.msg, fields.get("status"))
            kind = (record.levelno, record.pathname, record.lineno, *named)
            seen = self._seen[kind] = self._seen.get(kind, 0) + 1
            if seen > (MOST if record.levelno < logging.WARNING else MOST_WARNINGS):
                self._left_out.setdefault(kind, record)
                return
        super().emit(record)

    def log_dropped_counts(self) -> None:
        """Begin anew once the time is over."""
        now = self._clock()
        if now - self._began < WINDOW_S:
            return
        seconds, self._began = round(now - self._began), now
        seen, left_out = self._seen, self._left_out
        self._seen, self._left_out = {}, {}
        for kind, record in left_out.items():
            most = MOST if record.levelno < logging.WARNING else MOST_WARNINGS
            fields = {"count": seen[kind] - most, "seconds": seconds, "like": record.getMessage()[:100]}
            told = logging.makeLogRecord({"name": record.name, "levelno": record.levelno, "msg": "lines left out"})
            told.levelname, told.fields = record.levelname, fields
            super().emit(told)


_handler: Optional[Limited] = None


def log_dropped_counts() -> None:
    """To be called now and then: else a flood that has ended is told with the next line only."""
    if _handler is not None:
        _handler.acquire()
        try:
            _handler.log_dropped_counts()
        finally:
            _handler.release()


def set_up(level: str) -> None:
    """Send what this process logs to stderr: JSON lines for programs, plain ones for a terminal."""
    global _handler
    _handler = handler = Limited(sys.stderr)
    handler.setFormatter(PlainLines() if sys.stderr.isatty() else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Of the libraries only what is wrong: their lines for each connection would say everything twice.
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


def event(name: str, level: int = logging.INFO, exc_info: bool = False, **fields: Any) -> None:
    """Log ``name`` with what is known of it; fields that are None are left out."""
    if _log.isEnabledFor(level):
        known = {key: value for key, value in fields.items() if value is not None}
        _log.log(level, name, exc_info=exc_info, extra={"fields": known}, stacklevel=2)
