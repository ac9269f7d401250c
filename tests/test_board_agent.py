"""The board's half of a deployment, where no board is needed to see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rk3588.deploy.board import activation, files, service


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Two releases of a systemd service, the first one current."""
    for name in ("old", "new"):
        folder = tmp_path / "releases" / name
        folder.mkdir(parents=True)
        manifest = {"service": "systemd", "port": 1, "load_seconds": 1, "files": {}}
        (folder / "release.json").write_text(json.dumps(manifest))
    (tmp_path / "current").symlink_to("releases/old")
    return tmp_path


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What systemd was told; it does nothing."""
    told: list[str] = []

    def record(*words: str) -> Any:
        told.append(" ".join(words))
        return subprocess.CompletedProcess(words, 0, stdout="")

    monkeypatch.setattr(service, "systemctl", record)
    monkeypatch.setattr(activation, "systemctl", record)
    return told


def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *pids: int) -> None:
    """The service's control group as these processes left it."""
    procs = tmp_path / "cgroup" / "system.slice" / service.SERVICE / "cgroup.procs"
    procs.parent.mkdir(parents=True)
    procs.write_text("".join(f"{pid}\n" for pid in pids))
    monkeypatch.setattr(service, "GROUPS", (str(tmp_path / "cgroup"),))


def test_nothing_is_started_over_a_process_that_hangs(
    prefix: Path, systemctl: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker in the NPU's driver may survive SIGKILL: a second one could freeze the board."""
    group(prefix, monkeypatch, os.getpid())
    said = activation.activation(str(prefix), "new", False, lambda **_: None)
    assert not said["ok"]
    assert f"process {os.getpid()} of the old release hangs and cannot be killed: reboot the board" in said["error"]
    assert (prefix / "current").readlink() == Path("releases/old")
    assert not (prefix / "unproven.json").exists()
    assert not [words for words in systemctl if "start" in words.split()]
    with pytest.raises(OSError, match="reboot the board"):
        service.start(str(prefix), {"service": "systemd"})


def test_units_of_the_user_stay(
    prefix: Path, systemctl: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rkchatd.service", "rkchatd-clocks.service", "rkchatd-backup.service"):
        (tmp_path / name).touch()
    monkeypatch.setattr(service, "UNITS", str(tmp_path))
    activation.take_away(str(prefix), {"service": "systemd"})
    assert [path.name for path in tmp_path.glob("*.service")] == ["rkchatd-backup.service"]
    assert "disable --now rkchatd-clocks.service" in systemctl


def test_what_has_ended_does_not_hang(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    group(prefix, monkeypatch, ended.pid)
    assert service.stuck() == ""


def test_a_lock_does_not_follow_links(tmp_path: Path) -> None:
    """It lies in /tmp where there is no systemd: somebody else's link there would have a file of ours emptied."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "lock").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        files.lock(str(tmp_path / "lock"), "me", str(tmp_path))
    assert (tmp_path / "precious").read_text() == "mine"


def test_last_words_are_said_once_and_of_this_start(tmp_path: Path) -> None:
    (tmp_path / "rkchatd.log").write_text("of the release before\n")
    (tmp_path / "current").mkdir()
    (tmp_path / "current" / "keep.sh").write_text("for n in 1 2 3; do echo wrong; done; sleep 30\n")
    manifest = {"service": "process"}
    starting = f"from rk3588.deploy.board import service; service.start({str(tmp_path)!r}, {manifest!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", starting], check=True)
    try:
        deadline = time.monotonic() + 30
        while "wrong\n" * 3 not in (tmp_path / "rkchatd.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert service.last_words(str(tmp_path), manifest) == ["wrong"]
    finally:
        service.stop(str(tmp_path), manifest)
