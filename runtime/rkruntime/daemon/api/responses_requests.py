"""What clients of OpenAI's /v1/responses ask for: a body becomes that of /v1/chat/completions, which is read there.

Nothing is kept between requests; what needs that is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn, Optional

from rk3588.errors import RequestRefused
from rkruntime.daemon import sampling
from rkruntime.daemon.config import Config
from rkruntime.daemon.fields import Fields, refuse

from . import openai_requests
from .dialect import AnswerRequest, FindModel, Object
from .places_sent import at_its_place

STATE = ("previous_response_id", "conversation", "prompt", "background")  # fields that need something kept
_PARTS = ("input_text", "output_text", "text")
# By the names they have in both.
_AS_THEY_ARE = (
    *sampling.NAMES, "seed", "model", "stream", "text", "response_format", "top_logprobs", "logit_bias",
    "chat_template_kwargs", "parallel_tool_calls", "reasoning",
)  # fmt: skip


def read(body: Mapping[str, Any], config: Config, find: FindModel, owner: str) -> AnswerRequest:
    """A request to /v1/responses."""
    fields = Fields(body)
    for name in STATE:
        if fields.get(name):
            raise RequestRefused(
                f"{name!r} is not supported: nothing is kept between requests (send the whole conversation in `input`)",
                name,
            )
    asked: Object = {name: fields[name] for name in _AS_THEY_ARE if name in fields}
    messages, places = _messages(fields)
    asked["messages"] = messages
    asked["tools"] = [_tool(tool, number) for number, tool in enumerate(fields.items_of("tools"))] or None
    asked["tool_choice"] = _tool_choice(fields)
    asked["max_completion_tokens"] = _limit(fields)
    try:
        found = openai_requests.chat(asked, config, find, owner)
    except RequestRefused as error:
        raise at_its_place(error, places) from error
    ignored = (*found.ignored, "store") if fields.flag("store") else found.ignored
    return replace(found, include_usage=True, ignored=ignored)


def _limit(fields: Fields) -> Optional[int]:
    limit = fields.whole("max_output_tokens")
    if limit is not None and limit < 1:
        refuse("max_output_tokens", "1 or more, or null for no limit but the context's")
    return limit


def _messages(fields: Fields) -> tuple[list[Object], list[str]]:
    """The conversation, and where in the body each message of it stands."""
    found: list[Object] = []
    places: list[str] = []
    if instructions := fields.text("instructions"):
        found.append({"role": "system", "content": instructions})
        places.append("instructions")
    given = fields.get("input")
    if isinstance(given, str) and given:
        return [*found, {"role": "user", "content": given}], [*places, "input"]
    if not isinstance(given, list) or not given:
        refuse("input", "a string that is not empty, or a list of items with at least one")
    for number, item in enumerate(given):
        where = f"input[{number}]"
        if message := _message(item, where, found):
            found.append(message)
            places.append(where)
    return found, places


def _message(item: Any, where: str, before: list[Object]) -> Optional[Object]:
    """One item of the input as a message; None where it is one with the message before it, or nothing at all."""
    if not isinstance(item, dict):
        refuse(where, "an object")
    fields = Fields(item)
    kind = fields.text("type") or "message"
    if kind == "message":
        return {"role": fields.get("role"), "content": _content(fields.get("content"))}
    if kind == "function_call_output":
        output = _content(fields.get("output"))
        return {"role": "tool", "tool_call_id": fields.text("call_id"), "content": output}
    if kind == "function_call":  # those that follow each other are one message, as the model gave them
        call = {"id": fields.text("call_id"), "type": "function", "function": _function(fields)}
        if before and before[-1].get("tool_calls"):
            before[-1]["tool_calls"].append(call)
            return None
        return {"role": "assistant", "tool_calls": [call]}
    if kind != "reasoning":  # earlier thoughts are not shown again
        _refuse_kind(kind, where)
    return None


def _function(fields: Fields) -> Object:
    return {"name": fields.text("name"), "arguments": fields.text("arguments") or "{}"}


def _refuse_kind(kind: str, where: str) -> NoReturn:
    kept = kind == "item_reference"
    why = "nothing is kept between requests" if kept else "only text and calls of functions are read"
    raise RequestRefused(f"{where} is of type {kind[:40]!r}: {why}", where)


def _content(content: Any) -> Any:
    """Text parts by the names that the chat endpoint has for them; what else there is, is refused there."""
    if not isinstance(content, list):
        return content
    return [_part(part) for part in content]


def _part(part: Any) -> Any:
    return {**part, "type": "text"} if isinstance(part, dict) and part.get("type") in _PARTS else part


def _tool(tool: Any, number: int) -> Object:
    where = f"tools[{number}]"
    if not isinstance(tool, dict):
        refuse(where, "an object")
    kind = tool.get("type")
    if kind != "function":
        raise RequestRefused(f"{where} is of type {str(kind)[:40]!r}: only functions are supported as tools", where)
    if not isinstance(tool.get("name"), str):
        refuse(where, 'like {"type": "function", "name": "…", …}')
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _tool_choice(fields: Fields) -> Any:
    choice = fields.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice

