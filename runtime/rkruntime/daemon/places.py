"""Which place in the queue a request has, by the id that its client knows it by."""

from __future__ import annotations

from typing import Optional

from .reading import Reading


class Places:
    """The requests under way. Ids are the clients' own: the latest of two that are alike counts."""

    def __init__(self) -> None:
        self._under_way: dict[str, Reading] = {}

    def add(self, request_id: str, reading: Reading) -> None:
        self._under_way[request_id] = reading

    def remove(self, request_id: str, reading: Reading) -> None:
        if self._under_way.get(request_id) is reading:
            del self._under_way[request_id]

    def of(self, request_id: str) -> Optional[int]:
        """0: it is being answered; 1: it is next; None: it is unknown, over, or not in the queue yet."""
        reading = self._under_way.get(request_id)
        return None if reading is None else reading.place
