"""Logs: one JSON object a line on stderr. No prompt, no answer and no key ever goes in."""

from __future__ import annotations

import datetime
import json
import logging
import sys
import traceback
from typing import Any

_log = logging.getLogger("rkchatd")


class _JsonLines(logging.Formatter):
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
        return json.dumps(entry, ensure_ascii=False, default=str)


def set_up(level: str) -> None:
    """Send what this process logs to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
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
        _log.log(level, name, exc_info=exc_info, extra={"fields": known})
