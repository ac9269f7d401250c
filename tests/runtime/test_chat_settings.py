"""What can be changed and what is told in a chat: /set, the ends of answers, templates, the history of lines typed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rk3588 import bundle as bundles
from rk3588.errors import RuntimeFailure, UsageError
from rkruntime.conversation import Conversation
from rkruntime.model import Model, Settings
from tests.core.test_cli import ANSWER, ENDLESS, rk3588
from tests.fakes import bundle_for_both, fake_rkllm, journal, scripted_bundle
from tests.runtime.test_chat import Talk, Terminal


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_rkllm(tmp_path_factory.mktemp("fake"))


@pytest.fixture
def talk(tmp_path: Path, library: Path) -> Iterator[Talk]:
    talk = Talk(tmp_path, ANSWER, library)
    with talk.model:
        yield talk


def test_set_loads_again_what_the_runtime_fixes(talk: Talk) -> None:
    talk.say("one")
    said = talk.do("/set temperature 0.5")
    assert "the model was loaded again" in said and "\ntemperature    0.5 " in said
    assert journal(talk.library)[0].startswith("init ctx=4096 new=-1 k=40 p=0.9 t=0.5 repeat=1 ")
    talk.say("two")
    assert talk.sent().startswith("user=one;assistant=Hi!;user=two; mode")
    talk.do("/set temperature default")
    assert journal(talk.library)[0].startswith("init ctx=4096 new=-1 k=40 p=0.9 t=0.2 repeat=1 ")
    talk.do("/set top-k 7")
    talk.do("/set context 99")
    assert journal(talk.library)[0].startswith("init ctx=99 new=-1 k=7 ")
    assert re.findall(r"^(\w+) +([\d.-]+) ", talk.do("/set"), re.MULTILINE) == [
        ("temperature", "0.2"), ("top_k", "7"), ("top_p", "0.9"), ("repeat_penalty", "1"), ("max_tokens", "-1"),
        ("loop_limit", "128"), ("context", "99"),
    ]  # fmt: skip


def test_set_knows_the_names_of_the_command_line_and_aligns_its_values(talk: Talk) -> None:
    assert "\ntemperature    0.5  " in talk.do("/set temp 0.5")
    assert "max_tokens     7  " in talk.do("/set n 7")
    assert "context        99  " in talk.do("/set c 99")
    ends = [re.match(r"\w+ +[\d.-]+ +", line) for line in talk.do("/set").splitlines()]
    assert len(ends) == 7 and len({found and found.end() for found in ends}) == 1


def test_set_max_tokens_holds_at_once(talk: Talk) -> None:
    assert "loaded again" not in talk.do("/set max_tokens 1")
    assert talk.say("one") == "H"
    assert (talk.model.cost.finish_reason, talk.model.cost.cut_by) == ("length", "max_tokens")
    assert "loaded again" not in talk.do("/set max_tokens -1")
    assert talk.say("two") == "Hi!"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set warmth 3", "there is no setting warmth: there are temperature, top_k, "),
        ("/set temperature hot", "temperature: has to be a number from 0 to 100, not 'hot'"),
        ("/set temperature nan", "temperature: has to be a number from 0 to 100, not 'nan'"),
        ("/set temp 900", "temperature: has to be a number from 0 to 100, not '900'"),
        ("/set repeat_penalty 101", "repeat_penalty: has to be a number above 0 and at most 100, not '101'"),
        ("/set top_p 2", "top_p: has to be a number above 0 and at most 1, not '2'"),
        ("/set top_k 1.5", "top_k: has to be a whole number from 1 to 2147483647, not '1.5'"),
        ("/set max_tokens 0", "max_tokens 0 asks for no answers"),
        ("/set context 3", "a context of 3 tokens holds no prompt"),
        ("/set seed 5", "librkllmrt has no seed"),
    ],
)
def test_set_refuses_and_changes_nothing(talk: Talk, line: str, message: str) -> None:
    before, inits = talk.model.settings, journal(talk.library)
    with pytest.raises(UsageError, match=re.escape(message)):
        talk.do(line)
    assert talk.model.settings == before and journal(talk.library) == inits
    assert talk.say("one") == "Hi!"


def test_set_of_a_context_that_is_cut_to_what_there_is_loads_nothing(tmp_path: Path, library: Path) -> None:
    told: list[str] = []
    cut = "the context is cut to 4096 tokens, all that an RK3588 can use (--beyond-board lifts this)"
    with Model(scripted_bundle(tmp_path / "b", ANSWER), Settings(library=library), told.append) as model:
        conversation = Conversation(model, None, told.append)
        inits = journal(library)
        conversation.command("/set context 99999")
        assert journal(library) == inits and told[0] == cut and told[1].startswith("context        4096 ")
        told.clear()
        conversation.command("/set context 4096")
        conversation.command("/set max_tokens 2")
        assert journal(library) == inits and cut not in told
        conversation.command("/set context 5000")
        told.clear()
        conversation.command("/set temperature 0.7")
        assert "the model was loaded again" in told[0] and cut not in told
        assert journal(library)[0].startswith("init ctx=4096 ")


def test_a_prompt_too_long_names_what_helps(tiny_bundles: Mapping[str, Path]) -> None:
    """It was told to ask for a longer context, where that had just been cut."""
    told: list[str] = []

    def refused(settings: Settings, tokens: int) -> str:
        with Model(tiny_bundles["w8a8"], settings, told.append) as model, pytest.raises(UsageError) as error:
            next(model.answer([3] * tokens))
        return str(error.value)

    assert refused(Settings(context=64), 70).endswith("takes 60: shorten it or ask for a longer context (--context N)")
    longer = "shorten it or ask for a longer context (--context N --beyond-board)"
    assert refused(Settings(context=5000), 5000).endswith(f"and a context of 4096 takes 4092: {longer}")
    # First what was done, then what it means: of the 5000 that are not used nothing is said.
    assert [line.partition(" tokens")[0] for line in told] == [
        "the context is cut to 4096", "the model was trained for 512",
    ]  # fmt: skip
    with Model(tiny_bundles["w8a8"], Settings(context=64), told.append) as model:
        conversation = Conversation(model, None, told.append)
        with pytest.raises(UsageError, match=r"/clear, or start with a longer context .--context N.$"):
            next(conversation.say("many words " * 40))


def test_a_context_cut_below_what_the_model_was_trained_for(
    tmp_path: Path, library: Path, tiny_bundles: Mapping[str, Path]
) -> None:
    """A warning about tokens beyond 8192, and then none of those were used."""
    told: list[str] = []
    trained = {**bundles.read(tiny_bundles["w8a8"]).manifest["model"], "context_length": 8192}
    bundle = bundle_for_both(tmp_path / "b", tiny_bundles["w8a8"], ANSWER, model=trained)
    with Model(bundle, Settings(library=library, context=10000), told.append) as model:
        assert model.context == 4096
    assert [line.partition(" tokens")[0] for line in told] == ["the context is cut to 4096"]


def test_set_that_fails_leaves_the_model_as_it_was(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat whose model is gone because another could not be loaded."""
    script, refused = talk.model.choice.model, "init -1\n"
    whole = script.read_text()

    def load(settings: Settings) -> None:
        script.write_text(refused if settings.top_k == 3 else whole)
        type(talk.model)._load(talk.model, settings)

    monkeypatch.setattr(talk.model, "_load", load)
    with pytest.raises(RuntimeFailure, match="rkllm_init failed"):
        talk.do("/set top_k 3")
    assert talk.say("one") == "Hi!" and talk.model.settings.top_k is None


def test_set_seed_and_adapters_on_the_simulated_runtime(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RKSIM_SEED", "1")
    told: list[str] = []
    with Model(tiny_bundles["w8a8"], Settings(max_tokens=12, temperature=1.5), told.append) as model:
        conversation = Conversation(model, None, told.append)

        def drawn(seed: str) -> str:
            conversation.command(f"/set seed {seed}")
            conversation.command("/clear")
            return "".join(part.text for part in conversation.say("Hello"))

        assert drawn("7") == drawn("7") != drawn("8")
        with pytest.raises(UsageError, match="seed has to be a whole number"):
            conversation.command("/set seed x")
        for line in ("/set", "/set seed"):
            told.clear()
            conversation.command(line)
            assert told[-1].startswith("seed           8  ")


def test_an_adapter_that_is_gone_when_the_model_is_loaded_again(talk: Talk, tmp_path: Path) -> None:
    """It is said, and the chat goes on without it; the others stay."""
    for name in ("here", "gone"):
        (tmp_path / f"{name}.gguf").write_bytes(b"x")
        talk.do(f"/lora {tmp_path / name}.gguf")
    (tmp_path / "gone.gguf").unlink()
    said = talk.do("/set temperature 0.5")
    assert "there is no LoRA file" in said and "from now on without the LoRA 'gone'" in said
    assert talk.say("one") == "Hi!" and "lora=0" in talk.sent()
    talk.do("/lora here")
    talk.say("two")
    assert "lora=here" in talk.sent()


def test_an_answer_that_was_cut_off_says_so(library: Path, tmp_path: Path) -> None:
    bundle = scripted_bundle(tmp_path / "b", ENDLESS)
    done = rk3588("run", bundle, "x", "-n", 3, library=library)
    assert (done.stdout, done.stderr.splitlines()[-1]) == ("aaa\n", "(cut off after 3 tokens: -n allows more)")
    done = rk3588("chat", bundle, "-n", 3, library=library, text="x\n")
    assert done.stderr.splitlines()[-1] == "(cut off after 3 tokens: /set max_tokens allows more)"
    done = rk3588("chat", bundle, "-c", 20, library=library, text="x\n")
    ends = "(cut off: the 20 tokens of context are full: /forget the oldest exchange, or /clear)"
    assert done.stderr.splitlines()[-1] == ends


def test_context_is_never_more_than_full(tiny_bundles: Mapping[str, Path]) -> None:
    told: list[str] = []
    with Model(tiny_bundles["w8a8"], Settings(context=40), told.append) as model:
        conversation = Conversation(model, None, told.append)
        conversation.history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "many words " * 9}]
        conversation.command("/context")
        assert told[-1] == "40 of 40 tokens (100 %), 1 exchange; it is full: /forget the oldest exchange, or /clear"


def test_an_answer_without_end_ends_where_tokens_cannot_be_counted(library: Path, tmp_path: Path) -> None:
    """A bundle without a vocabulary, and a model that never stops: the context is its limit all the same."""
    bundle = scripted_bundle(tmp_path / "b", ENDLESS.replace(" 5\n", " 0\n"))
    with Model(bundle, Settings(library=library, context=20), print) as model:
        assert "".join(model.answer("x")) == "a" * 19
        assert (model.cost.finish_reason, model.cost.cut_by) == ("length", "context")


def test_an_answer_that_somebody_else_ended_is_no_whole_one(library: Path, tmp_path: Path) -> None:
    """The model is closed under an answer, as at exit: what came must not look as if the model had ended it."""
    with Model(scripted_bundle(tmp_path / "b", ENDLESS), Settings(library=library), print) as model:
        answer = model.answer("x")
        next(answer)
        model.llm.abort()
        list(answer)
        assert model.cost.finish_reason == "abort"


def test_a_template_of_ones_own(library: Path, tmp_path: Path) -> None:
    bundle = scripted_bundle(tmp_path / "b", ANSWER, template=None)
    template = tmp_path / "own.jinja"
    template.write_text("<{{ messages[0].content }}>")
    done = rk3588("chat", bundle, "--template", template, library=library, text=f"x\n/dump {tmp_path}/d\n")
    assert (done.returncode, done.stdout) == (0, "Hi!\n")
    assert (tmp_path / "d").read_text() == "<x>"
    for text, message in {"{{": "is not a Jinja template", "x" * (1 << 20) + "y": "is larger than 1 MiB"}.items():
        template.write_text(text)
        done = rk3588("run", bundle, "x", "--template", template, library=library)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
    missing = rk3588("run", bundle, "x", "--template", tmp_path, library=library)
    assert missing.returncode == 2 and "there is no template" in missing.stderr


def test_where_the_history_is_kept_is_told(library: Path, tmp_path: Path) -> None:
    pytest.importorskip("prompt_toolkit")
    bundle = scripted_bundle(tmp_path / "b", ANSWER)
    history = tmp_path / "state" / "rk3588" / "chat_history"
    with Terminal(bundle, library, tmp_path / "state", TERM="xterm") as terminal:
        terminal.expect("What you type is kept in")
        terminal.expect("(--no-history: not)")
    history.unlink()
    with Terminal(bundle, library, tmp_path / "state", "--no-history", TERM="xterm") as terminal:
        terminal.expect("/help for help.")
        terminal.expect(">")
        assert "is kept in" not in terminal.seen
        terminal.type("secret\r")
        terminal.expect("Hi!")
    assert not history.exists()
