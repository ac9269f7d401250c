"""What a deployment makes of its options, and what it says of its progress and at its end: no board is needed."""

from __future__ import annotations

import io
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("paramiko")

from rk3588 import bundle as bundles
from rk3588.commands import connecting, deploy, doctor, releases, rollback
from rk3588.commands.deploy import ProgressDisplay, usage_text
from rk3588.deploy import deployment, planning, transfer
from rk3588.deploy.apply import Done
from rk3588.deploy.facts import Facts
from rk3588.deploy.local import LocalConnection
from rk3588.deploy.release_files import File
from rk3588.deploy.ssh import connection
from rk3588.deploy.ssh.config import Destination
from rk3588.deploy.state import BoardState
from rk3588.deploy.steps import DeploymentPlan, Send
from rk3588.errors import ConnectError, LibraryError, RkError, UsageError
from tests import deploying, plan_cases

TARGET = Destination("kitchen", "192.0.2.7", 22, "me", (), True, (), None, (), False, None, 10.0)


def outcome_on(board: str, listen: str) -> deployment.Outcome:
    facts = plan_cases.board(board)
    found = deployment.Inspection(facts, "/opt/rkchatd", BoardState())
    return deployment.Outcome(found, DeploymentPlan("0123", ()), Done(), True, (), {"listen": listen, "port": 8080})


def test_how_it_is_reached_over_ssh() -> None:
    """The tunnel goes the way that was taken, whatever the configuration makes of it."""
    target = replace(TARGET, openssh=("-i", "/home/me/a key", "-J", "door", "me@kitchen"))
    over = connection.SshConnection(target, connection.Route(), lambda _: None)
    said = usage_text(over, outcome_on("orange-pi-5-plus", "127.0.0.1"))
    assert "ssh -NL 8080:127.0.0.1:8080 -i '/home/me/a key' -J door me@kitchen " in said
    assert "URL            http://127.0.0.1:8080/v1" in said
    assert "sudo cat /opt/rkchatd/keys" in said
    said = usage_text(over, outcome_on("orange-pi-5-plus", "0.0.0.0"))
    assert "URL            http://192.0.2.7:8080/v1" in said
    assert "ssh -NL" not in said


def test_how_this_machine_is_reached_from_the_network() -> None:
    said = usage_text(LocalConnection(lambda _: None), outcome_on("orange-pi-5-plus", "0.0.0.0"))
    assert "URL            http://192.168.1.20:8080/v1" in said
    assert "127.0.0.1" not in said


def test_clocks_that_were_left_alone_stay_so() -> None:
    """As port and settings do, where nothing else is said."""
    bundle: Any = None
    facts = plan_cases.board("orange-pi-5-plus")
    for said, there, expected in ((None, {}, True), (None, {"pin": False}, False), (True, {"pin": False}, True)):
        state = BoardState(releases={"a": {"manifest": there}}, current="a")
        file = Path("/dev/null")
        options = deployment.Options(pin=said, daemon=file, sim_library=file, runtime=file)
        spec = deployment.make_spec(bundle, options, deployment.Inspection(facts, "/opt/rkchatd", state))
        assert spec.pin is expected


def test_progress_counts_what_is_sent_and_not_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate and a time from nothing, or from bytes that are there already, would say millions of minutes or none."""
    clock = iter([100.0, 100.0, 101.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", out)
    drawn = ProgressDisplay(quiet=False)
    drawn.step(Send(File("model", b"", 10_000_000, ""), "/model", have=8_000_000))
    drawn.sent(8_000_000)
    assert out.getvalue() == ""
    drawn.sent(1_000_000)
    assert out.getvalue().endswith("model  90 %  1.0 MB/s  0:01 left")


def test_a_limited_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first byte on, however long other things took meanwhile."""
    now = [100.0]
    monkeypatch.setattr("rk3588.deploy.transfer.time.monotonic", lambda: now[0])
    monkeypatch.setattr("rk3588.deploy.transfer.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    throttle = transfer.Throttle(500_000)
    assert throttle.block <= 50_000
    for _ in range(100):
        throttle.wait(throttle.block)
    assert now[0] - 100 == pytest.approx(100 * throttle.block / 500_000)
    now[0] += 60
    throttle.wait(throttle.block)
    assert now[0] - 160 == pytest.approx(101 * throttle.block / 500_000)


FILES = ("--runtime", "--daemon", "--sim-library", "--sim-runtime", "--ssh-config", "--hosts")


@pytest.mark.parametrize("option", FILES)
def test_a_file_that_is_not_there_is_the_call_s_mistake(tmp_path: Path, option: str) -> None:
    """So the exit code is 2, before anything is asked of the board."""
    bundle, absent = deploying.bundle(tmp_path, "one"), str(tmp_path / "absent")
    words = [str(bundle), "--board", "me@192.0.2.7", "--plan", "--runtime", "sim", option, absent]
    caught = CliRunner().invoke(deploy.command, words).exception
    assert isinstance(caught, UsageError) and caught.exit_code == 2
    assert str(caught).startswith(f"{option} {absent}: there is no such file; ")
    if option in ("--ssh-config", "--hosts"):
        assert isinstance(CliRunner().invoke(releases.command, ["me@192.0.2.7", option, absent]).exception, UsageError)


def test_a_file_that_is_another_is_told_before_the_board_is_asked(
    tmp_path: Path, rksim_library: Path, rkllm_library: Path
) -> None:
    """What is wrong in a file is exit code 1, as of every other command."""
    sim, npu = deploying.bundle(tmp_path, "one"), deploying.bundle(tmp_path, "npu", target="rk3588")
    text = tmp_path / "README.md"
    text.write_text("no library")
    kind = "is not a shared library for aarch64 or x86-64: give"
    rows = {
        ("--runtime", text): f"{text} {kind} Rockchip's librkllmrt.so",
        ("--runtime", tmp_path): f"{tmp_path} is no librkllmrt.so: give the path of one",
        ("--runtime", rkllm_library): f"{rkllm_library} is the simulated runtime: say --runtime sim for it",
        ("--sim-library", text): f"{text} {kind} the librksim.so for the board",
        ("--sim-library", tmp_path): f"{tmp_path} is no librksim.so: give the path of one",
        ("--sim-library", rkllm_library): f"{rkllm_library} is no librksim.so: give the librksim.so for the board",
        ("--sim-runtime", text): f"{text} {kind} the simulated librkllmrt.so for the board",
        ("--sim-runtime", rksim_library): f"{rksim_library} is not the simulated runtime: give the simulated",
        ("--daemon", text): f"{text} is no rkchatd.pyz: build it with `make pyz`",
    }
    for (option, file), told in rows.items():
        bundle = npu if option == "--runtime" else sim
        words = [str(bundle), "--board", "me@192.0.2.7", *(() if bundle is npu else ("--runtime", "sim"))]
        done = CliRunner().invoke(deploy.command, [*words, option, str(file)])
        assert isinstance(done.exception, RkError) and done.exception.exit_code == 1, (option, file, done.exception)
        assert str(done.exception).startswith(told) and not done.stderr
        if option == "--runtime":
            caught = CliRunner().invoke(doctor.command, ["me@192.0.2.7", option, str(file)]).exception
            assert isinstance(caught, LibraryError) and str(caught).startswith(told) and caught.exit_code == 1


SETTINGS = {
    "temprature=0": "unknown key 'temprature' in the daemon's settings: did you mean 'temperature'?",
    "temperature=hot": "'temperature': has to be a number from 0 to 100, not 'hot'",
    "temperature=": "--set 'temperature=': give it a value, as in temperature=0",
    "top_p=[0.5]": "'top_p' has to have one value",
    "top_k=0": "'top_k': has to be a whole number from 1 to 2147483647, not '0'",
    "strict=perhaps": "'strict': 'perhaps' is not a valid boolean",
    "log=loud": "'loud' is not one of 'debug', 'info'",
    "max_tokens=0": "max_tokens 0 asks for no answers",
    "name=2026-99-99": "the value is no YAML",
    "context=99999999": "--set context=99999999: a board can use 4096 tokens; give no more, or --set beyond_board=true",
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("plan", [[], ["--plan"]])
@pytest.mark.usefixtures("unreached")
def test_a_setting_that_is_none_is_told_before_the_board_is_asked(
    tmp_path: Path, setting: str, plan: list[str]
) -> None:
    caught = deployed(tmp_path, "--runtime", "sim", "--set", setting, *plan).exception
    assert isinstance(caught, UsageError), caught
    assert SETTINGS[setting] in str(caught)


SOUND = [
    "temperature=0",
    "strict=yes",
    "cors=[https://a.example, 'null']",
    "name=2026-11-28",
    "log=debug",
]


@pytest.mark.usefixtures("unreached")
def test_settings_that_are_right(
    tmp_path: Path,
) -> None:
    words = [word for setting in (*SOUND, "context=8192", "beyond_board=true") for word in ("--set", setting)]
    assert isinstance(deployed(tmp_path, "--runtime", "sim", *words).exception, ConnectError)
    assert deploy._settings(("name=2026-11-28",)) == {"name": "2026-11-28"}  # no date, which is no JSON


def test_a_setting_given_twice() -> None:
    with pytest.raises(UsageError, match="--set top_k is given more than once"):
        deploy._settings(("top_k=1", "top_k=2"))


@pytest.mark.usefixtures("unreached")
def test_without_the_daemon_s_extra_settings_go_unchecked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rkruntime.daemon.config", None)
    done = deployed(tmp_path, "--runtime", "sim", "--set", "temprature=0")
    assert isinstance(done.exception, ConnectError)
    assert "Note: --set is checked on the board only, for there is no rkruntime.daemon.config here" in done.stderr


def test_a_context_counts_as_the_daemon_will_take_it() -> None:
    spec: Any = ReleaseSpecOf({})
    for settings, tokens in (({}, 0), ({"context": 512}, 512), ({"context": 8192}, 4096), ({"context": "x"}, 0)):
        assert deployment._context(replace(spec, settings=settings)) == tokens
    assert deployment._context(replace(spec, settings={"context": 8192, "beyond_board": True})) == 8192


def test_where_a_template_may_lie(tmp_path: Path) -> None:
    """On the board, where its service sees it, or in the release, which a relative path begins at."""
    (tmp_path / "my own.jinja").write_text("{{ messages }}")
    board, facts, bundle = LocalConnection(lambda _: None), Facts(), bundles.read(deploying.bundle(tmp_path, "one"))
    for there in (str(tmp_path / "my own.jinja"), "bundle/chat_template.jinja", "./bundle/chat_template.jinja", None):
        deployment._check_template_file(board, cast(Any, ReleaseSpecOf({"template": there}, bundle)), facts)
    for path in (str(tmp_path), "bundle/nope.jinja", "chat_template.jinja", "~/x.jinja", "-e"):
        with pytest.raises(UsageError, match="there is no such file on this machine"):
            deployment._check_template_file(board, cast(Any, ReleaseSpecOf({"template": path}, bundle)), facts)
    with pytest.raises(UsageError, match="the service does not see it there"):
        hidden = ReleaseSpecOf({"template": "/home/me/x.jinja"}, bundle)
        deployment._check_template_file(board, cast(Any, hidden), replace(facts, systemd=252))


@dataclass(frozen=True)
class ReleaseSpecOf:
    settings: dict[str, Any]
    bundle: Any = None


@pytest.mark.usefixtures("unreached")
def test_a_runtime_has_to_be_said(
    tmp_path: Path,
) -> None:
    caught = deployed(tmp_path).exception
    assert isinstance(caught, UsageError) and "give --runtime sim to run it on the board's CPU" in str(caught)
    npu = deploying.bundle(tmp_path, "npu", target="rk3588")
    caught = CliRunner().invoke(deploy.command, [str(npu), "--board", "me@192.0.2.7"]).exception
    assert isinstance(caught, UsageError) and "for aarch64 (1.1.1, or any from 1.1.0 to 1.3.1)" in str(caught)


@pytest.mark.usefixtures("unreached")
def test_what_it_is_at_is_said_at_once_and_into_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = deployed(tmp_path, "--runtime", "sim")
    assert done.stderr == f"me@192.0.2.7: connecting, for {tmp_path / 'one'}\n"
    for quiet, said in ((True, ""), (False, "looking at the board\nsending model, 10.0 MB\nits own words\n")):
        drawn = ProgressDisplay(quiet)
        drawn.event("facts")
        drawn.step(Send(File("small", b"", 10_000, ""), "/small", have=0))
        drawn.step(Send(File("model", b"", 10_000_000, ""), "/model", have=0))
        drawn.event("its own words")
        drawn.event("its own words")
        drawn.close()
        assert capsys.readouterr().err == said


@pytest.fixture
def unreached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board that is not there."""

    def refuse(*_: Any) -> None:
        raise ConnectError("the board was asked")

    monkeypatch.setattr(connecting, "open_connection", refuse)


def deployed(tmp_path: Path, *words: str) -> Result:
    bundle = deploying.bundle(tmp_path, "one")
    return CliRunner().invoke(deploy.command, [str(bundle), "--board", "me@192.0.2.7", *words])


def test_going_back_says_from_where_and_how_to_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {name: {"manifest": {"name": "tiny", "dtype": "w8a8"}, "proven": 1, "deployed": 1} for name in "abc"}
    before = BoardState(releases=rows, current="b")
    monkeypatch.setattr(connecting, "open_connection", lambda *_: nullcontext())
    monkeypatch.setattr(deployment, "roll_back", lambda *_, **__: (DeploymentPlan("a", ()), Done(), before))
    said = CliRunner().invoke(rollback.command, ["attic"]).stderr
    told = (
        "attic: release a (tiny w8a8) is current and answered a chat; before it was b. --to RELEASE goes to another: "
    )
    assert said == f"{told}b, c\n"
    caught = CliRunner().invoke(rollback.command, ["attic", "0123"]).exception
    assert isinstance(caught, UsageError) and "rk3588 rollback attic --to 0123" in str(caught)


def test_a_release_that_there_is_none_of_is_the_call_s_mistake() -> None:
    row = {"manifest": {}, "files": {}, "proven": 1, "deployed": 1}
    board = BoardState(releases={"a1": row, "a2": row}, current="a1")
    for said, told in (("zzz", "no release 'zzz'"), ("a", "more than one release that begins with 'a'")):
        with pytest.raises(UsageError, match=f"there is {told} on the board; there are: a1, a2"):
            planning.plan_rollback(board, "/opt/rkchatd", True, said)


def test_what_a_bundle_says_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Its model's name comes from its manifest."""
    outcome = outcome_on("orange-pi-5-plus", "127.0.0.1")
    manifest = {**outcome.manifest, "runtime": "npu", "model_file": "a\x1b]0;x\x07b", "runtime_version": "1.1.1"}
    local = LocalConnection(lambda _: None)
    deploy._report("local\x9b", local, replace(outcome, manifest=manifest), only_plan=False, as_json=False)
    said = capsys.readouterr()
    assert "a\ufffd]0;x\ufffdb" in said.err
    assert not {"\x1b", "\x07", "\x9b"} & set(said.out + said.err)
