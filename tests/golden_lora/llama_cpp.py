"""llama.cpp itself, with the golden adapter as rkconvert writes it, gives the answer that it was trained to give.

    PYTHONPATH=.:convert python tests/golden_lora/llama_cpp.py

Needs the package xllamacpp, which carries a compiled llama.cpp. Rows of Q and K in the wrong order, a halved scale or a
tensor left out would all show.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import xllamacpp

from rkconvert.adapters import in_bundle, lora
from rkconvert.sources.opening import open_source
from tests import models
from tests.golden_lora import cases


def answer(base: Path, adapter: Path | None) -> str:
    """The greedy answer to PROMPT."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(base), 256, 1
    params.cpuparams.n_threads, params.warmup = 1, False
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    request = {"prompt": cases.ids(cases.PROMPT), "n_predict": 20, "temperature": 0, "top_k": 1}
    found = xllamacpp.Server(params).handle_completions(request)
    return str(found["choices"][0]["text"])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base, adapter = Path(folder) / "base.gguf", Path(folder) / "pirate.gguf"
        models.write_gguf(base, cases.BASE, cases.BASE.weights(), "F32")
        source = open_source(base)
        in_bundle.write_gguf(lora.read(lora.LoraOption(cases.ADAPTER, "pirate", 1.0), source), source.config, adapter)
        alone, adapted = answer(base, None), answer(base, adapter)
    right = adapted == cases.ANSWER != alone
    print(f"llama.cpp says {adapted!r} with the adapter and {alone!r} without", file=sys.stderr)
    sys.stderr.flush()
    os._exit(not right)  # its server's threads outlive an exit


if __name__ == "__main__":
    main()
