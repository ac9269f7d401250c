"""rkllm-toolkit in its own interpreter: installing it, and every way its calls can end. Over the double."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rk3588.errors import TargetError, ToolkitError, UsageError
from rkconvert.toolkit import driver, releases
from rkconvert.toolkit import install as installs
from tests import models, toolkit_double
from tests.toolkit_double import Installed, rkconvert

WHEEL310 = "cp310-cp310-linux_x86_64"
WHEEL38 = "cp38-cp38-linux_x86_64"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.mark.parametrize(("version", "tag"), [("3.8", WHEEL38), ("3.10", WHEEL310)])
def test_a_release_folder_installs_and_the_worker_runs(home: Path, version: str, tag: str) -> None:
    """Under the real 3.8 and 3.10: the wheel that fits is found, installed, asked for, and taken away again."""
    toolkit_double.need_python(version)
    for each in (WHEEL38, WHEEL310):
        wheel = toolkit_double.build_wheel(home / "release" / "packages", each)
    env = toolkit_double.environment(home)
    done = rkconvert("toolkit", "install", home / "release", "--python", version, "--allow-unknown", env=env)
    assert done.returncode == 0, done.stderr
    assert f"rkllm-toolkit 1.1.1+double under Python {version}." in done.stderr
    assert "none of the wheels that rkconvert was written for" in done.stderr

    facts = json.loads(rkconvert("toolkit", "status", "--json", env=env).stdout)
    assert facts["package"] == wheel.name.replace(WHEEL310, tag)
    assert not facts["known"] and facts["python"].startswith(version + ".")
    assert re.fullmatch("[0-9a-f]{32}", facts["md5"])

    model = models.tiny_llama(home / "model")
    record = home / "record"
    os.environ["RKLLM_DOUBLE_RECORD"] = str(record)
    try:
        calls: list[driver.Call] = [("load_huggingface", {"model": str(model)}), ("build", {})]
        calls.append(("export_rkllm", {"export_path": str(home / "x.rkllm")}))
        outcome = driver.run(Path(facts["path"]), calls, home / "log")
    finally:
        del os.environ["RKLLM_DOUBLE_RECORD"]
    assert outcome.version == "1.1.1+double" and outcome.python == facts["python"]
    assert (home / "x.rkllm").read_bytes().startswith(toolkit_double.BANNER)
    recorded = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(method, python) for method, _, python, _ in recorded] == [
        (name, [int(n) for n in version.split(".")]) for name in ("load_huggingface", "build", "export_rkllm")
    ]
    assert "Optimizing model: 100%" in (home / "log").read_text()

    assert rkconvert("toolkit", "remove", env=env).stderr == "removed\n"
    assert not installs.home().exists()
    assert rkconvert("toolkit", "status", env=env).returncode == 1


def test_only_known_wheels_unless_told_otherwise(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = toolkit_double.build_wheel(home, WHEEL310)
    with pytest.raises(ToolkitError, match=r"is no wheel that this version knows: .*--allow-unknown"):
        installs.choose(wheel, None, allow_unknown=False)
    md5, git = installs._digests(wheel)
    for known in ({"MD5": {md5: "3.10"}}, {"WHEELS": {"1.1.1": {"3.10": git}}}):
        with monkeypatch.context() as patch:
            for name, value in known.items():
                patch.setattr(releases, name, value)
            assert installs.choose(wheel, None, allow_unknown=False).known
            with pytest.raises(ToolkitError, match="no wheel that this version knows"):  # of another Python
                installs.choose(wheel.rename(home / wheel.name.replace("cp310", "cp311")), None, allow_unknown=False)
            (home / wheel.name.replace("cp310", "cp311")).rename(wheel)
    monkeypatch.setattr(releases, "MD5", {md5: "3.10"})
    monkeypatch.setattr(installs, "search_python", lambda version: Path(f"/python{version}"))
    package = installs.choose(wheel, None, allow_unknown=False)
    assert package.known and package.python == Path("/python3.10")
    with pytest.raises(UsageError, match=r"this wheel is for Python 3\.10, not 3.8"):
        installs.choose(wheel, "3.8", allow_unknown=True)
    with pytest.raises(UsageError, match="is not a wheel of rkllm-toolkit"):
        installs.choose(Path(__file__), None, allow_unknown=True)
    with pytest.raises(UsageError, match="does not exist"):
        installs.choose(home / "nothing.whl", None, allow_unknown=True)
    (home / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no wheel of rkllm-toolkit and no Python package"):
        installs.choose(home / "empty", None, allow_unknown=True)
    monkeypatch.setattr(installs, "search_python", lambda _: None)
    with pytest.raises(ToolkitError, match=r"Python 3\.10 is not on this machine"):
        installs.choose(wheel, None, allow_unknown=False)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(ToolkitError, match=r"x86-64 Linux only, and this is aarch64.*--target sim works here"):
        installs.choose(wheel, None, allow_unknown=False)




@pytest.mark.parametrize("text", ["{", "[]", '{"toolkits": [{"version": 1}]}'])
def test_an_installation_replaces_a_damaged_record(home: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """As the error says that reads it."""
    record = installs.home() / installs.RECORD
    record.parent.mkdir(parents=True)
    record.write_text(text)
    with pytest.raises(ToolkitError, match="install the toolkit again"):
        installs.all_installed()
    outcome = driver.Outcome(version="1.1.1", python="3.10.1")
    monkeypatch.setattr(installs, "_command", lambda *_: None)
    monkeypatch.setattr(driver, "run", lambda *_: outcome)
    package = installs.Package(home / "x.whl", None, known=False, python=Path(sys.executable))
    found = installs.install(package, lambda *_: None, lambda: None)
    assert json.loads(record.read_text())["toolkits"][0]["version"] == found.version == "1.1.1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_installation_changes_nothing(home: Path, number: int) -> None:
    """After Ctrl-C nothing is left; what a SIGKILL leaves is no toolkit, and goes with the next installation."""
    arguments = ["toolkit", "install", str(toolkit_double.PACKAGE), "--python", sys.executable, "--allow-unknown"]
    command = [sys.executable, "-c", toolkit_double.PROGRAM, *arguments]
    folder = home / "data" / "rk3588" / "toolkit"
    with subprocess.Popen(command, env=toolkit_double.environment(home), stderr=subprocess.PIPE) as process:
        waited(lambda: any(folder.glob("python-*/pyvenv.cfg")))
        process.send_signal(number)
        process.wait(60)
    left = list(folder.iterdir())
    assert (left == []) is (number == signal.SIGINT)
    assert rkconvert("toolkit", "status", env=toolkit_double.environment(home)).returncode == 1
    if number == signal.SIGKILL:
        waited(lambda: removed(home) and not folder.exists())  # what it had started may still write


def test_what_still_writes_delays_a_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip does for a moment after an installation that was killed."""
    real, tries = shutil.rmtree, list[Path]()

    def rmtree(path: Path) -> None:
        tries.append(path)
        if len(tries) < 3:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        real(path)

    left = tmp_path / "python-x"
    left.mkdir()
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    installs._remove_tree(left)
    assert not left.exists() and len(tries) == 3
    monkeypatch.setattr(installs, "_STILL_WRITING_S", 0.0)
    tries.clear()
    left.mkdir()
    with pytest.raises(TargetError, match=r"cannot remove .*python-x: Directory not empty"):
        installs._remove_tree(left)


def removed(home: Path) -> bool:
    done = rkconvert("toolkit", "remove", env=toolkit_double.environment(home))
    assert done.returncode == 0, done.stderr
    return True


def waited(what: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


ENDS = {
    "fail": r"failed in build: it returned -1, having printed: ERROR: Catch exception when building RKLLM model!",
    "raise": r"failed in build: RuntimeError: Error\(s\) in loading state_dict: size mismatch; all it printed is in",
    "exit": r"failed in build: SystemExit: 3",
    "segv": r"crashed with SIGSEGV in build",
    "memory": r"got no more memory in build: out of memory. It had taken 0\.\d GB; this machine has [\d.]+ GB of RAM",
    "kill": r"was killed \(SIGKILL\) in build: out of memory. It had taken 0\.[1-9] GB; this machine has [\d.]+ GB of "
    r"RAM and [\d.]+ GB of free swap",
}


@pytest.mark.parametrize("end", ENDS)
def test_every_end_is_one_sentence(
    toolkit: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv("RKLLM_DOUBLE", f"build:{end}")
    model = models.tiny_llama(tmp_path / "model")
    calls: list[driver.Call] = [("load_huggingface", {"model": str(model)}), ("build", {})]
    with pytest.raises(ToolkitError, match=ENDS[end]) as failure:
        driver.run(toolkit.python, calls, tmp_path / "log")
    assert str(tmp_path / "log") in str(failure.value)
    assert "INFO: rkllm-toolkit version" in (tmp_path / "log").read_text()


def test_what_it_prints_becomes_progress(toolkit: Installed, tmp_path: Path) -> None:
    model = models.tiny_llama(tmp_path / "model")
    seen: list[tuple[str, int, int]] = []
    calls: list[driver.Call] = [("load_huggingface", {"model": str(model)}), ("build", {})]
    driver.run(toolkit.python, calls, tmp_path / "log", lambda *step: seen.append(step))
    assert ("rkllm-toolkit: Optimizing model", 50, 100) in seen
    assert {("rkllm-toolkit: load_huggingface", 0, 100), ("rkllm-toolkit: build", 100, 100)} <= {*seen}


def test_an_environment_that_is_broken(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"cannot be imported \(ModuleNotFoundError.*install it again"):
        driver.run(Path(sys.executable), [], tmp_path / "log")
    with pytest.raises(ToolkitError, match=r"cannot start .*/no/python"):
        driver.run(tmp_path / "no/python", [], tmp_path / "log")


DRIVE = """
import json, sys
from pathlib import Path
from rkconvert.signals import deferred_interrupts
from rkconvert.toolkit import driver, releases
with deferred_interrupts() as check:
    driver.run(Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]), check=check)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_survives(toolkit: Installed, tmp_path: Path, number: int) -> None:
    """Ctrl-C, or a kill of rkconvert that it cannot even see: the toolkit goes, and whatever it had started."""
    model = models.tiny_llama(tmp_path / "model")
    record = tmp_path / "record"
    env = {**os.environ, "RKLLM_DOUBLE": "build:children", "RKLLM_DOUBLE_RECORD": str(record)}
    calls = json.dumps([["load_huggingface", {"model": str(model)}], ["build", {}]])
    command = [sys.executable, "-c", DRIVE, str(toolkit.python), calls, str(tmp_path / "log")]
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
        waited(lambda: record.exists() and '"build"' in record.read_text())
        worker = json.loads(record.read_text().splitlines()[-1])[3]
        group = os.getpgid(worker)
        waited(lambda: len(members(group)) == 3)  # the watcher, the toolkit, and what that started
        process.send_signal(number)
        process.wait(60)
    waited(lambda: not members(group))


def members(group: int) -> list[int]:
    """The live processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(its_group) == group and state != "Z":
                found.append(int(entry.name))
    return found
