"""What a conversion takes, computed before anything is written: memory, space on the disk, and each bundle's size."""

from __future__ import annotations

import json
from functools import lru_cache

from rk3588.errors import RkError

from .artifact.header import make_header, tokenizer_file, tokenizer_metadata
from .artifact.layout import Artifact
from .artifact.pipeline import WAITING_FOR_DISK
from .artifact.reading import BLOCK_BYTES, block_bytes, block_rows
from .bundle_texts import make_card, make_manifest, tokenizer_files
from .plan import Plan
from .rotation import emit, learn, texts
from .rotation.options import LEARNED
from .rotation.rotate import WRITERS
from .sources.base import Source
from .toolkit.preflight import LEAST

_BASE_MEMORY = 45 << 20  # what the process takes before it reads a weight, as measured
_DIGEST = "0" * 64  # as long as every SHA-256
_tokenizer_metadata = lru_cache(maxsize=1)(tokenizer_metadata)  # once for all dtypes


def npu_bytes(plan: Plan) -> int:
    """About what a ``.rkllm`` takes: a byte a weight, two for each of the embedding."""
    if plan.source.gptq:
        return plan.source.parameters * 5 // 4
    source = plan.outlined.source
    return sum(t.elements * (1 if len(t.shape) >= 2 else 4) for t in source.tensors.values()) * 5 // 4


def disk_bytes(plan: Plan) -> int:
    """On the disk, with what is made on the way and goes again."""
    kept = sum(adapter.nbytes for adapter in plan.kept_loras)
    total = sum(artifact.data_bytes + kept for artifact in plan.artifacts)
    if plan.board:
        # One adapter is built at a time, and each build writes the model again.
        copies = 2 if len(plan.kept_loras) > 1 else 1
        total += len(plan.artifacts) * copies * npu_bytes(plan) + _scratch_bytes(plan)
    return total


def _scratch_bytes(plan: Plan) -> int:
    """What rkllm-toolkit is given instead of the source."""
    if plan.rotate or plan.smooth:
        return emit.nbytes(plan.outlined.sim_source, "fp32")
    return plan.source.nbytes if plan.merged_loras else 0


def memory_bytes(plan: Plan) -> int:
    """Estimated peak. rkllm-toolkit is a process of its own, and counted where it is the larger one."""
    own = _converter_memory(plan) if plan.for_sim or plan.emit else _BASE_MEMORY
    return max(own, LEAST * plan.source.nbytes) if plan.board else own


def _converter_memory(plan: Plan) -> int:
    """Blocks read ahead, those being worked on, what waits for the disk, and the tokenizer."""
    tensors, threads = plan.source.tensors.values(), plan.threads
    made = sum(1 if a.scheme.quantised else 2 for a in plan.artifacts)
    ahead = (2 * threads + 2) * max(map(block_bytes, tensors))
    weights = max(block_rows(t) * t.columns for t in tensors)
    work = weights * ((24 if plan.merged_loras else 4) * threads + made * (2 * threads + WAITING_FOR_DISK))
    hashed = (WAITING_FOR_DISK + 2) * BLOCK_BYTES
    vocabulary = plan.sim_source.vocabulary
    tokenizer = 250 * (len(vocabulary.tokens) + len(vocabulary.merges))
    loras = sum(lora.nbytes for lora in plan.loras)
    turned = _whole_bytes(plan.sim_source) if plan.rotate else 0
    own = turned + max(ahead + work + hashed, _measuring_bytes(plan) if plan.calibration else 0)
    return _BASE_MEMORY + loras + own + tokenizer


def _measuring_bytes(plan: Plan) -> int:
    """What layers read on calibration texts: weights of those that read the same, twice while they are put together,
    and some vectors of each token. Of a rotation that is learned, the head and samples of all layers as well."""
    config = plan.sim_source.config
    weights = max(2 * config.intermediate, (config.heads + 2 * config.kv_heads) * config.head_dim) * config.hidden
    vectors = texts.MOST * (4 * config.hidden + 3 * config.intermediate + 2 * config.heads * config.head_dim)
    learned = 0
    if plan.rotate and plan.rotate.kind == LEARNED:
        weights = max(weights, config.vocab_size * config.hidden)
        learned = 4 * config.hidden * (learn.rows(config) + learn.ROWS_A_STEP) + 8 * 8 * config.hidden**2
    return 4 * (2 * weights + vectors) + learned


def _whole_bytes(source: Source) -> int:
    """The largest matrix that is written to the residual stream is turned as a whole, in double precision, beside what
    blocks of others take in it."""
    written = max(source.tensors[f"blk.0.{kind}.weight"].elements for kind in WRITERS)
    return 8 * written + 8 * 8 * max(block_rows(t) * t.columns for t in source.tensors.values())


def model_bytes(plan: Plan, artifact: Artifact) -> int:
    """``model.sim.gguf``, to the byte."""
    source = plan.outlined.sim_source
    tokenizer = _tokenizer_metadata(source.vocabulary)
    header = make_header(plan.name, source.config, source.vocabulary, artifact, tokenizer, plan.hybrid_rate)
    return len(header) + artifact.data_bytes


def bundle_bytes(plan: Plan, artifact: Artifact) -> int:
    """All of a bundle but its ``.rkllm``: exact, but for adapters and for what still lies on the hub."""
    source, vocabulary = plan.source, plan.source.vocabulary
    total = model_bytes(plan, artifact) if artifact.tensors else 0
    total += sum(adapter.nbytes for adapter in plan.kept_loras if artifact.tensors)
    if source.copied_bytes is not None:
        return total + source.copied_bytes
    total += sum(file.stat().st_size for file in (*source.copies, *source.license_files))
    if vocabulary and vocabulary.chat_template:
        total += len(vocabulary.chat_template.encode("utf-8"))
    total += sum(len(text.encode("utf-8")) for text in tokenizer_files(source).values())
    if vocabulary and plan.board:
        total += len(tokenizer_file(plan.name, vocabulary))
    return total + _manifest_and_card_bytes(plan, artifact, total)


def _manifest_and_card_bytes(plan: Plan, artifact: Artifact, model: int) -> int:
    source, plan = plan.source, plan.outlined
    try:
        manifest = make_manifest(plan, artifact, dict.fromkeys((*source.files, *source.extras), _DIGEST))
        card = make_card(plan, artifact, manifest, dict.fromkeys(manifest["artifacts"], model))
    except (RkError, OSError):
        return 0
    names = ["README.md", "chat_template.jinja", "model.sim.gguf", *tokenizer_files(source)]
    names += [file.name for file in source.copies]
    files = [{"path": name, "size": model, "sha256": _DIGEST} for name in names]
    return len(card.encode("utf-8")) + len(json.dumps({**manifest, "files": files}, indent=2))
