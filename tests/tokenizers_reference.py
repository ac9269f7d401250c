"""Tokenizers to compare with: Hugging Face's own, built or trained for each family, and the same as tokenizer.gguf."""

from __future__ import annotations

import functools
import json
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.models import smollm2_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As published with Ministral and with Phi-4-mini.
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # noqa: E501
TEKKEN = _CASED % ("", "", "")
GPT_4O = _CASED % ("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "{1,3}")
CORPUS = """The quick brown fox jumps over the lazy dog; it's what they'll say they've done, I'd bet. WE'RE SURE IT'S.
def main(arguments):\n    return [value ** 2 for value in arguments if value > 10]  # 1024 + 2048 = 3072, 1/2 of 100%
for (int i = 0; i < n; ++i) {\n\t\tsum += x[i] * y[i];\r\n\t}\n\n\n  return sum;   }
Überall dort, wo Menschen leben, gibt es Straßen. Ça va très bien, déjà vu, naïve café. Żółć, đồng, Ấn Độ.
你好，世界。今天天气很好。こんにちは、世界。東京タワー 한국어 안녕하세요 세계
مرحبا بالعالم ١٢٣ שלום עולם สวัสดีชาวโลก ๑๒๓ नमस्ते दुनिया १२३ Привет, мир! Γειά σου Κόσμε
😀😁🎉👩‍👩‍👧‍👦🏳️‍🌈 ½ ² ₃ Ⅷ ①② www.example.org/path?q=1&r=2 user@example.com 3.14159 1,000,000 2024-01-31T12:00:00Z
<html><body class="x">text</body></html> {"key": [1, 2, 3], "other": null} SELECT * FROM t WHERE a = 'b';
"""


def write_vocabulary(
    path: Path,
    tokens: Sequence[str],
    *,
    model: str = "gpt2",
    pre: str | None = None,
    types: Sequence[int] | None = None,
    merges: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    lstrip: Sequence[int] | None = None,
    rstrip: Sequence[int] | None = None,
    **more: Any,
) -> Path:
    """A tokenizer.gguf (docs/sim-gguf.md); ``more`` is further keys, numbers and booleans: of ``tokenizer.ggml``, or
    with an underscore before them of ``rksim``."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_uint32("rksim.version", 2)
    writer.add_uint32("rksim.header_crc32", 0)
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    arrays: list[tuple[str, Sequence[Any] | None, gguf.GGUFValueType]] = [
        ("tokenizer.ggml.token_type", types, gguf.GGUFValueType.INT32),
        ("tokenizer.ggml.merges", merges, gguf.GGUFValueType.STRING),
        ("tokenizer.ggml.scores", scores, gguf.GGUFValueType.FLOAT32),
        ("rksim.lstrip_token_ids", lstrip, gguf.GGUFValueType.INT32),
        ("rksim.rstrip_token_ids", rstrip, gguf.GGUFValueType.INT32),
    ]
    for key, values, kind in arrays:
        if values:
            writer.add_key_value(key, values, gguf.GGUFValueType.ARRAY, sub_type=kind)
    for key, value in more.items():
        (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(
            f"rksim.{key[1:]}" if key.startswith("_") else f"tokenizer.ggml.{key}", value
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return patch_checksum(path)


def patch_checksum(path: Path) -> Path:
    """Fill in ``rksim.header_crc32`` of a file whose checksum is zero."""
    data = bytearray(path.read_bytes())
    key = b"rksim.header_crc32"
    at = data.index(key) + len(key) + 4
    data[at : at + 4] = bytes(4)
    data[at : at + 4] = zlib.crc32(data).to_bytes(4, "little")
    path.write_bytes(data)
    return path


@dataclass(frozen=True)
class Family:
    """Hugging Face's tokenizer, and what a file needs to be the same one."""

    name: str
    reference: Tokenizer
    model: str
    pre: str | None
    special: list[str]
    added: list[str] = field(default_factory=list)
    keys: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path, *, by_score: bool = False) -> Path:
        """The same as a tokenizer.gguf; ``by_score``: with scores in place of merges, as SentencePiece has them."""
        data = json.loads(self.reference.to_str())["model"]
        size = self.reference.get_vocab_size(with_added_tokens=True)
        tokens = [self.reference.id_to_token(i) or f"[PAD{i}]" for i in range(size)]
        merges = [" ".join(m) for m in data["merges"]]
        scores = None
        if by_score:  # distinct for each token, as in every published SentencePiece vocabulary
            made = {m.replace(" ", ""): -float(rank) for rank, m in reversed(list(enumerate(merges)))}
            scores = [made.get(token, -1e6) for token in tokens]
        types = [self._type(token) for token in tokens]
        lists: dict[str, Any] = {"scores": scores} if by_score else {"merges": merges}
        for side in ("lstrip", "rstrip"):
            decoder = self.reference.get_added_tokens_decoder()
            lists[side] = [i for i, token in decoder.items() if getattr(token, side)]
        return write_vocabulary(path, tokens, model=self.model, pre=self.pre, types=types, **lists, **self.keys)

    def _type(self, token: str) -> int:
        if token in self.special:
            return UNKNOWN if token == "<unk>" else CONTROL
        if token in self.added:
            return USER_DEFINED
        return BYTE if self.model == "llama" and re.fullmatch(r"<0x[0-9A-F]{2}>", token) else NORMAL


def _add(tokenizer: Tokenizer, special: Sequence[str], added: Sequence[str] = ()) -> None:
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])


@functools.cache
def smollm2() -> Family:
    """SmolLM2's true tokenizer from the tokens and merges of its GGUF file."""
    fields = gguf.GGUFReader(smollm2_gguf()).fields
    tokens, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    reference = Tokenizer(models.BPE({text: i for i, text in enumerate(tokens)}, merges))
    reference.pre_tokenizer = _byte_level("smollm")
    reference.decoder = decoders.ByteLevel()
    special = [text for text, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    _add(reference, special)
    return Family("SmolLM2", reference, "gpt2", "smollm", special, keys={"bos_token_id": 1, "eos_token_id": 2})


def _byte_level(pre: str) -> pre_tokenizers.PreTokenizer:
    regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "gpt-2":
        return regex
    if pre == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), regex])
    words = Regex({"llama-bpe": WORDS % "{1,3}", "qwen2": WORDS % "", "tekken": TEKKEN, "gpt-4o": GPT_4O}[pre])
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), plain])


PRE = ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o")


@functools.cache
def byte_level(pre: str, *, nfc: bool | None = None, ignore_merges: bool | None = None) -> Family:
    """A small ByteLevel vocabulary trained with the pre-tokeniser ``pre``; all else as models with it have it."""
    composed = pre == "qwen2" if nfc is None else nfc
    whole = pre in ("llama-bpe", "tekken") if ignore_merges is None else ignore_merges
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    if composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _byte_level(pre)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True) * 3, trainer)
    if whole or pre == "llama-bpe":
        tokenizer = _with_words_no_merge_makes(tokenizer)
    added = ["<tool_call>", "<tool>", "  "]
    _add(tokenizer, CHATML, added)
    keys = (
        {"_ignore_merges": whole, "_nfc": composed}
        if pre in ("tekken", "gpt-4o") or (nfc, ignore_merges) != (None, None)
        else {}
    )
    return Family(pre, tokenizer, "gpt2", pre, CHATML, added, keys)


@functools.cache
def phi2() -> Family:
    """GPT-2's words; runs of spaces and of tabs are added tokens that the normaliser, of which there is none, sees."""
    plain = byte_level("gpt-2")
    reference = Tokenizer.from_str(plain.reference.to_str())
    runs = [*(" " * n for n in range(9, 1, -1)), *("\t" * n for n in range(5, 1, -1))]
    reference.add_tokens([AddedToken(text, normalized=True) for text in runs])
    return replace(plain, name="phi-2", reference=reference, added=[*plain.added, *runs])


def _with_words_no_merge_makes(tokenizer: Tokenizer) -> Tokenizer:
    """Llama 3's vocabulary has words that no merges lead to: only ignore_merges finds them."""
    data = json.loads(tokenizer.to_str())
    vocab = data["model"]["vocab"]
    for text in ("Ġxyzzy", "qqq", "ĠâĤ¬"):
        vocab[text] = len(vocab)
    return Tokenizer.from_str(json.dumps(data))


@functools.cache
def sentencepiece(lead: str = "normaliser", *, bytes_from: int = 0) -> Family:
    """A small vocabulary with byte fallback, as Llama 2's; ``lead``: what puts the first space there.

    ``bytes_from`` leaves out the tokens of the bytes below it, so that some characters are unknown.
    """
    unknown, special = "<unk>", ["<unk>", "<s>", "</s>", "<|user|>"]
    tokenizer = Tokenizer(models.BPE(unk_token=unknown, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    letters = sorted({c for c in CORPUS if c.isascii() and c.isprintable() and c != " "} | set("éüßñ你好мир▁"))
    plain = [*special, *(f"<0x{b:02X}>" for b in range(bytes_from, 256))]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=plain, limit_alphabet=len(letters), initial_alphabet=letters,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS.splitlines() * 3, trainer)
    vocab, merges = _closed(tokenizer)
    reference = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, byte_fallback=True, fuse_unk=True))
    keys: dict[str, Any] = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": lead != "none",
    }
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if lead != "none":
        steps.append(decoders.Strip(" ", 1, 0))
    reference.decoder = decoders.Sequence(steps)
    replace = normalizers.Replace(" ", "▁")
    if lead == "normaliser":
        reference.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif lead == "none":
        reference.normalizer = replace
    else:
        reference.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=lead, split=False)
    added = ["<tool>", "\n\n"]
    _add(reference, special, added)
    pre = f"metaspace-{lead}" if lead in ("first", "always") else None
    return Family(f"sentencepiece {lead}", reference, "llama", pre, special, added, keys)


def normalised(plain: Family) -> Family:
    """The same with added tokens that go through the normaliser, which is what transformers adds unless told otherwise;
    some of them overlap with tokens that do not."""
    reference = Tokenizer.from_str(plain.reference.to_str())
    special, added = ["<|late|>", "<x>", "Å>"], ["<late>", "<|user|><", "a <b>", "the", "é"]
    reference.add_special_tokens([AddedToken(text, normalized=True) for text in special])
    reference.add_tokens([AddedToken(text, normalized=True, lstrip=text == "<late>") for text in added])
    reference.add_special_tokens([AddedToken("<|wide|>", normalized=True, lstrip=True, rstrip=True)])
    special, added = [*plain.special, *special, "<|wide|>"], [*plain.added, *added]
    return replace(plain, name=f"{plain.name}, normalised", reference=reference, special=special, added=added)


@functools.cache
def phi3() -> Family:
    """Llama 2's, with special tokens that take the spaces after them along; one takes those before it, too."""
    plain = sentencepiece()
    reference = Tokenizer.from_str(plain.reference.to_str())
    special = ["<|assistant|>", "<|end|>", "<|place|>"]
    for text in special:
        left = text == "<|place|>"
        reference.add_special_tokens([AddedToken(text, special=True, normalized=False, lstrip=left, rstrip=True)])
    return replace(plain, name="phi-3", reference=reference, special=[*plain.special, *special])


@functools.cache
def gemma() -> Family:
    """No space before the text; runs of line ends and of marks are tokens that text becomes before it is merged."""
    plain = sentencepiece("none")
    reference = Tokenizer.from_str(plain.reference.to_str())
    reference.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<start_of_turn>", "<end_of_turn>"]
    added = [*("\n" * n for n in (3, 4, 5)), *("▁" * n for n in (2, 4, 8)), "<table>"]
    _add(reference, special, added)
    special, added = [*plain.special, *special], [*plain.added, *added]
    return replace(plain, name="gemma", reference=reference, special=special, added=added)


def _closed(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary with every merge that makes one of its tokens, ordered as transformers orders them."""
    data = json.loads(tokenizer.to_str())["model"]
    vocab: dict[str, int] = data["vocab"]
    for count in (2, 4, 8, 16):  # runs of spaces, which SentencePiece's vocabularies have
        vocab.setdefault("▁" * count, len(vocab))
    scores = {text: -float(i) for i, text in enumerate(vocab)}
    made = [
        (scores[text], len(text[:cut]), len(text[cut:]), -i, (text[:cut], text[cut:]))
        for i, text in enumerate(vocab)
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    return vocab, [pair for *_, pair in sorted(made, reverse=True)]


# What random strings are made of: every kind of character that a rule above treats in its own way.
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ ",
    "0123456789.,+-*/=% ",
    " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff\u180e",
    "".join(map(chr, [*range(32), 0x7F, 0x80, 0x9F, 0xAD])),
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "'sStTmMdDrReEvVlL \u017f\u212a\u2019",
    "你好世界今天天气很好中文，。！？、《》「」漢字カタカナひらがな한국어",
    "مرحبا العالم١٢٣٤َُِّْ،؟ שלוםעולם",
    "สวัสดีชาวโลก๑๒๓่้๊๋ นมस्तेदुनियाक्षि१२३",
    "éèêëüöäßñçøåÉ\u0301\u0300\u0308\u0323\u0327\u0338\u0344\u0345\u0e48 aeouAEOU",
    "각\u1100\u1161\u11a8\u1112\u1175\uac00\uac01\ud7a3\u11c2",
    "\u0958\u09cb\u09c7\u09be\u2126\u212b\u1e9b\u0323\uf900\ufa10\ufb1d\U0001d15e\U0002f800\u0f73\u1ebf",
    "😀😁🎉👩\u200d👧🏳\ufe0f🌈🇩🇪👍🏽",
    "½²³₃ⅧⅣ①②㈠〇٣۴߁𝟘𐄇\U0001e950\u0bf0\u3007\u2189",
    "".join(map(chr, [0x10FFFF, 0xFFFE, 0xFFFF, 0xFDD0, 0xE000, 0x2FF0, 0x1F9FF, 0x1C89, 0xA7CB, 0x10D40, 0x16D40])),
]
_LINES = [line for line in CORPUS.splitlines() if line]
_WORDS = CORPUS.split(" ")


def random_text(draw: random.Random, special: Sequence[str]) -> str:
    """Bits of language, code, odd characters, spaces and the texts of ``special`` tokens, whole and broken."""
    parts = []
    for _ in range(draw.randint(1, 6)):
        kind = draw.random()
        if kind < 0.4:
            parts += draw.choices(draw.choice(ALPHABETS), k=draw.randint(1, 12))
        elif kind < 0.6:
            parts.append(" ".join(draw.choices(_WORDS, k=draw.randint(1, 4))))
        elif kind < 0.7:
            line = draw.choice(_LINES)
            at = draw.randrange(len(line))
            parts.append(line[at : at + draw.randint(1, 30)])
        elif kind < 0.8:
            parts += [_any_char(draw) for _ in range(draw.randint(1, 8))]
        elif kind < 0.9:
            parts.append(draw.choice(" \n\t\r'▁a0") * draw.randint(1, 9))
        else:
            token = draw.choice(special)
            parts.append(token if draw.random() < 0.7 else token[draw.randrange(len(token)) :])
    return "".join(parts)


def _any_char(draw: random.Random) -> str:
    point = draw.randrange(draw.choice((0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000)))
    return chr(point) if not 0xD800 <= point < 0xE000 else "\ud7ff"


def random_texts(seed: int, count: int, special: Sequence[str]) -> list[str]:
    draw = random.Random(seed)
    return [random_text(draw, special) for _ in range(count)]
