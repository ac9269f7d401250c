"""From a board's name to a connection: which name is meant, what is said about it, and how often ssh is asked."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("paramiko")

from rk3588 import simboard
from rk3588.boards import catalogue
from rk3588.commands import connecting, doctor
from rk3588.deploy import agent_client, deployment
from rk3588.deploy.apply import Watcher
from rk3588.deploy.local import LocalConnection
from rk3588.deploy.ssh import connection, openssh
from rk3588.errors import BoardError, ConnectError, UsageError
from rk3588.simboard import control
from tests import deploying, plan_cases, ssh_client
from tests.ssh_client import nobody

home = ssh_client.home


@pytest.fixture(autouse=True)
def attic(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host `kitchen` and a simulated board `attic` are known."""
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("RK3588_HOSTS", str(home / "hosts.yaml"))
    (home / "hosts.yaml").write_text("hosts:\n  kitchen: {board: rock-5b, address: 192.0.2.7, jump: door}\n")
    folder = home / "state" / "rk3588" / "boards" / "attic"
    folder.mkdir(parents=True)
    simboard.write_description(folder, "nspawn", os.getpid(), "127.0.0.1", 2222, "me", "ssh-ed25519 AAAA")
    return home


def nowhere(*_: Any) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(("name", "meant"), [("kitchn", "kitchen"), ("atic", "attic")])
def test_a_mistyped_board_gets_the_nearest(name: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with pytest.raises(UsageError, match=f"there is no board '{name}', .* resolved: did you mean '{meant}'"):
        connecting.open_connection(name, False, None, None)
    with pytest.raises(ConnectError, match="give USER@ADDRESS"):
        connecting.open_connection("somewhere.invalid", False, None, None)


def test_a_board_that_nobody_knows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was simulated and is down: the ways to have it. What a name server does not say is no mistake."""
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with pytest.raises(UsageError, match=r"no board 'cellar', .*`rk3588 board up cellar`; or give user@address"):
        connecting.open_connection("cellar", False, None, None)
    (home / ".ssh" / "config").write_text("Host cellar\n  HostName 203.0.113.9\n")
    for name in ("cellar", "me@cellars", "somewhere.invalid", "kitchen"):
        with pytest.raises(ConnectError):
            connecting.open_connection(name, False, None, None)
    monkeypatch.setattr(socket, "getaddrinfo", unanswered)
    with pytest.raises(ConnectError):
        connecting.open_connection("shed", False, None, None)


def unanswered(*_: Any) -> None:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.mark.parametrize("name", ["rock-5b", "orange-pi-5-8gb", "Radxa Rock 5B"])
def test_a_type_is_no_board(name: str) -> None:
    with pytest.raises(UsageError, match="is a type of board: give one of yours"):
        connecting.open_connection(name, False, None, None)


def test_a_host_and_a_simulated_board_of_one_name(home: Path) -> None:
    """As from somebody's hosts.yaml in the current folder."""
    (home / "hosts.yaml").write_text("hosts:\n  attic: {board: rock-5b, address: 203.0.113.9}\n")
    with pytest.raises(UsageError, match=r"attic is a board in .*hosts\.yaml and a simulated one"):
        connecting.open_connection("attic", False, None, None)


def test_ssh_is_asked_once_for_each_host_and_what_is_left_out_is_said_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / ".ssh" / "config").write_text("Host *\n  RevokedHostKeys /dev/null\n")
    asked: list[str] = []
    real = openssh.query

    def counted(program: str, host: str, *more: Any) -> openssh.ConfigValues:
        asked.append(host)
        return real(program, host, *more)

    def route(*given: Any) -> None:
        aim, _, _, resolver = given
        for _ in range(2):
            connection._hops(aim, resolver)

    monkeypatch.setattr(openssh, "query", counted)
    monkeypatch.setattr(connection, "connect", route)
    connecting.open_connection("kitchen", False, None, None)
    said = capsys.readouterr().err.splitlines()
    if openssh.client():
        assert asked == ["192.0.2.7", "door"]
    assert [line for line in said if "warning: revokedhostkeys" in line] == said
    assert len(said) == 2


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--runtime", "sim"], 0), (["--runtime", "npu"], 1)])
def test_a_simulated_board_is_not_refused_for_the_npu_it_cannot_have(
    options: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = plan_cases.board("nspawn")
    monkeypatch.setattr(connecting, "open_connection", lambda *_: LocalConnection(nobody))
    monkeypatch.setattr(deployment, "gather_facts", lambda *_, **__: (facts, "/opt/rkchatd"))
    result = CliRunner().invoke(doctor.command, ["attic", *options], standalone_mode=False)
    assert result.return_value == code, result.output
    assert ("refuse" in result.output) == bool(code)
    assert CliRunner().invoke(doctor.command, ["kitchen"], standalone_mode=False).return_value == 1


def test_a_place_that_others_can_write_in_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    control.up("cellar", catalogue().board("rock-5b"))
    board = deploying.Deployer("cellar", deploying.standin(tmp_path), tmp_path)
    bundle = deploying.bundle(tmp_path, "one")
    try:
        refused(board, bundle)
    finally:
        control.down("cellar")


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_the_doctor_sees_what_a_deployment_would_refuse(mode: int, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RKBOARD_SYSROOT", str(home / "tree"))
    (home / "shared").mkdir()
    (home / "shared").chmod(mode)
    facts = replace(plan_cases.board("no-systemd"), python=(3, 11))
    monkeypatch.setattr(connecting, "open_connection", lambda *_: LocalConnection(nobody))
    monkeypatch.setattr(deployment, "gather_facts", lambda *_, **__: (facts, str(home / "shared" / "rkchatd")))
    result = CliRunner().invoke(doctor.command, ["attic"], standalone_mode=False)
    assert result.return_value == (1 if mode == 0o777 else 0), result.output
    assert result.output.startswith("refuse prefix      everybody may write in ") == (mode == 0o777)
    assert (f"→ chmod o-w {home}/shared" in result.output) == (mode == 0o777)


def refused(board: deploying.Deployer, bundle: Path) -> None:
    home = board.found().folder / "home"
    (home / "shared").mkdir()
    (home / "shared").chmod(0o777)
    (home / "link").symlink_to("shared")
    before = sorted(home.rglob("*"))
    said = board.fail(bundle, "--prefix", home / "link" / "rkchatd")
    assert f"everybody may write in {home}/shared" in said
    assert f"chmod o-w {home}/shared" in said
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("address", ["192.168.1..20", "a" * 64 + ".lan"])
def test_an_address_that_is_no_name_at_all(address: str) -> None:
    """Python's own encoding of names breaks off before any name server is asked."""
    with pytest.raises(ConnectError, match="is not a name that can be resolved"):
        connecting.open_connection(f"root@{address}", False, None, None)


def test_a_user_whom_the_system_has_no_name_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container that runs as some number."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987654)
    said: list[str] = []

    @contextlib.contextmanager
    def hold(_connection: Any, _path: str, who: str, *_: Any, **__: Any) -> Iterator[None]:
        said.append(who)
        yield

    monkeypatch.setattr(agent_client, "hold_lock", hold)
    with deployment.board_lock(LocalConnection(nobody), "/opt/rkchatd", True, Watcher()):
        assert said[0].startswith("987654@")


def test_a_board_that_takes_too_long_to_come_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("server", 30)

    monkeypatch.setattr(subprocess, "run", slow)
    with pytest.raises(BoardError, match="did not come up within 30 s"):
        control.up("cellar", catalogue().board("rock-5b"))
