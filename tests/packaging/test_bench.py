"""What the benches measure with."""

from __future__ import annotations

import pytest

from tests.bench import roofline
from tests.bench.twin_vs_llama import int8_speed, memory_speed


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_read_by_so_many_threads(threads: int) -> None:
    """Its program ends with 1 where its threads have not read every number."""
    assert 1e8 < memory_speed(threads, 1 << 24, 3) < 1e13


def test_an_instruction_is_counted_or_not_there() -> None:
    speed = int8_speed(0.01)
    assert speed == 0 or 1e10 < speed < 1e14


def test_a_share_of_the_roof_is_that_of_the_lower_one() -> None:
    """Two operations a byte in decode, of memory that reads 100 bytes a second; a prompt is under the other roof."""
    row = {
        "model": "m", "engine": "e", "threads": 1, "bytes": 10, "prompt": 8, "memory_bytes_s": 100,
        "int8_operations_s": 1000, "decode_operations": 20, "decode_tok_s": 5.0,
        "prefill_operations": 16, "prefill_tok_s": 25.0,
    }  # fmt: skip
    assert roofline.points(row) == {"decode": (2, 100), "prefill": (12.8, 400)}
    assert roofline.shares([row]).splitlines()[1].split() == ["m", "1", "e", "50%", "40%"]
