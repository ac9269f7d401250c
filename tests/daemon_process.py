"""The daemon as a process of its own: ``python -m tests.daemon_process OPTIONS`` runs it over the scripted engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from rkruntime.daemon import config, server
from tests.daemon_server import WAIT_S, Service
from tests.fake_engine import FakeEngine

ROOT = Path(__file__).resolve().parent.parent


class Running(Service):
    """A daemon process, what it has logged so far, and requests to it."""

    def __init__(self, process: subprocess.Popen[str], log: list[dict[str, Any]], port: int) -> None:
        super().__init__(port, None)
        self.process, self.log = process, log

    def events(self, name: str) -> list[dict[str, Any]]:
        return [entry for entry in self.log if entry["event"] == name]


def over_script(bundle: Path, *options: str) -> tuple[str, ...]:
    """The command of a daemon over the scripted engine."""
    return (sys.executable, "-m", "tests.daemon_process", "--bundle", str(bundle), "--listen", "127.0.0.1:0", *options)


@contextmanager
def running(command: Sequence[str], env: Mapping[str, str] | None = None, folder: Path = ROOT) -> Iterator[Running]:
    """The daemon, once it listens. Every line on its stderr has to be a JSON object."""
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **(env or {})}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,  # so that a test can send what a terminal sends: to the whole group
    )  # fmt: skip
    log: list[dict[str, Any]] = []
    listening = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(json.loads(line))
            if log[-1]["event"] == "listening":
                listening.set()
        listening.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert listening.wait(WAIT_S)
        assert log, "it ended without a word"
        yield Running(process, log, int(log[0]["address"].rpartition(":")[2]))
    finally:
        process.terminate()
        try:
            process.wait(WAIT_S)
        finally:
            process.kill()
            reader.join()
            assert process.stderr is not None
            process.stderr.close()


@click.command()
@config.command_options()
def main(**given: Any) -> None:
    settings = config.make(None, given)
    sys.exit(server.run(settings, FakeEngine(settings.engine())))


if __name__ == "__main__":
    main()
