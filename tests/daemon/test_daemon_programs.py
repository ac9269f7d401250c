"""Programs that people point at the daemon: what each sends, and how each reads what it gets.

Written from their sources, not captured: Open WebUI 0.12.4, Home Assistant 2026.2.3 (its `ollama` integration, with the
real client), home-llm 0.4.6, Continue at commit 0108be5 and the `ollama` command of 0.33.0.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.daemon_server import Service, served
from tests.fake_engine import FakeEngine

SAY = "say Grüße|, 世界|!"
GREETING = "Grüße, 世界!"
LAMP = {
    "type": "function",
    "function": {
        "name": "HassTurnOn",
        "description": "Turns on a device",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": []},
    },
}


@pytest.fixture(scope="module")
def service(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    """Its signs of life are frequent: no program may stumble over one."""
    with served(tiny_bundles["w8a8"], FakeEngine, keep_alive_s=0.02) as running:
        yield running


# Open WebUI, over Ollama: it proxies the lines, and turns them into OpenAI's chunks for its page.


def test_open_webui_lists_and_asks(service: Service) -> None:
    version = service.get("/api/version", authorization="Bearer ").json["version"]
    assert tuple(map(int, re.sub(r"^v|-.*", "", version).split("."))) >= (0, 1, 0)
    models = service.get("/api/tags").json["models"]
    loaded = {model["name"]: model for model in service.get("/api/ps").json["models"]}
    assert datetime.datetime.fromisoformat(loaded["tiny:latest"]["expires_at"].replace("Z", "+00:00")).year > 2100
    body = {
        "model": models[0]["model"],
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"slow 0.05 {SAY[4:]}"}],
        "stream": True,
        "options": {"temperature": 0.7, "num_ctx": 4096, "num_predict": 100, "stop": ["###"], "mirostat": 0},
        "keep_alive": "5m",
        "think": False,
    }
    lines = service.post("/api/chat", body).lines
    assert "".join(line.get("message", {}).get("content") or "" for line in lines) == GREETING
    assert not any(line["message"].get("tool_calls") or line["message"].get("thinking") for line in lines)
    last = lines[-1]
    counted = ("prompt_eval_count", "eval_count", "total_duration", "load_duration", "prompt_eval_duration")
    assert last["done"] and all(isinstance(last[name], int) for name in counted)
    title = {"model": "tiny:background", "messages": body["messages"], "stream": False, "options": {"num_predict": 9}}
    assert service.post("/api/chat", title).json["message"]["content"] == GREETING
    assert service.engine.jobs[-1].background


def test_open_webui_embeds(service: Service) -> None:
    reply = service.post("/api/embed", {"input": ["a", "b"], "model": "tiny:latest", "truncate": True}).json
    assert len(reply["embeddings"]) == 2 and reply["prompt_eval_count"] > 0


# Home Assistant, over Ollama, with the client it uses.


def test_home_assistant(service: Service) -> None:
    Call = ollama.Message.ToolCall
    messages = [
        ollama.Message(role="system", content="Current time is 10:15:31. You are a voice assistant."),
        ollama.Message(role="user", content="Turn on the lamp", images=None),
        ollama.Message(
            role="assistant",
            content="",
            thinking=None,
            tool_calls=[Call(function=Call.Function(name="HassTurnOn", arguments={"name": "lamp"}))],
        ),
        ollama.Message(role="tool", content='{"success": [], "response_type": "action_done"}'),
        ollama.Message(role="user", content=f"slow 0.05 {SAY[4:]}"),
    ]

    async def converse(model: str, **more: Any) -> list[dict[str, Any]]:
        async with ollama.AsyncClient(service.url) as client:
            listed = {model["model"] for model in (await asyncio.wait_for(client.list(), 5)).models}
            if model not in listed:
                await client.pull(model)
            stream = await client.chat(
                model=model, messages=messages, stream=True, options={"num_ctx": 8192}, think=False, **more
            )
            return [part async for part in stream]

    for tools in (None, [LAMP]):
        for keep_alive in ("-1s", "300s"):
            parts = asyncio.run(converse("tiny:latest", tools=tools, keep_alive=keep_alive, format=None))
            assert "".join(part["message"].get("content") or "" for part in parts) == GREETING
            assert all(part["message"].get("tool_calls") is None for part in parts)
            assert [part["done"] for part in parts].count(True) == 1
    job = service.engine.jobs[-1]
    assert job.tools and job.messages[2]["tool_calls"][0]["function"]["arguments"] == {"name": "lamp"}
    with pytest.raises(ollama.ResponseError, match="pulls none"):
        asyncio.run(converse("llama3.2:latest", keep_alive="-1s"))


# home-llm: every line that is not empty, of whatever kind, is JSON to it.


def home_llm_reads(body: bytes) -> str:
    said = ""
    for raw in body.split(b"\n"):
        text = raw.decode("utf-8").strip()
        assert not text.startswith("error: ")
        data = text.removeprefix("data: ")
        if "[DONE]" in data:
            break
        if data:
            chunk = json.loads(data)
            if chunk.get("choices"):
                assert chunk["object"] == "chat.completion.chunk"
                said += chunk["choices"][0]["delta"].get("content", "")
    return said


def test_home_llm(service: Service) -> None:
    assert service.get("/v1/models").json["data"][0]["id"] == "tiny"
    body = {
        "model": "tiny",
        "stream": True,
        "max_tokens": 512,
        "temperature": 0.1,
        "top_p": 1.0,
        "messages": [
            {"role": "system", "content": "You are 'Al'."},
            {"role": "user", "content": [{"type": "text", "text": f"slow 0.05 {SAY[4:]}"}]},
        ],
        "tools": [LAMP],
    }
    assert home_llm_reads(service.post("/v1/chat/completions", body).body) == GREETING
    answer = service.post("/v1/responses", {"model": "tiny", "input": SAY}).json
    assert {"object", "output", "status", "id"} <= set(answer)
    assert (answer["error"], answer["status"]) == (None, "completed")
    (message,) = answer["output"]
    (content,) = message["content"]
    assert (message["type"], content["type"], content["text"]) == ("message", "output_text", GREETING)


# Continue: about a model once, then chats, and single lines of code.


def test_continue(service: Service) -> None:
    shown = service.post("/api/show", {"name": "tiny"}).json
    found: dict[str, Any] = {}
    for line in shown["parameters"].split("\n"):
        match = re.fullmatch(r'(\S+)\s+((?:".*")|\S+)', line)
        assert match, line  # it has no other way to go on
        found[match[1]] = match[2]
    assert int(found["num_ctx"]) == 4096 and json.loads(found["stop"])
    options = {"temperature": 0.5, "num_predict": 64, "num_ctx": 4096, "stop": ["<fim_pad>"] * 12, "use_mmap": True}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": SAY}], "options": options, "keep_alive": 1800}
    assert service.post("/api/chat", {**chat, "tools": [LAMP], "stream": False}).json["message"]["content"] == GREETING
    lines = service.post("/api/chat", {**chat, "stream": True}).lines
    assert "".join(line["message"]["content"] for line in lines) == GREETING
    code = {"model": "tiny", "prompt": "say def f():", "raw": True, "options": options, "keep_alive": 1800}
    assert "".join(line["response"] for line in service.post("/api/generate", code).lines) == "def f():"
    assert ".Suffix" not in shown["template"]  # else it would send one
    assert service.post("/api/generate", {**code, "suffix": "\n}"}).status == 400
    texts = [f"chunk {number}" for number in range(64)]
    assert len(service.post("/api/embed", {"model": "tiny", "input": texts}).json["embeddings"]) == 64


# The ollama command: `ollama run`, `list`, `ps`, `stop` and `show`.


def test_the_ollama_command(service: Service) -> None:
    program = {"user-agent": "ollama/0.33.0 (arm64 linux) Go/go1.26", "accept": "application/x-ndjson"}

    def post(path: str, body: Any) -> Any:
        return service.request("POST", path, body, program)

    assert service.request("HEAD", "/", headers=program).status == 200
    assert post("/api/show", {"model": "nothing", "system": "", "template": ""}).status == 404  # so it pulls
    pulled = post("/api/pull", {"model": "nothing", "name": "", "username": "", "password": ""})
    assert pulled.status == 404 and "there is tiny" in pulled.json["error"]
    shown = post("/api/show", {"model": "tiny", "system": "", "template": "", "verbose": False, "options": None}).json
    family = shown["model_info"]["general.architecture"]
    assert all(shown["model_info"][f"{family}.{name}"] > 0 for name in ("context_length", "embedding_length"))
    assert "embedding" not in shown["capabilities"]  # else `ollama run` would embed what is typed
    load = {"model": "tiny", "prompt": "", "suffix": "", "system": "", "template": "", "options": {}}
    assert post("/api/generate", load).json["done"]
    said = {"role": "user", "content": SAY}
    lines = post("/api/chat", {"model": "tiny", "messages": [said], "format": "", "options": {}, "think": None}).lines
    assert "".join(line["message"]["content"] for line in lines) == GREETING
    assert all(len(each["digest"][:12]) == 12 for each in service.get("/api/tags").json["models"])
    (running,) = service.get("/api/ps").json["models"]
    assert running["size"] == running["size_vram"] and len(running["digest"][:12]) == 12
    assert post("/api/generate", {"model": "tiny", "keep_alive": 0}).status == 200  # stop
