"""Calls of tools, read out of an answer as it comes, in the format that the model's chat template shows.

A call is one only where it is whole, strict JSON for a tool that was offered: all else stays text. White space around
calls belongs to neither.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

from rkruntime.splitting import SPACE, undecided, without_space

from . import strictjson
from .jsonprefix import FENCE, JsonPrefix
from .strictjson import BadJson

_PIECE = 256  # characters that are looked at in one go, so that time is linear in an answer's length
_LONGEST_HEAD = 256
_ID_LENGTH = 9  # letters and digits: what Mistral's templates insist on
_BETWEEN = " \t\r\n;`"
_CALL_KEYS = {"name", "arguments", "parameters", "type", "id", "function"}
_PYTHON_CALL = re.compile(r"([\w-]{1,128})\.call\(")
_PYTHON_ARGUMENT = re.compile(r'\s*(\w+)\s*=\s*("(?:[^"\\]|\\.)*")\s*(?:,|$)', re.DOTALL)


class Call(NamedTuple):
    """A tool's name and what it is given."""

    id: str
    name: str
    arguments: Mapping[str, Any]

    def arguments_text(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True)
class CallFormat:
    """How a family writes calls. ``signs``: a template that has one of them, and none of ``not_signs``, is of this
    format. ``head``: what stands between what opens a call and its arguments, with the name in a group; without it the
    JSON names the function. ``bare``: an answer may begin with the JSON itself, fenced or not.
    """

    name: str
    signs: tuple[str, ...]
    opens: tuple[str, ...]
    closes: tuple[str, ...] = ()
    not_signs: tuple[str, ...] = ()
    bare: bool = False
    head: Optional[re.Pattern[str]] = None
    marks: tuple[str, ...] = ()  # further texts that may be special tokens

    @property
    def special(self) -> tuple[str, ...]:
        """Texts that the runtime must not leave out where they are special tokens."""
        return (*self.opens, *self.closes, *self.marks)


_PYTHON_TAG = "<|python_tag|>"
# The first that fits is a template's own.
CALL_FORMATS = (
    # Qwen2.5, Qwen3, Hermes, SmolLM3. Qwen3-Coder's and GLM's calls stand in the same tags, and are no JSON.
    CallFormat(
        "hermes", ("<tool_call>",), ("<tool_call>",), ("</tool_call>",), ("<function=", "<arg_key>"),
        bare=True,  # as Qwen2.5-Coder calls, whatever its template shows it
    ),
    CallFormat(  # Mistral from Small 3.2 and Ministral 3 on
        "mistral-args", ("[ARGS]",), ("[TOOL_CALLS]",), marks=("[ARGS]", "[CALL_ID]"),
        head=re.compile(r"\s*([\w.-]{1,128})(?:\[CALL_ID\]\w{0,64})?(?:\[ARGS\]|(?=\{))"),
    ),
    CallFormat("mistral", ("[TOOL_CALLS]",), ("[TOOL_CALLS]",)),
    CallFormat(  # DeepSeek R1 and V3
        "deepseek", ("<｜tool▁call▁begin｜>",),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁begin｜>"),
        ("<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "<｜tool▁call▁end｜>"),
        head=re.compile(r"\s*\w{1,32}<｜tool▁sep｜>([\w.-]{1,128})\n"),
        marks=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"),
    ),
    CallFormat(  # Phi-4-mini, by its own template and by others'
        "phi-4", ("<|tool|>", "<|tool_call|>", "functools["), ("<|tool_call|>", "functools["),
        ("<|/tool_call|>",),
    ),
    CallFormat("llama-3", ('"parameters":', _PYTHON_TAG), (_PYTHON_TAG,), bare=True),
)  # fmt: skip


def format_of(template: str) -> Optional[CallFormat]:
    """How calls look, as a template's text shows it; None where it shows no format that is known here."""
    for form in CALL_FORMATS:
        if any(sign in template for sign in form.signs):
            return None if any(sign in template for sign in form.not_signs) else form
    return None


def new_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_ID_LENGTH))


Said = Union[str, Call]
_Step = Callable[[str, list[Said]], str]


class CallSplitter:
    """``feed`` the answer as it comes: texts and calls, the same however it is cut into pieces.

    What is held back: what may become a call, and white space before it.
    """

    def __init__(self, form: CallFormat, names: frozenset[str]) -> None:
        self._form, self._names = form, names
        self._opens = re.compile("|".join(map(re.escape, form.opens)))
        self._held = ""
        self._at_start = form.bare  # nothing but white space has come
        self._after_call = False
        self._is_bare = False  # what may become a call stands without what opens one
        self._lead = ""  # of what may become a call: the text up to its value
        self._block: list[str] = []  # and the value as far as it has come
        self._named = ""  # by the head
        self._json = JsonPrefix()
        self._step: _Step = self._text

    def feed(self, text: str) -> list[Said]:
        out: list[Said] = []
        for at in range(0, len(text), _PIECE):
            rest = text[at : at + _PIECE]
            while rest:
                rest = self._step(rest, out)
        return out

    def end(self) -> list[Said]:
        """What was held back, now that the answer has ended."""
        if self._step == self._python:
            called = self._python_call("".join(self._block))
            if called is not None:
                return [called]
        if self._step == self._between:
            self._held = self._behind_fence(self._held).strip()
            if any(each.startswith(self._held) for each in self._form.closes):  # cut off
                return []
        rest = self._lead + "".join(self._block) + self._held
        return [rest] if rest else []

    def _text(self, text: str, out: list[Said]) -> str:
        """Outside of calls, up to what opens one."""
        text = self._held + text
        self._held = ""
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        if self._at_start:
            begun = text.lstrip()
            space = len(text) - len(begun)
            if not begun and space <= SPACE:
                self._held = text
                return ""
            self._at_start = False
            self._is_bare = True
            if begun.startswith(("{", "`")) and space <= SPACE:
                return self._open(text[:space], begun)
        self._is_bare = False
        opened = self._opens.search(text)
        if opened is not None:
            start = without_space(text, opened.start())
            _say(out, text[:start])
            lead, rest = text[start : opened.end()], text[opened.end() :]
            if lead.endswith("["):  # which is the value's own
                lead, rest = lead[:-1], lead[-1] + rest
            return self._open(lead, rest)
        kept = without_space(text, len(text) - undecided(text, *self._form.opens))
        _say(out, text[:kept])
        self._held = text[kept:]
        return ""

    def _open(self, lead: str, rest: str) -> str:
        self._lead, self._block, self._named, self._json = lead, [], "", JsonPrefix()
        self._step = self._head if self._form.head else self._value
        return rest

    def _head(self, text: str, out: list[Said]) -> str:
        """The name before the arguments."""
        assert self._form.head is not None
        text = self._held + text
        self._held = ""
        found = self._form.head.match(text[:_LONGEST_HEAD])
        if found is not None:
            self._named, self._step = found.group(1), self._value
            self._lead += found.group()
            return text[found.end() :]
        if len(text) < _LONGEST_HEAD:
            self._held = text
            return ""
        return self._no_call(text, out)

    def _value(self, text: str, out: list[Said]) -> str:
        """The JSON of a call, up to its end or to where it is none."""
        before = self._json.taken
        self._json.feed(text)
        if not (self._json.whole or self._json.problem):
            self._block.append(text)
            return ""
        cut = self._json.taken - before
        self._block.append(text[:cut])
        rest = text[cut:]
        if self._json.problem:
            if _PYTHON_TAG in self._lead:
                self._step = self._python
                return rest
            return self._no_call(rest, out)
        calls = self._calls(self._json.text)
        if calls is None:
            return self._no_call(rest, out)
        out += calls
        self._lead, self._block = "", []
        self._step = self._between
        return rest

    def _no_call(self, rest: str, out: list[Said]) -> str:
        """What looked like one was text; what comes after it is looked at anew."""
        _say(out, self._lead + "".join(self._block))
        self._lead, self._block = "", []
        self._step = self._text
        return rest

    def _between(self, text: str, _out: list[Said]) -> str:
        """Behind a call: its end, another one, or text."""
        text = self._held + text
        self._held = ""
        begun = text.lstrip(_BETWEEN)
        space = len(text) - len(begun)
        if space <= SPACE:
            if begun.startswith("{") and not self._form.head:
                return self._open(text[:space], begun)
            if any(len(begun) < len(each) and each.startswith(begun) for each in ("?", *self._form.closes)):
                self._held = text
                return ""
        self._step, self._after_call = self._text, True
        closes = [each for each in self._form.closes if begun.startswith(each) and space <= SPACE]
        return begun[max(map(len, closes)) :] if closes else self._behind_fence(text)

    def _behind_fence(self, text: str) -> str:
        """What follows a call, and the end of the code fence that it stood in."""
        begun = text.lstrip()
        return begun[len(FENCE) :] if self._json.fenced and begun.startswith(FENCE) else text

    def _python(self, text: str, _out: list[Said]) -> str:
        """Behind Llama's python tag, what is no JSON: it cannot be told from code before its end."""
        self._block.append(text)
        return ""

    def _calls(self, text: str) -> Optional[list[Call]]:
        """None unless all of it is calls of tools that were offered."""
        try:
            value = strictjson.parse(text)
        except BadJson:
            return None
        if self._named:
            calls = [self._call(self._named, value)]
        else:
            calls = [self._object(each) for each in (value if isinstance(value, list) else [value])]
        found = [call for call in calls if call is not None]
        return found if found and len(found) == len(calls) else None

    def _object(self, value: Any) -> Optional[Call]:
        if not isinstance(value, dict) or (self._is_bare and not _CALL_KEYS.issuperset(value)):
            return None
        if isinstance(value.get("function"), dict):
            value = value["function"]
        given = [value[key] for key in ("arguments", "parameters") if key in value]
        if self._is_bare and not given:
            return None
        return self._call(value.get("name"), given[0] if given else {})

    def _call(self, name: Any, arguments: Any) -> Optional[Call]:
        if not isinstance(name, str) or name not in self._names:
            return None
        if isinstance(arguments, str):
            try:
                arguments = strictjson.parse(arguments or "{}")
            except BadJson:
                return None
        if arguments is None:
            arguments = {}
        return Call(new_id(), name, arguments) if isinstance(arguments, dict) else None

    def _python_call(self, text: str) -> Optional[Call]:
        """``NAME.call(key="value", …)``, as Llama 3.1 calls tools that it was trained with."""
        text = text.strip()
        function = _PYTHON_CALL.match(text)
        if function is None or not text.endswith(")"):
            return None
        given, arguments, at = text[function.end() : -1].strip(), {}, 0
        while at < len(given):
            argument = _PYTHON_ARGUMENT.match(given, at)
            if argument is None:
                return None
            try:
                arguments[argument.group(1)] = strictjson.parse(argument.group(2))
            except BadJson:
                return None
            at = argument.end()
        return self._call(function.group(1), arguments)


def _say(out: list[Said], text: str) -> None:
    if text:
        out.append(text)
