"""`rk3588 bench HOST`: what runs on the board, and what it may say; `test_deploy_daemon.py` has a whole board."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rk3588.bench import plan
from rk3588.bench.results import Report
from rk3588.deploy import measuring
from rk3588.deploy.facts import Facts
from rk3588.deploy.local import LocalConnection
from rk3588.errors import BenchError, RkError, UsageError
from tests import bench_server

PLAN = plan.make("20", "8", 10, 2, "2", 20.0)
FACTS = Facts(python_path=sys.executable)


@pytest.fixture
def connection() -> Iterator[LocalConnection]:
    with LocalConnection(lambda _: None) as opened:
        yield opened


def run(connection: LocalConnection, url: str = "http://127.0.0.1:9") -> Report:
    report = Report.begin("attic")
    asked = {"url": url, "key": None, "plan": PLAN.frame()}
    measuring._run(connection, FACTS, asked, PLAN, lambda e: None if "progress" in e else report.take(e))
    return report


def test_the_program_that_is_sent_measures(connection: LocalConnection) -> None:
    """By a Python that sees nothing of this project, over stdin alone."""
    with bench_server.running(bench_server.Script()) as url:
        report = run(connection, url)
    assert [row.test for row in report.rows] == ["pp20", "tg8", "ttft10"] and len(report.clients) == 1


@pytest.mark.parametrize(
    ("program", "kind", "told"),
    [
        ("print('hello \\x1b[2J')", BenchError, "answers with something else than what it measures: hello"),
        ("print('[]')", BenchError, "answers with something else"),
        ("raise SystemExit('no memory')", BenchError, "broke the measurement off: no memory"),
        ("print('{\"sample\": {\"test\": \"pp1\", \"ns\": -1}}')", BenchError, "makes no sense"),
        ("print('{\"failed\": {\"message\": \"so it is\", \"code\": 2}}')", UsageError, "so it is"),
        ("print('{\"failed\": 7}')", BenchError, "the measurement failed"),
    ],
)
def test_a_board_that_says_something_else(
    connection: LocalConnection, monkeypatch: pytest.MonkeyPatch, program: str, kind: type[RkError], told: str
) -> None:
    monkeypatch.setattr(measuring, "_BOOT", program)
    with pytest.raises(kind, match=told) as caught:
        run(connection)
    assert "\x1b" not in str(caught.value)


def test_what_goes_wrong_there_is_told_here(connection: LocalConnection) -> None:
    with pytest.raises(BenchError, match=r"nothing answers at http://127\.0\.0\.1:9"):
        run(connection)


def test_it_ends_with_its_stdin() -> None:
    """As when the link is lost while an answer is under way: the server sees its client go."""
    script = bench_server.Script(gap_s=0.01, tokens=lambda _: 10**6)
    with bench_server.running(script) as url:
        program, pipe = measuring.program_zip(), subprocess.PIPE
        asked = {"url": url, "key": None, "plan": PLAN.frame()}
        with subprocess.Popen([sys.executable, "-I", "-c", measuring._BOOT], stdin=pipe, stdout=pipe) as there:
            assert there.stdin
            there.stdin.write(f"{len(program)}\n".encode() + program + json.dumps(asked).encode() + b"\n")
            there.stdin.flush()
            assert script.heard.acquire(timeout=60)
            there.stdin.close()
            assert there.wait(60) == 1
        assert script.gone.wait(60)
