"""A stand-in for the chat daemon: its command line, its API in small, and every way to fail, as the bundle tells it.

The file ``behaviour`` in the bundle says: ``die`` (ends at once), ``never`` (never ready), ``lie`` (ready, but without
an answer), ``crash`` (ends when it is asked), ``slow N`` (ready after N seconds); without one it works.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STARTED = time.monotonic()


def settings() -> dict[str, str]:
    """``--config`` first, then the other options over it."""
    words = dict(zip((word[2:] for word in sys.argv[1::2]), sys.argv[2::2]))
    found = {}
    for line in Path(words["config"]).read_text().splitlines():
        key, colon, value = line.partition(": ")
        if colon and not line.startswith("#"):
            found[key] = value.strip()
    return {**found, **{key.replace("-", "_"): value for key, value in words.items()}}


SETTINGS = settings()
BUNDLE = Path(SETTINGS["bundle"])
NAME = json.loads((BUNDLE / "rkbundle.json").read_text())["name"]
BEHAVIOUR = (BUNDLE / "behaviour").read_text().strip() if (BUNDLE / "behaviour").exists() else ""
KEYS = {line.strip().rpartition(":")[2] for line in Path(SETTINGS["keys"]).read_text().splitlines() if line.strip()}


def notify(text: str) -> None:
    where = os.environ.get("NOTIFY_SOCKET")
    if where:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(text.encode(), "\0" + where[1:] if where[0] == "@" else where)


def ready() -> bool:
    if BEHAVIOUR.startswith("slow"):
        return time.monotonic() - STARTED > float(BEHAVIOUR.split()[1])
    return BEHAVIOUR != "never"


class Handler(BaseHTTPRequestHandler):
    def answer(self, status: int, said: object) -> None:
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, {"status": "ok"})
        elif self.path == "/ready":
            self.answer(200 if ready() else 503, {"ready": ready(), "reason": "the model is loading"})
        elif self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [{"id": NAME, "object": "model"}]})
        else:
            self.answer(404, {"error": {"message": "no such path"}})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization", "")[7:] not in KEYS:
            self.answer(401, {"error": {"message": "wrong key"}})
        elif BEHAVIOUR == "lie":
            self.answer(500, {"error": {"message": "the runtime ended in an assertion"}})
        elif BEHAVIOUR == "crash":
            os._exit(134)
        else:
            message = {"role": "assistant", "content": f"{NAME} here"}
            usage = {"completion_tokens": asked["max_tokens"]}
            choices = [{"message": message, "finish_reason": "length"}]
            self.answer(200, {"model": NAME, "choices": choices, "usage": usage})

    def log_message(self, text: str, *words: object) -> None:
        pass


def beat() -> None:
    while True:
        notify("WATCHDOG=1")
        time.sleep(5)


def end(*_: object) -> None:
    notify("STOPPING=1")
    os._exit(0)


if BEHAVIOUR == "die":
    sys.exit("E rkllm: cannot load this model")
host, _, port = SETTINGS["listen"].rpartition(":")
signal.signal(signal.SIGTERM, end)
server = ThreadingHTTPServer((host, int(port)), Handler)
notify("READY=1")
threading.Thread(target=beat, daemon=True).start()
server.serve_forever()
