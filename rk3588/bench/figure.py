"""The figure of ``rk3588 bench --plot``: each test as bars, beside those of an earlier run and what was predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from .results import Report, Row
from .tables import prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {"before": "#9aa5b1", "measured": "#1f77b4", "predicted": "#f2b872"}
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
    from matplotlib.patches import Patch

    groups = [(head, [row for row in report.rows if row.kind == kind]) for kind, head in _KINDS]
    groups = [(head, rows) for head, rows in groups if rows]
    figure = Figure(figsize=(4 * max(1, len(groups)), 4), layout="constrained")
    FigureCanvasAgg(figure)
    old = {row.test: row for row in before.rows} if before else {}
    bars = {row.test: _bars(report, row, before, old.get(row.test)) for _, rows in groups for row in rows}
    there = {bar.label for found in bars.values() for bar in found}
    labels = sorted(there, key=lambda label: [label.startswith(kind) for kind in _LABELS], reverse=True)
    for number, (head, rows) in enumerate(groups):
        axes = figure.add_subplot(1, len(groups), number + 1)
        _draw_group(axes, labels, {row.test: bars[row.test] for row in rows})
        axes.set_ylabel(head)
    figure.suptitle(str(report.about.get("model") or report.target))
    handles = [Patch(color=_colour(label), label=label) for label in labels]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(labels), fontsize="small")
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


def _draw_group(axes: Axes, labels: Sequence[str], bars: Mapping[str, Sequence[_Bar]]) -> None:
    """Those of a test side by side, in the same order and colours everywhere."""
    width = 0.8 / max(map(len, bars.values()))
    for at, found in enumerate(bars.values()):
        ordered = sorted(found, key=lambda bar: labels.index(bar.label))
        for number, bar in enumerate(ordered):
            place = at + (number - (len(ordered) - 1) / 2) * width
            spread = [[bar.below], [bar.above]]
            axes.bar(place, bar.value, 0.92 * width, yerr=spread, capsize=3, color=_colour(bar.label))
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set_xlim(-0.6, len(bars) - 0.4)
    axes.set_ylim(bottom=0)


def _colour(label: str) -> str:
    return next(colour for kind, colour in _LABELS.items() if label.startswith(kind))
