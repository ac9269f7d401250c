"""Whoever waits sees that something goes on: compiling, the board's image, a deployment."""

from __future__ import annotations

import io
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from rk3588.commands.waiting import ElapsedSeconds
from rk3588.errors import BoardError
from rk3588.simboard import nspawn
from tests import quickstart

ROOT = Path(__file__).resolve().parent.parent.parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Ticks(threading.Event):
    """So many seconds in no time."""

    left = 2

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002
        self.left -= 1
        return self.left < 0


def patiently(command: str) -> tuple[int, str]:
    """What a terminal shows of ``.ci/setup`` while ``command`` runs."""
    functions = (ROOT / ".ci" / "setup").read_text().partition("fail() {")[2].partition("# The newest interpreter")[0]
    script = f"set -euo pipefail\nfail() {{{functions}\npatiently 'compiling it' sh -c '{command}'\n"
    ours, theirs = os.openpty()
    with subprocess.Popen(["bash", "-c", script], stdin=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    return process.returncode, shown.decode()


def test_setup_shows_seconds_and_the_compilers_counter() -> None:
    code, shown = patiently('echo "  [3/7] Building CXX object"; sleep 1.4')
    assert code == 0
    assert re.search(r"setup: compiling it, \d+ s \[3/7\]", shown)
    assert "Building" not in shown


def test_setup_shows_what_a_command_said_that_failed() -> None:
    code, shown = patiently("echo the reason; exit 3")
    assert code == 3
    assert "the reason" in shown


def test_quickstart_shows_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "LOG", tmp_path / "log")
    quickstart.LOG.write_text("setup: compiling, 5 s [9/9]\n")
    begin = quickstart.LOG.stat().st_size
    with quickstart.LOG.open("a") as log:
        log.write("setup: compiling, 5 s [2/9]\nsetup: compiling, 10 s [3/9]\n$ more\n")
    quickstart.tick("2/6 install ", time.monotonic() - 12, begin, Ticks())
    assert capsys.readouterr().out == "12 s [3/9] … 12 s [3/9] … "


def test_a_clock_on_a_terminal() -> None:
    out = Terminal()
    clock = ElapsedSeconds(out)
    clock.start(Ticks())
    clock.stop()
    assert re.fullmatch(r"(\r\x1b\[K  \d+ s){2}\r\x1b\[K", out.getvalue())


def test_no_clock_where_there_is_no_terminal() -> None:
    before = threading.active_count()
    clock = ElapsedSeconds(None)
    clock.start()
    assert threading.active_count() == before
    clock.stop()


def test_the_image_of_a_board_tells_what_it_is_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Over a stand-in for mmdebstrap that says what the real one says; the real one runs in `make test-boards`."""
    program = tmp_path / "mmdebstrap"
    program.write_text(
        "#!/bin/sh\necho 'I: downloading packages with apt...' >&2\necho done >&2\nmkdir -p \"$WHERE\"\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(nspawn, "cache", lambda: tmp_path / "cache")
    monkeypatch.setenv("WHERE", str(nspawn.image().with_suffix(".part")))
    said: list[str] = []
    assert nspawn.build(said.append) == nspawn.image()
    assert said == ["building its image, once: this takes a minute or two", "downloading packages with apt"]
    said.clear()
    assert nspawn.build(said.append) == nspawn.image()
    assert said == []


def test_the_image_of_a_board_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "mmdebstrap"
    program.write_text("#!/bin/sh\necho 'E: no such suite' >&2\nexit 25\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(nspawn, "cache", lambda: tmp_path / "cache")
    with pytest.raises(BoardError, match=r"mmdebstrap --mode=root .* failed: E: no such suite"):
        nspawn.build(lambda _: None)
