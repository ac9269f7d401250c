"""A model in float32 NumPy on calibration texts, a block at a time, for what its layers read: largest activations,
samples. One layer's weights are in memory at once, so it takes whatever model can be converted.

What docs/numerics.md has, with sums in NumPy's order: good for statistics, not for comparing bits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rkconvert.adapters.lora import Lora
from rkconvert.architectures.model import EMBEDDING, LOCAL_ROPE, NO_ROPE, OUTPUT, ModelConfig
from rkconvert.artifact.blocks import block_jobs
from rkconvert.artifact.reading import opened
from rkconvert.sources.base import Source

Floats = npt.NDArray[np.float32]
Windows = Sequence[Sequence[int]]  # ids, each window from an empty context
F = np.float32


@dataclass(frozen=True)
class Read:
    """What some linear layers of a model read: ``x`` (tokens, K), of all windows one after another."""

    readers: tuple[str, ...]  # canonical names of their weights
    x: Floats
    weights: tuple[Floats, ...]  # (N, K) each


def run(
    source: Source,
    windows: Windows,
    merged: Sequence[Lora] = (),
    step: Callable[[int], None] = lambda _: None,
    *,
    head: bool = True,
) -> Iterator[Read]:
    """What the linear layers read, from the first block to the head. ``step`` is told the bytes of each tensor read."""
    return _Forward(source, windows, merged, step).run(head)


def stored(source: Source, name: str, merged: Sequence[Lora] = ()) -> Floats:
    """A tensor as it is to be stored: with adapters merged, and changed."""
    tensor = source.tensors[name]
    with opened(tensor.file) as file:
        blocks = [job.make().as_float32() for job in block_jobs(source, name, file, merged)]
    return np.concatenate(blocks, axis=None).reshape(tensor.shape)


class _Forward:
    def __init__(self, source: Source, windows: Windows, merged: Sequence[Lora], step: Callable[[int], None]) -> None:
        self.source, self.config, self.merged, self.step = source, source.config, merged, step
        self.names = source.config.tensors()
        ends = np.cumsum([len(ids) for ids in windows])
        self.windows = [slice(end - len(ids), end) for ids, end in zip(windows, ends, strict=True)]
        self.ids = np.concatenate([np.asarray(ids, np.int64) for ids in windows])
        self.positions = np.concatenate([np.arange(len(ids)) for ids in windows])
        self.longest = max(map(len, windows))
        self.attention_scale = self.config.attention_scale or self.config.head_dim**-0.5

    def run(self, with_head: bool) -> Iterator[Read]:
        x = self._embed()
        for index in range(self.config.layers):
            x = yield from self._block(index, x)
        if not with_head:
            return
        head = OUTPUT if OUTPUT in self.names else EMBEDDING
        yield Read((head,), self._norm("output_norm", x), (self._tensor(head),))

    def _block(self, index: int, x: Floats) -> Generator[Read, None, Floats]:
        b, config = f"blk.{index}.", self.config
        of_mlp = [f"{b}ffn_gate", f"{b}ffn_up"][not config.gated :]
        normed = self._norm(f"{b}attn_norm", x)
        beside = of_mlp if config.parallel else []
        q, k, v, *hidden = yield from self._linear(normed, f"{b}attn_q", f"{b}attn_k", f"{b}attn_v", *beside)
        (mixed,) = yield from self._linear(self._attention(index, q, k, v), f"{b}attn_output")
        x = self._added(x, f"{b}post_attention_norm", mixed)
        if not config.parallel:
            hidden = yield from self._linear(self._norm(f"{b}ffn_norm", x), *of_mlp)
        active = self._activation(hidden[0])
        if config.gated:
            active = active * hidden[1]
        (down,) = yield from self._linear(active, f"{b}ffn_down")
        return self._added(x, f"{b}post_ffw_norm", down)

    def _tensor(self, name: str) -> Floats:
        found = stored(self.source, name, self.merged)
        self.step(self.source.tensors[name].nbytes)
        return found

    def _embed(self) -> Floats:
        found = np.empty((len(self.ids), self.config.hidden), F)
        tensor, at = self.source.tensors[EMBEDDING], 0
        with opened(tensor.file) as file:
            for job in block_jobs(self.source, EMBEDDING, file, self.merged):
                rows = job.make().as_float32()
                here = (self.ids >= at) & (self.ids < at + len(rows))
                found[here] = rows[self.ids[here] - at]
                at += len(rows)
        self.step(tensor.nbytes)
        scaled: Floats = found * F(self.config.embedding_scale)
        return scaled

    def _linear(self, x: Floats, *names: str) -> Generator[Read, None, list[Floats]]:
        weights = [self._tensor(f"{name}.weight") for name in names]
        yield Read(tuple(f"{name}.weight" for name in names), x, tuple(weights))
        found = []
        for name, weight in zip(names, weights, strict=True):
            y = x @ weight.T
            found.append(y + self._tensor(f"{name}.bias") if f"{name}.bias" in self.names else y)
        return found

    def _norm(self, name: str, x: Floats) -> Floats:
        """Of the last axis; a model without that norm leaves it as it is."""
        if f"{name}.weight" not in self.names:
            return x
        if self.config.layer_norm:
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + F(self.config.norm_eps)) * self._tensor(f"{name}.weight")
        return x + self._tensor(f"{name}.bias") if self.config.layer_norm else x

    def _added(self, x: Floats, norm: str, delta: Floats) -> Floats:
        found: Floats = x + self._norm(norm, delta) * F(self.config.residual_scale)
        return found

    def _activation(self, x: Floats) -> Floats:
        if self.config.activation == "silu":
            return x * _logistic(x)
        return x * _logistic(F(2 * 0.79788456) * (x + F(0.044715) * x**3))

    def _attention(self, index: int, q: Floats, k: Floats, v: Floats) -> Floats:
        heads, kv_heads, size = self.config.heads, self.config.kv_heads, self.config.head_dim
        q, k = self._turned(index, "q", q), self._turned(index, "k", k)
        found = np.empty((len(q), heads * size), F)
        for window in self.windows:
            # Several heads of q share one of k and v.
            of_q = q[window].reshape(-1, kv_heads, heads // kv_heads, size).transpose(1, 2, 0, 3)
            of_k = k[window].reshape(-1, kv_heads, 1, size).transpose(1, 2, 0, 3)
            of_v = v[window].reshape(-1, kv_heads, 1, size).transpose(1, 2, 0, 3)
            mixed = self._weights(index, of_q @ of_k.swapaxes(-1, -2)) @ of_v
            found[window] = mixed.transpose(2, 0, 1, 3).reshape(-1, heads * size)
        return found

    def _weights(self, index: int, scores: Floats) -> Floats:
        """Softmax over what each token sees."""
        tokens, config = scores.shape[-1], self.config
        scores = scores * F(self.attention_scale)
        if cap := config.attention_soft_cap:
            scores = np.tanh(scores / F(cap)) * F(cap)
        seen = np.tri(tokens, dtype=bool)
        if config.windows and (window := config.windows[index]):
            seen &= ~np.tri(tokens, k=-window, dtype=bool)
        scores = np.where(seen, scores, F(-np.inf))
        e = np.exp(scores - scores.max(-1, keepdims=True))
        weights: Floats = e / e.sum(-1, keepdims=True)
        return weights

    def _turned(self, index: int, kind: str, x: Floats) -> Floats:
        """The norm of each head, and RoPE on its beginning."""
        config, rope = self.config, self.config.rope
        x = x.reshape(len(x), -1, config.head_dim)
        if config.head_norms:
            gain = self._tensor(f"blk.{index}.attn_{kind}_norm.weight")
            x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + F(config.norm_eps)) * gain
        frequencies = _frequencies(config, rope.layers[index] if rope.layers else 1, self.longest)
        if frequencies is None:
            return x
        angles = (self.positions[:, None] * frequencies)[:, None]
        factor = rope.scaling.attention_factor
        cos, sin = (np.cos(angles) * factor).astype(F), (np.sin(angles) * factor).astype(F)
        half = rope.dims // 2
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _frequencies(config: ModelConfig, table: int, context: int) -> npt.NDArray[np.float64] | None:
    """By which a layer turns; None: it does not."""
    if table == NO_ROPE:
        return None
    rope, scaling = config.rope, config.rope.scaling
    base = rope.local_theta if table == LOCAL_ROPE and rope.local_theta else rope.theta
    found: npt.NDArray[np.float64] = base ** (-2.0 * np.arange(rope.dims // 2) / rope.dims)
    is_long = bool(scaling.long_factors) and context > scaling.short_context
    factors = scaling.long_factors if is_long else scaling.factors
    return found / factors if factors and table != LOCAL_ROPE else found


def _logistic(x: Floats) -> Floats:
    found: Floats = F(1) / (F(1) + np.exp(-np.maximum(x, F(-80))))
    return found
