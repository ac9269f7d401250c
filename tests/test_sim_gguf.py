"""``model.sim.gguf`` as docs/sim-gguf.md freezes it: a golden file, spelt out and reproduced byte for byte.

`python -m tests.test_sim_gguf` writes the golden file anew, for when version 3 comes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rk3588 import quant
from rkconvert.architectures import config_json
from rkconvert.artifact import gguf_writer
from rkconvert.artifact.file_order import FileOrder
from rkconvert.artifact.gguf_writer import Metadata, TensorInfo
from rkconvert.artifact.layout import make_artifact
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from tests import models
from tests.plans import make_plan

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_FILE, GOLDEN_TOKENIZER = GOLDEN / "two_layers.sim.gguf", GOLDEN / "two_layers.tokenizer.json"
SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
SHAPE = {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 160,
         "vocab_size": 280, "tied": True, "rope_scaling": SCALING, "seed": 7}  # fmt: skip


def write(folder: Path) -> Path:
    """The golden file's model, converted. Its tokenizer is a file, as trainers may change from version to version."""
    source = models.tiny_llama(folder / "source", **SHAPE)  # type: ignore[arg-type]
    shutil.copyfile(GOLDEN_TOKENIZER, source / "tokenizer.json")
    plan = make_plan(open_source(source), "golden", folder, [quant.scheme("w8a8_g128")])
    (made,) = convert(plan)
    return made / "model.sim.gguf"


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    fields = gguf.GGUFReader(GOLDEN_FILE).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


class Entry(NamedTuple):
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def table() -> dict[str, Entry]:
    """The tensor table as the gguf package reads it, shapes as (N, K)."""
    return {
        t.name: Entry(t.tensor_type.name, tuple(int(n) for n in t.shape[::-1]), int(t.data_offset), int(t.n_bytes))
        for t in gguf.GGUFReader(GOLDEN_FILE).tensors
    }


def test_the_writer_reproduces_the_golden_file(tmp_path: Path) -> None:
    assert write(tmp_path).read_bytes() == GOLDEN_FILE.read_bytes()


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


def test_golden_layout_and_checksums(metadata: dict[str, Any]) -> None:
    raw = GOLDEN_FILE.read_bytes()
    tensors = list(table().values())
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
    assert zlib.crc32(raw[:at] + bytes(4) + raw[at + 4 : start]) == metadata["rksim.header_crc32"]
    assert int.from_bytes(raw[at : at + 4], "little") == metadata["rksim.header_crc32"]


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


@given(st.data())
def test_rows_come_out_in_file_order(data: st.DataObject) -> None:
    """Rows in pieces of any size, their scales with them: the file's bytes, padded, and zlib's checksums last."""
    config = config_json.read_config(models.config(models.Tiny(layers=1, tied=True), "bf16"), "config.json")
    artifact = make_artifact(config, quant.scheme("w8a8_g128"))
    random, made = np.random.default_rng(0), {}
    for tensor in artifact.tensors[:-1]:
        rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
        made[tensor] = random.integers(0, 256, (rows, tensor.nbytes // rows), np.uint8)
    order, found = FileOrder(artifact), []
    scales = {tensor.name: tensor for tensor in made if tensor.name.endswith(".scale")}
    for tensor, values in made.items():
        at = 0
        while at < len(values) and tensor not in scales.values():
            count = data.draw(st.integers(1, len(values)))
            for part in filter(None, (tensor, scales.get(f"{tensor.name}.scale"))):
                found += order.add(part, made[part][at : at + count])
            at += count
    assert b"".join(piece.tobytes() for piece in found) == b"".join(
        values.tobytes() + bytes(-values.nbytes % 64) for values in made.values()
    )
    sums = b"".join(zlib.crc32(values.tobytes()).to_bytes(4, "little") for values in made.values())
    sums += zlib.crc32(sums).to_bytes(4, "little")
    assert b"".join(piece.tobytes() for piece in order.checksums()) == sums + bytes(-len(sums) % 64)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        if not GOLDEN_TOKENIZER.exists():
            models.write_tokenizer(Path(scratch), SHAPE["vocab_size"])  # type: ignore[arg-type]
            shutil.copyfile(Path(scratch) / "tokenizer.json", GOLDEN_TOKENIZER)
        shutil.copyfile(write(Path(scratch)), GOLDEN_FILE)
