"""Stop strings: the text before the first of them, given out as soon as it can no longer become one."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """``feed`` the answer as it comes; once ``stopped``, nothing more is given out."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What can be given out now."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        # The one that is whole first counts, however the text was cut into pieces.
        found = [(self._held.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in self._held]
        if found:
            self.stopped = True
            return self._give(sum(min(found)))
        return self._give(len(self._held) - self._undecided())

    def end(self) -> str:
        """What was held back, now that the answer has ended."""
        return self._give(len(self._held))

    def _give(self, count: int) -> str:
        out, self._held = self._held[:count], "" if self.stopped else self._held[count:]
        return out

    def _undecided(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
