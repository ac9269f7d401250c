"""Anthropic's /v1/messages, over the scripted engine, by hand and with Anthropic's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests import family_templates as families
from tests.daemon_server import WAIT_S, Service, served
from tests.fake_engine import FakeEngine

WEATHER = {"name": "weather", "description": "The weather", "input_schema": families.TOOL["function"]["parameters"]}  # type: ignore[index]
CALL = '<tool_call>⏎{"name": "weather", "arguments": {"place": "Köln"}}⏎</tool_call>'


@pytest.fixture(scope="module")
def service(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    template = families.FOLDER / "qwen3.jinja"
    with served(tiny_bundles["w8a8"], FakeEngine, template=template, keep_alive_s=0.05) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=service.url, api_key="any", max_retries=0, timeout=WAIT_S) as client:
        yield client


def ask(service: Service, say: Any = "say x", **fields: Any) -> Any:
    return service.post("/v1/messages", {"messages": [{"role": "user", "content": say}], "max_tokens": 99, **fields})


def test_anthropics_client(client: anthropic.Anthropic) -> None:
    said: Any = [{"role": "user", "content": "slow 0.1 Grüße|, 世界|!"}]
    whole = client.messages.create(model="tiny", max_tokens=99, messages=said, system="Be brief.")
    assert whole.content[0].type == "text" and whole.content[0].text == "Grüße, 世界!"
    assert (whole.stop_reason, whole.usage.output_tokens) == ("end_turn", 3)
    with client.messages.stream(model="tiny", max_tokens=99, messages=said) as stream:
        assert "".join(stream.text_stream) == "Grüße, 世界!"
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens, final.usage.input_tokens > 0) == ("end_turn", 3, True)
    cut = client.messages.create(model="tiny", max_tokens=2, messages=said)
    assert cut.stop_reason == "max_tokens"
    assert client.messages.count_tokens(model="tiny", messages=said).input_tokens > 0


def test_its_errors(client: anthropic.Anthropic, service: Service) -> None:
    kinds = {"long": anthropic.BadRequestError, "full": anthropic.RateLimitError, "down": anthropic.InternalServerError}
    for say, kind in kinds.items():
        with pytest.raises(kind):
            client.messages.create(model="tiny", max_tokens=9, messages=[{"role": "user", "content": say}])
    with pytest.raises(anthropic.NotFoundError, match="there is tiny"):
        client.messages.create(model="claude", max_tokens=9, messages=[{"role": "user", "content": "say x"}])
    with (
        pytest.raises(anthropic.APIStatusError, match="the answer was lost"),
        client.messages.stream(model="tiny", max_tokens=9, messages=[{"role": "user", "content": "break x"}]) as stream,
    ):
        stream.until_done()
    image = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}]
    assert "only text" in ask(service, image).json["error"]["message"]
    wrong = ask(service, messages=[{"role": "user", "content": "x"}, {"role": "nobody", "content": "x"}], system="x")
    assert "'messages[1].role'" in wrong.json["error"]["message"]


def test_thoughts_and_calls(client: anthropic.Anthropic, service: Service) -> None:
    say = f"say <think>Hm.</think>Let me see.⏎|{CALL}"
    fields: Any = {"tools": [WEATHER], "thinking": {"type": "enabled", "budget_tokens": 1024}}
    whole = client.messages.create(model="tiny", max_tokens=2048, messages=[{"role": "user", "content": say}], **fields)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use"]
    assert whole.content[2].type == "tool_use" and whole.content[2].input == {"place": "Köln"}
    assert whole.stop_reason == "tool_use"
    asked: Any = {"model": "tiny", "max_tokens": 2048, "messages": [{"role": "user", "content": say}], **fields}
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
    assert final.content[2].type == "tool_use" and final.content[2].input == {"place": "Köln"}
    assert service.engine.jobs[-1].template_variables["enable_thinking"] is True
    # And back in, with the results of two calls and a word in one message.
    call = whole.content[2].model_dump(include={"type", "id", "name", "input"})
    blocks = [*(block.model_dump() for block in whole.content[:2]), call, {**call, "id": "other"}]
    results = [{"type": "tool_result", "tool_use_id": each, "content": "rain"} for each in ("other", call["id"])]
    history: Any = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": [*results, {"type": "text", "text": "say It rains."}]},
    ]
    again = client.messages.create(model="tiny", max_tokens=9, messages=history, tools=fields["tools"])
    assert again.stop_reason == "end_turn"
    sent = list(service.engine.jobs[-1].messages)
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool", "user"]
    assert (sent[1]["content"], sent[1]["reasoning_content"]) == ("Let me see.", "Hm.")
    assert [message["tool_call_id"] for message in sent[2:4]] == ["other", call["id"]]


@pytest.mark.parametrize(
    ("choice", "demanded"),
    [({"type": "any"}, True), ({"type": "tool", "name": "weather"}, True), ({"type": "auto"}, False)],
)
def test_a_call_can_be_demanded(service: Service, choice: Any, demanded: bool) -> None:
    reply = ask(service, "say no", tools=[WEATHER], tool_choice=choice)
    assert reply.status == (422 if demanded else 200)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "only functions"),
        ({"tools": [{}]}, "tools[0]"),
        ({"tool_choice": {"type": "some"}}, "auto, any, none or tool"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": []}, "at least one"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop_sequences": ["a"] * 5}, "'stop_sequences' has to be"),
    ],
)
def test_what_is_refused(service: Service, fields: Any, words: str) -> None:
    reply = ask(service, **fields)
    assert reply.status == 400 and words in reply.json["error"]["message"]
    assert reply.json["error"]["type"] == "invalid_request_error"


def test_a_key_in_its_own_header(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice:sk-alice\n")
    with served(tiny_bundles["w8a8"], FakeEngine, keys=tmp_path / "keys") as running:
        body = {"messages": [{"role": "user", "content": "say x"}]}
        assert running.post("/v1/messages", body, x_api_key="wrong").json["error"]["type"] == "authentication_error"
        assert running.post("/v1/messages", body, x_api_key="sk-alice").status == 200
        assert running.engine.jobs[-1].owner == "alice"
        assert running.get("/v1/models", x_api_key="sk-alice").status == 200


def test_signs_of_life(service: Service) -> None:
    body = ask(service, "slow 0.2 a", stream=True).body
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: ")]
    assert [event["type"] for event in events].count("ping") > 1
