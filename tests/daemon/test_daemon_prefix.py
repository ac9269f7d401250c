"""An answer that goes on with what the assistant has said already: ``prefix`` and ``continue_final_message``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rk3588 import bundle as bundles
from rkruntime.daemon.engine import WorkerEngine
from rkruntime.prompts import Prompts
from tests.daemon_server import Service, served, until
from tests.fake_engine import FakeEngine

USER = {"role": "user", "content": "Tell me."}
BEGUN = {"role": "assistant", "content": "Half <|im_end|> an"}


@pytest.fixture(scope="module")
def fake(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        yield running


@pytest.mark.parametrize("fields", [{}, {"continue_final_message": True}])
def test_it_reaches_the_engine(fake: Service, fields: Mapping[str, Any]) -> None:
    last = BEGUN if fields else {**BEGUN, "prefix": True}
    body = {"messages": [USER, last], **fields}
    assert fake.request("POST", "/v1/chat/completions", body).status == 200
    assert fake.engine.jobs[-1].messages[-1] == {**BEGUN, "prefix": True}
    assert fake.request("POST", "/v1/chat/completions", {"messages": [USER, {**last, "prefix": False}]}).status == 200
    assert fake.engine.jobs[-1].messages[-1] == BEGUN


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([{**USER, "prefix": True}], {}, "messages[0].prefix"),
        ([USER, {**BEGUN, "prefix": True}, USER], {}, "messages[1].prefix"),
        ([USER, {"role": "assistant", "content": "", "prefix": True}], {}, "messages[1].prefix"),
        ([USER, {**BEGUN, "prefix": 1}], {}, "prefix"),
        ([USER], {"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_what_cannot_be_gone_on_with(fake: Service, messages: Any, fields: Mapping[str, Any], param: str) -> None:
    told = fake.request("POST", "/v1/chat/completions", {"messages": messages, **fields})
    assert (told.status, told.error["param"]) == (400, param)


def test_the_prompt_ends_with_it(tiny_bundles: Mapping[str, Path]) -> None:
    """As the template would begin the answer, then the text, in which nothing is special."""
    with Prompts(bundles.read(tiny_bundles["w8a8"])) as prompts:
        before, whole = prompts.chat([USER]), prompts.chat([USER, {**BEGUN, "prefix": True}])
        assert isinstance(before, list) and isinstance(whole, list)
        assert whole[: len(before)] == before
        vocabulary = prompts._vocabulary
        assert vocabulary is not None
        assert vocabulary.detokenise(whole[len(before) :], skip_special=True).decode() == BEGUN["content"]


def test_over_the_twin(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], WorkerEngine) as running:
        until(lambda: running.get("/ready").status == 200)
        ask = {"messages": [USER, {**BEGUN, "prefix": True}], "max_tokens": 3}
        longer = running.request("POST", "/v1/chat/completions", ask).json["usage"]["prompt_tokens"]
        plain = running.request("POST", "/v1/chat/completions", {**ask, "messages": [USER]})
        assert longer > plain.json["usage"]["prompt_tokens"]
