"""A tensor of the source as it is to be stored, a block of rows at a time: read, adapters merged, its change made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rkconvert.adapters.lora import Lora, Pair
from rkconvert.rotation.change import Change
from rkconvert.sources.base import Source, SourceTensor

from .block import Block
from .reading import OpenFile, Piece, block_rows, tensor_pieces

Merges = Sequence[tuple[Pair, float]]


class BlockJob(NamedTuple):
    """A block that is not made yet: ``make`` may be called on any thread. ``nbytes`` of the source go into it."""

    nbytes: int
    make: Callable[[], Block]


def block_jobs(source: Source, name: str, file: OpenFile, merged: Sequence[Lora] = ()) -> Iterator[BlockJob]:
    """The tensor ``name`` (canonical), whose bytes ``file`` holds, from its first row to its last.

    Where a change mixes its rows, all of it is computed when the first block is asked for, on the caller's thread, with
    a float64 number for each weight, one tensor at a time.
    """
    tensor, change = source.tensors[name], source.changes.get(name)
    merges = [(lora.pairs[name], lora.option.scale) for lora in merged if name in lora.pairs]
    if change is not None and needs_whole(tensor, change):
        yield from _whole(tensor, file, merges, change)
        return
    for row, piece in tensor_pieces(tensor, file):
        yield BlockJob(piece.size, functools.partial(_rows, tensor, row, piece, merges, change))


def needs_whole(tensor: SourceTensor, change: Change) -> bool:
    """Whether ``change`` cannot be made a block at a time."""
    return change.rows is not None or len(tensor.shape) == 1


def _rows(tensor: SourceTensor, row: int, piece: Piece, merges: Merges, change: Change | None) -> Block:
    block = Block.decoded(tensor, row, piece.read())
    if merges:
        block.merge(merges)
    if change is not None:
        block.change(change)
    return block


def _whole(tensor: SourceTensor, file: OpenFile, merges: Merges, change: Change) -> Iterator[BlockJob]:
    values = np.empty((tensor.rows, tensor.columns))
    for row, piece in tensor_pieces(tensor, file):
        rows = _rows(tensor, row, piece, merges, None).as_float32()
        values[row : row + len(rows)] = rows
    change.of_whole(values if len(tensor.shape) == 2 else values.reshape(-1))
    step = block_rows(tensor)
    for row in range(0, len(values), step):
        block = Block(tensor, row, values[row : row + step].astype(np.float32), "F32")
        yield BlockJob(tensor.nbytes * len(block.values) // len(values), functools.partial(_made, block))


def _made(block: Block) -> Block:
    return block
