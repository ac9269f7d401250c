"""`python -m tests.bench.roofline FIGURES.json OUT.svg`: what was measured under what the machine can do.

Draws the file that `tests.bench.twin_vs_llama --json FIGURES.json` wrote (needs the extra [plot]). Across: operations
for each byte of weights that is read. Up: operations a second. The slanted roof is the memory's speed, the flat one
that of the int8 instruction from registers; both as measured in the same run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PHASES = ("decode", "prefill")
MARKERS = ("o", "s", "^", "D", "v", "P")


def points(row: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """For each phase operations by byte, and by second. A prompt's tokens read the weights once together."""
    tokens = {"decode": 1, "prefill": row["prompt"]}
    return {
        phase: (
            row[f"{phase}_operations"] * tokens[phase] / row["bytes"],
            row[f"{phase}_operations"] * row[f"{phase}_tok_s"],
        )
        for phase in PHASES
    }


def shares(rows: list[dict[str, Any]]) -> str:
    """The same as a table: how much of its roof each reaches."""
    lines = [f"{'model':<22} {'threads':>7} {'engine':<15} {'decode':>7} {'prefill':>8}   of the roof"]
    for row in rows:
        reached = []
        for intensity, speed in points(row).values():
            roof = min(intensity * row["memory_bytes_s"], row["int8_operations_s"] or float("inf"))
            reached.append(speed / roof)
        name = f"{row['model']:<22} {row['threads']:>7} {row['engine']:<15}"
        lines.append(f"{name} {reached[0]:>7.0%} {reached[1]:>8.0%}")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    threads = sorted({row["threads"] for row in rows})
    names = list(dict.fromkeys((row["model"], row["engine"]) for row in rows))
    models = list(dict.fromkeys(model for model, _ in names))
    engines = list(dict.fromkeys(engine for _, engine in names))
    figure = Figure(figsize=(5 * len(threads), 5), layout="constrained")
    FigureCanvasAgg(figure)
    for column, count in enumerate(threads):
        axes = figure.add_subplot(1, len(threads), column + 1)
        these = [row for row in rows if row["threads"] == count]
        memory = max(row["memory_bytes_s"] for row in these)
        top = max(row["int8_operations_s"] for row in these)
        across = [1.0, 1000.0]
        axes.loglog(across, [min(x * memory, top or float("inf")) / 1e9 for x in across], alpha=0)
        bend = [1.0, top / memory, 1000.0] if top else across
        axes.plot(bend, [min(x * memory, top or float("inf")) / 1e9 for x in bend], color="0.4")
        axes.annotate(f"memory {memory / 1e9:.0f} GB/s", (3, 2 * memory / 1e9), color="0.4")
        for row in these:
            marker = MARKERS[models.index(row["model"]) % len(MARKERS)]
            color = f"C{engines.index(row['engine'])}"
            for x, y in points(row).values():
                axes.plot([x], [y / 1e9], marker, color=color, markersize=5, alpha=0.8)
        axes.set_title(f"{count} thread{'s' * (count > 1)}")
        axes.set_xlabel("operations for each byte of weights")
        axes.set_ylabel("10⁹ operations a second")
    for index, model in enumerate(models):
        axes.plot([], [], MARKERS[index % len(MARKERS)], color="0.4", label=model)
    for index, engine in enumerate(engines):
        axes.plot([], [], "s", color=f"C{index}", label=engine)
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(file, dpi=100, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description="A roofline of what twin_vs_llama --json measured.")
    parser.add_argument("figures", type=Path)
    parser.add_argument("out", type=Path, help="a .svg or .png file")
    options = parser.parse_args()
    rows = json.loads(options.figures.read_text())
    print(shares(rows))
    draw(rows, options.out)


if __name__ == "__main__":
    main()
