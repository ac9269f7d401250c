"""The other way: llama.cpp with 4-bit weights on the CPU of the board, from what owners published."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import lru_cache

from rk3588 import resources, rkllm
from rk3588.predict import Estimate
from rk3588.shape import Shape

# A model is near another that has at most so many times its weights, or as many times fewer: decoding is mostly reading
# them, so that speeds within that are in proportion.
NEAR = 1.5
_BITS = 4.85  # of a weight in Q4_K_M, its scales among them


@dataclass(frozen=True)
class Published:
    """One row of ``rk3588_llama_cpp.csv``. ``threads`` 0: not said."""

    transformer: bool  # a plain one, as those are that this is asked for
    model: str
    params: int
    quant: str
    decode_tok_s: float
    threads: int
    board: str
    url: str

    def at(self, params: int) -> float:
        """The speed of a model of that size, in proportion."""
        return self.decode_tok_s * self.params / params


@dataclass(frozen=True)
class OnCpu:
    """What the nearest row comes to, and, as boards and builds differ, what the slowest and the fastest of all do."""

    nearest: Published
    decode_tok_s: Estimate
    memory: int  # bytes, about

    def fits(self, ram_gb: int) -> bool:
        return self.memory + rkllm.SYSTEM_BYTES <= ram_gb << 30


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    text = resources.read("data/rk3588_llama_cpp.csv").decode("utf-8")
    return tuple(
        Published(
            row["architecture"] == "transformer", row["model"], int(row["params"]), row["quant"],
            float(row["decode_tok_s"]), int(row["threads"] or 0), row["board"], row["url"],
        )
        for row in csv.DictReader(io.StringIO(text))
    )  # fmt: skip


def on_cpu(sizes: Shape, context: int) -> OnCpu | None:
    """None where nobody published a model near this size. Plain transformers come first."""
    params = sizes.linear_params + sizes.lm_head_params  # that each token reads

    def factor(row: Published) -> float:
        return max(row.params / params, params / row.params)

    near = [row for row in published() if factor(row) <= NEAR]
    if not near:
        return None
    nearest = min(near, key=lambda row: (not row.transformer, factor(row)))
    all_of_them = [row.at(params) for row in published()]
    memory = round(sizes.total_params * _BITS / 8) + sizes.kv_bytes_per_token * context
    return OnCpu(nearest, Estimate(nearest.at(params), min(all_of_them), max(all_of_them)), memory)
