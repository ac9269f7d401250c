"""What a release needs of a board: memory, disk, and time until the model answers."""

from __future__ import annotations

from rk3588 import predict, rkllm, runtime, shape
from rk3588.bundle import Bundle
from rk3588.errors import CheckpointError

from .release_bundle import kind_of, model_of

_PROGRAMS = 64 << 20  # bytes: daemon, libraries, and room to breathe
SLOWEST_LOAD = 20e6  # bytes/s: an SD card; 3.5 GB were seen to take 17.8 s from better storage
LEAST_LOAD_SECONDS = 90
_KV_AND_RUNTIME = 700 << 20  # bytes beside the weights at context 4096, of a model whose shape is not told


def load_seconds(model_size: int) -> int:
    """How long a model may take until it answers."""
    return LEAST_LOAD_SECONDS + int(model_size / SLOWEST_LOAD)


def memory_needed(bundle: Bundle, simulated: bool, context: int = 0) -> int:
    """RAM in bytes, roughly: the weights, ``context`` tokens (0: as many as the model has), the runtime."""
    weights: int = model_of(bundle, simulated).stat().st_size
    try:
        sizes = shape.load(bundle.path)
    except CheckpointError:
        return weights + _KV_AND_RUNTIME
    tokens = context or min(rkllm.MAX_CONTEXT, sizes.context or rkllm.MAX_CONTEXT)
    runtime_bytes = int(predict.coefficients()["memory"]["runtime_bytes"])
    return weights + sizes.kv_bytes_per_token * tokens + runtime_bytes


def context_memory(bundle: Bundle, context: int) -> int:
    """The part of ``memory_needed`` that ``context`` tokens are; 0 where the model's shape is not told."""
    try:
        return shape.load(bundle.path).kv_bytes_per_token * context
    except CheckpointError:
        return 0


def disk_needed(bundle: Bundle, simulated: bool) -> int:
    """Bytes of disk that a first deployment of it takes, roughly."""
    kept = runtime.manifest_for(bundle, kind_of(simulated))["files"]
    return sum(int(entry["size"]) for entry in kept) + _PROGRAMS
