"""Host keys and logins, against a real sshd."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588.errors import ConnectError, HostKeyError
from rk3588.simboard.preparing import new_key
from tests import ssh_client, sshd
from tests.ssh_client import PLAIN, connect, destination_of, needs_sshd

server = ssh_client.server


def test_a_first_key_is_shown_and_kept_on_yes(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "new" / "known_hosts"
    with pytest.raises(HostKeyError, match=r"not known yet.*ED25519 SHA256:.*--accept-new"):
        connect(destination_of(server, known))
    assert not known.exists()
    asked: list[str] = []

    def yes(question: str, new: bool) -> bool:
        assert new
        asked.append(question)
        return True

    connect(destination_of(server, known), accept=yes).close()
    printed = subprocess.check_output(["ssh-keygen", "-lf", str(server.folder / "host_ed25519.pub")], text=True)
    assert printed.split()[1] in asked[0]
    assert known.read_text() == server.known
    connect(destination_of(server, known)).close()  # not asked again


def test_names_are_hashed_where_the_config_says_so(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("# no line end")
    hashed = replace(destination_of(server, known), hash_names=True)
    connect(hashed, accept=lambda *_: True).close()
    assert known.read_text().splitlines()[1].startswith("|1|")
    connect(hashed).close()


def test_a_changed_key_is_refused_whatever_is_accepted(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {new_key(tmp_path / 'other')}\n")
    with pytest.raises(HostKeyError, match=r"has CHANGED.*known_hosts, line 1.*ssh-keygen -R '\[127"):
        connect(destination_of(server, known), accept=lambda *_: True)


def test_another_type_of_key_is_not_a_changed_one(server: sshd.Sshd, tmp_path: Path) -> None:
    rsa = "AAAAB3NzaC1yc2EAAAADAQABAAAAgQDExample=="
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} ssh-rsa {rsa}\n")
    with pytest.raises(HostKeyError, match=r"another type of key \(RSA\).*no sign of an attack.*at a terminal$"):
        connect(destination_of(server, known))
    with pytest.raises(HostKeyError, match="another type"):  # as --accept-new answers
        connect(destination_of(server, known), accept=lambda _, new: new)
    connect(destination_of(server, known), accept=lambda *_: True).close()
    assert len(known.read_text().splitlines()) == 2


@needs_sshd
def test_the_server_is_asked_for_the_type_that_is_known(tmp_path: Path) -> None:
    """A server with two keys shows the one we know, though we would like another type better."""
    folder = tmp_path / "two"
    folder.mkdir()
    new_key(folder / "host_ed25519")
    both = sshd.start(folder, f"HostKey {folder}/host_ed25519", host_key="host_ecdsa")
    try:
        connect(destination_of(both)).close()
    finally:
        both.stop()


def test_a_revoked_key_is_refused(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"{server.known}@revoked * ssh-rsa AAAA\n@revoked {server.known}")
    with pytest.raises(HostKeyError, match="revoked"):
        connect(destination_of(server, known), accept=lambda *_: True)


def test_any_of_several_known_keys_of_a_type_will_do(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {new_key(tmp_path / 'older')}\n{server.known}")
    connect(destination_of(server, known)).close()


def test_names_with_wildcards_as_openssh_reads_them(server: sshd.Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"other,[127.0.0.?]:* {server.host_key}\n")
    connect(destination_of(server, known)).close()
    for damaged in ("|1|", "|1|x|y", "|1|AAAA|AAAA", "|1|\u00e9|"):
        known.write_text(f"{damaged} {server.host_key}\n{server.known}")
        connect(destination_of(server, known)).close()
    known.write_text(f"![127.0.0.1]:{server.port},* {server.host_key}\n")
    with pytest.raises(HostKeyError, match="not known yet"):
        connect(destination_of(server, known))
    known.write_text(f"{server.known}@revoked * {server.host_key}\n")
    with pytest.raises(HostKeyError, match="revoked"):
        connect(destination_of(server, known), accept=lambda *_: True)


def test_names_are_known_in_small_letters() -> None:
    assert replace(PLAIN, address="Kitchen.Local").known_as == "kitchen.local"


@needs_sshd
def test_a_changed_ecdsa_key_names_the_file_to_compare_with(tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    one, other = (sshd.start(tmp_path / name, host_key="host_ecdsa") for name in ("one", "other"))
    try:
        known.write_text(f"[127.0.0.1]:{one.port} {other.host_key}\n")
        with pytest.raises(HostKeyError, match=r"shows ECDSA SHA256:.*/ssh_host_ecdsa_key\.pub.* -f \S+known_hosts`"):
            connect(destination_of(one, known))
    finally:
        one.stop()
        other.stop()


def test_known_hosts_that_cannot_be_read_or_written(server: sshd.Sshd, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(HostKeyError, match=r"cannot note the key.*UserKnownHostsFile"):
        connect(destination_of(server, tmp_path / "file" / "known_hosts"), accept=lambda *_: True)


# --------------------------------------------------------------------------------------------------------- logins


def test_a_wrong_key_is_one_sentence(server: sshd.Sshd, tmp_path: Path) -> None:
    new_key(tmp_path / "wrong")
    with pytest.raises(ConnectError, match=r"does not let .* in \(tried: .*wrong\).*ssh-copy-id"):
        connect(replace(destination_of(server), keys=(tmp_path / "absent", tmp_path / "wrong")))


@needs_sshd
def test_a_server_that_wants_two_keys(tmp_path: Path) -> None:
    folder = tmp_path / "strict"
    folder.mkdir()
    new_key(folder / "second")
    server = sshd.start(folder, "AuthenticationMethods publickey,publickey")
    try:
        with (folder / "authorized_keys").open("a") as file:
            file.write((folder / "second.pub").read_text())
        connect(replace(destination_of(server), keys=(folder / "second", server.key))).close()
        with pytest.raises(ConnectError, match="does not let"):
            connect(destination_of(server))
    finally:
        server.stop()


@needs_sshd
def test_more_keys_than_a_server_has_patience_for(tmp_path: Path) -> None:
    """As with an agent that holds many."""
    server = sshd.start(tmp_path / "impatient", "MaxAuthTries 3")
    try:
        others = [tmp_path / f"key{number}" for number in range(4)]
        for other in others:
            new_key(other)
        with pytest.raises(ConnectError, match=r"hung up after \d keys.*IdentitiesOnly"):
            connect(replace(destination_of(server), keys=(*others, server.key)))
    finally:
        server.stop()


@needs_sshd
def test_an_encrypted_key_asks_for_its_passphrase(server: sshd.Sshd, tmp_path: Path) -> None:
    key = tmp_path / "locked"
    shutil.copy(server.key, key)
    subprocess.check_output(["ssh-keygen", "-q", "-p", "-N", "open sesame", "-f", str(key)])
    answers = iter(["wrong", "open sesame"])
    connect(replace(destination_of(server), keys=(key,)), ask=lambda _: next(answers)).close()
    with pytest.raises(ConnectError, match="wrong three times"):
        connect(replace(destination_of(server), keys=(key,)), ask=lambda _: "wrong")
    with pytest.raises(ConnectError, match="does not let"):
        connect(replace(destination_of(server), keys=(key,)))  # nobody to ask


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
        connect(replace(destination_of(server), keys=(), only_these_keys=False)).close()
        # With the public half only beside the configuration, the agent still has the private one.
        shutil.copy(server.folder / "id.pub", tmp_path / "mine.pub")
        connect(replace(destination_of(server), keys=(tmp_path / "mine",))).close()
        with pytest.raises(ConnectError, match="does not let"):
            connect(replace(destination_of(server), keys=(tmp_path / "absent",)))
    finally:
        agent.kill()
        agent.wait()


@needs_sshd
@pytest.mark.parametrize("where", ["beside", "named", "agent"])
def test_a_certificate_lets_in(where: str, tmp_path: Path) -> None:
    """The server knows who signed it, and none of the keys."""
    new_key(tmp_path / "ca")
    folder = tmp_path / "server"
    folder.mkdir()
    new_key(folder / "id")
    (folder / "authorized_keys").touch()
    sign = ["ssh-keygen", "-q", "-s", str(tmp_path / "ca"), "-I", "me", "-n", sshd.USER, str(folder / "id.pub")]
    subprocess.run(sign, check=True, stderr=subprocess.DEVNULL)
    server = sshd.start(folder, f"TrustedUserCAKeys {tmp_path}/ca.pub")
    target, certificate = destination_of(server), folder / "id-cert.pub"
    agent = None
    try:
        if where != "beside":
            certificate = certificate.rename(tmp_path / "signed.pub")
            with pytest.raises(ConnectError, match="does not let"):
                connect(target)
            target = replace(target, certificates=(tmp_path / "absent", folder / "id.pub", certificate))
        if where == "agent":
            agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "a")], stdout=subprocess.DEVNULL)
            deadline = time.monotonic() + 10
            while not (tmp_path / "a").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            environment = {"SSH_AUTH_SOCK": str(tmp_path / "a"), "PATH": "/usr/bin:/bin"}
            subprocess.run(["ssh-add", "-q", str(folder / "id")], env=environment, check=True)
            (folder / "id").rename(tmp_path / "away")
            with pytest.raises(ConnectError, match="does not let"):
                connect(replace(target, agent=""))
            target = replace(target, agent=str(tmp_path / "a"))
        with connect(target) as board:
            assert board.run("echo in").text == "in\n"
        assert "Accepted publickey" in server.log
        assert "ED25519-CERT" in server.log
    finally:
        server.stop()
        if agent:
            agent.kill()
            agent.wait()
