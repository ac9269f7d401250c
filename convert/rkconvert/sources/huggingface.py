"""A Hugging Face folder: config.json, safetensors (sharded or not), tokenizer.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rk3588 import sampling
from rk3588 import shape as shapes
from rk3588.errors import CheckpointError
from rkconvert import config as configs
from rkconvert.config import ModelConfig
from rkconvert.vocabulary_hf import read_vocabulary

from .base import Checkpoint, Source, SourceTensor, checked_tensors, vocabulary_or_note

GENERATION = "generation_config.json"
COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", GENERATION,
)  # fmt: skip
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
CONFIGURATION = ("config.json", *COPIED, "chat_template.jinja", "tokenizer.model")  # what is read beside the weights
_PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_ITEM = {"F32": 4, "F16": 2, "BF16": 2}
_MOST_HEADER = 100_000_000  # the format's own limit


def read(folder: Path) -> Source:
    """The model in ``folder``; CheckpointError says what is missing or not supported."""
    settings = read_json(folder / "config.json", "it is no Hugging Face folder; give the one that holds config.json")
    config = configs.from_huggingface(settings, str(folder / "config.json"))
    files = _weight_files(folder)
    found = {canonical(name): tensor for name, tensor in _tensors(files).items()}
    ignored = {n for n in found if n.endswith("rotary_emb.inv_freq")}  # old checkpoints carry it; it follows from theta
    if config.tied:
        ignored.add(configs.OUTPUT)  # a copy of the embedding, or not used
    vocabulary = read_vocabulary(folder, settings, config.vocab_size)
    wishes, remarks = _sampling(folder)
    return Source(
        path=folder,
        kind="huggingface",
        architecture="LlamaForCausalLM",
        config=config,
        vocabulary=vocabulary,
        tensors=_checked(config, found, folder, ignored),
        files=tuple(files),
        shape=config.shape(folder.absolute().name),
        extras=_there(folder, *CONFIGURATION, INDEX),
        copies=_there(folder, *COPIED),
        notes=(*vocabulary.notes, *remarks),
        sampling=wishes,
    )


def read_any(folder: Path) -> Checkpoint:
    """The model in ``folder``, whatever its architecture, without a look at how its tensors fit together."""
    where = folder / "config.json"
    settings = read_json(where, "it is no Hugging Face folder; give the one that holds config.json")
    configs.refuse_quantised(configs.Fields(settings, str(where)))
    names = settings.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(f"{where} names no architecture: it is not the config.json of a model")
    files = _weight_files(folder)
    tensors = _tensors(files)
    rows = settings.get("vocab_size", settings.get("padded_vocab_size"))
    vocabulary, notes = vocabulary_or_note(
        lambda: read_vocabulary(folder, settings, rows if isinstance(rows, int) else 0)
    )
    try:
        shape = shapes.from_config(settings, where)
    except CheckpointError:  # a family that predictions do not know is no reason to refuse a model
        shape = None
    wishes, remarks = _sampling(folder)
    return Checkpoint(
        path=folder,
        kind="huggingface",
        architecture=names[0],
        tensors=tensors,
        files=tuple(files),
        vocabulary=vocabulary,
        shape=shape,
        extras=_there(folder, *CONFIGURATION, INDEX),
        copies=_there(folder, *COPIED),
        notes=(*notes, *remarks),
        sampling=wishes,
    )


def _sampling(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the model asks for in its generation_config.json, and remarks."""
    where = folder / GENERATION
    return sampling.of_model(read_json(where, ""), str(where)) if where.is_file() else ({}, ())


def _there(folder: Path, *names: str) -> tuple[Path, ...]:
    return tuple(folder / name for name in names if (folder / name).is_file())


def _tensors(files: Mapping[Path, list[str] | None]) -> dict[str, SourceTensor]:
    """Every tensor by the name it has in its file."""
    found: dict[str, SourceTensor] = {}
    for file, names in files.items():
        inside = read_header(file)
        for name in names if names is not None else inside:
            if name not in inside:
                raise CheckpointError(
                    f"{file} lacks the tensor {name}, which the index says is in it: download it again"
                )
            found[name] = inside[name]
    return found


def _checked(
    config: ModelConfig, found: dict[str, SourceTensor], folder: Path, ignored: set[str]
) -> dict[str, SourceTensor]:
    for name in config.tensors():
        if name not in found:
            raise CheckpointError(f"{folder} lacks the tensor {huggingface_name(name)}, which its config.json asks for")
    return checked_tensors(config, found, folder, ignored)


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """An object from a JSON file; ``missing`` ends the sentence when the file is not there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}: {missing}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"cannot read {path}: it holds no JSON object")
    return value


def canonical(name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor; a name that is not a Llama's stays as it is."""
    top = {"model.embed_tokens.weight": configs.EMBEDDING, "model.norm.weight": configs.OUTPUT_NORM,
           "lm_head.weight": configs.OUTPUT}  # fmt: skip
    if name in top:
        return top[name]
    pieces = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    if name.startswith("model.layers.") and name.endswith(".weight") and len(pieces) == 2 and pieces[1] in _PARTS:
        return f"blk.{pieces[0]}.{_PARTS[pieces[1]]}.weight"
    return name


def huggingface_name(name: str) -> str:
    """The inverse of ``canonical``."""
    top = {configs.EMBEDDING: "model.embed_tokens.weight", configs.OUTPUT_NORM: "model.norm.weight",
           configs.OUTPUT: "lm_head.weight"}  # fmt: skip
    if name in top:
        return top[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{next(hf for hf, ours in _PARTS.items() if ours == part)}.weight"


def _weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """Files with weights, each with the tensors the index looks for in it (None: there is no index)."""
    index, single = folder / INDEX, folder / SINGLE
    if not index.is_file():
        if single.is_file():
            return {single: None}
        if any(folder.glob("pytorch_model*.bin")):
            raise CheckpointError(
                f"{folder} has its weights in pytorch_model.bin, which can run code when it is read: save them as "
                "safetensors (model.save_pretrained in transformers)"
            )
        raise CheckpointError(f"{folder} has no model.safetensors and no index of shards: download the model again")
    where = read_json(index, "it is needed to find the shards").get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"cannot read {index}: it has no 'weight_map'")
    files: dict[Path, list[str] | None] = {}
    for name, shard in where.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: {shard!r} is not the name of a file beside it")
        names = files.setdefault(folder / shard, [])
        assert names is not None
        names.append(name)
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{folder} lacks the shard {file.name}, which {index.name} names: download it again")
    return files


def read_header(path: Path) -> dict[str, SourceTensor]:
    """The tensors of one safetensors file by name, each checked to lie inside the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER):
            raise CheckpointError(
                f"{path} is truncated or not safetensors: its header should have {length} bytes, the file has {size}"
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: its header is not JSON ({error}): download it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is no JSON object: download it again")
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> SourceTensor:
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and isinstance(kind, str)
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: the header's entry for {name} is not one of safetensors: download it again")
    if kind not in _ITEM:
        if name.endswith("inv_freq"):
            kind = "F32"
        else:
            raise CheckpointError(f"{path}: tensor {name} has type {kind}, only F32, F16 and BF16 can be converted")
    elif begin > end or end - begin != math.prod(shape) * _ITEM[kind]:
        raise CheckpointError(
            f"{path}: tensor {name} of shape {list(shape)} and type {kind} cannot have {end - begin} bytes: "
            "download it again"
        )
    if start + end > size:
        raise CheckpointError(
            f"{path} is truncated: tensor {name} ends at byte {start + end}, the file has {size}: download it again"
        )
    return SourceTensor(name, kind, shape, path, start + begin, end - begin)
