"""What llama.cpp computes of the tiny GGUF files of every family is what our fp32 bundles of them compute.

    PYTHONPATH=.:convert:runtime python tests/golden_families/llama_cpp.py

Needs the package xllamacpp, and the simulated runtime's library: that of .venv, or RKSIM_LIBRARY.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from rk3588 import hostlib, quant
from rkconvert.build import convert
from rkconvert.sources.base import Source
from rkconvert.sources.opening import open_source
from tests.golden_families import cases, gguf_files
from tests.libllama import LlamaCpp, use_our_library
from tests.plans import make_plan

# Largest difference, in standard deviations of the logits. llama.cpp looks GELU up in a table of half-precision
# numbers, which makes it that much worse than ours is beside transformers (test_families.py).
TOLERANCE, WITH_GELU_TABLE = 1e-4, 5e-3
_GELU = ("phi2", "gemma", "gemma2", "gemma3")
_CONTEXT = 512

Settings = dict[str, Any]
# Files that say more, less or other than the cases do, where llama.cpp has its own idea of what that means.
VARIANTS: dict[str, tuple[str, Settings]] = {
    "a linear factor": ("qwen2", {"rope.scaling.factor": 4.0}),
    "a linear factor and an original context": (
        "llama_biases", {"rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
    ),
    "an attention factor": ("llama_biases", {"rope.scaling.attn_factor": 1.5}),
    "YaRN and an attention factor": ("qwen2_yarn", {"rope.scaling.attn_factor": 1.5}),
    "YaRN's usual betas": (
        "qwen2_yarn", {"rope.scaling.yarn_beta_fast": None, "rope.scaling.original_context_length": None},
    ),
    "YaRN without factor": ("qwen2_yarn", {"rope.scaling.factor": None}),
    "YaRN in Llama": ("llama_biases", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}),
    "no base": ("smollm3", {"rope.freq_base": None}),
    "short LongRoPE": ("phi3_longrope", {"rope.scaling.original_context_length": 4096}),
    "LongRoPE without attention factor": ("phi3_longrope", {"rope.scaling.attn_factor": None}),
    "LongRoPE times a factor": ("phi3_longrope", {"rope.scaling.factor": 2.0}),
    "another base in Phi-2": ("phi2", {"rope.freq_base": 1000.0}),
    "Gemma 2 without caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "Gemma 2 of the 27B's layers": ("gemma2", {"block_count": 46}),
    "Gemma 3 of the 27B's layers": ("gemma3", {"block_count": 62}),
    "MiniCPM without scales of its layers": ("minicpm", {"embedding_scale": None, "residual_scale": None}),
    "Gemma 2, each third layer full": ("gemma2", {"attention.sliding_window_pattern": 3}),
    "Gemma 2 with a linear factor": ("gemma2", {"rope.scaling.factor": 4.0}),
    "Gemma 3 without window": ("gemma3", {"attention.sliding_window": None}),
    "Gemma 3 with a window of 0": ("gemma3", {"attention.sliding_window": 0}),
    "Gemma 3 with a cap": ("gemma3", {"final_logit_softcapping": 3.0}),
    "Gemma 3 with a cap and no window": (
        "gemma3", {"final_logit_softcapping": 3.0, "attention.sliding_window": None},
    ),
    "Gemma 3 with a local base": ("gemma3", {"rope.freq_base_swa": 1000.0}),
    "Gemma 3, each sixth layer full": ("gemma3", {"attention.sliding_window_pattern": None}),
    "Gemma 3 without base": ("gemma3", {"rope.freq_base": None}),
    # In transformers not so, hence refused in a config.json.
    "Gemma 3 with an attention factor, of all layers": ("gemma3", {"rope.scaling.attn_factor": 1.5}),
}  # fmt: skip


def changing(family: str, settings: Settings) -> Callable[[dict[str, Any]], None]:
    """Sets these settings of a family in a file's metadata; None: takes one out."""
    kinds = gguf.GGUFValueType

    def change(keys: dict[str, Any]) -> None:
        for key, value in settings.items():
            keys.pop(f"{family}.{key}", None)
            if value is not None:
                kind = kinds.UINT32 if type(value) is int else kinds.get_type(value)
                keys[f"{family}.{key}"] = gguf.gguf_writer.GGUFValue(value, kind)

    return change


def ours(source: Source, folder: Path) -> npt.NDArray[np.float32]:
    scheme = quant.scheme("fp32")
    (bundle,) = convert(make_plan(source, "tiny", folder, [scheme], threads=1, overwrite=True))
    with hostlib.SimModel(bundle / "model.sim.gguf") as model:
        return model.logits(cases.ids())


def difference(llama: LlamaCpp, name: str, settings: Settings, folder: Path) -> float:
    family = gguf_files.architecture(name)
    layers = settings.get("block_count", 0)
    file = gguf_files.write(name, folder / "tiny.gguf", change=changing(family, settings), layers=layers)
    source = open_source(file)
    if family == "phi3":  # llama.cpp has switched Phi-3's windows off
        source = replace(source, config=replace(source.config, windows=()))
    with llama.context(file, _CONTEXT) as context:
        theirs = context.logits(cases.ids())
    return float(np.abs(ours(source, folder) - theirs).max() / theirs.std())


def main() -> None:
    use_our_library()
    llama, wrong = LlamaCpp(), []
    everything = {**{name: (name, {}) for name in gguf_files.CASES}, **VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        for title, (name, settings) in everything.items():
            found = difference(llama, name, settings, Path(folder))
            print(f"{title}: {found:.2g}", file=sys.stderr)
            limit = WITH_GELU_TABLE if gguf_files.architecture(name) in _GELU else TOLERANCE
            wrong += [] if found <= limit else [f"{title} is off by {found:.2g} of the deviation"]
    print("\n".join(wrong) or f"{len(everything)} files as llama.cpp has them", file=sys.stderr)
    sys.stderr.flush()
    os._exit(bool(wrong))  # llama.cpp's threads outlive an exit


if __name__ == "__main__":
    main()
