"""A Hugging Face folder: config.json, safetensors (sharded or not), tokenizer.json or tokenizer.model."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rk3588 import files as reading
from rk3588 import sampling
from rk3588 import shape as shapes
from rk3588.errors import CheckpointError, WrongModel
from rk3588.families import Family
from rk3588.mistaken import listed
from rkconvert.architectures import config_json
from rkconvert.architectures.fields import Fields
from rkconvert.architectures.model import ModelConfig
from rkconvert.architectures.names import Names
from rkconvert.rotation import options as rotation
from rkconvert.tokenizers.huggingface import read_vocabulary

from . import gptq
from .base import Checkpoint, Source, SourceTensor, our_tensors, vocabulary_or_note

GENERATION = "generation_config.json"
COPIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    GENERATION,
)  # fmt: skip
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
CONFIGURATION = ("config.json", *COPIED, "chat_template.jinja")  # what is read beside the weights
ADAPTER = "adapter_config.json"
_MOST = {"tokenizer.json": reading.TOKENIZER, "tokenizer.model": reading.TOKENIZER, INDEX: reading.INDEX}
_ITEM = {"F32": 4, "F16": 2, "BF16": 2}
MOST_HEADER = 100_000_000  # the format's own limit


def read(folder: Path) -> Source:
    """The model in ``folder``; CheckpointError says what is missing or not supported."""
    where = str(folder / "config.json")
    settings, left_out = config_json.text_part(_settings(folder), where)
    family, config = config_json.family_of(settings, where), config_json.read_config(settings, where)
    weights = _weights(folder)
    vocabulary = read_vocabulary(folder, settings, config.vocab_size)
    wishes, remarks = _sampling(folder)
    turned = rotation.read_facts(settings, where)
    return Source(
        path=folder,
        kind="huggingface",
        architecture=config_json.class_of(settings, where) or family.classes[0],
        family=family,
        config=replace(config, rotation=str(turned.get("basis", ""))),
        vocabulary=vocabulary,
        tensors=_known(family, config, _tensors(weights.files), folder),
        files=tuple(weights.files),
        shape=config.shape(folder.absolute().name),
        long_rope=bool(config.rope.scaling.long_factors),
        extras=_there(folder, *CONFIGURATION, *weights.indices),
        copies=_there(folder, *COPIED),
        notes=(*left_out, *weights.notes, *vocabulary.notes, *remarks),
        sampling=wishes,
        rotation=turned,
    )


def read_any(folder: Path) -> Checkpoint:
    """The model in ``folder``, whatever its architecture, without a look at how its tensors fit together."""
    settings = _settings(folder)
    packed = gptq.of(settings)
    if packed is None:
        config_json.refuse_quantised(Fields(settings, str(folder / "config.json")))
    _architecture(settings, folder)
    weights = _weights(folder)
    tensors = _tensors(weights.files, _ITEM if packed is None else {**_ITEM, "I32": 4})
    found = _described(folder, settings)
    return replace(
        found,
        tensors=tensors,
        files=tuple(weights.files),
        gptq=packed,
        extras=(*found.extras, *_there(folder, *weights.indices)),
        notes=(*weights.notes, *found.notes),
    )


def read_configuration(folder: Path) -> Checkpoint:
    """What ``folder`` says of a model, whatever its architecture, beside the weights: it need have none."""
    return _described(folder, _settings(folder))


def _described(folder: Path, settings: dict[str, Any]) -> Checkpoint:
    rows = settings.get("vocab_size", settings.get("padded_vocab_size"))
    vocabulary, notes = vocabulary_or_note(
        lambda: read_vocabulary(folder, settings, rows if isinstance(rows, int) else 0)
    )
    try:
        shape = shapes.from_config(settings, folder / "config.json")
    except CheckpointError:  # a family that predictions do not know is no reason to refuse a model
        shape = None
    wishes, remarks = _sampling(folder)
    return Checkpoint(
        path=folder,
        kind="huggingface",
        architecture=_architecture(settings, folder),
        tensors={},
        files=(),
        vocabulary=vocabulary,
        shape=shape,
        long_rope=config_json.has_long_rope(settings),
        extras=_there(folder, *CONFIGURATION),
        copies=_there(folder, *COPIED),
        notes=(*notes, *remarks),
        sampling=wishes,
        rotation=rotation.read_facts(settings, str(folder / "config.json")),
    )


def _architecture(settings: dict[str, Any], folder: Path) -> str:
    names = settings.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(f"{folder / 'config.json'} names no architecture: it is not the config.json of a model")
    return str(names[0])


def _sampling(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the model asks for in its generation_config.json, and remarks."""
    where = folder / GENERATION
    return sampling.of_model(read_json(where, ""), str(where)) if where.is_file() else ({}, ())


def _there(folder: Path, *names: str) -> tuple[Path, ...]:
    """Those that are there, checked to be files that may be read and passed on."""
    found = tuple(folder / name for name in names if reading.exists(folder / name))
    for file in found:
        try:
            reading.check(file, folder, CheckpointError, most_bytes(file.name))
        except FileNotFoundError:
            raise CheckpointError(f"{file} is a link that leads nowhere: download the model again") from None
    return found


def most_bytes(name: str) -> int:
    """What a file of configuration may have."""
    return _MOST.get(name, reading.SETTINGS)


def _settings(folder: Path) -> dict[str, Any]:
    if (folder / ADAPTER).is_file() and not reading.exists(folder / "config.json"):
        raise WrongModel(
            f"{folder} is an adapter and not a model: give the model that it was trained on, and --lora {folder}"
        )
    if not reading.exists(folder / "config.json"):
        raise WrongModel(
            f"{folder} has no config.json: it is no Hugging Face folder; give the one that holds config.json"
        )
    return read_json(folder / "config.json", "the link leads nowhere; download the model again")


def _tensors(files: Mapping[Path, list[str] | None], items: Mapping[str, int] = _ITEM) -> dict[str, SourceTensor]:
    """Every tensor by the name it has in its file; ``items``: the types that it may have, and a number's bytes."""
    found: dict[str, SourceTensor] = {}
    for file, names in files.items():
        inside = read_header(file, items)
        for name in names if names is not None else inside:
            if name not in inside:
                raise CheckpointError(
                    f"{file} lacks the tensor {name}, which the index says is in it: download it again"
                )
            found[name] = inside[name]
    return found


def _known(
    family: Family, config: ModelConfig, found: dict[str, SourceTensor], folder: Path
) -> dict[str, SourceTensor]:
    """Our tensors in those of the checkpoint."""
    if family.text_of:
        found = _language_model(found)
    ignored = {n for n in found if n.endswith("rotary_emb.inv_freq")}  # old checkpoints carry it; it follows from theta
    if config.tied:
        ignored |= {n for n in found if family.top.get(n.rpartition(".")[0]) == "output"}  # the embedding, or not used
    ours = our_tensors(config, Names(family, config), found, folder, ignored)
    if not family.gain_plus_one:
        return ours
    return {n: replace(t, plus_one=n.endswith("norm.weight")) for n, t in ours.items()}


def _language_model(found: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Of a model with images its language model's tensors, by the names they have in one of their own."""
    images = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
    return {in_language_model(name): tensor for name, tensor in found.items() if not images.match(name)}


def in_language_model(name: str) -> str:
    """What a tensor or a module of a model with images is called in its language model by itself."""
    inside = re.fullmatch(r"(?:language_model|model\.language_model)\.(?:(model|lm_head)\.)?(.+)", name)
    return f"{inside[1] or 'model'}.{inside[2]}" if inside else name


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """An object from a JSON file; ``missing`` ends the sentence when the file is not there."""
    try:
        value = reading.read_json(path, most_bytes(path.name), path.parent, CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}: {missing}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"cannot read {path}: it holds no JSON object")
    return value


class _Weights(NamedTuple):
    """Files with weights, each with the tensors that the index looks for in it (None: there is no index)."""

    files: dict[Path, list[str] | None]
    indices: tuple[str, ...] = ()  # the index, where it was used
    notes: tuple[str, ...] = ()


def _weights(folder: Path) -> _Weights:
    """What transformers would take: model.safetensors where it is there, else the shards of the index."""
    adapter = (
        (f"{folder} holds an adapter as well ({ADAPTER}), which is not applied: give it with --lora",)
        if reading.exists(folder / ADAPTER)
        else ()
    )
    if reading.exists(folder / SINGLE):
        unused = [INDEX] if reading.exists(folder / INDEX) else []
        unused += sorted(file.name for file in folder.glob("model-*-of-*.safetensors"))
        note = f"{SINGLE} is converted, as transformers would load it; not used beside it: {listed(unused)}"
        return _Weights({folder / SINGLE: None}, (), ((note,) if unused else ()) + adapter)
    if not reading.exists(folder / INDEX):
        raise CheckpointError(_no_weights(folder))
    return _Weights(_shards(folder), (INDEX,), adapter)


def _shards(folder: Path) -> dict[Path, list[str] | None]:
    index = folder / INDEX
    where = read_json(index, "it is needed to find the shards").get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"cannot read {index}: it has no 'weight_map'")
    files: dict[Path, list[str] | None] = {}
    for name, shard in where.items():
        if not reading.is_name(shard):
            raise CheckpointError(f"{index}: {str(shard)[:100]!r} is not the name of a file beside it")
        names = files.setdefault(folder / shard, [])
        assert names is not None
        names.append(name)
    for file in files:
        if not reading.exists(file):
            others = sorted(found.name for found in folder.glob("*.safetensors") if found not in files)
            advice = (
                f"the index is not of the files that are there ({listed(others)}): get the one that is"
                if others
                else "download it again"
            )
            raise CheckpointError(f"{folder} lacks the shard {file.name}, which {index.name} names: {advice}")
    return files


def _no_weights(folder: Path) -> str:
    """Which other form the weights have, and how to come to the one that can be read."""
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    shards = [name for name in found if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    variants = [name for name in found if re.fullmatch(r"model\.[\w-]+?(-\d+-of-\d+)?\.safetensors", name)]
    saved = "save the model with transformers (model.save_pretrained)"
    if shards:
        return (
            f"{folder} has shards ({listed(shards)}) and no {INDEX}, which says what is in which: download that file "
            f"too, or {saved}"
        )
    if variants:
        return f"{folder} has its weights as a variant only ({listed(variants)}): load it with variant=…, and {saved}"
    if any(name.startswith("consolidated") for name in found):
        return (
            f"{folder} has its weights in {found[0]}, under other names than those of transformers: look for the "
            f"Hugging Face form of the model, with {SINGLE}"
        )
    if any(folder.glob("pytorch_model*.bin")):
        return (
            f"{folder} has its weights in pytorch_model.bin, which can run code when it is read: save them as "
            "safetensors (model.save_pretrained in transformers)"
        )
    if found:
        return f"{folder} has no {SINGLE} and no index of shards, only {listed(found)}: download the model again"
    return f"{folder} has no {SINGLE} and no index of shards: download the model again"


def read_header(path: Path, items: Mapping[str, int] = _ITEM) -> dict[str, SourceTensor]:
    """The tensors of one safetensors file by name, each checked to lie inside the file."""
    try:
        with reading.opened(path, path.parent, CheckpointError) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MOST_HEADER):
                raise CheckpointError(
                    f"{path} is truncated or not safetensors: its header should have {length} bytes, the file has "
                    f"{size}"
                )
            raw = file.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is a link that leads nowhere: download the model again") from None
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not JSON ({error}): download it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is no JSON object: download it again")
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, (8 + length, size), items) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: Any, data: tuple[int, int], items: Mapping[str, int]) -> SourceTensor:
    start, size = data  # where the tensors begin, and the file ends
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and isinstance(kind, str)
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: the header's entry for {name} is not one of safetensors: download it again")
    if kind not in items:
        if name.endswith("inv_freq"):
            kind = "F32"
        else:
            raise CheckpointError(f"{path}: tensor {name} has type {kind}, only F32, F16 and BF16 can be converted")
    elif begin > end or end - begin != math.prod(shape) * items[kind]:
        raise CheckpointError(
            f"{path}: tensor {name} of shape {list(shape)} and type {kind} cannot have {end - begin} bytes: "
            "download it again"
        )
    if start + end > size:
        raise CheckpointError(
            f"{path} is truncated: tensor {name} ends at byte {start + end}, the file has {size}: download it again"
        )
    return SourceTensor(name, kind, shape, path, start + begin, end - begin)
