"""Chat templates: the bundle's own Jinja template, rendered as transformers renders it, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Optional, cast

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .bundle import TEMPLATE, Bundle
from .errors import BundleError, UsageError

Message = Mapping[str, Any]
_MOST_BYTES = 1 << 20  # of a template; the largest known have some 20 kB
# What a template that somebody else wrote can raise, given a conversation that it did not expect.
_REFUSALS = (
    TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError,
)  # fmt: skip


class ChatTemplate:
    """A compiled template with its special tokens. ``where`` names it in errors (BundleError)."""

    def __init__(self, source: str, tokens: Mapping[str, Optional[str]], where: str = TEMPLATE) -> None:
        self.where = where
        self._tokens = {name: text for name, text in tokens.items() if isinstance(text, str)}
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise BundleError(f"{where} is not a Jinja template that can be used: {error}") from error

    @classmethod
    def of(cls, bundle: Bundle, file: Optional[Path] = None) -> ChatTemplate:
        """The bundle's template, or the one in ``file``; BundleError if there is none."""
        where = file or bundle.path / TEMPLATE
        try:
            source = read(file) if file else bundle.chat_template
        except UnicodeDecodeError as error:
            raise BundleError(f"{where} is not a text in UTF-8: convert the model again") from error
        if source is None:
            raise BundleError(
                f"{bundle.path} has no {TEMPLATE}: give the model's own with --template FILE, or send single prompts "
                "as they are (rk3588 run --raw)"
            )
        tokens = bundle.manifest["tokenizer"]
        special = {name: tokens.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return cls(source, special, str(where))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The conversation as the model was trained to read it. ``variables`` reach the template by name."""
        known = {"tools": None, "documents": None, **self._tokens, **variables}
        try:
            return self._template.render(
                messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt, **known
            )
        except SecurityError as error:
            raise BundleError(f"{self.where} does what a template may not: {error}") from error
        except _REFUSALS as error:
            # A template's own raise_exception comes here too, say on roles that do not alternate.
            raise BundleError(f"{self.where} refuses this conversation: {error}") from error


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
