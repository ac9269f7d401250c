"""Sampling that a request asks for: given to its run where the runtime takes it there (1.3), and said where not."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rkruntime.abi import Perf
from rkruntime.daemon.answer_parts import WholeAnswer
from rkruntime.daemon.api.dialect import Usage
from rkruntime.daemon.api.openai import ChatReply
from rkruntime.daemon.engine import WorkerEngine
from tests.daemon_server import Service, served, until
from tests.fake_engine import FakeEngine
from tests.fakes import fake_rkllm, scripted_bundle

PERF: dict[str, Any] = {
    "prefill_time_ms": 12.5, "prefill_tokens": 6, "generate_time_ms": 100, "generate_tokens": 2, "memory_usage_mb": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_rkllm(tmp_path_factory.mktemp("newer"), release="1.3.1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_bundle(tmp_path_factory.mktemp("bundle") / "b", "sampling\nempty 2")


@pytest.fixture(scope="module")
def fake(bundle: Path, newer: Path) -> Iterator[Service]:
    with served(bundle, FakeEngine, library=newer) as service:
        yield service


@pytest.mark.parametrize(
    ("fields", "run", "ignored"),
    [
        ({}, {}, None),
        ({"temperature": 0.7, "top_p": 0.5, "top_k": 7.0}, {"temperature": 0.7, "top_p": 0.5, "top_k": 7}, None),
        ({"repetition_penalty": 1.1, "repeat_penalty": 1.1}, {"repeat_penalty": 1.1}, None),
        ({"frequency_penalty": -2, "presence_penalty": 2}, {"frequency_penalty": -2, "presence_penalty": 2}, None),
        ({"temperature": None, "top_k": -1, "seed": 5}, {"top_k": 1 << 20}, "seed"),
        ({"top_k": 2**31 - 1}, {"top_k": 1 << 20}, None),
        ({"top_p": 0, "temperature": 0}, {"top_k": 1, "temperature": 0}, None),
    ],
)
def test_a_request_chooses_for_its_own_run(
    fake: Service, fields: dict[str, Any], run: dict[str, float], ignored: str | None
) -> None:
    for reply in (fake.chat("say x", **fields), fake.complete("say x", **fields)):
        assert (reply.status, reply.headers.get("x-rk-ignored")) == (200, ignored)
        assert fake.engine.jobs[-1].sampling == run


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "'temperature' has to be a number from 0 to 100"),
        ({"temperature": 1e9}, "'temperature' has to be a number from 0 to 100"),
        ({"top_p": 1.1}, "'top_p' has to be a number from 0 to 1"),
        ({"top_k": -2}, "'top_k' has to be a whole number from -1 to 2.14748e+09"),
        ({"top_k": 1.5}, "'top_k' has to be a whole number"),
        ({"repeat_penalty": 0}, "'repeat_penalty' has to be a number above 0 to 100"),
        ({"frequency_penalty": 2.5}, "'frequency_penalty' has to be a number from -2 to 2"),
        ({"presence_penalty": "1"}, "'presence_penalty' has to be a number"),
        ({"repeat_penalty": 1, "repetition_penalty": 1.1}, "'repetition_penalty' is another name of 'repeat_penalty'"),
    ],
)
def test_what_no_run_can_have_is_refused_by_name(fake: Service, fields: dict[str, Any], message: str) -> None:
    reply = fake.chat("say x", **fields)
    assert reply.status == 400 and reply.error["message"].startswith(message)
    assert reply.error["param"] in fields


def test_strict_refuses_what_this_runtime_cannot(bundle: Path, newer: Path, tmp_path: Path) -> None:
    with served(bundle, FakeEngine, library=newer, strict=True) as service:
        assert service.chat("say x", temperature=0.7, presence_penalty=1).status == 200
        refused = service.chat("say x", seed=5)
        assert "seed cannot be chosen by a request: librkllmrt has no seed" in refused.error["message"]
    with served(bundle, FakeEngine, library=fake_rkllm(tmp_path), strict=True) as service:
        refused = service.chat("say x", temperature=0.7)
        assert "librkllmrt 1.1.1 fixes sampling when it loads a model" in refused.error["message"]


def test_the_library_gets_it_and_its_figures_come_back(bundle: Path, newer: Path) -> None:
    """Through the worker: what is left out is the model's, and holds again for the next request."""
    loaded = "k=40 p=0.9 t=0.2 repeat=1 frequency=0 presence=0 mirostat=0 tau=0 eta=0"
    with served(bundle, WorkerEngine, library=newer) as service:
        asked = service.chat("x", temperature=1.5, top_k=7, presence_penalty=-1)
        assert asked.json["choices"][0]["message"]["content"] == (
            "k=7 p=0.9 t=1.5 repeat=1 frequency=0 presence=-1 mirostat=0 tau=0 eta=0"
        )
        assert service.chat("x").json["choices"][0]["message"]["content"] == loaded
        greedy = service.chat("x", temperature=0).json["choices"][0]["message"]["content"]
        assert greedy.startswith("k=1 ")


def test_the_simulated_runtimes_figures_reach_the_client(
    tiny_bundles: Mapping[str, Path], runtimes: Mapping[str, Path]
) -> None:
    with served(tiny_bundles["w8a8"], WorkerEngine, library=runtimes["1.3.1"], temperature=0.0) as service:
        whole = service.chat("Hello", max_tokens=5).json
        streamed = service.chat("Hello", max_tokens=5, stream=True, stream_options={"include_usage": True})
        drawn = service.chat("Hello", max_tokens=5, temperature=2, top_k=-1, top_p=1)
    assert whole["usage"]["perf"]["prefill_tokens"] > 0 and set(whole["usage"]["perf"]) == set(PERF)
    assert streamed.events[-2]["usage"]["perf"]["prefill_tokens"] > 0
    assert "x-rk-ignored" not in drawn.headers
    assert drawn.json["choices"][0]["message"] != whole["choices"][0]["message"]


def test_figures_of_the_runtime_are_in_usage() -> None:
    """From 1.2.1 on, where the tokens are counted; of two tries they are those of both."""
    perf = Perf(**PERF)
    once = ChatReply("m").whole(WholeAnswer("x"), "stop", Usage(6, 2, None, perf))["usage"]
    counts = {"prompt_tokens": 6, "completion_tokens": 2, "total_tokens": 8}
    assert once == {**counts, "prompt_tokens_details": {"cached_tokens": 0}, "perf": PERF}
    both = Usage(6, 2, None, perf).plus(Usage(6, 2, None, perf)).perf
    assert both == Perf(25.0, 12, 200.0, 4, 512.0)
    assert "perf" not in ChatReply("m").whole(WholeAnswer("x"), "stop", Usage(6, 2))["usage"]


def test_a_library_that_is_replaced_by_an_older_one(
    bundle: Path, newer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under a daemon that runs: what it cannot do any more costs no answer."""
    library = tmp_path / "librkllmrt.so"
    shutil.copy(newer, library)
    (tmp_path / "older").mkdir()
    caplog.set_level("INFO")
    with served(bundle, WorkerEngine, library=library) as service:
        until(lambda: service.get("/ready").status == 200)
        assert service.chat("say x", temperature=0.7).status == 200
        fake_rkllm(tmp_path / "older").replace(library)
        before = service.engine.worker_pid
        os.kill(before, signal.SIGKILL)
        until(lambda: service.engine.worker_pid not in (None, before) and service.get("/ready").status == 200)
        assert [service.chat("say x", temperature=0.7).status for _ in range(2)] == [200, 200]
    assert caplog.text.count("the library was replaced by a release that fixes sampling") == 1
