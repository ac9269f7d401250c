"""Thinking over HTTP: split off, streamed, switched, kept in the history; and calls of tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from rkruntime.daemon.engine import WorkerEngine
from tests import family_templates as families
from tests.daemon_server import WAIT_S, Service, served, until
from tests.fake_engine import FakeEngine
from tests.fakes import bundle_for_both, fake_rkllm


@pytest.fixture(scope="module")
def qwen(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    template = families.FOLDER / "qwen3.jinja"
    with served(tiny_bundles["w8a8"], FakeEngine, template=template, keep_alive_s=0.05) as running:
        yield running


@pytest.fixture(scope="module")
def plain(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    """ChatML: no switch, no tools."""
    with served(tiny_bundles["w8a8"], FakeEngine, keep_alive_s=0.05) as running:
        yield running


def choice(reply: Any) -> Any:
    assert reply.status == 200, reply.body
    return reply.json["choices"][0]


def deltas(reply: Any) -> list[dict[str, Any]]:
    return [event["choices"][0]["delta"] for event in reply.events[:-1] if event["choices"]]


THINKING = "say <thi|nk>⏎Hm, |so.⏎</th|ink>⏎⏎It is| 4."


def test_a_thought_is_no_part_of_the_content(plain: Service) -> None:
    found = choice(plain.chat(THINKING))
    assert found["message"] == {"role": "assistant", "content": "It is 4.", "reasoning_content": "Hm, so."}
    assert found["finish_reason"] == "stop"
    parts = deltas(plain.chat(THINKING, stream=True))
    assert "".join(part.get("reasoning_content", "") for part in parts) == "Hm, so."
    assert "".join(part.get("content", "") for part in parts) == "It is 4."
    assert [part for part in parts if "content" in part and "reasoning_content" in part] == []
    assert len([part for part in parts if "reasoning_content" in part]) > 1  # as it comes
    assert all(value is not None for part in parts for value in part.values())


def test_one_that_the_prompt_has_begun(plain: Service) -> None:
    found = choice(plain.chat("opened Hm.|</think>|4"))["message"]
    assert (found["reasoning_content"], found["content"]) == ("Hm.", "4")
    parts = deltas(plain.chat("opened Hm.|</think>|4", stream=True))
    assert parts[1:3] == [{"reasoning_content": "Hm."}, {"content": "4"}]


@pytest.mark.parametrize("say", ["say <think>a|b|c|d", "opened a|b|c|d"])
def test_one_that_is_cut_off_is_no_content(plain: Service, say: str) -> None:
    found = choice(plain.chat(say, max_tokens=3))
    assert found["finish_reason"] == "length"
    assert found["message"]["content"] == ""
    assert found["message"]["reasoning_content"] in ("abc", "ab c")
    assert not any(part.get("content") for part in deltas(plain.chat(say, max_tokens=3, stream=True)))


def test_a_text_without_a_template_is_all_text(plain: Service) -> None:
    assert plain.complete("say <think>a|</think>b").json["choices"][0]["text"] == "<think>a</think>b"


def test_json_is_looked_for_behind_the_thought(plain: Service) -> None:
    ask = {"response_format": {"type": "json_object"}}
    found = choice(plain.chat('say <think>{"no": |1}</think>|{"yes": 1} and more', **ask))["message"]
    assert found == {"role": "assistant", "content": '{"yes": 1}', "reasoning_content": '{"no": 1}'}


@pytest.mark.parametrize(
    ("fields", "on"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"think": False}, False),
        ({"think": "low"}, True),
        ({"enable_thinking": False}, False),
        ({"reasoning": {"effort": "none"}}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}, "think": False}, False),
        ({"chat_template_kwargs": {"thinking": False}}, False),
    ],
)
def test_the_switch(qwen: Service, plain: Service, fields: dict[str, Any], on: bool) -> None:
    reply = qwen.chat(**fields)
    assert "x-rk-ignored" not in reply.headers
    assert qwen.engine.jobs[-1].template_variables["enable_thinking"] is on
    reply = plain.chat(**fields)
    assert reply.status == 200
    named = [f"chat_template_kwargs.{name}" for name in fields.get("chat_template_kwargs", {})]
    assert reply.headers["x-rk-ignored"].split(", ") == [*(f for f in fields if f != "chat_template_kwargs"), *named]


def test_wishes_that_cannot_be(qwen: Service) -> None:
    for fields, param in (
        ({"reasoning_effort": "lots"}, "reasoning_effort"),
        ({"think": 3}, "think"),
        ({"enable_thinking": "yes"}, "enable_thinking"),
        ({"think": True, "reasoning_effort": "none"}, "think"),
        ({"think": True, "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking"),
    ):
        reply = qwen.chat(**fields)
        assert (reply.status, reply.error["param"]) == (400, param)
    assert qwen.chat(reasoning_effort="default").status == 200


def test_strict_refuses_what_has_no_effect(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], FakeEngine, strict=True) as service:
        reply = service.chat(think=True)
        assert (reply.status, reply.error["param"]) == (400, "think")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_an_earlier_thought_reaches_the_template(qwen: Service, name: str) -> None:
    earlier = {"role": "assistant", "content": "4", name: "Hm."}
    messages = [{"role": "user", "content": "2+2?"}, earlier, {"role": "user", "content": "say ok"}]
    assert choice(qwen.chat(messages=messages))["message"]["content"] == "ok"
    assert qwen.engine.jobs[-1].messages[1] == {"role": "assistant", "content": "4", "reasoning_content": "Hm."}


def test_through_openais_client(plain: Service) -> None:
    with openai.OpenAI(base_url=f"{plain.url}/v1", api_key="any", max_retries=0, timeout=WAIT_S) as client:
        asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": THINKING}]}
        message = client.chat.completions.create(**asked).choices[0].message
        assert (message.content, message.reasoning_content) == ("It is 4.", "Hm, so.")
        chunks = list(client.chat.completions.create(**asked, stream=True))
        thoughts = [getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks]
        assert "".join(thoughts) == "Hm, so."
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "It is 4."


def hexed(*texts: str) -> str:
    return "\n".join([*(f"token 9 {text.encode().hex()}" for text in texts), "empty 2"])


def test_all_the_way_to_the_library(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    """The worker says that the prompt has begun a thought, and the library's pieces become parts."""
    library = fake_rkllm(tmp_path)
    call = '<tool_call>{"name": "weather", "arguments": {"place": "Köln"}}</tool_call>'
    for name, script, expected in (
        ("deepseek-r1-distill-qwen", hexed("Hm", ".</th", "ink>\n", "Four."), {"content": "Four."}),
        ("qwen3", hexed("<think>Hm.</think>", call[:15], call[15:]), {"content": None}),
    ):
        bundle = bundle_for_both(tmp_path / name, tiny_bundles["w8a8"], script)
        template = families.FOLDER / f"{name}.jinja"
        with served(bundle, WorkerEngine, template=template, library=library, context=2048) as service:
            until(lambda: service.get("/ready").status == 200)
            found = choice(service.chat("2+2?", tools=[families.TOOL]))["message"]
            assert found["reasoning_content"] == "Hm."
            assert {"content": found["content"]} == expected
            assert bool(found.get("tool_calls")) == (name == "qwen3")


def test_a_stream_that_holds_back_gives_signs_of_life(qwen: Service) -> None:
    """Tokens come all the time, and none of them can be shown before the call is whole."""
    tool = {"type": "function", "function": {"name": "light"}}
    pieces = "|".join(["<tool_call>", '{"name": "light", "arguments": {"on": "', *"abcdefghij", '"}}'])
    parts = deltas(qwen.chat(f"slow 0.03 {pieces}", stream=True, tools=[tool]))
    assert parts.count({}) > 2
    assert json.loads(parts[-2]["tool_calls"][0]["function"]["arguments"]) == {"on": "abcdefghij"}
