"""Settings of a config.json that mean something in one family only, or in one kind of layer only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rk3588 import shape
from rk3588.errors import CheckpointError
from rkconvert.architectures import config_json
from rkconvert.architectures.model import ModelConfig
from rkconvert.sources import huggingface
from tests import models
from tests.golden_families import cases

FACTORS = [1.0 + 0.1 * i for i in range(8)]
SU = {"short_factor": FACTORS, "long_factor": [2 * factor for factor in FACTORS]}
LONG = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def read(name: str, **changes: Any) -> ModelConfig:
    return config_json.read_config({**cases.CASES[name], **changes}, "config.json")


@pytest.mark.parametrize("scaling", [YARN, {"rope_type": "longrope", **LONG}, {"rope_type": "yarn", **YARN}])
def test_gemmas_layers_with_a_window_have_no_attention_factor(scaling: dict[str, Any]) -> None:
    """transformers multiplies by it where all positions are seen only; the artifact has one factor for all layers."""
    with pytest.raises(CheckpointError, match=r"multiplies attention by 1\.\d+, in Gemma 3 .*not in the layers"):
        read("gemma3", rope_scaling=scaling)
    new = {"full_attention": scaling, "sliding_attention": {"rope_type": "default"}}
    with pytest.raises(CheckpointError, match="one factor for all layers"):
        read("gemma3", rope_scaling=None, rope_parameters=new)
    assert read("gemma3", rope_scaling={**scaling, "attention_factor": 1.0}).rope.scaling.factors
    alone = read("gemma3", rope_scaling=scaling, layer_types=["full_attention"] * 3)  # no layer has a window
    assert alone.rope.scaling.attention_factor > 1


@pytest.mark.parametrize("name", ["mistral", "ministral", "phi3", "gemma2", "gemma3"])
def test_only_some_families_have_a_switch_for_windows(name: str) -> None:
    """transformers does not read it in the others."""
    assert read(name, use_sliding_window=False).windows == read(name).windows != ()


def test_the_switch_holds_where_it_is_one() -> None:
    assert read("qwen2_window").windows == (0, 8, 8)
    assert read("qwen2_window", use_sliding_window=False).windows == ()
    assert read("qwen2_window", sliding_window=None).windows == ()
    smollm3: dict[str, Any] = {"sliding_window": 8, "use_sliding_window": True}
    assert read("smollm3", **smollm3).windows == (0, 0, 0, 8)
    assert read("smollm3", **smollm3 | {"use_sliding_window": False}).windows == ()


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "use_sliding_window is false, and some layers"),
        ("smollm3", {"layer_types": ["sliding_attention"] * 4, "sliding_window": 8}, "use_sliding_window is false"),
        ("ministral", {"sliding_window": None}, "there is no sliding_window, and some layers are sliding_attention"),
        ("gemma2", {"sliding_window": None}, "there is no sliding_window"),
        ("gemma3", {"sliding_window": None}, "there is no sliding_window"),
        (
            "phi3_longrope", {"rope_scaling": {**SU, "type": "longrope", "original_max_position_embeddings": 32}},
            "original_max_position_embeddings is 32 here and 16 beside it",
        ),
        (
            "qwen2_yarn", {"original_max_position_embeddings": 64},
            "original_max_position_embeddings is 16 here and 64 beside it",
        ),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(name: str, changes: dict[str, Any], sentence: str) -> None:
    """transformers fails on them, or its releases do not agree."""
    with pytest.raises(CheckpointError, match=sentence):
        read(name, **changes)


@pytest.mark.parametrize("kind", [{"type": "su"}, {"type": "yarn"}, {"rope_type": "yarn"}, {"rope_type": "longrope"}])
def test_longrope_by_every_name_of_phi_3(kind: dict[str, str]) -> None:
    """Its first files call it "su" or "yarn"."""
    settings = {**cases.CASES["phi3_longrope"], "rope_scaling": {**SU, **kind}}
    scaling = config_json.read_config(settings, "config.json").rope.scaling
    assert (scaling.short_context, scaling.long_factors) == (16, tuple(SU["long_factor"]))
    assert scaling.attention_factor == math.sqrt(1 + math.log(128 / 16) / math.log(16))
    assert config_json.has_long_rope(settings)


def test_a_file_that_says_next_to_nothing() -> None:
    """tests/golden_families/configurations.py has every key of every family."""
    said = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    config = config_json.read_config(said, "config.json")
    assert (config.layers, config.hidden, config.heads, config.vocab_size, config.kv_heads) == (32, 4096, 32, 32000, 8)
    null = {**said, "num_key_value_heads": None}
    assert config_json.read_config(null, "config.json").kv_heads == 32
    for settings in (said, null):
        tensors = config_json.read_config(settings, "config.json").tensors().values()
        assert shape.from_config(settings, Path("config.json")).total_params == sum(map(math.prod, tensors))
    with pytest.raises(CheckpointError, match="lacks 'hidden_size'"):  # of remote code sizes are not known
        config_json.read_config({"architectures": ["InternLM2ForCausalLM"]}, "config.json")


def test_what_is_not_longrope() -> None:
    for settings in ({}, {"rope_scaling": None}, {"rope_scaling": YARN}, {"rope_scaling": [1]}):
        assert not config_json.has_long_rope(settings)
    assert config_json.has_long_rope({"rope_parameters": {"rope_theta": 1e4, "full_attention": {"rope_type": "su"}}})


@pytest.mark.parametrize("classes", ["LlamaForCausalLM", 1.5, {"a": 1}, [3], True])
def test_architectures_that_are_no_list_of_names(tmp_path: Path, classes: Any) -> None:
    folder = models.tiny_llama(tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "architectures": classes}))
    with pytest.raises(CheckpointError, match=r"'architectures' is .*; it has to be a list of names"):
        huggingface.read(folder)
    (folder / "config.json").write_text(json.dumps({**settings, "architectures": []}))
    assert huggingface.read(folder).architecture == "LlamaForCausalLM"  # by its model_type
