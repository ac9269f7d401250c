"""What the commands that go to a board share: its name, the connection, and questions to the user."""

from __future__ import annotations

import contextlib
import difflib
import functools
import getpass
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from rk3588 import boards, simboard
from rk3588.commands import inventories
from rk3588.deploy.connection import Connection
from rk3588.errors import ConnectError, UsageError, printable

LOCAL = "local"
_OPTIONS = (
    click.option("--accept-new", is_flag=True, help="Trust the key of a board that is not known yet."),
    click.option("--ssh-config", type=click.Path(path_type=Path), help="Instead of ~/.ssh/config."),
    click.option("--hosts", type=click.Path(path_type=Path), help="Instead of ./hosts.yaml or the user's own."),
    click.option("--prefix", metavar="PATH", help="Where releases lie; else as it is, or /opt/rkchatd."),
)


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to reach a board."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def ask_secret(question: str) -> str | None:
    """A secret from the terminal; None where there is none."""
    if not os.isatty(0):
        return None
    try:
        return getpass.getpass(question)
    except EOFError:
        return None


def confirm(question: str) -> bool:
    return os.isatty(0) and click.confirm(question, err=True)


@contextlib.contextmanager
def needs_paramiko(otherwise: str) -> Iterator[None]:
    """UsageError in these words where the extra ``deploy`` is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("paramiko", "cryptography"):
            raise
        raise UsageError(otherwise) from error


def open_connection(name: str, accept_new: bool, ssh_config: Path | None, hosts: Path | None) -> Connection:
    """A connection to ``local``, to a host of hosts.yaml, to a simulated board that is up, or to user@address:port."""
    if name == LOCAL:
        from rk3588.deploy.local import LocalConnection

        return LocalConnection(ask_secret)
    if ssh_config is not None and not ssh_config.exists():
        raise UsageError(f"--ssh-config {ssh_config}: there is no such file; leave it out for ~/.ssh/config")
    with needs_paramiko("SSH needs paramiko: pip install 'rk3588[deploy]' (or --board local, on the board)"):
        from rk3588.deploy.ssh import config, connection

    def accept(question: str, new: bool) -> bool:
        if accept_new and new:
            click.echo(f"{question} Accepted.", err=True)
            return True
        return confirm(question)

    known = inventories.load(hosts)

    @functools.lru_cache
    def resolver(spec: str) -> config.Destination:
        """Of the board, and of its jump hosts."""
        if spec in known.hosts:
            found = config.resolve_host(known.host(spec), dict(known.hosts), ssh_config)
        else:
            found = config.resolve(spec, ssh_config)
        for remark in found.remarks:
            click.echo(printable(f"warning: {remark}"), err=True)
        return found

    simulated = simboard.find(name)
    if simulated and name in known.hosts:
        if simboard.is_alive(simulated.pid):
            raise UsageError(f"{name} is a board in {known.file} and a simulated one: end that one, or rename it")
        simulated = None
    if simulated:
        if not simboard.is_alive(simulated.pid):
            raise ConnectError(f"the simulated board {name} runs no more: start it again with `rk3588 board up {name}`")
        destination = config.Destination(**simulated.ssh)
    elif name not in known.hosts and (known.type_named(name) or known.with_memory(name)[0]):
        raise UsageError(f"{name} is a type of board: give one of yours, or user@address")
    else:
        destination = resolver(name)
    try:
        return connection.connect(destination, ask_secret, accept, resolver)
    except ConnectError as error:
        cause = error.__cause__
        if isinstance(cause, socket.gaierror) and name not in known.hosts and destination.address == name:
            _refuse_unknown(name, cause, known)
        raise


def _refuse_unknown(name: str, cause: socket.gaierror, known: boards.Boards) -> None:
    """UsageError for what is no board here and cannot be resolved, where it may only have been meant as a board."""
    ours = [*known.hosts, *(one.ssh["name"] for one in simboard.running())]
    like = difflib.get_close_matches(name, ours, 1)
    if like:
        raise UsageError(f"there is no board {name!r}, and the name cannot be resolved: did you mean {like[0]!r}?")
    if not set(name) & set("@.:") and cause.errno != socket.EAI_AGAIN:
        raise UsageError(
            f"there is no board {name!r}, and the name cannot be resolved: yours are added with `rk3588 board add "
            f"{name}` (hosts.yaml), simulated ones started with `rk3588 board up {name}`; or give user@address"
        )


def is_simulated(name: str, hosts: Path | None) -> bool:
    """Whether it is a simulated board that ``open_connection`` goes to."""
    return name != LOCAL and name not in boards.load(hosts).hosts and simboard.find(name) is not None


def how_to_reach(connection: Connection) -> tuple[str | None, tuple[str, ...]]:
    """The board's address, None for this machine, and the words that take OpenSSH's ssh there."""
    found = getattr(connection, "destination", None)
    return (found.address, found.openssh) if found else (None, ())


def progress_stream() -> Any:
    """stderr if it is a terminal, else None."""
    return sys.stderr if sys.stderr.isatty() else None
