"""Thoughts and calls of tools in the languages besides OpenAI's chat: whole, streamed however it is cut, switched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import ollama
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rkruntime.daemon.answering import Answering
from rkruntime.daemon.api import languages
from rkruntime.daemon.config import Config
from rkruntime.daemon.figures import Figures
from rkruntime.daemon.jobs import EngineSettings, Job
from rkruntime.daemon.jsonformat import Checker
from rkruntime.daemon.keys import Keys
from rkruntime.daemon.models import Models
from rkruntime.daemon.places import Places
from rkruntime.daemon.template_facts import TemplateFacts
from tests import family_templates as families
from tests.daemon_server import WAIT_S, Service, served
from tests.fake_engine import FakeAnswer, FakeEngine

WEATHER: dict[str, Any] = dict(families.TOOL)
QWEN = families.FOLDER / "qwen3.jinja"
CALL = '<tool_call>⏎{"name": "weather", "arguments": {"place": "Köln"}}⏎</tool_call>'
THINKING = "say <th|ink>⏎Hm, |so.⏎</think|>⏎⏎It is| 4."


@pytest.fixture(scope="module")
def qwen(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], FakeEngine, template=QWEN, keep_alive_s=0.05) as running:
        yield running


@pytest.fixture(scope="module")
def plain(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    """ChatML: no switch, no tools."""
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        yield running


def test_ollamas_thoughts(qwen: Service) -> None:
    for path, place in (("/api/chat", "message"), ("/api/generate", None)):
        whole = qwen.ollama(THINKING, path, stream=False, think=True).json
        found = whole[place] if place else whole
        text = "content" if place else "response"
        assert (found["thinking"], found[text]) == ("Hm, so.", "It is 4.")
        parts = [line[place] if place else line for line in qwen.ollama(THINKING, path).lines]
        assert "".join(part.get("thinking", "") for part in parts) == "Hm, so."
        assert "".join(part[text] for part in parts) == "It is 4."
        assert len([part for part in parts if "thinking" in part]) > 1  # as it comes
    assert qwen.ollama(THINKING, "/api/generate", raw=True, stream=False).json["response"].startswith("<think>")


@pytest.mark.parametrize(("think", "on"), [(True, True), (False, False), ("low", True), (None, None)])
def test_ollamas_switch(qwen: Service, think: Any, on: bool | None) -> None:
    for path in ("/api/chat", "/api/generate"):
        reply = qwen.ollama("say x", path, think=think, stream=False)
        assert "x-rk-ignored" not in reply.headers
        assert qwen.engine.jobs[-1].template_variables.get("enable_thinking") is on


def test_what_cannot_be_switched_is_named(plain: Service) -> None:
    assert plain.ollama(think=True).headers["x-rk-ignored"] == "think"
    assert plain.ollama(path="/api/generate", think=True, raw=True).headers["x-rk-ignored"] == "think"
    assert "x-rk-ignored" not in plain.ollama(think=False).headers  # it does not think anyway
    assert plain.ollama(tools=[WEATHER]).headers["x-rk-ignored"] == "tools"
    assert plain.ollama(think="enormous").status == 400


def test_ollamas_calls(qwen: Service) -> None:
    say = f"say Let me see.⏎{CALL}|⏎{CALL.replace('Köln', 'Bonn')}"
    whole = qwen.ollama(say, tools=[WEATHER], stream=False).json
    places = [call["function"]["arguments"] for call in whole["message"]["tool_calls"]]
    assert places == [{"place": "Köln"}, {"place": "Bonn"}]
    assert (whole["message"]["content"], whole["done_reason"]) == ("Let me see.", "stop")
    lines = qwen.ollama(say, tools=[WEATHER]).lines
    calls = [line["message"] for line in lines if "tool_calls" in line["message"]]
    assert [message["tool_calls"][0]["function"]["index"] for message in calls] == [0, 1]
    assert [message["tool_calls"][0]["function"]["arguments"] for message in calls] == places
    assert all(message["content"] == "" for message in calls)
    with ollama.Client(qwen.url) as client:
        found = client.chat("tiny", [{"role": "user", "content": say}], tools=[WEATHER]).message.tool_calls or []
        assert [dict(call.function.arguments) for call in found] == places


def test_what_is_shown_of_such_a_model(qwen: Service, plain: Service) -> None:
    shown = qwen.post("/api/show", {"model": "tiny"}).json
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert "tools" in shown["template"]  # LiteLLM looks there
    assert plain.post("/api/show", {"model": "tiny"}).json["capabilities"] == ["completion"]


def test_home_assistants_second_turn(qwen: Service) -> None:
    """Calls and results have no ids, and the thought is sent along."""
    messages = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "thinking": "Look it up.",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"place": "Köln"}}}],
        },
        {"role": "tool", "content": '{"rain": true}'},
        {"role": "user", "content": "say It rains."},
    ]
    assert qwen.post("/api/chat", {"model": "tiny", "messages": messages, "tools": [WEATHER]}).status == 200
    _, asked, result, _ = qwen.engine.jobs[-1].messages
    assert asked["reasoning_content"] == "Look it up."
    assert result["tool_call_id"] == asked["tool_calls"][0]["id"]


def test_responses(qwen: Service) -> None:
    tool = {"type": "function", **WEATHER["function"]}
    say = f"say <think>Hm.</think>Let me see.⏎|{CALL}"
    with openai.OpenAI(base_url=f"{qwen.url}/v1", api_key="any", max_retries=0, timeout=WAIT_S) as client:
        whole = client.responses.create(model="tiny", input=say, tools=[tool], reasoning={"effort": "low"})  # type: ignore
        assert [item.type for item in whole.output] == ["reasoning", "message", "function_call"]
        assert whole.output_text == "Let me see."
        call = whole.output[2]
        assert call.type == "function_call" and json.loads(call.arguments) == {"place": "Köln"}
        with client.responses.stream(model="tiny", input=say, tools=[tool]) as stream:  # type: ignore[list-item]
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
        assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 3
        assert "response.reasoning_text.delta" in kinds and "response.function_call_arguments.done" in kinds
        # And back in, as the library gives them.
        given = [{"role": "user", "content": "Weather?"}, *(item.to_dict() for item in whole.output)]
        given += [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
        given += [{"role": "user", "content": "say It rains."}]
        assert client.responses.create(model="tiny", input=given, tools=[tool]).output_text == "It rains."  # type: ignore
    sent = list(qwen.engine.jobs[-1].messages)
    assert [message["role"] for message in sent] == ["user", "assistant", "assistant", "tool", "user"]
    assert sent[2]["tool_calls"][0]["id"] == sent[3]["tool_call_id"] == call.call_id


# A stream of any language, cut anywhere, has the same text, thought and calls as the whole answer.


class Found(NamedTuple):
    text: str = ""
    thought: str = ""
    calls: tuple[Any, ...] = ()

    def plus(self, other: Found) -> Found:
        return Found(self.text + other.text, self.thought + other.thought, self.calls + other.calls)


def of_chat(data: Any) -> Found:
    if not data["choices"]:
        return Found()
    choice = data["choices"][0]
    said = choice.get("message") or choice["delta"]
    calls = [call["function"] for call in said.get("tool_calls") or ()]
    named = tuple((call["name"], json.loads(call["arguments"])) for call in calls)
    return Found(said.get("content") or "", said.get("reasoning_content", ""), named)


def of_responses(data: Any) -> Found:
    kind = data.get("type")
    if kind == "response.output_text.delta":
        return Found(data["delta"])
    if kind == "response.reasoning_text.delta":
        return Found(thought=data["delta"])
    if kind == "response.function_call_arguments.done":
        return Found(calls=((data["name"], json.loads(data["arguments"])),))
    found = Found()
    for item in data.get("output", ()):
        if item["type"] == "function_call":
            found = found.plus(Found(calls=((item["name"], json.loads(item["arguments"])),)))
        elif item["type"] == "reasoning":
            found = found.plus(Found(thought=item["content"][0]["text"]))
        else:
            found = found.plus(Found(item["content"][0]["text"]))
    return found


def of_ollama(data: Any) -> Found:
    said = data["message"]
    calls = [call["function"] for call in said.get("tool_calls", ())]
    return Found(said["content"], said.get("thinking", ""), tuple((call["name"], call["arguments"]) for call in calls))


def of_messages(data: Any) -> Found:
    """A call's arguments come with the delta, its name before."""
    found = Found()
    for block in [*data.get("content", ()), data.get("delta", {}), data.get("content_block", {})]:
        kind = block.get("type")
        if kind in ("text", "text_delta"):
            found = found.plus(Found(block["text"]))
        elif kind in ("thinking", "thinking_delta"):
            found = found.plus(Found(thought=block["thinking"]))
        elif kind == "input_json_delta":
            found = found.plus(Found(calls=(("weather", json.loads(block["partial_json"])),)))
        elif kind == "tool_use" and data["type"] == "message":
            found = found.plus(Found(calls=((block["name"], block["input"]),)))
    return found


READ = {
    "/v1/chat/completions": of_chat, "/v1/responses": of_responses, "/v1/messages": of_messages, "/api/chat": of_ollama,
}  # fmt: skip


class Scripted(FakeEngine):
    """Answers in the pieces it was told."""

    said: tuple[str, ...] = ()

    def _answer(self, command: str, rest: str, lines: list[str], job: Job) -> FakeAnswer:  # noqa: ARG002
        return FakeAnswer(list(self.said), 1 << 30, 1)


@cache
def scripted() -> tuple[Scripted, dict[str, Answering]]:
    engine = Scripted(EngineSettings(Path("x")))
    config = Config(bundle=Path("x"), template_facts=TemplateFacts.of(QWEN.read_text()))
    counting = (Figures(), Places(), Checker())
    find = Models("tiny", "w8a8", [], 0, "sim").find
    return engine, {e.path: Answering(engine, config, Keys(None), find, e, *counting) for e in languages.ENDPOINTS}


def answered(path: str, said: list[str], stream: bool) -> bytes:
    """The bytes that go over the line."""
    engine, endpoints = scripted()
    engine.said = tuple(said)
    user = {"role": "user", "content": "x"}
    function = WEATHER["function"]
    tool = {"/v1/responses": {"type": "function", **function}, "/v1/messages": {"name": "weather"}}.get(path, WEATHER)
    body = {"input" if path == "/v1/responses" else "messages": [user], "tools": [tool], "stream": stream}
    given: list[Any] = [{"type": "http.request", "body": json.dumps(body).encode()}]
    sent: list[bytes] = []

    async def receive() -> Any:
        return given.pop() if given else await asyncio.Event().wait()

    async def send(event: Any) -> None:
        sent.append(event.get("body", b""))

    scope = {"type": "http", "headers": [], "state": {"facts": {"request_id": "x"}}}
    asyncio.run(endpoints[path](scope, receive, send))
    return b"".join(sent)


words = st.text(st.sampled_from("ab<>/{}\":|\n thinkolcä"), max_size=12)
call = st.builds(lambda place: CALL.replace("⏎", "\n").replace("Köln", place), st.sampled_from(["Köln", "Bonn"]))
answers = st.tuples(
    st.one_of(st.just(""), words.map("<think>{}</think>".format), words.map("<think>{}".format)),
    st.lists(st.one_of(words, call), max_size=4).map("".join),
).map("".join)


@settings(max_examples=25)
@given(answers, st.lists(st.integers(0, 120), max_size=10), st.lists(st.integers(0, 6000), max_size=10))
def test_a_stream_has_the_same_parts_as_the_whole_answer(answer: str, pieces: list[int], cuts: list[int]) -> None:
    places = sorted({0, len(answer), *(piece for piece in pieces if piece < len(answer))})
    said = [answer[start:end] for start, end in zip(places, places[1:], strict=False)]
    found = {path: READ[path](json.loads(answered(path, [answer], stream=False))) for path in READ}
    assert len(set(map(repr, found.values()))) == 1
    for path, read in READ.items():
        raw = answered(path, said, stream=True)
        ends = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
        held, streamed = b"", Found()
        for start, end in zip(ends, ends[1:], strict=False):
            *lines, held = (held + raw[start:end]).split(b"\n")
            for line in lines:
                data = line.decode("ascii").removeprefix("data: ")
                if data.startswith("{"):
                    streamed = streamed.plus(read(json.loads(data)))
        assert streamed == found[path] and not held
