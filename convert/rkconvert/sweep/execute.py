"""Runs the cells of a sweep: here, as many at once as memory takes, or on the machines of a Dask cluster."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rk3588.errors import RkError, UsageError
from rkconvert import memory
from rkconvert.estimate import memory_bytes

from .cell_process import CellProcess, Result, run
from .cells import Cell, OpenedModels
from .made import MadeCells
from .sweep_file import Sweep

_POLL_SECONDS = 0.05
_SECONDS_TO_END = 90.0  # that the processes of a killed sweep may take

Report = Callable[[Cell, Result], None]
Check = Callable[[], None]


@contextmanager
def locked(sweep: Sweep) -> Iterator[int]:
    """One sweep of a file at a time. The processes of one that was killed hold the lock until they are gone, too."""
    fd = os.open(sweep.file, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _SECONDS_TO_END
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UsageError(f"another sweep of {sweep.file} is at work: wait for its end") from None
                time.sleep(_POLL_SECONDS)
        yield fd
    finally:
        os.close(fd)


def unmade_cells(
    sweep: Sweep, models: OpenedModels, report: Report, check: Check = lambda: None
) -> list[tuple[Cell, int]]:
    """The cells still to be made, with the memory each takes; ``report`` hears of those that are there or refused."""
    todo, made = [], MadeCells(models, check)
    for cell in sweep.cells:
        try:
            if made.has(cell):
                report(cell, Result("there"))
            else:
                todo.append((cell, memory_bytes(models.plan(cell))))
        except RkError as error:
            report(cell, Result("failed", str(error)))
    return todo


def run_here(todo: Sequence[tuple[Cell, int]], jobs: int, lock: int, report: Report, check: Check) -> None:
    """Processes on this machine: ``jobs`` at the most, and no more than memory takes; one always runs."""
    waiting, running = list(todo), dict[Cell, tuple[CellProcess, int]]()
    available = memory.machine().most
    try:
        while waiting or running:
            check()
            for cell, (process, _) in list(running.items()):
                if process.ended():
                    del running[cell]
                    report(cell, process.result())
            taken = sum(size for _, size in running.values())
            while waiting and len(running) < jobs:
                fitting = (i for i, (_, size) in enumerate(waiting) if taken + size <= available or not running)
                first = next(fitting, None)
                if first is None:
                    break
                cell, size = waiting.pop(first)
                running[cell] = CellProcess(cell.arguments(), (lock,)), size
                taken += size
            time.sleep(_POLL_SECONDS)
    finally:
        for process, _ in running.values():
            process.stop()


def run_on_dask(todo: Sequence[tuple[Cell, int]], address: str, report: Report, check: Check) -> None:
    """Each cell on a machine of the cluster, where rkconvert is installed and the same folders are mounted."""
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("--dask needs Dask: pip install 'rk3588[sweep]'") from error
    try:
        client = Client(address, timeout=5)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(f"no Dask scheduler answers at {address}: {error}") from error
    with client:
        running = {client.submit(run, cell.arguments(), pure=False): cell for cell, _ in todo}
        try:
            while running:
                check()
                for future in [future for future in running if future.done()]:
                    failure = future.exception()
                    result = Result("failed", str(failure)) if failure else Result(**future.result())
                    report(running.pop(future), result)
                time.sleep(_POLL_SECONDS)
        finally:
            client.cancel(list(running))  # those at work end by themselves
