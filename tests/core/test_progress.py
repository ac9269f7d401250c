"""Whoever waits sees that something goes on: compiling, the board's image, a deployment."""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from rk3588.commands.waiting import ElapsedSeconds, fitting
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


def narrow(columns: int) -> tuple[int, int]:
    """Both ends of a terminal that is so wide."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return ours, theirs


def patiently(command: str, what: str = "compiling it", columns: int = 0) -> tuple[int, str]:
    """What a terminal shows of ``.ci/setup`` while ``command`` runs."""
    functions = (ROOT / ".ci" / "setup").read_text().partition("fail() {")[2].partition("# The newest interpreter")[0]
    script = f"set -euo pipefail\nfail() {{{functions}\npatiently '{what}' sh -c '{command}'\n"
    ours, theirs = narrow(columns)
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


def test_nothing_wraps_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else each second is a line of its own, for \\r goes back to the last row only."""
    _, drawn = patiently('echo "  [3/7] Building"; sleep 1.4', "compiling the simulated runtime", 30)
    told = re.search(r"\r\x1b\[K(setup: compiling .?, \d+ s \[3/7\])", drawn)
    assert told and len(told[1]) == 29, drawn
    ours, theirs = narrow(30)
    with os.fdopen(theirs, "w") as terminal:
        assert fitting("a-name-that-is-rather-long", " 99 %  1.0 MB/s", terminal) == "a-name-that-is 99 %  1.0 MB/s"
        assert fitting("short", " …", terminal) == "short …"
    os.close(ours)
    assert fitting("x" * 100, "", Terminal()) == "x" * 79
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(quickstart, "LOG", tmp_path / "log")
    quickstart.LOG.write_text("")
    with quickstart.step(2, 6, "install rk3588, compile the simulated runtime"):
        quickstart.tick("2/6 install rk3588, compile the simulated runtime ......", time.monotonic(), 0, Ticks())
    shown = [part.strip("\n") for part in out.getvalue().split("\r\x1b[K")]
    assert len(shown) == 4 and all(len(part) < 40 for part in shown) and shown[1].endswith("0 s "), shown


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
