"""Forks, which leave the library's threads behind, and signal handlers that call it in the middle of anything: no call
hangs (the driver is given two minutes, a child twenty seconds), and none crashes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.rkllm_driver import FINISH, Driver
from tests.sim.test_rkllm_refusals import errors

GREEDY = ("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=6")
ENDLESS = ("set:top_k=1", "set:repeat_penalty=1", "set:presence_penalty=-1000", "tokens:70")
LONG = {"RKSIM_FAULTS": "prefill_ms=600"}  # a prompt that a signal after 150 ms finds under way
CHILD = 101  # the child's first run where the parent had none


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


@pytest.mark.parametrize("call", ["run", "run_async"])
@pytest.mark.parametrize("before", [[], ["run"], ["run_async", "wait"]], ids=["idle", "ran", "ran async"])
def test_a_forked_child_runs_on_its_own(driver: Driver, model: Path, before: list[str], call: str) -> None:
    """And so does the parent, after it and beside it."""
    child = (call, "wait", call, "wait", "destroy")
    done = driver(*GREEDY, f"init:{model}", "tokens:70,5", *before, "fork", *child, "parent", "run", "destroy")
    assert done.returned("child") == [0] and done.returned("destroy") == [0, 0] and errors(done.log) == []
    runs = [done.tokens(run) for run in (CHILD + bool(before), CHILD + 1 + bool(before), 1 + bool(before))]
    assert runs[0] == runs[1] == runs[2] != []


def test_a_fork_in_the_callback_leaves_two_runs(driver: Driver, model: Path) -> None:
    done = driver(*GREEDY, f"init:{model}", "tokens:70,5", "run", "at:2", "do:fork", "run", "at:-1", "destroy")
    assert done.returned("child") == [0] and done.returned("run") == [0] * 3 and done.returned("destroy") == [0, 0]
    assert done.tokens(2) == done.tokens(1) and done.tokens(102) == done.tokens(1)[3:] != []
    assert done.states(2)[-1] == done.states(102)[-1] == FINISH and errors(done.log) == []


def test_a_child_that_only_destroys_or_leaves(driver: Driver, model: Path) -> None:
    for child in (["destroy"], ["leave"], []):
        done = driver(*GREEDY, f"init:{model}", "tokens:70", "run", "fork", *child, "parent", "run")
        assert done.returned("child") == [0] and done.tokens(1) == done.tokens(2) != [] and errors(done.log) == []


def test_a_child_of_a_run_in_another_thread_is_refused_at_once(driver: Driver, model: Path) -> None:
    """Its thread is not there to end it. Destroying forgets the handle, and a new one works."""
    child = ("run", "is_running", "abort", "destroy", "destroy", "slow:0", "set:max_new_tokens=4", f"init:{model}",
             "run", "destroy", "leave_at_once")  # fmt: skip
    run = (f"init:{model}", "slow:1000", "run_async", "await:3")
    done = driver(*ENDLESS, *run, "fork", *child, "parent", "abort", "wait")
    assert done.returned("child") == [0] and done.returned("is_running") == [0]
    assert done.returned("run") == [-1, 0] and done.returned("destroy") == [0, -1, 0]
    said = "this process was forked while another thread used the handle: it is of no use here, load the model again"
    assert errors(done.log)[:3] == [f"rkllm_{call}: {said}" for call in ("run", "is_running", "abort")]
    assert len(done.tokens(CHILD + 2)) == 4
    assert done.states(1)[-1] == FINISH  # the parent's run


def test_destroy_in_a_handler_that_interrupts_a_run_says_so(driver: Driver, model: Path) -> None:
    """It cannot wait for a run that it holds up itself: refused, and the run aborted, so that it can be done after."""
    commands = (*ENDLESS, f"init:{model}", "signal_in:150,destroy", "run", "join", "handled", "destroy")
    done = driver(*commands, env=LONG)
    assert done.returned("handler") == [-1] and done.returned("handled") == [1]
    assert done.states() == [FINISH] and done.returned("destroy") == [0]  # nothing of an endless answer came
    assert errors(done.log) == [
        "rkllm_destroy: refused, it was called by a signal handler that interrupted the library in this thread"
    ]


def test_a_run_in_such_a_handler_is_refused_and_an_abort_is_not(driver: Driver, model: Path) -> None:
    init = (*ENDLESS, f"init:{model}")
    done = driver(*init, "signal_in:150,run", "at:1", "do:abort", "run", "join", "handled", env=LONG)
    assert done.returned("handler") == [-1] and len(done.tokens()) == 2
    done = driver(*init, "signal_in:150,abort", "run", "join", "handled", env=LONG)
    assert done.returned("handler") == [0] and done.states() == [FINISH] and errors(done.log) == []


def test_destroy_in_a_handler_of_a_thread_that_does_something_else(driver: Driver, model: Path) -> None:
    """It aborts an asynchronous run and waits for its end, as anywhere else."""
    commands = (f"init:{model}", "run_async", "await:2", "signal_in:1,destroy", "join", "handled")
    done = driver(*ENDLESS, *commands, "run")
    assert done.returned("handler") == [0] and done.states()[-1] == FINISH and done.returned("run") == [-1]


@pytest.mark.parametrize("call", ["run", "run_async"])
def test_a_storm_of_handlers_that_ask_and_abort(driver: Driver, model: Path, call: str) -> None:
    """Hundreds of signals in the middle of locks, waits and loops; each endless run ends by one of them."""
    runs = [call, "wait"] * 150
    done = driver(*ENDLESS, f"init:{model}", "storm:200", *runs, "storm:0", "handled", "destroy")
    assert done.returned("handled")[0] > 100
    assert [done.states(run).count(FINISH) for run in range(1, 151)] == [1] * 150
    assert done.returned("destroy") == [0] and errors(done.log) == []
