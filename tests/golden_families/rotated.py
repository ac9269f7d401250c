"""Checkpoints that --emit-hf wrote, in transformers: of each family, rotated where it can be and smoothed, with the
golden logits.

    PYTHONPATH=.:convert:runtime python -m tests.golden_families.rotated

From the Hugging Face folder and, where that says the same, from the GGUF file. Needs torch and transformers, and the
simulated runtime's library, which has the tokenizer: that of .venv, or RKSIM_LIBRARY.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rkconvert.build import write_checkpoint
from rkconvert.request import Request
from rkconvert.rotation.rotate import obstacle
from rkconvert.sources.base import Source
from rkconvert.sources.opening import open_source
from tests import models
from tests.golden_families import cases, gguf_files
from tests.libllama import use_our_library

TOLERANCE = 1e-3  # of the logits' standard deviation
BF16_TOLERANCE = 0.2  # three digits a weight


def originals(name: str, folder: Path) -> Iterator[Path]:
    yield models.write_llama(folder / "folder", dict(cases.CASES[name]), cases.weights(name))
    if name not in gguf_files.UNSAID and name != "qwen2_yarn":
        yield gguf_files.write(name, folder / "file.gguf")


def off(folder: Path, golden: cases.Arrays) -> float:
    """By how many standard deviations transformers' logits are off at the most."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found = model(torch.tensor([cases.ids(len(golden["logits"]))])).logits[0].numpy()
    return float(np.abs(found - golden["logits"]).max() / golden["logits"].std())


def ways(source: Source) -> Iterator[tuple[dict[str, str], float]]:
    """Options, and how far the logits may be off."""
    if not obstacle(source.config):
        yield {"rotate": "hadamard"}, TOLERANCE
        yield {"rotate": "hadamard", "emit_dtype": "bf16"}, BF16_TOLERANCE
        yield {"rotate": "learned", "smooth": "0.5"}, TOLERANCE
    yield {"smooth": "0.5"}, TOLERANCE


def main() -> None:
    use_our_library()
    wrong = []
    for name in cases.CASES:
        golden = cases.load(name)
        with tempfile.TemporaryDirectory() as place:
            for original in originals(name, Path(place)):
                source = open_source(original)
                for number, (options, most) in enumerate(ways(source)):
                    out = Path(place) / f"{original.name}-{number}"
                    request = Request(emit_hf=out, **options)  # type: ignore[arg-type]
                    write_checkpoint(request.plan(source, name, None))
                    found, how = off(out, golden), ", ".join(options.values())
                    print(f"{name}: {source.kind}, {how}: off by {found:.2g}", file=sys.stderr)
                    wrong += [f"{name} of {source.kind}, {how}, is off by {found:.2g}"] if not found <= most else []
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
