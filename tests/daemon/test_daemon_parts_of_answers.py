"""Thoughts and calls out of answers: the same however an answer is cut, and nothing of it lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rk3588.templates import ChatTemplate
from rkruntime.daemon.answer_parts import Part, PartReader, WholeAnswer
from rkruntime.daemon.api.dialect import AnswerRequest, Usage
from rkruntime.daemon.api.openai import ChatReply
from rkruntime.daemon.jobs import EngineSettings, Job
from rkruntime.daemon.jsonformat import Checker
from rkruntime.daemon.reading import Reading
from rkruntime.daemon.template_facts import TemplateFacts
from rkruntime.daemon.toolcalls import CALL_FORMATS, CallFormat, format_of
from rkruntime.daemon.tooluse import CallRules
from rkruntime.thoughts import KNOWN_TAGS, Tags, Thinking, opened_by
from tests import family_templates as families
from tests.fake_engine import FakeAnswer, FakeEngine

FORMATS = {form.name: form for form in CALL_FORMATS}
HERMES, LLAMA, PHI, DEEPSEEK = FORMATS["hermes"], FORMATS["llama-3"], FORMATS["phi-4"], FORMATS["deepseek"]
MISTRAL, MISTRAL_ARGS = FORMATS["mistral"], FORMATS["mistral-args"]
NAMES = frozenset({"weather", "light"})
THINK = KNOWN_TAGS[0]
Seen = Union[str, tuple[str, str], tuple[str, Any]]


def read(
    text: str,
    form: CallFormat | None = HERMES,
    *,
    cuts: Sequence[int] = (),
    tags: Tags | None = THINK,
    opened: bool = False,
    stops: Sequence[str] = (),
) -> list[Seen]:
    """Texts, ("thought", …) and (name, arguments), those that follow their own kind joined."""
    reader = PartReader(stops, tags, opened, form, NAMES)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    found: list[Part] = []
    for start, end in zip(edges, edges[1:]):
        found += reader.feed(text[start:end])
        if reader.stopped:
            return joined(found)
    return joined([*found, *reader.end()])


def joined(parts: Sequence[Part]) -> list[Seen]:
    seen: list[list[Any]] = []
    for part in parts:
        kind = "call" if part.call else "thought" if part.thought else "text"
        if seen and kind != "call" and seen[-1][0] == kind:
            seen[-1][1].append(part)
        else:
            seen.append([kind, [part]])
    found: list[Seen] = []
    for kind, same in seen:
        whole = WholeAnswer.of(same)
        if kind == "call":
            found += [(call.name, call.arguments) for call in whole.calls]
        else:
            found.append(("thought", whole.thought) if kind == "thought" else whole.text)
    return found


def call(name: str = "weather", **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


PIECES = st.sampled_from([
    "<think>", "</think>", "<think", "</thi", " ", "\n", "\n" * 70, "a", "ENDE", "EN", "{", "[", "]", "}", '"', ";",
    "```", "<tool_call>", "</tool_call>", "<tool_", call(), call(place="</tool_call>"), call("none"),
    f"[{call()}, {call()}]",
    '{"name": "light", "parameters": {"on": true}}', "<|python_tag|>", "light.call(", 'on="yes"', ")", "functools[",
    "<|tool_call|>", "<|/tool_call|>", "[TOOL_CALLS]", "weather[ARGS]", "[CALL_ID]x[ARGS]", '{"place": "Köln"}',
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function<｜tool▁sep｜>light\n```json\n", "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
])  # fmt: skip


@settings(max_examples=250, deadline=None)
@given(
    st.lists(PIECES, max_size=14).map("".join),
    st.sampled_from([None, *CALL_FORMATS]),
    st.lists(st.integers(0, 10**6), max_size=40),
    st.booleans(),
    st.sampled_from([(), ("ENDE",), ("\n", "E")]),
)
def test_the_same_however_it_is_cut(
    text: str, form: CallFormat | None, cuts: list[int], opened: bool, stops: tuple[str, ...]
) -> None:
    whole = read(text, form, opened=opened, stops=stops)
    assert read(text, form, cuts=cuts, opened=opened, stops=stops) == whole
    assert read(text, form, cuts=range(len(text)), opened=opened, stops=stops) == whole


class OneAnswer(FakeEngine):
    """Gives the pieces it was made with."""

    def __init__(self, pieces: list[str]) -> None:
        super().__init__(EngineSettings(bundle=Path("none")))
        self.pieces = pieces

    async def submit(self, job: Job) -> FakeAnswer:  # noqa: ARG002
        return FakeAnswer(self.pieces, 1 << 30, 1)


def message(pieces: list[str], form: CallFormat, stream: bool) -> Any:
    """What OpenAI's clients make of an answer: its message, without the ids of calls, and why it ended."""
    rules = CallRules(form, NAMES)
    request = AnswerRequest(Job(), "m", stream, False, ("ENDE",), None, (), THINK, rules)

    async def answer() -> Any:
        reading, reply = Reading(OneAnswer(pieces), request, Checker()), ChatReply("m")
        await reading.start()
        parts = [part async for part in reading.parts()]
        if not stream:
            return reply.whole(WholeAnswer.of(parts), reading.finish_reason, Usage(1, 1))["choices"][0]
        raw = b"".join([reply.begin(), *map(reply.part, parts), reply.end(reading.finish_reason, None)])
        events = [json.loads(line[6:])["choices"][0] for line in raw.decode().split("\n\n")[:-2]]
        found: dict[str, Any] = {"message": {"role": "assistant"}, "finish_reason": events[-1]["finish_reason"]}
        for event in events:
            for name in ("content", "reasoning_content", "tool_calls"):
                if name in event["delta"]:
                    more = event["delta"][name]
                    found["message"][name] = found["message"][name] + more if name in found["message"] else more
        return found

    choice = asyncio.run(answer())
    told = choice["message"]
    told["content"] = told["content"] or ""
    for at, each in enumerate(told.get("tool_calls", ())):
        assert each.pop("index", at) == at and each.pop("id")
    return told, choice["finish_reason"]


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=14), st.sampled_from(CALL_FORMATS))
def test_a_stream_says_what_the_whole_answer_says(pieces: list[str], form: CallFormat) -> None:
    whole = message(["".join(pieces)], form, stream=False)
    assert message(pieces, form, stream=True) == whole
    assert message(list("".join(pieces)), form, stream=True) == whole


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join), st.sampled_from(CALL_FORMATS))
def test_nothing_is_lost_where_there_is_no_call(text: str, form: CallFormat) -> None:
    found = read(text, form, tags=None)
    if all(isinstance(each, str) for each in found):
        assert "".join(map(str, found)) == text


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nOne.\n</think>\n\nTwo.", False, [("thought", "One."), "Two."]),
        (" \n<think>One.</think>Two.", False, [("thought", "One."), "Two."]),
        ("<think>\n\n</think>\n\nTwo.", False, ["Two."]),
        ("One.\n</think>\n\nTwo.", True, [("thought", "One."), "Two."]),
        ("\n<think>\nOne.</think>Two.", True, [("thought", "One."), "Two."]),
        ("<think>One", False, [("thought", "One")]),
        ("One </thi", True, [("thought", "One </thi")]),
        ("Tags: <think>x</think>", False, ["Tags: <think>x</think>"]),
        ("One.</think>Two.", False, ["One.</think>Two."]),
        ("<think>a</think>b<think>c</think>", False, [("thought", "a"), "b<think>c</think>"]),
        ("", True, []),
    ],
)
def test_thoughts(text: str, opened: bool, expected: list[Seen]) -> None:
    assert read(text, None, opened=opened) == expected


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (HERMES, f"Wait.\n<tool_call>\n{call()}\n</tool_call>", ["Wait.", ("weather", {})]),
        (HERMES, f"<tool_call>{call(a=1)}</tool_call>\n<tool_call>{call('light')}</tool_call>\n",
         [("weather", {"a": 1}), ("light", {})]),
        (HERMES, f"<tool_call>\n```json\n{call()}\n```\n</tool_call>Done", [("weather", {}), "Done"]),
        (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "light"}</tool_call>', [("light", {"a": 1})]),
        (HERMES, f"<tool_call>{call()}", [("weather", {})]),  # small models forget to close
        (HERMES, call(a=1), [("weather", {"a": 1})]),  # as Qwen2.5-Coder writes them
        (HERMES, f"```json\n{call(a=1)}\n```", [("weather", {"a": 1})]),
        (HERMES, f"```json\n{call()}\n```\nDone `x`", [("weather", {}), "Done `x`"]),
        (HERMES, f"{call()} `x`", [("weather", {}), "`x`"]),
        (HERMES, f"<tool_call>\n<tool_call>{call()}</tool_call>", ["<tool_call>\n", ("weather", {})]),
        (HERMES, f"<tool_call>{call()}\n{call('light')}</tool_call>", [("weather", {}), ("light", {})]),
        (HERMES, f"<tool_call>{call(a='</tool_call>')}</tool_call>", [("weather", {"a": "</tool_call>"})]),
        (HERMES, '<tool_call>{"name": "light", "arguments": "{\\"on\\": 1}"}</tool_call>', [("light", {"on": 1})]),
        (HERMES, '<think>x</think><tool_call>{"name": "light"}</tool_call>', [("thought", "x"), ("light", {})]),
        (LLAMA, '\n{"name": "light", "parameters": {"on": 1}}', [("light", {"on": 1})]),
        (LLAMA, '{"name": "light", "parameters": {}}; {"name": "weather", "parameters": {}}',
         [("light", {}), ("weather", {})]),
        (LLAMA, '{"type": "function", "function": {"name": "light", "parameters": {}}}', [("light", {})]),
        (LLAMA, '<|python_tag|>{"name": "light", "parameters": {}}', [("light", {})]),
        (LLAMA, '<|python_tag|>light.call(on="a \\"b\\"", x="1")', [("light", {"on": 'a "b"', "x": "1"})]),
        (PHI, f"<|tool_call|>[{call()}, {call('light')}]<|/tool_call|>", [("weather", {}), ("light", {})]),
        (PHI, f"functools[{call()}]", [("weather", {})]),
        (MISTRAL, f"Well. [TOOL_CALLS][{call()}]", ["Well.", ("weather", {})]),
        (MISTRAL_ARGS, '[TOOL_CALLS]light[ARGS]{"a": 1}[TOOL_CALLS]weather[CALL_ID]x[ARGS]{}',
         [("light", {"a": 1}), ("weather", {})]),
        (MISTRAL_ARGS, 'Well. [TOOL_CALLS]light{"a": 1}', ["Well.", ("light", {"a": 1})]),
        (DEEPSEEK, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>light\n```json\n{}\n```"
         "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{}\n```<｜tool▁call▁end｜>"
         "<｜tool▁calls▁end｜>", [("light", {}), ("weather", {})]),
    ],
)  # fmt: skip
def test_calls(form: CallFormat, text: str, expected: list[Seen]) -> None:
    assert read(text, form) == expected


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, "Write <tool_call> to call."),
        (HERMES, f"<tool_call>{call('format_disk')}</tool_call>"),  # nobody offered that
        (HERMES, '<tool_call>{"name": "light", "arguments": [1]}</tool_call>'),
        (HERMES, '<tool_call>{"name": "light", "name": "weather"}</tool_call>'),
        (HERMES, "<tool_call>{'name': 'light'}</tool_call>"),
        (HERMES, f'<tool_call>{{"name": "light", "arguments": {"[" * 70}'),
        (HERMES, '<tool_call>{"name": "light", "arguments": {"on": tr'),  # cut off
        (HERMES, '<tool_call>{"name": "light", "arguments": {"on": NaN}}</tool_call>'),
        (HERMES, f"<tool_call>[{call()}, 1]</tool_call>"),
        (HERMES, f"So: {call()}"),
        (HERMES, '{"name": "light"}'),
        (HERMES, "```python\nprint(1)\n```"),
        (HERMES, "`weather` is a function"),
        (LLAMA, '{"name": "light", "parameters": {}, "because": 1}'),
        (LLAMA, 'The call: {"name": "light", "parameters": {}}'),
        (LLAMA, "<|python_tag|>print(1)\nprint(2)"),
        (LLAMA, "<|python_tag|>light.call(on=os.system('x'))"),
        (LLAMA, '{"answer": 42}'),
        (PHI, "import functools\nfunctools.reduce"),
        (PHI, "functools[0]"),
        (MISTRAL, "[TOOL_CALLS] are tokens"),
        (MISTRAL_ARGS, "[TOOL_CALLS]light"),
        (MISTRAL_ARGS, "[TOOL_CALLS]format_disk[ARGS]{}"),
    ],
)
def test_what_looks_like_a_call_and_is_none(form: CallFormat, text: str) -> None:
    assert read(text, form) == read(text, form, cuts=range(len(text))) == [text]


def test_stop_strings_are_looked_for_in_the_text_alone() -> None:
    text = f"<think>a STOP b</think>One<tool_call>{call(a='STOP')}</tool_call>Two STOP three"
    expected = [("thought", "a STOP b"), "One", ("weather", {"a": "STOP"}), "Two "]
    assert read(text, stops=["STOP"]) == read(text, stops=["STOP"], cuts=range(len(text))) == expected


def test_the_format_is_found_by_the_template() -> None:
    found = {name: format_of(families.source(name)) for name in families.templates()}
    assert {name: form.name for name, form in found.items() if form} == {
        "qwen2.5": "hermes", "qwen3": "hermes", "smollm3": "hermes", "phi-4-mini": "phi-4", "mistral-nemo": "mistral",
        "own-llama-3.2": "llama-3", "deepseek-r1-distill-qwen": "deepseek",
    }  # fmt: skip
    assert format_of(families.source("qwen2.5") + "<function=x>") is None
    facts = {name: TemplateFacts.of(families.source(name)) for name in families.templates()}
    assert {name for name, fact in facts.items() if fact.takes_tools} == {
        "qwen2.5", "qwen3", "smollm3", "phi-4-mini", "mistral-nemo", "own-llama-3.2",
    }  # fmt: skip
    assert {name for name, fact in facts.items() if fact.one_call} == {"own-llama-3.2"}
    assert {name for name, fact in facts.items() if fact.short_ids} == {"mistral-nemo"}
    assert TemplateFacts.of("{% if tool_call.id|length < 9 %}").short_ids
    assert {name for name, fact in facts.items() if fact.thinking.variables} == {"qwen3", "smollm3"}


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "mistral-nemo", "own-llama-3.2", "deepseek-r1-distill-qwen"])
def test_a_call_as_the_template_itself_writes_it(name: str) -> None:
    """What a model was shown in training is what is read."""
    source = families.source(name)
    template = ChatTemplate(source, families.TOKENS, name)
    arguments = {"place": 'Köln "Süd"', "days": 3, "deep": {"list": [1, None]}}
    function = {"name": "weather", "arguments": arguments}
    said = {"role": "assistant", "content": "", "tool_calls": [{**families.CALL, "function": function}]}
    before = template.conversation(families.CALLED[:1], add_generation_prompt=False).text
    text = template.conversation([families.CALLED[0], said], add_generation_prompt=False).text.removeprefix(before)
    form = format_of(source)
    assert form is not None
    at = max((text.find(opens) for opens in form.opens), default=-1)
    answer = text[at if at >= 0 else text.index("{") :].replace("</s>", "")
    for end in ("<|im_end|>", "<|eot_id|>", "<｜end▁of▁sentence｜>"):
        answer = answer.partition(end)[0]
    assert read(answer, form)[:1] == [("weather", arguments)], answer


def test_the_tag_at_the_end_of_a_prompt() -> None:
    assert opened_by("<｜Assistant｜><think>\n") == "<think>"
    assert opened_by("<think>\n\n</think>\n\n") == opened_by("<think> x") == opened_by("") == ""


def test_a_wish_reaches_the_switch_that_there_is() -> None:
    qwen = Thinking.of(families.source("qwen3"))
    assert qwen.switch(False) == qwen.switch("none") == {"enable_thinking": False}
    assert qwen.switch("low") == {"enable_thinking": True}
    assert Thinking.of("{{ reasoning_effort }}").switch("low") == {"reasoning_effort": "low"}
    assert Thinking.of("{{ reasoning_effort }}").switch(True) == {}
    assert Thinking.of("thinking {{ 'thinking' }} {{ m.thinking }} {# {{ thinking }} #}").variables == ()
    assert Thinking.of("{% if thinking %}x[/THINK]").tags.open == "[THINK]"


@pytest.mark.parametrize("unit", ["<tool_call>", '<tool_call>{"', "{", " ", '<tool_call>{"name": "light"}', "a"])
@pytest.mark.parametrize("form", [HERMES, LLAMA, DEEPSEEK], ids=lambda form: form.name)
def test_time_is_linear_in_the_answer(form: CallFormat, unit: str) -> None:
    def seconds(count: int) -> float:
        reader = PartReader((), THINK, True, form, NAMES)
        text = unit * (count // len(unit))
        began = time.process_time()
        for at in range(0, len(text), 4):
            reader.feed(text[at : at + 4])
        reader.end()
        return time.process_time() - began

    assert seconds(48_000) < 40 * max(seconds(3_000), 0.001)  # the square would be 256


@pytest.mark.parametrize("text", ["{%" * 5000, "{{ '" * 5000, '{{ "\\"' * 5000, "{#" * 5000])
def test_a_hostile_template_is_read_in_linear_time(text: str) -> None:
    began = time.process_time()
    TemplateFacts.of(text * 10)
    assert time.process_time() - began < 2
