"""``rk3588 run``: one prompt, one answer, streamed; at home in a pipe."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any, Optional

import click

from rk3588 import bundle as bundles
from rk3588 import files
from rk3588.errors import UsageError, printable_json, shown
from rk3588.templates import ChatTemplate
from rkruntime.conversation import piped, read_text, typed
from rkruntime.model import Model
from rkruntime.prompts import Prompt, Prompts

from . import options


@click.command()
@options.BUNDLE
@click.argument("prompt", required=False)
@click.option("-p", "--system", metavar="TEXT", help="System prompt.")
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), metavar="FILE", help="Put a text file after PROMPT, or for it."
)
@click.option("--raw", is_flag=True, help="Send the prompt as it is, without the chat template.")
@click.option("--stats", is_flag=True, help="Counts and times on stderr, at the end.")
@click.option("--json", "as_json", is_flag=True, help="One object with the answer, counts and times, at the end.")
@options.settings
def run(
    path: Path,
    prompt: Optional[str],
    system: Optional[str],
    file: Optional[Path],
    raw: bool,
    stats: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Answer PROMPT; without it, what comes on stdin. With both, a pipe's or a file's text is put after PROMPT.

    \b
    rk3588 run out/NAME-rk3588-w8a8 "What is gravity?"
    git diff | rk3588 run out/NAME-rk3588-w8a8 "Explain this change:"
    rk3588 run out/NAME-rk3588-w8a8 "Sum this up:" -f notes.txt
    """
    if raw and system:
        raise UsageError("--raw sends the prompt alone: leave out --system, or write it into the prompt")
    system = system and typed(system, "the system prompt")
    wanted = options.make_settings(chosen)
    text = _prompt(prompt, file)
    options.answers_only()
    if not raw:
        ChatTemplate.of(bundles.read(path), wanted.template)  # a bundle without one is refused before it is loaded
    with Model(path, wanted, options.warn, options.announce) as model:
        question = _question(model.prompts, text, system, raw)
        said = "".join(_shown(part, as_json) for part in model.answer(question))
        if as_json:
            facts = {"text": said, **model.cost.facts(), "bundle": model.bundle.name, "dtype": model.bundle.dtype}
            facts |= model.choice.facts()
            if model.lora:
                facts["lora"] = model.lora
            click.echo(printable_json(facts, indent=None))
        elif not said.endswith("\n"):
            click.echo()
        if ending := options.cut_off(model.cost, model.context, "-n", "--loop-limit 0", ""):
            click.echo(ending, err=True)
        if stats:
            click.echo(model.cost, err=True)
            if model.cost.perf:
                click.echo(f"the runtime's own figures: {model.cost.perf}", err=True)


def _question(prompts: Prompts, text: str, system: Optional[str], raw: bool) -> Prompt:
    if raw:
        return prompts.plain(text)
    first = [{"role": "system", "content": system}] if system else []
    return prompts.chat([*first, {"role": "user", "content": text}])


def _shown(part: str, as_json: bool) -> str:
    if not as_json:
        sys.stdout.write(shown(part, sys.stdout))
        sys.stdout.flush()
    return part


def _prompt(argument: Optional[str], file: Optional[Path]) -> str:
    """The prompt from the command line, from a file, from stdin, or from all of them in this order."""
    argument = argument and typed(argument, "the prompt")
    parts = [part for part in (argument, None if file is None else _from(file)) if part is not None]
    if parts:
        parts += [_stdin()] if _is_piped() else []
    elif sys.stdin is None or sys.stdin.isatty():
        raise UsageError('no prompt: give one (rk3588 run BUNDLE "…"), a file (-f FILE) or pipe it in')
    else:
        parts = [_stdin()]
    text = "\n\n".join(part for part in parts if part)
    if not text.strip():
        raise UsageError("the prompt is empty")
    return text


def _from(file: Path) -> str:
    text = read_text(file).rstrip("\n")
    if not text.strip():
        raise UsageError(f"{file} is empty")
    return text


def _stdin() -> str:
    return piped(sys.stdin.buffer.read(files.TEXT + 1)).rstrip("\n")


def _is_piped() -> bool:
    """A pipe or a file has a text in it; a terminal, a socket or /dev/null is only where stdin happens to point."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
