"""Ollama's API over HTTP, over the scripted engine and over the twin with a tiny model."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rkruntime.daemon.jobs import Status
from tests.daemon_server import Service, served, until
from tests.fake_engine import FakeEngine

BOTH = pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])


@pytest.fixture(scope="module")
def fake(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], FakeEngine, keep_alive_s=0.02) as running:
        yield running


def text_of(part: Any) -> str:
    found = part["message"]["content"] if "message" in part else part["response"]
    assert isinstance(found, str)
    return found


# Answers.


@BOTH
def test_a_stream_says_the_same_as_the_object(service: Service, path: str) -> None:
    say = "say Grüße|, 世界|\u2028|\x85!"
    reply = service.ollama(say, path, options={"num_predict": 8})  # a stream unless something else is said
    whole = service.ollama(say, path, options={"num_predict": 8}, stream=False)
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert whole.headers["content-type"] == "application/json"
    *parts, last = reply.lines
    assert "".join(map(text_of, reply.lines)) == text_of(whole.json) != ""
    assert [part["done"] for part in parts] == [False] * len(parts)
    for each in (last, whole.json):
        assert (each["done"], each["model"]) == (True, "tiny")
        assert each["done_reason"] in ("stop", "length")
        assert each["prompt_eval_count"] > 0 and 0 < each["eval_count"] <= 8
        assert each["total_duration"] >= each["load_duration"] + each["prompt_eval_duration"] + each["eval_duration"]
        if not isinstance(service.engine, FakeEngine):
            assert each["prompt_eval_duration"] > 0 and each["eval_duration"] > 0
    assert last["eval_count"] == whole.json["eval_count"]
    assert {"prompt_eval_count", "eval_count", "done_reason"}.isdisjoint(parts[0])
    datetime.datetime.fromisoformat(last["created_at"].replace("Z", "+00:00"))
    key = "message" if path == "/api/chat" else "response"
    assert all(set(part) == {"model", "created_at", key, "done"} for part in parts)


@pytest.mark.parametrize("limit", [3, 0, -1, -2, None])
def test_the_limit_of_tokens(fake: Service, limit: int | None) -> None:
    found = fake.ollama("say a|b|c|d|e", options={"num_predict": limit}, stream=False).json
    assert (found["eval_count"], found["done_reason"]) == ((3, "length") if limit == 3 else (5, "stop"))


def test_stop_strings(fake: Service) -> None:
    many = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "<|endoftext|>", "/src/", "#- coding", "ick"]
    for stop in (many, "ick"):
        found = fake.ollama("say The q|uick br|own fox", options={"stop": stop}).lines
        assert "".join(map(text_of, found)) == "The qu"
        assert found[-1]["done_reason"] == "stop"


def test_a_generation_is_a_conversation_or_raw(fake: Service) -> None:
    assert fake.ollama("say x", "/api/generate", system="Be brief.", stream=False).json["response"] == "x"
    assert list(fake.engine.jobs[-1].messages) == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "say x"},
    ]  # fmt: skip
    assert fake.ollama("say x", "/api/generate", raw=True, template="", suffix="", context=[]).lines[-1]["done"]
    assert (fake.engine.jobs[-1].text, fake.engine.jobs[-1].messages) == ("say x", None)


def test_a_conversation_with_tools_and_their_results(fake: Service) -> None:
    """As Home Assistant sends it: arguments are an object, results have neither id nor name."""
    call = {"function": {"name": "HassTurnOn", "arguments": {"name": "lamp"}}}
    messages = [
        {"role": "system", "content": "You are a home."},
        {"role": "user", "content": "on"},
        {"role": "assistant", "content": None, "thinking": None, "tool_calls": [call], "images": None},
        {"role": "tool", "content": '{"success": true}'},
        {"role": "tool", "content": "ok", "tool_name": "HassTurnOn"},
        {"role": "User", "content": "say done"},
    ]
    assert fake.post("/api/chat", {"model": "tiny", "messages": messages, "format": None}).lines[-1]["done"]
    sent = list(fake.engine.jobs[-1].messages)
    (made,) = sent[2]["tool_calls"]
    assert sent[2]["content"] == "" and made["function"] == call["function"]
    result = {"role": "tool", "name": "HassTurnOn", "tool_call_id": made["id"]}
    assert sent[3] == {**result, "content": '{"success": true}'}
    assert sent[4] == {"role": "tool", "name": "HassTurnOn", "content": "ok"}
    assert sent[5]["role"] == "user"


@pytest.mark.parametrize("stream", [False, True])
def test_json_by_prompting(fake: Service, stream: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for form in ("json", schema):
        reply = fake.ollama('say {"a": |1}', format=form, stream=stream)
        text = "".join(map(text_of, reply.lines)) if stream else text_of(reply.json)
        assert json.loads(text) == {"a": 1}
    assert fake.ollama("say no", format=schema, stream=False).status == 422


def test_signs_of_life_are_parts_without_text(fake: Service) -> None:
    lines = fake.ollama("slow 0.1 a|b").lines
    assert "".join(map(text_of, lines)) == "ab"
    assert sum(text_of(each) == "" for each in lines) > 2


def test_a_client_that_goes_gives_its_answer_up(fake: Service) -> None:
    connection = fake.connect()
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hang first"}]})
    connection.request("POST", "/api/chat", body)
    assert b"first" in connection.getresponse().readline()
    connection.close()
    until(lambda: fake.engine.answers[-1].closed.is_set())


# What has no effect, and what is refused.


def test_a_context_is_never_a_reload(service: Service) -> None:
    here = service.get("/api/ps").json["models"][0]["context_length"]
    assert "x-rk-ignored" not in service.ollama(stream=False, options={"num_ctx": here, "num_predict": 1}).headers
    for asked in (here * 2, 128):
        reply = service.ollama(stream=False, options={"num_ctx": asked, "num_predict": 1})
        assert reply.headers["x-rk-ignored"] == "num_ctx"
    assert service.get("/api/ps").json["models"][0]["context_length"] == here
    assert service.get("/ready").json["restarts"] == 0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"keep_alive": -1}, None), ({"keep_alive": "-1s"}, None), ({"keep_alive": "300s"}, None),
        ({"keep_alive": "5m"}, None), ({"keep_alive": 0}, "keep_alive"), ({"keep_alive": "0"}, "keep_alive"),
        ({"keep_alive": "0m"}, "keep_alive"), ({"think": False}, None), ({"think": None}, None),
        ({"options": {"seed": 7, "temperature": 0.9}}, "temperature, seed"), ({"options": {"seed": -1}}, None),
        ({"options": {"min_p": 0.1, "typical_p": 1.0, "mirostat": 0}}, "min_p"),
        ({"options": {"num_gpu": 1, "use_mmap": True, "num_thread": 8, "num_keep": 5, "numa": False}}, None),
        ({"format": "", "tools": [], "truncate": True, "shift": True, "logprobs": False}, None),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_named(fake: Service, fields: dict[str, Any], named: str | None) -> None:
    for path in ("/api/chat", "/api/generate"):
        if path == "/api/generate":
            fields = {**fields, "tools": None}
        for stream in (False, True):
            reply = fake.ollama(path=path, stream=stream, **fields)
            assert (reply.status, reply.headers.get("x-rk-ignored")) == (200, named)


def test_strict_refuses_sampling_alone(tiny_bundles: Mapping[str, Path]) -> None:
    """What Home Assistant sends with every request is no sampling."""
    with served(tiny_bundles["w8a8"], FakeEngine, strict=True) as running:
        assert running.ollama(keep_alive="0s", options={"num_ctx": 8192}).status == 200
        reply = running.ollama(options={"temperature": 0.9})
        assert reply.status == 400 and "temperature" in reply.json["error"]


@pytest.mark.parametrize(
    ("path", "fields", "status", "words"),
    [
        ("/api/chat", {"model": "no"}, 404, "no model 'no' here: there is tiny, tiny:background"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400, "only text"),
        ("/api/chat", {"messages": [{"role": "user", "content": ["x"]}]}, 400, "content.*a string"),
        ("/api/chat", {"messages": [{"role": "nobody", "content": "x"}]}, 400, "role.*one of system"),
        ("/api/chat", {"messages": "x"}, 400, "'messages' has to be a list"),
        ("/api/chat", {"options": []}, 400, "'options' has to be an object"),
        ("/api/chat", {"options": {"num_ctx": -5}}, 400, "options.num_ctx"),
        ("/api/chat", {"options": {"num_predict": "x"}}, 400, "num_predict"),
        ("/api/chat", {"options": {"stop": 3}}, 400, "options.stop"),
        ("/api/chat", {"options": {"stop": ["x"] * 33}}, 400, "32 strings"),
        ("/api/chat", {"keep_alive": []}, 400, "keep_alive"),
        ("/api/chat", {"format": "xml"}, 400, "format"),
        ("/api/chat", {"logprobs": True}, 400, "logprobs"),
        ("/api/generate", {"suffix": "}"}, 400, "does not support insert"),
        ("/api/generate", {"template": "{{ .Prompt }}"}, 400, "template"),
        ("/api/generate", {"context": [1, 2]}, 400, "context"),
        ("/api/generate", {"images": ["aGk="]}, 400, "only text"),
        ("/api/generate", {"raw": True, "system": "x"}, 400, "raw"),
        ("/api/generate", {"raw": True, "format": "json"}, 400, "format"),
        ("/api/show", {"model": "no"}, 404, "no model 'no'"),
        ("/api/show", {"model": None}, 400, "'model' has to be the name"),
        ("/api/pull", {"model": "llama3.2"}, 404, "pulls none"),
        ("/api/create", {}, 404, "POST /api/create: not found"),
        ("/api/tags", {}, 405, "POST /api/tags: method not allowed"),
    ],
)  # fmt: skip
def test_errors_have_its_shape(fake: Service, path: str, fields: dict[str, Any], status: int, words: str) -> None:
    asked = {"prompt": "say x"} if path == "/api/generate" else {"messages": [{"role": "user", "content": "say x"}]}
    reply = fake.post(path, {"model": "tiny", **asked, **fields})
    assert reply.status == status
    assert set(reply.json) == {"error"}


    assert re.search(words, reply.json["error"]), reply.json


@BOTH
@pytest.mark.parametrize(
    ("say", "status"), [("full", 429), ("long", 400), ("down", 503), ("late", 504), ("bug", 500), ("lost", 500)]
)
def test_errors_of_the_engine(fake: Service, path: str, say: str, status: int) -> None:
    for stream in (False, True):
        reply = fake.ollama(say, path, stream=stream)
        assert (reply.status, set(reply.json)) == (status, {"error"})
        assert isinstance(reply.json["error"], str)


@BOTH
def test_an_error_in_mid_stream(fake: Service, path: str) -> None:
    first, last = fake.ollama("break half", path).lines
    assert text_of(first) == "half"
    assert set(last) == {"error"} and "the answer was lost" in last["error"]


# What is asked about models.


def test_the_root(fake: Service) -> None:
    for method in ("GET", "HEAD"):
        reply = fake.request(method, "/")
        assert reply.status == 200 and reply.headers["content-type"].startswith("text/plain")
    assert fake.get("/").body.startswith(b"Ollama is running")


def test_the_version_is_numbers(fake: Service) -> None:
    assert len([int(part) for part in fake.get("/api/version").json["version"].split(".")]) == 3


def test_the_list_of_models(service: Service) -> None:
    models = service.get("/api/tags").json["models"]
    assert [model["name"] for model in models] == ["tiny:latest", "tiny:background"]
    for model in models:
        assert model["name"] == model["model"]
        assert len(model["digest"]) == 64 and model["size"] > 0
        assert datetime.datetime.fromisoformat(model["modified_at"].replace("Z", "+00:00")).tzinfo
        assert model["details"]["quantization_level"] == "w8a8"
        assert model["details"]["format"] == "gguf"
        assert model["details"]["families"] == [model["details"]["family"]]
        assert service.post("/api/show", {"model": model["name"]}).status == 200
        answer = service.ollama(model=model["model"], options={"num_predict": 1}, stream=False).json
        assert answer["model"] == model["name"]


@pytest.mark.parametrize("name", ["tiny", "tiny:latest", "tiny:w8a8", "tiny:background", "tiny:latest:background"])
def test_the_names_of_the_model(fake: Service, name: str) -> None:
    assert fake.ollama(model=name, stream=False).json["model"] == name
    assert fake.engine.jobs[-1].background == name.endswith("background")
    assert fake.chat(model=name).status == 200
    assert fake.get(f"/v1/models/{name}").json["id"] in ("tiny", "tiny:background")
    pulled = fake.post("/api/pull", {"model": name})
    assert pulled.lines == [{"status": "success"}]
    assert fake.post("/api/pull", {"name": name, "stream": False}).json == {"status": "success"}


def test_what_is_shown_of_a_model(service: Service) -> None:
    by_name, by_model = (service.post("/api/show", {key: "tiny", "verbose": True}).json for key in ("name", "model"))
    assert by_name == by_model
    info = by_name["model_info"]
    family = info["general.architecture"]
    context = service.get("/api/ps").json["models"][0]["context_length"]
    assert (family, by_name["details"]["family"]) == ("llama", "llama")
    assert info[f"{family}.context_length"] == context
    assert info[f"{family}.embedding_length"] > 0
    assert info["general.parameter_count"] > 0
    parameters = dict(each.split(" ", 1) for each in by_name["parameters"].split("\n"))
    assert (parameters["num_ctx"], parameters["temperature"]) == (str(context), "0")
    assert isinstance(json.loads(parameters["stop"]), str)
    assert "messages" in by_name["template"] and by_name["modelfile"].startswith("FROM tiny:latest\n")
    assert by_name["capabilities"] == ["completion"]


def test_what_runs(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        (model,) = running.get("/api/ps").json["models"]
        assert model["name"] == "tiny:latest" and model["size_vram"] == model["size"] > 0
        assert datetime.datetime.fromisoformat(model["expires_at"].replace("Z", "+00:00")).year > 2100
        for state, status in (("loading", 200), ("failed", 503), ("reboot", 503)):
            running.engine.status = Status(state, "the model cannot be loaded")
            assert running.get("/api/ps").json == {"models": []}
            assert running.get("/api/tags").status == running.post("/api/show", {"model": "tiny"}).status == 200
            reply = running.post("/api/generate", {"model": "tiny"})
            assert reply.status == status
            assert reply.json.get("done_reason") == ("load" if status == 200 else None)


@pytest.mark.parametrize("stream", [None, False, True])
def test_a_request_without_a_prompt_asks_for_the_model_to_be_loaded(fake: Service, stream: bool | None) -> None:
    before = len(fake.engine.jobs)
    chat = fake.post("/api/chat", {"model": "tiny", "messages": [], "stream": stream}).json
    assert (chat["message"], chat["done"], chat["done_reason"]) == ({"role": "assistant", "content": ""}, True, "load")
    unload = fake.post("/api/generate", {"model": "tiny", "keep_alive": 0, "stream": stream})
    assert (unload.json["response"], unload.json["done"]) == ("", True)
    assert unload.headers["x-rk-ignored"] == "keep_alive"
    assert fake.post("/api/generate", {"model": "no"}).status == 404
    assert len(fake.engine.jobs) == before
