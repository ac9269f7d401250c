"""Random models of any features as ``model.sim.gguf``, written key by key as docs/sim-gguf.md has it.

Without rkconvert, so that a file may also say what no converter would write.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from rk3588 import quant

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
ALIGNMENT = 64
LINEAR = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Model:
    """The sizes and features of one. ``keys`` are further ones under ``rksim.``, tuples as arrays of u32.

    ``norms`` and ``biases`` name what each block has.
    """

    seed: int = 0
    layers: int = 2
    hidden: int = 66
    intermediate: int = 137
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 22
    vocab: int = 131
    tied: bool = False
    turned: int = 0  # how much of a head turns; 0: all
    layer_norm: bool = False
    norm_biases: bool = True  # of LayerNorms
    gated: bool = True
    norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    biases: tuple[str, ...] = ()
    factors: bool = False
    long_factors: bool = False
    keys: Mapping[str, Any] = field(default_factory=dict)

    def weights(self) -> dict[str, Floats]:
        """Every tensor by name, in no order that matters; matrices are (N, K)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = {
            "attn_q": (q, self.hidden), "attn_k": (kv, self.hidden), "attn_v": (kv, self.hidden),
            "attn_output": (self.hidden, q), "ffn_gate": (self.intermediate, self.hidden),
            "ffn_up": (self.intermediate, self.hidden), "ffn_down": (self.hidden, self.intermediate),
            "output": (self.vocab, self.hidden),
        }  # fmt: skip
        found = {"token_embd.weight": self._random("token_embd.weight", self.vocab, self.hidden)}
        for block in (f"blk.{i}." for i in range(self.layers)):
            for kind in LINEAR if self.gated else LINEAR[:4] + LINEAR[5:]:
                found |= self._linear(block + kind, *sizes[kind])
            for kind in self.norms:
                found |= self._norm(block + kind, self.head_dim if kind.endswith(("q_norm", "k_norm")) else self.hidden)
        found |= self._norm("output_norm", self.hidden)
        if not self.tied:
            found |= self._linear("output", *sizes["output"])
        half = (self.turned or self.head_dim) // 2
        if self.factors:
            found["rope_freqs.weight"] = np.linspace(1, 8, half, dtype=np.float32)
        if self.long_factors:
            found["rope_factors_long.weight"] = np.linspace(1.5, 30, half, dtype=np.float32)
        return found

    def _linear(self, name: str, n: int, k: int) -> dict[str, Floats]:
        found = {f"{name}.weight": self._random(f"{name}.weight", n, k) * np.float32(3 / np.sqrt(k))}
        if name.rpartition(".")[2] in self.biases:
            found[f"{name}.bias"] = self._random(f"{name}.bias", n)
        return found

    def _norm(self, name: str, n: int) -> dict[str, Floats]:
        found = {f"{name}.weight": 1 + self._random(f"{name}.weight", n) * np.float32(0.3)}
        if self.layer_norm and self.norm_biases:
            found[f"{name}.bias"] = self._random(f"{name}.bias", n)
        return found

    def _random(self, name: str, *shape: int) -> Floats:
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return rng.standard_normal(shape, np.float32)

    def write(self, path: Path, dtype: str = "fp32") -> Path:
        """As ``path``, in ``dtype``."""
        return write(path, self.described(dtype), stored(self, dtype))

    def described(self, dtype: str) -> dict[str, Any]:
        """All that its file says."""
        return {**self.metadata(dtype), **{f"rksim.{key}": value for key, value in self.keys.items()}}

    def metadata(self, dtype: str) -> dict[str, Any]:
        """What every such file says, and its vocabulary."""
        tokens = ["a", "b", "ab", *(f"t{i}" for i in range(3, self.vocab))]
        epsilon = "layer_norm_epsilon" if self.layer_norm else "layer_norm_rms_epsilon"
        return {
            "rksim.dtype": dtype,
            "rksim.group_size": quant.scheme(dtype).group_size,
            "rksim.family": "tiny",
            "rksim.block_count": self.layers,
            "rksim.context_length": 512,
            "rksim.embedding_length": self.hidden,
            "rksim.feed_forward_length": self.intermediate,
            "rksim.vocab_size": self.vocab,
            "rksim.attention.head_count": self.heads,
            "rksim.attention.head_count_kv": self.kv_heads,
            "rksim.attention.key_length": self.head_dim,
            f"rksim.attention.{epsilon}": 1e-5,
            "rksim.rope.dimension_count": self.turned or self.head_dim,
            "rksim.rope.freq_base": 1000.0,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": ["a b"],
        }


def stored(model: Model, dtype: str) -> dict[str, Array]:
    """All tensors of its file, in ``dtype``."""
    found: dict[str, Array] = {}
    weights = model.weights()
    for name, values in weights.items():
        found |= _stored(name, values, dtype)
    if model.tied and dtype.startswith("w8a8"):
        found |= _stored("output.weight", weights["token_embd.weight"], dtype)
    return found


def _stored(name: str, values: Floats, dtype: str) -> dict[str, Array]:
    """A tensor as the artifact has it: vectors in fp32, the embedding in fp16 where layers are in int8."""
    if values.ndim == 1 or dtype == "fp32":
        return {name: values}
    if dtype == "fp16" or name == "token_embd.weight":
        return {name: values.astype(np.float16)}
    q, scales = quant.quantise(values, quant.scheme(dtype))
    return {name: q, f"{name}.scale": scales}


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Array], version: int = 3) -> Path:
    """A file of these keys and tensors, with the checksums that belong to them. A key that is None is left out."""
    writer = gguf.GGUFWriter(path, "rksim")
    writer.data_alignment = ALIGNMENT
    known = {"general.alignment": ALIGNMENT, "rksim.version": version, "rksim.header_crc32": 0}
    for key, value in {**known, **metadata}.items():
        if value is not None:
            _add(writer, key, value)
    crcs = [zlib.crc32(np.ascontiguousarray(values).tobytes()) for values in tensors.values()]
    sums = np.array(crcs, "<u4")
    sums = np.append(sums, np.array([zlib.crc32(sums.tobytes())], "<u4"))
    for name, values in {**tensors, "rksim.tensor_crc32": sums.view("<i4")}.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = bytearray(path.read_bytes())
    at = data.index(b"rksim.header_crc32") + len("rksim.header_crc32") + 4
    data[at : at + 4] = zlib.crc32(data[: header_bytes(path, tensors)]).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def header_bytes(path: Path, tensors: Mapping[str, Array]) -> int:
    """How much of a file precedes the data of ``tensors``, behind which stand their checksums."""
    sizes = [*(values.nbytes for values in tensors.values()), 4 * (len(tensors) + 1)]
    return path.stat().st_size - sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """With the type that docs/sim-gguf.md gives such a value; another one as ``(value, type)``."""
    kinds = gguf.GGUFValueType
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], kinds):
        writer.add_key_value(key, value[0], value[1])
    elif isinstance(value, tuple):
        writer.add_key_value(key, list(value), kinds.ARRAY, sub_type=kinds.UINT32)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        kind = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}[type(value)]
        if key == "general.architecture":
            writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, kind)
