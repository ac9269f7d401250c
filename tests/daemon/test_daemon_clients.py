"""The clients people use, unchanged: OpenAI's and Ollama's for Python and for node, LiteLLM, and curl."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest

from rkruntime.daemon.engine import WorkerEngine
from tests import family_templates as families
from tests.daemon_server import WAIT_S, Service, served, until
from tests.fake_engine import FakeEngine

ROOT = Path(__file__).resolve().parent.parent.parent
GREETING = "Grüße, 世界!"
SAY = "say Grüße|, 世界|!"


@pytest.fixture(scope="module")
def service(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    """Its signs of life are frequent, so that every client meets some."""
    template = families.FOLDER / "qwen2.5.jinja"
    with served(tiny_bundles["w8a8"], FakeEngine, keep_alive_s=0.02, template=template) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0, timeout=WAIT_S) as client:
        yield client


def said(text: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_openai_for_python(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny:background"]
    assert client.models.retrieve("tiny").owned_by == "rkchatd"
    whole = client.chat.completions.create(model="tiny", messages=said(SAY))
    assert whole.choices[0].message.content == GREETING
    assert whole.usage
    assert whole.usage.completion_tokens == 3
    stream = client.chat.completions.create(
        model="tiny", messages=said("slow 0.1 Grüße|, 世界|!"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == GREETING
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 3
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert client.completions.create(model="tiny", prompt="say x|y").choices[0].text == "xy"
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=said(SAY), temperature=0.1)
    assert raw.headers["x-rk-ignored"] == "temperature"


def test_openai_for_python_maps_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=said("long"))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-5", messages=said(SAY))
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="tiny", messages=said("full"))
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="tiny", messages=said("down"))
    with pytest.raises(openai.APIError, match="the answer was lost"):
        list(client.chat.completions.create(model="tiny", messages=said("break half"), stream=True))


def test_openai_for_python_leaves_a_stream(client: openai.OpenAI, service: Service) -> None:
    with client.chat.completions.create(model="tiny", messages=said("hang there"), stream=True) as stream:
        next(iter(stream))
    until(lambda: service.engine.answers[-1].closed.is_set())


def test_openai_for_python_asynchronously(service: Service) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
            asked = [client.chat.completions.create(model="tiny", messages=said(f"say {n}")) for n in range(8)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [str(n) for n in range(8)]


def with_node(script: str, package: str, url: str) -> Any:
    """What a script under tests/ prints that is given a file of an npm package."""
    file = ROOT / "build" / "node" / "node_modules" / package
    if shutil.which("node") is None:
        pytest.skip("there is no node on this machine")
    if not file.is_file():
        pytest.skip(f"npm's package {package.partition('/')[0]} is not there (.ci/setup node)")
    command: list[str | Path] = ["node", ROOT / "tests" / script, file, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_openai_for_node(service: Service) -> None:
    found = with_node("daemon_client.mjs", "openai/index.mjs", f"{service.url}/v1")
    assert found["models"] == ["tiny", "tiny:background"]
    assert found["whole"] == found["streamed"] == GREETING
    assert found["usage"]["completion_tokens"] == 3
    called = found["called"]
    assert (called["message"]["content"], found["thought"], called["finish_reason"]) == ("On.", "Dark.", "tool_calls")
    assert called["message"]["tool_calls"][0]["function"]["name"] == "light"
    assert json.loads(called["message"]["tool_calls"][0]["function"]["arguments"]) == {"on": True}
    assert found["text"] == "xy"
    assert found["long"] == {"name": "BadRequestError", "status": 400, "code": "context_length_exceeded"}
    assert found["full"] == {"name": "RateLimitError", "status": 429, "code": "queue_full"}
    assert found["broken"]["code"] == "answer_failed"
    assert (found["embedded"], found["responded"], found["events"]) == ([2, 2], "xy", "xy")


def test_ollama_for_node(service: Service) -> None:
    found = with_node("daemon_client_ollama.mjs", "ollama/dist/index.mjs", service.url)
    assert found["models"] == ["tiny:latest", "tiny:background"]
    assert found["whole"] == found["streamed"] == GREETING
    assert (found["counted"], found["generated"], found["embedded"], found["running"]) == (3, "xy", 2, 1)
    assert found["shown"] == 4096
    (call,) = found["called"].pop("tool_calls")
    assert found["called"] == {"role": "assistant", "content": "On.", "thinking": "Dark."}
    assert (call["function"]["name"], call["function"]["arguments"]) == ("light", {"on": True})
    assert found["full"][1] == 429 and "waiting already" in found["full"][0]
    assert found["unknown"][1] == 404 and "there is tiny" in found["unknown"][0]
    assert "the answer was lost" in found["broken"][0]


def test_litellm(service: Service) -> None:
    python = ROOT / "build" / "litellm-venv" / "bin" / "python"
    if not python.is_file():
        pytest.skip("LiteLLM is not there (.ci/setup litellm)")
    script = ROOT / "tests" / "daemon_client_litellm.py"
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # it would ask the internet, and wait
    done = subprocess.run([python, script, service.url], capture_output=True, text=True, timeout=3 * WAIT_S, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["whole"] == found["streamed"] == GREETING
    assert found["called"] == [["On.", "Dark.", "light", {"on": True}, "tool_calls"]] * 2
    assert (found["usage"], found["streamed_usage"]) == (6, 7)
    assert found["text"] == "xy"
    assert found["long"] == "ContextWindowExceededError"
    assert found["full"] == "RateLimitError"
    assert found["down"] in ("ServiceUnavailableError", "InternalServerError")
    assert (found["embedded"], found["responded"]) == (2, "xy")
    theirs = found["ollama"]
    assert theirs["whole"] == theirs["streamed"] == GREETING
    assert (theirs["usage"], theirs["embedded"]) == (6, 2)
    assert theirs["generated"].startswith("### User:")  # which it makes of a conversation for /api/generate
    assert json.loads(theirs["json"]) == {"a": 1}
    assert theirs["info"] == [4096, True]


def test_ollama_for_python(service: Service) -> None:
    with ollama.Client(service.url) as client:
        assert [model.model for model in client.list().models] == ["tiny:latest", "tiny:background"]
        shown = client.show("tiny")
        assert shown.modelinfo and shown.modelinfo["llama.context_length"] == 4096
        (running,) = client.ps().models
        assert running.size == running.size_vram and running.expires_at
        whole = client.chat("tiny", said(SAY))
        assert whole.message.content == GREETING
        assert (whole.done, whole.done_reason, whole.eval_count) == (True, "stop", 3)
        chunks = list(client.chat("tiny", said("slow 0.1 Grüße|, 世界|!"), stream=True))
        assert "".join(chunk.message.content or "" for chunk in chunks) == GREETING
        assert chunks[-1].prompt_eval_count and chunks[-1].total_duration
        assert client.generate("tiny", "say x|y", raw=True).response == "xy"
        assert "".join(part.response or "" for part in client.generate("tiny", "say x|y", stream=True)) == "xy"
        form = {"type": "object", "properties": {"a": {"type": "integer"}}}
        assert json.loads(client.chat("tiny", said('say {"a": 1}'), format=form).message.content or "") == {"a": 1}
        assert [each.status for each in client.pull("tiny", stream=True)] == ["success"]


def test_ollama_for_python_maps_errors(service: Service) -> None:
    with ollama.Client(service.url) as client:
        for say, status, words in (
            ("long", 400, "maximum context length"), ("full", 429, "waiting already"), ("down", 503, "no memory"),
        ):  # fmt: skip
            for stream in (False, True):
                with pytest.raises(ollama.ResponseError, match=words) as caught:
                    list(client.chat("tiny", said(say), stream=stream))
                assert caught.value.status_code == status
        with pytest.raises(ollama.ResponseError, match="the answer was lost"):
            list(client.chat("tiny", said("break half"), stream=True))
        for asked in (client.show, client.pull, client.generate):
            with pytest.raises(ollama.ResponseError, match=r"there is no model 'llama3\.2' here") as caught:
                asked("llama3.2")
            assert caught.value.status_code == 404


def test_ollama_for_python_asynchronously(service: Service) -> None:
    async def ask() -> list[str | None]:
        async with ollama.AsyncClient(service.url) as client:
            asked = [client.chat("tiny", said(f"say {n}")) for n in range(8)]
            return [answer.message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [str(n) for n in range(8)]


def test_curl(service: Service) -> None:
    """-N shows each event as it comes: the first is there long before the last is sent."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    body = json.dumps({"stream": True, "messages": said("hang first")})
    command = ["curl", "-sN", f"{service.url}/v1/chat/completions", "-d", body]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout
        lines = [curl.stdout.readline() for _ in range(3)]
        assert b'"content":"first"' in lines[2]
        curl.terminate()
    until(lambda: service.engine.answers[-1].closed.is_set())


@pytest.mark.model
def test_a_real_model_through_a_real_client(smollm2_bundles: Mapping[str, Path]) -> None:
    with (
        served(smollm2_bundles["w8a8"], WorkerEngine, temperature=0.0, repeat_penalty=1.0) as service,
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0, timeout=WAIT_S) as client,
    ):
        until(lambda: service.get("/ready").status == 200)
        question = said("What is the capital of France? Answer in one sentence.")
        name = client.models.list().data[0].id
        whole = client.chat.completions.create(model=name, messages=question, max_tokens=24)
        assert "Paris" in (whole.choices[0].message.content or "")
        stream = client.chat.completions.create(model=name, messages=question, max_tokens=24, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == whole.choices[0].message.content
