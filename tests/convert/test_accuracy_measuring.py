"""Bundles side by side: windows, references, activation scales, and going on after a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from rk3588 import bundle
from rk3588.bundle import Bundle
from rk3588.errors import UsageError
from rk3588.hostlib import SimModel
from rkconvert import memory
from rkconvert.accuracy import Accuracy, Text, candidates, common_reference, compare, measure, reference_for
from rkconvert.accuracy.texts import read
from rkconvert.cli import cli
from tests import models, smollm2

PANGRAM = "Sphinx of black quartz, judge my vow. How vexingly quick daft zebras jump! "
TEXT = Text("a text", PANGRAM * 12)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rk3588" / "accuracy"


@pytest.fixture
def found(tiny_bundles: Mapping[str, Path]) -> dict[str, Bundle]:
    return {dtype: bundle.read(path) for dtype, path in tiny_bundles.items()}


@pytest.fixture
def folders(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies, since the command writes into what it measures."""
    return {dtype: Path(shutil.copytree(path, tmp_path / path.name)) for dtype, path in tiny_bundles.items()}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["accuracy", *map(str, arguments)])


def opened(one: Bundle, act_scale: str | None = None) -> SimModel:
    return SimModel(one.path / "model.sim.gguf", act_scale=act_scale)


def test_the_reference_reads_each_window_once_for_all(
    found: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    logits = SimModel.logits

    def counted(self: SimModel, ids: list[int], **more: Any) -> Any:
        reads.append(len(ids))
        return logits(self, ids, **more)

    monkeypatch.setattr(SimModel, "logits", counted)
    rows = [found[dtype] for dtype in ("w8a8", "fp32", "w8a8_g128")]
    results = measure(rows, found["fp32"], [TEXT], 96, window=32)
    assert reads == [32] * 9  # the reference and two others: fp32 beside itself is not read again
    monkeypatch.undo()
    with opened(found["fp32"]) as truth:
        parts = read(truth, [TEXT], 96, 32, "all")
        for one, result in zip(rows, results):
            with opened(one) as model:
                alone = compare(truth, model, parts, "a text")
            assert (result.perplexity, result.kl, result.intervals) == (alone.perplexity, alone.kl, alone.intervals)
    assert results[1].kl == pytest.approx(0, abs=1e-14) and results[1].top1 == 1
    assert [result.act_scale for result in results] == ["token", "none", "token"]


def test_activation_scales_side_by_side(found: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that make a difference; each as with RKSIM_ACT_SCALE in a process of its own."""
    rows = [found["w8a8"], found["w8a8_g128"], found["fp16"]]
    modes = ("token", "tile64", "group")
    told = [(row.bundle.dtype, row.act_scale) for row in candidates(rows, modes)]
    assert told == [
        ("w8a8", "token"), ("w8a8", "tile64"), ("w8a8_g128", "token"), ("w8a8_g128", "tile64"),
        ("w8a8_g128", "group"), ("fp16", None),
    ]  # fmt: skip
    results = measure(rows, found["fp32"], [TEXT], 80, act_scales=modes)
    assert len({result.kl for result in results}) == 6
    for mode in modes:
        monkeypatch.setenv("RKSIM_ACT_SCALE", mode)
        (alone,) = measure([found["w8a8_g128"]], found["fp32"], [TEXT], 80)
        assert alone in results and alone.act_scale == mode


def test_half_of_each_window_as_llama_perplexity_scores_it(found: dict[str, Bundle]) -> None:
    (result,) = measure([found["w8a8"]], found["fp32"], [TEXT], 110, window=32, score="half")
    losses = []
    with opened(found["w8a8"]) as model:
        ids = model.tokenise(TEXT.text, add_bos=bool(model.info.add_bos))
        for start in (0, 32, 64):  # the last 14 fill no window
            part = ids[start : start + 32]
            part[0] = model.info.bos_id if model.info.add_bos else part[0]
            logits = model.logits(part)[16:-1].astype(np.float64)
            losses += list(np.log(np.exp(logits).sum(1)) - logits[np.arange(15), part[17:]])
    assert result.scored == len(losses) == 45 and result.tokens == 96 and result.windows == 3
    assert result.perplexity == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-9)


def test_texts_have_equal_parts_as_far_as_they_go(found: dict[str, Bundle]) -> None:
    texts = [Text("short", "Ab cd."), Text("long", PANGRAM * 9), Text("longer", PANGRAM[::-1] * 20)]
    with opened(found["fp32"]) as model:
        known = [model.tokenise(text.text, add_bos=bool(model.info.add_bos)) for text in texts]
        parts = read(model, texts, 301, None, "all")
    left = 301 - len(known[0])
    assert [len(part) for part in parts] == [len(known[0]), left // 2, left - left // 2]
    assert [part[1:] for part in parts] == [ids[1 : len(part)] for ids, part in zip(known, parts)]


def test_stopped_it_goes_on_and_finds_the_same(found: dict[str, Bundle], cache: Path) -> None:
    rows, told = [found["w8a8"], found["w8a8_g128"]], list[str]()
    steps: list[tuple[int, int]] = []

    def stop(_what: str, done: int, total: int) -> None:
        steps.append((done, total))
        if done > 3 * 2 * 32:
            raise KeyboardInterrupt

    def again(**more: Any) -> list[Accuracy]:
        return measure(rows, found["fp32"], [TEXT], 192, window=32, details=True, resume=True, **more)

    with pytest.raises(KeyboardInterrupt):
        again(step=stop)
    (folder,) = cache.iterdir()
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["window-0.npz", "window-1.npz"]
    (folder / "window-1.npz").write_bytes(b"PK broken")
    with pytest.raises(KeyboardInterrupt):
        measure([rows[0]], found["fp32"], [TEXT], 192, window=32, resume=True, step=stop)  # another measurement
    steps.clear()
    results = again(step=lambda _, done, total: steps.append((done, total)), tell=told.append)
    assert steps[0][0] == 3 * 32 + 32  # the second window is the first that is read
    assert any("1 of 6 windows were read before" in sentence for sentence in told)
    assert results == measure(rows, found["fp32"], [TEXT], 192, window=32, details=True)
    assert not folder.exists() and len(list(cache.iterdir())) == 1


def test_ctrl_c_says_that_it_goes_on(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rkconvert.accuracy.measure", stop)
    done = call(folders["w8a8"])
    assert done.exit_code != 0 and "the same call goes on from the last window" in done.stderr


def test_where_fp32_does_not_fit_memory_it_is_fp16(found: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    assert reference_for(found["w8a8"], [], told.append).dtype == "fp32" and told == []
    monkeypatch.setattr(memory, "machine", lambda: memory.Memory(1 << 20, 0, 1 << 20))
    assert reference_for(found["w8a8"], [], told.append).dtype == "fp16"
    assert told == ["the reference is fp16, not fp32: that takes 0.0 GB, of which 0.0 GB are free"]
    (result,) = measure([found["w8a8"]], found["fp16"], [TEXT], 60)
    assert result.as_dict()["reference"] == "fp16"


def test_bundles_of_several_models_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = models.tiny_llama(tmp_path / "other", seed=9)
    smollm2.convert(other, tmp_path, ["w8a8", "fp32"], name="other")
    paths = [folders["w8a8"], tmp_path / "other-rk3588-w8a8"]
    with pytest.raises(UsageError, match=r"are made of different models \(tiny, other\)"):
        common_reference([bundle.read(path) for path in paths])
    done = call(*paths)
    assert done.exit_code != 0 and isinstance(done.exception, UsageError)
    # Named by hand, anything with the same tokens may be the reference.
    (row,) = json.loads(call(paths[1], "--reference", folders["fp32"], "--tokens", 40, "--json").stdout)
    assert row["kl"] > 0.01 and row["bundle"] == "other-rk3588-w8a8"


def test_a_text_that_is_short_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(PANGRAM)
    done = call(folders["w8a8"], "--text", tmp_path / "text.txt", "--json")
    assert "no more than these of the 2,048 tokens that --tokens allows" in done.stderr
    assert "one window has no intervals" in done.stderr
    assert json.loads(done.stdout)[0]["intervals"] == {}


def test_another_tokenizer_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    smollm2.convert(models.tiny_llama(tmp_path / "larger", vocab_size=400), tmp_path, ["w8a8"], name="larger")
    done = call(tmp_path / "larger-rk3588-w8a8", "--reference", folders["fp32"])
    assert isinstance(done.exception, UsageError) and "has another tokenizer than" in str(done.exception)


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        ("", [], "is empty: give a text"),
        (" \n\t\n", [], "is empty: give a text"),
        ("word " * 20, ["--window", 64], r"text.txt has \d+ tokens of the 2048 that --tokens allows, less"),
        ("word " * 20, ["--score", "half"], "less than a window of 512"),
        ("word " * 20, ["--window", 100000], "the model's context has 512 tokens"),
        (PANGRAM * 30, ["--tokens", 20, "--window", 32], "has 20 tokens of the 20 that --tokens allows"),
    ],
)
def test_texts_that_cannot_be_measured_with(
    folders: dict[str, Path], tmp_path: Path, content: str, options: list[object], sentence: str
) -> None:
    (tmp_path / "text.txt").write_text(content)
    done = call(folders["w8a8"], "--text", tmp_path / "text.txt", *options)
    assert isinstance(done.exception, UsageError)
    with pytest.raises(UsageError, match=sentence):
        raise done.exception


def test_the_table_and_the_objects(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PANGRAM * 4)
    (tmp_path / "b.txt").write_text(PANGRAM[::-1] * 4)
    words = [folders["w8a8"], folders["w8a8_g128"], "--text", tmp_path / "a.txt", "--text",
             tmp_path / "b.txt", "--tokens", 80, "--window", 20, "--act-scale", "all"]  # fmt: skip
    done = call(*words)
    assert done.exit_code == 0, done.output
    for line in ("w8a8, tile64", "w8a8_g128, group", "a.txt, b.txt, against fp32", "worst layers"):
        assert line in done.stdout
    assert "Note: 80 tokens in 4 windows, read by 6 models: about" in done.stderr and "GB are free" in done.stderr
    rows = json.loads(call(*words, "--json").stdout)
    assert [(row["bundle"], row["act_scale"]) for row in rows] == [
        ("tiny-rk3588-w8a8", "token"), ("tiny-rk3588-w8a8", "tile64"), ("tiny-rk3588-w8a8_g128", "token"),
        ("tiny-rk3588-w8a8_g128", "tile64"), ("tiny-rk3588-w8a8_g128", "group"),
    ]  # fmt: skip
    for row in rows:
        assert row["kl"] == row["divergence"] and row["top1"] == row["agreement"] and row["perplexity"] > 1
        assert row["text"] == "a.txt, b.txt"
    noted = bundle.read(folders["w8a8_g128"]).manifest["accuracy"]
    assert noted == {key: value for key, value in rows[2].items() if key not in ("bundle", "path", "dtype")}
    assert rows[2]["act_scale"] == "token"
