"""The daemon's API over HTTP: the same promises over the scripted engine and over the twin with a tiny model."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rkruntime.daemon.engine import WorkerEngine
from rkruntime.daemon.jobs import EngineSettings
from tests.daemon_server import WAIT_S, Service, served, until
from tests.engines import GREEDY
from tests.fake_engine import FakeAnswer, FakeEngine


@pytest.fixture(scope="module")
def fake(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], FakeEngine, keep_alive_s=0.05) as running:
        yield running


def text_of(events: list[Any]) -> str:
    return "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1] if e["choices"])


# What every engine has to give.


def test_an_answer_in_one_object(service: Service) -> None:
    found = service.chat("say Hello|, world", max_tokens=8).json
    choice = found["choices"][0]
    assert found["object"] == "chat.completion"
    assert found["model"] == "tiny"
    assert set(choice["message"]) == {"role", "content"}
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    usage = found["usage"]
    assert usage["prompt_tokens"] > 0
    assert 0 < usage["completion_tokens"] <= 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_stream_says_the_same_as_the_object(service: Service) -> None:
    say = "say Grüße|, 世界|\u2028|\x85!"
    whole = service.chat(say, max_tokens=8).json
    reply = service.chat(say, max_tokens=8, stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"] == "text/event-stream"
    events = reply.events
    assert text_of(events) == whole["choices"][0]["message"]["content"]
    assert events[-1] == "data: [DONE]"[6:]
    assert events[-2]["usage"] == whole["usage"]
    assert events[-2]["choices"] == []
    assert events[-3]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for event in events[:-1]:
        assert event["object"] == "chat.completion.chunk"
        assert event["id"] == events[0]["id"]
        assert all(value is not None for choice in event["choices"] for value in choice["delta"].values())
    assert not any("usage" in event for event in events[:-2])


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_limit_of_tokens(service: Service, field: str) -> None:
    found = service.chat("say a|b|c|d|e", None, **{field: 3}).json
    assert found["usage"]["completion_tokens"] == 3
    assert found["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_string(service: Service, stream: bool) -> None:
    said = service.chat("say The q|uick br|own fox", max_tokens=12).json["choices"][0]["message"]["content"]
    middle = said[3:7]
    reply = service.chat("say The q|uick br|own fox", max_tokens=12, stop=["no such thing", middle], stream=stream)
    choices = [e["choices"][0] for e in reply.events[:-1]] if stream else [reply.json["choices"][0]]
    text = text_of(reply.events) if stream else choices[0]["message"]["content"]
    assert text == said[: said.index(middle)]
    assert choices[-1]["finish_reason"] == "stop"


def test_completions(service: Service) -> None:
    whole = service.complete("say x|y|z", max_tokens=2).json
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 2
    events = service.complete(["say x|y|z"], max_tokens=2, stream=True).events
    assert "".join(e["choices"][0]["text"] for e in events[:-1]) == whole["choices"][0]["text"]
    assert {e["object"] for e in events[:-1]} == {"text_completion"}


def test_models_and_their_names(service: Service) -> None:
    listed = service.get("/v1/models").json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["tiny", "tiny:background"]
    context = 4096 if isinstance(service.engine, FakeEngine) else 512  # what the tiny model was trained for
    assert all(model["object"] == "model" and model["max_model_len"] == context for model in listed["data"])
    assert {model["runtime"] for model in listed["data"]} == {"sim"}
    for model in listed["data"]:
        assert service.get(f"/v1/models/{model['id']}").json == model
        assert service.chat(model=model["id"], max_tokens=1).json["model"] == model["id"]
    for reply in (service.get("/v1/models/gpt-5"), service.chat(model="gpt-5"), service.chat(model="tiny:tiny")):
        assert reply.status == 404
        assert reply.error["code"] == "model_not_found"
        assert "tiny" in reply.error["message"]


def test_roles_and_parts(service: Service) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "light", "arguments": '{"on": true}'}}
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "light"}, {"type": "text", "text": "on"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "developer", "content": "Now answer."},
        {"role": "user", "content": "say ok", "name": "ann"},
    ]
    assert service.chat(messages=conversation, max_tokens=2, top_p=None, unknown={"a": 1}, user="x").status == 200


def test_a_prompt_that_does_not_fit(service: Service) -> None:
    say = "long" if isinstance(service.engine, FakeEngine) else "word " * 5000
    for stream in (False, True):
        reply = service.chat(say, stream=stream)
        assert reply.status == 400
        assert reply.error["code"] == "context_length_exceeded"
        assert reply.error["type"] == "invalid_request_error"
        assert ("4096" if isinstance(service.engine, FakeEngine) else "512") in reply.error["message"]


def leaves(service: Service, stream: bool, wait_for_it: Callable[[], None]) -> None:
    """A client that goes after ``wait_for_it``: in the middle of a stream, or while it waits for its answer."""
    connection = service.connect()
    body = {"messages": [{"role": "user", "content": "hang there"}], "stream": stream}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    if stream:
        assert connection.getresponse().read(6) == b"data: "
    wait_for_it()
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_its_answer(fake: Service, stream: bool) -> None:
    before = len(fake.engine.answers)
    leaves(fake, stream, lambda: until(lambda: len(fake.engine.answers) > before))
    until(lambda: fake.engine.answers[-1].closed.is_set())


def test_a_client_that_goes_frees_the_model(tiny_bundles: Mapping[str, Path]) -> None:
    """The answer takes minutes: it does not end by itself before anybody has looked, nor while that is waited for."""

    def slow(settings: EngineSettings) -> WorkerEngine:
        return WorkerEngine(settings, worker_env={"RKSIM_FAULTS": "token_ms=300"})

    with served(tiny_bundles["w8a8"], slow, **GREEDY) as running:
        until(lambda: running.get("/ready").status == 200)
        for stream in (True, False):
            leaves(running, stream, lambda: until(lambda: running.get("/health").json["running"]))
            until(lambda: not running.get("/health").json["running"])
        assert running.chat("say ok", max_tokens=1).status == 200


def test_a_runtime_that_dies_costs_one_answer(tiny_bundles: Mapping[str, Path]) -> None:
    def crashing(settings: EngineSettings) -> WorkerEngine:
        return WorkerEngine(settings, worker_env={"RKSIM_FAULTS": "crash_at=2000"})

    with served(tiny_bundles["w8a8"], crashing, context=4096, **GREEDY) as running:
        until(lambda: running.get("/ready").status == 200)
        events = running.complete("Once", max_tokens=3500, stream=True).events
        assert events[-1]["error"]["code"] == "answer_failed"
        reply = running.complete("Once", max_tokens=3)  # waits for the next worker
        # What the library had given and the worker not sent yet went with it: how much that is, the machine decides.
        said = "".join(event["choices"][0]["text"] for event in events[:-1])
        whole = running.complete("Once", max_tokens=1900).json["choices"][0]["text"]
        assert said and (whole.startswith(said) or said.startswith(whole[:-4]))  # its last character may be cut
        assert (reply.status, reply.json["usage"]["completion_tokens"]) == (200, 3)
        assert running.get("/health").json["restarts"] == 1


# What needs an engine that does as it is told.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("say", "status", "code", "retry_after"),
    [
        ("full", 429, "queue_full", "7"),
        ("template", 400, "prompt_refused", None),
        ("down", 503, "model_unavailable", "3"),
        ("reboot", 503, "model_unavailable", None),
        ("late", 504, "deadline_exceeded", None),
        ("lost", 500, "answer_failed", None),
    ],
)
def test_what_fails_before_a_token_has_a_status(
    fake: Service, say: str, status: int, code: str, retry_after: str | None, stream: bool
) -> None:
    reply = fake.chat(say, stream=stream)
    assert (reply.status, reply.error["code"]) == (status, code)
    assert reply.headers.get("retry-after") == retry_after
    assert set(reply.error) == {"message", "type", "param", "code"}


def test_what_fails_in_the_middle_of_a_stream_is_its_last_event(fake: Service) -> None:
    events = fake.chat("break Half an", stream=True).events
    assert events[1]["choices"][0]["delta"] == {"content": "Half an"}
    assert events[-1]["error"]["code"] == "answer_failed"
    assert len(events) == 3


def test_what_nobody_expected_is_a_500_and_says_no_more(fake: Service, caplog: pytest.LogCaptureFixture) -> None:
    reply = fake.chat("bug with my secret", headers={"x-request-id": "me-1"})
    assert reply.status == 500
    assert reply.error["code"] == "internal_error"
    assert reply.headers["x-request-id"] == "me-1"
    assert "secret" not in reply.body.decode()
    record = next(r for r in caplog.records if r.message == "unexpected error")
    assert record.__dict__["fields"] == {"request_id": "me-1"}


def test_signs_of_life_are_ordinary_chunks(fake: Service) -> None:
    events = fake.chat("slow 0.3 late|r", stream=True).events
    beats = [e for e in events[1:-2] if e["choices"][0]["delta"] == {}]
    assert len(beats) >= 3
    assert text_of(events) == "later"
    texts = fake.complete("slow 0.3 late", stream=True).events
    assert len([e for e in texts[:-2] if e["choices"][0]["text"] == ""]) >= 2


def test_comments_only_when_asked_for(fake: Service) -> None:
    reply = fake.chat("slow 0.3 late", stream=True, headers={"x-rk-sse-comments": "1"})
    lines = reply.body.decode().split("\n")
    assert lines.count(": waiting") >= 2
    assert not [line for line in lines if '"delta":{}' in line and '"finish_reason":null' in line]


def test_jobs_as_the_engine_gets_them(fake: Service) -> None:
    tool = {"type": "function", "function": {"name": "light", "parameters": {}}}
    call = {"id": "1", "type": "function", "function": {"name": "light", "arguments": '{"on": true}'}}
    messages = [
        {"role": "developer", "content": "d", "extra": 1},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "user", "content": [{"type": "text", "text": "say"}, {"type": "text", "text": "\ud83d half"}]},
    ]
    reply = fake.chat(
        messages=messages, model="tiny:background", tools=[tool], max_tokens=1, max_completion_tokens=2,
        chat_template_kwargs={"enable_thinking": False}, tool_choice="auto", logprobs=False, n=1,
    )  # fmt: skip
    assert reply.status == 200
    job = fake.engine.jobs[-1]
    parsed = {**call, "function": {"name": "light", "arguments": {"on": True}}}
    assert [dict(m) for m in job.messages] == [
        {"role": "system", "content": "d"},
        {"role": "assistant", "content": "", "tool_calls": [parsed]},
        {"role": "user", "content": "say\n? half"},
    ]
    assert (job.background, job.owner, job.max_tokens, job.lora) == (True, "", 2, None)
    assert list(job.tools) == [tool]
    assert job.template_variables == {"enable_thinking": False}
    fake.chat("say x", tools=[tool], tool_choice="none", max_tokens=-1)
    assert fake.engine.jobs[-1].tools is None
    assert fake.engine.jobs[-1].max_tokens is None


def test_a_request_may_want_its_answer_sooner(fake: Service) -> None:
    assert fake.chat(headers={"x-rk-deadline-s": "2.5"}).status == 200
    assert fake.engine.jobs[-1].deadline_s == 2.5
    for wrong in ("0", "-1", "soon", "1e9", ""):
        assert fake.chat(headers={"x-rk-deadline-s": wrong}).error["param"] == "x-rk-deadline-s"


def test_a_client_that_does_not_read_holds_no_one_up(fake: Service) -> None:
    """It gets what fits the buffers between; the others get their answers."""
    pieces = 1800
    say = "say " + "|".join(["é" * 1000] * pieces)  # 11 MB once escaped: more than a kernel holds for a connection
    message = {"role": "user", "content": say}
    body = json.dumps({"stream": True, "messages": [message]}, ensure_ascii=False).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"

    def its() -> list[FakeAnswer]:
        return [answer for answer in fake.engine.answers if len(answer.pieces_) == pieces]

    with socket.create_connection(("127.0.0.1", fake.port), timeout=WAIT_S) as silent:
        silent.sendall(head.encode() + body)
        until(its)
        assert fake.chat().status == 200
    until(lambda: its()[0].closed.is_set())
    assert its()[0].completion_tokens < pieces
