"""Answers that go round in circles: what is taken for a loop, what is not, and how such an answer ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rkruntime.daemon.engine import WorkerEngine
from rkruntime.loops import DEFAULT, LONGEST, TIMES, LoopDetector
from rkruntime.model import Model, Settings
from tests.core.test_cli import ENDLESS, rk3588
from tests.engine_scenes import started
from tests.engines import Flavour, job, run, text
from tests.fakes import fake_rkllm, scripted_bundle

TOKENS = st.lists(st.integers(0, 9), max_size=60)
BLOCKS = st.lists(st.integers(0, 9), min_size=1, max_size=LONGEST)


def ends_at(tokens: list[int], limit: int) -> int | None:
    """How many tokens had come when the detector said stop."""
    detector = LoopDetector(limit)
    return next((count for count, token in enumerate(tokens, 1) if detector.is_loop(token)), None)


def is_loop(tokens: list[int], limit: int) -> bool:
    """The definition, with no regard for time: they end in one block, over and over."""
    for period in range(1, LONGEST + 1):
        long = max(limit, TIMES * period)
        tail = tokens[-long:]
        if len(tail) == long and tail[period:] == tail[:-period]:
            return True
    return False


@settings(max_examples=40)
@given(TOKENS, BLOCKS, st.integers(1, 40), st.integers(0, 6))
def test_it_is_what_the_definition_says(before: list[int], block: list[int], limit: int, times: int) -> None:
    tokens = before + block * times
    slow = next((count for count in range(1, len(tokens) + 1) if is_loop(tokens[:count], limit)), None)
    assert ends_at(tokens, limit) == slow


@given(TOKENS, BLOCKS, st.integers(1, 300))
def test_every_loop_is_ended(before: list[int], block: list[int], limit: int) -> None:
    most = max(limit, TIMES * len(block))
    found = ends_at(before + block * (most // len(block) + 1), limit)
    assert found is not None and found <= len(before) + most


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=400), st.integers(1, 300))
def test_what_repeats_nothing_goes_on(tokens: list[int], limit: int) -> None:
    assert ends_at(tokens, limit) is None
    assert ends_at(tokens * (TIMES - 1), limit) is None


def test_what_goes_on() -> None:
    """A refrain, a table of like rows, a count, a block that is longer than what is looked for."""
    refrain = [*range(20)]
    assert ends_at([token for verse in range(30) for token in (*refrain, 100 + verse)], DEFAULT) is None
    assert ends_at([*range(24)] * 5, DEFAULT) is None
    assert ends_at([*range(LONGEST + 1)] * 20, DEFAULT) is None
    assert ends_at([token for number in range(200) for token in (1, 2, number)], DEFAULT) is None


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_rkllm(tmp_path_factory.mktemp("fake"))


@pytest.fixture
def looping(tmp_path: Path) -> Iterator[Path]:
    yield scripted_bundle(tmp_path / "b", ENDLESS.replace(" 5\n", " 0\n"))


def test_such_an_answer_is_ended_and_the_next_one_is_whole(looping: Path, library: Path) -> None:
    with Model(looping, Settings(library=library), print) as model:
        for _ in range(2):
            assert "".join(model.answer("x")) == "a" * DEFAULT
            assert (model.cost.finish_reason, model.cost.cut_by, model.cost.tokens) == ("length", "loop", DEFAULT)
        assert "".join(model.answer("x")) == "a" * DEFAULT
    with Model(looping, Settings(library=library, loop_limit=0, max_tokens=500), print) as model:
        assert len("".join(model.answer("x"))) == 500 and model.cost.cut_by == "max_tokens"
    with Model(looping, Settings(library=library, loop_limit=3, max_tokens=4), print) as model:
        assert "".join(model.answer("x")) == "aaaa"  # four times at the least; and both limits at once
        assert (model.cost.finish_reason, model.cost.cut_by) == ("length", "max_tokens")


def test_run_and_chat_say_so(looping: Path, library: Path) -> None:
    done = rk3588("run", looping, "x", "--loop-limit", 30, library=library)
    ending = "(stopped: it repeats itself; --loop-limit 0 lets it go on)"
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (0, "a" * 30 + "\n", ending)
    done = rk3588("chat", looping, library=library, text="x\n/set loop_limit 9\nx\n")
    assert done.stdout == "a" * DEFAULT + "\n" + "a" * 9 + "\n"
    ending = "(stopped: it repeats itself; /set loop_limit 0 lets it go on)"
    assert done.stderr.count(ending) == 2 and "loaded again" not in done.stderr
    refused = rk3588("run", looping, "x", "--loop-limit", -1, library=library)
    assert refused.returncode == 2 and "--loop-limit" in refused.stderr


def test_the_daemon_ends_the_answer_whole(looping: Path, library: Path) -> None:
    async def scenario(engine: WorkerEngine) -> None:
        async with started(engine):
            for _ in range(2):
                ticket = await engine.submit(job("x", max_tokens=-1))
                assert (await text(ticket), ticket.finish_reason) == ("a" * 40, "length")

    run(scenario(Flavour("fake", looping, library).engine(loop_limit=40)))
