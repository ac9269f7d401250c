"""What rows are called in tables and figures."""

from __future__ import annotations

from collections.abc import Sequence

from rk3588.bundle import Bundle

from .result import Accuracy


def short_names(rows: Sequence[tuple[Bundle, Accuracy]]) -> list[str]:
    """Without the model's name where all have it, with the activations' scales where they differ."""
    names = [found.path.absolute().name for found, _ in rows]
    start = f"{rows[0][0].name}-rk3588-"
    if all(name.startswith(start) for name in names):
        names = [name.removeprefix(start) for name in names]
    modes = {(str(found.path), result.act_scale) for found, result in rows}
    if len(modes) > len({found.path for found, _ in rows}):
        names = [f"{name}, {result.act_scale}" for name, (_, result) in zip(names, rows)]
    return names
