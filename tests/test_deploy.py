"""Deployments to a simulated board without root: a real SSH connection, a real daemon process, the stand-in in it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588 import simboard
from rk3588.boards import catalogue
from rk3588.simboard import control
from tests import deploying, sshd
from tests.deploying import Deployer

pytestmark = pytest.mark.usefixtures("board_watch")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    kinds = {"one": "", "two": "", "three": "", "dies": "die", "lies": "lie", "crashes": "crash", "slow": "slow 2"}
    return {name: deploying.bundle(folder, name, behaviour) for name, behaviour in kinds.items()}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploying.standin(tmp_path_factory.mktemp("daemon"))


@pytest.fixture
def board(daemon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployer]:
    """A fresh board."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    control.up("attic", catalogue().board("rock-5b"))
    yield Deployer("attic", daemon, tmp_path)
    if simboard.find("attic"):
        control.down("attic")


@pytest.fixture
def port() -> int:
    return sshd.free_port()


def prefix_of(board: Deployer) -> Path:
    return board.found().folder / "home" / ".local" / "share" / "rkchatd"


def key_of(board: Deployer) -> str:
    return (prefix_of(board) / "keys").read_text().strip().rpartition(":")[2]


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


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


def test_the_plan_of_what_would_be_refused_fails(board: Deployer, bundles: dict[str, Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = board.words(bundles["one"], "--port", taken.getsockname()[1], "--plan")
        done = board.run(*words, code=1)
    assert json.loads(done.stdout)[0]["steps"]
    assert "another program listens on port" in done.stderr
    assert done.stderr.endswith("Error: it would be refused: see above\n")


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
def test_rollback_and_releases(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    for name in ("one", "two", "three"):
        board.deploy(bundles[name], "--port", port)
    assert [(row["name"], row["current"]) for row in board.releases()] == [
        ("three", True),
        ("two", False),
        ("one", False),
    ]
    (row,) = json.loads(board.run("rollback", "attic", "--json").stdout)
    assert (row["commands"], row["healthy"]) == (1, True)
    assert deploying.answer_of(port, key_of(board)) == "two here"
    oldest = board.releases()[-1]["release"]
    board.run("rollback", "attic", "--to", oldest[:8])
    assert deploying.answer_of(port, key_of(board)) == "one here"
    assert "there is no one release" in board.run("rollback", "attic", "--to", "zzz", code=2).stderr
    assert "one w8a8 (sim)  answers" in board.run("releases", "attic").stdout


@pytest.mark.slow
def test_pruning(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    for name in ("one", "two", "three"):
        board.deploy(bundles[name], "--port", port, "--keep", 2)
    assert [row["name"] for row in board.releases()] == ["three", "two"]


def test_remove_takes_everything(board: Deployer, bundles: dict[str, Path], port: int) -> None:
    before = contents(board.found().folder / "home")
    board.deploy(bundles["one"], "--port", port)
    assert "say yes" in board.run("remove", "attic", code=2).stderr
    assert json.loads(board.run("remove", "attic", "--yes", "--json").stdout) == [{"host": "attic", "removed": True}]
    left = contents(board.found().folder / "home") - before
    assert left == {".local", ".local/share"}
    assert control.started_on(board.found().folder) == []
    assert "nothing to remove" in board.run("remove", "attic", "--yes").stderr


def test_remove_leaves_alone_what_is_not_ours(board: Deployer) -> None:
    """A prefix may be mistyped, and be a folder with everything that somebody has."""
    folder = board.found().folder / "home" / "all.of.it"
    (folder / "releases" / "0123").mkdir(parents=True)
    (folder / "photos").mkdir()
    (folder / "photos" / "one.jpg").write_text("mine")
    board.run("remove", "attic", "--yes", "--prefix", folder)
    assert contents(folder) == {"photos", "photos/one.jpg"}
    assert "nothing to remove" in board.run("remove", "attic", "--yes", "--prefix", folder).stderr


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
        assert "only a model for an NPU: give --runtime FILE" in board.fail(npu)
        return
    more = ("--runtime", "/dev/null") if runtime == "file" else ()
    words = ["deploy", bundles["one"], "--board", "attic", "--daemon", board.daemon, *more]
    said = board.run(*words, code=1).stderr
    assert "only a model for the simulated runtime, which no NPU can run: give --runtime sim" in said


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


def test_the_wrong_library(board: Deployer, tmp_path: Path, rkllm_library: Path) -> None:
    npu = deploying.bundle(tmp_path, "npu", target="rk3588")
    words = ["deploy", npu, "--board", "attic", "--daemon", board.daemon, "--runtime"]
    assert "is the simulated runtime: say --runtime sim" in board.run(*words, rkllm_library, code=1).stderr
    old = tmp_path / "librkllmrt.so"
    elf = bytearray(rkllm_library.read_bytes()[:64])
    old.write_bytes(bytes(elf) + b"rkllm-runtime version: 1.2.1\0rkllm_init\0")
    assert "is librkllmrt 1.2.1; this toolkit speaks 1.1.1" in board.run(*words, old, code=1).stderr
    elf[18:20] = (243).to_bytes(2, "little")
    old.write_bytes(elf)
    assert "is not a shared library for aarch64 or x86-64" in board.run(*words, old, code=1).stderr
    elf[18:20] = (40).to_bytes(2, "little")


def test_doctor(board: Deployer, bundles: dict[str, Path]) -> None:
    done = board.run("doctor", "attic")
    levels = [line.split()[0] for line in done.stdout.splitlines()]
    assert levels == sorted(levels, key=["refuse", "warn", "info", "ok"].index)
    assert "Radxa Rock 5B, RK3588" in done.stdout
    said = json.loads(board.run("doctor", "attic", "--json", "--bundle", bundles["one"], "--runtime", "sim").stdout)
    assert {"level", "fact", "text", "remedy"} == set(said["findings"][0])
    assert said["facts"]["driver"] == "0.9.8"
    assert any("the model needs" in finding["text"] for finding in said["findings"])
    tree = board.found().folder / "tree"
    (tree / "sys" / "kernel" / "debug" / "rknpu" / "version").write_text("RKNPU driver: v0.9.2\n")
    assert "0.9.2 is too old" in board.run("doctor", "attic", "--runtime", "npu", code=1).stdout


def test_deploy_to_this_machine(
    bundles: dict[str, Path], daemon: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--board local``, on a board without systemd (the faked tree has none)."""
    folder = tmp_path / "local"
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("RKBOARD_SYSROOT", str(folder / "tree"))
    (folder / "home").mkdir(parents=True)
    local = Deployer("local", daemon, tmp_path)
    try:
        row = local.deploy(bundles["one"], "--port", port)
        assert row["host"] == "local"
        prefix = folder / "home" / ".local" / "share" / "rkchatd"
        key = (prefix / "keys").read_text().strip().rpartition(":")[2]
        assert deploying.answer_of(port, key) == "one here"
        assert local.deploy(bundles["one"]) == {**row, "commands": 0, "bytes_sent": 0}
        local.run("remove", "local", "--yes")
        assert not prefix.exists()
    finally:
        for pid in control.started_on(folder):
            os.kill(pid, signal.SIGKILL)


def test_board_up_and_down(tmp_path: Path, daemon: Path) -> None:
    local = Deployer("x", daemon, tmp_path)
    said = local.run("board", "up", "cellar", "--board", "khadas-edge2")
    assert "Khadas Edge2" in said.stderr
    assert said.stdout.startswith("ssh -i ")
    listed = local.run("board", "list").stdout.splitlines()
    assert re.fullmatch(r"cellar +user +127\.0\.0\.1:\d+", listed[-1])
    assert json.loads(local.run("board", "list", "--json").stdout)["simulated"][0]["host"] == "cellar"
    assert "is up already" in local.run("board", "up", "cellar", code=2).stderr
    assert "type of board" in local.run("board", "up", "rock-5b", code=2).stderr
    local.run("board", "down", "cellar")
    assert "there is no simulated board" in local.run("board", "down", "cellar", code=2).stderr
    assert not (tmp_path / "rk3588" / "boards" / "cellar").exists()


def test_a_simulated_board_that_was_ended_from_outside(board: Deployer) -> None:
    """As after a reboot of this machine."""
    os.kill(board.found().pid, signal.SIGKILL)
    assert "start it again with `rk3588 board up attic`" in board.run("doctor", "attic", code=1).stderr
    board.run("board", "up", "attic")
    board.run("releases", "attic")


def test_hosts_that_are_none(daemon: Path, tmp_path: Path) -> None:
    local = Deployer("x", daemon, tmp_path)
    assert "is a type of board" in local.run("doctor", "rock-5b", code=2).stderr
    assert "is not a host" in local.run("doctor", "a b", code=2).stderr
    closed = f"127.0.0.1:{sshd.free_port()}"
    assert f"cannot reach {closed}: Connection refused" in local.run("doctor", closed, code=1).stderr
