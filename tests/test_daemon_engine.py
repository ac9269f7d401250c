"""The daemon's engine over a worker that dies, hangs and lies: first a fake one, then the simulated runtime."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rk3588.errors import AnswerFailed, Overdue, PromptRefused, PromptTooLong, QueueFull, Unavailable
from rkruntime.daemon.api.dialect import AnswerRequest
from rkruntime.daemon.deadlines import Deadlines
from rkruntime.daemon.engine import WorkerEngine
from rkruntime.daemon.jsonformat import Checker
from rkruntime.daemon.loadguard import FILE
from rkruntime.daemon.process import WorkerProcess
from rkruntime.daemon.reading import Reading
from tests.engines import Flavour, ask, job, run, text, until

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module", params=["fake", "twin"])
def flavour(request: pytest.FixtureRequest, tiny_bundles: Mapping[str, Path], rkllm_library: Path) -> Flavour:
    return Flavour(request.param, tiny_bundles["w8a8"], rkllm_library if request.param == "twin" else None)


@pytest.fixture(scope="module")
def answer(flavour: Flavour) -> str:
    """To QUESTION, in twelve tokens, from the bare binding."""
    return flavour.expected(QUESTION, 12)


@asynccontextmanager
async def started(engine: WorkerEngine) -> AsyncIterator[WorkerEngine]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close(0)


@asynccontextmanager
async def armed(flavour: Flavour, faults: str, folder: Path, **settings: Any) -> AsyncIterator[WorkerEngine]:
    """A started engine whose runtime fails once, after the load: that has a run of its own."""
    once = folder / "once"
    once.touch()
    async with started(flavour.engine(f"{faults},once={once}", **settings)) as engine:
        await until(lambda: engine.status.state == "ready")
        once.unlink()
        yield engine


def pid_of(engine: WorkerEngine) -> int:
    assert engine._worker is not None
    return engine._worker.pid


def test_an_answer_with_its_counts(flavour: Flavour, answer: str) -> None:
    async def scenario() -> None:
        async with started(flavour.engine()) as engine:
            ticket = await engine.submit(job(QUESTION))
            assert await text(ticket) == answer
            assert (ticket.completion_tokens, ticket.finish_reason) == (12, "length")
            assert ticket.prompt_tokens == await engine.count(job(QUESTION)) == ticket.prompt_tokens
            assert (engine.status.state, engine.status.queued, engine.status.running) == ("ready", 0, False)
        assert engine.status.state == "closed"

    run(scenario())


def test_the_durations_of_an_answer(flavour: Flavour) -> None:
    """As the worker measures them, also of an answer that its reader ends early, as at a stop string."""

    async def scenario() -> None:
        async with started(flavour.engine("token_ms=10")) as engine:
            whole, cut = await engine.submit(job(QUESTION)), await engine.submit(job(QUESTION))
            began = asyncio.get_running_loop().time()
            await text(whole)
            took_ns = 1e9 * (asyncio.get_running_loop().time() - began)
            await text(cut, 2)
            assert whole.durations is not None and cut.durations is not None
            assert whole.durations.load_ns == cut.durations.load_ns > 0
            assert whole.durations.prompt_ns > 0 and whole.durations.answer_ns > cut.durations.answer_ns > 0
            if flavour.library:
                assert whole.durations.answer_ns > 11 * 9e6
                assert whole.durations.prompt_ns + whole.durations.answer_ns < took_ns + 1e9

    run(scenario())


def test_a_reading_that_ends_at_a_stop_string_has_durations_too(flavour: Flavour, answer: str) -> None:
    """What other languages than OpenAI's report of an answer."""
    stop = answer[len(answer) // 2 :][:2]
    request = AnswerRequest(job(QUESTION), "m", False, False, (stop,), None, ())

    async def scenario() -> None:
        async with started(flavour.engine()) as engine:
            reading = Reading(engine, request, Checker())
            await reading.start()
            said = "".join([part async for part in reading.texts()])
            usage = reading.usage
            await reading.close()
            assert (said, reading.finish_reason) == (answer[: answer.index(stop)], "stop")
            assert usage.durations is not None and min(usage.durations) > 0
            both = usage.plus(usage).durations
            assert both is not None and both.load_ns == usage.durations.load_ns
            assert both.answer_ns == 2 * usage.durations.answer_ns

    run(scenario())


def test_many_at_once_each_get_their_own(flavour: Flavour) -> None:
    questions = [f"What is {n} times {n}?" for n in range(8)]
    expected = [flavour.expected(q, 6) for q in questions]

    async def scenario() -> None:
        async with started(flavour.engine()) as engine:
            assert await asyncio.gather(*(ask(engine, q, 6) for q in questions)) == expected

    run(scenario())


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


def test_no_restart_over_a_process_that_survives_sigkill(
    flavour: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it were in uninterruptible sleep: here nothing is sent to it, and the grace is short."""
    monkeypatch.setattr(Deadlines, "token_s", 0.5)

    async def scenario() -> None:
        async with armed(flavour, "hang_at=5", tmp_path) as engine:
            worker = engine._worker
            assert worker is not None
            real, ended = worker._process.kill, WorkerProcess.ended
            monkeypatch.setattr(worker._process, "kill", lambda: None)
            monkeypatch.setattr(WorkerProcess, "ended", lambda self, _s=0: ended(self, 0.2))
            waiting = [asyncio.create_task(ask(engine, QUESTION)) for _ in range(3)]
            results = await asyncio.gather(*waiting, return_exceptions=True)
            real()
            await until(lambda: worker._process.returncode is not None)
            assert [type(r) for r in results] == [AnswerFailed, Unavailable, Unavailable]
            assert (engine.status.state, engine.status.restarts) == ("reboot", 0)
            with pytest.raises(Unavailable, match="reboot the board"):
                await engine.submit(job(QUESTION))

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


def test_a_client_that_goes_frees_the_npu(flavour: Flavour, answer: str) -> None:
    """In the queue, in prefill, in decode: what comes next is its own answer, not the rest of the last one."""

    async def scenario() -> None:
        async with started(flavour.engine("prefill_ms=500,token_ms=20")) as engine:
            assert await text(await engine.submit(job(QUESTION, 100)), at_most=3)  # in decode
            await until(lambda: not engine.status.running)
            in_prefill = await engine.submit(job(QUESTION, 100))
            await until(lambda: engine.status.running)
            queued = await engine.submit(job(QUESTION, 100))
            last = await engine.submit(job(QUESTION))
            assert engine.status.queued == 2
            await queued.close()
            assert engine.status.queued == 1
            await in_prefill.close()
            assert await text(last) == answer
            assert engine.status.restarts == 0

    run(scenario())


def test_the_queue_is_bounded(flavour: Flavour) -> None:
    async def scenario() -> None:
        async with started(flavour.engine("token_ms=30", queue_length=2)) as engine:
            running = await engine.submit(job(QUESTION, 40))
            await until(lambda: engine.status.running)
            waiting = [await engine.submit(job(QUESTION, 1)) for _ in range(2)]
            with pytest.raises(QueueFull, match="2 requests are waiting") as error:
                await engine.submit(job(QUESTION))
            assert error.value.retry_after_s >= 1
            await running.close()
            assert [len(t) > 0 for t in await asyncio.gather(*map(text, waiting))] == [True, True]
            assert await ask(engine, QUESTION, 1)

    run(scenario())


def test_interactive_first_and_owners_in_turn(flavour: Flavour) -> None:
    async def scenario() -> None:
        order: list[str] = []

        async def one(name: str, **more: Any) -> None:
            ticket = await engine.submit(job(QUESTION, 1, **more))
            await text(ticket)
            order.append(name)

        async with started(flavour.engine("token_ms=30")) as engine:
            first = await engine.submit(job(QUESTION, 10))
            await until(lambda: engine.status.running)
            tasks = []
            for name, more in (
                ("background", {"background": True}),
                ("a1", {"owner": "a"}), ("a2", {"owner": "a"}), ("a3", {"owner": "a"}), ("b1", {"owner": "b"}),
            ):  # fmt: skip
                tasks.append(asyncio.create_task(one(name, **more)))
                await until(lambda: engine.status.queued == len(tasks) and not engine._being_encoded)
            await text(first)
            await asyncio.gather(*tasks)
            assert order == ["a1", "b1", "a2", "a3", "background"]

    run(scenario())


def test_deadlines(flavour: Flavour, answer: str) -> None:
    async def scenario() -> None:
        async with started(flavour.engine("token_ms=50")) as engine:
            await until(lambda: engine.status.state == "ready")
            running = await engine.submit(job(QUESTION, 100, deadline_s=0.6))
            queued = await engine.submit(job(QUESTION, deadline_s=0.3))
            for ticket in (queued, running):
                with pytest.raises(Overdue, match="no whole answer within"):
                    await text(ticket)
            assert await ask(engine, QUESTION) == answer
        async with started(flavour.engine("load_ms=60000")) as engine:
            with pytest.raises(Overdue, match="not ready within"):
                await engine.submit(job(QUESTION, deadline_s=0.2))

    run(scenario())


def test_prompts_that_cannot_be_answered(flavour: Flavour) -> None:
    async def scenario() -> None:
        async with started(flavour.engine(context=256)) as engine:
            with pytest.raises(PromptTooLong, match="a context of 256 takes 252") as error:
                await engine.submit(job("many words " * 200))
            assert error.value.tokens > error.value.context == 256
            if flavour.library is None:
                with pytest.raises(PromptRefused, match="the template refuses"):
                    await engine.submit(job("please refuse this"))
            assert engine.status.queued == 0
            assert await ask(engine, QUESTION, 1)

    run(scenario())


def test_a_conversation_that_ends_the_worker_ends_no_more_than_two(tiny_bundles: Mapping[str, Path]) -> None:
    async def scenario() -> None:
        async with started(Flavour("fake", tiny_bundles["w8a8"]).engine()) as engine:
            with pytest.raises(AnswerFailed, match="cannot be turned into a prompt"):
                await engine.submit(job("end here"))
            assert await ask(engine, QUESTION, 4) == "user"
            assert (engine.status.restarts, engine.status.queued) == (2, 0)

    run(scenario())


def test_closing_lets_what_is_under_way_end(flavour: Flavour, answer: str) -> None:
    async def scenario(drain_s: float) -> list[Any]:
        engine = flavour.engine("token_ms=30")
        await engine.start()
        tickets = [await engine.submit(job(QUESTION)) for _ in range(2)]
        answers = [asyncio.create_task(text(t)) for t in tickets]
        closing = asyncio.create_task(engine.close(drain_s))
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable, match="shut"):
            await engine.submit(job(QUESTION))
        await closing
        return await asyncio.gather(*answers, return_exceptions=True)

    assert run(scenario(30)) == [answer] * 2
    assert [type(result) for result in run(scenario(0))] == [Unavailable] * 2


def test_signs_of_life_while_nothing_comes(flavour: Flavour) -> None:
    async def scenario() -> None:
        async with started(flavour.engine("prefill_ms=400")) as engine:
            ticket = await engine.submit(job(QUESTION, 2))
            pieces = [piece async for piece in ticket.pieces(heartbeat_s=0.1)]
            assert sum(piece == ("", 0) for piece in pieces) >= 2
            assert sum(piece.tokens for piece in pieces) == 2

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
