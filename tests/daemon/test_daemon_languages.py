"""What holds whichever language a client speaks: one queue, deadlines, keys, names, pages, limits of bodies; and a
stream that says the same as the whole answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rkruntime.daemon.answering import Answering
from rkruntime.daemon.api import languages
from rkruntime.daemon.api.dialect import Endpoint
from rkruntime.daemon.config import Config
from rkruntime.daemon.engine import WorkerEngine
from rkruntime.daemon.figures import Figures
from rkruntime.daemon.jobs import EngineSettings, Job
from rkruntime.daemon.jsonformat import Checker
from rkruntime.daemon.keys import Keys
from rkruntime.daemon.models import Models
from rkruntime.daemon.places import Places
from tests.daemon_server import Reply, Service, served, until
from tests.fake_engine import FakeAnswer, FakeEngine


def asked(path: str, say: str = "say x") -> dict[str, Any]:
    """A body for each path that takes one."""
    messages = [{"role": "user", "content": say}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages},
        "/v1/completions": {"prompt": say},
        "/v1/responses": {"input": say},
        "/v1/messages": {"messages": messages, "max_tokens": 100},
        "/v1/messages/count_tokens": {"messages": messages},
        "/v1/embeddings": {"input": say},
        "/tokenize": {"prompt": say},
        "/api/chat": {"messages": messages},
        "/api/generate": {"prompt": say},
        "/api/embed": {"input": say},
        "/api/embeddings": {"prompt": say},
        "/api/show": {"model": "tiny"},
        "/api/pull": {"model": "tiny"},
    }
    return bodies[path]


ANSWERS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate")
BY_THE_MODEL = (*ANSWERS, "/v1/embeddings", "/api/embed", "/api/embeddings")
COUNTS = ("/tokenize", "/v1/messages/count_tokens")
WITH_A_BODY = (*BY_THE_MODEL, *COUNTS, "/api/show", "/api/pull")
GETS = ("/v1/models", "/v1/models/tiny", "/api/tags", "/api/ps", "/api/version", "/stats", "/metrics")
OPEN = ("/", "/health", "/ready", "/openapi.json", "/web/app.js")
PATTERNS = {"/v1/models/tiny": "/v1/models/{id}", "/web/app.js": "/web/{path}"}


@pytest.fixture(scope="module")
def plain(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        yield running


@pytest.fixture(scope="module")
def keyed(tiny_bundles: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("alice:sk-alice\n")
    with served(tiny_bundles["w8a8"], FakeEngine, keys=file, max_body_kb=1, body_s=0.2) as running:
        yield running


def message(path: str, reply: Reply) -> str:
    """What an error says, in the shape that its language has for errors."""
    error = reply.json["error"]
    if path.startswith("/api/"):
        assert set(reply.json) == {"error"}
        found = error
    elif path.startswith("/v1/messages"):
        assert (set(reply.json), set(error)) == ({"type", "error"}, {"type", "message"})
        found = error["message"]
    else:
        assert set(error) == {"message", "type", "param", "code"}
        found = error["message"]
    assert isinstance(found, str)
    return found


def test_every_path_is_tried_here(plain: Service) -> None:
    paths = set(plain.get("/openapi.json").json["paths"])
    assert paths == {PATTERNS.get(path, path) for path in (*WITH_A_BODY, *GETS, *OPEN)}
    assert {endpoint.path for endpoint in languages.ENDPOINTS} == set(ANSWERS)


@pytest.mark.parametrize("path", [*WITH_A_BODY, *GETS])
def test_a_key_is_asked_for(keyed: Service, path: str) -> None:
    method, body = ("POST", asked(path)) if path in WITH_A_BODY else ("GET", None)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer "}):
        reply = keyed.request(method, path, body, headers)
        assert reply.status == 401 and "Bearer KEY" in message(path, reply)
        assert reply.headers["www-authenticate"] == "Bearer"
    assert keyed.request(method, path, body, {"authorization": "Bearer sk-alice"}).status == 200


@pytest.mark.parametrize("path", OPEN)
def test_no_key_is_asked_for(keyed: Service, path: str) -> None:
    assert keyed.get(path).status == 200


@pytest.mark.parametrize("path", BY_THE_MODEL)
def test_the_queue_knows_whose_request_it_is(keyed: Service, path: str) -> None:
    assert keyed.post(path, asked(path), authorization="Bearer sk-alice").status == 200
    job: Job = keyed.engine.jobs[-1]
    assert (job.owner, job.background) == ("alice", False)
    body = {**asked(path), "model": "tiny:background"}
    assert keyed.post(path, body, authorization="Bearer sk-alice").status == 200
    assert keyed.engine.jobs[-1].background


@pytest.mark.parametrize("path", [*WITH_A_BODY, *GETS, *OPEN])
def test_other_names_and_pages_are_kept_out(plain: Service, path: str) -> None:
    method, body = ("POST", asked(path)) if path in WITH_A_BODY else ("GET", None)
    before = len(plain.engine.jobs)
    for headers, word in (
        ({"host": "evil.example"}, "allowed_hosts"),
        ({"origin": "https://evil.example"}, "--cors"),
        ({"sec-fetch-site": "cross-site"}, "--cors"),
    ):
        reply = plain.request(method, path, body, headers)
        assert reply.status == 403 and word in message(path, reply)
    if body:
        reply = plain.post(path, body, origin=plain.url, content_type="text/plain")
        assert reply.status == 415 and "application/json" in message(path, reply)
        reply = plain.post(path, body, content_encoding="gzip")
        assert reply.status == 415 and "compressed" in message(path, reply)
    assert len(plain.engine.jobs) == before


@pytest.mark.parametrize("path", WITH_A_BODY)
def test_bodies_have_limits(keyed: Service, path: str) -> None:
    key = {"authorization": "Bearer sk-alice"}
    reply = keyed.request("POST", path, {**asked(path), "user": "x" * 2000}, key)
    assert reply.status == 413 and "1 KiB" in message(path, reply)
    for body in (b"{", b"[]", b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a":' * 99 + b"1" + b"}" * 99, b"\xff"):
        reply = keyed.request("POST", path, body, key)
        assert reply.status == 400 and "body" in message(path, reply)
    slow = keyed.connect()
    slow.putrequest("POST", path)
    for name, value in {**key, "content-length": "100"}.items():
        slow.putheader(name, value)
    slow.endheaders(b"{")
    answer = slow.getresponse()
    assert answer.status == 408
    assert "did not arrive" in message(path, Reply(408, {}, answer.read()))
    slow.close()


@pytest.mark.parametrize("path", BY_THE_MODEL)
def test_a_deadline_can_be_asked_for(plain: Service, path: str) -> None:
    assert plain.post(path, asked(path), x_rk_deadline_s="20").status == 200
    assert plain.engine.jobs[-1].deadline_s == 20
    reply = plain.post(path, asked(path), x_rk_deadline_s="soon")
    assert reply.status == 400 and "x-rk-deadline-s" in message(path, reply)


@pytest.mark.parametrize("path", [*BY_THE_MODEL, *COUNTS])
def test_one_queue_for_all(path: str, full: Service) -> None:
    reply = full.post(path, asked(path))
    assert reply.status == 429 and "waiting already" in message(path, reply)
    assert int(reply.headers["retry-after"]) > 0


@pytest.fixture(scope="module")
def full(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    """Nobody may wait there."""
    with served(tiny_bundles["w8a8"], WorkerEngine, queue_length=0) as running:
        until(lambda: running.get("/ready").status == 200)
        yield running


@pytest.mark.parametrize("path", WITH_A_BODY)
def test_errors_have_the_shape_of_their_language(plain: Service, path: str) -> None:
    unknown = plain.post(path, {**asked(path), "model": "no"})
    assert unknown.status == 404 and "no model 'no'" in message(path, unknown)
    wrong = plain.request("PUT", path, asked(path))
    assert wrong.status == 405 and "method not allowed" in message(path, wrong)
    if path in BY_THE_MODEL:
        for say, status in (("full", 429), ("down", 503), ("late", 504), ("bug", 500)):
            reply = plain.post(path, asked(path, say))
            assert reply.status == status and message(path, reply)


# A stream says what the whole answer says.


class Scripted(FakeEngine):
    """Answers in the pieces it was told."""

    pieces: tuple[str, ...] = ()

    def _answer(self, command: str, rest: str, lines: list[str], job: Job) -> FakeAnswer:  # noqa: ARG002
        return FakeAnswer(list(self.pieces), 1 << 30, 1)


@cache
def scripted() -> tuple[Scripted, dict[str, Answering]]:
    engine = Scripted(EngineSettings(Path("x")))
    find = Models("tiny", "w8a8", [], 0, "sim").find
    config, counting = Config(bundle=Path("x")), (Figures(), Places(), Checker())
    return engine, {e.path: Answering(engine, config, Keys(None), find, e, *counting) for e in languages.ENDPOINTS}


def answer_of(endpoint: Endpoint, pieces: list[str], body: dict[str, Any]) -> bytes:
    """The bytes that go over the line."""
    engine, endpoints = scripted()
    engine.pieces = tuple(pieces)
    sent: list[bytes] = []
    given = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> Any:
        return given.pop() if given else await asyncio.Event().wait()

    async def send(event: Any) -> None:
        sent.append(event.get("body", b""))

    scope = {"type": "http", "headers": [], "state": {"facts": {"request_id": "x"}}}
    asyncio.run(endpoints[endpoint.path](scope, receive, send))
    return b"".join(sent)


class Reader:
    """As clients read a stream: bytes come in parts of any size, and are looked at line by line."""

    def __init__(self) -> None:
        self._held = b""
        self.texts: list[str] = []

    def feed(self, part: bytes) -> None:
        *lines, self._held = (self._held + part).split(b"\n")
        for line in lines:
            data = line.decode("ascii").removeprefix("data: ")
            if data.startswith("{"):
                self.texts.append(text_in(json.loads(data)))

    def end(self) -> str:
        assert not self._held
        return "".join(self.texts)


def text_in(found: Any) -> str:
    """Of one part of a stream, or of a whole answer: what the model said."""
    if "sequence_number" in found:
        return str(found["delta"]) if found["type"] == "response.output_text.delta" else ""
    if "delta" in found or found.get("type", "").startswith(("message", "content", "ping")):
        return "".join(str(each.get("text", "")) for each in [*found.get("content", ()), found.get("delta", {})])
    if "output" in found:
        return str(found["output"][0]["content"][0]["text"])
    if "choices" in found:
        choice = found["choices"][0] if found["choices"] else {}
        said = choice.get("message") or choice.get("delta")
        return str(said.get("content", "") if said is not None else choice.get("text", ""))
    return str(found["message"]["content"] if "message" in found else found.get("response", ""))


ENDPOINTS = {endpoint.path: endpoint for endpoint in languages.ENDPOINTS}
piece = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from("\n\r\u2028\x85\0</|}")


@pytest.mark.parametrize("path", list(ENDPOINTS))
@settings(max_examples=30)
@given(st.lists(piece, max_size=8), st.lists(st.integers(0, 5000), max_size=12))
def test_a_stream_says_the_same_as_the_whole_answer(path: str, said: list[str], cuts: list[int]) -> None:
    endpoint = ENDPOINTS[path]
    raw = answer_of(endpoint, said, {**asked(path), "stream": True})
    reader = Reader()
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    for start, end in zip(places, places[1:], strict=False):
        reader.feed(raw[start:end])
    whole = json.loads(answer_of(endpoint, said, {**asked(path), "stream": False}))
    assert reader.end() == text_in(whole) == "".join(said)
