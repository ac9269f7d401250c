"""Conversations and texts to what the library is given: token ids wherever the bundle has a vocabulary, else text.

Ids make counts exact and leave no doubt about who adds BOS. And a user who types ``<|im_end|>`` is read as having
typed those characters: only the template's own special tokens are special.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, Union

from rk3588.bundle import VOCABULARY, Bundle
from rk3588.sim import SimModel
from rk3588.templates import ChatTemplate, Message

Prompt = Union[str, list[int]]


class Prompts:
    """Makes the prompts for one bundle; a context manager. ``context`` is the model's own length, where known."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._template: Optional[ChatTemplate] = None
        path = _vocabulary(bundle)
        self._vocabulary = SimModel(path, vocab_only=True) if path else None
        self.context = (self._vocabulary.info.context_length if self._vocabulary else 0) or None

    def __enter__(self) -> Prompts:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._vocabulary:
            self._vocabulary.close()

    @property
    def template(self) -> ChatTemplate:
        """The bundle's chat template; BundleError if it has none."""
        if self._template is None:
            self._template = ChatTemplate.of(self._bundle)
        return self._template

    def plain(self, text: str) -> Prompt:
        """A text as it is; special tokens in it are special."""
        return self._with_bos(self._vocabulary, self._vocabulary.tokenise(text)) if self._vocabulary else text

    def chat(self, messages: Sequence[Message], **variables: Any) -> Prompt:
        """A conversation in the model's template, up to where the assistant speaks.

        ``variables`` (``tools``, …) reach the template by name; no text in them or in the messages is special.
        """
        if self._vocabulary is None:
            return self.template.render(messages, **variables)
        masks: dict[str, str] = {}
        masked = _mask(self._vocabulary, {"messages": messages, **variables}, masks)
        text = self.template.render(masked.pop("messages"), **masked)
        if not masks:
            return self._with_bos(self._vocabulary, self._vocabulary.tokenise(text))
        return self._with_bos(self._vocabulary, _encode_masked(self._vocabulary, text, masks))

    @staticmethod
    def _with_bos(vocabulary: SimModel, ids: list[int]) -> list[int]:
        """As llama.cpp does: BOS first if the model wants it and the template did not write it."""
        bos = vocabulary.info.bos_id
        return [bos, *ids] if vocabulary.info.add_bos and bos >= 0 and ids[:1] != [bos] else ids


def _vocabulary(bundle: Bundle) -> Optional[Path]:
    return bundle.file(VOCABULARY) or bundle.sim_model


def _special_texts(vocabulary: SimModel, ids: Sequence[int]) -> set[str]:
    """The texts of the special tokens among ``ids``."""
    found = set()
    for id_ in set(ids):
        text = vocabulary.detokenise([id_])
        if text and not vocabulary.detokenise([id_], skip_special=True):
            found.add(text.decode("utf-8", "replace"))
    return found


def _mask(vocabulary: SimModel, value: Any, masks: dict[str, str]) -> Any:
    """``value`` with special tokens' texts in its strings replaced by stand-ins, which ``masks`` maps back to them."""
    if isinstance(value, str):
        return _mask_text(vocabulary, value, masks)
    if isinstance(value, Mapping):
        return {_mask(vocabulary, k, masks): _mask(vocabulary, v, masks) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_mask(vocabulary, item, masks) for item in value]
    return value


def _mask_text(vocabulary: SimModel, text: str, masks: dict[str, str]) -> str:
    parsed = vocabulary.tokenise(text, parse_special=True)
    if parsed == vocabulary.tokenise(text, parse_special=False):
        return text
    for special in sorted(_special_texts(vocabulary, parsed), key=len, reverse=True):
        # Noncharacters: no template looks for them, and no text has them.
        stand_in = f"\ufdd0{len(masks)}\ufdd1"
        masks[stand_in] = special
        text = text.replace(special, stand_in)
    return text


def _encode_masked(vocabulary: SimModel, text: str, masks: dict[str, str]) -> list[int]:
    """Ids of a rendered text: the special tokens it shows are the template's; stand-ins become mere characters."""
    special = _special_texts(vocabulary, vocabulary.tokenise(text))
    either = "|".join(re.escape(s) for s in sorted(special, key=len, reverse=True))
    ids: list[int] = []
    for part in re.split(f"({either})", text) if special else [text]:
        if part in special:
            ids += vocabulary.tokenise(part)
            continue
        for stand_in, original in masks.items():
            part = part.replace(stand_in, original)
        ids += vocabulary.tokenise(part, parse_special=False)
    return ids
