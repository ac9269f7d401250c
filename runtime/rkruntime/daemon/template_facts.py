"""What the daemon knows of the model's chat template by its text: how thoughts and calls look, what can be switched."""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

from rk3588 import bundle as bundles
from rk3588 import template_text
from rk3588.errors import BundleError
from rkruntime.settings import Settings
from rkruntime.thoughts import KNOWN_TAGS, Thinking

from .toolcalls import CALL_FORMATS, CallFormat, format_of

ALL_MARKS = frozenset(text for each in (*KNOWN_TAGS, *(form.special for form in CALL_FORMATS)) for text in each)
_SHORT_IDS = re.compile(r"\|\s*length\s*(?:[!=]=|<)\s*9\b")
_ONE_CALL = re.compile(r"tool_calls\s*\|\s*length\s*(==|!=|>)\s*1\b")


class TemplateFacts(NamedTuple):
    """``call_format`` None: no format that is known here. ``one_call``: it refuses several calls in one message,
    ``short_ids``: ids of calls that are not nine characters."""

    thinking: Thinking = Thinking()
    shows_tools: bool = False
    call_format: Optional[CallFormat] = None
    one_call: bool = False
    short_ids: bool = False
    thinks: bool = False  # it knows of thoughts

    @classmethod
    def of(cls, template: str) -> TemplateFacts:
        return cls(
            Thinking.of(template),
            template_text.shows_tools(template),
            format_of(template),
            _ONE_CALL.search(template) is not None,
            _SHORT_IDS.search(template) is not None,
            any(tags.close in template for tags in KNOWN_TAGS),
        )

    @classmethod
    def of_bundle(cls, bundle: bundles.Bundle, settings: Settings) -> TemplateFacts:
        """Of the template that is used with it."""
        return cls.of(text_of(bundle, settings))

    @property
    def takes_tools(self) -> bool:
        """Whether the model is told of tools, and its calls are understood."""
        return self.shows_tools and self.call_format is not None

    def marks(self, calls: bool) -> tuple[str, ...]:
        """Texts that an answer is read by, which the runtime must not leave out where they are special tokens."""
        return (*self.thinking.tags, *(self.call_format.special if calls and self.call_format else ()))


def text_of(bundle: bundles.Bundle, settings: Settings) -> str:
    """The template that is used with a bundle, "" where there is none. RkError for a file that was given and is none:
    each load, or each chat, would fail."""
    file = settings.template
    if file is None:
        try:
            return bundle.chat_template or ""
        except (BundleError, OSError):  # a chat is told
            return ""
    from rk3588 import templates  # with Jinja, which is not needed here otherwise

    text = templates.read(file)
    templates.check(text, str(file))
    return text
