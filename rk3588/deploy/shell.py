"""All quoting for shells, in one place: nothing else in this package builds a command from a name or a path."""

from __future__ import annotations

import shlex

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


def wrapped(line: str) -> str:
    """``line`` for a login shell of any kind: run by ``sh``, untranslated, with the administrator's programs found."""
    return command("sh", "-c", f"{_ENVIRONMENT}; {line}")
