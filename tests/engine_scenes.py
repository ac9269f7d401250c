"""What tests of the daemon's engine share: what stands behind it, a question with its answer, and engines that run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rkruntime.daemon.engine import WorkerEngine
from tests.engines import Flavour, until

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module", params=["fake", "twin"])
def flavour(request: pytest.FixtureRequest, tiny_bundles: Mapping[str, Path], runtimes: Mapping[str, Path]) -> Flavour:
    """The fake worker, the simulated runtime of 1.1.1, and that of 1.3.1 where a test is for that, too."""
    libraries = {"twin": runtimes["1.1.1"], "twin-1.3.1": runtimes["1.3.1"]}
    return Flavour(request.param, tiny_bundles["w8a8"], libraries.get(request.param))


newest_too = pytest.mark.parametrize("flavour", ["fake", "twin", "twin-1.3.1"], indirect=True)


@pytest.fixture(scope="module")
def answer(flavour: Flavour) -> str:
    """To QUESTION, in twelve tokens, from the bare binding."""
    return flavour.expected(QUESTION, 12)


@asynccontextmanager
async def started(engine: WorkerEngine) -> AsyncIterator[WorkerEngine]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close(0)


@asynccontextmanager
async def armed(flavour: Flavour, faults: str, folder: Path, **settings: Any) -> AsyncIterator[WorkerEngine]:
    """A started engine whose runtime fails once, after the load: that has a run of its own."""
    once = folder / "once"
    once.touch()
    async with started(flavour.engine(f"{faults},once={once}", **settings)) as engine:
        await until(lambda: engine.status.state == "ready")
        once.unlink()
        yield engine


def pid_of(engine: WorkerEngine) -> int:
    assert engine._worker is not None
    return engine._worker.pid
