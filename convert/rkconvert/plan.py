"""What a conversion will do, decided before anything is written: tensors, offsets, sizes, short groups, memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rk3588.errors import TargetError, UsageError
from rk3588.quant import Scheme

from .config import EMBEDDING, OUTPUT, ROPE_FACTORS, ModelConfig
from .lora import Lora, facts
from .sources.base import Source, SourceTensor

ALIGNMENT = 64
BLOCK_BYTES = 4 << 20  # of source weights at a time: large enough to keep Python out of the way
_BASE_MEMORY = 45 << 20  # the interpreter, NumPy and gguf, as measured
_ITEM = {"I8": 1, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class OutTensor:
    """A tensor of the artifact; ``source`` is the canonical name of what it is made from, "" for RoPE factors."""

    name: str
    kind: str  # I8, F16 or F32
    shape: tuple[int, ...]
    source: str
    offset: int  # from the start of the data
    nbytes: int


@dataclass(frozen=True)
class Artifact:
    """One ``model.sim.gguf``: its scheme and its tensors in file order."""

    scheme: Scheme
    tensors: tuple[OutTensor, ...]

    @property
    def data_bytes(self) -> int:
        last = self.tensors[-1]
        return _aligned(last.offset + last.nbytes)


@dataclass(frozen=True)
class Plan:
    """Everything ``build.convert`` needs to know."""

    source: Source
    name: str
    out: Path
    artifacts: tuple[Artifact, ...]
    overwrite: bool = False
    threads: int = 1
    loras: tuple[Lora, ...] = ()
    lora_mode: str = "adapter"  # or merge

    @property
    def merged(self) -> tuple[Lora, ...]:
        """What is added to the weights before they are quantised."""
        return self.loras if self.lora_mode == "merge" else ()

    @property
    def kept(self) -> tuple[Lora, ...]:
        """What goes into the bundle as a file of its own."""
        return self.loras if self.lora_mode == "adapter" else ()

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.source.notes, *(note for lora in self.loras for note in lora.notes))

    def folder(self, artifact: Artifact) -> Path:
        return self.out / f"{self.name}-rk3588-{artifact.scheme.name}"

    @property
    def memory_bytes(self) -> int:
        """Estimated peak: blocks read ahead, what is made of those being worked on, and the tokenizer."""
        per_weight = 4 + sum(1 if a.scheme.quantised else 2 for a in self.artifacts) + (20 if self.merged else 0)
        ahead = (2 * self.threads + 2) * max(block_bytes(t) for t in self.source.tensors.values())
        work = self.threads * per_weight * max(block_rows(t) * t.columns for t in self.source.tensors.values())
        vocabulary = self.source.vocabulary
        loras = sum(lora.nbytes for lora in self.loras)
        return _BASE_MEMORY + loras + ahead + work + 250 * (len(vocabulary.tokens) + len(vocabulary.merges))


def make_plan(
    source: Source,
    name: str,
    out: Path,
    schemes: list[Scheme],
    *,
    overwrite: bool = False,
    threads: int = 0,
    loras: Sequence[Lora] = (),
    lora_mode: str = "adapter",
) -> Plan:
    """A plan whose targets are free; UsageError for a dtype given twice, TargetError for a target that exists."""
    twice = [dtype for dtype, n in Counter(s.name for s in schemes).items() if n > 1]
    if twice:
        raise UsageError(f"--dtype {twice[0]} is given more than once: one bundle is written for each dtype")
    artifacts = tuple(make_artifact(source.config, scheme) for scheme in schemes)
    threads = threads or len(os.sched_getaffinity(0))
    plan = Plan(source, name, out, artifacts, overwrite, threads, tuple(loras), lora_mode)
    for artifact in artifacts:
        target = plan.folder(artifact)
        if target.exists() and not overwrite:
            raise TargetError(f"{target} exists already: remove it, choose another -o, or give --overwrite")
    return plan


def make_artifact(config: ModelConfig, scheme: Scheme) -> Artifact:
    """The tensors of an artifact, each scale directly behind what it scales."""
    embedding = "F32" if scheme.name == "fp32" else "F16"
    found: list[OutTensor] = []
    for name, shape in config.tensors().items():
        if name == EMBEDDING:
            _add(found, name, embedding, shape, name)
        elif len(shape) == 1:
            _add(found, name, "F32", shape, name)
        else:
            _add_linear(found, name, shape, name, scheme)
    if config.tied and scheme.quantised:
        _add_linear(found, OUTPUT, (config.vocab_size, config.hidden), EMBEDDING, scheme)
    if config.rope_factors:
        _add(found, ROPE_FACTORS, "F32", (len(config.rope_factors),), "")
    return Artifact(scheme, tuple(found))


def _add_linear(found: list[OutTensor], name: str, shape: tuple[int, ...], source: str, scheme: Scheme) -> None:
    if not scheme.quantised:
        _add(found, name, scheme.name.upper().replace("FP", "F"), shape, source)
        return
    _add(found, name, "I8", shape, source)
    _add(found, f"{name}.scale", "F32", (shape[0], scheme.groups(shape[1])), source)


def _add(found: list[OutTensor], name: str, kind: str, shape: tuple[int, ...], source: str) -> None:
    nbytes = _ITEM[kind]
    for side in shape:
        nbytes *= side
    offset = _aligned(found[-1].offset + found[-1].nbytes) if found else 0
    found.append(OutTensor(name, kind, shape, source, offset, nbytes))


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def block_rows(tensor: SourceTensor) -> int:
    """Rows read at a time: whole heads where they have to be put into order."""
    unit = tensor.shape[0] // tensor.heads if tensor.heads else 1
    per_unit = unit * (tensor.nbytes // tensor.rows)
    bits = 8 * tensor.nbytes // (tensor.rows * tensor.columns)
    limit = BLOCK_BYTES * min(bits, 16) // 16  # as many weights of a packed type as of bf16
    return min(max(limit // per_unit, 1) * unit, tensor.rows)


def block_bytes(tensor: SourceTensor) -> int:
    return block_rows(tensor) * (tensor.nbytes // tensor.rows)


def linear_kinds(artifact: Artifact) -> list[dict[str, Any]]:
    """The linear layers by kind (``attn_q``, …): how many, their shape, and how the scheme divides their rows."""
    kinds: dict[tuple[str, int, int], int] = Counter()
    for tensor in artifact.tensors:
        if len(tensor.shape) == 2 and tensor.name != EMBEDDING and not tensor.name.endswith(".scale"):
            kinds[(tensor.name.split(".")[-2], tensor.shape[0], tensor.shape[1])] += 1
    scheme = artifact.scheme
    return [
        {
            "layer": kind, "count": count, "n": n, "k": k,
            "groups": scheme.groups(k) if scheme.quantised else 0, "short_group": scheme.short_group(k),
        }
        for (kind, n, k), count in kinds.items()
    ]  # fmt: skip


def toolkit_obstacle(artifact: Artifact) -> str | None:
    """Why rkllm-toolkit could not build this dtype for a board: it wants groups that divide every K. None: it could."""
    sides = {kind["k"] for kind in linear_kinds(artifact) if kind["short_group"]}
    if not sides:
        return None
    listed = ", ".join(str(k) for k in sorted(sides))
    return f"K = {listed} is not a multiple of {artifact.scheme.group_size}"


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: what ``--dry-run --json`` prints."""
    config = plan.source.config
    return {
        "name": plan.name,
        "source": {
            "path": str(plan.source.origin or plan.source.path),
            "kind": plan.source.kind,
            "types": dict(Counter(t.kind for t in plan.source.tensors.values())),
            "bytes": sum(t.nbytes for t in plan.source.tensors.values()),
        },
        "model": model_facts(config),
        "tokenizer": {"model": plan.source.vocabulary.model, "pre": plan.source.vocabulary.pre},
        "bundles": [
            {
                "dtype": artifact.scheme.name,
                "path": str(plan.folder(artifact)),
                "bytes": artifact.data_bytes,
                "linear": linear_kinds(artifact),
                "toolkit_obstacle": toolkit_obstacle(artifact),
            }
            for artifact in plan.artifacts
        ],
        "threads": plan.threads,
        "memory_bytes": plan.memory_bytes,
        **({"lora": {"mode": plan.lora_mode, "adapters": [facts(lora) for lora in plan.loras]}} if plan.loras else {}),
        "notes": list(plan.notes),
    }


def model_facts(config: ModelConfig) -> dict[str, Any]:
    """The shape of a model, for the plan, the manifest and the card."""
    parameters = 0
    for shape in config.tensors().values():
        parameters += shape[0] * (shape[1] if len(shape) == 2 else 1)
    return {
        "architecture": "llama",
        "parameters": parameters,
        "layers": config.layers,
        "hidden": config.hidden,
        "intermediate": config.intermediate,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "tied": config.tied,
    }
