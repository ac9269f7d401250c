"""Every fault, at random moments of deployments to boards with a real systemd and OpenSSH (``tests/campaign``)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588.simboard import nspawn
from tests import campaign

pytestmark = [
    pytest.mark.usefixtures("board_watch"),
    pytest.mark.skipif(bool(nspawn.why_unavailable()), reason=nspawn.why_unavailable() or "-"),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the boards are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    yield tmp_path
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [2, 20])  # the first is in `make test-boards`
def test_each_fault(home: Path, rounds: int) -> None:
    happened = campaign.run(home, campaign.rounds_of(rounds), str(int(time.time())))
    assert {name: outcomes.total() for name, outcomes in happened.items()} == dict.fromkeys(campaign.KINDS, rounds)


@pytest.mark.slow
def test_each_fault_with_the_real_daemon(home: Path, pyz: Path, tiny_bundles: Mapping[str, Path]) -> None:
    """But for those that are a daemon's own."""
    kinds = [name for name, kind in campaign.KINDS.items() if not kind.behaviour]
    happened = campaign.run(home, campaign.rounds_of(3, kinds), str(int(time.time())), pyz, tiny_bundles["w8a8"])
    assert {name: outcomes.total() for name, outcomes in happened.items()} == dict.fromkeys(kinds, 3)
