"""OpenAI's /v1/responses and /tokenize, over the scripted engine and over the twin with a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from rkruntime.daemon.engine import WorkerEngine
from rkruntime.daemon.jobs import Status
from rkruntime.model import Model, Settings
from tests.daemon_server import WAIT_S, Service, served, until
from tests.fake_engine import FakeEngine

SAY = "say Grüße|, 世界|\u2028!"


@pytest.fixture(scope="module")
def fake(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], FakeEngine, keep_alive_s=0.02) as running:
        yield running


@pytest.fixture
def client(fake: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{fake.url}/v1", api_key="any", max_retries=0, timeout=WAIT_S) as client:
        yield client


def ask(service: Service, given: Any = SAY, **fields: Any) -> Any:
    return service.post("/v1/responses", {"model": "tiny", "input": given, **fields})


def events(body: bytes) -> list[Any]:
    found = []
    for block in body.decode("ascii").removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def test_a_stream_says_the_same_as_the_object(service: Service) -> None:
    whole = ask(service, max_output_tokens=8).json
    reply = ask(service, max_output_tokens=8, stream=True)
    assert reply.headers["content-type"] == "text/event-stream"
    found = events(reply.body)
    (message,) = whole["output"]
    (part,) = message["content"]
    kinds = [event["type"] for event in found]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    deltas = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    assert deltas == found[-4]["text"] == part["text"] != ""
    last = found[-1]["response"]
    assert last["output"][0]["content"] == message["content"]
    assert last["usage"] == whole["usage"] and last["status"] == whole["status"]
    assert found[-1]["type"] == f"response.{whole['status']}"
    assert whole["usage"]["total_tokens"] == whole["usage"]["input_tokens"] + whole["usage"]["output_tokens"]
    assert (whole["object"], message["type"], message["role"]) == ("response", "message", "assistant")


def test_an_answer_that_is_cut_off_says_so(fake: Service) -> None:
    found = ask(fake, "say a|b|c", max_output_tokens=2).json
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert found["output"][0]["status"] == "incomplete"
    assert events(ask(fake, "say a|b|c", max_output_tokens=2, stream=True).body)[-1]["type"] == "response.incomplete"


def test_an_input_of_items(fake: Service) -> None:
    call = {"type": "function_call", "name": "lamp", "arguments": '{"on": true}'}
    given = [
        {"role": "user", "content": [{"type": "input_text", "text": text} for text in ("Turn on", "both")]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {**call, "call_id": "1"},
        {**call, "call_id": "2"},
        {"type": "function_call_output", "call_id": "1", "output": "on"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "on, too"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "Done."}]},
        {"role": "user", "content": "say x"},
    ]
    tool = {"type": "function", "name": "lamp", "parameters": {"type": "object"}, "strict": True}
    assert ask(fake, given, instructions="Be brief.", tools=[tool], store=False).status == 200
    job = fake.engine.jobs[-1]
    function = {"name": "lamp", "arguments": {"on": True}}
    calls = [{"id": number, "type": "function", "function": function} for number in "12"]
    lamp = {"role": "tool", "name": "lamp"}
    assert list(job.messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Turn on\nboth"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {**lamp, "content": "on", "tool_call_id": "1"},
        {**lamp, "content": "on, too", "tool_call_id": "2"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "say x"},
    ]
    (told,) = job.tools
    assert told == {"type": "function", "function": {"name": "lamp", "parameters": {"type": "object"}, "strict": True}}


@pytest.mark.parametrize("stream", [False, True])
def test_json_by_prompting(fake: Service, stream: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}
    reply = ask(fake, 'say {"a": |1}', text=form, stream=stream)
    found = events(reply.body)[-1]["response"] if stream else reply.json
    assert json.loads(found["output"][0]["content"][0]["text"]) == {"a": 1}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is kept"),
        ({"conversation": "conv_1"}, "conversation", "nothing is kept"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "nothing is kept"),
        ({"background": True}, "background", "nothing is kept"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "nothing is kept"),
        ({"input": [{"type": "computer_call"}]}, "input[0]", "only text and calls of functions"),
        ({"input": None}, "input", "a string that is not empty"),
        ({"input": []}, "input", "at least one"),
        ({"input": ["x"]}, "input[0]", "an object"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content", "input_image"),
        (
            {"instructions": "x", "input": [{"type": "reasoning"}, {"role": "nobody", "content": "x"}]},
            "input[1].role",
            "'input[1].role' has to be one of",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "1 or more"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "'web_search': only functions"),
        ({"tools": [{"type": "function"}]}, "tools[0]", "like"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "not among 'tools'"),
        ({"reasoning": {"effort": "enormous"}}, "reasoning", "one of none"),
        ({"top_logprobs": 3}, "top_logprobs", "no probabilities"),
    ],
)
def test_what_is_refused(fake: Service, fields: dict[str, Any], param: str, words: str) -> None:
    reply = fake.post("/v1/responses", {"input": "say x", **fields})
    assert (reply.status, reply.error["param"]) == (400, param)
    assert words in reply.error["message"]


def test_what_has_no_effect_is_named(fake: Service) -> None:
    assert ask(fake, store=True, temperature=0.9).headers["x-rk-ignored"] == "temperature, store"
    assert "x-rk-ignored" not in ask(fake, store=False, truncation="disabled", include=[], metadata={}).headers


def test_openais_client(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="tiny", input=SAY)
    assert whole.output_text == "Grüße, 世界\u2028!"
    assert whole.usage and whole.usage.output_tokens == 3
    with client.responses.stream(model="tiny", input="slow 0.05 a|b|c", instructions="Be brief.") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert deltas == ["a", "b", "c"]
        assert stream.get_final_response().output_text == "abc"
    with pytest.raises(openai.APIError, match="the answer was lost"):
        list(client.responses.create(model="tiny", input="break half", stream=True))
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="tiny", input="say x", previous_response_id="resp_1")


@pytest.mark.parametrize(("say", "status"), [("full", 429), ("long", 400), ("down", 503), ("late", 504), ("bug", 500)])
def test_errors(fake: Service, say: str, status: int) -> None:
    for stream in (False, True):
        reply = ask(fake, say, stream=stream)
        assert reply.status == status and reply.error["message"]


def test_signs_of_life(fake: Service) -> None:
    kinds = [event["type"] for event in events(ask(fake, "slow 0.1 a", stream=True).body)]
    assert kinds.count("response.in_progress") > 2
    body = fake.post("/v1/responses", {"input": "slow 0.1 a", "stream": True}, x_rk_sse_comments="1").body
    assert b"\n: waiting\n" in body and body.count(b"event: response.in_progress") == 1


# Counting.


def test_tokens_are_counted_as_an_answer_counts_them(service: Service, tiny_bundles: Mapping[str, Path]) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "say x"}]
    counted = service.post("/tokenize", {"model": "tiny", "messages": messages}).json
    assert counted["max_model_len"] == service.engine.status.context
    if isinstance(service.engine, FakeEngine):
        return
    asked = {"model": "tiny", "messages": messages, "max_tokens": 1}
    assert counted["count"] == service.post("/v1/chat/completions", asked).json["usage"]["prompt_tokens"]
    with Model(tiny_bundles["w8a8"], Settings(), print) as model:
        expected = len(model.prompts.plain("Hello, world"))
    for field in ("prompt", "content"):
        assert service.post("/tokenize", {field: "Hello, world"}).json["count"] == expected
    # What is too long for an answer can be counted all the same.
    assert service.post("/tokenize", {"prompt": "long " * 600}).json["count"] > 512


@pytest.mark.parametrize(
    "body", [{}, {"prompt": ""}, {"prompt": "x", "content": "x"}, {"messages": []}, {"prompt": [1]}]
)
def test_what_cannot_be_counted(fake: Service, body: Any) -> None:
    assert fake.post("/tokenize", body).status == 400


def test_counting_waits_its_turn_and_no_longer_than_its_deadline(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], WorkerEngine, queue_length=0) as running:
        until(lambda: running.get("/ready").status == 200)
        assert running.post("/tokenize", {"prompt": "x"}).status == 429
        running.engine._state = "loading"
        object.__setattr__(running.engine.settings, "queue_length", 5)
        assert running.post("/tokenize", {"prompt": "x"}, x_rk_deadline_s="0.1").status == 504
        running.engine._state, running.engine._reason = "failed", "no memory"
        assert running.post("/tokenize", {"prompt": "x"}).status == 503
        assert isinstance(running.engine.status, Status)
