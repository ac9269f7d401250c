"""ssh's configuration where there is no ssh client to ask: the lines that decide where a connection goes, and as whom.

What cannot be judged without it is named and left out, never applied.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from rk3588.errors import ConnectError

from .openssh import ConfigValues, included
from .tokens import Tokens, local_user, matches_pattern, matches_pattern_list, seconds
from .words import LINE, words

_DEPTH = 16  # of Include, as in OpenSSH
_EXEC_SECONDS = 30.0
_SEVERAL = ("identityfile", "certificatefile")
_LISTS = ("userknownhostsfile", "globalknownhostsfile")  # file names, one after the other
_TIMES = ("connecttimeout", "serveraliveinterval")
_WHOLE = ("port", "serveralivecountmax")


class ConfigReader:
    """One lookup. ``said`` is as ``ssh -G`` says it; ``remarks`` are what was left out."""

    def __init__(self, host: str, user: Optional[str], port: Optional[int]) -> None:
        self.original = self._host = host
        self.said: ConfigValues = {**({"user": [user]} if user else {}), **({"port": [str(port)]} if port else {})}
        self.remarks: dict[str, None] = {}  # in order, each once
        self._final = self._wants_final = False

    def read(self, files: list[tuple[Path, Path]]) -> None:
        """Each file with the folder in which its relative Includes lie; what is said first counts."""
        self._read_files(files)
        if self._wants_final:
            self._final, self._host = True, self.address
            self._read_files(files)

    def _read_files(self, files: list[tuple[Path, Path]]) -> None:
        for file, base in files:
            if file.is_file():
                self._file(file, base, True, 0)

    @property
    def address(self) -> str:
        """The host as it is so far."""
        named = self.said.get("hostname")
        tokens = Tokens(self.original, self.original, 22, "")
        return tokens.expand(named[0], "HostName", "h", variables=False).lower() if named else self._host

    def _file(self, file: Path, base: Path, active: bool, depth: int) -> None:
        if depth > _DEPTH:
            raise ConnectError(f"{file}: Include is nested more than {_DEPTH} deep: does a file include itself?")
        try:
            lines = file.read_bytes().decode("utf-8-sig", "surrogateescape").splitlines()
        except OSError as error:
            raise ConnectError(f"cannot read ssh's configuration ({file}): {error.strerror}") from error
        outside = active
        for number, line in enumerate(lines, 1):
            where = f"{file}, line {number}"
            if not line.strip() or line.strip().startswith("#"):
                continue
            match = LINE.fullmatch(line)
            try:
                key = match[1].lower() if match else ""
                given = words(match[2]) if match else []
                if not match or not given:
                    raise ValueError(f"{line.strip()!r} has no value")
                given = [match[2]] if key == "proxycommand" else given
                if key == "host":
                    active = outside and self._is_host(given)
                elif key == "match":
                    active = outside and self._matches(given, where)
                elif key == "include":
                    for path in (path for pattern in given for path in included(pattern, base)):
                        self._file(path, base, active, depth + 1)
                elif active:
                    self._set_value(key, given, where)
            except ValueError as error:
                raise ConnectError(f"cannot read ssh's configuration: {where}: {error}") from error

    def _set_value(self, key: str, given: list[str], where: str) -> None:
        value = given[0]
        if (key in _TIMES and value != "none") or key in _WHOLE:
            try:
                seconds(value) if key in _TIMES else int(value)
            except ValueError as error:
                raise ValueError(f"{key} is {value!r}, which is no number") from error
        if key == "canonicalizehostname" and value.lower() not in ("no", "false"):
            self.remarks[f"{where}: CanonicalizeHostname is left out: it takes an ssh client to follow it"] = None
        elif key in _SEVERAL:
            self.said.setdefault(key, [])
            self.said[key] += [value] if value not in self.said[key] else []
        elif key in _LISTS:
            self.said.setdefault(key, given)
        elif not (key in ("proxycommand", "proxyjump") and {"proxycommand", "proxyjump"} & set(self.said)):
            self.said.setdefault(key, [value.lower() if key == "hostkeyalias" else value])

    def _is_host(self, patterns: list[str]) -> bool:
        if any(matches_pattern(one[1:], self._host) for one in patterns if one.startswith("!")):
            return False
        return any(matches_pattern(one, self._host) for one in patterns)

    def _matches(self, given: list[str], where: str) -> bool:
        holds = True
        for key, argument, negated in _criteria(given):
            if not holds and key == "exec":
                continue  # a program is not run where the block cannot hold any more
            found = self._criterion(key, argument)
            if found is None:
                if holds:
                    text = f"{where}: Match {' '.join(given)}: {key!r} cannot be judged here, so its block is left out"
                    self.remarks[text] = None
                return False
            holds = holds and found != negated
        return holds

    def _criterion(self, key: str, argument: str) -> Optional[bool]:
        """Whether it holds; None where that cannot be known."""
        if key in ("final", "canonical"):
            self._wants_final = self._wants_final or key == "final"
            return self._final
        if key == "exec":
            return self._exec(argument)
        user = self.said.get("user", [local_user()])[0]
        names = {"host": self.address.lower(), "originalhost": self.original, "user": user, "localuser": local_user()}
        if key == "all":
            return True
        return matches_pattern_list(argument, names[key]) if key in names else None

    def _exec(self, line: str) -> Optional[bool]:
        port = int(self.said.get("port", ["22"])[0])
        user, alias = self.said.get("user", [local_user()])[0], self.said.get("hostkeyalias", [None])[0]
        line = Tokens(self.original, self.address, port, user, alias).expand(line, "Match exec", variables=False)
        shell = os.environ.get("SHELL") or "/bin/sh"
        try:
            nothing = subprocess.DEVNULL
            done = subprocess.run([shell, "-c", line], stdin=nothing, stdout=nothing, timeout=_EXEC_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.returncode == 0


def _criteria(given: list[str]) -> Iterator[tuple[str, str, bool]]:
    """What a Match asks for, its argument, and whether it is the contrary that has to hold."""
    rest = list(given)
    while rest:
        word = rest.pop(0)
        negated = word.startswith("!")
        key, equals, argument = word.lstrip("!").partition("=")
        key = key.lower()
        if not equals and key not in ("all", "final", "canonical"):
            if not rest:
                raise ValueError(f"Match {key} has no value")
            argument = rest.pop(0)
        yield key, argument, negated
