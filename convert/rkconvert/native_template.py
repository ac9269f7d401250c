"""A model's chat template in the parts that RKLLM 1.2 and later put around a text: system, prefix, postfix, …

The template is a program; what it makes of a few marked conversations shows the parts. It is rendered in a child
process with little time and memory, for it comes with models from anywhere.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from rk3588 import children
from rk3588.errors import BundleError
from rk3588.templates import ChatTemplate

from .tokenizers.vocabulary import Vocabulary

_WHERE = "the chat template"
_CPU_S, _WALL_S, _MEMORY, _MOST = 5, 20.0, 1 << 30, 1 << 20  # of the child; characters of its parts together
# No template has a reason to change these, or holds them.
_SYSTEM, _USER, _ANSWER, _SECOND = "RKSYSTEMTEXT", "RKUSERTEXT", "RKANSWERTEXT", "RKSECONDTEXT"
_TODAY = datetime(2024, 7, 26)  # of templates that put a date in: an artifact is the same whenever it is made

Render = Callable[..., str]


@dataclass(frozen=True)
class NativeTemplate:
    """``system + prefix + TEXT + postfix``, and ``between + prefix + TEXT + postfix`` of each later turn.

    ``thinking`` stands for ``postfix`` where the model is to think, ``tools`` for ``system``: a text before the system
    prompt, one between it and the first tool, one between two tools, one behind the last. ``refused``: why there are
    no parts.
    """

    system: str = ""
    prefix: str = ""
    postfix: str = ""
    between: str = ""
    thinking: str | None = None
    tools: tuple[str, ...] = ()
    refused: str | None = None


def native_template(vocabulary: Vocabulary | None) -> NativeTemplate | None:
    """That of a model; None where it has no chat template."""
    if vocabulary is None or not vocabulary.chat_template:
        return None
    return found_in(vocabulary.chat_template, vocabulary.text(vocabulary.bos), vocabulary.text(vocabulary.eos))


def native_notes(vocabulary: Vocabulary | None) -> tuple[str, ...]:
    """What is to be said of a model whose template has no parts."""
    chat = native_template(vocabulary)
    if chat is None or chat.refused is None:
        return ()
    return (
        f"{chat.refused}: it cannot be a native template, so simulated runtimes of 1.2 and later will want tokens, or "
        "a template that is set",
    )


@lru_cache(maxsize=16)
def found_in(source: str, bos: str | None, eos: str | None) -> NativeTemplate:
    """The parts of a template, as a child finds them; ``refused`` where it does not."""
    child = children.python(__name__, str(_CPU_S))
    given = json.dumps({"source": source, "tokens": {"bos_token": bos, "eos_token": eos}})
    try:
        done = subprocess.run(
            child.command, env=child.environment, input=given, capture_output=True, text=True, timeout=_WALL_S
        )
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    except (subprocess.TimeoutExpired, ValueError):
        found = {}
    if not found:
        return NativeTemplate(refused=f"{_WHERE} takes too long, or too much memory")
    return NativeTemplate(**{**found, "tools": tuple(found["tools"])})


def split(render: Render) -> NativeTemplate:
    """The parts of what ``render(messages, variables, add_generation_prompt=…)`` makes. BundleError: there are none."""
    silent = {"enable_thinking": False}
    before, postfix = _around(render([_user(_USER)], silent), _USER)
    turns = [_user(_USER), _assistant(), _user(_SECOND)]
    whole = render(turns, silent)
    begun, rest = _around(whole, _USER)
    _, later = _around(rest, _ANSWER)
    middle, ended = _around(later, _SECOND)
    if begun != before or ended != postfix:
        raise BundleError(f"{_WHERE} writes a user's turn otherwise where others follow or stand before it")
    _, closing = _around(render(turns[:2], silent, add_generation_prompt=False), _ANSWER)
    prefix = middle[len(closing) :] if middle.startswith(closing) else ""
    if not prefix or not before.endswith(prefix):
        prefix = _common_end(before, middle)
    return NativeTemplate(
        system=before[: len(before) - len(prefix)],
        prefix=prefix,
        postfix=postfix,
        between=middle[: len(middle) - len(prefix)],
        thinking=_thinking(render, before, postfix),
        tools=_tools(render, prefix, postfix),
    )


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant() -> dict[str, Any]:
    return {"role": "assistant", "content": _ANSWER}


def _around(text: str, mark: str) -> tuple[str, str]:
    if text.count(mark) != 1:
        what = "an answer" if mark == _ANSWER else "a user's text"
        raise BundleError(f"{_WHERE} writes {what} {text.count(mark)} times, not once")
    before, _, after = text.partition(mark)
    return before, after


def _common_end(a: str, b: str) -> str:
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    return a[len(a) - n :]


def _thinking(render: Render, before: str, postfix: str) -> str | None:
    """What stands behind the text of a model that is asked to think: it begins inside the thinking.

    Where only the silent form has a thinking, opened and closed, its opening is taken along.
    """
    text = render([_user(_USER)], {"enable_thinking": True})
    if text.count(_USER) != 1:
        return None
    begun, asked = _around(text, _USER)
    if begun != before or asked == postfix:
        return None
    shut = postfix[len(asked) :] if postfix.startswith(asked) else ""
    opening, newline, _ = shut.partition("\n")
    return asked + opening + newline if newline and opening.startswith("<") else asked


def _tools(render: Render, prefix: str, postfix: str) -> tuple[str, ...]:
    """The texts around a system prompt and tools, where each tool is written as JSON in a line; else none."""
    tools = [
        {"type": "function", "function": {"name": name, "description": "?", "parameters": {"type": "object"}}}
        for name in ("rkfirsttool", "rksecondtool")
    ]
    first, second = (json.dumps(tool) for tool in tools)
    asked = [{"role": "system", "content": _SYSTEM}, _user(_USER)]
    try:
        text = render(asked, {"enable_thinking": False, "tools": tools})
    except BundleError:
        return ()
    marks = (_SYSTEM, first, second, _USER)
    if any(text.count(mark) != 1 for mark in marks):
        return ()
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            return ()
        parts.append(part)
    if not parts[3].endswith(prefix) or text != postfix:
        return ()
    return (*parts[:3], parts[3][: len(parts[3]) - len(prefix)])


def find(source: str, tokens: Mapping[str, str | None]) -> NativeTemplate:
    try:
        template = ChatTemplate(source, tokens, _WHERE)

        def render(messages: list[dict[str, Any]], variables: Mapping[str, Any], **options: bool) -> str:
            today = {"strftime_now": lambda form: _TODAY.strftime(form)}
            return template.render(messages, {**variables, **today}, **options)

        found = split(render)
        texts = (found.system, found.prefix, found.postfix, found.between, found.thinking or "", *found.tools)
        if sum(map(len, texts)) > _MOST:
            return NativeTemplate(refused=f"{_WHERE} makes more than {_MOST >> 20} MB of a short conversation")
        json.dumps(asdict(found), ensure_ascii=False).encode("utf-8")
    except BundleError as error:
        return NativeTemplate(refused=str(error))
    except UnicodeEncodeError:
        return NativeTemplate(refused=f"{_WHERE} makes text that is not valid Unicode")
    return found


def main() -> None:
    """The child: a template on stdin, its parts on stdout."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the next limit would leave one in somebody's folder
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    given = json.load(sys.stdin)
    json.dump(asdict(find(given["source"], given["tokens"])), sys.stdout)


if __name__ == "__main__":
    main()
