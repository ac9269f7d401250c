"""Bytes of every packed type of GGUF: few of them can be packed here, all can be read."""

from __future__ import annotations

import functools
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from rkconvert.sources.gguf_file import readable

PACKED = [name for name in readable() if name not in ("F32", "F16", "BF16")]


@functools.cache
def blocks(name: str) -> npt.NDArray[Any]:
    """Any bytes that stand for weights of a usual size."""
    kind = gguf.GGMLQuantizationType[name]
    _, size = gguf.GGML_QUANT_SIZES[kind]
    draw, found = np.random.default_rng(5), np.empty((0, size), np.uint8)
    while len(found) < 40:
        raw = draw.integers(0, 256, (500, size), np.uint8)
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(raw, kind)
            fits = np.isfinite(values).all(axis=1) & (abs(values).max(axis=1) < 8) & (abs(values).max(axis=1) > 1e-3)
        found = np.concatenate([found, raw[fits]])
    return found
