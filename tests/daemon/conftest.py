"""The daemon over a scripted engine, and over the real one on the simulated runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rkruntime.daemon.engine import WorkerEngine
from tests.daemon_server import Service, served, until
from tests.engines import GREEDY
from tests.fake_engine import FakeEngine

ENGINES = {"fake": FakeEngine, "twin": WorkerEngine}


@pytest.fixture(scope="module", params=list(ENGINES))
def service(request: pytest.FixtureRequest, tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    """Greedy, so that the same question gets the same answer."""
    with served(tiny_bundles["w8a8"], ENGINES[request.param], **GREEDY) as running:
        until(lambda: running.get("/ready").status == 200)
        yield running
