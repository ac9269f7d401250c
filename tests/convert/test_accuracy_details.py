"""What ``rkconvert accuracy`` finds beside the windows: greedy continuations, layers, multiple choice, and figures."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rk3588 import bundle
from rk3588.bundle import Bundle
from rk3588.errors import TargetError, UsageError
from rk3588.hostlib import SimModel
from rkconvert.accuracy import Text, choices, greedy, layers, measure
from rkconvert.cli import cli
from tests import models
from tests.convert import test_accuracy_measuring
from tests.convert.test_accuracy_measuring import call, opened

cache, found = test_accuracy_measuring.cache, test_accuracy_measuring.found
folders = test_accuracy_measuring.folders
TEXT = Text("a text", "Pack my box with five dozen liquor jugs. " * 20)


def written(model: SimModel, ids: list[int], count: int) -> list[int]:
    """One token after another, each the likeliest, with all read anew every time."""
    text = list(ids)
    for _ in range(count):
        text.append(int(model.logits(text)[-1].argmax()))
    return text[len(ids) :]


@pytest.mark.parametrize("mode", ["token", "tile64", "group"])
def test_greedy_divergence_length(found: dict[str, Bundle], mode: str) -> None:
    """As two programs find it that write by themselves. Tiles of a prompt are not those of single tokens, so that
    only without them reading everything anew is the same."""
    with opened(found["fp32"]) as truth, opened(found["w8a8_g128"], mode) as model:
        prompts = greedy.pieces([truth.tokenise(TEXT.text)[:300]], 20, 6, [])
        wanted = greedy.continuations(truth, prompts, lambda *_: None)
        assert len(prompts) == 6 and [len(prompt) for prompt in prompts] == [20] * 6
        own = [model.greedy(prompt, greedy.MOST) for prompt in prompts]
        same = [next((i for i, (a, b) in enumerate(zip(x, y)) if a != b), len(y)) for x, y in zip(own, wanted)]
        assert greedy.lengths(model, prompts, wanted, decode=mode == "tile64").tolist() == same
        assert len(set(same)) > 1
        if mode != "tile64":
            assert own[0][:12] == written(model, prompts[0], 12)
        assert greedy.lengths(truth, prompts, wanted, decode=False).tolist() == [len(text) for text in wanted]


def test_a_continuation_ends_with_the_end_token(found: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(found["fp32"]) as truth:
        ids = truth.greedy([3, 4, 5], greedy.MOST)
        monkeypatch.setattr(truth, "info", truth.info._replace(eos_id=ids[4]))
        (text,) = greedy.continuations(truth, [[3, 4, 5]], lambda *_: None)
        assert text == ids[: ids.index(ids[4]) + 1]
    row = greedy.summary(np.array([3.0, 5.0]), [5, 5])
    assert (row["mean"], row["same_to_the_end"], row["interval"][0]) == (4.0, 0.5, 0.0)


def test_signal_to_noise_of_each_layer(found: dict[str, Bundle]) -> None:
    (result,) = measure([found["w8a8"]], found["fp32"], [TEXT], 200, window=50, details=True)
    with opened(found["fp32"]) as truth, opened(found["w8a8"]) as model:
        ids = truth.tokenise(TEXT.text, add_bos=bool(truth.info.add_bos))[:50]
        x, means = truth.embed(ids), []
        for index in range(truth.info.n_layers):
            y, z = truth.layer(index, x), model.layer(index, x)
            noise = ((z - y).astype(np.float64) ** 2).sum(1)
            means.append(float(np.mean(10 * np.log10(((y - x).astype(np.float64) ** 2).sum(1) / noise))))
            x = y
        one = layers.summary(layers.ratios(truth, [model], [ids], lambda *_: None)[0])
    assert one["snr_db"] == pytest.approx(means, abs=1e-3) and one["intervals"] == []
    assert result.layers and result.layers["tokens"] > 150 and len(result.layers["intervals"]) == 2
    assert result.layers["worst"][0]["snr_db"] == min(result.layers["snr_db"]) and 15 < min(means) < 60


def test_layers_of_a_rotated_model_are_left_out_with_a_word(tmp_path: Path) -> None:
    model = models.tiny_llama(tmp_path / "Tiny")
    for name, *options in (("plain", "--dtype=fp32"), ("turned", "--dtype=w8a8", "--rotate")):
        done = CliRunner().invoke(cli, [str(model), "--name=Tiny", "-o", str(tmp_path / name), *options])
        assert done.exit_code == 0, done.output
    (turned,) = (tmp_path / "turned").iterdir()
    told: list[str] = []
    plain = bundle.read(tmp_path / "plain" / "Tiny-rk3588-fp32")
    (result,) = measure([bundle.read(turned)], plain, [TEXT], 100, details=True, tell=told.append)
    assert result.layers is None and result.greedy and result.kl < 0.1
    assert any("has other hidden states than the reference" in sentence for sentence in told)


# --- multiple choice

GOOD = {"query": "One two", "choices": ["three", "many more than that"], "gold": 0}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([GOOD, "{"], "line 2 is not JSON"),
        (["[" * 100_000], "line 1 is not JSON"),
        ([[1]], "line 1 is no object"),
        ([{**GOOD, "query": 3}], "line 1: query is to be a text"),
        ([GOOD, "", {**GOOD, "choices": ["one"]}], "line 3: choices is to be a list of 2 to 64 texts"),
        ([{**GOOD, "choices": "ab"}], "line 1: choices is to be a list"),
        ([{**GOOD, "choices": ["a", ""]}], "line 1: each of the choices is to be a text that is not empty"),
        ([{**GOOD, "gold": 2}], "line 1: gold is to be the number of the right choice, 0 to 1"),
        ([{**GOOD, "gold": True}], "line 1: gold is to be"),
        ([{**GOOD, "gold": "0"}], "line 1: gold is to be"),
        ([{"query": "x"}], "line 1: choices is to be a list"),
        (["", " "], "has no question"),
    ],
)
def test_broken_questions_are_told_by_their_line(
    folders: dict[str, Path], tmp_path: Path, lines: list[Any], sentence: str
) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    done = call(folders["w8a8"], "--choices", path)
    assert isinstance(done.exception, UsageError) and sentence in str(done.exception)
    assert str(path) in str(done.exception)


def test_files_of_questions_that_are_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "asked.jsonl"
    with pytest.raises(UsageError, match=r"there is no .*asked\.jsonl"):
        choices.load(path)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="67 MB are the most"):
        choices.load(path)
    path.write_text((json.dumps(GOOD) + "\n") * 4)
    monkeypatch.setattr(choices, "_MOST_QUESTIONS", 3)
    with pytest.raises(UsageError, match="more than 3 questions"):
        choices.load(path)
    told: list[str] = []
    path.write_text(json.dumps({**GOOD, "id": 7}))
    assert choices.load(path, told.append).items[0].choices == ("three", "many more than that")
    assert told == [f"{path}: id of its questions is not read, only query, choices and gold"]


def test_a_choice_is_scored_by_what_follows_the_query(found: dict[str, Bundle]) -> None:
    """Beside sums over single evaluations; tests/accuracy_lm_eval.py has lm-eval's own."""
    asked = [("One two", "three"), ("One two  ", "three"), ("", "three"), ("x" * 40, "yz")]
    with opened(found["w8a8"]) as model:
        bos = [model.info.bos_id] if model.info.add_bos else []
        for query, choice in asked:
            question = choices.Question(query, (choice, "a"), 0, 1)
            before, rest = choices.encode_pair(model, query, choice)
            stripped = query.rstrip()
            if stripped:
                assert before == bos + model.tokenise(stripped)
                assert before + rest == bos + model.tokenise(f"{query} {choice}")
            else:
                assert before == [model.info.bos_id] and rest == model.tokenise(f" {choice}")
            total = 0.0
            for i, token in enumerate(rest):
                logits = model.logits(before + rest[:i])[-1].astype(np.float64)
                total += logits[token] - np.log(np.exp(logits).sum())
            assert choices.likelihoods(model, question, "asked")[0] == pytest.approx(total, abs=1e-9)


def test_best_choices_with_and_without_their_length() -> None:
    items = [choices.Question("", ("a", "long one"), 1, 1), choices.Question("", ("ab", "cd"), 0, 2)]
    rows = choices.scored(items, [np.array([-2.0, -8.0]), np.array([-3.0, -4.0])])
    assert rows.tolist() == [[0, 1, 1], [0, 0, 0]]


def test_questions_in_table_and_manifest(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    lists = (["even", "odd"], ["even", "odd", "seven"])
    lines = [{"query": f"Number {i} is", "choices": lists[i % 2], "gold": i % 2} for i in range(20)]
    path.write_text("\n".join(map(json.dumps, lines)))
    words = (folders["w8a8"], "--tokens", 40, "--brief", "--choices", path)
    done = call(*words)
    assert done.exit_code == 0 and "asked.jsonl, 20 questions" in done.stdout and "same answer" in done.stdout
    assert "20 questions of asked.jsonl: about" in done.stderr
    (row,) = json.loads(call(*words, "--json").stdout)
    (scores,) = row["choices"]
    assert scores["questions"] == 20 and scores["same_answer"] > 0.5
    for key in ("acc", "acc_norm"):
        low, high = scores[f"{key}_interval"]
        assert 0 <= low < scores[key] < high <= 1 and high - low < 4.3 * scores[f"{key}_stderr"]
    assert "greedy" not in row and "layers" not in row
    assert bundle.read(folders["w8a8"]).manifest["accuracy"]["choices"] == row["choices"]


# --- bundles that cannot be written to


def test_a_read_only_bundle_is_told_first_and_measured(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def access(path: str, mode: int, **_: object) -> bool:
        return mode != os.W_OK or Path(path) != folders["w8a8"]

    monkeypatch.setattr(os, "access", access)
    done = call(folders["w8a8"], folders["w8a8_g128"], "--tokens", 60, "--brief")
    assert done.exit_code == 0 and "top-1" in done.stdout, done.output
    assert done.stderr.startswith(f"Note: {folders['w8a8']} cannot be written to: what is measured is printed, and")
    assert "accuracy" not in bundle.read(folders["w8a8"]).manifest
    assert "accuracy" in bundle.read(folders["w8a8_g128"]).manifest


def test_what_was_measured_is_printed_though_it_cannot_be_noted(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    done = call(folders["w8a8"], "--tokens", 60, "--brief")
    assert done.exit_code == 1 and "top-1" in done.stdout, done.output
    assert f"what was measured of {folders['w8a8']} could not be noted in it: cannot write to" in done.stderr


# --- figures


def test_figures_without_matplotlib_say_what_to_install(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = call(folders["w8a8"], "--figures", tmp_path / "figures")
    assert isinstance(done.exception, UsageError) and "pip install 'rk3588[plot]'" in str(done.exception)
    (tmp_path / "file").touch()
    done = call(folders["w8a8"], "--figures", tmp_path / "file")
    assert isinstance(done.exception, UsageError) and "is no folder" in str(done.exception)


def test_figures(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra [plot]")
    done = call(folders["w8a8"], folders["w8a8_g128"], folders["fp32"], "--tokens", 60, "--figures", tmp_path / "drawn")
    assert done.exit_code == 0, done.output
    names = {f"{name}.{kind}" for name in ("kl", "layers", "kl-speed") for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == names
    for path in (tmp_path / "drawn").glob("*.svg"):
        ElementTree.parse(path)
    for path in (tmp_path / "drawn").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "kl.png").mkdir()
    done = call(folders["w8a8"], "--tokens", 60, "--figures", tmp_path)
    assert isinstance(done.exception, TargetError) and "top-1" in done.stdout  # what was measured is not lost
    assert not list(tmp_path.glob(".*.part"))
