"""Fit the coefficients of rk3588/predict.py to the published figures: `python -m tests.bench.predict_fit [--check]`.

Writes rk3588/data/coefficients.json from rk3588/data/rk3588_published.csv; with --check compares and writes nothing.
Least squares on the relative error. Intervals are 90 % prediction intervals from what each model's rows miss by when
that model is left out of the fit; Student's t with one degree of freedom less than there are models.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "rk3588" / "data"
OUT = DATA / "coefficients.json"
RUNTIME = "rknn-llm release-v1.1.1 README"  # the release whose memory we predict
UNITS = {"GiB": 2.0**30, "MiB": 2.0**20}


@dataclass(frozen=True)
class Row:
    """One published measurement, with the sizes that the formula needs."""

    source: str
    model: str
    dtype: str
    prompt: int
    new: int
    ttft_ms: float
    decode_ms: float
    memory: float | None  # bytes
    layers: int
    linear_params: int
    lm_head_params: int
    kv_bytes_per_token: int
    attention_width: int = 0  # only for prompts longer than any published

    @property
    def group(self) -> int:
        return int(self.dtype.partition("_g")[2] or 0)


def rows() -> list[Row]:
    """All published rows."""
    with (DATA / "rk3588_published.csv").open(encoding="utf-8", newline="") as file:
        return [row_of(line) for line in csv.DictReader(file)]


def row_of(line: dict[str, str]) -> Row:
    """A row out of a line of the file."""
    return Row(
        source=line["source"],
        model=line["model"],
        dtype=line["dtype"],
        prompt=int(line["prompt_tokens"]),
        new=int(line["new_tokens"]),
        ttft_ms=float(line["ttft_ms"]),
        decode_ms=1e3 / float(line["decode_tok_s"]),
        memory=float(line["memory"]) * UNITS[line["memory_unit"]] if line["memory"] else None,
        layers=int(line["layers"]),
        linear_params=int(line["linear_params"]),
        lm_head_params=int(line["lm_head_params"]),
        kv_bytes_per_token=int(line["kv_bytes_per_token"]),
    )


def least_squares(terms: Sequence[Sequence[float]], measured: Sequence[float]) -> list[float]:
    """Coefficients that minimise the squared relative error: normal equations, solved by elimination."""
    scaled = [[t / y for t in row] for row, y in zip(terms, measured, strict=True)]
    n = len(scaled[0])
    system = [[sum(r[i] * r[j] for r in scaled) for j in range(n)] + [sum(r[i] for r in scaled)] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(system[k][i]))
        system[i], system[pivot] = system[pivot], system[i]
        for k in range(n):
            if k != i:
                factor = system[k][i] / system[i][i]
                system[k] = [a - factor * b for a, b in zip(system[k], system[i], strict=True)]
    return [system[i][n] / system[i][i] for i in range(n)]


def decode_terms(row: Row) -> list[float]:
    """What decode time is linear in: giga bytes moved, layers."""
    kv = row.kv_bytes_per_token * (row.prompt + row.new / 2)
    return [(row.linear_params + row.lm_head_params + kv) / 1e9, float(row.layers)]


def prefill_terms(row: Row) -> list[float]:
    """What TTFT is linear in: giga weights times tokens, layers."""
    return [row.linear_params / 1e9 * row.prompt, float(row.layers)]


@dataclass(frozen=True)
class Speed:
    """A fitted time: `base` for its terms, `group_ns` by dtype for what each group adds."""

    terms: Callable[[Row], list[float]]
    measured: Callable[[Row], float]
    groups: Callable[[Row], float]  # how many groups the row has worked on, in millions
    base: list[float]
    group_ns: dict[str, float]

    def ms(self, row: Row) -> float:
        base = math.fsum(c * t for c, t in zip(self.base, self.terms(row), strict=True))
        return base + self.group_ns.get(row.dtype, 0.0) * (self.groups(row) if row.group else 0.0)


def fit_decode(data: Sequence[Row]) -> Speed:
    """The time of one token."""
    return _fit(data, decode_terms, lambda r: r.decode_ms, lambda r: r.linear_params / r.group / 1e6)


def fit_prefill(data: Sequence[Row]) -> Speed:
    """The time to the first token."""
    return _fit(data, prefill_terms, lambda r: r.ttft_ms, lambda r: r.linear_params / r.group / 1e6 * r.prompt)


def _fit(
    data: Sequence[Row],
    terms: Callable[[Row], list[float]],
    measured: Callable[[Row], float],
    groups: Callable[[Row], float],
) -> Speed:
    plain = [r for r in data if not r.group]
    base = least_squares([terms(r) for r in plain], [measured(r) for r in plain])
    speed = Speed(terms, measured, groups, base, {})
    for dtype in sorted({r.dtype for r in data if r.group}):
        chosen = [r for r in data if r.dtype == dtype]
        rest = [(groups(r) / measured(r), 1 - speed.ms(r) / measured(r)) for r in chosen]
        speed.group_ns[dtype] = _one_unknown(rest)
    return speed


def _one_unknown(pairs: Sequence[tuple[float, float]]) -> float:
    """Least squares for y = c x."""
    return math.fsum(x * y for x, y in pairs) / math.fsum(x * x for x, _ in pairs)


def left_out(data: Sequence[Row], fit: Callable[[Sequence[Row]], Speed]) -> list[tuple[Row, float]]:
    """Each row with predicted time / measured time, its model left out of the fit."""
    found = []
    for model in dict.fromkeys(r.model for r in data):
        speed = fit([r for r in data if r.model != model])
        found += [(r, speed.ms(r) / speed.measured(r)) for r in data if r.model == model]
    return found


def interval(ratios: Sequence[tuple[Row, float]]) -> list[float]:
    """Factors from a predicted speed to the ends of its 90 % interval."""
    logs = [math.log(ratio) for _, ratio in ratios]
    models = len({r.model for r, _ in ratios})
    half = student_t(0.95, models - 1) * statistics.stdev(logs) * math.sqrt(1 + 1 / models)
    middle = statistics.fmean(logs)
    return [math.exp(middle - half), math.exp(middle + half)]


def student_t(p: float, freedom: int) -> float:
    """Quantile of Student's t: Simpson's rule over its density, and bisection."""
    scale: float = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    def below(t: float) -> float:
        n = 400
        values = [math.pow(1 + (t * i / n) ** 2 / freedom, -(freedom + 1) / 2) for i in range(n + 1)]
        inner = 4 * math.fsum(values[1:-1:2]) + 2 * math.fsum(values[2:-1:2])
        return 0.5 + scale * (values[0] + inner + values[-1]) * t / n / 3

    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < p else (low, middle)
    return low


def fit_memory(data: Sequence[Row]) -> dict[str, float]:
    """Memory without KV, of the rows of runtime 1.1.1; then what a group adds."""
    published = [r for r in data if r.source == RUNTIME]
    plain = [r for r in published if not r.group]
    base = least_squares([_memory_terms(r) for r in plain], [r.memory or 0 for r in plain])
    rest = []
    for r in published:
        if r.group and r.memory:
            known = math.fsum(c * t for c, t in zip(base, _memory_terms(r), strict=True))
            rest.append(((r.linear_params + r.lm_head_params) / r.group / r.memory, 1 - known / r.memory))
    return {
        "bytes_per_weight": base[0],
        "bytes_per_embedding": base[1],
        "runtime_bytes": base[2] * 1e6,
        "bytes_per_group": _one_unknown(rest),
    }


def _memory_terms(row: Row) -> list[float]:
    return [float(row.linear_params + row.lm_head_params), float(row.lm_head_params), 1e6]


def intervals(data: Sequence[Row], fit: Callable[[Sequence[Row]], Speed]) -> dict[str, list[float]]:
    """By dtype; `small` is what the smallest model is missed by, as far in the other direction too."""
    ratios = left_out(data, fit)
    found = {d: interval([x for x in ratios if x[0].dtype == d]) for d in sorted({r.dtype for r in data})}
    smallest = min(data, key=lambda r: r.linear_params)
    missed = max(abs(math.log(ratio)) for r, ratio in ratios if r.model == smallest.model)
    return {**found, "small": [math.exp(-missed), math.exp(missed)]}


def coefficients() -> dict[str, Any]:
    """All that rk3588/predict.py reads, rounded to five digits."""
    data = rows()
    plain = [r for r in data if not r.group]
    decode, prefill = fit_decode(data), fit_prefill(data)
    by_size = sorted({(r.linear_params, r.model) for r in plain})
    smallest = by_size[0][1]
    ratios = left_out(plain, fit_decode)
    result: dict[str, Any] = {
        "decode": {
            "bandwidth_gb_s": 1e3 / decode.base[0],
            "layer_ms": decode.base[1],
            "group_ns": decode.group_ns,
        },
        "prefill": {
            "ms_per_giga_weight": prefill.base[0],
            "layer_ms": prefill.base[1],
            "group_ns": prefill.group_ns,
        },
        "memory": fit_memory(data),
        "interval": {"decode": intervals(data, fit_decode), "prefill": intervals(data, fit_prefill)},
        "range": {
            "linear_params": [by_size[0][0], by_size[-1][0]],
            "dense_from": by_size[1][0],
            "memory_from": min(r.linear_params for r in data if r.source == RUNTIME),
            "smallest": smallest,
            "smallest_error": max(abs(ratio - 1) for r, ratio in ratios if r.model == smallest),
            "prompt_tokens": [min(r.prompt for r in plain), max(r.prompt for r in plain)],
        },
    }
    return {"made_by": "tests/bench/predict_fit.py from rk3588_published.csv", **_rounded(result)}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main(arguments: list[str]) -> int:
    text = json.dumps(coefficients(), indent=2) + "\n"
    if arguments == ["--check"]:
        same = OUT.is_file() and OUT.read_text(encoding="utf-8") == text
        print(f"{OUT.name} is {'what the fit gives' if same else 'not what the fit gives: run this without --check'}")
        return 0 if same else 1
    OUT.write_text(text, encoding="utf-8")
    print(f"wrote {OUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
