"""Answers that go round in circles: a small model may say the same for ever, and never ends by itself."""

from __future__ import annotations

from collections import deque

LONGEST = 128  # tokens of the longest block that is looked for
DEFAULT = 128  # tokens of a loop: docs/sampling.md says what it ends
TIMES = 4  # that a block is there before it counts as a loop: a refrain comes back less often


class LoopDetector:
    """Told each token, says whether the answer has become a loop: the last ``limit`` tokens or more are one block of
    at most ``LONGEST``, at least ``TIMES`` times in a row. Each token costs the same, however long the answer is."""

    def __init__(self, limit: int) -> None:
        self._latest: deque[int] = deque(maxlen=LONGEST)  # the newest first
        self._same = [0] * LONGEST  # at p - 1: how many tokens in a row are each the one p tokens before it
        self._needed = [max(limit, TIMES * p) - p for p in range(1, LONGEST + 1)]

    def is_loop(self, token: int) -> bool:
        """Whether ``token``, the next one, completes a loop."""
        self._same = [same + 1 if token == before else 0 for same, before in zip(self._same, self._latest)] + (
            self._same[len(self._latest) :]
        )
        self._latest.appendleft(token)
        return any(map(int.__ge__, self._same, self._needed))
