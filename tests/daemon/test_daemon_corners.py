"""Answers that go wrong on their way: second tries, calls for JSON, streams that break off; and who is told what."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rk3588.errors import RequestRefused, Unavailable
from rkruntime.daemon import app, config, jsonformat, logs, server, tooluse
from rkruntime.daemon.answer_parts import Part, WholeAnswer
from rkruntime.daemon.answering import Answering
from rkruntime.daemon.api.dialect import AnswerRequest
from rkruntime.daemon.api.places_sent import at_its_place
from rkruntime.daemon.jobs import EngineSettings, Job, Status
from rkruntime.daemon.jsonformat import Checker, Format
from rkruntime.daemon.reading import Reading
from rkruntime.daemon.template_facts import TemplateFacts
from rkruntime.daemon.toolcalls import CALL_FORMATS
from rkruntime.daemon.tooluse import CallRules
from rkruntime.thoughts import KNOWN_TAGS
from tests.daemon_server import served, until
from tests.fake_engine import FakeAnswer, FakeEngine

HERMES = next(form for form in CALL_FORMATS if form.name == "hermes")
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


class Scripted(FakeEngine):
    """Each request takes the next of its answers."""

    def __init__(self, *answers: list[str]) -> None:
        super().__init__(EngineSettings(Path("x")))
        self.script = list(answers)

    async def submit(self, job: Job) -> FakeAnswer:
        self.jobs.append(job)
        self.answers.append(FakeAnswer(self.script.pop(0), 1 << 30, 1))
        return self.answers[-1]


def read(engine: Scripted, calls: CallRules | None) -> tuple[list[Part], str]:
    async def scenario() -> tuple[list[Part], str]:
        job = Job(messages=[{"role": "user", "content": "x"}])
        request = AnswerRequest(job, "m", False, False, (), Format(), (), KNOWN_TAGS[0], calls)
        reading = Reading(engine, request, Checker())
        await reading.start()
        return [part async for part in reading.parts()], reading.finish_reason

    return asyncio.run(scenario())


@pytest.mark.parametrize("required", [False, True])
def test_a_second_try_asks_for_a_call_only_where_one_has_to_come(required: bool) -> None:
    engine = Scripted(["no"], ['{"a": 1}'])
    parts, _ = read(engine, CallRules(HERMES, frozenset({"f"}), required))
    assert WholeAnswer.of(parts).text == '{"a": 1}'
    told = list(engine.jobs[1].messages or ())[-1]["content"]
    assert ("Call the function f now" in told, "corrected JSON" in told) == (required, not required)


@pytest.mark.parametrize("behind", ["\nThere you are!", '{"a": 1}', "\n"])
def test_nothing_behind_a_call_is_taken_for_the_json(behind: str) -> None:
    parts, ended = read(Scripted([CALL, behind, " More."]), CallRules(HERMES, frozenset({"f"})))
    answer = WholeAnswer.of(parts)
    assert (answer.text, [call.name for call in answer.calls], ended) == ("", ["f"], "tool_calls")


def test_the_thoughts_of_a_second_try_are_a_paragraph_of_their_own() -> None:
    parts, _ = read(Scripted(["<think>One.</think>no"], ["<think>Two.", " Three.</think>", "{}"]), None)
    assert WholeAnswer.of(parts).thought == "One.\n\nTwo. Three."


def test_an_error_is_moved_to_its_place_and_keeps_the_words_of_its_user() -> None:
    error = RequestRefused("'messages[1].role' has no 'messages[0]'", "messages[1].role")
    moved = at_its_place(error, ["system", "a[0]"])
    assert (str(moved), moved.param) == ("'a[0].role' has no 'messages[0]'", "a[0].role")
    assert str(at_its_place(RequestRefused("messages[99] is wrong"), ["system"])) == "messages[99] is wrong"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_a_role_that_names_a_message_is_no_server_error(tiny_bundles: Mapping[str, Path], path: str) -> None:
    said = [{"role": "messages[99]", "content": "x"}]
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        reply = running.post(path, {"model": "tiny", "max_tokens": 9, "messages": said, "input": said})
    assert reply.status == 400
    assert "messages[99]" in reply.error["message"] or "role" in reply.error["message"]


def test_checks_of_all_endpoints_are_bounded_together(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Checker] = []

    class Noted(Answering):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            found.append(self._checker)

    monkeypatch.setattr(app, "Answering", Noted)
    with served(tiny_bundles["w8a8"], FakeEngine):
        assert len(found) > 1 and len(set(map(id, found))) == 1
    assert jsonformat.AT_ONCE == 2


def test_stats_and_broken_streams_tell_no_paths_to_those_without_a_key(
    tiny_bundles: Mapping[str, Path], tmp_path: Path
) -> None:
    class Failing(FakeEngine):
        async def submit(self, job: Job) -> FakeAnswer:  # noqa: ARG002
            return FakeAnswer(["a"], 9, 1, error=Unavailable("/srv/secret/model.rkllm is gone"))

    def told(**keys: Any) -> tuple[str, str]:
        with served(tiny_bundles["w8a8"], Failing, **keys) as running:
            running.engine.status = Status("failed", "/srv/secret/model.rkllm cannot be loaded")
            shown = {"authorization": "Bearer sk-a"} if keys else {}
            stream = running.chat(headers=shown, stream=True).body.decode()
            return running.get("/stats", **shown).json["reason"], stream

    reason, stream = told()
    assert reason == "model.rkllm cannot be loaded"
    assert "model.rkllm is gone" in stream and "secret" not in stream
    (tmp_path / "keys").write_text("a:sk-a\n")
    reason, stream = told(keys=tmp_path / "keys")
    assert "/srv/secret" in reason and "/srv/secret" in stream


def test_of_a_message_that_is_split_only_the_first_has_its_thought() -> None:
    calls = [{"id": each * 9, "function": {"name": "f", "arguments": {}}} for each in "ab"]
    said = {"role": "assistant", "content": "Hm.", "reasoning_content": "Why?", "tool_calls": calls}
    found = tooluse.history([said], TemplateFacts(one_call=True))
    assert [(each["content"], each.get("reasoning_content")) for each in found] == [("Hm.", "Why?"), ("", None)]


def test_a_stream_that_is_refused_behind_its_beginning_has_not_ended_well(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    over = threading.Event()

    def note(event: str, *_: Any, **facts: Any) -> None:
        if event == "request":
            told.append(facts)
            over.set()

    monkeypatch.setattr(logs, "event", note)
    asked: dict[str, Any] = {"response_format": {"type": "json_object"}, "stream": True}
    with served(tiny_bundles["w8a8"], FakeEngine, keep_alive_s=0.01) as running:
        running.chat("slow 0.1 no", **asked)
        assert over.wait(60) and (told[-1]["error"], told[-1].get("ended")) == ("json_refused", None)
        over.clear()
        running.chat("bug")
        assert over.wait(60) and told[-1]["error"] == "internal_error"


def test_of_two_addresses_the_first_is_greeted(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    greeted: list[config.Address] = []
    anywhere = config.Address("127.0.0.1", 0)
    settings = config.make(None, {"bundle": tiny_bundles["w8a8"], "listen": anywhere, "ollama_listen": anywhere})
    bound: list[Any] = []
    bind_all = server.bind_all

    def note(addresses: Sequence[config.Address]) -> list[Any]:
        bound.extend(bind_all(addresses))
        return bound

    monkeypatch.setattr(server, "bind_all", note)
    monkeypatch.setattr(server, "_Daemon", Ended)
    assert server.run(settings, FakeEngine(settings.engine()), greeted.append) == 0
    assert [address.port for address in greeted] == [bound[0].getsockname()[1]] and len(bound) == 2
    for listener in bound:
        listener.close()


class Ended:
    """A daemon that is told to end at once."""

    def __init__(self, *_: Any) -> None: ...

    async def run(self) -> int:
        return 0


def test_what_no_runtime_has_is_refused_by_strict_and_else_logged_with_its_own_reason(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(logs, "event", lambda *_, **facts: told.append(str(facts.get("reason"))))
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        reply = running.ollama(options={"min_p": 0.1}, stream=False)
        assert (reply.status, reply.headers["x-rk-ignored"]) == (200, "min_p")
        until(lambda: any("no runtime here has such a setting" in reason for reason in told))
        assert running.ollama(path="/api/generate", raw=True, think=True).headers["x-rk-ignored"] == "think"
    with served(tiny_bundles["w8a8"], FakeEngine, strict=True) as running:
        for fields in ({"options": {"min_p": 0.1}}, {"options": {"mirostat": 2}}, {"raw": True, "think": True}):
            reply = running.ollama(path="/api/generate", **fields)
            assert reply.status == 400 and "without --strict" in reply.json["error"], fields
        assert running.ollama(path="/api/generate", options={"min_p": 0, "num_ctx": 8}, keep_alive=0).status == 200
