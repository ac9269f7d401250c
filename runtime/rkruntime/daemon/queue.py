"""The order in which requests reach the one NPU: interactive before background, in turns between owners, else FIFO."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, Optional, Protocol, TypeVar


class Waiting(Protocol):
    """Something that can wait here. ``owner``: whom the queue is fair to."""

    @property
    def owner(self) -> str: ...

    @property
    def background(self) -> bool: ...


T = TypeVar("T", bound=Waiting)


class FairQueue(Generic[T]):
    """Owners take turns, so that one with thirty requests does not make the others wait for all of them."""

    def __init__(self) -> None:
        self._returned: deque[T] = deque()
        self._interactive: OrderedDict[str, deque[T]] = OrderedDict()
        self._background: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        turns = (*self._interactive.values(), *self._background.values())
        return len(self._returned) + sum(len(waiting) for waiting in turns)

    def push(self, item: T) -> None:
        owners = self._background if item.background else self._interactive
        owners.setdefault(item.owner, deque()).append(item)

    def push_first(self, item: T) -> None:
        """Before everything: a request that had its turn and lost it without fault of its own."""
        self._returned.append(item)

    def pop(self) -> Optional[T]:
        """The next in order; None when nothing waits."""
        if self._returned:
            return self._returned.popleft()
        for owners in (self._interactive, self._background):
            if owners:
                owner, waiting = owners.popitem(last=False)
                item = waiting.popleft()
                if waiting:
                    owners[owner] = waiting  # behind the others
                return item
        return None

    def place(self, item: T) -> Optional[int]:
        """1: it is next, if nothing comes that goes before; None: it is not here."""
        if item in self._returned:
            return self._returned.index(item) + 1
        before = len(self._returned)
        for owners in (self._interactive, self._background):
            mine = owners.get(item.owner, ())
            if item in mine:
                rounds, behind = list(mine).index(item), False
                for owner, waiting in owners.items():
                    behind = behind or owner == item.owner
                    # Those whose turn comes earlier have one more before this.
                    before += min(len(waiting), rounds + (not behind)) if owner != item.owner else rounds
                return before + 1
            before += sum(map(len, owners.values()))
        return None

    def remove(self, item: T) -> bool:
        """Take out one that gave up; False if it is not here."""
        if item in self._returned:
            self._returned.remove(item)
            return True
        owners = self._background if item.background else self._interactive
        waiting = owners.get(item.owner)
        if waiting is None or item not in waiting:
            return False
        waiting.remove(item)
        if not waiting:
            del owners[item.owner]
        return True
