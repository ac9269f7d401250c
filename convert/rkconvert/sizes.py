"""What a bundle will take on the disk, told before anything is written."""

from __future__ import annotations

import json
from functools import lru_cache

from rk3588.errors import RkError

from .artifact.header import make_header, tokenizer_file, tokenizer_metadata
from .build import make_manifest, tokenizer_files
from .cards.card import Variant, base_of, model_card
from .plan import Artifact, Plan

_DIGEST = "0" * 64  # as long as every SHA-256
_tokenizer_metadata = lru_cache(maxsize=1)(tokenizer_metadata)  # once for all dtypes


def model_bytes(plan: Plan, artifact: Artifact) -> int:
    """``model.sim.gguf``, to the byte."""
    source = plan.llama
    tokenizer = _tokenizer_metadata(source.vocabulary)
    header = make_header(plan.name, source.config, source.vocabulary, artifact, tokenizer, plan.hybrid_rate)
    return len(header) + artifact.data_bytes


def bundle_bytes(plan: Plan, artifact: Artifact) -> int:
    """All of a bundle but its ``.rkllm``: exact, but for adapters and for what still lies on the hub."""
    source, vocabulary = plan.source, plan.source.vocabulary
    total = model_bytes(plan, artifact) if artifact.tensors else 0
    total += sum(adapter.nbytes for adapter in plan.kept if artifact.tensors)
    copied = [*source.copies, *source.license_files]
    if source.copied_bytes is not None:
        return total + source.copied_bytes
    total += sum(file.stat().st_size for file in copied)
    if vocabulary and vocabulary.chat_template:
        total += len(vocabulary.chat_template.encode("utf-8"))
    total += sum(len(text.encode("utf-8")) for text in tokenizer_files(plan).values())
    if vocabulary and plan.board:
        total += len(tokenizer_file(plan.name, vocabulary))
    return total + _texts(plan, artifact, total)


def _texts(plan: Plan, artifact: Artifact, model: int) -> int:
    """The card and the manifest."""
    source = plan.source
    try:
        manifest = make_manifest(plan, artifact, dict.fromkeys((*source.files, *source.extras), _DIGEST))
        named = {**manifest, "files": [{"path": file.name} for file in source.license_files]}
        sizes = dict.fromkeys(manifest["artifacts"], model)
        can_chat = bool(source.vocabulary and source.vocabulary.chat_template)
        card = model_card([Variant(plan.variant(artifact), named, sizes, source.shape, can_chat)], base_of(source))
    except (RkError, OSError):
        return 0
    names = ["README.md", "chat_template.jinja", "model.sim.gguf", *tokenizer_files(plan)]
    names += [file.name for file in source.copies]
    files = [{"path": name, "size": model, "sha256": _DIGEST} for name in names]
    return len(card.encode("utf-8")) + len(json.dumps({**manifest, "files": files}, indent=2))
