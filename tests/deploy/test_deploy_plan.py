"""What a deployment would do: golden plans of many boards, and hostile names that stay names."""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rk3588.commands import releases
from rk3588.deploy import facts, judge, planning, probes, shell
from rk3588.deploy.findings import LEVELS
from rk3588.deploy.state import BoardState, latest_first
from rk3588.deploy.steps import Activate, Command, Send, describe_plan, plan_as_json
from rk3588.errors import DeployError, UsageError
from tests import plan_cases
from tests.plan_cases import PREFIX, A, B, on_board, wanted

CASES = plan_cases.cases()
# Everything a file may be called, and what shells make something of.
CHARACTERS = st.characters(exclude_characters="\0/", exclude_categories=["Cs"])
HOSTILE = st.text(CHARACTERS, min_size=1, max_size=30).filter(lambda name: name not in (".", ".."))
NASTY = ("$(touch x)", "`id`", "'", '"', "a\nb", "; rm -rf ~", "--", "-rf", "*", "~", "\\", "!x", "a\tb", "é\u202e")
UNBEARABLE = ("/opt", "opt/x", "/opt/../etc", "/opt/a b", "/opt/$HOME", "/opt/a%n", "/", "", "/opt/a\n")


def test_there_are_sixty_and_no_golden_file_too_many() -> None:
    assert len(CASES) >= 60
    assert {path.stem for path in plan_cases.GOLDEN.glob("*.txt")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_golden_plan(name: str) -> None:
    """``python -m tests.plan_cases`` writes them anew."""
    assert plan_cases.rendered(CASES[name]) == (plan_cases.GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_pure(name: str) -> None:
    assert plan_cases.rendered(plan_cases.cases()[name]) == plan_cases.rendered(CASES[name])


def words_of(line: str) -> list[str]:
    """The words that a real shell makes of a command line, with the command replaced by a printer."""
    program = 'show() { for word; do printf "%s\\0" "$word"; done; }; '
    done = subprocess.run(["sh", "-c", f"{program}show {line}"], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().split("\0")[:-1]


@settings(max_examples=60)
@given(st.lists(HOSTILE, min_size=1, max_size=5))
@example(list(NASTY))
def test_words_reach_a_program_as_they_are(words: list[str]) -> None:
    assert words_of(shell.command(*words)) == words
    assert words_of(shell.command("sh", "-c", shell.command(*words)))[2] == shell.command(*words)


@settings(max_examples=60)
@given(st.lists(HOSTILE, min_size=1, max_size=4, unique=True))
@example(list(NASTY))
def test_hostile_file_names_stay_one_word(names: list[str]) -> None:
    """Sent, linked and deleted: the path is one word of the command, wherever it comes up."""
    release = wanted("w", *(plan_cases.file(f"bundle/{name}", f"of {name}") for name in names))
    folder = f"{PREFIX}/incoming/{release.id}/bundle"
    opi = plan_cases.board("orange-pi-5-plus")
    sent = [step for step in planning.plan_release(opi, BoardState(), release, PREFIX).steps if isinstance(step, Send)]
    paths = [words_of(step.line)[1] for step in sent]
    assert [f"{folder}/{name}" for name in names] == paths[-len(names) :]
    arrived = {release.id: {"files": {f"bundle/{name}": "0" * 64 for name in names}, "parts": {}}}
    again = planning.plan_release(opi, BoardState(exists=True, incoming=arrived), release, PREFIX).steps
    (removal,) = (step for step in again if isinstance(step, Command) and step.line.startswith("rm "))
    assert words_of(removal.line)[3:] == [f"{folder}/{name}" for name in sorted(names)]
    linked = planning.plan_release(opi, on_board(release), wanted("other", *release.files[5:]), PREFIX).steps
    links = [words_of(step.line) for step in linked if isinstance(step, Command) and step.line.startswith("ln ")]
    assert {f"{PREFIX}/releases/{release.id}/bundle/{name}" for name in names} <= {line[2] for line in links}


def test_a_nul_is_refused() -> None:
    with pytest.raises(DeployError, match="NUL"):
        shell.command("cat", "a\0b")


@pytest.mark.parametrize("prefix", UNBEARABLE)
def test_prefixes_that_units_could_not_bear(prefix: str) -> None:
    with pytest.raises(UsageError, match="--prefix"):
        planning.check_prefix(prefix)


@given(st.text(max_size=40))
def test_any_prefix_is_harmless_or_refused(prefix: str) -> None:
    try:
        planning.check_prefix(prefix)
    except UsageError:
        return
    assert shell.command(prefix) == prefix
    assert ".." not in Path(prefix).parts
    assert "%" not in prefix


def test_after_a_plan_there_is_nothing_to_do() -> None:
    """What a plan brings about, it does not want again: for every board that gets one."""
    for name, case in CASES.items():
        if case.act or judge.refusals(judge.judge(case.facts, case.prefix, case.need, case.simulated)):
            continue
        after = on_board(case.release, user=True, groups=("rkchatd", "render", "video"))
        assert planning.plan_release(case.facts, after, case.release, case.prefix).steps == (), name


def test_a_switch_comes_after_all_that_could_fail_and_deletions_after_it() -> None:
    for case in CASES.values():
        steps = planning.plan_release(case.facts, case.state, case.release, case.prefix).steps
        switch = [number for number, step in enumerate(steps) if isinstance(step, Activate)]
        assert len(switch) <= 1
        for number, step in enumerate(steps):
            if isinstance(step, Send) or (isinstance(step, Command) and step.agent):
                assert number < switch[0]
            if isinstance(step, Command) and step.line.startswith("rm -rf"):
                assert not switch or number > switch[0]


def test_nothing_that_could_serve_again_is_deleted_before_its_turn() -> None:
    for name, case in CASES.items():
        if name.startswith("damaged"):
            continue
        for step in planning.plan_release(case.facts, case.state, case.release, case.prefix, 2).steps:
            if isinstance(step, Command) and step.line.startswith("rm -rf"):
                doomed = words_of(step.line)[3:]
                assert f"{case.prefix}/releases/{case.release.id}" not in doomed
                assert f"{case.prefix}/releases/{case.state.current}" not in doomed


def test_pruning_has_an_end() -> None:
    """The releases that a deployment leaves are those that the next run of it keeps."""
    opi = plan_cases.board("orange-pi-5-plus")
    state = on_board(*(wanted(f"model {number}") for number in range(3)), current=2)
    release = wanted("model 2")
    assert planning.plan_release(opi, state, release, PREFIX, 3).steps == ()


def test_bytes_of_a_resumed_plan() -> None:
    case = CASES["resume-half-a-file"]
    made = planning.plan_release(case.facts, case.state, case.release, case.prefix)
    assert made.bytes == A.size - 3
    assert sum(step["bytes"] for step in plan_as_json(made)) == made.bytes


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.sampled_from(["releases", "incoming", "current", "unproven", "groups", "keys", "new"]),
        st.recursive(st.none() | st.integers(), lambda s: st.dictionaries(st.text(), s) | st.lists(s, max_size=2)),
    )
)
def test_a_board_may_describe_itself_as_it_likes(answer: dict[str, Any]) -> None:
    with contextlib.suppress(DeployError):
        releases.listed(BoardState.from_answer(answer))


ROW: dict[str, Any] = {"manifest": {"name": "n", "files": {}}, "files": {}, "proven": 1, "deployed": 1.0}
SENSELESS: tuple[dict[str, Any], ...] = (
    {"releases": {"a": {**ROW, "deployed": 1e300}}},
    {"releases": {"a": {**ROW, "deployed": float("nan")}}},
    {"releases": {"a": {**ROW, "manifest": {"files": []}}}},
    {"releases": {"a": {**ROW, "manifest": {"files": {"x": "y"}}}}},
    {"releases": {"a": {**ROW, "manifest": {"files": {"x": {"sha256": "y", "size": "1"}}}}}},
    {"releases": {"a": {**ROW, "manifest": {"load_seconds": "long"}}}},
    {"releases": {"a": {**ROW, "files": {"x": 1}}}},
    {"incoming": {"a": {"files": {}, "parts": {"x": "1"}}}},
    {"incoming": {"a": []}},
)


@pytest.mark.parametrize("answer", SENSELESS, ids=str)
def test_what_no_agent_of_ours_says_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(DeployError, match="makes no sense"):
        BoardState.from_answer(answer)


def test_what_a_board_calls_its_releases_does_not_steer_a_terminal() -> None:
    """In the plan and in the list of releases; JSON has it escaped."""
    title = "\x1b]0;owned\x07\x9b31m"
    state = replace(on_board(A, B, current=1), incoming={title: {"files": {}, "parts": {}}})
    state = replace(state, releases={**state.releases, title: {**ROW, "manifest": {"name": title, "files": {}}}})
    made = planning.plan_release(plan_cases.board("orange-pi-5-plus"), state, A, PREFIX)
    for text in (describe_plan(made), json.dumps(plan_as_json(made)), json.dumps(releases.listed(state))):
        assert "owned" in text
        assert all(sign.isprintable() or sign == "\n" for sign in text)


def test_the_newest_is_by_the_proof_and_not_by_a_clock_that_jumps() -> None:
    state = on_board(A, B, current=1)
    rows = json.loads(json.dumps(state.releases))
    rows[A.id]["deployed"], rows[B.id]["deployed"] = 2e9, 1.0
    assert latest_first(BoardState(releases=rows)) == [B.id, A.id]


# -------------------------------------------------------------------------------------------------- facts, judged


def test_every_board_file_is_read_without_a_gap() -> None:
    for path in (plan_cases.HERE / "boards").glob("*.json"):
        raw = json.loads(path.read_text())
        assert set(raw) == {fact.name for fact in probes.FACTS} | {"sudo", "clock_error"}, path.name
        probes.parse(raw)


def test_facts_of_an_orange_pi() -> None:
    found = plan_cases.board("orange-pi-5-plus")
    assert found.compatible == ("rockchip,rk3588-orangepi-5-plus", "rockchip,rk3588")
    assert (found.driver, found.python, found.libc, found.systemd) == ("0.9.8", (3, 11), "glibc 2.36", 252)
    assert found.little_cpus == (0, 1, 2, 3)
    assert found.listening == (22,)
    assert found.heat["soc-thermal"] == pytest.approx(43.461)
    assert [(clock.name, clock.highest) for clock in found.clocks][:2] == [("npu", 10**9), ("dmc", 2_112_000_000)]
    assert found.memory["MemTotal"] == 16 << 30
    assert found.disk_free == 48211340 << 10


@settings(max_examples=200)
@given(st.sampled_from(probes.FACTS), st.text(max_size=200))
def test_no_answer_breaks_a_parser(fact: probes.Fact, answer: str) -> None:
    """A board may print anything; what makes no sense counts as not known."""
    judge.judge(probes.parse({fact.name: answer}), PREFIX)


@pytest.mark.parametrize("fact", probes.FACTS, ids=lambda fact: fact.name)
def test_numbers_of_thousands_of_digits_break_no_parser(fact: probes.Fact) -> None:
    """``int`` refuses them with a ValueError."""
    long = "9" * 5000
    for answer in (long, f"{long}\t{long}", f"Python 3.{long}", f"MemTotal: {long} kB", f"soc {long}", f"{long} {long}",
                   f"npu|performance|{long}|{long} {long}"):  # fmt: skip
        judge.judge(probes.parse({fact.name: answer}), PREFIX)


def test_a_doctor_without_any_fact_refuses_and_explains() -> None:
    findings = judge.judge(facts.Facts(), PREFIX)
    assert findings[0].level == "refuse"
    assert all(finding.remedy for finding in findings if finding.level in ("refuse", "warn"))
    levels = [LEVELS.index(finding.level) for finding in findings]
    assert levels == sorted(levels)
