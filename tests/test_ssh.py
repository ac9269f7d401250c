"""The SSH layer against a real sshd: configuration, host keys, logins, waits, and the way through a jump host."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588.boards import Host, catalogue
from rk3588.deploy import agent, local
from rk3588.deploy import connection as sessions
from rk3588.deploy.connection import Ask
from rk3588.deploy.local import LocalConnection
from rk3588.deploy.ssh import config, connection, hostkeys
from rk3588.deploy.ssh.config import Target
from rk3588.errors import ConnectError, DeployError, HostKeyError, UsageError
from rk3588.simboard.control import new_key
from tests import sshd

needs_sshd = pytest.mark.skipif(bool(sshd.MISSING), reason=sshd.MISSING)


def nobody(_question: str) -> None:
    return None


def no(_question: str, _new: bool) -> bool:
    return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    if sshd.MISSING:
        pytest.skip(sshd.MISSING)
    started = sshd.start(tmp_path_factory.mktemp("sshd"), "AllowTcpForwarding yes")
    yield started
    started.stop()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, without an agent, on a machine that configures nothing for ssh."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(config, "SYSTEM_CONFIG", tmp_path / "absent")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    return tmp_path


def target_of(server: sshd.Sshd, known: Path | None = None) -> Target:
    file = known or server.folder / "known_hosts"
    if known is None:
        file.write_text(server.known)
    return Target(
        name="board",
        address="127.0.0.1",
        port=server.port,
        user=sshd.USER,
        keys=(server.key,),
        only_these_keys=True,
        jumps=(),
        proxy_command=None,
        known_hosts=(file,),
        hash_names=False,
        key_alias=None,
        connect_timeout=10.0,
    )


PLAIN = Target("board", "board", 22, "me", (), True, (), None, (), False, None, 10.0)


def connect(target: Target, ask: Ask = nobody, accept: hostkeys.Accept = no) -> connection.SshConnection:
    return connection.connect(target, ask, accept)


# ------------------------------------------------------------------------------------------------- configuration


def test_config_with_include_match_and_jump(home: Path) -> None:
    ssh = home / ".ssh"
    (ssh / "config").write_text(
        "Include config.d/*\nInclude ~/.ssh/absent\n"
        "Host kitchen\n  HostName 192.168.1.20\n  Include kitchen.conf\n  Port 2222\n"
        "Host bath\n  Include kitchen.conf\n"
        "Host *\n  User everybody\n  IdentityFile ~/.ssh/every\n"
    )
    (ssh / "config.d").mkdir()
    (ssh / "config.d" / "10-home").write_text("Host kitchen\n  ProxyJump door@10.0.0.1:2200,second\nHost other\n")
    (ssh / "kitchen.conf").write_text("User cook\nHost *\n  HashKnownHosts yes\n")
    found = config.resolve("kitchen")
    assert (found.address, found.port, found.user) == ("192.168.1.20", 2222, "cook")
    assert found.jumps == ("second", "door@10.0.0.1:2200")
    assert found.keys == (ssh / "every",)
    assert found.hash_names
    assert found.known_as == "[192.168.1.20]:2222"
    assert config.resolve("me@kitchen:22").user == "me"
    assert config.resolve("me@kitchen:22").port == 22
    assert config.resolve("elsewhere").user == "everybody"
    assert not config.resolve("elsewhere").hash_names


def test_user_and_port_that_are_given_count_as_if_configured(home: Path) -> None:
    """In Match, and in what a ProxyCommand and IdentityFile are told."""
    (home / ".ssh" / "config").write_text(
        "Match user bob\n  IdentityFile ~/.ssh/of-%r\n"
        "Host kitchen\n  User cook\n  Port 22\n  ProxyCommand nc %h %p %r\n"
    )
    found = config.resolve("bob@kitchen:2222")
    assert found.proxy_command == "nc kitchen 2222 bob"
    assert found.keys == (home / ".ssh" / "of-bob",)
    assert config.resolve("kitchen").proxy_command == "nc kitchen 22 cook"
    assert found.openssh == ("-p", "2222", "bob@kitchen")


def test_comments_at_line_ends_and_names_with_blanks(home: Path) -> None:
    (home / ".ssh" / "config").write_text(
        f'Host kitchen # the Rock\n  User cook   # me\n  UserKnownHostsFile "{home}/my hosts" ~/more\n'
        '  IdentityFile "~/my key"\n'
    )
    found = config.resolve("kitchen")
    assert found.user == "cook"
    assert found.known_hosts[:2] == (home / "my hosts", home / "more")
    assert found.keys == (home / "my key",)


def test_an_include_of_itself_is_named(home: Path) -> None:
    (home / ".ssh" / "config").write_text("Include config\n")
    with pytest.raises(ConnectError, match="include itself"):
        config.resolve("x")


@pytest.mark.parametrize("text", ["Port many\n", "Match never\n", "Host *\n  nonsense\n"])
def test_a_broken_config_is_one_sentence(home: Path, text: str) -> None:
    (home / ".ssh" / "config").write_text(text)
    with pytest.raises(ConnectError, match="ssh's configuration"):
        config.resolve("x")


@pytest.mark.parametrize("spec", ["", "-oProxyCommand=x", "a b", "user@", "host:0", "host:99999", "a@b@c", "h:p"])
def test_what_is_no_host(spec: str) -> None:
    with pytest.raises(UsageError, match="is not a host"):
        config.parse_spec(spec)


def test_hosts_of_the_inventory_go_before_the_config(home: Path) -> None:
    (home / ".ssh" / "config").write_text("Host *\n  User everybody\n  Port 2200\n")
    board = catalogue().board("rock-5b")
    door = Host("door", board, "10.0.0.1", "keeper", 2022, None, None, (), None)
    kitchen = Host("kitchen", board, "10.0.0.2", None, 22, home / "key", "door", (), None)
    found = config.resolve_host(kitchen, {"door": door, "kitchen": kitchen})
    assert (found.name, found.address, found.port, found.user) == ("kitchen", "10.0.0.2", 2200, "everybody")
    assert (found.keys, found.jumps) == ((home / "key",), ("door",))
    assert found.openssh == ("-i", f"{home}/key", "-J", "keeper@10.0.0.1:2022", "10.0.0.2")
    assert config.resolve_host(door, {}).openssh == ("-p", "2022", "keeper@10.0.0.1")


# ------------------------------------------------------------------------------------------------------ host keys


def test_a_first_key_is_shown_and_kept_on_yes(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "new" / "known_hosts"
    with pytest.raises(HostKeyError, match=r"not known yet.*ED25519 SHA256:.*--accept-new"):
        connect(target_of(server, known))
    assert not known.exists()
    asked: list[str] = []

    def yes(question: str, new: bool) -> bool:
        assert new
        asked.append(question)
        return True

    connect(target_of(server, known), accept=yes).close()
    printed = subprocess.check_output(["ssh-keygen", "-lf", str(server.folder / "host_ed25519.pub")], text=True)
    assert printed.split()[1] in asked[0]
    assert known.read_text() == server.known
    connect(target_of(server, known)).close()  # not asked again


def test_names_are_hashed_where_the_config_says_so(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("# no line end")
    hashed = replace(target_of(server, known), hash_names=True)
    connect(hashed, accept=lambda *_: True).close()
    assert known.read_text().splitlines()[1].startswith("|1|")
    connect(hashed).close()


def test_a_changed_key_is_refused_whatever_is_accepted(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {new_key(tmp_path / 'other')}\n")
    with pytest.raises(HostKeyError, match=r"has CHANGED.*known_hosts, line 1.*ssh-keygen -R '\[127"):
        connect(target_of(server, known), accept=lambda *_: True)


def test_another_type_of_key_is_not_a_changed_one(server: sshd.Sshd, tmp_path: Path) -> None:
    rsa = "AAAAB3NzaC1yc2EAAAADAQABAAAAgQDExample=="
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} ssh-rsa {rsa}\n")
    with pytest.raises(HostKeyError, match=r"another type of key \(RSA\).*no sign of an attack.*at a terminal$"):
        connect(target_of(server, known))
    with pytest.raises(HostKeyError, match="another type"):  # as --accept-new answers
        connect(target_of(server, known), accept=lambda _, new: new)
    connect(target_of(server, known), accept=lambda *_: True).close()
    assert len(known.read_text().splitlines()) == 2


@needs_sshd
def test_the_server_is_asked_for_the_type_that_is_known(tmp_path: Path) -> None:
    """A server with two keys shows the one we know, though we would like another type better."""
    folder = tmp_path / "two"
    folder.mkdir()
    new_key(folder / "host_ed25519")
    both = sshd.start(folder, f"HostKey {folder}/host_ed25519", host_key="host_ecdsa")
    try:
        connect(target_of(both)).close()
    finally:
        both.stop()


def test_a_revoked_key_is_refused(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"{server.known}@revoked * ssh-rsa AAAA\n@revoked {server.known}")
    with pytest.raises(HostKeyError, match="revoked"):
        connect(target_of(server, known), accept=lambda *_: True)


def test_any_of_several_known_keys_of_a_type_will_do(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {new_key(tmp_path / 'older')}\n{server.known}")
    connect(target_of(server, known)).close()


def test_names_with_wildcards_as_openssh_reads_them(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"other,[127.0.0.?]:* {server.host_key}\n")
    connect(target_of(server, known)).close()
    known.write_text(f"![127.0.0.1]:{server.port},* {server.host_key}\n")
    with pytest.raises(HostKeyError, match="not known yet"):
        connect(target_of(server, known))
    known.write_text(f"{server.known}@revoked * {server.host_key}\n")
    with pytest.raises(HostKeyError, match="revoked"):
        connect(target_of(server, known), accept=lambda *_: True)


def test_names_are_known_in_small_letters() -> None:
    assert replace(PLAIN, address="Kitchen.Local").known_as == "kitchen.local"


@needs_sshd
def test_a_changed_ecdsa_key_names_the_file_to_compare_with(tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    one, other = (sshd.start(tmp_path / name, host_key="host_ecdsa") for name in ("one", "other"))
    try:
        known.write_text(f"[127.0.0.1]:{one.port} {other.host_key}\n")
        with pytest.raises(HostKeyError, match=r"shows ECDSA SHA256:.*/ssh_host_ecdsa_key\.pub.* -f \S+known_hosts`"):
            connect(target_of(one, known))
    finally:
        one.stop()
        other.stop()


def test_known_hosts_that_cannot_be_read_or_written(server: sshd.Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostKeyError, match=r"cannot note the key.*UserKnownHostsFile"):
        connect(target_of(server, tmp_path / "file" / "known_hosts"), accept=lambda *_: True)


# --------------------------------------------------------------------------------------------------------- logins


def test_a_wrong_key_is_one_sentence(server: sshd.Sshd, tmp_path: Path) -> None:
    new_key(tmp_path / "wrong")
    with pytest.raises(ConnectError, match=r"does not let .* in \(tried: .*wrong\).*ssh-copy-id"):
        connect(replace(target_of(server), keys=(tmp_path / "absent", tmp_path / "wrong")))


@needs_sshd
def test_a_server_that_wants_two_keys(tmp_path: Path) -> None:
    folder = tmp_path / "strict"
    folder.mkdir()
    new_key(folder / "second")
    server = sshd.start(folder, "AuthenticationMethods publickey,publickey")
    try:
        with (folder / "authorized_keys").open("a") as file:
            file.write((folder / "second.pub").read_text())
        connect(replace(target_of(server), keys=(folder / "second", server.key))).close()
        with pytest.raises(ConnectError, match="does not let"):
            connect(target_of(server))
    finally:
        server.stop()


@needs_sshd
def test_an_encrypted_key_asks_for_its_passphrase(server: sshd.Sshd, tmp_path: Path) -> None:
    key = tmp_path / "locked"
    shutil.copy(server.key, key)
    subprocess.check_output(["ssh-keygen", "-q", "-p", "-N", "open sesame", "-f", str(key)])
    answers = iter(["wrong", "open sesame"])
    connect(replace(target_of(server), keys=(key,)), ask=lambda _: next(answers)).close()
    with pytest.raises(ConnectError, match="wrong three times"):
        connect(replace(target_of(server), keys=(key,)), ask=lambda _: "wrong")
    with pytest.raises(ConnectError, match="does not let"):
        connect(replace(target_of(server), keys=(key,)))  # nobody to ask


@needs_sshd
def test_a_key_of_the_agent(server: sshd.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    try:
        while not sock.exists():
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
        subprocess.run(["ssh-add", "-q", str(server.key)], check=True)
        for number in range(3):
            new_key(tmp_path / f"other{number}")
            subprocess.run(["ssh-add", "-q", str(tmp_path / f"other{number}")], check=True)
        connect(replace(target_of(server), keys=(), only_these_keys=False)).close()
        # With the public half only beside the configuration, the agent still has the private one.
        shutil.copy(server.folder / "id.pub", tmp_path / "mine.pub")
        connect(replace(target_of(server), keys=(tmp_path / "mine",))).close()
        with pytest.raises(ConnectError, match="does not let"):
            connect(replace(target_of(server), keys=(tmp_path / "absent",)))
    finally:
        agent.kill()
        agent.wait()


# ----------------------------------------------------------------------------------------------- reaching a board


def test_through_a_jump_host(server: sshd.Sshd, tmp_path: Path) -> None:
    inner = sshd.start(tmp_path / "inner")
    try:
        known = tmp_path / "known_hosts"
        known.write_text(server.known + inner.known)
        target = replace(target_of(inner, known), jumps=("door",))
        jump, logins = target_of(server, known), server.log.count("Accepted publickey")
        with connection.connect(target, nobody, no, lambda _: jump) as through:
            assert through.run("echo $SSH_CONNECTION").text.split()[3] == str(inner.port)
        assert server.log.count("Accepted publickey") == logins + 1
    finally:
        inner.stop()


def test_a_jump_host_has_a_way_of_its_own(home: Path) -> None:
    """As OpenSSH has it: of the first jump host, what is configured counts; and it does not go through itself."""
    (home / ".ssh" / "config").write_text(
        "Host inner\n  ProxyJump middle,last\nHost middle\n  ProxyJump outer\nHost last\n  ProxyJump elsewhere\n"
        "Host *\n  ProxyJump outer\n"
    )
    way = connection._route(config.resolve("inner"), config.resolve)
    assert [hop.address for hop in way] == ["outer", "middle", "last", "inner"]
    (home / ".ssh" / "config").write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(ConnectError, match="through itself"):
        connection._route(config.resolve("a"), config.resolve)


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
    command = f"exec python3 {home}/relay.py {server.port}"
    started = time.monotonic()
    with connect(replace(target_of(server), proxy_command=command, silence=1.0)) as through:
        assert through.run("echo here").text == "here\n"
        session = through.start("cat > /dev/null")
        assert through._way.process
        through._way.process.send_signal(signal.SIGSTOP)
        with pytest.raises(ConnectError, match="was lost"):
            for _ in range(64):
                session.send(bytes(1 << 20))
    assert time.monotonic() - started < 60


def test_through_a_proxy_command(server: sshd.Sshd, home: Path) -> None:
    (home / "relay.py").write_text(RELAY)
    with connect(replace(target_of(server), proxy_command=f"python3 {home}/relay.py {server.port}")) as through:
        assert through.run("echo here").text == "here\n"


def test_nothing_listens(server: sshd.Sshd) -> None:
    with pytest.raises(ConnectError, match=r"cannot reach 127\.0\.0\.1:\d+: Connection refused"):
        connect(replace(target_of(server), port=sshd.free_port()))
    with pytest.raises(ConnectError, match="not a name that can be resolved"):
        connect(replace(target_of(server), address="no-such-board.invalid"))


def test_something_else_listens(server: sshd.Sshd) -> None:
    """A port that accepts and says nothing, as a board that is still booting behind a forwarded port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = replace(target_of(server), port=listener.getsockname()[1], connect_timeout=1.0)
        started = time.monotonic()
        with pytest.raises(ConnectError, match="does not speak SSH"):
            connect(silent)
        assert time.monotonic() - started < 60


# -------------------------------------------------------------------------------------------------------- commands


@pytest.fixture
def board(server: sshd.Sshd) -> Iterator[connection.SshConnection]:
    with connect(target_of(server)) as open_connection:
        yield open_connection


def test_commands(board: connection.SshConnection) -> None:
    result = board.run("cat; echo complaint >&2; exit 3", stdin=b"in\0put")
    assert (result.code, result.out, result.complaint) == (3, b"in\0put", "complaint")
    assert board.run("echo $LC_ALL; echo $PATH").text.startswith("C\n")
    assert board.user_id >= 0


def test_a_shell_that_talks_before_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from an `echo` in ~/.bashrc: no answer could be told from it."""
    (tmp_path / "id").write_text("#!/bin/sh\necho Welcome!\nexec /usr/bin/id \"$@\"\n")
    (tmp_path / "id").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ConnectError, match=r"prints 'Welcome!' before every answer.*~/\.bashrc"):
        assert LocalConnection(nobody).user_id


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
        with connect(target_of(mortal)) as open_connection:
            killer = threading.Timer(1.0, mortal.stop)
            killer.start()
            with pytest.raises(ConnectError, match="was lost"):
                open_connection.run("sleep 100", timeout=200)
            with pytest.raises(ConnectError, match="was lost"):
                open_connection.run("true")
            killer.join()
    finally:
        mortal.stop()


def test_a_board_that_is_stuck_is_not_waited_for(server: sshd.Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel acknowledges all that is sent, and nobody reads it."""
    monkeypatch.setattr(connection, "_ANSWER_SECONDS", 1.0)
    with connect(target_of(server)) as board:
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


def test_the_socket_gives_up_on_silence(board: connection.SshConnection) -> None:
    sock = board.transport.sock
    assert isinstance(sock, socket.socket)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == config.SILENCE_SECONDS * 1000


# ------------------------------------------------------------------------------------------------------------ sudo

SUDO = """#!/bin/sh
# Like sudo: reads a password line with -S, asks for none when told so, forgets with -k.
secret={secret}; interactive=yes; stdin=
while :; do case $1 in
  -n) interactive=; shift;; -k) shift;; -S) stdin=yes; shift;; -p) shift 2;; *) break;; esac; done
if [ -n "$secret" ]; then
  [ -n "$interactive" ] || {{ echo 'sudo: a password is required' >&2; exit 1; }}
  n=0
  while :; do
    IFS= read -r line || exit 1
    [ "$line" = "$secret" ] && break
    n=$((n + 1)); [ $n -lt 3 ] || exit 1
  done
fi
echo called >> {log}
exec env AS_ROOT=yes "$@"
"""


@pytest.fixture
def sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "sudo"


def install(sudo: Path, secret: str) -> None:
    sudo.write_text(SUDO.format(secret=secret, log=sudo.with_suffix(".log")))
    sudo.chmod(0o755)


class Ordinary(LocalConnection):
    """This machine, as somebody who is not root."""

    @property
    def user_id(self) -> int:
        return 1000


def test_a_program_here_that_reads_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_STALL", 0.2)
    session = LocalConnection(nobody).start("sleep 60")
    with pytest.raises(ConnectError, match="took no data"):
        session.send(bytes(1 << 20))
    session.kill()


def test_a_board_that_never_stops_talking_does_not_fill_our_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_FLOOD", 1 << 20)
    assert len(LocalConnection(nobody).run("head -c 50000000 /dev/zero").out) < 2 << 20


def test_sudo_without_a_password(sudo: Path) -> None:
    install(sudo, "")
    asked: list[str] = []
    board = Ordinary(lambda question: asked.append(question))
    assert board.run("cat; echo $AS_ROOT", root=True, stdin=b"data ").text == "data yes\n"
    assert board.run("echo $AS_ROOT").text == "\n"
    assert not asked


def test_sudo_asks_once_and_only_when_needed(sudo: Path) -> None:
    install(sudo, "geheim")
    answers = iter(["wrong", "geheim"])
    board = Ordinary(lambda _: next(answers))
    board.run("true")
    assert not sudo.with_suffix(".log").exists()
    for _ in range(3):
        assert board.run("cat; echo $AS_ROOT", root=True, stdin=b"data ").text == "data yes\n"


def test_sudo_that_says_no(sudo: Path) -> None:
    install(sudo, "geheim")
    with pytest.raises(DeployError, match="refused the password three times"):
        Ordinary(lambda _: "wrong").run("true", root=True)
    with pytest.raises(DeployError, match="no terminal"):
        Ordinary(nobody).run("true", root=True)
    sudo.write_text("#!/bin/sh\necho 'x is not in the sudoers file' >&2; exit 1\n")
    with pytest.raises(DeployError, match="does not let this user in"):
        Ordinary(nobody).run("true", root=True)


def test_sudo_that_says_no_only_after_the_password(sudo: Path) -> None:
    """As real ones do: before it, they say that a password is required."""
    sudo.write_text(
        "#!/bin/sh\ncase $* in *-n*) echo 'sudo: a password is required' >&2; exit 1;; esac\n"
        "read -r line; echo 'board is not in the sudoers file.' >&2; exit 1\n"
    )
    sudo.chmod(0o755)
    answers = iter(["right"])  # once
    with pytest.raises(DeployError, match="does not let this user in"):
        Ordinary(lambda _: next(answers)).run("true", root=True)


def test_a_step_that_sudo_ends_at_once_is_told_in_its_words(sudo: Path) -> None:
    """It reads nothing of the program that is sent: more than a pipe holds."""
    sudo.write_text(
        "#!/bin/sh\ncase $* in '-k -n true') exit;; esac\nexec 0<&-\n"
        "echo 'Sorry, user x is not allowed to execute python3 as root' >&2; exit 1\n"
    )
    sudo.chmod(0o755)
    with pytest.raises(DeployError, match="not allowed to execute python3"):
        agent.start(Ordinary(nobody), "state", root=True, stdin=bytes(1 << 20))


@pytest.mark.usefixtures("home")
def test_user_is_who_we_are_by_default() -> None:
    assert config.resolve("board").user == getpass.getuser()
