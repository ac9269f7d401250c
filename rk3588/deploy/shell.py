"""All quoting for shells, in one place: nothing else in this package builds a command from a name or a path."""

from __future__ import annotations

import secrets
import shlex
from dataclasses import dataclass, field

from rk3588.errors import DeployError

# Ordinary users have no sbin, where useradd and udevadm live; messages are parsed, so not translated; the daemon is
# another user and has to read what is written.
_ENVIRONMENT = 'umask 022; export LC_ALL=C PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"'


def command(*words: object) -> str:
    """A command line of these words, each of which reaches the program as it is; DeployError for a NUL in one."""
    texts = [str(word) for word in words]
    for text in texts:
        if "\0" in text:
            raise DeployError(f"{text!r} has a NUL in it, which no command can be given: rename it")
    return shlex.join(texts)


@dataclass(frozen=True)
class Marks:
    """What a command prints before and after all else, so that its answer is told from what a shell says around it.

    Start files of a login shell greet, set the terminal's title, count cookies; some say more at the end.
    """

    token: str = field(default_factory=lambda: f"rk{secrets.token_hex(8)}")

    @property
    def begin(self) -> bytes:
        return f"{self.token}begin\n".encode()

    @property
    def end(self) -> bytes:
        return f"{self.token}end".encode()

    def around(self, line: str) -> str:
        # In two words: a shell that prints what it runs (set -x) does not print a mark. On one line, for csh.
        begin = f"printf '%s%s\\n' {self.token} begin"
        end = f"printf '%s%s' {self.token} end"
        return f"{begin}; {begin} >&2; ({line} ); code=$?; {end}; {end} >&2; exit $code"


def wrapped(line: str, marks: Marks) -> str:
    """``line`` for a login shell of any kind: run by ``sh``, untranslated, with the administrator's programs found."""
    return command("sh", "-c", f"{_ENVIRONMENT}; {marks.around(line)}")
