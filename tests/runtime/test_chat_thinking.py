"""Thoughts in a chat: dim, no part of the answer, and a switch where the template has one."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from rk3588.errors import UsageError
from rkruntime.commands.chat import _Writer
from rkruntime.conversation import Conversation
from rkruntime.model import Model, Settings
from rkruntime.thoughts import Split
from tests import family_templates as families
from tests.core.test_cli import rk3588
from tests.fakes import fake_rkllm, journal, scripted_bundle


def script(*texts: str) -> str:
    return "\n".join([*(f"token {id} {text.encode().hex()}" for id, text in enumerate(texts, 1)), "empty 2"])


THINKING = script("<thi", "nk>\nHm", ".\n</think>", "\n\nHi", "!")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_rkllm(tmp_path_factory.mktemp("fake"))


def sent(library: Path) -> str:
    """The last prompt, as the library got it."""
    return "\n".join(journal(library)).rpartition("\nrun text ")[2]


def test_a_thought_is_no_answer(tmp_path: Path, library: Path) -> None:
    told: list[str] = []
    bundle = scripted_bundle(tmp_path / "b", THINKING, families.source("qwen3"))
    with Model(bundle, Settings(library=library), told.append) as model:
        talk = Conversation(model, None, told.append)
        said = list(talk.say("one"))
        assert said == [Split("Hm"), Split("."), Split("", "Hi"), Split("", "!")]
        assert talk.history[1] == {"role": "assistant", "content": "Hi!", "reasoning_content": "Hm."}
        talk.command("/think off")
        assert told[-1] == "thinking: off"
        list(talk.say("two"))
        assert "</think>" in sent(library) and "Hm" not in sent(library)  # the template leaves earlier thoughts out
        talk.command("/think on")
        list(talk.say("three"))
        assert "</think>" not in sent(library)
        with pytest.raises(UsageError, match="/think on, or /think off"):
            talk.command("/think hard")
        assert talk.think is True


def test_one_that_the_template_begins(tmp_path: Path, library: Path) -> None:
    template = families.source("deepseek-r1-distill-qwen")
    bundle = scripted_bundle(tmp_path / "b", script("Hm.", "</think>", "Hi"), template)
    with Model(bundle, Settings(library=library), lambda _: None) as model:
        talk = Conversation(model, None, lambda _: None)
        assert list(talk.say("one")) == [Split("Hm."), Split("", "Hi")]
        with pytest.raises(UsageError, match="has no switch for thinking"):
            talk.command("/think off")


def test_a_pipe_gets_the_answer_alone(tmp_path: Path, library: Path) -> None:
    bundle = scripted_bundle(tmp_path / "b", THINKING, families.source("qwen3"))
    done = rk3588("chat", bundle, library=library, text="one\n/think off\n")
    assert (done.returncode, done.stdout) == (0, "Hi!\n")
    assert "Hm.\n" in done.stderr and "thinking: off" in done.stderr and "\x1b" not in done.stderr


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TERM": "xterm"}, "\x1b[2mHm\x1b[0m\x1b[2m.\x1b[0m\nHi\n"),
        ({"NO_COLOR": "1"}, "Hm.\nHi\n"),
        ({"TERM": "dumb"}, "Hm.\nHi\n"),
    ],
)
def test_a_thought_is_dim(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    writer = _Writer()
    for part in (Split("Hm"), Split("."), Split("", "Hi")):
        writer.write(part.thought, thought=True)
        writer.write(part.text)
    writer.end_line()
    assert screen.getvalue() == expected
