"""``rk3588 remove``: everything a deployment made, away."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import click

from rk3588.commands import connecting
from rk3588.commands.deploy import ProgressDisplay
from rk3588.deploy import deployment
from rk3588.errors import UsageError, printable


@click.command()
@click.argument("name", metavar="HOST")
@click.option("--yes", "sure", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@connecting.connection_options
def command(name: str, sure: bool, as_json: bool, **given: Any) -> None:
    """Take the daemon, all its releases, its user, its keys and its rules away from HOST."""
    with connecting.open_connection(name, given["accept_new"], given["ssh_config"], given["hosts"]) as connection:
        question = printable(f"Remove the daemon and all its releases and keys from {name}?")
        if not sure and not connecting.confirm(question):
            raise UsageError("not removed: say yes, or give --yes")
        with closing(ProgressDisplay(as_json)) as display:
            there = deployment.remove(connection, given["prefix"], display)
    if as_json:
        click.echo(json.dumps([{"host": name, "removed": there}], indent=2))
    else:
        click.echo(printable(f"{name}: {'removed' if there else 'there was nothing to remove'}"), err=True)
