"""``rkconvert sweep``: a parser over its file and execution, and the table at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rkconvert.plan import available_cores
from rkconvert.signals import deferred_interrupts

from . import execute, sweep_file
from .cell_process import Result
from .cells import Cell, OpenedModels

_SHOWN = {"made": "made", "there": "there already", "failed": "failed"}


@click.command()
@click.argument("file", metavar="FILE.yaml", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Instead of the file's 'out'.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="At once.  [default: cores, by memory]")
@click.option("--dask", "address", metavar="ADDRESS", help="Run on the Dask cluster with this scheduler.")
@click.option("--community-names", is_flag=True, help="NAME-rk3588-DTYPE-opt-1-hybrid-ratio-0.0, and so its .rkllm.")
@click.option("--dry-run", is_flag=True, help="Print the plan and make nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the result as JSON.")
def sweep(
    file: Path,
    out: Path | None,
    jobs: int | None,
    address: str | None,
    community_names: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make every bundle that FILE.yaml stands for; what is there already is not made again.

    \b
    out: bundles                        # paths are relative to the file
    targets: [sim, rk3588]
    models: [user/repo, {model: ../my-model, name: Mine}]
    dtypes: [w8a8, w8a8_g128]
    hybrid_rates: [0, 0.5]
    optimization_levels: [0, 1]
    loras: [none, adapters/tuned:tuned:0.8]
    rotate: [none, hadamard]
    dataset: conversations.jsonl        # and lora_mode, npu_cores, algorithm, device, …, as for build

    A cell that fails stops no other; exit code 1 tells that one did. Interrupted at any moment, the same call goes on:
    what is there has to have been made of the same files, which are hashed for that.
    """
    whole, models, results = sweep_file.load(file, out, community_names), OpenedModels(), dict[Cell, Result]()
    count = len(whole.cells)

    def report(cell: Cell, result: Result) -> None:
        results[cell] = result
        if not dry_run and result.state != "there":
            reason = f": {result.reason}" if result.reason else ""
            click.echo(f"[{len(results)}/{count}] {cell.folder.name}: {_SHOWN[result.state]}{reason}", err=True)

    if dry_run:
        todo = dict(execute.unmade_cells(whole, models, report))
        rows = [_planned(cell, results.get(cell), todo.get(cell, 0)) for cell in whole.cells]
    else:
        with deferred_interrupts() as check, execute.locked(whole) as lock:
            waiting = execute.unmade_cells(whole, models, report, check)
            if address:
                execute.run_on_dask(waiting, address, report, check)
            else:
                execute.run_here(waiting, jobs or available_cores(), lock, report, check)
        rows = [_done(cell, results[cell]) for cell in whole.cells]
    click.echo(json.dumps(rows, indent=2) if as_json else table(rows))
    if any(row["state"] == "failed" for row in rows):
        raise SystemExit(1)


def _planned(cell: Cell, known: Result | None, size: int) -> dict[str, Any]:
    if known is None:
        return {**cell.facts(), "state": "to be made", "memory_bytes": size}
    return _done(cell, known)


def _done(cell: Cell, result: Result) -> dict[str, Any]:
    found = {**cell.facts(), "state": _SHOWN[result.state]}
    if result.bytes is not None:
        found["bytes"] = result.bytes
    return {**found, "reason": result.reason} if result.reason else found


def table(rows: list[dict[str, Any]]) -> str:
    """One line a cell, reasons below."""
    rotated = any(row["rotate"] for row in rows)
    head = ["model", "dtype", "hybrid", "opt", "lora", *(["rotate"] if rotated else []), "state", "size"]
    lines = [head]
    for row in rows:
        size = f"{row['bytes'] / 1e6:.1f} MB" if "bytes" in row else ""
        rate, level = f"{row['hybrid_rate']:g}", str(row["optimization_level"])
        turned = [row["rotate"] or "-"] if rotated else []
        lines.append([row["name"], row["dtype"], rate, level, row["lora"] or "-", *turned, row["state"], size])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    shown = ["  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines]
    reasons = [f"{Path(row['path']).name}: {row['reason']}" for row in rows if "reason" in row]
    return "\n".join([*shown, *(["", *reasons] if reasons else [])])
