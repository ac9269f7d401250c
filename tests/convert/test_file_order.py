"""Rows of an artifact's tensors, which come in any order, and the order in which its file has them."""

from __future__ import annotations

import zlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rk3588 import quant
from rkconvert.architectures import config_json
from rkconvert.artifact.file_order import FileOrder
from rkconvert.artifact.layout import make_artifact
from tests import models


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
