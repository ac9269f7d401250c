"""An answer in its parts, in the order in which they came: thoughts, texts up to a stop string, calls of tools.

What the model has written is the same however it was cut into pieces on its way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple, Optional

from rkruntime.thoughts import Tags, ThoughtSplitter

from .stops import StopFilter
from .toolcalls import Call, CallFormat, CallSplitter


class Part(NamedTuple):
    """One of the three; none of them is a mere sign of life."""

    text: str = ""
    thought: str = ""
    call: Optional[Call] = None


SIGN_OF_LIFE = Part()


class WholeAnswer(NamedTuple):
    """All parts together."""

    text: str
    thought: str = ""
    calls: tuple[Call, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Part]) -> WholeAnswer:
        calls = tuple(part.call for part in parts if part.call is not None)
        return cls("".join(part.text for part in parts), "".join(part.thought for part in parts), calls)

    def shown(self) -> str:
        """What a model is shown of an answer that was not what was asked for."""
        calls = [f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments_text()}}}' for call in self.calls]
        return "\n".join([*([self.text] if self.text else []), *calls])


class PartReader:
    """``feed`` what comes of an answer, then ``end``. Once ``stopped``, nothing more is given out.

    ``tags`` None: it is all text. ``opened``: the prompt has begun the thought. Calls are looked for with a
    ``call_format``, of the tools in ``names``. Stop strings are looked for in the text alone.
    """

    def __init__(
        self,
        stops: Sequence[str] = (),
        tags: Optional[Tags] = None,
        opened: bool = False,
        call_format: Optional[CallFormat] = None,
        names: frozenset[str] = frozenset(),
    ) -> None:
        self._thoughts = ThoughtSplitter(tags, opened) if tags else None
        self._calls = CallSplitter(call_format, names) if call_format else None
        self._stops = StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.stopped

    def feed(self, text: str) -> list[Part]:
        thought = ""
        if self._thoughts is not None:
            thought, text = self._thoughts.feed(text)
        return [*([Part(thought=thought)] if thought else []), *self._answer(text)]

    def end(self) -> list[Part]:
        """What was held back, now that the answer has ended."""
        out = []
        if self._thoughts is not None:
            thought, text = self._thoughts.end()
            out = [*([Part(thought=thought)] if thought else []), *self._answer(text)]
        for said in self._calls.end() if self._calls else ():
            self._add(out, said)
        self._add(out, None)
        return out

    def _answer(self, text: str) -> list[Part]:
        """What is no thought."""
        out: list[Part] = []
        for said in self._calls.feed(text) if self._calls else [text]:
            self._add(out, said)
        return out

    def _add(self, out: list[Part], said: object) -> None:
        """A text, as far as no stop string can still come of it; in front of a call, or of the end, all of it."""
        text = self._stops.feed(said) if isinstance(said, str) else self._stops.end()
        if text:
            out.append(Part(text))
        if isinstance(said, Call) and not self.stopped:
            out.append(Part(call=said))
