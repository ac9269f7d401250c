"""What there is beside `deploy`: releases, rollback, remove, doctor, simulated boards."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588 import simboard
from rk3588.simboard import control, server
from tests import deploying, simulated_board
from tests.deploying import Deployer
from tests.simulated_board import contents, key_of

pytestmark = pytest.mark.usefixtures("board_watch")
bundles, daemon = simulated_board.bundles, simulated_board.daemon
board, port = simulated_board.board, simulated_board.port


@pytest.mark.slow
def test_rollback_and_releases(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    for name in ("one", "two", "three"):
        board.deploy(bundles[name], "--port", port)
    assert [(row["name"], row["current"]) for row in board.releases()] == [
        ("three", True),
        ("two", False),
        ("one", False),
    ]
    (row,) = json.loads(board.run("rollback", "attic", "--json").stdout)
    assert (row["commands"], row["healthy"]) == (1, True)
    assert deploying.answer_of(port, key_of(board)) == "two here"
    oldest = board.releases()[-1]["release"]
    said = board.run("rollback", "attic", "--to", oldest[:8]).stderr
    assert f"attic: release {oldest} (one w8a8) is current and answered a chat; before it was " in said
    assert "--to RELEASE goes to another: " in said
    assert deploying.answer_of(port, key_of(board)) == "one here"
    assert "there is no release 'zzz'" in board.run("rollback", "attic", "--to", "zzz", code=2).stderr
    assert "one w8a8 (sim)  answers" in board.run("releases", "attic").stdout


@pytest.mark.slow
def test_pruning(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    for name in ("one", "two", "three"):
        board.deploy(bundles[name], "--port", port, "--keep", 2)
    assert [row["name"] for row in board.releases()] == ["three", "two"]


def test_remove_takes_everything(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    before = contents(board.found().folder / "home")
    board.deploy(bundles["one"], "--port", port)
    assert "say yes" in board.run("remove", "attic", code=2).stderr
    assert json.loads(board.run("remove", "attic", "--yes", "--json").stdout) == [{"host": "attic", "removed": True}]
    left = contents(board.found().folder / "home") - before
    assert left == {".local", ".local/share"}
    assert control.processes_of_board(board.found().folder) == []
    assert "nothing to remove" in board.run("remove", "attic", "--yes").stderr


def test_remove_leaves_alone_what_is_not_ours(board: Deployer) -> None:
    """A prefix may be mistyped, and be a folder with everything that somebody has."""
    folder = board.found().folder / "home" / "all.of.it"
    (folder / "releases" / "0123").mkdir(parents=True)
    (folder / "photos").mkdir()
    (folder / "photos" / "one.jpg").write_text("mine")
    board.run("remove", "attic", "--yes", "--prefix", folder)
    assert contents(folder) == {"photos", "photos/one.jpg"}
    assert "nothing to remove" in board.run("remove", "attic", "--yes", "--prefix", folder).stderr


def test_doctor(board: Deployer, bundles: dict[str, Path]) -> None:
    done = board.run("doctor", "attic")
    levels = [line.split()[0] for line in done.stdout.splitlines()]
    assert levels == sorted(levels, key=["refuse", "warn", "info", "ok"].index)
    assert "Radxa Rock 5B, RK3588" in done.stdout
    said = json.loads(board.run("doctor", "attic", "--json", "--bundle", bundles["one"], "--runtime", "sim").stdout)
    assert {"level", "fact", "text", "remedy"} == set(said["findings"][0])
    assert said["facts"]["driver"] == "0.9.8"
    assert any("the model needs" in finding["text"] for finding in said["findings"])
    tree = board.found().folder / "tree"
    (tree / "sys" / "kernel" / "debug" / "rknpu" / "version").write_text("RKNPU driver: v0.9.2\n")
    assert "0.9.2 is too old" in board.run("doctor", "attic", "--runtime", "npu", code=1).stdout


def test_deploy_to_this_machine(
    bundles: dict[str, Path], daemon: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--board local``, on a board without systemd (the faked tree has none)."""
    folder = tmp_path / "local"
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("RKBOARD_SYSROOT", str(folder / "tree"))
    (folder / "home").mkdir(parents=True)
    local = Deployer("local", daemon, tmp_path)
    try:
        row = local.deploy(bundles["one"], "--port", port)
        assert row["host"] == "local"
        prefix = folder / "home" / ".local" / "share" / "rkchatd"
        key = (prefix / "keys").read_text().strip().rpartition(":")[2]
        assert deploying.answer_of(port, key) == "one here"
        assert local.deploy(bundles["one"]) == {**row, "commands": 0, "bytes_sent": 0}
        local.run("remove", "local", "--yes")
        assert not prefix.exists()
    finally:
        for pid in control.processes_of_board(folder):
            os.kill(pid, signal.SIGKILL)


def test_a_board_in_a_folder_of_any_name(
    bundles: dict[str, Path], daemon: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home folder, or a clone, may be called anything; a board's prefix may not."""
    board = Deployer("attic", daemon, tmp_path / "mein ordner ü's")
    said = board.run("board", "up", "attic").stdout
    place = simboard.place_of(board.found().folder)
    assert place.is_dir() and place.stat().st_mode & 0o77 == 0 and place != board.found().folder
    try:
        assert shlex.split(said)[2] == str(place / "id")  # with a path that ssh reads as it stands
        board.deploy(bundles["one"], "--port", port)
        assert deploying.answer_of(port, key_of(board)) == "one here"
        os.kill(board.found().pid, signal.SIGKILL)
        monkeypatch.setenv("XDG_STATE_HOME", str(board.home))
        for pid in control.processes_of_board(board.found().folder):
            os.kill(pid, signal.SIGKILL)
        board.run("board", "up", "attic")  # after a crash: nothing of the old one stays
        assert not place.exists()
    finally:
        place = simboard.place_of(board.found().folder)
        board.run("board", "down", "attic")
    assert not place.exists() and not board.home.joinpath("rk3588", "boards", "attic").exists()


def test_a_board_s_python_is_none_of_an_environment_that_the_c_locale_cannot_read() -> None:
    assert server.python_folder("/x/my venv/bin/python", "/usr") == Path("/x/my venv/bin")
    assert server.python_folder("/x/größe/.venv/bin/python", "/usr") == Path("/usr/bin")


def test_a_home_folder_that_is_no_prefix(tmp_path: Path, daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real board: the message names what it is about, and what can be said instead."""
    home = tmp_path / "mein ordner"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RKBOARD_SYSROOT", str(tmp_path / "tree"))
    said = Deployer("local", daemon, tmp_path).run("doctor", "local", code=2).stderr
    assert f"this machine would have its releases in '{home}/.local/share/rkchatd', where" in said
    assert "say another one with --prefix" in said


def test_board_up_and_down(tmp_path: Path, daemon: Path) -> None:
    local = Deployer("x", daemon, tmp_path)
    said = local.run("board", "up", "cellar", "--board", "khadas-edge2")
    assert "Khadas Edge2" in said.stderr
    assert said.stdout.startswith("ssh -i ")
    listed = local.run("board", "list").stdout.splitlines()
    assert re.fullmatch(r"cellar +user +127\.0\.0\.1:\d+", listed[-1])
    assert json.loads(local.run("board", "list", "--json").stdout)["simulated"][0]["host"] == "cellar"
    assert "is up already" in local.run("board", "up", "cellar", code=2).stderr
    assert "type of board" in local.run("board", "up", "rock-5b", code=2).stderr
    local.run("board", "down", "cellar")
    assert "there is no simulated board" in local.run("board", "down", "cellar", code=2).stderr
    assert not (tmp_path / "rk3588" / "boards" / "cellar").exists()


def test_a_simulated_board_that_was_ended_from_outside(board: Deployer) -> None:
    """As after a reboot of this machine."""
    os.kill(board.found().pid, signal.SIGKILL)
    assert "start it again with `rk3588 board up attic`" in board.run("doctor", "attic", code=1).stderr
    board.run("board", "up", "attic")
    board.run("releases", "attic")
