"""Who waits for a change of anything in the engine."""

from __future__ import annotations

import asyncio
from typing import Any, Optional


class Changes:
    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def announce(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout_s: Optional[float] = None, or_done: Optional[asyncio.Future[str]] = None) -> None:
        """Wait for a change, for ``or_done``, or for so long."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            futures: set[asyncio.Future[Any]] = {waiter, or_done} if or_done else {waiter}
            await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiters.discard(waiter)
