"""Conversion: what comes out equals the reference, and does not depend on how the same weights came in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from rk3588 import bundle, quant
from rkconvert.artifact.reading import BLOCK_BYTES, block_rows
from rkconvert.build import convert
from rkconvert.sources.base import SourceTensor
from rkconvert.sources.opening import open_source
from tests import models
from tests.plans import make_plan

Array = npt.NDArray[Any]
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 128}  # fmt: skip


def bundles(model: Path, out: Path, *dtypes: str, threads: int = 2) -> list[bundle.Bundle]:
    schemes = [quant.scheme(dtype) for dtype in dtypes]
    folders = convert(make_plan(open_source(model), "tiny", out, schemes, threads=threads))
    found = [bundle.read(folder) for folder in folders]
    for each in found:
        bundle.verify(each)
    return found


def artifact(model: Path, out: Path, dtype: str = "w8a8_g128") -> bytes:
    (made,) = bundles(model, out, dtype)
    assert made.sim_model is not None
    return made.sim_model.read_bytes()


def tensors(made: bundle.Bundle) -> dict[str, Array]:
    """Arrays as (N, K), read by the gguf package; without the checksums, which come last."""
    assert made.sim_model is not None
    return {t.name: np.asarray(t.data) for t in gguf.GGUFReader(made.sim_model).tensors[:-1]}


def expected(weights: Mapping[str, Array], dtype: str, *, tied: bool = False) -> dict[str, Array]:
    """What the artifact should hold, by the NumPy reference."""
    spec, found = quant.scheme(dtype), {}
    plain = np.float32 if dtype == "fp32" else np.float16
    for name, weight in weights.items():
        ours = models.gguf_name(name)
        if weight.ndim == 1:
            found[ours] = weight
            continue
        if ours == "token_embd.weight":
            found[ours] = weight.astype(plain)
            if not (tied and spec.quantised):
                continue
            ours = "output.weight"
        if spec.quantised:
            found[ours], found[f"{ours}.scale"] = quant.quantise(weight, spec)
        else:
            found[ours] = weight.astype(plain)
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_every_dtype_equals_the_reference(tmp_path: Path, tied: bool) -> None:
    weights = models.Tiny(tied=tied).weights()
    for made in bundles(models.tiny_llama(tmp_path / "m", tied=tied), tmp_path, *quant.SCHEMES):
        found, wanted = tensors(made), expected(weights, made.dtype, tied=tied)
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array, err_msg=f"{made.dtype} {name}")


@pytest.mark.parametrize("options", [{"dtype": "fp16"}, {"dtype": "fp32"}, {"shards": 3}], ids=str)
def test_the_same_weights_give_the_same_artifact(tmp_path: Path, options: dict[str, Any]) -> None:
    """bf16, fp16, fp32 and shards: the tiny models' weights are exact in all of them."""
    plain = artifact(models.tiny_llama(tmp_path / "a"), tmp_path / "1")
    assert artifact(models.tiny_llama(tmp_path / "b", **options), tmp_path / "2") == plain


SHAPES: list[dict[str, Any]] = [
    {},
    {"tied": True, "rope_scaling": LLAMA3},
    {"rope_scaling": {"type": "linear", "factor": 4.0}, "kv_heads": 4},
    {"head_dim": 10, "heads": 6, "kv_heads": 1, "vocab_size": 500},  # 500: more rows than tokens
]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gguf_equals_huggingface(tmp_path: Path, kind: str, shape: dict[str, Any]) -> None:
    """Byte for byte: names, Q and K put back into order, RoPE factors, tokenizer, everything."""
    folder = artifact(models.ends_as_llama_cpp(models.tiny_llama(tmp_path / "m", **shape)), tmp_path / "hf")
    file = artifact(models.tiny_gguf(tmp_path / "g" / "tiny.gguf", dtype=kind, **shape), tmp_path / "gguf")
    assert file == folder


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_0", "Q5_0", "Q5_1"])
def test_packed_gguf_equals_its_dequantised_weights(tmp_path: Path, kind: str) -> None:
    tiny = models.Tiny()
    packed = models.tiny_gguf(tmp_path / "tiny.gguf", dtype=kind)
    ggml = gguf.GGMLQuantizationType[kind]
    # Packing goes along K, so permuting rows before or after it is the same.
    rounded = {
        name: w if w.ndim == 1 else gguf.quants.dequantize(gguf.quants.quantize(w, ggml), ggml)
        for name, w in tiny.weights().items()
    }
    assert not np.array_equal(rounded["lm_head.weight"], tiny.weights()["lm_head.weight"])
    plain = models.write_llama(tmp_path / "m", models.config(tiny, "fp32"), rounded, dtype="fp32")
    models.ends_as_llama_cpp(plain)
    assert artifact(packed, tmp_path / "1") == artifact(plain, tmp_path / "2")


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, many threads, and groups of heads that must stay whole: the same bytes."""
    sources = [models.tiny_llama(tmp_path / "m"), models.tiny_gguf(tmp_path / "g" / "tiny.gguf", dtype="Q8_0")]
    whole = [[b.sim_model for b in bundles(s, tmp_path / f"whole{i}", *quant.SCHEMES)] for i, s in enumerate(sources)]
    monkeypatch.setattr("rkconvert.artifact.reading.BLOCK_BYTES", 1500)
    for i, source in enumerate(sources):
        made = bundles(source, tmp_path / f"blocks{i}", *quant.SCHEMES, threads=5)
        for one, other in zip(whole[i], made, strict=True):
            assert one is not None and other.sim_model is not None
            assert one.read_bytes() == other.sim_model.read_bytes()


def test_blocks_are_whole_heads_and_near_the_limit(tmp_path: Path) -> None:
    q = SourceTensor("q", "Q4_0", (4096, 4096), tmp_path, 0, 4096 * 4096 // 32 * 18, heads=32)
    assert block_rows(q) % 128 == 0
    assert 0.2 * BLOCK_BYTES < block_rows(q) * 4096 * 2 <= 2 * BLOCK_BYTES
    wide = SourceTensor("w", "F32", (3, 1 << 21), tmp_path, 0, 3 << 23)
    assert block_rows(wide) == 1


def test_bundles_are_reproducible(tmp_path: Path) -> None:
    """Twice, and from another place: every file the same, so no time and no path went in."""
    first = bundles(models.tiny_llama(tmp_path / "a" / "m", shards=2), tmp_path / "1", "w8a8", "fp16")
    second = bundles(models.tiny_llama(tmp_path / "b" / "m", shards=2), tmp_path / "2", "w8a8", "fp16", threads=1)
    for one, other in zip(first, second, strict=True):
        files = sorted(p.name for p in one.path.iterdir())
        assert files == sorted(p.name for p in other.path.iterdir())
        for name in files:
            assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name


def test_the_manifest_says_what_was_done(tmp_path: Path) -> None:
    model = models.tiny_llama(tmp_path / "m", shards=2)
    (made,) = bundles(model, tmp_path, "w8a8_g256")
    manifest = made.manifest
    assert (manifest["name"], manifest["dtype"], manifest["target_platform"]) == ("tiny", "w8a8_g256", "rk3588")
    assert manifest["artifacts"] == {"sim": "model.sim.gguf"}
    assert manifest["tokenizer"] == {
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos": False, "eos_token_ids": [2],
    }  # fmt: skip
    assert manifest["model"]["parameters"] == sum(w.size for w in models.Tiny().weights().values())
    assert manifest["source"]["kind"] == "huggingface"
    hashes = {entry["path"]: entry["sha256"] for entry in manifest["source"]["files"]}
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"):
        assert hashes[name] == hashlib.sha256((model / name).read_bytes()).hexdigest()
    assert str(tmp_path) not in json.dumps(manifest)


def test_what_goes_into_a_bundle(tmp_path: Path) -> None:
    (folder,) = bundles(models.tiny_llama(tmp_path / "m"), tmp_path / "1", "w8a8")
    (file,) = bundles(models.tiny_gguf(tmp_path / "g" / "m.gguf"), tmp_path / "2", "w8a8")
    always = {"README.md", "chat_template.jinja", "model.sim.gguf", "rkbundle.json"}
    copied = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert {p.name for p in folder.path.iterdir()} == always | copied
    assert {p.name for p in file.path.iterdir()} == always | {"tokenizer.json", "tokenizer_config.json"}
    assert folder.chat_template == file.chat_template == models.CHATML
    card = (folder.path / "README.md").read_text()
    assert "tiny-rk3588-w8a8" in card
    assert "simulated" in card


def test_a_tied_model_with_a_head_of_its_own_uses_the_embedding(tmp_path: Path) -> None:
    """transformers ignores lm_head.weight when config.json ties it; so do we."""
    tiny = models.Tiny(tied=True)
    extra = {**tiny.weights(), "lm_head.weight": models.Tiny().weights()["lm_head.weight"]}
    both = models.write_llama(tmp_path / "m", models.config(tiny, "bf16"), extra, dtype="bf16")
    assert artifact(both, tmp_path / "1") == artifact(models.tiny_llama(tmp_path / "n", tied=True), tmp_path / "2")


def test_overwrite_replaces_a_bundle(tmp_path: Path) -> None:
    source = open_source(models.tiny_llama(tmp_path / "m"))
    (folder,) = convert(make_plan(source, "tiny", tmp_path, [quant.scheme("fp16")]))
    made = (folder / "model.sim.gguf").read_bytes()
    (folder / "model.sim.gguf").write_bytes(b"old")
    convert(make_plan(source, "tiny", tmp_path, [quant.scheme("fp16")], overwrite=True))
    bundle.verify(bundle.read(folder))
    assert (folder / "model.sim.gguf").read_bytes() == made


@pytest.mark.model
def test_smollm2(smollm2_bundles: Mapping[str, Path]) -> None:
    """The real model once: all there, and each weight within half a step of the Q4_1 file's."""
    source = {t.name: t for t in gguf.GGUFReader(models.smollm2_gguf()).tensors}
    made = bundle.read(smollm2_bundles["w8a8_g128"])
    found = tensors(made)
    assert sum(name.endswith(".scale") for name in found) == 211
    for name in ("blk.29.ffn_down.weight", "blk.0.attn_v.weight", "output.weight"):
        original = source[name.replace("output.", "token_embd.")]
        weight = gguf.quants.dequantize(original.data, original.tensor_type)
        q, scales = quant.quantise(weight, quant.scheme("w8a8_g128"))
        np.testing.assert_array_equal(found[name], q)
        np.testing.assert_array_equal(found[f"{name}.scale"], scales)
    q_proj = source["blk.3.attn_q.weight"]
    permuted = gguf.quants.dequantize(q_proj.data, q_proj.tensor_type)
    full = tensors(bundle.read(smollm2_bundles["fp32"]))
    np.testing.assert_array_equal(models.permute(full["blk.3.attn_q.weight"], 9), permuted)
