"""The daemon's HTTP side on a free port of 127.0.0.1, in a thread, over any engine; and a client that hides nothing."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rkruntime.daemon import app, config, server
from rkruntime.daemon.jobs import Engine, EngineSettings

JSON = {"content-type": "application/json"}
WAIT_S = 60.0  # for anything; a good run needs milliseconds


def until(condition: Callable[[], Any]) -> None:
    """Wait for it."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def events(self) -> list[Any]:
        """What comes after each ``data:``; the rest of the lines has to be empty."""
        lines = [line for line in self.body.decode("ascii").split("\n") if line]
        assert all(line.startswith("data: ") for line in lines), lines
        return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


    @property
    def lines(self) -> list[Any]:
        """A stream of Ollama's: one object on each line, and no empty line."""
        *lines, last = self.body.decode("ascii").split("\n")
        assert last == "" and all(lines), self.body
        return [json.loads(each) for each in lines]


class Service:
    """A running daemon: its engine, and requests to it."""

    def __init__(self, port: int, engine: Any) -> None:
        self.port, self.engine = port, engine
        self.url = f"http://127.0.0.1:{port}"

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        with closing(self.connect()) as connection:
            raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, raw, {**JSON, **(headers or {})})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def chat(self, say: str = "say Hello|!", headers: Mapping[str, str] | None = None, **fields: Any) -> Reply:
        body = {"model": None, "messages": [{"role": "user", "content": say}], **fields}
        return self.request("POST", "/v1/chat/completions", body, headers)

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.request("POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()})

    def ollama(self, say: str = "say Hello|!", path: str = "/api/chat", **fields: Any) -> Reply:
        asked = {"messages": [{"role": "user", "content": say}]} if path == "/api/chat" else {"prompt": say}
        return self.post(path, {"model": "tiny", **asked, **fields})

    def complete(self, prompt: Any, **fields: Any) -> Reply:
        return self.request("POST", "/v1/completions", {"prompt": prompt, **fields})


@contextmanager
def served(bundle: Path, make_engine: Callable[[EngineSettings], Engine], **chosen: Any) -> Iterator[Service]:
    """The daemon in a thread, until the block ends. ``chosen`` are its options."""
    settings = config.make(None, {"bundle": bundle, "listen": config.Address("127.0.0.1", 0), **chosen})
    started: threading.Event = threading.Event()
    found: dict[str, Any] = {}

    async def live() -> None:
        engine = found["engine"] = make_engine(settings.engine())
        door = server.bind(settings.listen)
        found["port"] = door.getsockname()[1]
        found["loop"], found["end"] = asyncio.get_running_loop(), asyncio.Event()
        serving = server.Server(server.uvicorn_config(app.make(engine, settings), settings))
        task = asyncio.ensure_future(serving.serve([door]))
        await engine.start()
        started.set()
        await found["end"].wait()
        serving.should_exit = True
        await engine.close(0)
        await task

    def run() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:
            found["error"] = error
            raise
        finally:
            started.set()

    thread = threading.Thread(target=run, name="daemon")
    thread.start()
    started.wait(WAIT_S)
    if "error" in found:
        thread.join()
        raise found["error"]
    try:
        yield Service(found["port"], found["engine"])
    finally:
        found["loop"].call_soon_threadsafe(found["end"].set)
        thread.join(WAIT_S)
        assert not thread.is_alive(), "the daemon did not end"
        assert "error" not in found
