"""What ``~/.ssh/config`` says of a host. paramiko reads it; ``Include``, which it does not know, is resolved here."""

from __future__ import annotations

import getpass
import glob
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import paramiko

from rk3588.boards import Host
from rk3588.errors import ConnectError, UsageError

USER_CONFIG = Path("~/.ssh/config")
SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
USER_KNOWN = "~/.ssh/known_hosts"
SYSTEM_KNOWN = "/etc/ssh/ssh_known_hosts"
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
CONNECT_SECONDS = 15.0
SILENCE_SECONDS = 20.0
_DEPTH = 16  # of Include, as in OpenSSH
_LINE = re.compile(r"\s*(\w+)(?:\s*=\s*|\s+)(.*?)\s*$")
_COMMENT = re.compile(r'\s#[^"]*$')  # at a line's end; paramiko knows only whole lines of it
_SPEC = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[^\]\s]+\]|[^:\s@-][^:\s@]*)(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True)
class Target:
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
    return match["user"], match["host"].strip("[]"), port


def resolve(spec: str, config: Optional[Path] = None) -> Target:
    """What is configured for ``[user@]host[:port]``. ``config``: instead of the user's and the system's files."""
    user, host, port = parse_spec(spec)
    found = _lookup(host, config, user, port)
    keys = tuple(Path(name).expanduser() for name in found.get("identityfile", []))
    known = _words(str(found.get("userknownhostsfile", USER_KNOWN)))
    known += _words(str(found.get("globalknownhostsfile", SYSTEM_KNOWN)))
    jump = str(found.get("proxyjump", "none"))
    command = str(found.get("proxycommand", "none"))
    try:
        set_port, seconds = int(found.get("port", 22)), float(found.get("connecttimeout", CONNECT_SECONDS))
        interval, count = float(found.get("serveraliveinterval", 0)), int(found.get("serveralivecountmax", 3))
    except ValueError as error:
        raise ConnectError(f"ssh's configuration for {host} has a number that is none (Port, a timeout)") from error
    return Target(
        name=spec,
        address=str(found.get("hostname", host)),
        port=set_port,
        user=str(found.get("user") or getpass.getuser()),
        keys=keys or tuple(Path("~/.ssh").expanduser() / name for name in DEFAULT_KEYS),
        only_these_keys=str(found.get("identitiesonly", "no")).lower() == "yes",
        jumps=() if jump.lower() == "none" else tuple(reversed(jump.split(","))),
        proxy_command=None if command.lower() == "none" or jump.lower() != "none" else command,
        known_hosts=tuple(Path(name).expanduser() for name in known if name.lower() != "none"),
        hash_names=str(found.get("hashknownhosts", "no")).lower() == "yes",
        key_alias=str(found["hostkeyalias"]) if "hostkeyalias" in found else None,
        connect_timeout=seconds,
        silence=interval * count or SILENCE_SECONDS,
        openssh=(
            *(("-F", str(config)) if config else ()),
            *(("-p", str(port)) if port else ()),
            f"{user}@{host}" if user else host,
        ),
    )


def resolve_host(host: Host, hosts: dict[str, Host], config: Optional[Path] = None) -> Target:
    """The same for a host of the inventory, whose entry goes before ssh's own configuration."""
    login = f"{host.user}@" if host.user else ""
    address = f"[{host.address}]" if ":" in host.address else host.address
    target = resolve(f"{login}{address}" + (f":{host.port}" if host.port != 22 else ""), config)
    jumps = (host.jump,) if host.jump else target.jumps
    way = hosts.get(host.jump or "")
    through = f"{way.user + '@' if way.user else ''}{way.address}:{way.port}" if way else host.jump
    options = (*(("-i", str(host.key)) if host.key else ()), *(("-J", through) if through else ()))
    return replace(
        target,
        name=host.name,
        keys=(host.key,) if host.key else target.keys,
        jumps=jumps,
        proxy_command=None if jumps else target.proxy_command,
        openssh=(*options, *target.openssh),
    )


def _lookup(host: str, config: Optional[Path], user: Optional[str], port: Optional[int]) -> paramiko.SSHConfigDict:
    files = [config] if config else [USER_CONFIG.expanduser(), SYSTEM_CONFIG]
    # The first value found counts: what was said goes before the user's file, that before the system's.
    texts = [f"  User {user}" if user else "", f"  Port {port}" if port else ""]
    try:
        texts += [_flatten(file, host, file.parent) for file in files if file.is_file()]
        return paramiko.SSHConfig.from_text("\n".join("Host *\n" + text for text in texts)).lookup(host)
    except (paramiko.ConfigParseError, paramiko.CouldNotCanonicalize, OSError, UnicodeDecodeError) as error:
        raise ConnectError(f"cannot read ssh's configuration ({files[0]}): {error}") from error


def _words(text: str) -> list[str]:
    """File names, those with blanks in quotes."""
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|(\S+)', text)]


def _flatten(file: Path, host: str, base: Path, depth: int = 0) -> str:
    """The file with every Include that applies to ``host`` in its place.

    An Include below a Host or Match line counts only where that line matches, and the line holds again after it.
    """
    if depth > _DEPTH:
        raise ConnectError(f"{file}: Include is nested more than {_DEPTH} deep: does a file include itself?")
    lines, section = [], "Host *"
    for written in file.read_text(encoding="utf-8").splitlines():
        line = _COMMENT.sub("", written)
        match = _LINE.fullmatch(line)
        key = match[1].lower() if match else ""
        if key in ("host", "match"):
            section = line
        if key != "include" or not match:
            lines.append(line)
        elif _applies(section, host):
            for name in _included(match[2], base):
                lines += ["Host *", _flatten(name, host, base, depth + 1)]
            lines.append(section)
    return "\n".join(lines)


def _applies(section: str, host: str) -> bool:
    probe = paramiko.SSHConfig.from_text(f"{section}\n  RemoteCommand applies\n")
    return "remotecommand" in probe.lookup(host)


def _included(patterns: str, base: Path) -> list[Path]:
    found: list[Path] = []
    for name in _words(patterns):
        pattern = str(base / Path(name).expanduser())
        found += [Path(path) for path in sorted(glob.glob(pattern)) if Path(path).is_file()]  # noqa: PTH207
    return found
