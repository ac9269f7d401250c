"""What Ollama's clients ask for: a body becomes that of OpenAI's language, which reads it, or RequestRefused names the
field. So a setting that one of them learns to honour, the other honours as well."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from rk3588.errors import RequestRefused
from rkruntime.daemon import sampling
from rkruntime.daemon.config import Config
from rkruntime.daemon.fields import Fields, refuse
from rkruntime.daemon.jobs import Job

from . import openai_requests
from .dialect import AnswerRequest, FindModel, Object

MAX_STOPS = 32  # editors send one for each mark of a fill-in-the-middle format
MAX_STOP_LENGTH = 256  # characters
_SAMPLING = (*(name for name in sampling.NAMES if name != "repetition_penalty"), "seed")
# Options that no runtime here has, with the values at which they do nothing.
WITHOUT_EFFECT = {"min_p": 0, "typical_p": 1, "tfs_z": 1, "mirostat": 0}
_ZERO = re.compile(r"[+-]?0[0.]{0,30}[a-zµμ]{0,2}")  # of keep_alive: to be unloaded at once
_AS_THEY_ARE = ("format", "logprobs", "top_logprobs")


def chat(body: Mapping[str, Any], config: Config, find: FindModel, owner: str) -> AnswerRequest:
    """A request to /api/chat. Without messages it asks for the model to be loaded."""
    fields = Fields(body)
    given = fields.items_of("messages")
    if not given:
        return _load(fields, config, find, owner)
    messages = [_message(message, f"messages[{number}]") for number, message in enumerate(given)]
    asked = {**_common(fields), "messages": messages, "tools": fields.get("tools"), "think": _think(fields, config)}
    return _finished(openai_requests.chat(asked, config, find, owner), fields, config)


def generate(body: Mapping[str, Any], config: Config, find: FindModel, owner: str) -> AnswerRequest:
    """A request to /api/generate: a prompt as what the user says, or with `raw` as it is."""
    fields = Fields(body)
    raw, system = fields.flag("raw"), fields.text("system")
    _refuse_what_cannot_be(fields, raw)
    prompt = fields.text("prompt")
    if not prompt:
        return _load(fields, config, find, owner)
    if raw:
        found = openai_requests.completion({**_common(fields), "prompt": prompt}, config, find, owner)
        without_effect = ("think",) if fields.get("think") else ()
        return _finished(replace(found, ignored=(*found.ignored, *without_effect)), fields, config, without_effect)
    messages = [{"role": "user", "content": prompt}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    asked = {**_common(fields), "messages": messages, "think": _think(fields, config)}
    return _finished(openai_requests.chat(asked, config, find, owner), fields, config)


def _refuse_what_cannot_be(fields: Fields, raw: bool) -> None:
    if fields.text("suffix"):
        raise RequestRefused(
            "'suffix' is not supported: this model does not support insert, it can only go on where a prompt ends "
            "(with `raw`, a prompt may have the marks of the model's own fill-in-the-middle format)",
            "suffix",
        )
    if fields.text("template"):
        raise RequestRefused(
            "'template' is not supported: the bundle's own is used (send `raw` and a prompt that is complete)",
            "template",
        )
    if fields.items_of("context"):
        raise RequestRefused(
            "'context' is not supported: nothing is kept between requests (send the conversation to /api/chat)",
            "context",
        )
    if raw and fields.text("system"):
        raise RequestRefused("'system' cannot be told to a prompt that is sent `raw`: put it into the prompt", "system")
    _refuse_images(fields, "images")


def _refuse_images(fields: Fields, where: str) -> None:
    if fields.items_of("images"):
        raise RequestRefused(f"{where!r} is not supported: this model reads only text", where)


def _load(fields: Fields, config: Config, find: FindModel, owner: str) -> AnswerRequest:
    """No prompt: the client wants the model to be loaded, or with `keep_alive` 0 to be unloaded."""
    model = find(fields.text("model"))
    job = Job(owner=owner, background=model.background, lora=model.lora)
    return _finished(AnswerRequest(job, model.id, False, True, (), None, (), runs=False), fields, config)


def _common(fields: Fields) -> Object:
    """What both have, in OpenAI's words."""
    options = _options(fields)
    limit = options.whole("num_predict")
    found: Object = {name: fields[name] for name in _AS_THEY_ARE if name in fields}
    found.update({name: options[name] for name in _SAMPLING if name in options})
    if options.get("seed") == -1:  # Ollama's word for none
        del found["seed"]
    found["model"] = fields.get("model")
    found["stream"] = fields.get("stream", True)
    found["max_tokens"] = limit if limit is not None and limit > 0 else None  # 0 and below: no limit
    return found


def _think(fields: Fields, config: Config) -> Any:
    """Not to think, which Home Assistant always asks for, is no wish where nothing knows of thoughts."""
    asked, facts = fields.get("think"), config.template_facts
    return None if asked is False and not (facts.thinks or facts.thinking.variables) else asked


def _options(fields: Fields) -> Fields:
    return Fields(fields.mapping("options"))


def _finished(
    request: AnswerRequest, fields: Fields, config: Config, without_effect: tuple[str, ...] = ()
) -> AnswerRequest:
    """What is the same however the request was read: its end, its name, what of it has no effect."""
    options = _options(fields)
    others = [name for name, off in WITHOUT_EFFECT.items() if options.number(name) not in (None, off)]
    for name in (*others, *without_effect) if config.strict else ():
        raise RequestRefused(
            f"{name!r} has no effect here (leave it out, or run the daemon without --strict)",
            name if name in without_effect else f"options.{name}",
        )
    ignored = [*request.ignored, *others]
    if asks_to_unload(fields):
        ignored.append("keep_alive")
    return replace(
        request,
        model=fields.text("model") or request.model,  # as it was asked for
        include_usage=True,
        stops=_stops(options),
        ignored=tuple(ignored),
        context=num_ctx(fields),
    )


def num_ctx(fields: Fields) -> Optional[int]:
    """The context that is asked for; None: whichever there is."""
    context = _options(fields).whole("num_ctx")
    if context is not None and context < 0:
        refuse("options.num_ctx", "a number of tokens")
    return context or None


def asks_to_unload(fields: Fields) -> bool:
    """Whether `keep_alive` is 0. Other values ask for what is so anyway: the model stays loaded."""
    value = fields.get("keep_alive")
    if value is None or isinstance(value, (int, float)):
        return value is not None and not value
    if not isinstance(value, str):
        refuse("keep_alive", "a number of seconds, or a time like 5m")
    return _ZERO.fullmatch(value) is not None


def _stops(options: Fields) -> tuple[str, ...]:
    found = options.get("stop", [])
    stops = [found] if isinstance(found, str) else found
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        refuse("options.stop", "a list of strings")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in stops):
        refuse("options.stop", f"{MAX_STOPS} strings at the most, of {MAX_STOP_LENGTH} characters or fewer")
    return tuple(stop for stop in stops if stop)


def _message(message: Any, where: str) -> Object:
    """A message in OpenAI's words."""
    if not isinstance(message, dict):
        refuse(where, "an object")
    fields = Fields(message)
    _refuse_images(fields, f"{where}.images")
    role = fields.text("role")
    found: Object = {"role": role.lower() if role else role, "content": fields.get("content", "")}
    if not isinstance(found["content"], str):
        refuse(f"{where}.content", "a string")
    name: Optional[str] = fields.text("tool_name") or fields.text("name")
    if name:
        found["name"] = name
    for key in ("tool_call_id", "tool_calls", "thinking"):
        if key in fields:
            found[key] = fields[key]
    return found
