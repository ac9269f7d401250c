"""What is configured for a host: as ``ssh -G`` says it, or read here where there is no ssh client."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from rk3588.boards import Host
from rk3588.errors import ConnectError, UsageError

from . import openssh
from .openssh import ConfigValues
from .reader import ConfigReader
from .tokens import PROXY, Tokens, expand_home, local_user, seconds

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
USER_KNOWN = "~/.ssh/known_hosts"
_KNOWN = {  # keyword → its default, as OpenSSH has it
    "userknownhostsfile": f"{USER_KNOWN} {USER_KNOWN}2",
    "globalknownhostsfile": "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2",
}
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
CONNECT_SECONDS = 15.0
SILENCE_SECONDS = 20.0
_NOT_IN_HOSTS = "'`\"$\\;&<>|(){},"  # as OpenSSH has it since 9.6
_NOT_IN_USERS = "'`\";&<>|(){}\\$"
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
_NOT_FOLLOWED = ("bindaddress", "bindinterface", "revokedhostkeys", "knownhostscommand", "pkcs11provider")
_SPEC = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[^\]\s]+\]|[^:\s@-][^:\s@]*)(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True)
class Destination:
    """Where to connect to and as whom. ``jumps`` are host specs, nearest first."""

    name: str  # as the user said it
    address: str
    port: int
    user: str
    keys: tuple[Path, ...]
    only_these_keys: bool
    jumps: tuple[str, ...]
    proxy_command: Optional[str]
    known_hosts: tuple[Path, ...]  # a new key goes into the first
    hash_names: bool
    key_alias: Optional[str]
    connect_timeout: float
    silence: float = SILENCE_SECONDS  # seconds without a sign of life after which the link counts as lost
    openssh: tuple[str, ...] = ()  # the words that take OpenSSH's ssh to the same place
    certificates: tuple[Path, ...] = ()  # none: the one beside each key
    agent: Optional[str] = None  # its socket; None: as SSH_AUTH_SOCK says, "": none
    family: int = socket.AF_UNSPEC
    asks: bool = True  # whether a password or a passphrase may be asked for
    remarks: tuple[str, ...] = ()  # what of ssh's configuration is not followed

    @property
    def known_as(self) -> str:
        """The name its key has in known_hosts."""
        host = (self.key_alias or self.address).lower()
        return host if self.port == 22 or self.key_alias else f"[{host}]:{self.port}"


def parse_spec(spec: str) -> tuple[Optional[str], str, Optional[int]]:
    """User, host and port of ``[user@]host[:port]``; UsageError for anything else."""
    text = spec.removeprefix("ssh://").rstrip("/")
    match = _SPEC.fullmatch(text)
    port = int(match["port"]) if match and match["port"] else None
    if not match or (port is not None and not 0 < port < 65536):
        raise UsageError(f"{spec!r} is not a host: give user@address, user@address:port or a name of hosts.yaml")
    for part, barred in ((match["host"], _NOT_IN_HOSTS), (match["user"] or "", _NOT_IN_USERS)):
        # They may stand in a command of ssh's configuration: %h and %r of ProxyCommand and Match exec.
        if part.startswith("-") or not part.isprintable() or set(part) & set(barred):
            raise UsageError(f"{spec!r} is not a host: {part!r} has a character that shells make something of")
    return match["user"], match["host"].strip("[]"), port


def resolve(spec: str, config: Optional[Path] = None) -> Destination:
    """What is configured for ``[user@]host[:port]``. ``config``: instead of the user's and the system's files."""
    user, host, port = parse_spec(spec)
    said, remarks = _read_config(host, user, port, config)

    def one(key: str, default: str = "") -> str:
        return said.get(key, [default])[0]

    jumps = tuple(reversed(one("proxyjump", "none").split(",")))
    jumps = () if jumps[0].lower() == "none" else jumps
    alias, address, set_port = one("hostkeyalias") or None, one("hostname", host), _port(one("port", "22"), host)
    tokens = Tokens(
        original=host,
        address=address,
        port=set_port,
        user=one("user") or local_user(),
        alias=alias,
        jump=parse_spec(jumps[0])[1] if jumps else "",
    )
    command = one("proxycommand", "none")
    unused = bool(jumps) or command.lower() == "none"
    if not unused and _is_yes(one("proxyusefdpass")):
        raise ConnectError(f"ssh's configuration for {host}: ProxyUseFdpass is not supported; leave it out")
    passed = [key for key in _NOT_FOLLOWED if one(key, "none") != "none"]
    remarks += [f"{key} of ssh's configuration for {host} is not followed here" for key in passed]
    alive = one("serveraliveinterval", "none")
    interval, count = 0 if alive == "none" else seconds(alive), int(one("serveralivecountmax", "3"))
    patience = one("connecttimeout", "none")
    return Destination(
        name=spec,
        address=address,
        port=set_port,
        user=tokens.user,
        keys=_paths(said, "identityfile", tokens, DEFAULT_KEYS),
        only_these_keys=_is_yes(one("identitiesonly")),
        jumps=jumps,
        proxy_command=None if unused else tokens.expand(command, "ProxyCommand", PROXY, variables=False),
        known_hosts=tuple(map(Path, (*said["userknownhostsfile"], *said["globalknownhostsfile"]))),
        hash_names=_is_yes(one("hashknownhosts")),
        key_alias=alias,
        connect_timeout=CONNECT_SECONDS if patience == "none" else float(seconds(patience) or CONNECT_SECONDS),
        silence=float(interval * count) or SILENCE_SECONDS,
        openssh=(
            *(("-F", str(config)) if config else ()),
            *(("-p", str(port)) if port else ()),
            f"{user}@{host}" if user else host,
        ),
        certificates=_paths(said, "certificatefile", tokens, ()),
        agent=_agent(one("identityagent")),
        family=_FAMILIES.get(one("addressfamily", "any"), socket.AF_UNSPEC),
        asks=not _is_yes(one("batchmode")),
        remarks=tuple(remarks),
    )


def _read_config(
    host: str, user: Optional[str], port: Optional[int], config: Optional[Path]
) -> tuple[ConfigValues, list[str]]:
    """What ssh's configuration says, and what of it was left out; known hosts and the agent as whole paths."""
    program, remarks = openssh.client(), []
    if program:
        try:
            said = openssh.query(program, host, user, port, config, SYSTEM_CONFIG)
            for key in _KNOWN:
                said[key] = [expand_home(name) for name in _split_paths(said.get(key, [""])[0])]
            return said, []
        except openssh.QueryUnsupported as error:
            remarks.append(f"{program} cannot say how it is configured ({error}): its files are read without it")
    reader, home = ConfigReader(host, user, port), Path.home() / ".ssh"
    reader.read([(config, home)] if config else [(home / "config", home), (SYSTEM_CONFIG, SYSTEM_CONFIG.parent)])
    said = reader.said
    said["hostname"] = [reader.address]
    named = said.get("user", [local_user()])[0]
    tokens = Tokens(host, reader.address, _port(said.get("port", ["22"])[0], host), named)
    for key, usual in _KNOWN.items():
        names = [name for name in said.get(key, usual.split()) if name.lower() != "none"]
        said[key] = [str(tokens.path(name, key)) for name in names]
    if "identityagent" in said:
        said["identityagent"] = [str(tokens.expand(expand_home(said["identityagent"][0]), "IdentityAgent"))]
    return said, [*remarks, *reader.remarks]


def _split_paths(text: str) -> list[str]:
    """File names as ``ssh -G`` puts them on one line, without quotes: a blank ends one where another path begins."""
    return [name for name in re.split(r" (?=[/~])", text) if name and name.lower() != "none"]


def _paths(said: ConfigValues, key: str, tokens: Tokens, usual: tuple[str, ...]) -> tuple[Path, ...]:
    names = said.get(key) or [f"~/.ssh/{name}" for name in usual]
    return tuple(tokens.path(name, key) for name in names if name.lower() != "none")


def _port(text: str, host: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ConnectError(f"ssh's configuration for {host}: Port {text!r} is none")
    return int(text)


def _is_yes(text: str) -> bool:
    return text.lower() in ("yes", "true")


def _agent(said: str) -> Optional[str]:
    """The socket that IdentityAgent means."""
    if said in ("", "SSH_AUTH_SOCK"):
        return None
    if said.lower() == "none":
        return ""
    return os.environ.get(said[1:], "") if said.startswith("$") else said


def resolve_host(host: Host, hosts: dict[str, Host], config: Optional[Path] = None) -> Destination:
    """The same for a host of the inventory, whose entry goes before ssh's own configuration."""
    login = f"{host.user}@" if host.user else ""
    address = f"[{host.address}]" if ":" in host.address else host.address
    destination = resolve(f"{login}{address}" + (f":{host.port}" if host.port != 22 else ""), config)
    jumps = (host.jump,) if host.jump else destination.jumps
    way = hosts.get(host.jump or "")
    through = f"{way.user + '@' if way.user else ''}{way.address}:{way.port}" if way else host.jump
    options = (*(("-i", str(host.key)) if host.key else ()), *(("-J", through) if through else ()))
    return replace(
        destination,
        name=host.name,
        keys=(host.key,) if host.key else destination.keys,
        jumps=jumps,
        proxy_command=None if jumps else destination.proxy_command,
        openssh=(*options, *destination.openssh),
    )
