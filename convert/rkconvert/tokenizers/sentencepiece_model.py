"""``tokenizer.model``: SentencePiece's own file, of models that are published without a tokenizer.json.

Only BPE with byte-pair scores and without a normaliser of its own, which is what all of these have; anything else is
refused by name. What transformers adds to it (tokens, BOS, the leading space) stands in tokenizer_config.json.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rk3588 import files
from rk3588.errors import CheckpointError
from rkconvert.architectures.fields import Fields, shown

from .folder import ASKS_FOR_EOS, content, ends, read, special, template
from .vocabulary import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary, check_size, checked, padded

NAME = "tokenizer.model"
_MOST_PIECES = 1 << 22
_KINDS = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
_LAST_TYPE = 6  # of sentencepiece_model.proto's, which are GGUF's
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Broken(Exception):
    """The file is no such message."""


@dataclass
class Model:
    """What of SentencePiece's ModelProto says how a text is read. The defaults are the format's."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    kind: int = 1
    ids: dict[str, int] = field(default_factory=lambda: {"unk": 0, "bos": 1, "eos": 2})
    suffix: bool = False  # a space is part of the word before it
    normaliser: str = ""
    maps_characters: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def read_vocabulary(folder: Path, settings: Mapping[str, Any], size: int) -> Vocabulary:
    """The tokenizer in ``folder`` for a model of ``size`` embedding rows whose config.json says ``settings``."""
    path = folder / NAME
    model = read_model(path)
    _check(model, path)
    check_size(len(model.pieces), size, str(path))
    options = read(folder / "tokenizer_config.json")
    tokens, types = list(model.pieces), list(model.types)
    flags = _add_tokens(folder, options, tokens, types, size, path)
    by_text = {text: i for i, text in reversed([*enumerate(tokens)])}
    named = {name: special(name, options, settings, by_text) for name in ("bos", "eos")}
    for name, found in named.items():
        own = model.ids[name]
        if found is None and 0 <= own < len(model.types) and model.types[own] == CONTROL:
            named[name] = own
    # transformers puts BOS before a text unless the settings say otherwise.
    adds = options.get("add_bos_token")
    space = options.get("add_prefix_space")
    chat_template, template_notes = template(folder, options)
    all_tokens, all_types = padded(tokens, types, size)
    vocabulary = Vocabulary(
        model="llama",
        pre=None if options.get("legacy", True) is not False else "metaspace-first",
        tokens=all_tokens,
        types=all_types,
        merges=(),
        scores=(*model.scores, *([0.0] * (size - len(model.scores)))),
        bos=named["bos"],
        eos=named["eos"],
        unknown=next((i for i, kind in enumerate(types) if kind == UNKNOWN), None),
        add_bos=(adds if isinstance(adds, bool) else True) and named["bos"] is not None,
        add_space_prefix=space if isinstance(space, bool) else model.add_dummy_prefix,
        eos_ids=ends(folder, settings, named["eos"], tokens, types, chat_template),
        chat_template=chat_template,
        lstrip=flags["lstrip"],
        rstrip=flags["rstrip"],
        normalised=flags["normalized"],
        notes=(*template_notes, *([ASKS_FOR_EOS] if options.get("add_eos_token") is True else [])),
    )
    return checked(vocabulary, str(path), size)


def _check(model: Model, path: Path) -> None:
    wrong = None
    if model.kind != 2:
        wrong = f"a SentencePiece model of type {shown(_KINDS.get(model.kind, model.kind))}, and only BPE is supported"
    elif model.maps_characters:
        wrong = f"a normaliser ({shown(model.normaliser)}) that changes characters, and the runtime has none such"
    elif model.remove_extra_whitespaces:
        wrong = "a normaliser that removes spaces (remove_extra_whitespaces), and the runtime removes none"
    elif not model.escape_whitespaces or model.suffix:
        wrong = "another way with spaces than ▁ before a word"
    if wrong:
        raise CheckpointError(f"{path} has {wrong}: save the tokenizer as tokenizer.json with transformers")


def _add_tokens(
    folder: Path, options: Mapping[str, Any], tokens: list[str], types: list[int], size: int, path: Path
) -> dict[str, tuple[int, ...]]:
    """The tokens that tokenizer_config.json and added_tokens.json add, some of them in place of a piece, put into
    ``tokens`` and ``types``. Returns those with each flag."""
    added: dict[int, dict[str, Any]] = {}
    named = {content(options.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")}
    more = options.get("additional_special_tokens")
    named |= {content(token) for token in more} if isinstance(more, list) else set()
    for text, number in read(folder / "added_tokens.json").items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise CheckpointError(f"{folder / 'added_tokens.json'}: {text[:60]!r} has no id: download it again")
        added[number] = {"content": text, "special": text in named, "normalized": text not in named}
    decoder = Fields(options, str(folder / "tokenizer_config.json")).mapping("added_tokens_decoder").values
    for key, token in decoder.items():
        if not isinstance(token, dict) or not re.fullmatch("[0-9]{1,9}", key):
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: added_tokens_decoder has {key[:60]!r}, which is no token with "
                "an id: download it again"
            )
        added[int(key)] = token
    flags: dict[str, list[int]] = {"lstrip": [], "rstrip": [], "normalized": []}
    for number, token in sorted(added.items()):
        text = content(token)
        if not text or number >= size:
            raise CheckpointError(
                f"{path}: token {shown(number)} ({text[:60]!r}) is added to a tokenizer whose model has {size} rows: "
                "download tokenizer_config.json again"
            )
        if token.get("single_word"):
            raise CheckpointError(f"{path}: the runtime cannot match {shown(text)} as a whole word only (single_word)")
        own = number < len(tokens) and tokens[number] == text
        missing = number + 1 - len(tokens)
        if missing > 0:
            more_tokens, more_types = padded(tokens, types, number + 1)
            tokens[:], types[:] = more_tokens, more_types
        tokens[number] = text
        if types[number] != UNKNOWN or not own:
            types[number] = CONTROL if token.get("special") else USER_DEFINED
        for name, holders in flags.items():
            # Of SentencePiece's own special tokens transformers takes the places and the texts, not this flag.
            if token.get(name) is True and not (name == "normalized" and own):
                holders.append(number)
    return {name: tuple(holders) for name, holders in flags.items()}


def read_model(path: Path) -> Model:
    """The file's contents; CheckpointError where it is no SentencePiece model."""
    try:
        model = _model(files.read_bytes(path, files.TOKENIZER, path.parent, CheckpointError))
        if not model.pieces:
            raise _Broken("it has no pieces")
    except (_Broken, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is no SentencePiece model ({error}): download it again, or save the tokenizer as tokenizer.json "
            "with transformers"
        ) from error
    bad = next((i for i, score in enumerate(model.scores) if not math.isfinite(score)), None)
    if bad is not None:
        raise CheckpointError(f"{path}: the score of piece {bad} is {model.scores[bad]}: download the file again")
    return model


def _model(raw: bytes) -> Model:
    model = Model()
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, bytes):
            _piece(value, model)
        elif number == 2 and isinstance(value, bytes):
            _trainer(value, model)
        elif number == 3 and isinstance(value, bytes):
            _normaliser(value, model)
    return model


def _piece(raw: bytes, model: Model) -> None:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
    if not NORMAL <= kind <= _LAST_TYPE:
        raise _Broken(f"piece {len(model.pieces)} has the unknown type {kind}")
    if len(model.pieces) == _MOST_PIECES:
        raise _Broken(f"it has more than {_MOST_PIECES} pieces")
    model.pieces.append(text)
    model.scores.append(score)
    model.types.append(kind)


def _trainer(raw: bytes, model: Model) -> None:
    names = {40: "unk", 41: "bos", 42: "eos"}
    for number, value in _fields(raw):
        if not isinstance(value, int):
            continue
        if number == 3:
            model.kind = value
        elif number == 24:
            model.suffix = bool(value)
        elif number in names:
            model.ids[names[number]] = value - (1 << 64) if value >> 63 else value


def _normaliser(raw: bytes, model: Model) -> None:
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, bytes):
            model.normaliser = value.decode("utf-8")
        elif number == 2:
            model.maps_characters = bool(value)
        elif number == 3:
            model.add_dummy_prefix = bool(value)
        elif number == 4:
            model.remove_extra_whitespaces = bool(value)
        elif number == 5:
            model.escape_whitespaces = bool(value)


def _fields(raw: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The fields of a protobuf message in order: numbers, floats of 32 bits, and whatever has a length."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(raw, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise _Broken(f"byte {at} is no field of a protobuf message")
        if size > len(raw) - at:
            raise _Broken("it ends too early")
        part = raw[at : at + size]
        at += size
        yield key >> 3, struct.unpack("<f", part)[0] if wire == _FIXED32 else part


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 70:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Broken("it ends too early" if at >= len(raw) else f"the number at byte {at} is too long")
