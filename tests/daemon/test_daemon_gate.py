"""Which web pages, names and kinds of body the daemon lets in: the gate that stands before every route."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rk3588.errors import UsageError
from rkruntime.daemon import app, config, hosts
from rkruntime.daemon.config import Address
from tests.daemon_server import WAIT_S, Reply, Service, served
from tests.fake_engine import FakeEngine

PAGE = "https://page.example"
ASK = {"messages": [{"role": "user", "content": "say Hello"}]}
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


@pytest.fixture(scope="module")
def plain(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        yield running


@pytest.fixture(scope="module")
def open_to_a_page(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    cors = config.make(None, {"bundle": "x", "cors": (PAGE, "null", "file://")}).cors
    with served(
        tiny_bundles["w8a8"], FakeEngine, cors=cors, allowed_hosts=("chat.example", "*.lan.example")
    ) as running:
        yield running


def raw(service: Service, text: str | bytes) -> tuple[int, bytes]:
    """Status and the whole answer to what is sent as it stands; the connection is closed by the daemon."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=WAIT_S) as line:
        line.sendall(text.encode() if isinstance(text, str) else text)
        answer = b""
        while part := line.recv(65536):
            answer += part
    return (int(answer.split()[1]) if answer else 0), answer


def as_page(service: Service, **headers: str) -> Reply:
    return service.request("POST", "/v1/chat/completions", ASK, {k.replace("_", "-"): v for k, v in headers.items()})


FOREIGN = {
    "a page": {"origin": "https://evil.example"},
    "a simple request": {"origin": "https://evil.example", "content-type": "text/plain"},
    "a form": {"origin": "http://evil.example", "content-type": "application/x-www-form-urlencoded"},
    "no origin to name": {"origin": "null"},
    "a file": {"origin": "file://"},
    "another port here": {"origin": "http://localhost:1"},
    "another port, same site": {"origin": "http://127.0.0.1:1", "sec-fetch-site": "same-site"},
    "another scheme": {"origin": "https://127.0.0.1:{port}"},
    "a name that begins so": {"origin": "http://127.0.0.1.evil.example:{port}"},
    "a name that ends so": {"origin": "http://evillocalhost:{port}"},
    "a user in it": {"origin": "http://127.0.0.1:{port}@evil.example"},
    "garbage": {"origin": "http://[::1"},
    "nothing": {"origin": ""},
    "two": {"origin": "http://127.0.0.1:{port}, https://evil.example"},
    "an image": {"sec-fetch-site": "cross-site"},
    "an image, in capitals": {"sec-fetch-site": "Cross-Site"},
    "another name of this machine": {"origin": "http://localhost:{port}", "sec-fetch-site": "cross-site"},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_page_from_elsewhere_gets_403_whatever_it_asks(plain: Service, kind: str) -> None:
    headers = {name: value.replace("{port}", str(plain.port)) for name, value in FOREIGN[kind].items()}
    before = len(plain.engine.jobs)
    for method, path in (
        ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/health"),
        ("GET", "/openapi.json"), ("GET", "/nothing"), ("DELETE", "/v1/models"), ("OPTIONS", "/v1/models"),
    ):  # fmt: skip
        reply = plain.request(method, path, ASK if method == "POST" else None, {**headers, **PREFLIGHT})
        assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed"), (method, path)
        assert "--cors" in reply.error["message"]
        assert not [name for name in reply.headers if name.startswith("access-control")]
        assert reply.headers["x-request-id"]
    assert len(plain.engine.jobs) == before


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://127.0.0.1:{port}"},
        {"origin": "http://localhost:{port}"},
        {"origin": "HTTP://LOCALHOST:{port}"},
        {"origin": "http://chat.localhost:{port}"},
        {"origin": "http://[::1]:{port}", "sec-fetch-site": "same-origin"},
        {"origin": "http://192.168.1.5:9000", "host": "192.168.1.5:9000"},  # through a tunnel
        {"origin": "http://192.168.1.5", "host": "192.168.1.5:80"},
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_programs_and_our_own_pages_pass(plain: Service, headers: dict[str, str]) -> None:
    told = {name: value.replace("{port}", str(plain.port)) for name, value in headers.items()}
    assert plain.request("POST", "/v1/chat/completions", ASK, told).status == 200
    reply = plain.request("GET", "/v1/models", headers=told)
    assert reply.status == 200
    assert "origin" in reply.headers["vary"].lower()


def test_a_body_of_a_page_has_to_be_json(open_to_a_page: Service) -> None:
    own = f"http://127.0.0.1:{open_to_a_page.port}"
    for origin in (PAGE, own):
        for kind in ("text/plain", "text/plain; application/json", "application/x-www-form-urlencoded", ""):
            reply = as_page(open_to_a_page, origin=origin, content_type=kind)
            assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")
        assert as_page(open_to_a_page, origin=origin, content_type="Application/JSON; charset=utf-8").status == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):  # curl's, among others
        assert as_page(open_to_a_page, content_type=kind).status == 200


def test_a_listed_page_may_call(open_to_a_page: Service) -> None:
    for origin in (PAGE, "HTTPS://Page.example:443", "null", "file://"):
        for headers in ({}, {"sec-fetch-site": "cross-site"}):
            reply = as_page(open_to_a_page, origin=origin, **headers)
            assert reply.status == 200
            assert reply.headers["access-control-allow-origin"] == origin
            assert "x-rk-ignored" in reply.headers["access-control-expose-headers"]
            assert "origin" in reply.headers["vary"].lower()
    wrong = open_to_a_page.request("GET", "/nothing", headers={"origin": PAGE})
    assert (wrong.status, wrong.headers["access-control-allow-origin"]) == (404, PAGE)
    failed = as_page(open_to_a_page, origin=PAGE)
    assert failed.headers["access-control-allow-origin"] == PAGE
    for origin in ("https://page.example.evil", "https://page.example:444", "http://page.example", "https://x.example"):
        assert as_page(open_to_a_page, origin=origin).status == 403
    assert open_to_a_page.request("GET", "/v1/models", headers={"sec-fetch-site": "cross-site"}).status == 403


def test_an_unexpected_error_can_be_read_by_a_listed_page(open_to_a_page: Service) -> None:
    body = {"messages": [{"role": "user", "content": "bug"}]}
    reply = open_to_a_page.request("POST", "/v1/chat/completions", body, {"origin": PAGE})
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (500, PAGE)


@pytest.mark.parametrize("network", ["private-network", "local-network"])
def test_preflights(open_to_a_page: Service, network: str) -> None:
    asked = {**PREFLIGHT, f"access-control-request-{network}": "true"}
    reply = open_to_a_page.request("OPTIONS", "/v1/chat/completions", headers={"origin": PAGE, **asked})
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert reply.headers[f"access-control-allow-{network}"] == "true"
    assert reply.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in reply.headers["access-control-allow-methods"]
    without = open_to_a_page.request("OPTIONS", "/v1/chat/completions", headers={"origin": PAGE, **PREFLIGHT})
    assert not [name for name in without.headers if name.endswith("-network")]
    foreign = open_to_a_page.request(
        "OPTIONS", "/v1/chat/completions", headers={"origin": "https://x.example", **asked}
    )
    assert foreign.status == 403
    assert f"access-control-allow-{network}" not in foreign.headers


def test_any_page_where_all_are_listed(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], FakeEngine, cors=("*",)) as running:
        for headers in ({"origin": "https://x.example", "sec-fetch-site": "cross-site"}, {"origin": "null"}):
            reply = running.request("POST", "/v1/chat/completions", ASK, headers)
            assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "*")
        assert running.request("GET", "/v1/models", headers={"sec-fetch-site": "cross-site"}).status == 200
        assert as_page(running, origin="https://x.example", content_type="text/plain").status == 415
        assert as_page(running, host="rebound.example").status == 403


HERE = [
    "localhost", "LOCALHOST:1", "localhost.", "chat.localhost:8080", "kitchen.local", "kitchen.local.:80", "127.0.0.1",
    "127.9.9.9:80", "[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "10.1.2.3:80", "172.31.0.1",
    "192.168.0.7", "169.254.1.1", "100.100.1.1", "[fd00::1]:8080", "[fe80::1%25eth0]:8080", "", socket.gethostname(),
    socket.gethostname().upper() + ":8080", "kitchen", "rkchatd:8080", "3588-board", "local",
]  # fmt: skip
ELSEWHERE = [
    "evil.example", "evil.example:8080", "localhost.evil.example", "evil.locals",
    "127.0.0.1.evil.example", "8.8.8.8", "172.32.0.1", "[2001:db8::1]:80",
    "localhost@evil.example", "evil.example@localhost", "localhost:x",
    "localhost/evil", "localhost evil", "localhost:80:90", "[::1", "::1", "[localhost]", "0.0.0.0",
    "xn--lcalhost-b7a.example",
    "localhost..", ".localhost", "http://localhost", "2130706433", "0x7f000001", "127.1", "localhost:99999", "a..local",
]  # fmt: skip


@pytest.mark.parametrize("host", HERE)
def test_names_of_this_machine_pass(plain: Service, host: str) -> None:
    status, answer = raw(plain, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert status == 200, answer


@pytest.mark.parametrize("host", ELSEWHERE)
def test_other_names_get_403(plain: Service, host: str) -> None:
    for path in ("/v1/models", "/health", "/nothing"):
        status, answer = raw(plain, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        assert status == 403, answer
        assert b'"code":"host_not_allowed"' in answer
        assert b"allowed_hosts" in answer


def test_a_request_without_a_name_passes_and_one_with_two_does_not(plain: Service) -> None:
    assert raw(plain, "GET /v1/models HTTP/1.0\r\n\r\n")[0] == 200
    status, answer = raw(plain, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
    assert status == 400
    assert b"Host" in answer.partition(b"\r\n\r\n")[2]


def test_names_that_are_allowed(open_to_a_page: Service) -> None:
    for host, status in (
        ("chat.example", 200), ("Chat.Example.:443", 200), ("a.lan.example", 200), ("a.b.lan.example", 200),
        ("lan.example", 403), ("xlan.example", 403), ("other.example", 403),
    ):  # fmt: skip
        assert open_to_a_page.get("/v1/models", host=host).status == status, host
    # By such a name a page of the daemon's own is at home, too.
    assert as_page(open_to_a_page, host="chat.example:80", origin="http://chat.example").status == 200


def test_where_keys_are_asked_for_beyond_this_machine_any_name_will_do(
    tiny_bundles: Mapping[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("me:sk-1\n")
    key = {"authorization": "Bearer sk-1", "host": "npu.example"}
    with served(tiny_bundles["w8a8"], FakeEngine, keys=tmp_path / "keys") as running:
        assert running.request("GET", "/v1/models", headers=key).status == 403
    found = {"keys": tmp_path / "keys", "listen": Address("0.0.0.0", 0)}
    with served(tiny_bundles["w8a8"], FakeEngine, **found) as running:
        assert running.request("GET", "/v1/models", headers=key).status == 200
        assert running.request("GET", "/v1/models", headers={**key, "authorization": ""}).status == 401
        assert running.request("GET", "/v1/models", headers={**key, "origin": PAGE}).status == 403
        assert running.request("GET", "/v1/models", headers={**key, "origin": "http://npu.example"}).status == 200
    with served(tiny_bundles["w8a8"], FakeEngine, listen=Address("0.0.0.0", 0), insecure=True) as running:
        assert running.request("GET", "/v1/models", headers={"host": "npu.example"}).status == 403
        assert running.request("GET", "/v1/models", headers={"host": "0.0.0.0:8080"}).status == 200  # as it was told


@pytest.mark.parametrize(("reached_at", "status"), [("127.0.0.1", 404), ("::1", 404), ("192.168.1.5", 403)])
def test_localhost_is_the_visitors_unless_it_was_reached_so(
    tiny_bundles: Mapping[str, Path], reached_at: str, status: int
) -> None:
    """A page of some other program, on the machine of who visits a daemon in the network, is not the daemon's own."""
    settings = config.make(None, {"bundle": tiny_bundles["w8a8"], "insecure": True, "listen": Address("0.0.0.0", 80)})
    application = app.make(FakeEngine(settings.engine()), settings)
    scope = {
        "type": "http", "method": "GET", "path": "/nothing", "raw_path": b"/nothing", "scheme": "http", "state": {},
        "query_string": b"", "headers": [(b"host", b"192.168.1.5:80"), (b"origin", b"http://localhost")],
        "server": (reached_at, 80), "client": ("192.168.1.9", 1),
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    assert sent[0]["status"] == status


def test_targets(plain: Service) -> None:
    for target in ("http://localhost/v1/models", "HTTP://127.0.0.1:8080/v1/models?x=http://y/", "http://[::1]/health"):
        status, answer = raw(plain, f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert status == 200, (target, answer)
        assert b'"data"' in answer or b'"state"' in answer
    body = json.dumps(ASK)
    head = f"Host: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    assert raw(plain, f"POST http://localhost/v1/chat/completions HTTP/1.1\r\n{head}{body}")[0] == 200
    assert raw(plain, f"GET http://localhost HTTP/1.1\r\n{head}{body}")[0] == 200
    for target, host, expected in (
        ("http://evil.example/v1/models", "localhost", 403),
        ("http://localhost/v1/models", "evil.example", 403),
        ("http://a@localhost/v1/models", "localhost", 400),
        ("https://localhost/v1/models", "localhost", 400),
        ("ftp://localhost/x", "localhost", 400),
        ("v1/models", "localhost", 400),
    ):
        status, answer = raw(plain, f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        assert status == expected, (target, answer)
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("CONNECT example.org:443", 405), ("CONNECT localhost:443", 405), ("TRACE /v1/models", 405),
        ("BREW /v1/models", 405), ("BREW /pot", 404), ("OPTIONS *", 404), ("OPTIONS /v1/models", 405),
    ],
)  # fmt: skip
def test_methods(plain: Service, line: str, status: int) -> None:
    found, answer = raw(plain, f"{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert found == status, answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "deflate, gzip", "zstd"])
def test_compressed_bodies_are_refused_in_words(plain: Service, coding: str) -> None:
    body = gzip.compress(json.dumps(ASK).encode())
    reply = plain.request("POST", "/v1/chat/completions", body, {"content-encoding": coding})
    assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")
    assert "compressed" in reply.error["message"]
    assert "Content-Encoding" in reply.error["message"]
    assert as_page(plain, content_encoding="identity").status == 200


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cors", "page.example"), ("cors", "https://page.example/app"), ("cors", "https://"), ("cors", "https://*"),
        ("allowed_hosts", "https://chat.example"), ("allowed_hosts", "chat.example:8080"), ("allowed_hosts", "*"),
        ("allowed_hosts", "a b"), ("allowed_hosts", "chat.*"),
    ],
)  # fmt: skip
def test_settings_that_would_never_match_are_refused(tmp_path: Path, option: str, value: str) -> None:
    file = tmp_path / "rkchatd.yaml"
    file.write_text(f"bundle: b\n{option}: '{value}'\n")
    with pytest.raises(UsageError, match=f"'{option}'"):
        config.make(file, {})


def test_settings_that_are_written_in_other_ways(tmp_path: Path) -> None:
    file = tmp_path / "rkchatd.yaml"
    file.write_text(
        "bundle: b\ncors: [https://page.example/, app://obsidian.md, 'file://']\nallowed_hosts: ['::1', '[fd00::2]']\n"
    )
    found = config.make(file, {})
    assert found.cors == ("https://page.example", "app://obsidian.md", "file://")
    assert hosts.Names(found.allowed_hosts).know("fd00::2", "127.0.0.1")
