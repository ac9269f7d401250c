"""Results as text: llama-bench's table and its fields as CSV, JSON and JSON lines, and the tables beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from rk3588.errors import printable, printable_json

from . import compare
from .compare import Compared
from .results import Report, Row

FORMATS = ("md", "csv", "json", "jsonl")
_LISTS = ("samples_ns", "samples_ts")  # which llama-bench leaves out of its CSV, too
_NOT_TOLD = "not told"


def render(report: Report, kind: str, before: Optional[Report] = None) -> str:
    """Everything as text, without the last end of line; ``before``: the run to compare with."""
    if kind == "md":
        return printable(markdown(report, before))
    compared = {each.test: each for each in compare.compare(report, before)} if before else {}
    rows = [fields(report, row, compared.get(row.test)) for row in report.rows]
    rows += [_of_clients(report, each, compared.get(each["test"])) for each in report.clients]
    if kind == "csv":
        return printable(_csv(rows))
    if kind == "json":
        return printable_json(rows)
    return "\n".join(printable_json(row, indent=None) for row in rows)


def fields(report: Report, row: Row, other: Optional[Compared]) -> dict[str, Any]:
    """One test in llama-bench's names, and what it has none for."""
    mean_ns, deviation_ns = row.ns
    mean_ts, deviation_ts = row.rate
    predicted = prediction(report, row) or {}
    return {
        **_head(report, row.test), "n_prompt": row.n_prompt, "n_gen": row.n_gen, "avg_ns": round(mean_ns),
        "stddev_ns": round(deviation_ns), "avg_ts": round(mean_ts, 6), "stddev_ts": round(deviation_ts, 6),
        "samples_ns": [sample.ns for sample in row.samples], "samples_ts": [round(s.rate, 6) for s in row.samples],
        "n_generated": sum(sample.tokens for sample in row.samples), "n_answers": sum(s.answers for s in row.samples),
        "predicted_board": (report.about.get("predicted") or {}).get("board") if predicted else None,
        "predicted": predicted.get("value"), "predicted_low": predicted.get("low"),
        "predicted_high": predicted.get("high"), "ratio": other and round(other.ratio, 4),
        "verdict": other and other.verdict,
    }  # fmt: skip


def _head(report: Report, test: str) -> dict[str, Any]:
    about = report.about
    return {
        "test": test, "model_filename": about.get("file"), "model_type": about.get("model"),
        "model_size": about.get("bytes"), "model_n_params": about.get("params"), "backends": about.get("backend"),
        "n_threads": about.get("threads"), "cpu_info": about.get("cpu"), "rss": about.get("resident"),
        "runtime_memory": about.get("runtime_bytes"),
        "test_time": report.date,
    }  # fmt: skip


def _of_clients(report: Report, found: dict[str, Any], other: Optional[Compared]) -> dict[str, Any]:
    times = {f"{n}_{p}": round(ms, 2) for n in ("ttft_ms", "queue_ms") for p, ms in found[n].items()}
    counts = {name: found[name] for name in ("clients", "requests", "failed", "queue_from")}
    head = _head(report, found["test"])
    return {**head, "avg_ns": found["ns"], "avg_ts": round(found["rate"], 6), "n_generated": found["tokens"], **counts,
            **times, "ratio": other and round(other.ratio, 4), "verdict": other and other.verdict}  # fmt: skip


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in _LISTS]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, quoting=csv.QUOTE_ALL, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def prediction(report: Report, row: Row) -> Optional[dict[str, float]]:
    """Of this test, or of all of its kind; None where there is none. Of ``ttft``: ms."""
    said = report.about.get("predicted")
    if not isinstance(said, dict):
        return None
    tests = said.get("tests")
    name = {"pp": "prefill_tok_s", "tg": "decode_tok_s"}.get(row.kind, "")
    found = tests.get(row.test) if isinstance(tests, dict) else said.get(name)
    sound = isinstance(found, dict) and all(isinstance(found.get(n), (int, float)) for n in ("value", "low", "high"))
    return found if sound else None


def markdown(report: Report, before: Optional[Report]) -> str:
    """All tables that there is something for."""
    parts = [_speeds(report), _summary(report), _predictions(report), _clients(report), _conditions(report)]
    if before is not None:
        parts.append(_comparison(report, before))
    return "\n\n".join(part for part in parts if part)


Column = tuple[str, bool, Sequence[str]]  # its head, whether it stands to the right, its cells


def table(columns: Iterable[Column]) -> str:
    """One in Markdown, aligned for a terminal."""
    columns = [(head, right, [cell.replace("|", "\\|") for cell in cells]) for head, right, cells in columns]
    widths = [max(3, len(head), *map(len, cells)) for head, _, cells in columns]
    rules = ["-" * (width - 1) + ":" if right else "-" * width for (_, right, _), width in zip(columns, widths)]
    rows = [[head for head, _, _ in columns], rules, *map(list, zip(*(cells for _, _, cells in columns)))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if right else c.ljust(w) for c, w, (_, right, _) in zip(row, widths, columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _speeds(report: Report) -> str:
    """llama-bench's own table."""
    rows = [row for row in report.rows if row.kind != "ttft"]
    if not rows:
        return ""
    about, n = report.about, len(rows)
    size, params = about.get("bytes"), about.get("params")
    return table([
        ("model", False, [str(about.get("model") or _NOT_TOLD)] * n),
        ("size", True, [f"{size / (1 << 20):.2f} MiB" if size else _NOT_TOLD] * n),
        ("params", True, [_params(params)] * n),
        ("backend", False, [str(about.get("backend") or _NOT_TOLD)] * n),
        ("threads", True, [str(about.get("threads") or "-")] * n),
        ("test", True, [_name(row) for row in rows]),
        ("t/s", True, [_plus_minus(*row.rate) for row in rows]),
    ])  # fmt: skip


def _name(row: Row) -> str:
    """The test's, and the tokens its prompts really had where these are not the same."""
    asked = row.test[len(row.kind) :]
    return row.test if row.kind == "tg" or str(row.n_prompt) == asked else f"{row.test} ({row.n_prompt})"


def _params(params: Optional[float]) -> str:
    if not params:
        return _NOT_TOLD
    return f"{params / 1e9:.2f} B" if params >= 1e9 else f"{params / 1e6:.2f} M"


def _plus_minus(mean: float, deviation: float) -> str:
    return f"{mean:.2f} ± {deviation:.2f}"


def _summary(report: Report) -> str:
    """As the published tables of Llama 3.2's quantised models have it."""
    decode, first, prefill = (report.row(kind) for kind in ("tg", "ttft", "pp"))
    if first is None:
        return ""
    about = report.about
    size, resident, own = (about.get(name) for name in ("bytes", "resident", "runtime_bytes"))
    columns: list[Column] = [
        ("model", False, [str(about.get("model") or _NOT_TOLD)]),
        ("decode, t/s", True, [f"{decode.rate[0]:.1f}" if decode else "-"]),
        (f"TTFT ({first.n_prompt} tokens), ms", True, [_plus_minus(*(ns / 1e6 for ns in first.ns))]),
        ("prefill, t/s", True, [f"{prefill.rate[0]:.1f}" if prefill else "-"]),
        ("model size, MB", True, [f"{size / 1e6:.0f}" if size else _NOT_TOLD]),
        ("RSS, MB", True, [f"{resident / 1e6:.0f}" if resident else _NOT_TOLD]),
    ]  # fmt: skip
    return table([*columns, ("the runtime's own figure, MB", True, [f"{own / 1e6:.0f}"])] if own else columns)


def _predictions(report: Report) -> str:
    said = report.about.get("predicted")
    rows = [(row, found) for row in report.rows if (found := prediction(report, row))]
    if not rows or not isinstance(said, dict):
        return ""
    board = str(said.get("board") or "a board")
    measured = [f"{row.ns[0] / 1e6:.0f} ms" if row.kind == "ttft" else f"{row.rate[0]:.1f} t/s" for row, _ in rows]
    bounds = [f"{p['value']:.1f} ({p['low']:.1f}–{p['high']:.1f})" for _, p in rows]
    told = table([
        ("test", True, [_name(row) for row, _ in rows]), ("measured", True, measured),
        (f"predicted, {board} (90 %)", True, bounds),
    ])  # fmt: skip
    if said.get("is_this_board") is True and not report.about.get("simulated"):
        return told
    where = "a simulated runtime, on the CPU of the machine it ran on" if report.about.get("simulated") else "not that"
    whose = f"the {board}" if said.get("board") else board
    return f"{told}\n\nThe prediction is for the NPU of {whose}; what was measured is {where}."


def _clients(report: Report) -> str:
    rows = report.clients
    if not rows:
        return ""
    from_server = all(row["queue_from"] == "server" for row in rows)
    queue = "queue, ms" if from_server else "queue, ms*"
    told = table([
        ("clients", True, [str(row["clients"]) for row in rows]),
        ("answers", True, [str(row["requests"]) for row in rows]),
        ("failed", True, [str(row["failed"]) for row in rows]),
        ("t/s of all", True, [f"{row['rate']:.2f}" for row in rows]),
        ("TTFT, ms: p50", True, [f"{row['ttft_ms']['p50']:.0f}" for row in rows]),
        ("p90", True, [f"{row['ttft_ms']['p90']:.0f}" for row in rows]),
        ("p99", True, [f"{row['ttft_ms']['p99']:.0f}" for row in rows]),
        (f"{queue}: p50", True, [f"{row['queue_ms']['p50']:.0f}" for row in rows]),
        ("p90", True, [f"{row['queue_ms']['p90']:.0f}" for row in rows]),
    ])  # fmt: skip
    return told if from_server else f"{told}\n\n\\* what a client waited beyond one that is alone."


def _conditions(report: Report) -> str:
    """Clocks, governors and temperatures, before and after."""
    columns = [_condition(report.readings.get(when, {})) for when in ("before", "after")]
    names = list(dict.fromkeys(name for column in columns for name in column))
    if not names:
        return ""
    cells = [[column.get(name, "-") for name in names] for column in columns]
    return table([("", False, names), ("before", True, cells[0]), ("after", True, cells[1])])


def _condition(readings: dict[str, Any]) -> dict[str, str]:
    found = {}
    clocks = readings.get("clocks")
    for clock in clocks if isinstance(clocks, list) else ():
        if isinstance(clock, dict) and isinstance(clock.get("hertz"), (int, float)):
            governor = f" {clock['governor']}" if clock.get("governor") else ""
            found[f"{clock.get('name')} clock"] = f"{clock['hertz'] / 1e6:.0f} MHz{governor}"
    heat = readings.get("temperatures")
    for zone, degrees in (heat if isinstance(heat, dict) else {}).items():
        if isinstance(degrees, (int, float)):
            found[f"{zone} temperature"] = f"{degrees:.1f} °C"
    return found


def _comparison(report: Report, before: Report) -> str:
    rows = compare.compare(report, before)
    if not rows:
        return f"No test of this run was in that of {before.date}."
    told = table([
        ("test", True, [row.test for row in rows]),
        ("before, t/s", True, [_plus_minus(*row.old) for row in rows]),
        ("now, t/s", True, [_plus_minus(*row.new) for row in rows]),
        ("ratio", True, [f"{row.ratio:.3f}" for row in rows]),
        ("95 %", True, ["-" if row.verdict == compare.UNKNOWN else f"{row.low:.3f}–{row.high:.3f}" for row in rows]),
        ("", False, [row.verdict for row in rows]),
    ])  # fmt: skip
    other = compare.differences(report, before)
    return f"{told}\n\nNot like for like: {'; '.join(other)}." if other else told

