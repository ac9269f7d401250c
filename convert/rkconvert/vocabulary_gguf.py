"""The tokenizer inside a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rk3588.errors import CheckpointError

from .vocabulary import CONTROL, NORMAL, Vocabulary, checked, in_range, padded

# llama.cpp's names, of which several are the same pre-tokeniser.
_PRE = {
    "gpt-2": "gpt-2", "smollm": "smollm", "llama-bpe": "llama-bpe", "llama3": "llama-bpe", "llama-v3": "llama-bpe",
    "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2",
}  # fmt: skip
# A GGUF file names one EOS token; these end an answer as well, wherever they are control tokens.
_ENDS = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"}


def read_vocabulary(metadata: Mapping[str, Any], path: Path, size: int) -> Vocabulary:
    """``tokenizer.ggml.*`` of ``metadata`` for a model of ``size`` embedding rows."""
    keys = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items() if k.startswith("tokenizer.")}
    model = keys.get("model")
    if model not in ("gpt2", "llama"):
        raise CheckpointError(f"{path}: tokenizer {model!r} is not supported, only BPE ('gpt2' and 'llama')")
    tokens = _strings(keys, "tokens", path)
    if not tokens or len(tokens) > size:
        raise CheckpointError(f"{path}: the tokenizer has {len(tokens)} tokens, the embedding {size} rows")
    types = _numbers(keys, "token_type", path) or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"{path}: the tokenizer has {len(tokens)} tokens and {len(types)} token types")
    all_tokens, all_types = padded(tokens, types, size)
    scores = _numbers(keys, "scores", path)
    bos, eos = _token(keys, "bos_token_id", path), _token(keys, "eos_token_id", path)
    ends = {i for i, text in enumerate(tokens) if text in _ENDS and types[i] == CONTROL}
    ends |= {i for i in (eos, _token(keys, "eot_token_id", path), _token(keys, "eom_token_id", path)) if i is not None}
    pre, notes = _pre_tokeniser(keys, tokens, path) if model == "gpt2" else (None, ())
    template = keys.get("tokenizer.chat_template")
    vocabulary = Vocabulary(
        model=model,
        pre=pre,
        tokens=all_tokens,
        types=all_types,
        merges=tuple(_strings(keys, "merges", path)),
        scores=(*scores, *([0.0] * (size - len(tokens)))) if scores else (),
        bos=bos,
        eos=eos,
        unknown=_token(keys, "unknown_token_id", path),
        add_bos=bool(keys.get("add_bos_token", model == "llama")),
        add_space_prefix=bool(keys.get("add_space_prefix", model == "llama")),
        eos_ids=in_range(ends, len(tokens)),
        chat_template=template if isinstance(template, str) and template else None,
        notes=notes,
    )
    if model == "gpt2" and not vocabulary.merges:
        raise CheckpointError(f"{path}: the tokenizer has no merges, which ByteLevel BPE needs")
    if model == "llama" and not (vocabulary.scores or vocabulary.merges):
        raise CheckpointError(f"{path}: the tokenizer has neither scores nor merges")
    return checked(vocabulary, str(path))


def _pre_tokeniser(keys: Mapping[str, Any], tokens: list[str], path: Path) -> tuple[str, tuple[str, ...]]:
    name = keys.get("pre")
    if name in _PRE:
        return _PRE[name], ()
    if name in (None, "default") and "<|begin_of_text|>" in tokens:
        return "llama-bpe", ("the file names no pre-tokeniser; its tokens are Llama 3's, so Llama 3's is used",)
    raise CheckpointError(
        f"{path}: pre-tokeniser {name!r} is not supported, only {', '.join(sorted(set(_PRE.values())))}: "
        "convert from the Hugging Face model instead"
    )


def _strings(keys: Mapping[str, Any], key: str, path: Path) -> list[str]:
    return _list(keys, key, path, str)


def _numbers(keys: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    return _list(keys, key, path, (int, float))


def _list(keys: Mapping[str, Any], key: str, path: Path, kind: type | tuple[type, ...]) -> list[Any]:
    value = keys.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise CheckpointError(f"{path}: tokenizer.ggml.{key} is not the list it should be")
    return value


def _token(keys: Mapping[str, Any], key: str, path: Path) -> int | None:
    value = keys.get(key)
    if value is not None and not isinstance(value, int):
        raise CheckpointError(f"{path}: tokenizer.ggml.{key} is {value!r}, expected a token's id")
    return value
