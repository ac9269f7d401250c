"""Progress on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .build import Progress

_WHAT = {"download": "Downloading", "convert": "Converting", "hash": "Hashing"}
_SECONDS = 10.0  # between two lines


@contextmanager
def shown() -> Iterator[Progress]:
    """A callback to hand to ``build.convert``."""
    if not sys.stderr.isatty():
        yield _Lines().update
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(_WHAT[what], total=total)
            bars.update(tasks[what], completed=done)

        yield update


class _Lines:
    def __init__(self) -> None:
        self._next = time.monotonic() + _SECONDS

    def update(self, what: str, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next += _SECONDS
            print(f"{_WHAT[what]}: {done / 1e6:.0f} of {total / 1e6:.0f} MB", file=sys.stderr, flush=True)
