"""The daemon's engine: answers, the queue, deadlines, its end; over a fake worker, then over the simulated runtime."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rk3588.errors import AnswerFailed, Overdue, PromptRefused, PromptTooLong, QueueFull, Unavailable
from rkruntime.daemon.api.dialect import AnswerRequest
from rkruntime.daemon.deadlines import Deadlines
from rkruntime.daemon.jsonformat import Checker
from rkruntime.daemon.process import WorkerProcess
from rkruntime.daemon.reading import Reading
from tests import engine_scenes
from tests.engine_scenes import QUESTION, armed, started
from tests.engines import Flavour, ask, job, run, text, until

flavour, answer = engine_scenes.flavour, engine_scenes.answer


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
            said = "".join([part.text async for part in reading.parts()])
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
