"""The conversations that each family's chat template is tried with, and how transformers' rendering is kept."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "templates"
GOLDEN = FOLDER / "golden.json"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TODAY = "@TODAY@"

USER: dict[str, Any] = {"role": "user", "content": " Grüße, 你好 <b>&\n"}
LONG: list[dict[str, Any]] = [
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "<think>\nOne and one.\n</think>\n\nIt is 2."},
    {"role": "user", "content": "And 2 + 2?"},
]
SYSTEM: dict[str, Any] = {"role": "system", "content": "Be brief."}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather in a "place"',
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALL: dict[str, Any] = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"place": "Köln"}},
}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "How is the weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "It rains.", "tool_call_id": "abcdefghi"},
]
# Name: the messages and the variables.
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one question": ([USER], {}),
    "a system prompt": ([SYSTEM, USER], {}),
    "several turns": ([SYSTEM, *LONG], {}),
    "thinking": (LONG, {"enable_thinking": True}),
    "no thinking": (LONG, {"enable_thinking": False}),
    "no thinking, by the system prompt": ([{"role": "system", "content": "Be brief. /no_think"}, USER], {}),
    "tools": ([SYSTEM, USER], {"tools": [TOOL]}),
    "a call": (CALLED, {"tools": [TOOL]}),
    "a written call": (
        [
            CALLED[0],
            {**CALLED[1], "tool_calls": [{**CALL, "function": {**CALL["function"], "arguments": '{"place": "Köln"}'}}]},
            CALLED[2],
        ],
        {},
    ),
}


def templates() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def source(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def golden() -> dict[str, dict[str, str | None]]:
    """By template and conversation; None: the template refuses it."""
    found: dict[str, dict[str, str | None]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return found


def without_date(text: str) -> str:
    today = datetime.now()
    for form in ("%d %B %Y", "%d %b %Y"):
        text = text.replace(today.strftime(form), TODAY)
    return text
