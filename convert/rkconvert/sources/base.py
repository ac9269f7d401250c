"""What every source of a model comes down to: files, and tensors at known places in them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rk3588 import files as reading
from rk3588.errors import CheckpointError
from rk3588.families import Family
from rk3588.shape import Shape
from rkconvert.architectures.model import ModelConfig
from rkconvert.architectures.names import Names, Part
from rkconvert.rotation.change import Change
from rkconvert.tokenizers.vocabulary import Vocabulary

from .gptq import Gptq

Array = npt.NDArray[Any]
# Types that need no unpacking; bf16 stays bits.
PLAIN: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_EMBEDDING = re.compile(r"embed|embd|wte\b|\bwpe\b", re.IGNORECASE)
CARD = "README.md"
_MOST_LICENCES = 64
LICENCE = re.compile(r"(LICEN[SC]E|NOTICE|USE_POLICY|COPYING)", re.IGNORECASE)


@dataclass(frozen=True)
class SourceTensor:
    """One tensor in a source file, or rows of one: ``name`` is the file's own, ``kind`` a ggml type's name.

    Rows come in runs of ``run``, each ``step`` rows after the one before; 0: all in one.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    heads: int = 0  # rows are in llama.cpp's order, permuted within each of so many heads; 0: as they are
    plus_one: bool = False  # what is meant is 1 more than what is stored
    run: int = 0
    step: int = 0
    stored: tuple[int, int] | None = None  # offset and bytes of the file's tensor that this is rows of; None: all of it

    @property
    def rows(self) -> int:
        """Of a vector 1; its elements are rows where they come in runs."""
        return self.shape[0] if len(self.shape) == 2 or self.run else 1

    @property
    def columns(self) -> int:
        """Of a scalar 1: an architecture that is not known here may have such."""
        return 1 if not self.shape or (self.run and len(self.shape) == 1) else self.shape[-1]

    @property
    def elements(self) -> int:
        """However many dimensions it has: experts may lie in three."""
        return math.prod(self.shape)

    def place(self, row: int) -> int:
        """Where a row begins in the file."""
        width, run = self.nbytes // self.rows, self.run or self.rows
        return self.offset + (row // run * (self.step or run) + row % run) * width

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
            half, width = self.shape[0] // self.heads // 2, self.columns if len(self.shape) == 2 else 1
            pairs = values.reshape(-1, half, 2, width)
            values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1, self.columns)
        if self.plus_one:
            values, kind = 1 + as_float32(values, kind), "F32"
        return values, kind

    def part(self, part: Part) -> SourceTensor:
        """The rows of a tensor that holds several of ours."""
        whole = part.rows == self.shape[0]
        item = self.nbytes // self.shape[0]
        return replace(
            self,
            shape=(part.rows, *self.shape[1:]),
            offset=self.offset + part.first * item,
            nbytes=part.rows * item,
            run=part.run if part.run != part.rows else 0,
            step=part.step if part.run != part.rows else 0,
            stored=None if whole else (self.offset, self.nbytes),
        )


def as_float32(values: Array, kind: str) -> npt.NDArray[np.float32]:
    """What ``SourceTensor.decode`` gave, bf16's bits too."""
    if kind == "BF16":
        wide: npt.NDArray[np.float32] = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return wide
    return np.ascontiguousarray(values, np.float32)


@dataclass(frozen=True)
class Origin:
    """Where on the Hugging Face hub a model came from; ``file`` is "" for the repository as a folder."""

    repository: str
    revision: str  # as it was asked for
    commit: str  # what that stood for
    file: str = ""

    def __str__(self) -> str:
        return f"{self.repository}{':' if self.file else ''}{self.file}@{self.commit[:12]}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model of any architecture, as far as its headers tell: what rkllm-toolkit is given.

    ``tensors`` is keyed as the opener likes; ``files`` are hashed, ``copies`` go into the bundle.
    """

    path: Path
    kind: str  # "huggingface" or "gguf"
    architecture: str  # config.json's ("LlamaForCausalLM") or GGUF's own ("llama")
    tensors: Mapping[str, SourceTensor]
    files: tuple[Path, ...]  # those with weights
    vocabulary: Vocabulary | None = None  # None: its tokenizer is none that the simulated runtime knows
    shape: Shape | None = None  # None: its family is not known here
    gptq: Gptq | None = None  # how its weights are quantised already
    long_rope: bool = False  # its RoPE is scaled by LongRoPE's factors
    extras: tuple[Path, ...] = ()  # configuration that was read as well
    copies: tuple[Path, ...] = ()
    licence: str = ""  # what the file itself says of it, an identifier as the hub has them
    copied_bytes: int | None = None  # of ``copies``, licences and card, where they are not here yet
    notes: tuple[str, ...] = ()
    origin: Origin | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)  # what it asks for, as rk3588.sampling names it
    rotation: Mapping[str, Any] = field(default_factory=dict)  # how its weights are turned; empty: they are not

    @property
    def name(self) -> str:
        """What it may be called where its place on this machine is nobody's business."""
        if self.origin is None:
            return self.path.absolute().name
        return ":".join(filter(None, (self.origin.repository, self.origin.file)))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """All of its weights, however they are stored."""
        counted = [tensor for tensor in self.tensors.values() if not tensor.name.endswith("inv_freq")]
        if self.gptq is None:
            return sum(tensor.elements for tensor in counted)
        return sum(self.gptq.weights(tensor.name, tensor.elements) for tensor in counted)

    @property
    def linear(self) -> list[SourceTensor]:
        """The tensors that become NPU weights: matrices, (N, K), other than the embedding."""
        return [t for t in self.tensors.values() if len(t.shape) == 2 and not _EMBEDDING.search(t.name)]

    @property
    def folder(self) -> Path | None:
        """Where its card and its licence lie; None for a lone file, whose folder may be anybody's."""
        if self.kind == "huggingface":
            return self.path
        return self.path.parent if self.origin else None

    @property
    def license_files(self) -> list[Path]:
        """Licence and notices, whatever they are called."""
        if self.folder is None or not self.folder.is_dir():  # on the hub, and not here yet
            return []
        found = sorted(file for file in self.folder.iterdir() if LICENCE.match(file.name) and not file.is_dir())
        if len(found) > _MOST_LICENCES:
            raise CheckpointError(f"{self.folder} has {len(found)} files with licences: leave the model's own")
        for file in found:
            if not reading.is_name(file.name):  # it is copied under this name, which the manifest lists
                raise CheckpointError(f"{file} has a name that is not UTF-8: give it another one")
            reading.check(file, self.folder, CheckpointError, reading.TEXT)
        return found


@dataclass(frozen=True, kw_only=True)
class Source(Checkpoint):
    """A model whose every tensor is known: what the simulated runtime's artifact is made from.

    ``tensors`` goes by canonical name, and so does ``changes``: what becomes of tensors before they are stored.
    """

    family: Family
    config: ModelConfig
    vocabulary: Vocabulary
    changes: Mapping[str, Change] = field(default_factory=dict)
    smoothed: bool = False  # whether ``changes`` smooth it


def our_tensors(
    config: ModelConfig, names: Names, found: Mapping[str, SourceTensor], where: Path, ignored: Iterable[str] = ()
) -> dict[str, SourceTensor]:
    """What ``found``, by the names in the checkpoint, holds of a model of ``config``, by ours; CheckpointError where
    that is not exactly what such a model has. Names in ``ignored`` are nothing of it."""
    expected = config.tensors()
    ours: dict[str, SourceTensor] = {}
    for name, tensor in found.items():
        if name in ignored:
            continue
        refuse_empty(tensor)
        parts = names.parts(name)
        if not parts:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} is not part of such a model as its configuration describes "
                f"({names.family.title})"
            )
        shape = (sum(part.rows for part in parts), *expected[parts[0].name][1:])
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}, its configuration asks for "
                f"{list(shape)}"
            )
        ours |= {part.name: tensor.part(part) for part in parts}
    for name in expected:
        if name not in ours:
            raise CheckpointError(f"{where} lacks the tensor {names.in_file(name)}, which its configuration asks for")
    return {name: ours[name] for name in expected}


def refuse_empty(tensor: SourceTensor) -> None:
    """CheckpointError for what DeepSpeed leaves where each process has a part of the weights and one saves its own."""
    if 0 in tensor.shape:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} is empty (shape {list(tensor.shape)}), as when it is saved under "
            "DeepSpeed ZeRO-3 without its weights being gathered: save it again with "
            "stage3_gather_16bit_weights_on_model_save, or make it of the checkpoint with zero_to_fp32.py"
        )


def vocabulary_or_note(read: Callable[[], Vocabulary]) -> tuple[Vocabulary | None, tuple[str, ...]]:
    """A board can do without a tokenizer of ours; then prompts go to its runtime as text."""
    try:
        vocabulary = read()
    except CheckpointError as error:
        return None, (f"no tokenizer.gguf is written, so prompts are sent as text and not counted: {error}",)
    return vocabulary, vocabulary.notes
