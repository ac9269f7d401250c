"""`--lora`: what is kept or merged, to the number."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from rk3588 import bundle, quant
from rk3588.families import FAMILIES
from rkconvert.adapters import in_bundle, lora
from rkconvert.artifact.layout import CHECKSUMS
from rkconvert.build import convert
from rkconvert.dry_run import describe, render
from rkconvert.sources.base import Source
from rkconvert.sources.opening import open_source
from tests import loras, models
from tests.plans import make_plan
from tests.reference import Reference

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
    _, layer, kind, _ = name.split(".")
    modules = {ours: theirs for theirs, ours in FAMILIES[0].parts.items()}
    return f"base_model.model.model.layers.{layer}.{modules[kind]}"


def build(source: Source, out: Path, adapters: list[lora.Lora], mode: str, *dtypes: str) -> list[Path]:
    schemes = [quant.scheme(dtype) for dtype in dtypes]
    return convert(make_plan(source, "tiny", out, schemes, threads=2, loras=adapters, lora_mode=mode))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_kept_adapter_holds_the_numbers_in_llama_cpps_layout(source: Source, tmp_path: Path, dtype: str) -> None:
    folder = loras.peft_lora(tmp_path / "a", TINY, dtype=dtype)
    exact = loras.weights(TINY, 4, loras.LINEAR)
    in_bundle.write_gguf(read(folder, source), source.config, tmp_path / "a.gguf")
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
    in_bundle.write_gguf(adapter, source.config, tmp_path / "a.gguf")
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
    monkeypatch.setattr("rkconvert.artifact.reading.BLOCK_BYTES", 1000)
    (pieces,) = build(source, tmp_path / "pieces", adapters, "merge", "w8a8_g128")
    assert (whole / bundle.SIM_MODEL).read_bytes() == (pieces / bundle.SIM_MODEL).read_bytes()


def test_an_adapter_of_few_layers_changes_those_alone(source: Source, tmp_path: Path) -> None:
    adapter = read(loras.peft_lora(tmp_path / "a", TINY, targets=["q_proj", "lm_head"]), source)
    assert list(adapter.pairs) == ["blk.0.attn_q.weight", "blk.1.attn_q.weight", "output.weight"]
    (plain,) = build(source, tmp_path / "plain", [], "merge", "fp32")
    (merged,) = build(source, tmp_path / "merged", [adapter], "merge", "fp32")
    before, after = (Reference(path / bundle.SIM_MODEL).tensors for path in (plain, merged))
    changed = [n for n in before if not np.array_equal(before[n], after[n])]
    assert changed == [*adapter.pairs, CHECKSUMS]


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
