"""`rk3588 bench URL` over servers that are honest, know little, or lie."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rk3588.bench import plan, results, serving
from rk3588.bench.completions import Server
from rk3588.bench.results import Report
from rk3588.cli import cli
from rk3588.errors import BenchError, UsageError
from tests import bench_server
from tests.bench_server import Script, event
from tests.deploying import MAIN
from tests.fakes import ROOT

QUICK = ("-p", "20", "-n", "8", "-r", "2", "--ttft", "10")


def measured(script: Script, **changes: Any) -> Report:
    options = {"prompts": "20", "answers": "8", "ttft": 10, "repetitions": 2, "clients": "", "seconds": 20.0, **changes}
    report = Report.begin("test")
    with bench_server.running(script) as url:
        wanted = plan.make(**options)
        emit: Callable[[dict[str, Any]], None] = lambda e: None if "progress" in e else report.take(e)  # noqa: E731
        serving.measure(Server(url, None, wanted.seconds), None, wanted, emit)
    return report


def bench(*words: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, words)], catch_exceptions=True)


def test_an_honest_server() -> None:
    """Prompts of the very number of tokens, never the same; the speeds it has; what it does not tell is not told."""
    script = Script()
    report = measured(script, answers="8,50")
    rows = {row.test: row for row in report.rows}
    assert list(rows) == ["pp20", "tg8", "tg50", "ttft10"]
    assert rows["pp20"].n_prompt == 20 and rows["ttft10"].n_prompt == 10
    assert [sample.tokens for sample in rows["tg8"].samples] == [8, 8]
    assert 5 < rows["tg50"].rate[0] < 1.2 / bench_server.GAP_S
    assert len(set(script.prompts)) == len(script.prompts)
    assert report.about["model"] == "tiny" and "bytes" not in report.about and not report.readings
    assert report.notes == ["cached_tokens: not told by this server; every prompt was a new one"]
    asked = script.bodies[0]
    assert asked["stream"] and asked["ignore_eos"] is True and asked["cache_prompt"] is False
    assert asked["model"] == "/models/tiny" and asked["temperature"] == 0


def test_fields_that_are_refused_are_left_out() -> None:
    script = Script(refuses=("ignore_eos",))
    measured(script)
    assert ["ignore_eos" in body for body in script.bodies[:3]] == [True, False, False]


def test_without_tokenize_the_usage_of_the_warm_up_tells_how_long_prompts_get() -> None:
    """A server that puts seven tokens before each prompt, as one with a template does."""
    script = Script(counts=False, usage=None)
    with pytest.raises(BenchError, match="tells neither usage nor /tokenize"):
        measured(script)
    script = Script(counts=False, before=7)
    report = measured(script)
    assert {row.test: row.n_prompt for row in report.rows if row.kind != "tg"} == {"pp20": 20, "ttft10": 10}
    assert len(script.prompts[-1].split()) == 3


def test_what_tokenize_does_not_count_is_learnt_from_the_warm_up() -> None:
    """llama.cpp's leaves BOS out; vLLM's wants another field."""
    report = measured(Script(before=1, counted="prompt"))
    assert {row.test: row.n_prompt for row in report.rows if row.kind != "tg"} == {"pp20": 20, "ttft10": 10}


def test_without_usage_pieces_are_counted() -> None:
    report = measured(Script(usage=None))
    assert report.row("pp") and report.row("tg")
    assert any("pieces of its streams were counted" in note for note in report.notes)
    assert any("prompt_tokens: not told" in note for note in report.notes)


def test_answers_that_end_early_go_on_with_another_prompt() -> None:
    report = measured(Script(tokens=lambda most: min(most, 3)))
    row = report.row("tg")
    assert row and {(sample.tokens, sample.answers) for sample in row.samples} == {(8, 3)}


def test_several_clients() -> None:
    script = Script(usage={"perf": {"prefill_time_ms": 0.5}}, gap_s=0.01)
    report = measured(script, prompts="0", ttft=0, clients="1,3")
    assert [row["test"] for row in report.clients] == ["c1", "c3"]
    one, three = report.clients
    assert (one["requests"], three["requests"], three["failed"]) == (2, 6, 0)
    assert three["tokens"] == 48 and three["rate"] > 1.2 * one["rate"]
    assert three["ttft_ms"]["p50"] <= three["ttft_ms"]["p90"] <= three["ttft_ms"]["p99"]
    assert one["queue_from"] == "server" and one["queue_ms"]["p50"] == pytest.approx(one["ttft_ms"]["p50"] - 0.5)


def test_several_clients_of_a_server_that_tells_no_times() -> None:
    (one,) = measured(Script(), clients="1").clients
    assert one["queue_from"] == "lone" and 0 <= one["queue_ms"]["p50"] < one["ttft_ms"]["p90"]


def stream(*events: Any) -> Iterator[bytes]:
    return iter([event(each) for each in events])


def endless() -> Iterator[bytes]:
    return itertools.repeat(event({"choices": [{"text": "x"}]}))


TEXT = {"choices": [{"text": "x", "finish_reason": "stop"}]}
LIES: dict[str, tuple[Callable[[], Script], str]] = {
    "an endless stream": (lambda: Script(pieces=endless()), "goes on beyond the 8 tokens"),
    "too many tokens": (lambda: Script(usage={"completion_tokens": 10**12}), r"completion_tokens 10+, where 8 are"),
    "fewer tokens than pieces": (lambda: Script(usage={"completion_tokens": 1}), "sent 8 pieces of text"),
    "a negative number": (lambda: Script(usage={"prompt_tokens": -1}), "prompt_tokens -1, where"),
    "more tokens than bytes": (lambda: Script(usage={"prompt_tokens": 10**6}), "prompt_tokens 1000000, where"),
    "a count that is none": (lambda: Script(usage={"prompt_tokens": "many"}), "that is no count"),
    "another count than its own": (
        lambda: Script(usage={"prompt_tokens": 90}), r"usage.prompt_tokens 90, and its /tokenize \d+"
    ),
    "no tokens": (lambda: Script(usage={"prompt_tokens": 0}, counts=False), "had none"),
    "a cache": (
        lambda: Script(usage={"prompt_tokens_details": {"cached_tokens": 5}}),
        "took 5 tokens of a prompt that nobody had sent before from a cache",
    ),
    "a redirect": (lambda: Script(status=302, headers={"Location": "http://x/\x1b[2J"}), "leads to http://x/"),
    "a wrong key": (lambda: Script(status=401, body=b'{"error": {"message": "no"}}'), "wants a key: no; give --key"),
    "an error": (lambda: Script(status=503, body=b'{"error": "loading"}'), "answered 503: loading"),
    "HTML": (lambda: Script(body=b"<html>hello</html>"), "no stream but '<html>hello"),
    "an answer that is no stream": (lambda: Script(body=b'{"choices": []}\n'), "no stream but"),
    "events that are no JSON": (lambda: Script(pieces=iter([b"data: {oops\n\n"])), "no JSON but '{oops'"),
    "deep JSON": (lambda: Script(pieces=iter([b"data: " + b"[" * 100_000 + b"\n\n"])), "no JSON but"),
    "an event that is a list": (lambda: Script(pieces=stream([])), "event that is no object"),
    "choices that are numbers": (lambda: Script(pieces=stream({"choices": [1]})), "choices that are no objects"),
    "an error in a stream": (lambda: Script(pieces=stream({"error": {"message": "died"}})), "the answer: died"),
    "a line without an end": (lambda: Script(pieces=itertools.repeat(b"data: " + b"x" * 65536)), "a line of more than"),
    "much of nothing": (lambda: Script(pieces=itertools.repeat(b": x" + b"x" * 65536 + b"\n")), "more than 4 MB"),
    "an early end": (lambda: Script(pieces=stream({"choices": [{"text": "x"}]})), "broke the stream off"),
    "nothing at all": (lambda: Script(body=b""), "broke the stream off"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_one_sentence_for_a_server_that_lies(lie: str) -> None:
    make, told = LIES[lie]
    with pytest.raises(BenchError, match=told) as caught:
        measured(make())
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value) and len(str(caught.value)) < 600


def test_an_answer_in_one_piece_has_no_speed() -> None:
    script = Script(tokens=lambda _: 1, usage={"completion_tokens": 8})
    with pytest.raises(BenchError, match="in one piece"):
        measured(script, prompts="0", ttft=0)


def test_a_server_that_trickles_is_given_up_in_time() -> None:
    """Each byte comes soon enough; the whole never does."""
    with pytest.raises(BenchError, match=r"was not done within 0.3 s: --timeout allows more"):
        measured(Script(gap_s=0.15, tokens=lambda _: 100), seconds=0.3)


def test_nobody_there_and_no_url() -> None:
    done = bench("http://127.0.0.1:9/v1", *QUICK)
    assert done.exit_code == 1 and "nothing answers at http://127.0.0.1:9" in str(done.exception)
    for wrong in ("ftp://x", "http://", "http://a:99999", "http://u:p@x", "http://x/?q=1", "http://x y"):
        with pytest.raises(UsageError, match="URL"):
            Server(wrong, None, 1)
    with pytest.raises(UsageError, match="printable ASCII"):
        Server("http://x", "a\r\nb", 1)
    assert Server("http://[::1]:80/v1/", "k", 1).url == "http://[::1]:80"


def test_the_command(tmp_path: Path) -> None:
    """Data on stdout, all else on stderr; kept, and compared with what was kept."""
    with bench_server.running(Script()) as url:
        first = bench(url, *QUICK, "--concurrency", "2", "--save", tmp_path / "a.json", "-o", "json")
        second = bench(url, *QUICK, "--against", tmp_path / "a.json", "--concurrency", "2")
    assert first.exit_code == second.exit_code == 0, second.output
    *rows, two = json.loads(first.stdout)
    assert [(row["test"], row["n_prompt"], row["n_gen"]) for row in rows] == [
        ("pp20", 20, 0), ("tg8", 0, 8), ("ttft10", 10, 1),
    ]  # fmt: skip
    assert all(len(row["samples_ts"]) == len(row["samples_ns"]) == 2 for row in rows)
    assert "saved" in first.stderr and "not told by this server" in first.stderr
    kept = results.read(tmp_path / "a.json")
    assert [row.rate[0] for row in kept.rows] == pytest.approx([row["avg_ts"] for row in rows], abs=1e-5)
    assert [row.rate[1] for row in kept.rows] == pytest.approx([row["stddev_ts"] for row in rows], abs=1e-5)
    assert (two["test"], two["clients"], two["requests"], two["failed"]) == ("c2", 2, 4, 0) and two["avg_ts"] > 0
    assert "one run each: noise not known" in second.stdout
    for told in ("| pp20 |", "before, t/s", "ratio", "clients", "not told"):
        assert told in second.stdout


def test_options_for_another_target_are_refused(tmp_path: Path) -> None:
    for words, told in (
        (("http://x", "--library", "sim"), "--library is for a bundle, and http://x is a URL"),
        (("127.0.0.1:9",), "for a server's own URL write http://127.0.0.1:9"),
        (("kitchen", "--key", "k"), "--key is for a URL, and kitchen is a board"),
        ((tmp_path, "--concurrency", "2"), "answers one at a time: serve it"),
        (("http://x", "-p", "many"), "-p 'many': expected whole numbers"),
        (("http://x", "-p", "0", "-n", "0", "--ttft", "0"), "leaves nothing to measure"),
        (("http://x", "-n", "1"), "-n 1"),
        (("http://x", "--concurrency", "0"), "from 1 to 64"),
        (("http://x", "--against", tmp_path / "none"), "there is no such file"),
        (("http://x", "--save", tmp_path / "no" / "a"), "--save"),
    ):
        done = bench(*words)
        assert told in str(done.exception), (words, done.exception)
        assert getattr(done.exception, "exit_code", 0) == (1 if "--save" in words or "127.0.0.1:9" in words else 2)


def test_ctrl_c_prints_and_saves_what_was_measured(tmp_path: Path) -> None:
    script = Script()
    with bench_server.running(script) as url:
        words = ("bench", url, "-p", "5", "-n", "8", "-r", "1000", "--save", str(tmp_path / "a.json"), "-o", "jsonl")
        paths = os.pathsep.join(str(ROOT / p) for p in (".", "convert", "runtime"))
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *words], env={**os.environ, "PYTHONPATH": paths}, stdout=pipe, stderr=pipe,
            text=True,
        )  # fmt: skip
        for _ in range(4):
            assert script.heard.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted" in told and "this is not all" in told
    (row,) = map(json.loads, out.splitlines())
    assert row["test"] == "pp5" and len(row["samples_ts"]) >= 2
    kept = results.read(tmp_path / "a.json")
    assert kept.interrupted and len(kept.samples["pp5"]) == len(row["samples_ts"])
