"""Calibration data: every form that a file may have, in the model's own template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rkconvert import calibration
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
