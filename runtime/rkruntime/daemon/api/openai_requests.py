"""What OpenAI's clients ask for: a body becomes an ``AnswerRequest``, or RequestRefused names the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

from rk3588.conversation_rules import PREFIX, RESERVED
from rk3588.errors import RequestRefused
from rkruntime.daemon import formats, sampling, strictjson, thinkwish, tooluse
from rkruntime.daemon.config import Config
from rkruntime.daemon.fields import Fields, refuse
from rkruntime.daemon.jobs import Job, Message
from rkruntime.daemon.strictjson import BadJson, TooDeep

from .dialect import AnswerRequest, FindModel

MAX_STOPS = 4
MAX_STOP_LENGTH = 1024  # characters
_MOST_TOKENS = 2**31 - 1

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # an earlier answer's, as several servers call it
ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
}  # fmt: skip


def chat(body: Mapping[str, Any], config: Config, find: FindModel, owner: str) -> AnswerRequest:
    """A request to /v1/chat/completions."""
    fields = Fields(body)
    _refuse_what_cannot_be(fields)
    for name in ("functions", "function_call"):
        if fields.get(name) not in (None, "none", "auto", []):
            raise RequestRefused(f"{name!r} is not supported: describe functions in `tools`", name)
    format = formats.wanted(fields)
    messages = _messages(fields, config.max_messages)
    facts = config.template_facts
    messages = tooluse.history(messages, facts)
    several = "parallel_tool_calls" not in fields or fields.flag("parallel_tool_calls")
    offer = tooluse.offer(fields.items_of("tools"), fields.get("tool_choice", "auto"), several, facts)
    if offer.rules and offer.rules.required:
        if format is not None:
            raise RequestRefused(f"{format.field!r} and a demanded call contradict each other", format.field)
        messages = instruct(messages, offer.rules.instruction())
    if format is not None:
        messages = instruct(messages, format.instruction(messages))
    thinking = thinkwish.wanted(fields, _template_variables(fields), facts.thinking)
    without_effect = (*thinking.ignored, *(() if offer.heeded else ("tools",)))
    wanted = _common(fields, config, find, owner, without_effect)
    limit = fields.whole("max_completion_tokens")
    job = replace(
        wanted.job,
        messages=messages,
        tools=offer.tools,
        template_variables=thinking.variables,
        marks=facts.marks(offer.rules is not None),
        max_tokens=_limit(limit, "max_completion_tokens") if limit is not None else wanted.job.max_tokens,
    )
    return replace(wanted, job=job, format=format, tags=facts.thinking.tags, calls=offer.rules)


def completion(body: Mapping[str, Any], config: Config, find: FindModel, owner: str) -> AnswerRequest:
    """A request to /v1/completions: a prompt as it is, without a template."""
    fields = Fields(body)
    _refuse_what_cannot_be(fields)
    if fields.flag("echo"):
        raise RequestRefused("'echo' is not supported: the answer alone comes back", "echo")
    if fields.text("suffix"):
        raise RequestRefused("'suffix' is not supported: the model can only go on where a prompt ends", "suffix")
    if fields.whole("best_of") not in (None, 1):
        raise RequestRefused("'best_of' is not supported: there is one answer to a prompt", "best_of")
    formats.refuse_all(fields)
    wanted = _common(fields, config, find, owner)
    return replace(wanted, job=replace(wanted.job, text=_prompt(fields)))


def _refuse_what_cannot_be(fields: Fields) -> None:
    if fields.whole("n") not in (None, 1):
        raise RequestRefused("'n' has to be 1: there is one answer to a request", "n")
    for name, harmless in (("logprobs", False), ("top_logprobs", 0)):
        if name in fields and fields[name] is not harmless:
            raise RequestRefused(f"{name!r} is not supported: the runtime gives no probabilities", name)
    if fields.mapping("logit_bias"):
        raise RequestRefused("'logit_bias' is not supported: the runtime has no such setting", "logit_bias")
    if set(map(str, fields.items_of("modalities"))) - {"text"} or fields.mapping("audio"):
        raise RequestRefused("only text can be answered with", "modalities")


def _common(
    fields: Fields, config: Config, find: FindModel, owner: str, without_effect: tuple[str, ...] = ()
) -> AnswerRequest:
    """``without_effect``: what besides sampling is asked for in vain."""
    model = find(fields.text("model"))
    limit = fields.whole("max_tokens")
    asked = sampling.wanted(fields, config)
    job = Job(
        max_tokens=None if limit is None else _limit(limit, "max_tokens"),
        sampling=asked.run,
        owner=owner,
        background=model.background,
        lora=model.lora,
    )
    if without_effect and config.strict:
        raise RequestRefused(
            f"{without_effect[0]!r} has no effect: the model's chat template has nothing for it (leave it out, or run "
            "the daemon without --strict)",
            without_effect[0],
        )
    return AnswerRequest(
        job=job,
        model=model.id,
        stream=fields.flag("stream"),
        include_usage=Fields(fields.mapping("stream_options")).flag("include_usage"),
        stops=_stops(fields),
        format=None,
        ignored=(*asked.ignored, *without_effect),
    )


def _limit(value: int, name: str) -> Optional[int]:
    if value == -1:  # several local servers take it for "no limit"
        return None
    if value < 1:
        refuse(name, "1 or more, or -1 or null for no limit but the context's")
    return min(value, _MOST_TOKENS)


def _stops(fields: Fields) -> tuple[str, ...]:
    found = fields.get("stop", [])
    stops = [found] if isinstance(found, str) else found
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        refuse("stop", "a string or a list of strings")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_LENGTH for stop in stops):
        refuse("stop", f"{MAX_STOPS} strings at the most, of {MAX_STOP_LENGTH} characters or fewer")
    return tuple(stop for stop in stops if stop)


def _messages(fields: Fields, most: int) -> list[Message]:
    given = fields.items_of("messages")
    if not given:
        refuse("messages", "a list with at least one message")
    if len(given) > most:
        raise RequestRefused(f"{len(given)} messages are too many: this server takes {most}", "messages")
    found = [_checked(message, f"messages[{number}]") for number, message in enumerate(given)]
    if fields.flag("continue_final_message"):  # vLLM's way to say it
        if found[-1]["role"] != "assistant":
            refuse("continue_final_message", "left out where the last message is not the assistant's")
        found[-1] = {**found[-1], PREFIX: True}
    for number, message in enumerate(found[:-1]):
        if message.get(PREFIX):
            refuse(f"messages[{number}].{PREFIX}", "left out of all messages but the last")
    return found


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _checked(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        refuse(where, "an object")
    fields = Fields(message)
    role = fields.get("role")
    if not isinstance(role, str) or role not in ROLES:
        refuse(f"{where}.role", f"one of {', '.join(ROLES)}")
    calls = fields.get("tool_calls")
    if "content" in fields:
        content = _text(fields["content"], f"{where}.content")
    elif role == "assistant":  # one that only called a tool
        content = ""
    else:
        refuse(f"{where}.content", "a string or a list of parts")
    kept: dict[str, Any] = {"role": ROLES[role], "content": content}
    if fields.flag(PREFIX):  # Mistral's and DeepSeek's
        if role != "assistant" or not content or calls:
            refuse(f"{where}.{PREFIX}", "left out of what is no text of the assistant's")
        kept[PREFIX] = True
    if calls is not None:
        kept["tool_calls"] = _tool_calls(calls, f"{where}.tool_calls")
    thoughts = [fields[name] for name in _THOUGHTS if isinstance(fields.get(name), str)]
    if thoughts and role == "assistant":
        kept["reasoning_content"] = thoughts[0]
    for name in ("name", "tool_call_id"):
        if name in fields:
            if not isinstance(fields[name], str):
                refuse(f"{where}.{name}", "a string")
            kept[name] = fields[name]
    return kept


def _text(content: Any, where: str) -> str:
    """A message's text: a string, or the text parts of a list, each on lines of its own."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        refuse(where, "a string or a list of parts")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            if isinstance(kind, str):
                raise RequestRefused(f"{where}[{number}] is of type {kind[:40]!r}: this model reads only text", where)
            refuse(f"{where}[{number}]", 'a part like {"type": "text", "text": "…"}')
        if not isinstance(part.get("text"), str):
            refuse(f"{where}[{number}].text", "a string")
        texts.append(part["text"])
    return "\n".join(texts)


def _tool_calls(calls: Any, where: str) -> list[Any]:
    """As templates want them: with arguments as an object, where they are JSON in a string."""
    if not isinstance(calls, list):
        refuse(where, "a list of calls")
    found = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            refuse(where, "a list of calls, each with a function that has a name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            function = {**function, "arguments": _arguments(arguments, where)}
        found.append({**call, "function": function})
    return found


def _arguments(text: str, where: str) -> Any:
    """An object, or the text as it is where a model wrote none: its history has to go on."""
    try:
        found = strictjson.parse(text or "{}")
    except TooDeep as error:
        raise RequestRefused(f"the arguments in {where!r} are {error}", where) from error
    except BadJson:
        return text
    return found if isinstance(found, dict) else text


def _template_variables(fields: Fields) -> Mapping[str, Any]:
    found = fields.mapping("chat_template_kwargs")
    taken = sorted(RESERVED & set(found))
    if taken:
        raise RequestRefused(f"{taken[0]!r} in 'chat_template_kwargs' is the server's to give", "chat_template_kwargs")
    return found


def instruct(messages: Sequence[Message], instruction: str) -> list[Message]:
    """The conversation with ``instruction`` at the end of the user's last message, where small models heed it most."""
    for at in reversed(range(len(messages))):
        if messages[at]["role"] == "user":
            told = {**messages[at], "content": f"{messages[at]['content']}\n\n{instruction}"}
            return [*messages[:at], told, *messages[at + 1 :]]
    return [*messages, _message("user", instruction)]


def _prompt(fields: Fields) -> str:
    found = fields.get("prompt")
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, list) and len(found) > 1 and all(isinstance(each, str) for each in found):
        raise RequestRefused(f"{len(found)} prompts are too many: one request, one prompt", "prompt")
    if not isinstance(found, str) or not found:
        refuse("prompt", "a string that is not empty (token ids are not supported)")
    return found
