"""``rk3588 releases``: what is on a board."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from rk3588.commands import connecting
from rk3588.deploy import deployment
from rk3588.deploy.state import BoardState, latest_first
from rk3588.errors import printable


@click.command()
@click.argument("name", metavar="HOST")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@connecting.connection_options
def command(name: str, as_json: bool, **given: Any) -> None:
    """The releases on HOST, the last to serve first; the current one is marked."""
    with connecting.open_connection(name, given["accept_new"], given["ssh_config"], given["hosts"]) as connection:
        facts, prefix = deployment.gather_facts(connection, given["prefix"])
        state = deployment.read_state(connection, prefix, facts.systemd is not None)
    if state.activating:
        text = f"{name}: an activation is still going on there: ask again when it has ended"
        click.echo(printable(text), err=True)
    rows = listed(state)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        mark = "*" if row["current"] else " "
        condition = "" if row["proven"] else "  never answered a chat"
        condition += "" if row["intact"] else "  DAMAGED: deploy it again"
        health = f"  {_health(state)}" if row["current"] else ""
        model = printable(f"{row['name']} {row['dtype']} ({row['runtime']})")
        size = f"{row['bytes'] / 1e6:9.1f} MB"
        click.echo(f"{mark} {printable(row['release'])}  {row['deployed']}  {size}  {model}{health}{condition}")
    if not rows:
        click.echo(printable(f"no release below {prefix}"), err=True)


def _health(state: BoardState) -> str:
    if state.ready:
        return "answers"
    return "does not answer yet" if state.activating else "does not answer"


def listed(state: BoardState) -> list[dict[str, Any]]:
    """Releases as plain rows, newest first."""
    rows = []
    for name in latest_first(state):
        content = state.releases[name]
        manifest = content["manifest"]
        files = manifest.get("files", {})
        rows.append(
            {
                "release": name,
                "current": name == state.current,
                "name": manifest.get("name", "?"),
                "dtype": manifest.get("dtype", "?"),
                "runtime": manifest.get("runtime", "?"),
                "deployed": time.strftime("%Y-%m-%d %H:%M", time.localtime(content["deployed"])),
                "bytes": sum(entry["size"] for entry in files.values()),
                "proven": bool(content["proven"]),
                "intact": bool(files) and all(content["files"].get(p) == f["sha256"] for p, f in files.items()),
            }
        )
    return rows
