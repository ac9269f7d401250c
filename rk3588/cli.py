"""``rk3588``: run, chat, look after bundles and boards. Commands are imported when they are called."""

from __future__ import annotations

from typing import NoReturn

import click

import rk3588
from rk3588 import lazy

_COMMANDS = {
    "run": ("rkruntime.commands.run:run", "Answer one prompt, then end."),
    "chat": ("rkruntime.commands.chat:chat", "Talk with a model in the terminal."),
    "serve": ("rkruntime.commands.serve:serve", "Serve a model to clients of OpenAI's API."),
    "adopt": ("rk3588.commands.adopt:command", "Make a bundle of a .rkllm that somebody else made."),
    "bundle": ("rk3588.commands.bundle:bundle", "Show and verify bundles."),
    "board": ("rk3588.commands.board:board", "Board types, and your own boards."),
    "doctor": ("rk3588.commands.doctor:command", "What is wrong with a board, and what to do about it."),
    "deploy": ("rk3588.commands.deploy:command", "Bring a bundle to a board, with a proof and a way back."),
    "releases": ("rk3588.commands.releases:command", "What is on a board."),
    "rollback": ("rk3588.commands.rollback:command", "Back to the release that served before."),
    "remove": ("rk3588.commands.remove:command", "Take everything away from a board."),
    "bench": ("rkruntime.commands.bench:bench", "Measure a bundle, a board or a server, as llama-bench does."),
    "predict": ("rk3588.commands.predict:command", "Speed and memory of a model on a board, without running it."),
}


@click.group(
    cls=lazy.LazyGroup,
    lazy=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)
@click.version_option(rk3588.__version__, prog_name="rk3588")
def cli() -> None:
    """Language models for the NPU of the RK3588."""


def main() -> NoReturn:
    lazy.main(cli, "rk3588")
