"""How an adapter stands in a bundle: its GGUF file, where it lies, and its entry in the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rk3588 import bundle
from rkconvert.architectures.model import ModelConfig

from .lora import Floats, Lora

RESIDUAL = "residual"
RESIDUAL_FILE = f"lora/{RESIDUAL}.rkllm"


def permuted(b: Floats, heads: int) -> Floats:
    """Rows of Q or K from Hugging Face's order to llama.cpp's: the two halves of each head interleaved."""
    halves = b.reshape(heads, 2, len(b) // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(b.shape)


def write_gguf(lora: Lora, config: ModelConfig, path: Path) -> None:
    """The adapter as llama.cpp's convert_lora_to_gguf.py writes it, in F32.

    The format has one alpha for all layers; what a layer's own factor differs from alpha / rank by goes into B. Ours is
    the key of the basis that it is for.
    """
    import gguf

    writer = gguf.GGUFWriter(path, config.family)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(lora.name)
    if lora.base_model:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, lora.base_model)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, lora.alpha)
    if config.rotation:
        writer.add_string("rksim.rotation", config.rotation)
    for name, pair in lora.pairs.items():
        b, own = pair.b, pair.factor * pair.rank / lora.alpha
        if own != 1:
            b = (b * own).astype(np.float32)
        heads = config.heads_of(name) if config.adapters_interleaved else 0
        writer.add_tensor(f"{name}.lora_a", pair.a)
        writer.add_tensor(f"{name}.lora_b", permuted(b, heads) if heads else b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bundle_file(lora: Lora) -> str:
    """Where a kept adapter for the simulated runtime lies in its bundle."""
    return f"lora/{lora.name}.gguf"


def npu_file(lora: Lora) -> str:
    """Where a kept adapter for a board lies."""
    return f"lora/{lora.name}.rkllm"


def residual_entry(algorithm: str) -> dict[str, Any]:
    """The same for what rkllm-toolkit keeps as a LoRA of what quantising lost (``normal_r8``)."""
    rank = int(algorithm.rpartition("_r")[2])
    adapter = {"name": RESIDUAL, "scale": 1.0, "rank": rank, "artifacts": {"rk3588": RESIDUAL_FILE}}
    return {"mode": "adapter", "adapters": [adapter]}


def manifest_entry(loras: Sequence[Lora], mode: str, targets: Sequence[str] = ("sim",)) -> dict[str, Any]:
    """``lora`` of ``rkbundle.json``. For a bundle that has none, the key is absent."""
    return {"mode": mode, "adapters": [_entry(lora, mode, targets) for lora in loras]}


def facts(lora: Lora) -> dict[str, Any]:
    """For the plan and the manifest."""
    return {
        "name": lora.name,
        "scale": lora.option.scale,
        "rank": lora.rank,
        "alpha": lora.alpha,
        "targets": lora.targets,
        "layers": len(lora.pairs),
    }


def _entry(lora: Lora, mode: str, targets: Sequence[str]) -> dict[str, Any]:
    places = {"sim": bundle_file(lora), "rk3588": npu_file(lora)}
    files = [{"path": f.name, "size": f.stat().st_size, "sha256": bundle.sha256(f)} for f in lora.files]
    return {
        **facts(lora),
        **({"base_model": lora.base_model} if lora.base_model else {}),
        "source": {"name": lora.option.path.absolute().name, "files": files},
        **({"artifacts": {target: places[target] for target in targets}} if mode == "adapter" else {}),
    }
