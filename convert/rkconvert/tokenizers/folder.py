"""What the files beside a Hugging Face folder's tokenizer say: special tokens, what ends an answer, the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rk3588 import files
from rk3588.errors import CheckpointError
from rk3588.mistaken import listed

from .vocabulary import CONTROL, in_range

ASKS_FOR_EOS = "the tokenizer asks for EOS behind every prompt, and the runtime puts none there"

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<｜end▁of▁sentence｜>")
_OTHER_END = "<|return|>"  # where it is, <|end|> ends a part of an answer


def read(path: Path, *, needed: bool = False) -> dict[str, Any]:
    most = files.TOKENIZER if path.name == "tokenizer.json" else files.SETTINGS
    try:
        value = files.read_json(path, most, path.parent, CheckpointError)
    except FileNotFoundError:
        if not needed:
            return {}
        raise CheckpointError(
            f"{path.parent} has no {path.name}: save the tokenizer into it with transformers "
            "(AutoTokenizer.from_pretrained(...).save_pretrained)"
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"cannot read {path}: it holds no JSON object")
    return value


def special(name: str, options: Mapping[str, Any], settings: Mapping[str, Any], by_text: dict[str, int]) -> int | None:
    text = content(options.get(f"{name}_token"))
    if text in by_text:
        return by_text[text]
    named = ids(settings.get(f"{name}_token_id"))
    return named[0] if named else None


def ends(
    folder: Path,
    settings: Mapping[str, Any],
    eos: int | None,
    tokens: Sequence[str],
    types: Sequence[int],
    template: str | None,
) -> tuple[int, ...]:
    """Every token that ends an answer: what generation_config.json lists, else config.json, the tokenizer's own, and
    the special token with which the chat template ends a turn. Some models list only the end of a text."""
    generation = read(folder / "generation_config.json")
    found = ids(generation.get("eos_token_id")) or ids(settings.get("eos_token_id"))
    found += [] if eos is None else [eos]
    if template and _OTHER_END not in template:
        wanted = {text for text in _TURN_ENDS if text in template}
        found += [i for i, text in enumerate(tokens) if text in wanted and types[i] == CONTROL]
    return in_range(found, len(tokens))


def content(token: Any) -> str:
    """A token's text, which some files wrap into an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def ids(value: Any) -> list[int]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, int) and not isinstance(item, bool)]


def template(folder: Path, options: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """The chat template, None where there is none, and what is to be noted of it."""
    file = folder / "chat_template.jinja"
    if files.exists(file):
        return files.read_text(file, files.TEMPLATE, folder, CheckpointError), ()
    value = options.get("chat_template")
    if value is None or isinstance(value, str):
        return value or None, ()
    named = _by_name(value)
    if named is None:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: chat_template is neither a text nor texts with names: download it "
            "again, or put the template into chat_template.jinja"
        )
    if "default" in named:
        return named["default"] or None, ()
    return None, (f"none of the chat templates ({listed(sorted(named))}) is the default: the bundle has none",)


def _by_name(value: Any) -> dict[str, str] | None:
    """Several templates as transformers saves them, or as it has them; None for anything else."""
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        value = {one.get("name"): one.get("template") for one in value if isinstance(one.get("name"), str)}
    whole = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    return value if whole else None
