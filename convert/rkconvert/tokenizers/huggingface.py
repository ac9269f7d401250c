"""The tokenizer of a Hugging Face folder: tokenizer.json, else tokenizer.model, and the settings beside it.

What the runtime does differently from the tokenizer at hand is refused by name, never approximated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rk3588 import files
from rk3588.errors import CheckpointError
from rkconvert.architectures.fields import shown

from . import sentencepiece_model
from .folder import ASKS_FOR_EOS, content, ends, read, special, template
from .vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary, check_size, checked, is_byte, padded

# The pre-tokenisers' regular expressions, as published in each family's tokenizer.json.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACES_TO_MARKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLITS = {
    _WORDS % "{1,3}": "llama-bpe",
    _WORDS % "": "qwen2",
    _CASED % ("", "", ""): "tekken",
    _CASED % (_CONTRACTION, _CONTRACTION, "{1,3}"): "gpt-4o",
}
# Gemma splits at spaces when the normaliser has left none.
_GEMMA_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def read_vocabulary(folder: Path, settings: Mapping[str, Any], size: int) -> Vocabulary:
    """The tokenizer in ``folder`` for a model of ``size`` embedding rows whose config.json says ``settings``."""
    where = folder / "tokenizer.json"
    if not files.exists(where) and files.exists(folder / sentencepiece_model.NAME):
        return sentencepiece_model.read_vocabulary(folder, settings, size)
    whole = read(where, needed=True)
    options = read(folder / "tokenizer_config.json")
    model = whole.get("model")
    if not isinstance(model, dict) or model.get("type") not in ("BPE", None) or "merges" not in model:
        kind = model.get("type") if isinstance(model, dict) else model
        raise CheckpointError(f"{where}: a tokenizer of type {shown(kind)} is not supported, only BPE")
    try:
        return checked(_build(folder, whole, model, options, settings, size), str(where), size)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{where} is not of the form that tokenizers writes ({shown(error)}): download it again"
        ) from error


def _build(
    folder: Path,
    whole: Mapping[str, Any],
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    size: int,
) -> Vocabulary:
    where = folder / "tokenizer.json"
    family = _family(whole, model, where)
    kind = family.model
    added = _added(whole, where)
    if words := [t["content"] for t in added if t.get("single_word")]:
        raise CheckpointError(f"{where}: the runtime cannot match {shown(words[0])} as a whole word only (single_word)")
    by_text: dict[str, int] = {**model["vocab"], **{t["content"]: t["id"] for t in added}}
    tokens, types = _tokens(by_text, added, size, where)
    unknown = by_text.get(model.get("unk_token") or content(options.get("unk_token")) or "")
    if kind == "llama":
        types = [BYTE if is_byte(t) and k == NORMAL else k for t, k in zip(tokens, types, strict=True)]
        if unknown is not None:
            types[unknown] = UNKNOWN
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if any(m.count(" ") != 1 for m in merges):
        raise CheckpointError(f"{where}: a merge has a space inside one of its parts, which this version cannot write")
    bos = special("bos", options, settings, by_text)
    eos = special("eos", options, settings, by_text)
    chat_template, template_notes = template(folder, options)
    all_tokens, all_types = padded(tokens, types, size)
    return Vocabulary(
        model=kind,
        pre=family.pre,
        tokens=all_tokens,
        types=all_types,
        merges=tuple(merges),
        scores=_scores(all_tokens, merges) if kind == "llama" else (),
        bos=bos,
        eos=eos,
        unknown=unknown,
        add_bos=_adds_bos(whole, options, kind),
        add_space_prefix=family.space,
        eos_ids=ends(folder, settings, eos, tokens, types, chat_template),
        chat_template=chat_template,
        lstrip=tuple(t["id"] for t in added if t.get("lstrip")),
        rstrip=tuple(t["id"] for t in added if t.get("rstrip")),
        normalised=tuple(t["id"] for t in added if t.get("normalized")),
        nfc=family.nfc,
        ignore_merges=kind == "gpt2" and bool(model.get("ignore_merges")),
        notes=(*template_notes, *_notes(kind, model), *_ending(whole, options)),
    )


def _added(whole: Mapping[str, Any], where: Path) -> list[dict[str, Any]]:
    """``added_tokens``, each with a text and an id; CheckpointError for one without."""
    added: list[dict[str, Any]] = whole.get("added_tokens") or []
    for token in added:
        if type(token["id"]) is not int or token["id"] < 0 or not isinstance(token["content"], str):
            raise CheckpointError(f"{where}: {shown(token)} is no added token: download it again")
    return added


def _tokens(by_text: dict[str, int], added: list[Any], size: int, where: Path) -> tuple[list[str], list[int]]:
    by_id = {i: text for text, i in by_text.items()}
    if bad := [text for text, i in by_text.items() if type(i) is not int or i < 0]:
        raise CheckpointError(f"{where}: token {shown(bad[0])} of the tokenizer has no id: download it again")
    count = max(by_id, default=-1) + 1
    if not by_id:
        raise CheckpointError(f"{where}: the tokenizer has no tokens: download it again")
    check_size(count, size, str(where))
    kinds = {t["id"]: CONTROL if t["special"] else USER_DEFINED for t in added}
    tokens, types = padded([], [], count)
    texts = [by_id.get(i, tokens[i]) for i in range(count)]
    return texts, [kinds.get(i, NORMAL if i in by_id else types[i]) for i in range(count)]


class _Family(NamedTuple):
    """What a normaliser and a pre-tokeniser come to in the artifact."""

    model: str
    pre: str | None
    space: bool = False  # add_space_prefix
    nfc: bool = False


def _family(whole: Mapping[str, Any], model: Mapping[str, Any], where: Path) -> _Family:
    normaliser = _steps(whole.get("normalizer"), "normalizers")
    steps = _steps(whole.get("pre_tokenizer"), "pretokenizers")
    if model.get("byte_fallback"):
        lead = _sentencepiece(normaliser, steps)
        if lead is not None:
            return _Family("llama", *lead)
    elif steps and steps[-1].get("type") == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        pre = _byte_level(steps[:-1], bool(steps[-1].get("use_regex", True)))
        if pre and normaliser in ([], [{"type": "NFC"}]):
            return _Family("gpt2", pre, nfc=bool(normaliser))
    raise CheckpointError(
        f"{where}: its normaliser ({_names(normaliser)}) and pre-tokeniser ({_names(steps)}) are none that the runtime "
        "knows: those of GPT-2, SmolLM2, Llama 2, Llama 3, Gemma, Qwen2, Phi-4-mini and Ministral"
    )


def _byte_level(before: list[dict[str, Any]], regex: bool) -> str | None:
    if not before:
        return "gpt-2" if regex else None
    step = before[0]
    if len(before) > 1:
        return None
    if step.get("type") == "Digits" and step.get("individual_digits") and regex:
        return "smollm"
    # Two ways to say that each match is a word: the expressions leave nothing between them.
    whole = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
    if step.get("type") == "Split" and whole and not regex:
        return SPLITS.get(step["pattern"].get("Regex", ""))
    return None


def _sentencepiece(normaliser: list[dict[str, Any]], steps: list[dict[str, Any]]) -> tuple[str | None, bool] | None:
    """Spaces become ▁ and one may be put before the text, by the normaliser or by Metaspace in newer files.

    (``pre``, ``add_space_prefix``), or None for anything else.
    """
    if not steps:
        if normaliser == [{"type": "Prepend", "prepend": "▁"}, SPACES_TO_MARKS]:
            return None, True
        return (None, False) if normaliser == [SPACES_TO_MARKS] else None
    if steps == [_GEMMA_SPLIT] and normaliser == [SPACES_TO_MARKS]:
        return None, False
    metaspace, scheme = steps[0], steps[0].get("prepend_scheme", "always")
    known = metaspace.get("type") == "Metaspace" and metaspace.get("replacement") == "▁"
    if normaliser or len(steps) > 1 or not known or metaspace.get("split", True):
        return None
    return {"first": ("metaspace-first", True), "always": ("metaspace-always", True)}.get(scheme, (None, False))


def _steps(value: Any, key: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    return list(value[key]) if value.get("type") == "Sequence" else [value]


def _names(steps: list[dict[str, Any]]) -> str:
    return " + ".join(str(step.get("type"))[:60] for step in steps[:9]) or "none"


def _scores(tokens: tuple[str, ...], merges: list[str]) -> tuple[float, ...]:
    """For readers that merge by score: minus the rank of the first merge that makes a token; others come after all."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), i)
    return tuple(-float(rank.get(token, len(merges))) for token in tokens)


def _adds_bos(whole: Mapping[str, Any], options: Mapping[str, Any], kind: str) -> bool:
    """transformers lets ``add_bos_token`` rule; without it, the post-processor does."""
    chosen = options.get("add_bos_token")
    if isinstance(chosen, bool):
        return chosen
    for step in _steps(whole.get("post_processor"), "processors"):
        if step.get("type") == "TemplateProcessing":
            return "SpecialToken" in step["single"][0]
    return kind == "llama"


def _ending(whole: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, ...]:
    """The runtime puts BOS before a prompt where that is asked for, and never anything behind it."""
    chosen = options.get("add_eos_token")
    asked = bool(chosen)
    if not isinstance(chosen, bool):
        steps = _steps(whole.get("post_processor"), "processors")
        asked = any("SpecialToken" in s["single"][-1] for s in steps if s.get("type") == "TemplateProcessing")
    return (ASKS_FOR_EOS,) if asked else ()


def _notes(kind: str, model: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the runtime's tokenizer differs in rare texts, which is no reason to refuse a model."""
    if kind == "gpt2" or not model.get("ignore_merges"):
        return ()
    return ("the runtime makes tokens by merges only; this tokenizer.json says otherwise, so rare texts may differ",)
