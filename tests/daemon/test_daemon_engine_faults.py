"""The daemon's engine over a worker that dies, hangs and lies: first a fake one, then the simulated runtime."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rk3588.errors import AnswerFailed, Unavailable
from rkruntime.daemon.deadlines import Deadlines
from rkruntime.daemon.loadguard import FILE
from tests import engine_scenes
from tests.engine_scenes import QUESTION, armed, newest_too, pid_of, started
from tests.engines import Flavour, ask, job, run, text, until

flavour, answer = engine_scenes.flavour, engine_scenes.answer


@newest_too
@pytest.mark.parametrize("faults", ["null_text", "finish_null", "null_text,finish_null"])
def test_null_pointers_change_nothing(flavour: Flavour, answer: str, faults: str) -> None:
    async def scenario() -> None:
        async with started(flavour.engine(faults)) as engine:
            assert await ask(engine, QUESTION) == answer

    run(scenario())


def test_a_death_in_an_answer_costs_that_answer_alone(flavour: Flavour, answer: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with armed(flavour, "crash_at=5,token_ms=50", tmp_path) as engine:
            hit = await engine.submit(job(QUESTION))
            spared = [asyncio.create_task(ask(engine, QUESTION)) for _ in range(3)]
            with pytest.raises(AnswerFailed, match=r"the answer was lost: .*SIGABRT"):
                await text(hit)
            assert 1 <= hit.completion_tokens <= 4  # the last ones may die with the worker
            assert await asyncio.gather(*spared) == [answer] * 3
            assert engine.status.restarts == 1

    run(scenario())


@pytest.mark.parametrize("at", [0, 1])
def test_a_death_before_the_first_token_is_made_good(flavour: Flavour, answer: str, tmp_path: Path, at: int) -> None:
    async def scenario() -> None:
        async with armed(flavour, f"crash_at={at}", tmp_path) as engine:
            assert await ask(engine, QUESTION) == answer
            assert engine.status.restarts == 1

    run(scenario())


def test_a_prompt_that_kills_twice_is_not_tried_a_third_time(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    async def scenario() -> None:
        # The fake worker looks for the file after the prefill's delay: time enough to spare the load and no more.
        fake = Flavour("fake", tiny_bundles["w8a8"])
        async with armed(fake, "crash_at=0,prefill_ms=700", tmp_path) as engine:
            ticket = await engine.submit(job(QUESTION))
            await until(lambda: engine.status.restarts == 1)
            await until(lambda: engine.status.running)
            (tmp_path / "once").unlink()
            with pytest.raises(AnswerFailed, match="SIGABRT"):
                await text(ticket)
            assert await ask(engine, QUESTION, 4) == "user"
            assert engine.status.restarts == 2

    run(scenario())


def test_a_hang_is_ended(flavour: Flavour, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadlines, "token_s", 1.0)

    async def scenario() -> None:
        async with armed(flavour, "hang_at=5", tmp_path) as engine:
            with pytest.raises(AnswerFailed, match="no sign of life for 1 s"):
                await ask(engine, QUESTION)
            assert await ask(engine, QUESTION) == answer

    run(scenario())


def test_a_hang_in_the_load_is_ended(
    flavour: Flavour, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadlines, "load_s", 6.0)  # long enough for the load after it on a busy machine

    async def scenario() -> None:
        faults = f"hang_at=0,once={tmp_path / 'once'}"
        async with started(flavour.engine(faults)) as engine:
            await until(lambda: "no sign of life" in engine.status.reason)
            await until(lambda: engine.status.state == "ready")
            assert await ask(engine, QUESTION) == answer

    run(scenario())


@newest_too
def test_an_error_of_the_library_is_no_restart(flavour: Flavour, answer: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with armed(flavour, "error_at=5", tmp_path) as engine:
            with pytest.raises(AnswerFailed, match="ended the run with an error"):
                await ask(engine, QUESTION)
            assert await ask(engine, QUESTION) == answer
            assert engine.status.restarts == 0

    run(scenario())


def test_an_init_that_lies_once(flavour: Flavour, answer: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(flavour.engine(f"init_lies,once={tmp_path / 'once'}")) as engine:
            await until(lambda: "E RKNN" in engine.status.reason)
            await until(lambda: engine.status.state == "ready")
            assert engine.status.reason == ""
            assert await ask(engine, QUESTION) == answer

    run(scenario())


def test_a_model_that_ends_its_process_twice_is_not_loaded_again(flavour: Flavour, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(flavour.engine("init_lies", state_dir=tmp_path)) as engine:
            await until(lambda: engine.status.state == "failed")
            assert engine.status.restarts == 1
            with pytest.raises(Unavailable, match=rf"2 times while it was loaded.*remove .*{FILE}"):
                await engine.submit(job(QUESTION))
        # What has been learnt outlives the daemon; another model is not concerned.
        async with started(flavour.engine("", state_dir=tmp_path)) as engine:
            await until(lambda: engine.status.state == "failed")
            assert engine.status.restarts == 0
        (tmp_path / FILE).unlink()
        async with started(flavour.engine("", state_dir=tmp_path)) as engine:
            assert await ask(engine, QUESTION, 2)

    run(scenario())


def test_a_daemon_that_goes_down_while_loading_remembers_it(flavour: Flavour, tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = flavour.engine("load_ms=60000", state_dir=tmp_path)
        await engine.start()
        await until(lambda: (tmp_path / FILE).exists())
        assert list(json.loads((tmp_path / FILE).read_text()).values()) == [1]
        await engine.close(0)  # in order: this one does not count
        assert json.loads((tmp_path / FILE).read_text()) == {}

    run(scenario())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_replaced(flavour: Flavour, answer: str, how: signal.Signals) -> None:
    async def scenario() -> None:
        async with started(flavour.engine()) as engine:
            await until(lambda: engine.status.state == "ready")
            first = pid_of(engine)
            os.kill(first, how)
            await until(lambda: engine.status.state != "ready")
            assert await ask(engine, QUESTION) == answer
            assert pid_of(engine) != first

    run(scenario())


def test_the_queue_outlives_a_worker(flavour: Flavour, answer: str) -> None:
    async def scenario() -> None:
        async with started(flavour.engine("token_ms=50")) as engine:
            tickets = [await engine.submit(job(QUESTION)) for _ in range(4)]
            pieces = tickets[0].pieces()
            await pieces.__anext__()
            os.kill(pid_of(engine), signal.SIGKILL)
            with pytest.raises(AnswerFailed, match="SIGKILL"):
                async for _ in pieces:
                    pass
            assert await asyncio.gather(*map(text, tickets[1:])) == [answer] * 3

    run(scenario())


def test_a_load_that_says_no_is_told_and_tried_again(flavour: Flavour, tmp_path: Path) -> None:
    async def scenario() -> None:
        broken = tmp_path / "librkllmrt.so"
        if flavour.library:
            broken.write_bytes(flavour.library.read_bytes()[:-8192])
        faults, settings = ("", {"library": broken}) if flavour.library else ("refuses", {})
        engine = Flavour(flavour.name, flavour.bundle, flavour.library and broken).engine(faults)
        async with started(engine):
            await until(lambda: engine.status.restarts >= 3)
            words = "is cut off at" if settings else "no model file"
            with pytest.raises(Unavailable, match=words) as error:
                await engine.submit(job(QUESTION))
            assert error.value.retry_after_s is not None
            assert engine.status.state == "loading"

    run(scenario())


def test_a_conversation_that_ends_the_worker_ends_no_more_than_two(tiny_bundles: Mapping[str, Path]) -> None:
    async def scenario() -> None:
        async with started(Flavour("fake", tiny_bundles["w8a8"]).engine()) as engine:
            with pytest.raises(AnswerFailed, match="cannot be turned into a prompt"):
                await engine.submit(job("end here"))
            assert await ask(engine, QUESTION, 4) == "user"
            assert (engine.status.restarts, engine.status.queued) == (2, 0)

    run(scenario())


_SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from tests.engines import Flavour
async def main():
    engine = Flavour("", Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None).engine(sys.argv[3])
    await engine.start()
    while engine._worker is None:
        await asyncio.sleep(0.01)
    print(engine._worker.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("faults", ["", "load_ms=60000"])
def test_a_worker_does_not_outlive_its_supervisor(flavour: Flavour, faults: str) -> None:
    if flavour.library is None:
        pytest.skip("the fake worker is no part of what ships")
    command = [sys.executable, "-c", _SUPERVISOR, str(flavour.bundle), str(flavour.library), faults]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        worker = int(supervisor.stdout.readline())
        supervisor.kill()

    async def gone() -> None:
        await until(lambda: not _lives(worker))

    run(gone())


def _lives(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_failure_of_the_npu_on_stderr(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    """The library goes on as if nothing had happened, with an answer that nobody should trust."""

    async def scenario() -> None:
        fake = Flavour("fake", tiny_bundles["w8a8"])
        async with started(fake.engine(f"print_at=5,once={tmp_path / 'once'}")) as engine:
            with pytest.raises(AnswerFailed, match=r"E RKNN: .* failed to submit"):
                await ask(engine, QUESTION)
            assert await ask(engine, QUESTION, 4) == "user"

    run(scenario())
