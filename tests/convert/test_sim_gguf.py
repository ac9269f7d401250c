"""``model.sim.gguf`` as docs/sim-gguf.md freezes it: golden files, spelt out, and answering with the same bits.

That of version 2 is the last of its kind. Those of version 3 are reproduced byte for byte; `python -m
tests.convert.test_sim_gguf` writes them anew, for when version 4 comes.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from rk3588 import hostlib, quant
from rkconvert.architectures.model import ModelConfig, Rope, RopeScaling
from rkconvert.artifact import gguf_writer
from rkconvert.artifact.gguf_writer import Metadata, TensorInfo
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from tests import digests, models
from tests.golden_families import cases
from tests.plans import make_plan
from tests.reference import Reference

GOLDEN = Path(__file__).parent.parent / "golden"
GOLDEN_FILE, GOLDEN_TOKENIZER = GOLDEN / "two_layers.sim.gguf", GOLDEN / "two_layers.tokenizer.json"
IDS = [(11 + 37 * i + 3 * i * i) % 280 for i in range(150)]
# SHA-256 of the logits over IDS; of the first as the release that wrote version 2 computed them.
LOGITS = {
    "two_layers": "03fbfcc78f183554010b20dc5a9e81555437a75c23b13a26a9ba253d7b06d62c",
    "side_by_side": "2af737fb1703d9b7c6cc4314267f5b9d8d76e45bd34b227c67d5d96c27680ff0",
    "many_norms": "fc1dcc49e86f9a5fae6c92b51d2ad52b3e07249dcf3d8d15793114130d5c41ef",
}
SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
SHAPE = {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 160,
         "vocab_size": 280, "tied": True, "rope_scaling": SCALING, "seed": 7}  # fmt: skip


# The golden files of version 3: the checkpoint's case, its config, and the artifact's dtype. Between them they have
# every feature and every tensor that a converter writes.
VERSION_3: Mapping[str, tuple[str, ModelConfig, str]] = {
    "side_by_side": (
        "phi2",
        ModelConfig(
            family="phi2", layers=2, hidden=32, intermediate=160, heads=4, kv_heads=4, head_dim=8, vocab_size=280,
            context_length=512, norm_eps=1e-5, tied=False, rope=Rope(dims=4), layer_norm=True, parallel=True,
            gated=False, activation="gelu_tanh", adapters_interleaved=False,
            biases=frozenset({"attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down", "output"}),
        ),
        "w8a8",
    ),
    "many_norms": (
        "gemma3",
        ModelConfig(
            family="gemma3", layers=3, hidden=32, intermediate=160, heads=4, kv_heads=2, head_dim=16, vocab_size=280,
            context_length=512, norm_eps=1e-6, tied=True, head_norms=True, post_norms=True, activation="gelu_tanh",
            attention_scale=0.2, attention_soft_cap=4.0, logit_soft_cap=6.0, embedding_scale=math.sqrt(32),
            residual_scale=0.75, logit_scale=1.5, windows=(8, 0, 24),
            rope=Rope(
                dims=16, theta=1e5, local_theta=1e3, layers=(2, 1, 0),
                scaling=RopeScaling(tuple(range(1, 9)), tuple(range(2, 18, 2)), 64, 1.25),
            ),
        ),
        "w8a8_g128",
    ),
}  # fmt: skip


def write(name: str, folder: Path) -> Path:
    """A golden file's model, converted. Its tokenizer is a file, as trainers may change from version to version."""
    case, config, dtype = VERSION_3[name]
    shapes = json.loads((cases.FOLDER / "shapes.json").read_text())[case]
    # The case's with all sides halved, but for what is 280 and 160 here.
    sides = {384: 280, 112: 160}
    small = {key: tuple(sides.get(side, side // 2) for side in shape) for key, shape in shapes.items()}
    weights = {key: cases.weight(key, shape, case == "gemma3") for key, shape in small.items()}
    settings = {
        **cases.CASES[case], "hidden_size": 32, "intermediate_size": 160, "head_dim": config.head_dim,
        "vocab_size": 280, "num_hidden_layers": config.layers,
    }  # fmt: skip
    names = [key for key in weights if f"layers.{config.layers}." not in key]
    source = models.write_llama(folder / "source", settings, {key: weights[key] for key in names})
    shutil.copyfile(GOLDEN_TOKENIZER, source / "tokenizer.json")
    opened = replace(open_source(source), config=config)
    (made,) = convert(make_plan(opened, "golden", folder, [quant.scheme(dtype)]))
    return made / "model.sim.gguf"


def golden(name: str) -> Path:
    return GOLDEN / f"{name}.sim.gguf"


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    fields = gguf.GGUFReader(GOLDEN_FILE).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


class Entry(NamedTuple):
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def table(path: Path = GOLDEN_FILE) -> dict[str, Entry]:
    """The tensor table as the gguf package reads it, shapes as (N, K)."""
    return {
        t.name: Entry(t.tensor_type.name, tuple(int(n) for n in t.shape[::-1]), int(t.data_offset), int(t.n_bytes))
        for t in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("name", VERSION_3)
def test_the_writer_reproduces_the_golden_files(name: str, tmp_path: Path) -> None:
    assert write(name, tmp_path).read_bytes() == golden(name).read_bytes()


@pytest.mark.parametrize("name", LOGITS)
def test_golden_files_answer_with_the_same_bits_for_ever(name: str) -> None:
    with hostlib.SimModel(golden(name), threads=2) as model:
        found = model.logits(IDS)
        np.testing.assert_array_equal(found, Reference(golden(name)).logits(IDS))
        assert digests.digest(found) == LOGITS[name]


@pytest.mark.parametrize("name", LOGITS)
def test_a_vocabulary_alone_says_the_context(name: str) -> None:
    with hostlib.SimModel(golden(name), vocab_only=True) as vocabulary:
        assert (vocabulary.info.context_length, vocabulary.info.n_vocab) == (512, 280)


def keys(path: Path) -> dict[str, Any]:
    """What a file says of the transformer."""
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if key.startswith("rksim.") and "crc" not in key}


def test_golden_features() -> None:
    both = {
        "rksim.version": 3, "rksim.context_length": 512, "rksim.embedding_length": 32,
        "rksim.feed_forward_length": 160, "rksim.vocab_size": 280, "rksim.attention.head_count": 4,
        "rksim.activation": "gelu_tanh", "rksim.eos_token_ids": [2], "rksim.chat.system": "",
        "rksim.chat.prefix": "<|im_start|>user\n", "rksim.chat.postfix": "<|im_end|>\n<|im_start|>assistant\n",
        "rksim.chat.between": "<|im_end|>\n",
    }  # fmt: skip
    assert keys(golden("side_by_side")) == both | {
        "rksim.dtype": "w8a8",
        "rksim.group_size": 0,
        "rksim.family": "phi2",
        "rksim.block_count": 2,
        "rksim.attention.head_count_kv": 4,
        "rksim.attention.key_length": 8,
        "rksim.attention.layer_norm_epsilon": pytest.approx(1e-5),
        "rksim.rope.dimension_count": 4,
        "rksim.rope.freq_base": 1e4,
        "rksim.use_parallel_residual": True,
    }
    assert keys(golden("many_norms")) == both | {
        "rksim.dtype": "w8a8_g128",
        "rksim.group_size": 128,
        "rksim.family": "gemma3",
        "rksim.adapters_interleaved": True,
        "rksim.block_count": 3,
        "rksim.attention.head_count_kv": 2,
        "rksim.attention.key_length": 16,
        "rksim.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "rksim.attention.scale": pytest.approx(0.2),
        "rksim.attention.sliding_window": [8, 0, 24],
        "rksim.attn_logit_softcapping": 4.0,
        "rksim.final_logit_softcapping": 6.0,
        "rksim.embedding_scale": pytest.approx(math.sqrt(32)),
        "rksim.residual_scale": 0.75,
        "rksim.logit_scale": 1.5,
        "rksim.rope.dimension_count": 16,
        "rksim.rope.freq_base": 1e5,
        "rksim.rope.freq_base_local": 1e3,
        "rksim.rope.layers": [2, 1, 0],
        "rksim.rope.scaling.attn_factor": 1.25,
        "rksim.rope.scaling.original_context_length": 64,
    }


def test_golden_tensors_of_features() -> None:
    linear = {"attn_q": (32, 32), "attn_k": (32, 32), "attn_v": (32, 32), "attn_output": (32, 32)}
    for name, norms, block in (
        ("side_by_side", ["attn_norm"], {**linear, "ffn_up": (160, 32), "ffn_down": (32, 160)}),
        (
            "many_norms",
            ["attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"],
            {"attn_q": (64, 32), **{f"attn_{kind}": (32, 32) for kind in "kv"}, "attn_output": (32, 64),
             "ffn_gate": (160, 32), "ffn_up": (160, 32), "ffn_down": (32, 160)},
        ),
    ):  # fmt: skip
        path = golden(name)
        found = {key: (entry.kind, entry.shape) for key, entry in table(path).items()}
        layers, biased = keys(path)["rksim.block_count"], name == "side_by_side"
        groups = {160: 2 if not biased else 1}
        wanted: dict[str, tuple[str, tuple[int, ...]]] = {"token_embd.weight": ("F16", (280, 32))}
        every = {f"blk.{i}.{kind}": shape for i in range(layers) for kind, shape in block.items()}
        for kind, (n, k) in {**every, "output": (280, 32)}.items():
            wanted |= {
                f"{kind}.weight": ("I8", (n, k)),
                f"{kind}.weight.scale": ("F32", (n, groups.get(k, 1))),
            } | ({f"{kind}.bias": ("F32", (n,))} if biased else {})
        for kind in [*(f"blk.{i}.{norm}" for i in range(layers) for norm in norms), "output_norm"]:
            size = 16 if kind.endswith(("q_norm", "k_norm")) else 32
            wanted |= {f"{kind}.{part}": ("F32", (size,)) for part in ("weight", "bias")[: 1 + biased]}
        if not biased:
            wanted |= {f"rope_{kind}.weight": ("F32", (8,)) for kind in ("freqs", "factors_long")}
        wanted["rksim.tensor_crc32"] = ("I32", (len(wanted) + 1,))
        assert found == wanted


def test_a_header_is_as_the_gguf_package_writes_it(tmp_path: Path) -> None:
    theirs, kinds = gguf.GGUFWriter(tmp_path / "theirs.gguf", "rksim"), gguf.GGUFValueType
    theirs.add_uint32("whole", 2**32 - 1)
    theirs.add_float32("number", 0.1)
    theirs.add_bool("yes", True)
    theirs.add_string("text", "Straße 你好")
    theirs.add_key_value("ids", [-1, 2], kinds.ARRAY, sub_type=kinds.INT32)
    theirs.add_array("merges", ["a b", "", "ä ö"])
    types = gguf.GGMLQuantizationType
    tensors = [("a", "I8", (3, 5), 0), ("b", "F16", (2, 7), 32), ("c", "F32", (9,), 64), ("d", "I32", (1,), 128)]
    for name, kind, shape, _ in tensors:
        size = {"I8": 1, "F16": 2}.get(kind, 4) * int(np.prod(shape))
        theirs.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=types[kind])
    theirs.write_header_to_file()
    theirs.write_kv_data_to_file()
    theirs.write_ti_data_to_file()
    theirs.close()
    ours = Metadata()
    ours.add("general.architecture", gguf_writer.STRING, "rksim")
    whole = ours.add("whole", gguf_writer.UINT32, 2**32 - 1)
    ours.add("number", gguf_writer.FLOAT32, 0.1)
    ours.add("yes", gguf_writer.BOOL, True)
    ours.add("text", gguf_writer.STRING, "Straße 你好")
    ours.add_list("ids", gguf_writer.INT32, [-1, 2])
    ours.add_list("merges", gguf_writer.STRING, ["a b", "", "ä ö"])
    ours.add_list("none", gguf_writer.STRING, [])
    made = gguf_writer.header(ours, [TensorInfo(*tensor) for tensor in tensors])
    assert bytes(made) == (tmp_path / "theirs.gguf").read_bytes()
    assert made[gguf_writer.METADATA_AT + whole :].startswith(b"\xff\xff\xff\xff\x06\0\0\0")
    with pytest.raises(ValueError, match="twice: text"):
        ours.add("text", gguf_writer.STRING, "")
    with pytest.raises(ValueError, match=r"given twice: .*'text'"):
        ours.extend(ours)


def test_golden_metadata(metadata: dict[str, Any]) -> None:
    found = {k: v for k, v in metadata.items() if not isinstance(v, list) and "template" not in k and "crc" not in k}
    epsilon = found.pop("llama.attention.layer_norm_rms_epsilon")
    assert epsilon == pytest.approx(1e-5)
    assert found == {
        "general.architecture": "llama",
        "general.name": "golden",
        "general.alignment": 64,
        "rksim.version": 2,
        "rksim.dtype": "w8a8_g128",
        "rksim.group_size": 128,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 160,
        "llama.vocab_size": 280,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    assert metadata["tokenizer.chat_template"] == models.CHATML
    assert metadata["rksim.eos_token_ids"] == [2]


def test_golden_vocabulary(metadata: dict[str, Any]) -> None:
    vocab = json.loads(GOLDEN_TOKENIZER.read_text())["model"]
    assert metadata["tokenizer.ggml.tokens"] == sorted(vocab["vocab"], key=vocab["vocab"].get)
    assert metadata["tokenizer.ggml.token_type"] == [3] * 3 + [1] * 277
    assert metadata["tokenizer.ggml.merges"] == [" ".join(m) for m in vocab["merges"]]


def test_golden_tensor_table() -> None:
    tensors = table()
    layer: dict[str, tuple[str, tuple[int, ...]]] = {
        "attn_norm.weight": ("F32", (32,)),
        "attn_q.weight": ("I8", (32, 32)),
        "attn_q.weight.scale": ("F32", (32, 1)),
        "attn_k.weight": ("I8", (16, 32)),
        "attn_k.weight.scale": ("F32", (16, 1)),
        "attn_v.weight": ("I8", (16, 32)),
        "attn_v.weight.scale": ("F32", (16, 1)),
        "attn_output.weight": ("I8", (32, 32)),
        "attn_output.weight.scale": ("F32", (32, 1)),
        "ffn_norm.weight": ("F32", (32,)),
        "ffn_gate.weight": ("I8", (160, 32)),
        "ffn_gate.weight.scale": ("F32", (160, 1)),
        "ffn_up.weight": ("I8", (160, 32)),
        "ffn_up.weight.scale": ("F32", (160, 1)),
        "ffn_down.weight": ("I8", (32, 160)),
        "ffn_down.weight.scale": ("F32", (32, 2)),  # 160 = 128 + 32: a short second group
    }
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"token_embd.weight": ("F16", (280, 32))}
    expected |= {f"blk.{i}.{name}": entry for i in range(2) for name, entry in layer.items()}
    expected |= {
        "output_norm.weight": ("F32", (32,)),
        "output.weight": ("I8", (280, 32)),  # tied, and there all the same
        "output.weight.scale": ("F32", (280, 1)),
        "rope_freqs.weight": ("F32", (8,)),
    }
    expected["rksim.tensor_crc32"] = ("I32", (len(expected) + 1,))
    assert list(tensors) == list(expected)
    assert {name: (t.kind, t.shape) for name, t in tensors.items()} == expected


@pytest.mark.parametrize("name", LOGITS)
def test_golden_layout_and_checksums(name: str) -> None:
    raw = golden(name).read_bytes()
    tensors = list(table(golden(name)).values())
    end = start = tensors[0].offset
    found = []
    for tensor in tensors:
        assert tensor.offset == -(-end // 64) * 64
        assert not any(raw[end : tensor.offset])
        end = tensor.offset + tensor.nbytes
        found.append(zlib.crc32(raw[tensor.offset : end]))
    last = tensors[-1].offset
    sums = np.frombuffer(raw[last:end], "<u4")
    assert sums[:-1].tolist() == found[:-1]
    assert sums[-1] == zlib.crc32(raw[last : end - 4])
    assert len(raw) == -(-end // 64) * 64
    assert start % 64 == 0
    key = b"rksim.header_crc32"
    at = raw.index(key) + len(key) + 4
    assert int.from_bytes(raw[at : at + 4], "little") == zlib.crc32(raw[:at] + bytes(4) + raw[at + 4 : start])


def data(name: str) -> npt.NDArray[Any]:
    tensor = table()[name]
    raw = GOLDEN_FILE.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
    kind = {"F32": np.float32, "F16": np.float16, "I8": np.int8}[tensor.kind]
    return np.frombuffer(raw, kind).reshape(tensor.shape)


def test_golden_values() -> None:
    weights = models.Tiny(**SHAPE).weights()  # type: ignore[arg-type]
    spec = quant.scheme("w8a8_g128")
    for name, weight in weights.items():
        ours = models.gguf_name(name)
        if ours == "token_embd.weight":
            np.testing.assert_array_equal(data(ours), weight.astype(np.float16))
            ours = "output.weight"  # the same weights once more, as a linear layer
        if weight.ndim == 1:
            np.testing.assert_array_equal(data(ours), weight)
            continue
        q, scales = quant.quantise(weight, spec)
        np.testing.assert_array_equal(data(ours), q)
        np.testing.assert_array_equal(data(f"{ours}.scale"), scales)
    np.testing.assert_array_equal(data("rope_freqs.weight"), models.llama3_factors(SCALING, 16, 10000.0))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for wanted in VERSION_3:
            shutil.copyfile(write(wanted, Path(scratch) / wanted), golden(wanted))
            with hostlib.SimModel(golden(wanted)) as written:
                print(wanted, digests.digest(written.logits(IDS)))
