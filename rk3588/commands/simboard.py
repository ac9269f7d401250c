"""``rk3588 board up|down``: simulated boards."""

from __future__ import annotations

from collections.abc import Callable

import click

from rk3588 import simboard
from rk3588.commands import connecting, inventories
from rk3588.commands.waiting import ElapsedSeconds
from rk3588.deploy import shell
from rk3588.errors import UsageError, printable
from rk3588.simboard import SimBoard


@click.command()
@click.argument("name")
@click.option("--board", "kind", default="orange-pi-5-plus", show_default=True, help="What it says it is.")
@click.option("--systemd", is_flag=True, help="A container with systemd and OpenSSH (as root).")
def up(name: str, kind: str, systemd: bool) -> None:
    """Start a simulated board: then NAME is a board for doctor, deploy and the like.

    It has the device tree of an RK3588 board but no NPU: deploy with --runtime sim.
    """
    known = inventories.load(None)
    if name in known.hosts or name in known.boards:
        raise UsageError(f"{name!r} is one of your boards or a type of board: choose another name")
    board = known.board(kind)
    with connecting.needs_paramiko("simulated boards need paramiko: pip install 'rk3588[deploy]'"):
        if systemd:
            from rk3588.simboard import nspawn

            started = _with_progress(lambda tell: nspawn.up(name, board, progress=tell))
        else:
            from rk3588.simboard import control

            started = control.up(name, board)
    ssh = started.ssh
    click.echo(printable(f"{name} is up as {board.name}, SSH on {ssh['address']}:{ssh['port']}"), err=True)
    click.echo(shell.command("ssh", *ssh["openssh"]))


def _with_progress(start: Callable[[Callable[[str], None]], SimBoard]) -> SimBoard:
    """Each thing it is at, a line on stderr; on a terminal with the seconds."""
    clock = ElapsedSeconds(connecting.progress_stream())

    def tell(what: str) -> None:
        clock.stop()
        click.echo(what, err=True)
        clock.start()

    try:
        return start(tell)
    finally:
        clock.stop()


@click.command()
@click.argument("name")
def down(name: str) -> None:
    """End a simulated board, and everything that runs on it."""
    if simboard.find(name) is None:
        raise UsageError(f"there is no simulated board {name!r}")
    from rk3588.simboard import control

    control.down(name)
    click.echo(f"{name} is down", err=True)
