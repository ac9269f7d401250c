"""Chatting over a library of 1.3: sampling that holds at once, longer contexts, and the library's own figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rk3588 import bundle as bundles
from rk3588 import runtime
from rkruntime.model import Model, Settings
from tests.core.test_cli import ANSWER, rk3588
from tests.fakes import bundle_for_both, fake_rkllm, journal, scripted_bundle
from tests.runtime.test_chat import Talk


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_rkllm(tmp_path_factory.mktemp("newer"), release="1.3.1")


@pytest.fixture
def talk(tmp_path: Path, library: Path) -> Iterator[Talk]:
    talk = Talk(tmp_path, ANSWER, library)
    with talk.model:
        yield talk


def sampling(talk: Talk) -> str:
    """Of the last answer."""
    return next(line for line in reversed(journal(talk.library)) if line.startswith("sampling"))


def test_the_conversation_is_ours_as_ever(talk: Talk) -> None:
    """The library keeps nothing of it, and puts nothing around it."""
    assert [talk.say(text) for text in ("one", "two")] == ["Hi!", "Hi!"]
    assert talk.sent().startswith("user=one;assistant=Hi!;user=two; mode")
    assert journal(talk.library)[1] == "template '' '' ''"


def test_set_holds_at_once_where_sampling_goes_with_each_run(talk: Talk) -> None:
    """It loaded a model of gigabytes again for a temperature."""
    inits = [line for line in journal(talk.library) if line.startswith("init")]
    talk.say("one")
    assert sampling(talk).startswith("sampling k=40 p=0.9 t=0.2 repeat=1 ")
    for line in ("/set temperature 0.5", "/set top-k 7", "/set top_p 0.5", "/set repeat_penalty 1.5"):
        assert "loaded again" not in talk.do(line)
    assert "temperature    0.5 " in talk.do("/set")
    talk.say("two")
    assert sampling(talk).startswith("sampling k=7 p=0.5 t=0.5 repeat=1.5 frequency=0 ")
    talk.do("/set temperature 0")
    talk.say("three")
    assert sampling(talk).startswith("sampling k=1 ")
    talk.do("/set temperature default")
    talk.do("/set top_k default")
    talk.say("four")
    assert sampling(talk).startswith("sampling k=40 p=0.5 t=0.2 ")
    assert [line for line in journal(talk.library) if line.startswith("init")] == inits
    assert "the model was loaded again" in talk.do("/set context 99")
    assert journal(talk.library)[0].startswith("init ctx=99 new=-1 k=40 p=0.5 t=0.2 repeat=1.5 ")


@pytest.mark.parametrize(("release", "script"), [("1.1.1", ""), ("1.3.1", "token 2 -\n")])
def test_the_token_that_ends_an_answer_is_none_of_it(
    tmp_path: Path, tiny_bundles: Mapping[str, Path], release: str, script: str
) -> None:
    """1.3 gives it, 1.1 does not: an answer cost a token more, and one that just fitted was cut off by its length."""
    whole = f"token 9 61\ntoken 8 -\ntoken 9 62\n{script}empty 2"
    bundle = bundle_for_both(tmp_path / "b", tiny_bundles["w8a8"], whole)
    settings = Settings(library=fake_rkllm(tmp_path, release=release))
    with Model(bundle, settings, print) as model:
        for limit, said, reason in ((9, 3, "stop"), (4, 3, "stop"), (3, 3, "length"), (2, 2, "length")):
            tokens = list(model.tokens([5], limit))
            assert (len(tokens), model.cost.tokens, model.cost.finish_reason) == (said, said, reason), limit
        assert [token.id for token in model.tokens([5])] == [9, 8, 9]


def test_stats_have_the_librarys_own_figures(talk: Talk) -> None:
    talk.say("one")
    figures = "prefill 6 tokens in 12 ms, generate 2 tokens in 100 ms, memory 512 MB"
    assert f"the runtime's own figures: {figures}" in talk.do("/stats")


def test_contexts_beyond_those_of_1_1(tmp_path: Path, library: Path) -> None:
    """As many tokens as a model can be built for; the library refuses what this one was not built for."""
    told: list[str] = []
    bundle = scripted_bundle(tmp_path / "b", ANSWER)
    cut = "the context is cut to 16384 tokens, all that an RK3588 can use (--beyond-board lifts this)"
    for asked, found, said in ((0, 4096, []), (8192, 8192, []), (20000, 16384, [cut])):
        told.clear()
        with Model(bundle, Settings(library=library, context=asked), told.append) as model:
            assert (model.context, told) == (found, said)
        assert journal(library)[0].startswith(f"init ctx={found} ")


@pytest.mark.parametrize(
    "says",
    [
        {"toolkit": {"max_context": 2048}},
        {"adopted": {"claims": {"max_context": {"value": 2048, "by": "the file's name"}}}},
    ],
)
def test_no_more_context_than_a_model_was_built_for(
    tmp_path: Path, library: Path, tiny_bundles: Mapping[str, Path], says: dict[str, object]
) -> None:
    """The library refuses it at load, and only its log says why."""
    told: list[str] = []
    trained = {**bundles.read(tiny_bundles["w8a8"]).manifest["model"], "context_length": 8192}
    bundle = bundle_for_both(tmp_path / "b", tiny_bundles["w8a8"], ANSWER, model=trained, **says)
    for asked in (0, 4096):
        with Model(bundle, Settings(library=library, context=asked), told.append) as model:
            assert model.context == 2048
    assert told == [
        "the context is cut to 2048 tokens, all that the model was built for (--beyond-board lifts this)"
    ]
    with Model(bundle, Settings(library=fake_rkllm(tmp_path)), told.append) as model:
        assert model.context == 4096  # 1.1 knows nothing of it


def test_the_simulated_runtime_takes_what_a_model_was_trained_for(
    tiny_bundles: Mapping[str, Path], runtimes: Mapping[str, Path]
) -> None:
    told: list[str] = []
    with Model(tiny_bundles["w8a8"], Settings(library=runtimes["1.3.1"], context=1000), told.append) as model:
        assert model.context == 512
    assert told == ["the context is cut to 512 tokens, all that the model was built for (--beyond-board lifts this)"]


@pytest.mark.parametrize("built", [0, 32768])
def test_no_context_above_what_any_model_is_built_for(
    tmp_path: Path, tiny_bundles: Mapping[str, Path], built: int
) -> None:
    trained = {**bundles.read(tiny_bundles["w8a8"]).manifest["model"], "context_length": 131072}
    says = {"toolkit": {"max_context": built}} if built else {}
    bundle = bundle_for_both(tmp_path / "b", tiny_bundles["w8a8"], ANSWER, model=trained, **says)
    told: list[str] = []
    with Model(bundle, Settings(library=fake_rkllm(tmp_path, release="1.2.3"), context=20000), told.append) as model:
        assert model.context == 16384 == model.most_context
    assert told[-1].startswith("the context is cut to 16384 tokens")


@pytest.mark.parametrize("toolkit", ["x", {"max_context": True}, {"max_context": "2048"}, {"max_context": -5}])
def test_a_manifest_that_says_nonsense_of_it(tmp_path: Path, toolkit: object) -> None:
    found = bundles.read(scripted_bundle(tmp_path / "b", ANSWER))
    assert runtime.built_context(bundles.Bundle(found.path, {**found.manifest, "toolkit": toolkit})) is None


def test_run_prints_the_figures(tiny_bundles: Mapping[str, Path], runtimes: Mapping[str, Path]) -> None:
    command = ("run", tiny_bundles["w8a8"], "Hello", "-n", 3, "--stats", "--json")
    newest = rk3588(*command, library=runtimes["1.3.1"])
    assert json.loads(newest.stdout)["perf"]["prefill_tokens"] > 0
    assert newest.stderr.splitlines()[-1].startswith("the runtime's own figures: prefill ")
    oldest = rk3588(*command, library=runtimes["1.1.1"])
    assert "perf" not in json.loads(oldest.stdout) and "own figures" not in oldest.stderr
