"""The former name of ``hostlib``, and of ``resources.packaged``: programs that import from it go on doing so."""

from .hostlib import (
    ModelInfo,
    SimModel,
    bf16_to_float16,
    crc32,
    gemm_i8,
    has_sha256,
    kernel,
    library,
    quantise,
    sha256_blocks,
)
from .resources import packaged

__all__ = [
    "ModelInfo",
    "SimModel",
    "bf16_to_float16",
    "crc32",
    "gemm_i8",
    "has_sha256",
    "kernel",
    "library",
    "packaged",
    "quantise",
    "sha256_blocks",
]
