"""``--dataset generate``: calibration data that the model itself writes."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rk3588 import bundle
from rk3588.errors import BundleError, CheckpointError, SimError, UsageError
from rk3588.hostlib import SimModel
from rkconvert import build, generating, memory
from rkconvert.calibration import Dataset, Generate, dataset_named
from rkconvert.cli import cli
from rkconvert.memory import Memory
from rkconvert.request import Request
from rkconvert.sources.opening import open_source
from rkconvert.sweep import sweep_file
from rkconvert.sweep.cells import Cell, OpenedModels
from rkconvert.sweep.made import MadeCells
from rkconvert.tokenizers.vocabulary import Vocabulary
from tests import models
from tests.toolkit_double import Installed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("generating") / "Tiny"
    return models.tiny_llama(place, hidden=128, heads=2, head_dim=64, intermediate=256)


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> Vocabulary:
    return open_source(folder).vocabulary


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> SimModel:
    return SimModel(tiny_bundles["fp16"] / bundle.SIM_MODEL)


# --- the library


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "w8a8", "w8a8_g128"])
def test_going_on_gives_the_same_bits_as_reading_it_all(tiny_bundles: Mapping[str, Path], dtype: str) -> None:
    ids = [1, 5, 300, 17, 42, 8, 99, 250, 3, 77]
    with SimModel(tiny_bundles[dtype] / bundle.SIM_MODEL) as one:
        whole = one.logits(ids)
        assert (one.next_logits(ids[:4], room=10) == whole[3]).all()
        assert (one.next_logits(ids[4:5], kept=4) == whole[4]).all()
        assert (one.next_logits(ids[5:9], kept=5) == whole[8]).all()
        assert (one.next_logits(ids[9:], kept=9) == whole[9]).all()
        other = one.logits([*ids[:6], 11, 12])[-1]
        one.next_logits(ids, room=12)
        assert (one.next_logits([11, 12], kept=6) == other).all()  # back to an earlier position


def test_there_is_nothing_to_go_on_from(tiny_bundles: Mapping[str, Path]) -> None:
    with SimModel(tiny_bundles["w8a8"] / bundle.SIM_MODEL) as one:
        with pytest.raises(SimError, match="there are 0 positions to go on from, not 1"):
            one.next_logits([1], kept=1)
        one.next_logits([1, 2, 3], room=4)
        with pytest.raises(SimError, match="there are 3 positions to go on from, not 4"):
            one.next_logits([1], kept=4)
        with pytest.raises(SimError, match="the sequence was begun for 4 positions"):
            one.next_logits([1, 2], kept=3)
        with pytest.raises(SimError, match="one token at least"):
            one.next_logits([])
        with pytest.raises(SimError, match=r"vocabulary"):
            one.next_logits([1 << 30], kept=3)
        one.logits([1, 2])
        with pytest.raises(SimError, match="positions to go on from, not 3"):
            one.next_logits([1], kept=3)


# --- what is written


def test_the_same_seed_writes_the_same_and_another_another(model: SimModel, vocabulary: Vocabulary) -> None:
    asked = Generate(3, max_new_tokens=12)
    steps: list[tuple[int, int]] = []
    first = generating.write(model, vocabulary, asked, lambda *step: steps.append(step))
    assert generating.write(model, vocabulary, asked) == first
    assert generating.write(model, vocabulary, replace(asked, samples=2)) == first[:2]
    other = generating.write(model, vocabulary, replace(asked, seed=1))
    assert other != first
    assert len(first) == 3 and all(answer for _, answer in first)
    assert all(asked.startswith("<|im_start|>user\n") and asked.endswith("assistant\n") for asked, _ in first)
    assert steps == sorted(steps) and steps[-1] == (36, 36)


def test_more_than_there_are_prompts_are_answered_again_otherwise(model: SimModel, vocabulary: Vocabulary) -> None:
    count = len(generating.prompts())
    found = generating.write(model, vocabulary, Generate(count + 1, max_new_tokens=10))
    assert len({question for question, _ in found}) == count
    assert found[count][0] == found[0][0] and found[count][1] != found[0][1]


def test_an_answer_begins_with_the_likeliest_tokens(model: SimModel, vocabulary: Vocabulary) -> None:
    """Independently: the library's own greedy tokens, an end among them left out."""
    always = Generate(1, max_new_tokens=16, greedy=16)
    ((question, answer),) = generating.write(model, vocabulary, always)
    ids = model.tokenise(question, add_bos=bool(model.info.add_bos) and not question.startswith("<|im_start|>"))
    greedy = model.greedy(ids, 16)
    ends = {*vocabulary.eos_ids, vocabulary.eos}
    if not ends & {*greedy}:
        assert answer == model.detokenise(greedy, skip_special=True).decode("utf-8", "ignore")
    cold = Generate(1, max_new_tokens=16, greedy=2, top_k=1, repeat_penalty=1.0)
    text = model.detokenise(greedy[: next((i for i, t in enumerate(greedy) if i >= 2 and t in ends), 16)])
    assert generating.write(model, vocabulary, cold)[0][1] == text.decode("utf-8", "ignore")


def test_an_end_ends_an_answer_but_not_its_beginning(model: SimModel, vocabulary: Vocabulary) -> None:
    """With every token an end, only the first five stand; of these none is the end that the model has."""
    everything = replace(vocabulary, eos_ids=tuple(range(4, 384)))
    found = generating.write(model, everything, Generate(2, max_new_tokens=12))
    ids = [model.tokenise(answer) for _, answer in found]
    assert all(len(answer.encode()) <= 5 for _, answer in found), ids


def test_draws_follow_the_probabilities() -> None:
    """Against the definition: penalty, the top k, of these the fewest that reach top p, then the temperature."""
    logits = np.array([2.0, 1.5, 1.0, 0.5, -1.0, 1.5], np.float32)
    asked = Generate(temperature=0.5, top_k=4, top_p=0.8, repeat_penalty=2.0)
    drawn = random.Random(7)
    counted = Counter(generating.draw(logits, [0, 4], asked, drawn) for _ in range(4000))
    # 0 is penalised to 1.0; the four likeliest are 1, 5 (1.5), 0, 2 (1.0), of which three reach 0.8 of their sum.
    exact = np.exp(np.array([1.5, 1.5, 1.0]) / 0.5)
    for token, share in zip((1, 5, 0), exact / exact.sum()):
        assert counted.pop(token) / 4000 == pytest.approx(share, abs=0.03)
    assert not counted
    assert generating.draw(logits, [], replace(asked, top_k=1), drawn) == 0
    assert generating.draw(np.array([1, 3, 3], np.float32), [], replace(asked, top_k=1), drawn) == 1  # the lower id


def test_a_context_that_is_too_short_is_refused(model: SimModel, vocabulary: Vocabulary) -> None:
    long = replace(vocabulary, chat_template="{{ 'word ' * 2000 }}")
    with pytest.raises(CheckpointError, match="is too short to write calibration data in: give a --dataset FILE"):
        generating.write(model, long, Generate(1))


def test_prompts_are_in_many_languages_and_in_no_other_text() -> None:
    known = generating.prompts()
    assert len(set(known)) == len(known) >= 40
    assert all(character in "".join(known) for character in "aäéñąıầ请で김كب")
    for name in ("calibration.json", "evaluation.json"):
        others = resources.files("rkconvert").joinpath(f"data/{name}").read_text(encoding="utf-8")
        text = json.dumps(json.loads(others), ensure_ascii=False)
        assert not [prompt for prompt in known if prompt in text]


# --- the option


def test_what_dataset_means(tmp_path: Path) -> None:
    assert dataset_named("generate") == Generate(32)
    assert dataset_named("generate:7") == Generate(7) and str(Generate(7)) == "generate:7"
    for text in ("./generate", "talk.jsonl", "generate.txt", "folder/generate:3", "generated"):
        assert dataset_named(text) == Path(text)
    for text in ("generate:", "generate:0", "generate:1025", "generate:-1", "generate:x", "generate:1.5", "generate:٣"):
        with pytest.raises(UsageError, match=r"give generate:N with N from 1 to 1024, or \./generate:"):
            dataset_named(text)
    done = CliRunner().invoke(cli, ["build", str(tmp_path), "-o", "x", "--dataset", "generate"])
    assert isinstance(done.exception, UsageError) and "--dataset is for rkllm-toolkit" in str(done.exception)


def test_a_model_that_does_not_fit_memory_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(folder)
    assert generating.check(source, Generate(1)).endswith("of up to 128 tokens to calibrate with: about 1 minute")
    monkeypatch.setattr(memory, "machine", lambda: Memory(0, 0, 1 << 20))
    with pytest.raises(UsageError, match=r"--dataset generate:32: the model takes 0\.3 GB of memory in fp16"):
        generating.check(source, Generate())


@pytest.fixture
def scratch(toolkit: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of a conversion with the double of rkllm-toolkit."""
    for name, value in toolkit.env.items():
        monkeypatch.setenv(name, value)
    found = tmp_path / "scratch"
    found.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(found))
    return found


def test_it_reaches_the_toolkit_and_the_manifest(
    scratch: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Generate] = []
    write = generating.write

    def counted(model: SimModel, vocabulary: Vocabulary, asked: Generate, step: Callable[[int, int], None]) -> object:
        written.append(asked)
        return write(model, vocabulary, replace(asked, max_new_tokens=8), step)

    monkeypatch.setattr(generating, "write", counted)
    asked = [str(folder), "-o", str(tmp_path), "--target=rk3588", "--force", "--dataset=generate:2"]
    plan = CliRunner().invoke(cli, ["build", *asked, "--dry-run"])
    assert plan.exit_code == 0, plan.exception
    assert "calibrated with 2 samples (generate)" in plan.stdout and not written
    assert "note: the model writes 2 answers of up to 128 tokens to calibrate with: about 1 minute" in plan.stdout
    done = CliRunner().invoke(cli, ["build", *asked, "--dtype=w8a8", "--dtype=w8a8_g128"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert written == [Generate(2)]  # once for both
    assert "Note: the model writes 2 answers" in done.stderr
    for name in ("w8a8", "w8a8_g128"):
        made = bundle.read(tmp_path / f"Tiny-rk3588-{name}")
        facts = made.manifest["toolkit"]["dataset"]
        assert (facts["name"], facts["samples"]) == ("generate", 2)
        assert facts["generated"] == {
            "max_new_tokens": 128, "greedy": 5, "temperature": 0.6, "top_k": 40, "top_p": 0.9, "repeat_penalty": 1.1,
            "seed": 0, "reference": "fp16",
        }  # fmt: skip
        assert facts["sha256"].encode() in (made.path / "model.rkllm").read_bytes()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    "how", [pytest.param({"rotate": "learned"}, marks=pytest.mark.slow), {"smooth": "0.5"}], ids=["learned", "smooth"]
)
def test_smoothing_and_learned_rotation_calibrate_with_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, str]
) -> None:
    """Without a board; data of another seed makes another bundle."""
    monkeypatch.setattr("rkconvert.rotation.learn.STEPS", 2)
    digests = []
    for seed in (0, 1):
        asked = Generate(2, max_new_tokens=8, seed=seed)
        request = Request(dataset=asked, emit_hf=tmp_path / f"hf{seed}", **how)  # type: ignore[arg-type]
        plan = request.plan(open_source(folder), "Tiny", tmp_path / str(seed))
        assert any("the model writes 2 answers" in note for note in plan.notes)
        (made,) = build.convert(plan)
        facts = bundle.read(made).manifest["calibration"]
        assert {key: value for key, value in facts.items() if key != "sha256"} == asked.facts()
        digests.append((facts["sha256"], bundle.sha256(made / bundle.SIM_MODEL)))
        assert build.write_checkpoint(plan)["path"] == str(tmp_path / f"hf{seed}")
    assert len({data for data, _ in digests}) == len({model for _, model in digests}) == 2


def test_ctrl_c_leaves_nothing(scratch: Path, folder: Path, tmp_path: Path) -> None:
    plan = Request(targets=("rk3588",), dataset=Generate(2), force=True).plan(open_source(folder), "Tiny", tmp_path)

    def stop(what: str, done: int, _total: int) -> None:
        if what == generating.LABEL and done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.convert(plan, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"] and not list(scratch.iterdir())


def test_a_sweep_knows_what_it_had_the_model_write(
    toolkit: Installed, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in toolkit.env.items():
        monkeypatch.setenv(name, value)
    text = f"models: {folder}\ntargets: rk3588\nforce: true\nout: out\ndataset: "

    def cell(dataset: str) -> Cell:
        (tmp_path / "sweep.yaml").write_text(text + dataset)
        (found,) = sweep_file.load(tmp_path / "sweep.yaml", None).cells
        return found

    first = cell("generate:1")
    assert "--dataset=generate:1" in first.arguments()
    assert "--dataset=generate:32" in cell("generate").arguments()
    assert f"--dataset={tmp_path / 'generate'}" in cell("./generate").arguments()
    build.convert(OpenedModels().plan(first))
    made = MadeCells(OpenedModels())
    assert made.has(first)
    with pytest.raises(BundleError, match=r"another dataset\)"):
        made.has(cell("generate:2"))


def test_the_hash_is_that_of_what_the_toolkit_reads(model: SimModel, vocabulary: Vocabulary) -> None:
    asked = Generate(1, max_new_tokens=6)
    data = Dataset("generate", tuple(generating.write(model, vocabulary, asked)), asked.made)
    assert data.facts()["sha256"] == hashlib.sha256(data.text().encode()).hexdigest()
    assert {key: value for key, value in data.facts().items() if key != "sha256"} == asked.facts()
