"""`--lora`: what is kept or merged, to the number; and adapters that are refused before anything is written."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rk3588 import bundle, quant
from rk3588.errors import CheckpointError, RkError, UsageError
from rkconvert import lora
from rkconvert.build import convert
from rkconvert.plan import describe, make_plan
from rkconvert.report import render
from rkconvert.sources.base import Source, open_source
from rkconvert.sources.huggingface import huggingface_name
from tests import loras, models
from tests.reference import Reference
from tests.test_convert_cli import rkconvert

TINY = models.Tiny()
LAYER_KINDS = ["attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def source(base: Path) -> Source:
    return open_source(base)


def read(folder: Path, source: Source, scale: float = 1.0) -> lora.Lora:
    return lora.read(lora.LoraOption(folder, "a", scale), source)


def hf_name(name: str) -> str:
    """PEFT's name of a layer, without its half."""
    return "base_model.model." + huggingface_name(name).removesuffix(".weight")


def build(source: Source, out: Path, adapters: list[lora.Lora], mode: str, *dtypes: str) -> list[Path]:
    schemes = [quant.scheme(dtype) for dtype in dtypes]
    return convert(make_plan(source, "tiny", out, schemes, threads=2, loras=adapters, lora_mode=mode))


# What is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_kept_adapter_holds_the_numbers_in_llama_cpps_layout(source: Source, tmp_path: Path, dtype: str) -> None:
    folder = loras.peft_lora(tmp_path / "a", TINY, dtype=dtype)
    exact = loras.weights(TINY, 4, loras.LINEAR)
    lora.write_gguf(read(folder, source), source.config, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    keys = {name: reader.fields[name].contents() for name in reader.fields if not name.startswith("GGUF.")}
    assert keys == {
        "general.architecture": "llama", "general.type": "adapter", "general.name": "a", "adapter.type": "lora",
        "adapter.lora.alpha": 8.0, "general.base_model.count": 1, "general.base_model.0.name": "someone/tiny",
    }  # fmt: skip
    assert len(reader.tensors) == 28
    for tensor in reader.tensors:
        layer, half = tensor.name.rsplit(".lora_", 1)
        wanted = exact[f"{hf_name(layer)}.lora_{half.upper()}.weight"]
        heads = {"attn_q": TINY.heads, "attn_k": TINY.kv_heads}.get(layer.split(".")[-2])
        if half == "b" and heads:
            wanted = models.permute(wanted, heads)
        error = 2**-8 * np.abs(wanted).max() if dtype == "bf16" else 0
        np.testing.assert_allclose(np.array(tensor.data), wanted, rtol=0, atol=error, err_msg=tensor.name)


FACTORS: dict[str, tuple[dict[str, Any], Callable[[str], float]]] = {
    "plain": ({"alpha": 8}, lambda _: 2.0),
    "alpha no integer": ({"alpha": 2.5}, lambda _: 0.625),
    "rsLoRA": ({"use_rslora": True}, lambda _: 8 / math.sqrt(4)),
    "rank by layer": ({"ranks": {"v_proj": 7}}, lambda layer: 8 / 7 if "attn_v" in layer else 2.0),
    "alpha by layer": ({"alpha_pattern": {"v_proj": 3, "layers.1.mlp.down_proj": 1}},
                       lambda layer: 0.75 if "attn_v" in layer else 0.25 if layer == "blk.1.ffn_down.weight" else 2.0),
    "the first pattern": ({"alpha_pattern": {"v_proj": 3, "self_attn.v_proj": 5}},
                          lambda layer: 0.75 if "attn_v" in layer else 2.0),
    "a regular expression": ({"alpha_pattern": {r"layers\.[1-9]\..*": 4}},
                             lambda layer: 1.0 if layer.startswith("blk.1") else 2.0),
}  # fmt: skip


@pytest.mark.parametrize("case", FACTORS)
def test_the_factor_of_each_layer(source: Source, tmp_path: Path, case: str) -> None:
    """In the plan, and as the runtime sees it: alpha / rank times what went into B."""
    options, factor = FACTORS[case]
    adapter = read(loras.peft_lora(tmp_path / "a", TINY, **options), source)
    assert {name: pair.factor for name, pair in adapter.pairs.items()} == pytest.approx(
        {name: factor(name) for name in adapter.pairs}
    )
    lora.write_gguf(adapter, source.config, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    alpha = reader.fields["adapter.lora.alpha"].contents()
    for tensor in reader.tensors:
        layer, half = tensor.name.rsplit(".lora_", 1)
        if half == "b" and "attn_v" in layer:
            seen = np.array(tensor.data) * (alpha / tensor.shape[0])
            np.testing.assert_allclose(seen, adapter.pairs[layer].b * factor(layer), rtol=1e-6)


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_merging_is_exact(tmp_path: Path, kind: str) -> None:
    """Over bf16 and over a GGUF's permuted rows: the nearest float32 of W + the sum of all adapters."""
    path = models.tiny_llama(tmp_path / "m") if kind == "safetensors" else models.tiny_gguf(tmp_path / "m.gguf")
    source = open_source(path)
    folders = [loras.peft_lora(tmp_path / "a", TINY), loras.peft_lora(tmp_path / "b", TINY, seed=1, rank=2, alpha=3)]
    adapters = [read(folder, source, scale) for folder, scale in zip(folders, (1.0, -0.5), strict=True)]
    (folder,) = build(source, tmp_path / "out", adapters, "merge", "fp32")
    tensors = Reference(folder / bundle.SIM_MODEL).tensors
    first, second = loras.weights(TINY, 4, loras.LINEAR), loras.weights(TINY, 2, loras.LINEAR, seed=1)
    for name, weight in TINY.weights().items():
        wanted = weight.astype(np.float64)
        module = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        for weights, factor in ((first, 2.0), (second, -0.75)):
            if f"{module}A.weight" in weights:
                wanted += factor * (weights[f"{module}B.weight"].astype(np.float64) @ weights[f"{module}A.weight"])
        np.testing.assert_array_equal(tensors[models.gguf_name(name)], wanted.astype(np.float32), err_msg=name)


def test_blocks_of_rows_are_merged_as_the_whole_is(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = [read(loras.peft_lora(tmp_path / "a", TINY), source)]
    (whole,) = build(source, tmp_path / "whole", adapters, "merge", "w8a8_g128")
    monkeypatch.setattr("rkconvert.plan.BLOCK_BYTES", 1000)
    (pieces,) = build(source, tmp_path / "pieces", adapters, "merge", "w8a8_g128")
    assert (whole / bundle.SIM_MODEL).read_bytes() == (pieces / bundle.SIM_MODEL).read_bytes()


def test_an_adapter_of_few_layers_changes_those_alone(source: Source, tmp_path: Path) -> None:
    adapter = read(loras.peft_lora(tmp_path / "a", TINY, targets=["q_proj", "lm_head"]), source)
    assert list(adapter.pairs) == ["blk.0.attn_q.weight", "blk.1.attn_q.weight", "output.weight"]
    (plain,) = build(source, tmp_path / "plain", [], "merge", "fp32")
    (merged,) = build(source, tmp_path / "merged", [adapter], "merge", "fp32")
    before, after = (Reference(path / bundle.SIM_MODEL).tensors for path in (plain, merged))
    assert [n for n in before if not np.array_equal(before[n], after[n])] == list(adapter.pairs)


def test_the_base_as_peft_saves_it_beside_an_lm_head_is_left_out(source: Source, tmp_path: Path) -> None:
    folder = loras.peft_lora(tmp_path / "a", TINY, targets=["lm_head"])
    weights = loras.weights(TINY, 4, ["lm_head"])
    weights["base_model.model.lm_head.base_layer.weight"] = TINY.weights()["lm_head.weight"]
    models.write_safetensors(folder / lora.WEIGHTS, weights, "fp32")
    assert list(read(folder, source).pairs) == ["output.weight"]


def test_the_plan_tells_of_it(source: Source, tmp_path: Path) -> None:
    adapter = read(loras.peft_lora(tmp_path / "a", TINY, base_model_name_or_path="/home/me/their-Base"), source, 0.5)
    facts = {"name": "a", "scale": 0.5, "rank": 4, "alpha": 8.0, "targets": LAYER_KINDS, "layers": 14}
    note = "the adapter a says it was trained on their-Base, and is used on tiny"
    for mode, fate in (("adapter", "kept as lora/a.gguf"), ("merge", "merged into the weights")):
        plan = make_plan(source, "tiny", tmp_path, [quant.scheme("w8a8")], loras=[adapter], lora_mode=mode)
        told = describe(plan)
        assert told["lora"] == {"mode": mode, "adapters": [facts]} and told["notes"] == [note]
        text = render(plan)
        assert f"lora a: rank 4, alpha 8, scale 0.5, 14 layers ({', '.join(LAYER_KINDS)}), {fate}" in text
        assert f"note: {note}" in text
    assert "lora" not in describe(make_plan(source, "tiny", tmp_path, [quant.scheme("w8a8")]))
    for same in ("tiny", "someone/Tiny", None):
        folder = loras.peft_lora(tmp_path / str(same).replace("/", "-"), TINY, base_model_name_or_path=same)
        assert read(folder, source).notes == ()


def test_the_same_conversion_gives_the_same_bytes(source: Source, tmp_path: Path) -> None:
    adapters = [read(loras.peft_lora(tmp_path / "a", TINY), source)]
    for mode in lora.MODES:
        one, two = (build(source, tmp_path / mode / again, adapters, mode, "w8a8")[0] for again in "12")
        assert (one / bundle.MANIFEST).read_bytes() == (two / bundle.MANIFEST).read_bytes()
        bundle.verify(bundle.read(two))


# What is refused -------------------------------------------------------------------------------------------------

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
