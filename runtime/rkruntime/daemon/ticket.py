"""A request on its way through queue and worker: what the engine fills and the HTTP side reads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Optional, Union

from rk3588.errors import Overdue, RkError
from rkruntime.abi import Perf

from .jobs import Durations, Job, Piece
from .process import WorkerRun

Event = Union[Piece, RkError, None]  # None: the end


class Ticket:
    """``Answer`` of jobs.py. ``cancel`` is called when it is closed or overdue before its end.

    Made inside a running event loop: the deadline runs from then on.
    """

    def __init__(self, job: Job, deadline_s: float, cancel: Callable[[Ticket], None]) -> None:
        self.job = job
        self.owner, self.background = job.owner, job.background
        self.deadline_s = deadline_s
        self.prompt: Union[str, list[int], None] = None
        self.waiting: deque[Union[str, list[int]]] = deque()  # instead of it: the texts still to be embedded
        self.embedded_tokens = 0
        self.completion_tokens = 0
        self.durations: Optional[Durations] = None
        self.perf: Optional[Perf] = None
        self.finish_reason = ""
        self.opened = ""
        self.run: Optional[WorkerRun] = None  # while the worker is at it
        self.find_place: Callable[[Ticket], Optional[int]] = lambda _: None  # of the queue, once it is in one
        self.retried = False
        self.over = False  # no more events: ended, failed, closed
        self._cancel = cancel
        self._events: deque[Event] = deque()
        self._loop = asyncio.get_running_loop()
        self._reader: Optional[asyncio.Future[None]] = None
        self._timer = self._loop.call_later(deadline_s, self._deadline_passed)

    @property
    def prompt_tokens(self) -> Optional[int]:
        if self.job.embed is not None:
            return self.embedded_tokens
        return len(self.prompt) if isinstance(self.prompt, list) else None

    @property
    def left_s(self) -> float:
        return self._timer.when() - self._loop.time()

    @property
    def place(self) -> Optional[int]:
        """0: it is being answered; 1: it is the next; None: neither."""
        return 0 if self.run is not None else self.find_place(self)

    # The engine's side.

    def put(self, piece: Piece, durations: Durations) -> None:
        if not self.over:
            self.completion_tokens += piece.tokens
            self.durations = durations
            self._events.append(piece)
            self._wake_reader()

    def finish(self, reason: str) -> None:
        self._end(None)
        self.finish_reason = self.finish_reason or reason

    def fail(self, error: RkError) -> None:
        self._end(error)

    def _end(self, event: Event) -> None:
        if self.over:
            return
        self.over = True
        self._timer.cancel()
        self._events.append(event)
        self._wake_reader()

    def _deadline_passed(self) -> None:
        self.fail(Overdue(f"there was no whole answer within {self.deadline_s:.0f} s"))
        self._cancel(self)

    # The HTTP side's.

    async def pieces(self, heartbeat_s: Optional[float] = None) -> AsyncIterator[Piece]:
        while True:
            while self._events:
                event = self._events.popleft()
                if event is None:
                    return
                if isinstance(event, RkError):
                    raise event
                yield event
            if not await self._wait_for_event(heartbeat_s):
                yield Piece("", 0)

    async def close(self) -> None:
        if not self.over:
            self.finish("stop")
            self._cancel(self)

    async def _wait_for_event(self, heartbeat_s: Optional[float]) -> bool:
        """Wait for an event; False after ``heartbeat_s`` without one."""
        self._reader = self._loop.create_future()
        timer = self._loop.call_later(heartbeat_s, self._wake_reader) if heartbeat_s is not None else None
        try:
            await self._reader
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()
        return bool(self._events)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
