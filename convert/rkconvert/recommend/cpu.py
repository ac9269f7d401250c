"""The other way: llama.cpp with 4-bit weights on the CPU of the board, from what owners published."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import lru_cache

from rk3588 import resources, rkllm
from rk3588.shape import Shape

# A model is near another that has at most so many times its parameters, or as many times fewer: decoding is mostly
# reading weights, so that speeds within that are in proportion.
NEAR = 1.5
_BITS = 4.85  # of a weight in Q4_K_M, its scales among them


@dataclass(frozen=True)
class Published:
    """One row of ``rk3588_llama_cpp.csv``. ``threads`` 0: not said."""

    model: str
    params: int
    quant: str
    decode_tok_s: float
    threads: int
    board: str
    url: str


@dataclass(frozen=True)
class OnCpu:
    """What the rows near a model's size come to for it: the nearest scaled by size, the slowest and the fastest."""

    nearest: Published
    decode_tok_s: float
    low: float
    high: float
    rows: int
    memory: int  # bytes, about

    def fits(self, ram_gb: int) -> bool:
        return self.memory + rkllm.SYSTEM_BYTES <= ram_gb << 30


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    text = resources.read("data/rk3588_llama_cpp.csv").decode("utf-8")
    return tuple(
        Published(
            row["model"], int(row["params"]), row["quant"], float(row["decode_tok_s"]), int(row["threads"] or 0),
            row["board"], row["url"],
        )
        for row in csv.DictReader(io.StringIO(text))
    )  # fmt: skip


def on_cpu(sizes: Shape, context: int) -> OnCpu | None:
    """None where nobody published a model near this size."""
    params = sizes.total_params
    near = [row for row in published() if max(row.params / params, params / row.params) <= NEAR]
    if not near:
        return None
    scaled = {row: row.decode_tok_s * row.params / params for row in near}
    nearest = min(near, key=lambda row: max(row.params / params, params / row.params))
    memory = round(params * _BITS / 8) + sizes.kv_bytes_per_token * context
    return OnCpu(nearest, scaled[nearest], min(scaled.values()), max(scaled.values()), len(near), memory)
