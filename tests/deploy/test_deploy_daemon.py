"""The real daemon, deployed to a simulated board over the simulated runtime, answers over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588 import simboard
from rk3588.boards import catalogue
from rk3588.simboard import control
from tests import sshd
from tests.daemon_server import Service
from tests.deploying import Deployer

pytestmark = pytest.mark.usefixtures("board_watch")


@pytest.fixture
def board(pyz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployer]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    control.up("parlour", catalogue().board("rock-5b"))
    yield Deployer("parlour", pyz, tmp_path)
    if simboard.find("parlour"):
        control.down("parlour")


def test_the_real_daemon(board: Deployer, tiny_bundles: Mapping[str, Path]) -> None:
    port = sshd.free_port()
    first = board.deploy(tiny_bundles["w8a8"], "--port", port)
    assert board.deploy(tiny_bundles["w8a8"]) == {**first, "commands": 0, "bytes_sent": 0}
    folder = board.found().folder
    (keys,) = folder.glob("home/.local/share/rkchatd/keys")
    key = keys.read_text().strip().rpartition(":")[2]
    service = Service(port, None)
    reply = service.chat(max_tokens=3, headers={"Authorization": f"Bearer {key}"})
    assert reply.status == 200, reply.body
    assert reply.json["usage"]["completion_tokens"] == 3
    assert service.chat(max_tokens=3, headers={"Authorization": "Bearer wrong"}).status == 401
    control.down("parlour")
    assert control.processes_of_board(folder) == []  # neither the daemon nor its worker
