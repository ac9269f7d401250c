"""Tools that a request offers, in any language: what the template is given, which calls count, what must be called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

from rk3588.errors import RequestRefused

from .fields import refuse
from .jobs import Message
from .jsonformat import Checker
from .template_facts import TemplateFacts
from .toolcalls import Call, CallFormat

Tool = Mapping[str, Any]
MOST_TOOLS = 1024
_MOST_CHECKED = 8  # calls of an answer; each check is a process of its own
MOST_CALLS = 256  # in a message; each result is compared with those that wait
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True)
class CallRules:
    """Which calls are read out of an answer. ``required``: it has to have one. ``several``: it may have more."""

    format: CallFormat
    names: frozenset[str]
    required: bool = False
    several: bool = True
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by function: schemas that are checked

    def instruction(self) -> str:
        """What is told to a model that has to call."""
        if len(self.names) == 1:
            return f"Call the function {next(iter(self.names))} now. Answer with that call, and nothing else."
        return "Call one of the functions now. Answer with the call, and nothing else."

    async def problem(self, calls: Sequence[Call], checker: Checker) -> Optional[str]:
        """What is wrong with the calls of an answer that had to have one."""
        which = next(iter(self.names)) if len(self.names) == 1 else "one of the functions"
        if not calls:
            return f"it has no call of {which} with arguments that are JSON"
        for call in calls[:_MOST_CHECKED]:
            schema = self.parameters.get(call.name)
            if not schema:
                continue
            problem = await checker.ask({"schema": schema, "answer": call.arguments})
            # A schema that nobody can use is no fault of the answer's.
            if problem and not await checker.ask({"schema": schema}):
                return f"the arguments of {call.name} do not fit: {problem}"
        return None


class _Open(NamedTuple):
    """A call of the history."""

    id: str
    name: str


class Offer(NamedTuple):
    """``tools`` for the template. ``heeded``: whether they have the effect that clients expect."""

    tools: Optional[Sequence[Tool]] = None
    rules: Optional[CallRules] = None
    heeded: bool = True


def offer(tools: Sequence[Any], choice: Any, several: bool, facts: TemplateFacts, param: str = "tool_choice") -> Offer:
    """``tools`` and the choice as OpenAI's clients send them: auto, none, required, or one function by its name.

    RequestRefused where a call is demanded that this model's template has no format for.
    """
    named = {_name(tool, f"tools[{number}]"): tool for number, tool in enumerate(tools)}
    if len(tools) > MOST_TOOLS:
        raise RequestRefused(f"{len(tools)} tools are too many: this server takes {MOST_TOOLS}", "tools")
    wanted = _wanted(choice, named, param)
    if not tools or choice == "none":
        return Offer()
    if facts.call_format is None or not facts.takes_tools:
        if wanted is not None:
            raise RequestRefused(
                "a call cannot be demanded of this model: its chat template shows no format of calls that is known "
                f"here (leave {param!r} out, or give another template)",
                param,
            )
        return Offer(tools, heeded=False)
    shown = [tool for name, tool in named.items() if name in wanted] if wanted else tools
    schemas = {name: tool["function"].get("parameters") for name, tool in named.items()} if wanted else {}
    checked = {name: schema for name, schema in schemas.items() if isinstance(schema, dict)}
    return Offer(shown, CallRules(facts.call_format, frozenset(wanted or named), wanted is not None, several, checked))


def _name(tool: Any, where: str) -> str:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        refuse(where, 'like {"type": "function", "function": {"name": "…", …}}')
    return str(function["name"])


def _wanted(choice: Any, named: Mapping[str, Tool], param: str) -> Optional[tuple[str, ...]]:
    """Of which functions one has to be called; None where none has to."""
    if choice in ("auto", "none"):
        return None
    if choice in ("required", "any"):
        names = tuple(named)
    else:
        function = choice.get("function", choice) if isinstance(choice, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            refuse(param, 'auto, none, required, or {"type": "function", "function": {"name": "…"}}')
        if name not in named:
            there = ", ".join(list(named)[:20])[:300] or "none"
            raise RequestRefused(f"{param!r} names a function that is not among 'tools': there are {there}", param)
        names = (name,)
    if not names:
        raise RequestRefused(f"{param!r} demands a call, and there are no 'tools' to call", param)
    return names


def history(messages: Sequence[Message], facts: TemplateFacts) -> list[Message]:
    """A conversation whose calls and results fit a template: every call has an id, every result its call's.

    Clients leave ids out, or have made them for another server, and Mistral's templates insist on nine letters and
    digits. Where a template takes one call in a message, several become messages of their own, each before its result.
    """
    found: list[Message] = []
    ids: dict[Any, _Open] = {}  # by the client's
    waiting: list[_Open] = []  # for a result
    count = 0
    for message in messages:
        if calls := message.get("tool_calls"):
            if len(calls) > MOST_CALLS:
                raise RequestRefused(f"{len(calls)} calls in a message are too many: at most {MOST_CALLS}", "messages")
            waiting, known = [], []
            for call in calls:
                count += 1
                given = call.get("id")
                fits = isinstance(given, str) and given and (not facts.short_ids or _SHORT_ID.fullmatch(given))
                # Not a new one each time: a prompt has to begin as it did in the turn before.
                ours = _Open(given if fits else f"call{count:05}", call["function"]["name"])
                waiting.append(ours)
                if isinstance(given, str):
                    ids[given] = ours
                known.append({**call, "id": ours.id, "type": call.get("type") or "function"})
            message = {**message, "tool_calls": known}
        elif message["role"] == "tool":
            message = _with_call(message, ids, waiting)
        found.append(message)
    return _one_by_one(found) if facts.one_call else found


def _with_call(message: Message, ids: Mapping[Any, _Open], waiting: list[_Open]) -> Message:
    """A result with the id of its call: of the one it names, else of the first that has none yet."""
    call = ids.get(message.get("tool_call_id"))
    if call is None:
        same = [each for each in waiting if each.name == message.get("name")]
        call = next(iter(same or waiting), None)
    if call is None:
        return message
    if call in waiting:
        waiting.remove(call)
    return {"name": call.name, **message, "tool_call_id": call.id}


def _one_by_one(messages: Sequence[Message]) -> list[Message]:
    found: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        calls = message.get("tool_calls")
        if not calls or len(calls) == 1:
            found.append(message)
            continue
        results: dict[Any, list[Message]] = {}
        while at < len(messages) and messages[at]["role"] == "tool":
            results.setdefault(messages[at].get("tool_call_id"), []).append(messages[at])
            at += 1
        rest_of_it = {key: value for key, value in message.items() if key != "reasoning_content"}
        for number, call in enumerate(calls):  # what was thought and said stands in front of the first
            of_this = message if number == 0 else {**rest_of_it, "content": ""}
            found += [{**of_this, "tool_calls": [call]}, *results.pop(call["id"], ())]
        found += [result for rest in results.values() for result in rest]
    return found
