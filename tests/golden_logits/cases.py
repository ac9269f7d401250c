"""What the golden logits are of: SmolLM2 and tiny Llamas, the tokens they read, and what is kept of the result.

Without torch: the script that writes the files and the test that reads them both start from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.models import Tiny

FOLDER = Path(__file__).resolve().parent
TOP = 10
COLUMN_STEP = 97  # coprime to any usual vocabulary: the columns kept are spread over all of it

# A chat about the sky, in SmolLM2's tokens.
SMOLLM2_IDS = [
    1, 4093, 198, 4898, 314, 260, 6376, 4461, 28, 284, 1701, 1072, 357, 1607, 2382, 418, 21822, 47, 2, 198, 1, 520,
    9531, 198, 22791, 2501, 314, 253, 8196, 282, 511, 14797, 30, 378, 1512, 806, 42154, 4461, 1420, 540, 670, 2382,
    1420, 28, 588, 732, 392, 1032,
]  # fmt: skip

_LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TINY: Mapping[str, Tiny] = {
    # Llama 3.2's shape in small: tied, four heads to a KV head of 64, its RoPE base and scaling. The context that
    # scaling starts from is as short as the test, so that all three ranges of frequencies show in the logits.
    "llama32": Tiny(
        seed=32, layers=3, hidden=128, heads=8, kv_heads=2, head_dim=64, intermediate=352, tied=True,
        rope_theta=500000.0, rope_scaling={**_LLAMA3, "original_max_position_embeddings": 48},
    ),
    # Its scaling as published.
    "llama32_long": Tiny(
        seed=33, hidden=192, heads=3, kv_heads=1, head_dim=64, intermediate=512, tied=True,
        rope_theta=500000.0, rope_scaling={**_LLAMA3, "original_max_position_embeddings": 8192},
    ),
    # Untied, heads wider than the hidden size's share, no power of two anywhere.
    "untied80": Tiny(seed=80, hidden=192, heads=6, kv_heads=3, head_dim=80, intermediate=296, norm_eps=1e-6),
}  # fmt: skip


def tiny_ids(tiny: Tiny) -> list[int]:
    """48 tokens by a rule, for the vocabulary of ``tiny``."""
    return [(7 + 31 * i + 5 * i * i) % tiny.vocab_size for i in range(48)]


def summary(logits: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """What is kept of the logits of a large vocabulary: every 97th column, the best ten, and the log-sum-exp."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP].astype(np.int32)
    wide = logits.astype(np.float64)
    most = wide.max(axis=1)
    total = most + np.log(np.exp(wide - most[:, None]).sum(axis=1))
    return {
        "columns": logits[:, ::COLUMN_STEP],
        "top_ids": best,
        "top": np.take_along_axis(logits, best, axis=1),
        "log_sum_exp": total,
    }


def load(name: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)
