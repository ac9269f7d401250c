"""The SSH layer against a real sshd: ways to a board, commands, and waits that end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

import paramiko

from rk3588.deploy import agent_client
from rk3588.deploy.ssh import config, connection
from rk3588.errors import ConnectError
from tests import ssh_client, sshd
from tests.ssh_client import connect, destination_of, no, nobody

server, home = ssh_client.server, ssh_client.home


def test_through_a_jump_host(server: sshd.Sshd, tmp_path: Path) -> None:
    inner = sshd.start(tmp_path / "inner")
    try:
        known = tmp_path / "known_hosts"
        known.write_text(server.known + inner.known)
        target = replace(destination_of(inner, known), jumps=("door",))
        jump, logins = destination_of(server, known), server.log.count("Accepted publickey")
        with connection.connect(target, nobody, no, lambda _: jump) as through:
            assert through.run("echo $SSH_CONNECTION").text.split()[3] == str(inner.port)
        assert server.log.count("Accepted publickey") == logins + 1
    finally:
        inner.stop()


def test_a_jump_host_has_a_way_of_its_own(home: Path) -> None:
    """As OpenSSH has it: of the first jump host, what is configured counts; and it does not go through itself."""
    (home / ".ssh" / "config").write_text(
        "Host inner\n  ProxyJump middle,last\nHost middle\n  ProxyJump outer\nHost last\n  ProxyJump elsewhere\n"
        "Host * !outer\n  ProxyJump outer\n"
    )
    way = connection._hops(config.resolve("inner"), config.resolve)
    assert [hop.address for hop in way] == ["outer", "middle", "last", "inner"]
    (home / ".ssh" / "config").write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(ConnectError, match="through itself"):
        connection._hops(config.resolve("a"), config.resolve)


RELAY = """\
import socket, sys, os, threading
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
def up():
    while data := os.read(0, 65536): s.sendall(data)
threading.Thread(target=up, daemon=True).start()
while data := s.recv(65536): os.write(1, data)
"""


def test_a_proxy_that_stands_still_is_not_waited_for(server: sshd.Sshd, home: Path) -> None:
    """It takes nothing any more and does not end when it is told to."""
    (home / "relay.py").write_text(RELAY)
    command = f"python3 {home}/relay.py {server.port}"
    started = time.monotonic()
    with connect(replace(destination_of(server), proxy_command=command, silence=1.0)) as through:
        assert through.run("echo here").text == "here\n"
        session = through.start("cat > /dev/null")
        assert through._route.process
        through._route.process.send_signal(signal.SIGSTOP)
        with pytest.raises(ConnectError, match="was lost"):
            for _ in range(64):
                session.send(bytes(1 << 20))
    assert time.monotonic() - started < 60


def test_through_a_proxy_command(server: sshd.Sshd, home: Path) -> None:
    (home / "relay.py").write_text(RELAY)
    with connect(replace(destination_of(server), proxy_command=f"python3 {home}/relay.py {server.port}")) as through:
        assert through.run("echo here").text == "here\n"


def test_nothing_listens(server: sshd.Sshd) -> None:
    with pytest.raises(ConnectError, match=r"cannot reach 127\.0\.0\.1:\d+: Connection refused"):
        connect(replace(destination_of(server), port=sshd.free_port()))
    with pytest.raises(ConnectError, match="not a name that can be resolved"):
        connect(replace(destination_of(server), address="no-such-board.invalid"))


def test_something_else_listens(server: sshd.Sshd) -> None:
    """A port that accepts and says nothing, as a board that is still booting behind a forwarded port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = replace(destination_of(server), port=listener.getsockname()[1], connect_timeout=1.0)
        started = time.monotonic()
        with pytest.raises(ConnectError, match="does not speak SSH"):
            connect(silent)
        assert time.monotonic() - started < 60


# -------------------------------------------------------------------------------------------------------- commands


@pytest.fixture
def board(server: sshd.Sshd) -> Iterator[connection.SshConnection]:
    with connect(destination_of(server)) as open_connection:
        yield open_connection


def test_commands(board: connection.SshConnection) -> None:
    result = board.run("cat; echo complaint >&2; exit 3", stdin=b"in\0put")
    assert (result.code, result.out, result.error_line) == (3, b"in\0put", "complaint")
    assert board.run("echo $LC_ALL; echo $PATH").text.startswith("C\n")
    assert board.user_id >= 0


# ------------------------------------------------------------------------------- boards that say more, or run nothing

WRAPPER = """\
#!/bin/bash
mode=$(cat {folder}/mode)
case $mode in
  noise) printf '\\033]0;me@board\\007Welcome to {{the}} board!\\n'; printf 'no end of line'; echo complaint >&2
         bash -c "$SSH_ORIGINAL_COMMAND"; code=$?; printf 'logout\\nGood bye'; exit $code;;
  trace) set -x; eval "$SSH_ORIGINAL_COMMAND"; exit;;
  *) . {folder}/mode;;
esac
"""


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    """A server whose login shell is what the file ``mode`` says."""
    if sshd.MISSING:
        pytest.skip(sshd.MISSING)
    folder = tmp_path_factory.mktemp("talker")
    (folder / "shell").write_text(WRAPPER.format(folder=folder))
    (folder / "shell").chmod(0o755)
    started = sshd.start(folder, f"ForceCommand {folder}/shell")
    yield started
    started.stop()


@pytest.mark.parametrize("mode", ["noise", "trace"])
def test_what_start_files_say_around_an_answer_is_borne(talker: sshd.Sshd, mode: str) -> None:
    (talker.folder / "mode").write_text(mode)
    with connect(destination_of(talker)) as board:
        assert board.user_id == os.getuid()
        result = board.run("cat; exit 3", stdin=b"in\0put")
        assert (result.code, result.out) == (3, b"in\0put")
        if mode == "noise":
            assert result.error_line == "exit code 3"
        assert board.run("echo why >&2; exit 4").error_line.endswith("why")
        session = board.start("read -r word; echo heard $word; read -r word; echo heard $word")
        session.send(b"one\n")
        assert session.read_line() == b"heard one"
        session.send(b"two\n")
        assert session.read_line() == b"heard two"
        assert session.read_line() == b""
        assert session.finish().code == 0
        assert agent_client.ask(board, "state", "/opt/absent", "", root=False)["exists"] is False


SILENT = {  # what its shell does: what we say
    "echo Your password has expired. >&2; echo 'Password change required but no TTY available.' >&2; exit 1": (
        r"but no TTY available\. \(the password has expired: log in once with ssh and change it\)"
    ),
    "echo 'You are required to change your password immediately'; exit 1": "log in once with ssh",
    "echo '/usr/bin/zsh: No such file or directory' >&2; exit 127": "zsh: No such file",
    "echo 'bash: fork: retry: Resource temporarily unavailable' >&2; exit 254": "fork: retry.*reboot",
    "echo 'bash: cannot read file data: Input/output error' >&2; exit 127": "Input/output error.*its disk fails",
    "echo 'This account is currently not available.'; exit 1": "not available.*no login shell",
    "exit 9": "exit code 9 and said nothing",
    "printf '\\033[31mgo away\\033[0m\\r\\n\\033]0;x\\007' >&2; exit 0": "go away$",
}


def test_why_nothing_runs_is_said(talker: sshd.Sshd) -> None:
    with connect(destination_of(talker)) as board:
        for script, words in SILENT.items():
            (talker.folder / "mode").write_text(script)
            with pytest.raises(ConnectError, match=f"^board runs no commands: its login shell said: .*{words}"):
                assert board.user_id
        with pytest.raises(ConnectError, match=words):
            agent_client.ask(board, "state", "/x/y", "", root=False)
        held = agent_client.hold_lock(board, "/x", "me", "/x", root=False, waiting=print)
        with pytest.raises(ConnectError, match=words), held:
            pass


def test_a_flood_on_stderr_does_not_stop_stdout(board: connection.SshConnection) -> None:
    """Four times the window on the stream that is not asked for first."""
    result = board.run("head -c 64000000 /dev/zero >&2; echo done", timeout=120)
    assert (result.text, len(result.err)) == ("done\n", 64_000_000)


def test_a_command_that_does_not_end_is_let_go(board: connection.SshConnection) -> None:
    with pytest.raises(ConnectError, match="did not end within 1 s"):
        board.run("sleep 100", timeout=1)
    assert board.run("echo on").text == "on\n"


def test_a_background_child_does_not_hold_us(board: connection.SshConnection) -> None:
    started = time.monotonic()
    assert board.run("sleep 50 & echo off").text == "off\n"
    assert time.monotonic() - started < 40


def test_a_command_that_does_not_read(board: connection.SshConnection) -> None:
    assert board.run("exit 7", stdin=bytes(20_000_000)).code == 7


def test_gcm_is_preferred(board: connection.SshConnection) -> None:
    assert "gcm" in board.cipher


def test_a_server_that_dies_is_noticed(tmp_path: Path) -> None:
    if sshd.MISSING:
        pytest.skip(sshd.MISSING)
    mortal = sshd.start(tmp_path / "mortal")
    try:
        with connect(destination_of(mortal)) as open_connection:
            killer = threading.Timer(1.0, mortal.stop)
            killer.start()
            with pytest.raises(ConnectError, match="was lost"):
                open_connection.run("sleep 100", timeout=200)
            with pytest.raises(ConnectError, match="was lost"):
                open_connection.run("true")
            killer.join()
    finally:
        mortal.stop()


def test_a_lost_link_is_none_of_the_command_s_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """paramiko closes the channels first and says afterwards that the link is gone: here, on a busy machine."""
    if sshd.MISSING:
        pytest.skip(sshd.MISSING)
    unlink = paramiko.Channel._unlink  # type: ignore[attr-defined]

    def slowly(channel: paramiko.Channel) -> None:
        unlink(channel)
        time.sleep(0.5)

    monkeypatch.setattr(paramiko.Channel, "_unlink", slowly)
    mortal = sshd.start(tmp_path / "mortal")
    try:
        with connect(destination_of(mortal)) as board:
            session = board.start("cat")
            mortal.stop()
            with pytest.raises(ConnectError, match="was lost"):
                session.finish()
    finally:
        mortal.stop()


def test_an_answer_that_comes_after_the_exit_code(
    board: connection.SshConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where neither machine has time: it is waited for, as its end is known."""
    receive, late = paramiko.Channel.recv, iter([2.5])

    def slowly(channel: paramiko.Channel, size: int) -> bytes:
        time.sleep(next(late, 0))
        return receive(channel, size)

    monkeypatch.setattr(paramiko.Channel, "recv", slowly)
    assert board.run("echo late").text == "late\n"


def test_a_board_that_is_stuck_is_not_waited_for(server: sshd.Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel acknowledges all that is sent, and nobody reads it."""
    monkeypatch.setattr(connection, "_ANSWER_SECONDS", 1.0)
    with connect(destination_of(server)) as board:
        channel = board.transport.open_session()
        monkeypatch.setattr(board.transport, "open_session", lambda **_: channel)
        sessions = sshd.descendants(server.process.pid)
        for pid in sessions:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(ConnectError, match=r"does not start a command.*overloaded"):
                board.run("true")
        finally:
            for pid in sessions:
                os.kill(pid, signal.SIGCONT)


def test_a_login_that_takes_its_time_is_waited_for(server: sshd.Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where systemd-logind is busy: the user is let in, and the first channel comes when PAM has its session."""
    monkeypatch.setattr(connection, "_ANSWER_SECONDS", 0.5)
    with connect(destination_of(server)) as board:
        sessions = sshd.descendants(server.process.pid)
        for pid in sessions:
            os.kill(pid, signal.SIGSTOP)
        timers = [threading.Timer(1.5, os.kill, [pid, signal.SIGCONT]) for pid in sessions]
        for timer in timers:
            timer.start()
        assert board.run("echo late").text == "late\n"
        for timer in timers:
            timer.join()


def test_the_socket_gives_up_on_silence(board: connection.SshConnection) -> None:
    sock = board.transport.sock
    assert isinstance(sock, socket.socket)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == config.SILENCE_SECONDS * 1000
