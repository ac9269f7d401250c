"""docs/rkchatd.md says of the daemon what its code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from rk3588.errors import AnswerFailed, Overdue, PromptRefused, PromptTooLong, QueueFull, Unavailable
from rkruntime.daemon import app, config, formats, replies, strictjson
from rkruntime.daemon.config import Option

PAGE = Path(__file__).resolve().parent.parent / "docs" / "rkchatd.md"


def settings_table() -> str:
    """The table of settings, as it has to stand in the page."""
    rows = [f"| `{option.name}` | {_default(option)} | {option.help} |" for option in config.OPTIONS]
    return "\n".join(["| key | default | |", "|---|---|---|", *rows, ""])


def _default(option: Option) -> str:
    if option.default is None or option.default == ():
        return ""
    if option.kind is click.BOOL:
        return "yes" if option.default else "no"
    text = f"{option.default:g}" if isinstance(option.default, float) else str(option.default)
    return f"`{text}`"


def test_the_settings() -> None:
    assert settings_table() in PAGE.read_text(), f"put this into {PAGE.name}:\n{settings_table()}"


def test_the_errors() -> None:
    table = PAGE.read_text().partition("## Errors")[2]
    raised = [
        QueueFull("", 1),
        PromptTooLong("", 1, 1),
        PromptRefused(""),
        Unavailable(""),
        Overdue(""),
        AnswerFailed(""),
    ]
    for failure in map(replies.failure, raised):
        assert re.search(rf"^\| {failure.status} \| `{failure.code}` \|", table, re.MULTILINE), failure


def test_the_formats() -> None:
    rows = [row for row in PAGE.read_text().splitlines() if row.startswith("| `")]
    told = next(row for row in rows if "`guided_json`" in row)
    refused = next(row for row in rows if "`guided_regex`" in row)
    schemas = json.loads(app.document())["components"]["schemas"]
    for name in formats.SCHEMAS:
        assert f"`{name}`" in told
        assert name in schemas["ChatRequest"]["properties"]["response_format"]["description"]
        assert schemas["CompletionRequest"]["properties"][name] == {"type": "null"}
    for name in (*formats.UNSUPPORTED, "extra_body"):
        assert f"`{name}`" in refused
        for request in ("ChatRequest", "CompletionRequest"):
            assert schemas[request]["properties"][name] == {"type": "null"}
    assert f"more than {strictjson.MAX_DEPTH} levels" in PAGE.read_text()
