"""Prediction against the published figures: `python -m tests.bench.predict_table` prints every error and a summary.

Then the same against figures that the fit has never seen: published ones, and owners', whose boards may be slower.
Exits 1 when the summary misses what is promised of it.
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from rk3588 import boards, predict
from rk3588.quant import SCHEMES
from tests.bench import predict_fit
from tests.bench.predict_fit import DATA, RUNTIME, Row

HELD_OUT = DATA / "rk3588_held_out.csv"


@dataclass(frozen=True)
class Errors:
    """Predicted over measured, less 1, of one published row; memory with its KV cache, where 1.1.1's is published."""

    row: Row
    decode: float
    ttft: float
    memory: float | None
    decode_inside: bool  # whether the measured figure lies in the predicted interval
    ttft_inside: bool


@dataclass(frozen=True)
class Check:
    """One promise: a figure, and the most it may be."""

    name: str
    found: float
    most: float | None  # None: shown, not promised

    @property
    def holds(self) -> bool:
        return self.most is None or self.found <= self.most


def errors(row: Row) -> Errors:
    """What the shipped code makes of one row; speeds compared as times per token and to the first token."""
    work = predict.Workload(prompt=row.prompt, answer=row.new, context=row.prompt + row.new)
    found = predict.predict(row, row.dtype, work, boards.catalogue().socs["RK3588"])
    memory = None
    if row.memory and row.source == RUNTIME:
        memory = found.memory.total / row.memory - 1
    decode, speed, ttft = 1e3 / row.decode_ms, found.decode_tok_s, found.ttft_ms
    return Errors(
        row=row,
        decode=speed.value / decode - 1,
        ttft=ttft.value / row.ttft_ms - 1,
        memory=memory,
        decode_inside=speed.low <= decode <= speed.high,
        ttft_inside=ttft.low <= row.ttft_ms <= ttft.high,
    )


def checks(table: list[Errors]) -> list[Check]:
    """The summary with its promises."""
    plain = [e for e in table if e.row.dtype == "w8a8"]
    data = predict_fit.rows()
    left_out = [1 / ratio - 1 for row, ratio in predict_fit.left_out(data, predict_fit.fit_decode) if not row.group]
    of = {d: [e.decode for e in table if e.row.dtype == d] for d in ("w8a8_g512", "w8a8_g128")}
    return [
        Check("w8a8 decode, median", median(e.decode for e in plain), 0.04),
        Check("w8a8 decode, worst", worst(e.decode for e in plain), 0.10),
        Check("w8a8 decode, its model left out of the fit, median", median(left_out), 0.05),
        Check("w8a8 decode, its model left out of the fit, worst", worst(left_out), None),
        Check("w8a8 TTFT, median", median(e.ttft for e in plain), 0.12),
        Check("w8a8 TTFT, worst", worst(e.ttft for e in plain), None),
        Check("memory of runtime 1.1.1, worst", worst(e.memory for e in table if e.memory is not None), 0.05),
        Check("w8a8_g512 decode, worst", worst(of["w8a8_g512"]), 0.06),
        Check("w8a8_g128 decode, worst", worst(of["w8a8_g128"]), None),
        Check("decode outside its 90 % interval, rows", outside([e.decode_inside for e in table]), 0.10),
        Check("TTFT outside its 90 % interval, rows", outside([e.ttft_inside for e in table]), 0.10),
    ]


@dataclass(frozen=True)
class HeldOut:
    """A row that was not fitted. ``kind``: published, or an owner's. ``errors.ttft`` is nan where it is not told.

    ``bandwidth``: the GB/s at which the formula gives the measured speed.
    """

    kind: str
    source: str
    url: str
    errors: Errors
    bandwidth: float


def held_out() -> list[HeldOut]:
    """Every row of the figures that were not fitted, with what the shipped code makes of it."""
    with HELD_OUT.open(encoding="utf-8", newline="") as file:
        return [_held_out(line) for line in csv.DictReader(file)]


def _held_out(line: dict[str, str]) -> HeldOut:
    row = predict_fit.row_of({**line, "ttft_ms": line["ttft_ms"] or "nan", "memory": "", "memory_unit": ""})
    tokens = row.prompt + row.new / 2
    moved = (row.linear_params + row.lm_head_params + row.kv_bytes_per_token * tokens) / 1e6
    unmoved = predict.decode_ms(row, SCHEMES[row.dtype], tokens, math.inf)
    return HeldOut(line["kind"], line["source"], line["url"], errors(row), moved / (row.decode_ms - unmoved))


def median(values: Iterable[float]) -> float:
    return statistics.median(abs(v) for v in values)


def outside(inside: list[bool]) -> float:
    return inside.count(False) / len(inside)


def worst(values: Iterable[float]) -> float:
    return max(abs(v) for v in values)


def main() -> int:
    table = [errors(row) for row in predict_fit.rows()]
    print("Prediction against the published figures (predicted / measured - 1)")
    print(f"{'model':28}{'dtype':11}{'prompt':>6}{'decode':>9}{'TTFT':>9}{'memory':>9}")
    for e in table:
        memory = "" if e.memory is None else f"{e.memory:+.1%}"
        print(f"{e.row.model:28}{e.row.dtype:11}{e.row.prompt:6}{e.decode:+9.1%}{e.ttft:+9.1%}{memory:>9}")
    print()
    summary = checks(table)
    for check in summary:
        promised = "" if check.most is None else f"  at most {check.most:.0%}: {'yes' if check.holds else 'NO'}"
        print(f"{check.name:52}{check.found:7.1%}{promised}")
    print("\nNot fitted (GB/s: the bandwidth at which the formula gives the measured speed)")
    for each in held_out():
        e = each.errors
        ttft = "" if math.isnan(e.ttft) else f"{e.ttft:+.1%}"
        print(
            f"{e.row.model:28}{e.row.dtype:11}{e.row.prompt:6}{e.decode:+9.1%}{ttft:>9}{each.bandwidth:7.1f} GB/s  "
            f"{each.kind}: {each.source}"
        )
    return 0 if all(check.holds for check in summary) else 1


if __name__ == "__main__":
    sys.exit(main())
