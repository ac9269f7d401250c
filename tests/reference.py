"""docs/numerics.md in NumPy: the same float32 operations in the same order, so that results compare for equality.

Vectorised over tokens, rows and heads, never along a sum. Everything between the layers is float32 (tokens, width).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
F = np.float32
LANES = 16
TILE = 64  # tokens that share an activation scale with `tile64`
MIN_NORMAL = F(2.0**-126)


def _fold(lanes: Floats) -> Floats:
    """Lane l += lane l + 8, then + 4, + 2, + 1."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def lane_sum(p: Floats) -> Floats:
    """sum(p) along the last axis."""
    lanes = np.zeros((*p.shape[:-1], LANES), F)
    for start in range(0, p.shape[-1], LANES):
        part = p[..., start : start + LANES]
        lanes[..., : part.shape[-1]] += part
    return _fold(lanes)


def dot(a: Floats, b: Floats) -> Floats:
    """dot(a, b) along the last axis; the others broadcast."""
    lanes = np.zeros((*np.broadcast_shapes(a.shape[:-1], b.shape[:-1]), LANES), F)
    for start in range(0, a.shape[-1], LANES):
        part = a[..., start : start + LANES] * b[..., start : start + LANES]
        lanes[..., : part.shape[-1]] += part
    return _fold(lanes)


def exp(x: Floats) -> Floats:
    x = np.minimum(np.maximum(x, F(-87.33654)), F(88.02969))
    n: Floats = np.rint(x * F(1.44269504))
    r = x - n * F(0.693359375)
    r = r - n * F(-2.12194440e-4)
    p: Floats = np.full_like(x, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + F(c)
    p = p * (r * r) + r + F(1)
    power: Floats = ((n.astype(np.int32) + 127) << 23).view(F)
    return p * power


def rms_norm(x: Floats, gain: Floats, eps: np.float32) -> Floats:
    r: Floats = F(1) / np.sqrt(dot(x, x) / F(x.shape[-1]) + eps)
    return (x * r[..., None]) * gain


def swiglu(gate: Floats, up: Floats) -> Floats:
    below: Floats = F(1) + exp(-gate)
    return (gate / below) * up


def accumulate(w: npt.NDArray[np.int8], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Exact sums of int8 (rows, K) by int8 (tokens, K): (tokens, rows)."""
    total = np.zeros((len(x), len(w)), np.int64)
    for start in range(0, w.shape[1], 1024):  # 1024 * 127 * 127 < 2**24: float32 holds it in whatever order
        part = slice(start, start + 1024)
        total += (x[:, part].astype(F) @ w[:, part].astype(F).T).astype(np.int64)
    return total


def quantise_activations(x: Floats, step: int, act_scale: str) -> tuple[npt.NDArray[np.int8], Floats]:
    """int8 (tokens, K) and scales (tokens, 1), or (tokens, groups of ``step`` inputs) with ``group``."""
    k = x.shape[1]
    width = step if act_scale == "group" else k
    a = np.stack([np.abs(x[:, start : start + width]).max(axis=1) for start in range(0, k, width)], axis=1)
    if act_scale == "tile64":
        a = np.concatenate([np.full_like(a[t : t + TILE], a[t : t + TILE].max()) for t in range(0, len(a), TILE)])
    scale = a / F(127)
    normal = scale >= MIN_NORMAL
    inverse = np.where(normal, F(127) / np.where(normal, a, F(1)), F(0))
    q = np.rint(x * np.repeat(inverse, width, axis=1)[:, :k]).astype(np.int8)
    return q, np.where(normal, scale, F(0))


@dataclass(frozen=True)
class Weight:
    """N rows of K: int8 with scales (N, groups), or fp16 or fp32 without."""

    data: npt.NDArray[Any]
    scales: Floats | None = None
    group_size: int = 0

    def apply(self, x: Floats, act_scale: str = "token") -> Floats:
        """The linear layer on float32 (tokens, K): (tokens, N)."""
        if self.scales is None:
            rows = range(0, len(self.data), 4096)
            return np.concatenate([dot(x[:, None], self.data[None, n : n + 4096].astype(F)) for n in rows], axis=1)
        k = x.shape[1]
        step = self.group_size or k
        q, scale_x = quantise_activations(x, step, act_scale)
        by_group = scale_x.shape[1] > 1
        s: Floats | None = None
        for g, start in enumerate(range(0, k, step)):
            part = slice(start, start + step)
            term = self.scales[:, g] * accumulate(self.data[:, part], q[:, part]).astype(F)
            if by_group:
                term = term * scale_x[:, g, None]
            s = term if s is None else s + term
        assert s is not None
        return s if by_group else s * scale_x


class Reference:
    """A model.sim.gguf of any dtype, evaluated in NumPy."""

    def __init__(self, path: Path, act_scale: str = "token") -> None:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        self.act_scale = act_scale
        self.tensors: dict[str, npt.NDArray[Any]] = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
        self.lora: dict[str, tuple[Floats, Floats, np.float32]] = {}  # A, B and scale by layer

        def value(key: str) -> Any:
            return reader.fields[key].contents()

        self.dtype = str(value("rksim.dtype"))
        self.group_size = int(value("rksim.group_size"))
        self.layers = int(value("llama.block_count"))
        self.heads = int(value("llama.attention.head_count"))
        self.kv_heads = int(value("llama.attention.head_count_kv"))
        self.head_dim = int(value("llama.attention.key_length"))
        self.eps = F(value("llama.attention.layer_norm_rms_epsilon"))
        factors = self.tensors.get("rope_freqs.weight", np.ones(self.head_dim // 2, F))
        base = float(value("llama.rope.freq_base"))
        # math, not NumPy: pow, cos and sin are then the C library's, as in the engine.
        self.frequencies = [math.pow(base, -2.0 * i / self.head_dim) / float(f) for i, f in enumerate(factors)]

    def weight(self, name: str) -> Weight:
        return Weight(self.tensors[name], self.tensors.get(f"{name}.scale"), self.group_size)

    def linear(self, name: str, x: Floats) -> Floats:
        y = self.weight(name).apply(x, self.act_scale)
        if name not in self.lora:
            return y
        a, b, scale = self.lora[name]
        changed: Floats = y + scale * dot(dot(x[:, None], a[None])[:, None], b[None])
        return changed

    def use_lora(self, path: Path, scale: float) -> None:
        """Compute with a GGUF adapter, whose rows of Q and K llama.cpp interleaves."""
        from gguf import GGUFReader

        reader = GGUFReader(path)
        alpha = F(reader.fields["adapter.lora.alpha"].contents())
        tensors = {tensor.name: np.asarray(tensor.data).astype(F) for tensor in reader.tensors}
        for name in [name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")]:
            a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
            if name.endswith(("attn_q.weight", "attn_k.weight")):
                heads = b.reshape(-1, self.head_dim // 2, 2, len(a))
                b = np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(b.shape)
            self.lora[name] = (a, b, F(scale) * (alpha / F(len(a))))

    def embed(self, ids: list[int]) -> Floats:
        rows: Floats = self.tensors["token_embd.weight"][ids].astype(F)
        return rows

    def layer(self, index: int, x: Floats) -> Floats:
        """Block ``index`` on float32 (tokens, hidden) at positions 0 to tokens - 1."""
        b = f"blk.{index}."
        normed = rms_norm(x, self.tensors[f"{b}attn_norm.weight"], self.eps)
        q, k, v = (self._heads(self.linear(f"{b}attn_{name}.weight", normed)) for name in "qkv")
        mixed = self._attention(self._rope(q), self._cached(self._rope(k)), self._cached(v))
        x = x + self.linear(f"{b}attn_output.weight", mixed)
        normed = rms_norm(x, self.tensors[f"{b}ffn_norm.weight"], self.eps)
        gate, up = (self.linear(f"{b}ffn_{name}.weight", normed) for name in ("gate", "up"))
        return x + self.linear(f"{b}ffn_down.weight", swiglu(gate, up))

    def logits(self, ids: list[int]) -> Floats:
        """Logits of every position: (tokens, vocabulary)."""
        x = self.embed(ids)
        for index in range(self.layers):
            x = self.layer(index, x)
        head = "output.weight" if "output.weight" in self.tensors else "token_embd.weight"
        return self.linear(head, rms_norm(x, self.tensors["output_norm.weight"], self.eps))

    def _heads(self, x: Floats) -> Floats:
        """(tokens, heads * head_dim) to (heads, tokens, head_dim)."""
        heads: Floats = x.reshape(len(x), -1, self.head_dim).swapaxes(0, 1)
        return heads

    def _rope(self, x: Floats) -> Floats:
        angles = [[t * f for f in self.frequencies] for t in range(x.shape[1])]
        cos, sin = (np.array([[f(a) for a in row] for row in angles], F) for f in (math.cos, math.sin))
        half = self.head_dim // 2
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def _cached(self, x: Floats) -> Floats:
        return x if self.dtype == "fp32" else x.astype(np.float16).astype(F)

    def _attention(self, q: Floats, k: Floats, v: Floats) -> Floats:
        """Causal, (heads, tokens, head_dim) each, several heads of q to one of k and v: (tokens, heads * head_dim)."""
        shared = self.heads // self.kv_heads
        k, v = np.repeat(k, shared, axis=0), np.repeat(v, shared, axis=0)
        tokens = q.shape[1]
        seen = np.tri(tokens, dtype=bool)
        scores = dot(q[:, :, None], k[:, None]) * (F(1) / np.sqrt(F(self.head_dim)))
        most = np.where(seen, scores, F(-np.inf)).max(axis=2, keepdims=True)
        # What a token does not see adds nothing: zeros change no sum.
        e = np.where(seen, exp(np.where(seen, scores - most, F(0))), F(0))
        out = np.zeros_like(q)
        for t in range(tokens):
            out[:, t:] += e[:, t:, t, None] * v[:, t, None]
        out = out * (F(1) / lane_sum(e))[..., None]
        joined: Floats = out.swapaxes(0, 1).reshape(tokens, -1)
        return joined
