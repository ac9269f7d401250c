"""``tokenizer.json`` and ``tokenizer_config.json`` for a tokenizer out of a GGUF file, which has none.

For programs that open a bundle with tokenizers or transformers: they get the ids that the runtime gets.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from .huggingface import SPACES_TO_MARKS, SPLITS
from .vocabulary import CONTROL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary, is_byte

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_MARK = "▁"  # a space in SentencePiece's vocabularies


def files(vocabulary: Vocabulary, context: int) -> dict[str, str]:
    """Both by name, for a model with so much context (0: not known); none of a vocabulary that has an obstacle."""
    if obstacle(vocabulary):
        return {}
    texts = {
        "bos_token": vocabulary.text(vocabulary.bos),
        "eos_token": vocabulary.text(vocabulary.eos),
        "unk_token": vocabulary.text(vocabulary.unknown),
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": False,
        **{key: text for key, text in texts.items() if text is not None},
        "clean_up_tokenization_spaces": False,
        **({"model_max_length": context} if context else {}),
        **({"chat_template": vocabulary.chat_template} if vocabulary.chat_template else {}),
    }
    return {TOKENIZER: _json(tokenizer(vocabulary)), SETTINGS: _json(settings, indent=2)}


def obstacle(vocabulary: Vocabulary) -> str | None:
    """Why tokenizers could not be made to give the runtime's ids, in a few words; None: it can."""
    counts = Counter(vocabulary.tokens[i] for i in _kept(vocabulary) if vocabulary.tokens[i])
    twice = next((text for text, n in counts.items() if n > 1), None)
    if twice is not None:
        return f"two of its tokens are {twice[:60]!r}"
    for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED) and _typed_otherwise(vocabulary, text, kind):
            return f"its special token {text[:60]!r} is what a text may become"
    return None


def _typed_otherwise(vocabulary: Vocabulary, text: str, kind: int) -> bool:
    """Whether tokenizers makes a special token of a text that does not have its spelling; the runtime never does."""
    if vocabulary.model == "llama":
        return kind != USER_DEFINED and (text == _MARK or is_byte(text))
    spelt_otherwise = not text.isascii() and all(ord(c) < 0x144 for c in text)  # GPT-2's letters for bytes
    return spelt_otherwise and (vocabulary.ignore_merges or (len(text) == 1 and kind != USER_DEFINED))


def _kept(vocabulary: Vocabulary) -> list[int]:
    """Ids of the tokens that stand for something; the others only pad the embedding."""
    named = {vocabulary.bos, vocabulary.eos, vocabulary.unknown}
    return [i for i, kind in enumerate(vocabulary.types) if kind != UNUSED or i in named]


def tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """The contents of ``tokenizer.json``."""
    ids = {vocabulary.tokens[i]: i for i in _kept(vocabulary) if vocabulary.tokens[i]}
    plain = vocabulary.model == "gpt2"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(vocabulary, ids),
        **(_byte_level(vocabulary) if plain else _sentencepiece(vocabulary)),
        "post_processor": _post_processor(vocabulary),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if plain else vocabulary.text(vocabulary.unknown),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": not plain,
            "byte_fallback": not plain,
            "ignore_merges": vocabulary.ignore_merges,
            "vocab": ids,
            "merges": _merges(vocabulary, ids),
        },
    }


def _added(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "id": i, "content": text, "single_word": False, "lstrip": i in vocabulary.lstrip,
            "rstrip": i in vocabulary.rstrip, "normalized": i in vocabulary.normalised,
            "special": vocabulary.types[i] != USER_DEFINED,
        }
        for text, i in ids.items()
        if vocabulary.types[i] in (CONTROL, UNKNOWN, USER_DEFINED)
    ]  # fmt: skip


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    own = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps: list[dict[str, Any]] = [own]
    if vocabulary.pre == "smollm":
        steps = [{"type": "Digits", "individual_digits": True}, own]
    elif vocabulary.pre != "gpt-2":
        words = {pre: expression for expression, pre in SPLITS.items()}
        split = {
            "type": "Split",
            "pattern": {"Regex": words[str(vocabulary.pre)]},
            "behavior": "Isolated",
            "invert": False,
        }
        steps = [split, {**own, "use_regex": False}]
    return {
        "normalizer": {"type": "NFC"} if vocabulary.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": own,
    }


def _sentencepiece(vocabulary: Vocabulary) -> dict[str, Any]:
    """A space before the text and behind each special token, as SentencePiece's users know it."""
    lead = vocabulary.add_space_prefix
    steps = [{"type": "Prepend", "prepend": _MARK}] if lead else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if lead else []
    back = {"type": "Replace", "pattern": {"String": _MARK}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*steps, SPACES_TO_MARKS]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
    }


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any] | None:
    bos = vocabulary.text(vocabulary.bos)
    if not vocabulary.add_bos or bos is None:
        return None

    def begun(name: str, number: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": bos, "type_id": number}},
            {"Sequence": {"id": name, "type_id": number}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": begun("A", 0),
        "pair": [*begun("A", 0), *begun("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [vocabulary.bos], "tokens": [bos]}},
    }


def _merges(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[str]:
    """Those that text can take: the runtime never merges typed text into a special token."""
    text = {t: i for t, i in ids.items() if vocabulary.types[i] not in (CONTROL, UNKNOWN, UNUSED)}
    if vocabulary.merges:
        pairs = [(merge, merge.index(" ", 1)) for merge in vocabulary.merges]
        return [m for m, at in pairs if {m[:at], m[at + 1 :], m[:at] + m[at + 1 :]} <= text.keys()]
    return _merges_by_score(vocabulary, text)


def _merges_by_score(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[str]:
    """Every cut of every token into two: the highest score first, then the longest left part, then the longest right
    part, then the lowest id. That is transformers' order, and the runtime's."""
    found = [
        (-vocabulary.scores[i], -cut, cut - len(text), i, f"{text[:cut]} {text[cut:]}")
        for text, i in ids.items()
        if " " not in text  # a space is a mark by then
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    return [merge for *_, merge in sorted(found)]


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=None if indent else (",", ":"))
