"""Tools over HTTP: shown by the template, called in its format, demanded, answered."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from rk3588.templates import ChatTemplate
from rkruntime.daemon import tooluse
from rkruntime.daemon.template_facts import TemplateFacts
from tests import family_templates as families
from tests.daemon_server import WAIT_S, Reply, Service, served
from tests.fake_engine import FakeEngine

WEATHER = families.TOOL
LIGHT = {"type": "function", "function": {"name": "light", "parameters": {"required": ["on"]}}}
CALL = '<tool_call>⏎{"name": "weather", "arguments": {"place": "Köln"}}⏎</tool_call>'
ON = '<tool_call>{"name": "light", "arguments": {"on": true}}</tool_call>'


class TwoTries(FakeEngine):
    """The first line of the first message is the first answer, its second the answer to a correction."""

    async def submit(self, job: Any) -> Any:
        lines = job.messages[0]["content"].split("\n")
        told = job.messages[-1]["content"].startswith("That answer is not valid")
        script = [{"role": "user", "content": f"say {lines[1 if told else 0]}"}]
        answer = await super().submit(type(job)(messages=script, max_tokens=job.max_tokens))
        self.jobs[-1] = job
        return answer


@pytest.fixture(scope="module")
def services(tiny_bundles: Mapping[str, Path]) -> Iterator[Mapping[str, Service]]:
    bundle = tiny_bundles["w8a8"]
    with (
        served(bundle, TwoTries, template=families.FOLDER / "qwen2.5.jinja") as qwen,
        served(bundle, FakeEngine, template=families.FOLDER / "own-llama-3.2.jinja") as llama,
        served(bundle, FakeEngine, template=families.FOLDER / "mistral-nemo.jinja") as mistral,
        served(bundle, FakeEngine) as plain,
    ):
        yield {"qwen": qwen, "llama": llama, "mistral": mistral, "plain": plain}


def message(reply: Reply) -> Any:
    assert reply.status == 200, reply.body
    return reply.json["choices"][0]["message"]


def called(found: Any) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found.get("tool_calls") or []
    ]


def test_a_call(services: Mapping[str, Service]) -> None:
    reply = services["qwen"].chat(f"Let me see.⏎|{CALL}", tools=[WEATHER])
    found = message(reply)
    assert found["content"] == "Let me see."
    assert called(found) == [("weather", {"place": "Köln"})]
    assert reply.json["choices"][0]["finish_reason"] == "tool_calls"
    assert "x-rk-ignored" not in reply.headers
    (call,) = found["tool_calls"]
    assert call["type"] == "function" and re.fullmatch("[A-Za-z0-9]{9}", call["id"])
    assert message(services["qwen"].chat(CALL, tools=[WEATHER]))["content"] is None


def test_a_stream_has_each_call_whole_in_one_delta(services: Mapping[str, Service]) -> None:
    pieces = "|".join(f"Both.⏎{CALL}⏎{ON}")
    events = services["qwen"].chat(pieces, tools=[WEATHER, LIGHT], stream=True).events[:-1]
    parts = [event["choices"][0]["delta"] for event in events]
    calls = [part for part in parts if "tool_calls" in part]
    assert [list(part) for part in calls] == [["tool_calls"], ["tool_calls"]]
    assert [part["tool_calls"][0]["index"] for part in calls] == [0, 1]
    assert [called(part) for part in calls] == [[("weather", {"place": "Köln"})], [("light", {"on": True})]]
    assert len({part["tool_calls"][0]["id"] for part in calls}) == 2
    assert "".join(part.get("content", "") for part in parts) == "Both."
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_one_call_where_only_one_may_be(services: Mapping[str, Service]) -> None:
    reply = services["qwen"].chat(f"{CALL}|{ON}|more", tools=[WEATHER, LIGHT], parallel_tool_calls=False)
    assert called(message(reply)) == [("weather", {"place": "Köln"})]
    assert services["qwen"].engine.answers[-1].closed.is_set()  # the NPU is for others


def test_what_is_no_call_stays_text(services: Mapping[str, Service]) -> None:
    for text in (CALL.replace("weather", "format_disk"), CALL.replace("}}", "}")):
        reply = services["qwen"].chat(text, tools=[WEATHER])
        assert message(reply) == {"role": "assistant", "content": text.replace("⏎", "\n")}
        assert reply.json["choices"][0]["finish_reason"] == "stop"
    assert message(services["qwen"].chat(CALL))["content"] == CALL.replace("⏎", "\n")  # no tools, no calls
    assert "tool_calls" not in message(services["qwen"].chat(CALL, tools=[WEATHER], tool_choice="none"))


def test_a_call_that_is_cut_off(services: Mapping[str, Service]) -> None:
    reply = services["qwen"].chat(f"{CALL[:20]}|{CALL[20:]}", tools=[WEATHER], max_tokens=1)
    assert reply.json["choices"][0]["finish_reason"] == "length"
    assert message(reply)["content"] == CALL[:20].replace("⏎", "\n")


def test_other_families(services: Mapping[str, Service]) -> None:
    text = 'say {"name": "weather", |"parameters": {"place": "Köln"}}'
    assert called(message(services["llama"].chat(text, tools=[WEATHER]))) == [("weather", {"place": "Köln"})]
    assert "<|python_tag|>" in services["llama"].engine.jobs[-1].marks
    text = 'say [TOOL_CALLS]|[{"name": "weather", "arguments": {"place": "Köln"}}]'
    assert called(message(services["mistral"].chat(text, tools=[WEATHER]))) == [("weather", {"place": "Köln"})]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "light"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_has_to_be(services: Mapping[str, Service], choice: Any, stream: bool) -> None:
    qwen = services["qwen"]
    asked: dict[str, Any] = {"tools": [WEATHER, LIGHT], "tool_choice": choice, "stream": stream}
    reply = qwen.chat(f"I will not.\n<think>Well.</think>|{ON}", **asked)
    assert reply.status == 200
    if stream:
        parts = [event["choices"][0]["delta"] for event in reply.events[:-1]]
        assert [called(part) for part in parts if "tool_calls" in part] == [[("light", {"on": True})]]
        assert not any(part.get("content") for part in parts)
    else:
        assert called(message(reply)) == [("light", {"on": True})]
    job = qwen.engine.jobs[-1]
    assert [each["role"] for each in job.messages] == ["user", "assistant", "user"]
    assert job.messages[1]["content"] == "I will not."
    told = "Call the function light now." if isinstance(choice, dict) else "Call one of the functions now."
    assert told in job.messages[0]["content"]
    assert len(job.tools) == (1 if isinstance(choice, dict) else 2)
    reply = qwen.chat("no\nneither", **asked)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (422, "call_refused", "tool_choice")
    reply = qwen.chat("so much| text", **asked, max_tokens=1)
    assert reply.status == 422 and "cut off" in reply.error["message"]


def test_a_demanded_call_has_to_fit_its_schema(services: Mapping[str, Service]) -> None:
    lacking = ON.replace('"on": true', "")
    asked: dict[str, Any] = {"tools": [LIGHT], "tool_choice": "required"}
    assert called(message(services["qwen"].chat(f"{lacking}\n{ON}", **asked))) == [("light", {"on": True})]
    _, mistake, told = services["qwen"].engine.jobs[-1].messages
    assert mistake == {"role": "assistant", "content": '{"name": "light", "arguments": {}}'}
    assert "the arguments of light do not fit: 'on' is a required property" in told["content"]
    # Where none is demanded, it is the client's to judge.
    assert called(message(services["qwen"].chat(lacking, tools=[LIGHT]))) == [("light", {})]


def test_a_schema_that_cannot_be_used_refuses_no_call(services: Mapping[str, Service]) -> None:
    for parameters in ({"type": "nonsense"}, ["no", "schema"], None):
        tool = {"type": "function", "function": {"name": "light", "parameters": parameters}}
        reply = services["qwen"].chat(ON, tools=[tool], tool_choice="required")
        assert called(message(reply)) == [("light", {"on": True})]


def test_demands_that_cannot_be(services: Mapping[str, Service]) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for name, fields, words in (
        ("plain", {"tools": [WEATHER], "tool_choice": "required"}, "shows no format of calls that is known"),
        ("plain", {"tools": [WEATHER], "tool_choice": named}, "shows no format of calls that is known"),
        ("qwen", {"tool_choice": "required"}, "no 'tools' to call"),
        ("qwen", {"tools": [LIGHT], "tool_choice": named}, "there are light"),
        ("qwen", {"tools": [LIGHT], "tool_choice": "always"}, "auto, none, required"),
        ("qwen", {"tools": [LIGHT], "tool_choice": {"type": "function"}}, "auto, none, required"),
    ):
        reply = services[name].chat(**fields)
        assert (reply.status, reply.error["param"]) == (400, "tool_choice") and words in reply.error["message"]
    reply = services["qwen"].chat(tools=[LIGHT], tool_choice="required", response_format={"type": "json_object"})
    assert (reply.status, reply.error["param"]) == (400, "response_format")


def test_a_family_without_a_format_says_so(services: Mapping[str, Service]) -> None:
    reply = services["plain"].chat(f"say {CALL}", tools=[WEATHER])
    assert reply.headers["x-rk-ignored"] == "tools"
    assert message(reply)["content"] == CALL.replace("⏎", "\n")
    assert "x-rk-ignored" not in services["plain"].chat(tools=[WEATHER], tool_choice="none").headers


def test_json_or_a_call(services: Mapping[str, Service]) -> None:
    asked: dict[str, Any] = {"tools": [WEATHER], "response_format": {"type": "json_object"}}
    assert called(message(services["qwen"].chat(CALL, **asked))) == [("weather", {"place": "Köln"})]
    assert message(services["qwen"].chat('{"a": 1}', **asked))["content"] == '{"a": 1}'


# Results back in.


def conversation(*calls: dict[str, Any], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    asked = {"role": "assistant", "content": None, "tool_calls": list(calls)}
    said = {"role": "assistant", "content": "Well."}
    return [{"role": "user", "content": "x"}, asked, *results, said, {"role": "user", "content": "say ok"}]


def a_call(id: str | None, name: str = "weather") -> dict[str, Any]:
    return {**({"id": id} if id else {}), "function": {"name": name, "arguments": "{}"}}


def a_result(id: str | None, text: str, **more: str) -> dict[str, Any]:
    return {"role": "tool", "content": text, **({"tool_call_id": id} if id else {}), **more}


@pytest.mark.parametrize("name", ["qwen", "llama", "mistral"])
@pytest.mark.parametrize(
    "messages",
    [
        conversation(a_call("a"), results=[a_result("a", "rain")]),
        conversation(a_call("call_" + "x" * 20), results=[a_result("call_" + "x" * 20, "rain")]),
        conversation(a_call(None), results=[a_result(None, "rain")]),  # as Home Assistant does
        conversation(a_call("a"), a_call("b", "light"), results=[a_result("b", "on"), a_result("a", "rain")]),
        conversation(a_call(None), a_call(None, "light"), results=[a_result(None, "rain"), a_result(None, "on")]),
    ],
)
def test_results_fit_the_template(services: Mapping[str, Service], name: str, messages: list[Any]) -> None:
    service = services[name]
    assert service.chat(messages=messages, tools=[WEATHER, LIGHT]).status == 200
    job = service.engine.jobs[-1]
    source = service_template(name)
    text = ChatTemplate(source, families.TOKENS).conversation(job.messages, {"tools": job.tools}).text
    assert "rain" in text
    ids = [call["id"] for each in job.messages for call in each.get("tool_calls", ())]
    assert len(set(ids)) == len(ids)
    by_id = {call["id"]: call["function"]["name"] for each in job.messages for call in each.get("tool_calls", ())}
    results = {by_id[each["tool_call_id"]]: each["content"] for each in job.messages if each["role"] == "tool"}
    assert results == ({"weather": "rain", "light": "on"} if len(ids) > 1 else {"weather": "rain"})
    again = tooluse.history(messages[:1] + [{**m, "content": m["content"] or ""} for m in messages[1:]], facts(name))
    assert [m.get("tool_calls") and [c["id"] for c in m["tool_calls"]] for m in again] == [
        m.get("tool_calls") and [c["id"] for c in m["tool_calls"]] for m in job.messages
    ]  # the same each time: a prompt has to begin as it did before


def service_template(name: str) -> str:
    return families.source({"qwen": "qwen2.5", "llama": "own-llama-3.2", "mistral": "mistral-nemo"}[name])


def facts(name: str) -> TemplateFacts:
    return TemplateFacts.of(service_template(name))


def test_a_history_costs_no_square(services: Mapping[str, Service]) -> None:
    calls = [a_call(str(number)) for number in range(tooluse.MOST_CALLS)]
    results = [a_result(None, "x") for _ in range(1000)]
    began = time.process_time()
    found = tooluse.history(conversation(*calls, results=results), facts("llama"))
    assert time.process_time() - began < 1 and len(found) == len(calls) + len(results) + 3
    reply = services["qwen"].chat(messages=conversation(*calls, a_call("x"), results=[]))
    assert (reply.status, reply.error["param"]) == (400, "messages") and "257 calls" in reply.error["message"]


def test_a_whole_round_through_openais_client(services: Mapping[str, Service]) -> None:
    with openai.OpenAI(
        base_url=f"{services['qwen'].url}/v1", api_key="any", max_retries=0, timeout=WAIT_S
    ) as client:
        messages: list[Any] = [{"role": "user", "content": f"Hm.⏎|{CALL}|⏎{ON}"}]
        asked: Any = {"model": "tiny", "tools": [WEATHER, LIGHT]}
        with client.chat.completions.stream(messages=messages, **asked) as stream:
            final = stream.get_final_completion()
        found = final.choices[0].message
        assert final.choices[0].finish_reason == "tool_calls"
        assert [call.function.name for call in found.tool_calls or []] == ["weather", "light"]
        assert json.loads((found.tool_calls or [])[0].function.arguments) == {"place": "Köln"}
        whole = client.chat.completions.create(messages=messages, **asked).choices[0].message
        assert whole.content == found.content == "Hm."
        results: list[Any] = [
            {"role": "tool", "tool_call_id": call.id, "content": "done"} for call in whole.tool_calls or []
        ]
        again = [*messages, whole.model_dump(exclude_none=True), *results]
        assert client.chat.completions.create(messages=again, **asked).choices[0].message.tool_calls
    job = services["qwen"].engine.jobs[-1]
    assert [each["role"] for each in job.messages] == ["user", "assistant", "tool", "tool"]
    assert job.messages[1]["tool_calls"][0]["function"]["arguments"] == {"place": "Köln"}
