"""Deployments to a simulated board without root: a real SSH connection, a real daemon process, the stand-in in it."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import time
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from tests import deploying, simulated_board
from tests.deploying import Deployer
from tests.simulated_board import contents, key_of, prefix_of

pytestmark = pytest.mark.usefixtures("board_watch")
bundles, daemon = simulated_board.bundles, simulated_board.daemon
board, port = simulated_board.board, simulated_board.port


def test_a_deployment_its_repetition_and_the_next_one(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    first = board.deploy(bundles["one"], "--port", port)
    assert first["commands"] > 5
    assert first["bytes_sent"] > 300_000
    assert (first["runtime"], first["model_file"]) == ("sim", "model.sim.gguf")
    assert deploying.answer_of(port, key_of(board)) == "one here"
    again = board.deploy(bundles["one"])  # the port stays as it is
    assert again == {**first, "commands": 0, "bytes_sent": 0}
    second = board.deploy(bundles["two"])
    assert deploying.answer_of(port, key_of(board)) == "two here"
    # Only what is new: the model and its manifest; libraries, daemon and template are linked.
    assert 300_000 < second["bytes_sent"] < 302_000
    old, new = (prefix_of(board) / "releases" / row["release"] / "librkllmrt.so" for row in (first, second))
    assert old.stat().st_ino == new.stat().st_ino
    assert not list((prefix_of(board) / "incoming").iterdir())


def test_plan_prints_and_changes_nothing(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    before = contents(board.found().folder / "home")
    options = ("--runtime", "sim", "--daemon", board.daemon, "--port", port, "--plan")
    done = board.run("deploy", bundles["one"], "--board", "attic", *options)
    assert "agent receive" in done.stdout
    assert "activate" in done.stdout
    assert re.search(r"\d+ commands, [\d.]+ MB to send", done.stderr)
    assert contents(board.found().folder / "home") == before
    (planned,) = json.loads(board.run(*board.words(bundles["one"], "--port", port, "--plan")).stdout)
    row = board.deploy(bundles["one"], "--port", port)
    assert (len(planned["steps"]), planned["bytes"], planned["release"]) == tuple(
        row[key] for key in ("commands", "bytes_sent", "release")
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("dies", "it ended with 1.*cannot load this model", marks=pytest.mark.slow),
        ("lies", "with 500: the runtime ended"),
        pytest.param("crashes", "0: ", marks=pytest.mark.slow),
    ],
)
def test_a_release_that_fails_its_trial(
    board: Deployer, bundles: dict[str, Path], port: int, name: str, why: str
) -> None:
    """The old one serves throughout; the next good one leaves nothing over."""
    board.deploy(bundles["one"], "--port", port)
    said = board.fail(bundles[name])
    assert re.search(why, said, re.DOTALL), said
    assert "did not prove itself" in said
    assert "is back and answers" in said
    assert deploying.answer_of(port, key_of(board)) == "one here"
    assert board.current() == "one"
    board.deploy(bundles["two"])
    assert [row["name"] for row in board.releases()] == ["two", "one"]


@pytest.mark.slow
def test_a_first_release_that_fails_leaves_no_service(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    assert "nothing serves now" in board.fail(bundles["dies"], "--port", port)
    assert not (prefix_of(board) / "current").exists()
    board.deploy(bundles["slow"], "--port", port)
    assert [row["name"] for row in board.releases()] == ["slow"]


@pytest.mark.slow
def test_a_changed_file_is_found_and_mended(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    """With the same size, and with the time it had before."""
    row = board.deploy(bundles["one"], "--port", port)
    library = prefix_of(board) / "releases" / row["release"] / "librksim.so"
    data = bytearray(library.read_bytes())
    data[5000] ^= 1
    library.write_bytes(data)
    assert board.releases()[0]["intact"] is False
    mended = board.deploy(bundles["one"])
    assert mended["bytes_sent"] == len(data)
    assert board.releases()[0]["intact"] is True
    assert board.deploy(bundles["one"])["commands"] == 0


@pytest.mark.slow
def test_a_key_of_its_own(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    board.deploy(bundles["one"], "--port", port)
    keys = prefix_of(board) / "keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert re.fullmatch(r"first:[A-Za-z0-9_-]{32}\n", keys.read_text())
    keys.write_text("# mine\nphone:abc\n" + keys.read_text())
    board.deploy(bundles["two"])
    assert keys.read_text().startswith("# mine\nphone:abc\n")


@pytest.mark.slow
def test_exposure_is_asked_for_once_and_stays(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    assert "--yes" in board.fail(bundles["one"], "--port", port, "--expose", "lan", code=2)
    board.deploy(bundles["one"], "--port", port, "--expose", "lan", "--yes")
    configuration = prefix_of(board) / "current" / "rkchatd.yaml"
    assert f"listen: 0.0.0.0:{port}" in configuration.read_text()
    board.deploy(bundles["two"], "--expose", "lan")  # open already: no question
    board.deploy(bundles["three"])
    assert f"listen: 0.0.0.0:{port}" in configuration.read_text()
    board.deploy(bundles["three"], "--expose", "loopback")
    assert f"listen: 127.0.0.1:{port}" in configuration.read_text()


def test_what_it_says_afterwards(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    words = [word for word in board.words(bundles["one"], "--port", port) if word != "--json"]
    done = board.run(*words)
    assert f"http://127.0.0.1:{port}/v1" in done.stdout
    assert "ssh -NL" not in done.stdout  # its loopback is this machine's
    assert str(prefix_of(board) / "keys") in done.stdout
    assert "OPENAI_API_BASE_URL=" in done.stdout
    assert "Home Assistant" in done.stdout


@pytest.mark.slow
def test_two_at_a_time(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    """The second one waits, in case the first is only a dead one's lock, and gives up."""
    board.deploy(bundles["one"], "--port", port)
    slow = board.start(bundles["two"], "--limit-rate", "8k")
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list((prefix_of(board) / "incoming").glob("*/bundle/*.part")):
            time.sleep(0.05)
        assert re.search(r"a deployment by \S+@\S+ \(pid \d+\) is going on", board.fail(bundles["three"]))
        out, err = slow.communicate(timeout=240)
    finally:
        slow.kill()
        with slow:  # closes its pipes
            pass
    assert slow.returncode == 0, err
    assert json.loads(out)[0]["healthy"]


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_deployer_and_its_successor(
    board: Deployer, bundles: dict[str, Path], port: int, end: signal.Signals
) -> None:
    """What came before the kill is not sent again, and the lock has fallen with the connection."""
    board.deploy(bundles["one"], "--port", port)
    slow = board.start(bundles["two"], "--limit-rate", "150k")
    deadline = time.monotonic() + 60
    arrived = 0
    while time.monotonic() < deadline and arrived < 100_000:
        parts = list((prefix_of(board) / "incoming").glob("*/bundle/model.sim.gguf.part"))
        arrived = parts[0].stat().st_size if parts else 0
        time.sleep(0.02)
    slow.send_signal(end)
    said = slow.communicate()[1]
    assert (slow.returncode, said.strip()) in [(-signal.SIGKILL, ""), (130, "Interrupted")]
    assert deploying.answer_of(port, key_of(board)) == "one here"
    row = board.deploy(bundles["two"])
    assert row["bytes_sent"] < 302_000 - arrived + 1
    assert not list((prefix_of(board) / "incoming").iterdir())


@pytest.mark.slow
def test_half_a_file_of_something_else_is_not_continued(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    (planned,) = json.loads(board.run(*board.words(bundles["one"], "--port", port, "--plan")).stdout)
    folder = prefix_of(board) / "incoming" / planned["release"] / "bundle"
    folder.mkdir(parents=True)
    (folder / "model.sim.gguf.part").write_bytes(os.urandom(200_000))
    assert board.deploy(bundles["one"], "--port", port)["bytes_sent"] > 300_000


def test_a_bundle_for_an_npu_with_a_library_of_the_user(
    board: Deployer, tmp_path: Path, port: int, rkllm_library: Path
) -> None:
    """The library goes into the release as it is; the model for the simulated runtime stays here."""
    npu = deploying.bundle(tmp_path, "npu", target="rk3588")
    given = tmp_path / "librkllmrt.so"
    given.write_bytes(rkllm_library.read_bytes()[:64] + b"rkllm-runtime version: 1.1.1\0rkllm_init\0")
    words = ["deploy", npu, "--board", "attic", "--daemon", board.daemon, "--port", port, "--runtime", given, "--json"]
    (row,) = json.loads(board.run(*words).stdout)
    folder = prefix_of(board) / "releases" / row["release"]
    assert (folder / "librkllmrt.so").read_bytes() == given.read_bytes()
    assert json.loads((folder / "release.json").read_text())["runtime_version"] == "1.1.1"
    assert (folder / "bundle" / "model.rkllm").stat().st_size == 300_000
    assert deploying.answer_of(port, key_of(board)) == "npu here"
