"""What the fuzzers start from: every kind of small valid artifact, vocabularies of every family, and texts."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from tests import models, smollm2
from tests.convert.test_sim_gguf import GOLDEN
from tests.sim.test_numerics_features import CASES
from tests.tokenizers_reference import byte_level, random_texts, sentencepiece, write_vocabulary

TARGETS = ("gguf", "tokenizer")
DTYPES = ["w8a8", "w8a8_g128", "fp16", "fp32"]
TEXTS, SPECIAL = 400, ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<tool>", "<|user|>", "  ", "\n\n"]


def vocabularies(folder: Path) -> list[Path]:
    """Where `write` puts one vocabulary of each family, each with a token for every byte; fuzz_tokenizer's order."""
    names = ("gpt-2", "smollm", "llama-bpe", "qwen2", "sentencepiece", "first", "none")
    return [folder / "vocabularies" / f"{name}.gguf" for name in names]


def write(folder: Path) -> None:
    """Fill ``folder``: a folder of inputs for each target, and the vocabularies."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in (*TARGETS, "vocabularies"):
        (folder / name).mkdir(parents=True)
    for path in vocabularies(folder):
        name = path.stem
        if name in ("sentencepiece", "first", "none"):
            sentencepiece("normaliser" if name == "sentencepiece" else name).write(path)
        else:
            byte_level(name).write(path)
    for number, text in enumerate(random_texts(2, TEXTS, SPECIAL)):
        which = bytes([number % len(vocabularies(folder))])
        (folder / "tokenizer" / f"{number:03}").write_bytes(which + text.encode())
    _artifacts(folder / "gguf")


def _artifacts(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for kind in ("untied", "tied"):
            source = models.tiny_llama(
                scratch / kind, layers=1, hidden=16, heads=2, kv_heads=1, head_dim=8, intermediate=24, vocab_size=264,
                tied=kind == "tied", rope_scaling={"rope_type": "linear", "factor": 2.0} if kind == "tied" else None,
            )  # fmt: skip
            smollm2.convert(source, scratch / "out", DTYPES, name=kind)
            for dtype in DTYPES:
                shutil.copy(scratch / "out" / f"{kind}-rk3588-{dtype}" / "model.sim.gguf", folder / f"{kind}-{dtype}")
    # Every feature in as few bytes as can be.
    shutil.copy(GOLDEN / "two_layers.sim.gguf", folder / "version-2")
    for kind in ("all", "all in parallel"):
        small = replace(
            CASES[kind], hidden=6, intermediate=10, heads=2, kv_heads=1, head_dim=12, vocab=12, turned=8
        )  # fmt: skip
        for dtype in DTYPES:
            small.write(folder / f"{kind.replace(' ', '-')}-{dtype}", dtype)
    # Vocabularies alone: small enough for a change to hit what matters.
    tokens = ["<unk>", "<s>", "a", "b", "ab", "abab", "<0x41>", "▁"]
    types = [2, 3, 1, 1, 1, 4, 6, 1]
    write_vocabulary(folder / "bytes", tokens, pre="gpt-2", types=types, merges=["a b", "ab ab"], bos_token_id=1)
    scores = [0.0, 0.0, -3.0, -4.0, -1.0, -2.0, 0.0, -5.0]
    write_vocabulary(folder / "pieces", tokens, model="llama", types=types, scores=scores, unknown_token_id=0)
