"""Answers in JSON: schemas judged in a process of their own, one more try, and nothing unchecked given out."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pytest

from rk3588.errors import QueueFull
from rkruntime.daemon import config, jsonformat, jsonshown, schemacheck
from rkruntime.daemon.api.dialect import AnswerRequest
from rkruntime.daemon.jobs import Job
from rkruntime.daemon.jsonformat import Checker, Format
from rkruntime.daemon.jsonprefix import JsonPrefix
from rkruntime.daemon.reading import Reading
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
    assert json.dumps({"name": "", "age": 0}) in told


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


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_cannot_become_json_is_stopped(tiny_bundles: Mapping[str, Path], stream: bool) -> None:
    """At its first wrong character; this one would go on for ever."""
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        reply = running.chat("hang Sure! Here it is:", stream=stream, response_format={"type": "json_object"})
        assert (reply.status, reply.error["code"]) == (422, "json_refused")
        assert "'T' instead of '{' at character 1" in reply.error["message"]  # the second try repeats what it was told
        assert running.engine.answers[0].closed.is_set()
        assert running.engine.answers[0].completion_tokens == 1


def test_what_follows_the_json_is_not_waited_for(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        reply = running.chat('hang {"a": "}"} I hope', response_format={"type": "json_object"})
        assert content(reply) == '{"a": "}"}'
        assert reply.json["choices"][0]["finish_reason"] == "stop"
        assert running.engine.answers[0].closed.is_set()


def test_an_answer_with_two_meanings_is_none(service: Service) -> None:
    reply = service.chat('{"a": 1, "a": 2}\n{"a": 1}', None, response_format={"type": "json_object"})
    assert content(reply) == '{"a": 1}'


class Checks:
    """Stands for the checker's processes: says of everything that it fits, and how many there were at once."""

    def __init__(self, seconds: float) -> None:
        self.running, self.most, self._seconds = 0, 0, seconds
        self.over = threading.Event()  # from now on a check takes no time

    async def __call__(self, _question: Any) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        ends = time.monotonic() + self._seconds
        while time.monotonic() < ends and not self.over.is_set():
            await asyncio.sleep(0.01)
        self.running -= 1


def test_schemas_are_checked_a_few_at_a_time_and_count_as_waiting(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = Checks(100)
    monkeypatch.setattr(jsonformat, "_ask", checks)
    with served(tiny_bundles["w8a8"], FakeEngine, queue_length=5) as running, ThreadPoolExecutor(12) as clients:
        asked = [clients.submit(running.chat, "say 5", **asking({"type": "integer"})) for _ in range(12)]
        refused = [done.result() for done in itertools.islice(as_completed(asked), 7)]
        assert {(reply.status, reply.error["code"]) for reply in refused} == {(429, "queue_full")}
        checks.over.set()
        assert sorted(done.result().status for done in asked) == [200] * 5 + [429] * 7
        assert checks.most == jsonformat.AT_ONCE


def test_requests_of_one_moment_do_not_all_find_the_same_place(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = Checks(100)
    monkeypatch.setattr(jsonformat, "_ask", checks)
    settings = config.make(None, {"bundle": tiny_bundles["w8a8"], "queue_length": 2}).engine()
    job = Job([{"role": "user", "content": "say 5"}])
    request = AnswerRequest(job, "m", False, False, (), Format({"type": "integer"}), ())

    async def all_at_once() -> list[object]:
        engine, checker = FakeEngine(settings), Checker()
        asked = [asyncio.ensure_future(Reading(engine, request, checker).start()) for _ in range(5)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        checks.over.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(all_at_once())
    assert [type(one) for one in found] == [type(None)] * 2 + [QueueFull] * 3


def test_a_check_has_the_deadline_of_its_request(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonformat, "_ask", Checks(30))
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        reply = running.chat("say 5", {"x-rk-deadline-s": "0.3"}, **asking({"type": "integer"}))
        assert (reply.status, reply.error["code"]) == (504, "deadline_exceeded")


def test_signs_of_life_while_an_answer_is_checked(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonformat, "_ask", Checks(0.3))
    with served(tiny_bundles["w8a8"], FakeEngine, keep_alive_s=0.05) as running:
        events = running.chat("say 5", stream=True, **asking({"type": "integer"})).events
        assert sum(e != "[DONE]" and e["choices"][0]["delta"] == {} for e in events) >= 3


def test_the_checker_has_little_memory_and_time() -> None:
    """As a process of its own, by what it may use and not by what a schema happens to need."""
    code = (
        "import io, json, resource, sys; from rkruntime.daemon import schemacheck; "
        "sys.stdin = io.StringIO(json.dumps({'schema': {'type': 'integer'}, 'answer': 5})); schemacheck.main(); "
        "print(resource.getrlimit(resource.RLIMIT_AS)[0] >> 20, resource.getrlimit(resource.RLIMIT_CPU)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == '{"problem": null}256 5\n'


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"enum": ["x", "y"]}}},
        {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "null"}]}},
        {"$ref": "#"}, {"type": ["object", "null"], "properties": {"n": {"const": 5}, "b": {"type": "boolean"}}},
        {"properties": {"a": {"$ref": "#/a~1b/%"}, "l": {"type": "array"}}, "a/b": {"%": True}}, {"type": {"x": []}},
        {"enum": []}, {"properties": []}, {"anyOf": {}}, {},
    ],
)  # fmt: skip
def test_an_example_of_any_schema(schema: Any) -> None:
    """Sound or not: what is shown is JSON, and has the schema's names."""
    shown = json.dumps(jsonshown.example(schema))
    assert all(json.dumps(name) in shown for name in dict(schema.get("properties") or {}))
    assert shown in Format(schema).instruction([])


def test_what_an_example_cannot_show_is_told() -> None:
    mood = {"enum": ["good", "bad"], "description": "How somebody feels."}
    schema = {"properties": {"moods": {"type": "array", "items": {"$ref": "#/$defs/x"}}}, "$defs": {}}
    schema["$defs"] = {"x": {"properties": {"mood": mood, "n": {"type": ["integer", "null"]}}}}
    told = 'Answer with JSON like this, and nothing else. "mood" is one of "good", "bad". "mood": How somebody feels.'
    assert Format(schema).instruction([]) == told + '\n{"moods": [{"mood": "good", "n": 0}]}\nJSON:'
    asked = [{"role": "user", "content": "As JSON, please."}]
    assert Format().instruction(asked) == "Answer with one JSON object and nothing else."
    assert "like" in Format().instruction([{"role": "user", "content": "Please."}])


SELF = {"$ref": "#"}
WIDER_THAN_ALL = {
    "itself, twenty times": {"properties": {f"a{i}": SELF for i in range(20)}},
    "a list of itself": {"type": "array", "items": {"properties": {f"a{i}": SELF for i in range(20)}}},
    "each level ten times the next": {
        "$ref": "#/$defs/0",
        "$defs": {
            str(i): {"properties": {f"a{j}": {"anyOf": [{"$ref": f"#/$defs/{i + 1}"}]} for j in range(10)}}
            for i in range(9)
        },
    },
    "a long enum, often": {
        "properties": {f"a{i}": {"$ref": "#/$defs/e"} for i in range(1000)}, "$defs": {"e": {"enum": ["x" * 9] * 3000}},
    },
    "a long constant, often": {
        "properties": {f"a{i}": {"$ref": "#/$defs/c"} for i in range(999)}, "$defs": {"c": {"const": [["x"] * 9] * 99}},
    },
    "a long reference, often": {
        "properties": {f"a{i}": SELF for i in range(20)}, "allOf": [{"$ref": "#/" + "a/" * 30_000}],
    },
}  # fmt: skip


@pytest.mark.parametrize("schema", WIDER_THAN_ALL.values(), ids=WIDER_THAN_ALL)
def test_what_is_shown_of_a_schema_is_bounded(schema: Any) -> None:
    """A few hundred bytes describe more than memory holds, and this runs where every client waits for it."""
    assert len(Format(schema).instruction([])) < 20 * jsonshown.MOST_SHOWN


def test_a_checker_that_cannot_be_started_is_tried_later(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", full)
    reply = service.chat("x", **asking({"type": "integer"}))
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    assert "checker cannot be started (Too many open files)" in reply.error["message"]
