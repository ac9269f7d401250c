"""Bad input: one sentence with what, where and what to do; nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rk3588 import quant
from rk3588.errors import CheckpointError, RkError, TargetError, UsageError
from rkconvert.build import convert
from rkconvert.sources import gguf_file, huggingface
from rkconvert.sources.opening import open_source
from tests import models
from tests.plans import make_plan


def run(model: Path, out: Path, *dtypes: str) -> list[Path]:
    schemes = [quant.scheme(dtype) for dtype in dtypes or ("w8a8",)]
    return convert(make_plan(open_source(model), "tiny", out, schemes))


def refused(kind: type[RkError], model: Path, out: Path, *dtypes: str) -> str:
    """The sentence a conversion is refused with; nothing may be left in ``out``."""
    with pytest.raises(kind) as caught:
        run(model, out, *dtypes)
    assert not out.exists() or list(out.iterdir()) == []
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.tiny_llama(tmp_path / "m", shards=2)


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "other family": (
        {"architectures": ["FalconForCausalLM"], "model_type": "falcon"}, r"'FalconForCausalLM' .*it takes Llama \(2 ",
    ),
    "two families": ({"model_type": "qwen2"}, r"'LlamaForCausalLM' and 'model_type' 'qwen2', which are not of one"),
    "another family than the weights": (
        {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, r"lacks the tensor \S+self_attn.q_proj.bias",
    ),
    "a family that only a board runs": (
        {"architectures": ["MiniCPM3ForCausalLM"], "model_type": "minicpm3"},
        r"MiniCPM3 is not converted .*\(MLA\).*--target rk3588 alone.*rkllm-toolkit 1.1.1",
    ),
    "no architecture": ({"architectures": None, "model_type": None}, r"names no architecture: it is not"),
    "bias": ({"attention_bias": True}, r"lacks the tensor model.layers.0.self_attn.q_proj.bias"),
    "mlp bias": ({"mlp_bias": True}, r"lacks the tensor model.layers.0.mlp.gate_proj.bias"),
    "bias as text": ({"attention_bias": "yes"}, r"'attention_bias' is 'yes', expected true or false"),
    "window": ({"sliding_window": 64}, r"sliding_window is 64, which .* not know for Llama"),
    "soft cap": ({"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping is 50.0, which .* not know for Llama"),
    "query scale": ({"query_pre_attn_scalar": 256}, r"query_pre_attn_scalar is 256, which .* not know for Llama"),
    "layer types": ({"layer_types": ["sliding_attention"] * 2}, r"layer_types is .* not know for Llama"),
    "experts": ({"num_local_experts": 8}, r"num_local_experts is 8, which .* not know for Llama"),
    "the future": ({"future_norm": "deep"}, r"future_norm is 'deep', which .* take it out of a copy of the file"),
    "activation": ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'"),
    "partial rotary": ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, r"quantised already \(gptq\)"),
    "unknown scaling": ({"rope_scaling": {"type": "xpos", "factor": 4.0}}, r"RoPE scaling 'xpos'.*'linear', 'llama3'"),
    "unknown key of a scaling": (
        {"rope_scaling": {"type": "linear", "factor": 4.0, "ntk": 2}}, r"rope_scaling has ntk \(2\), which .* not know",
    ),
    "scaling of no type": ({"rope_scaling": {"factor": 4.0}}, r"rope_scaling has factor \(4.0\)"),
    "part of a head in the new form": (
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, r"partial_rotary_factor is 0.5, which",
    ),
    "RoPE by kind of layer": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, r"rope_parameters has full_attention \(",
    ),
    "half a llama3": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"lacks 'low_freq_factor"),
    "no layers": ({"num_hidden_layers": None}, r"lacks the tensor model.layers.2.input_layernorm.weight"),  # of 32
    "layers as text": ({"num_hidden_layers": "2"}, r"'num_hidden_layers' is '2', expected a whole number"),
    "absurd layers": ({"num_hidden_layers": 10**9}, r"'num_hidden_layers' is 1000000000, .* from 1 to 4096"),
    "negative": ({"hidden_size": -64}, r"'hidden_size' is -64"),
    "epsilon": ({"rms_norm_eps": 0.0}, r"'rms_norm_eps' is 0.0"),
    "heads": ({"num_key_value_heads": 3}, r"4 heads cannot share 3 KV heads"),
    "more layers than weights": ({"num_hidden_layers": 3}, r"lacks the tensor model.layers.2.input_layernorm.weight"),
    "fewer layers": ({"num_hidden_layers": 1}, r"model.layers.1.\S+ is not part of such a model .*Llama"),
    "vocabulary": ({"vocab_size": 383}, r"has 384 tokens, the embedding 383 rows"),
    "wrong shape": ({"intermediate_size": 161}, r"mlp.up_proj.weight has shape \[160, 64\], .* for \[161, 64\]"),
    "more rows": ({"tie_word_embeddings": True, "vocab_size": 385}, r"embed_tokens.weight has shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_config(model: Path, tmp_path: Path, case: str) -> None:
    changes, sentence = CONFIGS[case]
    edit(model / "config.json", **changes)
    message = refused(CheckpointError, model, tmp_path / "out")
    assert str(model) in message
    assert re.search(sentence, message)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("config.json", None, r"has no config.json: it is no Hugging Face folder"),
        ("config.json", "{", r"cannot read .*config.json"),
        ("config.json", "[1]", r"config.json: it holds no JSON object"),
        ("config.json", "[" * 100_000, r"cannot read .*config.json"),
        ("tokenizer.json", None, r"has no tokenizer.json: save the tokenizer into it"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', r"type 'Unigram' is not supported, only BPE"),
        ("tokenizer.json", '{"model": {"type": "BPE", "merges": 3, "vocab": []}}', r"tokenizer.json"),
        ("model-00002-of-00002.safetensors", None, r"lacks the shard model-00002-of-00002.safetensors"),
        ("model-00001-of-00002.safetensors", "", r"truncated or not safetensors"),
        ("model-00001-of-00002.safetensors", "\xff" * 64, r"truncated or not safetensors"),
        ("model-00001-of-00002.safetensors", "\x08" + "\0" * 7 + "no json!" + "x" * 99, r"its header is not JSON"),
        ("model.safetensors.index.json", None, r"has shards .* and no model.safetensors.index.json, which"),
        ("model.safetensors.index.json", '{"weight_map": {"x": "../m.safetensors"}}', r"not the name of a file beside"),
        ("model.safetensors.index.json", '{"weight_map": {}}', r"has no 'weight_map'"),
    ],
)
def test_files(model: Path, tmp_path: Path, name: str, text: str | None, sentence: str) -> None:
    if text is None:
        (model / name).unlink()
    else:
        (model / name).write_bytes(text.encode("latin-1"))
    message = refused(CheckpointError, model, tmp_path / "out")
    assert str(model) in message
    assert re.search(sentence, message)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    model = models.tiny_llama(tmp_path / "m")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "save them as safetensors" in refused(CheckpointError, model, tmp_path / "out")


def test_a_single_safetensors_file_is_not_a_model(tmp_path: Path) -> None:
    file = models.tiny_llama(tmp_path / "m") / "model.safetensors"
    assert "give the folder" in refused(CheckpointError, file, tmp_path / "out")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"nothing")
    assert "neither a Hugging Face folder nor a GGUF" in refused(CheckpointError, tmp_path / "x.bin", tmp_path / "out")


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a safetensors header and keep the data."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


NORM = "model.layers.0.input_layernorm.weight"
HEADERS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "type": (lambda h: h[NORM].update(dtype="F8_E4M3"), r"has type F8_E4M3, only F32, F16 and BF16"),
    "size": (lambda h: h[NORM].update(shape=[65]), r"shape \[65\] and type BF16 cannot have 128 bytes"),
    "count": (lambda h: h[NORM].update(shape=[1 << 62, 1 << 62]), r"cannot have 128 bytes"),
    "place": (lambda h: h[NORM].update(data_offsets=[1 << 60, (1 << 60) + 128]), r"is truncated: tensor"),
    "backwards": (lambda h: h[NORM].update(data_offsets=[128, 0]), r"cannot have -128 bytes"),
    "form": (lambda h: h[NORM].update(data_offsets="0-128"), r"entry for model.layers.0.input_layernorm.weight"),
    "missing": (lambda h: h.pop(NORM), r"lacks the tensor model.layers.0.input_layernorm.weight"),
    "unknown": (lambda h: h.update(extra=h[NORM]), r"tensor extra is not part of such a model as its config.*Llama"),
    "overlap": (lambda h: h[NORM].update(data_offsets=[0, 128]), r"overlaps the one before it"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_safetensors_headers(tmp_path: Path, case: str) -> None:
    model = models.tiny_llama(tmp_path / "m")
    change, sentence = HEADERS[case]
    rewrite_header(model / "model.safetensors", change)
    assert re.search(sentence, refused(CheckpointError, model, tmp_path / "out"))


def test_truncated_safetensors(tmp_path: Path) -> None:
    model = models.tiny_llama(tmp_path / "m")
    path = model / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    assert "model.safetensors is truncated" in refused(CheckpointError, model, tmp_path / "out")


@pytest.mark.parametrize(("kind", "value"), [("bf16", "nan"), ("fp16", "inf"), ("fp32", "-inf")])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.1.mlp.down_proj.weight", "row 63, column 159"),
        ("model.embed_tokens.weight", "row 383, column 63"),
        ("model.norm.weight", "position 63"),
    ],
)
@pytest.mark.parametrize("dtype", ["w8a8_g128", "fp32"])
def test_not_finite(tmp_path: Path, kind: str, value: str, name: str, place: str, dtype: str) -> None:
    tiny = models.Tiny()
    weights = tiny.weights()
    weights[name][(-1,) * weights[name].ndim] = float(value)
    model = models.write_llama(tmp_path / "m", models.config(tiny, kind), weights, dtype=kind)
    message = refused(CheckpointError, model, tmp_path / "out", dtype)
    assert f"model.safetensors: tensor {name}, {place} is {value}" in message


def test_the_first_of_several_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads finish in any order; what is reported is the first in the file."""
    monkeypatch.setattr("rkconvert.artifact.reading.BLOCK_BYTES", 1000)
    tiny = models.Tiny()
    weights = tiny.weights()
    weights["lm_head.weight"][7, 3] = weights["lm_head.weight"][300, 1] = np.nan
    model = models.write_llama(tmp_path / "m", models.config(tiny, "bf16"), weights, dtype="bf16")
    for _ in range(5):
        assert "lm_head.weight, row 7, column 3" in refused(CheckpointError, model, tmp_path / "out")


def test_an_embedding_that_fp16_cannot_hold(tmp_path: Path) -> None:
    tiny = models.Tiny()
    weights = tiny.weights()
    weights["model.embed_tokens.weight"][5, 6] = 70000
    model = models.write_llama(tmp_path / "m", models.config(tiny, "bf16"), weights, dtype="bf16")
    message = refused(CheckpointError, model, tmp_path / "out", "w8a8")
    assert "model.embed_tokens.weight, row 5, column 6 is 70144, more than fp16 holds (65504)" in message
    assert run(model, tmp_path / "out", "fp32")


# GGUF


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return models.tiny_gguf(tmp_path_factory.mktemp("g") / "tiny.gguf", layers=1, dtype="Q8_0").read_bytes()


def test_gguf_of_another_family(tmp_path: Path, gguf_bytes: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes.replace(b"llama", b"mamba", 1))
    message = refused(CheckpointError, tmp_path / "m.gguf", tmp_path / "out")
    assert "'mamba' is not an architecture this version converts" in message


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"blk.0.ffn_up", b"blk.0.ffn_xx", r"tensor blk.0.ffn_xx.weight is not part of such"),
        (b"attn_norm.weight", b"attn_q.biasxxxxx", r"tensor blk.0.attn_q.biasxxxxx is not part of such"),
        (b"output.weight", b"oooput.weight", r"tensor oooput.weight is not part of such a model .*Llama"),
        (b"token_embd.weight", b"token_oops.weight", r"lacks the tensor token_embd.weight"),
        (b"smollm", b"command"[:6], r"pre-tokeniser 'comman' is not supported"),
        (b"GGUF\3", b"GGUF\1", r"GGUF version 1 is not supported"),
        (b"llama.attention.head_count_kv", b"llama.attention.head_count_xx", r"head_count_xx is 2, which .* not know"),
        (b"llama.attention.head_count_kv", b"lllll.attention.head_count_kv", r"attn_k.weight has shape \[32, 64\]"),
    ],
)
def test_gguf_contents(tmp_path: Path, gguf_bytes: bytes, old: bytes, new: bytes, sentence: str) -> None:
    at = gguf_bytes.rindex(old) if b"weight" in old else gguf_bytes.index(old)
    (tmp_path / "m.gguf").write_bytes(gguf_bytes[:at] + new + gguf_bytes[at + len(old) :])
    with pytest.raises(CheckpointError, match=sentence):
        open_source(tmp_path / "m.gguf")


@pytest.mark.parametrize("offset", [8, 16])  # tensor count, key count
@pytest.mark.parametrize("count", [2**64 - 1, 2**40, 10**6])
def test_absurd_counts(tmp_path: Path, gguf_bytes: bytes, offset: int, count: int) -> None:
    raw = bytearray(gguf_bytes)
    struct.pack_into("<Q", raw, offset, count)
    (tmp_path / "m.gguf").write_bytes(raw)
    message = refused(CheckpointError, tmp_path / "m.gguf", tmp_path / "out")
    assert f"a count of {count}, more than the file can hold" in message


def test_an_artifact_is_not_a_source(tmp_path: Path) -> None:
    (made,) = run(models.tiny_llama(tmp_path / "m"), tmp_path / "1")
    assert "a converted artifact already" in refused(CheckpointError, made / "model.sim.gguf", tmp_path / "out")


@given(st.data())
def test_any_damage_to_a_gguf_header_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, gguf_bytes: bytes, data: st.DataObject
) -> None:
    """Truncated anywhere, bytes changed anywhere: read as something, or refused; never a crash or endless work."""
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    raw = bytearray(gguf_bytes[: data.draw(st.integers(4, len(gguf_bytes)))])
    for _ in range(data.draw(st.integers(0, 8))):
        raw[data.draw(st.integers(0, min(len(raw), 12000) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        gguf_file.read(path)
    except CheckpointError as error:
        assert "\n" not in str(error).replace("\\n", "")


@given(st.data())
def test_any_damage_to_a_safetensors_header_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    models.write_safetensors(path, {"a": np.zeros((2, 3)), "b": np.zeros(4)}, "bf16")
    raw = bytearray(path.read_bytes()[: data.draw(st.integers(0, path.stat().st_size))])
    for _ in range(data.draw(st.integers(0, 6)) if raw else 0):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        huggingface.read_header(path)
    except CheckpointError as error:
        assert str(path) in str(error)


def test_what_is_no_model_is_the_call_s_mistake(model: Path, tmp_path: Path) -> None:
    (folder,) = run(model, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    told = {
        tmp_path / "out": r"out is a folder with bundles \(tiny-rk3588-w8a8\), which are converted already",
        folder: "is a bundle, which is converted already",
        folder / "model.sim.gguf": "is a converted artifact already",
        tmp_path / "empty": "has no config.json: it is no Hugging Face folder",
        model / "config.json": "is neither a Hugging Face folder nor a GGUF file",
    }
    for path, sentence in told.items():
        with pytest.raises(CheckpointError, match=sentence) as caught:
            open_source(path)
        assert caught.value.exit_code == 2, path


# The place to write to


def test_a_target_that_exists(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "out")
    before = (tmp_path / "out" / "tiny-rk3588-w8a8" / "model.sim.gguf").stat()
    told = r"tiny-rk3588-w8a8 exists already.*--overwrite; nothing was built, not fp16 either$"
    with pytest.raises(TargetError, match=told) as caught:
        run(model, tmp_path / "out", "fp16", "w8a8")
    assert caught.value.exit_code == 2
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny-rk3588-w8a8"]
    assert (tmp_path / "out" / "tiny-rk3588-w8a8" / "model.sim.gguf").stat() == before


@pytest.mark.parametrize("place", ["file/out", "/proc/nowhere/out"])
def test_a_target_that_cannot_be_written(model: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match=r"cannot write to "):
        run(model, tmp_path / place)


def test_the_same_dtype_twice(model: Path, tmp_path: Path) -> None:
    assert "--dtype w8a8 is given more than once" in refused(
        UsageError, model, tmp_path / "out", "w8a8", "fp16", "w8a8"
    )


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_no_space(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Found out when the file is made, while it is written, or at the very end."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    message = refused(TargetError, model, tmp_path / "out", "w8a8", "fp16")
    assert f"no space left in {tmp_path / 'out'} " in message


def test_less_space_than_needed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert "0.2 MB are needed and 0.0 MB free" in refused(TargetError, model, tmp_path / "out")


def test_a_source_that_changes_under_our_feet(model: Path, tmp_path: Path) -> None:
    plan = make_plan(open_source(model), "tiny", tmp_path / "out", [quant.scheme("w8a8")])
    os.truncate(model / "model-00002-of-00002.safetensors", 20000)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        convert(plan)
    assert not (tmp_path / "out").exists()
