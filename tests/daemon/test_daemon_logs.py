"""The daemon's log: one JSON object a line, safe for a terminal, and never a flood."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rkruntime.daemon import logs


class Log:
    """What was written, and the time, which stands still."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stream = io.StringIO()
        self.handler = logs.Limited(self.stream, lambda: self.now)
        self.handler.setFormatter(logs.JsonLines())

    def lines(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        self.stream.truncate(0)
        self.stream.seek(0)
        return found


@pytest.fixture
def log() -> Iterator[Log]:
    logger, found = logging.getLogger("rkchatd"), Log()
    before = logger.level
    logger.addHandler(found.handler)
    logger.setLevel(logging.DEBUG)
    yield found
    logger.removeHandler(found.handler)
    logger.setLevel(before)


def warn(number: int) -> None:
    logs.event("bad", logging.WARNING, client=str(number))


def request(status: int) -> None:
    logs.event("request", status=status)


@pytest.mark.parametrize(("write", "most"), [(warn, logs.MOST_WARNINGS), (request, logs.MOST)])
def test_of_one_kind_so_many_and_then_their_number(log: Log, write: Callable[[int], None], most: int) -> None:
    for _ in range(600_000 // 100):
        write(400)
    assert len(log.lines()) == most
    logs.event("something else", logging.WARNING)
    assert [line["event"] for line in log.lines()] == ["something else"]
    log.now += logs.WINDOW_S + 2
    log.handler.log_dropped_counts()
    (told,) = log.lines()
    assert told["event"] == "lines left out"
    assert (told["count"], told["seconds"], told["like"][:3]) == (6000 - most, 12, "bad" if write is warn else "req")
    write(400)
    assert len(log.lines()) == 1
    log.now += logs.WINDOW_S
    log.handler.log_dropped_counts()
    assert log.lines() == []  # there was nothing more to say


def test_what_clients_choose_makes_no_kinds_of_its_own(log: Log) -> None:
    logger = logging.getLogger("rkchatd")
    for number in range(1000):
        logger.info(f"the library says {number}")
    assert len(log.lines()) == logs.MOST
    for number in range(1000):
        logs.event("request", path=f"/{number}", status=200 + number % 2)
    assert len(log.lines()) == 2 * logs.MOST
    for _ in range(1000):
        logger.debug("all of these, if asked for")
    assert len(log.lines()) == 1000


def test_a_line_is_ascii_controls_free_and_whole(log: Log) -> None:
    wicked = "\x1b[2J\x9b31m\x7f\u202egnp\u2028\n\r\0 grüße 世界"
    logs.event("request", path=wicked)
    raw = log.stream.getvalue()
    assert raw.count("\n") == 1
    assert not set(raw[:-1]) & set("\x1b\x9b\x7f\u202e\u2028\r\0")
    assert "grüße 世界" in raw
    assert log.lines()[0]["path"] == wicked


def test_plain_words_on_a_terminal() -> None:
    stream, written = io.StringIO(), "what somebody wrote"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.PlainLines())
    logger = logging.getLogger("rkchatd")
    logger.addHandler(handler)
    try:
        logs.event("request\n\x1b[2J", logging.WARNING, status=200, path="/v1/models", client="\x9b2J \u202e")
        logs.event("ready", logging.ERROR)
        try:
            raise KeyError(written)
        except KeyError:
            logs.event("defect", logging.ERROR, exc_info=True)
    finally:
        logger.removeHandler(handler)
    first, second, third, *trace = stream.getvalue().splitlines()
    assert first[8:] == r' warning request\n\u001b[2J: status=200 path=/v1/models client="\u009b2J \u202e"'
    assert second[8:] == " error ready"
    assert third[8:] == " error defect"
    assert trace[-1].strip() == "KeyError"
    assert written not in stream.getvalue()
