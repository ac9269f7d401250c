"""Chat templates in the parts that RKLLM 1.2 puts around a text, against what the whole template makes."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import gguf
import pytest

from rk3588 import quant
from rk3588.templates import ChatTemplate
from rkconvert import native_template
from rkconvert.build import convert
from rkconvert.native_template import NativeTemplate, find, found_in
from rkconvert.sources.opening import open_source
from tests import family_templates as families
from tests import models
from tests.plans import make_plan

SILENT = {"enable_thinking": False}
WITH_TOOLS = {"qwen2.5", "qwen3"}
QUESTION, ANSWER, NEXT = "What is 1 + 1?", "It is 2.", "And 2 + 2?"
TWICE = "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[0].content }}"


def parts(name: str) -> NativeTemplate:
    found = find(families.source(name), families.TOKENS)
    assert found.refused is None
    return found


def rendered(name: str, *texts: str, system: str | None = None, **variables: object) -> str:
    template = ChatTemplate(families.source(name), families.TOKENS, name)
    said = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts)]
    first = [] if system is None else [{"role": "system", "content": system}]
    day = datetime(2024, 7, 26)
    return template.render([*first, *said], {**SILENT, **variables, "strftime_now": day.strftime})


@pytest.mark.parametrize("name", families.templates())
def test_parts_make_what_the_template_makes(name: str) -> None:
    found = parts(name)
    assert found.system + found.prefix + QUESTION + found.postfix == rendered(name, QUESTION)
    later = found.between + found.prefix + NEXT + found.postfix
    assert rendered(name, QUESTION, ANSWER, NEXT).endswith(ANSWER + later)


def test_where_a_model_thinks_its_answer_begins_inside_the_thinking() -> None:
    thinking = {name: parts(name).thinking for name in families.templates()}
    assert {name for name, text in thinking.items() if text} == {"qwen3"}
    assert thinking["qwen3"] == "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert parts("qwen3").postfix.endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("name", families.templates())
def test_tools_stand_where_the_template_puts_them(name: str) -> None:
    found = parts(name)
    assert bool(found.tools) == (name in WITH_TOOLS)
    if found.tools:
        tools = [families.TOOL, {**families.TOOL, "type": "other"}]
        before, between, apart, after = found.tools
        listed = apart.join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        text = before + "Be brief." + between + listed + after + found.prefix + QUESTION + found.postfix
        assert text == rendered(name, QUESTION, system="Be brief.", tools=tools)


def test_a_date_is_always_the_same() -> None:
    assert "26 Jul 2024" in parts("own-llama-3.2").system


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (TWICE, "the chat template writes a user's text 2 times, not once"),
        ("nothing", "the chat template writes a user's text 0 times, not once"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages | length }}",
            "the chat template writes a user's turn otherwise where others follow or stand before it",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "the chat template writes an answer 0 times, not once",
        ),
        ("{{ raise_exception('never') }}", "the chat template refuses this conversation: never"),
        ("{% for m in messages %}{{ m.content ~ 'x' * 2000000 }}{% endfor %}", "the chat template makes more"),
    ],
)
def test_what_has_no_parts_is_refused_by_name(template: str, why: str) -> None:
    assert (find(template, {}).refused or "").startswith(why)


@pytest.mark.parametrize(
    "template",
    ["{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 'x' * 3000000000 }}"],
)
def test_one_that_takes_too_much_ends_its_child_alone(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(native_template, "_CPU_S", 1)
    assert found_in(template, None, None).refused


def test_a_child_that_is_lost_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_template, "_WALL_S", 0.01)
    assert found_in("anything else", None, None).refused == "the chat template takes too long, or too much memory"


def converted(folder: Path, template: str) -> tuple[dict[str, object], tuple[str, ...]]:
    """The chat keys of an artifact, and what its plan notes."""
    model = models.tiny_llama(folder / "source")
    (model / "chat_template.jinja").write_text(template)
    source = open_source(model)
    plan = make_plan(source, "tiny", folder, [quant.scheme("fp16")])
    (made,) = convert(plan)
    fields = gguf.GGUFReader(made / "model.sim.gguf").fields
    return {name[11:]: f.contents() for name, f in fields.items() if name.startswith("rksim.chat.")}, plan.notes


def test_an_artifact_holds_the_parts(tmp_path: Path) -> None:
    found, notes = converted(tmp_path, models.CHATML)
    assert found == {
        "system": "", "prefix": "<|im_start|>user\n", "postfix": "<|im_end|>\n<|im_start|>assistant\n",
        "between": "<|im_end|>\n",
    }  # fmt: skip
    assert not any("native" in note for note in notes)


def test_a_template_without_parts_is_converted_and_told_of(tmp_path: Path) -> None:
    found, notes = converted(tmp_path, TWICE)
    assert found == {"refused": "the chat template writes a user's text 2 times, not once"}
    assert [note for note in notes if "it cannot be a native template" in note]
