"""What every source of a model comes down to: files, and tensors at known places in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rk3588.errors import CheckpointError
from rkconvert.config import ModelConfig
from rkconvert.vocabulary import Vocabulary

Array = npt.NDArray[Any]
# Types that need no unpacking; bf16 stays bits.
PLAIN: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class SourceTensor:
    """One tensor in a source file: ``name`` is the file's own, ``kind`` a ggml type's name."""

    name: str
    kind: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    heads: int = 0  # rows are in llama.cpp's order, permuted within each of so many heads; 0: as they are

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def columns(self) -> int:
        return self.shape[-1]

    def decode(self, raw: bytes) -> tuple[Array, str]:
        """Whole rows as they stand in the file to (rows, K) in Hugging Face's order, as F32, F16 or BF16 bits.

        With ``heads``, the rows must be whole heads.
        """
        if self.kind in PLAIN:
            values: Array = np.frombuffer(raw, PLAIN[self.kind]).reshape(-1, self.columns)
            kind = self.kind
        else:
            from gguf import GGMLQuantizationType, quants

            packed = np.frombuffer(raw, np.uint8).reshape(-1, self.nbytes // self.rows)
            values, kind = quants.dequantize(packed, GGMLQuantizationType[self.kind]), "F32"
        if self.heads:
            half = self.shape[0] // self.heads // 2
            pairs = values.reshape(-1, half, 2, self.columns)
            values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1, self.columns)
        return values, kind


@dataclass(frozen=True)
class Origin:
    """Where on the Hugging Face hub a model came from; ``file`` is "" for the repository as a folder."""

    repository: str
    revision: str  # as it was asked for
    commit: str  # what that stood for
    file: str = ""

    def __str__(self) -> str:
        return f"{self.repository}{':' if self.file else ''}{self.file}@{self.commit[:12]}"


@dataclass(frozen=True)
class Source:
    """A model to convert. ``tensors`` goes by canonical name; ``files`` are hashed, ``copies`` go into the bundle."""

    path: Path
    kind: str  # "huggingface" or "gguf"
    config: ModelConfig
    vocabulary: Vocabulary
    tensors: Mapping[str, SourceTensor]
    files: tuple[Path, ...]  # those with weights
    extras: tuple[Path, ...] = ()  # configuration that was read as well
    copies: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    origin: Origin | None = None

    @property
    def name(self) -> str:
        """What it may be called where its place on this machine is nobody's business."""
        if self.origin is None:
            return self.path.absolute().name
        return ":".join(filter(None, (self.origin.repository, self.origin.file)))


def checked_tensors(
    config: ModelConfig, found: Mapping[str, SourceTensor], where: Path, ignored: Iterable[str] = ()
) -> dict[str, SourceTensor]:
    """``found`` (by canonical name) when it is exactly what ``config`` asks for; else CheckpointError.

    Q and K of a GGUF file come without ``heads``, which only the config knows: see ``with_heads``.
    """
    expected = config.tensors()
    for name, shape in expected.items():
        tensor = found.get(name)
        if tensor is None:
            raise CheckpointError(f"{where} lacks the tensor {name}, which its configuration asks for")
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}, its configuration asks for "
                f"{list(shape)}"
            )
    for name in found.keys() - expected.keys() - set(ignored):
        raise CheckpointError(
            f"{found[name].file}: tensor {found[name].name} is not part of a Llama this version knows"
        )
    return {name: found[name] for name in expected}


def with_heads(config: ModelConfig, tensors: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """The same, with Q and K marked as permuted, as llama.cpp keeps them."""
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}
    return {name: replace(t, heads=heads.get(name.split(".")[-2], 0)) for name, t in tensors.items()}


def open_source(path: Path) -> Source:
    """The model at ``path``: a Hugging Face folder or a GGUF file."""
    from . import gguf_file, huggingface

    if path.is_dir():
        return huggingface.read(path)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return gguf_file.read(path)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is one file of a model: give the folder that holds it and its config.json")
    raise CheckpointError(f"{path} is neither a Hugging Face folder nor a GGUF file")
