"""``rkchatd``: the command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Optional

import click

import rk3588
from rk3588 import lazy
from rk3588.errors import UsageError

from . import config


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "file", type=click.Path(path_type=Path), help="A YAML file with these options as keys.")
@config.command_options()
@click.version_option(rk3588.__version__, prog_name="rkchatd")
def rkchatd(file: Optional[Path], **given: Any) -> None:
    """Serve a bundle to clients of OpenAI's API and Ollama's."""
    sys.exit(serve(config.make(file, given)))


def serve(settings: config.Config, greet: Optional[Callable[[config.Address], None]] = None) -> int:
    """Run the daemon until it is told to end; its exit code. ``greet`` is told where it listens."""
    try:
        from .engine import WorkerEngine
        from .server import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("rk"):
            raise
        raise UsageError(f"the daemon needs {error.name}: pip install 'rk3588[daemon]'") from error
    return run(settings, WorkerEngine(settings.engine()), greet)


def main() -> NoReturn:
    lazy.main(rkchatd, "rkchatd")


if __name__ == "__main__":
    main()
