"""What was measured, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rk3588.bundle import Bundle

from .names import short_names
from .result import Accuracy

_HEAD = ("perplexity", "KL", "median", "99 %", "largest", "top-1", "Δp RMS")
Row = tuple[Bundle, Accuracy]


def tables(rows: Sequence[Row]) -> str:
    one = rows[0][1]
    names = short_names(rows)
    lines = [(name, *_figures(result)) for name, (_, result) in zip(names, rows)]
    text = [_laid_out([(rows[0][0].name, *_HEAD), *lines])]
    reference = _with_error(one, "reference_perplexity", 3)
    text.append(
        f"{one.scored:,} tokens of {one.text}, against {one.reference}, whose perplexity is {reference}.\n"
        "KL in nats. What stands after ± is half of a 95 % interval."
    )
    if one.greedy:
        lines = [(name, *_greedy(result)) for name, (_, result) in zip(names, rows)]
        text.append(_laid_out([("", "greedy tokens alike", "of", "worst layers by signal-to-noise"), *lines]))
    for index, asked in enumerate(one.choices):
        lines = [(name, *_choices(result, index)) for name, (_, result) in zip(names, rows)]
        head = (f"{asked['name']}, {asked['questions']} questions", "acc", "fp32", "acc_norm", "fp32", "same answer")
        text.append(_laid_out([tuple(one.reference if cell == "fp32" else cell for cell in head), *lines]))
    return "\n\n".join(text)


def _laid_out(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines)]
    cells = [[cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths))] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _figures(result: Accuracy) -> tuple[str, ...]:
    return (
        _with_error(result, "perplexity", 3),
        _with_error(result, "kl", 5),
        f"{result.kl_median:.5f}",
        f"{result.kl_p99:.4f}",
        f"{result.kl_max:.3f}",
        f"{result.top1:.1%}",
        f"{result.p_change_rms:.2%}",
    )


def _greedy(result: Accuracy) -> tuple[str, ...]:
    worst = result.layers["worst"] if result.layers else []
    layers = ", ".join(f"{layer['layer']}: {layer['snr_db']:.1f} dB" for layer in worst)
    if not result.greedy:
        return ("", "", layers)
    low, high = result.greedy.get("interval", (0.0, 0.0))
    error = f" ± {(high - low) / 2:.1f}" if high else ""
    return (f"{result.greedy['mean']:.1f}{error}", str(result.greedy["most"]), layers)


def _choices(result: Accuracy, index: int) -> tuple[str, ...]:
    row = result.choices[index]
    cells = []
    for key in ("acc", "acc_norm"):
        error = f" ± {row[f'{key}_stderr']:.3f}" if f"{key}_stderr" in row else ""
        cells += [f"{row[key]:.3f}{error}", f"{row[f'reference_{key}']:.3f}"]
    return (*cells, f"{row['same_answer']:.1%}")


def _with_error(result: Accuracy, name: str, places: int) -> str:
    bounds = result.intervals.get(name)
    error = f" ± {(bounds[1] - bounds[0]) / 2:.{places}f}" if bounds else ""
    return f"{getattr(result, name):.{places}f}{error}"
