"""Abort, destroy and second runs, from the callback and from other threads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.rkllm_driver import ERROR, FINISH, Driver

# Endless unless aborted: the first token that is not the end of the answer is repeated for ever.
ENDLESS = ("set:top_k=1", "set:repeat_penalty=1", "set:presence_penalty=-1000", "tokens:70")


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


@pytest.mark.parametrize("call", ["run", "run_async"])
def test_abort_from_the_callback(driver: Driver, model: Path, call: str) -> None:
    done = driver(*ENDLESS, f"init:{model}", "at:2", "do:abort", call, "wait", call, "wait")
    for run in (1, 2):
        assert len(done.tokens(run)) == 3 and done.states(run)[3:] == [FINISH]
    assert done.returned("abort") == [0, 0] and done.returned(call) == [0, 0]


@pytest.mark.parametrize("call", ["run", "run_async"])
def test_abort_from_another_thread(driver: Driver, model: Path, call: str) -> None:
    commands = [*ENDLESS, f"init:{model}", "slow:500", "after:5", "helper:abort", call, "join", "wait"]
    done = driver(*commands, "at:1", "do:abort", call, "wait")
    assert len(done.tokens()) >= 5 and done.states().count(FINISH) == 1 and done.states()[-1] == FINISH
    assert done.returned("abort") == [0, 0]
    assert len(done.tokens(2)) == 2  # the first abort does not reach into the second run


def test_abort_during_the_prompt(driver: Driver, model: Path) -> None:
    """3000 tokens take far longer than a call that follows at once: nothing of the answer comes, but FINISH does."""
    prompt = "tokens:" + ",".join(["70"] * 3000)
    done = driver(*ENDLESS, "set:max_context_len=4096", f"init:{model}", prompt, "run_async", "abort", "wait")
    assert done.returned("abort") == [0]
    assert done.states() == [FINISH]


def test_abort_with_nothing_running(driver: Driver, model: Path) -> None:
    done = driver(*ENDLESS, "set:max_new_tokens=3", f"init:{model}", "abort", "run", "abort")
    assert done.returned("abort") == [-1, -1]
    assert len(done.tokens()) == 3


def test_run_async_returns_at_once(driver: Driver, model: Path) -> None:
    commands = [*ENDLESS, "set:max_new_tokens=20", f"init:{model}", "slow:2000", "run_async", "is_running", "await:21"]
    done = driver(*commands, "wait", "is_running")
    assert done.returned("is_running") == [1, 0]
    lines = [" ".join(line[:2]) for line in done.lines]
    assert lines.index("ret is_running") < len(lines) - 1 - lines[::-1].index("cb 1")


@pytest.mark.parametrize("call", ["run", "run_async"])
@pytest.mark.parametrize("second", ["run", "run_async"])
def test_one_run_at_a_time(driver: Driver, model: Path, call: str, second: str) -> None:
    commands = [*ENDLESS, "set:max_new_tokens=4", f"init:{model}", "at:1", f"do:{second}", call, "wait"]
    done = driver(*commands)
    assert sorted(done.returned(second)) == ([-1, 0] if call == second else [-1])
    assert len(done.tokens()) == 4 and done.states().count(FINISH) == 1
    assert "E rkllm: a run is under way: one handle runs one prompt at a time" in done.log.splitlines()


@pytest.mark.parametrize("at", [0, 4])
@pytest.mark.parametrize(("reading", "idle"), [("", 0), ("measured", 0), ("header", 1)])
def test_is_running_inside_the_callback_also_at_finish(
    driver: Driver, model: Path, at: int, reading: str, idle: int
) -> None:
    """1 while running, as measured; a setting gives what the header of 1.1 says."""
    commands = (f"init:{model}", "is_running", f"at:{at}", "do:is_running", "run", "destroy", "is_running")
    done = driver(*ENDLESS, "set:max_new_tokens=4", *commands, env={"RKSIM_IS_RUNNING": reading})
    assert done.returned("is_running") == [idle, 1 - idle, idle]
    errors = [line for line in done.log.splitlines() if line[0] == "E"]
    assert errors == ["E rkllm: rkllm_is_running: the handle is not one of rkllm_init's, or destroyed"]


def test_destroy_while_an_async_run_goes_on(driver: Driver, model: Path) -> None:
    done = driver(*ENDLESS, f"init:{model}", "slow:1000", "run_async", "await:3", "destroy", "is_running", "run")
    assert done.returned("destroy") == [0] and done.states()[-1] == FINISH
    lines = [line[:2] for line in done.lines]
    assert lines.index(["ret", "destroy"]) > max(i for i, line in enumerate(lines) if line[0] == "cb")  # joined
    assert done.returned("is_running") == [0] and done.returned("run") == [-1]


def test_destroy_while_another_thread_runs(driver: Driver, model: Path) -> None:
    done = driver(*ENDLESS, f"init:{model}", "slow:1000", "after:3", "helper:destroy", "run", "join", "destroy")
    assert done.returned("run") == [0] and done.states()[-1] == FINISH
    assert done.returned("destroy") == [0, -1]


@pytest.mark.parametrize("call", ["run", "run_async"])
def test_destroy_from_the_callback_is_refused(driver: Driver, model: Path, call: str) -> None:
    commands = [*ENDLESS, "set:max_new_tokens=4", f"init:{model}", "at:1", "do:destroy", call, "wait", "destroy"]
    done = driver(*commands)
    assert done.returned("destroy") == [-1, 0]
    assert len(done.tokens()) == 4 and done.states()[-1] == FINISH
    assert "from inside the callback is refused" in done.log


def test_a_program_may_end_in_the_middle_of_a_run(driver: Driver, model: Path) -> None:
    """exit() with a run under way must neither hang nor crash (the driver's exit code is checked)."""
    done = driver(*ENDLESS, f"init:{model}", "slow:1000", "run_async", "await:2", "leave")
    assert ERROR not in done.states()


def test_many_handles_one_after_another(driver: Driver, model: Path) -> None:
    once = [f"init:{model}", "run", "run_async", "wait", "run_async", "destroy"]
    done = driver(*ENDLESS, "set:max_new_tokens=5", *once * 20)
    assert done.returned("init") == done.returned("destroy") == [0] * 20
