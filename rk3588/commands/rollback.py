"""``rk3588 rollback``: back to a release that is still on the board."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import click

from rk3588.commands import connecting
from rk3588.commands.deploy import ProgressDisplay
from rk3588.deploy import deployment
from rk3588.deploy.steps import describe_plan
from rk3588.errors import printable


@click.command()
@click.argument("name", metavar="HOST")
@click.option("--to", metavar="RELEASE", help="Which one; its first characters are enough. Else the one before.")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be run; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@connecting.connection_options
def command(name: str, to: str | None, only_plan: bool, as_json: bool, **given: Any) -> None:
    """Go back on HOST to the release before, or to another one; it has to answer a chat, as after a deployment."""
    with connecting.open_connection(name, given["accept_new"], given["ssh_config"], given["hosts"]) as connection:
        with closing(ProgressDisplay(as_json)) as display:
            steps, done = deployment.roll_back(connection, given["prefix"], to, display, only_plan=only_plan)
        if as_json:
            row = {"host": name, "release": steps.release, "commands": done.commands, "healthy": not only_plan}
            click.echo(json.dumps([row], indent=2))
        elif only_plan:
            click.echo(describe_plan(steps))
        else:
            click.echo(printable(f"{name}: release {steps.release} is current and answered a chat"), err=True)
