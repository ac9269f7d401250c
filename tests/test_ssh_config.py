"""What ssh's configuration and the inventory make of a name."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588.boards import Host, catalogue
from rk3588.deploy.ssh import config
from rk3588.errors import ConnectError, UsageError
from tests import ssh_client

home = ssh_client.home


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
