"""docs/rkchatd.md says of the daemon what its code says, and README.md what works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import pytest

from rk3588.errors import AnswerFailed, Overdue, PromptRefused, PromptTooLong, QueueFull, Unavailable
from rkruntime.daemon import config, formats, strictjson
from rkruntime.daemon.api import openai, openapi
from rkruntime.settings import Setting
from tests import sshd

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "rkchatd.md"


def settings_table() -> str:
    """The table of settings, as it has to stand in the page."""
    rows = [f"| `{option.name}` | {_default(option)} | {option.help} |" for option in config.OPTIONS]
    return "\n".join(["| key | default | |", "|---|---|---|", *rows, ""])


def _default(option: Setting) -> str:
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
    for failure in map(openai.failure, raised):
        assert re.search(rf"^\| {failure.status} \| `{failure.code}` \|", table, re.MULTILINE), failure


def test_the_formats() -> None:
    rows = [row for row in PAGE.read_text().splitlines() if row.startswith("| `")]
    told = next(row for row in rows if "`guided_json`" in row)
    refused = next(row for row in rows if "`guided_regex`" in row)
    schemas = json.loads(openapi.document())["components"]["schemas"]
    for name in formats.SCHEMAS:
        assert f"`{name}`" in told
        assert name in schemas["ChatRequest"]["properties"]["response_format"]["description"]
        assert schemas["CompletionRequest"]["properties"][name] == {"type": "null"}
    for name in (*formats.UNSUPPORTED, "extra_body"):
        assert f"`{name}`" in refused
        for request in ("ChatRequest", "CompletionRequest"):
            assert schemas[request]["properties"][name] == {"type": "null"}
    assert f"more than {strictjson.MAX_DEPTH} levels" in PAGE.read_text()


def test_what_the_readme_types_to_serve(tiny_bundles: Mapping[str, Path]) -> None:
    """Both commands at once, as a shell runs them: the second one waits for the daemon of the first."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    block = (ROOT / "README.md").read_text().partition("## Serve a model")[2].split("```")[1].replace("\\\n", " ")
    serve, curl = (shlex.split(line) for line in block.strip().splitlines()[:2])
    assert (serve[:2], serve[-1], curl[0]) == (["rk3588", "serve"], "&", "curl")
    port = str(sshd.free_port())
    program = [str(Path(sys.executable).parent / "rk3588"), "serve", str(tiny_bundles["w8a8"]), "--max-tokens", "3"]
    asking = ["curl", "--noproxy", "*", *(word.replace(":8080/", f":{port}/") for word in curl[1:])]
    with subprocess.Popen([*program, "--listen", f"127.0.0.1:{port}"], stderr=subprocess.DEVNULL) as daemon:
        try:
            done = subprocess.run(asking, capture_output=True, text=True, timeout=120)
        finally:
            daemon.terminate()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("data: ") >= 3 and done.stdout.endswith("data: [DONE]\n\n")
