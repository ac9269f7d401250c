"""Answers that go wrong on their way: second tries, calls instead of JSON, streams that break off, and who is told what."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rk3588.errors import RequestRefused, Unavailable
from rkruntime.daemon import app, jsonformat
from rkruntime.daemon.answer_parts import Part, WholeAnswer
from rkruntime.daemon.api.dialect import AnswerRequest
from rkruntime.daemon.api.places_sent import at_its_place
from rkruntime.daemon.jobs import EngineSettings, Job, Status
from rkruntime.daemon.jsonformat import Checker, Format
from rkruntime.daemon.reading import Reading
from rkruntime.daemon.toolcalls import CALL_FORMATS
from rkruntime.daemon.tooluse import CallRules
from rkruntime.thoughts import KNOWN_TAGS
from tests.daemon_server import served
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
    moved = at_its_place(RequestRefused("'messages[1].role' has no 'messages[0]'", "messages[1].role"), ["system", "a[0]"])
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

    class Noted(app.Answering):
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
        async def submit(self, job: Job) -> FakeAnswer:
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
