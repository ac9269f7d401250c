"""The tokenizer inside a GGUF file, as llama.cpp reads it: what a file leaves out has its meaning there."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rk3588.errors import CheckpointError
from rkconvert.architectures.fields import shown

from .vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    check_size,
    checked,
    in_range,
    is_byte,
    padded,
)

# llama.cpp's names, of which several are the same pre-tokeniser.
_PRE = {
    **dict.fromkeys(("gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum"), "gpt-2"),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"), "smollm"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"), "llama-bpe"),
    **dict.fromkeys(("smaug-bpe", "dbrx"), "llama-bpe"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "megrez"), "qwen2"),
    "tekken": "tekken",
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), "gpt-4o"),
}
_BY_MERGES = ("smaug-bpe", "dbrx")  # these look no word up whole, and their prompts need no BOS
_LIKE_LLAMA_3 = ("llama-bpe", "tekken")  # the others do
# What a file means that names no pre-tokeniser, by its architecture: those made before llama.cpp knew of any.
_PRE_OF = {"qwen2": "qwen2", "qwen3": "qwen2", "phi2": "gpt-2"}
# A token with one of these texts ends an answer, whatever its type and whatever EOS the file names.
_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
}  # fmt: skip
# So does one token of each of these, the one that its key names or the first text that is there.
_FILL_ENDS = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
# And these are special, whatever their type.
_FILL = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"),
}
_LOOKS_SPECIAL = re.compile(r"<\|.+\|>|<[\w/-]+>|\[[A-Z_]+\]")


def read_vocabulary(metadata: Mapping[str, Any], path: Path, size: int) -> Vocabulary:
    """``tokenizer.ggml.*`` of ``metadata`` for a model of ``size`` embedding rows."""
    keys = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items() if k.startswith("tokenizer.")}
    model = keys.get("model")
    if model not in ("gpt2", "llama"):
        raise CheckpointError(f"{path}: tokenizer {shown(model)} is not supported, only BPE ('gpt2' and 'llama')")
    tokens, merges = _strings(keys, "tokens", path), _strings(keys, "merges", path)
    if not tokens:
        raise CheckpointError(f"{path}: the tokenizer has no tokens (tokenizer.ggml.tokens): download the file again")
    check_size(len(tokens), size, str(path))
    ids = _ids(keys, model, len(tokens), path)
    architecture = metadata.get("general.architecture")
    pre, notes = _pre_tokeniser(keys, architecture, tokens, path) if model == "gpt2" else (None, [])
    like_llama_3 = pre in _LIKE_LLAMA_3 and keys.get("pre") not in _BY_MERGES
    types = _types(keys, tokens, path)
    if not types:
        types = _guessed_types(model, tokens, merges, ids)
        notes.append("the file has no token types: those that look special, and those it names, were taken for special")
    ends = _ends(tokens, types, keys, path).union(i for i in (ids["eos"], ids["eot"], ids["eom"]) if i is not None)
    if not ends:
        notes.append("the file names no token that ends an answer")
    if keys.get("add_eos_token"):
        notes.append("the file asks for EOS behind every prompt (add_eos_token), and the runtime puts none there")
    all_tokens, all_types = padded(tokens, types, size)
    template = keys.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{path}: tokenizer.chat_template is {shown(template)}, expected a text")
    vocabulary = Vocabulary(
        model=model,
        pre=pre,
        tokens=all_tokens,
        types=all_types,
        merges=tuple(merges),
        scores=_scores(keys, model, bool(merges), size - len(tokens), path),
        bos=ids["bos"],
        eos=ids["eos"],
        unknown=ids["unknown"],
        add_bos=_adds_bos(keys, model == "llama" or like_llama_3, ids["bos"], path),
        add_space_prefix=model == "llama" and _flag(keys, "add_space_prefix", True, path),
        eos_ids=in_range(ends, len(tokens)),
        chat_template=template or None,
        rstrip=_phi3_strips(metadata, tokens, types),
        nfc=pre == "qwen2",
        ignore_merges=like_llama_3,
        notes=tuple(notes),
    )
    if model == "llama" and not (vocabulary.scores or merges):
        raise CheckpointError(f"{path}: the tokenizer has neither scores nor merges")
    return checked(vocabulary, str(path), size)


def _ids(keys: Mapping[str, Any], model: str, size: int, path: Path) -> dict[str, int | None]:
    """The tokens that the file names; SentencePiece's have the ids that they always have where it does not."""
    found = {k: _token(keys, f"{k}_token_id", path) for k in ("bos", "eos", "eot", "eom", "unknown")}
    if model == "llama":
        for name, usual in (("unknown", 0), ("bos", 1), ("eos", 2)):
            if found[name] is None and usual < size:
                found[name] = usual
    return found


def _types(keys: Mapping[str, Any], tokens: Sequence[str], path: Path) -> list[int]:
    types: list[int] = _list(keys, "token_type", path, int)
    if types and len(types) != len(tokens):
        raise CheckpointError(f"{path}: the tokenizer has {len(tokens)} tokens and {len(types)} token types")
    unknown = next((i for i, kind in enumerate(types) if not NORMAL <= kind <= BYTE), None)
    if unknown is not None:
        raise CheckpointError(f"{path}: token {unknown} of the tokenizer has the unknown type {types[unknown]}")
    return types


def _guessed_types(
    model: str, tokens: Sequence[str], merges: Sequence[str], ids: Mapping[str, int | None]
) -> list[int]:
    """Without types, a token is special that looks it and that no merge makes, or that the file names."""
    made = {merge.replace(" ", "") for merge in merges}
    types = [CONTROL if _LOOKS_SPECIAL.fullmatch(text) and text not in made else NORMAL for text in tokens]
    for token in ids.values():
        if token is not None and 0 <= token < len(tokens):
            types[token] = CONTROL
    if model == "llama":
        types = [BYTE if is_byte(text) else kind for text, kind in zip(tokens, types, strict=True)]
        unknown = ids["unknown"]
        if unknown is not None and 0 <= unknown < len(tokens):
            types[unknown] = UNKNOWN
    return types


def _ends(tokens: Sequence[str], types: list[int], keys: Mapping[str, Any], path: Path) -> set[int]:
    """The tokens that end an answer by their text. They become special in ``types``, as do those around a gap to fill:
    else they would be printed, and not be read in a template."""
    by_text = {text: i for i, text in reversed([*enumerate(tokens)]) if text in _SPECIAL}  # the first of each
    found = {i for text, i in by_text.items() if text in _ENDS}
    special = set(found)
    for name, texts in {**_FILL_ENDS, **_FILL}.items():
        named = _token(keys, f"{name}_token_id", path)
        if named is not None and name in _FILL_ENDS:
            found.add(named)
        if named is None:
            first = [by_text[text] for text in texts if text in by_text][:1]
            special.update(first)
            if name in _FILL_ENDS:
                found.update(first)
    for i in special:
        types[i] = CONTROL
    _take_back(by_text, types, found)
    return found


def _take_back(by_text: Mapping[str, int], types: list[int], ends: set[int]) -> None:
    """Two families whose vocabularies have a text that ends an answer elsewhere."""
    there = by_text.keys()
    if "<|end|>" in there and ({"<|return|>", "<|call|>"} <= there or {"<|calls|>", "<|flush|>"} <= there):
        ends.discard(by_text["<|end|>"])
        types[by_text["<|end|>"]] = USER_DEFINED
    if {"<|tool_response>", "</s>"} <= there:
        ends.discard(by_text["</s>"])
        types[by_text["</s>"]] = NORMAL


_SPECIAL = _ENDS.union(*_FILL_ENDS.values(), *_FILL.values())


def _adds_bos(keys: Mapping[str, Any], usual: bool, bos: int | None, path: Path) -> bool:
    """Without the key, SentencePiece's, Llama 3's and Ministral's prompts begin with BOS."""
    adds = _flag(keys, "add_bos_token", usual, path)
    if adds and bos is None:
        raise CheckpointError(
            f"{path}: prompts begin with BOS (add_bos_token, or its pre-tokeniser), and tokenizer.ggml.bos_token_id "
            "does not say which token that is: convert from the Hugging Face model instead"
        )
    return adds


def _scores(keys: Mapping[str, Any], model: str, merges: bool, missing: int, path: Path) -> tuple[float, ...]:
    scores: list[float] = _list(keys, "scores", path, (int, float))
    bad = next((i for i, score in enumerate(scores) if not math.isfinite(score)), None)
    if bad is not None:
        raise CheckpointError(f"{path}: the score of token {bad} is {scores[bad]}: download the file again")
    if model == "llama" and not merges and len(scores) > 1 and len(set(scores)) == 1:
        raise CheckpointError(
            f"{path}: all tokens have the score {scores[0]:g} and there are no merges, so nothing says how a text is "
            "cut into tokens: convert from the Hugging Face model instead"
        )
    return (*scores, *([0.0] * missing)) if scores else ()


def _phi3_strips(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> tuple[int, ...]:
    """GGUF has no key for tokens that take the spaces after them along: llama.cpp knows Phi 3's by the model's name."""
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return ()
    plain = {"<unk>", "<s>", "<|endoftext|>"}
    strips = (UNKNOWN, CONTROL, USER_DEFINED)
    return tuple(i for i, kind in enumerate(types) if kind in strips and tokens[i] not in plain)


def _pre_tokeniser(keys: Mapping[str, Any], architecture: Any, tokens: list[str], path: Path) -> tuple[str, list[str]]:
    name = keys.get("pre")
    if isinstance(name, str) and name in _PRE:
        return _PRE[name], []
    if name in (None, "default") and "<|begin_of_text|>" in tokens:
        return "llama-bpe", ["the file names no pre-tokeniser; its tokens are Llama 3's, so Llama 3's is used"]
    if name in (None, "default") and isinstance(architecture, str) and architecture in _PRE_OF:
        usual = _PRE_OF[architecture]
        return usual, [f"the file names no pre-tokeniser; {usual} is used, as in every {architecture} model"]
    raise CheckpointError(
        f"{path}: pre-tokeniser {shown(name)} is not supported, only {', '.join(sorted(set(_PRE.values())))}: "
        "convert from the Hugging Face model instead"
    )


def _strings(keys: Mapping[str, Any], key: str, path: Path) -> list[str]:
    return _list(keys, key, path, str)


def _list(keys: Mapping[str, Any], key: str, path: Path, kind: type | tuple[type, ...]) -> list[Any]:
    value = keys.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise CheckpointError(f"{path}: tokenizer.ggml.{key} is not the list it should be")
    return value


def _flag(keys: Mapping[str, Any], key: str, default: bool, path: Path) -> bool:
    value = keys.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{path}: tokenizer.ggml.{key} is {shown(value)}, expected true or false")
    return value


def _token(keys: Mapping[str, Any], key: str, path: Path) -> int | None:
    value = keys.get(key)
    if value is not None and not isinstance(value, int):
        raise CheckpointError(f"{path}: tokenizer.ggml.{key} is {shown(value)}, expected a token's id")
    return value
