"""Whether a server is the one we know: known_hosts, read strictly.

``paramiko.SSHClient`` takes a host that is known under another type of key for a changed one, and ignores
``@revoked``; both are told apart here.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeys

from rk3588.deploy import shell
from rk3588.errors import ConnectError, HostKeyError

from .config import USER_KNOWN, Destination

# Asks the user whether to trust a key: (the question, whether the host is quite unknown) → whether the answer is yes.
Accept = Callable[[str, bool], bool]


def fingerprint(key: paramiko.PKey) -> str:
    """As OpenSSH prints it: ``ED25519 SHA256:…``."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).rstrip(b"=").decode()
    return f"{_kind(key.get_name())} SHA256:{digest}"


def _kind(name: str) -> str:
    """Of a key, as OpenSSH prints it; also what its file in /etc/ssh is called by."""
    return "ECDSA" if name.startswith("ecdsa-") else name.removeprefix("ssh-").upper()


@dataclass(frozen=True)
class _Known:
    blob: bytes
    file: Path
    line: int


class KnownHosts:
    """The known keys of one host, by type: there may be several; and those revoked for it."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.keys: dict[str, list[_Known]] = {}
        self.revoked: set[bytes] = set()
        for file in destination.known_hosts:
            try:
                lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
            except OSError as error:
                raise ConnectError(f"cannot read the known hosts in {file}: {error.strerror}") from error
            for number, line in enumerate(lines, 1):
                self._read_line(line.strip(), file, number)

    def _read_line(self, line: str, file: Path, number: int) -> None:
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
            return  # @cert-authority: certificates of hosts are not read, so such a host counts as unknown
        patterns = words[0].split(",")
        left_out = any(self._names_this_host(one[1:]) for one in patterns if one.startswith("!"))
        if left_out or not any(map(self._names_this_host, patterns)):
            return
        try:
            blob = base64.b64decode(words[2], validate=True)
        except ValueError:
            return
        if marker:
            self.revoked.add(blob)
        else:
            self.keys.setdefault(words[1], []).append(_Known(blob, file, number))

    def _names_this_host(self, pattern: str) -> bool:
        """One hashed name, or one with ``*`` and ``?``."""
        wanted = self.destination.known_as
        if pattern.startswith("|1|"):
            try:
                return pattern == HostKeys.hash_host(wanted, pattern)
            except (ValueError, AssertionError):  # a damaged line
                return False
        expression = re.escape(pattern.lower()).replace(r"\*", ".*").replace(r"\?", ".")
        return re.fullmatch(expression, wanted) is not None

    def sorted_key_types(self, preferred: tuple[str, ...]) -> tuple[str, ...]:
        """Types of key to ask the server for: the known ones first, so that it shows the one we can compare."""
        known = set(self.keys) | ({"rsa-sha2-512", "rsa-sha2-256"} if "ssh-rsa" in self.keys else set())
        return tuple(sorted(preferred, key=lambda name: name not in known))

    def check(self, key: paramiko.PKey, accept: Accept) -> None:
        """Return if the server may be trusted; HostKeyError says what is wrong and what to check."""
        destination, name, shown = self.destination, key.get_name(), fingerprint(key)
        if key.asbytes() in self.revoked:
            raise HostKeyError(f"{destination.known_as} shows a key that is marked as revoked ({shown}): do not go on")
        if name in self.keys:
            if key.asbytes() in [known.blob for known in self.keys[name]]:
                return
            known = self.keys[name][0]
            elsewhere = () if known.file == Path(USER_KNOWN).expanduser() else ("-f", known.file)
            forget = shell.command("ssh-keygen", "-R", destination.known_as, *elsewhere)
            raise HostKeyError(
                f"the key of {destination.known_as} has CHANGED: it shows {shown}, {known.file}, line {known.line} has "
                "another. If the board was set up anew, compare with "
                f"`ssh-keygen -lf /etc/ssh/ssh_host_{_kind(name).lower()}_key.pub` on its own console, then run "
                f"`{forget}`; if it was not, somebody may be listening: do not go on"
            )
        question = f"The board {destination.known_as} is not known yet. Its key is {shown}."
        otherwise = ", or give --accept-new"
        if self.keys:
            types = ", ".join(_kind(kind) for kind in self.keys)
            question = (
                f"{destination.known_as} is known under another type of key ({types}) and shows {shown} now; this is "
                "no sign of an attack by itself."
            )
            otherwise = " at a terminal"  # not by --accept-new: an attacker in between could offer another type of key
        if not accept(f"{question} Is it the right one?", not self.keys):
            raise HostKeyError(f"{question} Compare it with `ssh-keygen -lf` on the board and say yes{otherwise}")
        self._remember(key)

    def _remember(self, key: paramiko.PKey) -> None:
        file = self.destination.known_hosts[0] if self.destination.known_hosts else None
        if file is None or str(file) == "/dev/null":
            return
        name = self.destination.known_as
        if self.destination.hash_names:
            name = HostKeys.hash_host(name)
        try:
            _append_line(file, f"{name} {key.get_name()} {key.get_base64()}\n")
        except OSError as error:
            raise HostKeyError(
                f"cannot note the key of {self.destination.known_as} in {file}: {error.strerror}; make it writable, or "
                "name another file in ssh's configuration (UserKnownHostsFile)"
            ) from error


def _append_line(file: Path, line: str) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, ("\n" if torn else "").encode() + line.encode())
    finally:
        os.close(handle)
