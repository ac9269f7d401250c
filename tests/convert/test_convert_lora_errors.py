"""`--lora` with adapters that do not fit, and as a command line: refused before anything is written."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rk3588 import bundle
from rk3588.errors import CheckpointError, RkError, UsageError
from rkconvert.adapters import lora
from rkconvert.sources.base import Source
from rkconvert.sources.opening import open_source
from tests import loras, models
from tests.convert.test_convert_cli import rkconvert
from tests.convert.test_convert_lora import build, read

TINY = models.Tiny()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def source(base: Path) -> Source:
    return open_source(base)


# Changes to adapter_config.json and the sentence they are refused with.
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, r"peft_type is 'IA3', only 'LORA'"),
    "no kind": ({"peft_type": None}, r"peft_type is None"),
    "DoRA": ({"use_dora": True}, r"the adapter uses DoRA, only plain LoRA"),
    "bias": ({"bias": "lora_only"}, r"bias is 'lora_only'"),
    "lora bias": ({"lora_bias": True}, r"lora_bias"),
    "modules": ({"modules_to_save": ["lm_head"]}, r"modules_to_save"),
    "transposed": ({"fan_in_fan_out": True}, r"fan_in_fan_out"),
    "replicated": ({"layer_replication": [[0, 2]]}, r"layer_replication"),
    "trained tokens": ({"trainable_token_indices": [1]}, r"trainable_token_indices"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, r"aLoRA"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, r"began as 'pissa_niter_4', which changes the base"),
    "no alpha": ({"lora_alpha": None}, r"lacks 'lora_alpha'"),
    "alpha 0": ({"lora_alpha": 0}, r"'lora_alpha' is 0"),
    "alpha as text": ({"lora_alpha": "8"}, r"'lora_alpha' is '8'"),
    "no rank": ({"r": None}, r"lacks 'r'"),
    "rank 0": ({"r": 0}, r"'r' is 0"),
    "another rank": ({"r": 8}, r"q_proj has a lora_A of shape \[4, 64\], the base and rank 8 ask for \[8, 64\]"),
    "rank pattern": ({"rank_pattern": {"q_proj": "4"}}, r"rank_pattern has '4' for model.layers.0.self_attn.q_proj"),
    "alpha pattern": ({"alpha_pattern": {"q_proj": -1}}, r"alpha_pattern has -1 for"),
    "no pattern": ({"rank_pattern": {"(": 4}}, r"cannot read rank_pattern"),
    "patterns in a list": ({"rank_pattern": ["q_proj"]}, r"cannot read rank_pattern"),
}  # fmt: skip


def refused(base: Path, adapter: Path, out: Path, kind: type[RkError] = CheckpointError) -> str:
    source = open_source(base)
    with pytest.raises(kind) as caught:
        build(source, out, [read(adapter, source)], "merge", "w8a8")
    assert not out.exists()
    message = str(caught.value)
    assert "\n" not in message and str(adapter) in message
    return message


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(base: Path, tmp_path: Path, case: str) -> None:
    changes, sentence = CONFIGS[case]
    folder = loras.peft_lora(tmp_path / "a", TINY)
    config = json.loads((folder / lora.CONFIG).read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (folder / lora.CONFIG).write_text(json.dumps(config))
    message = refused(base, folder, tmp_path / "out")
    assert re.search(sentence, message)


def without(*parts: str) -> Callable[[loras.Weights], loras.Weights]:
    return lambda weights: {name: w for name, w in weights.items() if not any(part in name for part in parts)}


def renamed(old: str, new: str) -> Callable[[loras.Weights], loras.Weights]:
    return lambda weights: {name.replace(old, new): w for name, w in weights.items()}


def changed(part: str, change: Callable[[Any], Any]) -> Callable[[loras.Weights], loras.Weights]:
    return lambda weights: {name: change(w) if part in name else w for name, w in weights.items()}


def with_one(name: str, *shape: int) -> Callable[[loras.Weights], loras.Weights]:
    return lambda weights: {**weights, f"base_model.model.{name}": np.ones(shape, np.float32)}


def with_nan(weight: Any) -> Any:
    weight = weight.copy()
    weight[-1, 0] = np.nan
    return weight


TENSORS: dict[str, tuple[Callable[[loras.Weights], loras.Weights], str]] = {
    "none": (lambda _: {}, r"the adapter changes no layer"),
    "half a pair": (without("layers.1.mlp.up_proj.lora_B"), r"layers.1.mlp.up_proj has lora_A but not the other half"),
    "a layer missing": (without("layers.1.self_attn.v_proj"), r"has nothing for model.layers.1.self_attn.v_proj"),
    "a layer too many": (renamed("layers.1.", "layers.2."),
                         r"changes model.layers.2.self_attn.q_proj, which is no linear layer of the base \(2 layers\)"),
    "another family": (renamed("q_proj", "qkv"), r"changes model.layers.0.self_attn.qkv, which is no linear layer"),
    "embedding": (with_one("model.embed_tokens.lora_embedding_A", 4, 384),
                  r"embed_tokens.lora_embedding_A is not lora_A or lora_B of a linear layer"),
    "embedding as a layer": (renamed("layers.0.self_attn.q_proj", "embed_tokens"), r"embed_tokens, which is no linear"),
    "DoRA's vector": (with_one("model.layers.0.mlp.up_proj.lora_magnitude_vector", 160),
                      r"lora_magnitude_vector is not lora_A or lora_B"),
    "another base's copy": (with_one("lm_head.base_layer.weight", 385, 64),
                            r"lm_head.base_layer.weight is not lora_A or lora_B"),
    "wider": (changed("layers.0.mlp.down_proj.lora_A", lambda w: w[:, :96]),
              r"down_proj has a lora_A of shape \[4, 96\], the base and rank 4 ask for \[4, 160\]: is it an"),
    "shorter": (changed("layers.1.mlp.gate_proj.lora_B", lambda w: w[:100]), r"lora_B of shape \[100, 4\]"),
    "flat": (changed("layers.1.mlp.gate_proj.lora_B", np.ravel), r"lora_B of shape \[640\]"),
    "not finite": (changed("layers.1.mlp.gate_proj.lora_B", with_nan), r"gate_proj.lora_B.weight has a value that is"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(base: Path, tmp_path: Path, case: str) -> None:
    change, sentence = TENSORS[case]
    folder = loras.peft_lora(tmp_path / "a", TINY)
    models.write_safetensors(folder / lora.WEIGHTS, change(loras.weights(TINY, 4, loras.LINEAR)), "fp32")
    assert re.search(sentence, refused(base, folder, tmp_path / "out"))


@pytest.mark.parametrize("targets", [["q_proj"], r".*\.self_attn\.q_proj"])
def test_targets_tell_half_an_adapter_from_a_whole_one(source: Source, tmp_path: Path, targets: Any) -> None:
    folder = loras.peft_lora(tmp_path / "a", TINY, targets=["q_proj"])
    config = json.loads((folder / lora.CONFIG).read_text())
    half = without("layers.1")(loras.weights(TINY, 4, ["q_proj"]))
    models.write_safetensors(folder / lora.WEIGHTS, half, "fp32")
    for settings in ({}, {"layers_to_transform": [0]}):
        (folder / lora.CONFIG).write_text(json.dumps({**config, "target_modules": targets, **settings}))
        if settings:
            assert list(read(folder, source).pairs) == ["blk.0.attn_q.weight"]
        else:
            with pytest.raises(CheckpointError, match=r"nothing for model.layers.1.self_attn.q_proj"):
                read(folder, source)


def test_lm_head_of_a_tied_model(tmp_path: Path) -> None:
    base = models.tiny_llama(tmp_path / "tied", tied=True)
    message = refused(base, loras.peft_lora(tmp_path / "a", TINY, targets=["q_proj", "lm_head"]), tmp_path / "out")
    assert "changes lm_head, which this base shares with its embedding" in message


def test_files(base: Path, tmp_path: Path) -> None:
    whole = loras.peft_lora(tmp_path / "whole", TINY)
    spoilt: Mapping[str, tuple[Callable[[Path], object], str]] = {
        "no config": (lambda f: (f / lora.CONFIG).unlink(), r"has no adapter_config.json: it is no PEFT adapter"),
        "config no JSON": (lambda f: (f / lora.CONFIG).write_text("{"), r"cannot read .*adapter_config.json"),
        "no weights": (lambda f: (f / lora.WEIGHTS).unlink(), r"has no adapter_model.safetensors"),
        "pickle": (
            lambda f: (f / lora.WEIGHTS).rename(f / "adapter_model.bin"),
            r"adapter_model.bin, which can run code",
        ),
        "cut": (lambda f: (f / lora.WEIGHTS).write_bytes((f / lora.WEIGHTS).read_bytes()[:-9]), r"is truncated"),
        "empty": (lambda f: (f / lora.WEIGHTS).write_bytes(b""), r"truncated or not safetensors"),
    }
    for name, (spoil, sentence) in spoilt.items():
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        spoil(folder)
        assert re.search(sentence, refused(base, folder, tmp_path / "out")), name


# The command line ------------------------------------------------------------------------------------------------


def test_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pirate", "x:y", "sp ace"):
        (tmp_path / name).mkdir()
    for text, (path, name, scale) in {
        "pirate": ("pirate", "pirate", 1.0),
        "pirate/": ("pirate", "pirate", 1.0),
        "pirate:a": ("pirate", "a", 1.0),
        "pirate:a:0.5": ("pirate", "a", 0.5),
        "pirate::-2e-1": ("pirate", "pirate", -0.2),
        "pirate::": ("pirate", "pirate", 1.0),
        "x:y:b": ("x:y", "b", 1.0),
        "x:y:b:2": ("x:y", "b", 2.0),
        "sp ace:c": ("sp ace", "c", 1.0),
    }.items():
        assert lora.parse(text) == lora.LoraOption(Path(path), name, scale), text
    for text, sentence in {
        "none": "none is not a folder",
        "none:a:1": "none is not a folder",
        "sp ace": "'sp ace' cannot be an adapter's name",
        "x:y": "'x:y' cannot be an adapter's name",
        "pirate:../up": "'../up' cannot be an adapter's name",
        "pirate:.hidden": "'.hidden' cannot be",
        "pirate:a:loud": "the scale is 'loud', expected a number",
        "pirate:a:nan": "the scale is 'nan'",
        "pirate:a:1:2": "pirate is not a folder",
    }.items():
        with pytest.raises(UsageError, match=re.escape(sentence)):
            lora.parse(text)
    with pytest.raises(UsageError, match="two adapters are called 'pirate'"):
        lora.parse_all(["pirate", "x:y:pirate"])


@given(text=st.text(max_size=40))
@example(text="a" * 5000)
@example(text="a\0b")
def test_any_text_is_a_usage_error_or_an_option(text: str) -> None:
    try:
        option = lora.parse(text)
    except UsageError as error:
        assert text in str(error)
    else:
        assert option.path.is_dir() and math.isfinite(option.scale)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--lora-mode", "merge"], 2, "--lora-mode says what to do with a LoRA: give one"),
        (["--lora", "nowhere"], 2, "--lora nowhere: nowhere is not a folder"),
        (["--lora", "GOOD", "--lora", "GOOD"], 2, "two adapters are called 'good'"),
        (["--lora", "GOOD", "--lora", "BAD"], 1, "uses DoRA"),
        (["--lora", "BAD", "--dry-run"], 1, "uses DoRA"),
    ],
)
def test_what_is_wrong_ends_the_conversion(
    base: Path, tmp_path: Path, options: list[str], code: int, said: str
) -> None:
    loras.peft_lora(tmp_path / "good", TINY)
    loras.peft_lora(tmp_path / "bad", TINY, use_dora=True)
    named = [o.replace("GOOD", str(tmp_path / "good")).replace("BAD", str(tmp_path / "bad")) for o in options]
    done = rkconvert(base, "-o", tmp_path / "out", *named)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (code, "") and line.startswith("Error: ") and said in line
    assert not (tmp_path / "out").exists()


def test_several_are_kept_side_by_side(base: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        loras.peft_lora(tmp_path / name, TINY, targets=["q_proj"])
    done = rkconvert(base, "-o", tmp_path / "out", "--lora", tmp_path / "one", "--lora", f"{tmp_path}/two:zwei:0.5",
                     "--json")  # fmt: skip
    (made,) = json.loads(done.stdout)["bundles"]
    found = bundle.read(made["path"])
    assert {name: one.scale for name, one in found.loras.items()} == {"one": 1.0, "zwei": 0.5}
    assert made["bytes"] == bundle.size(Path(made["path"]))
    assert done.stderr == ""  # a note where the base has another name than the adapter says
