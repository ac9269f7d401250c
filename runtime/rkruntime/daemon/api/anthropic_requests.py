"""What Anthropic's clients ask for at /v1/messages: a body becomes that of /v1/chat/completions, and is read there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from rk3588.errors import RequestRefused
from rkruntime.daemon.config import Config
from rkruntime.daemon.fields import Fields, refuse

from . import openai_requests
from .dialect import AnswerRequest, FindModel, Object
from .places_sent import at_its_place

_AS_THEY_ARE = ("model", "stream", "temperature", "top_p", "top_k", "thinking", "max_tokens")
_NAMES = {"stop": "stop_sequences"}  # of fields that have another name there
_DROPPED = ("redacted_thinking",)  # nobody here can read it


def read(body: Mapping[str, Any], config: Config, find: FindModel, owner: str) -> AnswerRequest:
    fields = Fields(body)
    asked: Object = {name: fields[name] for name in _AS_THEY_ARE if name in fields}
    messages, places = _messages(fields)
    asked.update(messages=messages, stop=fields.get("stop_sequences"), tools=_tools(fields), **_choice(fields))
    try:
        found = openai_requests.chat(asked, config, find, owner)
    except RequestRefused as error:  # with the place where it was sent
        raise at_its_place(error, places, _NAMES) from error
    return replace(found, include_usage=True)


def _messages(fields: Fields) -> tuple[list[Object], list[str]]:
    """The conversation, and where in the body each message of it stands."""
    found: list[Object] = []
    if system := fields.get("system"):
        found.append({"role": "system", "content": system})
    places = ["system"] * len(found)
    for number, message in enumerate(fields.items_of("messages")):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            refuse(where, "an object")
        content = message.get("content")
        said = {"role": message.get("role"), "content": content}
        made = _blocks(said, content, f"{where}.content") if isinstance(content, list) else [said]
        found += made
        places += [where] * len(made)
    return found, places


def _blocks(said: Object, blocks: list[Any], where: str) -> list[Object]:
    """A message in blocks: results of tools are messages of their own, before what else is said."""
    results: list[Object] = []
    parts, calls, thoughts = [], [], []
    for number, block in enumerate(blocks):
        fields = Fields(block) if isinstance(block, dict) else refuse(f"{where}[{number}]", "an object")
        kind = fields.text("type")
        if kind == "tool_result":
            output = fields.get("content", "")
            results.append({"role": "tool", "tool_call_id": fields.text("tool_use_id"), "content": output})
        elif kind == "tool_use":
            function = {"name": fields.text("name"), "arguments": fields.mapping("input")}
            calls.append({"id": fields.text("id"), "type": "function", "function": function})
        elif kind == "thinking":
            thoughts.append(fields.text("thinking") or "")
        elif kind not in _DROPPED:
            parts.append(block)
    message: Object = {**said, "content": parts}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    return [*results, message] if parts or calls or thoughts or not results else results


def _tools(fields: Fields) -> Optional[list[Object]]:
    found: list[Object] = []
    for number, tool in enumerate(fields.items_of("tools")):
        where = f"tools[{number}]"
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            refuse(where, 'like {"name": "…", "input_schema": {…}}')
        if tool.get("type") not in (None, "custom"):
            raise RequestRefused(f"{where} is of type {str(tool['type'])[:40]!r}: only functions are supported", where)
        function = {"name": tool["name"], "parameters": tool.get("input_schema") or {"type": "object"}}
        if isinstance(tool.get("description"), str):
            function["description"] = tool["description"]
        found.append({"type": "function", "function": function})
    return found or None


def _choice(fields: Fields) -> Object:
    given = Fields(fields.mapping("tool_choice"))
    if not given:
        return {}
    kind = given.text("type")
    if kind not in ("auto", "any", "none", "tool"):
        refuse("tool_choice", "an object whose type is auto, any, none or tool")
    choice: Any = {"type": "function", "function": {"name": given.get("name")}} if kind == "tool" else kind
    return {"tool_choice": choice, "parallel_tool_calls": not given.flag("disable_parallel_tool_use")}
