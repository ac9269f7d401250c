"""The real checkpoints' fp32 bundles beside llama.cpp on the same GGUF files, expanded to F32.

    PYTHONPATH=.:convert:runtime python tests/real_llama_cpp.py [--tokens N]

Over 2,000 tokens of text the mean Kullback-Leibler divergence of the next token is at most 1e-4, and the 64 tokens that
follow are the same, up to the first step where the two likeliest are less than 1e-2 apart. Needs the packages xllamacpp
and gguf, the files that `.ci/setup real` fetches, 5 GB of disk and 6 GB of memory, and some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from rk3588 import hostlib, quant
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from tests.libllama import Context, LlamaCpp, use_our_library
from tests.plans import make_plan
from tests.real_models import REAL_MODELS, RealModel

MEAN_KL, CLOSE = 1e-4, 1e-2
CONTINUED, CHUNK = 64, 250
ROOT = Path(__file__).resolve().parent.parent
Logits = npt.NDArray[np.float32]


def expand(source: Path, target: Path) -> None:
    """The same model with every tensor F32, one at a time."""
    reader, kinds = gguf.GGUFReader(source), gguf.GGUFValueType
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            item = field.types[-1] if field.types[0] == kinds.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], item)
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), 4 * int(tensor.n_elements))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.write_tensor_data(np.ascontiguousarray(values, np.float32))
    writer.close()


def text() -> str:
    """What the converter calibrates with, several kinds of text in several languages, and then our README."""
    calibration = json.loads((ROOT / "convert/rkconvert/data/calibration.json").read_text(encoding="utf-8"))
    return "\n\n".join([*_strings(calibration), (ROOT / "README.md").read_text(encoding="utf-8")])


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def divergences(theirs: Logits, ours: Logits) -> npt.NDArray[np.float64]:
    """KL(theirs || ours) at each position."""
    p, q = (_log_softmax(x.astype(np.float64)) for x in (theirs, ours))
    found: npt.NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return found


def _log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = x - x.max(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return found


def continued(context: Context, last: Logits) -> tuple[list[int], list[float]]:
    """The next tokens, each the likeliest, with how far the second was behind."""
    found, margins = [], []
    for _ in range(CONTINUED):
        second, first = np.sort(np.partition(last, -2)[-2:])
        found.append(int(last.argmax()))
        margins.append(float(first - second))
        last = context.logits(found[-1:])[-1]
    return found, margins


def compare(llama: LlamaCpp, model: RealModel, count: int, folder: Path) -> list[str]:
    started = time.monotonic()
    expanded = folder / "expanded.gguf"
    expand(model.path, expanded)
    (bundle,) = convert(make_plan(open_source(model.path), "real", folder, [quant.scheme("fp32")], threads=2))
    made = time.monotonic()
    with hostlib.SimModel(bundle / "model.sim.gguf") as ours, llama.context(expanded, count + CONTINUED) as context:
        ids = ours.tokenise(text(), add_bos=model.add_bos)[:count]
        assert len(ids) == count, f"the text has {len(ids)} tokens, {count} are wanted"
        found = ours.logits(ids)
        ready = time.monotonic()
        kl, off, last = [], 0.0, found[-1]
        for start in range(0, count, CHUNK):
            theirs = context.logits(ids[start : start + CHUNK])
            mine, last = found[start : start + CHUNK], theirs[-1]
            kl += list(divergences(theirs, mine))
            off = max(off, float(np.abs(theirs - mine).max() / theirs.std()))
        tokens, margins = continued(context, last)
        answered = time.monotonic()
        del found  # 2 GB
        mine = ours.logits(ids + tokens)[count - 1 : -1].argmax(axis=1)
        llamas_text = ours.detokenise(tokens).decode("utf-8", "replace")
    close = next((i for i, margin in enumerate(margins) if margin < CLOSE), CONTINUED)
    same = next((i for i in range(CONTINUED) if mine[i] != tokens[i]), CONTINUED)
    print(
        f"{model.file}: mean KL {np.mean(kl):.3g}, largest {max(kl):.3g} over {count} tokens; logits off by {off:.2g} "
        f"of their deviation at most; {same} of {CONTINUED} tokens continue alike (first close call: {close}); "
        f"made in {made - started:.0f} s, ours {ready - made:.0f} s, llama.cpp {answered - ready:.0f} s\n"
        f"it goes on: {llamas_text!r}",
        file=sys.stderr,
    )
    wrong = [f"{model.file}: mean KL {np.mean(kl):.3g}, at most {MEAN_KL} is right"] if np.mean(kl) > MEAN_KL else []
    return wrong + ([f"{model.file}: token {same} of the continuation differs"] if same < close else [])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the real checkpoints with llama.cpp.")
    parser.add_argument("--tokens", type=int, default=2000, help="positions to compare (2000)")
    count = parser.parse_args().tokens
    use_our_library()
    llama, wrong = LlamaCpp(), []
    for model in REAL_MODELS:
        if model.missing:
            print(f"skipped: {model.missing}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory(dir=model.path.parent) as folder:
            wrong += compare(llama, model, count, Path(folder))
    print("\n".join(wrong) or "as llama.cpp has them", file=sys.stderr)
    sys.stderr.flush()
    os._exit(bool(wrong))  # llama.cpp's threads outlive an exit


if __name__ == "__main__":
    main()
