"""`rk3588 bench BUNDLE`: a process of its own over the simulated runtime."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rk3588 import children
from rk3588.bench.results import Report
from rk3588.cli import cli
from rk3588.errors import BenchError
from rkruntime import benching
from tests.deploying import MAIN
from tests.fakes import ROOT

PYTHONPATH = os.pathsep.join(str(ROOT / p) for p in (".", "convert", "runtime"))


def bench(*words: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, words)], catch_exceptions=True)


def test_a_bundle(tiny_bundles: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    kept = tmp_path / "a.json"
    first = bench(tiny_bundles["w8a8"], "-p", "32,100", "-n", "40", "-r", "2", "-t", "1", "--save", kept)
    assert first.exit_code == 0, first.exception
    said = json.loads(kept.read_text())
    assert list(said["samples"]) == ["pp32", "pp100", "tg40", "ttft64"]
    assert {s["prompt_tokens"] for s in said["samples"]["pp100"]} == {100}
    assert all(s["tokens"] >= 40 for s in said["samples"]["tg40"])
    about = said["about"]
    assert (about["model"], about["threads"], about["simulated"]) == ("tiny w8a8", 1, True)
    assert about["resident"] > 10 << 20 and about["params"] > 0 and about["bytes"] > 0
    assert set(about["predicted"]["tests"]) == set(said["samples"])
    assert "what was measured is a simulated runtime" in first.stdout
    assert "tiny w8a8" in first.stdout and "RKLLM simulated 1.1.1" in first.stdout
    second = bench(tiny_bundles["w8a8"], "-p", "32", "-n", "0", "-r", "2", "--against", kept, "-o", "json")
    rows = {row["test"]: row for row in json.loads(second.stdout)}
    assert set(rows) == {"pp32", "ttft64"} and rows["pp32"]["ratio"] > 0
    assert rows["pp32"]["verdict"] in ("faster", "slower", "within the noise")


def test_a_release_that_has_figures_of_its_own(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    done = bench(tiny_bundles["w8a8"], "-p", "16", "-n", "0", "-r", "1", "--library", "sim-1.2.3")
    assert "RKLLM simulated 1.2.3" in done.stdout and "the runtime's own figure, MB" in done.stdout


def test_mistakes(tiny_bundles: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    tiny = tiny_bundles["w8a8"]
    for words, told, code in (
        ((tiny, "-p", "5000"), "pp5000 needs 5004 tokens of context, and there are", 2),
        ((tiny, "--library", tmp_path / "none.so"), "there is no library", 2),
        ((tmp_path / "none",), "none", 2),
        ((tmp_path,), "rkbundle.json", 2),
    ):
        done = bench(*words)
        assert told in str(done.exception) and getattr(done.exception, "exit_code", 0) == code, (words, done.exception)
        assert done.stdout == ""


def test_a_runtime_that_aborts_costs_only_what_is_to_come(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the twentieth token of a run: prompts are measured, answers are not."""
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("RKSIM_FAULTS", "crash_at=20,token_ms=2")
    done = bench(tiny_bundles["w8a8"], "-p", "16", "-n", "100", "-r", "1", "-o", "jsonl")
    assert done.exit_code == 1 and "ended with signal SIGABRT" in str(done.exception)
    assert [json.loads(line)["test"] for line in done.stdout.splitlines()] == ["pp16"]
    assert "this is not all" in done.stderr


def test_a_runtime_that_hangs_is_given_up(tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("RKSIM_FAULTS", "hang_at=20,token_ms=2")
    monkeypatch.setattr(benching, "_END_S", 0.2)
    done = bench(tiny_bundles["w8a8"], "-p", "16", "-n", "100", "-r", "1", "--timeout", "2", "-o", "jsonl")
    assert done.exit_code == 1 and "has given nothing for 2 s: --timeout allows more" in str(done.exception)
    assert [json.loads(line)["test"] for line in done.stdout.splitlines()] == ["pp16"]


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("print('hello')", "says something else than what it measures"),
        ("print('[1]')", "says something else than what it measures"),
        ("print('x' * (2 << 20), end='')", "says something else than what it measures"),
        ("print('{\"sample\": {}}')", "makes no sense"),
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("print('{\"failed\": {\"message\": \"so\", \"code\": 1}}')", "so"),
    ],
)
def test_a_child_that_says_something_else(program: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    child = children.Child([sys.executable, "-c", program], dict(os.environ))
    monkeypatch.setattr(children, "python", lambda *_: child)
    with pytest.raises(BenchError, match=told):
        benching.measure({}, None, 30.0, Report.begin("x").take)


def test_ctrl_c(tiny_bundles: Mapping[str, Path]) -> None:
    """On a terminal, which shows what goes on; nothing is left running."""
    ours, theirs = pty.openpty()
    words = ("bench", str(tiny_bundles["w8a8"]), "-p", "16", "-r", "1000", "-o", "jsonl")
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *words], env={**os.environ, "PYTHONPATH": PYTHONPATH}, stdout=subprocess.PIPE,
        stderr=theirs, text=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"pp16, 5 of 1000" not in seen:
        seen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 130
    (row,) = map(json.loads, out.splitlines())
    assert row["test"] == "pp16" and len(row["samples_ts"]) >= 4
