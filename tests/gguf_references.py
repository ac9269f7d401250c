"""GGUF files beside llama.cpp, and the tokenizer files of their bundles beside transformers.

    PYTHONPATH=.:convert python tests/gguf_references.py

What llama.cpp makes of packed weights, and of a tokenizer that leaves things out, is what the converter makes of them;
AutoTokenizer gives the ids that llama.cpp gives. Needs the packages xllamacpp, which carries a compiled llama.cpp, and
transformers.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import AutoTokenizer

from rk3588.gguf import read_file
from rkconvert.sources.opening import open_source
from rkconvert.tokenizers import tokenizer_json
from rkconvert.tokenizers.vocabulary import CONTROL, Vocabulary
from tests import models
from tests import tokenizers_reference as families
from tests.libllama import LlamaCpp
from tests.models import smollm2_gguf
from tests.packed import PACKED, blocks

CONTROL_ATTRIBUTE = 1 << 3
TINY = models.Tiny(layers=1)
TOKENIZER = "tokenizer.ggml."


def check_types(llama: LlamaCpp) -> None:
    for name in PACKED:
        raw = np.ascontiguousarray(blocks(name))
        kind = gguf.GGMLQuantizationType[name]
        theirs = llama.weights(name, raw, gguf.GGML_QUANT_SIZES[kind][0])
        np.testing.assert_allclose(gguf.quants.dequantize(raw, kind), theirs, rtol=1e-6, atol=1e-7, err_msg=name)


Change = Callable[[dict[str, Any]], None]


def drop(*names: str) -> Change:
    def change(keys: dict[str, Any]) -> None:
        for name in names:
            del keys[TOKENIZER + name]

    return change


def stored(value: Any) -> gguf.gguf_writer.GGUFValue:
    """As llama.cpp wants it: token ids without a sign."""
    kind = gguf.GGUFValueType
    if isinstance(value, list):
        item = {str: kind.STRING, float: kind.FLOAT32, int: kind.INT32}[type(value[0])]
        return gguf.gguf_writer.GGUFValue(value, kind.ARRAY, item)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return gguf.gguf_writer.GGUFValue(value, kind.UINT32 if whole else kind.get_type(value))


def sentencepiece(lead: str, *without: str) -> Change:
    """Llama 2's kind of tokenizer, with scores, and without these keys."""

    def change(keys: dict[str, Any]) -> None:
        for name in [name for name in keys if name.startswith("tokenizer.")]:
            del keys[name]
        with tempfile.TemporaryDirectory() as folder:
            found = read_file(families.sentencepiece(lead).write(Path(folder) / "t.gguf", by_score=True)).metadata
        for name, value in found.items():
            if name.startswith(TOKENIZER) and name.removeprefix(TOKENIZER) not in without:
                keys[name] = stored(value)
        missing = 900 - len(found[f"{TOKENIZER}tokens"])
        for name, filler in (("tokens", "[PAD{}]"), ("scores", -1e7), ("token_type", 5)):
            more = [filler.format(i) if isinstance(filler, str) else filler for i in range(missing)]
            if TOKENIZER + name in keys:
                keys[TOKENIZER + name].value.extend(more)

    return change


def rename(texts: dict[int, str], kinds: dict[int, int], **more: Any) -> Change:
    """Other texts and types for the tokens with these ids, counted from the end."""

    def change(keys: dict[str, Any]) -> None:
        for i, text in texts.items():
            keys[f"{TOKENIZER}tokens"].value[-i] = text
        for i, kind in kinds.items():
            keys[f"{TOKENIZER}token_type"].value[-i] = kind
        for name, value in more.items():
            if value is None:
                keys.pop(TOKENIZER + name, None)
            else:
                keys[TOKENIZER + name] = stored(value)

    return change


VARIANTS: dict[str, Change] = {
    "as it is": lambda _: None,
    "no flags": drop("add_bos_token", "add_space_prefix"),
    "llama 3, no flags": rename({}, {}, pre="llama3", add_bos_token=None),
    "llama-bpe, no BOS": rename({}, {}, pre="llama-bpe", add_bos_token=False),
    "qwen2": rename({}, {}, pre="qwen2"),
    "gpt-2": rename({}, {}, pre="gpt-2"),
    "refact": rename({}, {}, pre="refact"),
    "tekken": rename({}, {}, pre="tekken", add_bos_token=None),
    "gpt-4o": rename({}, {}, pre="gpt-4o"),
    "smaug-bpe": rename({}, {}, pre="smaug-bpe", add_bos_token=None),
    **{
        f"{text} of type {kind}": rename({1: text}, {1: kind})
        for text in ("<|eot_id|>", "</s>", "<end_of_turn>", "<|end|>", "<EOT>", "<|fim_pad|>", "<reponame>", "<file>")
        for kind in (1, 3, 4)
    },
    "other ends": rename({1: "<|end|>", 2: "<|return|>", 3: "<|call|>"}, {1: 3, 2: 3, 3: 3}),
    "sentencepiece": sentencepiece("normaliser"),
    "sentencepiece, no lead": sentencepiece("none"),
    "sentencepiece, no ids": sentencepiece("normaliser", "bos_token_id", "eos_token_id", "unknown_token_id"),
    "ends by key": rename({}, {}, eot_token_id=5, eom_token_id=6),
}


def check_vocabularies(llama: LlamaCpp, folder: Path) -> None:
    tiny = models.Tiny(layers=1, vocab_size=900)  # more rows than tokens, so that the last can be renamed
    for name, change in VARIANTS.items():
        path = models.write_gguf(folder / "tiny.gguf", tiny, tiny.weights(), change=change)
        ours = open_source(path).vocabulary
        compare(llama, path, ours, name)
        check_transformers(llama, path, ours, name, 60)
    real = smollm2_gguf()
    ours = open_source(real).vocabulary
    compare(llama, real, ours, real.name)
    check_transformers(llama, real, ours, real.name, 300)


def compare(llama: LlamaCpp, path: Path, ours: Vocabulary, name: str) -> None:
    with llama.vocabulary(path) as theirs:
        every = range(llama.lib.llama_vocab_n_tokens(theirs))
        ends = tuple(i for i in every if llama.lib.llama_vocab_is_eog(theirs, i))
        special = [i for i in every if llama.lib.llama_vocab_get_attr(theirs, i) & CONTROL_ATTRIBUTE]
        adds = llama.lib.llama_vocab_get_add_bos(theirs)
    found = (ours.eos_ids, [i for i, kind in enumerate(ours.types) if kind == CONTROL], ours.add_bos)
    assert found == (ends, special, adds), f"{name}: {found} and {(ends, special, adds)}"


def check_transformers(llama: LlamaCpp, path: Path, ours: Vocabulary, name: str, count: int) -> None:
    """AutoTokenizer over what a bundle holds; llama.cpp splits words of rare characters otherwise than tokenizers, so
    these are left out here."""
    with tempfile.TemporaryDirectory() as bundle:
        for file, text in tokenizer_json.files(ours, 512).items():
            (Path(bundle) / file).write_text(text, encoding="utf-8")
        reader = AutoTokenizer.from_pretrained(bundle)
    special = [text for text, kind in zip(ours.tokens, ours.types, strict=True) if kind == CONTROL]
    texts = [t for t in families.random_texts(7, 3 * count, special) if t.isascii() and t.isprintable()][:count]
    with llama.vocabulary(path) as theirs:
        for text in texts:
            expected = llama.ids(theirs, text, True)
            assert reader.encode(text) == expected, f"{name}: {text!r}"
    messages = [{"role": "user", "content": "Hi there"}]
    if ours.chat_template:
        shown = reader.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert shown.endswith("Hi there<|im_end|>\n<|im_start|>assistant\n"), shown
    assert (reader.bos_token_id, reader.eos_token_id) == (ours.bos, ours.eos), name


def main() -> None:
    llama = LlamaCpp()
    with tempfile.TemporaryDirectory() as folder:
        check_types(llama)
        check_vocabularies(llama, Path(folder))
    print(f"as llama.cpp has them: {len(PACKED)} types, {len(VARIANTS)} tokenizers", file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)  # llama.cpp's threads outlive an exit


if __name__ == "__main__":
    main()
