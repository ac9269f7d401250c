"""Calibration data: every form that a file may have, in the model's own template."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rk3588.errors import UsageError
from rkconvert import calibration, rendering
from rkconvert.sources.opening import open_source
from rkconvert.tokenizers.vocabulary import Vocabulary
from tests import models

ANSWER = {"role": "assistant", "content": "Yo."}
ASKED = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return open_source(models.tiny_llama(tmp_path_factory.mktemp("m") / "m")).vocabulary


@pytest.mark.parametrize(
    ("entry", "question"),
    [
        ({"prompt": "Hi?", "answer": "Yo."}, ASKED.format("Hi?")),
        ({"instruction": "Hi?", "output": "Yo."}, ASKED.format("Hi?")),
        ({"question": "Hi?", "response": "Yo."}, ASKED.format("Hi?")),
        ({"input": "Hi?", "target": "Yo."}, ASKED.format("Hi?")),
        ({"input": "<|im_start|>user\nHi?", "target": "Yo."}, "<|im_start|>user\nHi?"),  # rendered by somebody before
        (
            {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi?"}, ANSWER]},
            "<|im_start|>system\nS<|im_end|>\n" + ASKED.format("Hi?"),
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_every_form_of_an_entry(
    tmp_path: Path, vocabulary: Vocabulary, entry: object, question: str, suffix: str
) -> None:
    file = tmp_path / f"data.{suffix}"
    file.write_text(json.dumps([entry]) if suffix == "json" else json.dumps(entry) + "\n\n")
    data = calibration.load(file, vocabulary)
    assert data.samples == ((question, "Yo."),)
    assert json.loads(data.text()) == [{"input": question, "target": "Yo."}]


def test_a_text_is_cut_near_the_middle_of_each_paragraph(tmp_path: Path, vocabulary: Vocabulary) -> None:
    paragraphs = ["One is here. Two is there. Three.", "no sentence ends here", "猫が好きです。犬も好きです。\n"]
    (tmp_path / "t.txt").write_text("\n\n".join(paragraphs))
    data = calibration.load(tmp_path / "t.txt", vocabulary)
    assert data.samples == (
        (ASKED.format("One is here."), "Two is there. Three."),
        (ASKED.format("no sentence"), "ends here"),
        (ASKED.format("猫が好きです。"), "犬も好きです。"),
    )


def test_without_a_template_texts_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('[{"prompt": "Hi?", "answer": "Yo."}]')
    assert calibration.load(tmp_path / "d.json", None).samples == (("Hi?", "Yo."),)


def test_the_built_in_set(vocabulary: Vocabulary) -> None:
    """Many languages, each sample its own, and one hash wherever it is made."""
    data = calibration.load(None, vocabulary)
    assert data.name == "built-in" and len({*data.samples}) == len(data.samples) >= 20
    scripts = "".join(question + answer for question, answer in data.samples)
    assert all(character in scripts for character in "äé¿úâíış请は한рبप")
    assert data.facts() == calibration.load(None, vocabulary).facts()


LOOP = "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize("template", [LOOP, "{{ 10 ** 1000000000 }}"], ids=["loop", "number"])  # the latter compiles so
def test_a_template_without_end_is_ended(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(rendering, "_WALL_S", 1.0)
    endless = replace(vocabulary, chat_template=template)
    (tmp_path / "t.json").write_text(json.dumps([{"prompt": "a", "answer": "b"}]))
    with pytest.raises(UsageError, match=r"t.json, entry 1: the model's chat template takes too long, or too much"):
        calibration.load(tmp_path / "t.json", endless)


def test_what_a_template_says_for_itself(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """And nothing of it is lost on the way: neither lines nor letters."""
    (tmp_path / "t.json").write_text(json.dumps([{"prompt": "a\nü\u2028\ud83d\ude00", "answer": "b"}]))
    refusing = replace(vocabulary, chat_template="{{ raise_exception('not\nme') }}")
    with pytest.raises(UsageError, match="entry 1: the model's chat template refuses this conversation: not me"):
        calibration.load(tmp_path / "t.json", refusing)
    plain = replace(vocabulary, chat_template="{{ bos_token }}{{ messages[0].content }}")
    assert calibration.load(tmp_path / "t.json", plain).samples == (("<|im_start|>a\nü\u2028😀", "b"),)
