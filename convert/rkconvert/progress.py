"""Progress on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .build import Progress

_WHAT = {
    "download": "Downloading", "measure": "Measuring", "convert": "Converting", "copy": "Copying", "hash": "Hashing",
    "emit": "Writing", "calibrate": "Calibrating",
}  # fmt: skip
_SECONDS = 10.0  # between two lines


@contextmanager
def shown() -> Iterator[Progress]:
    """A callback to hand to ``build.convert``."""
    if not sys.stderr.isatty():
        yield _Lines().update
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    ]
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(_WHAT.get(what, what), total=total, amount="")
            bars.update(tasks[what], completed=done, total=total, amount=_amount(what, done, total))

        yield update


class _Lines:
    def __init__(self) -> None:
        self._next = time.monotonic() + _SECONDS

    def update(self, what: str, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next += _SECONDS
            print(f"{_WHAT.get(what, what)}: {_amount(what, done, total)}", file=sys.stderr, flush=True)


def _amount(what: str, done: int, total: int) -> str:
    """Bytes of the steps that are ours; of anything else, percent is all that is known."""
    if what in _WHAT:
        return f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
    return f"{100 * done // max(total, 1)} %"
