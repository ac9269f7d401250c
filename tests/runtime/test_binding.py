"""The binding against a scripted librkllmrt: each test names the bug it guards against."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rk3588.errors import RuntimeFailure, UsageError
from rkruntime import generation
from rkruntime.abi_1_1 import LLMCallState
from rkruntime.binding import RKLLM
from rkruntime.generation import FINISH, NORMAL, WAITING, TextOfTokens
from tests.fakes import fake_rkllm, journal

Load = Callable[..., RKLLM]
ENDLESS = "forever 7 61 5\nempty 2"


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.1.1, unless the test is for ``both``."""
    return fake_rkllm(tmp_path_factory.mktemp("fake"), release=getattr(request, "param", "1.1.1"))


both = pytest.mark.parametrize("library", ["1.1.1", "1.3.1"], indirect=True)


def calls(library: Path) -> list[str]:
    """What the library was called with since rkllm_init; of 1.3, past the template that it is told first."""
    template = "template '' '' ''"
    return [line for line in journal(library)[1:] if line != template]


@pytest.fixture
def load(library: Path, tmp_path: Path) -> Iterator[Load]:
    """Loads a script as a model; whatever a test does, it ends with no run left behind."""
    loaded = []

    def _load(script: str, **parameters: float) -> RKLLM:
        model = tmp_path / "script"
        model.write_text(script + "\n")
        loaded.append(RKLLM(model, library=library, **parameters))  # type: ignore[arg-type]
        return loaded[-1]

    yield _load
    for llm in loaded:
        llm.close()


@both
def test_parameters_reach_the_library(load: Load, library: Path) -> None:
    """A parameter that is silently dropped, or a default that is not the library's own; async must be off."""
    load("empty 2", max_context_len=100, max_new_tokens=9, top_k=5, top_p=0.5, temperature=0.25, repeat_penalty=2)
    assert journal(library)[0] == "init ctx=100 new=9 k=5 p=0.5 t=0.25 repeat=2 skip=0 async=0"
    load("empty 2", skip_special_token=True)
    assert journal(library)[0] == "init ctx=512 new=-1 k=40 p=0.9 t=0.8 repeat=1.1 skip=1 async=0"


@both
def test_text_and_ids_go_in_as_such(load: Load, library: Path) -> None:
    """Ids sent as text, or infer parameters that point at nothing."""
    with load("token 1 61\nempty 2") as llm:
        assert [t.text for t in llm.generate("hé")] == ["a"]
        assert list(llm.generate([3, 1, 2])) == [("a", 1, NORMAL)]
    assert calls(library) == [
        "run text hé mode=0 lora=0 cache=0",
        "run ids 3 1 2 mode=0 lora=0 cache=0",
        "destroy running=0 handle=1",
    ]


@both
def test_null_everywhere(load: Load) -> None:
    """NULL results and texts, which Rockchip's own demo server dereferences."""
    script = "null 0\ntoken 5 -\nnull 1\nwaiting 6 -\ntoken 7 61\nempty 4\nnull 2"
    assert list(load(script).generate("x")) == [("", 5, NORMAL), ("", 6, WAITING), ("a", 7, NORMAL)]


@both
@pytest.mark.parametrize(
    "script",
    [
        "waiting 1 -\nwaiting 2 -\ntoken 3 e4bda0",  # no bytes, then all
        "waiting 1 +\nwaiting 2 +\ntoken 3 e4bda0",
        "waiting 1 e4\nwaiting 2 bd\ntoken 3 a0",  # each its own
        "waiting 1 e4\nwaiting 2 e4bd\ntoken 3 e4bda0",  # all so far
        "waiting 1 e4\nwaiting 2 bd\ntoken 3 e4bda0",  # each its own, then all
    ],
)
def test_a_character_of_several_tokens(load: Load, script: str) -> None:
    """Replacement characters or doubled ones, by how a release hands over an incomplete character."""
    tokens = list(load(script + "\ntoken 4 21\nempty 2").generate("x"))
    assert [t.state for t in tokens] == [WAITING, WAITING, NORMAL, NORMAL]
    assert [t.text for t in tokens] == ["", "", "你", "!"]


@both
def test_an_answer_that_ends_inside_a_character(load: Load) -> None:
    """Bytes that are lost at the end without a word."""
    assert list(load("token 1 61\nwaiting 2 e4bd\nempty 2").generate("x")) == [
        ("a", 1, NORMAL), ("", 2, WAITING), ("�", 2, FINISH),
    ]  # fmt: skip


@given(st.text(st.characters(exclude_categories=["Cs"])), st.data())
def test_text_split_anywhere_is_the_same_text(text: str, data: st.DataObject) -> None:
    """A decoder that depends on where tokens end."""
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=8)) | {0, len(raw)})
    decoder = TextOfTokens()
    said = "".join(decoder.feed(raw[a:b], waiting=False) for a, b in zip(cuts, cuts[1:]))
    assert said + decoder.end() == text


@both
def test_error_state_is_raised_after_the_tokens(load: Load) -> None:
    """An ERROR taken for the end of an answer."""
    generation = load("token 1 61\nnull 3").generate("x")
    assert next(generation).text == "a"
    with pytest.raises(RuntimeFailure, match="ended the run with an error"):
        next(generation)
    assert list(generation) == []


@both
def test_a_run_that_fails_without_a_callback(load: Load) -> None:
    """A return code that nobody looks at, and a caller that waits for ever."""
    with pytest.raises(RuntimeFailure, match="rkllm_run failed with -1"):
        list(load("return -1").generate("x"))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits for what may never come, shortened."""
    for name in ("_GRACE_S", "_PREFILL_S", "_STOP_S"):
        monkeypatch.setattr(generation, name, 0.3)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("says", "release"), [(0, "1.1.1"), (1, "1.1.1"), (0, "1.3.1"), (1, "1.3.1")])
def test_rkllm_is_running_is_not_believed(tmp_path: Path, says: int, release: str) -> None:
    """A wait without end: releases differ in whether 0 or 1 means that a run goes on."""
    library = fake_rkllm(tmp_path, f"-DIS_RUNNING={says}", release=release)
    for script, expected in {
        "token 1 61\nempty 2": ["a"],
        "token 1 61": ["a"],
        "detach\ntoken 1 61\nnull 2": ["a"],
    }.items():
        (tmp_path / "model").write_text(script + "\n")
        with RKLLM(tmp_path / "model", library=library) as llm:
            assert [t.text for t in llm.generate("x")] == expected


@pytest.mark.usefixtures("hasty")
def test_a_run_of_which_nothing_is_heard(load: Load) -> None:
    """A library that returns at once and never calls back: an empty answer that looks whole, or a wait for ever."""
    with pytest.raises(RuntimeFailure, match="no end of the answer came"):
        list(load("detach\nprefill 1").generate("x"))


@pytest.mark.usefixtures("hasty")
def test_a_library_that_does_not_heed_an_abort(load: Load, library: Path) -> None:
    """Ctrl-C that waits for ever, and a handle destroyed under a run that hangs."""
    llm = load("prefill 1500\nempty 2")
    run = llm.generate("x")
    with pytest.raises(RuntimeFailure, match="has not heeded an abort"):
        run.close()
    with pytest.raises(RuntimeFailure, match="has not heeded an abort"):
        llm.close()
    assert "destroy" not in journal(library)[-1]
    time.sleep(1.2)
    llm.close()
    assert journal(library)[-1] == "destroy running=0 handle=1"


@both
@pytest.mark.parametrize("how", ["thread", "detach"])
def test_callbacks_on_another_thread(load: Load, how: str) -> None:
    """Tokens lost because rkllm_run returned before the last callback, or a run begun before it."""
    llm = load(f"{how}\ntoken 1 61\nprefill 60\ntoken 2 62\nempty 2")
    assert [t.text for t in llm.generate("x")] == ["a", "b"]
    assert [t.text for t in llm.generate("x")] == ["a", "b"]


@both
def test_late_tokens_do_not_leak_into_the_next_answer(load: Load) -> None:
    """Tokens that arrive after a run leak into the next answer, as in Rockchip's demo server."""
    llm = load("late 9 7a\ntoken 1 61\nempty 2")
    assert [[t.text for t in llm.generate("x")] for _ in range(2)] == [["a"], ["a"]]


def test_one_run_at_a_time(load: Load) -> None:
    """Two runs on one handle, which the library does not survive."""
    llm = load(ENDLESS)
    with llm.generate("x") as first:
        next(first)
        with pytest.raises(RuntimeFailure, match="a run is going on"):
            llm.generate("y")
        assert next(first).text == "a"
    with llm.generate("z") as second:
        assert next(second).text == "a"


@both
@pytest.mark.parametrize("end", ["close the run", "close the model", "abort"])
@pytest.mark.parametrize("tokens", [0, 2])
def test_ending_early_waits_for_the_end(load: Load, library: Path, end: str, tokens: int) -> None:
    """A handle destroyed or used again while the library still runs."""
    llm = load(ENDLESS)
    generation = llm.generate("x")
    for _ in range(tokens):
        next(generation)
    {"close the run": generation.close, "close the model": llm.close, "abort": llm.abort}[end]()
    llm.close()
    assert journal(library)[-1] == "destroy running=0 handle=1"
    assert [line for line in journal(library) if "running=1" in line] == []


def test_dropping_the_generation_ends_the_run(load: Load) -> None:
    """A `break` out of the loop that leaves the model busy for good."""
    llm = load(ENDLESS)
    for _ in llm.generate("x"):
        break
    gc.collect()
    with llm.generate("y") as again:
        assert next(again).state == NORMAL


@both
def test_an_exception_in_the_consumer_ends_the_run(load: Load, library: Path) -> None:
    """The model stays busy after the caller's own error."""
    with pytest.raises(ZeroDivisionError), load(ENDLESS) as llm:
        for _ in llm.generate("x"):
            _ = 1 / 0
    assert journal(library)[-1] == "destroy running=0 handle=1"


def test_an_abort_that_the_prompt_swallows_is_repeated(load: Load) -> None:
    """A single abort, lost because the library was not generating yet: close() then never returns."""
    generation = load("prefill 150\n" + ENDLESS).generate("x")
    start = time.monotonic()
    generation.close()
    assert time.monotonic() - start < 5


def test_ctrl_c_while_waiting_for_a_token(load: Load, library: Path) -> None:
    """A Ctrl-C that is not delivered while the library is at work, or one that leaves it running."""
    llm = load("prefill 300\n" + ENDLESS)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        list(llm.generate("x"))
    llm.close()
    assert journal(library)[-1] == "destroy running=0 handle=1"


def test_a_second_ctrl_c_does_not_leave_the_run_behind(load: Load, library: Path) -> None:
    """An impatient user, and a handle destroyed under a running model."""
    llm = load("prefill 600\n" + ENDLESS)
    for delay in (0.1, 0.25):
        threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        list(llm.generate("x"))
    llm.close()
    assert journal(library)[-1] == "destroy running=0 handle=1"


@pytest.mark.usefixtures("hasty")
def test_an_exception_inside_the_callback(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """ctypes prints such an exception and goes on: the caller gets half an answer and no error."""
    llm = load(ENDLESS)

    def fail(*_: object) -> None:
        raise MemoryError("no room for a token")

    generation = llm.generate("x")
    assert llm._run is not None
    monkeypatch.setattr(llm._run, "receive", fail)
    with pytest.raises(MemoryError, match="no room"):
        list(generation)


def test_the_callback_lives_as_long_as_the_handle(load: Load) -> None:
    """A callback object collected while C still holds its address: a crash some time later."""
    llm = load("token 1 61\nempty 2")
    for _ in range(3):
        gc.collect()
        assert [t.text for t in llm.generate("x")] == ["a"]


def test_a_token_has_the_time_of_its_callback(load: Load) -> None:
    """Times of whoever takes the tokens out, who may be late: all of an answer then seemed to come at once."""
    with load("forever 7 61 50\nempty 2").generate("x", max_tokens=3) as tokens:
        time.sleep(0.3)
        times = [tokens.elapsed_ns for _ in tokens]
    assert times[0] > 0 and times[2] - times[0] > 90e6


@both
def test_max_tokens(load: Load) -> None:
    """An answer that is one token too long, or a run that goes on after it."""
    llm = load(ENDLESS)
    assert [t.text for t in llm.generate("x", max_tokens=3)] == ["a"] * 3
    assert [t.text for t in llm.generate("x", max_tokens=1)] == ["a"]


@both
def test_prompts_that_cannot_be_sent(load: Load) -> None:
    """A prompt cut off at its NUL, or one the library aborts on."""
    llm = load("empty 2", max_context_len=10)
    for prompt, message in (("", "is empty"), ([], "is empty"), ("a\0b", "NUL"), ([1] * 7, "has 7 tokens.*takes 6")):
        with pytest.raises(UsageError, match=message):
            llm.generate(prompt)
    assert list(llm.generate([1] * 6)) == []


@both
def test_after_close(load: Load, library: Path) -> None:
    """A destroyed handle used or destroyed again."""
    llm = load("empty 2")
    llm.close()
    llm.close()
    assert [line for line in journal(library) if line.startswith("destroy")] == ["destroy running=0 handle=1"]
    with pytest.raises(UsageError, match="has been closed"):
        llm.generate("x")


@both
def test_models_that_do_not_load(load: Load, library: Path, tmp_path: Path) -> None:
    """An init whose failure goes unnoticed until the first run crashes."""
    with pytest.raises(RuntimeFailure, match=r"cannot load .*script: rkllm_init failed with -3"):
        load("init -3")
    with pytest.raises(RuntimeFailure, match="gave no handle"):
        load("nohandle")
    with pytest.raises(UsageError, match=r"there is no model file .*absent"):
        RKLLM(tmp_path / "absent", library=library)


def test_states_have_their_names() -> None:
    """State 1 taken for FINISH, as in Rockchip's demo server."""
    assert (NORMAL, WAITING, FINISH) == (0, 1, 2)
    assert LLMCallState(3).name == "RKLLM_RUN_ERROR"


def test_a_thread_that_cannot_be_had_leaves_nothing_to_wait_for(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load("token 1 61")

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start"), llm.generate("x") as generation:
            next(generation)
    assert [token.text for token in llm.generate("x")] == ["a"]
