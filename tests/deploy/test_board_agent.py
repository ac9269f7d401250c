"""The board's half of a deployment, where no board is needed to see it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rk3588.commands import connecting, releases
from rk3588.deploy import agent_client, deployment, probes
from rk3588.deploy.board import activation, agent, files, safe_paths, service
from rk3588.deploy.facts import Facts
from rk3588.deploy.local import LocalConnection
from rk3588.deploy.state import BoardState
from rk3588.errors import DeployError


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Two releases of a systemd service, the first one current."""
    for name in ("old", "new"):
        folder = tmp_path / "releases" / name
        folder.mkdir(parents=True)
        manifest = {"service": "systemd", "port": 1, "load_seconds": 1, "files": {}}
        (folder / "release.json").write_text(json.dumps(manifest))
    (tmp_path / "current").symlink_to("releases/old")
    return tmp_path


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What systemd was told; it does nothing."""
    told: list[str] = []

    def record(*words: str) -> Any:
        told.append(" ".join(words))
        return subprocess.CompletedProcess(words, 0, stdout="")

    monkeypatch.setattr(service, "systemctl", record)
    monkeypatch.setattr(activation, "systemctl", record)
    return told


def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *pids: int) -> None:
    """The service's control group as these processes left it."""
    procs = tmp_path / "cgroup" / "system.slice" / service.SERVICE / "cgroup.procs"
    procs.parent.mkdir(parents=True)
    procs.write_text("".join(f"{pid}\n" for pid in pids))
    monkeypatch.setattr(service, "GROUPS", (str(tmp_path / "cgroup"),))


def test_nothing_is_started_over_a_process_that_hangs(
    prefix: Path, systemctl: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker in the NPU's driver may survive SIGKILL: a second one could freeze the board."""
    group(prefix, monkeypatch, os.getpid())
    said = activation.activation(str(prefix), "new", False, lambda **_: None)
    assert not said["ok"]
    assert f"process {os.getpid()} of the old release hangs and cannot be killed: reboot the board" in said["error"]
    assert (prefix / "current").readlink() == Path("releases/old")
    assert not (prefix / "unproven.json").exists()
    assert not [words for words in systemctl if "start" in words.split()]
    with pytest.raises(OSError, match="reboot the board"):
        service.start(str(prefix), {"service": "systemd"})


def test_units_of_the_user_stay(
    prefix: Path, systemctl: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rkchatd.service", "rkchatd-clocks.service", "rkchatd-backup.service"):
        (tmp_path / name).touch()
    monkeypatch.setattr(service, "UNITS", str(tmp_path))
    activation.remove_service(str(prefix), {"service": "systemd"})
    assert [path.name for path in tmp_path.glob("*.service")] == ["rkchatd-backup.service"]
    assert "disable --now rkchatd-clocks.service" in systemctl


def test_what_has_ended_does_not_hang(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    group(prefix, monkeypatch, ended.pid)
    assert service.why_not_stopped() == ""


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A simulated board's folder: what lies above it is not looked at."""
    monkeypatch.setenv("RKBOARD_SYSROOT", str(tmp_path / "tree"))
    return tmp_path


def test_a_lock_does_not_follow_links(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody else's link there would have a file of ours emptied."""
    (alone / "precious").write_text("mine")
    (alone / "lock").symlink_to("precious")
    with pytest.raises(SystemExit):
        files.lock(str(alone / "lock"), "me", str(alone))
    assert "symbolic links" in capsys.readouterr().out
    assert (alone / "precious").read_text() == "mine"


def test_a_lock_lies_where_others_cannot_take_it(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (alone / "shared").mkdir()
    (alone / "shared").chmod(0o1777)
    with pytest.raises(SystemExit):
        files.lock(str(alone / "shared" / "lock"), "me", str(alone))
    assert "everybody may write in" in capsys.readouterr().out
    assert not list((alone / "shared").iterdir())


def test_a_lock_that_is_taken_away_is_taken_anew(alone: Path) -> None:
    """Its holder unlinks it at the end: a handle on what was unlinked has nothing."""
    path = str(alone / "lock")
    first = files.try_lock(path)
    assert first is not None
    assert files.try_lock(path) is None
    Path(path).unlink()
    second = files.try_lock(path)
    assert second is not None
    os.close(first)
    os.close(second)


def moved(path: Path, to: str, aim: str, weak: str = "") -> None:
    """PATH moved away, a link in its place; in the folder ``weak``, everybody may write."""
    if weak:
        (path.parent / weak).chmod(0o777)
    path.rename(path.parent / to)
    path.symlink_to(aim)


WEAK: dict[str, Callable[[Path], object]] = {
    "everybody may write in the folder": lambda top: (top / "a").chmod(0o757),
    "a sticky folder does not help": lambda top: (top / "a").chmod(0o1777),
    "everybody may write in the prefix": lambda top: (top / "a/b/rkchatd").chmod(0o777),
    "in what lies in it": lambda top: (top / "a/b/rkchatd/releases").chmod(0o777),
    "a link to elsewhere": lambda top: moved(top / "a", "c", "c", weak="a"),
    "a link in a folder": lambda top: moved(top / "a", "s/a", "s/a", weak="s"),
    "links in a circle": lambda top: moved(top / "a", "c", "a"),
}


def make(top: Path) -> Path:
    prefix = top / "a" / "b" / "rkchatd"
    (prefix / "releases").mkdir(parents=True)
    (top / "s").mkdir()
    for folder in (top / "a", top / "s", top / "a/b", prefix, prefix / "releases"):
        folder.chmod(0o755)
    return prefix


@pytest.mark.parametrize("what", WEAK)
def test_others_cannot_put_a_program_where_it_is_run(
    what: str, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = make(alone)
    agent.refuse_unsafe_prefix(str(prefix))  # sound
    WEAK[what](alone)
    lock = str(alone / "lock")
    for words in (["state", str(prefix), ""], ["lock", lock, "me", str(prefix)], ["remove", str(prefix), "", ""]):
        with pytest.raises(SystemExit):
            agent.main(words)
        said = json.loads(capsys.readouterr().out)["error"]
        assert str(alone) in said
        assert "\n" not in said
        assert any(mend in said for mend in ("chmod", "--prefix", "remove it"))
    assert not (alone / "lock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_another_user_on_the_way_is_named(alone: Path) -> None:
    prefix = make(alone)
    os.chown(alone / "a", 65534, 65534)
    assert "a belongs to nobody" in safe_paths.why_unsafe(str(prefix))
    assert f"sudo chown root: {alone}/a" in safe_paths.why_unsafe(str(prefix))
    os.chown(alone / "a", 0, 0)
    (prefix / "releases" / "agent.pyz").touch()
    os.chown(prefix / "releases" / "agent.pyz", 65534, -1)
    assert "agent.pyz belongs to nobody" in safe_paths.why_unsafe(str(prefix / "releases" / "agent.pyz"))


def test_a_group_counts_unless_it_is_ours_alone(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = make(alone)
    (alone / "a").chmod(0o775)
    monkeypatch.setattr(safe_paths, "is_own_group", lambda *_: False)
    assert "may write in" in safe_paths.why_unsafe(str(prefix))
    monkeypatch.setattr(safe_paths, "is_own_group", lambda *_: True)
    assert bool(safe_paths.why_unsafe(str(prefix))) == (os.geteuid() == 0)  # root's rule knows no such groups


def test_tmp_is_no_place_for_what_root_runs(tmp_path: Path) -> None:
    """Through the agent as it is sent, with the folders as they are."""
    if os.geteuid() != 0 or not str(tmp_path).startswith("/tmp/"):
        pytest.skip("needs root, and a temporary folder in /tmp")
    with pytest.raises(DeployError, match=r"everybody may write in /tmp, .* run as root: give another --prefix"):
        agent_client.ask(LocalConnection(lambda _: None), "state", str(tmp_path / "rkchatd"), "", root=False)


def test_what_lies_in_the_current_folder_is_not_run(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent runs as root in somebody's home."""
    for name in ("subprocess", "json", "zipfile", "os", "rk3588"):
        (alone / f"{name}.py").write_text(f"open({str(alone / 'ran')!r}, 'w')")
    monkeypatch.chdir(alone)
    monkeypatch.setenv("PYTHONPATH", str(alone))
    said = agent_client.ask(LocalConnection(lambda _: None), "state", str(alone / "none"), "", root=False)
    assert said["exists"] is False
    assert not (alone / "ran").exists()
    facts = probes.parse(probes.gather(LocalConnection(lambda _: None)))
    assert facts.python is not None
    assert not (alone / "ran").exists()


def test_last_words_are_said_once_and_of_this_start(tmp_path: Path) -> None:
    (tmp_path / "rkchatd.log").write_text("of the release before\n")
    (tmp_path / "current").mkdir()
    (tmp_path / "current" / "keep.sh").write_text("for n in 1 2 3; do echo wrong; done; sleep 30\n")
    manifest = {"service": "process"}
    starting = f"from rk3588.deploy.board import service; service.start({str(tmp_path)!r}, {manifest!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", starting], check=True)
    try:
        deadline = time.monotonic() + 30
        while "wrong\n" * 3 not in (tmp_path / "rkchatd.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert service.last_words(str(tmp_path), manifest) == ["wrong"]
    finally:
        service.stop(str(tmp_path), manifest)


def test_an_activation_that_goes_on_is_told(
    prefix: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-C, which says that `rk3588 releases` shows what came of it."""
    monkeypatch.setattr(agent, "is_active", lambda *_: True)
    told = []
    with (prefix / "activation.log").open("w") as log:
        for lock in (fcntl.LOCK_EX, fcntl.LOCK_UN):
            fcntl.flock(log, lock)
            agent.state(str(prefix), "")
            told.append(BoardState.from_answer(json.loads(capsys.readouterr().out)))
    (prefix / "activation.log").unlink()
    agent.state(str(prefix), "")
    assert not json.loads(capsys.readouterr().out)["activating"]
    assert [state.activating for state in told] == [True, False]
    monkeypatch.setattr(connecting, "open_connection", lambda *_: nullcontext())
    monkeypatch.setattr(deployment, "gather_facts", lambda *_: (Facts(), str(prefix)))
    said = []
    for state in told:
        monkeypatch.setattr(deployment, "read_state", lambda *_, state=state: state)
        said.append(CliRunner().invoke(releases.command, ["attic"]))
    assert said[0].stderr == "attic: an activation is still going on there: ask again when it has ended\n"
    assert "does not answer yet" in said[0].stdout
    assert said[1].stderr == "" and "does not answer" in said[1].stdout and "yet" not in said[1].stdout


def test_last_words_are_not_the_agent_s_own_questions() -> None:
    """As rkchatd logs them: asked each moment whether it is ready, it says 503, and once why."""
    asked = '{"time": "%d", "level": "info", "event": "request", "method": "GET", "path": "/ready", "status": 503}'
    cause = '{"time": "1", "level": "error", "event": "load failed", "error": "there is no template /nope"}'
    assert service.telling([cause, *(asked % number for number in range(9))]) == [cause]


def test_a_sender_that_goes_before_it_agrees_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it hashes what the board has, somebody presses Ctrl-C: the next run goes on from there all the same."""
    monkeypatch.setattr(files, "why_unsafe", lambda _: "")
    part = tmp_path / "model.part"
    part.write_bytes(b"x" * 1000)
    try:
        with pytest.raises(SystemExit):
            files.receive_one(io.BufferedReader(io.BytesIO()), str(tmp_path / "model"), 2000, "0" * 64, 0o644)
    finally:
        signal.alarm(0)
    assert part.read_bytes() == b"x" * 1000


def test_names_that_the_kernel_cut_inside_a_character_break_nothing(tmp_path: Path) -> None:
    (tmp_path / "stat").write_bytes("7 (zażółć-gęślą".encode()[:18] + b") S 1 7 7")
    assert files.text_of(str(tmp_path / "stat")).rpartition(") ")[2] == "S 1 7 7"


def test_a_group_is_seen_among_processes_with_any_name() -> None:
    program = (
        "import pathlib, sys; pathlib.Path('/proc/self/comm').write_bytes(b'\\xc5x'); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(command, **pipes) as odd:  # type: ignore[call-overload]
        odd.stdout.readline()
        assert service.group_is_alive(odd.pid)
        odd.communicate(b"\n")
    assert not service.group_is_alive(odd.pid)
