"""Chat templates in the sandbox: as transformers renders them, and nothing beyond a conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rk3588.bundle import Bundle
from rk3588.errors import BundleError
from rk3588.templates import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": None}
HELLO = [{"role": "user", "content": " Hi <b>&\n"}]
LONG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße, 你好"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "And now?"},
]

# In the styles of the templates that models are published with: (source, conversation, what it must give).
CASES: dict[str, tuple[str, list[dict[str, str]], str]] = {
    "chatml, whose system prompt has a default": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        HELLO,
        "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n Hi <b>&\n<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama 3, headers and trimmed contents": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        HELLO,
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi <b>&<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral, one block on many lines": (
        "{%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content'] %}\n"
        "    {%- set rest = messages[1:] %}\n{%- else %}\n    {%- set rest = messages %}\n{%- endif %}\n"
        "{{- bos_token }}\n{%- for message in rest %}\n"
        "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
        "        {{- raise_exception('roles must alternate') }}\n    {%- endif %}\n"
        "    {%- if message['role'] == 'user' %}\n"
        "        {{- '[INST] ' + (system + '\n\n' if loop.last and system is defined else '')"
        " + message['content'] + '[/INST]' }}\n"
        "    {%- else %}\n        {{- ' ' + message['content'] + eos_token }}\n    {%- endif %}\n{%- endfor %}\n",
        LONG,
        "<s>[INST] Grüße, 你好[/INST] Hello!</s>[INST] Be brief.\n\nAnd now?[/INST]",
    ),
    "trim_blocks and lstrip_blocks": (
        "  {% for m in messages %}\n  {% if m.role == 'user' %}\nU: {{ m.content }}\n  {% endif %}\n {% endfor %}\nend",
        LONG,
        "U: Grüße, 你好\nU: And now?\nend",
    ),
    "tojson, loop controls, namespace, generation": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{% generation %}{{ {'b': m.content, 'a': ns.n} | tojson }}{% endgeneration %}"
        "{% if ns.n == 2 %}{% break %}{% endif %}{% endfor %}{{ unk_token }}{{ tools }}",
        LONG,
        '{"b": "Grüße, 你好", "a": 1}{"b": "Hello!", "a": 2}None',
    ),
    "tojson indents and escapes nothing": (
        "{{ messages | tojson(indent=1) }}",
        HELLO,
        json.dumps(HELLO, indent=1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_published_styles(name: str) -> None:
    source, messages, wanted = CASES[name]
    assert ChatTemplate(source, TOKENS).render(messages) == wanted


@pytest.mark.parametrize("name", CASES)
def test_equal_to_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    theirs: Any = pytest.importorskip("transformers.utils.chat_template_utils")
    source, messages, _ = CASES[name]
    for prompt in (True, False):
        tokens = {key: text for key, text in TOKENS.items() if text}
        (rendered,), _indices = theirs.render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=prompt, **tokens
        )
        assert ChatTemplate(source, TOKENS).render(messages, add_generation_prompt=prompt) == rendered


def test_the_date() -> None:
    rendered = ChatTemplate("{{ strftime_now('%Y') }}", TOKENS).render(HELLO)
    assert rendered.isdecimal() and int(rendered) > 2023


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", "t.jinja is not a Jinja template that can be used"),
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
        ("{{ messages[0].content + 1 }}", "refuses this conversation"),
        ("{{ messages[5].content }}", "refuses this conversation"),
        ("{{ 1 / 0 }}", "refuses this conversation"),
        ("{{ ''.__class__.__mro__ }}", "may not"),
        ("{{ messages.append(1) }}", "may not"),
        ("{{ messages[0].__init__.__globals__ }}", "may not"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "refuses this conversation"),
        ("{% include 'x' %}", "refuses this conversation"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "refuses this conversation"),
    ],
)
def test_templates_that_cannot_be_used(source: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        ChatTemplate(source, TOKENS, "t.jinja").render(HELLO)


def test_rendering_leaves_the_messages_alone() -> None:
    messages = [dict(HELLO[0])]
    ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", TOKENS).render(messages)
    assert messages == HELLO


def test_of_a_bundle(tmp_path: Path) -> None:
    tokens = {"bos_token": "<s>", "eos_token": None, "add_bos": True}
    bundle = Bundle(tmp_path, {"tokenizer": tokens, "files": []})
    with pytest.raises(BundleError, match=r"has no chat_template.jinja: give the model's own with --template FILE"):
        ChatTemplate.of(bundle)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token is defined }}")
    bundle.manifest["files"].append({"path": "chat_template.jinja"})
    assert ChatTemplate.of(bundle).render(HELLO) == "<s>False"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BundleError, match="is not a text in UTF-8"):
        ChatTemplate.of(bundle)


def test_what_one_conversation_gives_the_template_says_nothing_of_the_next() -> None:
    """Whether there is a system role is tried with each one's own variables."""
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role != 'system' or not (tools or hidden) %}[{{ m.role }}:{{ m.content }}]"
        "{% endif %}{% endfor %}",
        TOKENS,
    )
    asked = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    folded, apart = "[user:S\n\nHi]", "[system:S][user:Hi]"
    tools = [{"type": "function", "function": {"name": "f"}}]
    for _ in range(2):
        assert template.conversation(asked, {"tools": tools}).text == folded
        assert template.conversation(asked, {"hidden": True}).text == folded
        assert template.conversation(asked, {"hidden": "x" * 5000}).text == folded
        assert template.conversation(asked, {"tools": None}).text == apart
        assert template.conversation(asked).text == apart
    for number in range(200):  # what a client makes up is not all remembered
        template.conversation(asked, {"made_up": number})
    assert len(template._takes_system) < 100
