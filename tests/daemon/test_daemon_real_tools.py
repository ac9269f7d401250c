"""A real model calls a tool, is told the result, and answers: Qwen2.5-Coder 0.5B, through OpenAI's client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from rk3588 import bundle as bundles
from rk3588.templates import ChatTemplate, Source
from rkruntime.daemon.engine import WorkerEngine
from rkruntime.daemon.template_facts import TemplateFacts
from tests import smollm2
from tests.daemon.test_daemon_parts_of_answers import read
from tests.daemon_server import WAIT_S, served, until
from tests.family_templates import CALLED, TOOL
from tests.real_models import QWEN

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(QWEN.missing), reason=QWEN.missing)]
GREEDY = {"temperature": 0.0, "repeat_penalty": 1.0}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    smollm2.convert(QWEN.path, folder, ["w8a8"], name="qwen")
    return folder / "qwen-rk3588-w8a8"


def test_a_call_as_its_own_template_writes_it(qwen: Path) -> None:
    source = Source.of(bundles.read(qwen))
    facts = TemplateFacts.of(source.text)
    assert facts.takes_tools and facts.call_format is not None and facts.call_format.name == "hermes"
    shown = ChatTemplate(*source).conversation(CALLED[:2], {"tools": [TOOL]}, add_generation_prompt=False).text
    answer = shown.rpartition("<|im_start|>assistant\n")[2].partition("<|im_end|>")[0]
    assert answer.startswith("<tool_call>")
    assert read(answer, facts.call_format) == [("weather", {"place": "Köln"})]


def test_a_round(qwen: Path) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": "get_weather", "description": "The current weather of a city", "parameters": parameters}
    asked: dict[str, Any] = {"model": "qwen", "tools": [{"type": "function", "function": function}], "max_tokens": 80}
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    with (
        served(qwen, WorkerEngine, patience=20.0, **GREEDY) as service,
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0, timeout=10 * WAIT_S) as client,
    ):
        until(lambda: service.get("/ready").status == 200)
        whole = client.chat.completions.create(messages=messages, **asked)
        assert whole.choices[0].finish_reason == "tool_calls", whole
        (call,) = whole.choices[0].message.tool_calls or []
        assert call.type == "function" and call.function.name == "get_weather"
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        with client.chat.completions.stream(messages=messages, tool_choice="required", **asked) as stream:
            (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
        assert json.loads(streamed.function.arguments) == {"city": "Paris"}
        messages.append(whole.choices[0].message.model_dump(exclude_none=True))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "Rain, 11 degrees"})
        # So small a model calls again as long as it can.
        answer = client.chat.completions.create(messages=messages, tool_choice="none", **asked).choices[0].message
        assert "rain" in (answer.content or "").lower(), answer
