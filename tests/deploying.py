"""What tests of deployments share: small bundles, the stand-in daemon, and `rk3588` in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
import zipapp
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rk3588 import bundle as bundles
from rk3588 import simboard
from tests.fakes import ROOT

MAIN = "from rk3588.cli import main; main()"
SECONDS = 240


def bundle(
    folder: Path, name: str, behaviour: str = "", size: int = 300_000, target: str = "sim", source: Path | None = None
) -> Path:
    """A bundle whose model is random, or the file ``source``, which is moved there. ``behaviour`` is what the stand-in
    does with it (see ``tests/standin``)."""
    model = {"sim": bundles.SIM_MODEL, "rk3588": bundles.NPU_MODEL}[target]
    with bundles.new_folder(folder / name) as part:
        if source:
            source.rename(part / model)
        else:
            (part / model).write_bytes(os.urandom(size))
        (part / "chat_template.jinja").write_text("{{ messages }}")
        if behaviour:
            (part / "behaviour").write_text(behaviour)
        said: dict[str, Any] = {"model": {}, "source": {}, "tokenizer": {}, "target_platform": "rk3588"}
        bundles.write_manifest(part, {"name": name, "dtype": "w8a8", "artifacts": {target: model}, **said})
    return folder / name


def renamed(source: Path, folder: Path, size: int) -> Path:
    """Another bundle of the same model, by the folder's name; a file of ``size`` random bytes makes it another."""
    with bundles.new_folder(folder) as part:
        shutil.copytree(source, part, dirs_exist_ok=True)
        (part / "ballast").write_bytes(os.urandom(size))
        said = bundles.read(source).manifest
        bundles.write_manifest(part, {**{key: said[key] for key in said if key != "files"}, "name": folder.name})
    return folder


def standin(folder: Path) -> Path:
    """The stand-in daemon as ``rkchatd.pyz``."""
    path = folder / "standin.pyz"
    zipapp.create_archive(ROOT / "tests" / "standin", path)
    return path


@dataclass(frozen=True)
class Deployer:
    """Runs ``rk3588`` against one board, with the stand-in for a daemon."""

    board: str
    daemon: Path
    home: Path
    reach: tuple[object, ...] = ()  # options for SSH

    @property
    def environment(self) -> dict[str, str]:
        paths = os.pathsep.join(str(ROOT / p) for p in (".", "convert", "runtime"))
        return {**os.environ, "PYTHONPATH": paths, "XDG_STATE_HOME": str(self.home), "RK3588_HOSTS": "/dev/null"}

    def command(self, *words: object) -> list[str]:
        return [sys.executable, "-c", MAIN, *map(str, words)]

    def run(self, *words: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """To its end; the exit code has to be ``code`` (None: any)."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def words(self, path: Path, *more: object) -> list[object]:
        chosen = ("--board", self.board, "--runtime", "sim", "--daemon", self.daemon)
        return ["deploy", path, *chosen, "--json", *self.reach, *more]

    def start(self, path: Path, *more: object) -> subprocess.Popen[str]:
        """A deployment on its way."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*self.words(path, *more)),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )

    def deploy(self, path: Path, *more: object) -> dict[str, Any]:
        """A deployment that works; its row of JSON."""
        (row,) = json.loads(self.run(*self.words(path, *more)).stdout)
        assert row["healthy"]
        return dict(row)

    def fail(self, path: Path, *more: object, code: int = 1) -> str:
        """A deployment that fails; what it said."""
        done = self.run(*self.words(path, *more), code=code)
        assert not done.stdout
        return done.stderr

    def releases(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.run("releases", self.board, "--json", *self.reach).stdout)
        return rows

    def current(self) -> str:
        return next(str(row["name"]) for row in self.releases() if row["current"])

    def found(self) -> simboard.SimBoard:
        os.environ["XDG_STATE_HOME"] = str(self.home)
        found = simboard.find(self.board)
        assert found
        return found


def answer_of(port: int, key: str, address: str = "127.0.0.1") -> str:
    """What the daemon says to a chat."""
    return str(reply_to_chat(port, key, address)["choices"][0]["message"]["content"])


def reply_to_chat(port: int, key: str, address: str = "127.0.0.1") -> dict[str, Any]:
    """The daemon's whole reply to a chat."""
    asked = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}:{port}/v1/chat/completions", asked, headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return dict(json.loads(answer.read()))


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Boards below ``folder`` end with this process, even if it is killed."""
    command = [sys.executable, "-m", "tests.reaper", str(folder)]
    # A session of its own: what kills the run by its group, or Ctrl-C, must not reach it.
    reaper = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        reaper.communicate(timeout=60)
