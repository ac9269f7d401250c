"""One description of a transformer: its sizes and features, whatever family it is of. docs/sim-gguf.md has the keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rk3588.shape import Shape

# Canonical names are llama.cpp's, which the artifact uses too.
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
ROPE_FACTORS = "rope_freqs.weight"
ROPE_SHORT_FACTORS, ROPE_LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
_TOP_EXTRAS = ("output_norm.bias", "output.bias")
NO_ROPE, BASE_ROPE, LOCAL_ROPE = 0, 1, 2  # which frequencies a layer turns by, as the artifact numbers them


@dataclass(frozen=True)
class RopeScaling:
    """What divides RoPE's inverse frequencies, a factor for each of them; ``long_factors`` are instead of ``factors``
    where the context is above ``short_context`` positions. Cosines and sines are multiplied by ``attention_factor``."""

    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    short_context: int = 0
    attention_factor: float = 1.0


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the first ``dims`` of each head turn, by halves."""

    dims: int
    theta: float = 10000.0
    local_theta: float | None = None  # the base of layers that are LOCAL_ROPE
    layers: tuple[int, ...] = ()  # of each layer: NO_ROPE, BASE_ROPE, LOCAL_ROPE; empty: BASE_ROPE for all
    scaling: RopeScaling = field(default_factory=RopeScaling)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and features of a model. What is left at its default is what a Llama does.

    ``biases`` are the kinds of linear layers that have one: ``attn_q``, …, ``output``. Scales multiply, soft caps
    squash by ``cap * tanh(x / cap)``, a window is the number of positions a token sees, itself included.
    """

    family: str  # llama.cpp's name of the architecture
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    tied: bool
    rope: Rope
    layer_norm: bool = False  # LayerNorm instead of RMSNorm; each has a bias
    head_norms: bool = False  # RMSNorm of each head of Q and K, before RoPE
    post_norms: bool = False  # a norm of what attention adds, and of what the MLP adds
    parallel: bool = False  # attention and MLP side by side, from one norm
    gated: bool = True
    activation: str = "silu"  # or gelu_tanh
    biases: frozenset[str] = frozenset()
    attention_scale: float | None = None  # None: 1 / sqrt(head_dim)
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    windows: tuple[int, ...] = ()  # of each layer, 0: all positions; empty: all for all
    rotation: str = ""  # the basis of its residual stream, as an id; "": that of its authors
    adapters_interleaved: bool = True  # llama.cpp keeps the rows of Q and K of this family's adapters interleaved

    def shape(self, name: str) -> Shape:
        """What predictions need to know of it."""
        return Shape(
            name=name,
            layers=self.layers,
            hidden=self.hidden,
            intermediate=self.intermediate,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab=self.vocab_size,
            tied=self.tied,
            context=self.context_length,
            extras=sum(shape[0] for name, shape in self._layer("").items() if len(shape) == 1),
            family=self.family,
            gated=self.gated,
            top_extras=sum(shape[0] for name, shape in self.tensors().items() if name in _TOP_EXTRAS),
        )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor such a model has, by canonical name, with its shape: (N, K) or (N,)."""
        found: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, self.hidden)}
        for i in range(self.layers):
            found |= self._layer(f"blk.{i}.")
        found |= self._norm("output_norm")
        if not self.tied:
            found |= self._linear("output", self.vocab_size, self.hidden)
        return found

    def _layer(self, block: str) -> dict[str, tuple[int, ...]]:
        h, n, q, kv = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        found = self._norm(f"{block}attn_norm")
        for kind, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            found |= self._linear(f"{block}{kind}", rows, h)
        if self.head_norms:
            found |= {f"{block}{kind}_norm.weight": (self.head_dim,) for kind in ("attn_q", "attn_k")}
        found |= self._linear(f"{block}attn_output", h, q)
        if self.post_norms:
            found |= self._norm(f"{block}post_attention_norm")
        if not self.parallel:
            found |= self._norm(f"{block}ffn_norm")
        if self.gated:
            found |= self._linear(f"{block}ffn_gate", n, h)
        found |= self._linear(f"{block}ffn_up", n, h)
        found |= self._linear(f"{block}ffn_down", h, n)
        if self.post_norms:
            found |= self._norm(f"{block}post_ffw_norm")
        return found

    def _norm(self, name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{part}": (self.hidden,) for part in ("weight", "bias")[: 1 + self.layer_norm]}

    def _linear(self, name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, columns)}
        if name.rpartition(".")[2] in self.biases:
            found[f"{name}.bias"] = (rows,)
        return found

    def rope_tensors(self) -> dict[str, tuple[float, ...]]:
        """The artifact's tensors of RoPE factors, by name."""
        found = {ROPE_FACTORS: self.rope.scaling.factors, ROPE_LONG_FACTORS: self.rope.scaling.long_factors}
        return {name: values for name, values in found.items() if values}

    def heads_of(self, name: str) -> int:
        """How many heads the rows of a tensor are, where they turn with RoPE: those of Q and K, and their biases."""
        return {"attn_q": self.heads, "attn_k": self.kv_heads}.get(name.split(".")[-2], 0)

    def features(self) -> Mapping[str, Any]:
        """The artifact's keys under ``rksim.`` for what this model does otherwise than a Llama, with their values."""
        rope, scaling = self.rope, self.rope.scaling
        found: dict[str, Any] = {
            "use_parallel_residual": self.parallel or None,
            "activation": None if self.activation == "silu" else self.activation,
            "attention.scale": self.attention_scale,
            "attn_logit_softcapping": self.attention_soft_cap,
            "final_logit_softcapping": self.logit_soft_cap,
            "embedding_scale": _unless_one(self.embedding_scale),
            "residual_scale": _unless_one(self.residual_scale),
            "logit_scale": _unless_one(self.logit_scale),
            "attention.sliding_window": self.windows if any(self.windows) else None,
            "rope.freq_base_local": rope.local_theta,
            "rope.layers": rope.layers if set(rope.layers) - {BASE_ROPE} else None,
            "rope.scaling.attn_factor": _unless_one(scaling.attention_factor),
            "rope.scaling.original_context_length": scaling.short_context or None,
            "rotation": self.rotation or None,
            "adapters_interleaved": self.adapters_interleaved or None,
        }
        return {key: value for key, value in found.items() if value is not None}


def _unless_one(value: float) -> float | None:
    return None if value == 1 else value
