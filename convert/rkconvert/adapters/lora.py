"""LoRA adapters of PEFT: read, checked against the base model, and kept as GGUF adapters or merged.

An adapter adds ``scale * factor * B @ A`` to the weights of the linear layers it names; ``factor`` is alpha / rank, or
alpha / sqrt(rank) where it was trained with rsLoRA (Hu et al. 2021, Kalajdzievski 2023).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rk3588 import files as reading
from rk3588 import lora as naming
from rk3588.errors import CheckpointError, UsageError
from rkconvert.architectures.fields import Fields, shown
from rkconvert.architectures.model import EMBEDDING, ModelConfig
from rkconvert.architectures.names import Names
from rkconvert.sources.base import Source, SourceTensor, as_float32, refuse_empty
from rkconvert.sources.huggingface import in_language_model, read_header, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODES = ("adapter", "merge")
Floats = npt.NDArray[np.float32]

_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# Keys of adapter_config.json that, where they are set, make an adapter more than B @ A on a few layers.
_BEYOND_LORA = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "lora_bias": "a bias in its layers (lora_bias)",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out)",
    "modules_to_save": "whole modules beside the adapter (modules_to_save)",
    "trainable_token_indices": "trained embeddings (trainable_token_indices)",
    "target_parameters": "parameters that are no layer's weight (target_parameters)",
    "layer_replication": "replicated layers (layer_replication)",
    "alora_invocation_tokens": "activation by certain tokens (aLoRA)",
    "use_bdlora": "block-diagonal matrices (BD-LoRA)",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "a router over adapters (Arrow)",
}
# How B and A may have begun without a change to the base; PiSSA, OLoRA and others subtract their beginning from it.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
_MERGE_YOURSELF = (
    "merge it into its base with peft (merge_and_unload, then save_pretrained) and convert the model that this makes"
)
_WHOLE = re.compile(r"base_model\.model\.(?:model\.)?(lm_head|embed_tokens)\.(?:modules_to_save\.(?:\w+\.)?)?weight")
_BASE_COPY = ".base_layer.weight"  # peft saves the base's own lm_head beside an adapter of it


@dataclass(frozen=True)
class LoraOption:
    """One ``--lora ADAPTER[:NAME[:SCALE]]``."""

    path: Path
    name: str
    scale: float


@dataclass(frozen=True)
class Pair:
    """What is added to one linear layer of N outputs and K inputs: ``factor * b @ a``, before the user's scale."""

    a: Floats  # (rank, K)
    b: Floats  # (N, rank)
    factor: float

    @property
    def rank(self) -> int:
        return len(self.a)


@dataclass(frozen=True)
class Lora:
    """An adapter that fits its base. ``pairs`` goes by the canonical name of the layer."""

    option: LoraOption
    alpha: float  # lora_alpha; alpha_pattern may say otherwise for a layer
    base_model: str  # the name of what it says it was trained on; "": it does not say
    pairs: Mapping[str, Pair]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.option.name

    @property
    def rank(self) -> int:
        """The largest, where layers differ."""
        return max(pair.rank for pair in self.pairs.values())

    @property
    def targets(self) -> list[str]:
        """The kinds of layers it changes: ``attn_q``, …"""
        return sorted({name.split(".")[-2] for name in self.pairs})

    @property
    def nbytes(self) -> int:
        return sum(pair.a.nbytes + pair.b.nbytes for pair in self.pairs.values())


def parse(text: str) -> LoraOption:
    """``ADAPTER[:NAME[:SCALE]]``; NAME is the folder's where it is left out, SCALE 1."""
    wanted = naming.parse(text, os.path.isdir)  # raises for no text, unlike Path's
    if wanted is None:
        raise UsageError(f"--lora {text}: {text.split(':')[0]} is not a folder; give one that PEFT saved an adapter in")
    path = Path(wanted.what)
    name = wanted.name or naming.checked_name(path.absolute().name, text)
    return LoraOption(path, name, 1.0 if wanted.scale is None else wanted.scale)


def parse_all(texts: Sequence[str]) -> list[LoraOption]:
    """Every ``--lora``; UsageError for a name given twice."""
    options = [parse(text) for text in texts]
    names = [option.name for option in options]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two adapters are called {name!r}: tell them apart with --lora ADAPTER:NAME")
    return options


def files_of(option: LoraOption) -> tuple[Path, ...]:
    """What an adapter is read from."""
    return option.path / CONFIG, option.path / WEIGHTS


def read(option: LoraOption, source: Source) -> Lora:
    """The adapter, with every tensor read; CheckpointError says what is wrong with it or does not fit ``source``."""
    folder = option.path
    settings = read_json(folder / CONFIG, "it is no PEFT adapter; give the folder that holds both")
    where = str(folder / CONFIG)
    _refuse_others(settings, where)
    try:
        header = _header(folder)
        pairs = _pairs(settings, header, source, where)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or folder / WEIGHTS}: {error.strerror}") from error
    _check_complete(settings, pairs, source, folder)
    base = _base_name(settings.get("base_model_name_or_path"))
    return Lora(
        option=option,
        alpha=Fields(settings, where).number("lora_alpha"),
        base_model=base,
        pairs={name: pairs[name] for name in source.config.tensors() if name in pairs},
        files=files_of(option),
        notes=_base_notes(option.name, base, source),
    )


def _refuse_others(settings: Mapping[str, Any], where: str) -> None:
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{where}: peft_type is {shown(settings.get('peft_type'))}, only 'LORA' can be converted")
    for key, what in _BEYOND_LORA.items():
        if settings.get(key):
            raise CheckpointError(
                f"{where}: the adapter uses {what}, only plain LoRA can be converted: {_MERGE_YOURSELF}"
            )
    start = settings.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{where}: the adapter began as {shown(start)}, which changes the base as well: convert it to a plain one "
            "when it is saved (path_initial_model_for_weight_conversion in peft)"
        )
    if settings.get("bias") not in (None, "none"):
        raise CheckpointError(
            f"{where}: bias is {shown(settings['bias'])}: a LoRA that trains biases too cannot be converted, only "
            "'none'"
        )


def _header(folder: Path) -> dict[str, SourceTensor]:
    file = folder / WEIGHTS
    if not reading.exists(file):
        if (folder / "adapter_model.bin").is_file():
            raise CheckpointError(
                f"{folder} has its weights in adapter_model.bin, which can run code when it is read: save it again as "
                "safetensors (model.save_pretrained in peft)"
            )
        raise CheckpointError(f"{folder} has no {WEIGHTS}: save or download the adapter again")
    return read_header(file)


def _pairs(
    settings: Mapping[str, Any], header: Mapping[str, SourceTensor], source: Source, where: str
) -> dict[str, Pair]:
    names = Names(source.family, source.config)
    sides: dict[str, dict[str, SourceTensor]] = {}
    for name, tensor in header.items():
        match = _TENSOR.fullmatch(name)
        if _is_base_copy(name, tensor, names):
            continue
        refuse_empty(tensor)
        if whole := _WHOLE.fullmatch(name):
            raise CheckpointError(
                f"{tensor.file} has the whole {whole[1]} of its model, which peft saves where tokens were added or it "
                f"was trained as well, and no LoRA can hold that: {_MERGE_YOURSELF}; or, if it was not changed, save "
                "the adapter with save_embedding_layers=False"
            )
        if match is None:
            raise CheckpointError(f"{tensor.file}: tensor {name} is not lora_A or lora_B of a linear layer")
        module = in_language_model(match[1]) if source.family.text_of else match[1]
        sides.setdefault(module, {})[match[2]] = tensor
    if not sides:
        raise CheckpointError(f"{where}: the adapter changes no layer")
    found: dict[str, Pair] = {}
    for module, both in sides.items():
        found |= _split(settings, module, both, source, names, where)
    return found


def _is_base_copy(name: str, tensor: SourceTensor, names: Names) -> bool:
    parts = names.parts(name.removeprefix("base_model.model.").removesuffix(_BASE_COPY) + ".weight")
    return name.endswith(_BASE_COPY) and bool(parts) and tensor.shape[:1] == (sum(part.rows for part in parts),)


def _split(
    settings: Mapping[str, Any],
    module: str,
    both: Mapping[str, SourceTensor],
    source: Source,
    names: Names,
    where: str,
) -> dict[str, Pair]:
    """What an adapter of one module adds to our layers: several where the checkpoint has them in one tensor."""
    file = next(iter(both.values())).file
    if len(both) < 2:
        raise CheckpointError(f"{file}: {module} has lora_{next(iter(both))} but not the other half: save it again")
    parts = names.parts(f"{module}.weight")
    shape = _layer_shape(module, [part.name for part in parts], source.config, file)
    pair = _pair(settings, module, both, (sum(part.rows for part in parts), shape[1]), where)
    if len(parts) == 1:
        return {parts[0].name: pair}
    return {part.name: replace(pair, b=np.ascontiguousarray(pair.b[part.indices])) for part in parts}


def _pair(
    settings: Mapping[str, Any], module: str, both: Mapping[str, SourceTensor], shape: tuple[int, int], where: str
) -> Pair:
    file, (n, k) = both["A"].file, shape
    fields = Fields(settings, where)
    rank = _for_layer(settings, "rank_pattern", module, fields.whole("r"), where)
    alpha = _for_layer(settings, "alpha_pattern", module, fields.number("lora_alpha"), where)
    for side, shape in (("A", (rank, k)), ("B", (n, rank))):
        if both[side].shape != shape:
            raise CheckpointError(
                f"{file}: {module} has a lora_{side} of shape {list(both[side].shape)}, the base and rank {rank} ask "
                f"for {list(shape)}: is it an adapter for another model?"
            )
    factor = alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
    return Pair(_values(both["A"]), _values(both["B"]), factor)


def _layer_shape(module: str, ours: Sequence[str], config: ModelConfig, file: Path) -> tuple[int, ...]:
    name = ours[0] if ours else ""
    shape = config.tensors().get(name, ())
    if module == "lm_head" and config.tied:
        raise CheckpointError(
            f"{file}: the adapter changes lm_head, which this base shares with its embedding: train it without lm_head"
        )
    if len(shape) != 2 or name == EMBEDDING:
        raise CheckpointError(
            f"{file}: the adapter changes {module}, which is no linear layer of the base ({config.layers} layers): is "
            "it an adapter for another model?"
        )
    return shape


def _for_layer(settings: Mapping[str, Any], key: str, module: str, default: float, where: str) -> Any:
    """``rank_pattern`` and ``alpha_pattern`` as peft reads them: the first pattern that a module's name ends with."""
    patterns = settings.get(key) or {}
    try:
        found = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)
        value = default if found is None else patterns[found]
    except (re.error, TypeError) as error:
        raise CheckpointError(f"{where}: cannot read {key}: {error}") from error
    whole = isinstance(value, int) or (key == "alpha_pattern" and isinstance(value, float))
    if not whole or isinstance(value, bool) or not 0 < value < 1 << 20:
        raise CheckpointError(f"{where}: {key} has {shown(value)} for {module}, expected a number above zero")
    return value


def _values(tensor: SourceTensor) -> Floats:
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        found = as_float32(*tensor.decode(file.read(tensor.nbytes)))
    if not np.isfinite(found).all():
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has a value that is not finite: train or save it again"
        )
    return found


def _check_complete(settings: Mapping[str, Any], pairs: Mapping[str, Pair], source: Source, folder: Path) -> None:
    """Half an adapter looks like a whole one of fewer layers; what it says it targets tells them apart."""
    if settings.get("layers_to_transform") is not None or settings.get("exclude_modules"):
        return
    names = Names(source.family, source.config)
    for name, shape in source.config.tensors().items():
        if len(shape) != 2 or name == EMBEDDING or name in pairs:
            continue
        module = names.in_file(name).removesuffix(".weight")
        if _targets(settings.get("target_modules"), module):
            raise CheckpointError(
                f"{folder / WEIGHTS} has nothing for {module}, which {CONFIG} targets: save or download it again"
            )


def _targets(wanted: Any, module: str) -> bool:
    """Whether ``target_modules`` (a list of endings, or a regular expression for the whole name) means ``module``."""
    if isinstance(wanted, list):
        return any(isinstance(ending, str) and f".{module}".endswith(f".{ending}") for ending in wanted)
    try:
        return isinstance(wanted, str) and re.fullmatch(wanted, module) is not None
    except re.error:
        return False


def _base_name(value: Any) -> str:
    """A name on the hub as it is; of a path, which is nobody's business, the last part."""
    if not isinstance(value, str):
        return ""
    return value if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", value) else Path(value).name


def _base_notes(name: str, base: str, source: Source) -> tuple[str, ...]:
    """The same model may have another name here, so this can only be pointed out."""
    here = source.origin.repository if source.origin else source.name
    if not base or Path(base).name.lower() == Path(here).name.lower():
        return ()
    return (f"the adapter {name} says it was trained on {base}, and is used on {here}",)
