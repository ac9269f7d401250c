"""What the benches measure with."""

from __future__ import annotations

import pytest

from tests.bench.twin_vs_llama import memory_speed


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_read_by_so_many_threads(threads: int) -> None:
    """Its program ends with 1 where its threads have not read every number."""
    assert 1e8 < memory_speed(threads, 1 << 24, 3) < 1e13
