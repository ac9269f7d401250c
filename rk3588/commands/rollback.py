"""``rk3588 rollback``: back to a release that is still on the board."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import click

from rk3588.commands import connecting
from rk3588.commands.deploy import ProgressDisplay
from rk3588.deploy import deployment
from rk3588.deploy.state import BoardState, latest_first
from rk3588.deploy.steps import describe_plan
from rk3588.errors import UsageError, printable


@click.command(context_settings={"allow_extra_args": True})
@click.argument("name", metavar="HOST")
@click.option("--to", metavar="RELEASE", help="Which one; its first characters are enough. Else the one before.")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be run; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@connecting.connection_options
@click.pass_context
def command(ctx: click.Context, /, name: str, to: str | None, only_plan: bool, as_json: bool, **given: Any) -> None:
    """Go back on HOST to the release that served before, or to another one.

    It has to answer a chat, as after a deployment. Called twice, it is where it was: --to says which one is meant.
    """
    if ctx.args:
        raise UsageError(f"a release is said with --to: rk3588 rollback {name} --to {ctx.args[0]}")
    with connecting.open_connection(name, given["accept_new"], given["ssh_config"], given["hosts"]) as connection:
        with closing(ProgressDisplay(as_json)) as display:
            steps, done, before = deployment.roll_back(connection, given["prefix"], to, display, only_plan=only_plan)
        if as_json:
            row = {"host": name, "release": steps.release, "commands": done.commands, "healthy": not only_plan}
            click.echo(json.dumps([row], indent=2))
        elif only_plan:
            click.echo(describe_plan(steps))
        else:
            click.echo(printable(f"{name}: {_told(steps.release, before)}"), err=True)


def _told(release: str, before: BoardState) -> str:
    """What came of it, and which other releases there are to go to."""
    manifest = before.releases[release]["manifest"]
    what = f"release {release} ({manifest.get('name', '?')} {manifest.get('dtype', '?')}) is current"
    told = f"{what} and answered a chat" + (f"; before it was {before.current}" if before.current != release else "")
    others = [name for name in latest_first(before) if name != release]
    return told + (f". --to RELEASE goes to another: {', '.join(others)}" if others else "")
