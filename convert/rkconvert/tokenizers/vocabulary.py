"""A tokenizer as the artifact carries it: the values behind the keys ``tokenizer.ggml.*``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from rk3588 import files
from rk3588.errors import BundleError, CheckpointError
from rkconvert.architectures.fields import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_MOST_SCORED = 1024  # bytes of a token whose merges come from scores, as in the runtime


@dataclass(frozen=True)
class Vocabulary:
    """``model`` is ``gpt2`` (ByteLevel BPE) or ``llama`` (SentencePiece-style BPE); ``pre`` names the pre-tokeniser."""

    model: str
    pre: str | None
    tokens: tuple[str, ...] = field(repr=False)
    types: tuple[int, ...] = field(repr=False)
    merges: tuple[str, ...] = field(repr=False)
    scores: tuple[float, ...] = field(repr=False)
    bos: int | None
    eos: int | None
    unknown: int | None
    add_bos: bool
    add_space_prefix: bool
    eos_ids: tuple[int, ...]  # every id that ends an answer
    chat_template: str | None = field(repr=False)
    lstrip: tuple[int, ...] = ()  # added tokens that take the spaces before them along
    rstrip: tuple[int, ...] = ()  # ... and those after them
    normalised: tuple[int, ...] = ()  # those that are looked for in what the normaliser has made of a text
    nfc: bool = False  # byte-level: the normaliser
    ignore_merges: bool = False  # byte-level: a word that is a token is that token, whatever the merges make of it
    notes: tuple[str, ...] = ()

    def text(self, token: int | None) -> str | None:
        return None if token is None else self.tokens[token]


def checked(vocabulary: Vocabulary, where: str, size: int) -> Vocabulary:
    """The vocabulary, when its parts fit together and into ``size`` rows of an embedding, so that the runtime loads it,
    without a chat template that is none; else CheckpointError."""
    n = len(vocabulary.tokens)
    check_size(n, size, where)
    for name, items in (("token types", vocabulary.types), ("scores", vocabulary.scores)):
        if items and len(items) != n:
            raise CheckpointError(f"{where}: the tokenizer has {n} tokens and {len(items)} {name}")
    for name, token in (("BOS", vocabulary.bos), ("EOS", vocabulary.eos), ("unknown", vocabulary.unknown)):
        if token is not None and not 0 <= token < n:
            raise CheckpointError(f"{where}: the {name} token has id {shown(token)}, the tokenizer ends at {n - 1}")
    for what, texts in (("token", vocabulary.tokens), ("merge", vocabulary.merges)):
        try:
            "".join(texts).encode("utf-8")
        except UnicodeEncodeError:
            bad = next(i for i, text in enumerate(texts) if not _encodes(text))
            raise CheckpointError(f"{where}: {what} {bad} of the tokenizer is not valid Unicode") from None
    if vocabulary.merges:
        _check_merges(vocabulary, where)
    elif vocabulary.model == "gpt2":
        raise CheckpointError(f"{where}: the tokenizer has no merges, which ByteLevel BPE needs")
    else:
        _check_lengths(vocabulary.tokens, where)
    return _with_usable_template(vocabulary, where)


def check_size(tokens: int, size: int, where: str) -> None:
    """A token without a row in the embedding could not be read, nor be answered."""
    if tokens > size:
        raise CheckpointError(
            f"{where}: the tokenizer has {shown(tokens)} tokens, the embedding {size} rows: get the tokenizer and the "
            "config.json that belong to these weights"
        )


def _check_merges(vocabulary: Vocabulary, where: str) -> None:
    """Each is two tokens, which together are one: the runtime wants that, and so does every other reader."""
    known = set(vocabulary.tokens)
    for rank, merge in enumerate(vocabulary.merges):
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        if space < 0 or " " in right or not {left, right, left + right} <= known:
            raise CheckpointError(
                f"{where}: merge {rank} of the tokenizer is {merge[:60]!r}, which makes no token of two"
            )


def _check_lengths(tokens: Sequence[str], where: str) -> None:
    """Merges that come from scores are found by cutting each token everywhere, here and in the runtime."""
    for i, text in enumerate(tokens):
        if len(text) > _MOST_SCORED // 4 and len(text.encode("utf-8")) > _MOST_SCORED:
            raise CheckpointError(
                f"{where}: token {i} of the tokenizer has more than {_MOST_SCORED} bytes, which cannot be merged by "
                "score: convert from the Hugging Face model instead"
            )


def _with_usable_template(vocabulary: Vocabulary, where: str) -> Vocabulary:
    """A model can do without: then prompts are sent as they are."""
    from rk3588.templates import check

    source = vocabulary.chat_template
    if source is None:
        return vocabulary
    if len(source) > files.TEMPLATE:
        raise CheckpointError(
            f"{where}: the chat template has {len(source) / 1e6:.1f} M characters: it is none that anybody wrote"
        )
    if not _encodes(source):
        raise CheckpointError(f"{where}: the chat template is not valid Unicode")
    try:
        check(source, "the chat template")
    except BundleError as error:
        note = f"{error}: the bundle has none, so rk3588 run needs --raw; mend the template and convert again to chat"
        return replace(vocabulary, chat_template=None, notes=(*vocabulary.notes, note))
    return vocabulary


def is_byte(text: str) -> bool:
    """``<0x0A>`` and the like: SentencePiece's tokens for bytes that no other token covers."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def padded(tokens: Sequence[str], types: Sequence[int], size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """One token for each row of the embedding: models often have more rows than their tokenizer has tokens."""
    missing = range(len(tokens), size)
    return (*tokens, *(f"[PAD{i}]" for i in missing)), (*types, *(UNUSED for _ in missing))


def in_range(ids: Iterable[int], size: int) -> tuple[int, ...]:
    """Sorted, each once, only those that a token has."""
    return tuple(sorted({i for i in ids if 0 <= i < size}))
