"""Each family's chat template as published: rendered as transformers does it, and with what it has no place for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rk3588 import bundle as bundles
from rk3588.errors import BundleError, UsageError
from rk3588.templates import NO_SYSTEM_ROLE, NO_TOOLS, ChatTemplate, Source, folded
from rkruntime.commands import options
from rkruntime.commands.run import run
from rkruntime.prompts import Prompts
from tests import family_templates as families
from tests.daemon.test_daemon_worker import renderer

GOLDEN = families.golden()
CASES = [(name, case) for name in families.templates() for case in families.CONVERSATIONS]
KNOW_TOOLS = {"qwen2.5", "qwen3", "mistral-nemo", "own-llama-3.2"}


def template(name: str) -> ChatTemplate:
    return ChatTemplate(families.source(name), families.TOKENS, name)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_as_transformers_renders_it(name: str, case: str) -> None:
    messages, variables = families.CONVERSATIONS[case]
    for prompt in (True, False):
        wanted = GOLDEN[name][case if prompt else f"{case}, to its end"]
        if wanted is None:
            with pytest.raises(BundleError, match="refuses this conversation"):
                template(name).render(messages, variables, add_generation_prompt=prompt)
        else:
            shown = template(name).render(messages, variables, add_generation_prompt=prompt)
            assert families.without_date(shown) == wanted


@pytest.mark.parametrize(("name", "case"), CASES)
def test_what_has_a_place_stays_in_it(name: str, case: str) -> None:
    messages, variables = families.CONVERSATIONS[case]
    wanted = GOLDEN[name][case]
    if wanted is not None and not (variables.get("tools") and name in ("smollm3", "phi-4-mini")):
        found = template(name).conversation(messages, variables)
        assert families.without_date(found.text) == wanted
        blind = "tools" in variables and name not in KNOW_TOOLS
        assert found.notes == ((NO_TOOLS,) if blind else ())


def test_the_goldens_tell_the_switches_apart() -> None:
    """Else a template that ignores them would pass."""
    for name in ("qwen3", "smollm3"):
        assert GOLDEN[name]["thinking"] != GOLDEN[name]["no thinking"]
    assert GOLDEN["smollm3"]["no thinking, by the system prompt"] != GOLDEN["smollm3"]["a system prompt"]
    with_tools = {name for name in GOLDEN if "weather" in (GOLDEN[name]["tools"] or "")}
    assert with_tools == KNOW_TOOLS


def test_a_system_prompt_where_there_is_no_system_role() -> None:
    gemma = template("own-gemma-2")
    messages = [families.SYSTEM, *families.LONG]
    text, notes = gemma.conversation(messages)
    assert text == gemma.render([{"role": "user", "content": "Be brief.\n\nWhat is 1 + 1?"}, *families.LONG[1:]])
    assert notes == (NO_SYSTEM_ROLE,)
    assert gemma.conversation(families.LONG).notes == ()
    with pytest.raises(BundleError, match="own-gemma-2 has no system role: leave the system prompt out"):
        gemma.conversation(messages, system_role="refuse")
    assert gemma.conversation(families.LONG, system_role="refuse").text == gemma.render(families.LONG)


def test_one_that_is_left_out_without_a_word() -> None:
    silent = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}{% endif %}{% endfor %}", {}
    )
    assert silent.conversation([families.SYSTEM, *families.LONG]).text == "U:Be brief.\n\nWhat is 1 + 1?U:And 2 + 2?"


def test_a_template_that_refuses_everything_refuses_it_still() -> None:
    broken = ChatTemplate("{{ raise_exception('never') }}", {})
    with pytest.raises(BundleError, match="refuses this conversation: never"):
        broken.conversation([families.SYSTEM, *families.LONG])


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("su", ["s+u"]),
        ("ssu", ["s+s+u"]),
        ("suau", ["s+u", "a", "u"]),
        ("uasu", ["u", "a", "s+u"]),
        ("us", ["u+s"]),
        ("uas", ["u", "a", "s"]),
        ("s", ["s"]),
    ],
)
def test_where_a_system_prompt_is_put(roles: str, expected: list[str]) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    found = folded([{"role": names[role], "content": role} for role in roles])
    assert [str(message["content"]).replace("\n\n", "+") for message in found] == expected
    assert "system" not in [message["role"] for message in found]


def test_tools_reach_the_templates_that_know_them_by_another_name() -> None:
    tools = {"tools": [families.TOOL]}
    text, notes = template("smollm3").conversation([families.USER], tools)
    assert "<tools>\n{'type': 'function', 'function': {'name': 'weather'" in text and not notes
    text, notes = template("phi-4-mini").conversation([families.USER], tools)
    listed = json.dumps([families.TOOL["function"]], ensure_ascii=False)
    assert text.startswith(f"<|system|><|tool|>{listed}<|/tool|><|end|><|user|>") and not notes
    text, _ = template("phi-4-mini").conversation([families.SYSTEM, families.USER], tools)
    assert text.startswith(f"<|system|>Be brief.<|tool|>{listed}<|/tool|><|end|>")
    assert template("internlm2").conversation([families.USER], tools).notes == (NO_TOOLS,)


def test_arguments_of_a_call_as_a_template_wants_them() -> None:
    text, _ = template("deepseek-r1-distill-qwen").conversation(families.CALLED)
    assert text == GOLDEN["deepseek-r1-distill-qwen"]["a written call"]


def test_the_daemons_renderer_does_the_same() -> None:
    source = Source(families.source("own-gemma-2"), families.TOKENS, "own-gemma-2")
    messages = [families.SYSTEM, families.USER]
    with renderer() as found:
        assert found.render(source, messages, {}, "fold") == template("own-gemma-2").conversation(messages)
        with pytest.raises(BundleError, match="has no system role"):
            found.render(source, messages, {}, "refuse")


def test_prompts_say_it_once(tmp_path: Path, tiny_bundles: dict[str, Path]) -> None:
    told: list[str] = []
    file = tmp_path / "t.jinja"
    file.write_text(families.source("own-gemma-2") + "{{ enable_thinking }}")
    with Prompts(
        bundles.read(tiny_bundles["w8a8"]), file, variables={"enable_thinking": 7}, warn=told.append
    ) as prompts:
        for _ in range(3):
            prompts.chat([families.SYSTEM, families.USER])
        assert told == [NO_SYSTEM_ROLE]
        assert prompts.shown([families.SYSTEM, families.USER]).endswith("<end_of_turn>\n7")
        prompts.chat([families.USER], {"tools": [families.TOOL]})
    assert told == [NO_SYSTEM_ROLE, NO_TOOLS]


def test_run_tells_the_template_what_it_is_given(tmp_path: Path, tiny_bundles: dict[str, Path]) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages[0].content }}{{ raise_exception('thinking: ' ~ enable_thinking ~ mood) }}")
    arguments = [str(tiny_bundles["w8a8"]), "Hi", "--template", str(file), "--template-variable"]
    found = CliRunner().invoke(run, [*arguments, "enable_thinking=false", "--template-variable", "mood=good"])
    assert "refuses this conversation: thinking: Falsegood" in str(found.exception)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("enable_thinking", "expected NAME=VALUE, say enable_thinking=false"),
        ("=1", "expected NAME=VALUE"),
        ("a b=1", "expected NAME=VALUE"),
        ("messages=[]", "that name is the template's own"),
    ],
)
def test_variables_that_cannot_be_given(given: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        options.make_settings({"template_variables": (given,)})


def test_variables_are_json_or_texts() -> None:
    given = ("a=true", "b=[1]", "c=so so", 'd="1"', "e=", "f=x=y")
    found = options.make_settings({"template_variables": given}).template_variables
    assert found == {"a": True, "b": [1], "c": "so so", "d": "1", "e": "", "f": "x=y"}
