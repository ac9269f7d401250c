"""What ssh's configuration and the inventory make of a name."""

from __future__ import annotations

import functools
import getpass
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588.boards import Host, catalogue
from rk3588.deploy.ssh import config, openssh
from rk3588.deploy.ssh.config import Destination
from rk3588.deploy.ssh.tokens import seconds
from rk3588.errors import ConnectError, UsageError
from tests import ssh_client

home = ssh_client.home
needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="no ssh client here (Debian: openssh-client)")
KITCHEN = "Host kitchen\n  HostName 192.0.2.7\n  User rock\n"


@pytest.fixture(params=["ssh", "no client"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to read a configuration."""
    if request.param == "ssh" and not shutil.which("ssh"):
        pytest.skip("no ssh client here")
    if request.param != "ssh":
        monkeypatch.setattr(openssh, "client", lambda: None)
    return str(request.param)


def own(folder: Path, text: str | bytes) -> Path:
    """A file to give as --ssh-config."""
    file = folder / "ssh_config"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


BESIDE = {
    "final all, as Fedora has it": KITCHEN + "Match final all\n  Port 2222\n  GSSAPIAuthentication yes\n",
    "final host": KITCHEN + "Match final host 192.0.2.7\n  Port 2222\n",
    "final and not": KITCHEN + 'Match final !originalhost door !exec "test -S /none"\n  Port 2224\n',
    "host=": "Match host=kitchen\n  User rock\n  HostName 192.0.2.7\n",
    "two criteria": "Match host kitchen user rock\n  Port 2223\n" + KITCHEN,
    "exec": 'Match host kitchen exec "test -d /none || test %n.%h = kitchen.kitchen"\n  User rock\n',
    "exec is false": 'Match exec "false"\n  User nobody2\n' + KITCHEN,
    "not exec": 'Match originalhost kitchen !exec "false"\n  User rock\n',
    "localuser": f"Match localuser nobody-here,{getpass.getuser()}\n  Port 99\n" + KITCHEN,
    "canonical": KITCHEN + "Match canonical all\n  Port 2226\n",
    "a user that is known by then": KITCHEN + "Match user rock host 192.0.2.*\n  Port 2299\n",
    "patterns": "Host !kitchen *\n  Port 1\nHost k?tch*,x\n  Port 2\nHost k?tch* !cellar\n  Port 3\n",
    "negated list": "Match host *,!kitchen\n  Port 1\nMatch host k*,!cellar\n  Port 3\n",
    "Latin-1 comment": b"# K\xfcche\n" + KITCHEN.encode(),
    "line ends": KITCHEN.replace("\n", "\r\n"),
    "quotes and equals": 'Host "kitchen"\n  HostName = "192.0.2.7" # here\n  User="ro ck"\n',
    "HostName %h": "Host kitchen\n  HostName %h.lan\n",
    "times": KITCHEN + "  ConnectTimeout 1m30s\n  ServerAliveInterval 1M\n  ServerAliveCountMax 2\n",
    "no signs of life": KITCHEN + "  ServerAliveInterval none\n",
    "an unknown user's home": "Include ~nobody-here/x\n" + KITCHEN,
    "no timeout": KITCHEN + "  ConnectTimeout none\n",
    "canonical names": "CanonicalizeHostname yes\nCanonicalDomains example.invalid\n" + KITCHEN,
    "canonical names, no domains": "CanonicalizeHostname yes\n" + KITCHEN,
    "jump": KITCHEN + "  ProxyJump a@10.0.0.1:2200,b@[::1]:23\n",
    "jump after a command": KITCHEN + "  ProxyCommand nc x 1\n  ProxyJump door\n",
    "no jump": KITCHEN + "  ProxyJump none\nHost *\n  ProxyJump door\n",
    "words for yes": KITCHEN + "  IdentitiesOnly true\n  HashKnownHosts yes\n",
    "known hosts": KITCHEN + '  UserKnownHostsFile ~/known_%h_%p_%%h "~/my hosts"\n  GlobalKnownHostsFile /dev/null\n',
    "known hosts, none": KITCHEN + "  UserKnownHostsFile none\n",
    "agent": KITCHEN + "  IdentityAgent ~/agent-%r-${BOARD_KEYS}\n",
    "alias": KITCHEN + "  HostKeyAlias Kitchen\n",
    "a command with quotes": KITCHEN + "  ProxyCommand sh -c 'nc \"x\"'  # x\n",
    "the first counts": "Port 5\n" + KITCHEN + "  Port 6\n",
}


@functools.cache
def of_ssh(text: bytes) -> dict[str, str]:
    """ssh's own word."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(text)
        command = ["ssh", "-G", "-F", file.name, "kitchen"]
        out = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    return dict(line.partition(" ")[::2] for line in os.fsdecode(out).splitlines())


def ours(target: Destination) -> dict[str, str | None]:
    timeout = "none" if target.connect_timeout == config.CONNECT_SECONDS else f"{target.connect_timeout:.0f}"
    return {
        "user": target.user,
        "hostname": target.address,
        "port": str(target.port),
        "proxyjump": ",".join(reversed(target.jumps)).replace("ssh://", "") or None,
        "connecttimeout": timeout,
        "identitiesonly": "yes" if target.only_these_keys else "no",
        "hashknownhosts": "yes" if target.hash_names else "no",
        "identityagent": target.agent,
        "hostkeyalias": target.key_alias,
        "proxycommand": target.proxy_command,
        "known": " ".join(map(str, target.known_hosts)),
    }


@needs_ssh
@pytest.mark.parametrize("text", BESIDE.values(), ids=BESIDE)
def test_a_configuration_is_read_as_ssh_reads_it(
    way: str, text: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARD_KEYS", "keys")
    monkeypatch.setenv("HOME", str(Path(f"~{getpass.getuser()}").expanduser()))
    file = own(tmp_path, text)
    said = dict(of_ssh(file.read_bytes()))
    if way != "ssh" and b"GlobalKnownHostsFile" not in file.read_bytes():
        said["globalknownhostsfile"] = config._KNOWN["globalknownhostsfile"]  # an ssh of one's own has another
    found = config.resolve("kitchen", file)
    known = " ".join(said[key] for key in ("userknownhostsfile", "globalknownhostsfile") if said.get(key) != "none")
    assert ours(found) == {**{key: said.get(key) for key in ours(found)}, "known": known}
    if said["serveraliveinterval"] != "0":
        assert found.silence == int(said["serveraliveinterval"]) * int(said["serveralivecountmax"])
    assert bool(found.remarks) == (way != "ssh" and b"Canonicalize" in file.read_bytes())


@needs_ssh
@pytest.mark.usefixtures("way")
def test_names_of_keys_are_expanded_as_by_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ssh -G` leaves them as they are; what a connection looks for stands in its log."""
    monkeypatch.setenv("BOARD_KEYS", str(tmp_path / "my keys"))
    monkeypatch.setenv("HOME", str(Path(f"~{getpass.getuser()}").expanduser()))
    names = ("${BOARD_KEYS}/id", "~/x/%h-%n-%p-%r-%u-%i-%k", "%d/%%h", "/k/%L.%l", "/k/%C", '"/k/a b"')
    lines = "".join(f"  IdentityFile {name}\n" for name in names)
    file = own(tmp_path, f"{KITCHEN}  Port 2222\n  HostKeyAlias K\n{lines}  ProxyCommand false %h-%n-%p-%r-%k-%%h\n")
    log = subprocess.run(["ssh", "-v", "-F", str(file), "kitchen"], capture_output=True, text=True).stderr
    tried = re.findall(r"^debug1: identity file (.*) type -?\d+\r?$", log, re.MULTILINE)
    found = config.resolve("kitchen", file)
    assert [str(key) for key in found.keys] == [name for name in tried if not name.endswith("-cert")]
    (command,) = re.findall(r"Executing proxy command: exec (.*?)\r?$", log, re.MULTILINE)
    assert found.proxy_command == command
    monkeypatch.delenv("BOARD_KEYS")
    with pytest.raises(ConnectError, match=r"\$\{BOARD_KEYS\}, which is not set"):
        config.resolve("kitchen", file)
    with pytest.raises(ConnectError, match=r"ProxyCommand has no '%Z' \(%% is %\)"):
        config.resolve("kitchen", own(tmp_path, "ProxyCommand nc %Z\n"))


UNKNOWN = {
    "localnetwork": "Match localnetwork 203.0.113.0/24\n  ProxyJump office-gw\n  User away\n",
    "not localnetwork": "Match !localnetwork 127.0.0.0/8\n  ProxyJump office-gw\n",
    "something new": "Match host kitchen moonphase=full\n  Port 2200\n",
}


@pytest.mark.parametrize("text", UNKNOWN.values(), ids=UNKNOWN)
def test_a_match_that_cannot_be_judged_is_named_and_left_out(way: str, text: str, tmp_path: Path) -> None:
    file = own(tmp_path, text + KITCHEN)
    if way == "ssh" and subprocess.run(["ssh", "-G", "-F", str(file), "kitchen"], capture_output=True).returncode == 0:
        pytest.skip("this ssh knows the word, and judges it")
    found = config.resolve("kitchen", file)
    assert (found.user, found.address, found.port, found.jumps) == ("rock", "192.0.2.7", 22, ())
    assert any("ssh_config, line 1: Match" in remark and "left out" in remark for remark in found.remarks)
    elsewhere = config.resolve("cellar", own(tmp_path, text.replace("Match ", "Match host kitchen ") + KITCHEN))
    assert elsewhere.user != "away"


def test_an_ssh_that_is_too_old_to_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\necho 'unknown option -- G\nusage: ssh' >&2\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = config.resolve("kitchen", own(tmp_path, KITCHEN))
    assert (found.user, found.address) == ("rock", "192.0.2.7")
    assert "older than 6.8" in found.remarks[0]


def test_a_match_that_never_ends_is_not_waited_for(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rk3588.deploy.ssh import reader

    monkeypatch.setattr(openssh, "SECONDS", 0.2)
    monkeypatch.setattr(reader, "_EXEC_SECONDS", 0.2)
    file = own(tmp_path, 'Match exec "sleep 60"\n  User away\n' + KITCHEN)
    started = time.monotonic()
    if way == "ssh":
        with pytest.raises(ConnectError, match=r"ssh -G took more than.*Match run a program that waits"):
            config.resolve("kitchen", file)
    else:
        assert config.resolve("kitchen", file).user == "rock"
    assert time.monotonic() - started < 20


@needs_ssh
def test_the_systems_file_counts_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Fedora has it: the system's file includes others, relative to its own folder, and asks for a last pass."""
    (home / "etc" / "d").mkdir(parents=True)
    (home / "etc" / "config").write_text("Include d/*.conf\n")
    (home / "etc" / "d" / "50.conf").write_text("Match final all\n  Port 2222\n  Include /nowhere/x\n")
    (home / ".ssh" / "config").write_text("Host kitchen\n  HostName 192.0.2.7\n")
    monkeypatch.setattr(config, "SYSTEM_CONFIG", home / "etc" / "config")
    found = config.resolve("kitchen")
    assert (found.address, found.port) == ("192.0.2.7", 2222)
    assert found.known_hosts[0] == home / ".ssh" / "known_hosts"
    (home / "etc" / "d" / "50.conf").write_text("Match all\n  Port many\n")
    with pytest.raises(ConnectError, match=rf"{home}/etc/d/50\.conf line 2: Bad port"):
        config.resolve("kitchen")


@pytest.mark.parametrize(
    "spec",
    [*(f"a{sign}b" for sign in "'`\"$\\;&<>|(){},\x01\x1b\u202e"), "$(x)", "`id`@h", "a;b@h", "-x@h", "a$b@h", "u\\@h"],
)
def test_names_that_a_shell_would_run_are_refused(spec: str) -> None:
    """They would reach ProxyCommand and Match exec by %h and %r."""
    with pytest.raises(UsageError, match="is not a host"):
        config.parse_spec(spec)


def test_a_jump_host_of_the_configuration_is_held_to_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssh, "client", lambda: None)
    (home / ".ssh" / "config").write_text("Host kitchen\n  ProxyJump $(touch${IFS}x)\n")
    with pytest.raises(UsageError, match="is not a host"):
        config.resolve("kitchen")


@pytest.mark.usefixtures("way")
def test_what_is_not_followed_is_said(home: Path) -> None:
    more = "  RevokedHostKeys /dev/null\n  BatchMode yes\n  AddressFamily inet\n"
    (home / ".ssh" / "config").write_text(KITCHEN + more)
    found = config.resolve("kitchen")
    assert [remark for remark in found.remarks if "revokedhostkeys" in remark]
    assert not found.asks
    assert found.family.name == "AF_INET"  # type: ignore[attr-defined]
    (home / ".ssh" / "config").write_text(f"{KITCHEN}  ProxyUseFdpass yes\n  ProxyCommand nc %h %p\n")
    with pytest.raises(ConnectError, match="ProxyUseFdpass is not supported"):
        config.resolve("kitchen")


@pytest.mark.parametrize(("text", "said"), [("90", 90), ("1m30s", 90), ("1h", 3600), ("2D", 172800), ("1w1s", 604801)])
def test_times(text: str, said: int) -> None:
    assert seconds(text) == said
    with pytest.raises(ValueError, match="no time"):
        seconds(text + "x")


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


@pytest.mark.usefixtures("home")
def test_user_is_who_we_are_by_default() -> None:
    assert config.resolve("board").user == getpass.getuser()
