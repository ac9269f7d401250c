"""A server of OpenAI's completions that answers as a test says, honest or not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GAP_S = 0.002


@dataclass
class Script:
    """What it does; honest as it stands. ``events``: what a stream has instead of an answer."""

    tokens: Callable[[int], int] = lambda most: most  # of an answer, by the limit asked for
    usage: dict[str, Any] | None = field(default_factory=dict)  # over the true one; None: none is told
    counted: str = "content"  # the field that /tokenize wants
    before: int = 0  # tokens that it puts before each prompt, as with a template
    counts: bool = True  # whether there is /tokenize
    gap_s: float = GAP_S
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # instead of a stream
    pieces: Iterator[bytes] | None = None  # the same, one after the other
    refuses: tuple[str, ...] = ()  # fields that are a 400
    prompts: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)  # a client has had enough
    heard: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))  # once for each request


class _Handler(BaseHTTPRequestHandler):
    script: Script

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self._whole(404, b'{"error": {"message": "no such path"}}')
        return self._whole(200, json.dumps({"data": [{"id": "/models/tiny"}, {"id": "other"}]}).encode())

    def do_POST(self) -> None:
        script = self.script
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            if not script.counts:
                return self._whole(404, b"<html>no such path</html>")
            if script.counted not in asked:
                return self._whole(422, b'{"detail": "a field is missing"}')
            return self._whole(200, json.dumps({"tokens": asked[script.counted].split()}).encode())
        script.bodies.append(asked)
        script.prompts.append(asked["prompt"])
        script.heard.release()
        wrong = [name for name in script.refuses if name in asked]
        if wrong:
            return self._whole(400, json.dumps({"error": f"unknown field {wrong[0]}"}).encode())
        if script.body is not None or script.status != 200:
            return self._whole(script.status, script.body or b"")
        self.send_response(200)
        self.end_headers()
        for piece in script.pieces or self._answer(asked):
            self.wfile.write(piece)
            self.wfile.flush()
        return None

    def _answer(self, asked: dict[str, Any]) -> Iterator[bytes]:
        script = self.script
        number = script.tokens(asked["max_tokens"])
        for each in range(number):
            time.sleep(script.gap_s)
            yield event({"choices": [{"text": f" {each}", "finish_reason": None}]})
        yield event({"choices": [{"text": "", "finish_reason": "length"}]})
        if script.usage is not None:
            true = {"prompt_tokens": len(asked["prompt"].split()) + script.before, "completion_tokens": number}
            yield event({"choices": [], "usage": {**true, **script.usage}})
        yield b"data: [DONE]\n\n"

    def _whole(self, status: int, body: bytes) -> None:
        self.send_response(status)
        for name, value in self.script.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.script.gone.set()

    def log_message(self, *_: object) -> None:
        pass


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@contextmanager
def running(script: Script) -> Iterator[str]:
    """Its URL."""
    handler = type("Handler", (_Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
