"""RKSIM_FAULTS: each misbehaviour as the real runtime is said to show it, from C and through the binding."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rk3588.errors import RuntimeFailure
from rkruntime.binding import RKLLM
from tests.rkllm_driver import ERROR, FINISH, NORMAL, WAITING, Call, Driver, Outcome

GREEDY = ("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=5")
RUN = ("prompt:Hello", "run")


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


@pytest.fixture(scope="module")
def whole(driver: Driver, model: Path) -> list[Call]:
    """The callbacks of the run that the faults disturb."""
    calls = driver(*GREEDY, f"init:{model}", *RUN).calls()
    assert [call.state for call in calls] == [NORMAL] * 5 + [FINISH]
    return calls


def faulty(driver: Driver, model: Path, faults: str, *commands: str, code: int = 0) -> Outcome:
    return driver.ending(code, *GREEDY, f"init:{model}", *(commands or RUN), env={"RKSIM_FAULTS": faults})


@pytest.mark.parametrize("kind", ["good", "damaged", "foreign", "missing"])
def test_an_init_that_lies(driver: Driver, model: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.rkllm"
    if kind != "missing":
        path.write_bytes({"good": model.read_bytes(), "damaged": model.read_bytes()[:999], "foreign": b"PK"}[kind])
    done = faulty(driver, path, "init_lies", "is_running", "abort", *RUN, code=-signal.SIGABRT)
    assert done.returned("init") == [0] and done.returned("is_running") == [0] and done.returned("abort") == [-1]
    assert done.calls() == [] and done.returned("run") == []
    lines = done.log.splitlines()
    magic, load, fail, died = lines[-4:]
    assert magic.startswith("E RKNN: [") and magic.endswith("] invalid rknn llm model magic")
    assert load.startswith("E RKNN: [") and load.endswith("] load model file error!")
    assert fail == "rknn_init fail! ret=-1"
    assert "GGML_ASSERT(" in died and died.endswith(") failed")


def test_a_handle_that_init_lied_about_can_be_destroyed(driver: Driver, model: Path) -> None:
    done = faulty(driver, model, "init_lies", "destroy", "destroy", "run")
    assert done.returned("destroy") == [0, -1] and done.returned("run") == [-1]


def test_null_text(driver: Driver, model: Path, whole: list[Call]) -> None:
    calls = faulty(driver, model, "null_text").calls()
    assert calls[:-1] == whole[:-1]
    assert (calls[-1].state, calls[-1].text, calls[-1].token) == (FINISH, None, -1)


def test_null_text_while_a_character_is_incomplete(driver: Driver, model: Path) -> None:
    """At a high temperature a model with byte tokens soon gives half a character."""
    hot = ("set:temperature=50", "set:top_p=1", "set:top_k=0", "set:max_new_tokens=200", f"init:{model}", *RUN)
    calm = driver(*hot, env={"RKSIM_SEED": "5"}).calls()
    done = driver(*hot, env={"RKSIM_SEED": "5", "RKSIM_FAULTS": "null_text"}).calls()
    assert [call.token for call in done] == [call.token for call in calm]
    assert {call.text for call in calm if call.state == WAITING} == {b""}
    assert {call.text for call in done if call.state == WAITING} == {None}
    assert [c.text for c in done if c.state == NORMAL] == [c.text for c in calm if c.state == NORMAL]


@pytest.mark.parametrize(("faults", "last"), [("finish_null", FINISH), ("finish_null,error_at=6", FINISH),
                                              ("finish_null,error_at=5", ERROR)])  # fmt: skip
def test_finish_null(driver: Driver, model: Path, whole: list[Call], faults: str, last: int) -> None:
    calls = faulty(driver, model, faults).calls()
    assert calls[:-1] == whole[: len(calls) - 1]
    assert (calls[-1].state, calls[-1].token, calls[-1].text) == (last, None, None)


@pytest.mark.parametrize("call", ["run", "run_async"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_error_at(driver: Driver, model: Path, whole: list[Call], at: int, call: str) -> None:
    done = faulty(driver, model, f"error_at={at}", "prompt:Hello", call, "wait", call, "wait")
    for run in (1, 2):  # every run
        assert done.states(run) == [NORMAL] * max(at - 1, 0) + [ERROR]
        assert done.tokens(run) == [c.token for c in whole[: max(at - 1, 0)]]
        assert (done.calls(run)[-1].text, done.calls(run)[-1].token) == (b"", -1)
    assert done.returned(call) == [-1 if call == "run" else 0] * 2
    errors = [line for line in done.log.splitlines() if line.startswith("E ")]
    assert errors == [f"E rkllm: error: error_at={at} (RKSIM_FAULTS)"] * 2


@pytest.mark.parametrize("at", [0, 1, 4])
def test_crash_at(driver: Driver, model: Path, whole: list[Call], at: int) -> None:
    done = faulty(driver, model, f"crash_at={at}", code=-signal.SIGABRT)
    assert done.calls() == whole[: max(at - 1, 0)]
    assert done.log.splitlines()[-1] == f"E rksim: crash_at={at} acts now (RKSIM_FAULTS)"


def test_a_fault_past_the_answers_end_does_not_act(driver: Driver, model: Path, whole: list[Call]) -> None:
    assert faulty(driver, model, "crash_at=6,hang_at=6,error_at=6").calls() == whole


def stays(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


@pytest.mark.parametrize("end", ["destroy", "wait"])
def test_a_hang_that_neither_abort_nor_destroy_ends(driver: Driver, model: Path, end: str) -> None:
    commands = (f"init:{model}", "prompt:Hello", "run_async", "abort", "is_running", end)
    with driver.start(*GREEDY, *commands, env={"RKSIM_FAULTS": "hang_at=0"}) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(4)]
        assert said == ["ret init 0", "ret run_async 0", "ret abort 0", "ret is_running 1"]
        assert stays(process, 0.7)
        process.kill()
        assert process.stdout.read() == ""  # neither a callback nor the end of `destroy`


def test_a_hang_in_the_middle_of_an_answer(driver: Driver, model: Path) -> None:
    with driver.start(*GREEDY, f"init:{model}", *RUN, env={"RKSIM_FAULTS": "hang_at=3"}) as process:
        assert process.stdout is not None and process.stderr is not None
        said = [process.stdout.readline().split()[:3] for _ in range(3)]
        assert said == [["ret", "init", "0"], ["cb", "1", str(NORMAL)], ["cb", "1", str(NORMAL)]]
        assert stays(process, 0.5)
        process.kill()
        assert process.stdout.read() == ""
        assert process.stderr.read().splitlines()[-1] == "E rksim: hang_at=3 acts now (RKSIM_FAULTS)"


def test_once_over_all_processes(driver: Driver, model: Path, tmp_path: Path, whole: list[Call]) -> None:
    """What a supervisor's restart needs: the second process is a good one."""
    once = tmp_path / "acted"
    assert len(faulty(driver, model, f"crash_at=2,once={once}", code=-signal.SIGABRT).calls()) == 1
    assert once.is_file()
    assert faulty(driver, model, f"crash_at=2,once={once}").calls() == whole
    once.unlink()
    done = faulty(driver, model, f"error_at=2,once={once}", "prompt:Hello", "run", "run")
    assert done.states(1) == [NORMAL, ERROR] and [(c.state, c.token) for c in done.calls(2)] == [
        (c.state, c.token) for c in whole
    ]


def test_an_init_that_lies_once(driver: Driver, model: Path, tmp_path: Path, whole: list[Call]) -> None:
    faults = f"init_lies,once={tmp_path / 'acted'}"
    faulty(driver, model, faults, code=-signal.SIGABRT)
    assert faulty(driver, model, faults).calls() == whole


def test_a_once_file_that_cannot_be_created(driver: Driver, model: Path, tmp_path: Path) -> None:
    """The fault must not be lost in silence: the run ends with a line that says so."""
    done = faulty(driver, model, f"crash_at=2,once={tmp_path / 'no' / 'folder'}")
    assert done.states() == [NORMAL, ERROR]
    assert f"cannot create once={tmp_path}/no/folder: No such file" in done.log


def test_slow(driver: Driver, model: Path, whole: list[Call]) -> None:
    begin = time.monotonic()
    assert faulty(driver, model, "load_ms=200,prefill_ms=300,token_ms=100").calls() == whole
    assert time.monotonic() - begin >= 1.0


BAD = {
    "crash": "there is no 'crash'",
    "": None,
    "crash_at": "there is no 'crash_at'",
    "null_text=1": "there is no 'null_text=1'",
    "crash_at=": "crash_at is ''",
    "crash_at=-1": "crash_at is '-1'",
    "hang_at=two": "hang_at is 'two'",
    "error_at=1000001": "error_at is '1000001'",
    "token_ms=99999999999999999999": "token_ms is '99999999999999999999'",
    "null_text,,finish_null": "there is no ''",
    "null_text,": "there is no ''",
    "crash_at=1,crash_at=2": "crash_at stands in it twice",
    "once=": "there is no 'once='",
}


@pytest.mark.parametrize("faults", BAD)
def test_words_and_numbers_that_are_refused_at_init(driver: Driver, model: Path, faults: str) -> None:
    done = faulty(driver, model, faults, "is_running")
    said = BAD[faults]
    errors = [line for line in done.log.splitlines() if line.startswith("E rkllm: rkllm_init")]
    if said is None:
        assert done.returned("init") == [0] and "rksim: faults" not in done.log
    else:
        assert done.returned("init") == [-1]
        assert len(errors) == 1 and errors[0].startswith(f"E rkllm: rkllm_init: RKSIM_FAULTS: {said}")


def test_faults_announce_themselves(driver: Driver, model: Path) -> None:
    assert (
        "W rksim: faults on request: crash_at=9,null_text (RKSIM_FAULTS)"
        in faulty(driver, model, "crash_at=9,null_text").log.splitlines()
    )


# Through the binding.


@pytest.fixture
def load(model: Path, rkllm_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    opened: list[RKLLM] = []

    def open_with(faults: str) -> RKLLM:
        monkeypatch.setenv("RKSIM_FAULTS", faults)
        settings: dict[str, Any] = {"top_k": 1, "repeat_penalty": 1.0, "max_new_tokens": 5}
        opened.append(RKLLM(model, library=rkllm_library, **settings))
        return opened[-1]

    yield open_with
    for llm in opened:
        llm.close()


@pytest.mark.parametrize("faults", ["null_text", "finish_null", "null_text,finish_null"])
def test_the_binding_bears_nulls(load: Any, whole: list[Call], faults: str) -> None:
    tokens = list(load(faults).generate("Hello"))
    assert [token.id for token in tokens] == [call.token for call in whole[:-1]]
    said = b"".join(call.text or b"" for call in whole)
    assert "".join(token.text for token in tokens) == said.decode("utf-8", "replace")


@pytest.mark.parametrize("faults", ["error_at=3", "error_at=3,finish_null", "error_at=3,null_text"])
def test_the_binding_raises_an_error_after_the_tokens_before_it(load: Any, whole: list[Call], faults: str) -> None:
    tokens = load(faults).generate("Hello")
    assert [next(tokens).id for _ in range(2)] == [call.token for call in whole[:2]]
    with pytest.raises(RuntimeFailure, match="ended the run with an error"):
        next(tokens)


def script(code: str, model: Path, faults: str) -> subprocess.CompletedProcess[str]:
    head = f"from rkruntime.binding import RKLLM\nllm = RKLLM({str(model)!r}, top_k=1, max_new_tokens=5)\n"
    env = {**os.environ, "RKSIM_FAULTS": faults}
    return subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, timeout=120, env=env)


@pytest.mark.parametrize(("faults", "last_words"), [("init_lies", "GGML_ASSERT"), ("crash_at=3", "crash_at=3 acts")])
def test_a_process_that_the_library_kills(model: Path, faults: str, last_words: str) -> None:
    """Nothing in the process can save it: a worker that owns the handle is to be watched from outside."""
    done = script("list(llm.generate('Hello'))", model, faults)
    assert done.returncode == -signal.SIGABRT
    assert last_words in done.stderr.splitlines()[-1]
