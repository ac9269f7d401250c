"""Our programs against a small hub on 127.0.0.1 (``hub_server``), as a process or quicker in this one."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.hub_server import Hub


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """Only this hub can be reached: a request to any other host would go to a proxy that is not there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE"))}
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    return {**kept, **nowhere, **own}


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run_process(program: list[str], hub: Hub, home: Path, *arguments: str | Path) -> Done:
    """The program in a folder of its own, so that no name is by chance a path."""
    home.mkdir(exist_ok=True)
    words = [*program, *map(str, arguments)]
    ran = subprocess.run(words, env=environment(hub, home), cwd=home, capture_output=True, text=True, timeout=60)
    return Done(ran.returncode, ran.stdout, ran.stderr)


def run_here(
    main: Callable[[], NoReturn], hub: Hub, home: Path, *arguments: str | Path, token: str = "", offline: bool = False
) -> Done:
    """The same in this process."""
    home.mkdir(exist_ok=True)
    # What huggingface_hub read from the environment when it was imported, long ago.
    read = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": offline,
        "HF_TOKEN_PATH": str(home / "token"),
    }
    with pytest.MonkeyPatch.context() as patch, capture() as (out, err):
        for name, value in read.items():
            patch.setattr(constants, name, value)
        patch.setenv("HF_TOKEN", token)
        patch.setattr(socket, "getaddrinfo", only_here(socket.getaddrinfo))
        patch.setattr(sys, "argv", ["program", *map(str, arguments)])
        patch.chdir(home)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            main()
        signal.signal(signal.SIGTERM, before)
        close_session()
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@contextmanager
def capture() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        yield out, err


def only_here(look_up: Callable[..., Any]) -> Callable[..., Any]:
    def checked(host: str, *arguments: Any, **options: Any) -> Any:
        assert host == "127.0.0.1", f"a request went to {host}"
        return look_up(host, *arguments, **options)

    return checked
