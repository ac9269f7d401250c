"""Bundles, libraries and hosts that a deployment refuses, each in its words; on a simulated board without root."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from tests import deploying, simulated_board, sshd
from tests.deploying import Deployer
from tests.simulated_board import prefix_of

pytestmark = pytest.mark.usefixtures("board_watch")
bundles, daemon = simulated_board.bundles, simulated_board.daemon
board, port = simulated_board.board, simulated_board.port


def test_the_plan_of_what_would_be_refused_fails(board: Deployer, bundles: dict[str, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = board.words(bundles["one"], "--port", taken.getsockname()[1], "--plan")
        done = board.run(*words, code=1)
    assert json.loads(done.stdout)[0]["steps"]
    assert "another program listens on port" in done.stderr
    assert done.stderr.endswith("Error: it would be refused: see above\n")


def test_a_bundle_that_is_not_what_it_says(board: Deployer, tmp_path: Path, port: int) -> None:
    """A byte changed on the host, with the size it had: the board's hash tells."""
    path = deploying.bundle(tmp_path, "mine")
    model = path / "model.sim.gguf"
    data = bytearray(model.read_bytes())
    data[1000] ^= 1
    model.write_bytes(data)
    said = board.fail(path, "--port", port)
    assert "is not what was announced" in said
    assert "rk3588 bundle verify" in said


@pytest.mark.parametrize("runtime", ["sim", "absent", "file"])
def test_the_wrong_kind_of_bundle(board: Deployer, bundles: dict[str, Path], tmp_path: Path, runtime: str) -> None:
    if runtime == "sim":
        npu = deploying.bundle(tmp_path, "npu", target="rk3588")
        assert "only a model for an NPU: give --runtime FILE" in board.fail(npu, code=2)
        return
    more = ("--runtime", "/dev/null") if runtime == "file" else ()
    words = ["deploy", bundles["one"], "--board", "attic", "--daemon", board.daemon, *more]
    said = board.run(*words, code=2).stderr
    assert "looking at" not in said  # before the board is asked
    assert "only a model for the simulated runtime, which no NPU can run: give --runtime sim" in said


def test_a_template_that_is_not_on_the_board(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    """The daemon would look for it there, when everything has been sent."""
    said = board.fail(bundles["one"], "--port", port, "--set", "template=/nope", code=2)
    assert "--set template=/nope: there is no such file on attic: give the path of one there" in said
    assert list(prefix_of(board).glob("*")) == []


def test_the_wrong_library(board: Deployer, tmp_path: Path, rkllm_library: Path) -> None:
    npu = deploying.bundle(tmp_path, "npu", target="rk3588")
    words = ["deploy", npu, "--board", "attic", "--daemon", board.daemon, "--runtime"]
    assert "is the simulated runtime: say --runtime sim" in board.run(*words, rkllm_library, code=1).stderr
    old = tmp_path / "librkllmrt.so"
    elf = bytearray(rkllm_library.read_bytes()[:64])
    old.write_bytes(bytes(elf) + b"rkllm-runtime version: 1.4.0\0rkllm_init\0")
    assert "is librkllmrt 1.4.0; this toolkit speaks 1.1.0 to 1.3.1" in board.run(*words, old, code=1).stderr
    elf[18:20] = (243).to_bytes(2, "little")
    old.write_bytes(elf)
    assert "is not a shared library for aarch64 or x86-64" in board.run(*words, old, code=1).stderr
    elf[18:20] = (40).to_bytes(2, "little")


def test_hosts_that_are_none(daemon: Path, tmp_path: Path) -> None:
    local = Deployer("x", daemon, tmp_path)
    assert "is a type of board" in local.run("doctor", "rock-5b", code=2).stderr
    assert "is not a host" in local.run("doctor", "a b", code=2).stderr
    assert "there is no such file; give a librkllmrt.so, npu or sim" in local.run(
        "doctor", "local", "--runtime", "nothing", code=2
    ).stderr
    other = local.run("doctor", "local", "--runtime", "sim-9.9", code=2).stderr
    assert "there is no simulated runtime sim-9.9" in other
    assert "librkllmrt" not in local.run("doctor", "local", "--runtime", "sim-1.3", code=None).stderr
    closed = f"127.0.0.1:{sshd.free_port()}"
    assert f"cannot reach {closed}: Connection refused" in local.run("doctor", closed, code=1).stderr
