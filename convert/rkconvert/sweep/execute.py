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
from .cells import Cell, OpenedModels, is_made
from .sweep_file import Sweep

_POLL_SECONDS = 0.05
_PATIENCE = 90.0  # seconds that the processes of a killed sweep may take to end

Tell = Callable[[Cell, Result], None]
Check = Callable[[], None]


@contextmanager
def locked(sweep: Sweep) -> Iterator[int]:
    """One sweep of a file at a time. The processes of one that was killed hold the lock until they are gone, too."""
    fd = os.open(sweep.file, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _PATIENCE
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


def unmade_cells(sweep: Sweep, models: OpenedModels, tell: Tell) -> list[tuple[Cell, int]]:
    """The cells still to be made, with the memory each takes; ``tell`` hears of those that are there or refused."""
    todo = []
    for cell in sweep.cells:
        try:
            if is_made(cell):
                tell(cell, Result("there"))
            else:
                todo.append((cell, memory_bytes(models.plan(cell))))
        except RkError as error:
            tell(cell, Result("failed", str(error)))
    return todo


def run_here(todo: Sequence[tuple[Cell, int]], jobs: int, lock: int, tell: Tell, check: Check) -> None:
    """Processes on this machine: ``jobs`` at the most, and no more than memory takes; one always runs."""
    waiting, going = list(todo), dict[Cell, tuple[CellProcess, int]]()
    available = memory.machine().most
    try:
        while waiting or going:
            check()
            for cell, (process, _) in list(going.items()):
                if process.ended():
                    del going[cell]
                    tell(cell, process.result())
            taken = sum(size for _, size in going.values())
            while waiting and len(going) < jobs:
                fits = next((i for i, (_, size) in enumerate(waiting) if not going or taken + size <= available), None)
                if fits is None:
                    break
                cell, size = waiting.pop(fits)
                going[cell] = CellProcess(cell.arguments(), (lock,)), size
                taken += size
            time.sleep(_POLL_SECONDS)
    finally:
        for process, _ in going.values():
            process.stop()


def run_on_dask(todo: Sequence[tuple[Cell, int]], address: str, tell: Tell, check: Check) -> None:
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
        going = {client.submit(run, cell.arguments(), pure=False): cell for cell, _ in todo}
        try:
            while going:
                check()
                for future in [future for future in going if future.done()]:
                    failure = future.exception()
                    tell(going.pop(future), Result("failed", str(failure)) if failure else Result(**future.result()))
                time.sleep(_POLL_SECONDS)
        finally:
            client.cancel(list(going))  # those at work end by themselves


def default_jobs() -> int:
    return len(os.sched_getaffinity(0))
