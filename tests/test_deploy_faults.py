"""Every fault, at random moments of deployments to boards with a real systemd and OpenSSH (``tests/campaign``)."""

from __future__ import annotations

import concurrent.futures
import queue
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588.simboard import nspawn
from tests import campaign
from tests.campaign import KINDS

pytestmark = [
    pytest.mark.usefixtures("board_watch"),
    pytest.mark.skipif(bool(nspawn.missing()), reason=nspawn.missing() or "-"),
]
BOARDS = 3  # at a time: most of a round is waiting


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the boards are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    yield tmp_path
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def run_campaign(folder: Path, rounds: int) -> None:
    """Each fault ``rounds`` times, on several boards at once; all that went wrong, in one AssertionError."""
    seed = int(time.time())
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in [*KINDS] * rounds:
        waiting.put(name)
    done: dict[str, list[str]] = {name: [] for name in KINDS}

    def work(number: int) -> None:
        with campaign.scene(folder / f"scene{number}", seed + number) as stage:
            while not waiting.empty():
                try:
                    name = waiting.get_nowait()
                except queue.Empty:
                    return
                done[name].append(campaign.round_of(stage, name))

    with concurrent.futures.ThreadPoolExecutor(BOARDS) as pool:
        errors = [future.exception() for future in [pool.submit(work, number) for number in range(BOARDS)]]
    assert [f"{type(error).__name__}: {error} (seed {seed})" for error in errors if error] == []
    assert {name: len(outcomes) for name, outcomes in done.items()} == dict.fromkeys(KINDS, rounds)


def test_each_fault_twice(home: Path) -> None:
    run_campaign(home, 2)


@pytest.mark.slow
def test_each_fault_twenty_times(home: Path) -> None:
    run_campaign(home, 20)
