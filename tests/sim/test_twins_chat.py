"""Conversations on the twins of 1.2 and later: the native chat template, what is kept between runs, tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rk3588 import hostlib, quant
from rk3588.sim import SimModel
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from tests import artifacts, models
from tests import family_templates as families
from tests.plans import make_plan
from tests.rkllm_driver import FINISH, NORMAL
from tests.sim.test_rkllm import greedy
from tests.sim.test_twins import AS_GIVEN, GREEDY
from tests.twins import Twin

USER, REPLY = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
PARTS = ("system", "prefix", "postfix", "between")
TOOLS = [families.TOOL, {"type": "function", "function": {"name": "time"}}]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With Qwen3's template, which thinks and takes tools."""
    return with_template(tmp_path_factory.mktemp("thinker"), families.source("qwen3"))


def with_template(folder: Path, template: str) -> Path:
    source = models.tiny_llama(folder / "source")
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 4096}))
    (source / "chat_template.jinja").write_text(template)
    (made,) = convert(make_plan(open_source(source), "tiny", folder, [quant.scheme("w8a8")]))
    return made / "model.sim.gguf"


def test_a_text_is_put_into_the_models_own_template(twin: Twin, model: Path, oracle: SimModel) -> None:
    done = twin(*GREEDY, f"init:{model}", "prompt:Hello", "run")
    assert done.tokens() == greedy(oracle, oracle.tokenise(USER + "Hello" + REPLY), 6)


def test_another_template_replaces_it_and_three_empty_texts_end_it(twin: Twin, model: Path, oracle: SimModel) -> None:
    done = twin(*GREEDY, f"init:{model}", "prompt:Hello", "template:Be brief. ^Q: ^ A:", "run", AS_GIVEN, "run")
    bos = [oracle.info.bos_id] if oracle.info.add_bos else []
    assert done.tokens(1) == greedy(oracle, bos + oracle.tokenise("Be brief. Q: Hello A:"), 6)
    assert done.tokens(2) == greedy(oracle, bos + oracle.tokenise("Hello"), 6)


def test_tokens_go_in_as_they_are(twin: Twin, model: Path, oracle: SimModel) -> None:
    assert twin(*GREEDY, f"init:{model}", "tokens:5,1,300", "run").tokens() == greedy(oracle, [5, 1, 300], 6)


@pytest.mark.parametrize("converted", [False, True])
def test_a_model_without_parts_wants_tokens_or_a_template(twin: Twin, tmp_path: Path, converted: bool) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[0].content }}"
    bare = with_template(tmp_path, template) if converted else _without_chat(tmp_path)
    done = twin(*GREEDY, f"init:{bare}", "prompt:Hello", "run", "tokens:5", "run", "template:^^", "prompt:Hello", "run")
    assert done.returned("run") == [-1, 0, 0]
    (said,) = done.errors()
    why = " (the chat template writes a user's text 2 times, not once)" if converted else ""
    assert said.startswith(f"error: this model has no chat template of its own{why}: give tokens, or set")


def _without_chat(folder: Path) -> Path:
    """The same model, converted without a template."""
    source = models.tiny_llama(folder / "source")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "chat_template.jinja").unlink(missing_ok=True)
    (made,) = convert(make_plan(open_source(source), "tiny", folder, [quant.scheme("w8a8")]))
    return made / "model.sim.gguf"


def test_a_conversation_is_kept(twin: Twin, model: Path, oracle: SimModel) -> None:
    """As the whole template would write it, the answer that was cut off included."""
    done = twin(*GREEDY, f"init:{model}", "history:1", "prompt:Hello", "run", "prompt:More", "run", "history:0", "run")
    first = oracle.tokenise(USER + "Hello" + REPLY)
    answer = greedy(oracle, first, 6)
    later = first + answer + oracle.tokenise("<|im_end|>\n" + USER + "More" + REPLY)
    assert done.tokens(1) == answer and done.tokens(2) == greedy(oracle, later, 6)
    assert done.tokens(3) == greedy(oracle, oracle.tokenise(USER + "More" + REPLY), 6)  # it was not to be kept


def test_what_prompts_have_in_common_is_not_computed_again(twin: Twin, model: Path) -> None:
    """Whatever keep_history says; no answer depends on it."""
    commands = (*GREEDY, f"init:{model}", "prompt:Hello", "run", "prompt:Hello you", "run")
    done = twin(*commands)
    known = [line for line in done.log.splitlines() if "were there already" in line]
    assert len(known) == 1
    assert done.tokens(2) == twin(*GREEDY, f"init:{model}", "prompt:Hello you", "run").tokens() != []


def test_sizes_and_what_clearing_leaves(newer: Twin, model: Path, oracle: SimModel) -> None:
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    done = newer(*GREEDY, f"init:{model}", f"template:{system}^{USER}^{REPLY}", "size", "history:1", "prompt:Hello",
                 "run", "size", "clear:1", "size", "prompt:More", "run", "clear:0", "size", "run")  # fmt: skip
    first = oracle.tokenise(system + USER + "Hello" + REPLY)
    alone = oracle.tokenise(system)
    assert done.sizes() == [0, len(first) + 6, len(alone), 0]
    wanted = greedy(oracle, oracle.tokenise(system + USER + "More" + REPLY), 6)
    assert done.tokens(2) == done.tokens(3) == wanted
    assert done.returned("clear") == [0, 0]


def test_clearing_with_one_argument(twins: Callable[[str], Twin], model: Path) -> None:
    done = twins("1.2.0")(*GREEDY, f"init:{model}", "history:1", "prompt:Hello", "run", "clear:0", "run")
    assert done.tokens(1) == done.tokens(2) != [] and done.returned("clear") == [0]


@pytest.mark.parametrize("setting", ["finish", "silent"])
def test_a_pause_and_a_range_that_is_taken_out(newer: Twin, model: Path, oracle: SimModel, setting: str) -> None:
    """The callback pauses at the third token; the second is cleared, and the run goes on with others."""
    done = newer("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=6", f"init:{model}", "tokens:5,6,7",
                 "at:2", "reply:1", "run", "size", "at:-1", "clear:0,4,5", "size", "tokens:8,9", "run",
                 env={"RKSIM_PAUSE": setting})  # fmt: skip
    answer = greedy(oracle, [5, 6, 7], 3)
    assert done.tokens(1) == answer and done.returned("clear") == [0] and done.sizes() == [6, 5]
    assert done.states(1) == [NORMAL] * 3 + ([FINISH] if setting == "finish" else [])
    assert done.tokens(2) == greedy(oracle, [5, 6, 7, answer[0], answer[2], 8, 9], 6)
    assert done.returned("run") == [0, 0]


def test_a_range_outside_of_a_pause_or_of_what_is_there_is_refused(newer: Twin, model: Path) -> None:
    done = newer(*GREEDY, f"init:{model}", "tokens:5,6", "run", "clear:0,0,1", "at:1", "reply:1", "run",
                 "clear:0,3,9", "clear:0,3,2", "clear:0,-1,2", "size")  # fmt: skip
    assert done.returned("clear") == [-1] * 4 and done.sizes() == [4]
    assert "only while a run is paused" in done.errors()[0]


def test_a_callback_of_1_2_0_pauses_nothing(twins: Callable[[str], Twin], model: Path) -> None:
    assert len(twins("1.2.0")(*GREEDY, f"init:{model}", "tokens:5", "at:1", "reply:1", "run").tokens()) == 6


def test_thinking(newer: Twin, thinker: Path) -> None:
    oracle = hostlib.SimModel(thinker, threads=1)
    replaced = f"template:^{USER}^{REPLY}"
    done = newer(*GREEDY, f"init:{thinker}", "prompt:Hello", "run", "think:1", "run", replaced, "run")
    silent, thinking = REPLY + "<think>\n\n</think>\n\n", REPLY + "<think>\n"
    for run, postfix in enumerate((silent, thinking, REPLY), 1):  # another template asks for none
        assert done.tokens(run) == greedy(oracle, _with_bos(oracle, USER + "Hello" + postfix), 6)


def _with_bos(oracle: SimModel, text: str) -> list[int]:
    ids = oracle.tokenise(text)
    return ids if ids[0] == oracle.info.bos_id or not oracle.info.add_bos else [oracle.info.bos_id, *ids]


def test_tools_and_what_a_tool_gives_back(newer: Twin, thinker: Path) -> None:
    """As the model's own template writes the same conversation."""
    from rk3588.templates import ChatTemplate

    oracle = hostlib.SimModel(thinker, threads=1)
    tools = f"tools:Be brief.^{json.dumps(TOOLS)}^tool_response"
    given = "role:tool", 'prompt:{"rain": true}', "run", "prompt:rain", "run"
    done = newer(*GREEDY, "set:max_context_len=2048", f"init:{thinker}", tools, "history:1", "prompt:Weather?", "run",
                 *given)  # fmt: skip
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather?"}]
    template = ChatTemplate(families.source("qwen3"), {}, "qwen3")
    first = oracle.tokenise(template.render(messages, {"tools": TOOLS, "enable_thinking": False}))
    answer = greedy(oracle, first, 6)
    frame = f"<|im_end|>\n{USER}<tool_response>\n" + '{"rain": true}' + "\n</tool_response>"
    later = oracle.tokenise(frame + REPLY + "<think>\n\n</think>\n\n")
    assert done.tokens(1) == answer and done.tokens(2) == greedy(oracle, first + answer + later, 6)
    assert done.returned("run") == [0, 0, -1] and done.errors() == ["error: the input of the role tool is no JSON"]


@pytest.mark.parametrize(
    ("before", "listed", "why"),
    [
        ([], '{"name": "x"}', "tools is no JSON list of functions"),
        ([], "[{]", "tools is no JSON list of functions"),
        (["template:^^"], "[]", "tools need the model's own chat template, and another one was set"),
    ],
)
def test_tools_that_cannot_be_set(newer: Twin, thinker: Path, before: list[str], listed: str, why: str) -> None:
    done = newer(f"init:{thinker}", *before, f"tools:Be brief.^{listed}^tool")
    assert done.returned("tools") == [-1] and done.errors() == [f"rkllm_set_function_tools: {why}"]


@pytest.mark.parametrize(
    ("listed", "good"),
    [
        ('[{"a": [1.5e-3, -0, 12, "\\u00e9\\n \u00e9", null, true, false, {}]}, []]', True), ("[]", True),
        ("[1,]", False), ("[01]", False), ("[1.]", False), ("[1 2]", False), ('["a]', False), ('["\\x"]', False),
        ('["\\u12"]', False), ('[{"a" 1}]', False), ("[nul]", False), ("[] []", False), ("[" * 9000, False),
        ("[" * 60 + "]" * 60, True), ("[" * 70 + "]" * 70, False),
    ],
)  # fmt: skip
def test_what_is_a_json_list(twins: Callable[[str], Twin], thinker: Path, listed: str, good: bool) -> None:
    done = twins("1.3.1")(f"init:{thinker}", f"tools:Be brief.^{listed}^tool")
    assert done.returned("tools") == [0 if good else -1]


def test_a_template_without_a_place_for_tools(newer: Twin, model: Path) -> None:
    done = newer(f"init:{model}", "tools:Be brief.^[]^tool", "role:cook", "prompt:x", "run")
    assert done.returned("tools") == [-1] and "has no place for tools" in done.errors()[0]
    assert done.errors()[1] == "rkllm_run: unknown role 'cook': there are user and tool"


@pytest.mark.parametrize("call", ["template:a^b^c", "clear:0"])
def test_nothing_is_changed_under_a_run(twin: Twin, model: Path, call: str) -> None:
    """From inside the callback, say."""
    done = twin(*GREEDY, f"init:{model}", "tokens:5", "at:1", f"do:{call}", "run")
    assert done.returned(call.split(":")[0]) == [-1] and len(done.tokens()) == 6


def test_an_error_in_the_middle_forgets_the_conversation(twin: Twin, model: Path, oracle: SimModel) -> None:
    done = twin(*GREEDY, f"init:{model}", "history:1", "tokens:5,6", "run", "tokens:7,-4", "run", "tokens:7", "run")
    assert done.returned("run") == [0, -1, 0] and done.tokens(3) == greedy(oracle, [7], 6)


def test_an_error_keeps_the_conversation_where_nothing_was_computed(twin: Twin, model: Path, oracle: SimModel) -> None:
    done = twin(*GREEDY, f"init:{model}", "history:1", "tokens:5,6", "run", "tokens:", "run", "tokens:7", "run")
    assert done.returned("run") == [0, -1, 0]
    assert done.tokens(3) == greedy(oracle, [5, 6, *done.tokens(1), 7], 6)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"chat.postfix": "b"}, "rksim.chat.system"),
        ({"chat.tools": ["a", "b"], **{f"chat.{key}": "x" for key in PARTS}}, "rksim.chat.tools has 2 texts, not 4"),
        ({f"chat.{key}": 7 for key in PARTS}, "rksim.chat"),
        ({f"chat.{key}": "x" for key in (*PARTS, "suffix")}, "rksim.chat.suffix"),
    ],
)
def test_an_artifact_whose_parts_do_not_fit_together(
    twin: Twin, tmp_path: Path, keys: dict[str, object], why: str
) -> None:
    path = artifacts.Model(keys=keys).write(tmp_path / "model.sim.gguf", "fp16")
    done = twin("set:max_context_len=16", f"init:{path}")
    assert done.returned("init") == [-1] and why in done.errors()[-1]


def test_answers_are_not_reused_where_tokens_share_a_scale(newer: Twin, model: Path, tmp_path: Path) -> None:
    """What was answered token by token is not what a prompt of the same tokens computes in tiles of 64."""
    tile = {"RKSIM_ACT_SCALE": "tile64"}
    begin = ("set:top_k=1", "set:max_new_tokens=60", "set:max_context_len=512", f"init:{model}")
    first = ",".join(str(3 + i % 50) for i in range(70))
    save = (f"cache:{tmp_path}/c", "save:1")
    talk = newer(*begin, "history:1", f"tokens:{first}", "run", *save, "tokens:9", "run", env=tile)
    whole = "tokens:" + ",".join([first, *map(str, talk.tokens(1)), "9"])
    done = newer(*begin, "history:1", f"tokens:{first}", "run", "history:0", whole, "run", env=tile)
    assert "64 of 131 tokens were there already" in done.log
    assert done.tokens(2) == newer(*begin, whole, "run", env=tile).tokens()
    loaded = newer(*begin, f"cache:{tmp_path}/c", "load_prompt_cache", whole, "run", env=tile)
    assert "prompt cache: 64 of 131 tokens" in loaded.log
