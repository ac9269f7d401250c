"""``rk3588 serve``: the chat daemon for one bundle, on this machine."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any, Optional

import click

from rkruntime.daemon import config

from . import options

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where one that listens everywhere is found from here
# Without one of these a browser would be one for terminals, in the terminal that the daemon logs to.
_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME", "BROWSER")


@click.command()
@options.BUNDLE
@click.option("--config", "file", type=click.Path(path_type=Path), help="A YAML file with these options as keys.")
@click.option("--open", "open_page", is_flag=True, help="Open the chat page in a browser.")
@config.command_options("bundle")
def serve(path: Path, file: Optional[Path], open_page: bool, **given: Any) -> None:
    """Serve BUNDLE to clients of OpenAI's API and Ollama's, until Ctrl-C: the daemon that runs on boards, as it is.

    Its address is a chat page in a browser.
    """
    from rkruntime.daemon import main

    def greet(address: config.Address) -> None:
        if sys.stderr.isatty():
            _greet(address)
        if open_page:
            threading.Thread(target=_open, args=(_page(address),), daemon=True).start()

    settings = config.make(file, {**given, "bundle": path})
    sys.exit(main.serve(settings, greet))


def _greet(address: config.Address) -> None:
    page = _page(address)
    told = f"{page} is a chat page and the base URL for Ollama's clients, {page}v1 that for OpenAI's; Ctrl-C ends"
    click.echo(told, err=True)


def _page(address: config.Address) -> str:
    return f"http://{config.Address(_ANY.get(address.host, address.host), address.port)}/"


def _open(page: str) -> None:
    import webbrowser

    from rkruntime.daemon import logs

    screen = sys.platform == "darwin" or any(map(os.environ.get, _SCREENS))
    if not (screen and webbrowser.open(page)):
        logs.event("no browser", logging.WARNING, reason=f"none could be opened here: open {page} yourself")
