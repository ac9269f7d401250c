"""Chat templates: the bundle's own Jinja template, rendered as transformers renders it, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Optional, cast

from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .bundle import TEMPLATE, Bundle
from .conversation_rules import FOLD, REFUSE
from .errors import BundleError, UsageError, printable
from .template_text import TOOLS_OF_A_MESSAGE

Message = Mapping[str, Any]
_MOST_BYTES = 1 << 20  # of a template; the largest known have some 20 kB
_MOST_WORDS = 300  # characters of what a template says for itself
_LONGEST_KEY, _MOST_KEYS = 1000, 64  # of variables that what was tried with them is remembered for


NO_SYSTEM_ROLE = (
    "the chat template has no system role: the system prompt is put before the user's message (system_role: refuse "
    "refuses it)"
)
NO_TOOLS = "the chat template has no place for tools: the model is not told of them"
_PROBE = "SYSTEMPROMPT"  # no template has a reason to change it


class Source(NamedTuple):
    """A template before it is compiled. ``where`` names it in errors."""

    text: str
    tokens: Mapping[str, Optional[str]]
    where: str = TEMPLATE

    @classmethod
    def of(cls, bundle: Bundle, file: Optional[Path] = None) -> Source:
        """The bundle's template, or the one in ``file``; BundleError if there is none."""
        where = file or bundle.path / TEMPLATE
        text = read(file) if file else bundle.chat_template
        if text is None:
            raise BundleError(
                f"{bundle.path} has no {TEMPLATE}: give the model's own with --template FILE, or send single prompts "
                "as they are (rk3588 run --raw)"
            )
        tokens = bundle.manifest["tokenizer"]
        special = {name: tokens.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return cls(text, special, str(where))


class Rendered(NamedTuple):
    """``notes``: what a template has no place for, and what was done with it."""

    text: str
    notes: tuple[str, ...] = ()


class ChatTemplate:
    """A compiled template with its special tokens. ``where`` names it in errors (BundleError)."""

    def __init__(self, source: str, tokens: Mapping[str, Optional[str]], where: str = TEMPLATE) -> None:
        self.where = where
        self._takes_system: dict[str, bool] = {}  # by the variables that it was tried with
        self._reads_tools_off_a_message = TOOLS_OF_A_MESSAGE.search(source) is not None
        self._tokens = {name: text for name, text in tokens.items() if isinstance(text, str)}
        try:
            environment = _environment()
            self._template = environment.from_string(source)
            self._names = meta.find_undeclared_variables(environment.parse(source))
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

    def conversation(
        self,
        messages: Sequence[Message],
        variables: Optional[Mapping[str, Any]] = None,
        system_role: str = FOLD,
        *,
        add_generation_prompt: bool = True,
    ) -> Rendered:
        """``render``, with what the template has no place for put where it has one, or refused.

        Where it has no system role (Gemma's refuses one, some leave it out without a word) a system prompt is put
        before the user's next message, or refused, as ``system_role`` says. Tools reach it under the name it knows.
        """
        notes, known = [], dict(variables or {})
        if any(message.get("role") == "system" for message in messages) and not self._has_system_role(known):
            if system_role == REFUSE:
                raise BundleError(
                    f"{self.where} has no system role: leave the system prompt out, or have it put before the user's "
                    "message (system_role: fold)"
                )
            messages = folded(messages)
            notes.append(NO_SYSTEM_ROLE)
        if known.get("tools"):
            messages, told = self._place_tools(messages, known)
            notes += told
        try:
            text = self.render(messages, known, add_generation_prompt=add_generation_prompt)
        except BundleError:
            # DeepSeek's templates want the arguments of a call as the model wrote them, others as an object.
            written = _with_written_arguments(messages)
            if written is None:
                raise
            text = self.render(written, known, add_generation_prompt=add_generation_prompt)
        return Rendered(text, tuple(notes))

    def _place_tools(
        self, messages: Sequence[Message], variables: dict[str, Any]
    ) -> tuple[Sequence[Message], tuple[str, ...]]:
        """SmolLM3's template knows them as ``xml_tools``, Phi-4-mini's reads them off the system message."""
        if "tools" in self._names:
            return messages, ()
        if "xml_tools" in self._names:
            variables.setdefault("xml_tools", variables["tools"])
            return messages, ()
        if self._reads_tools_off_a_message:
            text = _to_json([tool.get("function", tool) for tool in variables["tools"]])
            first: Message = {"role": "system", "content": ""}
            if messages and messages[0].get("role") == "system":
                first, messages = messages[0], messages[1:]
            return [{**first, "tools": text}, *messages], ()
        return messages, (NO_TOOLS,)

    def _has_system_role(self, variables: Mapping[str, Any]) -> bool:
        """Tried once for the same variables: what one client gives the template says nothing of another's."""
        told = ((name, bool(value) if name == "tools" else value) for name, value in variables.items())
        key = repr(sorted(told, key=lambda pair: pair[0]))
        if key in self._takes_system:
            return self._takes_system[key]
        found = self._tried_system_role(variables)
        if len(key) <= _LONGEST_KEY and len(self._takes_system) < _MOST_KEYS:
            self._takes_system[key] = found
        return found

    def _tried_system_role(self, variables: Mapping[str, Any]) -> bool:
        """A template that refuses anything has no say in it."""
        question: Message = {"role": "user", "content": "?"}
        try:
            return _PROBE in self.render([{"role": "system", "content": _PROBE}, question], variables)
        except BundleError:
            try:
                self.render([question], variables)
            except BundleError:
                return True
            return False


def _with_written_arguments(messages: Sequence[Message]) -> Optional[list[Message]]:
    """Calls with their arguments as texts; None where there are none that are not."""
    found, changed = [], False
    for message in messages:
        calls = message.get("tool_calls")
        if isinstance(calls, Sequence) and not isinstance(calls, str):
            written = [_written(call) for call in calls]
            changed = changed or written != list(calls)
            message = {**message, "tool_calls": written}
        found.append(message)
    return found if changed else None


def _written(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), Mapping):
        return call
    return {**call, "function": {**function, "arguments": _to_json(function["arguments"])}}


def folded(messages: Sequence[Message]) -> list[Message]:
    """Each system message put before the user's next message, else behind the last one."""
    found: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        content = message.get("content")
        if message.get("role") == "system":
            waiting += [content] if isinstance(content, str) and content else []
        elif message.get("role") == "user" and waiting and isinstance(content, str):
            found.append({**message, "content": "\n\n".join([*waiting, content])})
            waiting = []
        else:
            found.append(message)
    if waiting:
        last = found.pop() if found and found[-1].get("role") == "user" else None
        found.append({"role": "user", "content": "\n\n".join([*([last["content"]] if last else []), *waiting])})
    return found


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
