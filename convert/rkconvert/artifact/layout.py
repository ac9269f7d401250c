"""The layout of an artifact, ``model.sim.gguf``: which tensors it has, where they lie, and how each is stored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from rk3588 import quant
from rk3588.quant import Scheme
from rkconvert.architectures.model import EMBEDDING, OUTPUT, ModelConfig

ALIGNMENT = 64
CHECKSUMS = "rksim.tensor_crc32"
_ITEM_BYTES = {"I8": 1, "F16": 2, "F32": 4, "I32": 4}


@dataclass(frozen=True)
class ArtifactTensor:
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
    tensors: tuple[ArtifactTensor, ...]
    grouped: frozenset[str] | None = None

    @property
    def data_bytes(self) -> int:
        return _aligned(self.tensors[-1].offset + self.tensors[-1].nbytes) if self.tensors else 0

    @property
    def grouped_layers(self) -> list[str]:
        """Of a hybrid, the layers with groups, in file order."""
        return [t.name for t in self.tensors if self.grouped is not None and t.name in self.grouped]

    def scheme_of(self, name: str) -> Scheme:
        """How the linear layer ``name`` is stored."""
        if self.grouped is None:
            return self.scheme
        return quant.mixed(self.scheme)[name in self.grouped]


def make_artifact(config: ModelConfig, scheme: Scheme, grouped: frozenset[str] | None = None) -> Artifact:
    """The tensors of an artifact, each scale directly behind what it scales; ``grouped``: a hybrid's."""
    plain = Artifact(scheme, (), grouped)
    embedding = "F32" if scheme.name == "fp32" else "F16"
    found: list[ArtifactTensor] = []
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


def _add_linear(found: list[ArtifactTensor], name: str, shape: tuple[int, ...], source: str, scheme: Scheme) -> None:
    if not scheme.quantised:
        _add(found, name, scheme.name.upper().replace("FP", "F"), shape, source)
        return
    _add(found, name, "I8", shape, source)
    _add(found, f"{name}.scale", "F32", (shape[0], scheme.groups(shape[1])), source)


def _add(found: list[ArtifactTensor], name: str, kind: str, shape: tuple[int, ...], source: str) -> None:
    nbytes = _ITEM_BYTES[kind]
    for side in shape:
        nbytes *= side
    offset = _aligned(found[-1].offset + found[-1].nbytes) if found else 0
    found.append(ArtifactTensor(name, kind, shape, source, offset, nbytes))


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


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
