"""A source as a Hugging Face folder of the plain family, with its weights as they are changed: for transformers, for
Rockchip's toolkit, for whatever reads such folders."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rk3588 import bundle, files
from rk3588.errors import CheckpointError
from rkconvert.adapters.lora import Lora
from rkconvert.architectures import to_config_json
from rkconvert.architectures.names import Names, Part
from rkconvert.artifact.block import to_bf16
from rkconvert.artifact.blocks import block_jobs
from rkconvert.artifact.reading import OpenFile, opened
from rkconvert.sources.base import Source, as_float32
from rkconvert.sources.huggingface import INDEX, SINGLE, read_json
from rkconvert.tokenizers import tokenizer_json

from .options import KEY, TORCH_NAMES, TYPES

Floats = npt.NDArray[np.float32]
_MOST_SHARD = 5_000_000_000  # bytes, as transformers had it for years


class _Stored(NamedTuple):
    """A tensor of the folder, with the canonical ones that are its rows."""

    name: str
    parts: list[Part]
    shape: tuple[int, ...]


def nbytes(source: Source, dtype: str) -> int:
    """Of all weights in the folder."""
    return sum(math.prod(shape) for shape in source.config.tensors().values()) * _item(dtype)


def settings(source: Source) -> dict[str, Any]:
    """What config.json says of the model before it is turned; CheckpointError where a GGUF file cannot tell."""
    if source.kind == "gguf":
        return to_config_json.settings(source.config, source.family, source.vocabulary, str(source.path))
    return dict(read_json(source.path / "config.json", "put it back"))


def missing_code(source: Source, before: dict[str, Any]) -> list[str]:
    """The authors' files of code that config.json names and that do not lie beside it, as in a folder from the hub."""
    named = before.get("auto_map")
    values = [v for v in named.values() if isinstance(v, str)] if isinstance(named, dict) else []
    modules = {value.rpartition("--")[2].partition(".")[0] for value in values}
    return sorted(f"{module}.py" for module in modules if not files.exists(source.path / f"{module}.py"))


def write(
    source: Source,
    merged: Sequence[Lora],
    before: dict[str, Any],
    folder: Path,
    dtype: str,
    step: Callable[[int], None],
) -> float:
    """Fill ``folder`` with ``source``, ``merged`` added, whose config.json was ``before`` until it was changed.

    ``step`` is told the bytes of each piece written. Returns what rounding to ``dtype`` changed: the root mean square
    of the difference over that of the weights.
    """
    error = _write_weights(source, merged, folder, dtype, step)
    now = {**before, **({"tie_word_embeddings": False, KEY: dict(source.rotation)} if source.rotation else {})}
    keys = [key for key in ("torch_dtype", "dtype") if key in now] or ["torch_dtype"]
    now |= dict.fromkeys(keys, TORCH_NAMES[dtype])
    _write_text(folder / "config.json", json.dumps(now, indent=2, ensure_ascii=False) + "\n")
    code = sorted(source.path.glob("*.py")) if source.kind == "huggingface" else []
    for file in (*source.copies, *source.license_files, *code):
        files.copy(file, folder / file.name, files.TOKENIZER, file.parent, CheckpointError)
    if source.kind == "gguf":
        for name, text in tokenizer_json.files(source.vocabulary, source.config.context_length).items():
            _write_text(folder / name, text)
    if source.vocabulary.chat_template:
        _write_text(folder / bundle.TEMPLATE, source.vocabulary.chat_template)
    return error


def _item(dtype: str) -> int:
    return np.dtype(np.float32).itemsize if dtype == "fp32" else 2


def _stored(source: Source) -> list[_Stored]:
    names, shapes = Names(source.family, source.config), source.config.tensors()
    found = []
    for name in dict.fromkeys(names.in_file(ours) for ours in shapes):
        parts = names.parts(name)
        found.append(_Stored(name, parts, (sum(part.rows for part in parts), *shapes[parts[0].name][1:])))
    return found


def _shards(stored: list[_Stored], item: int) -> list[list[_Stored]]:
    found: list[list[_Stored]] = [[]]
    size = 0
    for tensor in stored:
        own = math.prod(tensor.shape) * item
        if found[-1] and size + own > _MOST_SHARD:
            found.append([])
            size = 0
        found[-1].append(tensor)
        size += own
    return found


def _write_weights(
    source: Source, merged: Sequence[Lora], folder: Path, dtype: str, step: Callable[[int], None]
) -> float:
    shards = _shards(_stored(source), _item(dtype))
    where: dict[str, str] = {}
    squares = np.zeros(2)
    with ExitStack() as stack:
        inputs = {path: stack.enter_context(opened(path)) for path in source.files}
        for number, shard in enumerate(shards, 1):
            name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            where |= dict.fromkeys((tensor.name for tensor in shard), name)
            with (folder / name).open("wb") as file:
                file.write(_header(shard, dtype))
                for tensor in shard:
                    for values in _rows(source, tensor, inputs, merged):
                        data = values if dtype == "fp32" else to_bf16(values)
                        squares += _squares(values, as_float32(data, TYPES[dtype]))
                        file.write(data.tobytes())
                        step(data.nbytes)
                file.flush()
                os.fsync(file.fileno())
    if len(shards) > 1:
        index = {"metadata": {"total_size": nbytes(source, dtype)}, "weight_map": where}
        _write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
    return float(np.sqrt(squares[0] / squares[1])) if squares[1] else 0.0


def _squares(values: Floats, stored: Floats) -> npt.NDArray[np.float64]:
    wide = values.astype(np.float64)
    return np.array([np.square(stored - wide).sum(), np.square(wide).sum()])


def _header(shard: list[_Stored], dtype: str) -> bytes:
    """Of a safetensors file: its length, then JSON."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in shard:
        end = at + math.prod(tensor.shape) * _item(dtype)
        entries[tensor.name] = {"dtype": TYPES[dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _rows(
    source: Source, tensor: _Stored, inputs: dict[Path, OpenFile], merged: Sequence[Lora]
) -> Iterator[Floats]:
    """The tensor's rows in order. One that is several of ours is put together first."""
    less = 1 if source.family.gain_plus_one and tensor.name.endswith("norm.weight") else 0
    if len(tensor.parts) == 1:
        name = tensor.parts[0].name
        for job in block_jobs(source, name, inputs[source.tensors[name].file], merged):
            yield job.make().as_float32() - np.float32(less)
        return
    whole = np.empty((tensor.shape[0], math.prod(tensor.shape[1:])), np.float32)
    for part in tensor.parts:
        at, indices = 0, part.indices
        for job in block_jobs(source, part.name, inputs[source.tensors[part.name].file], merged):
            rows = job.make().as_float32().reshape(-1, whole.shape[1])
            whole[indices[at : at + len(rows)]] = rows
            at += len(rows)
    yield whole


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
