"""What stands in a GGUF file before its tensors' data, and the parts of a model that is split into several files.

Standard library only. No count is believed before it fits into the file: a hostile one would make a reader loop or
allocate without end.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from .errors import CheckpointError
from .shape import Shape, from_config

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_HEADER = 128 << 20  # with 256,000 tokens and their merges it has 16 MB
_MOST_ITEMS = 1 << 24  # of an array: no vocabulary is larger
# How llama-gguf-split names the parts of a model.
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
JOIN = "join the parts with llama-gguf-split --merge"
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


class TensorInfo(NamedTuple):
    """Where a tensor lies: ``dims`` fastest first, ``kind`` ggml's number of its type, ``offset`` from the file's
    beginning."""

    name: str
    dims: tuple[int, ...]
    kind: int
    file: Path
    offset: int


class Model(NamedTuple):
    """Metadata by key, tensors by name, and the files they lie in."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Part:
    """What a file's name says of it: part ``number`` (from 1) of ``count`` of the model ``stem``."""

    stem: str
    number: int
    count: int

    def name(self, number: int) -> str:
        """What the part with that number is called."""
        return f"{self.stem}-{number:05}-of-{self.count:05}.gguf"

    @property
    def names(self) -> list[str]:
        return [self.name(number) for number in range(1, self.count + 1)]


def part_of(name: str) -> Part | None:
    """``name`` as that of a part of a model in several files; None for any other, and for a model in one part."""
    match = _PART.fullmatch(name)
    if match is None or int(match["count"]) < 2:
        return None
    return Part(match["stem"], int(match["number"]), int(match["count"]))


def read(path: Path) -> Model:
    """The model in ``path``. Of a split one ``path`` is any part, and the others have to lie beside it."""
    model = read_file(path)
    part, count = part_of(path.name), _split_count(path, model.metadata)
    if count < 2:
        if part:
            raise CheckpointError(
                f"{path} is called part {part.number} of {part.count} of a model, but its metadata (split.count) say "
                "nothing of it: give it another name if it is a whole model, else download the parts again"
            )
        _check_total(path, model.metadata, len(model.tensors))
        return model
    number = _split_number(path, model.metadata, count)
    if part is None or (part.number, part.count) != (number, count):
        raise CheckpointError(
            f"{path} is part {number} of {count} of a model, and is not called NAME-{number:05}-of-{count:05}.gguf: "
            f"give the parts their names back, so that the others are found, or {JOIN}"
        )
    missing = [name for name in part.names if not path.with_name(name).is_file()]
    if missing:
        others = f" (nor {len(missing) - 1} other parts)" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{path} is part {number} of {count} of a model, and beside it there is no {missing[0]}{others}: download "
            "it into the same folder"
        )
    return _joined([model if name == path.name else read_file(path.with_name(name)) for name in part.names])


def _joined(parts: list[Model]) -> Model:
    """The parts as one: metadata of the first, tensors of all."""
    first = parts[0]
    tensors: dict[str, TensorInfo] = {}
    for number, part in enumerate(parts, 1):
        (file,) = part.files
        count = _split_count(file, part.metadata)
        if count != len(parts) or _split_number(file, part.metadata, count) != number:
            raise CheckpointError(
                f"{file} is called part {number} of {len(parts)} of a model, and its metadata (split.no, split.count) "
                "say otherwise: download it again"
            )
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"{file}: tensor {name} is in {tensors[name].file.name} as well: these are not parts of one model, "
                    "download them again"
                )
            tensors[name] = tensor
    _check_total(first.files[0], first.metadata, len(tensors))
    return Model(first.metadata, tensors, tuple(file for part in parts for file in part.files))


def _split_count(path: Path, metadata: dict[str, Any]) -> int:
    return _whole(path, metadata, "split.count", 0)


def _split_number(path: Path, metadata: dict[str, Any], count: int) -> int:
    """From 1, while the file counts from 0."""
    number = _whole(path, metadata, "split.no", -1)
    if not 0 <= number < count:
        raise CheckpointError(f"{path} has {count} parts by split.count, and split.no is {number}: the file is damaged")
    return number + 1


def _check_total(path: Path, metadata: dict[str, Any], found: int) -> None:
    wanted = _whole(path, metadata, "split.tensors.count", found)
    if wanted != found:
        raise CheckpointError(
            f"{path} is part of a model of {wanted} tensors (split.tensors.count), and there are {found}: download all "
            f"of its parts again, or {JOIN}"
        )


def _whole(path: Path, metadata: dict[str, Any], key: str, default: int) -> int:
    value = metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"{path}: {key} is {value!r}, expected a whole number: the file is damaged")
    return value


def shape_of(path: Path) -> Shape:
    """The shape of the model in ``path``, for predictions; nothing but headers is read."""
    model = read(path)
    family = model.metadata.get("general.architecture")
    if not isinstance(family, str):
        raise CheckpointError(f"{path} holds no model: it names no architecture (general.architecture)")
    prefix = f"{family}."
    sizes = {k[len(prefix) :]: uniform(v) for k, v in model.metadata.items() if k.startswith(prefix)}
    embedding = model.tensors.get(EMBEDDING)
    if embedding is not None and len(embedding.dims) >= 2:
        sizes["vocab_size"] = embedding.dims[1]
    sizes |= {
        "model_type": family,
        "tied": OUTPUT not in model.tensors,
        "attention_bias": "blk.0.attn_q.bias" in model.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in model.tensors,
    }
    part = part_of(path.name)
    return from_config(sizes, path, names=_SHAPE, name=part.stem if part else path.stem)


_SHAPE = {
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "tie_word_embeddings": "tied",
}  # GGUF's names of what a config.json says


def uniform(value: Any) -> Any:
    """A setting that the file lists for each layer, where it is the same for all; anything else as it is."""
    return value[0] if isinstance(value, list) and value and all(item == value[0] for item in value) else value


def read_file(path: Path) -> Model:
    """One file by itself, be it a part or a whole model."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        if reader.take(4) != b"GGUF":
            raise CheckpointError(f"{path} is not a GGUF file")
        version = reader.scalar("I")
        if version not in (2, 3):
            raise CheckpointError(f"{path}: GGUF version {version} is not supported, only 2 and 3 (little-endian)")
        tensor_count, pair_count = reader.count(24), reader.count(13)
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = reader.text()
            if key in metadata:
                raise CheckpointError(f"{path}: the key {key!r} is there twice: the file is damaged")
            metadata[key] = reader.value(reader.scalar("I"))
        infos = [reader.tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise CheckpointError(f"{path}: general.alignment is {alignment!r}: the file is damaged")
        start = -(-reader.at // alignment) * alignment
    tensors = {name: TensorInfo(name, dims, kind, path, start + offset) for name, dims, kind, offset in infos}
    if len(tensors) != tensor_count:
        raise CheckpointError(f"{path}: two tensors have the same name: the file is damaged")
    return Model(metadata, tensors, (path,))


class _Reader:
    """Reads forward and never past the end; what does not fit is one sentence with the place."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = path.stat().st_size
        self.at = 0

    def _fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path} is truncated or damaged: {what} at byte {self.at}: download it again")

    def take(self, n: int) -> bytes:
        if n > self.size - self.at:
            self._fail(f"{n} bytes are missing")
        self.at += n
        if self.at > _MOST_HEADER:
            self._fail(f"a header of more than {_MOST_HEADER >> 20} MB")
        return self.file.read(n)

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, item: int) -> int:
        """A number of things of at least ``item`` bytes each."""
        n = int(self.scalar("Q"))
        if n * item > self.size - self.at:
            self._fail(f"a count of {n}, more than the file can hold,")
        return n

    def text(self) -> str:
        return self.take(self.count(1)).decode("utf-8", "surrogateescape")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY or depth > 2:
            self._fail(f"a value of the unknown type {kind}")
        item = self.scalar("I")
        code = _SCALARS.get(item, "")
        n = self.count(struct.calcsize("<" + code) if code else 8)
        if n > _MOST_ITEMS:
            self._fail(f"a list of {n} items, more than {_MOST_ITEMS},")
        if code:
            return list(struct.unpack(f"<{n}{code}", self.take(n * struct.calcsize("<" + code))))
        return [self.value(item, depth + 1) for _ in range(n)]

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text()
        n = self.scalar("I")
        if n > 4:
            self._fail(f"a tensor of {n} dimensions")
        dims = tuple(int(self.scalar("Q")) for _ in range(n))
        return name, dims, int(self.scalar("I")), int(self.scalar("Q"))
