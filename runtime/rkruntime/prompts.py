"""Conversations and texts to what the library is given: token ids wherever the bundle has a vocabulary, else text.

Ids make counts exact and leave no doubt about who adds BOS. And a user who types ``<|im_end|>`` is read as having
typed those characters: only the template's own special tokens are special.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, Protocol, Union

from rk3588.bundle import Bundle
from rk3588.conversation_rules import FOLD, PREFIX
from rk3588.hostlib import SimModel
from rk3588.templates import ChatTemplate, Message, Rendered, Source

from .specials import Specials
from .thoughts import Thinking

Prompt = Union[str, list[int]]
_END = 16  # tokens, or characters, that are enough to show the tag of a thought


class Renderer(Protocol):
    """Renders templates somewhere else, where one that never ends does no harm."""

    def render(
        self, source: Source, messages: Sequence[Message], variables: Mapping[str, Any], system_role: str
    ) -> Rendered: ...


class Prompts:
    """Makes the prompts for one bundle; a context manager. ``context`` is what the model's file says of its length,
    ``template`` a file to use instead of the bundle's own. ``variables`` reach it with every conversation,
    ``system_role`` is ``ChatTemplate.conversation``'s, and ``warn`` is told, once each, its notes."""

    def __init__(
        self,
        bundle: Bundle,
        template: Optional[Path] = None,
        *,
        variables: Optional[Mapping[str, Any]] = None,
        system_role: str = FOLD,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._bundle, self._file = bundle, template
        self._variables, self._system_role, self._warn = dict(variables or {}), system_role, warn
        self._told: set[str] = set()
        self._template: Optional[ChatTemplate] = None
        self._thinking: Optional[Thinking] = None
        self._specials: Optional[Specials] = None
        self.renderer: Optional[Renderer] = None  # None: here
        path = bundle.vocabulary
        self._vocabulary = SimModel(path, vocab_only=True) if path else None
        self.context = (self._vocabulary.info.context_length if self._vocabulary else 0) or None
        self.end_id = self._vocabulary.info.eos_id if self._vocabulary else -1  # which ends an answer; -1: not known

    def __enter__(self) -> Prompts:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._vocabulary:
            self._vocabulary.close()

    @property
    def template(self) -> ChatTemplate:
        """The chat template; BundleError if there is none."""
        if self._template is None:
            self._template = ChatTemplate.of(self._bundle, self._file)
        return self._template

    @property
    def thinking(self) -> Thinking:
        """What the template's text says of thoughts; BundleError if there is none."""
        if self._thinking is None:
            self._thinking = Thinking.of(Source.of(self._bundle, self._file).text)
        return self._thinking

    def plain(self, text: str) -> Prompt:
        """A text as it is; special tokens in it are special."""
        return self._with_bos(self._vocabulary, self._vocabulary.tokenise(text)) if self._vocabulary else text

    def typed(self, text: str) -> Prompt:
        """A text of which nothing is special, whatever stands in it."""
        if self._vocabulary is None:
            return text
        return self._with_bos(self._vocabulary, self._vocabulary.tokenise(text, parse_special=False))

    def chat(self, messages: Sequence[Message], variables: Optional[Mapping[str, Any]] = None) -> Prompt:
        """A conversation in the model's template, up to where the assistant speaks.

        ``variables`` (``tools``, …) reach the template by name; no text in them or in the messages is special. A last
        message with PREFIX is what the assistant has said already.
        """
        variables = {**self._variables, **(variables or {})}
        if self._vocabulary is None:
            messages, begun = _without_begun(messages)
            return self._render(messages, variables) + begun
        if self._specials is None:
            self._specials = Specials(self._vocabulary)
        masked = self._specials.mask(messages, variables)
        messages, begun = _without_begun(masked.messages)
        text = self._render(messages, masked.variables) + begun
        return self._with_bos(self._vocabulary, masked.encode(text))

    def shown(self, messages: Sequence[Message]) -> str:
        """A conversation as the model reads it, without a beginning of what the assistant says next."""
        template, variables = self.template, self._variables
        return template.conversation(messages, variables, self._system_role, add_generation_prompt=False).text

    def end_of(self, prompt: Prompt) -> str:
        """How a prompt ends, special tokens as their texts."""
        if isinstance(prompt, str) or self._vocabulary is None:
            return str(prompt[-_END:])
        return self._vocabulary.detokenise(prompt[-_END:]).decode("utf-8", "replace")

    def special_ids(self, texts: Iterable[str]) -> dict[int, str]:
        """Those of ``texts`` that are one token, by its id."""
        ids = {text: self._vocabulary.tokenise(text) for text in texts} if self._vocabulary else {}
        return {found[0]: text for text, found in ids.items() if len(found) == 1}

    def _render(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        if self.renderer is None:
            found = self.template.conversation(messages, variables, self._system_role)
        else:
            source = Source.of(self._bundle, self._file)
            found = self.renderer.render(source, messages, variables, self._system_role)
        for note in found.notes:
            if note not in self._told:
                self._told.add(note)
                self._warn(note)
        return found.text

    @staticmethod
    def _with_bos(vocabulary: SimModel, ids: list[int]) -> list[int]:
        """As llama.cpp does: BOS first if the model wants it and the template did not write it."""
        bos = vocabulary.info.bos_id
        return [bos, *ids] if vocabulary.info.add_bos and bos >= 0 and ids[:1] != [bos] else ids


def _without_begun(messages: Sequence[Message]) -> tuple[Sequence[Message], str]:
    """The messages for the template, and what goes behind what it makes of them."""
    if messages and messages[-1].get(PREFIX):
        return messages[:-1], str(messages[-1]["content"])
    return messages, ""
