"""Chat templates: the bundle's own Jinja template, rendered as transformers renders it, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Optional, cast

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .bundle import TEMPLATE, Bundle
from .errors import BundleError, UsageError, printable

Message = Mapping[str, Any]
_MOST_BYTES = 1 << 20  # of a template; the largest known have some 20 kB
_MOST_WORDS = 300  # characters of what a template says for itself


class Source(NamedTuple):
    """A template before it is compiled. ``where`` names it in errors."""

    text: str
    tokens: Mapping[str, Optional[str]]
    where: str = TEMPLATE

    @classmethod
    def of(cls, bundle: Bundle, file: Optional[Path] = None) -> Source:
        """The bundle's template, or the one in ``file``; BundleError if there is none."""
        where = file or bundle.path / TEMPLATE
        try:
            text = read(file) if file else bundle.chat_template
        except UnicodeDecodeError as error:
            raise BundleError(f"{where} is not a text in UTF-8: convert the model again") from error
        if text is None:
            raise BundleError(
                f"{bundle.path} has no {TEMPLATE}: give the model's own with --template FILE, or send single prompts "
                "as they are (rk3588 run --raw)"
            )
        tokens = bundle.manifest["tokenizer"]
        special = {name: tokens.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return cls(text, special, str(where))


class ChatTemplate:
    """A compiled template with its special tokens. ``where`` names it in errors (BundleError)."""

    def __init__(self, source: str, tokens: Mapping[str, Optional[str]], where: str = TEMPLATE) -> None:
        self.where = where
        self._tokens = {name: text for name, text in tokens.items() if isinstance(text, str)}
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # also what Jinja's compiler and Python's make of a hostile one
            raise BundleError(f"{where} is not a Jinja template that can be used: {_said(error)}") from error

    @classmethod
    def of(cls, bundle: Bundle, file: Optional[Path] = None) -> ChatTemplate:
        """The bundle's template, or the one in ``file``; BundleError if there is none."""
        return cls(*Source.of(bundle, file))

    def render(
        self,
        messages: Sequence[Message],
        variables: Optional[Mapping[str, Any]] = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as the model was trained to read it. ``variables`` reach the template by name."""
        known = {"tools": None, "documents": None, **self._tokens, **(variables or {})}
        known.update(messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt)
        try:
            return self._template.render(known)
        except SecurityError as error:
            raise BundleError(f"{self.where} does what a template may not: {_said(error)}") from error
        except Exception as error:
            # A template's own raise_exception comes here too, say on roles that do not alternate.
            raise BundleError(f"{self.where} refuses this conversation: {_said(error)}") from error


def _said(error: Exception) -> str:
    """What an error says, in a line that a terminal can show: its words may be the template's."""
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    try:
        words = str(error) or type(error).__name__
    except Exception:
        words = type(error).__name__
    return printable(" ".join(words[:_MOST_WORDS].split()))


def read(file: Path) -> str:
    """The text of a template that somebody has; UsageError if it cannot be one."""
    if not file.is_file():  # a FIFO would be waited for
        raise UsageError(f"there is no template {file}: give the path of a Jinja file")
    with file.open("rb") as opened:
        raw = opened.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise UsageError(f"{file} is larger than {_MOST_BYTES >> 20} MiB: that is no chat template")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not a text in UTF-8: save it as such") from error


def check(source: str, where: str = TEMPLATE) -> None:
    """BundleError unless ``source`` is a template by its syntax. It is not compiled, and nothing in it is computed."""
    try:
        _environment().parse(source)
    except (TemplateError, RecursionError, ValueError, OverflowError, MemoryError) as error:
        raise BundleError(f"{where} is not a Jinja template that can be used: {_said(error)}") from error


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant said, for training; here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    # Jinja's own tojson escapes for HTML, which no model has seen.
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = cast(Callable[..., Any], _raise)
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Optional[int] = None,
    separators: Optional[tuple[str, str]] = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
