"""A small Hugging Face hub on 127.0.0.1: what huggingface_hub asks for, and every way it can say no.

Large files are redirected to a second origin, as the real hub sends its clients to a CDN. Each request is kept, so a
test can say what was asked for and what was not.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".gguf", ".bin", ".onnx", ".rkllm")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    method: str
    path: str
    range: str
    token: str


@dataclass
class Hub:
    """``repositories`` goes by "user/repo" to the folder with its files."""

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    allowed: str = ""  # the token that gated repositories accept
    known: tuple[str, ...] = ("main", "v1", "refs/pr/1", COMMIT)
    cut_after: dict[str, list[int]] = field(default_factory=dict)  # bytes after which an answer breaks off
    stall: bool = False  # an answer that breaks off does not close, it waits
    empty: set[str] = field(default_factory=set)  # files of which nothing comes, in answers that are whole
    answer: bytes | None = None  # in place of what is said of any repository
    corrupt: set[str] = field(default_factory=set)  # files that arrive with a bit flipped
    ranges: bool = True
    etags: dict[str, str] = field(default_factory=dict)  # other ones than a file's hash
    listed: dict[str, int] = field(default_factory=dict)  # other sizes than the files have
    status: int = 0  # answers everything so
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    cdn: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def asked(self, method: str) -> list[str]:
        """The files asked for, in order."""
        return [r.path.split("/resolve/")[-1].split("/", 1)[1] for r in self.requests if self._file(r, method)]

    def bodies(self, file: str) -> list[str]:
        """The Range headers of the requests for a file's bytes from the CDN."""
        return [r.range for r in self.requests if r.method == "GET" and r.path == f"/cdn/{file}"]

    @staticmethod
    def _file(request: Request, method: str) -> bool:
        return request.method == method and "/resolve/" in request.path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range", ""), token))
        if self.hub.status:
            self._refuse(self.hub.status)
        elif path.startswith("/api/models/"):
            self._model(path.removeprefix("/api/models/"), token)
        elif "/resolve/" in path:
            name, _, rest = path.strip("/").partition("/resolve/")
            self._resolve(name, rest, token)
        elif path.startswith("/cdn/"):
            self._body(path.removeprefix("/cdn/"))
        else:
            self._refuse(404)

    def _model(self, rest: str, token: str) -> None:
        name, _, revision = rest.partition("/revision/")
        if token == "expired":
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif name not in self.hub.repositories:
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif (revision or "main") not in self.hub.known:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            folder = self.hub.repositories[name]
            siblings = [
                {
                    "rfilename": str(file.relative_to(folder)),
                    "size": self.hub.listed.get(file.name, file.stat().st_size),
                    "blobId": "0" * 40,
                }
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            ]
            if self.hub.answer is not None:
                self._send(200, {"Content-Type": "application/json"}, self.hub.answer)
                return
            answer = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": siblings}
            self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _resolve(self, name: str, rest: str, token: str) -> None:
        revision = next(r for r in self.hub.known if rest.startswith(f"{r}/"))
        file = self.hub.repositories[name] / rest.removeprefix(f"{revision}/")
        if name in self.hub.gated and token != self.hub.allowed:
            self._refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        elif not file.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif file.name.endswith(LARGE):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            place = f"{self.hub.cdn}/cdn/{file.relative_to(self.hub.repositories[name])}?repo={name}"
            etag = self.hub.etags.get(file.name, digest)
            headers = {"X-Repo-Commit": COMMIT, "X-Linked-ETag": f'"{etag}"'}
            self._send(302, {**headers, "X-Linked-Size": str(file.stat().st_size), "Location": place}, b"")
        else:
            data = file.read_bytes()
            etag = self.hub.etags.get(file.name, hashlib.sha1(data).hexdigest())
            self._send(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, data)

    def _body(self, name: str) -> None:
        repository = urlsplit(self.path).query.removeprefix("repo=")
        data = (self.hub.repositories[repository] / name).read_bytes()
        if name in self.hub.empty:
            self._send(206 if self.hub.ranges else 200, {}, b"")
            return
        if name in self.hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        wanted = self.headers.get("Range", "")
        cut = name if wanted == f"bytes=0-{len(data) - 1}" else ""
        if not (wanted and self.hub.ranges):
            self._send(200, {"ETag": '"cdn"'}, data, cut)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
        self._send(206, {"Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1], cut)

    def _send(self, status: int, headers: dict[str, str], data: bytes, name: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.hub.cut_after.get(name, [])
        if cuts:
            self.wfile.write(data[: cuts.pop(0)])
            self.wfile.flush()
            if self.hub.stall:
                self.hub.released.wait(60)
            self.close_connection = True
            return
        self.wfile.write(data)

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, {k: v for k, v in headers.items() if v}, b"")


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The hub on two free ports: itself and its CDN."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.daemon_threads = True
        thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
