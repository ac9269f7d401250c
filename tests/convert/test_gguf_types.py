"""Every packed type of GGUF, through the converter: the gguf package's own dequantiser gives the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from rk3588 import quant
from rk3588.errors import CheckpointError
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from tests import models
from tests.packed import PACKED, blocks
from tests.plans import make_plan

# K = 256 throughout, which is the width of the larger blocks.
TINY = models.Tiny(layers=1, hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=256, vocab_size=320)
Array = npt.NDArray[Any]


def packed(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """A matrix of such blocks, as its bytes."""
    width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0]
    chosen = np.random.default_rng(seed).integers(0, len(blocks(name)), shape[0] * shape[1] // width)
    return np.reshape(blocks(name)[chosen], (shape[0], -1))


def write(path: Path, name: str) -> tuple[Path, dict[str, Array]]:
    """A model whose matrices are all of that type, and its weights as a Hugging Face folder would have them."""
    kind = gguf.GGMLQuantizationType[name]
    weights = TINY.weights()
    raw = {key: packed(name, w.shape, seed) for seed, (key, w) in enumerate(weights.items()) if w.ndim == 2}

    def tensor(key: str, weight: Array) -> tuple[Array, gguf.GGMLQuantizationType]:
        return (raw[key], kind) if key in raw else (weight, gguf.GGMLQuantizationType.F32)

    models.write_gguf(path, TINY, weights, tensor=tensor)
    plain = {key: gguf.quants.dequantize(raw[key], kind) if key in raw else w for key, w in weights.items()}
    for part, heads in (("q_proj", TINY.heads), ("k_proj", TINY.kv_heads)):
        key = f"model.layers.0.self_attn.{part}.weight"
        plain[key] = unpermuted(plain[key], heads)
    return path, plain


def unpermuted(weight: Array, heads: int) -> Array:
    """The inverse of models.permute."""
    order = models.permute(np.arange(len(weight))[:, None], heads)[:, 0]
    found = np.empty_like(weight)
    found[order] = weight
    return found


@pytest.mark.parametrize("name", PACKED)
def test_a_model_of_each_type(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of a few rows, as a large one is read."""
    monkeypatch.setattr("rkconvert.artifact.reading.BLOCK_BYTES", 20_000)
    path, weights = write(tmp_path / "tiny.gguf", name)
    source = open_source(path)
    assert {t.kind for t in source.tensors.values()} == {name, "F32"}
    (folder,) = convert(make_plan(source, "tiny", tmp_path, [quant.scheme("fp32")]))
    made = {t.name: t.data for t in gguf.GGUFReader(folder / "model.sim.gguf").tensors}
    for key, weight in weights.items():
        np.testing.assert_array_equal(made[models.gguf_name(key)], weight, err_msg=key)


def test_what_the_package_reads_is_what_people_publish() -> None:
    assert set(PACKED) >= {
        "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS",
        "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
    }  # fmt: skip


def test_a_row_that_is_no_whole_number_of_blocks(tmp_path: Path) -> None:
    tiny = models.Tiny(hidden=64)
    path = models.write_gguf(tmp_path / "tiny.gguf", tiny, tiny.weights(), "Q8_0")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    raw[at] = gguf.GGMLQuantizationType.Q4_K
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"of type Q4_K, which come in blocks of 256 cannot have the dimensions"):
        open_source(path)


@pytest.mark.parametrize("name", ["IQ1_S", "Q2_K", "Q4_K"])
def test_a_small_type_takes_no_more_memory(name: str) -> None:
    """As many weights are unpacked at a time as of a type of 16 bits, at the most."""
    from rkconvert.artifact.reading import BLOCK_BYTES, block_rows
    from rkconvert.sources.base import SourceTensor

    width, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    tensor = SourceTensor("x", name, (14336, 4096), Path("x"), 0, 14336 * 4096 // width * size)
    assert block_rows(tensor) * 4096 <= BLOCK_BYTES // 2
