"""The figure of ``rk3588 bench --plot``: each test as bars, beside those of an earlier run and what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from .results import Report, Row
from .tables import prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KINDS = (("pp", "prefill, tokens/s"), ("tg", "decode, tokens/s"), ("ttft", "time to the first token, ms"))


class _Bar(NamedTuple):
    label: str
    value: float
    below: float
    above: float


def draw(file: Path, report: Report, before: Optional[Report]) -> None:
    """Write the figure; ``rk3588.plot.check`` has looked at its name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [(head, [row for row in report.rows if row.kind == kind]) for kind, head in _KINDS]
    groups = [(head, rows) for head, rows in groups if rows]
    figure = Figure(figsize=(4 * max(1, len(groups)), 4), layout="constrained")
    FigureCanvasAgg(figure)
    old = {row.test: row for row in before.rows} if before else {}
    for number, (head, rows) in enumerate(groups):
        axes = figure.add_subplot(1, len(groups), number + 1)
        bars = [_bars(report, row, before, old.get(row.test)) for row in rows]
        _draw_group(axes, [row.test for row in rows], bars)
        axes.set_ylabel(head)
    figure.suptitle(str(report.about.get("model") or report.target))
    figure.savefig(file)


def _bars(report: Report, row: Row, before: Optional[Report], old: Optional[Row]) -> list[_Bar]:
    found = [_of(f"before, {before.date[:10]}", old)] if before and old else []
    found.append(_of("measured", row))
    said = prediction(report, row)
    if said:
        board = (report.about.get("predicted") or {}).get("board")
        low, high = said["value"] - said["low"], said["high"] - said["value"]
        found.append(_Bar(f"predicted, {board}", said["value"], max(low, 0.0), max(high, 0.0)))
    return found


def _of(label: str, row: Row) -> _Bar:
    mean, deviation = row.rate if row.kind != "ttft" else (ns / 1e6 for ns in row.ns)
    return _Bar(label, mean, deviation, deviation)


def _draw_group(axes: Axes, tests: Sequence[str], bars: Sequence[Sequence[_Bar]]) -> None:
    """Several bars a test, the same colour for the same label."""
    labels = list(dict.fromkeys(bar.label for group in bars for bar in group))
    width = 0.8 / len(labels)
    for number, label in enumerate(labels):
        found = [(at, bar) for at, group in enumerate(bars) for bar in group if bar.label == label]
        places = [at + (number - (len(labels) - 1) / 2) * width for at, _ in found]
        spread = [[bar.below for _, bar in found], [bar.above for _, bar in found]]
        axes.bar(places, [bar.value for _, bar in found], width, yerr=spread, capsize=3, label=label)
    axes.set_xticks(range(len(tests)), tests)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
