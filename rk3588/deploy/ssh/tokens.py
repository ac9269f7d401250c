"""What ssh puts into the values of its configuration: ``~``, ``%`` tokens, ``${VARIABLE}``, and times such as 1m30s."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from rk3588.errors import ConnectError

PROXY = "hknpr"  # all that a ProxyCommand may name; its variables are the shell's
_TOKEN = re.compile(r"%(.?)|\$\{([^}]*)(\}?)", re.DOTALL)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PATTERN = {"*": ".*", "?": "."}


def local_user() -> str:
    """By the system's own list, as ssh has it; the number where that has no name for it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@dataclass(frozen=True)
class Tokens:
    """One connection, as tokens name its parts. ``original``: the host as it was asked for."""

    original: str
    address: str
    port: int
    user: str
    alias: Optional[str] = None
    jump: str = ""

    def expand(self, value: str, what: str, keys: str = "CLdhijklnpru", variables: bool = True) -> str:
        """``value`` with its tokens (those of ``keys``) and variables in their places; ConnectError names ``what``."""

        def put(match: re.Match[str]) -> str:
            if match[1] is None:
                return self._variable(match, what) if variables else match[0]
            if match[1] == "%":
                return "%"
            if not match[1] or match[1] not in keys:
                raise ConnectError(f"ssh's configuration for {self.original}: {what} has no {match[0]!r} (%% is %)")
            return self._token(match[1])

        return _TOKEN.sub(put, value)

    def path(self, value: str, what: str) -> Path:
        return Path(self.expand(expand_home(value), what))

    def _variable(self, match: re.Match[str], what: str) -> str:
        value = os.environ.get(match[2])
        if value is None or not match[3]:
            raise ConnectError(
                f"ssh's configuration for {self.original}: {what} names {match[0]}, which is not set: export it"
            )
        return value

    def _token(self, key: str) -> str:
        here = socket.gethostname()
        known = {
            "L": here.partition(".")[0],
            "d": str(Path.home()),
            "h": self.address,
            "i": str(os.getuid()),
            "j": self.jump,
            "k": self.alias or self.original,
            "l": here,
            "n": self.original,
            "p": str(self.port),
            "r": self.user,
            "u": local_user(),
        }
        if key == "C":
            return hashlib.sha1("".join(known[one] for one in "lhprj").encode()).hexdigest()
        return known[key]


def expand_home(path: str) -> str:
    """``~/x`` and ``~user/x`` with the home folder in its place."""
    return os.path.expanduser(path)  # noqa: PTH111 (Path's raises for ~nobody-here)


def seconds(text: str) -> int:
    """A time as ssh writes it: ``90``, ``1m30s``; ValueError for none."""
    if not re.fullmatch(r"(\d+[smhdw]?)+", text.lower()):
        raise ValueError(f"{text!r} is no time")
    return sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"(\d+)([smhdw]?)", text.lower()))


def matches_pattern(pattern: str, name: str) -> bool:
    """Whether ``name`` is like ``pattern``, in which only ``*`` and ``?`` mean something."""
    expression = "".join(_PATTERN.get(sign) or re.escape(sign) for sign in pattern)
    return re.fullmatch(expression, name, re.DOTALL) is not None


def matches_pattern_list(patterns: str, name: str) -> bool:
    """The same for a list with commas, of which one may be negated: that one counts before all others."""
    listed = patterns.split(",")
    if any(matches_pattern(one[1:], name) for one in listed if one.startswith("!")):
        return False
    return any(matches_pattern(one, name) for one in listed if not one.startswith("!"))
