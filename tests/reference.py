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


def layer_norm(x: Floats, gain: Floats, bias: Floats | None, eps: np.float32) -> Floats:
    d = x - (lane_sum(x) / F(x.shape[-1]))[..., None]
    y = rms_norm(d, gain, eps)
    return y if bias is None else y + bias


def silu(x: Floats) -> Floats:
    below: Floats = F(1) + exp(-x)
    return x / below


def gelu_tanh(x: Floats) -> Floats:
    u = F(0.79788456) * (x + F(0.044715) * (x * (x * x)))
    below: Floats = F(1) + exp(u * F(-2))
    return x / below


def soft_cap(x: Floats, cap: np.float32) -> Floats:
    z = x / cap
    capped: Floats = (F(2) / (F(1) + exp(z * F(-2))) - F(1)) * cap
    return capped


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
    parts = [np.abs(x[:, start : start + width]) for start in range(0, k, width)]
    a = np.stack([np.fmax.reduce(part, axis=1, initial=F(0)) for part in parts], axis=1)  # of those that are numbers
    if act_scale == "tile64":
        a = np.concatenate([np.full_like(a[t : t + TILE], a[t : t + TILE].max()) for t in range(0, len(a), TILE)])
    scale = a / F(127)
    normal = scale >= MIN_NORMAL
    inverse = np.where(normal, F(127) / np.where(normal, a, F(1)), F(0))
    whole = np.rint(x * np.repeat(inverse, width, axis=1)[:, :k])
    return np.where(np.isnan(whole), F(0), whole).astype(np.int8), np.where(normal, scale, F(0))


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
    """A model.sim.gguf of any version, dtype and features, evaluated in NumPy.

    ``context`` is how many positions there may be: LongRoPE's factors are chosen by it. 0: as many as are evaluated.
    """

    def __init__(self, path: Path, act_scale: str = "token", context: int = 0) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        self.act_scale, self.context = act_scale, context
        self.tensors: dict[str, npt.NDArray[Any]] = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
        self.lora: dict[str, tuple[Floats, Floats, np.float32]] = {}  # A, B and scale by layer

        fields = reader.fields
        prefix = f"{fields['general.architecture'].contents()}."

        def value(key: str, absent: Any = None) -> Any:
            if prefix + key not in fields and absent is not None:
                return absent
            return fields[prefix + key].contents()

        self.dtype = str(fields["rksim.dtype"].contents())
        self.group_size = int(fields["rksim.group_size"].contents())
        self.layers = int(value("block_count"))
        self.heads = int(value("attention.head_count"))
        self.kv_heads = int(value("attention.head_count_kv"))
        self.head_dim = int(value("attention.key_length"))
        self.layer_norms = f"{prefix}attention.layer_norm_epsilon" in fields
        self.eps = F(value(f"attention.layer_norm_{'' if self.layer_norms else 'rms_'}epsilon"))
        self.interleaved = bool(value("adapters_interleaved", prefix == "llama."))
        self.parallel = bool(value("use_parallel_residual", False))
        self.activation = {"silu": silu, "gelu_tanh": gelu_tanh}[value("activation", "silu")]
        self.attention_scale = F(value("attention.scale", F(1) / np.sqrt(F(self.head_dim))))
        self.attention_cap = F(value("attn_logit_softcapping", 0.0))
        self.logit_cap = F(value("final_logit_softcapping", 0.0))
        self.embedding_scale = F(value("embedding_scale", 1.0))
        self.residual_scale = F(value("residual_scale", 1.0))
        self.logit_scale = F(value("logit_scale", 1.0))
        self.temperature_scale = F(value("attention.temperature_scale", 0.0))
        self.temperature_length = int(value("attention.temperature_length", 1))
        self.windows = value("attention.sliding_window", [0] * self.layers)
        self.turn_dims = int(value("rope.dimension_count"))
        self.attention_factor = float(F(value("rope.scaling.attn_factor", 1.0)))
        self.rope_layers = value("rope.layers", [1] * self.layers)
        self.short_context = int(value("rope.scaling.original_context_length", 0))
        self.bases = (float(value("rope.freq_base")), float(value("rope.freq_base_local", 1.0)))

    def _frequencies(self, index: int, tokens: int) -> list[float]:
        """Of block ``index``; none where it does not turn."""
        table = self.rope_layers[index]
        if table == 0:
            return []
        wide = table == 1 and "rope_factors_long.weight" in self.tensors
        wide = wide and (self.context or tokens) > self.short_context
        name = {(1, False): "rope_freqs.weight", (1, True): "rope_factors_long.weight"}.get((table, wide), "")
        factors = self.tensors.get(name, np.ones(self.turn_dims // 2, F))
        # math, not NumPy: pow, cos and sin are then the C library's, as in the engine.
        base = self.bases[table - 1]
        return [math.pow(base, -2.0 * i / self.turn_dims) / float(f) for i, f in enumerate(factors)]

    def weight(self, name: str) -> Weight:
        scales = self.tensors.get(f"{name}.scale")
        whole_rows = scales is not None and scales.shape[1] == 1  # as some layers of a hybrid have them
        return Weight(self.tensors[name], scales, 0 if whole_rows else self.group_size)

    def linear(self, name: str, x: Floats) -> Floats:
        y = self.weight(name).apply(x, self.act_scale)
        if (bias := self.tensors.get(name.removesuffix("weight") + "bias")) is not None:
            y = y + bias
        if name not in self.lora:
            return y
        a, b, scale = self.lora[name]
        changed: Floats = y + scale * dot(dot(x[:, None], a[None])[:, None], b[None])
        return changed

    def use_lora(self, path: Path, scale: float) -> None:
        """Compute with a GGUF adapter, whose rows of Q and K llama.cpp interleaves in some families."""
        from gguf import GGUFReader

        reader = GGUFReader(path)
        alpha = F(reader.fields["adapter.lora.alpha"].contents())
        tensors = {tensor.name: np.asarray(tensor.data).astype(F) for tensor in reader.tensors}
        for name in [name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")]:
            a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
            if self.interleaved and name.endswith(("attn_q.weight", "attn_k.weight")):
                heads = b.reshape(-1, self.head_dim // 2, 2, len(a))
                b = np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(b.shape)
            self.lora[name] = (a, b, F(scale) * (alpha / F(len(a))))

    def embed(self, ids: list[int]) -> Floats:
        rows: Floats = self.tensors["token_embd.weight"][ids].astype(F)
        return rows if self.embedding_scale == 1 else rows * self.embedding_scale

    def norm(self, name: str, x: Floats) -> Floats:
        """What the norm called ``name`` makes of the last axis; a model without it leaves it as it is."""
        gain, bias = self.tensors.get(f"{name}.weight"), self.tensors.get(f"{name}.bias")
        if gain is None:
            return x
        return layer_norm(x, gain, bias, self.eps) if self.layer_norms else rms_norm(x, gain, self.eps)

    def layer(self, index: int, x: Floats) -> Floats:
        """Block ``index`` on float32 (tokens, hidden) at positions 0 to tokens - 1."""
        b = f"blk.{index}."
        normed = self.norm(f"{b}attn_norm", x)
        q, k, v = (self._heads(self.linear(f"{b}attn_{name}.weight", normed)) for name in "qkv")
        q, k = self._grown(self._turned(index, "q", q)), self._turned(index, "k", k)
        mixed = self._attention(q, self._cached(k), self._cached(v), self.windows[index])
        x = self._added(x, f"{b}post_attention_norm", self.linear(f"{b}attn_output.weight", mixed))
        up_input = normed if self.parallel else self.norm(f"{b}ffn_norm", x)
        up = self.linear(f"{b}ffn_up.weight", up_input)
        if f"{b}ffn_gate.weight" in self.tensors:
            active = self.activation(self.linear(f"{b}ffn_gate.weight", up_input)) * up
        else:
            active = self.activation(up)
        return self._added(x, f"{b}post_ffw_norm", self.linear(f"{b}ffn_down.weight", active))

    def hidden(self, x: Floats) -> Floats:
        """From the input of the first block to behind the output norm."""
        for index in range(self.layers):
            x = self.layer(index, x)
        return self.norm("output_norm", x)

    def logits(self, ids: list[int]) -> Floats:
        """Logits of every position: (tokens, vocabulary)."""
        return self.head(self.hidden(self.embed(ids)))

    def head(self, normed: Floats) -> Floats:
        """Logits of hidden states behind the output norm."""
        y = self.linear("output.weight" if "output.weight" in self.tensors else "token_embd.weight", normed)
        if self.logit_scale != 1:
            y = y * self.logit_scale
        return soft_cap(y, self.logit_cap) if self.logit_cap else y

    def _added(self, x: Floats, norm: str, delta: Floats) -> Floats:
        """``x`` and what attention or the MLP adds to it."""
        delta = self.norm(norm, delta)
        return x + (delta if self.residual_scale == 1 else delta * self.residual_scale)

    def _heads(self, x: Floats) -> Floats:
        """(tokens, heads * head_dim) to (heads, tokens, head_dim)."""
        heads: Floats = x.reshape(len(x), -1, self.head_dim).swapaxes(0, 1)
        return heads

    def _turned(self, index: int, kind: str, x: Floats) -> Floats:
        """The norm of each head, and RoPE on its beginning."""
        x = self.norm(f"blk.{index}.attn_{kind}_norm", x)
        frequencies = self._frequencies(index, x.shape[1])
        if not frequencies:
            return x
        angles = [[t * f for f in frequencies] for t in range(x.shape[1])]
        cos, sin = (
            np.array([[f(a) * self.attention_factor for a in row] for row in angles], F) for f in (math.cos, math.sin)
        )
        half = self.turn_dims // 2
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)

    def _grown(self, q: Floats) -> Floats:
        """Queries, larger the further on they stand."""
        if not self.temperature_scale:
            return q
        steps = [t // self.temperature_length for t in range(q.shape[1])]
        factors = np.array([1 + float(self.temperature_scale) * math.log1p(n) for n in steps], F)
        return q * factors[:, None]

    def _cached(self, x: Floats) -> Floats:
        return x if self.dtype == "fp32" else x.astype(np.float16).astype(F)

    def _attention(self, q: Floats, k: Floats, v: Floats, window: int) -> Floats:
        """Causal, (heads, tokens, head_dim) each, several heads of q to one of k and v: (tokens, heads * head_dim)."""
        shared = self.heads // self.kv_heads
        k, v = np.repeat(k, shared, axis=0), np.repeat(v, shared, axis=0)
        tokens = q.shape[1]
        window = min(window or tokens, tokens)
        seen = np.tri(tokens, dtype=bool) & ~np.tri(tokens, k=-window, dtype=bool)
        scores = dot(q[:, :, None], k[:, None]) * self.attention_scale
        if self.attention_cap:
            scores = soft_cap(scores, self.attention_cap)
        most = np.where(seen, scores, F(-np.inf)).max(axis=2, keepdims=True)
        # What a token does not see adds nothing: zeros change no sum.
        e = np.where(seen, exp(np.where(seen, scores - most, F(0))), F(0))
        out = np.zeros_like(q)
        for t in range(tokens):
            out[:, t:] += np.where(seen[t:, t, None], e[:, t:, t, None] * v[:, t, None], F(0))
        # The first of the sixteen lanes is that of the oldest position in the window.
        for t in range(window, tokens):
            e[:, t] = np.roll(e[:, t], window - 1 - t, axis=-1)
        out = out * (F(1) / lane_sum(e))[..., None]
        joined: Floats = out.swapaxes(0, 1).reshape(tokens, -1)
        return joined
