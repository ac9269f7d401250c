"""What a model thinks before it answers: told apart from the answer, and switched on and off where a template can.

A thought stands at the beginning of an answer, between two tags; a template may write the first of them itself, as the
end of the prompt. Tags further on are text that somebody wrote about tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional, Union

from rk3588 import template_text

from .splitting import SPACE, undecided, without_space

Wish = Union[bool, str]  # whether to think, or how much: "low", "medium", "high", …


class Tags(NamedTuple):
    """Between what a thought stands."""

    open: str
    close: str


# The first whose second tag stands in a template is its own; where none does, the first of all.
KNOWN_TAGS = (
    Tags("<think>", "</think>"),
    Tags("[THINK]", "[/THINK]"),  # Mistral's
    Tags("<thought>", "</thought>"),  # EXAONE Deep's
)
# Variables with which a request says whether, and how much, a model is to think.
SWITCHES = ("enable_thinking", "thinking")
EFFORT = "reasoning_effort"
_OFF = ("none", "minimal", "off", "disabled", "false")


class Thinking(NamedTuple):
    """What a template's text says of thoughts. ``variables``: those of ``SWITCHES`` and ``EFFORT`` that it reads."""

    tags: Tags = KNOWN_TAGS[0]
    variables: tuple[str, ...] = ()

    @classmethod
    def of(cls, template: str) -> Thinking:
        tags = next((each for each in KNOWN_TAGS if each.close in template), KNOWN_TAGS[0])
        code = template_text.code(template)
        return cls(tags, tuple(name for name in (*SWITCHES, EFFORT) if template_text.reads(code, name)))

    def switch(self, wish: Wish) -> Mapping[str, Any]:
        """The template's variables that fulfil a wish; none where it has no switch."""
        on = is_on(wish)
        found: dict[str, Any] = {name: on for name in self.variables if name != EFFORT}
        if EFFORT in self.variables and isinstance(wish, str):
            found[EFFORT] = wish
        return found


def is_on(wish: Wish) -> bool:
    """Whether there is to be a thought at all."""
    return wish if isinstance(wish, bool) else wish.lower() not in _OFF


def opened_by(end_of_prompt: str) -> str:
    """The tag with which a prompt ends, white space aside; "" if it ends otherwise."""
    end = end_of_prompt.rstrip()
    return next((tags.open for tags in KNOWN_TAGS if end.endswith(tags.open)), "")


class Split(NamedTuple):
    """What became clear: first some of the thought, then some of the answer."""

    thought: str = ""
    text: str = ""


class ThoughtSplitter:
    """``feed`` the answer as it comes. However it is cut into pieces, the thought and the text are the same.

    ``opened``: the prompt ended with the first tag. What is held back is as long as a tag and ``SPACE``.
    """

    def __init__(self, tags: Tags = KNOWN_TAGS[0], opened: bool = False) -> None:
        self._tags, self._opened = tags, opened
        self._held = ""
        self._step = self._before

    def feed(self, text: str) -> Split:
        return self._step(text)

    def end(self) -> Split:
        """What was held back, now that the answer has ended."""
        held, self._held = self._held, ""
        if self._step == self._before and self._opened:
            return Split(thought=held.lstrip())
        return Split(thought=held) if self._step == self._inside else Split(text=held)

    def _before(self, text: str) -> Split:
        """Until it is clear whether the answer begins with a thought."""
        self._held += text
        begun, tag = self._held.lstrip(), self._tags.open
        may_begin = len(self._held) - len(begun) <= SPACE
        if may_begin and len(begun) < len(tag) and tag.startswith(begun):
            return Split()
        held, self._held = self._held, ""
        if may_begin and begun.startswith(tag):
            self._step = self._first_of_thought
            return self._step(begun[len(tag) :])
        self._step = self._first_of_thought if self._opened else self._after
        return self._step(held)

    def _first_of_thought(self, text: str) -> Split:
        """White space before a thought is no part of it."""
        text = text.lstrip()
        if not text:
            return Split()
        self._step = self._inside
        return self._inside(text)

    def _inside(self, text: str) -> Split:
        text = self._held + text
        end = text.find(self._tags.close)
        if end >= 0:
            self._held, self._step = "", self._first_of_text
            rest = self._first_of_text(text[end + len(self._tags.close) :])
            return Split(text[: without_space(text, end)], rest.text)
        kept = without_space(text, len(text) - undecided(text, self._tags.close))
        self._held = text[kept:]
        return Split(thought=text[:kept])

    def _first_of_text(self, text: str) -> Split:
        """White space between a thought and the answer belongs to neither."""
        text = text.lstrip()
        if text:
            self._step = self._after
        return Split(text=text)

    def _after(self, text: str) -> Split:
        return Split(text=text)


def split(text: str, tags: Tags = KNOWN_TAGS[0], opened: bool = False) -> Split:
    """A whole answer."""
    splitter = ThoughtSplitter(tags, opened)
    first, last = splitter.feed(text), splitter.end()
    return Split(first.thought + last.thought, first.text + last.text)


def tags_of(name: str) -> Optional[Tags]:
    """The tags of which the first is ``name``."""
    return next((tags for tags in KNOWN_TAGS if tags.open == name), None)
