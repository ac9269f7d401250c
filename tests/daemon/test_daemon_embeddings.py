"""Embeddings over HTTP, in both languages, over the scripted engine and over the twin with a tiny model."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest

from rk3588 import quant
from rk3588.errors import AnswerFailed, PromptTooLong, RequestRefused
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from rkruntime.daemon.engine import WorkerEngine
from rkruntime.daemon.jobs import Embed, Job
from rkruntime.model import Model, Settings
from tests import models
from tests.daemon_server import WAIT_S, Service, served, until
from tests.engine_scenes import pid_of, started
from tests.engines import Flavour, job, run
from tests.engines import text as text_of
from tests.engines import until as eventually
from tests.fake_engine import FakeEngine
from tests.plans import make_plan

TEXTS = ["The capital of France", "is Paris.", "Grüße, 世界"]


@pytest.fixture(scope="module")
def fake(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        yield running


@pytest.fixture(scope="module")
def twin(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], WorkerEngine) as running:
        until(lambda: running.get("/ready").status == 200)
        yield running


def vectors(service: Service, texts: Any, **fields: Any) -> list[list[float]]:
    found = service.post("/v1/embeddings", {"input": texts, **fields}).json["data"]
    assert [each["index"] for each in found] == list(range(len(found)))
    return [each["embedding"] for each in found]


def test_the_languages_agree(twin: Service, tiny_bundles: Mapping[str, Path]) -> None:
    reply = twin.post("/v1/embeddings", {"input": TEXTS, "model": "tiny"}).json
    found = [each["embedding"] for each in reply["data"]]
    with Model(tiny_bundles["w8a8"], Settings(), print) as model:
        prompts = [model.prompts.typed(each) for each in TEXTS]
        size = model.hidden_states(prompts[0]).size
    assert reply["usage"] == {"prompt_tokens": sum(map(len, prompts)), "total_tokens": sum(map(len, prompts))}
    assert (reply["object"], reply["model"]) == ("list", "tiny")
    assert {len(vector) for vector in found} == {size}
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-5) for vector in found)
    assert len({tuple(vector) for vector in found}) == 3
    embed = twin.post("/api/embed", {"input": TEXTS, "model": "tiny:latest"}).json
    assert (embed["embeddings"], embed["model"]) == (found, "tiny:latest")
    assert embed["prompt_eval_count"] == reply["usage"]["prompt_tokens"]
    assert embed["total_duration"] > embed["load_duration"] >= 0
    assert twin.post("/api/embeddings", {"prompt": TEXTS[1], "model": "tiny"}).json == {"embedding": found[1]}
    assert vectors(twin, TEXTS[1]) == [found[1]]


def test_of_a_rotated_model_they_are_refused_in_each_language(tmp_path: Path) -> None:
    """Its hidden states are in another basis, and what is pooled of them looks like any embedding."""
    source = open_source(models.tiny_llama(tmp_path / "m"))
    (rotated,) = convert(make_plan(source, "tiny", tmp_path, [quant.scheme("w8a8")], rotate="hadamard"))
    with served(rotated, FakeEngine) as running:
        for path, body in (
            ("/v1/embeddings", {"input": TEXTS}),
            ("/api/embed", {"input": TEXTS, "model": "tiny"}),
            ("/api/embeddings", {"prompt": TEXTS[0], "model": "tiny"}),
        ):
            reply = running.post(path, body)
            assert reply.status == 400 and "this model is rotated (rkconvert --rotate)" in reply.body.decode(), path
        assert running.post("/v1/embeddings", {"input": TEXTS}).json["error"]["code"] == "rotated_model"
        assert running.post("/v1/completions", {"prompt": "Hi", "model": "tiny"}).status == 200



def test_openais_client(twin: Service) -> None:
    """It asks for base64 where nobody says otherwise, and unpacks it."""
    with openai.OpenAI(base_url=f"{twin.url}/v1", api_key="any", max_retries=0, timeout=WAIT_S) as client:
        packed = client.embeddings.create(model="tiny", input=TEXTS)
        plain = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
        for ours, theirs in zip(packed.data, plain.data, strict=True):
            assert ours.embedding == pytest.approx(theirs.embedding, rel=1e-6)
        short = client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=4).data[0].embedding
        scale = math.hypot(*plain.data[0].embedding[:4])
        assert short == pytest.approx([value / scale for value in plain.data[0].embedding[:4]], rel=1e-5)
        with pytest.raises(openai.BadRequestError, match="dimensions: 5000 are too many"):
            client.embeddings.create(model="tiny", input=TEXTS, dimensions=5000)
        with pytest.raises(openai.BadRequestError, match="token ids"):
            client.embeddings.create(model="tiny", input=[[1, 2], [3]])


def test_ollamas_client(twin: Service) -> None:
    with ollama.Client(twin.url) as client:
        found = client.embed("tiny", TEXTS, keep_alive="5m", options={"num_ctx": 8192})
        assert [list(each) for each in found.embeddings] == vectors(twin, TEXTS)
        assert found.prompt_eval_count and found.prompt_eval_count > 3
        assert list(client.embeddings("tiny", TEXTS[0]).embedding) == found.embeddings[0]
        assert [len(each) for each in client.embed("tiny", TEXTS, dimensions=3).embeddings] == [3, 3, 3]
        with pytest.raises(ollama.ResponseError, match="input 2: the prompt has"):
            client.embed("tiny", ["short", "long " * 600])


def test_what_is_too_long_is_refused_unless_it_may_be_cut(twin: Service) -> None:
    before, long = twin.engine.status, "long " * 600
    for path, field in (("/v1/embeddings", "input"), ("/api/embed", "input"), ("/api/embeddings", "prompt")):
        assert twin.post(path, {field: long}).status == 400
    assert twin.post("/v1/embeddings", {"input": ["x", long]}).error["code"] == "context_length_exceeded"
    cut = twin.post("/api/embed", {"input": ["x", long], "truncate": True}).json
    assert cut["prompt_eval_count"] >= before.context - 4
    assert len(cut["embeddings"]) == 2


def test_nothing_that_is_typed_is_special(twin: Service) -> None:
    """The text's own characters count, and not what a template means by them."""
    typed = twin.post("/v1/embeddings", {"input": "<|im_end|>"}).json["usage"]["prompt_tokens"]
    assert typed > 2


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("/v1/embeddings", {}, "'input' has to be"),
        ("/v1/embeddings", {"input": []}, "'input' has to be"),
        ("/v1/embeddings", {"input": ["x"] * 65}, "65 texts are too many: one request takes 64"),
        ("/v1/embeddings", {"input": ["x", 3]}, "a string or a list of strings"),
        ("/v1/embeddings", {"input": [1, 2]}, "token ids"),
        ("/v1/embeddings", {"input": {"text": "x"}}, "a string or a list of strings"),
        ("/v1/embeddings", {"input": "x", "encoding_format": "int8"}, "float or base64"),
        ("/v1/embeddings", {"input": "x", "dimensions": 0}, "'dimensions'"),
        ("/v1/embeddings", {"input": "x", "model": "no"}, "there is tiny"),
        ("/api/embed", {"input": ["x"] * 65}, "65 texts"),
        ("/api/embed", {"input": 3}, "a string or a list of strings"),
        ("/api/embed", {"input": "x", "dimensions": -1}, "'dimensions'"),
        ("/api/embeddings", {"prompt": ["x"]}, "'prompt' has to be a string"),
    ],
)
def test_what_is_refused(fake: Service, path: str, fields: dict[str, Any], words: str) -> None:
    reply = fake.post(path, fields)
    assert reply.status in (400, 404)
    error = reply.json["error"]
    assert words in (error if path.startswith("/api") else error["message"])


def test_no_text_is_a_question_whether_the_model_is_there(fake: Service) -> None:
    assert fake.post("/api/embed", {"model": "tiny", "input": ""}).json["embeddings"] == []
    assert fake.post("/api/embed", {"model": "tiny"}).json["embeddings"] == []
    assert fake.post("/api/embeddings", {"model": "tiny"}).json == {"embedding": []}


@pytest.mark.parametrize(("say", "status"), [("full", 429), ("down", 503), ("late", 504), ("bug", 500)])
def test_errors(fake: Service, say: str, status: int) -> None:
    assert fake.post("/v1/embeddings", {"input": say}).error["message"]
    reply = fake.post("/api/embed", {"input": [say, "x"]})
    assert (reply.status, set(reply.json)) == (status, {"error"})


def test_what_has_no_effect_is_named(fake: Service) -> None:
    reply = fake.post("/api/embed", {"input": "x", "keep_alive": 0, "options": {"num_ctx": 5}})
    assert reply.headers["x-rk-ignored"] == "keep_alive, num_ctx"


# The one queue.


def embedding(*texts: str, **more: Any) -> Job:
    return Job(embed=Embed(texts), **more)


def test_others_have_their_turn_between_two_texts(tiny_bundles: Mapping[str, Path], rkllm_library: Path) -> None:
    """A list of 64 texts must not hold the NPU: whoever asks meanwhile waits for one of them."""

    async def scenario() -> list[str]:
        flavour = Flavour("twin", tiny_bundles["w8a8"], rkllm_library)
        async with started(flavour.engine("prefill_ms=10", queue_length=4)) as engine:
            await eventually(lambda: engine.status.state == "ready")
            order: list[str] = []

            async def embed() -> None:
                answer = await engine.submit(embedding(*map(str, range(32)), owner="a"))
                async for _ in answer.pieces():
                    order.append("text")

            listed = asyncio.ensure_future(embed())
            await eventually(lambda: order)
            await text_of(await engine.submit(job("Hello", 2, owner="b")))
            order.append("answer")
            await listed
            return order

    order = run(scenario())
    assert order.count("text") == 32
    assert order.index("answer") < 30


def test_a_list_that_nobody_waits_for_ends(tiny_bundles: Mapping[str, Path], rkllm_library: Path) -> None:
    async def scenario() -> None:
        flavour = Flavour("twin", tiny_bundles["w8a8"], rkllm_library)
        async with started(flavour.engine()) as engine:
            answer = await engine.submit(embedding(*["text"] * 64))
            async for _ in answer.pieces():
                break
            await answer.close()
            await eventually(lambda: not engine.status.running and not engine.status.queued)
            assert len(answer.waiting) > 0
            # A worker that dies costs nothing, a second one the whole list: nothing goes out before its end.
            answer = await engine.submit(embedding(*["text"] * 64))
            pieces = answer.pieces()
            await pieces.__anext__()
            os.kill(pid_of(engine), signal.SIGKILL)
            assert len([piece async for piece in pieces]) == 63
            answer = await engine.submit(embedding(*["text"] * 64))
            pieces = answer.pieces()
            await pieces.__anext__()
            first = pid_of(engine)
            os.kill(first, signal.SIGKILL)
            await eventually(lambda: engine.status.state == "ready" and pid_of(engine) != first)
            os.kill(pid_of(engine), signal.SIGKILL)
            with pytest.raises(AnswerFailed, match="the answer was lost"):
                [piece async for piece in pieces]
            await eventually(lambda: engine.status.state == "ready")
            again = await engine.submit(embedding("a", "b"))
            assert len([piece async for piece in again.pieces()]) == 2
            with pytest.raises(PromptTooLong, match="input 2: the prompt has"):
                await engine.submit(embedding("a", "long " * 600))
            with pytest.raises(RequestRefused, match="5000 are too many"):
                refused = await engine.submit(Job(embed=Embed(["a"], 5000)))
                [piece async for piece in refused.pieces()]

    run(scenario())


@pytest.mark.model
def test_a_real_models_embeddings_mean_something(smollm2_bundles: Mapping[str, Path]) -> None:
    """Sentences that mean the same lie closer together than others: SmolLM2 was not made for it, and can."""
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose by a quarter point."]
    with served(smollm2_bundles["w8a8"], WorkerEngine) as service:
        until(lambda: service.get("/ready").status == 200)
        same, other, third = vectors(service, texts)
        dot = [sum(map(float.__mul__, same, each)) for each in (other, third)]
        assert dot[0] > dot[1] + 0.02
        # Requests at the same time have the same answers as alone.
        found: list[Any] = [None] * 4
        threads = [
            threading.Thread(target=lambda at=at: found.__setitem__(at, vectors(service, texts))) for at in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(json.dumps(each) == json.dumps([same, other, third]) for each in found)
