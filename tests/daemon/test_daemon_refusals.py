"""What the daemon refuses and leaves out, by request, by key, by size, by origin; and what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rk3588.errors import Unavailable
from tests.daemon_server import Service, served
from tests.fake_engine import REFUSALS, FakeEngine


@pytest.fixture(scope="module")
def fake(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        yield running


REFUSED: dict[str, dict[str, Any]] = {
    "n": {"n": 2},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"top_logprobs": 3},
    "logit_bias": {"logit_bias": {"5": 1}},
    "modalities": {"modalities": ["text", "audio"]},
    "functions": {"functions": [{"name": "f"}]},
    "tool_choice": {"tool_choice": "required"},
    "tools[0]": {"tools": [{"type": "function"}]},
    "max_tokens": {"max_tokens": 0},
    "max_completion_tokens": {"max_completion_tokens": "5"},
    "temperature": {"temperature": "hot"},
    "stream": {"stream": "yes"},
    "stop": {"stop": ["a", "b", "c", "d", "e"]},
    "messages": {"messages": []},
    "messages[0].role": {"messages": [{"role": "king", "content": "x"}]},
    "messages[0].content": {"messages": [{"role": "user"}]},
    "messages[1]": {"messages": [{"role": "user", "content": "x"}, "y"]},
    "response_format": {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
    "chat_template_kwargs": {"chat_template_kwargs": {"messages": []}},
}  # fmt: skip


@pytest.mark.parametrize("param", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(fake: Service, param: str) -> None:
    reply = fake.chat("say x", None, **REFUSED[param])
    assert reply.status == 400
    assert reply.error["param"] == param
    assert reply.error["type"] == "invalid_request_error"
    assert len(reply.error["message"]) > 20


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_limits_that_are_none_are_told_which_are(fake: Service, name: str) -> None:
    said = fake.chat("say x", None, **{name: -5}).error["message"]
    assert said == f"'{name}' has to be 1 or more, or -1 or null for no limit but the context's"
    for value in (1, -1, None):
        assert fake.chat("say x", None, **{name: value}).status == 200


@pytest.mark.parametrize("fields", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"logprobs": 0}, {"n": 3}])
def test_what_completions_cannot_do(fake: Service, fields: dict[str, Any]) -> None:
    reply = fake.complete("say x", **fields)
    assert (reply.status, reply.error["param"]) == (400, next(iter(fields)))


@pytest.mark.parametrize("prompt", [None, "", [], ["a", "b"], [1, 2, 3], [[1, 2]], {"a": 1}])
def test_prompts_that_are_none(fake: Service, prompt: Any) -> None:
    assert fake.complete(prompt).error["param"] == "prompt"


def test_images_are_refused_in_words(fake: Service) -> None:
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    reply = fake.chat(messages=[{"role": "user", "content": parts}])
    assert reply.status == 400
    assert "image_url" in reply.error["message"]
    assert "reads only text" in reply.error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"nonsense", b"\xff{}", b"[" * 100_000, b'{"messages":' + b"9" * 9000 + b"}"]
)  # fmt: skip
def test_bodies_that_are_no_request(fake: Service, body: bytes) -> None:
    reply = fake.request("POST", "/v1/chat/completions", body)
    assert reply.status == 400
    assert reply.error["message"]


def test_paths_and_methods_that_are_not_there(fake: Service) -> None:
    assert fake.get("/v1/nothing").error["code"] == "not_found"
    reply = fake.get("/v1/chat/completions")
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert "POST" in reply.headers["allow"]


def test_request_ids_come_back_or_are_made(fake: Service) -> None:
    assert fake.get("/health", x_request_id="abc-1").headers["x-request-id"] == "abc-1"
    made = fake.get("/health", x_request_id="a b\tc").headers["x-request-id"]
    assert made not in ("", "a b\tc")
    assert made != fake.get("/health").headers["x-request-id"]


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"temperature": 0.2, "top_p": 0.9, "top_k": 40, "repeat_penalty": 1, "frequency_penalty": 0}, None),
        ({"temperature": 0.8, "top_p": 1, "seed": 5}, "temperature, top_p, seed"),
        ({"presence_penalty": 0.5, "repetition_penalty": 1.1}, "repetition_penalty, presence_penalty"),
    ],
)
def test_sampling_that_cannot_be_chosen_is_named(fake: Service, fields: dict[str, Any], ignored: str | None) -> None:
    for stream in (False, True):
        assert fake.chat("say x", None, stream=stream, **fields).headers.get("x-rk-ignored") == ignored


def test_strict_refuses_sampling_that_differs(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], FakeEngine, strict=True, temperature=0.0) as running:
        assert running.chat(temperature=0).status == 200
        reply = running.chat(temperature=0.7)
        assert (reply.status, reply.error["param"]) == (400, "temperature")
        assert "librkllmrt" in reply.error["message"]


def test_limits_of_size(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], FakeEngine, max_body_kb=1, max_messages=3) as running:
        assert running.chat("x" * 2000).status == 413
        chunked = (b"x" * 100 for _ in range(20))
        connection = running.connect()
        headers = {"Transfer-Encoding": "chunked"}
        connection.request("POST", "/v1/completions", chunked, headers, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
        message = {"role": "user", "content": "x"}
        assert running.chat(messages=[message] * 3).status == 200
        assert running.chat(messages=[message] * 4).error["param"] == "messages"


def test_keys(tiny_bundles: Mapping[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text("# for the kitchen\nkitchen:sk-kitchen\n\nsk-bare\n")
    caplog.set_level("DEBUG")
    with served(tiny_bundles["w8a8"], FakeEngine, keys=file) as running:
        for value in ("", "Bearer ", "Bearer sk-x", "sk-bare"):
            headers = {"authorization": value} if value else {}
            for reply in (running.chat(headers=headers), running.request("GET", "/v1/models", headers=headers)):
                assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
                assert reply.headers["www-authenticate"] == "Bearer"
        assert not running.engine.jobs
        assert running.chat(headers={"authorization": "Bearer sk-kitchen"}).status == 200
        assert running.chat(headers={"authorization": "bearer  sk-bare"}).status == 200
        assert [job.owner for job in running.engine.jobs] == ["kitchen", "line-4"]
        assert {running.get(path).status for path in ("/health", "/ready", "/openapi.json")} == {200}
    logged = [str(record.__dict__) for record in caplog.records]
    assert any("kitchen" in line for line in logged)
    assert not [line for line in logged if "sk-" in line or "Hello" in line]


def test_without_keys_any_will_do(fake: Service) -> None:
    for value in ("Bearer", "Bearer ", "Bearer abc", "Basic eA=="):
        assert fake.chat(headers={"authorization": value}).status == 200


def test_health_and_ready_tell_the_truth(fake: Service) -> None:
    before = fake.engine.status
    try:
        for state, health, ready in (("loading", 200, 503), ("failed", 503, 503), ("reboot", 503, 503)):
            fake.engine.status = type(before)(state, "because")
            assert (fake.get("/health").status, fake.get("/ready").status) == (health, ready)
            assert fake.get("/ready").json == {
                "state": state, "reason": "because", "queued": 0, "running": False, "restarts": 0,
            }  # fmt: skip
            assert "max_model_len" not in fake.get("/v1/models").json["data"][0]
    finally:
        fake.engine.status = before
    assert fake.get("/ready").json["context"] == 4096


@pytest.mark.parametrize("keys", [False, True])
def test_health_says_paths_to_those_with_a_key_only(
    tiny_bundles: Mapping[str, Path], tmp_path: Path, keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("me:sk-1\n")
    bundle = tiny_bundles["w8a8"]
    reason = (
        f"the model cannot be loaded: {bundle} ended its process; remove {tmp_path}/state dir/loads.json (see "
        "'/opt/rk/lib.so', file:///x, ~/.cache/a and/or https://example.org/b): E RKNN open:/dev/dri/renderD129 failed"
    )
    masked = (
        f"the model cannot be loaded: {bundle.name} ended its process; remove state dir/loads.json (see "
        "'lib.so', file:///x, a and/or https://example.org/b): E RKNN open:renderD129 failed"
    )
    chosen = {"keys": tmp_path / "keys"} if keys else {}
    with served(bundle, FakeEngine, state_dir=tmp_path / "state dir", **chosen) as running:
        running.engine.status = type(running.engine.status)("failed", reason)
        for path in ("/health", "/ready"):
            assert running.get(path).json["reason"] == masked
            assert running.get(path, authorization="Bearer sk-2").json["reason"] == masked
            assert running.get(path, authorization="Bearer sk-1").json["reason"] == (reason if keys else masked)
        monkeypatch.setitem(REFUSALS, "down", Unavailable(reason))
        assert running.chat("down", {"authorization": "Bearer sk-1"}).error["message"] == (reason if keys else masked)


def test_ignored_sampling_is_logged_once_for_each_client(
    tiny_bundles: Mapping[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        for agent in ("curl/8", "curl/8", "chat/1", "curl/8"):
            running.chat(headers={"user-agent": agent}, temperature=0.3)
        running.chat(headers={"user-agent": "curl/8"}, temperature=0.3, seed=1, stream=True)
        running.chat(headers={"user-agent": "curl/8"})
    told = [r.__dict__["fields"] for r in caplog.records if r.getMessage() == "sampling ignored"]
    assert [(t["client"], t["ignored"]) for t in told][:3] == [
        ("127.0.0.1 curl/8", "temperature"), ("127.0.0.1 chat/1", "temperature"),
        ("127.0.0.1 curl/8", "temperature, seed"),
    ]  # fmt: skip
    assert "--temperature" in told[0]["reason"]
