"""What `rkconvert accuracy` finds beside what llama.cpp's logits give, on two F32 GGUF files.

    PYTHONPATH=.:convert:runtime python tests/accuracy_llama_cpp.py [--tokens N]

The files are SmolLM2-135M-Instruct and the same rounded to Q4_0, both expanded to F32. Over the same windows, the
second half of each scored as llama-perplexity does it, the perplexities' logarithms are within 1e-3 and the mean KL
divergence is within 2 %. The caches of keys and values are F32. Needs the packages xllamacpp and gguf, 3 GB of disk
and of memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from click.testing import CliRunner

from rk3588 import hostlib, quant
from rkconvert.accuracy import built_in, windows
from rkconvert.build import convert
from rkconvert.cli import cli
from rkconvert.sources.opening import open_source
from tests.libllama import LlamaCpp, use_our_library
from tests.models import smollm2_gguf
from tests.plans import make_plan
from tests.real_llama_cpp import divergences, expand

WINDOW = 512
MOST_LOG, MOST_KL = 1e-3, 0.02
Array = npt.NDArray[np.float64]
Q4_0 = gguf.GGMLQuantizationType.Q4_0


def round_weights(source: Path, target: Path) -> None:
    """``source`` with every matrix rounded to Q4_0, kept as F32."""
    target.write_bytes(source.read_bytes())
    changed = 0
    for tensor in gguf.GGUFReader(target, "r+").tensors:
        if len(tensor.shape) == 2:
            values = np.asarray(tensor.data, np.float32)
            tensor.data[:] = gguf.quants.dequantize(gguf.quants.quantize(values, Q4_0), Q4_0)
            changed += 1
    assert changed > 100, "the model has hardly any matrices"


def theirs(llama: LlamaCpp, files: tuple[Path, Path], parts: list[list[int]]) -> tuple[Array, Array, Array]:
    """Of each scored token -ln of its probability by both models, and the divergence of the second from the first."""
    loss: tuple[list[Array], list[Array]] = ([], [])
    kl = []
    first = WINDOW // 2
    with llama.context(files[0], WINDOW) as one, llama.context(files[1], WINDOW) as two:
        for ids in parts:
            rows = []
            for context, losses in zip((one, two), loss):
                context.restart()
                rows.append(context.logits(ids)[first:-1])
                found = rows[-1].astype(np.float64)
                most = found.max(axis=1)
                total = most + np.log(np.exp(found - most[:, None]).sum(axis=1))
                losses.append(total - found[np.arange(len(found)), ids[first + 1 :]])
            kl.append(divergences(rows[0], rows[1]))
    return np.concatenate(loss[0]), np.concatenate(loss[1]), np.concatenate(kl)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare figures of accuracy with those of llama.cpp's logits.")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens to read (2048)")
    tokens = parser.parse_args().tokens // WINDOW * WINDOW
    use_our_library()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        files, made = (Path(folder) / "exact.gguf", Path(folder) / "rounded.gguf"), []
        expand(smollm2_gguf(), files[0])
        round_weights(*files)
        for file in files:
            plan = make_plan(open_source(file), file.stem, Path(folder), [quant.scheme("fp32")], threads=2)
            made += convert(plan)
        text = Path(folder) / "text.txt"
        text.write_text("\n".join(one.text for one in built_in()), encoding="utf-8")
        call = ["accuracy", made[1], "--reference", made[0], "--text", text, "--tokens", tokens, "--window", WINDOW]
        done = CliRunner().invoke(cli, [*map(str, call), "--score", "half", "--brief", "--json"])
        assert done.exit_code == 0, done.output
        (ours,) = json.loads(done.stdout)
        with hostlib.SimModel(made[0] / "model.sim.gguf", vocab_only=True) as model:
            parts = windows(model.tokenise(text.read_text(encoding="utf-8"))[:tokens], WINDOW)
        exact, rounded, kl = theirs(LlamaCpp(), files, parts)
    wrong = []
    for name, values in (("reference_perplexity", exact), ("perplexity", rounded)):
        off = abs(math.log(ours[name]) - values.mean())
        found = math.exp(values.mean())
        print(f"{name}: {ours[name]:.5f}, llama.cpp {found:.5f}, logarithms {off:.2g} apart", file=sys.stderr)
        wrong += [f"{name}'s logarithm is off by {off:.2g}, at most {MOST_LOG} is right"] if off > MOST_LOG else []
    off = abs(ours["kl"] / kl.mean() - 1)
    print(f"kl: {ours['kl']:.6f}, llama.cpp {kl.mean():.6f}, off by {off:.2g}; {len(kl)} tokens", file=sys.stderr)
    wrong += [f"the mean KL is off by {off:.2%}, at most {MOST_KL:.0%} is right"] if off > MOST_KL else []
    assert ours["scored"] == len(kl), f"{ours['scored']} tokens are scored, {len(kl)} are meant"
    print("\n".join(wrong) or "as llama.cpp's logits have it", file=sys.stderr)
    sys.stderr.flush()
    os._exit(bool(wrong))  # llama.cpp's threads outlive an exit


if __name__ == "__main__":
    main()
