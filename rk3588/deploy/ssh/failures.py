"""Where paramiko's exceptions become ours: whatever it is asked for, it may raise any of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import paramiko

from rk3588.errors import ConnectError

FAILURES = (paramiko.SSHException, EOFError, OSError)


@contextmanager
def as_connect_error(describe: Callable[[Exception], str]) -> Iterator[None]:
    """Raise a ConnectError for any of them, in the words that ``describe`` has for it."""
    try:
        yield
    except FAILURES as error:
        raise ConnectError(describe(error)) from error
