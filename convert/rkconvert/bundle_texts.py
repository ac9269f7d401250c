"""The texts beside the artifact in a bundle: manifest, model card, and a tokenizer where the source has no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rk3588
from rk3588 import bundle, quant

from .adapters import in_bundle
from .artifact.layout import Artifact
from .cards.card import Variant, base_of, model_card
from .plan import Plan
from .sources.base import Checkpoint
from .tokenizers import tokenizer_json
from .toolkit import releases
from .toolkit.options import PLATFORM


def make_manifest(plan: Plan, artifact: Artifact, digests: Mapping[Path, str]) -> dict[str, Any]:
    """``rkbundle.json`` without its list of files. Names only: where the source lay is nobody's business."""
    source = plan.source
    hashed = [
        {"path": file.name, "size": file.stat().st_size, "sha256": digests.get(file) or bundle.sha256(file)}
        for file in (*source.files, *source.extras)
    ]
    made = {"sim": bundle.SIM_MODEL, PLATFORM: plan.npu_model(artifact)}
    return {
        "name": plan.name,
        "dtype": artifact.scheme.name,
        "target_platform": PLATFORM,
        "model": model_facts(source),
        "source": {
            "name": source.name,
            "kind": source.kind,
            **({"hub": asdict(source.origin)} if source.origin else {}),
            "types": sorted(Counter(t.kind for t in source.tensors.values())),
            "files": hashed,
        },
        "tokenizer": tokenizer_facts(source),
        **({"sampling": dict(source.sampling)} if source.sampling else {}),
        "artifacts": {target: made[target] for target in plan.targets},
        **({"hybrid": _hybrid_facts(plan, artifact)} if plan.hybrid_rate else {}),
        **({"rotation": plan.rotation} if plan.rotation else {}),
        **({"smoothing": plan.smoothing} if plan.smoothing else {}),
        **({"calibration": plan.calibration.facts()} if plan.calibration else {}),
        **({"lora": in_bundle.manifest_entry(plan.loras, plan.lora_mode, plan.targets)} if plan.loras else {}),
        **_residual_entry(plan),
        **({"toolkit": plan.board.facts()} if plan.board else {}),
        "converter": {"rkconvert": rk3588.__version__},
    }


def _residual_entry(plan: Plan) -> dict[str, Any]:
    """Where rkllm-toolkit keeps what quantising lost as a LoRA; no adapter of the user's is beside it."""
    if plan.board is None or not releases.is_residual(plan.board.options.algorithm):
        return {}
    return {"lora": in_bundle.residual_entry(plan.board.options.algorithm)}


def make_card(plan: Plan, artifact: Artifact, manifest: Mapping[str, Any], sizes: dict[str, int]) -> str:
    """``README.md``; ``sizes`` are the bytes of the artifacts by target."""
    source = plan.source
    told = {**manifest, "files": [{"path": file.name} for file in source.license_files]}
    can_chat = bool(source.vocabulary and source.vocabulary.chat_template)
    return model_card([Variant(plan.variant(artifact), told, sizes, source.shape, can_chat)], base_of(source))


def tokenizer_files(source: Checkpoint) -> dict[str, str]:
    """What a Hugging Face folder has and a GGUF file has not, made from its vocabulary."""
    if source.kind != "gguf" or source.vocabulary is None:
        return {}
    return tokenizer_json.files(source.vocabulary, source.shape.context if source.shape else 0)


def tokenizer_facts(source: Checkpoint) -> dict[str, Any]:
    """Nothing of a tokenizer that is not known here."""
    vocabulary = source.vocabulary
    if vocabulary is None:
        return {}
    reason = tokenizer_json.obstacle(vocabulary) if source.kind == "gguf" else None
    return {
        **({"no_tokenizer_json": reason} if reason else {}),
        "bos_token": vocabulary.text(vocabulary.bos),
        "eos_token": vocabulary.text(vocabulary.eos),
        "add_bos": vocabulary.add_bos,
        "eos_token_ids": list(vocabulary.eos_ids),
    }


def _hybrid_facts(plan: Plan, artifact: Artifact) -> dict[str, Any]:
    """The rate, and what it came to where that is known: which layers rkllm-toolkit chose, it does not say."""
    if not artifact.tensors:
        return {"rate": plan.hybrid_rate}
    groups = quant.mixed(artifact.scheme)[1].group_size
    return {
        "rate": plan.hybrid_rate,
        "sim": {"group_size": groups, "grouped": artifact.grouped_layers},
    }


def model_facts(source: Checkpoint) -> dict[str, Any]:
    """The shape of a model, for the plan, the manifest and the card; of a family not known here, only its size."""
    if source.shape is None:
        return {"architecture": source.architecture, "parameters": source.parameters}
    return described_shape(source, source.parameters)


def described_shape(source: Checkpoint, parameters: int) -> dict[str, Any]:
    """The same of a family known here, with a given number of parameters."""
    shape = source.shape
    assert shape is not None
    return {
        "architecture": shape.family,
        "parameters": parameters,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "intermediate": shape.intermediate,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "context_length": shape.context,
        "tied": shape.tied,
    }
