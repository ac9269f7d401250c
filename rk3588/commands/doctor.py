"""``rk3588 doctor``: what a board is, what is wrong with it, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from rk3588 import bundle as bundles
from rk3588 import runtime as runtimes
from rk3588.commands import connecting
from rk3588.deploy import deployment, judge, sizes
from rk3588.deploy.findings import Need
from rk3588.deploy.release_bundle import with_runtime
from rk3588.errors import LibraryError, UsageError, printable, printable_json

_COLOURS = {"refuse": "red", "warn": "yellow", "info": "blue", "ok": "green"}


@contextmanager
def _shown_as_looking(name: str) -> Iterator[None]:
    """Every disk is searched for runtimes: that may take a while."""
    out = connecting.progress_stream()
    if out:
        out.write(printable(f"looking at {name} …"))
        out.flush()
    try:
        yield
    finally:
        if out:
            out.write("\r\x1b[K")


def _version(said: str | None) -> str:
    """Of the library that was given; "" where none was."""
    if said in (None, "npu"):
        return ""
    assert said is not None
    if runtimes.is_twin(said):
        runtimes.twin_file(said)  # there is one of that name
        return ""
    if not Path(said).exists():
        raise UsageError(f"--runtime {said}: there is no such file; give a librkllmrt.so, npu or sim")
    library = runtimes.read(Path(said))
    if library.simulated:
        raise LibraryError(f"{said} is the simulated runtime: say --runtime sim for it")
    return library.version


@click.command()
@click.argument("name", metavar="HOST")
@click.option("--bundle", "path", type=click.Path(path_type=Path), help="Whether there is room for this one.")
@click.option("--runtime", metavar="FILE|npu|sim", help="What is to run there: a librkllmrt.so, or sim-1.3 [as it is].")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
@connecting.connection_options
def command(name: str, path: Path | None, runtime: str | None, as_json: bool, **given: Any) -> int:
    """Look at HOST (a name of hosts.yaml, user@address or local): every fact judged, worst first.

    Changes nothing. With the library that is to run there, model, driver and chip are compared with what is known of
    its version. Exit code 1 when the board would be refused.
    """
    simulated = (runtime is not None and runtimes.is_twin(runtime)) or (
        runtime is None and connecting.is_simulated(name, given["hosts"])
    )
    need = Need(runtime=_version(runtime))
    if path:
        bundle = bundles.read(path)
        need = replace(
            need, memory=sizes.memory_needed(bundle, simulated), disk=sizes.disk_needed(bundle, simulated)
        )
        need = need if simulated else with_runtime(need, bundle, need.runtime)
    reach = (given["accept_new"], given["ssh_config"], given["hosts"])
    with connecting.open_connection(name, *reach) as connection, _shown_as_looking(name):
        facts, prefix = deployment.gather_facts(connection, given["prefix"], thorough=True)
        weak = deployment.prefix_findings(connection, facts, prefix)
    findings = [*weak, *judge.judge(facts, prefix, need, simulated)]
    if as_json:
        rows = [{key: value for key, value in asdict(finding).items() if key != "npu"} for finding in findings]
        click.echo(printable_json({"host": name, "findings": rows, "facts": asdict(facts)}))
    else:
        for finding in findings:
            level = click.style(f"{finding.level:<7}", fg=_COLOURS[finding.level])
            remedy = f" → {finding.remedy}" if finding.remedy else ""
            click.echo(level + printable(f"{finding.fact:<11} {finding.text}{remedy}"))
    return 1 if judge.refusals(findings) else 0
