"""What an attacker does with connections: opens many, says half, reads nothing. Limits are small here, to be quick."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from rkruntime.daemon import config, connections, server
from tests.daemon.test_daemon_soak import worker_of
from tests.daemon_process import over_script, running
from tests.daemon_server import WAIT_S, Service, served, until
from tests.fake_engine import FakeEngine

GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF = b"GET /v1/models HTTP/1.1\r\nHost: loc"
MOST = 20


def post(body: bytes, more: str = "") -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.fixture(scope="module")
def small(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    limits = {"max_connections": MOST, "header_s": 0.3, "body_s": 0.3, "send_s": 0.3}
    with served(tiny_bundles["w8a8"], FakeEngine, max_body_kb=64, max_bodies_kb=96, **limits) as service:
        yield service


@pytest.fixture
def line(small: Service) -> Iterator[Callable[..., socket.socket]]:
    """Connections to the daemon, which are closed at the end."""
    with ExitStack() as stack:

        def connect(say: bytes = b"", receive_bytes: int = 0) -> socket.socket:
            found = stack.enter_context(socket.socket())
            if receive_bytes:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            found.settimeout(WAIT_S)
            found.connect(("127.0.0.1", small.port))
            found.sendall(say)
            return found

        yield connect


def rest(line: socket.socket) -> bytes:
    """All that comes until the daemon ends the connection."""
    found = b""
    with suppress(ConnectionResetError):
        while part := line.recv(65536):
            found += part
    return found


def error(answer: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return found


def reasons(caplog: pytest.LogCaptureFixture) -> str:
    """Why, by the log, clients were dropped or refused; no record may hold a traceback."""
    assert not any(record.exc_info for record in caplog.records)
    return " ".join(record.__dict__.get("fields", {}).get("reason", "") for record in caplog.records)


def is_open(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        return line.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


Connect = Callable[..., socket.socket]


def test_half_a_head_is_ended_in_words(line: Connect, caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    answer = rest(line(HALF))
    assert 0.2 < time.monotonic() - began < WAIT_S / 4
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert "0.3 s" in error(answer)["message"]
    assert "did not come within 0.3 s" in reasons(caplog)


def test_a_head_that_drips_is_ended(line: Connect) -> None:
    dripping = line(HALF)
    with pytest.raises(ConnectionError):
        for _ in range(200):
            dripping.sendall(b"a")
            time.sleep(0.05)


def test_connections_that_say_nothing_are_closed_without_a_word(
    line: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    assert rest(line()) == b""
    assert not reasons(caplog)


def answered(line: socket.socket) -> bool:
    """Ask on a connection that may be kept, and read all of the answer."""
    line.sendall(GET)
    found = b""
    while not found.endswith(b"}]}"):
        part = line.recv(65536)
        assert part, found
        found += part
    return found.startswith(b"HTTP/1.1 200 ")


def test_a_connection_is_kept_between_requests(line: Connect) -> None:
    kept = line()
    for pause_s in (0.1, 0.1, 0.9):  # the last is longer than a head may take: none is under way
        assert answered(kept)
        time.sleep(pause_s)
    assert answered(kept)


def test_the_rest_of_a_refused_body_is_not_waited_for_long(line: Connect) -> None:
    refused = line(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n")
    assert refused.recv(12) == b"HTTP/1.1 413"
    assert rest(refused).endswith(b"}")


@pytest.mark.parametrize("say", [b"", HALF])
def test_idle_connections_shut_nobody_out(small: Service, line: Connect, say: bytes) -> None:
    idle = [line(say) for _ in range(3 * MOST)]
    for _ in range(5):
        assert small.get("/v1/models").status == 200
    assert small.chat("say Hello").status == 200
    until(lambda: sum(map(is_open, idle)) <= MOST)


def test_kept_connections_make_room_too_and_answers_under_way_do_not(line: Connect) -> None:
    working = line(post(b'{"prompt": "slow 0.2 a|b|c", "stream": true}'))
    assert working.recv(1)
    kept = []
    for _ in range(2 * MOST):
        kept.append(line())
        assert answered(kept[-1])
    received = b""
    while b"[DONE]" not in received:
        part = working.recv(65536)
        assert part, received
        received += part
    assert not is_open(kept[0])
    assert is_open(kept[-1])


def test_when_all_are_at_work_one_more_is_refused_in_words(small: Service, line: Connect) -> None:
    working = [line(post(b'{"prompt": "hang x", "stream": true}')) for _ in range(MOST)]
    for each in working:
        assert each.recv(1)
    answer = rest(line())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in answer
    assert "20 connections" in error(answer)["message"]
    for each in working:
        each.close()
    until(lambda: all(answer.closed.is_set() for answer in small.engine.answers if answer.hangs))
    assert small.get("/v1/models").status == 200


def test_a_body_that_does_not_come_is_ended_in_words(line: Connect) -> None:
    answer = rest(line(post(b"x" * 100)[:-50]))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert "0.3 s" in error(answer)["message"]


def test_bodies_that_never_come_shut_nobody_out(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], FakeEngine, max_connections=5) as service, ExitStack() as stack:
        for _ in range(5):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            slow.sendall(post(b"x" * 100)[:-50])
        until(lambda: service.get("/v1/models").status == 200)


def test_a_request_that_has_just_begun_is_not_the_idlest(tiny_bundles: Mapping[str, Path]) -> None:
    """Its connection had been silent for longer than the other, which is idle still."""
    asked = post(json.dumps({"prompt": "say x"}).encode())
    with served(tiny_bundles["w8a8"], FakeEngine, max_connections=2) as service, ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", service.port), WAIT_S))

        first = connect()
        assert answered(first)
        time.sleep(1.8)  # more than a body has for its next bytes, and a look at the connections
        second = connect()
        assert answered(second)
        first.sendall(asked[:-1])
        time.sleep(0.05)
        assert answered(connect())
        first.sendall(asked[-1:])
        assert first.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert not is_open(second)


def test_bytes_of_bodies_are_bounded_together(small: Service, line: Connect) -> None:
    before = len(small.engine.jobs)
    prompt = "hang " + "x" * 40_000
    holding = [line(post(json.dumps({"prompt": prompt, "stream": True}).encode())) for _ in range(2)]
    until(lambda: len(small.engine.jobs) == before + 2)
    reply = small.complete("say " + "x" * 40_000)
    assert (reply.status, reply.error["code"]) == (429, "queue_full")
    assert "retry-after" in reply.headers
    assert small.complete("say x").status == 200  # a small one has room
    for each in holding:
        each.close()
    until(lambda: small.complete("say " + "x" * 40_000).status == 200)


def test_who_does_not_read_is_dropped_and_the_answer_given_up(
    tiny_bundles: Mapping[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps({"prompt": "say " + "|".join(["x" * 2000] * 1500), "stream": True}).encode()
    with served(tiny_bundles["w8a8"], FakeEngine, send_s=0.5) as service, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", service.port))
        deaf.sendall(post(body))
        until(lambda: service.engine.answers and service.engine.answers[0].closed.is_set())
        assert service.engine.answers[0].completion_tokens < 1000, "the daemon kept what nobody read"
    assert "it read nothing" in reasons(caplog)


def test_what_is_no_http_gets_a_sentence(line: Connect, caplog: pytest.LogCaptureFixture) -> None:
    hello = bytes.fromhex("160301020001000001fc0303") + b"\0" * 500
    assert rest(line(hello)) == b""
    assert "it spoke TLS" in reasons(caplog)
    answer = rest(line(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 30))
    assert answer.startswith(b"HTTP/1.1 505 ")
    assert "HTTP/1.1" in error(answer)["message"]
    for say, status in (
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 400),
        (b"\0\1\2\3\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET /v1/models HTTP/1.1\r\nX: " + b"x" * 100_000, 431),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ):
        answer = rest(line(say))
        assert answer.split()[1] == str(status).encode(), answer
        assert error(answer)["type"] == "invalid_request_error"
    assert "HTTP/2" in reasons(caplog)


def test_an_upgrade_that_cannot_be_is_no_news(line: Connect, caplog: pytest.LogCaptureFixture) -> None:
    asked = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    assert rest(line(GET[:-2] + asked)).startswith(b"HTTP/1.1 200 ")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_garbage_in_the_midst_of_an_answer_ends_it_without_a_traceback(
    line: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    chunked = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'{"prompt": "hang x", "stream": true}'
    working = line(chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    assert working.recv(1)
    working.sendall(b"\0\0\0garbage\r\n\r\n" * 100)
    working.close()
    time.sleep(0.1)
    reasons(caplog)


def test_the_limit_leaves_descriptors_for_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.make(None, {"bundle": Path("x")})
    for soft, most in ((4096, 512), (256, 256 - connections.RESERVED), (32, 8), (resource.RLIM_INFINITY, 512)):
        monkeypatch.setattr(resource, "getrlimit", lambda _what, soft=soft: (soft, soft))
        assert connections.limits_of(settings).connections == most


def test_a_connection_that_cannot_be_taken_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    failed = OSError(errno.EMFILE, "Too many open files")
    context = {"message": "socket.accept() out of system resource", "exception": failed}
    server._loop_failed(None, context)  # type: ignore[arg-type]
    assert reasons(caplog) == "too many open files"


@pytest.mark.slow
@pytest.mark.parametrize("say", [b"", HALF], ids=["idle", "half a head"])
def test_a_daemon_that_is_flooded_answers_and_replaces_its_worker(tiny_bundles: Mapping[str, Path], say: bytes) -> None:
    """1,100 connections to a process that may open 1,024 files, opened again as they are closed, for half a minute."""
    files = 1024
    command = (sys.executable, "-m", "rkruntime.daemon.main", "--bundle", str(tiny_bundles["w8a8"]))
    limited = ("prlimit", f"--nofile={files}:{files}", *command, "--listen", "127.0.0.1:0", "--max-connections", "5000")
    with running(limited) as daemon, ExitStack() as stack:
        until(lambda: daemon.get("/ready").status == 200)
        flood = selectors.DefaultSelector()
        stack.callback(flood.close)

        def one_more() -> None:
            found = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
            found.sendall(say)
            flood.register(found, selectors.EVENT_READ)

        for _ in range(1100):
            one_more()
        killed, answered, end = 0, 0, time.monotonic() + 30
        while time.monotonic() < end:
            for key, _ in flood.select(0)[:20]:
                flood.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
                one_more()
            answered += daemon.chat("hello", max_tokens=2).status == 200
            if killed < 2 and end - time.monotonic() < 25 - 10 * killed:
                worker = worker_of(daemon.process.pid)
                assert worker
                os.kill(worker, signal.SIGKILL)
                killed += 1
        assert killed == 2
        assert answered > 20
        until(lambda: daemon.get("/ready").status == 200)
        assert daemon.get("/health").json["restarts"] == 2
        assert len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir())) < files
    assert len(daemon.log) < 1000 + answered
    assert not [entry for entry in daemon.log if "traceback" in entry or entry["event"] == "cannot accept"]


@pytest.mark.slow
def test_no_descriptor_for_a_connection_is_no_flood_and_no_spin(tiny_bundles: Mapping[str, Path]) -> None:
    with running(over_script(tiny_bundles["w8a8"])) as daemon, ExitStack() as stack:
        pid = daemon.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert before[0] == before[1]  # it took what it may have
        taken = max(int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir())
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + 2, before[1]))
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
        until(lambda: daemon.events("cannot accept"))
        began = cpu_seconds(pid)
        time.sleep(5)
        assert cpu_seconds(pid) - began < 1
        assert len(daemon.log) < 100
        assert not [entry for entry in daemon.log if "traceback" in entry]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert daemon.get("/v1/models").status == 200


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
