"""The worker: what a request can do to it, what it says when it dies, and how much a chat template may cost."""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rk3588.errors import AnswerFailed, BundleError, PromptRefused, PromptTooLong
from rk3588.templates import Source
from rkruntime.daemon import process, protocol, template_facts
from rkruntime.daemon.jobs import Job
from rkruntime.daemon.rendering import Limits, Renderer, RendererLost
from rkruntime.daemon.worker import Worker
from rkruntime.settings import Settings
from tests.engine_scenes import started
from tests.engines import Flavour, ask, job, run, text, until

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def twin(tiny_bundles: Mapping[str, Path], rkllm_library: Path) -> Flavour:
    return Flavour("twin", tiny_bundles["w8a8"], rkllm_library)


@pytest.fixture(scope="module")
def fake(tiny_bundles: Mapping[str, Path]) -> Flavour:
    return Flavour("fake", tiny_bundles["w8a8"])


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = {"a": found}
    return found


HOSTILE: dict[str, Job] = {
    "a variable called self": job("x", template_variables={"self": 1}),
    "a variable called messages": job("x", template_variables={"messages": 1}),
    "a variable called tools": job("x", template_variables={"tools": 1}),
    "a variable that hides a function": job("x", template_variables={"raise_exception": 1, "range": None}),
    "nesting": job("x", template_variables={"z": nested(900)}),
    "halves of surrogate pairs": job("\ud800 \udfff", template_variables={"\ud800": "\udc00"}),
    "a message that is none": Job(messages=[{"role": 5, "content": {"x": []}}]),
    "NUL": job("a\0b"),
    "nothing": Job(text=""),
    "more than a frame holds": Job(text="é" * (12 << 20)),
}


def test_a_request_that_cannot_be_encoded_costs_itself_alone(twin: Flavour) -> None:
    """While another answer comes, whole, out of the same worker."""
    expected = twin.expected(QUESTION, 60)

    async def scenario() -> None:
        async with started(twin.engine("token_ms=20")) as engine:
            await until(lambda: engine.status.state == "ready")
            streams = [asyncio.create_task(ask(engine, QUESTION, 60)) for _ in range(2)]
            for name, hostile in HOSTILE.items():
                try:
                    await (await engine.submit(hostile)).close()
                except (PromptRefused, AnswerFailed) as error:
                    assert str(error), name
            assert await asyncio.gather(*streams) == [expected] * 2
            assert engine.status.restarts == 0

    run(scenario())


def test_a_prompt_that_is_too_long_is_counted_but_not_sent(twin: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    unpack = protocol._unpack

    def measured(body: bytes) -> protocol.Frame:
        sizes.append(len(body))
        return unpack(body)

    monkeypatch.setattr(protocol, "_unpack", measured)

    async def scenario() -> None:
        async with started(twin.engine()) as engine:
            with pytest.raises(PromptTooLong) as error:
                await engine.submit(job("x y " * 50_000))
            assert error.value.tokens > 50_000
            assert error.value.tokens == await engine.count(job("x y " * 50_000))

    run(scenario())
    assert max(sizes) < 1000


def test_a_worker_that_dies_of_a_defect_ends_no_answer(twin: Flavour) -> None:
    """Not in silence, and not with "stop": an orderly exit of its interpreter would end the run as if it were whole."""

    async def scenario() -> None:
        async with started(twin.engine("token_ms=30")) as engine:
            tickets = [await engine.submit(job(QUESTION, 100)) for _ in range(3)]
            pieces = tickets[0].pieces()
            await pieces.__anext__()
            assert engine._worker is not None
            engine._worker._writer.write(struct.pack(">I", 0xFFFFFFFF))  # no frame
            with pytest.raises(AnswerFailed, match="the answer was lost"):
                async for _ in pieces:
                    pass
            assert tickets[0].finish_reason == ""
            assert all([await text(ticket, at_most=2) for ticket in tickets[1:]])
            assert engine.status.restarts == 1

    run(scenario())


def test_a_run_that_nobody_ended_is_an_error(fake: Flavour, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with started(fake.engine(f"abort_at=5,once={tmp_path / 'once'}")) as engine:
            with pytest.raises(AnswerFailed, match="nobody had asked"):
                await ask(engine, QUESTION)
            assert await ask(engine, QUESTION, 4) == "user"
            assert engine.status.restarts == 0

    run(scenario())


def test_what_a_worker_said_before_it_died_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the event loop has little time for it: longer than a silence after which nothing more is awaited."""
    frames, receive = 200, protocol.receive
    program = (
        "import os, sys, socket; from rkruntime.daemon import protocol\n"
        "end = protocol.Channel(socket.socket(fileno=int(sys.argv[1]))); number = end.receive()['id']\n"
        f"for n in range({frames}): end.send(id=number, text=str(n))\n"
        "os.abort()"
    )

    async def slowly(reader: asyncio.StreamReader) -> protocol.Frame | None:
        await asyncio.sleep(0.002)
        return await receive(reader)

    monkeypatch.setattr(protocol, "receive", slowly)
    monkeypatch.setattr(process, "_DRAIN_S", 0.1)

    async def listen() -> list[str]:
        worker = await process.WorkerProcess.start(lambda _line: None, [sys.executable, "-c", program])
        run, read = worker.run({}), list[str]()
        with pytest.raises(process.WorkerGone, match="SIGABRT"):
            while True:
                read.append((await run.next(30))["text"])
        await worker.close(0)
        return read

    assert asyncio.run(listen()) == [str(n) for n in range(frames)]


def test_clients_that_go_while_they_are_encoded_do_not_pile_up(fake: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with started(fake.engine()) as engine:
            await until(lambda: engine.status.state == "ready")
            worker = engine._worker
            assert worker is not None
            under_way, most, encode = 0, 0, worker.encode

            async def slowly(request: protocol.Frame, timeout_s: float) -> protocol.Frame:
                nonlocal under_way, most
                under_way += 1
                most = max(most, under_way)
                await asyncio.sleep(0.05)
                try:
                    return await encode(request, timeout_s)
                finally:
                    under_way -= 1

            monkeypatch.setattr(worker, "encode", slowly)
            gone = [asyncio.create_task(engine.submit(job(QUESTION))) for _ in range(6)]
            await asyncio.sleep(0.02)
            for each in gone:
                each.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            assert await ask(engine, QUESTION, 4) == "user"
            assert (most, engine.status.queued) == (1, 0)

    run(scenario())


@contextmanager
def renderer(**limits: Any) -> Iterator[Renderer]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest may have threads; the worker has none yet
        found = Renderer(limits=Limits(**limits))
    try:
        yield found
    finally:
        found.close()


def render(by: Renderer, template: str, **variables: Any) -> str:
    source = Source(template, {"bos_token": "<s>"}, "t.jinja")
    return by.render(source, [{"role": "user", "content": "Hi"}], variables, "fold").text


# Each would take for ever, or all the memory there is, where it is compiled or where it runs.
ENDLESS = {
    "a loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a constant": "{{ 'x' * 10 ** 10 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a product": "{{ messages[0].content * 10 ** 10 }}",
    "a filter": "{{ messages[0].content | center(10 ** 10) }}",
    "a format": "{{ '%999999999999d' % 1 }}",
    "doubling": "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "output": "{% for a in range(99999) %}{{ messages[0].content * 9999 }}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep parentheses": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
}


def test_a_template_has_little_time_and_memory() -> None:
    with renderer(cpu_s=0.3, wall_s=3, memory=64 << 20) as limited:
        for name, source in ENDLESS.items():
            with pytest.raises(BundleError) as error:
                assert not render(limited, source), name
            assert "template" in str(error.value) or "t.jinja" in str(error.value), name
            assert len(str(error.value)) < 500, name
        assert render(limited, "{{ bos_token }}{{ messages[0].content }}{{ a }}", a="ä\ud800") == "<s>Hiä\ud800"
        assert render(limited, "{{ bos_token }}{{ a }}", a=[1]) == "<s>[1]"


def test_what_a_template_makes_is_bounded() -> None:
    with renderer(characters=1000) as limited, pytest.raises(BundleError, match="more than 1000 characters"):
        render(limited, "{{ 'x' * 1001 }}")


def test_a_lost_renderer_ends_the_worker() -> None:
    with renderer() as limited:
        os.kill(limited._pid, 9)
        with pytest.raises(RendererLost):
            render(limited, "x")


def test_a_hostile_template_refuses_and_nothing_hangs(tmp_path: Path) -> None:
    """Through the real worker, at its own limits."""
    from tests.fakes import fake_rkllm, scripted_bundle

    bundle = scripted_bundle(tmp_path / "b", "token 1 61\nempty 2", "{% if 'now' in messages[0].content %}"
                             "{{ 'x' * 10 ** 11 }}{% endif %}{{ messages[0].content }}")  # fmt: skip
    flavour = Flavour("twin", bundle, fake_rkllm(tmp_path))

    async def scenario() -> None:
        async with started(flavour.engine()) as engine:
            await until(lambda: engine.status.state == "ready")
            began = time.monotonic()
            with pytest.raises(PromptRefused, match="memory"):
                await engine.submit(job("now"))
            assert time.monotonic() - began < 30
            await (await engine.submit(job("then"))).close()
            assert engine.status.restarts == 0

    run(scenario())


class Frames:
    """A channel whose frames stay here."""

    def __init__(self) -> None:
        self.sent: list[protocol.Frame] = []

    def send(self, **frame: Any) -> None:
        self.sent.append(frame)


def loaded(bundle: Path, **settings: Any) -> tuple[Any, Frames]:
    """A worker in this process, which renders templates here, too."""
    frames = Frames()
    worker: Any = Worker(frames, None)  # type: ignore[arg-type]
    worker._load({"bundle": str(bundle), "settings": Settings(**settings).frame()})
    assert frames.sent.pop()["event"] == "ready"
    return worker, frames


@pytest.mark.parametrize(
    ("end", "opened"), [("<think>\n", "<think>"), ("[THINK]", "[THINK]"), ("<think>\n\n</think>\n\n", ""), ("", "")]
)
def test_a_prompt_says_whether_it_has_begun_a_thought(
    tiny_bundles: Mapping[str, Path], rkllm_library: Path, tmp_path: Path, end: str, opened: str
) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0].content }}{{ '" + end.replace("\n", "\\n") + "' }}")
    worker, frames = loaded(tiny_bundles["w8a8"], library=rkllm_library, template=template)
    worker._encode({"id": 1, "text": None, "messages": [{"role": "user", "content": "x"}], "tools": None,
                    "variables": {}})  # fmt: skip
    assert frames.sent[-1]["opened"] == opened


def test_special_tokens_that_an_answer_is_read_by_are_shown(
    tiny_bundles: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library gives nothing but their ids. Which are shown, the request says."""
    from tests.fakes import bundle_for_both, fake_rkllm

    monkeypatch.setattr(template_facts, "ALL_MARKS", {"<|im_start|>", "no token at all"})
    bundle = bundle_for_both(tmp_path / "b", tiny_bundles["w8a8"], "token 1 +\ntoken 9 61\ntoken 2 +\nempty 2")
    worker, frames = loaded(bundle, library=fake_rkllm(tmp_path))
    for marks, expected in ((["<|im_start|>"], "<|im_start|>a"), ([], "a")):
        frames.sent.clear()
        worker._run({"id": 7, "prompt": [5], "max_tokens": 3, "lora": None, "sampling": {}, "marks": marks})
        assert "".join(frame.get("text", "") for frame in frames.sent) == expected
        assert frames.sent[-1] == {"id": 7, "end": "length", "perf": None}


def test_only_an_npu_wants_many_open_files(
    tiny_bundles: Mapping[str, Path], rkllm_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from tests.fakes import fake_rkllm, scripted_bundle

    monkeypatch.setattr("rkruntime.daemon.worker.resource.getrlimit", lambda _: (20000, 20000))
    told = "may open 20000 files; a large model on an NPU wants 102400"
    loaded(tiny_bundles["w8a8"], library=rkllm_library)
    assert told not in capsys.readouterr().err
    loaded(scripted_bundle(tmp_path / "b", "token 1 61\nempty 2"), library=fake_rkllm(tmp_path))
    assert told in capsys.readouterr().err
