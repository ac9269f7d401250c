"""The real daemon as a service of systemd, on a board with OpenSSH and sudo: what it may do, and what ends it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("paramiko")

from rk3588.boards import catalogue
from rk3588.deploy import units
from rk3588.simboard import control, nspawn, tree
from tests import deploying, sshd
from tests import scene as scenes
from tests.core import test_clocks
from tests.deploying import Deployer
from tests.fakes import compile_library, fake_rkllm, scripted_bundle
from tests.scene import Scene

pytestmark = [
    pytest.mark.slow,  # `make test-boards`
    pytest.mark.usefixtures("board_watch"),
    pytest.mark.skipif(bool(nspawn.why_unavailable()), reason=nspawn.why_unavailable() or "-"),
]

# Says at init that all is well and dies of the first prompt, as the real one does with a model of another version.
LIAR = """
#include <stdlib.h>
#include "rkllm.h"
#define EXPORT __attribute__((visibility("default")))
EXPORT RKLLMParam rkllm_createDefaultParam(void) { RKLLMParam p = {0}; return p; }
EXPORT int rkllm_init(LLMHandle *h, RKLLMParam *p, LLMResultCallback c) { (void)p, (void)c; *h = h; return 0; }
EXPORT int rkllm_load_lora(LLMHandle h, RKLLMLoraAdapter *l) { (void)h, (void)l; return 0; }
EXPORT int rkllm_load_prompt_cache(LLMHandle h, const char *p) { (void)h, (void)p; return 0; }
EXPORT int rkllm_release_prompt_cache(LLMHandle h) { (void)h; return 0; }
EXPORT int rkllm_destroy(LLMHandle h) { (void)h; return 0; }
EXPORT int rkllm_run(LLMHandle h, RKLLMInput *i, RKLLMInferParam *p, void *u) {
  (void)h, (void)i, (void)p, (void)u;
  abort();
}
EXPORT int rkllm_run_async(LLMHandle h, RKLLMInput *i, RKLLMInferParam *p, void *u) { return rkllm_run(h, i, p, u); }
EXPORT int rkllm_abort(LLMHandle h) { (void)h; return 0; }
EXPORT int rkllm_is_running(LLMHandle h) { (void)h; return 1; }
const char *const version = "rkllm-runtime version: 1.1.1", *const ours = "RKSIM_LOG_LEVEL";
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this module's boards are kept."""
    folder = tmp_path_factory.mktemp("boards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def scene(home: Path, pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A fresh board, reached by its name."""
    board = nspawn.up("shelf", catalogue().board("rock-5b"))
    yield Scene(board, Deployer("shelf", pyz, home), tmp_path_factory.mktemp("shelf"))
    control.down("shelf")


def test_the_real_daemon_from_nothing_to_the_next_model(scene: Scene, tiny_bundles: Mapping[str, Path]) -> None:
    first = scene.deployer.deploy(tiny_bundles["w8a8"])
    scene.answer()
    assert scene.deployer.deploy(tiny_bundles["w8a8"]) == {**first, "commands": 0, "bytes_sent": 0}
    scene.deployer.deploy(tiny_bundles["fp32"])
    assert [(row["dtype"], row["current"]) for row in scene.deployer.releases()] == [("fp32", True), ("w8a8", False)]
    (row,) = json.loads(scene.deployer.run("rollback", "shelf", "--json").stdout)
    assert row["release"] == first["release"]
    scene.answer()


def test_the_tunnel_it_names_leads_there(scene: Scene, tiny_bundles: Mapping[str, Path]) -> None:
    """With another port at this end, which may be taken here."""
    said = [word for word in scene.deployer.words(tiny_bundles["w8a8"]) if word != "--json"]
    lines = scene.deployer.run(*said).stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("from here"))
    port = sshd.free_port()
    tunnel = line.removeprefix("from here").partition("   (")[0].strip().replace("8080:", f"{port}:", 1)
    process = subprocess.Popen([*shlex.split(tunnel), "-oBatchMode=yes"], stdin=subprocess.DEVNULL)
    try:
        key = (scene.disk / "rkchatd" / "keys").read_text().strip().rpartition(":")[2]
        deadline = time.monotonic() + 30
        while True:
            try:
                reply = deploying.reply_to_chat(port, key)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert reply["choices"][0]["finish_reason"]
    assert reply["model"] == scene.serving()  # its text may be empty: the model is a random one


def test_it_runs_as_nobody_in_particular(scene: Scene) -> None:
    shown = scene.inside("systemctl", "show", "rkchatd", "-pUser,Type,WatchdogUSec,LimitNOFILE,ActiveState").stdout
    assert "User=rkchatd" in shown
    assert "Type=notify" in shown
    assert "WatchdogUSec=1min" in shown
    assert "ActiveState=active" in shown
    assert scene.inside("systemctl", "is-enabled", "rkchatd").stdout.strip() == "enabled"
    verdict = scene.inside("systemd-analyze", "verify", "/etc/systemd/system/rkchatd.service")
    assert (verdict.returncode, verdict.stderr) == (0, "")
    exposure = scene.inside("systemd-analyze", "security", "--threshold=20", "rkchatd")
    assert exposure.returncode == 0, exposure.stdout[-200:]
    rights = scene.inside("stat", "-c", "%U %a", "/opt/rkchatd/keys", "/opt/rkchatd/releases").stdout.split()
    assert rights == ["rkchatd", "600", "root", "755"]


def test_it_is_started_again_and_comes_back_after_a_reboot(scene: Scene) -> None:
    before = scene.inside("systemctl", "show", "rkchatd", "-pMainPID").stdout
    scene.inside("systemctl", "kill", "-s", "KILL", "rkchatd")
    scene.answer()
    assert scene.inside("systemctl", "show", "rkchatd", "-pMainPID").stdout != before
    scenes.reboot(scene.board)
    scene.wait_until_up()
    scene.answer()


def test_settings_reach_the_daemon_and_stay(scene: Scene, tiny_bundles: Mapping[str, Path]) -> None:
    """Greedy: so the same answer twice. What the daemon does not know is refused in its own words."""
    scene.deployer.deploy(tiny_bundles["w8a8"], "--set", "temperature=0", "--set", "max_tokens=3")
    configuration = scene.disk / "rkchatd" / "current" / "rkchatd.yaml"
    assert "temperature: 0\nmax_tokens: 3\n" in configuration.read_text()
    assert "state_dir: /var/lib/rkchatd\n" in configuration.read_text()
    assert scene.answer() == scene.answer()
    scene.deployer.deploy(tiny_bundles["fp32"])
    assert "temperature: 0" in configuration.read_text()
    assert "did you mean 'temperature'" in scene.deployer.fail(tiny_bundles["fp32"], "--set", "temperatur=0", code=2)
    assert "that one is the deployment's own" in scene.deployer.fail(tiny_bundles["fp32"], "--set", "keys=x", code=2)


def test_a_runtime_that_lies_at_init(scene: Scene, tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "liar.c").write_text(LIAR)
    liar = compile_library(tmp_path / "liar.c", tmp_path / "liar.so")
    current = scene.deployer.releases()[0]["release"]
    said = scene.deployer.fail(tiny_bundles["fp32"], "--sim-runtime", liar, "--patience", 8)
    assert "did not prove itself" in said
    assert f"The old release {current} is back and answers" in said
    scene.answer()


def test_a_prefix_whose_writes_would_vanish(scene: Scene, tiny_bundles: Mapping[str, Path]) -> None:
    said = scene.deployer.run("doctor", "shelf", "--runtime", "sim", "--prefix", "/srv/rkchatd", code=1).stdout
    assert "/srv/rkchatd is on a read-only or volatile root (overlay)" in said
    # There is one service: it is neither moved nor taken away by a prefix that was mistyped.
    for words in (scene.deployer.words(tiny_bundles["fp32"]), ["remove", "shelf", "--yes"], ["rollback", "shelf"]):
        assert "runs from /opt/rkchatd" in scene.deployer.run(*words, "--prefix", "/srv/rkchatd", code=1).stderr


def test_an_older_unit_is_replaced_and_drop_ins_stay(scene: Scene, tiny_bundles: Mapping[str, Path]) -> None:
    unit = scene.board.folder / "root" / "etc" / "systemd" / "system" / "rkchatd.service"
    unit.write_text(unit.read_text().replace("RestartSec=5", "RestartSec=50"))
    drop_in = unit.with_name("rkchatd.service.d") / "mine.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nEnvironment=MINE=yes\n")
    (row,) = (row for row in scene.deployer.releases() if row["current"])
    bundle = tiny_bundles[row["dtype"]]
    assert 1 <= scene.deployer.deploy(bundle)["commands"] <= 2  # what never answered goes, too
    assert "RestartSec=50" not in unit.read_text()
    assert "MINE=yes" in scene.inside("systemctl", "show", "rkchatd", "-pEnvironment").stdout
    assert scene.deployer.deploy(bundle)["commands"] == 0
    drop_in.unlink()
    drop_in.parent.rmdir()


def test_remove_leaves_no_trace(scene: Scene) -> None:
    scene.deployer.run("remove", "shelf", "--yes")
    root = scene.board.folder / "root"
    assert list(scene.disk.iterdir()) == []
    assert "rkchatd" not in (root / "etc" / "passwd").read_text()
    assert not (root / "var" / "lib" / "rkchatd").exists()
    assert list((root / "etc").rglob("*rkchatd*")) == []
    assert scene.inside("systemctl", "status", "rkchatd").returncode == 4  # no such unit
    assert scene.inside("pgrep", "-fc", "[r]kchatd").stdout.strip() == "0"


@pytest.fixture
def npu_board(scene: Scene) -> Iterator[Path]:
    """The board with what a container's /sys has not: an NPU and clocks, for who looks below RKBOARD_SYSROOT."""
    root = scene.board.folder / "root"
    sysroot = root / "sysroot"
    tree.write_all(sysroot, catalogue().board("rock-5b"))
    test_clocks.load(sysroot, 0)
    (sysroot / "run" / "systemd" / "system").mkdir(parents=True)
    settings = root / "etc" / "ssh" / "sshd_config.d" / "sysroot.conf"
    settings.write_text("SetEnv RKBOARD_SYSROOT=/sysroot\n")
    drop_in = root / "etc" / "systemd" / "system" / "rkchatd-clocks.service.d" / "sysroot.conf"
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nEnvironment=RKBOARD_SYSROOT=/sysroot\nReadWritePaths=/sysroot\n")
    scene.inside("systemctl", "restart", "ssh")
    yield sysroot
    settings.unlink()
    scene.inside("systemctl", "restart", "ssh")
    shutil.rmtree(drop_in.parent)


def test_a_release_for_an_npu_and_its_clocks(scene: Scene, npu_board: Path, tmp_path: Path) -> None:
    """With the library that a script drives. The old release ends before the new one begins, and comes back."""
    library = fake_rkllm(tmp_path)
    one, two = (scripted_bundle(tmp_path / word, f"token 5 {word.encode().hex()}") for word in ("one", "two"))
    liar = scripted_bundle(tmp_path / "liar", "return -1")
    deployer = scene.deployer

    def words(bundle: Path) -> list[object]:
        return ["deploy", bundle, "--board", "shelf", "--daemon", deployer.daemon, "--runtime", library, "--json"]

    (row,) = json.loads(deployer.run(*words(one)).stdout)
    assert scene.answer() == "one"
    assert json.loads(deployer.run(*words(one)).stdout) == [{**row, "commands": 0, "bytes_sent": 0}]
    rest = test_clocks.governors(npu_board)
    test_clocks.load(npu_board, 40)
    test_clocks.wait_for(npu_board, ["performance"] * 5)
    scene.inside("systemctl", "stop", "rkchatd")
    test_clocks.wait_for(npu_board, rest)
    scene.inside("systemctl", "start", "rkchatd")
    test_clocks.wait_for(npu_board, ["performance"] * 5)
    test_clocks.load(npu_board, 0)
    deployer.run(*words(two))
    assert scene.answer() == "two"
    said = deployer.run(*words(liar), code=1).stderr
    assert re.search(r"its worker ended \d times \(the model cannot be loaded: rkllm_run failed with -1", said), said
    assert "is back and answers" in said
    assert scene.answer() == "two"
    assert scene.inside("systemctl", "is-active", "rkchatd-clocks").stdout == "active\n"
    deployer.run("remove", "shelf", "--yes")
    assert scene.inside("systemctl", "status", "rkchatd-clocks").returncode == 4
    assert test_clocks.governors(npu_board) == rest


def test_units_are_what_systemd_takes(tmp_path: Path) -> None:
    """Both of them, filled for a board with everything; the paths they name need not be here."""
    from tests.plan_cases import board

    facts = board("orange-pi-5-plus")
    values = {"PREFIX": "/opt/rkchatd", "PYTHON": "/usr/bin/python3", "COMMAND": "/usr/bin/true", "USER": "root"}
    more = {"GROUPS": "SupplementaryGroups=video", "LOAD": "90", "BACKOFF": "", "AFFINITY": "CPUAffinity=0 1 2 3"}
    assert facts.little_cpus == (0, 1, 2, 3)
    for name in ("rkchatd.service", "rkchatd-clocks.service"):
        text = units.fill_template(name, {**values, **more})
        assert "@" not in text.replace("@system-service", "")
        (tmp_path / name).write_text(text)
        if not os.access("/usr/bin/systemd-analyze", os.X_OK):
            pytest.skip("no systemd-analyze here")
        command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-300:] + done.stderr
