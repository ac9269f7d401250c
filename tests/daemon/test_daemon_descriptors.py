"""A process that has no descriptor left: what of the daemon goes on, and what is tried again."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from rk3588.errors import Unavailable
from rkruntime.daemon import notify
from tests import engines
from tests.engines import Flavour


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing more can be opened in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        most = max(int(file.name) for file in Path("/proc/self/fd").iterdir()) + 5
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        with suppress(OSError):
            while True:
                stack.enter_context(Path(os.devnull).open())
        yield


def test_the_watchdog_outlives_a_want_of_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        with no_descriptors():
            notify.tell("WATCHDOG=1", "STATUS=lost")
        notify.tell("WATCHDOG=1")
        assert systemd.recv(100) == b"WATCHDOG=1"  # the first that came


def test_a_worker_that_finds_no_descriptors_is_started_later(tiny_bundles: Mapping[str, Path]) -> None:
    async def scenario() -> None:
        engine = Flavour("fake", tiny_bundles["w8a8"]).engine()
        with no_descriptors():
            await engine.start()
            await engines.until(lambda: engine.status.reason)
            assert engine.status.state == "loading"
            assert "cannot be started: too many open files" in engine.status.reason
            with pytest.raises(Unavailable) as refused:
                await engine.submit(engines.job("x"))
            assert refused.value.retry_after_s
            await asyncio.sleep(0.6)  # a second and a third load fail as well, which a crash would not be forgiven
        await engines.until(lambda: engine.status.state == "ready")
        assert await engines.ask(engine, "Hello", 4) == "user"
        await engine.close(0)

    engines.run(scenario())
