"""What `make bench` measures the simulated runtime with: SmolLM2, a real Qwen, and random weights of a larger shape."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests import smollm2
from tests.bench.make_checkpoint import Size, make_gguf
from tests.models import smollm2_gguf
from tests.real_models import QWEN

LLAMA_1B = Size(16, 128256, hidden=2048, heads=32, head_dim=64)


def _qwen() -> Path:
    if QWEN.missing:
        print(f"skipped: {QWEN.missing}", file=sys.stderr)
        raise SystemExit(0)
    return QWEN.path


def _llama_1b() -> Path:
    """3 GB of F16, kept in build/cache."""
    path = smollm2.CACHE / "llama-3.2-1b-shape.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        make_gguf(path.with_suffix(".part"), LLAMA_1B).rename(path)
    return path


MODELS: Mapping[str, Callable[[], Path]] = {
    smollm2.NAME: smollm2_gguf,
    "Qwen2.5-Coder-0.5B": _qwen,
    "Llama-3.2-1B-shape": _llama_1b,
}
