"""The real daemon, deployed to a simulated board over the simulated runtime, answers over HTTP."""

from __future__ import annotations

import json
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
from tests.simulated_board import contents, prefix_of

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
    assert "nothing is deployed on parlour" in board.run("bench", "parlour", code=1).stderr
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
    _is_measured(board)
    control.down("parlour")
    assert control.processes_of_board(folder) == []  # neither the daemon nor its worker


def _is_measured(board: Deployer) -> None:
    """`rk3588 bench` finds port and key itself, measures on the board, and leaves nothing there."""
    before = contents(prefix_of(board))
    quick = ("-p", "20", "-n", "40", "-r", "2", "--ttft", "10")
    kept = board.home / "bench.json"
    done = board.run("bench", "parlour", *quick, "--concurrency", "2", "--save", kept)
    said = json.loads(kept.read_text())
    assert list(said["samples"]) == ["pp20", "tg40", "ttft10"] and said["notes"] == []
    assert {s["prompt_tokens"] for s in said["samples"]["pp20"]} == {20}
    assert (said["about"]["model"], said["about"]["board"]) == ("tiny w8a8", "Radxa ROCK 5B")
    assert set(said["about"]["predicted"]["tests"]) == set(said["samples"])
    assert said["about"]["predicted"]["board"] == "Radxa Rock 5B"
    assert said["about"]["resident"] > 1 << 20 and said["about"]["params"] > 0
    assert said["clients"][0]["requests"] == 4 and said["clients"][0]["failed"] == 0
    for when in ("before", "after"):
        assert {clock["name"]: clock["governor"] for clock in said["readings"][when]["clocks"]}["npu"]
        assert said["readings"][when]["temperatures"]["soc-thermal"] > 0
    assert "npu clock" in done.stdout and "soc-thermal temperature" in done.stdout
    assert contents(prefix_of(board)) == before
    board.run("bench", "nowhere", *quick, code=2)
