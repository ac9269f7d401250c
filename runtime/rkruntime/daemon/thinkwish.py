"""Whether and how much a model is to think, in the places where clients of several servers say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

from rk3588.errors import RequestRefused
from rkruntime.thoughts import EFFORT, SWITCHES, Thinking, Wish, is_on

from .fields import Fields, refuse

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
FIELDS = ("reasoning_effort", "think", "enable_thinking", "reasoning", "thinking")
OF_THE_TEMPLATE = (*FIELDS, "chat_template_kwargs", "tools")  # what can be ignored because of it


class Wanted(NamedTuple):
    """``variables`` for the template; ``ignored``: the fields that asked for what it has no switch for."""

    variables: Mapping[str, Any]
    ignored: tuple[str, ...] = ()


def wanted(fields: Fields, given: Mapping[str, Any], thinking: Thinking) -> Wanted:
    """Out of a request's fields and the variables that it gives the template itself, which win.

    RequestRefused where two of them differ.
    """
    wishes = {name: wish for name in FIELDS if (wish := _wish(fields, name)) is not None}
    own = {f"chat_template_kwargs.{name}": given[name] for name in (*SWITCHES, EFFORT) if _is_wish(given.get(name))}
    every: dict[str, Wish] = {**wishes, **own}
    first = next(iter(every), "")
    for name, wish in every.items():
        if is_on(wish) != is_on(every[first]):
            raise RequestRefused(f"{first!r} and {name!r} contradict each other: leave one of them out", name)
    variables: dict[str, Any] = {}
    for wish in every.values():
        variables.update(thinking.switch(wish))
    return Wanted({**variables, **given}, () if variables else tuple(every))


def _is_wish(value: Any) -> bool:
    return isinstance(value, (bool, str))


def _wish(fields: Fields, name: str) -> Optional[Wish]:
    """What a field says: true, false, or how much."""
    value = fields.get(name)
    if name == "reasoning" and isinstance(value, dict):  # OpenRouter's, and OpenAI's second interface's
        value = value.get("effort", value.get("enabled"))
    elif name == "thinking" and isinstance(value, dict):  # Anthropic's, DeepSeek's, Z.ai's
        value = {"enabled": True, "adaptive": True, "disabled": False}.get(str(value.get("type")))
    if value in (None, "default", "auto"):
        return None
    if isinstance(value, bool) and name != "reasoning_effort":
        return value
    if not isinstance(value, str) or value not in EFFORTS or name == "enable_thinking":
        refuse(name, "true or false" if name == "enable_thinking" else f"one of {', '.join(EFFORTS)}")
    return value
