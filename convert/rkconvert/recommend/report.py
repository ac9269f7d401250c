"""The advice with the table behind it: as text, and as the object of ``--json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rk3588 import rkllm
from rk3588.boards import BoardType
from rk3588.predict import Estimate

from . import advice
from .advice import GIB, Limits, Row, bounds
from .cpu import OnCpu

_CPU = "llama.cpp 4-bit"


@dataclass(frozen=True)
class Report:
    """All that was found out. ``tokens`` 0: nothing was measured, and ``text`` and ``reference`` are ""."""

    model: str
    parameters: int
    board: BoardType
    limits: Limits
    prompt: int
    context: int
    rows: Sequence[Row]
    cpu: OnCpu | None
    notes: Sequence[str]
    tokens: int = 0
    text: str = ""
    reference: str = ""

    @property
    def advice(self) -> str:
        return advice.sentence(self.rows, self.cpu, self.limits, self.board)

    @property
    def remarks(self) -> list[str]:
        told = (
            f"Decode and first token (of {self.prompt} tokens of prompt, context {self.context}) are predicted, with "
            "90 % intervals"
        )
        if self.tokens:
            told += f"; the rest is measured on {self.tokens:,} tokens of {self.text}"
        able = [row for row in self.rows if not row.obstacle]
        doubtful = [row.variant.name for row in able if advice.in_doubt(row, self.limits)]
        doubt = f"KL may be on either side of {self.limits.max_kl:g} for {', '.join(doubtful)}: more --tokens tell."
        return [told + ".", *([doubt] if doubtful else []), *_source(self.cpu), *self.notes]

    def render(self) -> str:
        lines = [f"{self.model}: {self.advice}.", "", _table(self), "", *(f"- {remark}" for remark in self.remarks)]
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        best = advice.best(self.rows, self.limits)
        return {
            "model": self.model,
            "parameters": self.parameters,
            "board": self.board.id,
            "ram_gb": self.limits.ram_gb,
            "min_tok_s": self.limits.min_tok_s,
            "max_kl": self.limits.max_kl,
            "prompt": self.prompt,
            "context": self.context,
            "tokens": self.tokens,
            "text": self.text or None,
            "reference": self.reference or None,
            "advice": self.advice,
            "choice": best.variant.facts() if best else None,
            "rows": [_row_facts(row, self.limits) for row in self.rows],
            "llama_cpp": _cpu_facts(self.cpu, self.limits),
            "notes": self.remarks,
        }


def _table(report: Report) -> str:
    chosen = advice.best(report.rows, report.limits)
    width = max(map(len, [_CPU, *(row.variant.name for row in report.rows)])) + 2
    reference = f"KL to {report.reference or 'fp32'}"
    head = f"{reference:>11}{'top-1':>8}{'perplexity':>12}{'decode tok/s':>22}{'first token, ms':>22}{'RAM, GB':>9}"
    lines = [f"  {'':{width}}{head}"]
    for row in report.rows:
        mark = "→" if row is chosen else " "
        lines.append(f"{mark} {row.variant.name:{width}}{_cells(row)}{_remark(row, chosen, report.limits)}")
    return "\n".join([*lines, f"  {_CPU:{width}}{_cpu_cells(report.cpu, report.limits)}"])


def _cells(row: Row) -> str:
    p, a = row.prediction, row.accuracy
    measured = f"{a.kl:>11.4f}{a.top1:>8.1%}{a.perplexity:>12.2f}" if a else f"{'not measured':>31}"
    return f"{measured}{bounds(p.decode_tok_s):>22}{bounds(p.ttft_ms):>22}{_ram(p.memory.total):>9.1f}"


def _remark(row: Row, chosen: Row | None, limits: Limits) -> str:
    if not row.fits(limits):
        return f"  does not fit {limits.ram_gb} GB"
    return "" if row is chosen else "".join(f"  {why}" for why in row.misses(limits)[:1])


def _cpu_cells(cpu: OnCpu | None, limits: Limits) -> str:
    if cpu is None:
        return "not known: nobody is known to have published a model near this size on an RK3588"
    speed = bounds(cpu.decode_tok_s)
    fit = "" if cpu.fits(limits.ram_gb) else f"  does not fit {limits.ram_gb} GB"
    return f"{'not measured':>31}{speed:>22}{'not known':>22}{_ram(cpu.memory):>9.1f}{fit}"


def _ram(model: int) -> float:
    """GiB of the board's."""
    return (model + rkllm.SYSTEM_BYTES) / GIB


def _source(cpu: OnCpu | None) -> list[str]:
    if cpu is None:
        return []
    row = cpu.nearest
    threads = f", {row.threads} threads" if row.threads else ""
    return [
        f"llama.cpp on the CPU: {row.model} {row.quant} decodes at {row.decode_tok_s:g} tok/s on {row.board}{threads} "
        f"({row.url}), taken in proportion to its size; in brackets the slowest and the fastest that anybody published."
    ]


def _row_facts(row: Row, limits: Limits) -> dict[str, Any]:
    p, a = row.prediction, row.accuracy
    return {
        **row.variant.facts(),
        "kl": a.kl if a else None,
        "kl_interval": list(a.intervals["kl"] or ()) or None if a else None,
        "top1": a.top1 if a else None,
        "perplexity": a.perplexity if a else None,
        "decode_tok_s": _estimate(p.decode_tok_s),
        "ttft_ms": _estimate(p.ttft_ms),
        "memory_bytes": p.memory.total,
        "fits": row.fits(limits),
        "toolkit_obstacle": row.obstacle,
        "misses": row.misses(limits),
    }


def _cpu_facts(cpu: OnCpu | None, limits: Limits) -> dict[str, Any] | None:
    if cpu is None:
        return None
    row = cpu.nearest
    return {
        "decode_tok_s": _estimate(cpu.decode_tok_s),
        "memory_bytes": cpu.memory,
        "fits": cpu.fits(limits.ram_gb),
        "nearest": {
            "model": row.model, "params": row.params, "quant": row.quant, "decode_tok_s": row.decode_tok_s,
            "threads": row.threads or None, "board": row.board, "url": row.url,
        },
    }  # fmt: skip


def _estimate(of: Estimate) -> dict[str, float]:
    return {"value": round(of.value, 2), "low": round(of.low, 2), "high": round(of.high, 2)}
