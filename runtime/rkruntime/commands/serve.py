"""``rk3588 serve``: the chat daemon for one bundle, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional

import click

from rkruntime.daemon import config

from . import options


@click.command()
@options.BUNDLE
@click.option("--config", "file", type=click.Path(path_type=Path), help="A YAML file with these options as keys.")
@config.command_options("bundle")
def serve(path: Path, file: Optional[Path], **given: Any) -> None:
    """Serve BUNDLE to clients of OpenAI's API and Ollama's, until Ctrl-C: the daemon that runs on boards, as it is."""
    from rkruntime.daemon import main

    settings = config.make(file, {**given, "bundle": path})
    sys.exit(main.serve(settings, _greet if sys.stderr.isatty() else None))


def _greet(address: config.Address) -> None:
    told = f"http://{address}/v1 is the base URL for OpenAI's clients, http://{address} for Ollama's; Ctrl-C ends"
    click.echo(told, err=True)
