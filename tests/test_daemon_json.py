"""Answers in JSON: schemas judged in a process of their own, one more try, and nothing unchecked given out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rkruntime.daemon import jsonformat, schemacheck
from rkruntime.daemon.jsonformat import Checker, Format
from rkruntime.daemon.jsonprefix import JsonPrefix
from tests.daemon_server import Service, served
from tests.fake_engine import FakeEngine

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}
ANN = '{"name": "Ann", "age": 7}'


class TwoTries(FakeEngine):
    """Answers the first try with the message's first line, and the second with its second."""

    async def submit(self, job: Any) -> Any:
        messages = list(job.messages)
        told = messages[-1]["content"].startswith("That answer is not valid")
        lines = messages[-3 if told else -1]["content"].split("\n")
        script = [{"role": "user", "content": f"say {lines[1 if told else 0]}"}]
        answer = await super().submit(type(job)(messages=script, max_tokens=job.max_tokens, deadline_s=job.deadline_s))
        self.jobs[-1] = job
        return answer


@pytest.fixture(scope="module")
def service(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], TwoTries, keep_alive_s=0.05) as running:
        yield running


def asking(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}}


def content(reply: Any) -> str:
    found: str = reply.json["choices"][0]["message"]["content"]
    return found


def test_an_answer_that_fits_comes_back_bare(service: Service) -> None:
    reply = service.chat(f" ```json|{ANN}|```", None, **asking(PERSON))
    assert reply.status == 422  # a fence without line ends is no fence
    reply = service.chat(f" {ANN} ", None, **asking(PERSON))
    assert content(reply) == ANN
    told = service.engine.jobs[-1].messages[-1]["content"]
    assert json.dumps(PERSON) in told


def test_a_second_try_shows_what_was_wrong(service: Service) -> None:
    reply = service.chat('{"name": 5}\n' + ANN, None, **asking(PERSON))
    assert content(reply) == ANN
    messages = service.engine.jobs[-1].messages
    assert [m["role"] for m in messages[-3:]] == ["user", "assistant", "user"]
    assert messages[-2]["content"] == '{"name": 5}'
    assert "5 is not of type 'string'" in messages[-1]["content"] or "'age' is a required" in messages[-1]["content"]
    assert reply.json["usage"]["completion_tokens"] == 2  # both tries are counted


@pytest.mark.parametrize("stream", [False, True])
def test_two_bad_answers_are_an_error_that_asks_for_no_more(service: Service, stream: bool) -> None:
    reply = service.chat("no\nneither", None, stream=stream, **asking(PERSON))
    assert (reply.status, reply.error["code"]) == (422, "json_refused")
    assert "not JSON" in reply.error["message"]


def test_a_stream_waits_for_the_verdict(service: Service) -> None:
    events = service.chat(f"wrong\n{ANN}", None, stream=True, **asking(PERSON)).events
    texts = [e["choices"][0]["delta"]["content"] for e in events[:-1] if e["choices"][0]["delta"].get("content")]
    assert texts == [ANN]


def test_an_answer_cut_off_is_not_tried_again(service: Service) -> None:
    before = len(service.engine.jobs)
    reply = service.chat("{|}", None, max_tokens=1, response_format={"type": "json_object"})
    assert "max_tokens" in reply.error["message"]
    assert len(service.engine.jobs) == before + 1


def test_json_object(service: Service) -> None:
    reply = service.chat('[1]\n{"a": 1}', None, response_format={"type": "json_object"})
    assert content(reply) == '{"a": 1}'
    assert service.chat("x", None, response_format={"type": "text"}).status == 200
    assert service.chat("x", None, response_format={"type": "xml"}).error["param"] == "response_format"


UNUSABLE = {
    "a type that is none": ({"type": "objet"}, "objet"),
    "a reference to nothing": ({"$ref": "#/$defs/no"}, "Unresolvable"),
    "a reference to elsewhere": ({"$ref": "http://127.0.0.1:9/x.json"}, "lies outside"),
    "a file": ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "lies outside"),
    "a bad pattern": ({"pattern": "("}, "pattern"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_schemas_that_cannot_be_used_are_refused_before_the_model_is_asked(service: Service, case: str) -> None:
    schema, words = UNUSABLE[case]
    before = len(service.engine.jobs)
    reply = service.chat(ANN, None, **asking(schema))
    assert (reply.status, reply.error["param"]) == (400, "response_format")
    assert words in reply.error["message"]
    assert len(service.engine.jobs) == before


def test_a_pattern_without_end_costs_the_daemon_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonformat, "CHECK_S", 1.0)
    slow = Format({"type": "string", "pattern": "^(a+)+$"})
    found = asyncio.run(slow.problem(json.dumps("a" * 40 + "!"), Checker()))
    assert found is not None
    assert "checking it takes" in found


def test_a_schema_without_end() -> None:
    assert schemacheck.problem({"$ref": "#"}, 1) == "it refers to itself without end"


def test_fences_are_taken_off() -> None:
    for text in (f"```json\n{ANN}\n```\n", f"\n```\n{ANN}\n```", f" {ANN}\n", f"{ANN} There you are!"):
        prefix = JsonPrefix()
        prefix.feed(text)
        assert (prefix.text, prefix.whole, prefix.problem) == (ANN, True, None)
