"""What a conversion will do, decided before anything is written: tensors, offsets, sizes, short groups, memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rk3588 import bundle, quant
from rk3588.errors import TargetError, UsageError
from rk3588.quant import Scheme

from .adapters.lora import Lora, facts
from .architectures.model import EMBEDDING, OUTPUT, ModelConfig
from .calibration import Dataset
from .sources.base import Checkpoint, Source, SourceTensor
from .toolkit.install import Toolkit
from .toolkit.options import PLATFORM, BoardOptions
from .toolkit.preflight import LEAST

ALIGNMENT = 64
BLOCK_BYTES = 4 << 20  # of source weights at a time: large enough to keep Python out of the way
AHEAD = 4  # converted blocks that may wait for the disk; more of them only leave the caches
CHECKSUMS = "rksim.tensor_crc32"
_BASE_MEMORY = 45 << 20  # the interpreter, NumPy and gguf, as measured
_ITEM = {"I8": 1, "F16": 2, "F32": 4, "I32": 4}


@dataclass(frozen=True)
class OutTensor:
    """A tensor of the artifact; ``source`` is the canonical name of what it is made from, "" for RoPE factors
    and checksums."""

    name: str
    kind: str  # I8, F16, F32 or I32
    shape: tuple[int, ...]
    source: str
    offset: int  # from the start of the data
    nbytes: int


@dataclass(frozen=True)
class Artifact:
    """One bundle's model: its scheme, and the tensors of its ``model.sim.gguf`` in file order (none: for a board only).

    ``grouped``: of a hybrid, the canonical names of the layers with groups, as far as that has been decided.
    """

    scheme: Scheme
    tensors: tuple[OutTensor, ...]
    grouped: frozenset[str] | None = None

    @property
    def data_bytes(self) -> int:
        return _aligned(self.tensors[-1].offset + self.tensors[-1].nbytes) if self.tensors else 0

    def scheme_of(self, name: str) -> Scheme:
        """How the linear layer ``name`` is stored."""
        if self.grouped is None:
            return self.scheme
        return quant.mixed(self.scheme)[name in self.grouped]


@dataclass(frozen=True)
class Board:
    """What rkllm-toolkit is to do."""

    options: BoardOptions
    dataset: Dataset
    toolkit: Toolkit

    def facts(self) -> dict[str, Any]:
        """For the plan and the manifest: what it is given, and which it is."""
        options = self.options
        extra = options.extra_qparams
        return {
            **self.toolkit.facts(),
            "optimization_level": options.optimization_level,
            "npu_cores": options.npu_cores,
            "algorithm": options.algorithm,
            **({"extra_qparams": {"name": extra.name, "sha256": bundle.sha256(extra)}} if extra else {}),
            "device": options.device,
            "dataset": self.dataset.facts(),
        }


@dataclass(frozen=True)
class Plan:
    """Everything ``build.convert`` needs to know. ``source`` is a Source where the simulated runtime is a target."""

    source: Checkpoint
    name: str
    out: Path
    artifacts: tuple[Artifact, ...]
    overwrite: bool = False
    threads: int = 1
    loras: tuple[Lora, ...] = ()
    lora_mode: str = "adapter"  # or merge
    hybrid_rate: float = 0.0
    board: Board | None = None  # None: not for a board
    community_names: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def llama(self) -> Source:
        """The source, of which the simulated runtime's artifact can be made."""
        assert isinstance(self.source, Source)
        return self.source

    @property
    def targets(self) -> list[str]:
        return [name for name, wanted in (("sim", self.for_sim), (PLATFORM, self.board)) if wanted]

    @property
    def for_sim(self) -> bool:
        return any(artifact.tensors for artifact in self.artifacts)

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
        return (*self.source.notes, *(note for lora in self.loras for note in lora.notes), *self.remarks)

    def folder(self, artifact: Artifact) -> Path:
        return self.out / self.variant(artifact)

    def variant(self, artifact: Artifact) -> str:
        """What tells this bundle from others of the same model; what is not usual is part of it."""
        level = self.board.options.optimization_level if self.board else 1
        return variant_name(self.name, artifact.scheme.name, level, self.hybrid_rate, self.community_names)

    def npu_model(self, artifact: Artifact) -> str:
        """The file that rkllm-toolkit writes."""
        return f"{self.variant(artifact)}.rkllm" if self.community_names else bundle.NPU_MODEL

    def npu_bytes(self) -> int:
        """About what that file takes: a byte a weight, two for each of the embedding."""
        return sum(t.rows * t.columns * (1 if len(t.shape) == 2 else 4) for t in self.source.tensors.values()) * 5 // 4

    @property
    def needed_bytes(self) -> int:
        """On the disk, with what is made on the way and goes again."""
        kept = sum(adapter.nbytes for adapter in self.kept)
        total = sum(artifact.data_bytes + kept for artifact in self.artifacts)
        if self.board:
            # One adapter is built at a time, and each build writes the model again.
            copies = 2 if len(self.kept) > 1 else 1
            total += len(self.artifacts) * copies * self.npu_bytes() + (self.source.nbytes if self.merged else 0)
        return total

    @property
    def memory_bytes(self) -> int:
        """Estimated peak: blocks read ahead, those being worked on, what waits for the disk, and the tokenizer.

        rkllm-toolkit is a process of its own, and counted where it is the larger one.
        """
        own = self._own_memory() if self.for_sim else _BASE_MEMORY
        return max(own, LEAST * self.source.nbytes) if self.board else own

    def _own_memory(self) -> int:
        made = sum(1 if a.scheme.quantised else 2 for a in self.artifacts)
        ahead = (2 * self.threads + 2) * max(block_bytes(t) for t in self.source.tensors.values())
        weights = max(block_rows(t) * t.columns for t in self.source.tensors.values())
        work = weights * ((24 if self.merged else 4) * self.threads + made * (2 * self.threads + AHEAD))
        hashed = (AHEAD + 2) * BLOCK_BYTES
        vocabulary = self.llama.vocabulary
        loras = sum(lora.nbytes for lora in self.loras)
        return _BASE_MEMORY + loras + ahead + work + hashed + 250 * (len(vocabulary.tokens) + len(vocabulary.merges))


def variant_name(name: str, dtype: str, level: int, hybrid_rate: float, community: bool) -> str:
    """A bundle's folder. ``community``: as the models that others publish are called."""
    base = f"{name}-{PLATFORM}-{dtype}"
    if community:
        return f"{base}-opt-{level}-hybrid-ratio-{float(hybrid_rate)}"
    unusual = "" if level == 1 else f"-opt{level}"
    return base + unusual + (f"-hybrid{hybrid_rate:g}" if hybrid_rate else "")


def make_plan(
    source: Checkpoint,
    name: str,
    out: Path,
    schemes: list[Scheme],
    *,
    overwrite: bool = False,
    threads: int = 0,
    loras: Sequence[Lora] = (),
    lora_mode: str = "adapter",
    sim: bool = True,
    board: Board | None = None,
    hybrid_rate: float = 0.0,
    community_names: bool = False,
    remarks: Sequence[str] = (),
    dry_run: bool = False,
) -> Plan:
    """A plan whose targets are free; UsageError for a dtype given twice, TargetError for a target that exists.

    ``dry_run``: that is a remark, for nothing is going to be written.
    """
    twice = [dtype for dtype, n in Counter(s.name for s in schemes).items() if n > 1]
    if twice:
        raise UsageError(f"--dtype {twice[0]} is given more than once: one bundle is written for each dtype")
    unmixed = [s.name for s in schemes if hybrid_rate and not s.quantised]
    if unmixed:
        raise UsageError(f"--hybrid-rate mixes int8 layers with and without groups, and {unmixed[0]} has neither")
    plan = Plan(
        source=source,
        name=name,
        out=out,
        artifacts=tuple(_artifact(source, scheme, hybrid_rate) if sim else Artifact(scheme, ()) for scheme in schemes),
        overwrite=overwrite,
        threads=threads or len(os.sched_getaffinity(0)),
        loras=tuple(loras),
        lora_mode=lora_mode,
        hybrid_rate=hybrid_rate,
        board=board,
        community_names=community_names,
        remarks=tuple(remarks),
    )
    taken = [target for target in map(plan.folder, plan.artifacts) if target.exists() and not overwrite]
    told = [f"{target} exists already: remove it, choose another -o, or give --overwrite" for target in taken]
    if told and not dry_run:
        raise TargetError(told[0])
    return replace(plan, remarks=(*plan.remarks, *told))


def _artifact(source: Checkpoint, scheme: Scheme, hybrid_rate: float) -> Artifact:
    """Of a hybrid, the largest it can become: which layers have groups is decided when their errors are known."""
    assert isinstance(source, Source)
    every = frozenset(name for name, shape in source.config.tensors().items() if len(shape) == 2) | {OUTPUT}
    return make_artifact(source.config, scheme, every if hybrid_rate else None)


def make_artifact(config: ModelConfig, scheme: Scheme, grouped: frozenset[str] | None = None) -> Artifact:
    """The tensors of an artifact, each scale directly behind what it scales; ``grouped``: a hybrid's."""
    plain = Artifact(scheme, (), grouped)
    embedding = "F32" if scheme.name == "fp32" else "F16"
    found: list[OutTensor] = []
    for name, shape in config.tensors().items():
        if name == EMBEDDING:
            _add(found, name, embedding, shape, name)
        elif len(shape) == 1:
            _add(found, name, "F32", shape, name)
        else:
            _add_linear(found, name, shape, name, plain.scheme_of(name))
    if config.tied and scheme.quantised:
        _add_linear(found, OUTPUT, (config.vocab_size, config.hidden), EMBEDDING, plain.scheme_of(OUTPUT))
    for name, values in config.rope_tensors().items():
        _add(found, name, "F32", (len(values),), "")
    _add(found, CHECKSUMS, "I32", (len(found) + 1,), "")
    return Artifact(scheme, tuple(found), grouped)


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
    return min(max(limit // per_unit, 1) * unit, tensor.run or tensor.rows)


def block_bytes(tensor: SourceTensor) -> int:
    return block_rows(tensor) * (tensor.nbytes // tensor.rows)


def linear_kinds(artifact: Artifact) -> list[dict[str, Any]]:
    """The linear layers by kind (``attn_q``, …): how many, their shape, and how the scheme divides their rows."""
    kinds: dict[tuple[str, int, int, Scheme], int] = Counter()
    for tensor in artifact.tensors:
        if len(tensor.shape) == 2 and tensor.name != EMBEDDING and not tensor.name.endswith(".scale"):
            n, k = tensor.shape
            kinds[(tensor.name.split(".")[-2], n, k, artifact.scheme_of(tensor.name))] += 1
    return [
        {
            "layer": kind, "count": count, "n": n, "k": k,
            "groups": scheme.groups(k) if scheme.quantised else 0, "short_group": scheme.short_group(k),
        }
        for (kind, n, k, scheme), count in kinds.items()
    ]  # fmt: skip


def toolkit_obstacle(artifact: Artifact) -> str | None:
    """Why rkllm-toolkit could not build this dtype for a board: it wants groups that divide every K. None: it could."""
    sides = {kind["k"] for kind in linear_kinds(artifact) if artifact.scheme.short_group(kind["k"])}
    if not sides:
        return None
    listed = ", ".join(str(k) for k in sorted(sides))
    return f"K = {listed} is not a multiple of {artifact.scheme.group_size}"


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: what ``--dry-run --json`` prints."""
    vocabulary = plan.source.vocabulary
    return {
        "name": plan.name,
        "source": describe_source(plan),
        "model": model_facts(plan.source),
        "tokenizer": {"model": vocabulary.model, "pre": vocabulary.pre} if vocabulary else None,
        "sampling": dict(plan.source.sampling),
        "bundles": [_describe_bundle(plan, artifact) for artifact in plan.artifacts],
        **({"board": plan.board.facts()} if plan.board else {}),
        "threads": plan.threads,
        "memory_bytes": plan.memory_bytes,
        **({"lora": {"mode": plan.lora_mode, "adapters": [facts(lora) for lora in plan.loras]}} if plan.loras else {}),
        "notes": list(plan.notes),
    }


def describe_source(plan: Plan) -> dict[str, Any]:
    return {
        "path": str(plan.source.origin or plan.source.path),
        "kind": plan.source.kind,
        "types": dict(Counter(t.kind for t in plan.source.tensors.values())),
        "bytes": plan.source.nbytes,
    }


def _describe_bundle(plan: Plan, artifact: Artifact) -> dict[str, Any]:
    from .sizes import bundle_bytes

    found: dict[str, Any] = {
        "dtype": artifact.scheme.name,
        "path": str(plan.folder(artifact)),
        "targets": plan.targets,
    }
    if plan.hybrid_rate:
        found["hybrid_rate"] = plan.hybrid_rate
    if artifact.tensors:
        # Of a hybrid, the layers are not chosen yet: these are the most it can take.
        found |= {
            "bytes": bundle_bytes(plan, artifact),
            "linear": linear_kinds(artifact),
            "toolkit_obstacle": toolkit_obstacle(artifact),
        }
    if plan.board:
        found["npu_bytes_about"] = plan.npu_bytes()
    return found


def model_facts(source: Checkpoint) -> dict[str, Any]:
    """The shape of a model, for the plan, the manifest and the card; of a family not known here, only its size."""
    parameters = sum(t.rows * t.columns for t in source.tensors.values() if not t.name.endswith("inv_freq"))
    shape = source.shape
    if shape is None:
        return {"architecture": source.architecture, "parameters": parameters}
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
