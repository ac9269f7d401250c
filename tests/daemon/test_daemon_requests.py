"""What requests may hold: JSON that means one thing, formats in every place, histories as clients replay them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rk3588 import bundle as bundles
from rk3588 import conversation_rules, templates
from rkruntime.daemon import formats, strictjson
from rkruntime.daemon.fields import Fields
from rkruntime.daemon.jsonprefix import JsonPrefix
from rkruntime.daemon.strictjson import MAX_DEPTH, BadJson, TooDeep
from rkruntime.prompts import Prompts
from tests.daemon_server import Service, served
from tests.fake_engine import FakeEngine

SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}


@pytest.fixture(scope="module")
def fake(tiny_bundles: Mapping[str, Path]) -> Iterator[Service]:
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        yield running


def nest(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def call(arguments: Any) -> list[dict[str, Any]]:
    function = {"name": "weather", "arguments": arguments}
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "bad arguments"},
        {"role": "user", "content": "say Go on"},
    ]


def places(inner: Any) -> dict[str, dict[str, Any]]:
    """Where a request can hold any JSON."""
    return {
        "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": inner}}]},
        "tool_choice": {"tool_choice": inner},
        "chat_template_kwargs": {"chat_template_kwargs": {"z": inner}},
        "arguments": {"messages": call(inner)},
        "arguments as a string": {"messages": call(json.dumps(inner))},
        "content": {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "more": inner}]}]},
        "a schema": {"response_format": {"type": "json_schema", "json_schema": {"schema": inner}}},
        "a schema as a string": {"guided_json": json.dumps(inner)},
        "metadata": {"metadata": inner},
        "stop": {"stop": inner},
        "a field nobody knows": {"x": inner},
    }


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 480, 5000])
@pytest.mark.parametrize("place", places({}))
def test_deep_nesting_is_refused_wherever_it_is(fake: Service, place: str, depth: int) -> None:
    before = len(fake.engine.jobs)
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], **places("NEST")[place]})
    quoted = json.dumps(nest(depth))[1:-1]  # for the places where it is a string
    raw = body.replace('\\"NEST\\"', quoted).replace('"NEST"', nest(depth))
    reply = fake.request("POST", "/v1/chat/completions", raw.encode())
    assert reply.status == 400
    assert "nested too deeply" in reply.error["message"]
    assert len(fake.engine.jobs) == before


def test_nesting_that_clients_use_is_taken(fake: Service) -> None:
    for name, fields in places(json.loads(nest(20))).items():
        expected = 400 if name in ("tool_choice", "stop") else 200
        if "schema" not in name:
            assert fake.chat(**fields).status == expected, name


@settings(max_examples=30, deadline=None)
@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_strict_json_reads_what_json_reads(value: Any) -> None:
    assert strictjson.parse(json.dumps(value)) == json.loads(
        json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NaN", "NaN is no number"),
        ("[-Infinity]", "no number"),
        ("1e999", "too large"),
        ("9" * 5000, "5000 digits"),
        ("1." + "1" * 5000, "too long"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "not JSON"),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_json_that_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadJson, match=words):
        strictjson.parse(text)


def test_the_limit_of_depth_is_exact() -> None:
    strictjson.parse(nest(MAX_DEPTH))
    with pytest.raises(TooDeep):
        strictjson.parse(nest(MAX_DEPTH + 1))
    assert strictjson.parse(r'["\ud800x", "\ud83d\ude00"]') == ["?x", "😀"]


TOLD: dict[str, dict[str, Any]] = {
    "json_schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    "json_object with schema": {"response_format": {"type": "json_object", "schema": SCHEMA}},
    "schema beside json_schema": {"response_format": {"type": "json_schema", "schema": SCHEMA}},
    "TGI's": {"response_format": {"type": "json", "value": SCHEMA}},
    "a string": {"response_format": {"type": "json_object", "schema": json.dumps(SCHEMA)}},
    "guided_json": {"guided_json": SCHEMA},
    "guided_json as a string": {"guided_json": json.dumps(SCHEMA)},
    "json_schema at the top": {"json_schema": SCHEMA},
    "LM Studio's": {"json_schema": {"name": "x", "schema": SCHEMA}},
    "response_schema": {"response_schema": SCHEMA},
    "Ollama's": {"format": SCHEMA},
    "structured_outputs": {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
    "text.format": {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
    "twice the same": {"guided_json": SCHEMA, "response_format": {"type": "json_object", "schema": SCHEMA}},
}  # fmt: skip


@pytest.mark.parametrize("place", TOLD)
def test_a_schema_counts_wherever_it_stands(fake: Service, place: str) -> None:
    format = formats.wanted(Fields(TOLD[place]))
    assert format is not None and format.schema == SCHEMA
    if place == "json_object with schema":
        assert fake.chat('say {"answer": 5}', **TOLD[place]).status == 200
        reply = fake.chat('say {"colour": 5}', **TOLD[place])
        assert (reply.status, reply.error["code"]) == (422, "json_refused")
        assert reply.error["param"] == format.field


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_object", "schema": {}}},
        {"format": "json"},
        {"structured_outputs": {"json_object": True}},
    ],
)
def test_any_object(fields: Any) -> None:
    format = formats.wanted(Fields(fields))
    assert format is not None and format.schema is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": {}},
        {"grammar": "", "guided_choice": [], "format": "", "json_schema": None, "guided_json": ""},
        {"text": "x", "structured_outputs": {"regex": None}},
    ],
)
def test_no_format(fields: Any) -> None:
    assert formats.wanted(Fields(fields)) is None


UNMET: dict[str, dict[str, Any]] = {
    **{name: {name: "x"} for name in formats.UNSUPPORTED},
    "extra_body": {"extra_body": {"guided_json": SCHEMA}},
    "structured_outputs.regex": {"structured_outputs": {"regex": "a+"}},
    "structured_outputs.choice": {"structured_outputs": {"choice": ["a", "b"]}},
    "guided_json": {"guided_json": "not JSON"},
    "json_schema": {"json_schema": [1]},
    "format": {"format": "xml"},
    "text.format": {"text": {"format": {"type": "grammar"}}},
    "response_schema": {"response_schema": {"enum": ["x" * formats.MAX_SCHEMA]}},
    "response_format": {"response_format": {"schema": SCHEMA}},
}
TWICE: list[tuple[str, dict[str, Any]]] = [
    ("response_format", {"response_format": {"type": "text", "schema": SCHEMA}}),
    ("response_format", {"response_format": {"type": "json_schema", "schema": SCHEMA, "json_schema": {"schema": {}}}}),
    ("guided_json", {"guided_json": SCHEMA, "response_format": {"type": "json_object"}}),
]


@pytest.mark.parametrize(("param", "fields"), [*UNMET.items(), *TWICE])
def test_formats_that_cannot_be_had_are_refused_by_name(fake: Service, param: str, fields: dict[str, Any]) -> None:
    before = len(fake.engine.jobs)
    for reply in (fake.chat(**fields), fake.complete("say x", **fields)):
        assert (reply.status, reply.error["param"]) == (400, param)
        assert len(reply.error["message"]) > 20
    assert len(fake.engine.jobs) == before


@pytest.mark.parametrize("place", TOLD)
def test_completions_have_no_format(fake: Service, place: str) -> None:
    reply = fake.complete("say x", **TOLD[place])
    assert reply.status == 400
    assert "/v1/chat/completions" in reply.error["message"]


@pytest.mark.parametrize(
    ("given_", "passed"),
    [
        ('{"city": "Kiel"}', {"city": "Kiel"}),
        ("", {}),
        ({"city": "Kiel"}, {"city": "Kiel"}),
        ('{"city": "Ki', '{"city": "Ki'),
        ("{'city': 'Kiel'}", "{'city': 'Kiel'}"),
        ("Kiel", "Kiel"),
        ('["Kiel"]', '["Kiel"]'),
        ('{"a": NaN}', '{"a": NaN}'),
        ('{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
        ('{"a": "\\ud800"}', {"a": "?"}),
    ],
)
def test_a_call_is_replayed_as_the_model_wrote_it(fake: Service, given_: Any, passed: Any) -> None:
    assert fake.chat(messages=call(given_)).status == 200
    assert fake.engine.jobs[-1].messages[1]["tool_calls"][0]["function"]["arguments"] == passed


def test_names_that_are_the_servers_are_refused_by_name(fake: Service) -> None:
    globals_ = set(templates._environment().globals)
    assert globals_ <= conversation_rules.RESERVED
    for name in sorted(conversation_rules.RESERVED):
        reply = fake.chat(chat_template_kwargs={name: 1, "mine": 2})
        assert (reply.status, reply.error["param"]) == (400, "chat_template_kwargs")
        assert repr(name) in reply.error["message"]
    assert fake.chat(chat_template_kwargs={"enable_thinking": False}).status == 200


def test_models_say_how_json_comes_about(fake: Service) -> None:
    for model in fake.get("/v1/models").json["data"]:
        assert model["structured_output"] == {
            "json_object": "prompted", "json_schema": "prompted", "checked": True, "constrained": False,
        }  # fmt: skip


# Special tokens in pieces.


@pytest.fixture(scope="module")
def prompts(tiny_bundles: Mapping[str, Path]) -> Iterator[Prompts]:
    with Prompts(bundles.read(tiny_bundles["w8a8"])) as found:
        yield found


SIDE_BY_SIDE = (
    "{% for m in messages %}{% for k, v in m.items() if v is string %}{% if k != 'role' %}{{ v | trim }}{% endif %}"
    "{% endfor %}{% for c in m.tool_calls or [] %}{{ c.name }}{{ c.arguments }}{% endfor %}{% endfor %}"
    "{{ extra }}<|im_start|>assistant"
)


@pytest.mark.parametrize("special", ["<|im_end|>", "<|im_start|>"])
def test_pieces_of_a_special_token_do_not_join(prompts: Prompts, monkeypatch: pytest.MonkeyPatch, special: str) -> None:
    template = templates.ChatTemplate(SIDE_BY_SIDE, {})
    monkeypatch.setattr(Prompts, "template", template)
    assert prompts._vocabulary is not None
    (start,) = prompts._vocabulary.tokenise("<|im_start|>")
    (end,) = prompts._vocabulary.tokenise("<|im_end|>")
    for cut, space in itertools.product(range(len(special) + 1), ("", " ", "\n")):
        one, other = special[:cut] + space, space + special[cut:]
        conversations: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
            ([{"role": "user", "content": one}, {"role": "user", "content": other}], {}),
            ([{"role": "tool", "name": one.strip(), "content": other}], {}),
            ([{"role": "user", "content": "", "tool_calls": [{"name": one.strip(), "arguments": other.strip()}]}], {}),
            ([{"role": "user", "content": one}], {"extra": other.strip()}),
        ]
        for messages, variables in conversations:
            ids = prompts.chat(messages, variables)
            assert isinstance(ids, list)
            assert (ids.count(start), ids.count(end)) == (1, 0), (messages, variables)
            shown = prompts._vocabulary.detokenise(ids).decode()
            assert shown.endswith("<|im_start|>assistant")
            assert "\ufdd0" not in shown


@settings(max_examples=50, deadline=None)
@given(st.text("<|im_endstar>/ \n>\ufdd0\ufdd11", max_size=40))
def test_a_text_reaches_the_model_as_it_was_written(tiny_bundles: Mapping[str, Path], content: str) -> None:
    with Prompts(bundles.read(tiny_bundles["w8a8"])) as prompts:
        ids = prompts.chat([{"role": "user", "content": f"x{content}x"}])
        assert prompts._vocabulary is not None and isinstance(ids, list)
        assert f"x{content}x".encode() in prompts._vocabulary.detokenise(ids)


# Answers that can still become JSON.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(VALUES, st.sampled_from([None, 2]), st.booleans(), st.sampled_from(["", " \n", "```json\n"]), st.data())
def test_json_is_followed_wherever_it_is_split(
    value: Any, indent: int | None, ascii_: bool, before: str, data: st.DataObject
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    prefix, rest = JsonPrefix(), before + text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        prefix.feed(rest[:size])
        rest = rest[size:]
        assert prefix.problem is None
    assert prefix.whole == isinstance(value, (dict, list, str))
    prefix.feed("\n```")
    assert (prefix.text, prefix.whole, prefix.problem) == (text, True, None)


@given(st.text('{}[]",:0123456789.eE+-truefalsn\\u \n', max_size=30))
def test_what_is_json_is_never_given_up(text: str) -> None:
    prefix = JsonPrefix()
    prefix.feed(text + "\n")
    try:
        value = json.loads(text)
    except ValueError:
        assert not prefix.whole or prefix.text != text.strip()
    else:
        assert value == json.loads(prefix.text)
        assert prefix.whole and prefix.problem is None


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("Sure! {", 1), ('{"a" 1', 6), ("{a", 2), ('{"a":1,}', 8), ("[1,]", 4), ("[1 2", 4), ("[01", 3), ("5x", 2),
        ("-a", 2), ("1.e", 3), ("trux", 4), ('"\n"', 2), ('"\\x', 3), ('"\\u12g', 6), ("{]", 2), ("[}", 2), ("}", 1),
        ("```python\n", 10), ("`x", 2), ("[" * 65, 65), ("{'a'", 2), ("NaN", 1),
    ],
)  # fmt: skip
def test_an_answer_is_given_up_at_once(text: str, at: int) -> None:
    for size in (1, len(text) + 1):
        prefix = JsonPrefix()
        for start in range(0, len(text), size):
            prefix.feed(text[start : start + size])
        assert prefix.problem is not None, text
        assert prefix.problem.endswith(f"at character {at}"), prefix.problem


def test_an_object_begins_as_one() -> None:
    for text, good in (("[", False), ('"', False), ("5", False), (" {", True)):
        prefix = JsonPrefix(is_object=True)
        prefix.feed(text)
        assert (prefix.problem is None) == good
