"""``rk3588 board list|show|add|rm|up|down``: the catalogue of boards, the user's own, and simulated ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rk3588 import boards, inventory, lazy
from rk3588 import simboard as simulated
from rk3588.boards import BoardType, Host
from rk3588.commands import inventories, simboard
from rk3588.errors import UsageError, printable, printable_json
from rk3588.simboard import SimBoard

HOSTS_OPTION = click.option(
    "--hosts", "file", type=click.Path(path_type=Path), help="Inventory, instead of ./hosts.yaml or the user's own."
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@click.group(cls=lazy.LazyGroup)
def board() -> None:
    """Board types, and your own boards (hosts).

    Your boards stand in hosts.yaml, in the current folder or in ~/.config/rk3588/ (or where RK3588_HOSTS says):

    \b
    hosts:
      kitchen:
        board: rock-5b
        address: 192.168.1.20
        user: radxa
        groups: [home]
    """


board.add_command(simboard.up)
board.add_command(simboard.down)


@board.command("list")
@HOSTS_OPTION
@JSON_OPTION
def list_boards(file: Path | None, as_json: bool) -> None:
    """All board types, all hosts, and simulated boards that are up."""
    known = inventories.load(file)
    if as_json:
        described = {
            "boards": [describe_board(b) for b in known.boards.values()],
            "hosts": [describe_host(h) for h in known.hosts.values()],
            "simulated": [describe_simulated(s) for s in simulated.running()],
        }
        click.echo(printable_json(described))
        return
    rows = [("BOARD", "NAME", "SOC", "RAM GB")]
    rows += [(b.id, b.name, b.soc.name, _ram(b)) for b in known.boards.values()]
    click.echo(printable(_columns(rows)))
    if known.hosts:
        lines = [("HOST", "BOARD", "ADDRESS", "GROUPS")]
        lines += [(h.name, h.board.id, _login(h), " ".join(h.groups)) for h in known.hosts.values()]
        click.echo("\n" + printable(_columns(lines)))
        click.echo(printable(f"hosts from {known.file}"), err=True)
    up = [describe_simulated(one) for one in simulated.running()]
    if up:
        lines = [("SIMULATED", "KIND", "ADDRESS", "")]
        lines += [(one["host"], one["kind"], f"{one['address']}:{one['port']}", "") for one in up]
        click.echo("\n" + printable(_columns(lines)))


@board.command()
@click.argument("name")
@HOSTS_OPTION
@JSON_OPTION
def show(name: str, file: Path | None, as_json: bool) -> None:
    """All that is known of a board type, a host, or a simulated board."""
    known = inventories.load(file)
    up = next((one for one in simulated.running() if one.ssh["name"] == name), None)
    if name in known.hosts:
        facts = {**describe_host(known.host(name)), "type": describe_board(known.board(name))}
    elif up:
        facts = describe_simulated(up)
    else:
        facts = describe_board(known.board(name))
    if as_json:
        click.echo(printable_json(facts))
    else:
        click.echo(printable(_lines(facts)))


@board.command()
@click.argument("name")
@click.option("--board", "kind", required=True, metavar="TYPE", help="Its type: one of `rk3588 board list`.")
@click.option("--address", metavar="HOST", help="Where it is; NAME itself if not given.")
@click.option("--user", help="Who to be on it; else as ssh is configured.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of its SSH server; 22 if not given.")
@click.option("--key", metavar="FILE", help="Private key to use.")
@click.option("--jump", metavar="HOST", help="Host to go through: one of yours, or user@address:port.")
@click.option("--group", "groups", multiple=True, help="A group it belongs to; may be repeated.")
@click.option("--ram", "ram_gb", type=click.IntRange(1, 1024), metavar="GB", help="Its memory.")
@click.option(
    "--bandwidth", "bandwidth_gb_s", type=float, metavar="GB/S", help="Of its memory, as `rk3588 doctor` measures it."
)
@click.option("--project", is_flag=True, help="Into ./hosts.yaml, made if it is not there.")
@HOSTS_OPTION
def add(name: str, kind: str, project: bool, file: Path | None, **fields: Any) -> None:
    """Add one of your boards to hosts.yaml; prints the file's path."""
    if project and file:
        raise UsageError("give --project or --hosts, not both")
    listed_in = file or (Path(boards.HOSTS) if project else boards.find_inventory() or boards.user_file())
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items() if value}
    inventory.add_host(listed_in, name, {"board": kind, **given})
    click.echo(listed_in)


@board.command("rm")
@click.argument("name")
@HOSTS_OPTION
def remove(name: str, file: Path | None) -> None:
    """Take one of your boards out of hosts.yaml; prints the file's path. The board itself stays as it is."""
    known = inventories.load(file)
    listed_in = file or known.file
    if name not in known.hosts:
        if simulated.find(name):
            raise UsageError(f"{name} is a simulated board: rk3588 board down {name} ends it")
        if known.type_named(name):
            raise UsageError(f"{name} is a type of board, which stays: only boards of yours can be removed")
    if listed_in is None:
        raise UsageError(f"there is no host {name!r}: no {boards.HOSTS} was found")
    inventory.remove_host(listed_in, name)
    click.echo(listed_in)


def describe_board(board: BoardType) -> dict[str, Any]:
    """A board type for JSON."""
    facts: dict[str, Any] = {
        "board": board.id,
        "name": board.name,
        "soc": board.soc.name,
        "npu_cores": board.soc.npu_cores,
        "ram_gb": list(board.ram_gb),
        "compatible": list(board.compatible),
        "models": list(board.models),
        "ddr_gb_s": {str(mhz): list(pair) for mhz, pair in board.soc.ddr_gb_s.items()},
    }
    said = {"bandwidth_gb_s": board.bandwidth_gb_s, "notes": board.notes}
    return {**facts, **{key: value for key, value in said.items() if value}}


def describe_host(host: Host) -> dict[str, Any]:
    """A host for JSON; what its entry does not say is absent."""
    facts: dict[str, Any] = {"host": host.name, "board": host.board.id, "address": host.address, "port": host.port}
    said = {
        "user": host.user,
        "key": str(host.key) if host.key else None,
        "jump": host.jump,
        "groups": list(host.groups),
        "ram_gb": host.ram_gb,
        "bandwidth_gb_s": host.bandwidth_gb_s,
    }
    return {**facts, **{key: value for key, value in said.items() if value}}


def describe_simulated(one: SimBoard) -> dict[str, Any]:
    """A simulated board that is up, for JSON."""
    kind = {"server": "user", "nspawn": "systemd"}[one.kind]
    return {"host": one.ssh["name"], "kind": kind, "address": one.ssh["address"], "port": one.ssh["port"]}


def _ram(board: BoardType) -> str:
    return " ".join(map(str, board.ram_gb))


def _login(host: Host) -> str:
    user = f"{host.user}@" if host.user else ""
    return f"{user}{host.address}" + (f":{host.port}" if host.port != 22 else "")


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def _lines(facts: dict[str, Any], indent: str = "") -> str:
    """Facts as ``key  value`` lines; clocks and bandwidths in words."""
    lines = []
    for key, value in facts.items():
        if key == "type":
            lines.append("\n" + _lines(value, indent))
        elif key == "ddr_gb_s":
            for mhz, (low, high) in value.items():
                span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
                lines.append(f"{indent}{f'at {mhz} MHz':12}{span} GB/s")
        elif key == "bandwidth_gb_s":
            lines.append(f"{indent}{'memory':12}{value:g} GB/s")
        elif value:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{key:12}{text}")
    return "\n".join(lines)
