"""Which tensor of a model gets what, so that it computes the same in another basis: after QuaRot (arXiv:2404.00456) and
SpinQuant (arXiv:2405.16406).

R1 turns the residual stream, x → x · R1. RMSNorm leaves lengths alone and so commutes with it, once its gains are in
the layers that read from it: these become W · diag(gains) · R1, those that write to it R1ᵀ · W, the embedding E · R1.
Embedding and head are no longer the same matrix then. R2 turns the values of each head, between V and O. Neither is
there when the model runs: all of it is in the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rk3588.errors import CheckpointError, UsageError
from rkconvert.adapters.lora import Lora, Pair
from rkconvert.architectures.model import EMBEDDING, OUTPUT, ModelConfig
from rkconvert.artifact.block import Block
from rkconvert.artifact.reading import blocks
from rkconvert.sources.base import Source

from . import hadamard
from .change import Change
from .options import DIGITS, Rotate
from .orthogonal import Matrix, Orthogonal

# By the norm whose output a layer reads.
_READERS = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "ffn_norm": ("ffn_gate", "ffn_up")}
WRITERS = ("attn_output", "ffn_down")


@dataclass(frozen=True)
class Rotation:
    """The matrices: ``residual`` is R1, (hidden, hidden); ``heads`` are R2, (head_dim, head_dim), one for all heads of
    a layer. What is left out is not turned."""

    residual: Orthogonal | None = None
    heads: tuple[Orthogonal, ...] = ()

    @property
    def digest(self) -> str:
        """Tells one from others."""
        found = hashlib.sha256()
        for matrix in (*([self.residual] if self.residual else []), *self.heads):
            for part in (*matrix.factors, *([] if matrix.signs is None else [matrix.signs])):
                found.update(repr(part.shape).encode() + part.astype("<f8").tobytes())
        return found.hexdigest()[:DIGITS]


def obstacle(config: ModelConfig) -> str | None:
    """Why a model cannot be rotated; None: it can."""
    if config.layer_norm:
        return "its LayerNorm subtracts a mean, which no rotation leaves alone"
    if config.post_norms:
        return "it has norms between its layers and the residual stream, whose gains no rotation leaves alone"
    if config.rotation:
        return f"it is rotated already ({config.rotation})"
    return next(filter(None, map(hadamard.obstacle, (config.hidden, config.head_dim))), None)


def refuse(source: Source) -> None:
    """UsageError for a model that cannot be rotated."""
    if reason := obstacle(source.config):
        told = f"--rotate: {source.path} ({source.family.title}) cannot be rotated"
        raise UsageError(f"{told}: {reason}; convert it without")


def outlined(source: Source, facts: Mapping[str, Any]) -> Source:
    """``source`` as it will be, but for what becomes of its tensors: embedding and head are two matrices."""
    config = replace(source.config, tied=False, rotation=facts["basis"])
    tensors = dict(source.tensors)
    tensors.setdefault(OUTPUT, tensors[EMBEDDING])
    return replace(
        source,
        config=config,
        tensors={name: tensors[name] for name in config.tensors()},
        shape=replace(source.shape, tied=False) if source.shape else None,
        rotation=facts,
    )


def rotated(source: Source, rotation: Rotation, rotate: Rotate) -> Source:
    """``source`` as it is to be stored: with a ``Change`` for each tensor that ``rotation`` turns."""
    _check_sizes(source, rotation)
    found = outlined(source, rotate.facts(rotation.digest))
    return replace(found, changes=_changes(found, rotation))


def _changes(source: Source, rotation: Rotation) -> dict[str, Change]:
    residual, found = rotation.residual, dict[str, Change]()
    if residual is not None:
        found[EMBEDDING] = Change(columns=residual)
        found[OUTPUT] = Change(scale=_gains(source, "output_norm"), columns=residual)
        found["output_norm.weight"] = Change(constant=1.0)
    for i in range(source.config.layers):
        if residual is not None:
            found |= _of_residual(source, f"blk.{i}.", residual)
        if rotation.heads:
            _turn_heads(found, f"blk.{i}.", rotation.heads[i])
    names = source.config.tensors()
    return {name: change for name, change in found.items() if name in names}


def _of_residual(source: Source, block: str, residual: Orthogonal) -> dict[str, Change]:
    found: dict[str, Change] = {}
    for norm, readers in _READERS.items():
        gains = _gains(source, f"{block}{norm}")
        found |= {f"{block}{kind}.weight": Change(scale=gains, columns=residual) for kind in readers}
        found[f"{block}{norm}.weight"] = Change(constant=1.0)
    for kind in WRITERS:
        found |= {f"{block}{kind}.{part}": Change(rows=residual) for part in ("weight", "bias")}
    return found


def _turn_heads(found: dict[str, Change], block: str, heads: Orthogonal) -> None:
    for name in (f"{block}attn_v.weight", f"{block}attn_v.bias"):
        found[name] = replace(found.get(name, Change()), rows=heads)
    output = f"{block}attn_output.weight"
    found[output] = replace(found.get(output, Change()), columns=heads)


def _gains(source: Source, norm: str) -> Matrix:
    tensor = source.tensors[f"{norm}.weight"]
    values = [Block.decoded(tensor, row, raw).as_float32() for row, raw in blocks(tensor)]
    return np.concatenate(values, axis=None).astype(np.float64)


def rotated_lora(lora: Lora, changes: Mapping[str, Change]) -> Lora:
    """An adapter for the changed model: what it adds is changed as the weights are."""
    return replace(lora, pairs={name: _rotated_pair(pair, changes.get(name)) for name, pair in lora.pairs.items()})


def _rotated_pair(pair: Pair, change: Change | None) -> Pair:
    if change is None:
        return pair
    a, b = pair.a.astype(np.float64), pair.b.astype(np.float64)
    replace(change, rows=None, row_scale=None).of_whole(a)
    Change(rows=change.rows, row_scale=change.row_scale).of_whole(b)
    return replace(pair, a=a.astype(np.float32), b=b.astype(np.float32))


def _check_sizes(source: Source, rotation: Rotation) -> None:
    """CheckpointError for matrices of another model."""
    config = source.config
    sizes = {m.size for m in rotation.heads}
    fits = rotation.residual is None or rotation.residual.size == config.hidden
    if not fits or (rotation.heads and (len(rotation.heads) != config.layers or sizes != {config.head_dim})):
        raise CheckpointError(f"the rotation is not of a model of the sizes of {source.path}")
